# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Failure is closed for managed users and open for root and exempted accounts, and every event leaves a line."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time

import cases
import pytest
from sessions import ssh

pytestmark = pytest.mark.closed
NODE, SILENT = "c2", "c1"
KINDS = [f"{proto}{family}" for proto in ("tcp", "udp") for family in (4, 6)]


def login(user: str, node: str, *command: str, timeout: float = 60) -> subprocess.CompletedProcess:
    """A fresh ssh login for one command."""
    argv, null = ssh(user, node, *(command or ("true",))), subprocess.DEVNULL
    return subprocess.run(argv, stdin=null, capture_output=True, text=True, timeout=timeout, check=False)


def journal(root, since: str) -> str:
    return root.check("journalctl", "--quiet", "--output=cat", "--unit=uvnd.service", f"--since={since}")


def now(root) -> str:
    return "@" + root.check("date", "+%s.%N").strip()[:14]


@pytest.fixture
def carol(cluster):
    """A session of carol with a network, which is gone from the node in the end."""
    session = cluster.session("carol", NODE)
    yield session
    cluster.forget(NODE, "carol")
    cluster.session("root", NODE).run("uvn", "remove", "carol")


def test_user_without_a_network_has_no_sockets(cluster, carol):
    """The network is removed under a live session: EPERM, until the next login makes it again."""
    root = cluster.session("root", NODE)
    assert carol.sockets() == dict.fromkeys(KINDS, "vrf2003")
    root.check("uvn", "remove", "carol")
    assert carol.sockets() == dict.fromkeys(KINDS, "eperm")
    reach = {"proto": "tcp", "family": 4, "address": "127.0.0.1", "port": cases.SSHD}
    assert carol.probes([reach])[0]["result"] == "eperm"
    done = login("carol", NODE)
    assert done.returncode == 0, done.stderr
    assert carol.sockets() == dict.fromkeys(KINDS, "vrf2003")
    assert carol.probes([reach])[0]["text"].startswith("SSH-2.0")


def test_ping_is_not_answered_where_the_user_has_no_network(cluster, carol):
    """carol has a network on one node: the other node's address is in her overlay, and nobody is there."""
    cluster.session("root", SILENT).check("uvn", "remove", "carol")
    specs = [
        {"proto": "icmp", "family": family, "address": cases.address(node, nic, family), "timeout": timeout}
        for node, timeout in ((NODE, 10), (SILENT, 5))
        for nic in cases.LISTED
        for family in (4, 6)
    ]
    results = carol.probes(specs)
    assert [result["result"] for result in results[:4]] == ["answer"] * 4
    assert all(result["result"] in ("timeout", "unreachable") for result in results[4:]), results[4:]
    assert login("carol", SILENT).returncode == 0
    assert [result["result"] for result in carol.probes([{**spec, "timeout": 10} for spec in specs])] == ["answer"] * 8
    cluster.session("root", SILENT).check("uvn", "remove", "carol")


def test_events_are_in_the_journal(cluster):
    """One line for each: user, action, duration, outcome."""
    root = cluster.session("root", NODE)
    root.run("uvn", "remove", "carol")
    begin = now(root)
    assert login("carol", NODE).returncode == 0
    root.check("uvn", "remove", "carol")
    root.check("uvn", "remove", "carol")
    lines = [line for line in wait_for_lines(root, begin, 3) if "carol" in line]
    pattern = r"{} carol uid=2003: {} in \d+ ms"
    assert re.fullmatch(pattern.format("ensure", r"\d+ changes"), lines[0]), lines
    assert re.fullmatch(pattern.format("remove", r"\d+ changes"), lines[1]), lines
    assert re.fullmatch(pattern.format("remove", "unchanged"), lines[2]), lines


def wait_for_lines(root, since: str, count: int) -> list:
    deadline = time.monotonic() + 10
    while True:
        lines = journal(root, since).splitlines()
        if sum("carol" in line for line in lines) >= count or time.monotonic() > deadline:
            return lines
        time.sleep(0.5)


def test_second_login_asks_nobody(cluster, carol):
    """The warm path is a file test: no line in the journal."""
    root = cluster.session("root", NODE)
    begin = now(root)
    assert login("carol", NODE).returncode == 0
    time.sleep(1)
    assert "ensure carol" not in journal(root, begin)


@contextlib.contextmanager
def without_daemon(root):
    """uvnd stopped and its socket gone; both back afterwards."""
    root.check("systemctl", "stop", "uvnd.socket", "uvnd.service")
    root.check("rm", "-f", "/run/uvn/uvnd.sock")
    try:
        yield
    finally:
        root.check("systemctl", "restart", "uvnd.socket")
        root.check("systemctl", "start", "uvnd.service")


def test_without_the_daemon(cluster):
    """Root and exempted accounts get in, a user with a network too; a user without one is refused and told why."""
    root = cluster.session("root", NODE)
    root.check("uvn", "remove", "carol")
    with without_daemon(root):
        for user in ("root", "exempted", "alice"):
            done = login(user, NODE)
            assert done.returncode == 0, f"{user}: {done.stderr}"
        done = login("carol", NODE)
        assert done.returncode != 0
        said = done.stdout + done.stderr
        assert re.search(r"UVN: no private network for carol: .*uvnd.*administrator", said), said
    done = login("carol", NODE)
    assert done.returncode == 0, done.stderr
    root.check("uvn", "remove", "carol")


def test_user_who_never_logged_in_has_no_sockets(cluster):
    """Root starts something as carol past PAM: still refused."""
    root = cluster.session("root", NODE)
    root.check("uvn", "remove", "carol")
    code = "import socket; socket.socket(socket.AF_INET)"
    done = root.run("setpriv", "--reuid=2003", "--regid=2003", "--clear-groups", "python3", "-I", "-c", code)
    assert done["rc"] == 1 and "PermissionError: [Errno 1]" in done["stderr"], done
    code = "import socket; socket.socket(socket.AF_UNIX)"
    root.check("setpriv", "--reuid=2003", "--regid=2003", "--clear-groups", "python3", "-I", "-c", code)


def test_the_sites_sysctls_for_all_devices_do_not_reach_a_users_devices(cluster, carol):
    """udev runs systemd-sysctl for each new device: `tag` is a sysctl that nothing reads."""
    root = cluster.session("root", NODE)
    root.check("sh", "-c", "uvn remove carol; echo 'net.ipv4.conf.*.tag = 7' >/etc/sysctl.d/99-test.conf")
    try:
        root.check("ip", "link", "add", "test0", "type", "dummy")
        assert login("carol", NODE).returncode == 0
        root.check("udevadm", "settle")
        tags = {device: root.check("cat", f"/proc/sys/net/ipv4/conf/{device}/tag").strip() for device in ("test0", "vrf2003", "em1u2003")}
    finally:
        root.check("sh", "-c", "rm /etc/sysctl.d/99-test.conf; ip link delete test0")
    assert tags == {"test0": "7", "vrf2003": "0", "em1u2003": "0"}
