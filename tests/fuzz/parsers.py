# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Coverage-guided fuzzing of everything that reads from a socket or from the kernel's log: python3 tests/fuzz/parsers.py TARGET [LIBFUZZER OPTION...]

An exception that reaches the fuzzer ends it, with the input in a file `crash-*`. `make fuzz` runs every target for a while.
"""

from __future__ import annotations

import json
import pathlib
import socket
import sys
from typing import Any

import atheris

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "plugins" / "module_utils"))

atheris.enabled_hooks.add("RegEx")
with atheris.instrument_imports(include=["uvn"]):
    from uvn import daemon, events, netlink, service, site, witness

TABLE_BASE = 100000000
# Only the kernel can send to our netlink sockets (netlink_sendmsg, net/netlink/af_netlink.c), so headers and structs are whole.
KINDS = (
    events.RTM_NEWLINK, events.RTM_DELLINK, events.RTM_NEWADDR, events.RTM_DELADDR, events.RTM_NEWROUTE, events.RTM_DELROUTE,
    events.RTM_NEWNETCONF,
)  # fmt: skip
WORDS = ("op", "ensure", "remove", "show", "status", "user", "users", "uid", "uids", "check", "persistent", "brief", "job", "root")
WORDS += ("accounts", "name", "gids", "exempt")
STRUCT = 16  # bytes, of the longest struct behind a header


class Unconfigured:
    """What uvnd works with on a node whose site file is missing: requests go no further than to be understood."""

    def reconciler(self):
        return site.load("/nonexistent/site.json")

    in_force = reconciler


class Connected:
    """A listener on which one client waits."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def accept(self):
        return self._connection, None


def value(chosen: atheris.FuzzedDataProvider, depth: int) -> Any:
    """A JSON value in the words of requests."""
    kind = chosen.ConsumeIntInRange(0, 5 if depth else 3)
    if kind == 5:
        return {word: value(chosen, depth - 1) for word in WORDS if chosen.ConsumeBool()}
    if kind == 4:
        return [value(chosen, depth - 1) for _number in range(chosen.ConsumeIntInRange(0, 4))]
    return (chosen.PickValueInList([None, True, False, *WORDS]), chosen.ConsumeInt(8), chosen.ConsumeUnicode(8), chosen.ConsumeFloat())[kind]


def request(data: bytes) -> None:
    """What a client of uvnd sends: one line is answered, with a refusal that is no fault of uvnd's; anything else is dropped."""
    chosen = atheris.FuzzedDataProvider(data)
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall((data if chosen.ConsumeBool() else json.dumps(value(chosen, 4)).encode()) + b"\n")
        daemon._serve(service.Service(Unconfigured()), Connected(ours))
        answer = theirs.recv(2**20)
    assert not answer or "uvnd failed" not in json.loads(answer)["error"], answer


def notifications(data: bytes) -> None:
    """What the kernel tells of devices, addresses, routes and rules."""
    watcher = events.Watcher(TABLE_BASE, 0xFD << 120)
    for part in data.split(b"|"):
        watcher.read(netlink.pack(KINDS[sum(part[:1]) % len(KINDS)], 0, part[1:].ljust(STRUCT, b"\0"), ()))


def answers(data: bytes) -> None:
    """What the kernel answers to requests over netlink, from the flags and the error number on."""
    flags, number = data[0:1].ljust(1, b"\0")[0] << 4, -(int.from_bytes(data[1:3], "little") & 0xFFF)
    body = number.to_bytes(4, "little", signed=True) + data[3:]
    messages = [message for _number, message in netlink.split(netlink.pack(netlink.NLMSG_ERROR, flags, body, ()) + data)]
    netlink._refused(messages[0])
    for message in messages:
        netlink.attributes_of(message.data, netlink.HEADER.size)


def log(data: bytes) -> None:
    """Records of the kernel's log, whose text is partly a packet's."""
    witness.describe(data.decode(errors="replace"))


def say(text: str, error: bool = False) -> None:
    """The journal; uvnd goes on after a fault of its own, which is what is looked for here."""
    assert not text.startswith("request failed"), text


TARGETS = {function.__name__: function for function in (request, notifications, answers, log)}

if __name__ == "__main__":
    daemon.log = say
    service.log = lambda text, error=False: None
    witness.holder = lambda protocol, port, uid: "unknown"
    witness._name = lambda uid: "alice"
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
