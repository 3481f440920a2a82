# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The truth table: who reaches what, from where, and why. Data only; matrix.py measures it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from ipaddress import ip_network
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab"))

from uvnlab import topology  # noqa: E402

# --- the lab --------------------------------------------------------------------------------------------------------
NODES = topology.UVN_NODES
UIDS = {**topology.USERS, "root": 0}
NICS = {lan.name: lan for lan in topology.LANS}
LISTED = ("em1", "ib0")  # the NICs in subnets that the site lists
MGMT0 = "10.0.2.15"  # the same on every node, IPv4 only
LOCALHOST = {4: "127.0.0.1", 6: "::1"}
NAT = {4: ip_network("100.64.0.0/10"), 6: ip_network("fd75:766e::/64")}
DIRECT = {4: topology.EM1.address4(topology.GATEWAY), 6: topology.EM1.address6(topology.GATEWAY)}
OFF_SUBNET = {4: topology.OFFNET4, 6: topology.OFFNET6}
RESOLVER = "127.0.0.53"  # systemd-resolved's stub
NAME = "offnet.lab.test"  # in the lab's DNS, not in /etc/hosts

# --- the listeners --------------------------------------------------------------------------------------------------
MANAGED = ("alice", "bob")
LISTENERS = ("alice", "bob", "exempted", "root")
WILDCARD = {"alice": 17001, "bob": 17002, "exempted": 17009, "root": 17010}  # on 0.0.0.0 and ::
LOOPBACK = {"alice": 17101, "bob": 17102}  # on 127.0.0.1 and ::1, as notebooks do
SAME = 17000  # alice and bob on the same port of the same node at the same time
SSHD, DNS = 22, 53
DAEMONS = {  # the lab's system services: name, port, protocols (see services.py there)
    "wildcard": 7007,
    "loopback": 7008,
    "pktinfo": 7009,
    "licence": 27000,
    "offnet": 8080,
}

GROUPS = {  # columns of the matrix
    "own-localhost": "own\nlocal-\nhost",
    "own-addresses": "own\naddresses\nhere",
    "own-nodes": "own\nother\nnodes",
    "own-unlisted": "own over\nother\nNICs",
    "same-port": "own of\ntwo on\none port",
    "other-localhost": "others'\nlocal-\nhost",
    "other-addresses": "others'\naddresses\nhere",
    "other-nodes": "others'\nother\nnodes",
    "system": "system\nser-\nvices",
    "unbound-udp": "unbound\nUDP\nservice",
    "names": "name\nreso-\nlution",
    "off-subnet": "\noff-\nsubnet",
    "direct": "\ndirect\nhost",
}


@dataclass(frozen=True)
class Case:
    """One line of the truth table.

    ``answer`` is how the answer begins when the target is reached. ``plain`` is the answer on nodes without UVN:
    "" for none, None where the case cannot be asked there (NAT addresses). ``code`` names the one outcome that a
    closed case must have; without it, any way of not being reached will do.
    """

    user: str
    node: str
    group: str
    proto: str
    family: int
    target: str
    address: str
    port: int
    expected: str  # own, system, outside: reached; closed: not
    answer: str
    reason: str
    plain: str | None
    code: str = ""
    source: str = ""  # the source address that the target must have seen
    probe: dict = field(default_factory=dict, compare=False)  # what the probe needs beside proto, family, address, port

    @property
    def row(self) -> str:
        return f"{self.user}@{self.node}"

    @property
    def id(self) -> str:
        return f"{self.row}-{self.group}-{self.proto}{self.family}-{self.target}-{self.expected}"

    def spec(self, plain: bool = False) -> dict:
        """The probe for the agent. Refusals come at once; only silence needs the time-out (s)."""
        reached = bool(self.plain) if plain else self.expected != "closed"
        timeout = 8 if reached or self.code else 3
        base = {"proto": self.proto, "family": self.family, "address": self.address, "port": self.port}
        return {**base, "timeout": timeout, **self.probe}


def address(node: str, nic: str, family: int) -> str:
    """The node's address on a NIC."""
    host = topology.NODES[node].host
    return NICS[nic].address4(host) if family == 4 else NICS[nic].address6(host)


def nat_address(user: str, family: int) -> str:
    """The user's NAT address: index (here the UID) added to the prefix."""
    return str(NAT[family].network_address + UIDS[user])


def node_addresses(node: str, family: int) -> dict:
    """Every global address of a node, by NIC."""
    found = {nic: address(node, nic, family) for nic in NICS}
    if family == 4:
        found["mgmt0"] = MGMT0
    return found


def other_nodes(node: str) -> list:
    return [name for name in NODES if name != node]


def listeners(user: str) -> list:
    """What the user listens on, on every node."""
    any_address = {4: "0.0.0.0", 6: "::"}
    specs = [(WILDCARD[user], any_address)]
    if user in LOOPBACK:
        specs += [(LOOPBACK[user], LOCALHOST), (SAME, any_address)]
    return [
        {"proto": proto, "family": family, "address": addresses[family], "port": port}
        for port, addresses in specs
        for proto in ("tcp", "udp")
        for family in (4, 6)
    ]


class Table:
    """Builds the cases of one user on one node."""

    def __init__(self, user: str, node: str):
        self.user, self.node, self.cases = user, node, []
        self.managed = user in MANAGED

    def add(self, group, proto, family, target, where, port, expected, answer, reason, plain=None, **more):
        if proto == "icmp":
            answer = "echo reply"
        plain = answer if plain is None else None if plain == "absent" else plain
        case = Case(
            self.user, self.node, group, proto, family, target, where, port, expected, answer, reason, plain, **more
        )
        self.cases.append(case)

    def rows(self) -> list:
        """All cases, in the order of the columns."""
        for family in (4, 6):
            for proto in ("tcp", "udp"):
                self.own(proto, family)
                self.others(proto, family)
                self.system(proto, family)
                self.outside(proto, family)
            self.ping(family)
        self.names()
        return self.cases

    # own ports
    def own(self, proto: str, family: int) -> None:
        me, node = f"{self.user} {self.node} ", self.node
        port = WILDCARD[self.user]
        why = "a user reaches the own ports on localhost"
        self.add("own-localhost", proto, family, "localhost", LOCALHOST[family], port, "own", me, why)
        if self.user in LOOPBACK:
            why = "a listener on the loopback address only"
            where, loopback = LOCALHOST[family], LOOPBACK[self.user]
            self.add("own-localhost", proto, family, "loopback-listener", where, loopback, "own", me, why)
        for nic, where in node_addresses(node, family).items():
            self.add("own-addresses", proto, family, nic, where, port, "own", me, f"the node's own address on {nic}")
        if self.managed:
            why = "the user's NAT address belongs to the user"
            nat = nat_address(self.user, family)
            self.add("own-addresses", proto, family, "nat", nat, port, "own", me, why, plain="absent")
            self.same_port(proto, family)
        for other in other_nodes(node):
            for nic in LISTED:
                where, seen = address(other, nic, family), address(node, nic, family)
                why = f"{nic} is in a listed subnet: the user's networks on both nodes are one"
                answer = f"{self.user} {other} "
                target = f"{other}.{nic}"
                self.add("own-nodes", proto, family, target, where, port, "own", answer, why, source=seen)
            if self.managed:
                self.own_elsewhere(proto, family, other, port)

    def own_elsewhere(self, proto: str, family: int, other: str, port: int) -> None:
        why = "wan0 is in no listed subnet: it leads to the other node's system services only"
        answer, where = f"{self.user} {other} ", address(other, "wan0", family)
        code = "refused" if proto == "tcp" else ""
        self.add("own-unlisted", proto, family, f"{other}.wan0", where, port, "closed", answer, why, code=code)

    def same_port(self, proto: str, family: int) -> None:
        why = "both users listen on this port; each reaches the own listener"
        answer, plain = f"{self.user} {self.node} ", f"{MANAGED[0]} {self.node} "
        targets = {"localhost": LOCALHOST[family], "em1": address(self.node, "em1", family)}
        for name, where in targets.items():
            self.add("same-port", proto, family, name, where, SAME, "own", answer, why, plain=plain)
        for other in other_nodes(self.node):
            where, answer, plain = address(other, "em1", family), f"{self.user} {other} ", f"{MANAGED[0]} {other} "
            self.add("same-port", proto, family, f"{other}.em1", where, SAME, "own", answer, why, plain=plain)

    # other users' ports
    def others(self, proto: str, family: int) -> None:
        code = "refused" if proto == "tcp" else ""  # ICMP errors are rate-limited, RST are not
        for owner in (name for name in MANAGED if name != self.user):
            self.others_here(proto, family, owner, code)
            for other in other_nodes(self.node):
                self.others_there(proto, family, owner, other, code)

    def others_here(self, proto: str, family: int, owner: str, code: str) -> None:
        answer, port = f"{owner} {self.node} ", WILDCARD[owner]
        why = f"{owner}'s port is closed to everybody else on localhost"
        local = LOCALHOST[family]
        self.add("other-localhost", proto, family, f"{owner}", local, port, "closed", answer, why, code=code)
        target, loopback = f"{owner}-loopback-listener", LOOPBACK[owner]
        self.add("other-localhost", proto, family, target, local, loopback, "closed", answer, why, code=code)
        for nic, where in node_addresses(self.node, family).items():
            why, target = f"{owner}'s port is closed on the node's address on {nic}", f"{owner}.{nic}"
            self.add("other-addresses", proto, family, target, where, port, "closed", answer, why, code=code)
        why, where = f"{owner}'s NAT address is not for others", nat_address(owner, family)
        self.add("other-addresses", proto, family, f"{owner}.nat", where, port, "closed", answer, why, plain="absent")

    def others_there(self, proto: str, family: int, owner: str, other: str, code: str) -> None:
        answer = f"{owner} {other} "
        for nic in NICS:
            why, where = f"{owner}'s port on {other} is closed to everybody else", address(other, nic, family)
            target = f"{owner}@{other}.{nic}"
            self.add("other-nodes", proto, family, target, where, WILDCARD[owner], "closed", answer, why, code=code)

    # system services
    def system(self, proto: str, family: int) -> None:
        here = {"localhost": LOCALHOST[family], **node_addresses(self.node, family)}
        there = [(node, nic, address(node, nic, family)) for node in other_nodes(self.node) for nic in NICS]
        if proto == "tcp":
            self.service(proto, family, "loopback", "localhost", here["localhost"], self.node)
            self.sshd(family, {"localhost": here["localhost"]})
            if self.managed:  # a connection costs a node a process: not from everybody
                self.sshd(family, {f"{node}.{nic}": where for node, nic, where in there if nic == "em1"})
        for name in ("wildcard",) if proto == "tcp" else ("wildcard", "pktinfo"):
            for nic, where in here.items():
                self.service(proto, family, name, nic, where, self.node)
            for node, nic, where in there:
                self.service(proto, family, name, f"{node}.{nic}", where, node)
        if self.managed:
            where, port = here["localhost"], WILDCARD["exempted"]
            if proto == "udp":
                self.unbound_udp(family, "exempted", where, port, f"exempted {self.node} ")
            else:
                why = "exempted users are in the default VRF: their ports are as open as a system service's"
                answer = f"exempted {self.node} "
                self.add("system", proto, family, "exempted", where, port, "system", answer, why)

    def service(self, proto: str, family: int, name: str, target: str, where: str, node: str) -> None:
        if (proto, name) == ("udp", "wildcard"):
            self.unbound_udp(family, f"{name}.{target}", where, DAEMONS[name], f"{node} {name}")
        else:
            why = "system services answer users as before"
            target, port = f"{name}.{target}", DAEMONS[name]
            self.add("system", proto, family, target, where, port, "system", f"{node} {name}", why)

    def unbound_udp(self, family: int, target: str, where: str, port: int, answer: str) -> None:
        """A known limit: the answer has nothing that says which VRF it belongs to."""
        over_wan0 = any(target.endswith(f"{node}.wan0") for node in other_nodes(self.node))
        if self.managed and not over_wan0:
            why = "a daemon that answers UDP from an unbound socket answers into the default VRF, where the user is not"
            self.add("unbound-udp", "udp", family, target, where, port, "closed", answer, why)
        else:
            why = "outside of the users' networks a daemon may answer UDP as it likes"
            self.add("unbound-udp", "udp", family, target, where, port, "system", answer, why)

    def sshd(self, family: int, targets: dict) -> None:
        for name, where in targets.items():
            why = "sshd answers users as before"
            self.add("system", "tcp", family, f"sshd.{name}", where, SSHD, "system", "SSH-2.0-", why)

    # outside
    def outside(self, proto: str, family: int) -> None:
        why = "off-subnet connections work; they leave with the node's address on wan0"
        where, seen = OFF_SUBNET[family], address(self.node, "wan0", family)
        port = DAEMONS["offnet"]
        self.add("off-subnet", proto, family, "offnet", where, port, "outside", "ext offnet ", why, source=seen)
        where, seen = DIRECT[family], address(self.node, "em1", family)
        if proto == "tcp":
            why = "a host in a listed subnet without UVN; it sees the node's address on em1"
            name, answer, port = "licence", "ext licence ", DAEMONS["licence"]
            self.add("direct", proto, family, name, where, port, "outside", answer, why, source=seen)
        else:
            why, port = "a host in a listed subnet without UVN", DAEMONS["wildcard"]
            self.add("direct", proto, family, "wildcard", where, port, "outside", "ext wildcard", why)

    # ICMP
    def ping(self, family: int) -> None:
        why = "ping between the same user's networks"
        self.echo(family, "own-localhost", "localhost", LOCALHOST[family], why)
        for nic, where in node_addresses(self.node, family).items():
            self.echo(family, "own-addresses", nic, where, why)
        for other in other_nodes(self.node):
            for nic in LISTED:
                self.echo(family, "own-nodes", f"{other}.{nic}", address(other, nic, family), why)
            target, where = f"ping@{other}.wan0", address(other, "wan0", family)
            self.echo(family, "system", target, where, "the other node itself answers on wan0", "system")
        self.echo(family, "off-subnet", "server", OFF_SUBNET[family], "ping through the NAT", "outside")
        self.echo(family, "direct", "licence", DIRECT[family], "ping to the direct host", "outside")
        if self.managed:
            nat = nat_address(self.user, family)
            self.echo(family, "own-addresses", "nat", nat, "the user's own NAT address", plain="absent")
        for owner in (name for name in MANAGED if name != self.user):
            why, target = f"{owner}'s network does not answer others", f"{owner}.nat"
            self.echo(family, "other-addresses", target, nat_address(owner, family), why, "closed", plain="absent")

    def echo(self, family, group, target, where, reason, expected="own", plain=None) -> None:
        self.add(group, "icmp", family, target, where, 0, expected, "", reason, plain=plain)

    # names
    def names(self) -> None:
        for proto in ("tcp", "udp"):
            query = dns_query(NAME, proto)
            probe = {"send": query.decode("latin-1"), "want": len(query) + 16}  # 16: one A record, name compressed
            why = "systemd-resolved's stub answers users"
            self.add("names", proto, 4, "stub", RESOLVER, DNS, "system", f"A {OFF_SUBNET[4]}", why, probe=probe)


def table() -> list:
    """The whole truth table."""
    return [case for user in LISTENERS for node in NODES for case in Table(user, node).rows()]


FACTORS = ("user", "node", "group", "proto", "family", "kind", "elsewhere", "expected")


def place(case: Case) -> tuple:
    """(the kind of a case's address, whether it is another node's): a NIC's name, `localhost`, `nat`, `direct`, `off-subnet` or `resolver`."""
    family = case.family
    named = {LOCALHOST[family]: "localhost", DIRECT[family]: "direct", OFF_SUBNET[family]: "off-subnet", RESOLVER: "resolver"}
    named.update({nat_address(user, family): "nat" for user in MANAGED})
    named.update({where: nic for nic, where in node_addresses(case.node, family).items()})
    there = {address(node, nic, family): nic for node in other_nodes(case.node) for nic in NICS}
    return there.get(case.address) or named[case.address], case.address in there


def covered(case: Case, strength: int) -> set:
    """The combinations of values of so many factors that a case has."""
    kind, elsewhere = place(case)
    values = {name: getattr(case, name, None) for name in FACTORS}
    return set(combinations({**values, "kind": kind, "elsewhere": elsewhere}.items(), strength))


def sample(whole: list, strength: int = 3) -> list:
    """Some of the cases, in which every combination of values of three factors is that the whole has."""
    seen: set = set()
    chosen = []
    for case in whole:
        if not covered(case, strength) <= seen:
            seen |= covered(case, strength)
            chosen.append(case)
    return chosen


def listen_cases(user: str, node: str) -> list:
    """That every listener could be opened: (case, listener) pairs. On plain nodes a port is taken but once."""
    pairs = []
    for spec in listeners(user):
        proto, family, port = spec["proto"], spec["family"], spec["port"]
        same = port == SAME
        group, why = ("same-port", "two users, one port") if same else ("own-localhost", "the port is free")
        plain = "" if same and user != MANAGED[0] else "listening"
        target = f"listen-{port}-on-{spec['address']}"
        arguments = (user, node, group, proto, family, target, spec["address"], port, "own", "listening", why, plain)
        pairs.append((Case(*arguments), spec))
    return pairs


def dns_query(name: str, proto: str) -> bytes:
    """A query for the A record (RFC 1035, 4.1); over TCP with its length before it (4.2.2)."""
    question = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0\0\1\0\1"
    message = b"\x55\x56\x01\0\0\1\0\0\0\0\0\0" + question
    return len(message).to_bytes(2, "big") + message if proto == "tcp" else message


def dns_answer(text: str, proto: str) -> str:
    """The first A record of a reply, as ``A 198.51.100.10``; else what the reply says (RFC 1035, 4.1.1)."""
    message = text.encode("latin-1")[2 if proto == "tcp" else 0 :]
    if len(message) < 12:
        return "no DNS message"
    if message[3] & 15 or not int.from_bytes(message[6:8], "big"):
        return f"DNS rcode {message[3] & 15} without an answer"
    return "A " + ".".join(str(byte) for byte in message[-4:])
