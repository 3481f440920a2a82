# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""System daemons that speak and listen on every device, as systemd-resolved does for LLMNR: users' networks neither hear nor poison them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess

import pytest
from daemon import LOG, Host, configure
from nodes import SITE, Node
from uvn import client

ALICE, DAEMON, EXEMPT = 2001, 101, 2009
DEVICE, VRF = "em1u2001", "vrf2001"
LLMNR, MDNS, OTHER = 5355, 5353, 4711
HERE, HERE6, THERE = "192.168.80.75", "fd00:80::75", "192.168.80.76"
ADDRESSES = ("224.0.0.252", "ff02::1:3", "192.168.87.255", "255.255.255.255")  # groups of LLMNR, and broadcasts

# A daemon that asks on a device, whether its socket is bound or not.
ASK = """
import json, socket, struct, sys
device, said = socket.if_nametoindex(sys.argv[1]), {}
for address in sys.argv[3:]:
    six = ":" in address
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    info = (41, 50, bytes(16) + struct.pack("=I", device)) if six else (0, 8, struct.pack("=I8x", device))  # IPV6_PKTINFO, IP_PKTINFO
    try:
        sock.sendmsg([address.encode()], [info], 0, (address, int(sys.argv[2])))
        said[address] = "sent"
    except OSError as error:
        said[address] = type(error).__name__
print(json.dumps(said))
"""

# Prints what comes in for a port, groups of LLMNR on a device included, up to the word "end".
HEAR = """
import select, socket, struct, sys
device, port = socket.if_nametoindex(sys.argv[1]), int(sys.argv[2])
four, six = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
six.setsockopt(41, 26, 1)  # IPV6_V6ONLY
for sock in four, six:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for bound in sys.argv[3:]:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bound.encode())
    sock.bind(("", port))
four.setsockopt(0, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.252") + bytes(4) + struct.pack("=I", device))
six.setsockopt(41, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, "ff02::1:3") + struct.pack("=I", device))
said = "listening"
while said != "end":
    print(said, flush=True)
    said = select.select([four, six], [], [])[0][0].recv(100).decode()
"""


@pytest.fixture(scope="module")
def host(lans):
    """A node with uvnd, and the network of alice."""
    LOG.unlink(missing_ok=True)
    node = Host("uvn-m", 75, site={**SITE, "exempt": {"uids": [f"{EXEMPT}-{EXEMPT}"]}})
    node.start()
    client.request({"op": "ensure", "uids": [ALICE], "persistent": True})
    yield node
    node.delete()


@pytest.fixture(scope="module")
def other(host):
    """Another node with the network of alice. Root binds her sockets there, and its guard marks nothing: BPF programs know no namespaces."""
    node = Node("uvn-n", 76)
    node.prepare()
    node.ensure(ALICE)
    node.sh("nft flush chain inet uvn heard")
    yield node
    node.delete()


@pytest.fixture
def audit(host):
    configure({**host.configuration, "mode": "audit"})
    host.sh("/usr/sbin/uvn node apply")
    yield
    configure(host.configuration)
    host.sh("/usr/sbin/uvn node apply")


def counted(cause):
    return client.request({"op": "status"})["node"]["guard"][cause]


def ask(host, uid, *addresses, device=DEVICE):
    """What becomes of a program's questions to everybody on a device."""
    return json.loads(host.run_as(uid, "python3", "-IS", "-c", ASK, device, str(LLMNR), *addresses, stdout=subprocess.PIPE).communicate()[0])


@contextlib.contextmanager
def listener(node, uid=0, device=DEVICE, port=LLMNR, bound=()):
    """A program of a user's, or of root's for a user on the other node, that listens to everybody on a device."""
    enter = ["nsenter", f"--net=/run/netns/{node.name}", "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    command = [*enter, "python3", "-IS", "-c", HEAR, device, str(port), *bound]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "listening\n"
            yield process
        finally:
            process.kill()


def heard(process, host, uid, address, port=LLMNR):
    """What a listener has got up to a word that a user of the first node sends behind all others."""
    code = f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'end', ('{address}', {port}))"
    host.run_as(uid, "python3", "-IS", "-c", code).wait()
    return sorted(process.stdout.read().split())


def speak(port, addresses):
    """Datagrams of alice's. Root binds the sockets, and the guard goes by who opened them."""
    for address in addresses:
        os.seteuid(ALICE)
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        os.seteuid(0)
        index = socket.if_nametoindex(DEVICE)
        with sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, VRF.encode())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=8xI", index))
                sock.setsockopt(socket.IPPROTO_IP, 50, struct.pack("!I", index))  # IP_UNICAST_IF
            scope = (0, index) if address.startswith("ff02:") else ()
            sock.sendto(address.encode(), (address, port, *scope))


@pytest.mark.parametrize("uid", [0, DAEMON, EXEMPT])
def test_users_hear_nothing_that_daemons_say_to_everybody(host, other, uid):
    before = counted("multicast")
    with listener(other, bound=[VRF]) as alice:
        ask(host, uid, *ADDRESSES)  # of some the sender is told, others go without a word (vrf_ip_out_direct)
        assert heard(alice, host, ALICE, THERE) == []
    assert counted("multicast") == before + len(ADDRESSES)


def test_what_daemons_say_to_one_user_or_on_the_site_s_nics_arrives(host, other):
    with listener(other, bound=[VRF]) as alice:
        assert ask(host, 0, THERE) == {THERE: "sent"}
        assert heard(alice, host, ALICE, THERE) == [THERE]
    with listener(other, device="em1") as root:
        assert ask(host, 0, *ADDRESSES, device="em1") == dict.fromkeys(ADDRESSES, "sent")
        assert heard(root, host, 0, THERE) == sorted(ADDRESSES)


@pytest.mark.parametrize("port", [LLMNR, MDNS, OTHER])
def test_daemons_hear_nothing_that_users_say_to_everybody_nor_name_services_what_they_say_to_them(host, other, port):
    """An answer to a question that nobody asked would be kept (RFC 6762, section 10)."""
    said, before = (*ADDRESSES, HERE, HERE6), counted("heard")
    through = [HERE, HERE6] if port == OTHER else []
    with listener(host, port=port) as root:
        other.call(speak, port, said)
        assert heard(root, host, 0, HERE, port) == through
    assert counted("heard") == before + len(said) - len(through)


def test_the_user_s_own_programs_hear_it(host, other):
    with listener(host, ALICE) as alice:
        other.call(speak, LLMNR, (*ADDRESSES, HERE, HERE6))
        assert heard(alice, host, ALICE, HERE) == sorted([*ADDRESSES, HERE, HERE6])


def test_audit_counts_and_lets_all_of_it_pass(host, other, audit):
    """Which also shows that there is something to hear."""
    sent, got = counted("multicast"), counted("heard")
    with listener(other, bound=[VRF]) as alice:
        assert ask(host, 0, *ADDRESSES) == dict.fromkeys(ADDRESSES, "sent")
        assert heard(alice, host, ALICE, THERE) == sorted(ADDRESSES)
    with listener(host) as root:
        other.call(speak, LLMNR, (*ADDRESSES, HERE, HERE6))
        assert heard(root, host, 0, HERE) == sorted([*ADDRESSES, HERE, HERE6])
    # The broadcast of the subnet passes the guard twice, on its way out of the VRF and out of the VXLAN.
    assert (counted("multicast"), counted("heard")) == (sent + len(ADDRESSES) + 1, got + len(ADDRESSES) + 2)
