# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps users' networks as planned while the node changes, and takes them away when their users have left.

It holds nothing that the kernel does not know but when a user's process was seen last: killed at any moment, uvnd goes on.
"""

# pylint: disable=ansible-bad-function  # part of a program of the nodes, no Ansible module imports it

from __future__ import annotations

import functools
import os
import time
import traceback
from typing import Any, Callable, Sequence

from . import accounts, events
from .diff import Change
from .errors import UvnError
from .identity import LINK_GROUP
from .kernel import ipv6, socket_index
from .reconcile import Reconciler
from .site import PATH, Site, load
from .store import withdraw, withdraw_strangers
from .underlay import Host

SETTLE = 0.2  # seconds of quiet after a network event before the node is looked at
CALM = 60  # seconds without a repair after which nobody is suspected any more of undoing ours
PATIENCE = 6  # repairs in a row after which the wait between them grows no longer: SETTLE * 2 ** PATIENCE, 13 s
SWEEP = 60  # seconds between two looks at who has left
RETRY = 10  # seconds until what failed as a whole is tried again, as with a site file that cannot be read


class Keeper:
    """The one Reconciler of uvnd, and what the kernel told since it was used last.

    `between` is called between two users of a long piece of work, so that a login need not wait for its end. What it does is not interrupted
    in turn.
    """

    def __init__(self, site_path: str = PATH) -> None:
        self._site_path = site_path
        self._stamp: Any = None
        self._reconciler: Reconciler | None = None
        self._watcher = events.Watcher(0, 0)
        self._host: Host | None = None
        self._followed: Any = None  # host and rules when all was followed last
        self._effects = events.Effects(look=True, touched=True)
        self._since = time.monotonic()  # when the kernel told the first of the effects
        self._due = 0.0
        self._mended = (0, 0.0)  # repairs in a row, and when the last was
        self._sweep_due = 0.0
        self._seen: dict[int, float] = {}  # when a user's process was seen last
        self._leaving: set[int] = set()  # users whose logins ask again, and whose networks go with the next sweep
        self.events, self.nftables = events.listen(), events.listen_to_nftables()
        self.between: Callable[[], None] = lambda: None
        self._breathing = False
        self._removed: set[int] = set()  # on request, since the last piece of work on many users began

    def reconciler(self) -> Reconciler:
        """The one of the site file as it is now; it stays open as long as the file stays. Use it as a context manager.

        Raises UvnError when the file cannot be used.
        """
        if self._reconciler and self._reconciler.held:
            return self._reconciler
        try:
            status = os.stat(self._site_path)
            stamp = (status.st_ino, status.st_mtime_ns)
        except OSError:
            stamp = None
        if self._reconciler is None or stamp is None or stamp != self._stamp:
            self._reconciler = Reconciler(load(self._site_path))
            self._stamp, self._host = stamp, None
            self._effects.add(events.Effects(look=True, touched=True))
            self._reconciler.changed = self._changed
            devices = self._reconciler.kernel.devices("vrf", "vxlan", "dummy")
            site = self._reconciler.site
            self._watcher = events.Watcher(site.table_base, int(site.nat6[0]), devices)
            self._sweep_due = min(self._sweep_due, time.monotonic() + sweep_interval(site))
        return self._reconciler

    def user(self, uid: int, present: bool, check: bool = False) -> list[Change]:
        """As Reconciler.user, at somebody's request."""
        changes = self._reconcile(uid, present, check)
        if not check:
            self.saw([uid])
            (self._removed.discard if present else self._removed.add)(uid)
        return changes

    def breathe(self) -> None:
        """Between two users of a long piece of work."""
        if not self._breathing:
            self._breathing = True
            try:
                self.between()
            finally:
                self._breathing = False

    def saw(self, uids: Sequence[int]) -> None:
        """Users who are here now, or will be in a moment."""
        self._seen.update(dict.fromkeys(uids, time.monotonic()))
        self._leaving -= set(uids)

    # -- following -------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Take note of what the kernel told."""
        self._note(events.drain(self.events, self._watcher))
        self._note(events.drain_nftables(self.nftables))

    def wait(self) -> float:
        """Seconds until `work` has something to do."""
        due = min(self._due, self._sweep_due) if self._effects else self._sweep_due
        return max(0.0, due - time.monotonic())

    def work(self) -> None:
        """What is due: mend what the kernel told of, look who has left."""
        now = time.monotonic()
        if self._effects and now >= self._due:
            self._due = now + RETRY  # unless it succeeds, or more happens
            attempt(self._follow)
        if now >= self._sweep_due:
            self._sweep_due = now + SWEEP
            attempt(self._sweep)

    def _reconcile(self, uid: int, present: bool, check: bool = False) -> list[Change]:
        with self.reconciler() as reconciler:
            self.read()
            return reconciler.user(uid, present, check, self._known_host(reconciler))

    def _changed(self, group: int) -> None:
        """What was told of a user or of the node until now is our own doing."""
        self._note(events.drain(self.events, self._watcher).without(group))
        events.drain_nftables(self.nftables)

    def _note(self, effects: events.Effects) -> None:
        if effects.look or effects.touched:
            self._host = None
        if effects.gone and self._reconciler:
            self._reconciler.forget_devices(set(effects.gone))
        if effects and not self._effects:
            self._since = time.monotonic()
        if effects:
            repairs, last = self._mended
            suspicion = min(repairs, PATIENCE) if time.monotonic() - last < CALM else 0
            self._due = time.monotonic() + SETTLE * 2**suspicion
        self._effects.add(effects)

    def _known_host(self, reconciler: Reconciler) -> Host:
        if self._host and self._host.ipv6 != ipv6():  # of a sysctl no notification tells
            self._note(events.Effects(look=True))
        if self._host is None:
            self._host = reconciler.kernel.host()
            indices = (socket_index(nic.name) for nic in self._host.nics)
            self._watcher.nics = {index for index in indices if index is not None}
        return self._host

    def _follow(self) -> None:
        """Bring to the plan what may have changed: the node and everybody, or some users."""
        with self.reconciler() as reconciler:
            effects, since, self._effects = self._effects, self._since, events.Effects()
            before, self._followed = self._followed, self._snapshot(reconciler)
            if effects.touched or LINK_GROUP in effects.users or (effects.look and before != self._followed):
                mended = self._mend_all(reconciler)
            else:
                mended = effects.firewall and mend("node", reconciler.node)
                uids = {uid for uid in map(reconciler.uid_of_group, effects.users) if uid is not None}
                mended |= self._mend_users(reconciler, uids)
        if mended:
            log(f"follow: ended {1000 * (time.monotonic() - since):.0f} ms after the kernel told")
        if mended and before and before[0] == self._followed[0]:  # the node is as it was: somebody undid what we did
            self._mended = self._mended[0] + 1, time.monotonic()

    def _mend_all(self, reconciler: Reconciler) -> bool:
        """Users first, whose connections wait; unless there is no ground for them to stand on."""
        mended = not reconciler.node_is_up() and mend("node", reconciler.node)
        mended |= self._mend_users(reconciler, reconciler.known_uids())
        return mended | mend("node", reconciler.node)

    def _snapshot(self, reconciler: Reconciler) -> tuple[Host, tuple]:
        self.read()
        return self._known_host(reconciler), tuple(reconciler.kernel.rules())

    def _mend_users(self, reconciler: Reconciler, uids: set[int]) -> bool:
        """Bring networks to the plan; what is left of one that nobody is to have goes."""
        wanted = reconciler.wanted_uids()
        mended = False
        self._removed.clear()
        for uid in sorted(uids):
            self.breathe()
            if uid in self._removed:
                continue
            mended |= mend(label(uid), functools.partial(self._reconcile, uid, uid in wanted))
        return mended

    # -- leaving ---------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Remove the networks of users who have had no process for a while; mend what no notification tells of.

        It takes two sweeps: after the first, logins ask again instead of trusting the file test that they may just have made.
        """
        with self.reconciler() as reconciler:
            self._sweep_due = time.monotonic() + sweep_interval(reconciler.site)
            self._known_host(reconciler)
            present = accounts.real_uids() | reconciler.store.persistent()
            for uid in reconciler.uids():
                self.breathe()
                self._look_after(reconciler, uid, uid in present)
            self._mend_users(reconciler, reconciler.misplaced())
            mend("node", reconciler.node)  # of iptables-legacy no notification tells
        withdraw_strangers()

    def _look_after(self, reconciler: Reconciler, uid: int, present: bool) -> None:
        now, idle = time.monotonic(), reconciler.site.idle
        if present:
            self._seen[uid] = now
            if uid in self._leaving:
                self._leaving.discard(uid)
                self._mend_users(reconciler, {uid})
        elif not idle or now - self._seen.setdefault(uid, now) < idle:
            return
        elif uid not in self._leaving:
            withdraw(uid)
            self._leaving.add(uid)
        else:
            self._leaving.discard(uid)
            del self._seen[uid]
            log(f"remove {label(uid)}: no process for {idle} s")
            mend(label(uid), functools.partial(self._reconcile, uid, False))


def sweep_interval(site: Site) -> float:
    """Seconds between two sweeps."""
    return min(SWEEP, site.idle or SWEEP)


def label(uid: int) -> str:
    """A user as log lines name one."""
    return f"{accounts.name_of(uid) or '(no account)'} uid={uid}"


def log(text: str, error: bool = False) -> None:
    """One line for the journal; the prefix is its priority (sd-daemon(3))."""
    line = text.replace("\n", " | ").encode("utf-8", "backslashreplace").decode()
    print(f"<{3 if error else 6}>{line}", flush=True)


def mend(what: str, repair: Callable[[], list[Change]]) -> bool:
    """Whether there was something to mend; what cannot be mended is logged and does not keep the others from it."""
    try:
        changes = repair()
    except UvnError as error:
        log(f"follow {what} failed: {error}", error=True)
        return True
    if changes:
        log(f"follow {what}: {len(changes)} changes: {'; '.join(map(str, changes[:10]))}")
    return bool(changes)


def attempt(action: Callable[[], Any]) -> None:
    """Run a part of the daemon whose failure must not end it."""
    try:
        action()
    except UvnError as error:
        log(f"{action.__name__.strip('_')} failed: {error}", error=True)
    except Exception:
        log(f"{action.__name__.strip('_')} failed: {traceback.format_exc()}", error=True)
