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


def assert_isolated(cluster) -> None:
    wrong = [str(result) for result in matrix.measure(cluster) if not result.ok]
    assert not wrong, f"{len(wrong)} mismatches:\n" + "\n".join(wrong[:50])


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
    assert_isolated(cluster)


def test_restart_of_uvnd(cluster, listening):
    root = cluster.session("root", NODE)
    root.check("systemctl", "restart", "uvnd")
    wait_active(root, "uvnd")
    assert_isolated(cluster)


def test_kill_of_uvnd(cluster, listening):
    root = cluster.session("root", NODE)
    main_pid = ("systemctl", "show", "--value", "--property=MainPID", "uvnd")
    before = root.check(*main_pid)
    assert before.strip() != "0", "uvnd does not run"
    root.check("systemctl", "kill", "--signal=KILL", "uvnd")
    root.check("uvn", "status")  # the socket is there whatever becomes of the daemon
    wait_active(root, "uvnd")
    assert root.check(*main_pid) != before
    assert_isolated(cluster)


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
    assert_isolated(cluster)
    for user in cases.MANAGED:
        assert set(cluster.session(user, NODE).sockets().values()) == {f"vrf{cases.UIDS[user]}"}
