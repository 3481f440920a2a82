# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets of managed users outside their networks, from before UVN or unbound since, and the processes that hold them."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Any, Callable, Iterator

from . import accounts
from .netlink import HEADER, NLM_F_DUMP, Netlink, pack

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
PROTOCOLS = {"tcp": 6, "udp": 17, "udplite": 136, "raw": 255}
HAVE_AN_OWNER = 0xFFFFFFFF & ~(1 << 3 | 1 << 6)  # all states but SYN_RECV and TIME_WAIT, whose sockets nobody holds
REQUEST = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2: family, protocol, extensions, states, socket
MESSAGE = struct.Struct("=4xHxx32xI8xIIIII")  # struct inet_diag_msg: source port, device; expires, queues, UID, inode


def find(vrf_of: Callable[[int], int | None]) -> list[dict[str, Any]]:
    """Stray sockets as dictionaries of uid, user, protocol, port, pid and program (None where no process is found).

    `vrf_of` gives the interface index that a user's sockets are bound to, 0 for a user who has no network, None for who needs none.
    """
    found = []
    for protocol, port, device, uid, inode in _sockets():
        vrf = vrf_of(uid)
        if vrf is not None and (device != vrf or not vrf):
            found.append((inode, {"uid": uid, "user": accounts.name_of(uid), "protocol": protocol, "port": port}))
    holders = _holders({inode for inode, _stray in found}) if found else {}
    return [{**stray, **holders.get(inode, {"pid": None, "program": None})} for inode, stray in found]


def holders(protocol: str, port: int, uid: int) -> list[dict[str, Any]]:
    """Processes, as dictionaries of pid and program, that hold a user's socket with that local port."""
    inodes = {inode for kind, local, _device, owner, inode in _sockets() if (kind, local, owner) == (protocol, port, uid)}
    return list(_holders(inodes).values())


def _sockets() -> Iterator[tuple[str, int, int, int, int]]:
    """Protocol, port, bound device, UID and inode of every socket of this network namespace."""
    netlink = Netlink(NETLINK_SOCK_DIAG)
    for protocol, number in PROTOCOLS.items():
        for family in (socket.AF_INET, socket.AF_INET6):
            request = pack(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, REQUEST.pack(family, number, 0, HAVE_AN_OWNER), ())
            for message in netlink.dump(request):
                port, device, _expires, _received, _sent, uid, inode = MESSAGE.unpack_from(message.data, HEADER.size)
                yield protocol, socket.ntohs(port), device, uid, inode
    netlink.close()


def _holders(inodes: set[int]) -> dict[int, dict[str, Any]]:
    """A process that holds each of the sockets."""
    names = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, dict[str, Any]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended
            for entry in os.scandir(f"/proc/{pid}/fd"):
                inode = names.get(os.readlink(entry.path))
                if inode is not None:
                    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                        found[inode] = {"pid": int(pid), "program": printable(file.read().strip())}
    return found


def printable(name: str) -> str:
    """The name of a program, which a user may choose, as it can stand in a line of a log."""
    return "".join(character if character.isprintable() else "?" for character in name)
