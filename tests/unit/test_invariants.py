# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must be so for every site, every node and every damage: plan and diff against a model of the kernel."""

from __future__ import annotations

import ipaddress
from dataclasses import fields, replace

from conftest import SITE
from hypothesis import given
from hypothesis import strategies as st
from uvn.diff import Change, diff
from uvn.identity import identify
from uvn.objects import Address, Chain, Member, Nexthop, Object, Route, Rule, Sysctl, Vrf, Vxlan
from uvn.plan import LAST_RESORT, node, user_network
from uvn.site import parse
from uvn.underlay import Host, Nic

UIDS = st.integers(1000, 4194302)
PREFIXES = {4: ("192.168.80.{}/21", "192.168.40.{}/21", "10.10.0.{}/24"), 6: ("fd00:80::{:x}/64", "fd00:40::{:x}/64", "2001:db8::{:x}/64")}


@st.composite
def nics(draw, name, versions):
    """A NIC with some addresses, in listed subnets and elsewhere, each from a number that no other NIC has."""
    number = draw(st.integers(1, 250))
    chosen = draw(st.lists(st.sampled_from([text for version in versions for text in PREFIXES[version]]), min_size=1, unique=True))
    return Nic(name, draw(st.sampled_from([1320, 1500, 2044, 9000])), tuple(ipaddress.ip_interface(text.format(number)) for text in chosen))


@st.composite
def hosts(draw):
    """A node: up to four NICs, also with names that leave no room for the UID, and routes over them; with IPv6, with IPv6 off, or without it."""
    ipv6, versions = draw(st.sampled_from([(True, (4, 6)), (False, (4, 6)), (False, (4,))]))
    usable = (4, 6) if ipv6 else (4,)
    names = draw(st.lists(st.sampled_from(["em1", "ib0", "enp129s0f1np1", "bond0.4000", "wan0"]), min_size=1, max_size=4, unique=True))
    devices = tuple(draw(nics(name, usable)) for name in names)
    routes = draw(st.lists(st.sampled_from(["0.0.0.0/0", "10.20.0.0/16", "::/0", "2001:db8:1::/48"]), unique=True))
    over = st.sampled_from(names)
    made = (Route(254, ipaddress.ip_network(text), 0, nexthops=(Nexthop(draw(over)),)) for text in routes)
    return Host(devices, tuple(route for route in made if route.destination.version in usable), versions=versions, ipv6=ipv6)


@st.composite
def damage(draw, objects):
    """What a fault leaves: some objects gone, some changed, some that are none of ours."""
    left = [obj for obj in objects if draw(st.integers(0, 4))]
    left = [altered(obj) if not draw(st.integers(0, 4)) else obj for obj in left]
    stray = [
        Address(objects[0].device, ipaddress.ip_interface("10.66.0.1/24")),
        Route(objects[0].table, ipaddress.ip_network("10.66.0.0/16"), 7, "unreachable"),
    ]
    return consistent(left + draw(st.lists(st.sampled_from(stray), unique=True)))


def altered(obj: Object) -> Object:
    """The same object by its key, with another value in a field that the key leaves out; itself where there is none."""
    link = {"mtu": 1400, "ttl": 9, "up": False, "table": 7, "mac": "02:00:00:00:00:01"}
    changed = link if isinstance(obj, (Vrf, Vxlan)) else {"source": None, "routed": False}
    known = {field.name for field in fields(obj)}
    other = replace(obj, **{name: value for name, value in changed.items() if name in known and getattr(obj, name) != value})
    return other if other.key == obj.key else obj


def consistent(objects: list[Object]) -> list[Object]:
    """What a kernel can hold: nothing on a device that is not there."""
    devices = {obj.device for obj in objects if isinstance(obj, (Vrf, Vxlan))}
    return [obj for obj in objects if not needs(obj) - devices]


def needs(obj: Object) -> set[str]:
    """UVN's devices that an object cannot be without. A VXLAN outlives its VRF."""
    if isinstance(obj, (Address, Member)):
        return {obj.device} - {"uvn", None}
    if isinstance(obj, Route):
        return {hop.device for hop in obj.nexthops if "u" in hop.device or hop.device.startswith("vrf")}
    return set()


class Model:
    """A kernel that refuses what the kernel refuses and loses what the kernel loses."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = {obj.key: obj for obj in objects}

    def apply(self, changes: list[Change]) -> None:
        for change in changes:
            getattr(self, change.op)(change.object)
            self.check()

    def create(self, obj: Object) -> None:
        assert obj.key not in self.objects, f"{obj.name} exists"
        self.replace(obj)

    def replace(self, obj: Object) -> None:
        assert not needs(obj) - self.devices(), f"{obj.name} on a device that is not there"
        if isinstance(obj, (Vrf, Vxlan)) and obj.key in self.objects:
            assert replace(self.objects[obj.key], mac=obj.mac) == obj, f"{obj.name} takes nothing but another MAC address"
        elif isinstance(obj, Vxlan):
            assert obj.vrf in self.devices(), f"{obj.name} in a VRF that is not there"
            taken = [o for o in self.objects.values() if isinstance(o, Vxlan) and (o.vni, o.port) == (obj.vni, obj.port)]
            assert not taken, "one VNI on one port twice"
        self.objects[obj.key] = obj

    def delete(self, obj: Object) -> None:
        del self.objects[obj.key]
        left = [o for o in self.objects.values() if isinstance(o, Vxlan) and isinstance(obj, Vrf) and o.vrf == obj.device]
        assert not left, "a VXLAN that its VRF leaves behind is in the default VRF, with its addresses"
        if isinstance(obj, (Vrf, Vxlan)):
            self.objects = {key: o for key, o in self.objects.items() if obj.device not in needs(o) or isinstance(o, Member)}

    def devices(self) -> set[str]:
        return {obj.device for obj in self.objects.values() if isinstance(obj, (Vrf, Vxlan))}

    def check(self) -> None:
        """Membership never points to a device that is gone: the kernel may give its index away."""
        for obj in self.objects.values():
            assert not isinstance(obj, Member) or not needs(obj) - self.devices(), "membership in a device that is gone"


def planned(host: Host, uid: int) -> list[Object]:
    return user_network(parse(SITE), identify(parse(SITE), uid), host)


@given(hosts(), UIDS)
def test_making_is_complete_and_removing_leaves_nothing(host, uid):
    desired = planned(host, uid)
    kernel = Model([])
    kernel.apply(diff(desired, []))
    assert kernel.objects == {obj.key: obj for obj in desired}
    assert diff(desired, [*kernel.objects.values()]) == []
    kernel.apply(diff([], [*kernel.objects.values()]))
    assert not kernel.objects


@given(st.data(), hosts(), UIDS)
def test_every_damage_is_mended_without_a_forbidden_step(data, host, uid):
    desired = planned(host, uid)
    kernel = Model(data.draw(damage(desired)))
    kernel.apply(diff(desired, [*kernel.objects.values()]))
    assert kernel.objects == {obj.key: obj for obj in desired}


@given(st.data(), hosts(), UIDS)
def test_a_run_cut_off_anywhere_is_completed_or_undone(data, host, uid):
    desired = planned(host, uid)
    changes = diff(desired, data.draw(st.sampled_from([[], desired[:1]])))
    kernel = Model([] if len(changes) == len(desired) else desired[:1])
    kernel.apply(changes[: data.draw(st.integers(0, len(changes)))])
    end = data.draw(st.sampled_from([desired, []]))
    kernel.apply(diff(end, [*kernel.objects.values()]))
    assert kernel.objects == {obj.key: obj for obj in end}


@given(hosts(), hosts(), UIDS)
def test_a_node_that_changes_is_followed_without_a_forbidden_step(before, after, uid):
    kernel = Model([])
    kernel.apply(diff(planned(before, uid), []))
    desired = planned(after, uid)
    kernel.apply(diff(desired, [*kernel.objects.values()]))
    assert kernel.objects == {obj.key: obj for obj in desired}


@given(hosts(), UIDS)
def test_without_ipv6_nothing_needs_it(host, uid):
    objects = planned(host, uid)
    assert host.ipv6 or not [obj for obj in objects if needs_ipv6(obj)]
    closed = {obj.destination.version for obj in objects if isinstance(obj, Route) and obj.metric == LAST_RESORT}
    assert closed == set(host.versions), "no socket of the user's ends in another table"
    assert not [rule for rule in of_node(host) if isinstance(rule, (Rule, Chain)) and rule.version not in host.versions]
    assert host.ipv6 or not [obj for obj in of_node(host) if isinstance(obj, Sysctl) and "ipv6" in obj.path]


def of_node(host: Host) -> list[Object]:
    return node(parse({**SITE, "ingress": [{"hosts": ["0.0.0.0/0"], "ports": ["61000"]}]}), host, 1, [])


def needs_ipv6(obj: Object) -> bool:
    """Whether a device that takes no IPv6 addresses refuses it."""
    if isinstance(obj, Address):
        return obj.interface.version == 6
    if isinstance(obj, Route):
        return obj.destination.version == 6 and obj.type != "unreachable"
    return isinstance(obj, (Vrf, Vxlan)) and obj.ipv6


@given(hosts(), UIDS, UIDS)
def test_users_on_one_node_share_no_object(host, one, other):
    a, b = ({obj.key for obj in planned(host, uid)} for uid in (one, other))
    assert a == b if one == other else not a & b
