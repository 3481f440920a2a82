# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's view and hand: observe and apply links, addresses, routes, rules and sysctls.

The only file that imports pyroute2. Every read is filtered in the kernel (strict checking), so that its cost does not grow
with the number of users.
"""

from __future__ import annotations

import errno
import functools
import importlib.util
import ipaddress
import os
import socket
import struct
import sys
from dataclasses import replace
from typing import Any, Callable, Dict, Iterable, Iterator, Sequence, Tuple

from .diff import Change
from .errors import UvnError
from .identity import LINK_GROUP, LINK_GROUP_MASK, Identity
from .netlink import (
    HEADER,
    IFADDR,
    IFINFO,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTMSG,
    RTNEXTHOP,
    Message,
    Netlink,
    Refused,
    attributes_of,
    decode,
    encode,
    number_of,
    pack,
    pack_attributes,
    u32,
)
from .objects import TABLE_LOCAL, TABLE_MAIN, Address, Dummy, Nexthop, Object, Route, Rule, Sysctl, Vrf, Vxlan
from .plan import NAT_DEVICE
from .underlay import IPV6_MTU, Host, Nic

try:
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"  # pyroute2 up to 0.9.6 runs `uname` and `file` when imported
    spec = importlib.util.find_spec("pyroute2") if "pyroute2" not in sys.modules else None
    if spec:  # the package as a mere directory: its __init__ imports four times as much as is used here
        sys.modules["pyroute2"] = importlib.util.module_from_spec(spec)
    from pyroute2.netlink.rtnl.fibmsg import fibmsg
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    PYROUTE2_ERROR = None
except ImportError as error:
    PYROUTE2_ERROR = str(error)

# include/uapi/linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTM_NEWLINKPROP = 108
RTM_DELQDISC, RTM_GETTFILTER = 37, 46
CLSACT, CLSACT_HANDLE, CLSACT_INGRESS, CLSACT_EGRESS = 0xFFFFFFF1, 0xFFFF0000, 0xFFFFFFF2, 0xFFFFFFF3  # linux/pkt_sched.h
TCMSG = struct.Struct("=BxxxiIII")  # struct tcmsg: family, index, handle, parent, info
RT_TABLE_COMPAT = 252  # the field of a message whose table does not fit into 8 bits
IFLA_IFNAME, IFLA_AF_SPEC, IFLA_GROUP = 3, 26, 27
IFLA_INET_CONF, IPV4_DEVCONF_ACCEPT_LOCAL = 1, 23  # include/uapi/linux/if_link.h, ip.h
IFA_ADDRESS, IFA_LOCAL, IFA_CACHEINFO, IFA_FLAGS = 1, 2, 6, 8
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_MULTIPATH = 1, 4, 5, 6, 7, 8, 9
RTA_TABLE, RTA_VIA, RTA_PREF, RTA_NH_ID = 15, 18, 20, 30
RTA_REPEATED = (11, 21, 22)  # of a next hop: RTA_FLOW, RTA_ENCAP_TYPE, RTA_ENCAP
RTAX_CC_ALGO = 16  # the one metric that is a name
VIA = struct.Struct("=H")  # struct rtvia: family, before the address
# include/uapi/linux/nexthop.h
RTM_GETNEXTHOP = 106
NHMSG = struct.Struct("=BBBxI")  # struct nhmsg: family, scope, protocol, flags
NEXTHOP_GROUP = struct.Struct("=IBBH")  # struct nexthop_grp: id, weight - 1, its upper byte, reserved
NHA_ID, NHA_GROUP, NHA_OIF = 1, 2, 5
NEXTHOP_ATTRIBUTES = {6: RTA_GATEWAY, 7: 21, 8: 22}  # NHA_GATEWAY, NHA_ENCAP_TYPE, NHA_ENCAP: as a route has them
RTM_F_CLONED = 0x200

PROTOCOL = 117  # 'u': our routes, RTA protocol (include/uapi/linux/rtnetlink.h leaves numbers above 4 to user space)
PROTOCOL_KERNEL = 2
ROUTE_TYPES = {1: "unicast", 2: "local", 6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"}
ROUTE_NUMBERS = {name: number for number, name in ROUTE_TYPES.items()}
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_HOST, SCOPE_NOWHERE = 0, 253, 254, 255
IFA_F_NODAD, IFA_F_DEPRECATED, IFA_F_NOPREFIXROUTE = 0x02, 0x20, 0x200
FOREVER = 0xFFFFFFFF  # seconds, INFINITY_LIFE_TIME
IFF_UP = 0x1
UP = {"flags": IFF_UP, "change": IFF_UP}
RTNH_F_ONLINK = 4
ADDR_GEN_MODE_NONE = 1
FR_ACT_TO_TBL, FR_ACT_UNREACHABLE = 1, 7
CONF6 = "net/ipv6/conf"
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
VERSIONS = {socket.AF_INET: 4, socket.AF_INET6: 6}
INTERFACES = {socket.AF_INET: ipaddress.IPv4Interface, socket.AF_INET6: ipaddress.IPv6Interface}
NETWORKS = {socket.AF_INET: ipaddress.IPv4Network, socket.AF_INET6: ipaddress.IPv6Network}
ANYWHERE = {socket.AF_INET: bytes(4), socket.AF_INET6: bytes(16)}
GONE = (errno.ENODEV, errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL)
NO_STATISTICS = ("IFLA_EXT_MASK", 1 << 3)  # RTEXT_FILTER_SKIP_STATS
NEW = NLM_F_ACK | NLM_F_CREATE
DELETE = SET = NLM_F_ACK


class Kernel:
    """A netlink socket and /proc/sys. Open it after fork, close it when done; it is thrown away after an OSError.

    Raises UvnError when pyroute2 is missing or the kernel refuses a request.
    """

    def __init__(self) -> None:
        if PYROUTE2_ERROR:
            raise UvnError(f"pyroute2 >= 0.7.2 is missing ({PYROUTE2_ERROR}); install the package python3-pyroute2")
        self._netlink = Netlink()

    def close(self) -> None:
        self._netlink.close()

    # -- observe ---------------------------------------------------------------------------------------------------

    def host(self) -> Host:
        """NICs and main routes of the default VRF; the devices of users' networks are not looked at."""
        usable = (4, 6) if ipv6() else (4,)
        main = [route for route, protocol in self._routes(TABLE_MAIN) if protocol != PROTOCOL]
        routes = [route for route in main if _is_site_route(route) and route.destination.version in usable]
        local = {nexthop.device for route, _protocol in self._routes(TABLE_LOCAL, 4) for nexthop in route.nexthops}
        devices = local | {nexthop.device for route in routes for nexthop in route.nexthops}
        nics = [self._nic(device, usable) for device in sorted(devices - {"lo"})]
        router = _read_sysctl("net/ipv4/conf/all/forwarding") == "1"
        return Host(tuple(nic for nic in nics if nic), tuple(routes), router, versions(), 6 in usable)

    def network(self, who: Identity, names: Iterable[str], reply_table: int, nat_device: str) -> list[Object]:
        """What exists of a user's network, in the order of creation.

        `names` are devices to look at besides the slaves of the VRF. Raises UvnError for a device that has one of our
        names and is not ours.
        """
        links = {message["index"]: message for message in self._links(who, names)}
        enabled = ipv6()
        objects: list[Object] = [_link_object(message, enabled) for message in links.values()]
        routes = list(self._routes(who.table))
        local = {route.destination.network_address for route, _protocol in routes if route.type == "local"}
        for index in links:
            objects += [replace(a, routed=a.interface.ip in local) for a in self.addresses(index)]
        objects += [route for route, protocol in routes if protocol != PROTOCOL_KERNEL]
        vrf = next((index for index, obj in zip(links, objects) if isinstance(obj, Vrf)), None)
        objects += [route for route, _protocol in self._routes(reply_table, device=vrf)] if vrf else []
        if 6 in versions() and self._has_address(nat_device, who.nat6):
            objects.append(Address(nat_device, ipaddress.ip_interface(who.nat6)))
        return objects

    def node(self, desired: Sequence[Object], nat_device: str, preferences: Iterable[int]) -> list[Object]:
        """What exists of a node's own state, in the order of creation: the sysctls that `desired` has, the dummy `nat_device`, rules of
        our `preferences` and the rule `local` where the kernel puts it, and our routes in table main.

        Raises UvnError when something else has the name of the dummy.
        """
        objects = sysctls(desired) + self._dummy(nat_device)
        objects += [r for r in self.rules() if r.priority in preferences or (r.priority == 0 and r.table == TABLE_LOCAL)]
        return objects + [route for route, protocol in self._routes(TABLE_MAIN) if protocol == PROTOCOL]

    def devices(self, *kinds: str) -> dict[int, int]:
        """UVN's devices of some kinds (`vrf`, `vxlan`, `dummy`): interface index -> link group."""
        found = {}
        for kind in kinds:
            wanted = [("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind)]}), NO_STATISTICS]
            for message in self._netlink.dump(encode(ifinfmsg, RTM_GETLINK, NLM_F_DUMP, wanted)):  # not decoded: there may be thousands
                index = IFINFO.unpack_from(message.data, HEADER.size)[2]
                group = number_of(attributes_of(message.data, HEADER.size + IFINFO.size).get(IFLA_GROUP)) or 0
                if group & LINK_GROUP_MASK == LINK_GROUP:
                    found[index] = group
        return found

    def addresses(self, index: int) -> list[Address]:
        """Global and loopback addresses of a device."""
        device = index_name(index)
        request = pack(RTM_GETADDR, NLM_F_DUMP, IFADDR.pack(0, 0, 0, 0, index), ())
        found = (_address_object(message, device) for message in self._netlink.dump(request)) if device else ()
        return [address for address in found if address]

    def drop_idle_clsact(self, device: str) -> None:
        """Remove the qdisc that classifiers hang on from a device where none is left."""
        index = socket_index(device)
        if index is None:
            return
        for parent in (CLSACT_INGRESS, CLSACT_EGRESS):
            if self._netlink.dump(pack(RTM_GETTFILTER, NLM_F_DUMP, TCMSG.pack(0, index, 0, parent, 0), ())):
                return
        self._netlink.apply([pack(RTM_DELQDISC, DELETE, TCMSG.pack(0, index, CLSACT_HANDLE, CLSACT, 0), ())])

    def rules(self) -> list[Rule]:
        """All routing rules that a `Rule` can express."""
        found = []
        for version in versions():
            for message in self._netlink.dump(encode(fibmsg, RTM_GETRULE, NLM_F_DUMP, [], {"family": FAMILIES[version]})):
                found += _rule_objects(decode(fibmsg, message), version)
        return found

    # -- apply -----------------------------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change]) -> None:
        """Carry out changes of links, addresses, routes, rules and sysctls in their order.

        All links of a user that goes are deleted by one request (by group), since the kernel waits about 20 ms for each request.
        Raises UvnError for the first change that the kernel refused; those after it may have been carried out.
        """
        batch = Batch(self._netlink)
        groups = {c.object.group for c in changes if c.op == "delete" and isinstance(c.object, Vrf)}
        for change in changes:
            obj = change.object
            if isinstance(obj, Sysctl):
                batch.flush()
                _write_sysctl(obj.path, obj.value)
            elif not (change.op == "delete" and isinstance(obj, Vxlan) and obj.group in groups):
                batch.add(change)
        batch.flush()

    # -- netlink ---------------------------------------------------------------------------------------------------

    def _dummy(self, device: str) -> list[Object]:
        link = self._link(device)
        if link and not (_is_ours(link) and _link_kind(link) == "dummy"):
            raise UvnError(f"{device}: a {_link_kind(link) or 'device'} not made by UVN has the name it needs; rename or delete it")
        return [Dummy(device, link.get_attr("IFLA_GROUP"))] if link else []

    def _has_address(self, device: str, address: ipaddress.IPv6Address) -> bool:
        """Whether a device has an IPv6 address; a get, since the device may have one for every user."""
        index = socket_index(device)
        if index is None:
            return False
        wanted = pack(RTM_GETADDR, 0, IFADDR.pack(socket.AF_INET6, 0, 0, 0, index), [(IFA_ADDRESS, address.packed)])
        try:
            self._netlink.get(wanted)
        except Refused as error:
            if error.code in GONE:
                return False
            raise UvnError(f"the kernel refused to say whether {device} has {address}: {error}") from None
        return True

    def _routes(self, table: int, version: int | None = None, device: int | None = None) -> Iterator[tuple[Route, int]]:
        """The routes of a table, of both IP versions or one, over all devices or one, each with its protocol."""
        family = FAMILIES[version] if version else socket.AF_UNSPEC
        wanted = [(RTA_TABLE, u32(table))] + ([(RTA_OIF, u32(device))] if device else [])
        names, objects = _Names(), functools.lru_cache(maxsize=None)(self._nexthop_objects)
        for message in self._netlink.dump(pack(RTM_GETROUTE, NLM_F_DUMP, RTMSG.pack(family, *[0] * 8), wanted)):
            route = _route_object(message, names, objects)
            if route:
                yield route, RTMSG.unpack_from(message.data, HEADER.size)[5]

    def _nexthop_objects(self) -> Hops:
        """The next hop objects (`ip nexthop`) by number, each with its flags and attributes."""
        found: Hops = {}
        for message in self._netlink.dump(pack(RTM_GETNEXTHOP, NLM_F_DUMP, NHMSG.pack(0, 0, 0, 0), ())):
            attributes = attributes_of(message.data, HEADER.size + NHMSG.size)
            found[number_of(attributes[NHA_ID]) or 0] = NHMSG.unpack_from(message.data, HEADER.size)[3], attributes
        return found

    def _link(self, device: str) -> Any:
        try:
            return decode(ifinfmsg, self._netlink.get(encode(ifinfmsg, RTM_GETLINK, 0, [("IFLA_IFNAME", device), NO_STATISTICS])))
        except Refused as error:
            if error.code == errno.ENODEV:
                return None
            raise UvnError(f"the kernel refused to show the link {device}: {error}") from None

    def _links(self, who: Identity, names: Iterable[str]) -> list[Any]:
        """VRF and VXLANs of a user; the slaves of the VRF, and those of a name."""
        vrf = self._link(who.vrf)
        found = [vrf] if vrf else []
        if vrf:
            slaves = encode(ifinfmsg, RTM_GETLINK, NLM_F_DUMP, [("IFLA_MASTER", vrf["index"]), NO_STATISTICS])
            found += [decode(ifinfmsg, message) for message in self._netlink.dump(slaves)]
        known = {message.get_attr("IFLA_IFNAME") for message in found}
        found += filter(None, (self._link(name) for name in names if name not in known and name != who.vrf))
        for message in found:
            if not _is_ours(message):
                device = message.get_attr("IFLA_IFNAME")
                raise UvnError(
                    f"{device}: a {_link_kind(message) or 'device'} of link group {message.get_attr('IFLA_GROUP')}, not made by UVN "
                    f"(its group would be {who.group}); rename or delete it"
                )
        return found

    def _nic(self, device: str, usable: tuple[int, ...]) -> Nic | None:
        """A device of the default VRF that is up, with its global addresses of the IP versions in use; None for any other."""
        link = self._link(device)
        if not link or not link["flags"] & IFF_UP or _is_ours(link):
            return None
        addresses = tuple(a.interface for a in self.addresses(link["index"]) if _is_global(a) and a.interface.version in usable)
        accept_ra = int(_read_sysctl(f"net/ipv6/conf/{device}/accept_ra") or 0)
        return Nic(device, link.get_attr("IFLA_MTU"), addresses, accept_ra) if addresses else None


class Batch:
    """Changes on their way to the kernel: as many as possible in one system call."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink
        self._waiting: list[tuple[Change, bytes]] = []
        self._made: set[str] = set()  # devices that the waiting requests make
        self._indices: dict[str, int] = {}

    def add(self, change: Change) -> None:
        """Encode a change. Raises UvnError when a device that it needs is not there."""
        requests = _requests(change, self._index)  # which may flush
        self._waiting += [(change, request) for request in requests]
        if isinstance(change.object, (Vrf, Vxlan, Dummy)):
            self._made.add(change.object.device)
            self._indices.pop(change.object.device, None)

    def flush(self) -> None:
        """Send what waits. Raises UvnError for the first change that was refused."""
        waiting, self._waiting, self._made = self._waiting, [], set()
        for (change, _request), error in zip(waiting, self._netlink.apply([request for _change, request in waiting])):
            if error and not (change.op == "delete" and error.code in GONE):
                raise UvnError(_explain(change, error))

    def _index(self, device: str) -> int:
        if device in self._made:
            self.flush()
        if device not in self._indices:
            index = socket_index(device)
            if index is None:
                raise UvnError(f"the device {device} is gone; it was there a moment ago, try again")
            self._indices[device] = index
        return self._indices[device]


Index = Callable[[str], int]
Hops = Dict[int, Tuple[int, Dict[int, bytes]]]


def _requests(change: Change, index: Index) -> list[bytes]:
    """The netlink requests of one change; `index` gives the interface index of a device."""
    obj = change.object
    if isinstance(obj, (Vrf, Vxlan, Dummy)):
        if change.op == "create":
            return _create_link(obj, index)
        if change.op == "replace":  # users' sockets and connections live on
            return [encode(ifinfmsg, RTM_NEWLINK, SET, [("IFLA_IFNAME", obj.device), ("IFLA_ADDRESS", obj.mac)])]
        which = ("IFLA_GROUP", obj.group) if isinstance(obj, Vrf) else ("IFLA_IFNAME", obj.device)
        return [encode(ifinfmsg, RTM_DELLINK, DELETE, [which])]
    if isinstance(obj, Address):
        before = [_address(obj, RTM_DELADDR, DELETE, index)] if change.op != "create" else []
        return before + ([_address(obj, RTM_NEWADDR, NEW | NLM_F_REPLACE, index)] if change.op != "delete" else [])
    if isinstance(obj, Route):
        return [_delete_route(obj) if change.op == "delete" else _replace_route(obj, index)]
    if isinstance(obj, Rule):
        return [_rule(obj, RTM_DELRULE, DELETE) if change.op == "delete" else _rule(obj, RTM_NEWRULE, NEW | NLM_F_EXCL)]
    raise AssertionError(f"no netlink request for {change}")


def _create_link(obj: Vrf | Vxlan | Dummy, index: Index) -> list[bytes]:
    if isinstance(obj, Vxlan):
        return _create_vxlan(obj, index)
    attributes = [("IFLA_IFNAME", obj.device), ("IFLA_GROUP", obj.group)]
    if isinstance(obj, Dummy):
        return [_down([*attributes, _link_info("dummy", [])]), *_bring_up(obj.device, 6 in versions())]
    attributes += [("IFLA_ADDRESS", obj.mac), _link_info("vrf", [("IFLA_VRF_TABLE", obj.table)])]
    # Up at once: a VRF never gets a link-local address (addrconf_addr_gen, net/ipv6/addrconf.c).
    return [encode(ifinfmsg, RTM_NEWLINK, NEW | NLM_F_EXCL, attributes, UP), _accept_local(obj.device)]


def _accept_local(device: str) -> bytes:
    """By hand: pyroute2 knows IFLA_INET_CONF only as the kernel sends it, an array, and not as it takes it, attributes."""
    accept = pack_attributes([(IPV4_DEVCONF_ACCEPT_LOCAL, u32(1))])
    inet = pack_attributes([(socket.AF_INET, pack_attributes([(IFLA_INET_CONF, accept)]))])
    return pack(RTM_NEWLINK, SET, IFINFO.pack(0, 0, 0, 0, 0), [(IFLA_IFNAME, device.encode() + b"\0"), (IFLA_AF_SPEC, inet)])


def _create_vxlan(vxlan: Vxlan, index: Index) -> list[bytes]:
    version = vxlan.remote.version
    suffix = "" if version == 4 else "6"
    data: list[tuple[str, Any]] = [
        ("IFLA_VXLAN_ID", vxlan.vni),
        ("IFLA_VXLAN_LINK", index(vxlan.nic)),
        ("IFLA_VXLAN_PORT", vxlan.port),
        ("IFLA_VXLAN_PORT_RANGE", {"low": vxlan.source_ports[0], "high": vxlan.source_ports[1]}),
        ("IFLA_VXLAN_TTL", vxlan.ttl),
        ("IFLA_VXLAN_LEARNING", 1),
        (f"IFLA_VXLAN_GROUP{suffix}", str(vxlan.remote)),
        (f"IFLA_VXLAN_LOCAL{suffix}", str(vxlan.local)),
    ]
    if version == 4:
        data.append(("IFLA_VXLAN_UDP_CSUM", int(vxlan.udp_checksum)))
    else:
        data += [(f"IFLA_VXLAN_UDP_ZERO_CSUM6_{way}", int(not vxlan.udp_checksum)) for way in ("TX", "RX")]
    attributes = [
        ("IFLA_IFNAME", vxlan.device),
        ("IFLA_GROUP", vxlan.group),
        ("IFLA_MASTER", index(vxlan.vrf)),
        ("IFLA_ADDRESS", vxlan.mac),
        ("IFLA_MTU", vxlan.mtu),
        _link_info("vxlan", data),
    ]
    return [_down(attributes), *_altname(vxlan), *_bring_up(vxlan.device, 6 in versions() and vxlan.mtu >= IPV6_MTU)]


def _down(attributes: Sequence) -> bytes:
    """A new link that is down: the kernel takes alternative names and the way of link-local addresses only afterwards."""
    return encode(ifinfmsg, RTM_NEWLINK, NEW | NLM_F_EXCL, attributes)


def _altname(vxlan: Vxlan) -> list[bytes]:
    if vxlan.altname is None:
        return []
    names = ("IFLA_PROP_LIST", {"attrs": [("IFLA_ALT_IFNAME", vxlan.altname)]})
    return [encode(ifinfmsg, RTM_NEWLINKPROP, NEW | NLM_F_EXCL, [("IFLA_IFNAME", vxlan.device), names])]


def _bring_up(device: str, inet6: bool) -> list[bytes]:
    """Up, without a link-local address where the kernel could give one, be it later."""
    up = encode(ifinfmsg, RTM_NEWLINK, SET, [("IFLA_IFNAME", device)], UP)
    if not inet6:
        return [up]
    without = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", ADDR_GEN_MODE_NONE)]})]}
    return [encode(ifinfmsg, RTM_NEWLINK, SET, [("IFLA_IFNAME", device), ("IFLA_AF_SPEC", without)]), up]


def _link_info(kind: str, data: Sequence) -> tuple[str, dict]:
    about = [("IFLA_INFO_DATA", {"attrs": list(data)})] if data else []
    return "IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind), *about]}


def _address(address: Address, kind: int, flags: int, index: Index) -> bytes:
    interface = address.interface
    preferred = FOREVER if address.selectable or interface.is_loopback else 0
    attributes = [
        (IFA_LOCAL, interface.ip.packed),
        (IFA_ADDRESS, interface.ip.packed),
        (IFA_FLAGS, u32(IFA_F_NOPREFIXROUTE | (IFA_F_NODAD if interface.version == 6 else 0))),
        (IFA_CACHEINFO, u32(preferred) + u32(FOREVER) + bytes(8)),
    ]
    scope = SCOPE_UNIVERSE if address.selectable else SCOPE_HOST
    body = IFADDR.pack(FAMILIES[interface.version], interface.network.prefixlen, 0, scope, index(address.device))
    return pack(kind, flags, body, attributes)


def _delete_route(route: Route) -> bytes:
    return pack(RTM_DELROUTE, DELETE, _route_body(route, 0, SCOPE_NOWHERE, 0, 0), _route_key(route))


def _replace_route(route: Route, index: Index) -> bytes:
    attributes = _route_key(route)
    if route.source:
        attributes.append((RTA_PREFSRC, route.source.packed))
    if route.metrics:
        attributes.append((RTA_METRICS, pack_attributes((number, _metric(value)) for number, value in route.metrics)))
    if route.preference:
        attributes.append((RTA_PREF, bytes([route.preference])))
    flags = 0
    if len(route.nexthops) > 1:
        attributes.append((RTA_MULTIPATH, b"".join(_hop(hop, route, index) for hop in route.nexthops)))
    for hop in route.nexthops if len(route.nexthops) == 1 else ():
        attributes += [(RTA_OIF, u32(index(hop.device))), *_way(hop, route)]
        flags = _onlink(hop)
    return pack(RTM_NEWROUTE, NEW | NLM_F_REPLACE, _route_body(route, PROTOCOL, _scope(route), ROUTE_NUMBERS[route.type], flags), attributes)


def _route_body(route: Route, protocol: int, scope: int, kind: int, flags: int) -> bytes:
    table = route.table if route.table < 256 else RT_TABLE_COMPAT
    return RTMSG.pack(FAMILIES[route.destination.version], route.destination.prefixlen, 0, route.tos, table, protocol, scope, kind, flags)


def _route_key(route: Route) -> list[tuple[int, bytes]]:
    """What names a route, whoever made it."""
    destination = route.destination
    key = [(RTA_TABLE, u32(route.table)), (RTA_PRIORITY, u32(route.metric))]
    return key + ([(RTA_DST, destination.network_address.packed)] if destination.prefixlen else [])


def _metric(value: int | str) -> bytes:
    return value.encode() + b"\0" if isinstance(value, str) else u32(value)


def _hop(hop: Nexthop, route: Route, index: Index) -> bytes:
    way = pack_attributes(_way(hop, route))
    return RTNEXTHOP.pack(RTNEXTHOP.size + len(way), _onlink(hop), hop.weight - 1, index(hop.device)) + way


def _way(hop: Nexthop, route: Route) -> list[tuple[int, bytes]]:
    if hop.gateway is None:
        return [*hop.encapsulation]
    if hop.gateway.version == route.destination.version:
        return [(RTA_GATEWAY, hop.gateway.packed), *hop.encapsulation]
    return [(RTA_VIA, VIA.pack(FAMILIES[hop.gateway.version]) + hop.gateway.packed), *hop.encapsulation]


def _onlink(hop: Nexthop) -> int:
    return RTNH_F_ONLINK if hop.onlink else 0


def _scope(route: Route) -> int:
    """IPv4 wants a scope that fits (net/ipv4/fib_semantics.c); IPv6 ignores it."""
    if route.scope is not None:
        return route.scope
    if route.type == "local":
        return SCOPE_HOST
    on_link = route.type == "unicast" and all(nexthop.gateway is None for nexthop in route.nexthops)
    return SCOPE_LINK if on_link else SCOPE_UNIVERSE


def _rule(rule: Rule, kind: int, flags: int) -> bytes:
    attributes: list[tuple[str, Any]] = [("FRA_PRIORITY", rule.priority)]
    fields = {"family": FAMILIES[rule.version], "action": FR_ACT_UNREACHABLE if rule.table == "unreachable" else FR_ACT_TO_TBL}
    if kind == RTM_NEWRULE:
        moved = not (rule.destination or rule.mark)  # the kernel's own rules have neither
        attributes.append(("FRA_PROTOCOL", PROTOCOL_KERNEL if moved else PROTOCOL))
    if rule.table == "l3mdev":
        attributes.append(("FRA_L3MDEV", 1))
    elif isinstance(rule.table, int):
        attributes.append(("FRA_TABLE", rule.table))
        fields["table"] = rule.table if rule.table < 256 else RT_TABLE_COMPAT
    if rule.local:
        attributes.append(("FRA_IIFNAME", "lo"))
    if rule.mark:
        attributes.append(("FRA_FWMARK", rule.mark))
    if rule.destination:
        attributes.append(("FRA_DST", str(rule.destination.network_address)))
        fields["dst_len"] = rule.destination.prefixlen
    return encode(fibmsg, kind, flags, attributes, fields)


def versions() -> tuple[int, ...]:
    """The IP versions that the kernel has; with ipv6.disable=1 on its command line, or without the module, IPv4 alone."""
    return (4, 6) if os.path.exists(f"/proc/sys/{CONF6}/all") else (4,)


def ipv6() -> bool:
    """Whether devices that are made now take IPv6 addresses, and the dummy does.

    A new device takes its `disable_ipv6` from `default`; what is written to `all` the kernel writes to `default` and to every device.
    """
    return all(_read_sysctl(f"{CONF6}/{name}/disable_ipv6") == "0" for name in ("all", "default")) and (
        _read_sysctl(f"{CONF6}/{NAT_DEVICE}/disable_ipv6") != "1"
    )


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
    """Index of a device, None when there is none: for that answer the kernel runs modprobe (dev_load, net/core/dev_ioctl.c)."""
    try:
        return socket.if_nametoindex(device)
    except OSError:
        return None


def _explain(change: Change, error: Any) -> str:
    if isinstance(change.object, (Vrf, Vxlan)) and error.code in (errno.EOPNOTSUPP, errno.ENOTSUP):
        return f"cannot {change}: this kernel has no {change.object.kind} module; install it (Ubuntu: linux-modules-extra)"
    return f"cannot {change}: {error}"


def _link_object(message: Any, enabled: bool) -> Object:
    """A link of ours; `enabled`: IPv6 is on on the node."""
    name = message.get_attr("IFLA_IFNAME")
    data = message.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    up = bool(message["flags"] & IFF_UP)
    inet6 = message.get_attr("IFLA_AF_SPEC").get_attr("AF_INET6")
    takes_ipv6 = enabled and inet6 is not None and not inet6.get_attr("IFLA_INET6_CONF")["disable_ipv6"]
    if _link_kind(message) == "vrf":
        accept_local = message.get_attr("IFLA_AF_SPEC").get_attr("AF_INET")["accept_local"]
        group, mac = message.get_attr("IFLA_GROUP"), message.get_attr("IFLA_ADDRESS")
        return Vrf(name, data.get_attr("IFLA_VRF_TABLE"), group, mac, up, bool(accept_local), takes_ipv6)
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
        ipv6=takes_ipv6,
    )


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


def _address_object(message: Message, device: str) -> Address | None:
    family, prefix, flags, scope, _index = IFADDR.unpack_from(message.data, HEADER.size)
    if scope == SCOPE_LINK or family not in VERSIONS:
        return None
    attributes = attributes_of(message.data, HEADER.size + IFADDR.size)
    packed = attributes.get(IFA_LOCAL) or attributes[IFA_ADDRESS]
    flags = number_of(attributes.get(IFA_FLAGS)) or flags
    return Address(device, INTERFACES[family]((packed, prefix)), scope != SCOPE_HOST and not flags & IFA_F_DEPRECATED)


class _Names(dict):
    """Interface index -> name, each asked for once; `if7` where there is none."""

    def __missing__(self, index: int) -> str:
        self[index] = index_name(index) or f"if{index}"
        return self[index]


def _route_object(message: Message, names: _Names, objects: Callable[[], Hops]) -> Route | None:
    """A route; `objects` gives the next hop objects, for a route of which the kernel tells no more than their number."""
    family, length, _source, tos, table, _protocol, scope, number, flags = RTMSG.unpack_from(message.data, HEADER.size)
    kind = ROUTE_TYPES.get(number)
    if kind is None or flags & RTM_F_CLONED or family not in VERSIONS:
        return None
    attributes = attributes_of(message.data, HEADER.size + RTMSG.size)
    source = attributes.get(RTA_PREFSRC)
    hops = _nexthops(attributes, flags, names, objects) if kind in ("unicast", "local") else ()
    if hops is None:
        return None
    route = Route(
        table=number_of(attributes.get(RTA_TABLE)) or table,
        destination=NETWORKS[family]((attributes.get(RTA_DST, ANYWHERE[family]), length), strict=False),
        metric=number_of(attributes.get(RTA_PRIORITY)) or 0,
        type=kind,
        nexthops=hops,
        source=ipaddress.ip_address(source) if source else None,
        tos=tos,
        metrics=tuple((number, _metric_value(number, value)) for number, value in attributes_of(attributes.get(RTA_METRICS, b"")).items()),
        preference=number_of(attributes.get(RTA_PREF)) or 0,
    )
    return replace(route, scope=scope) if family == socket.AF_INET and scope != _scope(route) else route


def _metric_value(number: int, value: bytes) -> int | str:
    return value.rstrip(b"\0").decode() if number == RTAX_CC_ALGO else int.from_bytes(value, sys.byteorder)


def _nexthops(attributes: dict[int, bytes], flags: int, names: _Names, objects: Callable[[], Hops]) -> tuple[Nexthop, ...] | None:
    """None of a route whose next hop object went meanwhile, and so the route."""
    several = attributes.get(RTA_MULTIPATH, b"")
    if not several and RTA_NH_ID in attributes and RTA_OIF not in attributes:  # net.ipv4.nexthop_compat_mode=0
        return _hops_of_object(number_of(attributes[RTA_NH_ID]) or 0, names, objects())
    if not several:
        return (_nexthop(attributes, number_of(attributes.get(RTA_OIF)) or 0, 1, flags, names),)
    hops, offset = [], 0
    while offset + RTNEXTHOP.size <= len(several):
        length, flags, more, index = RTNEXTHOP.unpack_from(several, offset)
        hops.append(_nexthop(attributes_of(several[offset : offset + length], RTNEXTHOP.size), index, more + 1, flags, names))
        offset += length + -length % 4
    return tuple(sorted(hops, key=repr))


def _hops_of_object(number: int, names: _Names, objects: Hops) -> tuple[Nexthop, ...] | None:
    """The next hops of an object, or of the members of a group."""
    group = objects[number][1].get(NHA_GROUP) if number in objects else None
    members = [(member, weight + 1) for member, weight, _upper, _reserved in NEXTHOP_GROUP.iter_unpack(group)] if group else [(number, 1)]
    hops = []
    for member, weight in members:
        if member not in objects:
            return None
        flags, attributes = objects[member]
        as_of_route = {route: attributes[hop] for hop, route in NEXTHOP_ATTRIBUTES.items() if hop in attributes}
        hops.append(_nexthop(as_of_route, number_of(attributes.get(NHA_OIF)) or 0, weight if len(members) > 1 else 1, flags, names))
    return tuple(sorted(hops, key=repr))


def _nexthop(attributes: dict[int, bytes], index: int, weight: int, flags: int, names: _Names) -> Nexthop:
    gateway = attributes.get(RTA_GATEWAY) or attributes.get(RTA_VIA, b"")[VIA.size :]
    repeated = tuple((number, attributes[number]) for number in RTA_REPEATED if number in attributes)
    return Nexthop(names[index], ipaddress.ip_address(gateway) if gateway else None, weight, bool(flags & RTNH_F_ONLINK), repeated)


def _rule_objects(message: Any, version: int) -> list[Rule]:
    priority = message.get_attr("FRA_PRIORITY") or 0
    destination, device = message.get_attr("FRA_DST"), message.get_attr("FRA_IIFNAME")
    network = ipaddress.ip_network(f"{destination}/{message['dst_len']}") if destination else None
    known = {"PRIORITY", "TABLE", "DST", "L3MDEV", "PROTOCOL", "SUPPRESS_PREFIXLEN", "IIFNAME", "FWMARK", "FWMASK", "UNSPEC"}
    if any(name[len("FRA_") :] not in known for name, _value in message["attrs"]) or device not in (None, "lo"):
        return []
    if message["action"] == FR_ACT_UNREACHABLE:
        return [Rule(version, priority, "unreachable", network, device == "lo")]
    if message["action"] != FR_ACT_TO_TBL:
        return []
    table = "l3mdev" if message.get_attr("FRA_L3MDEV") else message.get_attr("FRA_TABLE")
    return [Rule(version, priority, table, network, device == "lo", message.get_attr("FRA_FWMARK") or 0)]


def _read_sysctl(path: str) -> str | None:
    try:
        with open(f"/proc/sys/{path}", encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UvnError(f"cannot read the sysctl {path}: {error.strerror}") from None


def _write_sysctl(path: str, value: str) -> None:
    try:
        with open(f"/proc/sys/{path}", "w", encoding="ascii") as file:
            file.write(value)
    except OSError as error:
        raise UvnError(f"cannot set the sysctl {path} to {value}: {error.strerror}") from None
