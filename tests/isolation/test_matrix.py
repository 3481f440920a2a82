# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The truth table of cases.py, measured over real ssh logins; one test for each row, column, protocol and family."""

from __future__ import annotations

import json

import cases
import pytest


def key(case: cases.Case) -> str:
    return f"{case.row}-{case.group}-{case.proto}{case.family}"


LISTEN = [case for user in cases.LISTENERS for node in cases.NODES for case, _spec in cases.listen_cases(user, node)]
KEYS = list(dict.fromkeys(key(case) for case in cases.table() + LISTEN))


@pytest.mark.parametrize("cell", KEYS)
def test_matrix(results, cell):
    measured = [result for result in results if key(result.case) == cell]
    assert measured, "nothing was measured"
    wrong = [str(result) for result in measured if not result.ok]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("node", cases.NODES)
def test_table_has_every_address_of_the_node(cluster, node):
    """An address that nobody probes is an address that nobody knows to be closed."""
    links = json.loads(cluster.session("root", node).check("ip", "-json", "-details", "address", "show"))
    global_addresses = {
        (link["ifname"], entry["local"])
        for link in links
        for entry in link["addr_info"]
        if entry["scope"] == "global" and link.get("linkinfo", {}).get("info_kind") not in ("vrf", "vxlan", "dummy")
    }
    table = {pair for family in (4, 6) for pair in cases.node_addresses(node, family).items()}
    assert global_addresses == table


@pytest.mark.parametrize("node", cases.NODES)
@pytest.mark.parametrize("user", cases.LISTENERS)
def test_names_resolve_through_libc(cluster, user, node):
    reply = cluster.session(user, node).call("getaddrinfo", name=cases.NAME)
    assert reply["addresses"] == sorted(cases.OFF_SUBNET.values()), reply.get("error")


def link_local(cluster, node: str, device: str) -> list:
    """The link-local addresses of a device, with their zone."""
    links = json.loads(cluster.session("root", node).check("ip", "-json", "-6", "address", "show", "dev", device))
    return [f"{entry['local']}%{device}" for link in links for entry in link["addr_info"] if entry["scope"] == "link"]


@pytest.mark.parametrize("user", ["bob", "exempted"])
@pytest.mark.parametrize("nic", cases.NICS)
def test_link_local_addresses_are_closed_to_others(cluster, listening, nic, user):
    """alice's port on c1's link-local addresses, which the table does not have: EINVAL for a device out of reach."""
    addresses = link_local(cluster, "c1", nic)
    assert addresses, f"{nic} has no link-local address: the lab changed, and this test with it"
    base = {"family": 6, "port": cases.WILDCARD["alice"], "timeout": 3}
    specs = [{**base, "address": where, "proto": proto} for where in addresses for proto in ("tcp", "udp")]
    results = cluster.session(user, "c1").probes(specs)
    assert {result["result"] for result in results} <= {"refused", "timeout", "unreachable", "einval"}, results


@pytest.mark.parametrize("device", ["vrf2001", "em1u2001", "ib0u2001"])
def test_users_devices_have_no_link_local_address(cluster, listening, device):
    """What others could name with a zone."""
    assert link_local(cluster, "c1", device) == []


def test_broadcast_stays_in_the_users_network(cluster, listening):
    """A datagram of alice to the subnet's broadcast address reaches her on every node, and nobody of bob's."""
    alice = cluster.session("alice", "login1")
    port = 17020
    for user in cases.MANAGED:
        for node in cases.NODES:
            spec = {"proto": "udp", "family": 4, "address": "0.0.0.0", "port": port}
            assert cluster.session(user, node).listen([spec]) == [{"result": "listening", "port": port}]
    code = (
        "import socket, time\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\n"
        f"for n in range(4): s.sendto(b'who', ('192.168.87.255', {port})); time.sleep(0.5)\n"
    )
    alice.check("python3", "-I", "-c", code)
    heard = {
        (user, node): cluster.session(user, node).call("heard", port=port)["heard"]
        for user in cases.MANAGED
        for node in cases.NODES
    }
    for user in cases.MANAGED:
        for node in cases.NODES:
            cluster.session(user, node).call("close", port=port)
    assert heard["alice", "c1"] and heard["alice", "c2"], f"the broadcast did not reach alice herself: {heard}"
    assert not any(heard["bob", node] for node in cases.NODES), heard
