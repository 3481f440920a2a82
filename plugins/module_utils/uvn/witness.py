# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names the program behind what the guard writes to the kernel's log, which knows the UID only."""

from __future__ import annotations

import os
import re
from typing import Iterator

from . import accounts, strays

KMSG = "/dev/kmsg"  # Documentation/ABI/testing/dev-kmsg: one record a read
RECORD_MAX = 8192  # bytes
_LINE = re.compile(r"[^;]*;uvn (\w+): .*\bSRC=(\S+) DST=(\S+) .*\bPROTO=(\w+)(?: SPT=(\d+) DPT=(\d+))?.* UID=(\d+)")


class Witness:
    """The kernel's log from now on. Raises OSError when the log cannot be opened."""

    def __init__(self, path: str = KMSG) -> None:
        self._log = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._log, 0, os.SEEK_END)

    def fileno(self) -> int:
        return self._log

    def read(self) -> list[str]:
        """One line for each packet of a user that the guard has written down since the last call."""
        return [line for line in map(describe, self._records()) if line]

    def _records(self) -> Iterator[str]:
        while True:
            try:
                yield os.read(self._log, RECORD_MAX).decode(errors="replace")
            except BrokenPipeError:  # records that were overwritten before we came
                continue
            except BlockingIOError:
                return


def describe(record: str) -> str:
    """User, program, addresses of a record of the guard's; empty for any other."""
    found = _LINE.match(record)
    if not found:
        return ""
    cause, source, destination, protocol, from_port, to_port, uid = found.groups()
    who = holder(protocol.lower(), int(from_port), int(uid)) if from_port else "unknown"
    ends = [f"[{address}]:{port}" if port else address for address, port in ((source, from_port), (destination, to_port))]
    return f"guard {cause}: {accounts.name_of(int(uid))} uid={uid} program={who} {protocol.lower()} {ends[0]} to {ends[1]}"


def holder(protocol: str, port: int, uid: int) -> str:
    """The program with that socket and its PID; `unknown` when the socket is closed already."""
    found = strays.holders(protocol, port, uid)
    return f"{found[0]['program']} pid={found[0]['pid']}" if found else "unknown"
