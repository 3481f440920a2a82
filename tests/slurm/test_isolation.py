# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users do not reach each other from inside jobs, cannot pass for Slurm, and run nothing where they have no network."""

from __future__ import annotations

import shlex

import pytest
from cluster import ABOUT, python

LISTEN = (
    "import socket; l = socket.create_server(('', 8765)); print('listening', flush=True)\n"
    "while True: c, _peer = l.accept(); c.sendall(b'secret'); c.close()"
)
CONNECT = """
import socket, sys
for address in ("127.0.0.1", "192.168.80.92", "192.168.40.92"):
    try:
        print(socket.create_connection((address, 8765), 5).recv(10).decode())
    except OSError as error:
        print(type(error).__name__)
"""
BIND = """
import socket
for port in (6817, 6818, 6819):
    try:
        socket.create_server(("", port)); print("listens")
    except OSError as error:
        print(type(error).__name__)
"""
# `systemctl mask` itself wants /etc/systemd/system/UNIT for its link.
MASK = """
mkdir -p /etc/systemd/system.control
for unit in uvnd.socket uvnd.service; do ln -s /dev/null /etc/systemd/system.control/$unit; done
systemctl daemon-reload; systemctl stop uvnd.socket uvnd.service; test "$(systemctl is-enabled uvnd.service)" = masked"""
UNMASK = "rm /etc/systemd/system.control/uvnd.*; systemctl daemon-reload; systemctl start uvnd.socket uvnd.service"
# As Slurm's documentation has it: last in the account stack, and no pam_systemd, which would move the session out of the job.
ADOPT = """
cp --archive /etc/pam.d/sshd /root/sshd.pam
sed -e '/^@include common-session/ {
r /etc/pam.d/common-session
d
}' -e '/^@include common-account/ a account required pam_slurm_adopt.so' /root/sshd.pam | grep -v pam_systemd >/etc/pam.d/sshd
"""


def test_users_on_one_node_do_not_reach_each_others_jobs(slurm, alice, bob):
    job = bob.submit(f"python3 -IS -c \"{LISTEN}\"", "--nodelist=c1")
    slurm.wait(lambda: "listening" in slurm.root("c1", f"cat /tmp/{job}.out 2>/dev/null || true"), "bob listens")
    assert alice.check("srun", "--nodelist=c1", *python(CONNECT)).split() == ["ConnectionRefusedError"] * 3
    assert set(alice.check("srun", "--nodelist=c2", *python(CONNECT)).split()) == {"ConnectionRefusedError"}
    assert bob.check("srun", "--nodelist=c1", *python(CONNECT)).split() == ["secret"] * 3
    assert bob.check("srun", "--nodelist=c2", *python(CONNECT)).split() == ["ConnectionRefusedError", "secret", "secret"]


@pytest.mark.parametrize("node", ["c1", "login1"])
def test_nobody_listens_on_slurms_ports(slurm, alice, node):
    """Not where slurmd has one, and not where it has none: root's sockets are let in there as on any port."""
    said = alice.check("srun", "--nodelist=c1", *python(BIND)) if node == "c1" else alice.check(*python(BIND))
    assert "listens" not in said and "PermissionError" in said


def test_a_step_without_a_network_fails_and_says_why_and_others_go_on(slurm, alice, bob):
    goes_on = bob.submit("srun sh -c 'until test -e /tmp/go-$SLURM_JOB_ID; do sleep 1; done; echo went on'", "--nodelist=c2")
    slurm.wait(lambda: "StepId" in slurm.root("login1", f"scontrol show step {goes_on}.0 2>/dev/null || true"), "bob's step runs")
    slurm.root("c2", "uvn remove alice")
    try:
        slurm.root("c2", MASK)
        done = alice.run("srun", "--nodelist=c2", *python(ABOUT))  # which does not reach slurmd without a network there
        assert (done["rc"] != 0, done["stdout"]) == (True, "")
        job = alice.submit("echo it ran", "--nodelist=c2")
        assert alice.finished(job)["JobState"] == "FAILED"
        said = slurm.root("c2", f"cat /tmp/{job}.out")
        assert "UVN: no private network for UID 2001 on this node: uvnd does not answer at /run/uvn/uvnd.sock" in said
        assert "it ran" not in said
        assert bob.vrf in bob.check("srun", "--nodelist=c1", *python(ABOUT))
        assert "UVN: no private network" in slurm.root("c2", "cat /var/log/slurm/slurmd.log")
        assert slurm.states() == {"c1": "idle", "c2": "mixed"}
        slurm.root("c2", f"touch /tmp/go-{goes_on}")
        assert (bob.finished(goes_on)["JobState"], slurm.root("c2", f"cat /tmp/{goes_on}.out")) == ("COMPLETED", "went on\n")
    finally:
        slurm.root("c2", UNMASK)
    assert alice.vrf in alice.check("srun", "--nodelist=c2", *python(ABOUT))


def test_ssh_into_a_job(slurm, alice, bob):
    """With pam_slurm_adopt: in the job's cgroup and in the user's network; without a job on the node, no login."""
    job = alice.submit("sleep 600", "--nodelist=c1")
    slurm.wait(lambda: slurm.job(job)["JobState"] == "RUNNING", "alice's job runs")
    slurm.root("c1", ADOPT)
    try:
        node, device, cgroup = alice.check("ssh", "-o", "StrictHostKeyChecking=no", "c1", shlex.join(python(ABOUT))).split(maxsplit=2)
        assert (node, device) == ("c1", alice.vrf)
        assert f"/job_{job}/step_extern/" in cgroup
        refused = bob.run("ssh", "-o", "StrictHostKeyChecking=no", "c1", "true")
        assert refused["rc"] != 0 and "no active jobs on this node" in refused["stderr"]
    finally:
        slurm.root("c1", "mv /root/sshd.pam /etc/pam.d/sshd")
