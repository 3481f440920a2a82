# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings the machine to the plan: observe, compare, apply, read back. The one writer, held by a lock.

uvnd, the boot unit, the command line and the Ansible module uvn_host all come through here.
"""

from __future__ import annotations

import contextlib
import random
from typing import Callable, Iterable, Iterator, Sequence

from . import accounts, guard, lsm, nat, plan
from .diff import Change, diff
from .errors import NoNetwork, UvnError
from .identity import LINK_GROUP, Identity, exempt_uid, identify, reply_table, uid_of_index
from .ingress import Gate
from .kernel import Kernel, index_name, socket_index, sysctls, versions
from .lock import Lock
from .membership import EXEMPT, Config, Membership
from .objects import TABLE_LOCAL, Chain, Classifier, Element, Guard, Ingress, Member, Object, Program, Rule, Vrf, Vxlan
from .site import Site
from .store import RUN, Store, vouch, vouched, withdraw
from .underlay import Host

LOCK_WAIT = 600  # seconds that one other process may have the lock
DIRECTORY_WAIT = 20  # seconds that a boot waits for the directory
STRANGERS = 1000  # UIDs without a network that the directory is asked about at a time: a user may run processes of thousands (newuidmap)
PASSES = 3  # some changes undo others in the kernel (the last address of a link takes its routes along)


class Reconciler:
    """Exclusive access to this node's state. Use as a context manager, also within itself.

    Methods return the changes of the first pass, which check mode announces without making them, and raise UvnError.
    `changed` is called after changes and before they are read back, with the link group of the user, or LINK_GROUP for the node: what
    the kernel told of it until then was our own doing, what others undo from then on is news.
    `wait` is the time in seconds that one other process may have the lock; UvnError after that.
    """

    def __init__(self, site: Site, wait: float = LOCK_WAIT) -> None:
        self.site = site
        self.kernel = Kernel()
        self.membership = Membership()
        self.hooks = [lsm.Hooks(programs) for programs in (lsm.STAY, lsm.USERS)]
        self.guard = guard.Table()
        self.gate = Gate()
        self.store = Store()
        self.changed: Callable[[int], None] = lambda group: None
        self._lock = Lock(f"{RUN}/lock", wait)
        self._entered = 0
        self._told: set[int] = set()  # exempt by what the directory said
        self._lost: set[int] = set()  # exempt no more by what it said, and not yet taken out of the map
        self._gids: dict[str, int] = {}  # of the exempt groups, as last known
        with contextlib.suppress(UvnError):  # no login depends on that file
            self._gids = self.store.exempt_groups()

    @classmethod
    @contextlib.contextmanager
    def open(cls, site: Site, consult: bool = False) -> Iterator[Reconciler]:
        """One for the length of a `with`: asks the directory if it is to, takes the lock, waiting for whoever has it, and closes all at the end."""
        with contextlib.closing(cls(site)) as reconciler:
            if consult:
                reconciler.consult()
            with reconciler:
                yield reconciler

    def close(self) -> None:
        """Close the sockets to the kernel."""
        self.kernel.close()
        self.guard.close()

    @property
    def held(self) -> bool:
        """Whether the lock is held."""
        return bool(self._entered)

    def __enter__(self) -> Reconciler:
        if not self._entered:
            self._lock.acquire()
        self._entered += 1
        return self

    def __exit__(self, *_exc: object) -> None:
        self._entered -= 1
        if not self._entered:
            self._lock.release()

    # -- exemptions ------------------------------------------------------------------------------------------------

    def is_exempt(self, uid: int) -> bool:
        """Whether a UID stays in the default VRF: by number, or by name or group as far as the directory told. Asks nobody but the kernel."""
        if uid < self.site.min_uid or exempt_uid(self.site, uid) or uid in self._told:
            return True
        return uid not in self._lost and self.membership.get(uid) == EXEMPT

    def meet(self, account: accounts.Account) -> None:
        """Heed what somebody who asks was told of an account. It exempts and takes nothing away: a group that is missing may not have answered."""
        if account.name is not None:
            accounts.learn(account.uid, account.name)
        if account.uid >= self.site.min_uid and account.is_exempt(self.site, self._gids.values()):
            self._told.add(account.uid)
            self._lost.discard(account.uid)

    def learn(self, answers: accounts.Answers) -> set[int]:
        """Heed what the directory said; the UIDs that it makes exempt, or no longer. `node` carries it out."""
        known = self._exempt()
        for uid, account in answers.accounts.items():
            accounts.learn(uid, account and account.name)
        found = {name: group and group.gid for name, group in answers.groups.items()}
        last = {name: gid for name, gid in {**self._gids, **found}.items() if gid is not None and name in self.site.exempt.groups}
        self._gids = last
        self._told = {uid for uid in answers.exempt(self.site, known) if not exempt_uid(self.site, uid)}
        self._lost = known - self._told
        return known ^ self._told

    def begin(self, inquiry: accounts.Inquiry, running: set[int]) -> None:
        """Ask the directory about everybody who is here (`running`: real UIDs of processes) or was exempt, and about the names that logins trust."""
        known = {*self.uids(), *self._exempt()}
        others = [uid for uid in running - known if uid >= self.site.min_uid and not exempt_uid(self.site, uid)]
        inquiry.begin(self.site, known | set(random.sample(others, min(len(others), STRANGERS))), vouched())

    def consult(self) -> None:
        """Ask the directory and wait for it, but not for long, and before the lock is taken, for which uvnd would wait."""
        inquiry = accounts.Inquiry()
        self.begin(inquiry, accounts.real_uids())
        answers = inquiry.take(DIRECTORY_WAIT)
        if answers:
            self.learn(answers)

    def _exempt(self) -> set[int]:
        """The accounts exempt by name or group, as last known: by the kernel's map, across a boot by the state file."""
        entries = self.membership.entries().items()
        known = {uid for (uid, length), index in entries if length == 32 and index == EXEMPT} | self.store.exempt() | self._told
        return {uid for uid in known - self._lost if uid >= self.site.min_uid and not exempt_uid(self.site, uid)}

    # -- users -----------------------------------------------------------------------------------------------------

    def user(self, uid: int, present: bool = True, check: bool = False, host: Host | None = None) -> list[Change]:
        """Make, mend or remove the network of one user; an exempt user is only let pass."""
        if uid < self.site.min_uid or exempt_uid(self.site, uid):
            return []
        if check:
            return self._user(uid, present, check, host)
        if not present and not self.is_exempt(uid):
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
        if present:
            self._refuse_half_a_node()
        if present and not check:
            self._restore_guard()
        if self.is_exempt(uid):
            return self._converge(plan.exempt_account(uid), lambda: self._exempt_account(uid, with_network=not present), check)
        who = identify(self.site, uid)
        desired = plan.user_network(self.site, who, host or self.kernel.host())
        return self._converge(desired if present else [], lambda: self._network(who, _devices(desired)), check, who.group)

    def uids(self) -> list[int]:
        """UIDs that have a network on this node."""
        found = map(self.uid_of_group, self.kernel.devices("vrf").values())
        return sorted(uid for uid in found if uid is not None)

    def known_uids(self) -> set[int]:
        """UIDs that have a network, or a part of one, or shall have one."""
        groups = self.kernel.devices("vrf", "vxlan").values()
        found = {uid for uid in map(self.uid_of_group, groups) if uid is not None}
        return found | set(self._members()) | self.store.persistent() | {uid for uid in vouched().values() if self.group_of(uid)}

    def wanted_uids(self) -> set[int]:
        """UIDs that have a network, whole but for what is damaged, or shall have one."""
        return {*self.uids(), *self.store.persistent(), *vouched().values()}

    def misplaced(self) -> set[int]:
        """UIDs whose entry in the map and whose VRF do not belong together."""
        devices = self.kernel.devices("vrf").items()
        vrfs = {self.uid_of_group(group): index for index, group in devices}
        members = self._members()
        return {uid for uid in {*vrfs, *members} if uid is not None and vrfs.get(uid) != members.get(uid)}

    def forget_devices(self, indices: set[int]) -> None:
        """Withdraw membership in devices that were deleted by somebody else: the kernel may give an index away again."""
        for uid, index in self._members().items():
            if index in indices:
                self.membership.delete(uid)

    def device_of(self, uid: int) -> int | None:
        """The interface index that sockets of a user are bound to, 0 for a user without a network; None for accounts that need none."""
        return None if self.is_exempt(uid) else self.membership.get(uid) or 0

    def group_of(self, uid: int) -> int | None:
        """The link group of a user's devices, None for a UID that has no network by the site's decision."""
        try:
            return identify(self.site, uid).group
        except NoNetwork:
            return None

    def uid_of_group(self, group: int) -> int | None:
        """The UID whose devices have a link group."""
        return uid_of_index(self.site, group - LINK_GROUP)

    def _members(self) -> dict[int, int]:
        """UID -> interface index of the membership entries of single users."""
        entries = self.membership.entries().items()
        return {uid: index for (uid, length), index in entries if length == 32 and index != EXEMPT}

    def describe(self, uid: int) -> list[Object]:
        """What exists of a user's network."""
        who = identify(self.site, uid)
        desired = plan.user_network(self.site, who, self.kernel.host())
        return self._network(who, _devices(desired))

    def _network(self, who: Identity, names: Iterable[str]) -> list[Object]:
        seen = self.kernel.network(who, names, reply_table(self.site), plan.NAT_DEVICE)
        return seen + self.guard.existing(plan.own_elements(who)) + self._member_of(who.uid)

    def _exempt_account(self, uid: int, with_network: bool) -> list[Object]:
        """What lets the account pass, and the network of the time before it was exempt, which stays as long as it has processes."""
        network = self.describe(uid) if with_network and self.group_of(uid) else self._member_of(uid)
        return self.guard.existing([Element("exempt", (uid,))]) + network

    def _member_of(self, uid: int) -> list[Object]:
        index = self.membership.get(uid)
        return [] if index is None else [_member(uid, 32, index)]

    def node_is_up(self) -> bool:
        """Whether the node has what users' networks stand on."""
        return socket_index(plan.NAT_DEVICE) is not None

    def _refuse_half_a_node(self) -> None:
        if not self.node_is_up():
            raise UvnError("this node has no UVN state yet; run `uvn node apply`, or see `systemctl status uvn-node`")

    def _restore_guard(self) -> None:
        """A login does not wait until uvnd hears that somebody flushed the table."""
        if not self.guard.exists():
            self.node()

    # -- node ------------------------------------------------------------------------------------------------------

    def node(self, present: bool = True, check: bool = False) -> list[Change]:
        """Make, mend or remove what a node needs once. Removal takes all users' networks along.

        At boot nobody runs processes yet, and membership is attached first: from then on failure is closed. Where users do run
        processes (a rollout), their networks come first, or the program would refuse them.
        """
        if not present:
            return self._remove_node(check)
        users = [identify(self.site, uid) for uid in self.uids()]
        cookie, exempt = Membership.netns_cookie(), self._exempt()
        desired = plan.node(self.site, self.kernel.host(), cookie, exempt, users, lsm.possible(), nat.versions())
        programs = [obj for obj in desired if isinstance(obj, Program)]
        ground = [obj for obj in desired if not isinstance(obj, Program)]
        last = diff(programs, self._program())
        if check:
            return self._converge(ground, lambda: self._node(ground), check) + last
        waiting = [] if self.membership.attached() else self._running()
        self.store.remember(sysctls(desired))
        self.store.note_exempt(exempt, self._gids)
        self.membership.load(Config(cookie, self.site.min_uid, self.site.enforce))
        for hooks in self.hooks if programs[0].hooks else ():
            hooks.attach()
        if not waiting:
            self.membership.attach()
        changes = self._converge(ground, lambda: self._node(ground), check)
        self._lost.clear()
        if waiting:
            self._serve_running_users()
            self.membership.attach()
            self._serve_running_users()  # those who came meanwhile
        return changes + last

    def _running(self) -> list[int]:
        """Managed UIDs that have a process now."""
        return sorted(uid for uid in accounts.real_uids() if not self.is_exempt(uid))

    def _serve_running_users(self) -> None:
        """A network for everybody who has a process, except UIDs that no range covers."""
        for uid in self._running():
            with contextlib.suppress(NoNetwork):
                self.user(uid)

    def _remove_node(self, check: bool) -> list[Change]:
        """The way back: the programs first, so that nobody is refused; then users; then the ground they stood on.

        The changes are those found before, since the program takes its maps along.
        """
        changes = diff([], self._program()) + self._clear(check=True)
        if not check:
            self._apply_ingress([change for change in changes if isinstance(change.object, (Ingress, Classifier))])
            for hooks in self.hooks:
                hooks.detach()
            self.membership.detach()
            self._clear(check=False)
            self.store.forget()
        return changes

    def _clear(self, check: bool) -> list[Change]:
        changes: list[Change] = []
        for uid in self.uids():
            changes += self.user(uid, present=False, check=check)
        desired: list[Object] = [Rule(version, 0, TABLE_LOCAL) for version in versions()]
        desired += [rule for rule in self.kernel.rules() if rule.priority == plan.PREFERENCE_L3MDEV]  # the kernel's own
        desired += self.store.remembered()
        return changes + self._converge(desired, lambda: self._node(desired), check)

    def _node(self, desired: Sequence[Object]) -> list[Object]:
        """What exists of the node's own state, in the order of creation."""
        objects = self.kernel.node(desired, plan.NAT_DEVICE, plan.PREFERENCES) + nat.observe() + self.guard.observe()
        found = self.membership.entries().items()
        objects += [_member(uid, length, index) for (uid, length), index in found if index == EXEMPT]
        return objects + self.gate.observe(["lo", *(nic.name for nic in self.kernel.host().nics)])

    def _program(self) -> list[Object]:
        config = self.membership.config()
        if config is None or not self.membership.current():
            return []
        return [Program(config.netns_cookie, config.min_uid, config.enforce, self.hooked())]

    def hooked(self) -> bool:
        """Whether the programs on security hooks are attached, as they are to be."""
        return all(hooks.current() for hooks in self.hooks)

    # -- both ------------------------------------------------------------------------------------------------------

    def _converge(
        self, desired: Sequence[Object], observe: Callable[[], Sequence[Object]], check: bool, group: int = LINK_GROUP
    ) -> list[Change]:
        """Apply until nothing differs; the read-back also finds what the kernel silently did not do, and what went since the look before."""
        first: list[Change] | None = None
        failure: UvnError | None = None
        for _pass in range(PASSES):
            changes = diff(desired, observe())
            first = changes if first is None else first
            if check or not changes:
                return first
            try:
                self._apply(changes)
                failure = None
            except UvnError as error:  # what it needs may have gone since the look
                failure = error
            self.changed(group)
        if failure:
            raise failure
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
        elif kind is Guard:
            self.guard.apply(batch)
        elif kind is Member:
            for change in batch:
                self._apply_member(change)
        elif kind is Ingress:
            self._apply_ingress(batch)
        else:
            self.kernel.apply(batch)

    def _apply_ingress(self, changes: Sequence[Change]) -> None:
        self.gate.apply(changes)
        for change in changes:
            if change.op == "delete" and isinstance(change.object, Classifier):
                self.kernel.drop_idle_clsact(change.object.device)

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
    if isinstance(obj, Element):
        return Guard
    if isinstance(obj, Classifier):
        return Ingress
    return next((kind for kind in (Chain, Guard, Ingress, Member) if isinstance(obj, kind)), Object)
