# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same matrix after what a node goes through in its life. Runs last: it disturbs c1, and c2 with its NetworkManager."""

from __future__ import annotations

import time

import cases
import matrix
import pytest
from sessions import lab

pytestmark = pytest.mark.persistence
NODE = "c1"
MANAGED = "c2"  # its NICs, by NetworkManager
SETTLE = 30  # s: uvnd starts slowly on an emulated node


def assert_isolated(cluster, node: str) -> None:
    results = matrix.measure(cluster, select=lambda case: case.node == node)
    wrong = [str(result) for result in results if not result.ok]
    assert not wrong, f"{len(wrong)} mismatches:\n" + "\n".join(wrong[:50])


def assert_nothing_is_open(cluster, node: str) -> None:
    """In the moment after: others' ports may be closed in any way, but not open."""
    results = matrix.measure(cluster, select=lambda case: case.node == node and case.expected == "closed")
    wrong = ("answer", "silent", "hangup")
    reached = [str(result) for result in results if result.case.expected == "closed" and result.outcome in wrong]
    assert not reached, "\n".join(reached)


def settle(cluster, node: str) -> None:
    """Until alice gets out of the node again, by way of the routes that a restart may have flushed; SETTLE at most."""
    outside = ("off-subnet", "direct")
    wanted = [case for case in cases.table() if case.row == f"alice@{node}" and case.group in outside]
    deadline = time.monotonic() + SETTLE
    while time.monotonic() < deadline:
        found = cluster.session("alice", node).probes([{**case.spec(), "timeout": 3} for case in wanted])
        if all(result["result"] == "answer" for result in found):
            return
        time.sleep(1)


def wait_active(root, unit: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while root.run("systemctl", "is-active", "--quiet", unit)["rc"] != 0:
        assert time.monotonic() < deadline, f"{unit} is not active {seconds} s later"
        time.sleep(0.5)


def rules(root) -> list:
    return [root.check("ip", f"-{family}", "rule", "show") for family in (4, 6)]


def test_restart_of_networkd(cluster, listening):
    root = cluster.session("root", NODE)
    before = rules(root)
    root.check("systemctl", "restart", "systemd-networkd")
    root.check("/lib/systemd/systemd-networkd-wait-online", "--timeout=60", timeout=70)
    assert rules(root) == before
    assert_nothing_is_open(cluster, NODE)
    settle(cluster, NODE)
    assert_isolated(cluster, NODE)


def test_networkmanager_configures_its_nics_anew(cluster, listening):
    """It leaves users' devices and the rules alone; the routes that it takes away come back."""
    root = cluster.session("root", MANAGED)
    before = rules(root)
    root.check("nmcli", "device", "reapply", "em1")
    root.check("nmcli", "connection", "up", "ib0")
    root.check("systemctl", "restart", "NetworkManager")
    root.check("nm-online", "--quiet", "--wait-for-startup", "--timeout=60", timeout=70)
    assert rules(root) == before
    assert_nothing_is_open(cluster, MANAGED)
    settle(cluster, MANAGED)
    assert_isolated(cluster, MANAGED)
    devices = dict(line.split(":") for line in root.check("nmcli", "--terse", "--fields=DEVICE,STATE", "device").splitlines())
    assert devices["em1"] == "connected"
    for uid in (cases.UIDS[user] for user in cases.MANAGED):
        assert devices[f"vrf{uid}"] == devices[f"em1u{uid}"] == devices[f"ib0u{uid}"] == "unmanaged"


def test_kill_of_uvnd(cluster, listening):
    root = cluster.session("root", NODE)
    main_pid = ("systemctl", "show", "--value", "--property=MainPID", "uvnd")
    before = root.check(*main_pid)
    assert before.strip() != "0", "uvnd does not run"
    root.check("systemctl", "kill", "--signal=KILL", "uvnd")
    root.check("uvn", "status")  # the socket is there whatever becomes of the daemon
    wait_active(root, "uvnd")
    assert root.check(*main_pid) != before
    settle(cluster, NODE)
    assert_isolated(cluster, NODE)


@pytest.mark.parametrize("node", [NODE, MANAGED])
def test_reboot(cluster, listening, node):
    """Booted, and before anybody else logs in: the membership program is there. Then the matrix."""
    boot_id = ("cat", "/proc/sys/kernel/random/boot_id")
    before = cluster.session("root", node).check(*boot_id)
    cluster.forget(node)
    lab("reboot", node)
    root = cluster.session("root", node)
    assert root.check(*boot_id) != before, "the node was not rebooted"
    code = "import socket; socket.socket(socket.AF_INET)"
    done = root.run("setpriv", "--reuid=2003", "--regid=2003", "--clear-groups", "python3", "-I", "-c", code)
    assert "PermissionError" in done["stderr"], f"a user without a network got a socket after the reboot: {done}"
    assert_isolated(cluster, node)
    for user in cases.MANAGED:
        assert set(cluster.session(user, node).sockets().values()) == {f"vrf{cases.UIDS[user]}"}
