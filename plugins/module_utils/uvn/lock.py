# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of the node's one writer. Who waits for it too long is told who has it."""

from __future__ import annotations

import fcntl
import os
import time

from .errors import UvnError

AGAIN = 0.02  # seconds between two tries
LOCKS = "/proc/locks"  # proc_locks(5)


class Lock:
    """A file that one process at a time has locked.

    `wait` is the time in seconds that one process may have it while we want it; after that we do not wait until another one has it.
    """

    def __init__(self, path: str, wait: float) -> None:
        self._path, self._wait = path, wait
        self._descriptor = -1
        self._holder: tuple[int | None, float] = (None, 0.0)  # the process that had it when we wanted it last, and since when we know

    def acquire(self) -> None:
        """Raises UvnError that names the holder."""
        os.makedirs(os.path.dirname(self._path), mode=0o755, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._acquire(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def release(self) -> None:
        os.close(self._descriptor)

    def _acquire(self, descriptor: int) -> None:
        while not _take(descriptor):
            holder, now = _holder(descriptor), time.monotonic()
            if holder != self._holder[0]:
                self._holder = holder, now
            if now - self._holder[1] >= self._wait:
                raise UvnError(f"{self._path}: {_name(holder)} has had this lock for {self._wait:g} s; see what it waits for, or end it")
            time.sleep(AGAIN)
        self._holder = None, 0.0


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> int | None:
    """The PID of the process that has locked the file, None when it is not known."""
    inode = f":{os.fstat(descriptor).st_ino}"
    with open(LOCKS, encoding="ascii") as file:
        held = [fields for fields in map(str.split, file) if fields[1] == "FLOCK" and fields[5].endswith(inode)]
    return int(held[0][4]) if held else None


def _name(pid: int | None) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            return f"`{file.read().rstrip(chr(0)).replace(chr(0), ' ')}` (PID {pid})"
    except OSError:
        return "another process"
