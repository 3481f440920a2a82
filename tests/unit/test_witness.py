# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guard's lines in the kernel's log become, and that no other line becomes anything."""

from __future__ import annotations

import pytest
from uvn import daemon, strays, witness
from uvn.netlink import Refused

UDP = (
    "4,1204,99,-;uvn foreign: IN= OUT=vrf2002 SRC=127.0.0.1 DST=127.0.0.1 LEN=33 TOS=0x00 PREC=0x00 TTL=64 ID=1 DF PROTO=UDP SPT=4711 DPT=9 "
    "LEN=13 UID=2001 GID=2001 "
)
PING = "4,1205,99,-;uvn stray: IN= OUT=em1 SRC=fd00::1 DST=fd00::2 LEN=64 TC=0 HOPLIMIT=64 PROTO=ICMPv6 TYPE=128 CODE=0 ID=1 SEQ=1 UID=2001 "


@pytest.fixture(autouse=True)
def programs(monkeypatch):
    monkeypatch.setattr(witness.accounts, "name_of", {2001: "alice"}.get)
    monkeypatch.setattr(strays, "_sockets", lambda: iter([("udp", 4711, 0, 2002, 5), ("udp", 4711, 0, 2001, 6), ("tcp", 4711, 0, 2001, 7)]))
    monkeypatch.setattr(strays, "_holders", lambda inodes: {6: {"pid": 42, "program": "python3"}} if inodes == {6} else {})


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


def test_records_are_read_from_now_on(tmp_path, monkeypatch):
    log = tmp_path / "kmsg"
    log.write_text("4,1,1,-;uvn stray: of before")
    here = witness.Witness(str(log))
    parts = iter([UDP.encode(), BrokenPipeError(), b"6,1,2,-;other", BlockingIOError()])

    def read(_descriptor, _size):
        part = next(parts)
        if isinstance(part, OSError):
            raise part
        return part

    monkeypatch.setattr(witness.os, "read", read)
    assert len(here.read()) == 1


def test_uvnd_goes_on_where_nothing_can_be_named(monkeypatch):
    """A login must not fail because the kernel's log cannot be read, or the sockets of a program."""
    said = []
    monkeypatch.setattr(daemon, "log", lambda text, error=False: said.append(text))
    monkeypatch.setattr(daemon, "Witness", lambda: witness.Witness("/nonexistent/kmsg"))
    assert daemon._witnesses() == []

    class Failing:
        def read(self):
            raise Refused(1, "the kernel refused")

    daemon._testify([Failing()])
    assert [text.split(":")[0] for text in said] == ["/dev/kmsg", "a program behind what the guard found cannot be named"]


def test_a_name_that_would_forge_a_line_is_made_harmless():
    assert strays.printable("x\ny\x1b[2J") == "x?y?[2J"
