# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The loop of uvnd: what fails does not end it, what hangs is ended by systemd."""

from __future__ import annotations

import configparser
import socket
from pathlib import Path

import pytest
from uvn import daemon, events, guard, keeper, nat, netlink, reconcile, strays
from uvn.errors import UvnError
from uvnd import Calm, Echo, Keeping, Uvnd, answer

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "roles" / "uvn_node" / "files" / "uvnd.service"


@pytest.mark.parametrize("error", [UvnError("the kernel did not answer"), OSError(5, "Input/output error"), KeyError("a fault of ours")])
@pytest.mark.parametrize("part", ["read", "follow", "sweep", "heed"])
def test_no_part_of_a_round_ends_uvnd(monkeypatch, tmp_path, part, error):
    def failing(*_arguments):
        raise error

    keeping = Keeping(monkeypatch, tmp_path, 2001).calm()
    calm = Calm()
    keeping.keeper.events, keeping.keeper.nftables = calm.events, calm.nftables
    keeping.tell(touched=True)
    keeping.now += 2 * keeper.SWEEP
    if part == "read":
        monkeypatch.setattr(events, "drain", failing)
    elif part == "heed":
        keeping.keeper.inquiry.begin()
        monkeypatch.setattr(keeping.node, "learn", failing)
    else:
        monkeypatch.setattr(keeping.node, {"follow": "known_uids", "sweep": "uids"}[part], failing, raising=False)
    uvnd = Uvnd(keeping.keeper)
    assert uvnd.rounds() == {"ok": True, "op": "status"}
    assert f"{part} failed: " in "".join(keeping.said)


def test_a_storm_of_requests_does_not_keep_uvnd_from_its_other_work():
    uvnd = Uvnd()
    clients = [uvnd.client() for _number in range(3 * daemon.AT_ONCE)]
    daemon._serve_waiting(Echo(), uvnd.listener)
    assert len([one for one in clients if answer(one)]) == daemon.AT_ONCE
    daemon._serve_waiting(Echo(), uvnd.listener)
    daemon._serve_waiting(Echo(), uvnd.listener)
    assert all(answer(one) for one in clients[2 * daemon.AT_ONCE :])


def test_a_reply_that_cannot_be_sent_is_the_end_of_one_connection(monkeypatch):
    class Faulty:
        def handle(self, _message):
            return {"not": object()}

    said = []
    monkeypatch.setattr(daemon, "log", lambda text, error=False: said.append(text))
    uvnd = Uvnd()
    uvnd.client()
    daemon._serve_waiting(Faulty(), uvnd.listener)
    assert "TypeError" in said[0]


@pytest.fixture(params=["file", "abstract"])
def systemd(request, tmp_path, monkeypatch):
    """systemd's end of the socket for notifications; yields what it heard."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        address = str(tmp_path / "notify") if request.param == "file" else f"\0uvn-test-{tmp_path}"
        manager.bind(address)
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", address.replace("\0", "@"))

        def heard():
            found = []
            while True:
                try:
                    found.append(manager.recv(1000).decode())
                except BlockingIOError:
                    return found

        yield heard


def test_systemd_hears_that_uvnd_is_alive_with_every_round_and_every_request(systemd, monkeypatch):
    uvnd = Uvnd()
    uvnd.keeper.alive = lambda: daemon.notify(daemon.ALIVE)
    uvnd.rounds()
    assert systemd() == ["WATCHDOG=1", "WATCHDOG=1"]
    uvnd.keeper.wait = lambda: 0
    daemon._round(uvnd.keeper, Echo(), uvnd.listener, [])
    assert systemd() == ["WATCHDOG=1"]


def test_uvnd_is_ready_when_its_socket_is_there(systemd, monkeypatch):
    class Stop(Exception):
        pass

    def stop(*_arguments):
        assert systemd() == ["READY=1"]
        raise Stop

    monkeypatch.setattr(daemon, "Keeper", lambda _path: Calm())
    monkeypatch.setattr(daemon, "_witnesses", list)
    monkeypatch.setattr(daemon, "_listener", lambda: systemd() == [] and Uvnd().listener)
    monkeypatch.setattr(daemon, "_round", stop)
    with pytest.raises(Stop):
        daemon.main()


def test_a_systemd_that_hears_nothing_holds_nobody(systemd):
    for _number in range(10_000):
        daemon.notify("WATCHDOG=1")


def test_without_systemd_nobody_is_told(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setattr(daemon.socket, "socket", None)
    daemon.notify("READY=1")


def service():
    """The settings of uvnd.service, by section."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(UNIT)
    return unit


def test_the_watchdog_waits_for_the_longest_piece_of_work_without_a_sign_of_life():
    unit = service()
    assert unit["Service"]["Type"] == "notify" and unit["Service"]["Restart"] == "on-failure"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    commands = 2 * nat.TIMEOUT + guard.TIMEOUT  # both IP versions wait for the lock of iptables, then nft
    limits = 2 * daemon.IDLE, keeper.LOCK_WAIT + commands, 5 * netlink.TIMEOUT, 2 * daemon.REQUEST_TIMEOUT
    assert int(unit["Service"]["WatchdogSec"]) > max(limits)


def test_the_documentation_has_the_limits_that_are_in_force():
    text = " ".join((ROOT / "docs" / "operation.md").read_text(encoding="utf-8").split())
    for sentence in (
        f"every {daemon.IDLE} s when there is nothing to do",
        f"({service()['Service']['WatchdogSec']} s without a sign, `WatchdogSec=`)",
        f"has `/run/uvn/lock` for {keeper.LOCK_WAIT} s",
        f"waits for {reconcile.LOCK_WAIT} s",
        f"more descriptors ({strays.ENTRIES:,}) than are looked at",
        f"up to {strays.LISTED} strays of each user",
        f"Every {keeper.EVERYBODY}th time all networks are compared",
        {6: "After six repairs in a row"}[keeper.PATIENCE],
    ):
        assert sentence in text
