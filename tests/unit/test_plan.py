# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner and the diff: what is desired, and the order in which it comes and goes."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from uvn.diff import Change, diff
from uvn.identity import identify
from uvn.objects import TABLE_LOCAL, Address, Member, Nexthop, Route, Rule, Sysctl, Vrf, Vxlan
from uvn.plan import LAST_RESORT, NAT_DEVICE, node, user_network
from uvn.underlay import Host, Nic, attach


def net(text):
    return ipaddress.ip_network(text)


def ip(text):
    return ipaddress.ip_address(text)


def network(site, host, uid=1234):
    return user_network(site, identify(site, uid), host)


def routes_to(objects, destination):
    return [obj for obj in objects if isinstance(obj, Route) and obj.destination == net(destination)]


def test_one_vrf_and_a_vxlan_for_every_underlay_nic(site, host):
    objects = network(site, host)
    assert objects[0] == Vrf("vrf1234", 100001234, 0x55000000 + 1234)
    vxlans = [obj for obj in objects if isinstance(obj, Vxlan)]
    assert [(v.device, v.nic, v.port, v.mtu, str(v.local)) for v in vxlans] == [
        ("em1u1234", "em1", 800, 1450, "192.168.80.91"),
        ("ib0u1234", "ib0", 801, 1994, "192.168.40.91"),
    ]
    assert {v.vni for v in vxlans} == {1234}
    assert objects[-1] == Member(1234, "vrf1234"), "membership is given when everything else is there"


def test_addresses_of_other_nics_answer_in_the_vrf(site, host):
    own = {str(obj.interface) for obj in network(site, host) if isinstance(obj, Address) and obj.device == "vrf1234"}
    assert own == {
        "127.0.0.1/8", "::1/128", "100.64.4.210/32", "fd75:766e::4d2/128", "10.10.0.91/32", "2001:db8:10::91/128",
    }  # fmt: skip


def test_listed_subnets_lead_into_the_overlay_and_everything_else_out_by_nat(site, host):
    objects = network(site, host)
    (overlay,) = routes_to(objects, "192.168.80.0/21")
    assert overlay.nexthops == (Nexthop("em1u1234"),) and overlay.source == ip("192.168.80.91")
    (direct,) = routes_to(objects, "192.168.80.5/32")
    assert direct.nexthops == (Nexthop("em1"),) and direct.source == ip("100.64.4.210")
    default, last = routes_to(objects, "0.0.0.0/0")
    assert default.nexthops == (Nexthop("wan0", ip("10.10.0.5")),) and default.source == ip("100.64.4.210")
    assert last.type == "unreachable" and last.metric == LAST_RESORT
    default6, last6 = routes_to(objects, "::/0")
    assert default6.source == ip("fd75:766e::4d2") and last6.type == "unreachable"
    assert Address(NAT_DEVICE, ipaddress.ip_interface("fd75:766e::4d2")) in objects


def test_a_node_without_listed_subnets_has_a_vrf_all_the_same(site, host):
    alone = Host(nics=host.nics[2:], routes=host.routes[:2])
    objects = network(site, alone)
    assert not [obj for obj in objects if isinstance(obj, Vxlan)]
    assert Member(1234, "vrf1234") in objects


def test_one_nic_in_two_underlays_has_two_vxlans_of_different_names(site):
    both = Nic("em1", 1500, (ipaddress.ip_interface("192.168.80.1/21"), ipaddress.ip_interface("192.168.40.1/21")))
    objects = network(site, Host((both,), ()))
    assert [obj.device for obj in objects if isinstance(obj, Vxlan)] == ["em1u1234", "m9u1234"]


def test_one_subnet_on_two_nics_takes_the_first_by_name(site):
    nics = [Nic(name, 1500, (ipaddress.ip_interface(f"192.168.80.{n}/21"),)) for n, name in ((1, "em2"), (2, "em1"))]
    assert [a.nic.name for a in attach(site, Host(tuple(nics), ()))] == ["em1"]


@given(st.lists(st.integers(1000, 4194302), min_size=2, max_size=6, unique=True))
def test_networks_of_users_share_nothing(uids):
    from conftest import SITE
    from uvn.site import parse

    site = parse({**SITE, "exempt": {"uids": []}})
    keys = [
        obj.key
        for uid in uids
        for obj in network(site, Host((Nic("em1", 1500, (ipaddress.ip_interface("192.168.80.1/21"),)),), ()), uid)
    ]
    assert len(keys) == len(set(keys))


def test_the_same_plan_twice_differs_in_nothing(site, host):
    assert diff(network(site, host), network(site, host)) == []
    assert diff(node(site, host, 1, [2009]), node(site, host, 1, [2009])) == []


def test_creation_and_removal_mirror_each_other(site, host):
    objects = network(site, host)
    created = diff(objects, [])
    assert [change.object for change in created] == objects and {change.op for change in created} == {"create"}
    removed = diff([], objects)
    assert isinstance(removed[0].object, Member), "the map entry goes before the device it points to"
    kinds = [type(change.object) for change in removed]
    assert kinds.index(Vrf) > max(n for n, kind in enumerate(kinds) if kind is Vxlan), "VXLANs never after their VRF"


def test_a_changed_vxlan_is_made_anew_with_what_it_carries(site, host):
    objects = network(site, host)
    observed = [replace(obj, ttl=1) if isinstance(obj, Vxlan) and obj.nic == "em1" else obj for obj in objects]
    changes = diff(objects, observed)
    vxlan = objects[1]
    assert changes[0] == Change("delete", observed[1]) and Change("create", vxlan) in changes
    assert [c.op for c in changes if isinstance(c.object, Address)] == ["create", "create"]
    assert not [c for c in changes if isinstance(c.object, Member)], "the VRF stays, and so does the membership"


def test_a_changed_vrf_takes_everything_along(site, host):
    objects = network(site, host)
    observed = [replace(objects[0], table=7), *objects[1:]]
    changes = diff(objects, observed)
    assert changes[0] == Change("delete", objects[-1])
    assert changes[-1] == Change("create", objects[-1])
    assert sum(change.op == "delete" and isinstance(change.object, Vxlan) for change in changes) == 2


def test_an_address_is_replaced_without_a_moment_without(site, host):
    objects = network(site, host)
    old = Address("em1u1234", ipaddress.ip_interface("192.168.80.99/21"))
    changes = diff(objects, [old if obj == Address("em1u1234", ipaddress.ip_interface("192.168.80.91/21")) else obj for obj in objects])
    assert [change.op for change in changes] == ["create", "delete"]


def test_the_local_rule_is_never_missing(site, host):
    before = [Rule(version, 0, TABLE_LOCAL) for version in (4, 6)]
    changes = [c for c in diff(node(site, host, 1, []), before) if isinstance(c.object, Rule) and c.object.table == TABLE_LOCAL]
    assert [(c.op, c.object.priority) for c in changes] == [("create", 32765)] * 2 + [("delete", 0)] * 2


def test_ipv6_nics_that_hear_router_advertisements_go_on_doing_so(site, host):
    listening = Host((replace(host.nics[0], accept_ra=1),), ())
    objects = node(site, listening, 1, [])
    accept, forwarding = Sysctl("net/ipv6/conf/em1/accept_ra", "2"), Sysctl("net/ipv6/conf/all/forwarding", "1")
    assert objects.index(accept) < objects.index(forwarding)
