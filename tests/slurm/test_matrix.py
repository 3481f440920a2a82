# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The truth table of tests/isolation holds from inside jobs as it does from logins."""

from __future__ import annotations

import contextlib

import cases
import matrix
from cluster import NODES, PATIENCE, login
from sessions import AGENT_COMMAND, Cluster, Session, ssh


def in_a_job(user: str, node: str) -> Session:
    """Where there is a slurmd, the agent is the task of an srun on the login node; root needs no job."""
    if user == "root" or node not in NODES:
        return login(user, node)
    srun = ("srun", f"--nodelist={node}", "--mem=100", *AGENT_COMMAND)
    return Session(ssh(user, "login1", *srun, options=("-o", "ServerAliveInterval=0")), f"{user}'s job on {node}", PATIENCE)


def test_the_truth_table_holds_in_jobs(slurm):
    with contextlib.closing(Cluster(in_a_job)) as cluster:
        results = matrix.measure(cluster)
        cgroups = {(user, node): cluster.session(user, node).hello["cgroup"] for user in cases.MANAGED for node in NODES}
    assert all("/step_0/user/task_0" in cgroup for cgroup in cgroups.values()), cgroups
    wrong = [str(result) for result in results if not result.ok]
    assert not wrong, "\n".join(wrong)
    assert set(cases.table()) <= {result.case for result in results}
