# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A user's socket stays in the VRF it was made for: alice attacks bob, with and without the programs that keep it there."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import pathlib
import socket
import struct

import pytest
from test_membership import (  # noqa: F401
    ALICE,
    BOB,
    CLONE_NEWNET,
    CLONE_NEWUSER,
    DEVICE,
    MIN_UID,
    OBJECT,
    OTHER_DEVICE,
    SO_BINDTODEVICE,
    SO_BINDTOIFINDEX,
    attached_programs,
    become,
    bound_device,
    bpffs,
    cgroup,
    config,
    idle,
    ip,
    membership,
    netns,
    unshare,
)
from uvn import bpf, lsm
from uvn.lsm import STAY, Hooks
from uvn.membership import LINKS, Config

INET, INET6, UDP, TCP = socket.AF_INET, socket.AF_INET6, socket.SOCK_DGRAM, socket.SOCK_STREAM
LOCAL = {INET: "127.0.0.1", INET6: "::1"}
ANY = {INET: "0.0.0.0", INET6: "::"}
UNSPEC = bytes(16)  # struct sockaddr of family AF_UNSPEC
IP_PKTINFO, IP_RECVERR, IPV6_RECVERR, IPV6_FREEBIND = 8, 11, 25, 78
PORT, SERVER = 6001, 6002
WAIT = 3  # seconds for a datagram

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module", autouse=True)
def loopbacks(netns):  # noqa: F811
    """The users' VRFs, with their own localhost each."""
    for version in ("-4", "-6"):
        ip(version, "rule", "add", "preference", "32765", "lookup", "local")
        ip(version, "rule", "del", "preference", "0")
    ip("link", "set", "lo", "up")
    for device in (DEVICE, OTHER_DEVICE):
        ip("link", "set", device, "up")
        ip("address", "add", "127.0.0.1/8", "dev", device)
        ip("address", "add", "::1/128", "dev", device, "nodad")
    settings = {"ipv4/udp_l3mdev_accept": "1", "ipv4/tcp_l3mdev_accept": "1", "ipv4/ping_group_range": "0 2147483647"}
    settings |= {"ipv4/icmp_ratelimit": "0", "ipv6/icmp/ratelimit": "0"}  # errors over a VRF are rationed
    for name, value in settings.items():
        pathlib.Path("/proc/sys/net", name).write_text(value)


@pytest.fixture
def users(membership):  # noqa: F811
    """Membership with alice and bob, and nothing but the two programs that bind and that look at what comes in."""
    membership.set(BOB, socket.if_nametoindex(OTHER_DEVICE))
    for name, link in LINKS.items():
        if name.startswith("uvn_stay"):
            bpf.Link(os.path.join(membership.pin_dir, link)).detach()
    return membership


@pytest.fixture
def stay(users):
    """All programs."""
    if not lsm.possible():
        pytest.fail("bpf is not among the active security modules of this kernel", pytrace=False)
    hooks = Hooks(STAY, users.pin_dir, str(OBJECT.parent))
    users.attach()
    hooks.attach()
    yield users
    hooks.detach()


class User:
    """A process of a user's, which keeps its sockets by name; what is called runs there. An OSError is the name of its number."""

    def __init__(self, cgroup, uid, before=None):  # noqa: F811
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            try:
                (before or become)(cgroup, uid)
                self._serve(theirs.makefile("r"), theirs.makefile("w"))
            finally:
                os._exit(1)
        theirs.close()
        self.ours = ours
        self.reading, self.writing = ours.makefile("r"), ours.makefile("w")

    @staticmethod
    def _serve(reading, writing):
        for line in reading:
            name, *arguments = json.loads(line)
            try:
                answer = ACTIONS[name](*arguments)
            except OSError as error:
                answer = errno.errorcode[error.errno] if error.errno else str(error)
            print(json.dumps(answer), file=writing, flush=True)
        os._exit(0)

    def __call__(self, action, *arguments):
        print(json.dumps([action.__name__, *arguments]), file=self.writing, flush=True)
        return json.loads(self.reading.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        for end in (self.reading, self.writing, self.ours):
            end.close()
        os.waitpid(self.pid, 0)


@pytest.fixture
def alice(users, request):
    with User(users.cgroup, ALICE) as user:
        yield user


@pytest.fixture
def bob(users):
    with User(users.cgroup, BOB) as user:
        yield user


# what a user does; SOCKETS are those of its process

SOCKETS = {}


def make(name, family, kind, protocol=0):
    SOCKETS[name] = sock = socket.socket(family, kind, protocol)
    sock.settimeout(WAIT)
    sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    if family == INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    return bound_device(sock)


def bind(name, *address):
    SOCKETS[name].bind(tuple(address))
    return ""


def connect(name, *address):
    SOCKETS[name].connect(tuple(address))
    return ""


def dissolve(name):
    if libc.connect(SOCKETS[name].fileno(), UNSPEC, len(UNSPEC)):
        raise OSError(ctypes.get_errno(), "AF_UNSPEC")
    return ""


def rebind(name, device):
    SOCKETS[name].setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, device.encode())
    return ""


def rebind_by_index(name, index):
    SOCKETS[name].setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, index)
    return ""


def rebind_32(name, index):
    """setsockopt() as a 32-bit program makes it: int $0x80, number 366."""
    code = (
        b"\x53\x56\x57"  # push rbx, rsi, rdi
        b"\x8b\x07\x8b\x5f\x04\x8b\x4f\x08\x8b\x57\x0c\x8b\x77\x10\x8b\x7f\x14"  # eax, ebx, ecx, edx, esi, edi from the array in rdi
        b"\xcd\x80"  # int $0x80
        b"\x5f\x5e\x5b\xc3"  # pop rdi, rsi, rbx; ret
    )
    map_32bit, everything = 0x40, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | map_32bit, everything)
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    page[: len(code)] = code
    page[256:260] = struct.pack("=i", index)
    page[512:536] = struct.pack("=6i", 366, SOCKETS[name].fileno(), socket.SOL_SOCKET, SO_BINDTOIFINDEX, start + 256, 4)
    result = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(start)(start + 512)
    if result < 0:
        raise OSError(-result, "setsockopt")
    return ""


def large_option(name):
    SOCKETS[name].setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, struct.pack("=i", 3) + bytes(9000))
    return SOCKETS[name].getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY)


def send(name, text):
    return SOCKETS[name].send(text.encode())


def send_to(name, text, *address):
    return SOCKETS[name].sendto(text.encode(), tuple(address))


def receive(name):
    return SOCKETS[name].recv(2000).decode()


def send_by(name, text, index, *address):
    about = struct.pack("=I8x", index)
    return SOCKETS[name].sendmsg([text.encode()], [(socket.IPPROTO_IP, IP_PKTINFO, about)], 0, tuple(address))


def error_queue(name):
    """The datagrams that errors were told of."""
    found = []
    SOCKETS[name].setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(SOCKETS[name].recvmsg(2000, 1000, socket.MSG_ERRQUEUE)[0].decode())
    SOCKETS[name].settimeout(WAIT)
    return found


def device(name):
    return bound_device(SOCKETS[name])


def port_of(name):
    return SOCKETS[name].getsockname()[1]


def no_freebind(name):
    SOCKETS[name].setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 0)


def move_in(port, index):
    """A socket more, with a port of bob's, into his VRF; the outcomes."""
    outcomes = []
    SOCKETS[port] = socket.socket(INET, UDP)
    SOCKETS[port].bind((ANY[INET], port))
    for move in (lambda: dissolve(port), lambda: rebind_by_index(port, index)):
        try:
            outcomes.append(move())
        except OSError as error:
            outcomes.append(errno.errorcode[error.errno])
    return outcomes


ACTIONS = {
    action.__name__: action
    for action in (
        make, bind, connect, dissolve, rebind, rebind_by_index, rebind_32, large_option, send, send_to, receive, error_queue, device,
        port_of, no_freebind, move_in, send_by,
    )
}  # fmt: skip


# alice's ways into bob's VRF, for a socket that is there already


def by_name(alice, name):
    return alice(rebind, name, OTHER_DEVICE)


def by_index(alice, name):
    return alice(rebind_by_index, name, socket.if_nametoindex(OTHER_DEVICE))


def by_32_bit(alice, name):
    return alice(rebind_32, name, socket.if_nametoindex(OTHER_DEVICE))


WAYS = [by_name, by_index, by_32_bit]


def copy_of_bobs(alice, family, port, way, peer=None):
    """A socket of alice's with bob's port, in his VRF if the programs let her; the calls' outcomes."""
    alice(make, "copy", family, UDP)
    outcomes = [alice(bind, "copy", ANY[family], port), alice(dissolve, "copy"), way(alice, "copy")]
    return [*outcomes, alice(connect, "copy", *peer)] if peer else outcomes


def bobs_client(bob, family):
    """A socket of bob's that is connected to a port nobody has; its own port."""
    bob(make, "client", family, UDP)
    bob(connect, "client", LOCAL[family], SERVER)
    return bob(port_of, "client")


def bobs_errors(bob):
    """bob sends into the void; what he is told of."""
    told = []
    for number in range(6):
        bob(send, "client", f"secret {number}")
        told += bob(error_queue, "client")
    return told


SECRETS = [f"secret {number}" for number in range(6)]


FAMILIES = pytest.mark.parametrize("family", [INET, INET6], ids=["ipv4", "ipv6"])


@FAMILIES
@pytest.mark.parametrize("way", WAYS)
def test_without_the_programs_alice_reads_what_bob_sent_from_the_error_queue(users, alice, bob, family, way):
    assert copy_of_bobs(alice, family, bobs_client(bob, family), way, (LOCAL[family], SERVER)) == ["", "", "", ""]
    assert bobs_errors(bob) == []
    assert alice(error_queue, "copy") == SECRETS


@FAMILIES
@pytest.mark.parametrize("way", WAYS)
def test_an_error_is_told_to_the_sender_only(stay, alice, bob, family, way):
    port = bobs_client(bob, family)
    assert copy_of_bobs(alice, family, port, way, (LOCAL[family], SERVER))[1:3] == ["EPERM", "EPERM"]
    assert bobs_errors(bob) == SECRETS
    assert alice(error_queue, "copy") == []
    assert alice(device, "copy") == DEVICE
    assert stay.moves()["refused"] == 2


# datagrams that do not arrive


def conversation(bob, family):
    """bob's listener, and a client of his that is connected to it, with ports of their own choice."""
    bob(make, "listener", family, UDP)
    bob(bind, "listener", ANY[family], PORT)
    bob(make, "client", family, UDP)
    bob(bind, "client", LOCAL[family], SERVER)
    bob(connect, "client", LOCAL[family], PORT)


def heard(bob, family):
    """What arrives of bob's questions at his listener, and of the answers at his client."""
    arrived = []
    for number in range(3):
        bob(send, "client", f"question {number}")
        arrived.append(bob(receive, "listener"))
        bob(send_to, "listener", f"answer {number}", LOCAL[family], SERVER)
        arrived.append(bob(receive, "client"))
    return arrived


ALL = [f"{what} {number}" for number in range(3) for what in ("question", "answer")]


def nowhere(_alice, _name):
    """No device at all: with bob's peer the kernel prefers it to bob's socket without one."""
    return ""


@FAMILIES
@pytest.mark.parametrize("way", [*WAYS, nowhere])
def test_without_the_programs_a_listener_goes_deaf(users, alice, bob, family, way):
    conversation(bob, family)
    assert copy_of_bobs(alice, family, PORT, way, (LOCAL[family], SERVER)) == ["", "", "", ""]
    bob(send, "client", "question")
    assert bob(receive, "listener") == "timed out"


@FAMILIES
def test_without_the_programs_a_client_goes_deaf(users, alice, bob, family):
    conversation(bob, family)
    assert copy_of_bobs(alice, family, SERVER, by_name, (LOCAL[family], PORT)) == ["", "", "", ""]
    bob(send_to, "listener", "answer", LOCAL[family], SERVER)
    assert bob(receive, "client") == "timed out"


@FAMILIES
@pytest.mark.parametrize("way", [*WAYS, nowhere])
@pytest.mark.parametrize("port, peer", [(PORT, SERVER), (SERVER, PORT)], ids=["listener", "client"])
def test_all_datagrams_arrive(stay, alice, bob, family, way, port, peer):
    conversation(bob, family)
    copy_of_bobs(alice, family, port, way, (LOCAL[family], peer))
    assert heard(bob, family) == ALL
    assert alice(device, "copy") == DEVICE


# ports


def scoped(alice, name, kind, family=INET6, protocol=0, address="fe80::1", port=PORT):
    alice(make, name, family, kind, protocol)
    return alice(bind, name, address, port, 0, socket.if_nametoindex(OTHER_DEVICE))


KINDS = pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])


@pytest.mark.parametrize("kind, address", [(TCP, "fe80::1"), (UDP, "fe80::1"), (UDP, "ff02::1"), (UDP, "ff11::1")])
def test_without_the_programs_a_scope_id_takes_bobs_port(users, alice, bob, kind, address):
    assert scoped(alice, "taken", kind, address=address) == ""
    assert alice(device, "taken") == OTHER_DEVICE
    bob(make, "own", INET6, kind)
    assert bob(bind, "own", "::", PORT) == "EADDRINUSE"


@KINDS
@pytest.mark.parametrize("address", ["fe80::1", "febf::1", "ff02::1", "ff11::1"])
def test_a_scope_id_takes_no_port(stay, alice, bob, kind, address):
    assert scoped(alice, "taken", kind, address=address) == "EPERM"
    assert alice(device, "taken") == DEVICE
    bob(make, "own", INET6, kind)
    assert bob(bind, "own", "::", PORT) == ""


def test_a_bind_that_fails_leaves_the_device_as_it_was(stay, alice):
    """The kernel sets the device before it looks whether the address is there."""
    alice(make, "here", INET6, UDP)
    alice(no_freebind, "here")
    assert alice(bind, "here", "fe80::1", PORT, 0, socket.if_nametoindex(OTHER_DEVICE)) == "EPERM"
    assert alice(device, "here") == DEVICE


@pytest.mark.parametrize("address", ["::", "::1", "ff05::1", "ff0e::1"])
def test_addresses_without_a_scope_id_are_bound_to(stay, alice, address):
    alice(make, "own", INET6, UDP)
    assert alice(bind, "own", address, PORT) == ""


PORTS = range(PORT, PORT + 64)


def test_without_the_programs_alice_takes_all_ports_of_bobs(users, alice, bob):
    assert {outcome for port in PORTS for outcome in alice(move_in, port, socket.if_nametoindex(OTHER_DEVICE))} == {""}
    bob(make, "own", INET, UDP)
    assert {bob(bind, "own", ANY[INET], port) for port in PORTS} == {"EADDRINUSE"}


def test_alice_takes_no_port_of_bobs(stay, alice, bob):
    assert {outcome for port in PORTS for outcome in alice(move_in, port, socket.if_nametoindex(OTHER_DEVICE))} == {"EPERM"}
    for port in PORTS:
        bob(make, "own", INET, UDP)
        assert bob(bind, "own", ANY[INET], port) == ""


@FAMILIES
def test_a_socket_without_device_takes_no_port(stay, alice, bob, family):
    """send() without a destination would give it one of all networks before it fails."""
    alice(make, "own", family, UDP)
    assert alice(dissolve, "own") == ""
    assert (alice(send, "own", "?"), alice(send_to, "own", "?", LOCAL[family], PORT)) == ("EPERM", "EPERM")
    assert alice(port_of, "own") == 0
    assert alice(bind, "own", ANY[family], PORT) == "EPERM"
    assert (alice(device, "own"), alice(port_of, "own")) == ("", 0)
    assert alice(bind, "own", ANY[family], 0) == ""
    assert alice(device, "own") == DEVICE


# who is the owner


def with_capabilities(cgroup, uid):  # noqa: F811
    """As a set-UID root program: the caller is the real UID."""
    pathlib.Path(cgroup, "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    os.setresuid(uid, 0, 0)


@pytest.mark.parametrize("way", WAYS)
def test_without_the_programs_a_set_uid_program_moves_a_socket(users, way):
    with User(users.cgroup, ALICE, with_capabilities) as program:
        program(make, "own", INET, UDP)
        assert way(program, "own") == ""
        assert program(device, "own") == OTHER_DEVICE


@pytest.mark.parametrize("way", WAYS)
def test_a_socket_of_a_set_uid_program_is_its_callers(stay, way):
    with User(stay.cgroup, ALICE, with_capabilities) as program:
        program(make, "own", INET, UDP)
        assert way(program, "own") == "EPERM"
        program(dissolve, "own")
        assert way(program, "own") == "EPERM"
        assert program(send_to, "own", "token", LOCAL[INET], PORT) == "EPERM"


def test_a_socket_of_a_set_uid_program_names_no_device(stay, alice, bob):
    """The guard would take it for root's; what an ordinary program names is the guard's to judge."""
    bob(make, "listener", INET, UDP)
    bob(bind, "listener", ANY[INET], PORT)
    index = socket.if_nametoindex(OTHER_DEVICE)
    with User(stay.cgroup, ALICE, with_capabilities) as program:
        program(make, "own", INET, UDP)
        assert program(send_by, "own", "token", index, LOCAL[INET], PORT) == "EPERM"
        assert program(send_to, "own", "plain", LOCAL[INET], PORT) == len("plain")
        program(make, "six", INET6, UDP)
        assert program(send_to, "six", "token", "ff02::1", PORT, 0, index) == "EPERM"
    alice(make, "own", INET, UDP)
    assert alice(send_by, "own", "hers", index, LOCAL[INET], PORT) == len("hers")
    assert bob(receive, "listener") == "hers"


def test_a_ping_socket_stays(stay, alice):
    icmp = {INET: socket.IPPROTO_ICMP, INET6: socket.IPPROTO_ICMPV6}
    assert scoped(alice, "six", UDP, INET6, icmp[INET6], port=0) == "EPERM"
    alice(make, "four", INET, UDP, icmp[INET])
    assert alice(dissolve, "four") == "EPERM"
    assert (alice(device, "six"), alice(device, "four")) == (DEVICE, DEVICE)


# what must go on


@FAMILIES
def test_an_association_is_dissolved_and_another_made(stay, alice, family):
    """As glibc's getaddrinfo does, to learn source addresses."""
    alice(make, "server", family, UDP)
    alice(bind, "server", LOCAL[family], PORT)
    alice(make, "own", family, UDP)
    for port in (SERVER, PORT):
        assert alice(connect, "own", LOCAL[family], port) == ""
        assert alice(device, "own") == DEVICE
        if port == SERVER:
            assert (alice(dissolve, "own"), alice(device, "own")) == ("", "")
    alice(send, "own", "hello")
    assert alice(receive, "server") == "hello"
    assert set(stay.moves().values()) == {0}


def test_an_ipv6_socket_goes_on_with_ipv4(stay, alice):
    alice(make, "own", INET6, UDP)
    assert [alice(connect, "own", "::1", PORT), alice(dissolve, "own"), alice(connect, "own", "::ffff:127.0.0.1", PORT)] == ["", "", ""]
    assert alice(device, "own") == DEVICE


def test_options_go_on(stay, alice):
    """Of one that is larger than a page, programs see a part."""
    alice(make, "own", INET, UDP)
    assert alice(large_option, "own") == 3


@pytest.mark.parametrize("uid", [0, 33])
def test_accounts_that_are_not_managed_are_left_alone(stay, uid):
    with User(stay.cgroup, uid) as program:
        program(make, "own", INET6, UDP)
        assert program(rebind, "own", OTHER_DEVICE) == ""
        program(make, "free", INET, UDP)
        program(bind, "free", ANY[INET], PORT)
        assert (program(dissolve, "free"), program(send_to, "free", "x", LOCAL[INET], PORT)) == ("", 1)


def test_another_network_namespace_is_left_alone(stay):
    def elsewhere(cgroup, uid):  # noqa: F811
        become(cgroup, uid)
        unshare(CLONE_NEWUSER | CLONE_NEWNET)

    with User(stay.cgroup, ALICE, elsewhere) as program:
        program(make, "own", INET, UDP)
        program(bind, "own", ANY[INET], PORT)
        assert (program(dissolve, "own"), program(rebind, "own", "lo")) == ("", "")


def test_audit_lets_pass_and_counts(stay, config, alice):  # noqa: F811
    stay.load(Config(config.netns_cookie, MIN_UID, enforce=False))
    assert copy_of_bobs(alice, INET, PORT, by_index) == ["", "", ""]
    assert alice(device, "copy") == OTHER_DEVICE
    moves = stay.moves()
    assert moves["refused"] == 0 and moves["audited"] >= 2


# attach


def test_a_node_that_has_the_first_two_programs_only_gets_the_others(users, config):  # noqa: F811
    before = attached_programs(users.cgroup)
    os.unlink(os.path.join(users.pin_dir, "uvn_moves"))
    assert not users.attached() and not users.current()
    users.load(config)
    assert users.attach()
    assert users.attached() and users.current()
    assert len(attached_programs(users.cgroup)) == len(before) == 1


def test_the_hooks_are_found_and_go_without_a_trace(users, alice):
    hooks = Hooks(STAY, users.pin_dir, str(OBJECT.parent))
    assert not hooks.current()
    hooks.attach()
    assert hooks.current()
    hooks.detach()
    assert not hooks.current()
    assert [name for name in os.listdir(users.pin_dir) if "lsm" in name or name == "uvn_use"] == []
