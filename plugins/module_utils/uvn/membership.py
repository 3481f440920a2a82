# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Membership: which UID's sockets the kernel binds to which VRF, or refuses.

A BPF program on the root cgroup decides at every socket(), others keep the socket there (bpf/membership.bpf.c, bpf/sockets.bpf.c).
Their links and maps are pinned, so they outlive the process that made them; every method asks the kernel anew (bpf.py).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import bpf
from .errors import UvnError

OBJECT_PATH = f"{bpf.OBJECT_DIR}/membership.bpf.o"

_PROGRAMS = ("membership", "receive", "stay_option", "stay_bind4", "stay_bind6", "stay_conn4", "stay_conn6")
LINKS = {f"uvn_{name}": f"link_{name}" for name in _PROGRAMS}  # the programs and the pins of their links
MAPS = ("uvn_uid", "uvn_config", "uvn_counters", "uvn_strays", "uvn_heard", "uvn_socket", "uvn_moves")
COUNTERS = ("bound", "exempt", "refused", "audited")  # enum counter
STRAYS = ("refused", "audited")  # enum stray
MOVES = ("refused", "audited")  # enum move
MAX_ENTRIES = 65536  # of uvn_uid
EXEMPT = 0  # in place of an ifindex

_MAX_UID = 2**32 - 1
_SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, Linux 5.14
_IFINDEX = struct.Struct("=I")
_CONFIG = struct.Struct("=QII")  # struct config: netns_cookie, min_uid, mode


@dataclass(frozen=True)
class Config:
    """What the program decides by.

    Parameters
    ----------
    netns_cookie: the one network namespace that is managed; sockets of all others are left alone.
    min_uid: smallest managed UID; those below it, and always root, are left alone.
    enforce: refuse (EPERM) a managed UID without an entry and what would take a socket out of its network, drop what a socket gets from
        another network than its own; False only counts.
    """

    netns_cookie: int
    min_uid: int
    enforce: bool


def prefixes(first: int, last: int) -> list[tuple[int, int]]:
    """Return the shortest list of (UID, prefix length) that covers the UIDs `first` to `last`, in order."""
    if not 0 <= first <= last <= _MAX_UID:
        raise UvnError(f"the UID range {first}-{last} is not one; give two numbers from 0 to {_MAX_UID}, smaller first")
    blocks = []
    while first <= last:
        aligned = (first & -first).bit_length() - 1 if first else 32
        bits = min(aligned, (last - first + 1).bit_length() - 1)
        blocks.append((first, 32 - bits))
        first += 1 << bits
    return blocks


class Membership:
    """The membership programs of this node.

    Parameters
    ----------
    pin_dir: directory of the pins, made by `load`; its parent must be on a BPF file system.
    cgroup: cgroup2 directory whose processes are managed; None is the root of the cgroup2 hierarchy.
    object_path: the compiled program.

    Every method raises UvnError when the kernel or libbpf refuses; load, attach, detach and delete return whether they
    changed something.
    First use of a node: `load`, then `set` what must not be refused, then `attach`.
    """

    def __init__(self, pin_dir: str = bpf.PIN_DIR, cgroup: str | None = None, object_path: str = OBJECT_PATH) -> None:
        self.pin_dir = pin_dir
        self.object_path = object_path
        self._cgroup = cgroup
        self._links = {program: bpf.Link(self._path(link)) for program, link in LINKS.items()}
        self._uid = bpf.Map(self._path("uvn_uid"), 8, _IFINDEX.size)
        self._config = bpf.Map(self._path("uvn_config"), 4, _CONFIG.size)

    @property
    def cgroup(self) -> str:
        """The cgroup2 directory; UvnError if it was to be found and none is mounted."""
        return self._cgroup or bpf.cgroup2_mount()

    # the programs

    def load(self, config: Config) -> bool:
        """Write `config`; make what maps are missing; replace attached programs that are not the object's.

        The replacement is one atomic step for every socket(): the old program or the new one, never none, never both.
        """
        with self._loaded() as program:
            changed = self._write_config(config)
            for name, link in self._links.items():
                changed = link.update(program(name)) or changed
            return changed

    def current(self) -> bool:
        """Whether the attached programs are those of the object file, on the pinned maps. Changes nothing."""
        if not self.attached() or not all(os.path.exists(self._path(name)) for name in MAPS):
            return False
        with self._loaded() as program:
            return all(link.runs(program(name)) for name, link in self._links.items())

    def attach(self) -> bool:
        """Attach the programs to the cgroup; from here on UIDs without an entry are refused. `load` comes first."""
        missing = [name for name in self._links if not self._attached(name)]
        if missing and self.config() is None:
            raise UvnError(f"membership has no configuration in {self.pin_dir}; load it before it is attached")
        if missing:
            with self._loaded() as program:
                for name in missing:  # in place of a link whose cgroup is gone, or of another one
                    self._links[name].attach_cgroup(program(name), self.cgroup)
        return bool(missing)

    def attached(self) -> bool:
        """Whether the pinned links are attached to the cgroup."""
        return all(map(self._attached, self._links))

    def _attached(self, name: str) -> bool:
        target = self._links[name].target()
        return target is not None and target == bpf.cgroup_id(self.cgroup)

    def detach(self) -> bool:
        """Detach the programs and remove links, maps and directory; sockets already bound stay so."""
        changed = [*(link.detach() for link in self._links.values()), *(bpf.unpin(self._path(name)) for name in MAPS)]
        with contextlib.suppress(OSError):  # not there, or it holds pins that are not ours
            os.rmdir(self.pin_dir)
        return any(changed)

    # the maps

    def config(self) -> Config | None:
        """The configuration in the kernel, None if there is none."""
        value = self._config.get(bytes(4))
        netns_cookie, min_uid, mode = _CONFIG.unpack(value or bytes(_CONFIG.size))
        return Config(netns_cookie, min_uid, bool(mode)) if netns_cookie else None

    def entries(self) -> dict[tuple[int, int], int]:
        """All entries: (UID, prefix length) to ifindex; EXEMPT (0) where sockets are not bound."""
        return {_parse_key(key): _IFINDEX.unpack(value)[0] for key, value in self._uid.items().items()}

    def get(self, uid: int) -> int | None:
        """The ifindex that sockets of `uid` are bound to, by its longest prefix; EXEMPT (0); None without an entry."""
        value = self._uid.get(_key(uid, 32))
        return None if value is None else _IFINDEX.unpack(value)[0]

    def set(self, uid: int, ifindex: int, prefixlen: int = 32) -> None:
        """Bind new sockets of `uid`, or of the aligned block `uid`/`prefixlen`, to `ifindex`; EXEMPT (0): to nothing.

        Repeat it when the device is made anew. Sockets that exist keep what they have.
        """
        try:
            self._uid.set(_key(uid, prefixlen), _IFINDEX.pack(ifindex))
        except bpf.Full:
            raise UvnError(
                f"no room for UID {uid}: the map uvn_uid is full with {MAX_ENTRIES} entries; "
                "merge exempt UIDs into aligned ranges or remove the networks of users who have left"
            ) from None

    def delete(self, uid: int, prefixlen: int = 32) -> bool:
        """Remove the entry; no entry is no error. Do it before the VRF goes: its ifindex may be given away again."""
        return self._uid.delete(_key(uid, prefixlen))

    def counters(self) -> dict[str, int]:
        """socket() calls of managed UIDs since the maps were made: bound, exempt, refused, audited (let pass)."""
        return self._count("uvn_counters", COUNTERS)

    def strays(self) -> dict[str, int]:
        """Packets from other networks for sockets that were unbound from their own: refused, audited (let pass)."""
        return self._count("uvn_strays", STRAYS)

    def heard(self) -> dict[str, int]:
        """Packets that users' networks say to everybody, for sockets that are no user's: refused, audited (let pass)."""
        return self._count("uvn_heard", STRAYS)

    def moves(self) -> dict[str, int]:
        """Calls that would have taken a socket out of the network it was made for: refused, audited (let pass)."""
        return self._count("uvn_moves", MOVES)

    def _count(self, name: str, counters: Sequence[str]) -> dict[str, int]:
        values = bpf.Map(self._path(name), 4, 8 * bpf.cpus())
        found = [values.get(struct.pack("=I", number)) or b"" for number in range(len(counters))]
        return {counter: sum(struct.unpack(f"={len(value) // 8}Q", value)) for counter, value in zip(counters, found)}

    @staticmethod
    def netns_cookie() -> int:
        """The cookie of this process's network namespace (SO_NETNS_COOKIE, Linux 5.14)."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                return struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0]
        except OSError as e:
            raise UvnError(
                f"cannot read the cookie of the network namespace: {e.strerror}; use Linux 5.14 or newer"
            ) from e

    def _path(self, name: str) -> str:
        return os.path.join(self.pin_dir, name)

    def _loaded(self) -> contextlib.AbstractContextManager[Callable[[str], int]]:
        return bpf.loaded(self.object_path, self.pin_dir, MAPS)

    def _write_config(self, config: Config) -> bool:
        if self.config() == config:
            return False
        self._config.set(bytes(4), _CONFIG.pack(config.netns_cookie, config.min_uid, config.enforce))
        return True


def _key(uid: int, prefixlen: int) -> bytes:
    """struct uid_prefix"""
    if not (0 <= uid <= _MAX_UID and 0 <= prefixlen <= 32 and uid % (1 << (32 - prefixlen)) == 0):
        raise UvnError(f"{uid}/{prefixlen} is no block of UIDs; split the range with prefixes()")
    return struct.pack("=I", prefixlen) + struct.pack(">I", uid)


def _parse_key(key: bytes) -> tuple[int, int]:
    return struct.unpack_from(">I", key, 4)[0], struct.unpack_from("=I", key)[0]
