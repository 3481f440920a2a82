# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first batch of a rollout while users are at work: c1 gets UVN, login1 and c2 have none yet.

Run on a cluster without UVN, as the Molecule scenario does before it converges: python3 -m pytest tests/rollout
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "isolation"))

import cases  # noqa: E402
from sessions import Cluster, ssh  # noqa: E402

FIRST, OTHERS = "c1", ("login1", "c2")
OLD = 17050  # alice's listener from before the rollout
KINDS = [f"{proto}{family}" for proto in ("tcp", "udp") for family in (4, 6)]


@pytest.fixture(scope="module")
def cluster():
    """Sessions from before the rollout, then the first batch."""
    with Cluster() as sessions:
        sessions.open([(user, node) for user in ("root", "alice", "bob") for node in cases.NODES])
        root = sessions.session("root", FIRST)
        assert root.run("test", "-e", "/etc/uvn/site.json")["rc"] == 1, "begin with a cluster without UVN"
        alice = sessions.session("alice", FIRST)
        assert alice.sockets() == dict.fromkeys(KINDS, "")
        (opened,) = alice.listen([{"proto": "tcp", "family": 4, "address": "0.0.0.0", "port": OLD}])
        assert opened["result"] == "listening"
        roll_out(FIRST, "audit")
        yield sessions


def roll_out(limit: str, mode: str, wait: int = 0, fails: bool = False) -> str:
    """The site's playbook, on some nodes; what it said."""
    options = ["--limit", limit, "-e", f"uvn_mode={mode}", "-e", f"uvn_node_stray_wait={wait}"]
    command = ["ansible-playbook", "-i", "molecule/default/inventory", "playbooks/site.yml", *options]
    environment = {**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"}  # Molecule forces colours
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    return done.stdout + done.stderr  # Molecule has failures on the latter


def reaches(cluster: Cluster, user: str, node: str, target: str, port: int) -> dict:
    spec = {"proto": "tcp", "family": 4, "address": cases.address(target, "em1", 4), "port": port, "timeout": 10}
    return cluster.session(user, node).probes([spec])[0]


def test_sessions_of_before_go_on_in_the_network_of_their_user(cluster):
    for user in ("alice", "bob"):
        assert cluster.session(user, FIRST).sockets() == dict.fromkeys(KINDS, f"vrf{cases.UIDS[user]}")


def test_sockets_of_before_go_on_in_the_default_vrf(cluster):
    assert reaches(cluster, "root", "c2", FIRST, OLD)["text"].startswith(f"alice {FIRST} ")


def test_sessions_on_the_other_nodes_are_as_before(cluster):
    for node in OTHERS:
        assert cluster.session("alice", node).sockets() == dict.fromkeys(KINDS, "")


@pytest.mark.parametrize("here", cases.NODES)
@pytest.mark.parametrize("there", cases.NODES)
def test_root_reaches_the_services_of_every_node_from_every_node(cluster, here, there):
    daemon = cases.DAEMONS["wildcard"]
    assert reaches(cluster, "root", here, there, daemon)["text"].startswith(f"{there} wildcard")
    assert reaches(cluster, "root", here, there, cases.SSHD)["text"].startswith("SSH-2.0")


@pytest.mark.parametrize(("here", "there"), [("c2", "login1"), ("login1", "c2"), ("c2", FIRST), ("login1", FIRST)])
def test_users_of_the_other_nodes_reach_services_everywhere(cluster, here, there):
    assert reaches(cluster, "alice", here, there, cases.SSHD)["text"].startswith("SSH-2.0")


def test_users_of_the_first_node_reach_its_own_services(cluster):
    assert reaches(cluster, "alice", FIRST, FIRST, cases.DAEMONS["wildcard"])["text"].startswith(f"{FIRST} wildcard")


@pytest.mark.parametrize("user", ["root", "alice", "bob", "exempted"])
def test_everybody_can_log_in_to_the_first_node(cluster, user):
    done = subprocess.run(ssh(user, FIRST, "true"), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_role_waits_for_sockets_of_before_and_names_them(cluster):
    said = " ".join(roll_out(FIRST, "enforce", wait=10, fails=True).split())
    assert "sockets from before UVN would cease to work: alice (python3, PID " in said and f"tcp {OLD})" in said, said[-2000:]
    assert cluster.session("root", FIRST).check("grep", "--count", '"mode": "audit"', "/etc/uvn/site.json").strip() == "1"


def test_enforcement_ends_sockets_of_before_and_nothing_else(cluster):
    roll_out(FIRST, "enforce")
    assert reaches(cluster, "root", "c2", FIRST, OLD)["text"] == ""
    assert reaches(cluster, "root", "c2", FIRST, cases.SSHD)["text"].startswith("SSH-2.0")
    assert cluster.session("alice", FIRST).sockets() == dict.fromkeys(KINDS, f"vrf{cases.UIDS['alice']}")
