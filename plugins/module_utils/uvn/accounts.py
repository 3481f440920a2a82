# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accounts of the node: what the directory (NSS) says of them, and who runs processes.

A directory may be slow or silent, and silence does not say that there is no such account. So uvnd never waits for it: who sends a request brings
along what the directory says of its accounts, a thread asks about everybody else (`Inquiry`), and until there is an answer the last one holds.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .errors import UvnError
from .site import Site

AT_ONCE = 500  # processes that are looked at before a login that waits is served
HARMLESS = (0, errno.ENOENT, errno.ESRCH, errno.ERANGE)  # what getgrouplist(3) may leave of a service that did answer
PASSWD = "/etc/passwd"
NGROUPS_MAX = 65536
RECORD_MIN, RECORD_MAX = 2**14, 2**26  # bytes, of an account, of a group with all its members

_names: dict[int, str] = {}  # as last heard


class Silent(UvnError):
    """The directory does not answer."""


@dataclass(frozen=True)
class Entry:
    """An account as the directory has it."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Group:
    """A group as the directory has it; many a directory does not list the members."""

    gid: int
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Account:
    """An account and the groups it is known to be in; `whole` if it surely is in no other, `exempt` if PAM found it in an exempt one."""

    uid: int
    name: str | None = None
    gids: frozenset[int] = frozenset()
    whole: bool = False
    exempt: bool = False

    def is_exempt(self, site: Site, gids: Iterable[int]) -> bool:
        """Whether the site exempts it by name, or as a member of a group of which `gids` are the numbers."""
        return self.exempt or self.name in site.exempt.users or not self.gids.isdisjoint(gids)


@dataclass(frozen=True)
class Answers:
    """What the directory said. None says that there is none; what it did not answer is missing, and named in `silent`."""

    groups: dict[str, Group | None]
    names: dict[str, int | None]
    accounts: dict[int, Account | None]
    silent: tuple[str, ...] = ()

    def exempt(self, site: Site, known: Iterable[int]) -> set[int]:
        """UIDs of the accounts that the site exempts by name or group. Those of `known` that the answers leave open stay."""
        groups = [group for group in self.groups.values() if group]
        gids = {group.gid for group in groups}
        listed = {*site.exempt.users, *(member for group in groups for member in group.members)}
        found = {uid for name, uid in self.names.items() if uid is not None and name in listed}
        found |= {uid for uid, account in self.accounts.items() if account and account.is_exempt(site, gids)}
        return {uid for uid in found | {uid for uid in known if self._open(site, uid)} if uid >= site.min_uid}

    def _open(self, site: Site, uid: int) -> bool:
        if not site.exempt.users and not site.exempt.groups:
            return False
        if uid not in self.accounts:
            return True
        account = self.accounts[uid]
        return bool(account and site.exempt.groups and not (account.whole and self.groups.keys() >= set(site.exempt.groups)))


class Inquiry:
    """Asks the directory in a thread of its own, about one thing at a time. It is readable (select) when there are answers."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self._answers: Answers | None = None
        self._since: float | None = None

    def fileno(self) -> int:
        """For select."""
        return self._reader

    def pending(self) -> float | None:
        """Seconds for which the directory has been asked; None if it is not asked now."""
        return None if self._since is None else time.monotonic() - self._since

    def begin(self, site: Site, uids: Iterable[int], names: Iterable[str]) -> None:
        """As `ask`, once `pending` is None; somebody takes the answers later."""
        threading.Thread(target=self._run, args=(site, set(uids), set(names)), daemon=True).start()
        self._since = time.monotonic()

    def take(self, patience: float = 0) -> Answers | None:
        """The answers, None if there are none within so many seconds."""
        if not select.select([self], [], [], patience)[0]:
            return None
        os.read(self._reader, 1)
        answers, self._answers, self._since = self._answers, None, None
        return answers

    def _run(self, site: Site, uids: set[int], names: set[str]) -> None:
        try:
            self._answers = ask(site, uids, names)
        except Exception:  # a fault of ours: the next inquiry is due in a minute
            traceback.print_exc()
        finally:
            os.write(self._writer, b"!")


def ask(site: Site, uids: Iterable[int], names: Iterable[str]) -> Answers:
    """What the directory says of whom the site exempts, of UIDs, and of names. It takes as long as the directory does."""
    silent: list[str] = []
    groups = _answered(group, site.exempt.groups, "group", silent)
    gids = {found.gid for found in groups.values() if found}
    members = {member for found in groups.values() if found for member in found.members}
    entries = _answered(by_name, {*names, *site.exempt.users, *members}, "user", silent)
    accounts = _answered(lambda uid: account(by_uid(uid), bool(site.exempt.groups)), {*uids, *_local(gids)}, "UID", silent)
    silent += [f"groups of {found.name}" for found in accounts.values() if found and not found.whole]
    return Answers(groups, {name: entry and entry.uid for name, entry in entries.items()}, accounts, tuple(silent))


def _answered(look_up: Callable[[Any], Any], keys: Iterable[Any], what: str, silent: list[str]) -> dict[Any, Any]:
    found = {}
    for key in sorted(keys):
        try:
            found[key] = look_up(key)
        except Silent:
            silent.append(f"{what} {key}")
    return found


def _local(gids: set[int]) -> set[int]:
    """UIDs of the node's own accounts with one of these primary groups, which no group lists: daemons run without a login."""
    try:
        with open(PASSWD, encoding="utf-8", errors="replace") as file:
            fields = [line.split(":") for line in file]
    except OSError:
        return set()
    return {int(field[2]) for field in fields if len(field) > 3 and field[2].isdecimal() and field[3].isdecimal() and int(field[3]) in gids}


def account(entry: Entry | None, groups: bool = True) -> Account | None:
    """The account of an entry, with its groups if they matter."""
    if entry is None:
        return None
    gids, whole = groups_of(entry) if groups else (frozenset([entry.gid]), True)
    return Account(entry.uid, entry.name, gids, whole)


# -- the C library: it says whether there was an answer, and ctypes lets the other threads run meanwhile, unlike os.getgrouplist -----------------


class _Passwd(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("password", ctypes.c_char_p),
        ("uid", ctypes.c_uint),
        ("gid", ctypes.c_uint),
        ("gecos", ctypes.c_char_p),
        ("directory", ctypes.c_char_p),
        ("shell", ctypes.c_char_p),
    ]


class _Group(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("password", ctypes.c_char_p), ("gid", ctypes.c_uint), ("members", ctypes.POINTER(ctypes.c_char_p))]


_c = ctypes.CDLL(None, use_errno=True)


def by_name(name: str) -> Entry | None:
    """The account of a name, None for an unknown one. Raises Silent."""
    return _look_up(_c.getpwnam_r, name, _Passwd, _entry)


def by_uid(uid: int) -> Entry | None:
    """The account of a UID, None when no account has it. Raises Silent."""
    return _look_up(_c.getpwuid_r, uid, _Passwd, _entry)


def group(name: str) -> Group | None:
    """The group of a name, None for an unknown one. Raises Silent."""
    return _look_up(_c.getgrnam_r, name, _Group, _group)


def groups_of(entry: Entry) -> tuple[frozenset[int], bool]:
    """The groups of an account, and whether they are all: getgrouplist(3) passes over a service that does not answer, which leaves its errno."""
    count, groups = ctypes.c_int(NGROUPS_MAX), (ctypes.c_uint * NGROUPS_MAX)()
    ctypes.set_errno(0)
    fits = _c.getgrouplist(os.fsencode(entry.name), ctypes.c_uint(entry.gid), groups, ctypes.byref(count)) >= 0
    return frozenset(groups[: min(count.value, NGROUPS_MAX)]), fits and ctypes.get_errno() in HARMLESS


def _look_up(function: Any, key: str | int, kind: type, read: Callable[[Any], Any]) -> Any:
    try:
        asked = ctypes.c_uint(key) if isinstance(key, int) else _c_string(key)
    except ValueError:
        return None
    size = RECORD_MIN
    while True:
        record, buffer, found = kind(), ctypes.create_string_buffer(size), ctypes.c_void_p()
        ctypes.set_errno(errno.EAGAIN)  # what the call returns for a service that does not answer and does not say why (Hesiod)
        error = function(asked, ctypes.byref(record), buffer, ctypes.c_size_t(size), ctypes.byref(found))
        if found:
            return read(record)
        if not error:  # glibc's only number for "not found"; ENOENT is nslcd's for "not running"
            return None
        if error != errno.ERANGE or size >= RECORD_MAX:
            raise Silent(f"the directory does not say who {key!r} is ({os.strerror(error)}); see what `getent passwd` and `getent group` do")
        size *= 16


def _c_string(name: str) -> bytes:
    """Raises ValueError for what no account can be called."""
    if "\0" in name:
        raise ValueError(name)
    return os.fsencode(name)


def _entry(record: _Passwd) -> Entry:
    return Entry(os.fsdecode(record.name), record.uid, record.gid)


def _group(record: _Group) -> Group:
    members: list[str] = []
    while record.members[len(members)] is not None:
        members.append(os.fsdecode(record.members[len(members)]))
    return Group(record.gid, tuple(members))


# -- this process, and the others ----------------------------------------------------------------------------------------------------------------


def learn(uid: int, name: str | None) -> None:
    """Remember who has a UID, or that nobody has it."""
    for other in [other for other, known in _names.items() if known == name or other == uid]:
        del _names[other]
    if name is not None:
        _names[uid] = name


def name_of(uid: int) -> str | None:
    """The account name of a UID as it was last heard of, None when it never was. Asks nobody."""
    return _names.get(uid)


def real_uids(breathe: Callable[[], None] = lambda: None) -> set[int]:
    """The real UIDs of all processes, by which membership goes. `breathe`: as of `processes`."""
    return {uid for _pid, uid in processes(breathe)}


def processes(breathe: Callable[[], None] = lambda: None) -> Iterator[tuple[int, int]]:
    """PID and real UID of every process (/proc/PID/status); `breathe` is called every AT_ONCE of them, for users decide how many there are."""
    for number, pid in enumerate(entry for entry in os.listdir("/proc") if entry.isdigit()):
        if number % AT_ONCE == 0:
            breathe()
        uid = uid_of_process(int(pid))
        if uid is not None:
            yield int(pid), uid


def uid_of_process(pid: int) -> int | None:
    """The real UID of a process, None when it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Uid:"))
    except (OSError, StopIteration):
        return None
