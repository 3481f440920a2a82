# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sites as they are: large UIDs, bonds, VLANs, bridges, several addresses and MTUs, nodes with only some of the subnets."""

from __future__ import annotations

import socket

import pytest
from nodes import SITE, Listener, Node, connect
from uvn.objects import Vxlan

ALICE, BOB = 2001, 2002


pytestmark = pytest.mark.usefixtures("lans")


@pytest.fixture
def make_pair():
    """Two nodes of which a script makes what the test is about: `{n}` is the node's number, 81 or 82."""
    nodes = []

    def make(script="", site=None, nics=None, scripts=("", "")):
        for number, extra in zip((81, 82), scripts):
            node = Node(f"uvn-{number}", number, site=site, nics=nics)
            nodes.append(node)
            node.sh(f"{script}\n{extra}".replace("{n}", str(number)))
            node.prepare()
        return nodes

    yield make
    for node in nodes:
        node.delete()


def reaches(a, b, uid, address, port=8888):
    """Whether a user's listener on node b answers the user on node a, and nobody else there."""
    other = BOB if uid == ALICE else ALICE
    with Listener(b, f"vrf{uid}", "::" if ":" in address else "0.0.0.0", port):
        own = a.call(connect, f"vrf{uid}", address, port)
        return own.startswith(f"vrf{uid} ") and not a.call(connect, f"vrf{other}", address, port).startswith("vrf")


def network_of(a, b, *uids):
    for node in (a, b):
        for uid in uids:
            node.ensure(uid)
            assert node.pending(uid) == []


LARGE = {**SITE, "ranges": [{"first": 1000, "last": 99999, "index": 1000}, {"first": 1200000000, "last": 1200999999, "index": 1000000}]}


@pytest.mark.parametrize("uid", [70000, 1200001234])
def test_large_uids(make_pair, uid):
    a, b = make_pair(site=LARGE)
    network_of(a, b, uid, ALICE)
    for address in ("192.168.80.82", "fd00:40::82"):
        assert reaches(a, b, uid, address)
    assert a.index(f"vrf{uid}") and len(f"vrf{uid}") <= 15


# Each makes the device that has em1's addresses out of em1.
MOVE = "ip addr flush dev em1; ip addr add 192.168.80.{n}/21 dev DEV; ip link set DEV up; ip -6 addr add fd00:80::{n}/64 dev DEV nodad"
DEVICES = {
    "a bond": ("bond0", "ip link add bond0 type bond mode active-backup; ip link set em1 down; ip link set em1 master bond0; ip link set em1 up"),
    "a VLAN": ("em1.100", "ip link add link em1 name em1.100 type vlan id 100"),
    "a bridge": ("br0", "ip link add br0 type bridge mcast_snooping 0; ip link set em1 master br0"),
    "a long name": ("enp129s0f1np1", "ip link set em1 down; ip link set em1 name enp129s0f1np1; ip link set enp129s0f1np1 up"),
}


@pytest.mark.parametrize(("device", "script"), DEVICES.values(), ids=DEVICES.keys())
def test_the_underlay_nic_may_be(make_pair, device, script):
    move = MOVE.replace("DEV", device)
    if device == "enp129s0f1np1":
        move = "ip -6 addr add fd00:80::{n}/64 dev enp129s0f1np1 nodad"
    a, b = make_pair(f"{script}; {move}")
    network_of(a, b, ALICE, BOB)
    assert [obj.nic for obj in a.observe(ALICE) if isinstance(obj, Vxlan)][0] == device
    for address in ("192.168.80.82", "fd00:80::82"):
        assert reaches(a, b, ALICE, address)


def test_two_addresses_of_one_nic_in_two_underlays(make_pair):
    a, b = make_pair("ip addr add 192.168.40.{n}/21 dev em1; ip link del ib0")
    network_of(a, b, ALICE, BOB)
    vxlans = [obj for obj in a.observe(ALICE) if isinstance(obj, Vxlan)]
    assert [(obj.nic, obj.port) for obj in vxlans] == [("em1", 800), ("em1", 801)]
    for address in ("192.168.80.82", "192.168.40.82"):
        assert reaches(a, b, ALICE, address)


def test_two_addresses_of_one_nic_in_two_subnets_of_one_underlay(make_pair):
    site = {"underlays": [{"subnets": ["192.168.80.0/21", "192.168.40.0/21"], "port": 800}]}
    a, b = make_pair("ip addr add 192.168.40.{n}/21 dev em1; ip link del ib0", site=site)
    network_of(a, b, ALICE, BOB)
    for address in ("192.168.80.82", "192.168.40.82"):
        assert reaches(a, b, ALICE, address)


def test_one_subnet_on_two_nics_uses_the_first_and_both_addresses_answer(make_pair):
    a, b = make_pair("ip addr flush dev ib0; ip addr add 192.168.81.{n}/21 dev ib0")
    network_of(a, b, ALICE, BOB)
    assert [obj.nic for obj in a.observe(ALICE) if isinstance(obj, Vxlan)] == ["em1"]
    for address in ("192.168.80.82", "192.168.81.82"):
        assert reaches(a, b, ALICE, address)


def fits(device, target, size):
    """Whether a UDP datagram of `size` bytes with its headers leaves a user's network without being fragmented."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        sock.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
        try:
            return sock.sendto(bytes(size - 28), (target, 9)) > 0
        except OSError:
            return False


@pytest.mark.parametrize("mtu", [1500, 9000, 2044])
def test_the_largest_packet_passes_for_every_mtu(make_pair, mtu):
    a, b = make_pair()
    for node in (a, b):
        node.widen("em1", mtu)
    network_of(a, b, ALICE)
    vxlan = [obj for obj in a.observe(ALICE) if isinstance(obj, Vxlan)][0]
    assert vxlan.mtu == mtu - 50
    assert a.call(fits, "vrf2001", "192.168.80.82", vxlan.mtu) and not a.call(fits, "vrf2001", "192.168.80.82", vxlan.mtu + 1)
    assert a.sh(f"ping -c 1 -W 5 -M do -s {vxlan.mtu - 28} -I vrf2001 192.168.80.82 >/dev/null && echo passed").strip() == "passed"


def test_a_vxlan_too_narrow_for_ipv6_carries_ipv4(make_pair):
    a, b = make_pair()
    for node in (a, b):
        node.widen("em1", 1320)
    network_of(a, b, ALICE, BOB)
    assert reaches(a, b, ALICE, "192.168.80.82")
    with Listener(a, "vrf2001", "::", 8888):
        assert a.call(connect, "vrf2001", "fd00:80::81", 8888).startswith("vrf2001 "), "the node's own address answers all the same"


def test_a_site_without_ipv4(make_pair):
    site = {"underlays": [{"subnets": ["fd00:80::/64"], "port": 800}], "group": "ff05::1:1"}
    a, b = make_pair("for nic in em1 ib0 wan0; do ip -4 addr flush dev $nic; done", site=site)
    network_of(a, b, ALICE, BOB)
    assert reaches(a, b, ALICE, "fd00:80::82")
    with Listener(a, "vrf2001", "0.0.0.0", 8888):
        assert a.call(connect, "vrf2001", "127.0.0.1", 8888).startswith("vrf2001 ")


def test_nodes_with_only_one_of_the_subnets(make_pair):
    a, b = make_pair(scripts=("", "ip link del ib0"))
    network_of(a, b, ALICE, BOB)
    assert len([obj for obj in a.observe(ALICE) if isinstance(obj, Vxlan)]) == 2
    assert len([obj for obj in b.observe(ALICE) if isinstance(obj, Vxlan)]) == 1
    assert reaches(a, b, ALICE, "192.168.80.82")


def test_a_node_with_none_of_the_subnets_has_networks_for_localhost(make_pair):
    a, _b = make_pair(scripts=("ip link del em1; ip link del ib0", ""))
    a.ensure(ALICE)
    assert a.pending(ALICE) == [] and not [obj for obj in a.observe(ALICE) if isinstance(obj, Vxlan)]
    with Listener(a, "vrf2001", "0.0.0.0", 8888):
        assert a.call(connect, "vrf2001", "127.0.0.1", 8888).startswith("vrf2001 ")


def test_root_services_of_nodes_with_and_without_uvn_reach_each_other(make_pair):
    """A rollout in batches: one node has UVN, the other not yet."""
    a, _b = make_pair()
    plain = Node("uvn-p", 83)
    try:
        a.ensure(ALICE)
        for listener, caller, address in ((plain, a, "192.168.80.83"), (a, plain, "192.168.80.81")):
            with Listener(listener, "", "0.0.0.0", 7007):
                assert caller.call(connect, "", address, 7007).startswith("default ")
    finally:
        plain.delete()
