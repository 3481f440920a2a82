# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The desired objects of a user's network and of a node. Pure: site, identity and host in, objects out."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Iterable, Iterator, Sequence

from .errors import UvnError
from .identity import LINK_GROUP, LINK_GROUP_MASK, Identity, multicast_group, reply_table, short_name, vxlan_names
from .membership import prefixes
from .objects import (
    TABLE_LOCAL,
    TABLE_MAIN,
    Address,
    Chain,
    Classifier,
    Dummy,
    Element,
    Guard,
    Ingress,
    IpNetwork,
    Member,
    Nexthop,
    Object,
    Ports,
    Program,
    Route,
    Rule,
    Sysctl,
    Vrf,
    Vxlan,
    merge,
)
from .site import PROTOCOLS, Opening, Site
from .underlay import IPV6_MTU, Attachment, Host, attach, mac

SOURCE_PORTS = (512, 1023)  # of the outer packets: an unprivileged program on any host cannot use them
NAT_DEVICE = "uvn"  # dummy in the default VRF that makes the IPv6 NAT addresses valid as a route's source
LAST_RESORT = 4278198272  # metric of the unreachable default, as Documentation/networking/vrf.rst proposes

# Connections that ingress lets in, and the head of VRFs' MAC addresses, which it sends them to (bpf/ingress.bpf.c).
INGRESS_MARK = 0x55564E01
MULTICAST_MARK = 0x55564E02  # what a user's network says to everybody, and to name services: not for system daemons (bpf/membership.bpf.c)
VRF_MAC = 0x0255

PREFERENCES_INGRESS = (998, 999)
PREFERENCE_L3MDEV = 1000  # FIB_RULE_PREF of net/core/fib_rules.c for l3mdev
PREFERENCE_CLOSED = 32763
PREFERENCE_REPLY = 32764
PREFERENCE_LOCAL = 32765
PREFERENCES = (*PREFERENCES_INGRESS, PREFERENCE_L3MDEV, PREFERENCE_CLOSED, PREFERENCE_REPLY, PREFERENCE_LOCAL)

FROM_OURS = f"--src-group {LINK_GROUP:#x}/{LINK_GROUP_MASK:#x}"
TO_OURS = f"--dst-group {LINK_GROUP:#x}/{LINK_GROUP_MASK:#x}"
IN_OURS = f"meta iifgroup & {LINK_GROUP_MASK:#x} == {LINK_GROUP:#x}"
OUT_OURS = f"meta oifgroup & {LINK_GROUP_MASK:#x} == {LINK_GROUP:#x}"
BEGINNINGS = ("tcp flags & (syn | ack) == syn", "sctp chunk init exists", "dccp type request")  # of connections
CAUSES = {  # what the guard counts and drops, each in a chain of its own
    "foreign": "a user's packet into another user's network",
    "stray": "a user's packet past the user's devices, not from the user's NAT address or to where NAT never leads",
    "forged": "a VXLAN frame that no node's kernel made",
    "routed": "a packet to forward that is no reply to a NAT address",
    "crowded": "a user's connection past the user's devices, beyond the number at once or in a second",
    "multicast": "a system daemon's multicast or broadcast into a user's network",
}
SETS = {  # of the guard, by the part of their names before `_`, as nft defines them
    "ports": "typeof udp dport",
    "exempt": "typeof meta skuid",
    "own": "typeof meta skuid . meta oifgroup",
    "nat4": "typeof meta skuid . ip saddr",
    "nat6": "typeof meta skuid . ip6 saddr",
    "direct4": "typeof ip daddr",
    "direct6": "typeof ip6 daddr",
    "closed4": "typeof ip daddr; flags interval",
    "closed6": "typeof ip6 daddr; flags interval",
    "nodes4": "typeof ip saddr; flags interval",
    "nodes6": "typeof ip6 saddr; flags interval",
    "answers4": "typeof ip daddr; flags interval",  # one for each entry of ingress
    "answers6": "typeof ip6 daddr; flags interval",
    "flows4": "typeof ip saddr; flags dynamic",  # filled by packets, as those below
    "flows6": "typeof ip6 saddr; flags dynamic",
    "pace4": "typeof ip saddr; flags dynamic,timeout; timeout 1m",
    "pace6": "typeof ip6 saddr; flags dynamic,timeout; timeout 1m",
    "said": "typeof meta skuid; flags dynamic,timeout; timeout 2m",  # one for each cause
}
NUMBERED = ("answers4", "answers6", "said")  # of which there are several
ON_LINK = ("224.0.0.0/4", "255.255.255.255/32", "ff00::/8", "fe80::/10")  # what is for a link's hosts, all or some
ICMP_ANSWERS = {4: (0, 3, 11), 6: (1, 2, 3, 129)}  # echo replies and errors (RFC 792, RFC 4443)
RAW, NAT, FILTER = -300, -150, 0  # priorities of hooks, include/uapi/linux/netfilter_ipv4.h; chains of NAT come after -200
LOG_RATE = "limit rate 6/minute"  # of a UID; a user has many UIDs in a user namespace, so
LOG_RATE_ALL = "limit rate 30/minute"
SILENT = {"multicast"}  # not logged: daemons that speak on every device do it all day
# New connections of a NAT address: what is closed is not counted against `flows`, and the kernel forgets it at 8 a tick (nf_conncount.c)
PACE = "limit rate over 500/second burst 500 packets"
MULTIPORT = 15  # ports in a match, XT_MULTI_PORTS
TO_ALL = ("ip daddr 224.0.0.0/4", "ip6 daddr ff00::/8", "meta nfproto ipv4 meta l4proto != tcp fib daddr type broadcast")
NAME_SERVICES = "udp dport { 5353, 5355 }"  # mDNS, LLMNR (RFC 6762, RFC 4795): their daemons believe unicast, too

ANY = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}
LOOPBACK = {4: ipaddress.ip_network("127.0.0.0/8"), 6: ipaddress.ip_network("::1/128")}


def user_network(site: Site, who: Identity, host: Host) -> list[Object]:
    """Everything that makes the network of one user on one node, in the order of creation."""
    attachments = attach(site, host)
    names = _device_names(attachments, who.uid)
    objects: list[Object] = [Vrf(who.vrf, who.table, who.group, vrf_mac(who.uid), ipv6=host.ipv6)]
    objects += [_vxlan(site, who, host, attachment, name) for attachment, name in zip(attachments, names)]
    objects += _vrf_addresses(who, host, attachments)
    for attachment, (device, _altname) in zip(attachments, names):
        objects += _overlay(who, attachment, device)
        objects += _direct(who, attachment)
    objects += _mirrored(who, host, attachments)
    objects += _ends(site, who, host)
    objects += own_elements(who)
    objects.append(Member(who.uid, who.vrf))
    return objects


def vrf_mac(uid: int) -> str:
    """The MAC address of a user's VRF, the same on all nodes: programs that know devices by it want no two alike on one."""
    return mac(VRF_MAC << 32 | uid)


def own_elements(who: Identity) -> list[Object]:
    """What the guard lets a user send by: devices of the own link group, and the own NAT addresses."""
    return [Element("own", (who.uid, who.group)), Element("nat4", (who.uid, who.nat4)), Element("nat6", (who.uid, who.nat6))]


def exempt_account(uid: int) -> list[Object]:
    """An account that stays in the default VRF, to membership and to the guard."""
    return [Element("exempt", (uid,)), Member(uid, None)]


def node(
    site: Site,
    host: Host,
    netns_cookie: int,
    exempt: Iterable[int],
    users: Iterable[Identity] = (),
    hooks: bool = False,
    firewalls: Sequence[int] = (4, 6),
) -> list[Object]:
    """Everything a node needs once, in the order of creation.

    `exempt` are UIDs of exempt users and groups; `users` have networks: the guard is never made without what it lets them do;
    `hooks`: the kernel has security hooks for BPF programs; `firewalls`: the IP versions that iptables is there for.
    """
    objects: list[Object] = [
        Sysctl("net/ipv4/tcp_l3mdev_accept", "1"),
        Sysctl("net/ipv4/udp_l3mdev_accept", "1"),
        Sysctl("net/mptcp/enabled", "0", optional=True),  # subflows are the kernel's sockets: no membership program sees them
        Dummy(NAT_DEVICE, LINK_GROUP),
    ]
    objects += _forwarding(site, host)
    objects += _rules(site, host)
    objects += _multicast(site, attach(site, host))
    objects += _chains(site, [version for version in host.versions if version in firewalls])
    objects.append(_guard(site, host.router))
    objects += _elements(site, host)
    objects += _ingress(site, host)
    for who in users:
        objects += own_elements(who)
    for uid in sorted(set(exempt)):
        objects += exempt_account(uid)
    objects += [
        Member(value, None, length) for first, last in site.exempt.uids for value, length in prefixes(first, last)
    ]
    objects.append(Program(netns_cookie, site.min_uid, site.enforce, hooks))
    return _unique(objects)


def _device_names(attachments: Sequence[Attachment], uid: int) -> list[tuple[str, str | None]]:
    """A name for each VXLAN; the second underlay on one NIC takes the short form. Raises UvnError when that is taken as well."""
    names: list[tuple[str, str | None]] = []
    for attachment in attachments:
        name = vxlan_names(attachment.nic.name, attachment.underlay.port, uid)
        if any(name[0] == taken for taken, _altname in names):
            name = short_name(attachment.underlay.port, uid), None
        if any(name[0] == taken for taken, _altname in names):
            port = attachment.underlay.port
            raise UvnError(f"{name[0]}: no name is left for the VXLAN of UDP port {port}, another NIC's has it; rename that NIC or change the port")
        names.append(name)
    return names


def _vxlan(site: Site, who: Identity, host: Host, attachment: Attachment, name: tuple[str, str | None]) -> Vxlan:
    version = site.group.version
    mtu = attachment.mtu(version)
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
        mac=attachment.mac(who.uid),
        mtu=mtu,
        ipv6=host.ipv6 and mtu >= IPV6_MTU,
    )


def _vrf_addresses(who: Identity, host: Host, attachments: Sequence[Attachment]) -> list[Object]:
    """NAT addresses, loopback, and the node's addresses outside the overlays, which answer as localhost does.

    Since Linux 6.10 (and in its stable relatives) a route over a NIC outside the VRF has its preferred source ignored, the
    kernel selects an address of the VRF (ip6_route_get_saddr, fib_select_path): it must find the NAT address only.
    """
    overlaid = {address for attachment in attachments for address in attachment.carried}
    others = [str(a.ip) for nic in host.nics for a in nic.addresses if a not in overlaid]
    own = {f"{who.nat4}/32": True, "127.0.0.1/8": False}
    own.update({f"{who.nat6}/128": True, "::1/128": False} if host.ipv6 else {})
    own.update(dict.fromkeys(others, False))
    objects: list[Object] = [Address(who.vrf, ipaddress.ip_interface(text), selectable) for text, selectable in own.items()]
    if host.ipv6:
        objects.append(Address(NAT_DEVICE, ipaddress.ip_interface(who.nat6)))
    objects.append(Route(who.table, LOOPBACK[4], 0, "local", (Nexthop(who.vrf),)))
    return objects


def _overlay(who: Identity, attachment: Attachment, device: str) -> list[Object]:
    """The NIC's addresses on the VXLAN, and the listed subnets behind it."""
    objects: list[Object] = [Address(device, interface) for interface in attachment.carried]
    for subnet in attachment.underlay.subnets:
        source = next((a.ip for a in attachment.carried if a.ip in subnet), None)
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
    """Every route of table main that does not lead into an overlay, with all that it has, from the NAT address."""
    subnets = [subnet for attachment in attachments for subnet in attachment.underlay.subnets]
    links = [(hop.device, route.destination) for route in host.routes for hop in route.nexthops if hop.gateway is None]
    return [
        replace(
            route,
            table=who.table,
            type="unreachable" if route.type == "throw" else route.type,  # no other table is asked
            nexthops=tuple(_reachable(hop, links) for hop in route.nexthops),
            source=_nat(who, route.destination.version),
        )
        for route in host.routes
        if not any(_within(route.destination, subnet) for subnet in subnets)
    ]


def _reachable(hop: Nexthop, links: Sequence[tuple[str, IpNetwork]]) -> Nexthop:
    """A next hop that the kernel takes: in table main it keeps one whose gateway no route over the device leads to any more.

    `links` are the devices with the networks that table main has on them.
    """
    if hop.gateway is None or hop.gateway.is_link_local:
        return hop
    gateway = ipaddress.ip_network(hop.gateway)
    return hop if any(device == hop.device and _within(gateway, network) for device, network in links) else replace(hop, onlink=True)


def _ends(site: Site, who: Identity, host: Host) -> list[Object]:
    """What no route leads to is unreachable (never another table's), and replies to the NAT addresses come in."""
    objects: list[Object] = [Route(who.table, ANY[version], LAST_RESORT, "unreachable") for version in host.versions]
    for nat in (who.nat4, who.nat6) if host.ipv6 else (who.nat4,):
        objects.append(_route(reply_table(site), ipaddress.ip_network(nat), (Nexthop(who.vrf),), None))
    return objects


def _forwarding(site: Site, host: Host) -> list[Object]:
    """Replies to the NAT addresses are forwarded: IPv4 by the NIC they come in on, IPv6 knows only `all`.

    A NIC that listens to router advertisements goes on doing so only with accept_ra 2 (Documentation/networking/ip-sysctl.rst).
    """
    objects: list[Object] = [Sysctl(f"net/ipv6/conf/{nic.name}/accept_ra", "2") for nic in host.nics if nic.accept_ra and host.ipv6]
    objects += [Sysctl(f"net/ipv4/conf/{nic.name}/forwarding", "1") for nic in host.nics]
    objects += [Sysctl("net/ipv6/conf/all/forwarding", "1")] if host.ipv6 else []
    if site.group.num_addresses > 1:
        objects.append(Sysctl("net/ipv4/igmp_max_memberships", str(site.group.num_addresses + 20)))
    return objects


def _rules(site: Site, host: Host) -> list[Object]:
    """The rule `local` behind l3mdev (paper, section on the local table), and the way back for the NAT addresses.

    That way is for packets from elsewhere: a local process of the default VRF must not reach users' listeners by it.
    """
    objects: list[Object] = []
    for version in host.versions:  # also while IPv6 is off: its `local` has to be there when it comes back
        nat = site.nat4 if version == 4 else site.nat6
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


def _ingress(site: Site, host: Host) -> list[Object]:
    """What lets listed hosts in: programs, a classifier on every NIC and on lo, and the way out for the replies, which is root's."""
    objects: list[Object] = []
    if site.ingress or site.control_ports:
        objects.append(Ingress(_open(site), site.control_ports))
    if site.ingress:
        objects.append(Sysctl("net/ipv4/tcp_fwmark_accept", "1"))
        objects += [Classifier(device) for device in ("lo", *(nic.name for nic in host.nics))]
        for version in host.versions:
            for preference, table in zip(PREFERENCES_INGRESS, (TABLE_LOCAL, TABLE_MAIN)):
                objects.append(Rule(version, preference, table, local=True, mark=INGRESS_MARK))
    return objects


def _open(site: Site) -> tuple[tuple[IpNetwork, tuple[Ports, ...]], ...]:
    """For each listed network all ports that are open to it; IPv4 has an entry of its own, which an IPv6 network never covers."""
    networks = {network for entry in site.ingress for network in entry.hosts} | ({ANY[4]} if site.ingress else set())
    found = [(network, tuple(_open_to(site, network, protocol) for protocol in PROTOCOLS)) for network in networks]
    return tuple(sorted(found, key=lambda entry: (entry[0].version, entry[0])))


def _open_to(site: Site, network: IpNetwork, protocol: str) -> Ports:
    entries = [entry for entry in site.ingress if entry.protocol == protocol]
    return merge(entry.ports for entry in entries if any(_within(network, host) for host in entry.hosts))


def _chains(site: Site, versions: Iterable[int]) -> list[Object]:
    """The iptables chains: what must be accepted or translated where the site's firewall decides. What is dropped is the guard's.

    SNAT to the NIC's address, FORWARD of replies, VXLAN from other kernels.
    """
    objects: list[Object] = []
    admitted = [
        f"-p {protocol} -m devgroup {FROM_OURS} -m mark --mark {INGRESS_MARK:#x} -j ACCEPT"
        for protocol in PROTOCOLS
        if any(entry.protocol == protocol for entry in site.ingress)
    ]
    for version in versions:
        nat = site.nat4 if version == 4 else site.nat6
        forward = f"-d {nat} -m devgroup {TO_OURS} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        objects += [
            Chain(version, "nat", "UVN-POSTROUTING", (f"-s {nat} -m devgroup ! {TO_OURS} -j MASQUERADE",)),
            Chain(version, "filter", "UVN-INPUT", (*_frames(site), *admitted, *_untracked(version))),
            Chain(version, "filter", "UVN-FORWARD", (forward,)),
        ]
    return objects


def _frames(site: Site) -> Iterator[str]:
    """VXLAN from other kernels."""
    ports = [str(underlay.port) for underlay in site.underlays]
    low, high = SOURCE_PORTS
    for start in range(0, len(ports), MULTIPORT):
        yield f"-p udp -m udp --sport {low}:{high} -m multiport --dports {','.join(ports[start : start + MULTIPORT])} -j ACCEPT"


def _untracked(version: int) -> Iterator[str]:
    """What a firewall accepts as `lo` or as ESTABLISHED, and no longer knows as that in users' networks, where nothing is tracked.

    New connections from other nodes are left to the site's own rules. Only root answers from a privileged port.
    """
    ours = f"-m devgroup {FROM_OURS}"
    yield f"-p tcp {ours} -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT"
    yield f"{ours} -m addrtype --src-type LOCAL -j ACCEPT"
    yield f"-p udp {ours} -m udp --sport 1:1023 -j ACCEPT"
    protocol, match = ("icmp", "icmp --icmp-type") if version == 4 else ("ipv6-icmp", "icmp6 --icmpv6-type")
    for kind in ICMP_ANSWERS[version]:
        yield f"-p {protocol} {ours} -m {match} {kind} -j ACCEPT"


def _guard(site: Site, router: bool) -> Guard:
    """The guard (docs/threat-model.md). Sets hold what belongs to a user or to the node, so that its cost does not grow with their number.

    The outer packets of the overlay still carry the user's socket; their source port tells them from forgeries. A packet without
    a socket, such as a reset, is the kernel's own. A node that was no router before does not become one by the forwarding that
    replies need. What is of the overlay, inside or outside, skips connection tracking; hence the priority before it.
    """
    kernel = "{}-{}".format(*SOURCE_PORTS)
    system = f"meta skuid < {site.min_uid} accept"
    users = f"meta skuid >= {site.min_uid}"
    output = (
        f"{OUT_OURS} goto inward",
        f"udp dport @ports udp sport {kernel} notrack accept",
        *((f"meta mark {INGRESS_MARK:#x} accept",) if site.ingress else ()),
        system,
        *_exempt_uids(site, "accept"),
        f"{users} goto outward",
    )
    inward = (
        "notrack",
        "udp dport @ports goto forged",
        "meta skuid . meta oifgroup @own accept",
        f"meta skuid < {site.min_uid} goto unicast",
        *_exempt_uids(site, "goto answering"),
        f"{users} goto foreign",
    )
    outward = (
        "ip daddr @direct4 meta skuid . ip saddr @nat4 accept",
        "ip6 daddr @direct6 meta skuid . ip6 saddr @nat6 accept",
        "ip daddr @closed4 goto stray",
        "ip6 daddr @closed6 goto stray",
        "meta skuid . ip saddr @nat4 accept",
        "meta skuid . ip6 saddr @nat6 accept",
        *_answers(site),
        "goto stray",
    )
    answering = (*(f"{beginning} goto foreign" for beginning in BEGINNINGS), "goto unicast")
    begun = (  # the first packet of a connection only, as all chains of NAT
        system,
        *_exempt_uids(site, "accept"),
        f"{users} update @pace4 {{ ip saddr {PACE} }} goto crowded",
        f"{users} update @pace6 {{ ip6 saddr {PACE} }} goto crowded",
        f"{users} add @flows4 {{ ip saddr ct count over {site.flows} }} goto crowded",
        f"{users} add @flows6 {{ ip6 saddr ct count over {site.flows} }} goto crowded",
    )
    unicast = (*(f"{to_all} goto multicast" for to_all in TO_ALL), "accept")  # to one; what the kernel sends itself has no UID
    heard = tuple(f"{to_all} meta mark set {MULTICAST_MARK:#x}" for to_all in (*TO_ALL, NAME_SERVICES))
    prerouting = (f"{IN_OURS} notrack accept", "udp dport @ports notrack accept")
    frames = (
        f"{IN_OURS} goto forged",
        f"udp sport != {kernel} goto forged",
        "ip saddr != @nodes4 goto forged",
        "ip6 saddr != @nodes6 goto forged",
    )
    input_ = ("udp dport @ports goto frames", f"{IN_OURS} goto heard")
    forward = (
        "udp dport @ports goto forged",  # the source port of a frame does not tell who made it where root forwards, and NAT keeps it
        f"{OUT_OURS} ip daddr {site.nat4} ct state established,related accept",
        f"{OUT_OURS} ip6 daddr {site.nat6} ct state established,related accept",
        f"{OUT_OURS} goto routed",
        f"{IN_OURS} goto routed",
        *(() if router else ("goto routed",)),
    )
    verdict = "drop" if site.enforce else "accept"
    chains = [(cause, "", _cause(cause, verdict)) for cause in CAUSES]
    chains += [("inward", "", inward), ("outward", "", outward), ("answering", "", answering), ("frames", "", frames)]
    chains += [("unicast", "", unicast), ("heard", "", heard)]
    chains += [("prerouting", f"filter prerouting {RAW}", prerouting), ("output", f"filter output {RAW}", output)]
    chains += [("input", f"filter input {FILTER}", input_), ("forward", f"filter forward {FILTER}", forward)]
    chains += [("begun", f"nat postrouting {NAT}", begun)]
    return Guard(counters=tuple(sorted(CAUSES)), sets=tuple(sorted(_sets(site))), chains=tuple(sorted(chains)))


def _cause(cause: str, verdict: str) -> tuple[str, ...]:
    """Count, log and end it. Every UID has a budget of lines, so that nobody hides another's attempts; so have packets without a socket."""
    if cause in SILENT:
        return (f"counter name {cause}", verdict)
    log = f"log prefix 'uvn {cause}: ' flags skuid"
    return (
        f"counter name {cause}",
        f"update @said_{cause} {{ meta skuid {LOG_RATE} }} {LOG_RATE_ALL} {log}",
        f"meta skuid >= 0 {verdict}",
        f"{LOG_RATE} {log}",
        verdict,
    )


def _sets(site: Site) -> list[str]:
    """The names of the guard's sets."""
    answers = [f"answers{version}_{number}" for number, _opening in _datagrams(site) for version in (4, 6)]
    return [*(name for name in SETS if name not in NUMBERED), *(f"said_{cause}" for cause in CAUSES if cause not in SILENT), *answers]


def _elements(site: Site, host: Host) -> list[Object]:
    """What the guard's sets hold of the site and the node."""
    objects: list[Object] = [Element("ports", (underlay.port,)) for underlay in site.underlays]
    objects += [Element(f"direct{host.version}", (host,)) for underlay in site.underlays for host in underlay.direct]
    objects += _intervals("closed{}", _closed(site, host))
    objects += _intervals("nodes{}", [network for underlay in site.underlays for network in underlay.senders])
    for number, opening in _datagrams(site):
        objects += _intervals(f"answers{{}}_{number}", opening.hosts)
    return objects


def _intervals(name: str, networks: Iterable[IpNetwork]) -> list[Object]:
    """Elements of a set of each family, without those that others cover: intervals may not overlap."""
    listed = list(networks)
    return [
        Element(name.format(version), (network,))
        for version in (4, 6)
        for network in ipaddress.collapse_addresses(one for one in listed if one.version == version)
    ]


def _closed(site: Site, host: Host) -> list[IpNetwork]:
    """Where users' packets never go over a NIC, whatever a control message says: subnets that are the overlay's here, and what is for a link.

    A user would speak there with the node's own address, which is root's.
    """
    subnets = [subnet for attachment in attach(site, host) for subnet in attachment.underlay.subnets]
    connected = [address.network for nic in host.nics for address in nic.addresses if address.version == 4 and address.network.prefixlen < 31]
    return [*subnets, *map(ipaddress.ip_network, ON_LINK), *(ipaddress.ip_network(network.broadcast_address) for network in connected)]


def _datagrams(site: Site) -> list[tuple[int, Opening]]:
    """The entries of ingress for UDP, with their numbers."""
    return [(number, opening) for number, opening in enumerate(site.ingress) if opening.protocol == "udp"]


def _answers(site: Site) -> Iterator[str]:
    """Datagrams to hosts of ingress from a port that only its holder could bind: a socket bound to the node's own address sends from that."""
    for number, opening in _datagrams(site):
        for first, last in merge([opening.ports]):
            for version, family in ((4, "ip"), (6, "ip6")):
                yield f"{family} daddr @answers{version}_{number} udp sport {_span(first, last)} accept"


def _exempt_uids(site: Site, verdict: str) -> list[str]:
    """Rules for the exempt accounts."""
    return [f"meta skuid {uids} {verdict}" for uids in ("@exempt", *(_span(first, last) for first, last in site.exempt.uids))]


def _span(first: int, last: int) -> str:
    """A range as nft takes it; up to 1.0.2 it refuses one of a single number."""
    return f"{first}-{last}" if first < last else f"{first}"


def _route(table: int, destination: IpNetwork, nexthops: tuple, source) -> Route:
    """A unicast route with the metric the kernel gives by default (IPv6: IP6_RT_PRIO_USER)."""
    return Route(table, destination, 0 if destination.version == 4 else 1024, nexthops=nexthops, source=source)


def _nat(who: Identity, version: int):
    return who.nat4 if version == 4 else who.nat6


def _within(network: IpNetwork, other: IpNetwork) -> bool:
    return network.version == other.version and network.subnet_of(other)


def _unique(objects: list[Object]) -> list[Object]:
    return list({obj.key: obj for obj in objects}.values())
