# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The requests that uvnd answers."""

from __future__ import annotations

import time
import traceback
from typing import Any, Callable

from . import accounts, lsm, nat, strays
from .diff import Change
from .errors import UvnError
from .identity import identify
from .keeper import Keeper, counted, label, log
from .kernel import ipv6
from .reconcile import Reconciler
from .site import Site
from .store import vouched

ID_MAX = 2**32 - 2  # of UIDs and GIDs; the number above means none


class Service:
    """The requests, as methods named after `op`. Each returns the reply without "ok" and raises UvnError."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

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
        """Make or mend the networks of users; `persistent` true or false also decides whether they stay.

        `job` is the PID of a slurmstepd, which from then on connects in the network of the one user that the request names.
        """
        try:
            job = _job(message)
            reply = self._each(message, True)
            if job:
                self._register(*job)
            return reply
        except UvnError as error:
            if not message.get("brief") or self._keeper.in_force().site.enforce:
                raise
            log(f"ensure {_who(message)} would be refused: {error}", error=True)
            return {}

    def remove(self, message: dict[str, Any]) -> dict[str, Any]:
        """Remove the networks of users, and with them the wish that they stay."""
        return self._each({**message, "persistent": False}, False)

    def show(self, message: dict[str, Any]) -> dict[str, Any]:
        """What exists of one user's network."""
        uid, brought = target(message), introduced(message)
        with self._keeper.reconciler() as reconciler:
            _meet(reconciler, brought)
            return {"network": self._network(reconciler, uid)}

    def status(self, _message: dict[str, Any]) -> dict[str, Any]:
        """All networks, and what differs from the plan for the node."""
        with self._keeper.reconciler() as reconciler:
            persistent = reconciler.store.persistent()
            networks = [_summary(reconciler.site, uid, uid in persistent) for uid in reconciler.uids()]
            return {
                "networks": networks,
                "node": {
                    "mode": reconciler.site.mode,
                    "membership": reconciler.membership.attached(),
                    "sockets": reconciler.membership.counters(),
                    "hooks": reconciler.hooked(),
                    "moves": reconciler.membership.moves(),
                    "guard": {
                        **reconciler.guard.counters(),
                        "received": sum(reconciler.membership.strays().values()),
                        "heard": sum(reconciler.membership.heard().values()),
                    },
                    **lsm.counted(),
                    "ipv6": {"enabled": ipv6(), "ip6tables": 6 in nat.versions()},
                    "strays": strays.find(reconciler.device_of, self._keeper.breathe),
                    "drift": [str(change) for change in reconciler.node(check=True)],
                },
            }

    def _register(self, pid: int, uid: int) -> None:
        with self._keeper.in_force() as reconciler:
            if not reconciler.is_exempt(uid):
                reconciler.gate.register(pid, identify(reconciler.site, uid).vrf)

    def _each(self, message: dict[str, Any], present: bool) -> dict[str, Any]:
        """The reply tells the changes unless the request is `brief`, as a login's is. A login does not wait for a site file that is right."""
        brief, check = bool(message.get("brief", False)), bool(message.get("check", False))
        uids, brought = targets(message), introduced(message)
        with self._keeper.in_force() if brief else self._keeper.reconciler() as reconciler:
            _meet(reconciler, brought)
            for uid in uids if present else ():  # refuse the whole request before anything is touched
                if uid < reconciler.site.min_uid or not reconciler.is_exempt(uid):
                    identify(reconciler.site, uid)
            if brief and present and set(uids) <= set(vouched().values()):
                self._keeper.saw(uids)  # made for another login since the file test of this one
                return {}
            changes = self._persist(reconciler, uids, message.get("persistent"), check)
            for number, uid in enumerate(uids):
                if number:
                    self._keeper.breathe()
                made = self._one(uid, present, check)
                changes += [] if brief else [change.as_dict() for change in made]
            if brief:
                return {}
            networks = [self._network(reconciler, uid) for uid in uids] if present and len(uids) == 1 else []
        return {"changes": changes, "networks": networks}

    def _one(self, uid: int, present: bool, check: bool) -> list[Change]:
        start = time.monotonic()
        changes = self._keeper.user(uid, present, check)
        if not check:
            outcome = counted(changes) if changes else "unchanged"
            action = "ensure" if present else "remove"
            log(f"{action} {label(uid)}: {outcome} in {1000 * (time.monotonic() - start):.0f} ms")
        return changes

    def _persist(self, reconciler: Reconciler, uids: list[int], persistent: bool | None, check: bool) -> list[dict[str, Any]]:
        """Note who stays, before the networks are made: a run that is cut off is completed when uvnd starts again."""
        if persistent is None:
            return []
        noted = reconciler.store.persistent()
        stays = {uid for uid in uids if persistent and not reconciler.is_exempt(uid)}  # who has no network has none to keep
        changed = [uid for uid in uids if (uid in noted) != (uid in stays)]
        if not check:
            reconciler.store.set_persistent(stays, True)
            reconciler.store.set_persistent(set(uids) - stays, False)
        return [{"op": "create" if uid in stays else "delete", "kind": "persistence", "name": f"UID {uid}"} for uid in changed]

    def _network(self, reconciler: Reconciler, uid: int) -> dict[str, Any]:
        if reconciler.is_exempt(uid):
            return {"uid": uid, "user": accounts.name_of(uid), "exempt": True, "objects": []}
        who = identify(reconciler.site, uid)
        return {
            **_summary(reconciler.site, uid, uid in reconciler.store.persistent()),
            "vni": who.vni,
            "table": who.table,
            "nat": [str(who.nat4), str(who.nat6)],
            "objects": [obj.as_dict() for obj in reconciler.describe(uid)],
        }


def targets(message: dict[str, Any]) -> list[int]:
    """The UIDs a request names by `user`, `uid`, `users` or `uids`. Raises UvnError for a user of whom neither it nor a login before told the UID."""
    users, uids = _values(message, "user"), _values(message, "uid")
    for uid in uids:
        if not isinstance(uid, int) or isinstance(uid, bool):
            raise UvnError(f"{uid!r} is not a UID; give a number")
    for user in users:
        if not isinstance(user, str):
            raise UvnError(f"{user!r} is not an account name; give a string")
    if not users and not uids:
        raise UvnError("the request names nobody; give user, uid, users or uids")
    known: dict[str | None, int] = {**vouched(), **{account.name: account.uid for account in introduced(message)}} if users else {}
    for user in users:
        if user not in known:
            raise UvnError(f"user {user!r} is unknown on this node, or its directory does not answer; `getent passwd` must find the account")
    return list(dict.fromkeys([*(known[user] for user in users), *uids]))


def introduced(message: dict[str, Any]) -> list[accounts.Account]:
    """The `accounts` of a request, each with its uid; name, gids and exempt as far as the sender knows. Raises UvnError for other values."""
    brought = message.get("accounts", [])
    if not isinstance(brought, list):
        raise UvnError(f"accounts is {brought!r}; give a list")
    return [_account(one) for one in brought]


def _account(one: Any) -> accounts.Account:
    if not isinstance(one, dict) or not one.keys() <= {"name", "uid", "gids", "exempt"}:
        raise UvnError(f"{one!r} is not an account; give its name, uid, gids and exempt")
    name, gids, exempt = one.get("name"), one.get("gids", []), one.get("exempt", False)
    if not (name is None or isinstance(name, str)) or not isinstance(exempt, bool):
        raise UvnError(f"{one!r} is not an account; its name is a string, and exempt true or false")
    if not isinstance(gids, list) or not all(map(_is_id, [one.get("uid"), *gids])):
        raise UvnError(f"{one!r} is not an account; its uid is a number from 0 to {ID_MAX}, its gids a list of them")
    return accounts.Account(one["uid"], name, frozenset(gids), exempt=exempt)


def _is_id(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= ID_MAX


def _meet(reconciler: Reconciler, brought: list[accounts.Account]) -> None:
    for account in brought:
        reconciler.meet(account)


def target(message: dict[str, Any]) -> int:
    """The one UID that a request names. Raises UvnError when it names none, or more than one."""
    uids = targets(message)
    if len(uids) > 1:
        raise UvnError(f"the request names {len(uids)} users; give one")
    return uids[0]


def _job(message: dict[str, Any]) -> tuple[int, int] | None:
    """The PID of a slurmstepd and the UID of its user; None without `job`, or with 0."""
    pid = message.get("job", 0)
    if not isinstance(pid, int) or isinstance(pid, bool):
        raise UvnError(f"job is {pid!r}; give the PID of a slurmstepd")
    return (pid, target(message)) if pid else None


def _values(message: dict[str, Any], key: str) -> list[Any]:
    """The value of `key` and the list `keys`, together."""
    several = message.get(f"{key}s", [])
    if not isinstance(several, list):
        raise UvnError(f"{key}s is {several!r}; give a list")
    return [*several, *([message[key]] if key in message else [])]


def _summary(site: Site, uid: int, persistent: bool) -> dict[str, Any]:
    who = identify(site, uid)
    return {"uid": uid, "user": accounts.name_of(uid), "vrf": who.vrf, "persistent": persistent}


def _who(message: dict[str, Any]) -> str:
    return " ".join(f"{key}={message[key]}" for key in ("user", "uid", "users", "uids") if key in message)
