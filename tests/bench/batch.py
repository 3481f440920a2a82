# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A user's network as input for `ip -batch`: the same objects, made by as few processes as possible. Pure."""

from __future__ import annotations

from typing import Iterable

from uvn.kernel import PROTOCOL
from uvn.objects import Address, Nexthop, Object, Route, Vrf, Vxlan


def render(objects: Iterable[Object]) -> str:
    """One command a line; what is the membership map's, the guard's and a sysctl is not ip's and left out."""
    return "".join(f"{line}\n" for obj in objects for line in _RENDERERS.get(type(obj), _nothing)(obj))


def by_kind(objects: Iterable[Object]) -> dict[str, list[Object]]:
    """The objects by kind, in the order of creation."""
    kinds: dict[str, list[Object]] = {}
    for obj in objects:
        kinds.setdefault(obj.kind, []).append(obj)
    return kinds


def _nothing(_obj: Object) -> list[str]:
    return []


def _vrf(vrf: Vrf) -> list[str]:
    return [f"link add {vrf.device} group {vrf.group} address {vrf.mac} type vrf table {vrf.table}", *_up(vrf.device)]


def _vxlan(vxlan: Vxlan) -> list[str]:
    low, high = vxlan.source_ports
    if vxlan.remote.version == 4:
        checksum = "udpcsum" if vxlan.udp_checksum else "noudpcsum"
    else:
        checksum = "noudp6zerocsumtx noudp6zerocsumrx" if vxlan.udp_checksum else "udp6zerocsumtx udp6zerocsumrx"
    create = (
        f"link add {vxlan.device} group {vxlan.group} master {vxlan.vrf} address {vxlan.mac} mtu {vxlan.mtu} "
        f"type vxlan id {vxlan.vni} dev {vxlan.nic} group {vxlan.remote} local {vxlan.local} ttl {vxlan.ttl} "
        f"dstport {vxlan.port} srcport {low} {high} learning {checksum}"
    )
    altname = [f"link property add dev {vxlan.device} altname {vxlan.altname}"] if vxlan.altname else []
    return [create, *altname, *_up(vxlan.device)]


def _up(device: str) -> list[str]:
    """Two commands: the kernel brings a device up before it reads addrgenmode, when both are in one request."""
    return [f"link set {device} addrgenmode none", f"link set {device} up"]


def _address(address: Address) -> list[str]:
    interface = address.interface
    line = f"address replace {interface} dev {address.device} noprefixroute"
    if interface.version == 6:
        line += " nodad"
        if not (address.selectable or interface.is_loopback):
            line += " valid_lft forever preferred_lft 0"
    elif not address.selectable:
        line += " scope host"
    return [line]


def _route(route: Route) -> list[str]:
    words = ["route replace", route.type, str(route.destination), "table", str(route.table), "proto", str(PROTOCOL)]
    words += ["metric", str(route.metric)] if route.metric else []
    words += ["src", str(route.source)] if route.source else []
    if len(route.nexthops) == 1:
        words.append(_nexthop(route.nexthops[0]))
    else:
        words += [f"nexthop {_nexthop(hop)} weight {hop.weight}" for hop in route.nexthops]
    return [" ".join(words)]


def _nexthop(hop: Nexthop) -> str:
    return f"via {hop.gateway} dev {hop.device}{' onlink' if hop.onlink else ''}" if hop.gateway else f"dev {hop.device}"


_RENDERERS = {Vrf: _vrf, Vxlan: _vxlan, Address: _address, Route: _route}
