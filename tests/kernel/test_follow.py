# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uvnd on a real kernel: users' networks follow the node, and go with their users."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time

import pytest
from daemon import LOG, configure, told_of, wait_for
from uvn import client, store
from uvn.membership import Membership

ALICE, BOB, CAROL = 2001, 2002, 2003
pytestmark = pytest.mark.usefixtures("nobody")


# -- following the node ----------------------------------------------------------------------------------------------


def follows(host, script, *uids):
    """Change the node; the seconds until all users' networks are as the plan then wants them."""
    plans = [host.observe(uid) for uid in uids]
    host.sh(script)
    seconds = wait_for(lambda: all(host.observe(uid) != plan for uid, plan in zip(uids, plans)), f"after {script}: something changed")
    seconds += wait_for(lambda: all(host.whole(uid) for uid in uids), f"after {script}: all as planned")
    print(f"{script}: {seconds:.1f} s")
    return seconds


NODE_CHANGES = {
    "a NIC goes down and comes up": ("ip link set ib0 down", "ip link set ib0 up; ip -6 addr add fd00:40::71/64 dev ib0 nodad"),
    "an address changes": (
        "ip addr add 192.168.40.171/21 dev ib0; ip addr del 192.168.40.71/21 dev ib0; ip addr replace 192.168.40.171/21 dev ib0",
        "ip addr del 192.168.40.171/21 dev ib0; ip addr add 192.168.40.71/21 dev ib0",
    ),
    "an address goes": ("ip addr del 192.168.40.71/21 dev ib0", "ip addr add 192.168.40.71/21 dev ib0"),
    "a NIC is renamed": (
        "ip link set ib0 down; ip link set ib0 name ib9; ip link set ib9 up; ip -6 addr add fd00:40::71/64 dev ib9 nodad",
        "ip link set ib9 down; ip link set ib9 name ib0; ip link set ib0 up; ip -6 addr add fd00:40::71/64 dev ib0 nodad",
    ),
    "a new default gateway": ("ip route replace default via 10.10.0.2", "ip route replace default via 10.10.0.1"),
    "another MTU": ("ip link set ib0 mtu 1400", "ip link set ib0 mtu 1500"),
}


@pytest.mark.parametrize("scripts", NODE_CHANGES.values(), ids=NODE_CHANGES.keys())
def test_all_networks_follow_the_node(host, scripts):
    host.logged_in("alice")
    host.logged_in("bob")
    untouched = host.sh("ip -o link show vrf2001; ip -o link show em1u2001")
    for script in scripts:
        follows(host, script, ALICE, BOB)
    assert host.sh("ip -o link show vrf2001; ip -o link show em1u2001") == untouched


def test_a_nic_that_is_replaced_and_one_that_comes_after_the_login(host):
    host.logged_in("alice")
    host.sh("ip link del ib0")
    wait_for(lambda: host.whole(ALICE) and not host.index("ib0u2001"), "ib0 and its VXLAN are gone")
    subprocess.run(["ip", "link", "add", "v71p1", "type", "veth", "peer", "name", "ib0", "netns", host.name], check=True)
    subprocess.run(["ip", "link", "set", "v71p1", "master", "lan40", "up"], check=True)
    follows(host, "ip link set ib0 up; ip addr add 192.168.40.71/21 dev ib0; ip -6 addr add fd00:40::71/64 dev ib0 nodad", ALICE)
    assert host.index("ib0u2001")


FORWARDING = {
    "of one NIC": "sysctl -qw net.ipv4.conf.em1.forwarding={}",
    "of IPv4": "sysctl -qw net.ipv4.ip_forward={}",
    "of IPv6": "sysctl -qw net.ipv6.conf.all.forwarding={}",
    "rp_filter, which is set with it": "sysctl -qw net.ipv4.conf.all.rp_filter={}",
}


@pytest.mark.parametrize("script", FORWARDING.values(), ids=FORWARDING.keys())
def test_the_kernel_tells_of_forwarding_and_rp_filter(host, script):
    host.stop()
    for value in (1, 0):
        host.sh(script.format(1 - value))
        assert host.call(told_of, script.format(value), "em1").node
    assert not host.call(told_of, "ip link add other type veth peer name another; ip link del other", "em1").node, "of other devices it need not"
    host.start()


@pytest.mark.parametrize("what", ["of one NIC", "of IPv4", "of IPv6"])
def test_forwarding_that_somebody_switches_off_is_switched_on_again(host, what):
    script = FORWARDING[what]
    host.sh(script.format(1))
    wait_for(lambda: client.request({"op": "status"})["node"]["drift"] == [], "as planned")
    before = len(LOG.read_text())
    host.sh(script.format(0))
    wait_for(lambda: "replace sysctl" in LOG.read_text()[before:], "uvnd has put it back", seconds=30)
    wait_for(lambda: client.request({"op": "status"})["node"]["drift"] == [], "as planned")


ECHO = """
import socket, sys
listener = socket.create_server(("192.168.80.71", 8888)); print("ready", flush=True)
connection = listener.accept()[0]
while data := connection.recv(100): connection.sendall(data)
"""
TALK = """
import socket, sys
connection = socket.create_connection(("192.168.80.71", 8888)); print("ready", flush=True)
for line in sys.stdin: connection.sendall(b"x"); connection.settimeout(20); print(connection.recv(1).decode(), flush=True)
"""


def test_open_connections_survive_a_change_elsewhere(host):
    host.logged_in("alice")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    echo = host.run_as(ALICE, "python3", "-IS", "-c", ECHO, **pipes)
    assert echo.stdout.readline() == "ready\n"
    talk = host.run_as(ALICE, "python3", "-IS", "-c", TALK, **pipes)
    assert talk.stdout.readline() == "ready\n"
    for script in NODE_CHANGES["a NIC goes down and comes up"] + NODE_CHANGES["a new default gateway"]:
        follows(host, script, ALICE)
        talk.stdin.write("\n")
        talk.stdin.flush()
        assert talk.stdout.readline() == "x\n"
    talk.kill()
    echo.kill()
    talk.communicate()
    echo.communicate()


# -- leaving ---------------------------------------------------------------------------------------------------------


def test_a_network_that_was_removed_stays_removed_although_its_user_is_here(host):
    host.logged_in("alice")
    host.logged_in("bob")
    with host.run_as(ALICE, "sleep", "100"):
        client.request({"op": "remove", "user": "alice"})
        for gateway in ("10.10.0.3", "10.10.0.1"):
            follows(host, f"ip route replace default via {gateway}", BOB)
            assert host.absent(ALICE) and host.bound_to(ALICE) == "PermissionError"


# -- ifindex and UID reuse -------------------------------------------------------------------------------------------


def test_the_network_of_a_user_who_has_left_goes(host):
    configure({**host.configuration, "idle": 2})
    with host.run_as(ALICE, "sleep", "1000"):
        host.logged_in("alice")
        host.logged_in("bob")
        wait_for(lambda: host.absent(BOB), "bob, who never had a process, is gone")
        time.sleep(8)
        assert host.whole(ALICE) and store.vouched() == {"alice": ALICE}
    wait_for(lambda: host.absent(ALICE), "alice's network is gone")
    with host.run_as(ALICE, "sleep", "1000"):
        host.logged_in("alice")
        assert host.whole(ALICE)


def test_who_logs_in_while_the_network_is_about_to_go_keeps_it(host):
    configure({**host.configuration, "idle": 8})
    host.logged_in("alice")
    wait_for(lambda: not store.vouched(), "logins ask again")
    assert host.whole(ALICE), "the network is still there"
    host.logged_in("alice")
    with host.run_as(ALICE, "sleep", "1000"):
        time.sleep(20)
        assert host.whole(ALICE)


def test_a_persistent_network_stays_and_survives_a_restart_of_the_node(host):
    configure({**host.configuration, "idle": 1})
    client.request({"op": "ensure", "user": "carol", "persistent": True})
    time.sleep(6)
    assert host.whole(CAROL)
    host.stop(signal.SIGKILL)
    host.sh("ip link del group 0x550007d3")
    Membership().delete(CAROL)
    shutil.rmtree(store.READY)
    host.start()
    wait_for(lambda: host.whole(CAROL), "carol's network is made anew")


def test_idle_0_keeps_networks(host):
    configure({**host.configuration, "idle": 0})
    host.logged_in("alice")
    time.sleep(5)
    assert host.whole(ALICE)
