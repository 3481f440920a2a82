# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uvnd without a kernel: its loop, its keeper, and a node that fails when a test says so. Time is a number."""

from __future__ import annotations

import contextlib
import json
import socket
from types import SimpleNamespace

from uvn import accounts, daemon, events, keeper
from uvn.errors import UvnError
from uvn.identity import LINK_GROUP

IDLE = 900
NEVER = socket.socketpair()  # which nobody writes to


class Echo:
    """A service that answers everything."""

    def handle(self, message):
        return {"ok": True, **message}


class Calm:
    """A keeper that has nothing to do."""

    def __init__(self):
        self.events, self.nftables = NEVER
        self.inquiry = NEVER[0]
        self.between = self.alive = self.work = self.read = lambda: None

    def wait(self):
        return 3600

    def attempt(self, action):
        action()


class Uvnd:
    """The loop, and clients that wait for an answer."""

    def __init__(self, keeper=None):
        self.keeper = keeper or Calm()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind("")
        self.listener.listen(1000)

    def client(self):
        """Somebody who has asked."""
        one = socket.socket(socket.AF_UNIX)
        one.connect(self.listener.getsockname())
        one.setblocking(False)
        one.send(b'{"op": "status"}\n')
        return one

    def rounds(self, witnesses=()):
        """What one client is told in one round."""
        one = self.client()
        daemon._round(self.keeper, Echo(), self.listener, witnesses)
        return answer(one)


def answer(client):
    """What a client was told, None when nothing."""
    with contextlib.suppress(BlockingIOError):
        return json.loads(client.recv(10000))
    return None


class Directory:
    """An inquiry: it answers at once and knows nobody, or not at all."""

    def __init__(self):
        self.silent, self._answers = False, None

    def fileno(self):
        return NEVER[0].fileno()

    def begin(self, *_about):
        self._answers = None if self.silent else accounts.Answers({}, {}, {})

    def pending(self):
        return 3600 if self.silent else None

    def take(self):
        answers, self._answers = self._answers, None
        return answers


class Failing:
    """Calls that fail: `failing` has their names with how often they still do."""

    def __init__(self):
        self.failing = {}

    def call(self, name):
        if self.failing.get(name, 0) > 0:
            self.failing[name] -= 1
            raise UvnError(f"{name}: the kernel did not answer")


class Node(Failing):
    """A reconciler: users with networks, of which some are damaged; `done` has what was brought to the plan, in order."""

    def __init__(self, *users):
        super().__init__()
        self.site = SimpleNamespace(idle=IDLE, table_base=1, nat6=[0])
        self.kernel = SimpleNamespace(host=self._host, rules=list, devices=lambda *_kinds: {})
        self.store = SimpleNamespace(persistent=set)
        self.users, self.damaged, self.done = set(users), set(), []
        self.forgotten, self.entered, self.closed = set(), 0, False
        self.drift = False
        self.wait = None

    def _host(self):
        self.call("host")
        return SimpleNamespace(nics=(), ipv6=True)

    @property
    def held(self):
        return bool(self.entered)

    def __enter__(self):
        self.call("lock")
        self.entered += 1
        return self

    def __exit__(self, *_exc):
        self.entered -= 1

    def close(self):
        self.closed = True

    def user(self, uid, present, check=False, host=None):
        assert self.held
        self.call(uid)
        self.done.append(uid if present else -uid)
        changed = uid in self.damaged or not present
        self.damaged.discard(uid)
        if not present:
            self.users.discard(uid)
        return ["mended"] if changed else []

    def node(self):
        self.call("node")
        self.done.append("node")
        changes, self.drift = ["put back"] if self.drift else [], False
        return changes

    def forget_devices(self, indices):
        assert self.held, "the map has one writer, who holds the lock"
        self.call("forget")
        self.forgotten |= indices

    def begin(self, inquiry, _running):
        inquiry.begin()

    def learn(self, _answers):
        assert self.held
        return set()

    def is_exempt(self, _uid):
        return False

    def node_is_up(self):
        return True

    def uids(self):
        return sorted(self.users)

    known_uids = wanted_uids = lambda self: set(self.users)

    def misplaced(self):
        return set()

    def group_of(self, uid):
        return LINK_GROUP + uid

    def uid_of_group(self, group):
        return group - LINK_GROUP


class Keeping:
    """A keeper on a node. `tell` is the kernel's part, `present` are UIDs with processes."""

    def __init__(self, monkeypatch, tmp_path, *users):
        self.node, self.now, self.told, self.present, self.said = Node(*users), 1000.0, events.Effects(), set(users), []
        site = tmp_path / "site.json"
        site.write_text("{}")
        monkeypatch.setattr(keeper, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(keeper, "load", lambda _path: self.node.call("load") or self.node.site)
        monkeypatch.setattr(keeper, "Reconciler", self._open)
        monkeypatch.setattr(keeper, "log", lambda text, error=False: self.said.append(text))
        monkeypatch.setattr(keeper, "withdraw", lambda uid: None)
        monkeypatch.setattr(keeper, "withdraw_strangers", self._withdraw_strangers)
        monkeypatch.setattr(keeper.accounts, "Inquiry", Directory)
        monkeypatch.setattr(keeper, "ipv6", lambda: True)
        monkeypatch.setattr(keeper.accounts, "name_of", lambda uid: None)
        monkeypatch.setattr(keeper.accounts, "real_uids", lambda *_breathe: set(self.present))
        monkeypatch.setattr(events, "listen", lambda: None)
        monkeypatch.setattr(events, "listen_to_nftables", lambda: None)
        monkeypatch.setattr(events, "drain", lambda *_from: self._drain())
        monkeypatch.setattr(events, "drain_nftables", lambda _socket: events.Effects())
        self.keeper = keeper.Keeper(str(site))

    def _open(self, _site, *_wait):
        return self.node

    def _withdraw_strangers(self, _names):
        assert self.node.held, "the ready files have one writer, who holds the lock"

    def _drain(self):
        told, self.told = self.told, events.Effects()
        return told

    def calm(self):
        """Nothing is due but the next sweep, and nothing was done yet."""
        self.work(seconds=2)
        self.node.done.clear()
        self.said.clear()
        return self

    def tell(self, **effects):
        self.told.add(events.Effects(**effects))
        self.keeper.attempt(self.keeper.read)

    def work(self, seconds):
        """Let that time pass, with every piece of work when it is due."""
        end = self.now + seconds
        while True:
            self.keeper.work()
            self.keeper.attempt(self.keeper.read)
            due = self.now + max(self.keeper.wait(), 0.001)
            if due > end:
                self.now = end
                return
            self.now = due
