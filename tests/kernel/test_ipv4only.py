# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uvnd on a node whose IPv6 is switched off, from the beginning or while users are there, and on one without ip6tables."""

from __future__ import annotations

import contextlib
import pathlib

import pytest
from daemon import wait_for
from nodes import Listener, connect
from uvn import client

ALICE, BOB, CAROL = 2001, 2002, 2003
NAT6 = {ALICE: "fd75:766e::7d1", BOB: "fd75:766e::7d2", CAROL: "fd75:766e::7d3"}
NICS = "for nic in em1:80 ib0:40; do ip -6 addr add fd00:${nic#*:}::71/64 dev ${nic%:*} nodad; done; ip -6 addr add 2001:db8:10::71/64 dev wan0 nodad"
pytestmark = pytest.mark.usefixtures("nobody")


@contextlib.contextmanager
def without_ipv6(host, *names):
    """The sysctl disable_ipv6 of some names is 1, as `sysctl --system` sets it; addresses of NICs have to be put back by hand."""
    host.sh(f"sysctl -qw {' '.join(f'net.ipv6.conf.{name}.disable_ipv6=1' for name in names)}")
    try:
        yield
    finally:
        host.sh(f"sysctl -qw {' '.join(f'net.ipv6.conf.{name}.disable_ipv6=0' for name in names)}")
        if "all" in names:
            host.sh(f"{NICS}; ip -6 route replace default via 2001:db8:10::1")


def node_state():
    return client.request({"op": "status"})["node"]


def addresses(host, uid):
    return host.sh(f"ip -o addr show vrf{uid}; ip -o addr show em1u{uid}")


def has_ipv6(host, uid):
    """Whether all of a user's network is there, IPv6 included."""
    there = addresses(host, uid)
    return NAT6[uid] in there and "fd00:80::71" in there and host.whole(uid)


def works_over_ipv4(host, uid):
    """Whether a user's program reaches the own listener, nothing leads it away over IPv6, and the network is as planned."""
    closed = "\nunreachable default" in "\n" + host.sh(f"ip -6 route show table {100000000 + uid}")
    with Listener(host, f"vrf{uid}", "0.0.0.0", 8888):
        answers = [host.call(connect, f"vrf{uid}", address, 8888) for address in ("127.0.0.1", "192.168.80.71")]
    return closed and [answer.split()[0] for answer in answers] == [f"vrf{uid}"] * 2 and "inet6" not in addresses(host, uid) and host.whole(uid)


def test_ipv6_goes_and_comes_back_while_users_are_here(host):
    host.logged_in("alice")
    device = host.index("vrf2001")
    with without_ipv6(host, "all"):
        host.logged_in("bob")
        wait_for(lambda: works_over_ipv4(host, ALICE) and works_over_ipv4(host, BOB), "both are there with IPv4 alone")
        wait_for(lambda: node_state()["drift"] == [], "the node is as planned")
        assert node_state()["ipv6"] == {"enabled": False, "ip6tables": True}
        assert host.sh("/usr/sbin/uvn status | grep ^ipv6").split()[1] == "off"
    wait_for(lambda: has_ipv6(host, ALICE) and has_ipv6(host, BOB), "both have IPv6")
    assert "fe80::" not in addresses(host, BOB), "a VXLAN made meanwhile did not get a link-local address"
    assert host.index("vrf2001") == device
    wait_for(lambda: node_state()["drift"] == [], "the node is as planned")
    assert node_state()["ipv6"]["enabled"]


def test_a_node_that_begins_without_ipv6_has_it_when_it_comes(host):
    host.stop()
    host.sh("/usr/sbin/uvn node remove")
    with without_ipv6(host, "all"):
        host.sh("/usr/sbin/uvn node apply")
        host.start()
        host.logged_in("alice")
        assert works_over_ipv4(host, ALICE) and node_state()["drift"] == []
    wait_for(lambda: has_ipv6(host, ALICE), "alice has IPv6")
    wait_for(lambda: host.sh("sysctl -n net.ipv6.conf.all.forwarding").strip() == "1", "the node forwards replies")


def test_new_devices_without_ipv6_keep_nobody_from_logging_in(host):
    """`default` alone: the kernel tells nobody, and what has IPv6 keeps it."""
    host.logged_in("alice")
    device = host.index("vrf2001")
    with without_ipv6(host, "default"):
        host.logged_in("bob")
        wait_for(lambda: works_over_ipv4(host, ALICE) and works_over_ipv4(host, BOB), "both are there with IPv4 alone")
        assert not node_state()["ipv6"]["enabled"] and host.index("vrf2001") == device
    host.logged_in("carol")
    wait_for(lambda: all(has_ipv6(host, uid) for uid in NAT6), "all have IPv6, bob on devices made anew")
    assert host.index("vrf2001") == device


def test_logins_do_not_need_ip6tables(host):
    program = pathlib.Path("/usr/sbin/ip6tables-save")
    away = program.rename("/usr/sbin/ip6tables-save.away")
    try:
        host.stop()
        host.sh("/usr/sbin/uvn node remove; /usr/sbin/uvn node apply")
        host.start()
        host.logged_in("alice")
        assert has_ipv6(host, ALICE) and node_state()["drift"] == []
        assert "there is no ip6tables" in host.sh("/usr/sbin/uvn status | grep ^ipv6")
    finally:
        away.rename(program)
    host.sh("/usr/sbin/uvn node apply")
    assert "UVN-POSTROUTING" in host.sh("ip6tables-save") and node_state()["ipv6"] == {"enabled": True, "ip6tables": True}
