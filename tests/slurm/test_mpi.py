# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""MPI programs of two users at once, on the same nodes; launched by srun, by mpirun through Slurm, and by mpirun through ssh."""

from __future__ import annotations

import shlex

import pytest
from cluster import python, python_mpi

RANKS = 4
PROGRAM = """
import socket
from mpi4py import MPI
world = MPI.COMM_WORLD
bound = socket.socket().getsockopt(1, 25, 16).rstrip(bytes(1)).decode()
said = world.gather(f"{socket.gethostname()}/{bound}")
total = world.allreduce(world.rank)
swapped = world.alltoall([world.rank * 100 + other for other in range(world.size)])
if world.rank == 0:
    print("total", total, "swapped", swapped[-1], *sorted(said))
"""
# TCP between all ranks, also those of one node.
TCP = ["env", "OMPI_MCA_pml=ob1", "OMPI_MCA_btl=tcp,self"]
# How mpirun starts its daemons, in the words of Open MPI 4 and of PRRTE, which Open MPI 5 has for it.
UNASKED = "-o StrictHostKeyChecking=no"
BY_SLURM = ["OMPI_MCA_plm=slurm", "PRTE_MCA_plm=slurm"]
BY_SSH = ["OMPI_MCA_plm=rsh", f"OMPI_MCA_plm_rsh_args={UNASKED}", "PRTE_MCA_plm=ssh", f"PRTE_MCA_plm_ssh_args={UNASKED}"]
# Of PRRTE, which Open MPI 5 has to launch: its NIC, and that two ranks share the lab's one CPU.
PRRTE = ["PRTE_MCA_prte_if_include=em1", "PRTE_MCA_hwloc_default_binding_policy=none"]
RENDEZVOUS = """
import os, socket, time
rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
if rank == 0:
    with socket.create_server(("", 29500)) as server:
        peers = [server.accept()[0] for _other in range(size - 1)]
        said = sorted(peer.recv(100).decode() for peer in peers)
        for peer in peers:
            peer.sendall(b"go")
    print("met", *said)
else:
    for _attempt in range(120):
        try:
            peer = socket.create_connection(("c1", 29500), 5)
            break
        except OSError:
            time.sleep(0.5)
    peer.sendall(f"{rank}/{os.environ['SLURM_JOB_USER']}".encode())
    peer.recv(100)
"""


# What PMI2 has for the processes of a step: each says where it is, and reads what the others said (contribs/pmi2/slurm/pmi2.h).
PMI2 = """
import ctypes, socket
pmi = ctypes.CDLL("libpmi2.so.0")
spawned, size, rank, number, length = (ctypes.c_int() for _each in range(5))
step, value = ctypes.create_string_buffer(256), ctypes.create_string_buffer(256)
bound = socket.socket().getsockopt(1, 25, 16).rstrip(bytes(1)).decode()
done = [
    pmi.PMI2_Init(*map(ctypes.byref, (spawned, size, rank, number))),
    pmi.PMI2_Job_GetId(step, len(step)),
    pmi.PMI2_KVS_Put(b"card-%d" % rank.value, f"{socket.gethostname()}/{bound}".encode()),
    pmi.PMI2_KVS_Fence(),
]
cards = []
for other in range(size.value):
    done.append(pmi.PMI2_KVS_Get(step, -1, b"card-%d" % other, value, len(value), ctypes.byref(length)))
    cards.append(value.value.decode())
done.append(pmi.PMI2_Finalize())
assert not any(done), done
if rank.value == 0:
    print(*sorted(cards))
"""


def expected(user) -> list[str]:
    nodes = ["c1"] * (RANKS // 2) + ["c2"] * (RANKS // 2)
    swapped = (RANKS - 1) * 100
    return ["total", str(sum(range(RANKS))), "swapped", str(swapped), *(f"{node}/{user.vrf}" for node in nodes)]


def launched(how: str) -> str:
    program = python_mpi(PROGRAM)
    if how == "pmix":
        return shlex.join(["srun", "--mpi=pmix", *TCP, *program])
    by_ssh = how == "mpirun through ssh"
    hosts = ["--host", f"c1:{RANKS // 2},c2:{RANKS // 2}"] if by_ssh else []
    return shlex.join([*TCP, *PRRTE, *(BY_SSH if by_ssh else BY_SLURM), "mpirun", *hosts, "-n", str(RANKS), *program])


@pytest.mark.parametrize("how", ["pmix", "mpirun through Slurm", "mpirun through ssh"])
def test_two_users_mpi_jobs_on_the_same_nodes(slurm, alice, bob, how):
    jobs = {user: user.submit(launched(how), "--nodes=2", f"--ntasks-per-node={RANKS // 2}", "--mem=200") for user in (alice, bob)}
    for user, job in jobs.items():
        assert user.output(job).split() == expected(user)


def test_pmi2(slurm, alice, bob):
    """slurmstepd hands what a step's processes say to srun, in Slurm 22.05 to a port outside SrunPortRange."""
    command = shlex.join(["srun", "--mpi=pmi2", *python(PMI2)])
    jobs = {user: user.submit(command, "--nodes=2", f"--ntasks-per-node={RANKS // 2}", "--mem=100") for user in (alice, bob)}
    for user, job in jobs.items():
        assert user.output(job).split() == expected(user)[-RANKS:]


def test_two_users_meet_on_one_port(slurm, alice, bob):
    """As PyTorch's processes do."""
    command = shlex.join(["srun", *python(RENDEZVOUS)])
    jobs = {user: user.submit(command, "--nodes=2", "--ntasks-per-node=2", "--mem=100") for user in (alice, bob)}
    for user, job in jobs.items():
        assert user.output(job).split() == ["met", *(f"{rank}/{user.name}" for rank in (1, 2, 3))]
