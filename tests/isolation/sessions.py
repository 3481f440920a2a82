# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real ssh logins to the nodes of the lab, each with the agent of probe.py in it.

One login costs 1 to 2 s of CPU on an emulated node, so every (user, node) has one session that serves the whole run.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
LAB = HERE.parent / "lab" / "lab"
AGENT = HERE / "probe.py"
LOGINS_AT_A_TIME = 4
LOGIN_TIMEOUT = 60  # s
END = b"\n#END OF AGENT\n"
# The agent's source comes over stdin; what follows it on stdin are requests.
BOOT = (
    "import os; s = b''\n"
    f"while not s.endswith({END!r}): s += os.read(0, 65536) or exit('no agent')\n"
    "exec(compile(s, 'probe.py', 'exec'))"
)
AGENT_COMMAND = ["python3", "-I", "-c", BOOT]


class SessionError(Exception):
    """A session could not be had or broke; one sentence for the user."""


@functools.cache
def ssh_config() -> str:
    """Path of the lab's ssh configuration (a temporary file of this run)."""
    done = subprocess.run([str(LAB), "ssh-config"], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise SessionError(f"{LAB} ssh-config failed: {done.stderr.strip()}; start the lab by `tests/lab/lab up`")
    directory = Path(tempfile.mkdtemp(prefix="uvn-isolation-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = directory / "ssh_config"
    path.write_text(done.stdout)
    return str(path)


def run_directory() -> Path:
    """Where the running lab keeps its state: beside its known_hosts."""
    match = re.search(r'UserKnownHostsFile "?([^"\n]*)/known_hosts', Path(ssh_config()).read_text())
    if not match:
        raise SessionError(
            f"{LAB} ssh-config names no UserKnownHostsFile, beside which the lock of these tests would be"
        )
    return Path(match.group(1))


@contextlib.contextmanager
def one_run_at_a_time():
    """Two runs on one lab would take each other's ports and restart each other's nodes: the second one waits."""
    with open(run_directory() / "isolation.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another run of the isolation tests ({lock.name})", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ssh(user: str, node: str, *command: str, options: tuple = ()) -> list:
    """Argument vector of a fresh ssh login; `command` is quoted for the remote shell."""
    fresh = ["-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "BatchMode=yes"]
    return ["ssh", "-F", ssh_config(), *fresh, *options, "-l", user, node, *[shlex.quote(word) for word in command]]


class Session:
    """One login with an agent in it.

    Calls are serialised: one request, one reply. ``argv`` is the command that starts the agent.
    """

    def __init__(self, argv: list, name: str, timeout: float = LOGIN_TIMEOUT):
        self.name, self.number, self.buffer, self.lock = name, 0, b"", threading.Lock()
        self.errors = tempfile.TemporaryFile()
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=self.errors, start_new_session=True)
        self.write(AGENT.read_bytes() + END)
        try:
            self.hello = self.read(time.monotonic() + timeout)
        except SessionError:
            self.close()
            raise

    def write(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def read(self, deadline: float) -> dict:
        """The next JSON line. What is printed before it (a motd, a PAM module's words) is skipped."""
        while True:
            while b"\n" in self.buffer:
                line, self.buffer = self.buffer.split(b"\n", 1)
                if line.startswith(b"{"):
                    return json.loads(line)
            pipe = self.process.stdout
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise SessionError(f"{self.name} did not answer in time; {self.stderr()}")
            data = os.read(pipe.fileno(), 1 << 16)
            if not data:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(5)
                raise SessionError(f"{self.name} ended with {self.process.returncode}: {self.stderr()}")
            self.buffer += data

    def stderr(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace").strip() or "nothing on stderr"

    def call(self, op: str, timeout: float = 120, **arguments) -> dict:
        """One request to the agent; its reply. `timeout` in seconds."""
        with self.lock:
            self.number += 1
            self.write((json.dumps({"id": self.number, "op": op, **arguments}) + "\n").encode())
            deadline = time.monotonic() + timeout
            reply = self.read(deadline)
            while reply.get("id") != self.number:
                reply = self.read(deadline)
        if "failed" in reply:
            raise SessionError(f"{self.name}: {op}: {reply['failed']}")
        return reply

    def probes(self, specs: list) -> list:
        return self.call("probes", probes=specs, timeout=180)["results"]

    def listen(self, specs: list) -> list:
        return self.call("listen", listeners=specs)["results"]

    def sockets(self) -> dict:
        return self.call("sockets")["devices"]

    def run(self, *argv: str, stdin: str = "", timeout: float = 60) -> dict:
        """Run a command inside the session: rc, stdout, stderr."""
        return self.call("run", argv=list(argv), stdin=stdin, limit=timeout, timeout=timeout + 10)

    def check(self, *argv: str, stdin: str = "", timeout: float = 60) -> str:
        """Run a command that must succeed; its stdout."""
        done = self.run(*argv, stdin=stdin, timeout=timeout)
        if done["rc"] != 0:
            raise SessionError(f"{self.name}: {shlex.join(argv)} gave {done['rc']}: {done['stderr'] or done['stdout']}")
        return done["stdout"]

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            kill(self.process)
        self.process.stdout.close()


def kill(process: subprocess.Popen) -> None:
    """End a process that was started in a session of its own, and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Cluster:
    """The sessions of one run, by (user, node)."""

    def __init__(self, login=None):
        self.login = login or (lambda user, node: Session(ssh(user, node, *AGENT_COMMAND), f"{user}@{node}"))
        self.sessions, self.lock = {}, threading.Lock()

    def session(self, user: str, node: str) -> Session:
        """The session of the user on the node; a new login where there is none or it has ended."""
        with self.lock:
            session = self.sessions.get((user, node))
        if session is None or not session.alive:
            if session is not None:
                session.close()
            session = self.login(user, node)
            with self.lock:
                self.sessions[user, node] = session
        return session

    def open(self, pairs: list) -> None:
        """Log in everywhere, LOGINS_AT_A_TIME at once."""
        self.each(lambda pair: self.session(*pair), pairs)

    def each(self, function, items: list) -> list:
        with ThreadPoolExecutor(LOGINS_AT_A_TIME) as pool:
            return list(pool.map(function, items))

    def forget(self, node: str, user: str = "") -> None:
        """Close the sessions on a node (of one user): before it reboots, or to have a fresh login."""
        for key in [key for key in self.sessions if key[1] == node and user in ("", key[0])]:
            self.sessions.pop(key).close()

    def close(self) -> None:
        sessions, self.sessions = list(self.sessions.values()), {}
        self.each(Session.close, sessions)

    def __enter__(self) -> Cluster:
        with contextlib.ExitStack() as stack:
            stack.enter_context(one_run_at_a_time())
            stack.callback(self.close)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_exception) -> None:
        self.stack.close()


def lab(*arguments: str, timeout: float = 300) -> str:
    """Run `tests/lab/lab ARGUMENTS`; its stdout."""
    done = subprocess.run([str(LAB), *arguments], capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise SessionError(
            f"lab {shlex.join(arguments)} gave {done.returncode}: {(done.stderr or done.stdout).strip()}"
        )
    return done.stdout


def local_login(user: str, node: str) -> Session:
    """An agent on this host without ssh, for the suite's own tests."""
    return Session([sys.executable, *AGENT_COMMAND[1:]], f"{user}@{node} (local)")
