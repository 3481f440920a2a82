# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uvnd: serves requests one at a time and follows the node's NICs, addresses and routes.

It keeps nothing that the kernel does not know: killed at any moment, it reads everything back when it starts again.
"""

# pylint: disable=ansible-bad-function  # a program of the nodes, no Ansible module imports it

from __future__ import annotations

import functools
import json
import os
import select
import socket
import struct
import time
import traceback
from typing import Any, Callable

from . import accounts
from .client import SOCKET
from .diff import Change
from .errors import UvnError
from .identity import identify
from .kernel import socket_index
from .reconcile import Reconciler
from .site import PATH
from .store import RUN, Store

REQUEST_MAX = 4 * 2**20  # bytes
REQUEST_TIMEOUT = 5  # seconds for a client to send its line
SETTLE = 0.2  # seconds of quiet after a network event before the node is looked at
FIRST_SOCKET = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
# RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE (include/uapi/linux/rtnetlink.h)
EVENTS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400
RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR = 16, 17, 20, 21
NLMSG = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
IFINFO = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, changed flags
IFADDR = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
IFF_UP = 1


class Service:
    """The requests, as methods named after `op`. Each returns the reply without "ok" and raises UvnError."""

    def __init__(self, site_path: str = PATH) -> None:
        self._site_path = site_path
        self.store = Store()

    def handle(self, message: dict[str, Any]) -> dict[str, Any]:
        """One request, one reply; a failure is part of the reply."""
        operations: dict[str, Callable] = {
            "ensure": self.ensure,
            "remove": self.remove,
            "show": self.show,
            "status": self.status,
        }
        try:
            operation = operations.get(str(message.get("op")))
            if operation is None:
                raise UvnError(f"unknown operation {message.get('op')!r}; known are {', '.join(sorted(operations))}")
            return {"ok": True, **operation(message)}
        except UvnError as error:
            log(f"{message.get('op')} {_who(message)} refused: {error}", error=True)
            return {"ok": False, "error": str(error)}
        except Exception as error:  # a fault of ours must not take the daemon, and with it all logins, along
            log(f"{message.get('op')} {_who(message)} failed: {traceback.format_exc()}", error=True)
            return {"ok": False, "error": f"uvnd failed ({type(error).__name__}: {error}); see `journalctl -u uvnd`"}

    def ensure(self, message: dict[str, Any]) -> dict[str, Any]:
        """Make or mend the networks of users; `persistent` true or false also decides whether they stay."""
        return self._each(message, True)

    def remove(self, message: dict[str, Any]) -> dict[str, Any]:
        """Remove the networks of users, and with them the wish that they stay."""
        return self._each({**message, "persistent": False}, False)

    def show(self, message: dict[str, Any]) -> dict[str, Any]:
        """What exists of one user's network."""
        (uid,) = targets(message)
        with Reconciler.open(self._site_path) as reconciler:
            return {"network": self._network(reconciler, uid)}

    def status(self, _message: dict[str, Any]) -> dict[str, Any]:
        """All networks, and what differs from the plan for the node."""
        with Reconciler.open(self._site_path) as reconciler:
            persistent = self.store.persistent()
            networks = [_summary(reconciler, uid, uid in persistent) for uid in reconciler.uids()]
            drift = [str(change) for change in reconciler.node(check=True)]
            return {
                "networks": networks,
                "node": {"membership": reconciler.membership.attached(), "sockets": reconciler.membership.counters(), "drift": drift},
            }

    def follow(self) -> None:
        """Bring the node and every existing network, and those that are to stay, to the plan."""
        with Reconciler.open(self._site_path) as reconciler:
            _follow("node", reconciler.node)
            for uid in sorted({*reconciler.uids(), *self.store.persistent()}):
                _follow(_label(uid), functools.partial(reconciler.user, uid))

    def snapshot(self) -> Any:
        """What `follow` depends on, cheap to read and to compare."""
        with Reconciler.open(self._site_path) as reconciler:
            return reconciler.kernel.host(), tuple(reconciler.kernel.rules())

    def _each(self, message: dict[str, Any], present: bool) -> dict[str, Any]:
        check = bool(message.get("check", False))
        changes: list[dict[str, Any]] = []
        with Reconciler.open(self._site_path) as reconciler:
            uids = targets(message)
            for uid in uids:
                if present and not accounts.is_exempt(reconciler.site, uid):
                    identify(reconciler.site, uid)  # refuse the whole request before anything is touched
            host = reconciler.kernel.host()
            for uid in uids:
                changes += self._one(reconciler, host, uid, present, message.get("persistent"), check)
            networks = [self._network(reconciler, uid) for uid in uids] if present and len(uids) == 1 else []
        return {"changed": bool(changes), "changes": changes, "networks": networks}

    def _one(self, reconciler: Reconciler, host: Any, uid: int, present: bool, persistent: Any, check: bool) -> list:
        start = time.monotonic()
        changes = [change.as_dict() for change in reconciler.user(uid, present, check, host)]
        stays = bool(persistent) and not accounts.is_exempt(reconciler.site, uid)  # who has no network has none to keep
        if persistent is not None and (uid in self.store.persistent()) != stays:
            changes.append({"op": "create" if stays else "delete", "kind": "persistence", "name": f"UID {uid}"})
            if not check:
                self.store.set_persistent(uid, stays)
        if not check:
            outcome = f"{len(changes)} changes" if changes else "unchanged"
            action = "ensure" if present else "remove"
            log(f"{action} {_label(uid)}: {outcome} in {1000 * (time.monotonic() - start):.0f} ms")
        return changes

    def _network(self, reconciler: Reconciler, uid: int) -> dict[str, Any]:
        if accounts.is_exempt(reconciler.site, uid):
            return {"uid": uid, "user": accounts.name_of(uid), "exempt": True, "objects": []}
        who = identify(reconciler.site, uid)
        return {
            **_summary(reconciler, uid, uid in self.store.persistent()),
            "vni": who.vni,
            "table": who.table,
            "nat": [str(who.nat4), str(who.nat6)],
            "objects": [obj.as_dict() for obj in reconciler.describe(uid)],
        }


def targets(message: dict[str, Any]) -> list[int]:
    """The UIDs a request names by `user`, `uid`, `users` or `uids`. Raises UvnError for an unknown user."""
    users, uids = _values(message, "user"), _values(message, "uid")
    for uid in uids:
        if not isinstance(uid, int) or isinstance(uid, bool):
            raise UvnError(f"{uid!r} is not a UID; give a number")
    for user in users:
        if not isinstance(user, str):
            raise UvnError(f"{user!r} is not an account name; give a string")
    if not users and not uids:
        raise UvnError("the request names nobody; give user, uid, users or uids")
    return list(dict.fromkeys([*(accounts.uid_of(user) for user in users), *uids]))


def _values(message: dict[str, Any], key: str) -> list[Any]:
    """The value of `key` and the list `keys`, together."""
    several = message.get(f"{key}s", [])
    if not isinstance(several, list):
        raise UvnError(f"{key}s is {several!r}; give a list")
    return [*several, *([message[key]] if key in message else [])]


def main(site_path: str = PATH) -> int:
    """Run until stopped: on the socket systemd hands over, or on one of our own."""
    service = Service(site_path)
    listener = _listener()
    events = _events()
    _attempt(service.follow)
    seen = _attempt(service.snapshot)
    nics = _indices(seen)
    dirty: float | None = None
    touched = False
    while True:
        wait = None if dirty is None else max(0.0, dirty - time.monotonic())
        readable, _writable, _failed = select.select([listener, events], [], [], wait)
        if events in readable:
            touched |= _drain(events, nics)
            dirty = time.monotonic() + SETTLE
        if listener in readable:
            _serve(service, listener)
        if dirty is not None and time.monotonic() >= dirty:
            if touched or _attempt(service.snapshot) != seen:
                _attempt(service.follow)
                seen = _attempt(service.snapshot)
                nics = _indices(seen)
            dirty, touched = None, False


def log(text: str, error: bool = False) -> None:
    """One line for the journal; the prefix is its priority (sd-daemon(3))."""
    line = text.replace("\n", " | ").encode("utf-8", "backslashreplace").decode()
    print(f"<{3 if error else 6}>{line}", flush=True)


def _serve(service: Service, listener: socket.socket) -> None:
    """One connection; a client that is slow, broken or gone costs at most REQUEST_TIMEOUT."""
    connection, _address = listener.accept()
    with connection:
        connection.settimeout(REQUEST_TIMEOUT)
        try:
            message = json.loads(_line(connection))
            if not isinstance(message, dict):
                raise ValueError("not a JSON object")
            connection.sendall(json.dumps(service.handle(message)).encode() + b"\n")
        except (OSError, ValueError) as error:
            log(f"request dropped: {error}", error=True)


def _line(connection: socket.socket) -> bytes:
    data = b""
    deadline = time.monotonic() + REQUEST_TIMEOUT
    while not data.endswith(b"\n"):
        part = connection.recv(65536)
        data += part
        if not part or len(data) > REQUEST_MAX or time.monotonic() > deadline:
            raise ValueError(f"no line of at most {REQUEST_MAX} bytes within {REQUEST_TIMEOUT} s")
    return data


def _listener() -> socket.socket:
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        return socket.socket(fileno=FIRST_SOCKET)
    os.makedirs(RUN, mode=0o755, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.path.exists(SOCKET):
        os.unlink(SOCKET)
    os.umask(0o177)
    listener.bind(SOCKET)
    os.umask(0o022)
    listener.listen(1024)
    return listener


def _events() -> socket.socket:
    """Notifications of links, addresses, routes and rules."""
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    events.bind((0, EVENTS))
    return events


def _drain(events: socket.socket, nics: set[int]) -> bool:
    """Read all events; whether one may have taken users' routes along although the node looks as before.

    The kernel drops routes of every table, without a word, when a NIC loses its last address or goes down.
    """
    touched = False
    while True:
        try:
            touched |= concerns(events.recv(65536), nics)
        except BlockingIOError:
            return touched
        except OSError:  # ENOBUFS: some were lost
            touched = True


def concerns(data: bytes, nics: set[int]) -> bool:
    """Whether rtnetlink messages tell of an address of one of the NICs (interface indices), of its up or down, or of its end."""
    offset = 0
    while offset + NLMSG.size <= len(data):
        length, kind, *_rest = NLMSG.unpack_from(data, offset)
        body = offset + NLMSG.size
        if kind in (RTM_NEWADDR, RTM_DELADDR) and IFADDR.unpack_from(data, body)[4] in nics:
            return True
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            _family, _type, index, _flags, changed = IFINFO.unpack_from(data, body)
            if index in nics and (kind == RTM_DELLINK or changed & IFF_UP):
                return True
        offset += max(NLMSG.size, (length + 3) & ~3)
    return False


def _indices(snapshot: Any) -> set[int]:
    """Interface indices of the NICs of a snapshot."""
    nics = snapshot[0].nics if snapshot else ()
    return {index for index in (socket_index(nic.name) for nic in nics) if index is not None}


def _attempt(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except UvnError as error:
        log(f"{action.__name__} failed: {error}", error=True)
    except Exception:
        log(f"{action.__name__} failed: {traceback.format_exc()}", error=True)
    return None


def _follow(what: str, mend: Callable[[], list[Change]]) -> None:
    """Mend one thing; what cannot be mended is logged and does not keep the others from it."""
    try:
        changes = mend()
    except UvnError as error:
        log(f"follow {what} failed: {error}", error=True)
        return
    if changes:
        log(f"follow {what}: {len(changes)} changes: {'; '.join(map(str, changes[:10]))}")


def _summary(reconciler: Reconciler, uid: int, persistent: bool) -> dict[str, Any]:
    who = identify(reconciler.site, uid)
    return {"uid": uid, "user": accounts.name_of(uid), "vrf": who.vrf, "persistent": persistent}


def _label(uid: int) -> str:
    return f"{accounts.name_of(uid) or '(no account)'} uid={uid}"


def _who(message: dict[str, Any]) -> str:
    return " ".join(f"{key}={message[key]}" for key in ("user", "uid", "users", "uids") if key in message)
