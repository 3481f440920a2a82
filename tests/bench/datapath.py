# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the data path costs between two nodes: native, in a user's network of UVN without and with the guard, in one that the paper's steps made.

Run as root in the lab's guest (`make bench`): python3 tests/bench/datapath.py [ROUNDS]. Each way has two network namespaces of its own
on the same bridges. Native means nodes without UVN and without iptables rules. The programs run as a user, for whom the guard looks at
every packet, and bind their sockets themselves, which is what the membership program does at socket(). Everything runs on one CPU: what
is compared is the CPU time that a way takes, without the chance of which CPU wakes which.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from typing import Any, Callable, Iterator

from harness import ROOT, interleaved, only_in_the_lab, ratio, write

sys.path[:0] = [str(ROOT / "plugins" / "module_utils"), str(ROOT / "tests" / "kernel")]

from nodes import FORK, Node, bridges
from pyroute2 import netns
from uvn.plan import IN_OURS, OUT_OURS

MTUS = (1500, 9000)
SECONDS = 0.4  # of each measurement
UVN_UID, PAPER_UID = 2001, 2002
DEVICES = {"native": "", "unguarded": f"vrf{UVN_UID}", "UVN": f"vrf{UVN_UID}", "paper": f"vrf{PAPER_UID}"}
STREAM_PORT, TCP_PORT, UDP_PORT = 5201, 5202, 5203
CONNECTIONS = 50  # opened to see which are tracked
BLOCK = 256 * 1024  # bytes of one send()
TRACKED = "/proc/sys/net/netfilter/nf_conntrack_count"  # of the reader's network namespace
# The overlay stays out of connection tracking, and nothing is looked at or dropped.
UNGUARD = f"""nft -f - <<'END'
flush table inet uvn
add rule inet uvn prerouting {IN_OURS} notrack accept
add rule inet uvn prerouting udp dport @ports notrack accept
add rule inet uvn output {OUT_OURS} notrack accept
add rule inet uvn output udp dport @ports notrack accept
END
"""
PAPER_SH = ROOT / "tests" / "bench" / "paper.sh"


class Pair:
    """Two nodes and the servers on the second."""

    def __init__(self, way: str, number: int, mtu: int) -> None:
        self.device = DEVICES[way]
        self.nodes = [Node(f"bench-{way.lower()}-{i}", number + i) for i in range(2)]
        self.address = f"192.168.80.{number + 1}"
        for node in self.nodes:
            for position, nic in enumerate(node.nics):
                node.sh(f"ip link set {nic} mtu {mtu}")
                bridge_port(f"v{node.number}p{position}", mtu)
            if way in ("UVN", "unguarded"):
                node.prepare()
                node.ensure(UVN_UID)
            if way == "unguarded":
                node.sh(UNGUARD)
            elif way == "paper":
                node.sh(f"{PAPER_SH} create {PAPER_UID}")
        self.servers = [self._serve(server) for server in (sink, echo_stream, echo_datagrams)]

    def _serve(self, server: Callable) -> Any:
        ready = FORK.Event()
        process = FORK.Process(target=inside, args=(self.nodes[1].name, server, self.device, ready), daemon=True)
        process.start()
        if not ready.wait(10):
            raise RuntimeError(f"{server.__name__} did not start")
        return process

    def measure(self, function: Callable) -> float:
        return self.nodes[0].call(as_user, function, self.device, self.address)

    def tracked(self) -> list[int]:
        """Entries that CONNECTIONS connections and as many datagram flows leave in the tables of both nodes."""
        before = [node.call(tracked_now) for node in self.nodes]
        during = self.nodes[0].call(tracked_while_open, self.device, self.address)
        after = self.nodes[1].call(tracked_now)
        return [during - before[0], after - before[1]]

    def tracks(self) -> bool:
        """Whether the first node tracks what is outside users' networks."""
        return self.nodes[0].call(tracked_of_default, self.address) >= CONNECTIONS

    def close(self) -> None:
        for server in self.servers:
            server.terminate()
            server.join()
        for node in self.nodes:
            node.delete()


def bridge_port(device: str, mtu: int) -> None:
    with open(f"/sys/class/net/{device}/mtu", "w", encoding="ascii") as file:
        file.write(str(mtu))


def inside(name: str, server: Callable, device: str, ready: Any) -> None:
    netns.setns(name)
    as_user(server, device, ready)


def as_user(function: Callable, *arguments: Any) -> Any:
    os.setuid(UVN_UID)
    return function(*arguments)


def bound(kind: int, device: str) -> socket.socket:
    one = socket.socket(socket.AF_INET, kind)
    if device:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    return one


def connections(device: str, port: int, ready: Any) -> Iterator[socket.socket]:
    """Connections to a listener, one after the other."""
    with bound(socket.SOCK_STREAM, device) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", port))
        listener.listen(2 * CONNECTIONS)
        ready.set()
        while True:
            with listener.accept()[0] as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield connection


def sink(device: str, ready: Any) -> None:
    """Reads to the end, then says so."""
    buffer = bytearray(BLOCK)
    for connection in connections(device, STREAM_PORT, ready):
        while connection.recv_into(buffer):
            pass
        connection.sendall(b".")


def echo_stream(device: str, ready: Any) -> None:
    for connection in connections(device, TCP_PORT, ready):
        while data := connection.recv(1):
            connection.send(data)


def echo_datagrams(device: str, ready: Any) -> None:
    with bound(socket.SOCK_DGRAM, device) as one:
        one.bind(("", UDP_PORT))
        ready.set()
        while True:
            one.sendto(*one.recvfrom(1))


def stream(device: str, address: str) -> float:
    """Mb/s of one TCP connection, until the receiver has everything."""
    block, sent = bytes(BLOCK), 0
    with bound(socket.SOCK_STREAM, device) as connection:
        connection.connect((address, STREAM_PORT))
        start = time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            connection.sendall(block)
            sent += BLOCK
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        return 8e-6 * sent / (time.perf_counter() - start)


def tcp_messages(device: str, address: str) -> float:
    return _messages(bound(socket.SOCK_STREAM, device), (address, TCP_PORT))


def udp_messages(device: str, address: str) -> float:
    return _messages(bound(socket.SOCK_DGRAM, device), (address, UDP_PORT))


def _messages(connection: socket.socket, server: tuple) -> float:
    """One-byte questions and answers a second."""
    count = 0
    with connection:
        connection.settimeout(5)
        connection.connect(server)
        if connection.type == socket.SOCK_STREAM:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            connection.send(b".")
            connection.recv(1)
            count += 1
        return count / (time.perf_counter() - start)


def tracked_of_default(address: str) -> int:
    """Entries that datagrams outside users' networks add to this node's table: nobody need answer them."""
    before = tracked_now()
    with contextlib.ExitStack() as stack:
        for _number in range(CONNECTIONS):
            flow = stack.enter_context(bound(socket.SOCK_DGRAM, ""))
            flow.sendto(b".", (address, UDP_PORT))
        return tracked_now() - before


def tracked_now() -> int:
    with open(TRACKED, encoding="ascii") as file:
        return int(file.read())


def tracked_while_open(device: str, address: str) -> int:
    """Entries in this node's table while connections and datagram flows are open."""
    with contextlib.ExitStack() as stack:
        for _number in range(CONNECTIONS):
            stack.enter_context(bound(socket.SOCK_STREAM, device)).connect((address, STREAM_PORT))
            flow = stack.enter_context(bound(socket.SOCK_DGRAM, device))
            flow.settimeout(5)
            flow.connect((address, UDP_PORT))
            flow.send(b".")
            flow.recv(1)
        return tracked_now()


METRICS = {"stream": ("Mb/s", stream), "TCP messages": ("/s", tcp_messages), "UDP messages": ("/s", udp_messages)}


def measurements(pairs: dict[str, Pair]) -> list[Callable[[], dict[str, float]]]:
    """By metric; the ways of one metric follow each other."""
    return [
        lambda name=f"{metric}, {way}", pair=pair, function=function: {name: pair.measure(function)}
        for metric, (_unit, function) in METRICS.items()
        for way, pair in pairs.items()
    ]


def one_mtu(mtu: int, rounds: int) -> dict[str, Any]:
    bridges("add")
    pairs: dict[str, Pair] = {}
    try:
        for position, way in enumerate(DEVICES):
            pairs[way] = Pair(way, 11 + 10 * position, mtu)
        tracked = {way: pair.tracked() for way, pair in pairs.items()}
        if not pairs["UVN"].tracks():
            raise RuntimeError("connection tracking is off on UVN's nodes: that nothing is tracked would say nothing")
        series = interleaved(rounds, measurements(pairs))
    finally:
        for pair in pairs.values():
            pair.close()
        bridges("delete")
    show(mtu, series, tracked)
    return {"mtu": mtu, "series": series, "tracked": tracked}


def show(mtu: int, series: dict[str, Any], tracked: dict[str, list[int]]) -> None:
    print(f"MTU {mtu}:")
    for metric, (unit, _function) in METRICS.items():
        native = series[f"{metric}, native"]
        for way in DEVICES:
            values = series[f"{metric}, {way}"]
            relative = ratio(values, native)
            print(
                f"  {metric:14} {way:9} {values['median']:9.0f} {unit:5} ({values['q1']:.0f} to {values['q3']:.0f})   "
                f"of native {relative['median']:.3f} ({relative['q1']:.3f} to {relative['q3']:.3f})"
            )
    for way, entries in tracked.items():
        print(f"  {CONNECTIONS} TCP connections and UDP flows, {way}: {entries} tracked on the two nodes", flush=True)


def main(rounds: int) -> None:
    only_in_the_lab()
    os.sched_setaffinity(0, {0})  # children inherit it
    write("datapath", {"connections": CONNECTIONS, "mtus": [one_mtu(mtu, rounds) for mtu in MTUS]})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
