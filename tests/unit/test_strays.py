# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What it costs to find who holds a socket, counted in what is read: users decide how much there is."""

from __future__ import annotations

import contextlib
import io
import os
from types import SimpleNamespace

import pytest
from uvn import accounts, strays
from uvn.errors import UvnError

ALICE, BOB = 2001, 2002
MANY = 150_000  # descriptors of a process


class Proc:
    """/proc in the eyes of strays.py: processes with UIDs and descriptors. `entries` counts the descriptors read, by PID."""

    def __init__(self, monkeypatch):
        self.processes, self.entries = {}, {}
        monkeypatch.setattr(accounts.os, "listdir", lambda _path: [*map(str, self.processes), "self"])
        monkeypatch.setattr(accounts, "uid_of_process", lambda pid: self.processes[pid][0])
        monkeypatch.setattr(strays.os, "scandir", lambda path: contextlib.closing(self._scan(path)))
        monkeypatch.setattr(strays.os, "readlink", lambda path: path)
        monkeypatch.setattr(strays, "open", lambda path, **_how: io.StringIO(f"program{path.split('/')[2]}\n"), raising=False)

    def process(self, uid, *inodes, fillers=0):
        pid = 100 + len(self.processes)
        self.processes[pid] = uid, [*(["/dev/null"] * fillers), *(f"socket:[{inode}]" for inode in inodes)]
        return pid

    def _scan(self, path):
        pid = int(path.split("/")[2])
        for target in self.processes[pid][1]:
            self.entries[pid] = self.entries.get(pid, 0) + 1
            yield SimpleNamespace(path=target)


@pytest.fixture
def proc(monkeypatch):
    return Proc(monkeypatch)


@pytest.fixture
def sockets(monkeypatch):
    """The sockets of the node: protocol, port, device, UID, inode."""
    found = []
    monkeypatch.setattr(strays, "_sockets", lambda protocols: (one for one in found if one[0] in protocols))
    monkeypatch.setattr(strays.accounts, "name_of", {ALICE: "alice", BOB: "bob"}.get)
    return found


def test_one_user_s_descriptors_cost_a_bounded_number_of_reads(proc, sockets):
    sockets.append(("udp", 7, 0, ALICE, 5))
    for _process in range(4):
        proc.process(ALICE, fillers=MANY)
    proc.process(ALICE, 5)
    assert strays.holder("udp", 7, ALICE) is None
    assert sum(proc.entries.values()) <= strays.ENTRIES + 4


def test_only_processes_of_that_user_are_looked_at_and_none_after_it_is_found(proc, sockets):
    sockets.append(("udp", 7, 0, ALICE, 5))
    other, holder, later = proc.process(BOB, fillers=10), proc.process(ALICE, 5, 6, fillers=10), proc.process(ALICE, fillers=10)
    assert strays.holder("udp", 7, ALICE) == {"pid": holder, "program": f"program{holder}"}
    assert proc.entries == {holder: 11} and other != later


def test_no_process_is_looked_at_for_a_socket_that_is_gone(proc, sockets):
    proc.process(ALICE, 5)
    assert strays.holder("udp", 7, ALICE) is None
    assert proc.entries == {}


def test_a_look_for_a_holder_reads_a_bounded_number_of_sockets(proc, monkeypatch):
    read = []
    monkeypatch.setattr(strays, "_sockets", lambda _protocols: (read.append(1) or ("udp", 7, 0, BOB, 1) for _number in range(10**6)))
    assert strays.holder("udp", 7, ALICE) is None
    assert len(read) == strays.SOCKETS


def test_one_user_does_not_hide_who_holds_another_one_s_sockets(proc, sockets):
    """All strays are listed, with a program where it is found within the share of their user."""
    sockets += [("udp", 7, 0, ALICE, 5), ("tcp", 8, 0, BOB, 6)]
    for _process in range(4):
        proc.process(ALICE, fillers=MANY)
    bobs = proc.process(BOB, 6, fillers=100)
    assert strays.find(lambda _uid: 9) == [
        {"uid": ALICE, "user": "alice", "protocol": "udp", "port": 7, "pid": None, "program": None},
        {"uid": BOB, "user": "bob", "protocol": "tcp", "port": 8, "pid": bobs, "program": f"program{bobs}"},
    ]
    assert sum(proc.entries.values()) <= strays.ENTRIES


def test_a_user_s_strays_fill_no_list_and_hide_no_other(proc, sockets):
    sockets += [("udp", port, 0, ALICE, 10 + port) for port in range(10_000)] + [("udp", 7, 0, BOB, 5), ("udp", 8, 9, BOB, 6)]
    found = strays.find(lambda _uid: 9)
    assert [stray["uid"] for stray in found] == [ALICE] * strays.LISTED + [BOB]


def test_logins_are_let_in_while_sockets_and_processes_are_looked_at(proc, sockets):
    sockets += [("udp", 1, 9, ALICE, number) for number in range(10 * strays.AT_ONCE)] + [("udp", 7, 0, ALICE, 5)]
    for _process in range(10 * accounts.AT_ONCE):
        proc.process(ALICE)
    breaths, asked = [], []
    strays.find(lambda uid: asked.append(uid) or 9, lambda: breaths.append(1))
    assert len(breaths) >= 20
    assert len(asked) <= 11, "the directory is not asked for each socket"


def test_logins_are_let_in_while_a_sweep_looks_at_processes(proc):
    for number in range(10 * accounts.AT_ONCE):
        proc.process(number)
    breaths = []
    assert len(accounts.real_uids(lambda: breaths.append(1))) == 10 * accounts.AT_ONCE
    assert len(breaths) == 10


def test_the_socket_to_the_kernel_is_closed_also_when_the_kernel_refuses(monkeypatch):
    class Refusing:
        closed = 0

        def __init__(self, _protocol):
            pass

        def each(self, _request):
            raise UvnError("refused")

        def close(self):
            Refusing.closed += 1

    monkeypatch.setattr(strays, "Netlink", Refusing)
    with pytest.raises(UvnError):
        strays.find(lambda _uid: 0)
    assert Refusing.closed == 1


def test_this_process_holds_its_descriptors():
    """The same on the real /proc."""
    here, there = os.pipe()
    with os.fdopen(here), os.fdopen(there):
        inode = os.fstat(here).st_ino
        assert f"pipe:[{inode}]" in strays._descriptors(os.getpid(), 10**6)
    assert strays._program(os.getpid())
