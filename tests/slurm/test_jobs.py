# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every step of every job is in its user's network, in Slurm's own cgroup, and talks to srun, salloc and sattach as ever."""

from __future__ import annotations

import re
import shlex
import time

from cluster import ABOUT, NODES, python

ABOUT_COMMAND = shlex.join(python(ABOUT))
STEPS = 64
GROW = """
import mmap, time
data = mmap.mmap(-1, 40 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
data.madvise(mmap.MADV_NOHUGEPAGE)
for page in range(0, len(data), mmap.PAGESIZE):
    data[page] = 1
time.sleep(600)
"""
LIMITS = {"InactiveLimit": 30, "MessageTimeout": 30}  # s: slurmctld ends an allocation that has not answered for 71, 4/3 of the first and the second


def lines(output: str) -> list[tuple[str, str, str]]:
    """Node, device and cgroup of what ran ABOUT."""
    return sorted(tuple(line.split(maxsplit=2)) for line in output.splitlines() if " 0::" in line)


def test_a_batch_job_and_its_steps_on_two_nodes(slurm, alice):
    job = alice.submit(f"{ABOUT_COMMAND}\nsrun {ABOUT_COMMAND}", "--nodes=2")
    ran = lines(alice.output(job))
    assert [(node, device) for node, device, _cgroup in ran] == [("c1", alice.vrf), ("c1", alice.vrf), ("c2", alice.vrf)]
    cgroups = sorted((node, re.sub(r"^.*slurmstepd\.scope", "", cgroup)) for node, _device, cgroup in ran)
    second = 0 if " 22.05" in slurm.root("login1", "sinfo --version") else 1  # 22.05 counts the tasks of a node, 24.11 those of the step
    tasks = (("c1", "0", 0), ("c1", "batch", 0), ("c2", "0", second))
    assert cgroups == [(node, f"/job_{job}/step_{step}/user/task_{task}") for node, step, task in tasks]
    assert slurm.job(job)["JobState"] == "COMPLETED"


def test_srun_from_the_login_node_again_and_again(alice, bob):
    for user in (alice, bob, alice):
        ran = lines(user.check("srun", "--nodes=2", *python(ABOUT)))
        assert [(node, device) for node, device, _cgroup in ran] == [(node, user.vrf) for node in NODES]


def test_input_output_and_exit_status(alice):
    assert alice.check("srun", "cat", stdin="said to srun\n") == "said to srun\n"
    done = alice.run("srun", "sh", "-c", "echo complaint >&2; exit 7")
    assert (done["rc"], "complaint" in done["stderr"]) == (7, True)


def test_srun_and_salloc_wait_behind_another_users_job(slurm, alice, bob):
    job = bob.submit("sleep 600", "--nodes=2", "--exclusive")
    slurm.wait(lambda: slurm.job(job)["JobState"] == "RUNNING", "bob's job runs")
    srun = alice.later("srun", "--exclusive", *python(ABOUT))
    salloc = alice.later("salloc", "--exclusive", "srun", *python(ABOUT))
    slurm.wait(lambda: slurm.root("login1", "squeue -h -t PENDING -u alice").count("\n") == 2, "both wait")
    bob.check("scancel", str(job))
    for waited in (srun.result(), salloc.result()):
        assert waited["rc"] == 0, waited["stderr"]
        ((_node, device, _cgroup),) = lines(waited["stdout"])
        assert device == alice.vrf


def test_an_allocation_that_waits_for_its_user_outlasts_the_inactive_limit(slurm, alice):
    """slurmctld asks salloc whether it is still there."""
    settings = "".join(f"{key}={value}\\n" for key, value in LIMITS.items())
    slurm.root("login1", f"cd /etc/slurm; cp slurm.conf /root/; sed -i '/^MessageTimeout=/d' slurm.conf; printf '{settings}' >>slurm.conf")
    try:
        slurm.root("login1", "systemctl restart slurmctld; scontrol show config | grep -q '^InactiveLimit *= 30 sec'")
        slurm.back()
        ran = lines(alice.check("salloc", "sh", "-c", f"sleep 100; srun {ABOUT_COMMAND}"))
    finally:
        slurm.root("login1", "mv /root/slurm.conf /etc/slurm/; systemctl restart slurmctld")
        slurm.back()
    assert [device for _node, device, _cgroup in ran] == [alice.vrf]


def test_a_terminal(alice):
    said = alice.check("script", "-qec", "srun --pty sh -c 'tty; stty size'", "/dev/null")
    assert "/dev/pts/" in said


def test_x11(alice):
    """A program of the job reaches the X server of the user's session on the login node."""
    alice.check("xauth", "add", "localhost:9", "MIT-MAGIC-COOKIE-1", "00112233445566778899aabbccddeeff")
    server = alice.later(*python("import socket; s = socket.create_server(('127.0.0.1', 6009)); s.accept()[0].sendall(b'the X server')"))
    client = (
        "import os, socket; host, number = os.environ['DISPLAY'].split(':');"
        "print(socket.create_connection((host, 6000 + int(float(number)))).recv(99).decode())"
    )
    assert alice.check("env", "DISPLAY=localhost:9", "srun", "--x11", *python(client)).strip() == "the X server"
    assert server.result()["rc"] == 0


def test_sattach(slurm, alice):
    job = alice.submit("srun sh -c 'while sleep 1; do echo tick; done'")
    slurm.wait(lambda: "StepId" in slurm.root("login1", f"scontrol show step {job}.0 2>/dev/null || true"), "the step runs")
    attached = alice.later("sattach", f"{job}.0")
    time.sleep(15)
    alice.check("scancel", str(job))
    assert "tick" in attached.result()["stdout"]


def test_scancel_leaves_no_process(slurm, alice):
    job = alice.submit("srun sleep 4711", "--nodes=2")
    slurm.wait(lambda: all("4711" in slurm.root(node, "pgrep -af 'sleep 4711' || true") for node in NODES), "the step runs")
    alice.check("scancel", str(job))
    assert alice.finished(job)["JobState"] == "CANCELLED"
    assert all("sleep 4711" not in slurm.root(node, "pgrep -a sleep || true") for node in NODES)


def test_an_array(slurm, alice):
    job = alice.submit(ABOUT_COMMAND, "--array=1-4", "--output=/tmp/array-%a.out")
    slurm.wait(lambda: not slurm.root("login1", f"squeue -h -j {job} || true"), "the array has ended")
    ran = lines("".join(slurm.root(node, "cat /tmp/array-*.out 2>/dev/null || true; rm -f /tmp/array-*.out") for node in NODES))
    assert [device for _node, device, _cgroup in ran] == [alice.vrf] * 4


def test_many_steps_at_once(alice):
    step = f"srun --overlap --nodes=1 --ntasks=1 --mem=0 {ABOUT_COMMAND} &\n"
    ran = lines(alice.output(alice.submit(step * STEPS + "wait", "--nodes=2", "--mem=500")))
    assert [device for _node, device, _cgroup in ran] == [alice.vrf] * STEPS


def test_sbcast(alice):
    script = "copy=/tmp/cast-$SLURM_JOB_ID; hostname >$copy.in; sbcast --force $copy.in $copy; srun cat $copy"
    job = alice.submit(script, "--nodes=2")
    assert alice.output(job).split() == ["c1", "c1"]


def test_sstat_and_the_cgroup_account_for_a_step_as_without_uvn(slurm, alice):
    """What Slurm says of it is compared with what it says of the exempt account. 22.05 counts huge pages twice, and who gets some is chance."""
    grow = shlex.join(python(GROW))
    users = (alice, slurm.user("exempted"))
    jobs = [user.submit(f"srun {grow}", "--mem=200", "--nodelist=c2") for user in users]

    def used() -> list[int] | None:
        said = [user.run("sstat", "--noheader", "--parsable2", "--format=MaxRSS", "--jobs", f"{job}.0")["stdout"] for user, job in zip(users, jobs)]
        kib = [int(text.strip().rstrip("K") or 0) if "K" in text else 0 for text in said]
        return kib if min(kib) >= 40 << 10 else None

    ours, reference = slurm.wait(used, "40 MiB in sstat for both")
    assert 0.8 < ours / reference < 1.25
    for job in jobs:
        memory = slurm.root("c2", f"cat /sys/fs/cgroup/system.slice/*slurmstepd.scope/job_{job}/step_0/memory.current")
        assert 40 << 20 <= int(memory) < 200 << 20


def test_the_memory_limit_holds(alice):
    job = alice.submit(shlex.join(python("print(len(bytearray(300 << 20)))")), "--mem=60")
    assert alice.finished(job)["JobState"] == "OUT_OF_MEMORY"
