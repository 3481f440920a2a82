# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names the program behind what the guard writes to the kernel's log, which knows the UID only.

In a process of its own: what it takes to find a program is decided by users, who own sockets and descriptors, and no login may wait for it.
"""

from __future__ import annotations

import os
import re
import select
import time
import traceback
from typing import Callable

from . import accounts, strays
from .errors import UvnError

KMSG = "/dev/kmsg"  # Documentation/ABI/testing/dev-kmsg: one record a read
RECORD_MAX = 8192  # bytes
PAUSE = 1  # seconds after each line; the guard writes a few a minute
_LINE = re.compile(r"[^;]*;uvn (\w+): .*\bSRC=(\S+) DST=(\S+) .*\bPROTO=(\w+)(?: SPT=(\d+) DPT=(\d+))?.* UID=(\d+)")


class Witness:
    """The process, which writes a line by `say` for each packet of a user that the guard writes down from now on, and ends with this one.

    Start it before there is a second thread. It is readable (select) when it has ended. Raises OSError when the log cannot be opened.
    """

    def __init__(self, say: Callable[[str], None], path: str) -> None:
        log = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(log, 0, os.SEEK_END)
        ends_with_us, self._us = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(self._us)
            _be_witness(log, ends_with_us, say)
        os.close(log)
        os.close(ends_with_us)
        self._process = os.pidfd_open(self._pid)

    def fileno(self) -> int:
        return self._process

    def close(self) -> None:
        """End the process if it has not ended."""
        os.close(self._us)
        os.waitpid(self._pid, 0)
        os.close(self._process)


def _be_witness(log: int, parent: int, say: Callable[[str], None]) -> None:
    """What the process does instead of all else; it does not return."""
    try:
        os.nice(20)
        watch(log, parent, say)
    except BaseException:
        say(f"witness failed: {traceback.format_exc()}")
    finally:
        os._exit(0)


def watch(log: int, parent: int, say: Callable[[str], None]) -> None:
    """Read the log until `parent`, a pipe, is closed at its other end."""
    while parent not in select.select([log, parent], [], [])[0]:
        try:
            seen = describe(_record(log))
        except (OSError, UvnError) as error:
            seen = f"what the guard found cannot be explained: {error}"
        if seen:
            say(seen)
            time.sleep(PAUSE)


def _record(log: int) -> str:
    """The next record of the log, empty for one that was overwritten before we came."""
    try:
        return os.read(log, RECORD_MAX).decode(errors="replace")
    except (BrokenPipeError, BlockingIOError):
        return ""


def describe(record: str) -> str:
    """User, program, addresses of a record of the guard's; empty for any other."""
    found = _LINE.match(record)
    if not found:
        return ""
    cause, source, destination, protocol, from_port, to_port, uid = found.groups()
    who = holder(protocol.lower(), int(from_port), int(uid)) if from_port else "unknown"
    ends = [f"[{address}]:{port}" if port else address for address, port in ((source, from_port), (destination, to_port))]
    return f"guard {cause}: {_name(int(uid))} uid={uid} program={who} {protocol.lower()} {ends[0]} to {ends[1]}"


def _name(uid: int) -> str:
    """The account, as the directory has it: this process may wait for that."""
    try:
        account = accounts.by_uid(uid)
    except accounts.Silent:
        account = None
    return account.name if account else "(name unknown)"


def holder(protocol: str, port: int, uid: int) -> str:
    """The program with that socket and its PID; `unknown` when the socket is closed already, or there is too much to look at."""
    try:
        found = strays.holder(protocol, port, uid) if protocol in strays.PROTOCOLS else None
    except (OSError, UvnError) as error:
        return f"unknown ({error})"
    return f"{found['program'] or 'unknown'} pid={found['pid']}" if found else "unknown"
