# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard on a real kernel: it is put back whatever the site's firewall does, and says what it saw (tests/escape attacks it)."""

from __future__ import annotations

import contextlib
import subprocess
import time

import pytest
from daemon import LOG, Host, configure, wait_for
from uvn import abstract, client
from uvn.reconcile import Reconciler

ALICE, BOB = 2001, 2002

# IP_PKTINFO: a datagram into the network of the user whose VRF is named, without having a socket there.
PKTINFO = """
import socket, struct, sys
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.bind(("127.0.0.1", 0))
own.settimeout(2)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.sendto(b"mine", own.getsockname())
print(own.recv(9).decode(), end=" ")
try:
    sock.sendmsg([b"yours"], [(0, 8, struct.pack("=I8x", socket.if_nametoindex(sys.argv[1])))], 0, ("127.0.0.1", 9))
    print("sent")
except PermissionError:
    print("refused")
"""

STRAY = """
import ctypes, socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 4711))
ctypes.CDLL(None).connect(sock.fileno(), bytes(16), 16)  # to AF_UNSPEC, which clears the bound device and leaves the port
print("stray", flush=True)
time.sleep(60)
"""

EAVESDROP = """
import ctypes, socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 4712))
if {unbind}:
    ctypes.CDLL(None).connect(sock.fileno(), bytes(16), 16)
print("listening", flush=True)
input()
sock.settimeout(5)
try:
    print(sock.recv(9).decode())
except TimeoutError:
    print("nothing")
"""
SPEAK = """
import socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _again in range(20):
    sock.sendto(b"secret", ("127.0.0.1", 4712))
    time.sleep(0.1)
"""
ABSTRACT = """
import socket, sys
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    sock = socket.socket(socket.AF_UNIX, kind)
    for address in (chr(0) + "uvn-test", "/tmp/uvn-test.sock"):
        try:
            sock.connect(address + str(int(kind)))
            print("connected", end=" ")
            sock = socket.socket(socket.AF_UNIX, kind)
        except PermissionError:
            print("refused", end=" ")
"""
LISTEN = """
import os, socket, time
os.umask(0)
held = []
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    for address in (chr(0) + "uvn-test", "/tmp/uvn-test.sock"):
        path = address + str(int(kind))
        if path[0] == "/" and os.path.exists(path):
            os.unlink(path)
        held.append(socket.socket(socket.AF_UNIX, kind))
        held[-1].bind(path)
        if kind == socket.SOCK_STREAM:
            held[-1].listen()
print("listening", flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def host(lans):
    """A node with uvnd, and networks of alice and bob."""
    LOG.unlink(missing_ok=True)
    node = Host("uvn-g", 73)
    node.start()
    client.request({"op": "ensure", "uids": [ALICE, BOB], "persistent": True})
    yield node
    node.delete()


def planned(host):
    """Whether the node is as planned, iptables included."""
    return host.call(_drift, host.site) == []


def _drift(site):
    with Reconciler(site) as reconciler:
        return [str(change) for change in reconciler.node(check=True)]


@contextlib.contextmanager
def audit(host):
    """A time of audit, at the end of which enforce is in force again."""
    configure({**host.configuration, "mode": "audit"})
    try:
        host.sh("/usr/sbin/uvn node apply")
        yield
    finally:
        configure(host.configuration)
        host.sh("/usr/sbin/uvn node apply")


def reaches_bob(host):
    """What alice sees who sends to herself and into bob's network."""
    return host.run_as(ALICE, "python3", "-IS", "-c", PKTINFO, "vrf2002", stdout=subprocess.PIPE).communicate()[0].strip()


def test_a_control_message_leads_nowhere_and_is_counted(host):
    assert planned(host)
    before = client.request({"op": "status"})["node"]["guard"]["foreign"]
    assert reaches_bob(host) == "mine refused"
    assert client.request({"op": "status"})["node"]["guard"]["foreign"] == before + 1


@pytest.mark.parametrize(("uid", "unbind", "heard"), [(BOB, False, "secret"), (ALICE, True, "nothing")])
def test_an_unbound_socket_hears_nobody(host, uid, unbind, heard):
    """bob talks to himself; a socket without a device, from a time of audit, would get what arrives in any VRF."""
    with audit(host) if unbind else contextlib.nullcontext():
        code = EAVESDROP.format(unbind=unbind)
        listener = host.run_as(uid, "python3", "-IS", "-c", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert listener.stdout.readline() == "listening\n"
    listener.stdin.write("\n")
    listener.stdin.flush()
    host.run_as(BOB, "python3", "-IS", "-c", SPEAK).wait()
    assert listener.communicate()[0].strip() == heard
    received = client.request({"op": "status"})["node"]["guard"]["received"]
    assert (received > 0) is unbind


def test_the_journal_names_the_program_behind_what_was_refused(host):
    """The kernel's log knows the UID only."""
    host.sh("nsenter --target 1 --net sysctl -qw net.netfilter.nf_log_all_netns=1")  # the initial namespace alone has it
    program = host.run_as(ALICE, "python3", "-IS", "-c", f"{PKTINFO}\nimport time; time.sleep(60)", "vrf2002")
    try:
        expected = f"guard foreign: alice uid={ALICE} program=python3 pid={program.pid} udp ["
        wait_for(lambda: expected in LOG.read_text() and "to [127.0.0.1]:9" in LOG.read_text(), "the journal says who it was")
    finally:
        program.kill()
        program.wait()


FLUSHES = {
    "nft flush ruleset": "nft flush ruleset",
    "iptables as a script that begins anew": "for t in nat filter; do for c in iptables ip6tables; do $c -t $t -F; $c -t $t -X; done; done",
    "a flushed set": "nft flush set inet uvn own",
    "a rule in front of ours": "nft insert rule inet uvn output accept",
    "a table that sleeps": "nft 'add table inet uvn { flags dormant; }'",
}


@pytest.mark.parametrize("script", FLUSHES.values(), ids=FLUSHES.keys())
def test_what_the_site_s_firewall_takes_away_comes_back(host, script):
    wait_for(lambda: planned(host), "as planned")
    host.sh(script)
    start = time.monotonic()
    wait_for(lambda: planned(host), f"as planned after {script}", seconds=30)
    print(f"{script}: put back {time.monotonic() - start:.1f} s later")
    assert reaches_bob(host) == "mine refused"
    assert "follow node: " in LOG.read_text()


def test_audit_drops_nothing_and_enforce_is_one_step_away(host):
    with audit(host):
        before = client.request({"op": "status"})["node"]["guard"]["foreign"]
        assert reaches_bob(host) == "mine sent"
        status = client.request({"op": "status"})["node"]
        assert status["mode"] == "audit" and status["guard"]["foreign"] == before + 1
    assert reaches_bob(host) == "mine refused"


def test_stray_sockets_are_named_with_their_programs(host):
    with audit(host):
        program = host.run_as(ALICE, "python3", "-IS", "-c", STRAY, stdout=subprocess.PIPE)
        assert program.stdout.readline() == "stray\n"
    try:
        wait_for(lambda: client.request({"op": "status"})["node"]["strays"], "the stray socket is seen")
        (stray,) = client.request({"op": "status"})["node"]["strays"]
        assert (stray["uid"], stray["pid"], stray["program"]) == (ALICE, program.pid, "python3")
        assert stray["protocol"] == "udp" and stray["port"] == 4711
    finally:
        program.kill()
        program.wait()


def test_users_are_kept_apart_on_abstract_unix_sockets(host):
    if not abstract.possible():
        pytest.skip("bpf is not among the active security modules of this kernel")
    listener = host.run_as(BOB, "python3", "-IS", "-c", LISTEN, stdout=subprocess.PIPE)
    try:
        assert listener.stdout.readline() == "listening\n"

        def connects(uid):
            return host.run_as(uid, "python3", "-IS", "-c", ABSTRACT, stdout=subprocess.PIPE).communicate()[0].split()

        assert connects(ALICE) == ["refused", "connected"] * 2
        assert connects(BOB) == connects(0) == ["connected"] * 4
        status = client.request({"op": "status"})["node"]["abstract"]
        assert status["attached"] and status["refused"] == 2
    finally:
        listener.kill()
        listener.wait()
