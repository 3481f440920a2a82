# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps users' networks as planned while the node changes, and takes them away when their users have left.

It holds nothing that the kernel does not know but when a user's process was seen last and what the directory said: killed at any moment,
uvnd goes on.
"""

# pylint: disable=ansible-bad-function  # part of a program of the nodes, no Ansible module imports it

from __future__ import annotations

import contextlib
import functools
import math
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
from .resolved import Resolved
from .site import PATH, Site, load
from .store import vouched, withdraw, withdraw_strangers
from .underlay import Host

SETTLE = 0.2  # seconds of quiet after a network event before the node is looked at
CALM = 60  # seconds without a repair after which nobody is suspected any more of undoing ours
PATIENCE = 6  # repairs in a row after which the wait between them grows no longer: SETTLE * 2 ** PATIENCE, 13 s
QUIET = 1  # seconds after a change until systemd-resolved, which learns of devices as we do, is told about them
SWEEP = 60  # seconds between two looks at who has left
SILENCE = 30  # seconds after which a directory that has not answered counts as silent
RETRY = 10  # seconds until what failed as a whole is tried again, as with a site file that cannot be read
EVERYBODY = 30  # sweeps from one comparison of all networks to the next, whatever was told or missed
LOCK_WAIT = 30  # seconds that another program may have the lock; a login waits for 60
REMIND = 86400  # seconds until the journal is told again that the site file, still the same, cannot be used


class Keeper:
    """The one Reconciler of uvnd, and what the kernel told since it was used last.

    `between` is called between two users of a long piece of work, so that a login need not wait for its end. What it does is not interrupted
    in turn. `alive` is called at least as often, and whenever a piece of work has come to its end.
    """

    def __init__(self, site_path: str = PATH) -> None:
        self._site_path = site_path
        self._stamp: Any = None
        self._told: tuple[Any, float] = ("", 0.0)  # of which site file the journal knows that it cannot be used, and since when
        self._reconciler: Reconciler | None = None
        self._watcher = events.Watcher(0, 0)
        self._host: Host | None = None
        self._followed: Any = None  # host and rules when all was followed last
        self._effects = events.Effects(look=True, touched=True)
        self._since = time.monotonic()  # when the kernel told the first of the effects
        self._due = 0.0
        self._mended = (0, 0.0)  # repairs in a row, and when the last was
        self._repaired = ""  # the last one, as in the journal
        self._failed = events.Effects()  # what could not be mended, and is tried again
        self._failures, self._again = 0, 0.0  # runs in a row that left such, and when the next is due
        self._gone: set[int] = set()  # indices of deleted devices that membership may still have
        self._said: dict[str, str] = {}  # what goes on failing, and the sentence that the journal has of it
        self._sweep_due, self._sweeps = 0.0, 0
        self._resolved, self._resolved_due = Resolved(), 0.0
        self._seen: dict[int, float] = {}  # when a user's process was seen last
        self._leaving: set[int] = set()  # users whose logins ask again, and whose networks go with the next sweep
        self.events, self.nftables = events.listen(), events.listen_to_nftables()
        self.between: Callable[[], None] = lambda: None
        self.alive: Callable[[], None] = lambda: None
        self._breathing = False
        self._removed: set[int] = set()  # on request, since the last piece of work on many users began
        self.inquiry = accounts.Inquiry()
        self._answers: accounts.Answers | None = None  # of the directory, not heeded yet
        self._silent = False  # whether the directory was when it was asked last
        for name, uid in vouched().items():
            accounts.learn(uid, name)

    def reconciler(self) -> Reconciler:
        """The one of the site file as it is now; it stays open as long as the file stays. Use it as a context manager.

        Raises UvnError when the file cannot be used.
        """
        if self._reconciler and self._reconciler.held:
            return self._reconciler
        stamp = self._site_stamp()
        if self._reconciler is None or stamp is None or stamp != self._stamp:
            site = load(self._site_path)
            with contextlib.ExitStack() as failing:
                reconciler = Reconciler(site, LOCK_WAIT)
                failing.callback(reconciler.close)
                devices = reconciler.kernel.devices("vrf", "vxlan", "dummy")
                failing.pop_all()
            if self._reconciler:
                self._reconciler.close()
            self._reconciler, self._stamp, self._host = reconciler, stamp, None
            self._effects.add(events.Effects(look=True, touched=True))
            self._reconciler.changed = self._changed
            self._watcher = events.Watcher(site.table_base, int(site.nat6[0]), devices)
            self._sweep_due = min(self._sweep_due, time.monotonic() + sweep_interval(site))
        return self._reconciler

    def in_force(self) -> Reconciler:
        """The same; while the site file cannot be used, the one of the last that could, by which the kernel works in any case.

        So a slip in the file locks nobody out, and isolates nobody less than before. Raises UvnError when there has been none.
        """
        try:
            return self.reconciler()
        except UvnError as error:
            if self._reconciler is None:
                raise
            if self._told[0] != self._site_stamp() or time.monotonic() - self._told[1] > REMIND:
                self._told = self._site_stamp(), time.monotonic()
                log(f"{error}; until then logins and what uvnd follows go by the configuration from before", error=True)
            return self._reconciler

    def _site_stamp(self) -> Any:
        """What changes with the site file, None without one."""
        try:
            status = os.stat(self._site_path)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def user(self, uid: int, present: bool, check: bool = False) -> list[Change]:
        """As Reconciler.user, at somebody's request."""
        changes = self._reconcile(uid, present, check)
        if not check:
            self.saw([uid])
            (self._removed.discard if present else self._removed.add)(uid)
        return changes

    def breathe(self) -> None:
        """Between two users of a long piece of work."""
        self.alive()
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
        if self._gone and self._reconciler:
            with self._reconciler as reconciler:
                reconciler.forget_devices(self._gone)
            self._gone = set()
        self._answers = self.inquiry.take() or self._answers

    def wait(self) -> float:
        """Seconds until `work` has something to do."""
        if self._answers:
            return 0.0
        due = [self._sweep_due, self._resolved_due, *([self._due] if self._effects else []), *([self._again] if self._failed else [])]
        return max(0.0, min(due) - time.monotonic())

    def work(self) -> None:
        """What is due: mend what the kernel told of, look who has left, heed what the directory said."""
        now = time.monotonic()
        if (self._effects and now >= self._due) or (self._failed and now >= self._again):
            self._due = self._again = now + RETRY  # unless it succeeds, or more happens
            self.attempt(self._follow)
        if now >= self._sweep_due:
            self._sweep_due = now + SWEEP
            self.attempt(self._sweep)
        if self._answers:
            self.attempt(self._heed)
        if now >= self._resolved_due:
            self._resolved_due = math.inf
            self.attempt(self._silence)

    def _silence(self) -> None:
        """The devices of users' networks are none for the name services of the site's links."""
        with self.in_force() as reconciler:
            self._resolved.silence(reconciler.kernel.devices("vxlan"))

    def attempt(self, action: Callable[[], Any]) -> Any:
        """Run a part of uvnd whose failure must not end it; None when it failed."""
        return self._attempt(action.__name__.strip("_"), action)

    def _attempt(self, what: str, action: Callable[[], Any]) -> Any:
        """The journal is told of a failure once, until it is over or another one."""
        try:
            result = action()
        except UvnError as error:
            sentence = str(error)
        except Exception:
            sentence = traceback.format_exc()
        else:
            self._said.pop(what, None)
            return result
        if self._said.get(what) != sentence:
            self._said[what] = sentence
            log(f"{what} failed: {sentence}", error=True)
        return None

    def _reconcile(self, uid: int, present: bool, check: bool = False) -> list[Change]:
        self.alive()
        with self.in_force() as reconciler:
            self.read()
            return reconciler.user(uid, present, check, self._known_host(reconciler))

    def _changed(self, group: int) -> None:
        """What was told of a user or of the node until now is our own doing."""
        self.alive()
        self._note(events.drain(self.events, self._watcher).without(group))
        events.drain_nftables(self.nftables)
        self._resolved_due = time.monotonic() + QUIET

    def _note(self, effects: events.Effects) -> None:
        if effects.look or effects.touched:
            self._host = None
        self._gone |= set(effects.gone)
        if effects and not self._effects:
            self._since = time.monotonic()
        if effects:
            self._due = time.monotonic() + SETTLE * 2 ** min(self._repairs(), PATIENCE)
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
        """Bring to the plan what may have changed, or could not be mended before; nothing of it is forgotten before it is done."""
        with self.in_force() as reconciler:
            told, effects = self._since if self._effects else None, self._effects
            effects.add(self._failed)
            self._effects, self._failed = events.Effects(), events.Effects()
            try:
                mended = self._mend(reconciler, effects)
            except Exception:
                self._effects.add(effects)
                raise
        self._failures = self._failures + 1 if self._failed else 0
        self._again = time.monotonic() + SETTLE * 2 ** min(self._failures, PATIENCE)
        if mended and told and not self._failed:
            log(f"follow: ended {1000 * (time.monotonic() - told):.0f} ms after the kernel told")

    def _mend(self, reconciler: Reconciler, effects: events.Effects) -> bool:
        """Whether there was something to mend: of the node and everybody, or of some users."""
        before, after = self._followed, self._snapshot(reconciler)
        if effects.touched or LINK_GROUP in effects.users or (effects.look and before != after):
            mended = self._mend_all(reconciler)
        else:
            mended = effects.node and self._mend_node(reconciler)
            uids = {uid for uid in map(reconciler.uid_of_group, effects.users) if uid is not None}
            mended |= self._mend_users(reconciler, uids)
        self._followed = after
        if mended and before and before[0] == after[0]:  # the node is as it was: somebody undid what we did
            self._undone()
        return mended

    def _undone(self) -> None:
        repairs = self._repairs() + 1
        self._mended = repairs, time.monotonic()
        if repairs == PATIENCE:
            log(f"another program undoes what uvnd does, {repairs} times in a row by now: {self._repaired}", error=True)

    def _repairs(self) -> int:
        """In a row, without calm in between."""
        repairs, last = self._mended
        return repairs if time.monotonic() - last < CALM else 0

    def _mend_all(self, reconciler: Reconciler) -> bool:
        """Users first, whose connections wait; unless there is no ground for them to stand on."""
        mended = not reconciler.node_is_up() and self._mend_node(reconciler)
        mended |= self._mend_users(reconciler, reconciler.known_uids())
        return mended | self._mend_node(reconciler)

    def _mend_node(self, reconciler: Reconciler) -> bool:
        changes = self._repair("node", reconciler.node)
        self._failed.node |= changes is None
        return bool(changes)

    def _repair(self, what: str, repair: Callable[[], list[Change]]) -> list[Change] | None:
        """The changes that it took; None when it failed, which does not keep the others from it."""
        changes = self._attempt(f"follow {what}", repair)
        if changes:
            self._repaired = f"{what}: {counted(changes)}: {'; '.join(map(str, changes[:10]))}"
            log(f"follow {self._repaired}")
        return changes

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
            changes = self._repair(label(uid), functools.partial(self._reconcile, uid, uid in wanted))
            if changes is None:
                self._failed.users |= {reconciler.group_of(uid)} - {None}
            mended |= bool(changes)
        return mended

    # -- leaving ---------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Remove the networks of users who have had no process for a while; mend what no notification tells of.

        It takes two sweeps: after the first, logins ask again instead of trusting the file test that they may just have made.
        """
        with self.in_force() as reconciler:
            self._sweep_due = time.monotonic() + sweep_interval(reconciler.site)
            self._sweeps += 1
            if self._sweeps % EVERYBODY == 0:
                self._note(events.Effects(touched=True))
            self._known_host(reconciler)
            running = accounts.real_uids(self.breathe)
            present = running | reconciler.store.persistent()
            for uid in reconciler.uids():
                self.breathe()
                self._look_after(reconciler, uid, uid in present)
            self._mend_users(reconciler, reconciler.misplaced())
            self._mend_node(reconciler)  # of iptables-legacy no notification tells
            self._inquire(reconciler, running)

    def _inquire(self, reconciler: Reconciler, running: set[int]) -> None:
        """Ask the directory, which may take its time."""
        pending = self.inquiry.pending()
        if pending is None:
            reconciler.begin(self.inquiry, running)
        elif pending > SILENCE:
            self._tell(["anything"])

    def _heed(self) -> None:
        """Take over whom the directory makes exempt, or no longer; logins of accounts that have another UID by now ask again."""
        answers, self._answers = self._answers, None
        if answers is None:
            return
        self._tell(answers.silent)
        with self.in_force() as reconciler:
            withdraw_strangers(answers.names)
            changed = reconciler.learn(answers)
            lost = sorted(uid for uid in changed if not reconciler.is_exempt(uid))
            for uid in lost:
                withdraw(uid)
            if changed:
                self._mend_node(reconciler)
            running = accounts.real_uids(self.breathe) if lost else set()
            for uid in lost:
                self.breathe()
                self._repair(label(uid), functools.partial(self._reconcile, uid, uid in running))

    def _tell(self, silent: Sequence[str]) -> None:
        """Say once that the directory is silent, and once that it answers again."""
        if silent and not self._silent:
            some = ", ".join(silent[:5]) + (f" and {len(silent) - 5} more" if len(silent) > 5 else "")
            log(f"the directory does not answer ({some}): who is exempt, and whose logins are trusted, stays as last known", error=True)
        elif self._silent and not silent:
            log("the directory answers again")
        self._silent = bool(silent)

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
            if not reconciler.is_exempt(uid):
                withdraw(uid)
            self._leaving.add(uid)
        elif self._repair(label(uid), functools.partial(self._reconcile, uid, False)) is not None:  # else with the next sweep
            log(f"remove {label(uid)}: no process for {idle} s")
            self._leaving.discard(uid)
            del self._seen[uid]


def sweep_interval(site: Site) -> float:
    """Seconds between two sweeps."""
    return min(SWEEP, site.idle or SWEEP)


def label(uid: int) -> str:
    """A user as log lines name one."""
    return f"{accounts.name_of(uid) or '(name unknown)'} uid={uid}"


def log(text: str, error: bool = False) -> None:
    """One line for the journal; the prefix is its priority (sd-daemon(3))."""
    line = text.replace("\n", " | ").encode("utf-8", "backslashreplace").decode()
    print(f"<{3 if error else 6}>{line}", flush=True)


def counted(changes: Sequence[Any]) -> str:
    """The number of changes, as log lines give it."""
    return f"{len(changes)} change{'' if len(changes) == 1 else 's'}"
