# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is exempt, by the kernel's map, the state file and what the directory said, with a stand-in for the map."""

from __future__ import annotations

import pytest
from conftest import SITE
from uvn import accounts, reconcile, site
from uvn.accounts import Account, Answers, Group
from uvn.membership import EXEMPT
from uvn.store import Store

CONFIGURED = site.parse({**SITE, "exempt": {"users": ["svcmon"], "groups": ["hpcadmins"], "uids": ["7000-7009"]}})
ALICE, SVCMON, LADMIN, ADMINS = 2001, 5201, 5200, 5000
SILENCE = Answers({}, {}, {}, ("everything",))


class Map(dict):
    """The entries of single UIDs."""

    def entries(self):
        return {(uid, 32): index for uid, index in self.items()}


@pytest.fixture
def node(monkeypatch, tmp_path):
    """A Reconciler of which only the exemptions are used; with `groups` the numbers of the site's exempt groups as the state file has them."""
    monkeypatch.setattr(accounts, "_names", {})
    monkeypatch.setattr(reconcile, "Kernel", object)
    monkeypatch.setattr(reconcile, "Store", lambda: Store(str(tmp_path / "state.json")))

    def start(**groups):
        Store(str(tmp_path / "state.json")).note_exempt(Store(str(tmp_path / "state.json")).exempt(), groups)
        made = reconcile.Reconciler(CONFIGURED)
        made.membership = Map()
        return made

    return start


def answers(*found, **groups):
    return Answers({"hpcadmins": Group(ADMINS), **groups}, {"svcmon": SVCMON}, {account.uid: account for account in found})


def test_the_map_decides_where_nothing_else_was_said(node):
    made = node()
    made.membership.update({LADMIN: EXEMPT, ALICE: 17})
    assert [made.is_exempt(uid) for uid in (999, 7003, LADMIN, ALICE, 2002)] == [True, True, True, False, False]


def test_a_login_can_bring_an_exemption_and_never_takes_one_away(node):
    made = node(hpcadmins=ADMINS)
    made.meet(Account(LADMIN, "ladmin", frozenset({100, ADMINS})))
    made.meet(Account(5205, "told", exempt=True))
    made.meet(Account(ALICE, "alice", frozenset({100})))
    assert [made.is_exempt(uid) for uid in (LADMIN, 5205, ALICE)] == [True, True, False]
    made.meet(Account(LADMIN, "ladmin", frozenset({100})))
    assert made.is_exempt(LADMIN) and made._exempt() == {LADMIN, 5205}


def test_what_the_directory_says_is_carried_out_and_its_silence_is_not(node):
    made = node()
    made.membership.update({LADMIN: EXEMPT, ALICE: 17})
    assert made.learn(SILENCE) == set() and made.is_exempt(LADMIN)
    assert made.learn(answers(Account(LADMIN, "ladmin", frozenset({100}), whole=True))) == {SVCMON, LADMIN}
    assert (made.is_exempt(SVCMON), made.is_exempt(LADMIN)) == (True, False), "the map has the old entry still"
    made.meet(Account(LADMIN, "ladmin", frozenset({ADMINS})))
    assert made.is_exempt(LADMIN), "the number of the group is known now"
    assert accounts.name_of(LADMIN) == "ladmin"


def test_a_node_that_boots_without_its_directory_has_the_exempt_of_the_time_before(node, tmp_path):
    Store(str(tmp_path / "state.json")).note_exempt({LADMIN, 7003, 500}, {})
    made = node(hpcadmins=ADMINS)
    made.learn(SILENCE)
    assert made._exempt() == {LADMIN} and made.is_exempt(LADMIN)
    made.meet(Account(SVCMON, None, frozenset({ADMINS})))
    assert made.is_exempt(SVCMON), "the numbers of the groups are remembered as well"


def test_no_login_depends_on_the_state_file(node, tmp_path):
    node()
    (tmp_path / "state.json").write_text("{")
    made = reconcile.Reconciler(CONFIGURED)
    made.membership = Map({LADMIN: EXEMPT})
    made.meet(Account(5205, "told", exempt=True))
    assert [made.is_exempt(uid) for uid in (LADMIN, 5205, ALICE)] == [True, True, False]
