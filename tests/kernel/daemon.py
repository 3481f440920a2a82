# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uvnd in a namespace that is a node, installed where the role installs it, with the real accounts of the machine."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time
from typing import Any, Callable, Sequence

from nodes import SITE, Node
from uvn import client, events, store
from uvn.errors import UvnError
from uvn.keeper import Keeper
from uvn.kernel import socket_index
from uvn.membership import Membership
from uvn.netlink import Netlink, Refused
from uvn.reconcile import Reconciler

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = ROOT / "roles" / "uvn_node" / "files"
LIBRARY = pathlib.Path("/usr/lib/uvn")
SITE_FILE = pathlib.Path("/etc/uvn/site.json")
LOG = pathlib.Path("/tmp/uvnd.log")
LOGIN = FILES / "uvn-login"


def install(site: dict) -> None:
    """The files of the role that uvnd needs."""
    remove()
    shutil.copytree(ROOT / "plugins" / "module_utils" / "uvn", LIBRARY / "uvn", ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES.glob("*.bpf.o"):
        shutil.copy(name, LIBRARY)
    shutil.copy(FILES / "uvn", "/usr/sbin/uvn")
    os.chmod("/usr/sbin/uvn", 0o755)
    os.chmod(LOGIN, 0o755)
    configure(site)


def configure(site: dict) -> None:
    """Replace the site file in one step if it differs, as the role does."""
    SITE_FILE.parent.mkdir(exist_ok=True)
    text = json.dumps(site)
    if not SITE_FILE.exists() or SITE_FILE.read_text() != text:
        new = SITE_FILE.with_suffix(".new")
        new.write_text(text)
        new.replace(SITE_FILE)


def remove() -> None:
    """Leave nothing of `install` and of uvnd."""
    for directory in (LIBRARY, SITE_FILE.parent, pathlib.Path(store.RUN), pathlib.Path(store.STATE).parent):
        shutil.rmtree(directory, ignore_errors=True)
    pathlib.Path("/usr/sbin/uvn").unlink(missing_ok=True)


class Process(subprocess.Popen):
    """Killed at the end of its `with`, so that a test that fails there does not wait for it."""

    def __exit__(self, *exception: Any) -> None:
        self.kill()
        super().__exit__(*exception)


class Host(Node):
    """A node with uvnd. `uvnd` is its process, None when it does not run."""

    def __init__(self, name: str, number: int, site: dict | None = None, **options: Any) -> None:
        self.configuration = {**(site or SITE), "idle": 0}
        super().__init__(name, number, site=self.configuration, **options)
        self.uvnd: subprocess.Popen | None = None
        install(self.configuration)
        self.sh("/usr/sbin/uvn node apply")

    def start(self) -> None:
        """Start uvnd and wait until it answers."""
        with open(LOG, "ab") as log:
            command = ["nice", "--adjustment=-10", "nsenter", f"--net=/run/netns/{self.name}", "/usr/sbin/uvn", "daemon"]  # as uvnd.service
            self.uvnd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(lambda: self.answers(), "uvnd answers", seconds=60)

    def answers(self) -> bool:
        try:
            client.request({"op": "status"})
        except client.UvnError:
            return False
        return True

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End uvnd by a signal."""
        if self.uvnd:
            self.uvnd.send_signal(number)
            self.uvnd.wait()
            self.uvnd = None

    def log_in(self, user: str, *arguments: str) -> subprocess.Popen:
        """What PAM runs when a session of the user opens; with `exempt` for a member of an exempt group."""
        environment = {"PAM_USER": user, "PAM_TYPE": "open_session"}
        return subprocess.Popen([LOGIN, *arguments], env=environment, stdout=subprocess.PIPE, text=True)

    def logged_in(self, user: str, *arguments: str) -> str:
        """Log in and see that it is allowed; what the user read."""
        login = self.log_in(user, *arguments)
        said = login.communicate()[0]
        assert login.returncode == 0, said
        return said

    def run_as(self, uid: int, *command: str, **options: Any) -> subprocess.Popen:
        """A process of a user on this node."""
        enter = ["nsenter", f"--net=/run/netns/{self.name}", "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        return Process([*enter, *command], text=True, **options)

    def bound_to(self, uid: int) -> str:
        """The device that a new socket of a user is bound to, or the name of the error."""
        code = "import socket; s = socket.socket(); print(s.getsockopt(1, 25, 16).rstrip(b'\\0').decode() or 'nothing')"
        said = self.run_as(uid, "python3", "-IS", "-c", code, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).communicate()[0]
        return said.strip().splitlines()[-1].split(":")[0]

    def whole(self, uid: int) -> bool:
        """Whether a user's network is exactly as planned, membership included."""
        return self.pending(uid) == [] and bool(self.index(f"vrf{uid}")) and Membership().get(uid) == self.index(f"vrf{uid}")

    def absent(self, uid: int) -> bool:
        """Whether nothing of a user's network is there, membership and the login's file included."""
        return self.observe(uid) == [] and Membership().get(uid) is None and uid not in store.vouched().values()

    def delete(self) -> None:
        self.stop()
        self.sh("/usr/sbin/uvn node remove")
        remove()
        super().delete()


def apply_part(site: Any, uid: int, present: bool, count: int) -> None:
    """Carry out only the first `count` changes that a user's network needs, as a process that is killed then."""
    with Reconciler(site) as reconciler:
        reconciler._apply(reconciler.user(uid, present, check=True)[:count])


def cut_off_everywhere(site: Any, uid: int, present: bool) -> int:
    """Cut a creation or a removal off after every step and complete it; the number of steps. Raises AssertionError."""
    with Reconciler(site) as reconciler:
        reconciler.user(uid, not present)
        steps = reconciler.user(uid, present, check=True)
        for count in range(1, len(steps)):
            reconciler._apply(steps[:count])
            reconciler.user(uid, present)
            assert reconciler.user(uid, present, check=True) == [], f"cut off after {count} steps"
            assert bool(reconciler.describe(uid)) is present, f"cut off after {count} steps"
            reconciler.user(uid, not present)
        return len(steps)


class Refusing:
    """For the length of a `with` the kernel seems to refuse the netlink request number `position`; `count` are asked for so far."""

    def __init__(self, position: int) -> None:
        self.position, self.count, self.send = position, 0, Netlink.apply

    def __enter__(self) -> Refusing:
        Netlink.apply = lambda netlink, requests: self.apply(netlink, requests)
        return self

    def __exit__(self, *_exc: object) -> None:
        Netlink.apply = self.send

    def apply(self, netlink: Netlink, requests: Sequence[bytes]) -> list:
        first, self.count = self.count, self.count + len(requests)
        answers = self.send(netlink, [request for number, request in enumerate(requests, first) if number != self.position])
        if first <= self.position < self.count:
            answers.insert(self.position - first, Refused(errno.ENOBUFS))
        return answers


def refused_everywhere(site: Any, uid: int, present: bool) -> int:
    """Let each netlink request of a creation or a removal be refused once, and complete it; their number. Raises AssertionError."""
    with Reconciler(site) as reconciler:
        reconciler.user(uid, not present)
        with Refusing(-1) as whole:
            reconciler.user(uid, present)
        for position in range(whole.count):
            reconciler.user(uid, not present)
            with Refusing(position), contextlib.suppress(UvnError):
                reconciler.user(uid, present)
            index = Membership().get(uid)
            assert index is None or index == socket_index(f"vrf{uid}"), f"request {position} refused"
            reconciler.user(uid, present)
            assert reconciler.user(uid, present, check=True) == [], f"request {position} refused"
    return whole.count


def damaged_after_a_look(uid: int, script: str, number: int) -> None:
    """Make or mend a user's network as uvnd does; right after its look of that number a script damages it. Let uvnd work till it is content."""
    keeper = Keeper()
    content(keeper)
    kernel, looks = keeper.reconciler().kernel, itertools.count(1)
    look = kernel.network

    def network(*arguments: Any) -> list:
        found = look(*arguments)
        if next(looks) == number:
            subprocess.run(["sh", "-ec", script], check=True)
        return found

    kernel.network = network
    keeper.user(uid, True)
    assert next(looks) > number, "there was no such look, so no damage"
    content(keeper)


def told_of(script: str, *nics: str) -> events.Effects:
    """What the kernel tells while a script runs, to a watcher that knows these NICs."""
    watcher = events.Watcher(0, 0)
    watcher.nics = {socket_index(nic) for nic in nics}
    with events.listen() as listener:
        subprocess.run(["sh", "-ec", script], check=True)
        return events.drain(listener, watcher)


def content(keeper: Keeper) -> None:
    """Let uvnd work until nothing is due but the next sweep."""
    keeper.read()
    while keeper.wait() < 5:
        time.sleep(keeper.wait())
        keeper.read()
        keeper.work()
        keeper.read()


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60) -> float:
    """Wait until something is so; the seconds it took. Raises AssertionError when it takes too long."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s: {what}; uvnd said: {LOG.read_text()[-3000:]}"
        time.sleep(0.05)
    return time.monotonic() - start
