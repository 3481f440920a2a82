# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests do on the cluster: run commands as users on login1 and as root on nodes, and wait for jobs."""

from __future__ import annotations

import threading
import time
from typing import Callable

from sessions import AGENT_COMMAND, Cluster, Session, ssh

NODES = ("c1", "c2")
UIDS = {"alice": 2001, "bob": 2002, "exempted": 2009}
PATIENCE = 600  # s: 64 steps at once took 301 s on an emulated node

# What a process prints of itself: its node, its cgroup, and the device that its sockets are bound to.
ABOUT = (
    "import os, socket; s = socket.socket(); "
    "print(socket.gethostname(), s.getsockopt(1, 25, 16).rstrip(bytes(1)).decode() or 'default', open('/proc/self/cgroup').read().strip())"
)


def python(code: str) -> list[str]:
    return ["python3", "-IS", "-c", code]


def python_mpi(code: str) -> list[str]:
    """With the distribution's packages, such as mpi4py."""
    return ["python3", "-I", "-c", code]


def login(user: str, node: str) -> Session:
    """A first login on an emulated node may be silent for long."""
    return Session(ssh(user, node, *AGENT_COMMAND, options=("-o", "ServerAliveInterval=0")), f"{user}@{node}", PATIENCE)


class User:
    """A user's session on login1, and where the jobs' files are: on the nodes, which share no file system."""

    def __init__(self, slurm: Slurm, name: str) -> None:
        self.slurm, self.name, self.uid = slurm, name, UIDS[name]
        self.vrf = f"vrf{self.uid}"

    @property
    def session(self) -> Session:
        return self.slurm.cluster.session(self.name, "login1")

    def run(self, *argv: str, timeout: float = PATIENCE, stdin: str = "") -> dict:
        return self.session.run(*argv, timeout=timeout, stdin=stdin)

    def check(self, *argv: str, timeout: float = PATIENCE, stdin: str = "") -> str:
        """The output of a command that succeeds."""
        return self.session.check(*argv, timeout=timeout, stdin=stdin)

    def submit(self, script: str, *options: str) -> int:
        """sbatch: the number of the job."""
        output = ["--output=/tmp/%j.out"] if not any(option.startswith("--output") for option in options) else []
        return int(self.check("sbatch", "--parsable", *output, *options, stdin=f"#!/bin/sh\n{script}\n").split(";")[0])

    def finished(self, job: int) -> dict[str, str]:
        """Wait for the end of a job; what `scontrol show job` says of it."""
        return self.slurm.wait(lambda: self.ended(job), f"the end of job {job}")

    def ended(self, job: int) -> dict[str, str] | None:
        shown = self.slurm.job(job)
        return shown if shown["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING") else None

    def output(self, job: int) -> str:
        """What a batch job that has ended printed."""
        shown = self.finished(job)
        return self.slurm.root(shown["BatchHost"], f"cat /tmp/{job}.out")

    def later(self, *argv: str, timeout: float = PATIENCE) -> Later:
        """Run a command in a login of its own while the test goes on."""
        return Later(self.slurm.cluster.login(self.name, "login1"), argv, timeout)


class Later:
    """A command that runs; `result` waits for it."""

    def __init__(self, session: Session, argv: tuple[str, ...], timeout: float) -> None:
        self.session, self.done = session, {}
        self.thread = threading.Thread(target=self._run, args=(argv, timeout))
        self.thread.start()

    def _run(self, argv: tuple[str, ...], timeout: float) -> None:
        self.done = self.session.run(*argv, timeout=timeout)

    def result(self) -> dict:
        self.thread.join()
        self.session.close()
        return self.done


class Slurm:
    """The cluster."""

    def __init__(self) -> None:
        self.cluster = Cluster(login)

    def __enter__(self) -> Slurm:
        self.cluster.__enter__()
        self.cluster.open([(user, "login1") for user in UIDS] + [("root", node) for node in ("login1", *NODES)])
        return self

    def __exit__(self, *exception: object) -> None:
        self.cluster.__exit__(*exception)

    def user(self, name: str) -> User:
        return User(self, name)

    def root(self, node: str, script: str, timeout: float = PATIENCE) -> str:
        """The output of a shell script of root's that succeeds."""
        return self.cluster.session("root", node).check("sh", "-ec", script, timeout=timeout)

    def job(self, job: int) -> dict[str, str]:
        words = self.root("login1", f"scontrol --oneliner show job {job}").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def states(self) -> dict[str, str]:
        """Node -> state, once no job is completing."""

        def settled() -> dict[str, str] | None:
            states = dict(line.split() for line in self.root("login1", "sinfo -hN -o '%N %T'").splitlines())
            return None if any("complet" in state for state in states.values()) else states

        return self.wait(settled, "nodes have completed their jobs")

    def back(self) -> None:
        """Wait until both nodes are at work again."""
        self.wait(lambda: set(self.states().values()) == {"idle"}, "both nodes are idle")

    def clear(self) -> None:
        """End all jobs."""
        self.root("login1", "; ".join(f"scancel --user={user}" for user in UIDS))
        self.wait(lambda: not self.root("login1", "squeue -h"), "an empty queue")

    def wait(self, condition: Callable, what: str, seconds: float = PATIENCE):
        """Wait until `condition` gives something true; that. Raises AssertionError."""
        end = time.monotonic() + seconds
        while True:
            value = condition()
            if value:
                return value
            assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
            time.sleep(0.3)
