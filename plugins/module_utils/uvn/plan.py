# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The desired objects of a user's network and of a node. Pure: site, identity and host in, objects out."""

from __future__ import annotations

import ipaddress
from typing import Iterable, Sequence

from .identity import LINK_GROUP, LINK_GROUP_MASK, Identity, multicast_group, reply_table, short_name, vxlan_names
from .membership import prefixes
from .objects import (
    TABLE_LOCAL,
    TABLE_MAIN,
    Address,
    Chain,
    Dummy,
    IpNetwork,
    Member,
    Nexthop,
    Object,
    Program,
    Route,
    Rule,
    Sysctl,
    Vrf,
    Vxlan,
)
from .site import Site
from .underlay import Attachment, Host, attach

SOURCE_PORTS = (512, 1023)  # of the outer packets: an unprivileged program on any host cannot use them
NAT_DEVICE = "uvn"  # dummy in the default VRF that makes the IPv6 NAT addresses valid as a route's source
LAST_RESORT = 4278198272  # metric of the unreachable default, as Documentation/networking/vrf.rst proposes

PREFERENCE_L3MDEV = 1000  # FIB_RULE_PREF of net/core/fib_rules.c for l3mdev
PREFERENCE_CLOSED = 32763
PREFERENCE_REPLY = 32764
PREFERENCE_LOCAL = 32765
PREFERENCES = (PREFERENCE_L3MDEV, PREFERENCE_CLOSED, PREFERENCE_REPLY, PREFERENCE_LOCAL)

FROM_OURS = f"--src-group {LINK_GROUP:#x}/{LINK_GROUP_MASK:#x}"
TO_OURS = f"--dst-group {LINK_GROUP:#x}/{LINK_GROUP_MASK:#x}"

ANY = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}
LOOPBACK = {4: ipaddress.ip_network("127.0.0.0/8"), 6: ipaddress.ip_network("::1/128")}


def user_network(site: Site, who: Identity, host: Host) -> list[Object]:
    """Everything that makes the network of one user on one node, in the order of creation."""
    attachments = attach(site, host)
    names = _device_names(attachments, who.uid)
    objects: list[Object] = [Vrf(who.vrf, who.table, who.group)]
    objects += [_vxlan(site, who, attachment, name) for attachment, name in zip(attachments, names)]
    objects += _vrf_addresses(who, host, attachments)
    for attachment, (device, _altname) in zip(attachments, names):
        objects += _overlay(who, attachment, device)
        objects += _direct(who, attachment)
    objects += _mirrored(who, host, attachments)
    objects += _ends(site, who)
    objects.append(Member(who.uid, who.vrf))
    return objects


def node(site: Site, host: Host, netns_cookie: int, exempt: Iterable[int]) -> list[Object]:
    """Everything a node needs once, in the order of creation; `exempt` are UIDs of exempt users and groups."""
    objects: list[Object] = [
        Sysctl("net/ipv4/tcp_l3mdev_accept", "1"),
        Sysctl("net/ipv4/udp_l3mdev_accept", "1"),
        Sysctl("net/mptcp/enabled", "0", optional=True),  # subflows are the kernel's sockets: no membership program sees them
        Dummy(NAT_DEVICE, LINK_GROUP),
    ]
    objects += _forwarding(site, host)
    objects += _rules(site)
    objects += _multicast(site, attach(site, host))
    objects += _chains(site, host.router)
    objects += [Member(uid, None) for uid in sorted(set(exempt))]
    objects += [
        Member(value, None, length) for first, last in site.exempt.uids for value, length in prefixes(first, last)
    ]
    objects.append(Program(netns_cookie, site.min_uid, enforce=True))
    return _unique(objects)


def _device_names(attachments: Sequence[Attachment], uid: int) -> list[tuple[str, str | None]]:
    """A name for each VXLAN; the second underlay on one NIC takes the short form."""
    names: list[tuple[str, str | None]] = []
    for attachment in attachments:
        name = vxlan_names(attachment.nic.name, attachment.underlay.port, uid)
        if any(name[0] == taken for taken, _altname in names):
            name = short_name(attachment.underlay.port, uid), None
        names.append(name)
    return names


def _vxlan(site: Site, who: Identity, attachment: Attachment, name: tuple[str, str | None]) -> Vxlan:
    version = site.group.version
    return Vxlan(
        device=name[0],
        altname=name[1],
        vrf=who.vrf,
        group=who.group,
        vni=who.vni,
        nic=attachment.nic.name,
        port=attachment.underlay.port,
        remote=multicast_group(site, who.vni),
        local=attachment.address(version).ip,
        ttl=site.ttl,
        source_ports=SOURCE_PORTS,
        udp_checksum=site.udp_checksum,
        mac=attachment.mac,
        mtu=attachment.mtu(version),
    )


def _vrf_addresses(who: Identity, host: Host, attachments: Sequence[Attachment]) -> list[Object]:
    """NAT addresses, loopback, and the node's addresses outside the overlays, which answer as localhost does.

    Since Linux 6.10 (and in its stable relatives) a route over a NIC outside the VRF has its preferred source ignored, the
    kernel selects an address of the VRF (ip6_route_get_saddr, fib_select_path): it must find the NAT address only.
    """
    overlaid = {address for attachment in attachments for address in attachment.addresses}
    others = [str(a.ip) for nic in host.nics for a in nic.addresses if a not in overlaid]
    own = {f"{who.nat4}/32": True, f"{who.nat6}/128": True, "127.0.0.1/8": False, "::1/128": False}
    own.update(dict.fromkeys(others, False))
    objects: list[Object] = [Address(who.vrf, ipaddress.ip_interface(text), selectable) for text, selectable in own.items()]
    objects.append(Address(NAT_DEVICE, ipaddress.ip_interface(who.nat6)))
    objects.append(Route(who.table, LOOPBACK[4], 0, "local", (Nexthop(who.vrf),)))
    return objects


def _overlay(who: Identity, attachment: Attachment, device: str) -> list[Object]:
    """The NIC's addresses on the VXLAN, and the listed subnets behind it."""
    objects: list[Object] = [Address(device, interface) for interface in attachment.addresses]
    for subnet in attachment.underlay.subnets:
        source = next((a.ip for a in attachment.addresses if a.ip in subnet), None)
        if source:
            objects.append(_route(who.table, subnet, (Nexthop(device),), source))
    return objects


def _direct(who: Identity, attachment: Attachment) -> list[Object]:
    """Listed hosts without UVN, over the NIC itself."""
    versions = {address.version for address in attachment.addresses}
    return [
        _route(who.table, ipaddress.ip_network(host), (Nexthop(attachment.nic.name),), _nat(who, host.version))
        for host in attachment.underlay.direct
        if host.version in versions
    ]


def _mirrored(who: Identity, host: Host, attachments: Sequence[Attachment]) -> list[Object]:
    """Every route of table main that does not lead into an overlay, over the same NIC, from the NAT address."""
    subnets = [subnet for attachment in attachments for subnet in attachment.underlay.subnets]
    return [
        Route(who.table, route.destination, route.metric, route.type, route.nexthops, _nat(who, route.destination.version))
        for route in host.routes
        if not any(_within(route.destination, subnet) for subnet in subnets)
    ]


def _ends(site: Site, who: Identity) -> list[Object]:
    """What no route leads to is unreachable (never another table's), and replies to the NAT addresses come in."""
    objects: list[Object] = [Route(who.table, ANY[version], LAST_RESORT, "unreachable") for version in (4, 6)]
    for nat in (who.nat4, who.nat6):
        objects.append(_route(reply_table(site), ipaddress.ip_network(nat), (Nexthop(who.vrf),), None))
    return objects


def _forwarding(site: Site, host: Host) -> list[Object]:
    """Replies to the NAT addresses are forwarded: IPv4 by the NIC they come in on, IPv6 knows only `all`.

    A NIC that listens to router advertisements goes on doing so only with accept_ra 2 (Documentation/networking/ip-sysctl.rst).
    """
    objects: list[Object] = [Sysctl(f"net/ipv6/conf/{nic.name}/accept_ra", "2") for nic in host.nics if nic.accept_ra]
    objects += [Sysctl(f"net/ipv4/conf/{nic.name}/forwarding", "1") for nic in host.nics]
    objects.append(Sysctl("net/ipv6/conf/all/forwarding", "1"))
    if site.group.num_addresses > 1:
        objects.append(Sysctl("net/ipv4/igmp_max_memberships", str(site.group.num_addresses + 20)))
    return objects


def _rules(site: Site) -> list[Object]:
    """The rule `local` behind l3mdev (paper, section on the local table), and the way back for the NAT addresses.

    That way is for packets from elsewhere: a local process of the default VRF must not reach users' listeners by it.
    """
    objects: list[Object] = []
    for version, nat in ((4, site.nat4), (6, site.nat6)):
        objects += [
            Rule(version, PREFERENCE_L3MDEV, "l3mdev"),
            Rule(version, PREFERENCE_CLOSED, "unreachable", nat, local=True),
            Rule(version, PREFERENCE_REPLY, reply_table(site), nat),
            Rule(version, PREFERENCE_LOCAL, TABLE_LOCAL),
        ]
    return objects


def _multicast(site: Site, attachments: Sequence[Attachment]) -> list[Object]:
    """The VXLAN group over each underlay NIC; IPv6 has such routes in table local by itself."""
    if site.group.version == 6:
        return []
    return [
        Route(TABLE_MAIN, site.group, attachment.underlay.port, nexthops=(Nexthop(attachment.nic.name),))
        for attachment in attachments
    ]


def _chains(site: Site, router: bool) -> list[Object]:
    """The iptables chains: SNAT to the NIC's address, FORWARD of replies only, no tracking of the overlay.

    A node that was no router before does not become one by the forwarding that the replies need. The VXLAN ports take packets only
    from other kernels: from the underlay, and from source ports that unprivileged programs on no host can use.
    """
    objects: list[Object] = []
    for version, nat in ((4, site.nat4), (6, site.nat6)):
        forward = (
            f"-d {nat} -m devgroup {TO_OURS} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            f"-m devgroup {TO_OURS} -j DROP",
            f"-m devgroup {FROM_OURS} -j DROP",
        )
        ports = "-m multiport --dports " + ",".join(str(underlay.port) for underlay in site.underlays)
        overlay = f"-p udp {ports} -j CT --notrack"
        low, high = SOURCE_PORTS
        objects += [
            Chain(version, "raw", "UVN-PREROUTING", (overlay, f"-m devgroup {FROM_OURS} -j CT --notrack")),
            Chain(version, "raw", "UVN-OUTPUT", (overlay, f"-m devgroup {TO_OURS} -j CT --notrack")),
            Chain(version, "nat", "UVN-POSTROUTING", (f"-s {nat} -m devgroup ! {TO_OURS} -j MASQUERADE",)),
            Chain(
                version,
                "filter",
                "UVN-INPUT",
                (
                    f"-p udp -m devgroup {FROM_OURS} {ports} -j DROP",
                    f"-p udp -m udp --sport {low}:{high} {ports} -j ACCEPT",
                    f"-p udp {ports} -j DROP",
                ),
            ),
            Chain(version, "filter", "UVN-FORWARD", forward if router else (*forward, "-j DROP")),
        ]
    return objects


def _route(table: int, destination: IpNetwork, nexthops: tuple, source) -> Route:
    """A unicast route with the metric the kernel gives by default (IPv6: IP6_RT_PRIO_USER)."""
    return Route(table, destination, 0 if destination.version == 4 else 1024, nexthops=nexthops, source=source)


def _nat(who: Identity, version: int):
    return who.nat4 if version == 4 else who.nat6


def _within(network: IpNetwork, other: IpNetwork) -> bool:
    return network.version == other.version and network.subnet_of(other)


def _unique(objects: list[Object]) -> list[Object]:
    return list({obj.key: obj for obj in objects}.values())
