# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings the machine to the plan: observe, compare, apply, read back. The one writer, held by a lock.

uvnd, the boot unit, the command line and the Ansible module uvn_host all come through here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Callable, Iterable, Sequence

from . import accounts, nat, plan
from .diff import Change, diff
from .errors import NoNetwork, UvnError
from .identity import LINK_GROUP, Identity, exempt_uid, identify, reply_table, uid_of_index
from .kernel import Kernel, index_name, socket_index, sysctls
from .membership import EXEMPT, Config, Membership
from .objects import TABLE_LOCAL, Chain, Member, Object, Program, Rule, Vrf, Vxlan
from .site import PATH, Site, load
from .store import RUN, Store, vouch, withdraw
from .underlay import Host

PASSES = 3  # some changes undo others in the kernel (the last address of a link takes its routes along)


class Reconciler:
    """Exclusive access to this node's state. Use as a context manager.

    Methods return the changes of the first pass, which check mode announces without making them, and raise UvnError.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.kernel = Kernel()
        self.membership = Membership()
        self.store = Store()

    @classmethod
    def open(cls, site_path: str = PATH) -> Reconciler:
        """Load the site and take the lock, waiting for whoever has it."""
        return cls(load(site_path))

    def __enter__(self) -> Reconciler:
        os.makedirs(RUN, mode=0o755, exist_ok=True)
        self._lock = os.open(f"{RUN}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self._lock)
        self.kernel.close()

    # -- users -----------------------------------------------------------------------------------------------------

    def user(self, uid: int, present: bool = True, check: bool = False, host: Host | None = None) -> list[Change]:
        """Make, mend or remove the network of one user; an exempt user is only let pass."""
        if uid < self.site.min_uid or exempt_uid(self.site, uid):
            return []
        if check:
            return self._user(uid, present, check, host)
        if not present:
            withdraw(uid)
        try:
            changes = self._user(uid, present, check, host)
        except UvnError:
            withdraw(uid)  # the next login asks again
            raise
        if present:
            vouch(uid, accounts.name_of(uid))
        return changes

    def _user(self, uid: int, present: bool, check: bool, host: Host | None) -> list[Change]:
        if accounts.is_exempt(self.site, uid):
            return self._converge([Member(uid, None)] if present else [], lambda: self._member_of(uid), check)
        who = identify(self.site, uid)
        desired = plan.user_network(self.site, who, host or self.kernel.host())
        if present:
            self._refuse_half_a_node()
        return self._converge(desired if present else [], lambda: self._network(who, _devices(desired)), check)

    def uids(self) -> list[int]:
        """UIDs that have a network on this node."""
        found = (uid_of_index(self.site, vrf.group - LINK_GROUP) for vrf in self.kernel.vrfs())
        return sorted(uid for uid in found if uid is not None)

    def describe(self, uid: int) -> list[Object]:
        """What exists of a user's network."""
        who = identify(self.site, uid)
        desired = plan.user_network(self.site, who, self.kernel.host())
        return self._network(who, _devices(desired))

    def _network(self, who: Identity, names: Iterable[str]) -> list[Object]:
        seen = self.kernel.network(who, names, reply_table(self.site), plan.NAT_DEVICE)
        return seen + self._member_of(who.uid)

    def _member_of(self, uid: int) -> list[Object]:
        index = self.membership.get(uid)
        return [] if index is None else [_member(uid, 32, index)]

    def _refuse_half_a_node(self) -> None:
        if socket_index(plan.NAT_DEVICE) is None:
            raise UvnError("this node has no UVN state yet; run `uvn node apply`, or see `systemctl status uvn-node`")

    # -- node ------------------------------------------------------------------------------------------------------

    def node(self, present: bool = True, check: bool = False) -> list[Change]:
        """Make, mend or remove what a node needs once. Removal takes all users' networks along.

        At boot nobody runs processes yet, and membership is attached first: from then on failure is closed. Where users do run
        processes (a rollout), their networks come first, or the program would refuse them.
        """
        if not present:
            return self._remove_node(check)
        desired = plan.node(self.site, self.kernel.host(), Membership.netns_cookie(), self._exempt())
        programs = [obj for obj in desired if isinstance(obj, Program)]
        ground = [obj for obj in desired if not isinstance(obj, Program)]
        last = diff(programs, self._program())
        if check:
            return self._converge(ground, lambda: self._node(ground), check) + last
        waiting = [] if self.membership.attached() else accounts.running_uids(self.site)
        self.store.remember(sysctls(desired))
        self.membership.load(Config(**vars(programs[0])))
        if not waiting:
            self.membership.attach()
        changes = self._converge(ground, lambda: self._node(ground), check)
        if waiting:
            self._serve_running_users()
            self.membership.attach()
            self._serve_running_users()  # those who came meanwhile
        return changes + last

    def _exempt(self) -> set[int]:
        """Exempt accounts: those this node can list, and those it once let pass and would again."""
        entries = self.membership.entries()
        known = {uid for (uid, length), index in entries.items() if length == 32 and index == EXEMPT}
        return accounts.exempt_uids(self.site) | {uid for uid in known if accounts.is_exempt(self.site, uid)}

    def _serve_running_users(self) -> None:
        """A network for everybody who has a process, except UIDs that no range covers."""
        for uid in accounts.running_uids(self.site):
            with contextlib.suppress(NoNetwork):
                self.user(uid)

    def _remove_node(self, check: bool) -> list[Change]:
        """The way back: the program first, so that nobody is refused; then users; then the ground they stood on."""
        changes = diff([], self._program())
        if not check:
            self.membership.detach()
        for uid in self.uids():
            changes += self.user(uid, present=False, check=check)
        desired: list[Object] = [Rule(version, 0, TABLE_LOCAL) for version in (4, 6)]
        desired += [rule for rule in self.kernel.rules() if rule.priority == plan.PREFERENCE_L3MDEV]  # the kernel's own
        desired += self.store.remembered()
        changes += self._converge(desired, lambda: self._node(desired), check)
        if not check:
            self.store.forget()
        return changes

    def _node(self, desired: Sequence[Object]) -> list[Object]:
        """What exists of the node's own state, in the order of creation."""
        objects = self.kernel.node(desired, plan.NAT_DEVICE, plan.PREFERENCES) + nat.observe()
        found = self.membership.entries().items()
        return objects + [_member(uid, length, index) for (uid, length), index in found if index == EXEMPT]

    def _program(self) -> list[Object]:
        config = self.membership.config()
        if config is None or not self.membership.current():
            return []
        return [Program(config.netns_cookie, config.min_uid, config.enforce)]

    # -- both ------------------------------------------------------------------------------------------------------

    def _converge(
        self, desired: Sequence[Object], observe: Callable[[], Sequence[Object]], check: bool
    ) -> list[Change]:
        """Apply until nothing differs; the read-back also finds what the kernel silently did not do."""
        first: list[Change] | None = None
        for _pass in range(PASSES):
            changes = diff(desired, observe())
            first = changes if first is None else first
            if check or not changes:
                return first
            self._apply(changes)
        changes = diff(desired, observe())
        if changes:
            raise UvnError(
                f"after {PASSES} attempts still to do: {'; '.join(map(str, changes))}; another program may be undoing it "
                "(NetworkManager, systemd-networkd, a script)"
            )
        return first or []

    def _apply(self, changes: Sequence[Change]) -> None:
        """Runs of changes that belong to the same backend, in order."""
        batch: list[Change] = []
        for change in changes:
            if batch and _backend(batch[0].object) is not _backend(change.object):
                self._apply_batch(batch)
                batch = []
            batch.append(change)
        if batch:
            self._apply_batch(batch)

    def _apply_batch(self, batch: list[Change]) -> None:
        kind = _backend(batch[0].object)
        if kind is Chain:
            nat.apply(batch)
        elif kind is Member:
            for change in batch:
                self._apply_member(change)
        else:
            self.kernel.apply(batch)

    def _apply_member(self, change: Change) -> None:
        member = change.object
        if change.op == "delete":
            self.membership.delete(member.uid, member.prefix_length)
            return
        index = EXEMPT if member.device is None else socket_index(member.device)
        if index is None:
            raise UvnError(f"cannot {change}: the device {member.device} is gone; try again")
        self.membership.set(member.uid, index, member.prefix_length)


def _devices(objects: Sequence[Object]) -> list[str]:
    return [obj.device for obj in objects if isinstance(obj, (Vrf, Vxlan))]


def _member(uid: int, length: int, ifindex: int) -> Member:
    """An entry of the map; one whose device is gone names an impossible device, so that it is never equal."""
    return Member(uid, None if ifindex == EXEMPT else index_name(ifindex) or f"(ifindex {ifindex})", length)


def _backend(obj: Object) -> type:
    return next((kind for kind in (Chain, Member) if isinstance(obj, kind)), Object)
