# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard: the nftables table `inet uvn`, which drops and keeps from tracking, and so needs no cooperation from the site's firewall.

The table as a whole is made by `nft` in one transaction; the elements of a user by netlink, since a login must not wait for processes.
A rule's comment repeats the rule as the plan has it: nft prints rules in words that differ from version to version.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import socket
import struct
import subprocess
import sys
from typing import Any, Iterator, Sequence

from .diff import Change
from .errors import UvnError
from .netlink import (
    HEADER,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    Netlink,
    Refused,
    attributes,
    attributes_of,
    pack,
    pack_attributes,
)
from .objects import Element, Guard, Object
from .plan import SETS

FAMILY, TABLE = "inet", "uvn"
NFT = "/usr/sbin/nft"
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
TIMEOUT = 30  # seconds

# Bytes of the fields in the keys of the plan's sets. 2: a port, in network order; 4: a number, in the machine's; below 0: an address
KEYS = {"ports": (2,), "exempt": (4,), "own": (4, 4), "nat4": (4, -4), "nat6": (4, -16)}

# include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h
NETLINK_NETFILTER = 12
NFPROTO_INET = 1
NFNL_SUBSYS_NFTABLES = 10
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 16, 17
NFT_MSG_GETTABLE = NFNL_SUBSYS_NFTABLES << 8 | 1
NFT_MSG_NEWSETELEM, NFT_MSG_GETSETELEM, NFT_MSG_DELSETELEM = (NFNL_SUBSYS_NFTABLES << 8 | number for number in (12, 13, 14))
NFTA_TABLE_NAME = 1
NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE = 1, 1, 1
NLA_F_NESTED = 0x8000
NFGENMSG = struct.Struct(">BBH")  # struct nfgenmsg: family, version, resource


class Table:
    """The table in the kernel. Raises UvnError when the kernel or nft refuses."""

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_NETFILTER)

    def close(self) -> None:
        self._netlink.close()

    def exists(self) -> bool:
        """Whether there is such a table, whatever is in it."""
        return self._has(_message(NFT_MSG_GETTABLE, 0, [(NFTA_TABLE_NAME, _text(TABLE))]))

    def observe(self) -> list[Object]:
        """The table and all elements of its sets."""
        if not self.exists():
            return []
        listed = json.loads(_nft("-j", "-t", "list", "table", FAMILY, TABLE))
        return [parse(listed), *(element for name in KEYS for element in self._elements(name))]

    def existing(self, elements: Sequence[Object]) -> list[Object]:
        """Those of the elements that there are."""
        return [element for element in elements if self._has(_elements_message(NFT_MSG_GETSETELEM, 0, element))]

    def counters(self) -> dict[str, int]:
        """Packets by cause since the table was made."""
        if not self.exists():
            return {}
        listed = json.loads(_nft("-j", "list", "counters", "table", FAMILY, TABLE))["nftables"]
        return {item["counter"]["name"]: item["counter"]["packets"] for item in listed if "counter" in item}

    def apply(self, changes: Sequence[Change]) -> None:
        """Carry out changes, all or none."""
        if any(isinstance(change.object, Guard) for change in changes):
            _nft("-f", "-", text=render(changes))
            return
        begin, end = (
            pack(kind, 0, NFGENMSG.pack(socket.AF_UNSPEC, 0, NFNL_SUBSYS_NFTABLES), ()) for kind in (NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END)
        )
        requests = [
            _elements_message(NFT_MSG_DELSETELEM if change.op == "delete" else NFT_MSG_NEWSETELEM, NLM_F_ACK | NLM_F_CREATE, change.object)
            for change in changes
        ]
        for change, error in zip(changes, self._netlink.transaction(begin, requests, end)):
            if error:
                raise UvnError(f"cannot {change} of the table {FAMILY} {TABLE}: {error}; try again")

    def _has(self, request: bytes) -> bool:
        try:
            self._netlink.get(request)
        except Refused as error:
            if error.code == errno.ENOENT:
                return False
            raise UvnError(f"the kernel refused to show the table {FAMILY} {TABLE}: {error}") from None
        return True

    def _elements(self, name: str) -> Iterator[Object]:
        wanted = [(NFTA_SET_ELEM_LIST_TABLE, _text(TABLE)), (NFTA_SET_ELEM_LIST_SET, _text(name))]
        for message in self._netlink.dump(_message(NFT_MSG_GETSETELEM, NLM_F_DUMP, wanted)):
            listed = attributes_of(message.data, HEADER.size + NFGENMSG.size).get(NFTA_SET_ELEM_LIST_ELEMENTS, b"")
            for _number, element in attributes(listed):
                key = attributes_of(attributes_of(element)[NFTA_SET_ELEM_KEY])[NFTA_DATA_VALUE]
                yield Element(name, _unpack(name, key))


def parse(listed: dict[str, Any]) -> Guard:
    """The table in the output of `nft -j -t list table`, in the words of the plan where it is as we made it."""
    items = listed["nftables"]
    dormant = [("flags", str(item["table"]["flags"]), ()) for item in items if item.get("table", {}).get("flags")]
    rules = [item["rule"] for item in items if "rule" in item]
    chains = (
        (chain["name"], _hook(chain), tuple(rule.get("comment", "") for rule in rules if rule["chain"] == chain["name"]))
        for chain in (item["chain"] for item in items if "chain" in item)
    )
    return Guard(
        counters=tuple(sorted(item["counter"]["name"] for item in items if "counter" in item)),
        sets=tuple(sorted(item["set"]["name"] for item in items if "set" in item)),
        chains=tuple(sorted([*chains, *dormant])),
    )


def render(changes: Sequence[Change]) -> str:
    """Input for `nft -f -` that makes the table anew with its elements, or removes it."""
    guard = next(change for change in changes if isinstance(change.object, Guard))
    lines = [f"table {FAMILY} {TABLE}", f"delete table {FAMILY} {TABLE}"]  # the first makes the second possible
    if guard.op != "delete":
        elements = [change.object for change in changes if isinstance(change.object, Element)]
        lines += [f"table {FAMILY} {TABLE} {{", *_definitions(guard.object, elements), "}"]
    return "\n".join(lines) + "\n"


def _definitions(guard: Guard, elements: Sequence[Element]) -> Iterator[str]:
    for name in guard.counters:
        yield f"counter {name} {{ }}"
    for name in guard.sets:
        keys = ", ".join(" . ".join(map(str, element.value)) for element in elements if element.set == name)
        yield f"set {name} {{ typeof {SETS[name]}; {f'elements = {{ {keys} }}' if keys else ''} }}"
    for name, hook, rules in guard.chains:
        where, _space, priority = hook.partition(" ")
        yield f"chain {name} {{ {f'type filter hook {where} priority {priority}; policy accept;' if hook else ''}"
        for rule in rules:
            quoted = rule.replace("'", '"')
            yield f'{quoted} comment "{rule}"'
        yield "}"


def _hook(chain: dict[str, Any]) -> str:
    """The hook of a chain and its priority, as the plan has them; with type and policy where these are not as we make them."""
    if "hook" not in chain:
        return ""
    hook = f"{chain['hook']} {chain['prio']}"
    return hook if (chain["type"], chain["policy"]) == ("filter", "accept") else f"{hook} {chain['type']} {chain['policy']}"


def _nft(*arguments: str, text: str | None = None) -> str:
    try:
        done = subprocess.run(
            [NFT, *arguments], input=text, capture_output=True, text=True, env=ENVIRONMENT, timeout=TIMEOUT, check=False
        )
    except FileNotFoundError:
        raise UvnError(f"{NFT} is missing; install the package nftables") from None
    except subprocess.TimeoutExpired:
        raise UvnError(f"{NFT} did not end within {TIMEOUT} s; see `nft monitor` for who keeps changing the tables") from None
    if done.returncode:
        raise UvnError(f"{NFT} refused: {' '.join(done.stderr.split())}")
    return done.stdout


def _message(kind: int, flags: int, wanted: Sequence[tuple[int, bytes]]) -> bytes:
    return pack(kind, flags, NFGENMSG.pack(NFPROTO_INET, 0, 0), wanted)


def _elements_message(kind: int, flags: int, element: Element) -> bytes:
    value = pack_attributes([(NFTA_DATA_VALUE, _pack(element))])
    key = pack_attributes([(NFTA_SET_ELEM_KEY | NLA_F_NESTED, value)])
    elements = pack_attributes([(NFTA_LIST_ELEM | NLA_F_NESTED, key)])
    names = [(NFTA_SET_ELEM_LIST_TABLE, _text(TABLE)), (NFTA_SET_ELEM_LIST_SET, _text(element.set))]
    return _message(kind, flags, [*names, (NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED, elements)])


def _pack(element: Element) -> bytes:
    """The key of an element in the kernel; in a concatenation every field takes whole registers of 4 bytes."""
    fields = zip(KEYS[element.set], element.value)
    return b"".join(value.packed if size < 0 else value.to_bytes(size, "big" if size == 2 else sys.byteorder) for size, value in fields)


def _unpack(name: str, key: bytes) -> tuple:
    value, offset = [], 0
    for size in KEYS[name]:
        part = key[offset : offset + abs(size)]
        value.append(ipaddress.ip_address(part) if size < 0 else int.from_bytes(part, "big" if size == 2 else sys.byteorder))
        offset += abs(size)
    return tuple(value)


def _text(name: str) -> bytes:
    return name.encode() + b"\0"
