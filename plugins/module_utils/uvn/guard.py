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
from typing import Any, Iterable, Iterator, Sequence

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

# Bytes of the fields in the keys of the plan's sets, but those that packets fill. 2: a port, in network order; 4: a number, in the machine's;
# below 0: an address
KEYS = {"ports": (2,), "exempt": (4,), "own": (4, 4), "nat4": (4, -4), "nat6": (4, -16)}
KEYS.update({f"{name}4": (-4,) for name in ("direct", "closed", "nodes", "answers")})
KEYS.update({f"{name}6": (-16,) for name in ("direct", "closed", "nodes", "answers")})

# include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h
NETLINK_NETFILTER = 12
NFPROTO_INET = 1
NFNL_SUBSYS_NFTABLES = 10
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 16, 17
NFT_MSG_GETTABLE = NFNL_SUBSYS_NFTABLES << 8 | 1
NFT_MSG_NEWSETELEM, NFT_MSG_GETSETELEM, NFT_MSG_DELSETELEM = (NFNL_SUBSYS_NFTABLES << 8 | number for number in (12, 13, 14))
NFTA_TABLE_NAME = 1
NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_FLAGS, NFTA_DATA_VALUE = 1, 1, 3, 1
INTERVAL_END = bytes((0, 0, 0, 1))  # NFT_SET_ELEM_INTERVAL_END, in network order
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
        table = parse(json.loads(_nft("-j", "-t", "list", "table", FAMILY, TABLE)))
        return [table, *(element for name in table.sets if kind(name) in KEYS for element in self._elements(name))]

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
        ordered = sorted(changes, key=lambda change: change.op != "delete")  # an interval comes after those that it overlaps have gone
        begin, end = (
            pack(kind, 0, NFGENMSG.pack(socket.AF_UNSPEC, 0, NFNL_SUBSYS_NFTABLES), ()) for kind in (NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END)
        )
        requests = [
            _elements_message(NFT_MSG_DELSETELEM if change.op == "delete" else NFT_MSG_NEWSETELEM, NLM_F_ACK | NLM_F_CREATE, change.object)
            for change in ordered
        ]
        for change, error in zip(ordered, self._netlink.transaction(begin, requests, end)):
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
        found = []
        for message in self._netlink.dump(_message(NFT_MSG_GETSETELEM, NLM_F_DUMP, wanted)):
            listed = attributes_of(message.data, HEADER.size + NFGENMSG.size).get(NFTA_SET_ELEM_LIST_ELEMENTS, b"")
            for element in (attributes_of(value) for _number, value in attributes(listed)):
                key = attributes_of(element[NFTA_SET_ELEM_KEY])[NFTA_DATA_VALUE]
                found.append((_unpack(name, key), element.get(NFTA_SET_ELEM_FLAGS) == INTERVAL_END))
        values = networks(found) if is_interval(name) else (value for value, _end in found)
        return (Element(name, value) for value in values)


def kind(name: str) -> str:
    """What the plan's SETS call a set of that name."""
    return name.partition("_")[0]


def is_interval(name: str) -> bool:
    """Whether a set holds networks."""
    return "interval" in SETS[kind(name)]


def networks(bounds: Iterable[tuple[tuple, bool]]) -> Iterator[tuple]:
    """The networks in a set of intervals, of which the kernel keeps the first address and, marked as an end, the one after the last."""
    ordered = sorted((address, not end) for (address,), end in bounds)
    for (first, starts), (after, _starts) in zip(ordered, [*ordered[1:], (None, False)]):
        if starts:
            last = after - 1 if after else type(first)(2**first.max_prefixlen - 1)
            for network in ipaddress.summarize_address_range(first, last):
                yield (network,)


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
        yield f"set {name} {{ {SETS[kind(name)]}; {f'elements = {{ {keys} }}' if keys else ''} }}"
    for name, hook, rules in guard.chains:
        yield f"chain {name} {{ {'type {} hook {} priority {}; policy accept;'.format(*hook.split()) if hook else ''}"
        for rule in rules:
            quoted = rule.replace("'", '"')
            yield f'{quoted} comment "{rule}"'
        yield "}"


def _hook(chain: dict[str, Any]) -> str:
    """The hook of a chain as the plan has it; with its policy where that is not as we make it."""
    if "hook" not in chain:
        return ""
    return f"{chain['type']} {chain['hook']} {chain['prio']}" + ("" if chain["policy"] == "accept" else f" {chain['policy']}")


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
    elements = pack_attributes((NFTA_LIST_ELEM | NLA_F_NESTED, pack_attributes(parts)) for parts in _parts(element))
    names = [(NFTA_SET_ELEM_LIST_TABLE, _text(TABLE)), (NFTA_SET_ELEM_LIST_SET, _text(element.set))]
    return _message(kind, flags, [*names, (NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED, elements)])


def _parts(element: Element) -> Iterator[list[tuple[int, bytes]]]:
    """What the kernel has for an element, as attributes: one key, or for a network the bounds, of which the last address of all has no end."""
    if not is_interval(element.set):
        yield [_key(element.set, element.value)]
        return
    (network,) = element.value
    yield [_key(element.set, (network.network_address,))]
    last = network.broadcast_address
    if int(last) + 1 < 2**last.max_prefixlen:
        yield [_key(element.set, (last + 1,)), (NFTA_SET_ELEM_FLAGS, INTERVAL_END)]


def _key(name: str, value: tuple) -> tuple[int, bytes]:
    return NFTA_SET_ELEM_KEY | NLA_F_NESTED, pack_attributes([(NFTA_DATA_VALUE, _pack(name, value))])


def _pack(name: str, value: tuple) -> bytes:
    """A key in the kernel; in a concatenation every field takes whole registers of 4 bytes."""
    fields = zip(KEYS[kind(name)], value)
    return b"".join(value.packed if size < 0 else value.to_bytes(size, "big" if size == 2 else sys.byteorder) for size, value in fields)


def _unpack(name: str, key: bytes) -> tuple:
    value, offset = [], 0
    for size in KEYS[kind(name)]:
        part = key[offset : offset + abs(size)]
        value.append(ipaddress.ip_address(part) if size < 0 else int.from_bytes(part, "big" if size == 2 else sys.byteorder))
        offset += abs(size)
    return tuple(value)


def _text(name: str) -> bytes:
    return name.encode() + b"\0"
