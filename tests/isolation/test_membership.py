# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every process of a user is a member of the user's network, however it was started, and cannot leave it."""

from __future__ import annotations

import json
import re
import shlex
import time

import cases
import pytest

# What a process can say about itself: its socket's device and its cgroup.
ABOUT = (
    "import json, os, socket\n"
    "s = socket.socket(socket.AF_INET)\n"
    "device = s.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).split(b'\\0')[0].decode()\n"
    "cgroup = open('/proc/self/cgroup').read().strip()\n"
    "print(json.dumps({'uid': os.getuid(), 'device': device, 'cgroup': cgroup}))\n"
)
PYTHON = ["/usr/bin/python3", "-I", "-c", ABOUT]
KINDS = {f"{proto}{family}" for proto in ("tcp", "udp") for family in (4, 6)}


def vrf(user: str) -> str:
    return f"vrf{cases.UIDS[user]}"


def about(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


@pytest.mark.parametrize("node", cases.NODES)
@pytest.mark.parametrize("user", cases.MANAGED)
def test_sockets_of_a_session_are_bound(cluster, user, node):
    assert cluster.session(user, node).sockets() == dict.fromkeys(KINDS, vrf(user))


@pytest.mark.parametrize("node", cases.NODES)
@pytest.mark.parametrize("user", ["exempted", "root"])
def test_exempted_and_root_are_in_the_default_vrf(cluster, user, node):
    assert cluster.session(user, node).sockets() == dict.fromkeys(KINDS, "")


def test_an_account_whose_primary_group_is_exempt_has_sockets_from_its_first_session_on(cluster):
    """No group lists it, so uvnd hears of it by PAM."""
    root = cluster.session("root", "login1")
    root.check("useradd", "--uid", "2077", "--gid", "staff", "grouped")
    try:
        found = about(root.check("su", "--login", "grouped", "--command", shlex.join(PYTHON)))
        assert (found["uid"], found["device"]) == (2077, "")
    finally:
        root.check("userdel", "--force", "grouped")


@pytest.mark.parametrize("node", cases.NODES)
@pytest.mark.parametrize("user", cases.LISTENERS)
def test_session_is_in_its_own_systemd_scope(cluster, user, node):
    """As without UVN: sshd's session scope, not a cgroup of a VRF."""
    uid = cases.UIDS[user]
    cgroup = cluster.session(user, node).hello["cgroup"]
    assert re.fullmatch(rf"0::/user\.slice/user-{uid}\.slice/session-c?\d+\.scope", cgroup), cgroup


@pytest.mark.parametrize("device", ["vrf2001", "em1u2001", "em1", "wan0", "lo"])
def test_socket_cannot_be_taken_out(cluster, listening, device):
    """bob names alice's devices, and the node's: SO_BINDTODEVICE on a bound socket is refused."""
    port = cases.WILDCARD["alice"]
    base = {"family": 4, "address": "127.0.0.1", "port": port, "device": device, "timeout": 3}
    results = cluster.session("bob", "c1").probes([{**base, "proto": proto} for proto in ("tcp", "udp")])
    assert [result["result"] for result in results] == ["eperm", "eperm"]


def test_user_namespace_is_no_way_out(cluster):
    """Root inside a user namespace is still the user outside of it."""
    found = about(cluster.session("alice", "c1").check("unshare", "--user", "--map-root-user", *PYTHON))
    assert found["uid"] == 0 and found["device"] == vrf("alice")


@pytest.mark.parametrize("target", ["c1", "c1-ib"])
def test_ssh_from_node_to_node(cluster, target):
    """alice goes on from login1; what she starts there is a member, in a session of its own."""
    words = ["ssh", "-o", "BatchMode=yes", target, "/usr/bin/python3", "-I", "-"]
    found = about(cluster.session("alice", "login1").check(*words, stdin=ABOUT))
    assert found["device"] == vrf("alice")
    assert re.fullmatch(r"0::/user\.slice/user-2001\.slice/session-c?\d+\.scope", found["cgroup"])


def test_ssh_over_localhost(cluster):
    words = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "localhost", "/usr/bin/python3", "-I", "-"]
    assert about(cluster.session("bob", "c2").check(*words, stdin=ABOUT))["device"] == vrf("bob")


def test_systemd_user_service(cluster):
    """A transient unit of the user's own manager, which no login is the parent of."""
    session = cluster.session("alice", "c1")
    session.check("rm", "-f", "unit.json")
    session.check("systemd-run", "--user", "--quiet", "--collect", *python_to_file("unit.json"))
    found = about(wait_for_file(session, "unit.json", 15))
    assert found["device"] == vrf("alice")
    assert "/user@2001.service/" in found["cgroup"]


def test_background_process_outlives_its_session_as_a_member(cluster):
    """nohup, setsid: still the user's."""
    session = cluster.session("bob", "c1")
    session.check("rm", "-f", "background.json")
    session.check("setsid", "--fork", "nohup", *python_to_file("background.json"))
    assert about(wait_for_file(session, "background.json", 15))["device"] == vrf("bob")


def python_to_file(path: str) -> list:
    """The process that describes itself writes that to a file in the user's home."""
    return [*PYTHON[:-1], ABOUT.replace("print(json", f"open('{path}', 'w').write(json")]


def wait_for_file(session, path: str, seconds: float) -> str:
    """The text of a file of the user's, once it has one."""
    deadline = time.monotonic() + seconds
    while True:
        done = session.run("cat", path)
        if done["rc"] == 0 and done["stdout"]:
            return done["stdout"]
        assert time.monotonic() < deadline, f"{session.name}: {path} did not appear within {seconds} s"
        time.sleep(1)


@pytest.mark.cron
def test_cron_job(cluster, cron_job):
    """Nobody logs in for cron: what it starts is a member all the same."""
    found = about(wait_for_file(cron_job, "cron.json", 90))
    assert found["uid"] == cases.UIDS["alice"] and found["device"] == vrf("alice")
    assert "/cron.service" in found["cgroup"] or "/session-" in found["cgroup"], found["cgroup"]
