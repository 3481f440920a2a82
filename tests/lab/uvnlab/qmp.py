# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Orders to a running QEMU: save a guest to a file, load it (docs/interop/qmp-spec.txt, qapi/migration.json of QEMU)."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import time
from pathlib import Path
from typing import Any

from .common import LabError

# Memory that is a file anyway is not written out once more.
IGNORE_SHARED = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


class Monitor:
    """A connection to QEMU's monitor, as a context manager. Raises LabError when QEMU refuses an order."""

    def __init__(self, path: Path, name: str) -> None:
        self._name = name
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")

    def __enter__(self) -> Monitor:
        self._answer()  # the greeting
        self.order("qmp_capabilities")
        return self

    def __exit__(self, *_exc: object) -> None:
        self._lines.close()
        self._socket.close()

    def order(self, command: str, **arguments: Any) -> dict:
        """Give an order and return what QEMU says to it."""
        with contextlib.suppress(ConnectionError):  # the missing answer says it
            self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        answer = self._answer()
        if "error" in answer:
            raise LabError(f"node {self._name}: QEMU refuses {command}: {answer['error']['desc']}")
        return answer["return"]

    def migrate(self, command: str, uri: str) -> None:
        """Save or load, and wait for the end."""
        self.order("migrate-set-capabilities", **IGNORE_SHARED)
        self.order(command, uri=uri)
        while (state := self.order("query-migrate")).get("status") != "completed":
            if state.get("status") == "failed":
                raise LabError(f"node {self._name}: QEMU's {command} failed: {state.get('error-desc', 'no reason given')}")
            time.sleep(0.02)

    def _answer(self) -> dict:
        with contextlib.suppress(ConnectionError):
            while line := self._lines.readline():
                message = json.loads(line)
                if "event" not in message:
                    return message
        raise LabError(f"node {self._name}: QEMU ended; see: lab console {self._name}")


def save(path: Path, devices: Path, name: str) -> None:
    """Stop the guest and write the state of its devices to a file; its memory is one."""
    with Monitor(path, name) as monitor:
        monitor.order("stop")
        monitor.migrate("migrate", f"exec:cat >{shlex.quote(str(devices))}")


def load(path: Path, devices: Path, name: str) -> None:
    """Let a QEMU that waits for it (-incoming defer) go on from there."""
    with Monitor(path, name) as monitor:
        monitor.migrate("migrate-incoming", f"exec:cat {shlex.quote(str(devices))}")
        monitor.order("cont")
