# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same matrix after what a node goes through in its life. Runs last: it disturbs the node c1."""

from __future__ import annotations

import time

import cases
import matrix
import pytest
from sessions import lab

pytestmark = pytest.mark.persistence
NODE = "c1"


SETTLE = 30  # s: uvnd starts slowly on an emulated node


def of_the_node(case: cases.Case) -> bool:
    return case.node == NODE


def closed_of_the_node(case: cases.Case) -> bool:
    return case.node == NODE and case.expected == "closed"


def assert_isolated(cluster, select) -> None:
    wrong = [str(result) for result in matrix.measure(cluster, select=select) if not result.ok]
    assert not wrong, f"{len(wrong)} mismatches:\n" + "\n".join(wrong[:50])


def assert_nothing_is_open(cluster) -> None:
    """In the moment after: others' ports may be closed in any way, but not open."""
    results = matrix.measure(cluster, select=closed_of_the_node)
    wrong = ("answer", "silent", "hangup")
    reached = [str(result) for result in results if result.case.expected == "closed" and result.outcome in wrong]
    assert not reached, "\n".join(reached)


def settle(cluster) -> None:
    """Until alice gets out of the node again, by way of the routes that a restart may have flushed; SETTLE at most."""
    outside = ("off-subnet", "direct")
    wanted = [case for case in cases.table() if case.row == f"alice@{NODE}" and case.group in outside]
    deadline = time.monotonic() + SETTLE
    while time.monotonic() < deadline:
        found = cluster.session("alice", NODE).probes([{**case.spec(), "timeout": 3} for case in wanted])
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
    assert_nothing_is_open(cluster)
    settle(cluster)
    assert_isolated(cluster, of_the_node)


def test_kill_of_uvnd(cluster, listening):
    root = cluster.session("root", NODE)
    main_pid = ("systemctl", "show", "--value", "--property=MainPID", "uvnd")
    before = root.check(*main_pid)
    assert before.strip() != "0", "uvnd does not run"
    root.check("systemctl", "kill", "--signal=KILL", "uvnd")
    root.check("uvn", "status")  # the socket is there whatever becomes of the daemon
    wait_active(root, "uvnd")
    assert root.check(*main_pid) != before
    settle(cluster)
    assert_isolated(cluster, of_the_node)


def test_reboot(cluster, listening):
    """Booted, and before anybody else logs in: the membership program is there. Then the matrix."""
    boot_id = ("cat", "/proc/sys/kernel/random/boot_id")
    before = cluster.session("root", NODE).check(*boot_id)
    cluster.forget(NODE)
    lab("reboot", NODE)
    root = cluster.session("root", NODE)
    assert root.check(*boot_id) != before, "the node was not rebooted"
    code = "import socket; socket.socket(socket.AF_INET)"
    done = root.run("setpriv", "--reuid=2003", "--regid=2003", "--clear-groups", "python3", "-I", "-c", code)
    assert "PermissionError" in done["stderr"], f"a user without a network got a socket after the reboot: {done}"
    assert_isolated(cluster, of_the_node)
    for user in cases.MANAGED:
        assert set(cluster.session(user, NODE).sockets().values()) == {f"vrf{cases.UIDS[user]}"}
