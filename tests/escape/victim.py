# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the victim has open. Answers `secret`; prints what it gets, one JSON string a line, until standard input ends.

Standard library only, Python >= 3.9; ports are those of attacker.py.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import json
import os
import select
import socket
import struct
import sys

TCP, UDP, UDPLITE, SCTP, MPTCP, SMC, VSOCK, EAVESDROP = 5601, 5602, 5603, 5604, 5605, 5606, 5607, 5699
GROUP = socket.inet_aton("239.9.9.9")
PASS = "/tmp/uvn-escape.sock"
libc = ctypes.CDLL(None, use_errno=True)


def stream(family: int, address, protocol: int = 0) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    if family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(address)
    sock.listen()
    return sock


def datagrams(family: int, port: int, protocol: int = 0) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM, protocol)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("", port))
    return sock


def multicast() -> socket.socket:
    sock = datagrams(socket.AF_INET, UDP)
    for _index, device in socket.if_nameindex():
        if device == "em1u2002":
            about = struct.pack("=4s4xi", GROUP, socket.if_nametoindex(device))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, about)
    return sock


def smc() -> socket.socket:
    descriptor = libc.socket(43, socket.SOCK_STREAM, 0)
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H12x", SMC)
    if descriptor < 0 or libc.bind(descriptor, address, len(address)) or libc.listen(descriptor, 5):
        raise OSError(ctypes.get_errno(), "AF_SMC")
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)


def passing() -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(PASS)
    sock = stream(socket.AF_UNIX, PASS)
    os.chmod(PASS, 0o777)
    return sock


LISTENERS = {
    "tcp": lambda: stream(socket.AF_INET, ("", TCP)),
    "tcp6": lambda: stream(socket.AF_INET6, ("", TCP)),
    "udp": multicast,
    "udp6": lambda: datagrams(socket.AF_INET6, UDP),
    "udplite": lambda: datagrams(socket.AF_INET, UDPLITE, 136),
    "sctp": lambda: stream(socket.AF_INET, ("", SCTP), socket.IPPROTO_SCTP),
    "mptcp": lambda: stream(socket.AF_INET, ("", MPTCP), 262),
    "smc": smc,
    "vsock": lambda: stream(socket.AF_VSOCK, (socket.VMADDR_CID_ANY, VSOCK)),
    "unix": lambda: stream(socket.AF_UNIX, "\0uvn-escape"),
    "pass": passing,
}


def tell(text: str) -> None:
    print(json.dumps(text), flush=True)


def serve(name: str, sock: socket.socket, passed: socket.socket) -> None:
    if sock.type != socket.SOCK_STREAM:
        data, peer = sock.recvfrom(2000)
        tell(data.decode(errors="replace"))
        with contextlib.suppress(OSError):
            sock.sendto(b"secret", peer)
        return
    connection, _peer = sock.accept()
    with connection:
        connection.settimeout(2)
        if name == "pass":
            connection.sendmsg([b"yours"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [passed.fileno()]))])
            return
        tell(connection.recv(2000).decode(errors="replace"))
        connection.sendall(b"secret")


def main() -> None:
    listeners = {}
    for name, make in LISTENERS.items():
        with contextlib.suppress(OSError):  # the kernel has no such protocol, or it is switched off
            listeners[make()] = name
    passed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    passed.settimeout(2)
    talking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    tell(f"open {' '.join(listeners.values())}")
    while True:
        ready, _writable, _failed = select.select([sys.stdin, *listeners], [], [], 0.5)
        if sys.stdin in ready:
            return
        for sock in ready:
            with contextlib.suppress(OSError):
                serve(listeners[sock], sock, passed)
        talking.sendto(b"secret of bob", ("127.0.0.1", EAVESDROP))


main()
