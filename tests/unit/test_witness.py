# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guard's lines in the kernel's log become, and that no other line becomes anything."""

from __future__ import annotations

import os
import select
import time

import pytest
from uvn import daemon, strays, witness
from uvn.accounts import Entry, Silent
from uvn.errors import UvnError
from uvnd import Uvnd

UDP = (
    "4,1204,99,-;uvn foreign: IN= OUT=vrf2002 SRC=127.0.0.1 DST=127.0.0.1 LEN=33 TOS=0x00 PREC=0x00 TTL=64 ID=1 DF PROTO=UDP SPT=4711 DPT=9 "
    "LEN=13 UID=2001 GID=2001 "
)
PING = "4,1205,99,-;uvn stray: IN= OUT=em1 SRC=fd00::1 DST=fd00::2 LEN=64 TC=0 HOPLIMIT=64 PROTO=ICMPv6 TYPE=128 CODE=0 ID=1 SEQ=1 UID=2001 "


@pytest.fixture(autouse=True)
def programs(monkeypatch):
    sockets = [("udp", 4711, 0, 2002, 5), ("udp", 4711, 0, 2001, 6), ("tcp", 4711, 0, 2001, 7)]
    monkeypatch.setattr(witness.accounts, "by_uid", {2001: Entry("alice", 2001, 2001)}.get)
    monkeypatch.setattr(strays, "_sockets", lambda protocols: (found for found in sockets if found[0] in protocols))
    monkeypatch.setattr(strays, "_holders", lambda wanted: {6: {"pid": 42, "program": "python3"}} if wanted == {2001: {6}} else {})


def test_user_program_and_destination_are_named():
    assert witness.describe(UDP) == "guard foreign: alice uid=2001 program=python3 pid=42 udp [127.0.0.1]:4711 to [127.0.0.1]:9"
    assert witness.describe(UDP.replace("SPT=4711", "SPT=4712")).split(" program=")[1].startswith("unknown udp ")
    assert witness.describe(PING) == "guard stray: alice uid=2001 program=unknown icmpv6 fd00::1 to fd00::2"


@pytest.mark.parametrize(
    "record",
    ["", "6,1,2,-;eth0: link up", UDP.replace(" UID=2001 GID=2001 ", ""), "6,1,2,-;usb: uvn foreign: SRC=a DST=b PROTO=UDP UID=1", "\0" * 99],
)
def test_other_records_are_passed_over(record):
    assert witness.describe(record) == ""


def test_a_packet_is_told_of_though_nobody_knows_whose_it_is(monkeypatch):
    """A subordinate UID, or a directory that does not answer."""
    assert witness.describe(UDP.replace("UID=2001", "UID=100999")).startswith("guard foreign: (name unknown) uid=100999 ")

    def silent(_uid):
        raise Silent("the directory does not answer")

    monkeypatch.setattr(witness.accounts, "by_uid", silent)
    assert witness.describe(UDP).startswith("guard foreign: (name unknown) uid=2001 program=python3 pid=42 ")


def test_a_program_that_cannot_be_looked_for_leaves_a_line_all_the_same(monkeypatch):
    def failing(_protocols):
        raise UvnError("the kernel did not answer")

    monkeypatch.setattr(strays, "_sockets", failing)
    assert " program=unknown (the kernel did not answer) udp " in witness.describe(UDP)


class Log:
    """A file in place of the kernel's log, and a pipe in place of the journal."""

    def __init__(self, path):
        self.path = path
        self.path.write_text(UDP.replace("foreign", "before"))
        self.journal, self._writer = os.pipe()

    def say(self, line):
        os.write(self._writer, f"{line}\n".encode())

    def write(self, record):
        with open(self.path, "a", encoding="ascii") as file:
            file.write(record)

    def said(self):
        assert select.select([self.journal], [], [], 60)[0], "nothing was said"
        return os.read(self.journal, 10000).decode()


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "kmsg")


def test_a_process_of_its_own_reads_records_from_now_on_and_ends_with_uvnd(log, monkeypatch):
    monkeypatch.setattr(witness, "PAUSE", 0)
    here = witness.Witness(log.say, str(log.path))
    try:
        log.write(UDP)
        assert log.said().startswith("guard foreign: alice uid=2001 program=python3 pid=42 ")
        assert not select.select([here], [], [], 0)[0], "it runs"
    finally:
        here.close()  # waits for its end


def test_no_login_waits_for_a_look_up_that_does_not_end(log, monkeypatch):
    monkeypatch.setattr(strays, "holder", lambda *_asked: log.say("looking") or time.sleep(3600))
    here = witness.Witness(log.say, str(log.path))
    try:
        log.write(UDP)
        assert log.said() == "looking\n"
        assert Uvnd().rounds([here]) == {"ok": True, "op": "status"}
    finally:
        os.kill(here._pid, 9)
        here.close()


def test_uvnd_goes_on_without_a_witness_that_has_ended(log, monkeypatch):
    said = []
    monkeypatch.setattr(daemon, "log", lambda text, error=False: said.append(text))
    here = witness.Witness(log.say, str(log.path))
    os.kill(here._pid, 9)
    select.select([here], [], [])
    witnesses = [here]
    assert Uvnd().rounds(witnesses) == {"ok": True, "op": "status"}
    assert witnesses == [] and "has ended" in said[0]


def test_uvnd_goes_on_where_nothing_can_be_named(monkeypatch):
    """A login must not fail because the kernel's log cannot be read."""
    said = []
    monkeypatch.setattr(daemon, "log", lambda text, error=False: said.append(text))
    monkeypatch.setattr(daemon, "KMSG", "/nonexistent/kmsg")
    assert daemon._witnesses() == []
    assert [text.split(":")[0] for text in said] == ["/nonexistent/kmsg"]


def test_a_name_that_would_forge_a_line_is_made_harmless():
    assert strays.printable("x\ny\x1b[2J") == "x?y?[2J"
