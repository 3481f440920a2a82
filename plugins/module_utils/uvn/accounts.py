# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accounts of the node: names, UIDs, exemptions, and who runs processes."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from typing import Any, Callable, Iterable, Iterator

from .errors import UvnError
from .identity import exempt_uid
from .site import Site

AT_ONCE = 500  # processes that are looked at before a login that waits is served


def uid_of(name: str) -> int:
    """The UID of an account name. Raises UvnError for an unknown one."""
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        raise UvnError(f"user {name!r} is unknown on this node; `getent passwd` must find the account") from None


def current_uid(name: str) -> int | None:
    """The UID of an account name, None when it is unknown."""
    try:
        return uid_of(name)
    except UvnError:
        return None


def name_of(uid: int) -> str | None:
    """The account name of a UID, None when no account has it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def is_exempt(site: Site, uid: int) -> bool:
    """Whether a UID stays in the default VRF: by number, by name, or as a member of an exempt group."""
    if uid < site.min_uid or exempt_uid(site, uid):
        return True
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        return False
    groups = {group.gr_gid for group in _known(grp.getgrnam, site.exempt.groups)}
    return account.pw_name in site.exempt.users or bool(
        groups and groups & set(os.getgrouplist(account.pw_name, account.pw_gid))
    )


def exempt_uids(site: Site) -> set[int]:
    """UIDs of the accounts that the site exempts by name or group, as far as this node knows them now."""
    members = (group.gr_mem for group in _known(grp.getgrnam, site.exempt.groups))
    names = set(site.exempt.users).union(*members)
    return {account.pw_uid for account in _known(pwd.getpwnam, names) if account.pw_uid >= site.min_uid}


def running_uids(site: Site) -> list[int]:
    """Managed UIDs that have a process now."""
    return sorted(uid for uid in real_uids() if not is_exempt(site, uid))


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


def _known(lookup: Callable[[str], Any], names: Iterable[str]) -> list[Any]:
    """The entries of those names that the node knows."""
    found = []
    for name in names:
        with contextlib.suppress(KeyError):
            found.append(lookup(name))
    return found
