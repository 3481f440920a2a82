# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accounts of the node: names, UIDs, exemptions, and who runs processes."""

from __future__ import annotations

import grp
import os
import pwd
from typing import Iterable

from .errors import UvnError
from .identity import exempt_uid
from .site import Site


def uid_of(name: str) -> int:
    """The UID of an account name. Raises UvnError for an unknown one."""
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        raise UvnError(f"user {name!r} is unknown on this node; `getent passwd` must find the account") from None


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
    groups = _gids(site.exempt.groups)
    return account.pw_name in site.exempt.users or bool(
        groups and groups & set(os.getgrouplist(account.pw_name, account.pw_gid))
    )


def exempt_uids(site: Site) -> set[int]:
    """UIDs of the accounts that the site exempts by name or group, as far as this node knows them now."""
    names = set(site.exempt.users)
    for group in site.exempt.groups:
        try:
            names |= set(grp.getgrnam(group).gr_mem)
        except KeyError:
            continue
    uids = set()
    for name in names:
        try:
            uids.add(pwd.getpwnam(name).pw_uid)
        except KeyError:
            continue
    return {uid for uid in uids if uid >= site.min_uid}


def running_uids(site: Site) -> list[int]:
    """Managed UIDs that have a process now (real UID, /proc/PID/status)."""
    uids = {uid_of_process(int(pid)) for pid in os.listdir("/proc") if pid.isdigit()}
    return sorted(uid for uid in uids if uid is not None and not is_exempt(site, uid))


def uid_of_process(pid: int) -> int | None:
    """The real UID of a process, None when it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Uid:"))
    except (OSError, StopIteration):
        return None


def _gids(groups: Iterable[str]) -> set[int]:
    gids = set()
    for group in groups:
        try:
            gids.add(grp.getgrnam(group).gr_gid)
        except KeyError:
            continue
    return gids
