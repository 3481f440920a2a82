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
from typing import Callable

TCP, UDP, UDPLITE, SCTP, MPTCP, SMC, VSOCK, EAVESDROP = 5601, 5602, 5603, 5604, 5605, 5606, 5607, 5699
GROUP = socket.inet_aton("239.9.9.9")
PASS = "/tmp/uvn-escape.sock"
V4, V6, DGRAM = socket.AF_INET, socket.AF_INET6, socket.SOCK_DGRAM
LOCAL = {V4: "127.0.0.1", V6: "::1"}
# by the attack that disturbs it: attacker.py has the ports
ERRORS = {
    "errors of another's datagrams": (V4, 5610),
    "errors of another's datagrams, IPv6": (V6, 5611),
    "errors of another's datagrams, 32-bit call": (V4, 5612),
    "errors kept from a client": (V4, 5613),
}
TALKS = {
    "a deaf listener": (V4, 5620),
    "a deaf listener, IPv6": (V6, 5621),
    "a deaf listener, unbound with its peer": (V4, 5622),
    "a deaf client": (V4, 5623),
}
PORTS = {
    "a taken TCP port": (V6, socket.SOCK_STREAM, 5660, 1),
    "a taken UDP port": (V6, DGRAM, 5661, 1),
    "many taken UDP ports": (V4, DGRAM, 5662, 200),
}
DOWN = 9  # nobody listens there
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


def connected(family: int, port: int, peer: int) -> socket.socket:
    """A client on localhost."""
    sock = datagrams(family, port)
    sock.settimeout(0.5)
    sock.connect((LOCAL[family], peer))
    return sock


def is_told(client: socket.socket) -> bool:
    """Whether a client of a server that is down learns of it."""
    try:
        client.send(b"secret of bob")
        client.recv(9)
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False


def is_heard(listener: socket.socket, client: socket.socket) -> bool:
    """Whether a question and its answer arrive."""
    try:
        client.send(b"question")
        listener.sendto(b"answer", listener.recvfrom(9)[1])
        return client.recv(9) == b"answer"
    except OSError:
        return False


def is_free(family: int, kind: int, first: int, count: int) -> bool:
    """Whether ports can be bound to."""
    for port in range(first, first + count):
        with socket.socket(family, kind) as sock:
            try:
                sock.bind(("", port))
            except OSError:
                return False
    return True


def watch() -> Callable[[], None]:
    """What bob does besides; the program to call now and then tells what is amiss by the attack's token."""
    clients = {name: connected(family, port, DOWN) for name, (family, port) in ERRORS.items()}
    talks = {}
    for name, (family, port) in TALKS.items():
        listener = datagrams(family, port)
        listener.settimeout(0.5)
        talks[name] = (listener, connected(family, port + 20, port))

    def look() -> None:
        amiss = [name for name, client in clients.items() if not is_told(client)]
        amiss += [name for name, pair in talks.items() if not is_heard(*pair)]
        amiss += [name for name, ports in PORTS.items() if not is_free(*ports)]
        for name in amiss:
            tell(f"token {name}")

    return look


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
    look = watch()
    look()  # undisturbed, it tells nothing
    tell(f"open {' '.join(listeners.values())}")
    while True:
        ready, _writable, _failed = select.select([sys.stdin, *listeners], [], [], 0.5)
        if sys.stdin in ready:
            return
        for sock in ready:
            with contextlib.suppress(OSError):
                serve(listeners[sock], sock, passed)
        talking.sendto(b"secret of bob", ("127.0.0.1", EAVESDROP))
        look()


main()
