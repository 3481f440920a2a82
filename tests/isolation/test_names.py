# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nobody's look-ups are asked in a user's network: systemd-resolved as the distribution ships it speaks LLMNR on every device."""

from __future__ import annotations

import subprocess
import time

import cases
import pytest
from sessions import ssh

HERE, THERE, DEVICE = "login1", "c1", "em1u2001"
GROUP, PORT = "224.0.0.252", 5355

# An LLMNR responder (RFC 4795) of an ordinary user, who says that every name is 6.6.6.6. Prints the questions, up to the name "end".
RESPONDER = f"""
import socket, struct
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(("", {PORT}))
where = socket.inet_aton("{GROUP}") + bytes(4) + struct.pack("=I", socket.if_nametoindex("{DEVICE}"))
sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, where)
name = "listening"
while name != "end":
    print(name, flush=True)
    packet, asker = sock.recvfrom(512)
    name = packet[13 : 13 + packet[12]].decode()
    end = 12 + packet[12] + 2
    answer = packet[12:end] + struct.pack("!HHIH", 1, 1, 30, 4) + socket.inet_aton("6.6.6.6")
    sock.sendto(packet[:2] + struct.pack("!HHHHH", 0x8000, 1, 1, 0, 0) + packet[12 : end + 4] + answer, asker)
"""

# The question of a user for a name, to the user's own network.
QUESTION = f"""
import socket, struct, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=8xI", socket.if_nametoindex("{DEVICE}")))
name = sys.argv[1].encode()
question = struct.pack("!HHHHHH", 7, 0, 1, 0, 0, 0) + bytes([len(name)]) + name + bytes(1) + struct.pack("!HH", 1, 1)
sock.sendto(question, ("{GROUP}", {PORT}))
sock.settimeout(20)
print(socket.inet_ntoa(sock.recv(512)[-4:]))
"""
LOOK_UP = """
import socket, sys
try:
    print(socket.getaddrinfo(sys.argv[1], 80))
except socket.gaierror as error:
    print(error.errno == socket.EAI_NONAME)
"""


@pytest.fixture
def responder(cluster):
    """alice's, on another node than those who ask; she has a network on both."""
    cluster.open([("alice", HERE), ("alice", THERE)])
    command = ssh("alice", THERE, "python3", "-I", "-c", RESPONDER)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "listening\n"
            yield process
        finally:
            process.kill()


def llmnr(root) -> dict[str, str]:
    """For each device, whether resolved speaks LLMNR there."""
    lines = [line.split() for line in root.check("resolvectl", "llmnr").splitlines() if line.startswith("Link")]
    return {words[2].strip("():"): words[3] for words in lines}


def silenced(root, device: str) -> bool:
    """Wait until resolved is told of a device; whether it was."""
    end = time.monotonic() + 60
    while time.monotonic() < end and llmnr(root)[device] != "no":
        time.sleep(0.5)
    return llmnr(root)[device] == "no"


@pytest.mark.parametrize("told", [True, False], ids=["as it is told", "against what it is told"])
def test_no_look_up_of_others_reaches_a_users_responder(cluster, responder, told):
    root, alice = cluster.session("root", HERE), cluster.session("alice", HERE)
    assert silenced(root, DEVICE)
    if not told:
        root.check("resolvectl", "llmnr", DEVICE, "yes")
    try:
        root.check("resolvectl", "flush-caches")
        for user, session in ((user, cluster.session(user, HERE)) for user in ("root", "bob", "exempted")):
            said = session.check("python3", "-I", "-c", LOOK_UP, f"unknown-{user}")
            assert "6.6.6.6" not in said
            assert said == "True\n" or not told, "the name is unknown, and no error besides"
        assert alice.check("python3", "-I", "-c", QUESTION, "mine") == "6.6.6.6\n", "her own question arrives"
        alice.check("python3", "-I", "-c", QUESTION.split("sock.settimeout")[0], "end")
        assert responder.stdout.read().split() == ["mine"]
    finally:
        root.check("resolvectl", "llmnr", DEVICE, "no")


def test_the_site_s_own_nics_are_as_the_distribution_has_them(cluster):
    found = llmnr(cluster.session("root", HERE))
    assert {found[nic] for nic in cases.NICS} == {"yes"}
