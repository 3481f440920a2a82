# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard on a real kernel: it is put back whatever the site's firewall does, and says what it saw (tests/escape attacks it)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import time

import pytest
from daemon import LOG, Host, configure, wait_for
from nodes import Node
from uvn import client, lsm
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


# -- past the network ------------------------------------------------------------------------------------------------

PORT, GROUP4, GROUP6 = 7099, "239.9.9.9", "ff05::99"
NAT4, NAT6 = "100.64.7.209", "fd75:766e::7d1"
SIDEWAYS = {  # from alice's NAT address to who is on em1; IPv4's control message does it from a socket in her network too
    "a host": (NAT4, "192.168.80.75"),
    "all hosts": (NAT4, "192.168.87.255"),
    "a group": (NAT4, GROUP4),
    "a host, IPv6": (NAT6, "fd00:80::75"),
    "a group, IPv6": (NAT6, GROUP6),
}
DATAGRAM = """
import socket, struct, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
sock = socket.socket(family, socket.SOCK_DGRAM)
try:
    if sys.argv[2:]:
        about = struct.pack("=I4s4x", socket.if_nametoindex("em1"), socket.inet_aton(sys.argv[2]))
        sock.sendmsg([b"sideways"], [(0, 8, about)], 0, (sys.argv[1], 7099))
    else:
        sock.sendto(b"straight", (sys.argv[1], 7099))
    print("sent")
except PermissionError:
    print("refused")
"""


@pytest.fixture(scope="module")
def peer(host):
    """Another host on all networks of the node, without UVN."""
    node = Node("uvn-gp", 75)
    node.call(listen)
    yield node
    node.delete()


@pytest.fixture(scope="module")
def licence(host):
    """The host that the site lists as `direct`."""
    node = Node("uvn-gl", 5, nics={"em1": "lan80"})
    node.call(listen)
    yield node
    node.delete()


@contextlib.contextmanager
def unguarded(host):
    """For the length of a `with` there is no guard, and no uvnd to put it back."""
    host.stop()
    host.sh("nft delete table inet uvn")
    try:
        yield
    finally:
        host.sh("/usr/sbin/uvn node apply")
        host.start()


def test_users_packets_over_a_nic_go_to_no_subnet_that_is_the_overlay_s(host, peer):
    """Nobody speaks with the node's own address there, which NAT would give the packets."""

    def attacks():
        said = {name: host.call_apart(sideways, ALICE, *ends) for name, ends in SIDEWAYS.items()}
        said["a host, by IP_PKTINFO"] = datagram(host, ALICE, "192.168.80.75", NAT4)
        return said, peer.call(heard, len(said))

    with unguarded(host):
        said, sources = attacks()
        assert set(said.values()) == {"sent"} and len(sources) == len(said), f"without the guard the attacks are real: {said}, {sources}"
        assert set(sources) == {"192.168.80.73", "fd00:80::73"}
    before = client.request({"op": "status"})["node"]["guard"]["stray"]
    said, sources = attacks()
    assert set(said.values()) == {"refused"} and sources == [], said
    assert client.request({"op": "status"})["node"]["guard"]["stray"] == before + len(said)


@pytest.mark.parametrize("address, source", [("10.10.0.75", "10.10.0.73"), ("2001:db8:10::75", "2001:db8:10::73")])
def test_nat_to_the_outside_goes_on(host, peer, address, source):
    assert datagram(host, ALICE, address) == "sent"
    assert peer.call(heard, 1) == [source]


def test_a_direct_host_hears_users_by_nat(host, licence):
    assert datagram(host, ALICE, "192.168.80.5") == "sent"
    assert licence.call(heard, 1) == ["192.168.80.73"]


def test_root_speaks_over_nics_as_ever(host, peer):
    assert [host.call(sideways, 0, "192.168.80.73", target) for target in ("192.168.80.75", GROUP4)] == ["sent"] * 2
    assert peer.call(heard, 2) == ["192.168.80.73"] * 2


BEGIN = """
import socket, sys
address, count, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
held, sent, refused = [], 0, 0
for number in range(count):
    if kind == "sockets" or not held:
        held.append(socket.socket(family, socket.SOCK_DGRAM))
    try:
        held[-1].sendto(b"begin", (address, 9 if kind == "sockets" else 10000 + number))
        sent += 1
    except PermissionError:
        refused += 1
for sock in held if kind == "sockets" else []:
    try:
        sock.sendto(b"go on", (address, 9))
        sent += 1
    except PermissionError:
        pass
print(sent, refused)
"""


@contextlib.contextmanager
def tracking(host, maximum):
    """The node's connection tracking with room for so many, empty before and after."""

    def sysctl(*arguments):
        done = subprocess.run(["nsenter", "--target", "1", "--net", "sysctl", *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def empty():
        wait_for(lambda: int(host.sh("sysctl -n net.netfilter.nf_conntrack_count")) < 20, "old connections are forgotten", seconds=120)

    before = sysctl("-n", "net.netfilter.nf_conntrack_max")
    host.sh("sysctl -qw net.netfilter.nf_conntrack_udp_timeout=15 net.netfilter.nf_conntrack_udp_timeout_stream=15")
    empty()
    sysctl("-qw", f"net.netfilter.nf_conntrack_max={maximum}")
    try:
        yield
    finally:
        sysctl("-qw", f"net.netfilter.nf_conntrack_max={before}")
        empty()


def test_one_user_leaves_room_for_others_in_connection_tracking(host, peer):
    with unguarded(host), tracking(host, 300):
        begin(host, ALICE, "10.10.0.75", 400)
        assert begin(host, BOB, "10.10.0.75", 20)[1] and begin(host, 0, "10.10.0.75", 20)[1], "without the guard the attack is real"
    configure({**host.configuration, "flows": 100})
    try:
        host.sh("/usr/sbin/uvn node apply")
        with tracking(host, 300):
            before = client.request({"op": "status"})["node"]["guard"]["crowded"]
            assert begin(host, ALICE, "10.10.0.75", 400) == [200, 300], "a hundred, which go on"
            assert begin(host, BOB, "10.10.0.75", 20) == begin(host, 0, "10.10.0.75", 20) == [40, 0]
            assert begin(host, ALICE, "10.10.0.75", 5)[1] == 5, "none is free yet"
            assert client.request({"op": "status"})["node"]["guard"]["crowded"] == before + 610, "and what did not begin does not go on"
        with tracking(host, 1000):
            assert begin(host, ALICE, "2001:db8:10::75", 150) == [200, 50]
            assert begin(host, ALICE, "10.10.0.75", 50) == [100, 0], "IPv4 has a bound of its own"
    finally:
        configure(host.configuration)
        host.sh("/usr/sbin/uvn node apply")


def test_one_user_begins_so_many_connections_a_second(host, peer):
    """What is closed is counted no longer, but the kernel keeps it for a while."""
    configure({**host.configuration, "flows": 1000000})
    try:
        host.sh("/usr/sbin/uvn node apply")
        with tracking(host, 100000):
            before = client.request({"op": "status"})["node"]["guard"]["crowded"]
            sent, refused = begin(host, ALICE, "10.10.0.75", 20000, "ports")
            assert sent >= 500 and refused, f"sent {sent}, refused {refused}"
            assert client.request({"op": "status"})["node"]["guard"]["crowded"] == before + refused
    finally:
        configure(host.configuration)
        host.sh("/usr/sbin/uvn node apply")


CONNECT = """
import socket, sys
device, port, protocol = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
if device:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
sock.settimeout(5)
try:
    sock.connect(("127.0.0.1", port))
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""
ACCEPT = """
import socket, sys, time
listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, int(sys.argv[2]))
listener.bind(("0.0.0.0", int(sys.argv[1])))
listener.listen()
print("listens", flush=True)
while True:
    listener.accept()
"""
NOBODY = 65534  # an exempt account of every site


@pytest.mark.parametrize("protocol", [socket.IPPROTO_TCP, socket.IPPROTO_SCTP], ids=["TCP", "SCTP"])
def test_an_exempt_account_answers_users_and_begins_nothing(host, protocol):
    with listening(host, ALICE, 7201, protocol), listening(host, NOBODY, 7202, protocol):
        assert connects(host, NOBODY, "vrf2001", 7201, protocol) == "TimeoutError"
        assert connects(host, ALICE, "", 7201, protocol) == "connected"
        if protocol == socket.IPPROTO_TCP:  # Linux's SCTP answers nobody out of the default VRF, with the guard or without
            assert connects(host, ALICE, "", 7202, protocol) == "connected"
        with unguarded(host):
            assert connects(host, NOBODY, "vrf2001", 7201, protocol) == "connected", "without the guard the attack is real"


def test_one_user_s_attempts_do_not_hide_another_s_from_the_journal(host):
    host.sh("nsenter --target 1 --net sysctl -qw net.netfilter.nf_log_all_netns=1")
    alice = [host.run_as(ALICE, "python3", "-IS", "-c", PKTINFO, "vrf2002", stdout=subprocess.PIPE) for _again in range(20)]
    assert {program.communicate()[0].strip() for program in alice} == {"mine refused"}
    position = len(LOG.read_text())
    bob = host.run_as(BOB, "python3", "-IS", "-c", PKTINFO, "vrf2001", stdout=subprocess.PIPE)
    assert bob.communicate()[0].strip() == "mine refused"
    wait_for(lambda: f"guard foreign: bob uid={BOB}" in LOG.read_text()[position:], "the journal names bob")


# -- helpers ---------------------------------------------------------------------------------------------------------

HEARING = []  # sockets of an agent


def listen():
    """In the agent of a host: hear what comes in on PORT, to the groups as well."""
    for family in (socket.AF_INET, socket.AF_INET6):
        HEARING.append(socket.socket(family, socket.SOCK_DGRAM))
        if family == socket.AF_INET6:
            HEARING[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        HEARING[-1].bind(("", PORT))
    about = struct.pack("=4s4xi", socket.inet_aton(GROUP4), socket.if_nametoindex("em1"))
    HEARING[0].setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, about)
    about = socket.inet_pton(socket.AF_INET6, GROUP6) + struct.pack("=i", socket.if_nametoindex("em1"))
    HEARING[1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, about)


def heard(count):
    """The senders of the datagrams since the last call, up to `count`."""
    sources = []
    while len(sources) < count:
        ready = select.select(HEARING, [], [], 3)[0]
        if not ready:
            break
        sources.append(ready[0].recvfrom(100)[1][0])
    return sources


def sideways(uid, source, target):
    """A datagram from an address by a socket that is in no VRF, as one that `connect()` took out of it; the real UID stays root's."""
    os.seteuid(uid)
    six = ":" in source
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(*((socket.IPPROTO_IPV6, 78) if six else (socket.IPPROTO_IP, 15)), 1)  # IPV6_FREEBIND, IP_FREEBIND
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("em1"))
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=8xi", socket.if_nametoindex("em1")))
        sock.bind((source, 0))
        try:
            sock.sendto(b"sideways", (target, PORT))
        except PermissionError:
            return "refused"
        return "sent"


def datagram(host, uid, *arguments):
    return host.run_as(uid, "python3", "-IS", "-c", DATAGRAM, *arguments, stdout=subprocess.PIPE).communicate()[0].strip()


def begin(host, uid, address, count, kind="sockets"):
    """How many datagrams of a user were sent, and how many new connections refused."""
    program = host.run_as(uid, "python3", "-IS", "-c", BEGIN, address, str(count), kind, stdout=subprocess.PIPE)
    return [int(number) for number in program.communicate()[0].split()]


@contextlib.contextmanager
def listening(host, uid, port, protocol):
    with host.run_as(uid, "python3", "-IS", "-c", ACCEPT, str(port), str(protocol), stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == "listens\n"
        yield


def connects(host, uid, device, port, protocol):
    program = host.run_as(uid, "python3", "-IS", "-c", CONNECT, device, str(port), str(protocol), stdout=subprocess.PIPE)
    return program.communicate()[0].strip()


# -- what others do --------------------------------------------------------------------------------------------------

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


def test_another_program_may_be_first_in_forward_where_it_refuses_nothing(host):
    def first():
        return host.sh("iptables -S FORWARD").splitlines()[1]

    host.sh("iptables -N other; iptables -I FORWARD -j other; iptables -A other -i em9 -j ACCEPT")
    try:
        assert planned(host) and first() == "-A FORWARD -j other"
        host.sh("iptables -A other -i em9 -j DROP; nft add table other; nft delete table other")  # of iptables-legacy no notification tells
        wait_for(lambda: first() == "-A FORWARD -j UVN-FORWARD", "the jump comes before what refuses", seconds=120)
        wait_for(lambda: "(the jump to this chain comes after -A FORWARD -j other)" in LOG.read_text(), "the journal says why")
    finally:
        host.sh("iptables -D FORWARD -j other; iptables -F other; iptables -X other")


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


IN_THE_NETWORK = {
    **{f"INET{version} {kind}": ("INET" + version, kind, protocol) for version in ("", "6") for kind, protocol in (("STREAM", 0), ("DGRAM", 17))},
    "UNIX": ("UNIX", "STREAM", 0),
    "route": ("NETLINK", "RAW", 0),
    "sock_diag": ("NETLINK", "DGRAM", 4),
    "generic netlink": ("NETLINK", "RAW", 16),
    "ALG": ("ALG", "SEQPACKET", 0),
    "UDP-Lite": ("INET", "DGRAM", 136),
    "SCTP": ("INET6", "SEQPACKET", 132),
}
ELSEWHERE = {
    "NETLINK_USERSOCK": ("NETLINK", "RAW", 2),
    "L2TP": ("INET", "DGRAM", 115),
    "L2TP, IPv6": ("INET6", "DGRAM", 115),
    "MPTCP": ("INET", "STREAM", 262),
    "SMC as a protocol of IP": ("INET", "STREAM", 256),
    "VSOCK": ("VSOCK", "STREAM", 0),
    "CAN": ("CAN", "RAW", 1),
    "PPPOX": (24, "DGRAM", 0),
    "KCM": (41, "SEQPACKET", 0),
    "RXRPC": (33, "DGRAM", 2),
    "PACKET": ("PACKET", "DGRAM", 0),
}
SOCKETS = """
import json, socket, sys
def said(family, kind, protocol):
    try:
        socket.socket(getattr(socket, f"AF_{family}", family), getattr(socket, f"SOCK_{kind}"), protocol).close()
    except OSError as error:
        return error.strerror
    return "made"
print(json.dumps({name: said(*of) for name, of in json.loads(sys.argv[1]).items()}))
"""
REFUSALS = {"Address family not supported by protocol", "Protocol not supported"}


def sockets(host, uid, wanted, *prefix):
    """What becomes of a user's socket() for each of the wanted."""
    command = [*prefix, "python3", "-IS", "-c", SOCKETS, json.dumps(wanted)]
    return json.loads(host.run_as(uid, *command, stdout=subprocess.PIPE).communicate()[0])


def families():
    return client.request({"op": "status"})["node"]["families"]


@pytest.fixture
def hooks(host):
    """The kernel's security hooks, with the modules of what is refused in the kernel, as somebody who needs them may have loaded them."""
    if not lsm.possible():
        pytest.skip("bpf is not among the active security modules of this kernel")
    host.sh("modprobe -a l2tp_ip l2tp_ip6 vsock vsock_loopback kcm sctp; sysctl -qw net.mptcp.enabled=1")
    yield
    host.sh("sysctl -qw net.mptcp.enabled=0")


def test_users_have_sockets_of_the_families_that_programs_need_and_of_no_other(host, hooks):
    root = sockets(host, 0, ELSEWHERE)  # who is never refused: the kernel has them
    assert {name for name, said in root.items() if said == "made"} >= {"NETLINK_USERSOCK", "L2TP", "L2TP, IPv6", "MPTCP", "VSOCK", "KCM", "PACKET"}
    before = families()["refused"]
    assert sockets(host, ALICE, IN_THE_NETWORK) == dict.fromkeys(IN_THE_NETWORK, "made")
    assert families()["refused"] == before
    assert set(sockets(host, ALICE, ELSEWHERE).values()) <= REFUSALS
    assert families() == {"refused": before + len(ELSEWHERE), "audited": families()["audited"]}
    assert sockets(host, 33, ELSEWHERE)["VSOCK"] == "made", "a system account is left alone"


def test_an_exempt_account_has_sockets_of_every_family(host, hooks):
    configure({**host.configuration, "exempt": {"uids": ["2009-2009"]}})
    try:
        host.sh("/usr/sbin/uvn node apply")
        assert {sockets(host, 2009, ELSEWHERE)[name] for name in ("NETLINK_USERSOCK", "L2TP", "VSOCK", "KCM")} == {"made"}
    finally:
        configure(host.configuration)
        host.sh("/usr/sbin/uvn node apply")


def test_in_a_network_namespace_of_their_own_users_have_packet_sockets(host, hooks):
    """For the DHCP client of a container. VSOCK knows no namespaces."""
    host.sh("sysctl -qw kernel.unprivileged_userns_clone=1")
    said = sockets(host, ALICE, {**IN_THE_NETWORK, **ELSEWHERE}, "unshare", "--user", "--map-root-user", "--net")
    assert {name for name, word in said.items() if word == "made"} >= {*IN_THE_NETWORK, "PACKET", "NETLINK_USERSOCK"}
    assert {said[name] for name in ("VSOCK", "KCM", "CAN", "RXRPC")} <= REFUSALS


def test_audit_counts_the_sockets_that_it_lets_pass(host, hooks):
    configure({**host.configuration, "mode": "audit"})
    try:
        host.sh("/usr/sbin/uvn node apply")
        before = families()["audited"]
        assert sockets(host, ALICE, ELSEWHERE)["VSOCK"] == "made"
        assert families()["audited"] == before + len(ELSEWHERE)
    finally:
        configure(host.configuration)
        host.sh("/usr/sbin/uvn node apply")


def test_users_are_kept_apart_on_abstract_unix_sockets(host):
    if not lsm.possible():
        pytest.skip("bpf is not among the active security modules of this kernel")
    listener = host.run_as(BOB, "python3", "-IS", "-c", LISTEN, stdout=subprocess.PIPE)
    try:
        assert listener.stdout.readline() == "listening\n"

        def connects(uid):
            return host.run_as(uid, "python3", "-IS", "-c", ABSTRACT, stdout=subprocess.PIPE).communicate()[0].split()

        assert connects(ALICE) == ["refused", "connected"] * 2
        assert connects(BOB) == connects(0) == ["connected"] * 4
        status = client.request({"op": "status"})["node"]
        assert status["hooks"] and status["abstract"]["refused"] == 2
    finally:
        listener.kill()
        listener.wait()
