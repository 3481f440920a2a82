# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's view and hand: observe and apply links, addresses, routes, rules and sysctls.

The only file that imports pyroute2. Every read is filtered in the kernel (strict checking), so that its cost does not grow
with the number of users.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from dataclasses import replace
from typing import Any, Iterable, Iterator, Sequence

from .diff import Change
from .errors import UvnError
from .identity import LINK_GROUP, LINK_GROUP_MASK, Identity
from .objects import TABLE_LOCAL, TABLE_MAIN, Address, Dummy, Nexthop, Object, Route, Rule, Sysctl, Vrf, Vxlan
from .underlay import Host, Nic

try:
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"  # pyroute2 up to 0.9.6 runs `uname` and `file` when imported
    from pyroute2 import IPRoute
    from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.rtnl import RTM_DELADDR, RTM_GETADDR, RTM_GETLINK, RTM_GETROUTE, RTM_NEWADDR
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.rtmsg import rtmsg
except ImportError as error:
    IPRoute = None
    PYROUTE2_ERROR = str(error)

PROTOCOL = 117  # 'u': our routes, RTA protocol (include/uapi/linux/rtnetlink.h leaves numbers above 4 to user space)
PROTOCOL_KERNEL = 2
ROUTE_TYPES = {1: "unicast", 2: "local", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
ROUTE_NUMBERS = {name: number for number, name in ROUTE_TYPES.items()}
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_HOST, SCOPE_NOWHERE = 0, 253, 254, 255
IFA_F_NODAD, IFA_F_DEPRECATED, IFA_F_NOPREFIXROUTE = 0x02, 0x20, 0x200
FOREVER = 0xFFFFFFFF  # seconds, INFINITY_LIFE_TIME
IFF_UP = 0x1
RTNH_F_ONLINK = 4
ADDR_GEN_MODE_NONE = 1
FR_ACT_TO_TBL, FR_ACT_UNREACHABLE = 1, 7
NLM_F_DUMP_INTR = 0x10
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
VERSIONS = {socket.AF_INET: 4, socket.AF_INET6: 6}
GONE = (errno.ENODEV, errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL)
DUMP_TRIES = 5


class Interrupted(Exception):
    """The kernel's tables changed during a dump (NLM_F_DUMP_INTR)."""


class Kernel:
    """A netlink socket and /proc/sys. Open it after fork, close it when done; it is thrown away after an OSError.

    Raises UvnError when pyroute2 is missing or the kernel refuses a request.
    """

    def __init__(self) -> None:
        if IPRoute is None:
            raise UvnError(f"pyroute2 >= 0.7.2 is missing ({PYROUTE2_ERROR}); install the package python3-pyroute2")
        self._ipr = IPRoute(strict_check=True, ext_ack=True)

    def close(self) -> None:
        self._ipr.close()

    # -- observe ---------------------------------------------------------------------------------------------------

    def host(self) -> Host:
        """NICs and main routes of the default VRF; the devices of users' networks are not looked at."""
        main = [route for route, protocol in self._routes(TABLE_MAIN) if protocol != PROTOCOL]
        routes = [route for route in main if _is_site_route(route)]
        local = {nexthop.device for route, _protocol in self._routes(TABLE_LOCAL, 4) for nexthop in route.nexthops}
        devices = local | {nexthop.device for route in routes for nexthop in route.nexthops}
        nics = [self._nic(device) for device in sorted(devices - {"lo"})]
        router = _read_sysctl("net/ipv4/conf/all/forwarding") == "1"
        return Host(tuple(nic for nic in nics if nic), tuple(routes), router)

    def network(self, who: Identity, names: Iterable[str], reply_table: int, nat_device: str) -> list[Object]:
        """What exists of a user's network, in the order of creation.

        `names` are devices to look at besides the slaves of the VRF. Raises UvnError for a device that has one of our
        names and is not ours.
        """
        links = {message["index"]: message for message in self._links(who, names)}
        objects: list[Object] = [self._link_object(message) for message in links.values()]
        routes = list(self._routes(who.table))
        local = {route.destination.network_address for route, _protocol in routes if route.type == "local"}
        for index in links:
            objects += [replace(a, routed=a.interface.ip in local) for a in self.addresses(index)]
        objects += [route for route, protocol in routes if protocol != PROTOCOL_KERNEL]
        index = socket_index(who.vrf)
        objects += [route for route, _protocol in self._routes(reply_table, device=index)] if index else []
        if self._has_address(nat_device, who.nat6):
            objects.append(Address(nat_device, ipaddress.ip_interface(who.nat6)))
        return objects

    def node(self, desired: Sequence[Object], nat_device: str, preferences: Iterable[int]) -> list[Object]:
        """What exists of a node's own state, in the order of creation: the sysctls that `desired` has, the dummy `nat_device`, rules of
        our `preferences` and the rule `local` where the kernel puts it, and our routes in table main.

        Raises UvnError when something else has the name of the dummy.
        """
        objects = sysctls(desired) + self._dummy(nat_device)
        objects += [r for r in self.rules() if r.priority in preferences or (r.priority == 0 and r.table == TABLE_LOCAL)]
        return objects + [route for route, protocol in self._routes(TABLE_MAIN, 4) if protocol == PROTOCOL]

    def vrfs(self) -> list[Vrf]:
        """All VRFs of users on this node."""
        dump = self._dump(ifinfmsg, RTM_GETLINK, [("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "vrf")]})])
        return [self._link_object(message) for message in dump if _is_ours(message) and _link_kind(message) == "vrf"]

    def addresses(self, index: int) -> list[Address]:
        """Global and loopback addresses of a device."""
        device = socket.if_indextoname(index)
        found = []
        for message in self._dump(ifaddrmsg, RTM_GETADDR, index=index):
            if message["scope"] != SCOPE_LINK:
                ip = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
                interface = ipaddress.ip_interface(f"{ip}/{message['prefixlen']}")
                flags = message.get_attr("IFA_FLAGS") or message["flags"]
                found.append(Address(device, interface, message["scope"] != SCOPE_HOST and not flags & IFA_F_DEPRECATED))
        return found

    def rules(self) -> list[Rule]:
        """All routing rules that a `Rule` can express."""
        found = []
        for version, family in FAMILIES.items():
            for message in self._ipr.get_rules(family=family):
                found += _rule_objects(message, version)
        return found

    # -- apply -----------------------------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change]) -> None:
        """Carry out changes of links, addresses, routes, rules and sysctls in their order.

        All links of a user go in one request (by group), since the kernel waits about 20 ms for each one.
        """
        groups = {c.object.group for c in changes if c.op == "delete" and isinstance(c.object, Vrf)}
        for change in changes:
            obj = change.object
            if change.op == "delete" and isinstance(obj, Vxlan) and obj.group in groups:
                continue
            try:
                self._apply(change)
            except NetlinkError as error:
                if error.code and not (change.op == "delete" and error.code in GONE):
                    raise UvnError(_explain(change, error)) from None

    def _apply(self, change: Change) -> None:
        obj = change.object
        if isinstance(obj, Sysctl):
            _write_sysctl(obj.path, obj.value)
        elif isinstance(obj, Vrf):
            self._create_vrf(obj) if change.op == "create" else self._ipr.link("del", group=obj.group)
        elif isinstance(obj, Vxlan):
            self._create_vxlan(obj) if change.op == "create" else self._ipr.link("del", ifname=obj.device)
        elif isinstance(obj, Dummy):
            self._create_dummy(obj) if change.op == "create" else self._ipr.link("del", ifname=obj.device)
        elif isinstance(obj, Address):
            if change.op != "create":
                self._address("del", obj)
            if change.op != "delete":
                self._address("replace", obj)
        elif isinstance(obj, Route):
            if change.op == "delete":
                self._ipr.route("del", scope=SCOPE_NOWHERE, **_route_key(obj))
            else:
                self._ipr.route("replace", **_route_key(obj), **_route_value(obj))
        elif isinstance(obj, Rule):
            if change.op == "delete":
                self._ipr.rule("del", **_rule_arguments(obj))
            else:
                protocol = PROTOCOL if obj.destination else PROTOCOL_KERNEL  # those without are the kernel's own, moved
                self._ipr.rule("add", protocol=protocol, **_rule_arguments(obj))

    def _create_dummy(self, dummy: Dummy) -> None:
        self._ipr.link("add", ifname=dummy.device, kind="dummy", group=dummy.group)
        self._bring_up(dummy.device)

    def _create_vrf(self, vrf: Vrf) -> None:
        self._ipr.link("add", ifname=vrf.device, kind="vrf", vrf_table=vrf.table, group=vrf.group)
        self._bring_up(vrf.device)

    def _create_vxlan(self, vxlan: Vxlan) -> None:
        version = vxlan.remote.version
        suffix = "" if version == 4 else "6"
        attributes = {
            f"vxlan_group{suffix}": str(vxlan.remote),
            f"vxlan_local{suffix}": str(vxlan.local),
            "vxlan_udp_csum" if version == 4 else "vxlan_udp_zero_csum6_tx": int(vxlan.udp_checksum == (version == 4)),
        }
        if version == 6:
            attributes["vxlan_udp_zero_csum6_rx"] = int(not vxlan.udp_checksum)
        self._ipr.link(
            "add",
            ifname=vxlan.device,
            kind="vxlan",
            group=vxlan.group,
            master=_index(vxlan.vrf),
            address=vxlan.mac,
            mtu=vxlan.mtu,
            vxlan_id=vxlan.vni,
            vxlan_link=_index(vxlan.nic),
            vxlan_port=vxlan.port,
            vxlan_port_range={"low": vxlan.source_ports[0], "high": vxlan.source_ports[1]},
            vxlan_ttl=vxlan.ttl,
            vxlan_learning=1,
            **attributes,
        )
        if vxlan.altname:
            self._ipr.link("property_add", index=_index(vxlan.device), altname=vxlan.altname)
        self._bring_up(vxlan.device)

    def _bring_up(self, device: str) -> None:
        """Up, without a link-local address: the kernel takes addrgenmode only after the creation."""
        inet6 = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", ADDR_GEN_MODE_NONE)]}
        self._ipr.link("set", index=_index(device), IFLA_AF_SPEC={"attrs": [("AF_INET6", inet6)]})
        self._ipr.link("set", index=_index(device), state="up")

    def _address(self, command: str, address: Address) -> None:
        """Packed here since addr() of pyroute2 0.7.2 drops preferred lifetimes."""
        interface = address.interface
        flags = IFA_F_NOPREFIXROUTE | (IFA_F_NODAD if interface.version == 6 else 0)
        preferred = FOREVER if address.selectable or interface.is_loopback else 0
        attributes = [
            ("IFA_LOCAL", str(interface.ip)),
            ("IFA_ADDRESS", str(interface.ip)),
            ("IFA_FLAGS", flags),
            ("IFA_CACHEINFO", {"ifa_preferred": preferred, "ifa_valid": FOREVER, "cstamp": 0, "tstamp": 0}),
        ]
        fields = {
            "family": FAMILIES[interface.version],
            "prefixlen": interface.network.prefixlen,
            "index": _index(address.device),
            "scope": SCOPE_UNIVERSE if address.selectable else SCOPE_HOST,
        }
        kind, extra = (RTM_DELADDR, 0) if command == "del" else (RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE)
        request = self._request(ifaddrmsg, attributes, fields)
        tuple(self._ipr.nlm_request(request, msg_type=kind, msg_flags=NLM_F_REQUEST | NLM_F_ACK | extra))

    # -- netlink ---------------------------------------------------------------------------------------------------

    def _dump(self, cls: type, message_type: int, attributes: Sequence = (), **fields: Any) -> tuple:
        """A dump filtered by the kernel, repeated when the tables changed meanwhile."""
        for _attempt in range(DUMP_TRIES):
            try:
                return self._dump_once(cls, message_type, attributes, fields)
            except Interrupted:
                continue
        raise UvnError(f"the kernel's tables changed during {DUMP_TRIES} dumps in a row; try again when the node is calmer")

    def _request(self, cls: type, attributes: Sequence, fields: dict) -> Any:
        core = getattr(self._ipr, "asyncore", None)  # pyroute2 0.9: nlm_request() needs this key
        if core is not None:
            core.status.setdefault("nlm_generator", False)
        request = cls()
        for field in request.fields:
            request[field[0]] = fields.get(field[0], 0)
        request["attrs"] = [list(attribute) for attribute in attributes]
        return request

    def _dump_once(self, cls: type, message_type: int, attributes: Sequence, fields: dict) -> tuple:
        request = self._request(cls, attributes, fields)
        try:
            reply = tuple(self._ipr.nlm_request(request, msg_type=message_type, msg_flags=NLM_F_REQUEST | NLM_F_DUMP))
        except NetlinkError as error:
            if error.code in (errno.ENOENT, 0):  # the table does not exist: empty
                return ()
            if error.code == -1:
                raise Interrupted from None
            raise UvnError(f"the kernel refused to list {cls.__name__}: {error}") from None
        if any(message["header"]["flags"] & NLM_F_DUMP_INTR for message in reply):
            raise Interrupted
        return reply

    def _dummy(self, device: str) -> list[Object]:
        link = self._link(ifname=device)
        if link and not (_is_ours(link) and _link_kind(link) == "dummy"):
            raise UvnError(f"{device}: a {_link_kind(link) or 'device'} not made by UVN has the name it needs; rename or delete it")
        return [Dummy(device, link.get_attr("IFLA_GROUP"))] if link else []

    def _has_address(self, device: str, address: ipaddress.IPv6Address) -> bool:
        """Whether a device has an IPv6 address; a get, since the device may have one for every user."""
        index = socket_index(device)
        if index is None:
            return False
        request = self._request(ifaddrmsg, [("IFA_ADDRESS", str(address))], {"family": socket.AF_INET6, "index": index})
        try:
            return bool(tuple(self._ipr.nlm_request(request, msg_type=RTM_GETADDR, msg_flags=NLM_F_REQUEST)))
        except NetlinkError as error:
            if error.code in GONE:
                return False
            raise UvnError(f"the kernel refused to say whether {device} has {address}: {error}") from None

    def _routes(self, table: int, version: int | None = None, device: int | None = None) -> Iterator[tuple[Route, int]]:
        """The routes of a table, of both IP versions or one, over all devices or one, each with its protocol."""
        attributes = [("RTA_TABLE", table)] + ([("RTA_OIF", device)] if device else [])
        for family in [FAMILIES[version]] if version else FAMILIES.values():
            for message in self._dump(rtmsg, RTM_GETROUTE, attributes, family=family):
                route = _route_object(message)
                if route:
                    yield route, message["proto"]

    def _link(self, **which: Any) -> Any:
        try:
            return next(iter(self._ipr.link("get", **which)))
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise UvnError(f"the kernel refused to show the link {which}: {error}") from None

    def _links(self, who: Identity, names: Iterable[str]) -> Iterator[Any]:
        """VRF and VXLANs of a user; those of a name, and the slaves of the VRF."""
        vrf = self._link(ifname=who.vrf)
        slaves = self._dump(ifinfmsg, RTM_GETLINK, [("IFLA_MASTER", vrf["index"])]) if vrf else ()
        named = [self._link(ifname=name) for name in names]
        found = {message["index"]: message for message in (vrf, *slaves, *named) if message}
        for message in found.values():
            if message.get_attr("IFLA_GROUP") != who.group:
                device = message.get_attr("IFLA_IFNAME")
                raise UvnError(
                    f"{device}: a {_link_kind(message) or 'device'} of link group {message.get_attr('IFLA_GROUP')}, not made by UVN "
                    f"(its group would be {who.group}); rename or delete it"
                )
            yield message

    def _link_object(self, message: Any) -> Object:
        name = message.get_attr("IFLA_IFNAME")
        data = message.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
        up = bool(message["flags"] & IFF_UP)
        if _link_kind(message) == "vrf":
            return Vrf(name, data.get_attr("IFLA_VRF_TABLE"), message.get_attr("IFLA_GROUP"), up)
        remote = data.get_attr("IFLA_VXLAN_GROUP") or data.get_attr("IFLA_VXLAN_GROUP6") or "0.0.0.0"
        version = ipaddress.ip_address(remote).version
        ports = data.get_attr("IFLA_VXLAN_PORT_RANGE")
        csum = data.get_attr("IFLA_VXLAN_UDP_CSUM") if version == 4 else not data.get_attr("IFLA_VXLAN_UDP_ZERO_CSUM6_TX")
        properties = message.get_attr("IFLA_PROP_LIST")
        return Vxlan(
            device=name,
            altname=properties.get_attr("IFLA_ALT_IFNAME") if properties else None,
            vrf=index_name(message.get_attr("IFLA_MASTER")) or "",
            group=message.get_attr("IFLA_GROUP"),
            vni=data.get_attr("IFLA_VXLAN_ID"),
            nic=index_name(data.get_attr("IFLA_VXLAN_LINK")) or "",
            port=data.get_attr("IFLA_VXLAN_PORT"),
            remote=ipaddress.ip_address(remote),
            local=ipaddress.ip_address(
                data.get_attr("IFLA_VXLAN_LOCAL") or data.get_attr("IFLA_VXLAN_LOCAL6") or ("0.0.0.0" if version == 4 else "::")
            ),
            ttl=data.get_attr("IFLA_VXLAN_TTL"),
            source_ports=(ports["low"], ports["high"]),
            udp_checksum=bool(csum),
            mac=message.get_attr("IFLA_ADDRESS"),
            mtu=message.get_attr("IFLA_MTU"),
            up=up,
        )

    def _nic(self, device: str) -> Nic | None:
        """A device of the default VRF that is up, with its global addresses; None for any other."""
        link = self._link(ifname=device)
        if not link or not link["flags"] & IFF_UP or _is_ours(link):
            return None
        addresses = tuple(a.interface for a in self.addresses(link["index"]) if _is_global(a))
        accept_ra = int(_read_sysctl(f"net/ipv6/conf/{device}/accept_ra") or 0)
        return Nic(device, link.get_attr("IFLA_MTU"), addresses, accept_ra) if addresses else None


def sysctls(desired: Iterable[Object]) -> list[Object]:
    """Observed values of the sysctls among the desired objects; an optional one that the kernel has not counts as set."""
    found: list[Object] = []
    for obj in desired:
        if isinstance(obj, Sysctl):
            value = _read_sysctl(obj.path)
            if value is not None:
                found.append(Sysctl(obj.path, value))
            elif obj.optional:
                found.append(obj)
    return found


def index_name(index: int | None) -> str | None:
    """Name of an interface index, None when there is none."""
    try:
        return socket.if_indextoname(index) if index else None
    except OSError:
        return None


def socket_index(device: str) -> int | None:
    """Index of a device, None when there is none."""
    try:
        return socket.if_nametoindex(device)
    except OSError:
        return None


def _index(device: str) -> int:
    index = socket_index(device)
    if index is None:
        raise UvnError(f"the device {device} is gone; it was there a moment ago, try again")
    return index


def _explain(change: Change, error: Any) -> str:
    if isinstance(change.object, (Vrf, Vxlan)) and error.code in (errno.EOPNOTSUPP, errno.ENOTSUP):
        return f"cannot {change}: this kernel has no {change.object.kind} module; install it (Ubuntu: linux-modules-extra)"
    return f"cannot {change}: {error.args[1] if len(error.args) > 1 else error}"


def _is_ours(message: Any) -> bool:
    return ((message.get_attr("IFLA_GROUP") or 0) & LINK_GROUP_MASK) == LINK_GROUP


def _link_kind(message: Any) -> str | None:
    info = message.get_attr("IFLA_LINKINFO")
    return info.get_attr("IFLA_INFO_KIND") if info else None


def _is_global(address: Address) -> bool:
    return not (address.interface.is_loopback or address.interface.is_link_local or address.interface.is_multicast)


def _is_site_route(route: Route) -> bool:
    """Whether users need a route of table main: not those to links, groups and the loopback."""
    network = route.destination
    if network.is_link_local or network.is_multicast or network.is_loopback:
        return False
    return all(nexthop.device != "lo" for nexthop in route.nexthops)


def _route_object(message: Any) -> Route | None:
    version = VERSIONS[message["family"]]
    kind = ROUTE_TYPES.get(message["type"])
    if kind is None or message["flags"] & 0x200:  # RTM_F_CLONED
        return None
    destination = f"{message.get_attr('RTA_DST') or ('0.0.0.0' if version == 4 else '::')}/{message['dst_len']}"
    source = message.get_attr("RTA_PREFSRC")
    return Route(
        table=message.get_attr("RTA_TABLE") or message["table"],
        destination=ipaddress.ip_network(destination, strict=False),
        metric=message.get_attr("RTA_PRIORITY") or 0,
        type=kind,
        nexthops=_nexthops(message) if kind in ("unicast", "local") else (),
        source=ipaddress.ip_address(source) if source else None,
    )


def _nexthops(message: Any) -> tuple[Nexthop, ...]:
    hops = message.get_attr("RTA_MULTIPATH")
    if hops:
        return tuple(sorted((_nexthop(hop, hop["oif"], hop["hops"] + 1) for hop in hops), key=repr))
    return (_nexthop(message, message.get_attr("RTA_OIF"), 1),)


def _nexthop(message: Any, index: int, weight: int) -> Nexthop:
    gateway = message.get_attr("RTA_GATEWAY")
    return Nexthop(index_name(index) or f"if{index}", ipaddress.ip_address(gateway) if gateway else None, weight)


def _route_key(route: Route) -> dict[str, Any]:
    """What names a route, whoever made it."""
    family = FAMILIES[route.destination.version]
    return {"family": family, "table": route.table, "dst": str(route.destination), "priority": route.metric}


def _route_value(route: Route) -> dict[str, Any]:
    arguments: dict[str, Any] = {"type": ROUTE_NUMBERS[route.type], "proto": PROTOCOL, "scope": _scope(route)}
    if route.source:
        arguments["prefsrc"] = str(route.source)
    if len(route.nexthops) > 1:
        arguments["multipath"] = [_hop_arguments(nexthop, "hops") for nexthop in route.nexthops]
    elif route.nexthops:
        arguments.update(_hop_arguments(route.nexthops[0], None))
    return arguments


def _scope(route: Route) -> int:
    """IPv4 wants a scope that fits (net/ipv4/fib_semantics.c); IPv6 ignores it."""
    if route.type == "local":
        return SCOPE_HOST
    on_link = route.type == "unicast" and all(nexthop.gateway is None for nexthop in route.nexthops)
    return SCOPE_LINK if on_link else SCOPE_UNIVERSE


def _hop_arguments(nexthop: Nexthop, weight: str | None) -> dict[str, Any]:
    arguments: dict[str, Any] = {"oif": _index(nexthop.device)}
    if weight:
        arguments[weight] = nexthop.weight - 1
    if nexthop.gateway:
        arguments.update(gateway=str(nexthop.gateway), flags=RTNH_F_ONLINK)
    return arguments


def _rule_objects(message: Any, version: int) -> list[Rule]:
    priority = message.get_attr("FRA_PRIORITY") or 0
    destination, device = message.get_attr("FRA_DST"), message.get_attr("FRA_IIFNAME")
    network = ipaddress.ip_network(f"{destination}/{message['dst_len']}") if destination else None
    known = {"PRIORITY", "TABLE", "DST", "L3MDEV", "PROTOCOL", "SUPPRESS_PREFIXLEN", "IIFNAME", "UNSPEC"}
    if any(name[len("FRA_") :] not in known for name, _value in message["attrs"]) or device not in (None, "lo"):
        return []
    if message["action"] == FR_ACT_UNREACHABLE:
        return [Rule(version, priority, "unreachable", network, device == "lo")]
    if message["action"] != FR_ACT_TO_TBL:
        return []
    table = "l3mdev" if message.get_attr("FRA_L3MDEV") else message.get_attr("FRA_TABLE")
    return [Rule(version, priority, table, network, device == "lo")]


def _rule_arguments(rule: Rule) -> dict[str, Any]:
    arguments: dict[str, Any] = {"family": FAMILIES[rule.version], "priority": rule.priority}
    arguments["action"] = FR_ACT_UNREACHABLE if rule.table == "unreachable" else FR_ACT_TO_TBL
    if rule.table == "l3mdev":
        arguments["l3mdev"] = 1
    elif isinstance(rule.table, int):
        arguments["table"] = rule.table
    if rule.local:
        arguments["iifname"] = "lo"
    if rule.destination:
        arguments.update(dst=str(rule.destination.network_address), dst_len=rule.destination.prefixlen)
    return arguments


def _read_sysctl(path: str) -> str | None:
    try:
        with open(f"/proc/sys/{path}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None


def _write_sysctl(path: str, value: str) -> None:
    try:
        with open(f"/proc/sys/{path}", "w", encoding="ascii") as file:
            file.write(value)
    except OSError as error:
        raise UvnError(f"cannot set the sysctl {path} to {value}: {error.strerror}") from None
