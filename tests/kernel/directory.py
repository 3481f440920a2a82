# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A directory service that can be slow or silent: Hesiod, whose NSS module comes with the C library, and which asks a DNS server, here ours.

glibc then takes the same ways as with any other directory: UNAVAIL when nobody answers, and getgrouplist() that does not tell.
"""

from __future__ import annotations

import contextlib
import pathlib
import select
import socket
import struct
import subprocess
import threading
from typing import Iterator

from pyroute2 import netns

CONFIGURATION = {
    "/etc/nsswitch.conf": "passwd: files hesiod\ngroup: files hesiod\nhosts: files\n",
    "/etc/hesiod.conf": "lhs=.ns\nrhs=.lab\nclasses=IN\n",
    "/etc/resolv.conf": "nameserver 127.0.0.1\noptions timeout:30 attempts:4\n",
}
HEADER = struct.Struct(">6H")
TXT, INTERNET, ANSWER, NO_SUCH_NAME = 16, 1, 0x8480, 3
POINTER = 0xC000 | HEADER.size  # to the name in the question


class Directory:
    """Accounts and groups by name, for the processes of some network namespaces; None is that of this process.

    `users` has (UID, GID), `groups` (GID, names of the members that it lists), `memberships` the GIDs of a user. A look-up whose key is in `held`
    ("slow1.grplist") gets its answer when it is not any more; `asked` has the keys of all.
    """

    def __init__(self, *namespaces: str | None) -> None:
        self.users: dict[str, tuple[int, int]] = {}
        self.groups: dict[str, tuple[int, tuple[str, ...]]] = {}
        self.memberships: dict[str, tuple[int, ...]] = {}
        self.held: set[str] = set()
        self.asked: list[str] = []
        self._namespaces = namespaces

    def waiting(self) -> set[str]:
        """Keys of look-ups that have no answer yet."""
        return self.held & set(self.asked)

    @contextlib.contextmanager
    def configured(self, path: pathlib.Path) -> Iterator[None]:
        """The node's C library asks this directory after its own files."""
        with contextlib.ExitStack() as stack:
            for name, text in CONFIGURATION.items():
                file = path / pathlib.Path(name).name
                file.write_text(text)
                pathlib.Path(name).touch()
                subprocess.run(["mount", "--bind", file, name], check=True)
                stack.callback(subprocess.run, ["umount", name], check=True)
            yield

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Only within this `with` there is anybody who answers."""
        ready, ended = threading.Barrier(len(self._namespaces) + 1), threading.Event()
        threads = [threading.Thread(target=self._serve, args=(namespace, ready, ended)) for namespace in self._namespaces]
        for thread in threads:
            thread.start()
        ready.wait(60)
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()

    def _serve(self, namespace: str | None, ready: threading.Barrier, ended: threading.Event) -> None:
        if namespace:
            netns.setns(namespace)  # of this thread only
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", 53))
            ready.wait(60)
            queries: list[tuple[bytes, tuple]] = []
            while not ended.is_set():
                if select.select([server], [], [], 0.05)[0]:
                    arrived = server.recvfrom(512)
                    if arrived not in queries:  # else it is the resolver's second try
                        queries.append(arrived)
                        self.asked.append(_key(arrived[0]))
                for query, client in [*queries]:
                    if _key(query) not in self.held:
                        queries.remove((query, client))
                        server.sendto(_reply(query, self._look_up(*_key(query).rsplit(".", 1))), client)

    def _look_up(self, key: str, kind: str) -> str | None:
        if kind == "grplist":
            return ":".join(f"{gid}:{gid}" for gid in self.memberships.get(key, ())) or None
        if kind == "group":
            return f"{key}:*:{self.groups[key][0]}:{','.join(self.groups[key][1])}" if key in self.groups else None
        name = key if kind == "passwd" else next((name for name, (uid, _gid) in self.users.items() if str(uid) == key), "")
        return "{}:*:{}:{}::/:/bin/sh".format(name, *self.users[name]) if name in self.users and kind in ("passwd", "uid") else None


def _key(query: bytes) -> str:
    """What a query asks for, such as alice.passwd of alice.passwd.ns.lab."""
    labels, position = [], HEADER.size
    while query[position]:
        labels.append(query[position + 1 : position + 1 + query[position]].decode())
        position += 1 + query[position]
    return ".".join(labels[:-2])


def _reply(query: bytes, text: str | None) -> bytes:
    number, flags = HEADER.unpack_from(query)[:2]
    question = query[HEADER.size : query.index(b"\0", HEADER.size) + 5]
    if text is None:
        return HEADER.pack(number, ANSWER | NO_SUCH_NAME, 1, 0, 0, 0) + question
    record = struct.pack(">3HIHB", POINTER, TXT, INTERNET, 0, len(text) + 1, len(text)) + text.encode()
    return HEADER.pack(number, ANSWER, 1, 1, 0, 0) + question + record
