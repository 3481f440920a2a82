# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of the one writer: who waits too long is told who has it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
from conftest import SITE
from uvn import lock, reconcile
from uvn.errors import UvnError
from uvn.lock import Lock
from uvn.site import parse

HOLD = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"


class Holder:
    """Another process that has the lock, for the length of a `with`."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.process = subprocess.Popen([sys.executable, "-c", HOLD, self.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "held\n"
        return self.process.pid

    def __exit__(self, *_exc):
        self.process.communicate()


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only in sleep."""
    now = SimpleNamespace(seconds=1000.0, slept=0)

    def sleep(seconds):
        now.seconds, now.slept = now.seconds + seconds, now.slept + 1

    monkeypatch.setattr(lock, "time", SimpleNamespace(monotonic=lambda: now.seconds, sleep=sleep))
    return now


def test_one_after_the_other(tmp_path, clock):
    one, two = (Lock(str(tmp_path / "uvn" / "lock"), 1) for _number in range(2))
    one.acquire()
    with pytest.raises(UvnError):
        two.acquire()
    one.release()
    two.acquire()
    two.release()


def test_who_has_it_is_named_after_a_bounded_wait_and_the_next_one_waits_no_more(tmp_path, clock):
    """A login that comes after the first one is not to wait again for a program that hangs."""
    path = str(tmp_path / "lock")
    wanting = Lock(path, 30)
    with Holder(path) as pid:
        for waits in (True, False):
            clock.slept = 0
            with pytest.raises(UvnError, match=rf"^{path}: `{sys.executable} -c .*` \(PID {pid}\) has had this lock for 30 s; "):
                wanting.acquire()
            assert bool(clock.slept) is waits
        assert 1030 <= clock.seconds < 1031
    with Holder(path):
        clock.slept = 0
        with pytest.raises(UvnError):
            wanting.acquire()
        assert clock.slept, "another process has it since just now"
    wanting.acquire()
    wanting.release()


def test_nothing_is_left_open_when_it_cannot_be_had(tmp_path, clock):
    path = str(tmp_path / "lock")
    with Holder(path):
        before = os.listdir("/proc/self/fd")
        with pytest.raises(UvnError):
            Lock(path, 0).acquire()
        assert os.listdir("/proc/self/fd") == before


def test_a_reconciler_closes_its_sockets(tmp_path, monkeypatch):
    monkeypatch.setattr(reconcile, "RUN", str(tmp_path))
    monkeypatch.setattr("uvn.kernel.PYROUTE2_ERROR", None)  # nothing is sent
    monkeypatch.setattr("uvn.netlink.SO_RCVBUFFORCE", 8)  # SO_RCVBUF: this test needs no rights
    gc.collect()  # what other tests left open
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        with reconcile.Reconciler.open(parse(SITE)) as reconciler:
            assert reconciler.held
        del reconciler
        gc.collect()
    assert [str(one.message) for one in warned if "socket" in str(one.message)] == []
