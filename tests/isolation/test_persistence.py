# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same matrix after what a node goes through in its life. Runs last: it disturbs c1, and c2 with its NetworkManager."""

from __future__ import annotations

import os
import time

import cases
import matrix
import pytest
from sessions import lab

pytestmark = pytest.mark.persistence
NODE = "c1"
MANAGED = "c2"  # its NICs, by NetworkManager
SETTLE = 30  # s: uvnd starts slowly on an emulated node


def assert_isolated(cluster, *nodes: str) -> None:
    """By a sample of the nodes' cases, by all with UVN_FULL."""
    whole = [case for case in cases.table() if case.node in nodes]
    wanted = set(whole if os.environ.get("UVN_FULL") else cases.sample(whole))
    results = matrix.measure(cluster, select=wanted.__contains__)
    wrong = [str(result) for result in results if not result.ok]
    assert not wrong, f"{len(wrong)} mismatches:\n" + "\n".join(wrong[:50])


def assert_nothing_is_open(cluster, *nodes: str) -> None:
    """In the moment after: others' ports may be closed in any way, but not open."""
    results = matrix.measure(cluster, select=lambda case: case.node in nodes and case.expected == "closed")
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


def restart_networkd(root) -> None:
    root.check("systemctl", "restart", "systemd-networkd")
    root.check("/lib/systemd/systemd-networkd-wait-online", "--timeout=60", timeout=70)


def restart_networkmanager(root) -> None:
    root.check("nmcli", "device", "reapply", "em1")
    root.check("nmcli", "connection", "up", "ib0")
    root.check("systemctl", "restart", "NetworkManager")
    root.check("nm-online", "--quiet", "--wait-for-startup", "--timeout=60", timeout=70)


def test_network_managers_configure_their_nics_anew(cluster, listening):
    """systemd-networkd and NetworkManager, each on its node: they leave users' devices and the rules alone; routes that they take away come back."""
    restarts = {NODE: restart_networkd, MANAGED: restart_networkmanager}
    roots = {node: cluster.session("root", node) for node in restarts}
    before = {node: rules(root) for node, root in roots.items()}
    cluster.each(lambda node: restarts[node](roots[node]), list(restarts))
    assert {node: rules(root) for node, root in roots.items()} == before
    assert_nothing_is_open(cluster, *restarts)
    cluster.each(lambda node: settle(cluster, node), list(restarts))
    assert_isolated(cluster, *restarts)
    terse = roots[MANAGED].check("nmcli", "--terse", "--fields=DEVICE,STATE", "device")
    devices = dict(line.split(":") for line in terse.splitlines())
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


def test_reboot(cluster, listening):
    """Booted, and before anybody else logs in: the membership program is there. Then the matrix."""
    nodes = [NODE, MANAGED]
    boot_id = ("cat", "/proc/sys/kernel/random/boot_id")
    before = {node: cluster.session("root", node).check(*boot_id) for node in nodes}
    for node in nodes:
        cluster.forget(node)
    lab("reboot", *nodes)
    code = "import socket; socket.socket(socket.AF_INET)"
    for node in nodes:
        root = cluster.session("root", node)
        assert root.check(*boot_id) != before[node], f"{node} was not rebooted"
        done = root.run("setpriv", "--reuid=2003", "--regid=2003", "--clear-groups", "python3", "-I", "-c", code)
        assert "PermissionError" in done["stderr"], f"a user without a network got a socket on {node} after the reboot: {done}"
    assert_isolated(cluster, *nodes)
    for user, node in ((user, node) for user in cases.MANAGED for node in nodes):
        assert set(cluster.session(user, node).sockets().values()) == {f"vrf{cases.UIDS[user]}"}
