# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner and the diff: what is desired, and the order in which it comes and goes."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvn.diff import Change, diff
from uvn.errors import UvnError
from uvn.identity import identify
from uvn.objects import (
    TABLE_LOCAL,
    TABLE_MAIN,
    Address,
    Chain,
    Classifier,
    Element,
    Guard,
    Ingress,
    Member,
    Nexthop,
    Route,
    Rule,
    Sysctl,
    Vrf,
    Vxlan,
    merge,
)
from uvn.plan import LAST_RESORT, NAT_DEVICE, node, user_network, vrf_mac
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
    assert objects[0] == Vrf("vrf1234", 100001234, 0x55000000 + 1234, "02:55:00:00:04:d2")
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


def without_ipv6(host, versions):
    """The same node as it is observed with IPv6 off."""
    nics = tuple(replace(nic, addresses=tuple(a for a in nic.addresses if a.version == 4)) for nic in host.nics)
    routes = tuple(route for route in host.routes if route.destination.version == 4)
    return replace(host, nics=nics, routes=routes, versions=versions, ipv6=False)


@pytest.mark.parametrize("versions", [(4,), (4, 6)], ids=["ipv6.disable=1", "disable_ipv6=1"])
def test_a_node_without_ipv6_has_all_that_is_of_ipv4(site, host, versions):
    def version(obj):
        return getattr(obj, "interface", getattr(obj, "destination", net("0.0.0.0/0"))).version

    alone = without_ipv6(host, versions)
    closed = Route(100001234, net("::/0"), LAST_RESORT, "unreachable")
    expected = [replace(obj, ipv6=False) if isinstance(obj, (Vrf, Vxlan)) else obj for obj in network(site, host) if version(obj) == 4]
    assert [obj for obj in network(site, alone) if obj != closed] == expected
    assert (closed in network(site, alone)) is (6 in versions), "users' sockets of IPv6 end there, and in no other table"
    objects = node(site, alone, 1, [])
    assert {obj.version for obj in objects if isinstance(obj, (Rule, Chain))} == set(versions)
    assert {obj.version for obj in node(site, alone, 1, [], firewalls=[4]) if isinstance(obj, Chain)} == {4}
    assert not [obj for obj in objects if isinstance(obj, Sysctl) and "ipv6" in obj.path]
    assert [obj for obj in objects if isinstance(obj, Guard)] == [obj for obj in node(site, host, 1, []) if isinstance(obj, Guard)]


def test_an_overlay_of_ipv6_ends_where_ipv6_is_off(host):
    from uvn.site import parse

    site = parse({"underlays": [{"subnets": ["fd00:80::/64"], "port": 800}], "group": "ff05::1:1"})
    assert [obj for obj in network(site, host) if isinstance(obj, Vxlan)]
    objects = network(site, without_ipv6(host, (4, 6)))
    assert not [obj for obj in objects if isinstance(obj, Vxlan)] and Member(1234, "vrf1234") in objects


@pytest.mark.parametrize(("mtu", "group", "carried"), [(1330, 4, True), (1329, 4, False), (1350, 6, True), (1349, 6, False)])
def test_a_vxlan_narrower_than_ipv6_allows_carries_none(mtu, group, carried):
    from conftest import SITE
    from uvn.site import parse

    site = parse({**SITE, "group": "239.192.193.194" if group == 4 else "ff05::1:1"})
    addresses = tuple(ipaddress.ip_interface(text) for text in ("192.168.80.91/21", "fd00:80::91/64"))
    objects = network(site, Host((Nic("em1", mtu, addresses),), ()))
    (vxlan,) = [obj for obj in objects if isinstance(obj, Vxlan)]
    assert vxlan.ipv6 is carried
    assert [obj.device for obj in objects if isinstance(obj, Address) and obj.interface.ip == addresses[1].ip] == [
        "em1u1234" if carried else "vrf1234"
    ]
    assert bool(routes_to(objects, "fd00:80::/64")) is carried


def test_a_mirrored_route_differs_in_table_and_source_only(site, host):
    hop = Nexthop("wan0", ip("10.10.0.7"), 3, onlink=True, encapsulation=((21, b"\x01\0"),))
    route = Route(TABLE_MAIN, net("203.0.113.0/24"), 5, "unicast", (hop,), ip("10.10.0.91"), 0x10, ((1, 4), (2, 1300), (16, "reno")), 1, 0)
    (mirrored,) = routes_to(network(site, replace(host, routes=(*host.routes, route))), "203.0.113.0/24")
    assert mirrored == replace(route, table=100001234, source=ip("100.64.4.210"))


@pytest.mark.parametrize(("gateway", "onlink"), [("10.10.0.7", False), ("172.31.0.1", True), ("fe80::1", False), ("2001:db8:77::1", True)])
def test_a_gateway_that_no_route_leads_to_is_mirrored_as_on_link(site, host, gateway, onlink):
    destination = net("203.0.113.0/24" if "." in gateway else "2001:db8:9::/48")
    route = Route(TABLE_MAIN, destination, 5, nexthops=(Nexthop("wan0", ip(gateway)),))
    (mirrored,) = routes_to(network(site, replace(host, routes=(*host.routes, route))), str(destination))
    assert mirrored.nexthops == (Nexthop("wan0", ip(gateway), onlink=onlink),)


def test_two_routes_by_type_of_service_are_two(site, host):
    one = Route(TABLE_MAIN, net("203.0.113.0/24"), 0, nexthops=(Nexthop("wan0"),))
    objects = network(site, replace(host, routes=(one, replace(one, tos=0x10))))
    assert sorted(route.tos for route in {obj.key: obj for obj in routes_to(objects, "203.0.113.0/24")}.values()) == [0, 0x10]


def test_one_nic_in_two_underlays_has_two_vxlans_of_different_names(site):
    both = Nic("em1", 1500, (ipaddress.ip_interface("192.168.80.1/21"), ipaddress.ip_interface("192.168.40.1/21")))
    objects = network(site, Host((both,), ()))
    assert [obj.device for obj in objects if isinstance(obj, Vxlan)] == ["em1u1234", "m9u1234"]


def test_one_subnet_on_two_nics_takes_the_first_by_name(site):
    nics = [Nic(name, 1500, (ipaddress.ip_interface(f"192.168.80.{n}/21"),)) for n, name in ((1, "em2"), (2, "em1"))]
    assert [a.nic.name for a in attach(site, Host(tuple(nics), ()))] == ["em1"]


def test_a_vxlan_for_which_no_name_is_left_is_refused(site):
    addresses = [ipaddress.ip_interface(text) for text in ("192.168.80.91/21", "192.168.40.91/21")]
    host = Host((Nic("m9", 1500, (addresses[0],)), Nic("enp129s0f1np1", 1500, (addresses[1],))), ())
    with pytest.raises(UvnError, match="m9u1234: no name is left for the VXLAN of UDP port 801, another NIC's has it; rename"):
        network(site, host)


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


def nodes_of_one_site():
    """Two nodes that differ in their addresses only."""
    for number in (1, 2):
        nics = (("em1", f"192.168.80.{number}/21"), ("ib0", f"192.168.40.{number}/21"))
        yield Host(tuple(Nic(name, 1500, (ipaddress.ip_interface(address),)) for name, address in nics), ())


@given(st.lists(st.integers(1000, 4194302), min_size=2, max_size=6, unique=True))
def test_no_two_devices_of_a_node_have_one_mac_address(uids):
    """VRFs have theirs on every node; VXLANs of one user, which speak to each other, never the same on two."""
    from conftest import SITE
    from uvn.site import parse

    site = parse({**SITE, "exempt": {"uids": []}})
    links = [[obj for uid in uids for obj in network(site, host, uid) if isinstance(obj, (Vrf, Vxlan))] for host in nodes_of_one_site()]
    for node_links in links:
        assert len(node_links) == 3 * len(uids) == len({link.mac for link in node_links})
    assert all((one.mac == other.mac) is isinstance(one, Vrf) for one, other in zip(*links))


@given(st.integers(1, 2**32 - 2))
def test_the_mac_address_of_a_vrf_is_that_of_an_interface_and_has_the_uid(uid):
    octets = bytes.fromhex(vrf_mac(uid).replace(":", ""))
    assert octets[0] & 3 == 2, "locally administered, unicast (IEEE 802)"
    assert int.from_bytes(octets[2:], "big") == uid


@pytest.mark.parametrize("kind", [Vrf, Vxlan])
def test_a_mac_address_is_changed_in_place(site, host, kind):
    """Users' sockets are bound to the device: one that is made anew would end their connections."""
    objects = network(site, host)
    observed = [replace(obj, mac="02:55:56:4e:00:01") if isinstance(obj, kind) else obj for obj in objects]
    changes = diff(objects, observed)
    assert changes and {(change.op, type(change.object)) for change in changes} == {("replace", kind)}


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


# -- ingress ---------------------------------------------------------------------------------------------------------

OPENINGS = [
    {"hosts": ["192.168.80.0/21", "fd00:80::/64"], "ports": ["61000-61999"]},
    {"hosts": ["192.168.80.7/32"], "ports": ["8888", "62000-62999"]},
    {"hosts": ["0.0.0.0/0", "192.168.80.7"], "ports": ["60000-60099"], "protocol": "udp"},
]
UDP = ((60000, 60099),)
INSIDE = [("ip", "192.168.80.0/21"), ("ip6", "fd00:80::/64"), ("ip", "192.168.40.0/21"), ("ip6", "fd00:40::/64")]


def guard(objects):
    (found,) = [obj for obj in objects if isinstance(obj, Guard)]
    return found


def elements(objects, name):
    """The networks or addresses in one of the guard's sets."""
    return {obj.value[0] for obj in objects if isinstance(obj, Element) and obj.set == name}


def opened(**keys):
    from conftest import SITE
    from uvn.site import parse

    return parse({**SITE, **keys})


def test_without_ingress_and_control_ports_there_is_nothing_of_it(site, host):
    objects = node(site, host, 1, [])
    assert not [obj for obj in objects if isinstance(obj, (Ingress, Classifier)) or (isinstance(obj, Rule) and obj.mark)]


def test_a_host_has_the_ports_of_every_network_it_is_in(host):
    (ingress,) = [obj for obj in node(opened(ingress=OPENINGS), host, 1, []) if isinstance(obj, Ingress)]
    assert dict(ingress.hosts) == {
        net("0.0.0.0/0"): ((), UDP),
        net("192.168.80.0/21"): (((61000, 61999),), UDP),
        net("192.168.80.7/32"): (((8888, 8888), (61000, 62999)), UDP),
        net("fd00:80::/64"): (((61000, 61999),), ()),
    }
    assert ingress.ports == (((8888, 8888), (61000, 62999)), UDP)


def test_any_ipv6_host_is_no_ipv4_host(host):
    (ingress,) = [obj for obj in node(opened(ingress=[{"hosts": ["::/0"], "ports": [60001]}]), host, 1, []) if isinstance(obj, Ingress)]
    assert dict(ingress.hosts) == {net("0.0.0.0/0"): ((), ()), net("::/0"): (((60001, 60001),), ())}


def test_answers_of_datagram_sockets_pass_the_guard_to_listed_hosts_outside_the_subnets(host):
    objects = node(opened(ingress=OPENINGS), host, 1, [])
    chains = {name: rules for name, _hook, rules in guard(objects).chains}
    assert chains["output"][-1] == "meta skuid >= 1000 goto outward"
    assert {subnet for _family, subnet in INSIDE} < {str(network) for network in elements(objects, "closed4") | elements(objects, "closed6")}
    rules = chains["outward"]
    assert rules[-3:] == (
        "ip daddr @answers4_2 udp sport 60000-60099 accept",
        "ip6 daddr @answers6_2 udp sport 60000-60099 accept",
        "goto stray",
    )
    assert max(rules.index(f"{family} daddr @closed{version} goto stray") for family, version in (("ip", 4), ("ip6", 6))) < len(rules) - 3
    assert elements(objects, "answers4_2") == {net("0.0.0.0/0")}, "which holds 192.168.80.7 too"
    assert elements(objects, "answers6_2") == set()
    without = {name: rules for name, _hook, rules in guard(node(opened(ingress=OPENINGS[:1]), host, 1, [])).chains}
    assert not [rule for rule in without["outward"] if "answers" in rule] and without["outward"][-1] == "goto stray"
    assert not [name for name in guard(node(opened(ingress=OPENINGS[:1]), host, 1, [])).sets if "answers" in name]


def test_hosts_and_ports_of_ingress_do_not_multiply(host):
    """The most that a site may open: rules grow with the ranges, elements with the hosts."""
    hosts = [str(ipaddress.ip_address("10.0.0.1") + 2 * number) for number in range(4000)]
    openings = [{"hosts": hosts, "ports": [f"{port}-{port + 9}" for port in range(1000, 2600, 100)], "protocol": "udp"}]
    objects = node(opened(ingress=openings), host, 1, [])
    assert sum(len(rules) for _name, _hook, rules in guard(objects).chains) < 150
    assert len(elements(objects, "answers4_0")) == 4000
    assert sum(isinstance(obj, Element) for obj in objects) < 4050


def test_users_packets_over_nics_go_to_no_subnet_that_the_node_is_in(site, host):
    closed = {version: elements(node(site, host, 1, []), f"closed{version}") for version in (4, 6)}

    def is_closed(address):
        return any(ip(address) in network for network in closed[ip(address).version])

    for address in ("192.168.80.92", "192.168.87.255", "fd00:80::92", "192.168.40.1"):
        assert is_closed(address), address
    for address in ("224.0.0.251", "255.255.255.255", "10.10.0.255", "ff02::fb", "fe80::1"):
        assert is_closed(address), address
    for address in ("10.10.0.5", "10.10.0.92", "198.51.100.10", "2001:db8:10::5", "169.254.169.254"):
        assert not is_closed(address), address
    apart = Host(nics=host.nics[2:], routes=host.routes)
    assert net("192.168.80.0/21") not in elements(node(site, apart, 1, []), "closed4"), "where users' routes lead over a NIC, by NAT"
    linked = Host(nics=(Nic("p2p0", 1500, (ipaddress.ip_interface("10.9.9.0/31"), ipaddress.ip_interface("10.9.8.1/32"))),), routes=())
    hosts = {net("10.9.9.1/32"), net("10.9.8.1/32")}
    assert not hosts & elements(node(site, linked, 1, []), "closed4"), "such networks have no broadcast address"


def test_hosts_without_uvn_stay_reachable(site, host):
    objects = node(site, host, 1, [])
    assert elements(objects, "direct4") == {ip("192.168.80.5")} and elements(objects, "direct6") == {ip("fd00:80::5")}


def test_frames_come_from_the_listed_nodes_or_from_the_subnets(site, host):
    from conftest import SITE

    assert elements(node(site, host, 1, []), "nodes4") == {net("192.168.80.0/21"), net("192.168.40.0/21")}
    first = {**SITE["underlays"][0], "nodes": ["192.168.80.64/26", "192.168.80.9"]}
    listed = node(opened(underlays=[first, SITE["underlays"][1]]), host, 1, [])
    assert elements(listed, "nodes4") == {net("192.168.80.64/26"), net("192.168.80.9/32"), net("192.168.40.0/21")}


def test_more_ports_than_iptables_matches_at_once(host):
    underlays = [{"subnets": [f"10.{number}.0.0/16"], "port": 800 + number} for number in range(40)]
    objects = node(opened(underlays=underlays), host, 1, [])
    for chain in (obj for obj in objects if isinstance(obj, Chain) and obj.chain == "UVN-INPUT"):
        found = [match[1].split(",") for rule in chain.rules for match in [re.search(r"--dports (\S+)", rule)] if match]
        assert max(map(len, found)) <= 15 and sorted(port for ports in found for port in ports) == [str(800 + number) for number in range(40)]


def test_every_nic_has_a_classifier_and_replies_go_out_as_those_of_root(host):
    objects = node(opened(ingress=OPENINGS), host, 1, [])
    assert [obj.device for obj in objects if isinstance(obj, Classifier)] == ["lo", "em1", "ib0", "wan0"]
    marked = [obj for obj in objects if isinstance(obj, Rule) and obj.mark]
    assert [(rule.version, rule.table) for rule in marked] == [(4, TABLE_LOCAL), (4, TABLE_MAIN), (6, TABLE_LOCAL), (6, TABLE_MAIN)]
    assert all(rule.local and rule.priority < 1000 for rule in marked)


def test_control_ports_alone_need_no_classifier(host):
    objects = node(opened(control_ports=["6817-6819"]), host, 1, [])
    assert [obj for obj in objects if isinstance(obj, (Ingress, Classifier))] == [Ingress((), ((6817, 6819),))]


PORT_RANGES = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 9)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=8)


@given(st.lists(PORT_RANGES, max_size=4))
def test_merged_ranges_hold_the_same_ports_in_fewer_ranges(several):
    def ports(ranges):
        return {port for first, last in ranges for port in range(first, last + 1)}

    merged = merge(several)
    assert ports(merged) == {port for ranges in several for port in ports(ranges)}
    assert all(here[1] + 1 < there[0] for here, there in zip(merged, merged[1:]))
