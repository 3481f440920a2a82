# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes as network namespaces on bridges; every call runs in the node's agent, a process inside of it.

The membership program is not used here (test_membership.py has it): a "user's" socket is bound to the VRF by root.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import struct
import subprocess
import traceback
from typing import Any, Callable

from pyroute2 import netns
from uvn import guard, nat
from uvn.diff import diff
from uvn.identity import identify, reply_table
from uvn.kernel import Kernel
from uvn.objects import Chain, Element, Guard, Member, Program, Rule, Vxlan
from uvn.plan import NAT_DEVICE, PREFERENCES, node, own_elements, user_network
from uvn.site import parse
from uvn.underlay import Host

SITE = {
    "underlays": [
        {"subnets": ["192.168.80.0/21", "fd00:80::/64"], "port": 800, "direct": ["192.168.80.5"]},
        {"subnets": ["192.168.40.0/21", "fd00:40::/64"], "port": 801},
    ]
}
FORK = multiprocessing.get_context("fork")


def run(*command: str) -> str:
    """Run a command; its output, or an AssertionError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


class Agent:
    """A process inside a node that calls functions. A fork for each call would cost more than the call."""

    def __init__(self, name: str) -> None:
        self._ask, answer = FORK.Pipe()
        self._process = FORK.Process(target=_answer, args=(answer, name), daemon=True)
        self._process.start()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Its result, or an AssertionError with its traceback."""
        self._ask.send((function, arguments))
        outcome, value = self._ask.recv()
        assert outcome == "ok", value
        return value

    def end(self) -> None:
        self._ask.send(None)
        self._process.join()


class Node:
    """A network namespace with veth NICs on shared bridges: em1 and ib0 as the site's, wan0 to the outside."""

    def __init__(self, name: str, number: int, site: dict | None = None, nics: dict[str, str] | None = None) -> None:
        self.name, self.number = name, number
        self.site = parse(site or SITE)
        self.nics = nics or {"em1": "lan80", "ib0": "lan40", "wan0": "lanwan"}
        run("ip", "netns", "add", name)
        self._agent = Agent(name)
        self.sh("ip link set lo up; sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv4.conf.all.rp_filter=2")
        for position, (nic, bridge) in enumerate(self.nics.items()):
            peer = f"v{number}p{position}"
            # A node that comes again has the MAC address that its neighbours may still remember.
            mac = f"02:00:00:00:{number:02x}:{position:02x}"
            run("ip", "link", "add", peer, "type", "veth", "peer", "name", nic, "address", mac, "netns", name)
            run("ip", "link", "set", peer, "master", bridge, "up")
            prefix4, prefix6, length = NETWORKS[bridge]
            self.sh(
                f"ip link set {nic} up; ip addr add {prefix4}.{number}/{length} dev {nic}; "
                f"ip -6 addr add {prefix6}::{number}/64 dev {nic} nodad"
            )

    def sh(self, script: str) -> str:
        """Run a shell script inside the node."""
        return run("nsenter", f"--net=/run/netns/{self.name}", "sh", "-ec", script)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of a module inside the node; its result, or an AssertionError with its traceback."""
        return self._agent.call(function, *arguments)

    def call_apart(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The same in a process of its own, for a function that changes the process."""
        agent = Agent(self.name)
        try:
            return agent.call(function, *arguments)
        finally:
            agent.end()

    def call_later(self, function: Callable[..., Any], *arguments: Any) -> multiprocessing.Process:
        """Call a function inside the node while the caller goes on."""
        child = FORK.Process(target=_enter, args=(self.name, function, arguments))
        child.start()
        return child

    def observe(self, uid: int) -> list:
        """What exists of a user's network."""
        return self.call(_observe, self.site, uid)

    def pending(self, uid: int) -> list:
        """The changes that lead to the user's network."""
        return self.call(_pending, self.site, uid)

    def ensure(self, uid: int) -> list:
        """Make or mend the user's network, as often as the reconciler would; the changes of the first pass."""
        return self.call(_ensure, self.site, uid)

    def remove(self, uid: int) -> list:
        return self.call(_remove, self.site, uid)

    def prepare(self) -> list:
        """The node's own state, without membership; the changes made."""
        return self.call(_prepare, self.site)

    def everything(self) -> str:
        """Links, addresses, routes and rules, for a comparison."""
        return self.sh(
            "ip -o link | sed 's/^[0-9]*: //; s/.link.ether.*//'; ip -o addr | sed 's/^[0-9]*: //'; ip rule; ip -6 rule; "
            "ip route show table all; ip -6 route show table all"
        )

    def index(self, device: str) -> int:
        """The interface index of a device, 0 when there is none."""
        return self.call(_index, device)

    def widen(self, nic: str, mtu: int) -> None:
        """Another MTU for a NIC and for the bridge it is on."""
        run("ip", "link", "set", f"v{self.number}p{list(self.nics).index(nic)}", "mtu", str(mtu))
        run("ip", "link", "set", self.nics[nic], "mtu", str(mtu))
        self.sh(f"ip link set {nic} mtu {mtu}")

    def delete(self) -> None:
        self._agent.end()
        for position in range(len(self.nics)):  # at once; those of a deleted namespace go when the kernel has time
            subprocess.run(["ip", "link", "del", f"v{self.number}p{position}"], check=False)
        subprocess.run(["ip", "netns", "del", self.name], check=False)


NETWORKS = {
    "lan80": ("192.168.80", "fd00:80", 21),
    "lan40": ("192.168.40", "fd00:40", 21),
    "lanwan": ("10.10.0", "2001:db8:10", 24),
}


def bridges(action: str) -> None:
    """Add or delete the bridges of the LANs."""
    for bridge in NETWORKS:
        if action == "add":
            run("ip", "link", "add", bridge, "type", "bridge", "mcast_snooping", "0")
            run("ip", "link", "set", bridge, "up")
        else:
            subprocess.run(["ip", "link", "del", bridge], check=False)


def serve_once(device: str, address: str, port: int, ready: Any, stop: Any) -> None:
    """Answer every TCP connection to a listener bound to a device with its address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if device:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        listener.bind((address, port))
        listener.listen()
        listener.settimeout(0.2)
        ready.set()
        while not stop.is_set():
            try:
                connection, peer = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.sendall(f"{device or 'default'} {peer[0]}".encode())


def connect(device: str, address: str, port: int, patience: float = 30) -> str:
    """What the listener answers to a socket bound to a device within so many seconds, or the name of the error."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        if device:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        connection.settimeout(patience)
        try:
            connection.connect((address, port))
            return connection.recv(100).decode()
        except OSError as error:
            return type(error).__name__


def inject(device: str, outer: str, port: int, vni: int, mac: str, source: str, target: str, source_port: int = 0) -> None:
    """Send a hand-made VXLAN frame (RFC 7348) with an ARP request in it, as an ordinary user's socket could, or root's from a port below 1024."""
    mine = b"\x02\0\0\0\0\x66"
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mine + socket.inet_aton(source) + bytes(6) + socket.inet_aton(target)
    frame = bytes.fromhex(mac.replace(":", "")) + mine + b"\x08\x06" + arp
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
        if device:
            attacker.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        attacker.bind(("", source_port))
        with contextlib.suppress(PermissionError):  # as the guard refuses it
            attacker.sendto(struct.pack("!II", 0x08000000, vni << 8) + frame, (outer, port))


class Listener:
    """A listener inside a node for the length of a `with`."""

    def __init__(self, where: Node, device: str, address: str, port: int) -> None:
        self.ready, self.stop = FORK.Event(), FORK.Event()
        arguments = (where.name, serve_once, (device, address, port, self.ready, self.stop))
        self.process = FORK.Process(target=_enter, args=arguments)

    def __enter__(self) -> Listener:
        self.process.start()
        assert self.ready.wait(60), "the listener did not start"
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop.set()
        self.process.join()


def _enter(name: str, function: Callable, arguments: tuple) -> None:
    netns.setns(name)
    function(*arguments)


def _answer(questions: Any, name: str) -> None:
    """The agent of a node: call what it is asked to."""
    netns.setns(name)
    for function, arguments in iter(questions.recv, None):
        try:
            questions.send(("ok", function(*arguments)))
        except BaseException as error:  # noqa: BLE001 - every failure of the agent is reported by the one who asks
            questions.send(("failed", f"{error}\n{traceback.format_exc()}"))


def _index(device: str) -> int:
    try:
        return socket.if_nametoindex(device)
    except OSError:
        return 0


def host_of() -> Host:
    """NICs and routes of the node."""
    return Kernel().host()


def rules_of() -> list[Rule]:
    """The routing rules of the node."""
    return Kernel().rules()


def groups_of(*kinds: str) -> set[int]:
    """The link groups of UVN's devices on the node."""
    return set(Kernel().devices(*kinds).values())


def _desired(kernel: Kernel, site: Any, uid: int) -> list:
    planned = user_network(site, identify(site, uid), kernel.host())
    return [obj for obj in planned if not isinstance(obj, Member)]


def _seen(kernel: Kernel, site: Any, uid: int) -> list:
    who = identify(site, uid)
    names = [who.vrf, *(obj.device for obj in _desired(kernel, site, uid) if isinstance(obj, Vxlan))]
    return kernel.network(who, names, reply_table(site), NAT_DEVICE) + guard.Table().existing(own_elements(who))


def _apply(kernel: Kernel, changes: list) -> None:
    guarded = [change for change in changes if isinstance(change.object, (Guard, Element))]
    kernel.apply([change for change in changes if change not in guarded and not isinstance(change.object, Chain)])
    nat.apply(changes)
    if guarded:
        guard.Table().apply(guarded)


def _observe(site: Any, uid: int) -> list:
    return _seen(Kernel(), site, uid)


def _pending(site: Any, uid: int) -> list:
    kernel = Kernel()
    return diff(_desired(kernel, site, uid), _seen(kernel, site, uid))


def _ensure(site: Any, uid: int) -> list:
    kernel = Kernel()
    first = None
    for _attempt in range(3):
        changes = diff(_desired(kernel, site, uid), _seen(kernel, site, uid))
        first = changes if first is None else first
        if not changes:
            break
        _apply(kernel, changes)
    return first


def _remove(site: Any, uid: int) -> list:
    kernel = Kernel()
    changes = diff([], _seen(kernel, site, uid))
    _apply(kernel, changes)
    return changes


def _prepare(site: Any) -> list:
    kernel = Kernel()
    desired = [obj for obj in node(site, kernel.host(), 1, []) if not isinstance(obj, (Member, Program))]
    made = diff(desired, kernel.node(desired, NAT_DEVICE, PREFERENCES) + nat.observe() + guard.Table().observe())
    _apply(kernel, made)
    return made
