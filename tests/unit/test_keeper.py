# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uvnd's repairs: none is forgotten, none keeps another one from being made, and no failure ends uvnd."""

from __future__ import annotations

import pytest
from uvn import keeper, login
from uvn.identity import LINK_GROUP
from uvnd import IDLE, Keeping

ALICE, BOB, CAROL = 2001, 2002, 2003


@pytest.fixture
def keeping(monkeypatch, tmp_path):
    return Keeping(monkeypatch, tmp_path, ALICE, BOB, CAROL).calm()


def damage(keeping, *users):
    keeping.node.damaged |= set(users)
    keeping.tell(users={LINK_GROUP + uid for uid in users})


# -- what fails is tried again ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["host", "lock"])
@pytest.mark.parametrize("what", [{"touched": True}, {"look": True, "users": {LINK_GROUP + ALICE}}, {"node": True}])
def test_what_the_kernel_told_is_kept_when_the_look_at_the_node_fails(keeping, call, what):
    """Each effect that was told of is acted upon once the look succeeds."""
    keeping.keeper._host = None
    keeping.node.failing[call] = 2
    keeping.tell(**what)
    keeping.work(seconds=keeper.SWEEP - 5)
    assert keeping.node.failing[call] == 0
    assert {"touched": ALICE, "look": ALICE, "node": "node"}[next(iter(what))] in keeping.node.done


def test_a_change_of_the_node_is_not_taken_for_seen_before_it_was_followed(keeping):
    keeping.node.kernel.rules = lambda: ["another"]
    keeping.node.known_uids = lambda: keeping.node.call("dump") or {ALICE}
    keeping.node.failing["dump"] = 1
    keeping.tell(look=True)
    keeping.work(seconds=keeper.SWEEP - 5)
    assert keeping.node.done == [ALICE, "node"]


@pytest.mark.parametrize("failures", [1, 3, 10])
def test_a_repair_that_fails_is_tried_again_without_another_event(keeping, failures):
    keeping.node.failing[BOB] = failures
    damage(keeping, ALICE, BOB, CAROL)
    keeping.work(seconds=1)
    assert {ALICE, CAROL} <= set(keeping.node.done), "the others are not kept from theirs"
    keeping.work(seconds=200)
    assert keeping.node.damaged == set() and keeping.node.failing[BOB] == 0


def test_the_node_is_tried_again_as_well(keeping):
    keeping.node.failing["node"], keeping.node.drift = 2, True
    keeping.tell(node=True)
    keeping.work(seconds=5)
    assert not keeping.node.drift


def test_a_fault_of_ours_with_one_user_does_not_keep_the_others_from_repair(keeping, monkeypatch):
    mend = keeping.node.user

    def user(uid, *arguments):
        return {}[uid] if uid == ALICE else mend(uid, *arguments)

    keeping.node.user = user
    damage(keeping, ALICE, BOB)
    keeping.work(seconds=1)
    assert keeping.node.damaged == {ALICE}
    keeping.node.user = mend
    keeping.work(seconds=30)
    assert keeping.node.damaged == set()


def test_the_wait_between_two_tries_grows_up_to_a_limit_and_others_do_not_pay_for_it(keeping):
    keeping.node.failing[BOB] = 10**6
    damage(keeping, BOB)
    keeping.work(seconds=100)
    tries = 10**6 - keeping.node.failing[BOB]
    assert 8 <= tries <= 20
    damage(keeping, ALICE)
    keeping.work(seconds=2 * keeper.SETTLE)
    assert keeping.node.damaged == {BOB}, "alice's repair did not wait for bob's"


def test_a_failure_is_told_once_and_again_when_it_comes_back(keeping):
    for _time in range(2):
        keeping.node.failing[BOB] = 5
        damage(keeping, BOB)
        keeping.work(seconds=40)
        assert keeping.node.damaged == set()
    assert len([line for line in keeping.said if "failed" in line]) == 2
    assert not [line for line in keeping.said if "follow: ended" in line], "a repair that failed did not end when the first try did"


def test_a_site_file_that_is_bad_for_long_is_no_endless_log(keeping):
    keeping.keeper._stamp = None
    keeping.node.failing["load"] = 10**6
    keeping.tell(touched=True)
    keeping.work(seconds=1000)
    assert keeping.node.done[:3] == [ALICE, BOB, CAROL], "by the configuration from before"
    assert len(keeping.said) == 1


def test_everybody_is_compared_now_and_then_whatever_was_told(keeping):
    keeping.node.damaged.add(CAROL)
    keeping.work(seconds=keeper.EVERYBODY * keeper.SWEEP + 1)
    assert keeping.node.damaged == set()


def test_a_removal_that_fails_is_made_with_the_next_sweep(keeping):
    keeping.present.discard(BOB)
    keeping.node.failing[BOB] = 1
    keeping.work(seconds=IDLE + 5 * keeper.SWEEP)
    assert -BOB in keeping.node.done and BOB not in keeping.node.done
    assert keeping.node.users == {ALICE, CAROL}


def fight(keeping, rounds, pause):
    """Another program undoes what uvnd does, `pause` seconds after each repair."""
    for _round in range(rounds):
        damage(keeping, ALICE)
        keeping.work(seconds=14 + pause)
        assert keeping.node.damaged == set()


def test_a_program_that_undoes_our_work_is_reported_once_with_what_it_undoes(keeping):
    fight(keeping, 3 * keeper.PATIENCE, pause=0)
    (line,) = [line for line in keeping.said if line.startswith("another program")]
    assert line == f"another program undoes what uvnd does, 6 times in a row by now: {keeper.label(ALICE)}: 1 change: mended"


def test_nobody_is_suspected_for_what_was_long_ago(keeping):
    fight(keeping, 3 * keeper.PATIENCE, pause=keeper.CALM)
    assert not [line for line in keeping.said if line.startswith("another program")]
    for _time in range(2):
        damage(keeping, ALICE)
        keeping.work(seconds=4 * keeper.SETTLE)
        assert keeping.node.damaged == set(), "the first repairs after calm do not wait"


def test_one_change_is_one_change(keeping):
    damage(keeping, ALICE)
    keeping.work(seconds=1)
    assert keeping.said[0] == f"follow {keeper.label(ALICE)}: 1 change: mended"
    assert keeper.counted([1, 2]) == "2 changes"


# -- no failure ends uvnd, and there is one writer -------------------------------------------------------------------


def test_membership_of_a_deleted_device_is_withdrawn_under_the_lock_and_tried_again(keeping):
    keeping.node.failing["forget"] = 2
    keeping.tell(users={LINK_GROUP + ALICE}, gone={50: LINK_GROUP + ALICE})
    assert keeping.said == ["read failed: forget: the kernel did not answer"]
    keeping.work(seconds=5)
    assert keeping.node.forgotten == {50}


def test_sweeps_write_under_the_lock(keeping):
    keeping.work(seconds=2 * keeper.SWEEP)
    assert keeping.said == []


def test_a_reconciler_is_closed_when_another_one_takes_its_place_or_it_cannot_be_used(keeping):
    first = keeping.node
    keeping.keeper._stamp = None
    keeping.tell(touched=True)
    keeping.work(seconds=1)
    assert first.closed
    first.closed, first.kernel.devices = False, lambda *_kinds: first.call("devices") or {}
    first.failing["devices"] = 1
    keeping.keeper._stamp = None
    keeping.tell(touched=True)
    keeping.work(seconds=keeper.SETTLE)
    assert first.closed and keeping.said[-1].startswith("devices: the kernel did not answer; until then")


def test_another_program_s_lock_does_not_outlast_a_login():
    assert keeper.LOCK_WAIT < login.TIMEOUT


# -- signs of life ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_there_is_a_sign_of_life_for_every_user_of_a_long_piece_of_work(monkeypatch, tmp_path, nested):
    """The watchdog must not end an uvnd that is at work; also when a long request is served in between."""
    users = range(3001, 4001)
    keeping = Keeping(monkeypatch, tmp_path, *users).calm()
    signs = []
    keeping.keeper.alive = lambda: signs.append(len(keeping.node.done))
    if nested:
        keeping.keeper.between = lambda: keeping.node.done or [keeping.keeper.user(uid, True) for uid in users]
    keeping.tell(touched=True)
    keeping.work(seconds=1)
    assert len(keeping.node.done) == (2 if nested else 1) * len(users) + 1
    assert all(after - before <= 1 for before, after in zip(signs, signs[1:])), "no two users without one in between"
    assert signs[-1] >= len(keeping.node.done) - 2


def test_a_silent_directory_is_told_of_once_and_so_is_its_end(keeping):
    keeping.keeper.inquiry.silent = True
    keeping.work(seconds=10 * keeper.SWEEP)
    assert [said for said in keeping.said if "directory" in said] == [
        "the directory does not answer (anything): who is exempt, and whose logins are trusted, stays as last known"
    ]
    keeping.keeper.inquiry.silent = False
    keeping.work(seconds=3 * keeper.SWEEP)
    assert [said for said in keeping.said if "directory" in said][1:] == ["the directory answers again"]
