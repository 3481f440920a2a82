# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the site decided: the configuration file, validated.

The same file serves every node of a cluster; nothing in it belongs to one node or one user.
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass
from typing import Any, Callable, Tuple, Union

from .errors import UvnError
from .login import acceptable

PATH = "/etc/uvn/site.json"
VERSION = 1
MAX_UID = 2**32 - 2  # 2**32 - 1 is "no UID" to the kernel
MAX_VNI = 2**24 - 1  # RFC 7348, section 5
MAX_TABLE = 2**32 - 1
MAX_IDLE = 31536000  # seconds
MODES = ("audit", "enforce")
PROTOCOLS = ("tcp", "udp")  # of ingress, enum ports in bpf/ingress.bpf.c
MAX_PORT = 65535
MAX_PORT_RANGES = 16  # of a host and in all, RANGES in bpf/ingress.bpf.c
MAX_HOSTS = 4000  # networks, uvn_hosts in bpf/ingress.bpf.c
MAX_FLOWS = 2**20
MAX_GROUPS = 256  # multicast groups one VXLAN port joins; the kernel charges each to net.core.optmem_max

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

DEFAULTS: dict[str, Any] = {
    "version": VERSION,
    "group": "239.192.193.194",
    "ttl": 5,
    "udp_checksum": False,
    "nat": {"ipv4": "100.64.0.0/10", "ipv6": "fd75:766e::/64"},
    "min_uid": 1000,
    "ranges": [{"first": 1000, "last": 4194302, "index": 1000}],
    "vni_base": 0,
    "table_base": 100000000,
    "exempt": {"users": [], "groups": [], "uids": ["61184-65519", "65534"]},
    "flows": 4096,
    "idle": 900,
    "mode": "enforce",
    "ingress": [],
    "control_ports": [],
}


@dataclass(frozen=True)
class Underlay:
    """Subnets whose hosts talk to each other through one VXLAN per user.

    Parameters
    ----------
    subnets: the IPv4 and IPv6 networks of one layer-2 segment.
    port: UDP port of its VXLANs; Linux refuses one VNI twice on one port, so every underlay has its own.
    direct: hosts of these subnets that run no UVN (licence servers, storage), reached over the real NIC.
    nodes: networks within the subnets that UVN's nodes have their addresses in; without any, all of the subnets.
    """

    subnets: Tuple[Network, ...]
    port: int
    direct: Tuple[Address, ...]
    nodes: Tuple[Network, ...] = ()

    @property
    def senders(self) -> Tuple[Network, ...]:
        """Where VXLAN frames may come from."""
        return self.nodes or self.subnets


@dataclass(frozen=True)
class Range:
    """UIDs `first` to `last`, mapped to the indices from `index` on."""

    first: int
    last: int
    index: int


@dataclass(frozen=True)
class Exempt:
    """Accounts above `min_uid` that stay in the default VRF; `uids` are inclusive ranges."""

    users: Tuple[str, ...]
    groups: Tuple[str, ...]
    uids: Tuple[Tuple[int, int], ...]


@dataclass(frozen=True)
class Opening:
    """Hosts that may reach users' listeners on some ports; `ports` are inclusive ranges, `protocol` is one of PROTOCOLS."""

    hosts: Tuple[Network, ...]
    ports: Tuple[Tuple[int, int], ...]
    protocol: str


@dataclass(frozen=True)
class Site:
    """The validated configuration; see `docs/configuration.md` for every key."""

    underlays: Tuple[Underlay, ...]
    group: Network
    ttl: int
    udp_checksum: bool
    nat4: ipaddress.IPv4Network
    nat6: ipaddress.IPv6Network
    min_uid: int
    ranges: Tuple[Range, ...]
    vni_base: int
    table_base: int
    exempt: Exempt
    flows: int
    idle: int
    mode: str
    ingress: Tuple[Opening, ...]
    control_ports: Tuple[Tuple[int, int], ...]

    @property
    def enforce(self) -> bool:
        """Whether what is not allowed is refused and dropped; else it is only counted and logged."""
        return self.mode == "enforce"

    def as_dict(self) -> dict[str, Any]:
        """The normalised file: every key present, networks and addresses in their canonical form."""
        return {
            "version": VERSION,
            "underlays": [
                {
                    "subnets": [str(n) for n in u.subnets],
                    "port": u.port,
                    "direct": [str(a) for a in u.direct],
                    "nodes": [str(n) for n in u.nodes],
                }
                for u in self.underlays
            ],
            "group": str(self.group[0]) if self.group.num_addresses == 1 else str(self.group),
            "ttl": self.ttl,
            "udp_checksum": self.udp_checksum,
            "nat": {"ipv4": str(self.nat4), "ipv6": str(self.nat6)},
            "min_uid": self.min_uid,
            "ranges": [{"first": r.first, "last": r.last, "index": r.index} for r in self.ranges],
            "vni_base": self.vni_base,
            "table_base": self.table_base,
            "exempt": {
                "users": list(self.exempt.users),
                "groups": list(self.exempt.groups),
                "uids": _ranges_text(self.exempt.uids),
            },
            "flows": self.flows,
            "idle": self.idle,
            "mode": self.mode,
            "ingress": [
                {"hosts": [str(n) for n in o.hosts], "ports": _ranges_text(o.ports), "protocol": o.protocol} for o in self.ingress
            ],
            "control_ports": _ranges_text(self.control_ports),
        }


def load(path: str = PATH) -> Site:
    """Read and validate the configuration file.

    Raises UvnError when the file is missing, cut off or invalid.
    """
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except OSError as error:
        raise UvnError(f"{path}: {error.strerror}; the role hpc.uvn.uvn_node writes it") from None
    except ValueError as error:
        raise UvnError(f"{path}: not a complete JSON document ({error}); write it again with the role hpc.uvn.uvn_node") from None
    try:
        return parse(data)
    except UvnError as error:
        raise UvnError(f"{path}: {error}") from None


def parse(data: Any) -> Site:
    """Validate a configuration given as a dictionary.

    Raises UvnError whose sentence begins with the path to the wrong value, such as `underlays[1].port`.
    """
    root = _section(data, "the configuration", {"underlays", *DEFAULTS}, required={"underlays"})
    version = root.get("version", VERSION)
    if version != VERSION:
        raise UvnError(f"version: {version!r} is not {VERSION}, the only one this UVN reads; install the matching collection")
    group = _group(root.get("group", DEFAULTS["group"]))
    nat = {**DEFAULTS["nat"], **_section(root.get("nat", {}), "nat", {"ipv4", "ipv6"})}
    site = Site(
        underlays=_list(root["underlays"], "underlays", _underlay),
        group=group,
        ttl=_integer(root.get("ttl", DEFAULTS["ttl"]), "ttl", 1, 255),
        udp_checksum=_boolean(root.get("udp_checksum", DEFAULTS["udp_checksum"]), "udp_checksum"),
        nat4=_network(nat["ipv4"], "nat.ipv4", 4),
        nat6=_network(nat["ipv6"], "nat.ipv6", 6),
        min_uid=_integer(root.get("min_uid", DEFAULTS["min_uid"]), "min_uid", 1, MAX_UID),
        ranges=_list(root.get("ranges", DEFAULTS["ranges"]), "ranges", _range),
        vni_base=_integer(root.get("vni_base", DEFAULTS["vni_base"]), "vni_base", 0, MAX_VNI),
        table_base=_integer(root.get("table_base", DEFAULTS["table_base"]), "table_base", 256, MAX_TABLE),
        exempt=_exempt(root.get("exempt", {})),
        flows=_integer(root.get("flows", DEFAULTS["flows"]), "flows", 1, MAX_FLOWS),
        idle=_integer(root.get("idle", DEFAULTS["idle"]), "idle", 0, MAX_IDLE),
        mode=_choice(root.get("mode", DEFAULTS["mode"]), "mode", MODES),
        ingress=_list(root.get("ingress", DEFAULTS["ingress"]), "ingress", _opening, empty=True),
        control_ports=_list(root.get("control_ports", DEFAULTS["control_ports"]), "control_ports", _port_range, empty=True),
    )
    _check_underlays(site)
    _check_ranges(site)
    _check_ingress(site)
    return site


def _section(value: Any, path: str, known: set, required: frozenset | set = frozenset()) -> dict:
    if not isinstance(value, dict):
        raise UvnError(f"{path}: {value!r} is not a dictionary; give {', '.join(sorted(known))}")
    unknown = sorted(str(key) for key in set(value) - known)
    if unknown:
        raise UvnError(f"{path}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    missing = sorted(required - set(value))
    if missing:
        raise UvnError(f"{path}: {missing[0]} is missing; it has no default")
    return value


def _list(value: Any, path: str, item: Callable[[Any, str], Any], empty: bool = False) -> tuple:
    if not isinstance(value, (list, tuple)) or not (value or empty):
        raise UvnError(f"{path}: {value!r} is not a list with at least {0 if empty else 1} element(s); write a YAML list")
    return tuple(item(element, f"{path}[{number}]") for number, element in enumerate(value))


def _integer(value: Any, path: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UvnError(f"{path}: {value!r} is not an integer from {low} to {high}")
    return value


def _boolean(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise UvnError(f"{path}: {value!r} is neither true nor false")
    return value


def _choice(value: Any, path: str, choices: Tuple[str, ...]) -> str:
    if value not in choices:
        raise UvnError(f"{path}: {value!r} is not one of {', '.join(choices)}")
    return value


def _name(value: Any, path: str) -> str:
    if not isinstance(value, str) or not acceptable(value):
        raise UvnError(f"{path}: {value!r} is not an account name; give it as `getent` prints it")
    return value


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("not a string")
    return value


def _address(value: Any, path: str) -> Address:
    try:
        return ipaddress.ip_address(_string(value))
    except ValueError:
        raise UvnError(f"{path}: {value!r} is not an IPv4 or IPv6 address") from None


def _network(value: Any, path: str, version: int | None = None) -> Network:
    try:
        network = ipaddress.ip_network(_string(value))
    except ValueError as error:
        raise UvnError(f"{path}: {value!r} is not a network ({error}); write it as address/length") from None
    if version and network.version != version:
        raise UvnError(f"{path}: {network} is not an IPv{version} network")
    return network


def _group(value: Any) -> Network:
    group = _network(value, "group")
    if not group.is_multicast:
        raise UvnError(f"group: {value} is not multicast; take one from 239.0.0.0/8 (RFC 2365) or ff05::/16 (RFC 4291)")
    if group.num_addresses > MAX_GROUPS:
        raise UvnError(f"group: {group} has {group.num_addresses} addresses, the limit is {MAX_GROUPS}; take a longer prefix")
    return group


def _underlay(value: Any, path: str) -> Underlay:
    section = _section(value, path, {"subnets", "port", "direct", "nodes"}, required={"subnets", "port"})
    underlay = Underlay(
        subnets=_list(section["subnets"], f"{path}.subnets", _network),
        port=_integer(section["port"], f"{path}.port", 1, 65535),
        direct=_list(section.get("direct", []), f"{path}.direct", _address, empty=True),
        nodes=_list(section.get("nodes", []), f"{path}.nodes", _network, empty=True),
    )
    for number, network in enumerate(underlay.nodes):
        if not any(network.version == subnet.version and network.subnet_of(subnet) for subnet in underlay.subnets):
            raise UvnError(f"{path}.nodes[{number}]: {network} is in none of this underlay's subnets; add the subnet or take the network out")
    for number, host in enumerate(underlay.direct):
        if not any(host in subnet for subnet in underlay.subnets):
            raise UvnError(f"{path}.direct[{number}]: {host} is in none of this underlay's subnets; hosts elsewhere need no entry")
    return underlay


def _range(value: Any, path: str) -> Range:
    section = _section(value, path, {"first", "last", "index"}, required={"first", "last", "index"})
    first = _integer(section["first"], f"{path}.first", 1, MAX_UID)
    last = _integer(section["last"], f"{path}.last", first, MAX_UID)
    return Range(first, last, _integer(section["index"], f"{path}.index", 1, MAX_VNI))


def _exempt(value: Any) -> Exempt:
    section = {**DEFAULTS["exempt"], **_section(value, "exempt", {"users", "groups", "uids"})}
    return Exempt(
        users=_list(section["users"], "exempt.users", _name, empty=True),
        groups=_list(section["groups"], "exempt.groups", _name, empty=True),
        uids=_list(section["uids"], "exempt.uids", _uid_range, empty=True),
    )


def _uid_range(value: Any, path: str) -> Tuple[int, int]:
    return _number_range(value, path, "a UID nor a range such as 61184-65519", 0, MAX_UID)


def _opening(value: Any, path: str) -> Opening:
    section = _section(value, path, {"hosts", "ports", "protocol"}, required={"hosts", "ports"})
    return Opening(
        hosts=_list(section["hosts"], f"{path}.hosts", _network),
        ports=_list(section["ports"], f"{path}.ports", _port_range),
        protocol=_choice(section.get("protocol", PROTOCOLS[0]), f"{path}.protocol", PROTOCOLS),
    )


def _port_range(value: Any, path: str) -> Tuple[int, int]:
    return _number_range(value, path, "a port nor a range such as 61000-64999", 1, MAX_PORT)


def _number_range(value: Any, path: str, what: str, low: int, high: int) -> Tuple[int, int]:
    match = re.fullmatch("([0-9]{1,10})(?:-([0-9]{1,10}))?", str(value))
    if not match:
        raise UvnError(f"{path}: {value!r} is neither {what}")
    low = _integer(int(match[1]), path, low, high)
    return low, _integer(int(match[2] or low), path, low, high)


def _ranges_text(ranges: Tuple[Tuple[int, int], ...]) -> list[str]:
    return [str(a) if a == b else f"{a}-{b}" for a, b in ranges]


def _check_underlays(site: Site) -> None:
    """Ports and subnets are unique, and every underlay can carry the multicast group."""
    for number, underlay in enumerate(site.underlays):
        path = f"underlays[{number}]"
        for other_number, other in enumerate(site.underlays[:number]):
            if other.port == underlay.port:
                raise UvnError(
                    f"{path}.port: {underlay.port} is already the port of underlays[{other_number}]; "
                    "give every underlay its own UDP port"
                )
        for position, subnet in enumerate(underlay.subnets):
            before = [(n, s) for n, u in enumerate(site.underlays[: number + 1]) for s in u.subnets]
            for other_number, other in before[: len(before) - len(underlay.subnets) + position]:
                if subnet.version == other.version and subnet.overlaps(other):
                    raise UvnError(
                        f"{path}.subnets[{position}]: {subnet} overlaps {other} of underlays[{other_number}]; "
                        "list every subnet once"
                    )
        if not any(subnet.version == site.group.version for subnet in underlay.subnets):
            raise UvnError(
                f"{path}.subnets: none is IPv{site.group.version}, but the group {site.group[0]} is; "
                "add the subnet or take a group of the other family"
            )
        if not any(network.version == site.group.version for network in underlay.senders):
            raise UvnError(
                f"{path}.nodes: none is IPv{site.group.version}, as the frames to the group {site.group[0]} are, so that all would be dropped; "
                "add the nodes' addresses of that family"
            )


def _check_ranges(site: Site) -> None:
    """Every UID has one index, every index fits its VNI, table and NAT address."""
    limits = (
        ("the VNI (24 bits)", MAX_VNI - site.vni_base),
        ("the table id (32 bits)", MAX_TABLE - site.table_base),
        (f"nat.ipv4 {site.nat4}", site.nat4.num_addresses - 2),
        (f"nat.ipv6 {site.nat6}", site.nat6.num_addresses - 2),
    )
    for number, here in enumerate(site.ranges):
        path = f"ranges[{number}]"
        if here.first < site.min_uid:
            raise UvnError(f"{path}.first: {here.first} is below min_uid {site.min_uid}; raise it or lower min_uid")
        top = here.index + here.last - here.first
        what, limit = min(limits, key=lambda pair: pair[1])
        if top > limit:
            raise UvnError(
                f"{path}: UID {here.last} gets index {top}, the limit of {what} is {limit}; shorten the range or map it lower"
            )
        for other_number, other in enumerate(site.ranges[:number]):
            if here.first <= other.last and other.first <= here.last:
                raise UvnError(f"{path}: UIDs {here.first}-{here.last} overlap ranges[{other_number}]; map every UID once")
            if here.index <= other.index + other.last - other.first and other.index <= top:
                raise UvnError(f"{path}: indices {here.index}-{top} overlap those of ranges[{other_number}]; move one of them")


def _check_ingress(site: Site) -> None:
    """The kernel's maps hold the ports and hosts, and nobody listens on control ports, so none is open."""
    opened = [(f"ingress of {name}", [r for o in site.ingress for r in o.ports if o.protocol == name]) for name in PROTOCOLS]
    for path, ranges in (*opened, ("control_ports", site.control_ports)):
        if len(ranges) > MAX_PORT_RANGES:
            raise UvnError(f"{path}: {len(ranges)} port ranges, the limit is {MAX_PORT_RANGES}; join neighbours")
    hosts = sum(len(opening.hosts) for opening in site.ingress)
    if hosts > MAX_HOSTS:
        raise UvnError(f"ingress: {hosts} hosts, the limit is {MAX_HOSTS}; give networks instead of single hosts")
    for number, opening in enumerate(site.ingress):
        for first, last in opening.ports if opening.protocol == "tcp" else ():
            for low, high in site.control_ports:
                if first <= high and low <= last:
                    raise UvnError(f"ingress[{number}].ports: {first}-{last} overlaps the control ports {low}-{high}; no user may listen there")
