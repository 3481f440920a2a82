# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The things UVN makes, as data. A desired and an observed state are lists of these; equal means nothing to do.

Every class has a `kind` for messages and a `key` that says which object of its kind it is.
"""

from __future__ import annotations

import ipaddress
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Iterable, Tuple, Union

from .site import PROTOCOLS

Interface = Union[ipaddress.IPv4Interface, ipaddress.IPv6Interface]
IpAddress = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
IpNetwork = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
Ports = Tuple[Tuple[int, int], ...]  # first and last port of ranges

TABLE_MAIN = 254
TABLE_LOCAL = 255


class Object:
    """What the objects have in common."""

    kind: ClassVar[str]

    @property
    def key(self) -> Tuple[Any, ...]:
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The object as an administrator would name it."""
        return " ".join(str(part) for part in self.key[1:])

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON and for Ansible."""
        return {"kind": self.kind, "name": self.name, **{k: _plain(v) for k, v in asdict(self).items() if k != "optional"}}


@dataclass(frozen=True)
class Vrf(Object):
    """A VRF device (drivers/net/vrf.c); `group` marks it as ours.

    `accept_local`: takes packets whose source is an address of the node (of a listed daemon on the node itself, see ingress).
    `ipv6`: IPv6 is on on the node and on the device, which takes the sysctl `disable_ipv6` from `default` when it is made.
    """

    kind: ClassVar[str] = "vrf"
    device: str
    table: int
    group: int
    mac: str
    up: bool = True
    accept_local: bool = True
    ipv6: bool = True

    @property
    def key(self):
        return (self.kind, self.device)


@dataclass(frozen=True)
class Vxlan(Object):
    """A VXLAN device (drivers/net/vxlan, RFC 7348), slave of `vrf`.

    Parameters
    ----------
    nic: the underlay NIC; local: its address, the source of the outer packets.
    port: UDP destination port; source_ports: first and last UDP source port.
    mtu: bytes.
    ipv6: as for `Vrf`; never where the MTU is below IPv6's least.
    """

    kind: ClassVar[str] = "vxlan"
    device: str
    altname: Union[str, None]
    vrf: str
    group: int
    vni: int
    nic: str
    port: int
    remote: IpAddress
    local: IpAddress
    ttl: int
    source_ports: Tuple[int, int]
    udp_checksum: bool
    mac: str
    mtu: int
    up: bool = True
    ipv6: bool = True

    @property
    def key(self):
        return (self.kind, self.device)


@dataclass(frozen=True)
class Dummy(Object):
    """A dummy device in the default VRF (drivers/net/dummy.c)."""

    kind: ClassVar[str] = "dummy"
    device: str
    group: int

    @property
    def key(self):
        return (self.kind, self.device)


@dataclass(frozen=True)
class Address(Object):
    """An address on a device, without a prefix route and without duplicate address detection.

    `selectable` False keeps the kernel from choosing it as a source (IPv4 scope host, IPv6 deprecated); `routed` is False when
    the kernel's own local route to it is gone, as after a flush of the table.
    """

    kind: ClassVar[str] = "address"
    device: str
    interface: Interface
    selectable: bool = True
    routed: bool = True

    @property
    def key(self):
        return (self.kind, self.device, self.interface)


@dataclass(frozen=True)
class Nexthop:
    """One way of a route; `gateway` None means that the destination is on the link.

    Parameters
    ----------
    gateway: may be of IPv6 in a route of IPv4 (RFC 5549).
    onlink: the gateway need not be in a network that the routes of the device lead to.
    encapsulation: attributes of the kernel's that are repeated as they are, RTA_* numbers with their values (realms, tunnels without device).
    """

    device: str
    gateway: Union[IpAddress, None] = None
    weight: int = 1
    onlink: bool = False
    encapsulation: Tuple[Tuple[int, bytes], ...] = ()


@dataclass(frozen=True)
class Route(Object):
    """A route; `type` is the kernel's name, such as unicast, local or unreachable (the last without next hops).

    Parameters
    ----------
    metrics: RTAX_* numbers with their values (include/uapi/linux/rtnetlink.h): MTU, which are locked, windows, congestion control.
    preference: RFC 4191, as the kernel has it.
    scope: of IPv4 where it is another than follows from type and next hops.
    """

    kind: ClassVar[str] = "route"
    table: int
    destination: IpNetwork
    metric: int
    type: str = "unicast"
    nexthops: Tuple[Nexthop, ...] = ()
    source: Union[IpAddress, None] = None
    tos: int = 0
    metrics: Tuple[Tuple[int, Union[int, str]], ...] = ()
    preference: int = 0
    scope: Union[int, None] = None

    @property
    def key(self):
        return (self.kind, self.table, self.destination, self.metric, self.tos)

    @property
    def name(self) -> str:
        return f"{self.destination} in table {self.table}"


@dataclass(frozen=True)
class Rule(Object):
    """A routing rule; `table` is a number, "l3mdev" (the packet's VRF names it) or "unreachable".

    `local` limits it to packets that start on this node (iif lo), `mark` to those with that mark.
    """

    kind: ClassVar[str] = "rule"
    version: int
    priority: int
    table: Union[int, str]
    destination: Union[IpNetwork, None] = None
    local: bool = False
    mark: int = 0

    @property
    def key(self):
        return (self.kind, self.version, self.priority, self.table, self.destination, self.local, self.mark)

    @property
    def name(self) -> str:
        to = f"to {self.destination} " if self.destination else ""
        what = f"lookup {self.table}" if isinstance(self.table, int) else self.table
        return f"IPv{self.version} {self.priority}: {to}{'iif lo ' if self.local else ''}{f'fwmark {self.mark:#x} ' if self.mark else ''}{what}"


@dataclass(frozen=True)
class Sysctl(Object):
    """A kernel parameter; `path` is below /proc/sys, with slashes (NIC names may hold dots).

    `optional`: a kernel without it needs no setting.
    """

    kind: ClassVar[str] = "sysctl"
    path: str
    value: str
    optional: bool = field(default=False, compare=False)

    @property
    def key(self):
        return (self.kind, self.path)


@dataclass(frozen=True)
class Chain(Object):
    """An iptables chain of our own and the one jump to it from a built-in chain."""

    kind: ClassVar[str] = "chain"
    version: int
    table: str
    chain: str
    rules: Tuple[str, ...]

    @property
    def key(self):
        return (self.kind, self.version, self.table, self.chain)

    @property
    def name(self) -> str:
        return f"{'iptables' if self.version == 4 else 'ip6tables'} {self.table} {self.chain}"

    @property
    def flaw(self) -> str:
        """What is wrong with the jump, as nat.parse has it in the place of a last rule."""
        return self.rules[-1] if self.rules and self.rules[-1].startswith("(") else ""


@dataclass(frozen=True)
class Guard(Object):
    """The nftables table that drops what leaves a user's network sideways, and keeps the overlay from being tracked.

    Parameters
    ----------
    counters, sets: their names.
    chains: name, hook (its type, place and priority; empty where another chain goes there) and rules of each.
    """

    kind: ClassVar[str] = "guard"
    counters: Tuple[str, ...]
    sets: Tuple[str, ...]
    chains: Tuple[Tuple[str, str, Tuple[str, ...]], ...]

    @property
    def key(self):
        return (self.kind, "inet uvn")


@dataclass(frozen=True)
class Element(Object):
    """An element of one of the guard's sets; `value` holds the fields of its key, in a set of intervals one network."""

    kind: ClassVar[str] = "element"
    set: str
    value: Tuple[Union[int, IpAddress, IpNetwork], ...]

    @property
    def key(self):
        return (self.kind, self.set, self.value)

    @property
    def name(self) -> str:
        return f"{self.set} {' . '.join(map(str, self.value))}"


@dataclass(frozen=True)
class Program(Object):
    """The membership programs on the root cgroup and what they decide by; `hooks`: with those on security hooks."""

    kind: ClassVar[str] = "program"
    netns_cookie: int
    min_uid: int
    enforce: bool
    hooks: bool = False

    @property
    def key(self):
        return (self.kind, "membership")


@dataclass(frozen=True)
class Ingress(Object):
    """The programs that let listed hosts reach users' listeners.

    Parameters
    ----------
    hosts: each network with the ports that are open to it, by PROTOCOLS; the longest prefix decides.
    control: ports that no user may listen on, and that slurmstepd reaches in the default VRF.
    current: the programs are attached, and those of the installed object.
    """

    kind: ClassVar[str] = "ingress"
    hosts: Tuple[Tuple[IpNetwork, Tuple[Ports, ...]], ...]
    control: Ports
    current: bool = True

    @property
    def key(self):
        return (self.kind, "programs")

    @property
    def ports(self) -> Tuple[Ports, ...]:
        """The ports that are open to anybody, by PROTOCOLS."""
        return tuple(merge(ports[number] for _network, ports in self.hosts) for number in range(len(PROTOCOLS)))


@dataclass(frozen=True)
class Classifier(Object):
    """The program on what comes in by a device; `current` as for `Ingress`."""

    kind: ClassVar[str] = "classifier"
    device: str
    current: bool = True

    @property
    def key(self):
        return (self.kind, self.device)


@dataclass(frozen=True)
class Member(Object):
    """The UIDs that share the first `prefix_length` bits of `uid` belong to `device`; None: to the default VRF."""

    kind: ClassVar[str] = "member"
    uid: int
    device: Union[str, None]
    prefix_length: int = 32

    @property
    def key(self):
        return (self.kind, self.uid, self.prefix_length)

    @property
    def name(self) -> str:
        return f"UID {self.uid}" if self.prefix_length == 32 else f"UIDs {self.uid}/{self.prefix_length}"


def merge(several: Iterable[Ports]) -> Ports:
    """The ports of several lists of ranges as the fewest ranges, in order."""
    merged: list[Tuple[int, int]] = []
    for first, last in sorted(port_range for ports in several for port_range in ports):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
