# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd-resolved is told that users' devices are no links for LLMNR and mDNS (org.freedesktop.resolve1(5)).

It would ask on each of them, be refused by the guard, and report that as an error where the name is just unknown. It keeps what it was told
over a restart. Nobody waits for its answer: a resolved that is not there or does not answer holds up no login.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Iterable

BUS = "/run/dbus/system_bus_socket"
TIMEOUT = 1  # seconds to write to a bus that does not read
NAMESPACE = "/proc/{}/ns/net"
METHOD_CALL, NO_REPLY_EXPECTED, NO_AUTO_START = 1, 1, 2  # D-Bus Specification, "Message Format"
PATH, INTERFACE, MEMBER, DESTINATION, SIGNATURE = 1, 2, 3, 6, 8  # header fields
HELLO = ("/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello", "org.freedesktop.DBus")
RESOLVED = "/org/freedesktop/resolve1", "org.freedesktop.resolve1.Manager", "{}", "org.freedesktop.resolve1"
METHODS = ("SetLinkLLMNR", "SetLinkMulticastDNS")


class Resolved:
    """The connection to the system bus at `bus`, made when it is needed, and what was told over it."""

    def __init__(self, bus: str = BUS) -> None:
        self._bus = bus
        self._connection: socket.socket | None = None
        self._told: set[int] = set()
        self._serial = 0

    def silence(self, indices: Iterable[int]) -> None:
        """Switch LLMNR and mDNS off on devices, by interface index, where that was not done yet."""
        present = set(indices)
        new = sorted(present - self._told)
        self._told &= present
        if not new or not _namespace_of_resolved():
            return
        try:
            self._send(b"".join(self._call(method, index) for index in new for method in METHODS))
            self._told.update(new)
        except OSError:  # no bus, or another one since: again with the next change
            self._close()

    def _send(self, messages: bytes) -> None:
        if self._connection is None:
            self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._connection.settimeout(TIMEOUT)
            self._connection.connect(self._bus)
            user = str(os.geteuid()).encode().hex()
            messages = f"\0AUTH EXTERNAL {user}\r\nBEGIN\r\n".encode() + self._message(HELLO, 0) + messages
        self._connection.sendall(messages)

    def _close(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None
        self._told.clear()

    def _call(self, method: str, index: int) -> bytes:
        path, interface, member, destination = RESOLVED
        body = struct.pack("<iI", index, len("no")) + b"no\0"
        return self._message((path, interface, member.format(method), destination), NO_REPLY_EXPECTED | NO_AUTO_START, "is", body)

    def _message(self, target: tuple[str, ...], flags: int, signature: str = "", body: bytes = b"") -> bytes:
        """A method call: the fixed header, an array of header fields, each on a multiple of 8 bytes, the body."""
        self._serial += 1
        fields = b""
        for code, value in zip((PATH, INTERFACE, MEMBER, DESTINATION), target):
            kind = b"o" if code == PATH else b"s"
            fields = _aligned(fields) + struct.pack("<BB1sxI", code, 1, kind, len(value)) + value.encode() + b"\0"
        if signature:
            fields = _aligned(fields) + struct.pack("<BB1sxB", SIGNATURE, 1, b"g", len(signature)) + signature.encode() + b"\0"
        head = struct.pack("<cBBBII", b"l", METHOD_CALL, flags, 1, len(body), self._serial)
        return _aligned(head + struct.pack("<I", len(fields)) + fields) + body


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def _namespace_of_resolved() -> bool:
    """Whether the indices are those of the network namespace that resolved is in, that of process 1."""
    return os.stat(NAMESPACE.format("self")).st_ino == os.stat(NAMESPACE.format(1)).st_ino
