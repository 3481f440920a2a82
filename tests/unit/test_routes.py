# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes as netlink messages: what is asked for is what is read back."""

from __future__ import annotations

import ipaddress
import json
import socket
import struct
import sys

from hypothesis import given
from hypothesis import strategies as st
from uvn import kernel
from uvn.netlink import Message, pack, pack_attributes, u32
from uvn.objects import Nexthop, Route

INDICES = {"em1": 2, "wan0": 3}
NAMES = {number: name for name, number in INDICES.items()}
GATEWAYS = [None, *map(ipaddress.ip_address, ("10.10.0.1", "2001:db8::1", "fe80::1"))]
METRICS = st.dictionaries(st.integers(1, 15) | st.just(17), st.integers(0, 2**32 - 1)), st.sampled_from([{}, {16: "bbr"}])


@st.composite
def hops(draw, version):
    gateway = draw(st.sampled_from([g for g in GATEWAYS if version == 4 or g is None or g.version == 6]))
    more = tuple((number, draw(st.binary(min_size=1, max_size=9))) for number in draw(st.lists(st.sampled_from([11, 21, 22]), unique=True)))
    return Nexthop(draw(st.sampled_from([*INDICES])), gateway, draw(st.integers(1, 256)), draw(st.booleans()), tuple(sorted(more)))


@st.composite
def routes(draw):
    destination = ipaddress.ip_network(draw(st.sampled_from(["0.0.0.0/0", "203.0.113.0/24", "::/0", "2001:db8:9::/48"])))
    kind = draw(st.sampled_from(["unicast", "blackhole", "unreachable", "prohibit", "throw"]))
    found = draw(st.lists(hops(destination.version), min_size=1, max_size=3, unique=True)) if kind == "unicast" else []
    if len(found) == 1:
        found = [Nexthop(found[0].device, found[0].gateway, 1, found[0].onlink, found[0].encapsulation)]
    numbers, names = (draw(part) for part in METRICS)
    return Route(
        draw(st.sampled_from([254, 100002001])), destination, draw(st.integers(0, 2**32 - 1)), kind, tuple(sorted(found, key=repr)),
        tos=draw(st.sampled_from([0, 0x10])), metrics=tuple({**numbers, **names}.items()), preference=draw(st.sampled_from([0, 1, 3])),
    )  # fmt: skip


def read(request: bytes, objects=None):
    return kernel._route_object(Message(24, 0, request), kernel._Names(NAMES), lambda: objects or {})


@given(routes())
def test_a_route_is_read_back_as_it_was_set(route):
    assert read(kernel._replace_route(route, INDICES.__getitem__)) == route
    assert json.loads(json.dumps(route.as_dict()))["metric"] == route.metric, "uvnd can tell it"


def test_a_scope_is_kept_where_it_is_another_than_follows():
    route = Route(254, ipaddress.ip_network("203.0.113.0/24"), 0, nexthops=(Nexthop("wan0"),))
    given_scope = Route(254, route.destination, 0, nexthops=route.nexthops, scope=0)
    assert read(kernel._replace_route(route, INDICES.__getitem__)).scope is None
    assert read(kernel._replace_route(given_scope, INDICES.__getitem__)) == given_scope


def by_number(number: int) -> bytes:
    """A route as the kernel tells it with net.ipv4.nexthop_compat_mode=0."""
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 24, 0, 0, 254, 3, 0, 1, 0)
    return pack(24, 0, body, [(1, socket.inet_aton("203.0.113.0")), (30, u32(number))])


def test_next_hop_objects_are_resolved():
    group = b"".join(struct.pack("=IBBH", number, weight, 0, 0) for number, weight in ((11, 2), (12, 4)))
    objects = {
        11: (0, {5: u32(3), 6: socket.inet_aton("10.10.0.1")}),
        12: (kernel.RTNH_F_ONLINK, {5: u32(2), 6: socket.inet_aton("172.31.0.1"), 7: (1).to_bytes(2, sys.byteorder), 8: pack_attributes([])}),
        20: (0, {2: group}),
    }
    way = Nexthop("wan0", ipaddress.ip_address("10.10.0.1"))
    other = Nexthop("em1", ipaddress.ip_address("172.31.0.1"), 5, True, ((21, (1).to_bytes(2, sys.byteorder)), (22, b"")))
    assert read(by_number(11), objects).nexthops == (way,)
    assert read(by_number(20), objects).nexthops == (other, Nexthop("wan0", way.gateway, 3))
    assert read(by_number(13), objects) is None, "an object that has just gone took its routes along"
