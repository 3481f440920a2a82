# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Desired against observed: the ordered changes that lead from one to the other. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Sequence

from .objects import Address, Chain, Element, Guard, Member, Object, Route, Vrf, Vxlan


@dataclass(frozen=True)
class Change:
    """One object to `create`, `replace` or `delete`; `before` is what it replaces."""

    op: str
    object: Object
    before: Object | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON and for Ansible."""
        result = {"op": self.op, **self.object.as_dict()}
        if self.before is not None:
            result["before"] = self.before.as_dict()
        return result

    def __str__(self) -> str:
        flaw = self.before.flaw if isinstance(self.before, Chain) else ""
        return f"{self.op} {self.object.kind} {self.object.name}{flaw and f' {flaw}'}"


def diff(desired: Sequence[Object], observed: Sequence[Object]) -> list[Change]:
    """Changes in the order in which they are safe.

    Membership is withdrawn before its VRF goes and given last; links that go, go first (a new VXLAN may need the old one's
    VNI and port); everything else is created before its predecessor is deleted, so that there is never a moment without.
    """
    wanted = {obj.key: obj for obj in desired}
    there = {obj.key: obj for obj in observed}
    doomed = _doomed_links(wanted, there)
    devices, guard_goes = {key[1] for key in doomed}, _guard_is_replaced(wanted, there)
    lost = {key for key, obj in there.items() if _lost_with(obj, devices) or (guard_goes and isinstance(obj, Element))}

    changes = [Change("delete", there[key]) for key in reversed(list(there)) if key in lost and isinstance(there[key], Member)]
    changes += [Change("delete", obj) for obj in there.values() if isinstance(obj, Vxlan) and obj.key in doomed]
    changes += [Change("delete", obj) for obj in there.values() if isinstance(obj, Vrf) and obj.key in doomed]
    for key, obj in wanted.items():
        if key not in there or key in lost or key in doomed:
            changes.append(Change("create", obj))
        elif there[key] != obj:
            changes.append(Change("replace", obj, there[key]))
    changes += [
        Change("delete", obj)
        for key, obj in reversed(list(there.items()))
        if key not in wanted and key not in lost and key not in doomed
    ]
    return changes


def _doomed_links(wanted: dict, there: dict) -> set:
    """Links to delete: unwanted ones, and those the kernel cannot change (VRF table, VXLAN id and port); a MAC address it can."""
    links = {key: obj for key, obj in there.items() if isinstance(obj, (Vrf, Vxlan))}
    doomed = {key for key, obj in links.items() if key not in wanted or replace(obj, mac=wanted[key].mac) != wanted[key]}
    vrfs = {links[key].device for key in doomed if isinstance(links[key], Vrf)}
    return doomed | {key for key, obj in links.items() if isinstance(obj, Vxlan) and obj.vrf in vrfs}


def _lost_with(obj: Object, devices: set) -> bool:
    """Whether the kernel drops an object together with the links of these names, or it must go before them."""
    if isinstance(obj, (Address, Member)):
        return obj.device in devices
    return isinstance(obj, Route) and any(nexthop.device in devices for nexthop in obj.nexthops)


def _guard_is_replaced(wanted: dict, there: dict) -> bool:
    """Whether a guard is replaced as a whole, its elements included."""
    return any(isinstance(guard, Guard) and wanted.get(key) not in (None, guard) for key, guard in there.items())
