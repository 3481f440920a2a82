# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd-resolved is told over the system bus; tests/isolation asks the real one."""

from __future__ import annotations

import socket
import struct

import pytest
from uvn import resolved


@pytest.fixture
def bus(tmp_path, monkeypatch):
    """A socket in the place of the system bus, and resolved in the namespace of the test."""
    monkeypatch.setattr(resolved, "NAMESPACE", "/proc/self/ns/net")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "bus"))
        listener.listen()
        listener.settimeout(10)
        yield listener


def calls(stream):
    """Member, flags and body of the messages in a stream, read by the lengths in them (D-Bus Specification, "Message Format")."""
    found = []
    while stream:
        order, kind, flags, version, body, serial, fields = struct.unpack_from("<cBBBIII", stream)
        assert (order, kind, version, serial) == (b"l", 1, 1, serial or 1)
        start = 16 + -(-fields // 8) * 8
        member = stream.index(b"\3\1s\0", 16, start) + 4
        (length,) = struct.unpack_from("<I", stream, member)
        found.append((stream[member + 4 : member + 4 + length].decode(), flags, stream[start : start + body]))
        stream = stream[start + body :]
    return found


def told(index):
    body = struct.pack("<iI", index, 2) + b"no\0"
    return [("SetLinkLLMNR", 3, body), ("SetLinkMulticastDNS", 3, body)]  # neither to be answered nor to start resolved


def test_each_device_is_silenced_once(bus, tmp_path):
    names = resolved.Resolved(str(tmp_path / "bus"))
    names.silence([8, 9])
    with bus.accept()[0] as connection:
        authentication, _end, messages = connection.recv(9999).partition(b"BEGIN\r\n")
        assert authentication.startswith(b"\0AUTH EXTERNAL ")
        assert calls(messages) == [("Hello", 0, b""), *told(8), *told(9)]
        names.silence([8, 9])
        names.silence([9, 10])
        assert calls(connection.recv(9999)) == told(10)
        names.silence([8, 9, 10])
        assert calls(connection.recv(9999)) == told(8), "another device by the number of one that went"


def test_a_bus_that_was_restarted_is_told_everything(bus, tmp_path):
    names = resolved.Resolved(str(tmp_path / "bus"))
    names.silence([8])
    bus.accept()[0].close()
    names.silence([8, 9])  # finds nobody
    names.silence([8, 9])
    with bus.accept()[0] as connection:
        assert calls(connection.recv(9999).partition(b"BEGIN\r\n")[2])[1:] == [*told(8), *told(9)]


def test_without_a_bus_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.setattr(resolved, "NAMESPACE", "/proc/self/ns/net")
    resolved.Resolved(str(tmp_path / "none")).silence([8])


def test_devices_of_another_namespace_are_not_resolveds(bus, tmp_path, monkeypatch):
    monkeypatch.setattr(resolved, "_namespace_of_resolved", lambda: False)
    resolved.Resolved(str(tmp_path / "bus")).silence([8])
    bus.settimeout(0)
    with pytest.raises(BlockingIOError):
        bus.accept()
