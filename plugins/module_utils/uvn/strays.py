# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets of managed users outside their networks, from before UVN or unbound since, and the processes that hold them.

Users decide how many sockets, processes and descriptors there are: every look is bounded, or lets logins in between.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import socket
import struct
from typing import Any, Callable, Iterable, Iterator

from . import accounts
from .netlink import HEADER, NLM_F_DUMP, Netlink, pack

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
PROTOCOLS = {"tcp": 6, "udp": 17, "udplite": 136, "raw": 255}
HAVE_AN_OWNER = 0xFFFFFFFF & ~(1 << 3 | 1 << 6)  # all states but SYN_RECV and TIME_WAIT, whose sockets nobody holds
AT_ONCE = 1000  # sockets that are looked at before a login that waits is served
SOCKETS = 100_000  # sockets that a look for one holder reads at most
ENTRIES = 50_000  # descriptors that one look reads at most; the users it is about share them evenly, so that nobody hides another
LISTED = 100  # stray sockets that are listed of one user
REQUEST = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2: family, protocol, extensions, states, socket
MESSAGE = struct.Struct("=4xHxx32xI8xIIIII")  # struct inet_diag_msg: source port, device; expires, queues, UID, inode


def find(vrf_of: Callable[[int], int | None], breathe: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Stray sockets, up to LISTED of a user, as dictionaries of uid, user, protocol, port, pid and program (None where no process is found).

    `vrf_of` gives the interface index that a user's sockets are bound to, 0 for a user who has no network, None for who needs none;
    `breathe` is called now and then.
    """
    known_vrf, name_of = functools.lru_cache(maxsize=None)(vrf_of), functools.lru_cache(maxsize=None)(accounts.name_of)
    found: dict[int, list[tuple[int, dict[str, Any]]]] = {}
    for number, (protocol, port, device, uid, inode) in enumerate(_sockets(PROTOCOLS)):
        if number % AT_ONCE == 0:
            breathe()
            known_vrf.cache_clear()  # a network may have been made meanwhile
        vrf = known_vrf(uid)
        if vrf is not None and (device != vrf or not vrf) and len(found.setdefault(uid, [])) < LISTED:
            found[uid].append((inode, {"uid": uid, "user": name_of(uid), "protocol": protocol, "port": port}))
    holders = _holders({uid: {inode for inode, _stray in strays} for uid, strays in found.items()}, breathe) if found else {}
    nobody = {"pid": None, "program": None}
    return [{**stray, **holders.get(inode, nobody)} for strays in found.values() for inode, stray in strays]


def holder(protocol: str, port: int, uid: int) -> dict[str, Any] | None:
    """A process of a user, as a dictionary of pid and program, that holds a socket of that local port; None where it is not found at once."""
    seen = itertools.islice(_sockets([protocol]), SOCKETS)
    inodes = {inode for _protocol, local, _device, owner, inode in seen if (local, owner) == (port, uid)}
    return next(iter(_holders({uid: inodes}).values()), None) if inodes else None


def _sockets(protocols: Iterable[str]) -> Iterator[tuple[str, int, int, int, int]]:
    """Protocol, port, bound device, UID and inode of every socket of this network namespace."""
    with contextlib.closing(Netlink(NETLINK_SOCK_DIAG)) as netlink:
        for protocol in protocols:
            for family in (socket.AF_INET, socket.AF_INET6):
                request = pack(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, REQUEST.pack(family, PROTOCOLS[protocol], 0, HAVE_AN_OWNER), ())
                for message in netlink.each(request):
                    port, device, _expires, _received, _sent, uid, inode = MESSAGE.unpack_from(message.data, HEADER.size)
                    yield protocol, socket.ntohs(port), device, uid, inode


def _holders(wanted: dict[int, set[int]], breathe: Callable[[], None] = lambda: None) -> dict[int, dict[str, Any]]:
    """By inode, a process that holds each of the sockets, which `wanted` has by their owner's UID; among that user's processes."""
    missing = {uid: {f"socket:[{inode}]": inode for inode in inodes} for uid, inodes in wanted.items()}
    left = dict.fromkeys(wanted, ENTRIES // len(wanted))
    found: dict[int, dict[str, Any]] = {}
    for pid, uid in accounts.processes(breathe):
        for target in _descriptors(pid, left[uid]) if missing.get(uid) else ():
            left[uid] -= 1
            inode = missing[uid].pop(target, None)
            if inode is not None:
                found[inode] = {"pid": pid, "program": _program(pid)}
            if not missing[uid]:
                break
        if not any(left[uid] and missing[uid] for uid in wanted):
            break
    return found


def _descriptors(pid: int, most: int) -> Iterator[str]:
    """What the first descriptors of a process point to; nothing more once it has ended."""
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in itertools.islice(entries, most):
            yield os.readlink(entry.path)


def _program(pid: int) -> str | None:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return printable(file.read().strip())
    return None


def printable(name: str) -> str:
    """The name of a program, which a user may choose, as it can stand in a line of a log."""
    return "".join(character if character.isprintable() else "?" for character in name)
