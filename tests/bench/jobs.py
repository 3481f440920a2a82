# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What jobs cost in a user's network: jobs, steps, and MPI between two nodes, as ratios.

Runs on the host against the lab's cluster with Slurm (`make slurm`): python3 tests/bench/jobs.py [ROUNDS]. The reference for jobs and MPI is
the exempt account, whose processes are in the default VRF of the same nodes; for steps it is the same job without the plug-in's line.
"""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any, Callable

from harness import ROOT, interleaved, ratio, write

sys.path[:0] = [str(ROOT / "tests" / part) for part in ("slurm", "isolation")]

from cluster import NODES, Slurm, User, python_mpi

STEPS = 50  # with the plug-in, and as many without
USER, REFERENCE = "alice", "exempted"
LINE = "/etc/slurm/plugstack.conf.d/uvn.conf"
TIMED = "import subprocess, sys, time; start = time.perf_counter(); subprocess.run(sys.argv[1:], check=True); print(time.perf_counter() - start)"
MPI = """
import json, time
from mpi4py import MPI
world = MPI.COMM_WORLD
last, byte, block = world.size - 1, bytearray(1), bytearray(1024 * world.size)

def ping():
    if world.rank == 0:
        world.Send(byte, last); world.Recv(byte, last)
    elif world.rank == last:
        world.Recv(byte, 0); world.Send(byte, 0)

def timed(what, count):
    what(); world.Barrier()
    start = time.perf_counter()
    for _again in range(count):
        what()
    return 1e6 * (time.perf_counter() - start) / count

found = {"ping-pong": timed(ping, 300), "all-to-all": timed(lambda: world.Alltoall(block, bytearray(len(block))), 100)}
if world.rank == 0:
    print(json.dumps(found))
"""
RATIOS = {  # what is divided by what
    "job of two nodes": (f"job, {USER}", f"job, {REFERENCE}"),
    "step of two nodes": ("step, plug-in", "step, no plug-in"),
    "MPI ping-pong": (f"ping-pong, {USER}", f"ping-pong, {REFERENCE}"),
    "MPI all-to-all": (f"all-to-all, {USER}", f"all-to-all, {REFERENCE}"),
}


def job(user: User) -> dict[str, float]:
    """Seconds of `srun` from the login node, job and step."""
    return {f"job, {user.name}": float(user.check("python3", "-IS", "-c", TIMED, "srun", "--nodes=2", "true").split()[-1])}


def step(slurm: Slurm, user: User, number: int, plugin: bool) -> dict[str, float]:
    """Seconds of one step of a job that runs; slurmstepd reads the plug-in stack for each step."""
    move = f"mv {LINE} /root/uvn-line" if not plugin else "true"
    for node in NODES:
        slurm.root(node, move)
    try:
        said = user.check("python3", "-IS", "-c", TIMED, "srun", f"--jobid={number}", "--nodes=2", "--overlap", "true")
    finally:
        for node in NODES:
            slurm.root(node, f"test -e {LINE} || mv /root/uvn-line {LINE}")
    return {f"step, {'' if plugin else 'no '}plug-in": float(said.split()[-1])}


def steps(slurm: Slurm, user: User) -> dict[str, dict[str, Any]]:
    """Steps with and without the plug-in's line, in turn."""
    number = user.submit("sleep 1d", "--nodes=2")
    slurm.wait(lambda: slurm.job(number)["JobState"] == "RUNNING", "the job runs")
    series = interleaved(STEPS, [lambda plugin=plugin: step(slurm, user, number, plugin) for plugin in (True, False)])
    slurm.clear()
    return series


def mpi(user: User) -> dict[str, float]:
    """Microseconds of one exchange."""
    words = ["srun", "--mpi=pmix", "env", "OMPI_MCA_pml=ob1", "OMPI_MCA_btl=tcp,self", *python_mpi(MPI)]
    found = json.loads(user.output(user.submit(shlex.join(words), "--nodes=2", "--ntasks-per-node=2", "--mem=200")).splitlines()[-1])
    return {f"{what}, {user.name}": value for what, value in found.items()}


def show(series: dict[str, dict[str, Any]]) -> None:
    for what, (above, below) in RATIOS.items():
        relative = ratio(series[above], series[below])
        print(f"{what:18} {relative['median']:.3f} ({relative['q1']:.3f} to {relative['q3']:.3f}) of the reference", flush=True)


def main(rounds: int) -> None:
    with Slurm() as slurm:
        user, reference = slurm.user(USER), slurm.user(REFERENCE)
        measurements: list[Callable[[], dict[str, float]]] = [
            *(lambda who=who: job(who) for who in (user, reference)),
            *(lambda who=who: mpi(who) for who in (user, reference)),
        ]
        series = {**interleaved(rounds, measurements), **steps(slurm, user)}
        version = slurm.root("login1", "sinfo --version").strip().title()
    show(series)
    write("jobs", {"slurm": version, "series": series, "ratios": RATIOS})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
