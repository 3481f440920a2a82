# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A user's socket stays in the VRF it was made for: alice attacks bob, with and without the programs that keep it there."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
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
    as_user,
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
from uvn import abstract, bpf
from uvn.membership import LINKS, Config, Stay

STAY_OBJECT = OBJECT.with_name("sockets.bpf.o")
INET, INET6, UDP, TCP = socket.AF_INET, socket.AF_INET6, socket.SOCK_DGRAM, socket.SOCK_STREAM
LOCAL = {INET: "127.0.0.1", INET6: "::1"}
ANY = {INET: "0.0.0.0", INET6: "::"}
UNSPEC = bytes(16)  # struct sockaddr of family AF_UNSPEC
IP_RECVERR, IPV6_RECVERR, IPV6_FREEBIND = 11, 25, 78
PORT, SERVER = 6001, 6002

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
    for name in ("udp_l3mdev_accept", "tcp_l3mdev_accept"):
        pathlib.Path("/proc/sys/net/ipv4", name).write_text("1")
    pathlib.Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")


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
    if not abstract.possible():
        pytest.fail("bpf is not among the active security modules of this kernel", pytrace=False)
    hooks = Stay(users.pin_dir, str(STAY_OBJECT))
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
    sock.settimeout(2)
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


def error_queue(name):
    """The datagrams that errors were told of."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(SOCKETS[name].recvmsg(2000, 1000, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)[0].decode())
    return found


def device(name):
    return bound_device(SOCKETS[name])


def port_of(name):
    return SOCKETS[name].getsockname()[1]


def close(name):
    SOCKETS.pop(name).close()


ACTIONS = {
    action.__name__: action
    for action in (
        make, bind, connect, dissolve, rebind, rebind_by_index, rebind_32, large_option, send, send_to, receive, error_queue, device,
        port_of, close,
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
    """bob sends into the void; how often he is told."""
    told = 0
    for number in range(6):
        told += bob(send, "client", f"secret {number}") == "ECONNREFUSED"
        bob(error_queue, "client")
    return told


FAMILIES = pytest.mark.parametrize("family", [INET, INET6], ids=["ipv4", "ipv6"])


@FAMILIES
@pytest.mark.parametrize("way", WAYS)
def test_without_the_programs_alice_reads_what_bob_sent_from_the_error_queue(users, alice, bob, family, way):
    assert copy_of_bobs(alice, family, bobs_client(bob, family), way, (LOCAL[family], SERVER)) == ["", "", "", ""]
    assert bobs_errors(bob) == 0
    assert "secret 3" in alice(error_queue, "copy")


@FAMILIES
@pytest.mark.parametrize("way", WAYS)
def test_an_error_is_told_to_the_sender_only(stay, alice, bob, family, way):
    port = bobs_client(bob, family)
    assert copy_of_bobs(alice, family, port, way, (LOCAL[family], SERVER))[1:3] == ["EPERM", "EPERM"]
    assert bobs_errors(bob) >= 3  # the kernel tells of one at the next call
    assert alice(error_queue, "copy") == []
    assert alice(device, "copy") == DEVICE
    assert stay.moves()["refused"] == 2


# deafness


def listening(bob, family):
    """A listener of bob's, and a client of his that is connected to it from a port of its own choice."""
    bob(make, "listener", family, UDP)
    bob(bind, "listener", ANY[family], PORT)
    bob(make, "client", family, UDP)
    bob(bind, "client", LOCAL[family], SERVER)
    bob(connect, "client", LOCAL[family], PORT)


def heard(bob):
    """What arrives of bob's questions at his listener, and of the answers at his client."""
    arrived = []
    for question, answer in (("1?", "1!"), ("2?", "2!"), ("3?", "3!")):
        bob(send, "client", question)
        arrived.append(bob(receive, "listener"))
        bob(send_to, "listener", answer, *LISTENER_OF[bob(port_of, "client")])
        arrived.append(bob(receive, "client"))
    return arrived


LISTENER_OF = {}
ALL = ["1?", "1!", "2?", "2!", "3?", "3!"]


def unbound_with_peer(alice, name):
    """No device at all, and bob's peer: the kernel prefers it to bob's socket without a peer."""
    return alice(connect, name, LOCAL[INET], SERVER)
