# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uvnd on a real kernel: logins, repairs, long work and bad input."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import time

import pytest
from daemon import (
    FILES,
    LOG,
    apply_part,
    configure,
    cut_off_everywhere,
    damaged_after_a_look,
    refused_everywhere,
    wait_for,
)
from uvn import client, store
from uvn.membership import Membership

ALICE, BOB = 2001, 2002
pytestmark = pytest.mark.usefixtures("nobody")


# -- logins ----------------------------------------------------------------------------------------------------------


def test_a_login_makes_the_network_and_binds_sockets_to_it(host):
    assert host.bound_to(ALICE) == "PermissionError"
    assert host.logged_in("alice") == ""
    assert host.whole(ALICE)
    assert host.bound_to(ALICE) == "vrf2001"
    assert store.vouched() == {"alice": ALICE}


def test_two_hundred_logins_at_once(host, crowd):
    users = dict([*crowd.items()][:20])
    names = [*users] * 10
    random.Random(1).shuffle(names)
    logins = [host.log_in(name) for name in names]
    failed = [said for login in logins for said in [login.communicate()[0]] if login.returncode]
    assert failed == []
    assert all(host.whole(uid) for uid in users.values())
    assert {network["uid"] for network in client.request({"op": "status"})["networks"]} == set(users.values())
    assert store.vouched() == users


# -- kills -----------------------------------------------------------------------------------------------------------


def test_uvnd_is_killed_again_and_again_while_users_log_in(host, crowd):
    names = list(crowd)
    for number, name in enumerate(names[:4]):
        login = host.log_in(name)
        time.sleep(0.05 * number)
        host.stop(signal.SIGKILL)
        login.communicate()
        host.start()
        host.logged_in(name)
        assert host.whole(crowd[name])


UNIT = pathlib.Path("/run/systemd/system/uvnd-test.service")
SECONDS = 30  # of the watchdog in the test


@pytest.fixture
def supervised(host):
    """uvnd as systemd runs it, but with a shorter watchdog; yields a function that gives its PID, 0 when it does not run."""
    host.stop()
    kept = ("[Service]", "Type=", "Restart", "TimeoutStop")
    lines = [line for line in (FILES / "uvnd.service").read_text().splitlines() if line.startswith(kept)]
    here = f"nsenter --target={os.getpid()} --mount nsenter --net=/run/netns/{host.name}"  # the second one sees what the first one enters
    lines += [f"WatchdogSec={SECONDS}", f"ExecStart={here} /usr/sbin/uvn daemon", f"StandardOutput=append:{LOG}", f"StandardError=append:{LOG}"]
    UNIT.parent.mkdir(exist_ok=True)
    UNIT.write_text("\n".join(lines) + "\n")
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    try:
        subprocess.run(["systemctl", "start", UNIT.name], check=True)  # returns when uvnd is ready
        assert host.answers()
        show = ["systemctl", "show", "--value", "--property=MainPID", UNIT.name]
        yield lambda: int(subprocess.run(show, stdout=subprocess.PIPE, check=True).stdout)
    finally:
        subprocess.run(["systemctl", "stop", UNIT.name], check=True)
        UNIT.unlink()
        subprocess.run(["systemctl", "daemon-reload"], check=True)
        host.start()


def test_a_uvnd_that_hangs_is_started_anew_and_says_where_it_hung(host, supervised):
    first, before = supervised(), len(LOG.read_text())
    os.kill(first, signal.SIGSTOP)
    wait_for(lambda: supervised() not in (0, first), "systemd has started another one", seconds=10 * SECONDS)
    wait_for(host.answers, "uvnd answers")
    host.logged_in("alice")
    assert host.whole(ALICE)
    assert "Fatal Python error: Aborted" in LOG.read_text()[before:]


def test_an_idle_uvnd_is_left_alone(host, supervised):
    first = supervised()
    time.sleep(2 * SECONDS)
    assert supervised() == first and host.answers()


@pytest.mark.parametrize("present", [True, False], ids=["making", "removing"])
def test_a_run_that_is_cut_off_at_any_step_is_completed(host, present):
    host.stop()
    assert host.call(cut_off_everywhere, host.site, ALICE, present) > 10


@pytest.mark.parametrize("present", [True, False], ids=["making", "removing"])
def test_a_request_that_the_kernel_refuses_leaves_what_the_next_run_completes(host, present):
    host.stop()
    assert host.call(refused_everywhere, host.site, ALICE, present) >= (10 if present else 1)


@pytest.mark.parametrize("count", [3, 20])
def test_uvnd_takes_away_what_a_killed_one_began_for_somebody_who_is_not_here(host, count):
    host.stop(signal.SIGKILL)
    host.call(apply_part, host.site, ALICE, True, count)
    host.sh("ip link del vrf2001")
    host.start()
    wait_for(lambda: host.absent(ALICE), "what was left of alice's network is gone")


# -- damage ----------------------------------------------------------------------------------------------------------

DAMAGE = {
    "a VXLAN deleted": "ip link del em1u2001",
    "the VRF deleted": "ip link del vrf2001",
    "a wrong address": "ip addr add 192.168.80.99/21 dev em1u2001; ip addr del 192.168.80.71/21 dev em1u2001",
    "a route deleted": "ip route del default table 100002001",
    "the reply route deleted": "ip route del 100.64.7.209 table 100000000",
    "the NAT address deleted": "ip -6 addr flush dev uvn",
    "a VXLAN down": "ip link set ib0u2001 down",
}


@pytest.mark.parametrize("script", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_mended_at_once(host, script):
    host.logged_in("alice")
    host.sh(script)
    wait_for(lambda: host.whole(ALICE), f"after {script}")
    assert host.bound_to(ALICE) == "vrf2001"


@pytest.mark.parametrize("what", ["the VRF deleted", "a route deleted", "the NAT address deleted"])
@pytest.mark.parametrize("there", [True, False], ids=["there before", "just made"])
def test_damage_while_uvnd_is_at_work_on_the_same_user_is_not_missed(host, there, what):
    host.logged_in("bob")
    if there:
        host.logged_in("alice")
    host.stop()
    host.call_apart(damaged_after_a_look, ALICE, DAMAGE[what], 1 if there else 2)
    assert host.whole(ALICE) and host.whole(BOB)


EVERYTHING_BUT_THE_VRF = "; ".join(script for what, script in DAMAGE.items() if what != "the VRF deleted")


@pytest.mark.parametrize("script", [DAMAGE["the VRF deleted"], f"set +e; {EVERYTHING_BUT_THE_VRF}; true"], ids=["the VRF", "all the rest"])
def test_damage_done_while_uvnd_was_dead_is_mended_when_it_starts(host, script):
    host.logged_in("alice")
    host.stop(signal.SIGKILL)
    host.sh(script)
    host.start()
    wait_for(lambda: host.whole(ALICE), f"after {script}")


@pytest.mark.parametrize("rule", ["pref 32764", "pref 32763", "pref 32765 table local", "pref 1000"])
def test_a_rule_deleted_by_hand_comes_back(host, rule):
    before = host.sh("ip rule; ip -6 rule")
    host.sh(f"ip rule del {rule}; ip -6 rule del {rule}")
    wait_for(lambda: host.sh("ip rule; ip -6 rule") == before, f"{rule} is back")


def test_a_missing_entry_of_the_map_is_put_back(host):
    configure({**host.configuration, "idle": 1})
    with host.run_as(ALICE, "sleep", "100"):
        host.logged_in("alice")
        Membership().delete(ALICE)
        wait_for(lambda: host.whole(ALICE), "the entry is back")


def test_a_vrf_of_somebody_else_is_refused_and_named(host):
    host.sh("ip link add vrf2001 type vrf table 7")
    login = host.log_in("alice")
    said = login.communicate()[0]
    assert login.returncode == 1 and "vrf2001: a vrf of link group 0, not made by UVN" in said
    assert host.bound_to(ALICE) == "PermissionError"
    assert "table 7" in host.sh("ip -d link show vrf2001"), "it was not touched"
    host.sh("ip link del vrf2001")
    host.logged_in("alice")


def test_a_program_that_undoes_our_work_again_and_again_does_not_keep_the_node_busy(host):
    host.logged_in("alice")
    for _round in range(5):
        host.sh("ip route del default table 100002001")
        wait_for(lambda: host.whole(ALICE), "mended", seconds=60)
    host.sh("ip route del default table 100002001")
    time.sleep(2)
    assert not host.whole(ALICE), "after several repairs in a row the next one waits"
    wait_for(lambda: host.whole(ALICE), "mended in the end", seconds=60)


def test_membership_never_points_to_a_device_that_got_the_index_of_a_deleted_vrf(host):
    host.logged_in("alice")
    index = host.index("vrf2001")
    host.sh(f"ip link del vrf2001; ip link add other index {index} type vrf table 7")
    wait_for(lambda: Membership().get(ALICE) != index, "alice's entry is not of the new device")
    wait_for(lambda: host.whole(ALICE), "alice has a network again")
    host.stop(signal.SIGKILL)
    index = host.index("vrf2001")
    host.sh(f"ip link del vrf2001; ip link del other; ip link add other index {index} type vrf table 7")
    host.start()
    wait_for(lambda: Membership().get(ALICE) != index, "nor after a restart")
    host.sh("ip link del other")


def test_a_name_that_belongs_to_another_uid_now_asks_again(host, crowd):
    configure({**host.configuration, "idle": 1})  # a sweep each second
    with host.run_as(3001, "sleep", "100"), host.run_as(3099, "sleep", "100"):
        host.logged_in("uvncrowd1")
        subprocess.run(["sed", "-i", "s/^uvncrowd1:x:3001/uvncrowd1:x:3099/", "/etc/passwd"], check=True)
        wait_for(lambda: "uvncrowd1" not in store.vouched(), "the login asks again")
        host.logged_in("uvncrowd1")
        assert host.whole(3099)


# -- long work -------------------------------------------------------------------------------------------------------


def test_a_login_need_not_wait_for_the_end_of_a_long_request(host, crowd):
    bulk = host.call_later(client.request, {"op": "ensure", "users": [*crowd]})
    wait_for(lambda: host.index("vrf3001"), "the long request has begun")
    host.logged_in("alice")
    assert not host.index("vrf3060"), "alice did not wait for the last of the crowd"
    bulk.join()
    assert bulk.exitcode == 0 and all(host.whole(uid) for uid in (3001, 3060))


# -- bad input -------------------------------------------------------------------------------------------------------


def refusal(message):
    """What uvnd says against a request, nothing when it has nothing."""
    try:
        client.request(message)
    except client.UvnError as error:
        return str(error)
    return ""


BAD = {
    "an unknown user": ({"op": "ensure", "users": ["alice", "nobody-has-this-name"]}, "user 'nobody-has-this-name' is unknown on this node"),
    "a UID below the limit": ({"op": "ensure", "users": ["alice", "root"]}, "UID 0 is below min_uid 1000"),
    "a UID in no range": ({"op": "ensure", "uids": [ALICE, 1200001234]}, "UID 1200001234 is in none of the site's UID ranges"),
}


@pytest.mark.parametrize(("message", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_with_a_sentence_and_nothing_changes(host, message, sentence):
    before = host.everything()
    with pytest.raises(client.UvnError, match=sentence):
        client.request(message)
    assert host.everything() == before


@pytest.mark.parametrize("text", ['{"version": 1, "underl', '{"version": 2, "underlays": []}'], ids=["cut off", "from a newer version"])
def test_a_site_file_that_cannot_be_used_changes_nothing_and_says_so(host, text):
    host.logged_in("alice")
    before = sorted(host.everything().splitlines())
    open("/etc/uvn/site.json", "w").write(text)
    wait_for(lambda: "/etc/uvn/site.json: " in refusal({"op": "ensure", "user": "bob", "check": True}), "refused, once a piece of work is over")
    host.sh("ip link set ib0 down; ip link set ib0 up; ip -6 addr add fd00:40::71/64 dev ib0 nodad")
    time.sleep(1)
    configure(host.configuration)
    wait_for(lambda: host.whole(ALICE), "alice's network is as planned with the good file")
    wait_for(lambda: sorted(host.everything().splitlines()) == before, "and all is as before")
