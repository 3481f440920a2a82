# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uvnd on a node whose directory is slow, or silent, or does not list the members of groups."""

from __future__ import annotations

import contextlib
import subprocess

import pytest
from daemon import LOG, configure, wait_for
from directory import Directory
from uvn import client, store
from uvn.membership import EXEMPT, Membership

ALICE = 2001
NAMED, LISTED, UNLISTED, PRIMARY = 5201, 5202, 5203, 5204
ADMINS = 5000
SLOW = {f"slow{number}": 2100 + number for number in range(1, 5)}
pytestmark = pytest.mark.usefixtures("nobody")


@pytest.fixture
def directory(host, tmp_path):
    """The node asks it; a test says when there is an answer. uvnd sweeps each second."""
    directory = Directory(None, host.name)
    directory.users = {"named": (NAMED, 100), "listed": (LISTED, 100), "unlisted": (UNLISTED, 100), "primary": (PRIMARY, ADMINS)}
    directory.users.update({name: (uid, 100) for name, uid in SLOW.items()})
    directory.groups = {"hpcadmins": (ADMINS, ("listed",))}
    directory.memberships = {"unlisted": (ADMINS,)}
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    configure({**host.configuration, "idle": 1, "exempt": {"users": ["named"], "groups": ["hpcadmins"]}})
    with directory.configured(tmp_path):
        client.request({"op": "status"})  # else uvnd would see the new site with its next sweep only, a minute later
        yield directory


def is_exempt(uid):
    return Membership().get(uid) == EXEMPT


def said(sentence):
    return LOG.read_text().count(sentence)


def test_a_slow_look_up_of_one_account_keeps_nobody_waiting(host, directory):
    directory.held = {f"{name}.grplist" for name in SLOW}
    with directory.answering(), contextlib.ExitStack() as stack:
        stack.callback(directory.held.clear)
        for uid in (ALICE, SLOW["slow1"]):  # else their networks go within seconds
            stack.enter_context(host.run_as(uid, "sleep", "1000"))
        wait_for(lambda: "slow1.grplist" in directory.asked, "uvnd asks of whom has a process")
        logins = [host.log_in(name) for name in SLOW]
        wait_for(lambda: directory.waiting() == directory.held, "all of them wait for the directory")
        host.logged_in("alice")
        assert host.whole(ALICE) and host.bound_to(ALICE) == "vrf2001"
        assert directory.waiting() == directory.held, "and they wait still"
        assert [login.poll() for login in logins] == [None] * len(SLOW)
        assert [directory.asked.count(f"{name}.grplist") for name in SLOW] == [2, 1, 1, 1], "each login asks once, uvnd of the one it met"
        directory.held.clear()
        for login in logins:
            assert login.communicate()[0] == "" and login.returncode == 0
        assert host.whole(SLOW["slow1"])


def test_the_exempt_have_sockets_whether_their_group_lists_them_or_not(host, directory):
    with directory.answering():
        wait_for(lambda: is_exempt(NAMED) and is_exempt(LISTED), "those whom the directory lists are exempt before they come")
        for user, uid in (("unlisted", UNLISTED), ("primary", PRIMARY)):
            assert host.logged_in(user, "exempt") == ""
            assert host.bound_to(uid) == "nothing"
        assert client.request({"op": "show", "uid": UNLISTED})["network"]["exempt"]
        directory.memberships = {}
        wait_for(lambda: not is_exempt(UNLISTED), "who is not in the group any more is exempt no more")
        assert "unlisted" not in store.vouched() and is_exempt(PRIMARY)
        configure({**host.configuration, "idle": 1})
        wait_for(lambda: not is_exempt(NAMED) and not is_exempt(PRIMARY), "nor is anybody whom the site exempts no more")


def test_who_runs_when_membership_begins_is_exempt_by_groups_that_list_nobody(host, directory):
    with directory.answering(), host.run_as(UNLISTED, "sleep", "1000"):
        host.stop()
        Membership().detach()
        host.sh("/usr/sbin/uvn node apply")
        assert is_exempt(UNLISTED) and not host.index(f"vrf{UNLISTED}")
        host.start()


def test_silence_of_the_directory_takes_nothing_away(host, directory):
    everybody = (NAMED, LISTED, UNLISTED, PRIMARY)
    before = said("the directory answers again"), said("the directory does not answer")
    with contextlib.ExitStack() as stack:
        with directory.answering():
            for user in ("unlisted", "primary"):
                host.logged_in(user, "exempt")
            stack.enter_context(host.run_as(SLOW["slow1"], "sleep", "1000"))  # else its network goes within seconds
            host.logged_in("slow1")
            wait_for(lambda: all(map(is_exempt, everybody)), "all are exempt")
        wait_for(lambda: said("the directory does not answer") == before[1] + 1, "the journal says so")
        assert client.request({"op": "status"})["node"]["drift"] == [], "which is answered when all that follows from the silence is done"
        assert all(map(is_exempt, everybody))
        assert {"unlisted", "primary", "slow1"} <= set(store.vouched())
        assert client.request({"op": "ensure", "user": "unlisted"})["networks"][0]["exempt"], "known by name from the login"
        assert host.whole(SLOW["slow1"])
        with pytest.raises(client.UvnError, match="'mallory' is unknown on this node, or its directory does not answer"):
            client.request({"op": "ensure", "user": "mallory"})

        host.stop()
        Membership().detach()  # as after a boot
        host.sh("/usr/sbin/uvn node apply")
        assert all(map(is_exempt, everybody)), "the state file has them"
        host.start()
        wait_for(lambda: said("the directory does not answer") == before[1] + 2, "the new uvnd says so as well")
        assert all(map(is_exempt, everybody))
        with directory.answering():
            wait_for(lambda: said("the directory answers again") == before[0] + 1, "the journal says that it is back")
            assert all(map(is_exempt, everybody))
            del directory.users["named"]
            wait_for(lambda: not is_exempt(NAMED), "from then on no is no")
