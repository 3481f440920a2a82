# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users' networks on real kernels: made, read back, damaged, mended, removed; and what reaches what."""

from __future__ import annotations

import re
import socket
import subprocess

import pytest
from nodes import FORK, SITE, Agent, Listener, Node, connect, groups_of, inject, rules_of, run
from uvn.identity import LINK_GROUP
from uvn.objects import Rule, Vrf, Vxlan
from uvn.site import parse

ALICE, BOB = 2001, 2002
LONG = {"enp129s0f1np1": "lan80", "ib0": "lan40", "wan0": "lanwan"}


pytestmark = pytest.mark.usefixtures("lans")


@pytest.fixture
def make_node():
    nodes = []

    def make(*arguments, **options):
        nodes.append(Node(*arguments, **options))
        nodes[-1].prepare()
        return nodes[-1]

    yield make
    for one in nodes:
        one.delete()


@pytest.fixture
def one(make_node):
    return make_node("uvn-o", 11)


def test_what_is_made_is_what_was_planned_and_removal_leaves_nothing(one):
    before = one.everything()
    made = one.ensure(ALICE)
    assert made and one.pending(ALICE) == []
    assert [c.object for c in made] == [c.object for c in made if c.op == "create"]
    one.remove(ALICE)
    assert one.observe(ALICE) == []
    assert one.everything() == before


def test_the_rules_of_the_node_are_those_of_the_plan(one):
    rules = one.call(rules_of)
    for version in (4, 6):
        assert Rule(version, 32765, 255) in rules and Rule(version, 1000, "l3mdev") in rules
        assert Rule(version, 0, 255) not in rules
    assert rules.count(Rule(4, 1000, "l3mdev")) == 1, "the kernel takes our l3mdev rule for its own and adds no second"


OPTIONS = {
    "an IPv6 group": {"site": {**SITE, "group": "ff05::1:1"}},
    "a group chosen from a prefix": {"site": {**SITE, "group": "239.192.193.0/28"}},
    "outer checksums": {"site": {**SITE, "udp_checksum": True}},
    "outer checksums over IPv6": {"site": {**SITE, "group": "ff05::1:1", "udp_checksum": True}},
    "a long NIC name": {"nics": LONG},
    "more underlays than iptables matches ports": {
        "site": {"underlays": SITE["underlays"] + [{"subnets": [f"10.{number}.0.0/16"], "port": 810 + number} for number in range(20, 40)]}
    },
    "a large UID": {"site": {**SITE, "ranges": [{"first": 1200000000, "last": 1200099999, "index": 20000}]}},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option_is_read_back_as_it_was_set(make_node, options):
    node = make_node("uvn-o", 11, **options)
    uid = 1200001234 if "ranges" in options.get("site", {}) else ALICE
    node.ensure(uid)
    assert node.pending(uid) == []
    assert len([obj for obj in node.observe(uid) if isinstance(obj, Vxlan)]) == 2


def test_a_long_name_is_an_altname(make_node):
    node = make_node("uvn-o", 11, nics=LONG)
    node.ensure(ALICE)
    assert "m8u2001" in node.sh("ip -br link show enp129s0f1np1u2001")


DAMAGE = {
    "the VRF deleted": "ip link del vrf2001",
    "a VXLAN deleted": "ip link del em1u2001",
    "a VXLAN down": "ip link set em1u2001 down",
    "a VXLAN of another VNI": "ip link del em1u2001; ip link add em1u2001 group 0x550007d1 master vrf2001 type vxlan id 9 dstport 800 dev em1",
    "a VXLAN out of its VRF": "ip link set em1u2001 nomaster",
    "an address deleted": "ip addr del 192.168.80.21/21 dev em1u2001",
    "the loopback address deleted": "ip addr del 127.0.0.1/8 dev vrf2001",
    "a foreign address": "ip addr add 192.168.80.99/21 dev em1u2001",
    "IPv6 addresses flushed": "ip -6 addr flush dev em1u2001",
    "the default route deleted": "ip route del default table 100002001",
    "the table flushed": "ip route flush table 100002001; ip -6 route flush table 100002001",
    "a foreign route": "ip route add 203.0.113.0/24 dev wan0 table 100002001",
    "the reply route deleted": "ip route del 100.64.7.209 table 100000000",
    "the NAT address deleted": "ip -6 addr flush dev uvn",
}


@pytest.fixture(scope="module")
def whole():
    """A node with one user's network, which every damage below must leave as it was."""
    node = Node("uvn-w", 21)
    node.prepare()
    node.sh("ip route add default via 10.10.0.1; ip -6 route add default via 2001:db8:10::1")
    node.ensure(ALICE)
    yield node
    node.delete()


@pytest.mark.parametrize("script", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_seen_and_mended(whole, script):
    good = whole.everything()
    whole.sh(script)
    assert whole.pending(ALICE) != []
    whole.ensure(ALICE)
    assert whole.pending(ALICE) == []
    assert sorted(whole.everything().splitlines()) == sorted(good.splitlines())


def test_mending_one_link_leaves_the_others_alone(one):
    one.ensure(ALICE)
    others = one.sh("ip -o link show vrf2001; ip -o link show ib0u2001")
    one.sh("ip link del em1u2001")
    one.ensure(ALICE)
    assert one.sh("ip -o link show vrf2001; ip -o link show ib0u2001") == others


def test_a_mac_address_is_mended_in_place(one):
    """As after an update from a version whose VRFs all had one: sockets are bound to the device, which has to stay."""
    one.ensure(ALICE)
    links = "ip -o link show vrf2001; ip -o link show em1u2001"
    good = one.sh(links)
    one.sh("for device in vrf2001 em1u2001; do ip link set $device address 02:55:56:4e:00:01; done")
    assert one.sh(links) != good
    assert [change.op for change in one.ensure(ALICE)] == ["replace"] * 2
    assert one.pending(ALICE) == [] and one.sh(links) == good


def test_users_devices_are_told_apart_by_their_mac_addresses(one):
    """As cloud-init does it (get_interfaces_by_mac), which stops at two that are alike."""
    for uid in (ALICE, BOB):
        one.ensure(uid)
    macs = one.sh("ip -o link show type vrf; ip -o link show type vxlan").replace("link/ether ", "\n@").split("\n")
    macs = [line.split()[0] for line in macs if line.startswith("@")]
    assert len(macs) == 6 == len(set(macs))


def test_a_device_that_is_not_ours_is_refused_and_named(one):
    one.sh("ip link add vrf2001 type vrf table 7")
    with pytest.raises(AssertionError, match="vrf2001: a vrf of link group 0, not made by UVN"):
        one.ensure(ALICE)
    assert "table 7" in one.sh("ip -d link show vrf2001"), "it was not touched"


def test_all_networks_of_a_node_are_found(one):
    one.ensure(ALICE)
    one.ensure(BOB)
    one.sh("ip link add vrf-blue type vrf table 7")
    assert one.call(groups_of, "vrf") == {LINK_GROUP + ALICE, LINK_GROUP + BOB}


def test_a_route_of_main_is_mirrored_with_its_next_hops(one):
    one.sh(
        "ip route add 203.0.113.0/24 nexthop via 10.10.0.1 weight 2 nexthop via 192.168.80.1; "
        "ip route add blackhole 198.51.100.0/24; ip -6 route add 2001:db8:9::/48 via 2001:db8:10::1 metric 5"
    )
    one.ensure(ALICE)
    assert one.pending(ALICE) == []
    table = one.sh("ip route show table 100002001")
    assert "blackhole 198.51.100.0/24" in table and "nexthop via 10.10.0.1 dev wan0 weight 2" in table
    assert "src 100.64.7.209" in table


ALL_METRICS = (
    "mtu lock 1300 advmss lock 1260 window 65535 initcwnd 20 initrwnd 30 rto_min 50ms quickack 1 congctl lock reno hoplimit 60 "
    "reordering 9 features ecn fastopen_no_cookie 1"
)
ROUTES = {
    "every metric": f"ip route add default via 10.10.0.1 {ALL_METRICS}",
    "two by type of service": "ip route add 203.0.113.0/24 via 10.10.0.1; ip route add 203.0.113.0/24 tos 0x10 via 10.10.0.2 mtu 1400",
    "onlink": "ip route add 203.0.113.0/24 via 172.31.0.1 dev wan0 onlink",
    "weights": "ip route add 203.0.113.0/24 mtu 1400 nexthop via 10.10.0.1 weight 3 nexthop via 172.31.0.1 dev em1 onlink weight 5",
    "a gateway of IPv6": "ip route add 203.0.113.0/24 via inet6 2001:db8:10::1 dev wan0",
    "a scope": "ip route add 203.0.113.0/24 dev wan0 scope global",
    "realms": "ip route add 203.0.113.0/24 via 10.10.0.1 realm 5/7",
    "a tunnel without device": "ip route add 203.0.113.0/24 encap ip id 7 dst 10.10.0.9 via 10.10.0.1 dev wan0",
    "prohibited": "ip route add prohibit 203.0.113.0/24",
    "a next hop object": "ip nexthop add id 11 via 10.10.0.1 dev wan0; ip route add 203.0.113.0/24 nhid 11 mtu 1400",
    "a group of them": (
        "ip nexthop add id 11 via 10.10.0.1 dev wan0; ip nexthop add id 12 via 172.31.0.1 dev em1 onlink; "
        "ip nexthop add id 20 group 11,3/12,5; ip route add 203.0.113.0/24 nhid 20"
    ),
    "IPv6: every metric": f"ip -6 route add default via 2001:db8:10::1 {ALL_METRICS}",
    "IPv6: a preference": "ip -6 route add 2001:db8:9::/48 via 2001:db8:10::1 metric 5 pref high",
    "IPv6: onlink": "ip -6 route add 2001:db8:9::/48 via 2001:db8:77::1 dev wan0 onlink",
    "IPv6: weights": "ip -6 route add 2001:db8:9::/48 nexthop via 2001:db8:10::1 weight 3 nexthop via fe80::9 dev em1 weight 5",
    "IPv6: a next hop object": "ip -6 nexthop add id 13 via 2001:db8:10::1 dev wan0; ip -6 route add 2001:db8:9::/48 nhid 13",
}


def site_routes(node, table):
    """The routes of a table to what the tests route to, but for table, source, protocol and the number of a next hop object."""
    lines = node.sh(f"for version in 4 6; do ip -$version -d route show table {table} | sed ':a;N;$!ba;s/\\n\\t/ /g'; done").splitlines()
    wanted = [line for line in lines if "4278198272" not in line and any(part in line for part in ("default", "203.0.113.", "2001:db8:9:"))]
    return [_comparable(line) for line in wanted]


def _comparable(line):
    """A route in one order of its next hops."""
    about = r" (proto|src|nhid) \S+| nh_info id \d+ (group \S+|via \S+ dev \S+)( scope \S+)?"
    route, *hops = re.split(r" nexthop ", " ".join(re.sub(about, "", line).split()))
    return " nexthop ".join([route, *sorted(hops)])


@pytest.mark.parametrize("script", ROUTES.values(), ids=ROUTES.keys())
def test_a_mirrored_route_has_all_that_the_original_has(one, script):
    one.sh(script)
    one.ensure(ALICE)
    originals = site_routes(one, "main")
    assert originals and site_routes(one, 100002001) == originals
    assert one.pending(ALICE) == [], "what was made is read back as it was planned"


def test_a_next_hop_object_of_which_the_kernel_tells_the_number_only(one):
    one.sh(f"sysctl -qw net.ipv4.nexthop_compat_mode=0; {ROUTES['a group of them']}; {ROUTES['IPv6: a next hop object']}")
    one.ensure(ALICE)
    assert one.pending(ALICE) == []
    routes = site_routes(one, 100002001)
    assert "nexthop via 10.10.0.1 dev wan0 weight 3 nexthop via 172.31.0.1 dev em1 weight 5 onlink" in routes[0]
    assert routes[1].startswith("unicast 2001:db8:9::/48 via 2001:db8:10::1 dev wan0")


def test_a_route_that_asks_other_tables_ends_in_the_user_s(one):
    one.sh("ip route add throw 203.0.113.0/24")
    one.ensure(ALICE)
    assert one.pending(ALICE) == [] and site_routes(one, 100002001)[0].startswith("unreachable 203.0.113.0/24")


def test_a_gateway_that_is_on_no_link_any_more_is_mirrored(one):
    one.sh("ip route add 172.31.0.0/24 dev wan0; ip route add default via 172.31.0.1; ip route del 172.31.0.0/24 dev wan0")
    one.ensure(ALICE)
    assert one.pending(ALICE) == [] and "via 172.31.0.1 dev wan0" in site_routes(one, 100002001)[0]


@pytest.fixture(scope="module")
def pair():
    """Two nodes with the networks of two users."""
    nodes = Node("uvn-a", 31), Node("uvn-b", 32)
    for node in nodes:
        node.prepare()
        for uid in (ALICE, BOB):
            node.ensure(uid)
    yield nodes
    for node in nodes:
        node.delete()


ADDRESSES = ["192.168.80.32", "192.168.40.32", "fd00:80::32", "fd00:40::32"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_user_reaches_the_own_listener_on_another_node_and_nobody_else_does(pair, address):
    a, b = pair
    anything = "::" if ":" in address else "0.0.0.0"
    with Listener(b, "vrf2001", anything, 8888):
        assert a.call(connect, "vrf2001", address, 8888).startswith("vrf2001 ")
        assert a.call(connect, "vrf2002", address, 8888) == "ConnectionRefusedError"
        assert a.call(connect, "", address, 8888) == "ConnectionRefusedError"


OWN = ["127.0.0.1", "127.0.0.53", "::1", "192.168.80.31", "10.10.0.31", "fd00:80::31", "100.64.7.209", "fd75:766e::7d1"]


@pytest.mark.parametrize("address", OWN)
def test_the_default_vrf_s_daemons_answer_users_and_users_only_themselves(pair, address):
    a, _b = pair
    anything = "::" if ":" in address else "0.0.0.0"
    with Listener(a, "", anything, 7007):
        assert a.call(connect, "vrf2001", address, 7007).startswith("default ")
    with Listener(a, "vrf2001", anything, 8888):
        assert a.call(connect, "vrf2001", address, 8888).startswith("vrf2001 ")
        assert a.call(connect, "vrf2002", address, 8888, 3) in ("ConnectionRefusedError", "TimeoutError", "OSError")


def test_the_default_vrf_of_another_node_answers(pair):
    a, b = pair
    with Listener(b, "", "0.0.0.0", 7007):
        assert a.call(connect, "vrf2001", "192.168.80.32", 7007) == "default 192.168.80.31"


FIREWALL = """
for command in iptables ip6tables; do
    $command -A INPUT -i lo -j ACCEPT
    $command -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    $command -P INPUT DROP
done
ip6tables -A INPUT -p ipv6-icmp -j ACCEPT
"""


@pytest.fixture
def firewalled(pair):
    """The first of the pair with a stateful firewall that drops what it does not know."""
    node = pair[0]
    node.sh(FIREWALL)
    yield node
    node.sh("for command in iptables ip6tables; do $command -P INPUT ACCEPT; $command -F INPUT; done")
    node.prepare()


@pytest.mark.parametrize(("here", "there"), [("192.168.80.31", "192.168.80.32"), ("fd00:80::31", "fd00:80::32")])
def test_a_stateful_firewall_lets_users_reach_themselves_and_what_answers_them(pair, firewalled, here, there):
    b = pair[1]
    anything, loopback, command = ("::", "::1", "ip6tables") if ":" in here else ("0.0.0.0", "127.0.0.1", "iptables")
    with Listener(firewalled, "vrf2001", anything, 8888), Listener(b, "vrf2001", anything, 8888), Listener(firewalled, "", anything, 7007):
        for address in (loopback, here, there):
            assert firewalled.call(connect, "vrf2001", address, 8888).startswith("vrf2001 ")
        firewalled.sh(f"ping -c 1 -W 5 -I vrf2001 {there}")
        assert [b.call(connect, "vrf2001", here, port, 3) for port in (8888, 7007)] == ["TimeoutError"] * 2, "new ones are the site's to decide"
        firewalled.sh(f"{command} -A INPUT -s {there} -p tcp --dport 8888 -j ACCEPT")
        assert b.call(connect, "vrf2001", here, 8888).startswith("vrf2001 ")
        assert b.call(connect, "vrf2001", here, 7007, 3) == "TimeoutError"


NFTABLES = """nft -f - <<'END'
table inet site {
    chain input {
        type filter hook input priority 0; policy drop;
        iif lo accept
        ct state established,related accept
        udp dport { 800, 801 } accept
        meta l4proto ipv6-icmp accept
    }
}
END
"""


def test_a_firewall_of_nftables_has_to_name_the_vrfs(pair):
    """As the role's preflight demands: what one chain accepts, another one may still drop."""
    a, b = pair
    a.sh(NFTABLES)
    try:
        with Listener(a, "vrf2001", "0.0.0.0", 8888), Listener(b, "vrf2001", "0.0.0.0", 8888):
            assert a.call(connect, "vrf2001", "127.0.0.1", 8888, 3) == "TimeoutError"
            a.sh("nft 'add rule inet site input iifname \"vrf*\" accept'")
            assert [a.call(connect, "vrf2001", address, 8888)[:7] for address in ("127.0.0.1", "192.168.80.32")] == ["vrf2001"] * 2
            assert b.call(connect, "vrf2001", "192.168.80.31", 8888).startswith("vrf2001 ")
    finally:
        a.sh("nft delete table inet site")


@pytest.fixture
def firewalld(pair):
    """The first of the pair with firewalld as it is installed."""
    node = pair[0]
    command = ["nsenter", f"--net=/run/netns/{node.name}", "firewalld", "--nofork", "--nopid"]
    with subprocess.Popen(command) as daemon:
        try:
            run("timeout", "60", "sh", "-c", "until firewall-cmd --state 2>/dev/null; do sleep 0.2; done")
            yield node
        finally:
            daemon.terminate()


def test_firewalld_has_to_trust_the_vrfs(pair, firewalld):
    """As the role's preflight demands; what is the guard's and the chains' it leaves alone."""
    b = pair[1]
    with Listener(firewalld, "vrf2001", "0.0.0.0", 8888), Listener(b, "vrf2001", "0.0.0.0", 8888):
        assert "vrf2001" not in firewalld.call(connect, "vrf2001", "127.0.0.1", 8888)
        run("firewall-cmd", "--zone=trusted", "--add-interface=vrf+")
        run("firewall-cmd", "--add-port=800-801/udp")
        assert [firewalld.call(connect, "vrf2001", address, 8888)[:7] for address in ("127.0.0.1", "192.168.80.32")] == ["vrf2001"] * 2
        assert b.call(connect, "vrf2001", "192.168.80.31", 8888).startswith("vrf2001 ")
    assert firewalld.prepare() == []


@pytest.fixture(scope="module")
def outside():
    """A host beyond the nodes' gateway that knows no way back to NAT addresses."""
    host = Node("uvn-x", 33, nics={"wan0": "lanwan"})
    host.sh("ip addr add 203.0.113.1/32 dev lo; ip -6 addr add 2001:db8:99::1/128 dev lo nodad")
    yield host
    host.delete()


@pytest.mark.parametrize(("address", "seen"), [("203.0.113.1", "10.10.0.31"), ("2001:db8:99::1", "2001:db8:10::31")])
def test_off_subnet_connections_leave_with_the_nic_s_address(pair, outside, address, seen):
    a, _b = pair
    a.sh("ip route replace default via 10.10.0.33; ip -6 route replace default via 2001:db8:10::33")
    a.ensure(ALICE)
    with Listener(outside, "", "::" if ":" in address else "0.0.0.0", 8080):
        assert a.call(connect, "vrf2001", address, 8080) == f"default {seen}"


def mac_of(node):
    """The MAC address of bob's VXLAN."""
    return node.sh("ip -o link show em1u2002 | grep -o 'link/ether [^ ]*' | cut -d' ' -f2").strip()


def poisoned(node):
    """Whether the sender of `inject` is in the neighbour table of bob's network; for the next time it no longer is."""
    node.sh("sleep 0.3")
    found = "02:00:00:00:00:66" in node.sh("ip neigh show dev em1u2002")
    node.sh("ip neigh flush dev em1u2002")
    return found


@pytest.fixture
def container(pair):
    """A network namespace behind the first of the pair, as containers and virtual machines are; whoever is root there sends from any port."""
    (a, b), name = pair, "uvn-box"
    run("ip", "netns", "add", name)
    b.sh("ip route replace default via 10.10.0.1")  # else rp_filter drops what has a source without a route
    a.sh(f"ip link add box0 type veth peer name eth0 netns {name}; ip addr add 10.99.0.1/24 dev box0; ip link set box0 up")
    a.sh(
        "sysctl -qw net.ipv4.ip_forward=1; nft 'add table ip box; add chain ip box post { type nat hook postrouting priority 100; }; "
        "add rule ip box post ip saddr 10.99.0.0/24 masquerade'"
    )
    run("ip", "-n", name, "addr", "add", "10.99.0.2/24", "dev", "eth0")
    run("ip", "-n", name, "link", "set", "eth0", "up")
    run("ip", "-n", name, "route", "add", "default", "via", "10.99.0.1")
    whole_again(pair)  # a router now, by the site's wish
    agent = Agent(name)
    yield agent
    agent.end()
    a.sh("ip link del box0; nft delete table ip box; sysctl -qw net.ipv4.ip_forward=0")
    b.sh("ip route del default")
    run("ip", "netns", "del", name)
    whole_again(pair)


def whole_again(nodes):
    for node in nodes:
        node.prepare()
        for uid in (ALICE, BOB):
            node.ensure(uid)


@pytest.mark.parametrize("target", ["192.168.80.32", "192.168.80.31"], ids=["another node's user", "a user of the node itself"])
def test_a_frame_from_a_container_reaches_no_user(pair, container, target):
    """NAT keeps the source port of what is forwarded, and what is for the node itself is not even translated."""
    victim = next(node for node in pair if target.endswith(str(node.number)))

    def attack():
        container.call(inject, "", target, 800, BOB, mac_of(victim), "192.168.87.66", target, 700)
        return poisoned(victim)

    assert not attack()
    pair[0].sh("nft delete table inet uvn")
    try:
        assert attack(), "a host without UVN lets it out, and the source port is one of the kernels'"
    finally:
        whole_again(pair)


def test_a_list_of_nodes_keeps_out_who_is_none(pair, container):
    """A host of the subnet without UVN that translates what its containers send."""
    a, b = pair
    site = b.site
    a.sh("nft delete table inet uvn")
    try:
        reached = {}
        for nodes in (["192.168.80.32"], ["192.168.80.31", "192.168.80.32"]):
            b.site = parse({"underlays": [{**SITE["underlays"][0], "nodes": nodes}, SITE["underlays"][1]]})
            assert [change.op for change in b.prepare()], "the set changes, and nothing else"
            assert b.prepare() == []
            container.call(inject, "", "192.168.80.32", 800, BOB, mac_of(b), "192.168.87.66", "192.168.80.32", 700)
            reached[len(nodes)] = poisoned(b)
        assert reached == {1: False, 2: True}
        with Listener(b, "vrf2001", "0.0.0.0", 8888):
            assert a.call(connect, "vrf2001", "192.168.80.32", 8888).startswith("vrf2001 "), "a node that is listed"
    finally:
        b.site = site
        whole_again(pair)


def put(device, address, port, count):
    """Send bytes over TCP; how many the other side says that it got, or the name of the error."""
    with socket.create_connection((address, port)) if not device else socket.socket() as connection:
        if device:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            connection.connect((address, port))
        connection.settimeout(10)
        try:
            connection.sendall(bytes(count))
            connection.shutdown(socket.SHUT_WR)
            return int(connection.recv(100))
        except OSError as error:
            return type(error).__name__


def take(port, ready, connections):
    """Tell as many callers how many bytes they sent."""
    with socket.create_server(("", port)) as listener:
        ready.set()
        for _number in range(connections):
            connection, _peer = listener.accept()
            with connection:
                got = 0
                while part := connection.recv(65536):
                    got += len(part)
                connection.sendall(str(got).encode())


def test_a_black_hole_that_the_site_closed_with_mtu_lock_is_closed_for_users(pair, outside):
    a, _b = pair
    a.sh("ip link set wan0 gso_max_segs 1; ip route replace default via 10.10.0.33 mtu lock 1300 advmss 1260")
    a.ensure(ALICE)
    outside.sh("nft 'add table inet hole; add chain inet hole input { type filter hook input priority -200; }; "
               "add rule inet hole input meta length > 1300 counter drop'")  # fmt: skip
    ready = FORK.Event()
    server = outside.call_later(take, 8081, ready, 2)
    try:
        assert ready.wait(10)
        assert [a.call(put, device, "203.0.113.1", 8081, 100000) for device in ("", "vrf2001")] == [100000, 100000]
        assert "packets 0 bytes 0" in outside.sh("nft list table inet hole")
    finally:
        server.kill()
        outside.sh("nft delete table inet hole")
        a.sh("ip route replace default via 10.10.0.33")


INJECTIONS = {"from a user's network to another node": "192.168.80.32", "to localhost": "127.0.0.1", "to the own address": "192.168.80.31"}


@pytest.mark.parametrize("outer", INJECTIONS.values(), ids=INJECTIONS.keys())
def test_a_hand_made_vxlan_frame_reaches_no_user(pair, outer):
    a, b = pair
    victim = b if outer == "192.168.80.32" else a
    mac = victim.sh("ip -o link show em1u2002 | grep -o 'link/ether [^ ]*' | cut -d' ' -f2").strip()

    def poisoned():
        """Whether the forged sender is in the neighbour table of bob's network."""
        return "02:00:00:00:00:66" in victim.sh("ip neigh show dev em1u2002")

    def attack():
        victim.sh("ip neigh flush dev em1u2002")
        target = "192.168.80.32" if victim is b else "192.168.80.31"
        a.call(inject, "vrf2001", outer, 800, BOB, mac, "192.168.87.66", target)
        victim.sh("sleep 0.3")
        return poisoned()

    a.sh("iptables -F; iptables -P INPUT ACCEPT")  # the site's firewall is not what it depends on
    assert not attack()
    for node in (a, b):
        node.sh("nft delete table inet uvn")
    try:
        assert attack(), "without the guard the attack is real"
    finally:
        for node in (a, b):
            node.prepare()
            node.ensure(ALICE)
            node.ensure(BOB)


def test_mptcp_is_off(one):
    assert one.sh("sysctl -n net.mptcp.enabled").strip() == "0"


def test_the_node_s_own_state_is_a_fixpoint(one):
    assert one.prepare() == []


def test_a_vrf_that_is_down_is_made_anew(one):
    one.ensure(ALICE)
    one.sh("ip link set vrf2001 down")
    one.ensure(ALICE)
    assert one.pending(ALICE) == []
    assert [obj.up for obj in one.observe(ALICE) if isinstance(obj, Vrf)] == [True]
