# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of the directory's answers, and of its silence; a real one that is slow or silent is in tests/kernel."""

from __future__ import annotations

import errno
import threading

import pytest
from conftest import SITE
from hypothesis import given
from hypothesis import strategies as st
from uvn import accounts, site
from uvn.accounts import Account, Answers, Entry, Group, Silent

EXEMPT = site.parse({**SITE, "exempt": {"users": ["svcmon"], "groups": ["hpcadmins"]}})
NOBODY = site.parse(SITE)
ADMINS = 5000


class Directory:
    """Found, not found, no answer: what is in `silent` has no answer; look-ups of what is in `slow` wait for its event."""

    def __init__(self, monkeypatch, tmp_path):
        self.users = {"svcmon": (5201, 100), "ladmin": (5200, 100), "dave": (5202, ADMINS), "alice": (2001, 100)}
        self.groups = {"hpcadmins": Group(ADMINS, ())}
        self.memberships = {"ladmin": {ADMINS}}  # which the group does not list
        self.silent, self.asked, self.slow = set(), [], {}
        monkeypatch.setattr(accounts, "by_name", lambda name: self._ask(name, self._entry(name)))
        monkeypatch.setattr(accounts, "by_uid", lambda uid: self._ask(uid, self._entry(self._name(uid))))
        monkeypatch.setattr(accounts, "group", lambda name: self._ask(name, self.groups.get(name)))
        monkeypatch.setattr(accounts, "groups_of", self._groups_of)
        monkeypatch.setattr(accounts, "PASSWD", str(tmp_path / "passwd"))

    def _name(self, uid):
        return next((name for name, (number, _gid) in self.users.items() if number == uid), None)

    def _entry(self, name):
        return Entry(name, *self.users[name]) if name in self.users else None

    def _ask(self, key, found):
        self.asked.append(key)
        if key in self.slow:
            assert self.slow[key].wait(60)
        if key in self.silent or "all" in self.silent:
            raise Silent(str(key))
        return found

    def _groups_of(self, entry):
        self.asked.append(f"groups of {entry.name}")
        whole = f"groups of {entry.name}" not in self.silent
        return frozenset({entry.gid, *(self.memberships.get(entry.name, ()) if whole else ())}), whole


@pytest.fixture
def directory(monkeypatch, tmp_path):
    return Directory(monkeypatch, tmp_path)


def exempt(known=(), uids=(5200, 5201, 5202, 2001), of=EXEMPT):
    return accounts.ask(of, uids, ()).exempt(of, known)


def test_exempt_are_the_named_the_primary_group_and_members_that_no_group_lists(directory):
    assert exempt() == {5200, 5201, 5202}
    assert exempt(known={2001, 5200}) == {5200, 5201, 5202}, "and nobody else, whoever was"


def test_listed_members_are_exempt_wherever_they_are(directory):
    directory.groups["hpcadmins"] = Group(ADMINS, ("alice", "left"))
    assert exempt(uids=()) == {2001, 5201}


def test_accounts_of_the_node_s_own_file_are_found_by_their_primary_group(directory, tmp_path):
    (tmp_path / "passwd").write_text(f"dave:x:5202:{ADMINS}::/:/bin/sh\nalice:x:2001:100::/:/bin/sh\n+\n::::\nx:y:z:{ADMINS}:\n")
    assert exempt(uids=()) == {5201, 5202}


def test_without_an_answer_the_exempt_stay_and_nobody_else_is(directory):
    directory.silent = {"all"}
    assert exempt(known={5200, 5201}) == {5200, 5201}
    assert accounts.ask(EXEMPT, {5200}, {"alice"}).silent == ("group hpcadmins", "user alice", "user svcmon", "UID 5200")


@pytest.mark.parametrize("silent", ["hpcadmins", 5200, "groups of ladmin"])
def test_one_answer_that_is_missing_is_enough_for_a_member_to_stay(directory, silent):
    directory.silent = {silent}
    assert 5200 in exempt(known={5200})
    directory.silent = set()
    directory.memberships = {}
    assert 5200 not in exempt(known={5200})


def test_an_account_that_is_gone_is_exempt_no_more(directory):
    del directory.users["svcmon"]
    assert 5201 not in exempt(known={5201})
    directory.silent = {5201}
    assert 5201 in exempt(known={5201})


def test_a_site_that_exempts_nobody_needs_no_answer(directory):
    directory.silent = {"all"}
    assert exempt(known={5200, 5201}, of=NOBODY) == set()


def test_groups_are_asked_for_only_where_the_site_exempts_some(directory):
    accounts.ask(NOBODY, {5200}, ())
    assert directory.asked == [5200]


@given(
    st.dictionaries(st.integers(990, 1010), st.none() | st.builds(Account, st.integers(990, 1010), st.none() | st.just("svcmon"))),
    st.sets(st.integers(990, 1010)),
)
def test_of_the_known_only_those_go_of_whom_the_directory_spoke(found, known):
    kept = Answers({"hpcadmins": None}, {}, found).exempt(EXEMPT, known)
    assert {uid for uid in known if uid >= EXEMPT.min_uid} - kept <= set(found)


def test_a_slow_directory_keeps_nobody_waiting_and_is_asked_one_thing_at_a_time(directory):
    directory.slow = {5200: threading.Event()}
    inquiry = accounts.Inquiry()
    assert (inquiry.take(), inquiry.pending()) == (None, None)
    inquiry.begin(EXEMPT, {5200}, {"alice"})
    assert inquiry.take() is None and inquiry.pending() >= 0
    directory.slow[5200].set()
    answers = inquiry.take(60)
    assert (answers.names["alice"], answers.accounts[5200].name, inquiry.pending()) == (2001, "ladmin", None)
    assert inquiry.take() is None


def test_an_inquiry_that_fails_is_over_and_says_why(monkeypatch, capsys):
    monkeypatch.setattr(accounts, "ask", lambda *_arguments: 1 // 0)
    inquiry = accounts.Inquiry()
    inquiry.begin(EXEMPT, {1}, ())
    assert inquiry.take(60) is None and inquiry.pending() is None
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.ENOENT, errno.ECONNREFUSED, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EINTR, errno.ENOMEM])
def test_an_error_of_the_library_is_no_answer(monkeypatch, error):
    for function, look_up, key in (("getpwnam_r", accounts.by_name, "x"), ("getpwuid_r", accounts.by_uid, 7), ("getgrnam_r", accounts.group, "x")):
        monkeypatch.setattr(accounts._c, function, lambda *arguments: error)
        with pytest.raises(Silent, match="getent"):
            look_up(key)


def test_not_found_is_an_answer(monkeypatch):
    for function, look_up, key in (("getpwnam_r", accounts.by_name, "x"), ("getpwuid_r", accounts.by_uid, 7), ("getgrnam_r", accounts.group, "x")):
        monkeypatch.setattr(accounts._c, function, lambda *arguments: 0)
        assert look_up(key) is None


@pytest.mark.parametrize("error", [0, errno.ENOENT, errno.ERANGE, errno.EAGAIN, errno.ECONNREFUSED])
def test_groups_are_all_unless_the_library_met_an_error(monkeypatch, error):
    def getgrouplist(_name, gid, groups, count):
        groups[0], count._obj.value = gid.value, 1
        accounts.ctypes.set_errno(error)
        return 1

    monkeypatch.setattr(accounts._c, "getgrouplist", getgrouplist)
    assert accounts.groups_of(Entry("x", 7, 8)) == (frozenset({8}), error not in (errno.EAGAIN, errno.ECONNREFUSED))


def test_a_record_that_is_too_long_for_the_buffer_is_asked_for_again(monkeypatch):
    real, sizes = accounts._c.getpwnam_r, []

    def getpwnam_r(name, record, buffer, size, found):
        sizes.append(size.value)
        return errno.ERANGE if len(sizes) < 3 else real(name, record, buffer, size, found)

    monkeypatch.setattr(accounts._c, "getpwnam_r", getpwnam_r)
    assert accounts.by_name("root").uid == 0
    assert sizes == sorted(set(sizes)) and len(sizes) == 3
    monkeypatch.setattr(accounts._c, "getpwnam_r", lambda *arguments: errno.ERANGE)
    with pytest.raises(Silent):
        accounts.by_name("root")


def test_the_members_that_a_group_lists_are_read():
    name, members = next(
        (fields[0], fields[3].split(",")) for fields in (line.strip().split(":") for line in open("/etc/group")) if fields[3]
    )
    assert accounts.group(name).members == tuple(members)


def test_a_uid_is_called_as_it_was_last_heard(monkeypatch):
    monkeypatch.setattr(accounts, "_names", {})
    for uid, name in ((1, "a"), (2, "b"), (3, "a"), (2, None)):
        accounts.learn(uid, name)
    assert [accounts.name_of(uid) for uid in (1, 2, 3)] == [None, None, "a"]
