# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ingress on a real kernel: listed hosts reach users' listeners, nobody else does, and two users do not take one port."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess

import pytest
from daemon import Host
from nodes import FORK, SITE, Node, connect
from uvn.bpf import cgroup2_mount
from uvn.ingress import Gate
from uvn.reconcile import Reconciler

ALICE, BOB = 2001, 2002
LISTED4, LISTED6, PORT = "192.168.80.92", "fd00:80::92", 61001
OUTSIDE4, OUTSIDE6 = "10.10.0.94", "2001:db8:10::94"
INGRESS = {
    **SITE,
    "ingress": [
        {"hosts": [LISTED4, LISTED6, "192.168.80.91", "fd00:80::91"], "ports": ["61000-61999"]},
        {"hosts": [OUTSIDE4, OUTSIDE6, LISTED4], "ports": ["61000-61999"], "protocol": "udp"},
    ],
    "control_ports": ["6817-6819"],
}

LISTENER = """
import socket, sys
address, port, family = sys.argv[1], int(sys.argv[2]), socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
listener = socket.socket(family)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
try:
    listener.bind((address, port))
except OSError as error:
    sys.exit(print(type(error).__name__, flush=True))
listener.listen()
print("listens", flush=True)
while True:
    connection, peer = listener.accept()
    connection.sendall(f"{socket.socket().getsockopt(1, 25, 16).rstrip(bytes(1)).decode()} {peer[0]}".encode())
    connection.close()
"""

# Answers where it was asked if it is bound to an address, and from where the kernel likes if it is not.
DATAGRAMS = """
import socket, sys
address, port = sys.argv[1], int(sys.argv[2])
server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
try:
    server.bind((address, port))
except OSError as error:
    sys.exit(print(type(error).__name__, flush=True))
print("listens", flush=True)
while True:
    said, peer = server.recvfrom(100)
    server.sendto(f"{server.getsockopt(1, 25, 16).rstrip(bytes(1)).decode()} {peer[0]}".encode(), peer)
"""


def ensure(site, uid):
    with Reconciler(site) as reconciler:
        return len(reconciler.user(uid))


def pending_node(site):
    with Reconciler(site) as reconciler:
        return [str(change) for change in reconciler.node(check=True)]


@pytest.fixture(scope="module")
def node(lans):
    """A node where alice and bob have networks."""
    node = Host("ingress1", 91, site=INGRESS)
    for uid in (ALICE, BOB):
        node.call(ensure, node.site, uid)
    yield node
    node.delete()


@pytest.fixture(scope="module")
def listed(node):
    """A host without UVN that is listed."""
    host = Node("ingress2", 92)
    yield host
    host.delete()


@pytest.fixture(scope="module")
def unlisted(node):
    host = Node("ingress3", 93)
    yield host
    host.delete()


@pytest.fixture
def outside(node):
    """Hosts outside the listed subnets; the first is listed."""
    hosts = [Node(f"ingress{number}", number, nics={"wan0": "lanwan"}) for number in (94, 95)]
    yield hosts
    for host in hosts:
        host.delete()


@pytest.fixture
def listen(node):
    """A function that lets a user listen on the node; what the program said."""
    started = []

    def start(uid, address="0.0.0.0", port=PORT, listener=LISTENER):
        program = node.run_as(uid, "python3", "-IS", "-c", listener, address, str(port), stdout=subprocess.PIPE)
        started.append(program)
        return program.stdout.readline().strip()

    yield start
    for program in started:
        program.kill()
        program.wait()


@pytest.mark.parametrize("any_address, here, peer", [("0.0.0.0", "192.168.80.91", LISTED4), ("::", "fd00:80::91", LISTED6)])
def test_a_listed_host_reaches_the_user_who_listens(node, listed, unlisted, listen, any_address, here, peer):
    assert listen(ALICE, any_address) == "listens"
    assert listed.call(connect, "", here, PORT) == f"vrf{ALICE} {peer}"
    assert unlisted.call(connect, "", here, PORT) == "ConnectionRefusedError"
    assert node.call(connect, "", here, PORT) == f"vrf{ALICE} {here}", "root on the node itself, which is listed too"
    assert node.call(connect, f"vrf{BOB}", here, PORT) == "ConnectionRefusedError"


def test_ports_that_are_not_listed_stay_closed(listed, listen):
    assert listen(ALICE, port=62001) == "listens"
    assert listed.call(connect, "", "192.168.80.91", 62001) == "ConnectionRefusedError"


def test_two_users_do_not_take_one_port(node, listed, listen):
    assert listen(ALICE) == "listens"
    assert listen(ALICE, "::", PORT + 1) == "listens"
    assert [listen(BOB, address, port) for address in ("0.0.0.0", "127.0.0.1", "::") for port in (PORT, PORT + 1)] == ["PermissionError"] * 6
    assert listen(BOB, port=PORT + 2) == "listens"
    assert listed.call(connect, "", "192.168.80.91", PORT + 2) == f"vrf{BOB} {LISTED4}"
    assert listen(BOB, port=62001) == listen(ALICE, port=62001) == "listens", "outside the ranges both may"


def test_a_port_is_free_when_its_last_socket_is_closed(node, listen):
    with holder(node, ALICE, PORT + 10) as first:
        with holder(node, ALICE, PORT + 10, "127.0.0.2"):
            first.kill()
            first.wait()
            assert listen(BOB, "127.0.0.3", PORT + 10) == "PermissionError"
    assert listen(BOB, port=PORT + 10) == "listens"


def test_a_connection_outlives_its_listener_and_its_successor(node, listed, listen):
    """Alice accepts and closes the listener; bob takes the port; alice's connection goes on."""
    program = (
        f"import socket; l = socket.create_server(('0.0.0.0', {PORT + 20})); print('up', flush=True); c, _peer = l.accept();"
        "l.close(); print('closed', flush=True); c.sendall(c.recv(9) + b' to alice')"
    )
    with python(node, ALICE, program) as server:
        assert server.stdout.readline() == "up\n"
        go, (answer, tell) = FORK.Event(), FORK.Pipe(duplex=False)
        talk = listed.call_later(say_late, PORT + 20, go, tell)
        assert server.stdout.readline() == "closed\n"
        assert listen(BOB, port=PORT + 20) == "listens"
        assert listed.call(connect, "", "192.168.80.91", PORT + 20) == f"vrf{BOB} {LISTED4}"
        go.set()
        talk.join()
    assert answer.recv() == b"hello to alice"


def test_an_accepted_socket_that_connects_elsewhere_is_refused(node, listed):
    """It has the mark that leads replies past the user's network."""
    program = (
        f"import socket; l = socket.create_server(('0.0.0.0', {PORT + 30})); print('up', flush=True); c, _peer = l.accept()\n"
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True); libc.connect(c.fileno(), bytes(16), 16)\n"
        "try: c.settimeout(3); c.connect(('192.168.80.92', 9)); print('connected')\n"
        "except OSError as error: print(type(error).__name__)"
    )
    with python(node, ALICE, program) as attacker:
        assert attacker.stdout.readline() == "up\n"
        listed.call(connect, "", "192.168.80.91", PORT + 30)
        assert attacker.stdout.readline() == "PermissionError\n"


@pytest.mark.parametrize("here, any_address, peer", [("10.10.0.91", "0.0.0.0", OUTSIDE4), ("2001:db8:10::91", "::", OUTSIDE6)])
def test_a_listed_host_outside_the_subnets_reaches_datagram_sockets(node, outside, listen, here, any_address, peer):
    """Again and again by one socket, which accepts nothing but answers from where it asked, as mosh does."""
    for address in (here, any_address):
        port = PORT + 40 + (address == here)
        assert listen(ALICE, address, port, DATAGRAMS) == "listens"
        assert listen(BOB, any_address, port, DATAGRAMS) == "PermissionError"
        assert outside[0].call(exchange, here, port) == [f"vrf{ALICE} {peer}"] * 3
        assert outside[1].call(exchange, here, port, 3) == []


def test_a_datagram_of_a_listed_host_within_a_subnet_arrives(node, listed, unlisted, listen):
    code = DATAGRAMS.replace("server.sendto(", "print(").replace("encode(), peer)", "encode(), flush=True)")
    with node.run_as(ALICE, "python3", "-IS", "-c", code, "0.0.0.0", str(PORT + 50), stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == "listens\n"
        for host in (unlisted, listed):
            host.call(exchange, "192.168.80.91", PORT + 50, 1)
        assert server.stdout.readline() == f"b'vrf{ALICE} {LISTED4}'\n"


def test_a_users_datagrams_go_past_the_network_only_to_listed_hosts_outside(node, outside, listed):
    """With the node's address as their source, by a port that the user holds."""
    for host, address, own in ((outside[0], OUTSIDE4, "10.10.0.91"), (outside[1], "10.10.0.95", "10.10.0.91"), (listed, LISTED4, "192.168.80.91")):
        code = PKTINFO.format(own=own, port=PORT + 60, device=node.index("wan0" if own.startswith("10.") else "em1"), peer=address)
        with Heard(host, PORT + 60) as heard, python(node, ALICE, code) as sender:
            assert sender.wait() == 0
        assert heard.sources == ([own] if host is outside[0] else [])


@pytest.mark.parametrize("port", [6817, 6819])
def test_control_ports_are_not_for_users(node, listen, port):
    assert listen(ALICE, port=port) == listen(ALICE, "::", port) == "PermissionError"
    assert listen(0, port=port) == "listens"
    assert listen(ALICE, port=6820) == "listens"


@pytest.mark.parametrize(
    "address, port, expected",
    [
        ("192.168.80.92", 9, f"vrf{ALICE}"),
        ("fd00:80::92", 9, f"vrf{ALICE}"),
        ("192.168.80.92", 6818, ""),
        ("127.0.0.1", 9, ""),
        ("::1", 9, ""),
    ],
)
def test_root_in_a_job_connects_in_the_network_of_its_user(node, job, address, port, expected):
    assert connecting(node, job, 0, address, port) == ""
    assert node.call_apart(register, os.path.join(job, "step_0"), f"vrf{ALICE}")
    assert connecting(node, job, 0, address, port) == expected
    assert connecting(node, os.path.dirname(job), 0, address, port) == "", "outside the job"


def test_root_with_the_effective_uid_of_the_user_as_well(node, job):
    assert node.call_apart(register, os.path.join(job, "step_0"), f"vrf{ALICE}")
    assert connecting(node, job, ALICE, "192.168.80.92", 9) == f"vrf{ALICE}"


def test_a_process_outside_jobs_is_not_registered(node):
    assert not node.call(Gate().register, os.getpid(), f"vrf{ALICE}")


def test_nothing_is_left_to_do_and_nothing_is_left_behind(node):
    assert node.call(pending_node, node.site) == []
    node.sh("/usr/sbin/uvn node remove")
    assert node.sh("tc qdisc show dev em1; tc qdisc show dev lo").count("clsact") == 0
    assert node.sh("cat /proc/sys/net/ipv4/tcp_fwmark_accept") == "0\n"
    assert not os.path.exists("/sys/fs/bpf/uvn")
    assert "fwmark" not in node.sh("ip rule; ip -6 rule")


# -- helpers ---------------------------------------------------------------------------------------------------------


PKTINFO = """
import socket, struct, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("{own}", {port}))
for again in range(20):
    try:
        info = struct.pack("@i4s4s", {device}, socket.inet_aton("{own}"), bytes(4))  # IP_PKTINFO
        s.sendmsg([b"sideways"], [(socket.IPPROTO_IP, 8, info)], 0, ("{peer}", {port}))
    except OSError:
        pass
    time.sleep(0.1)
"""


class Heard:
    """Who sends datagrams to a port of a host for the length of a `with`, whose end is told by a datagram of the host's own."""

    def __init__(self, host, port):
        self.host, self.port, self.sources, self.ready = host, port, None, FORK.Event()
        self.told, tell = FORK.Pipe(duplex=False)
        self.process = host.call_later(self.hear, tell)

    def hear(self, tell):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("", self.port))
            self.ready.set()
            sources = set()
            while (datagram := server.recvfrom(100))[0] != b"the end":
                sources.add(datagram[1][0])
        tell.send(sorted(sources))

    def __enter__(self):
        assert self.ready.wait(60), "the host does not hear"
        return self

    def __exit__(self, *_exc):
        self.host.call(say, self.port, b"the end")
        self.sources = self.told.recv()
        self.process.join()


def say(port, words):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(words, ("127.0.0.1", port))


def exchange(address, port, patience=30):
    """What the node answers to three datagrams of a connected socket, each within so many seconds."""
    answers = []
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(patience)
        client.connect((address, port))
        for _again in range(3):
            try:
                client.send(b"asked")
                answers.append(client.recv(100).decode())
            except OSError:
                break
    return answers


def python(node, uid, program):
    return node.run_as(uid, "python3", "-IS", "-c", program, stdout=subprocess.PIPE)


@contextlib.contextmanager
def holder(node, uid, port, address="127.0.0.1"):
    """A process of a user that has bound a port and waits."""
    code = f"import socket, time; s = socket.socket(); s.bind(('{address}', {port})); print('up', flush=True); time.sleep(60)"
    with python(node, uid, code) as process:
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()


def say_late(port, go, tell):
    """Connect, wait for what happens on the other side, then say something and tell the answer."""
    with socket.create_connection(("192.168.80.91", port)) as connection:
        go.wait()
        connection.sendall(b"hello")
        tell.send(connection.recv(100))


@pytest.fixture
def job():
    """A cgroup as Slurm makes them for a job."""
    path = os.path.join(cgroup2_mount(), "uvn-test", "job_7")
    os.makedirs(os.path.join(path, "step_0"))
    yield path
    for directory in (os.path.join(path, "step_0"), path, os.path.dirname(path)):
        os.rmdir(directory)


def enter(cgroup):
    with open(os.path.join(cgroup, "cgroup.procs"), "w") as file:
        file.write(str(os.getpid()))


def register(cgroup, vrf):
    enter(cgroup)
    return Gate().register(os.getpid(), vrf)


def connecting(node, cgroup, euid, address, port):
    return node.call_apart(_connecting, os.path.join(cgroup, "step_0") if "job_" in cgroup else cgroup, euid, address, port)


def _connecting(cgroup, euid, address, port):
    """The device of a socket of root that began to connect."""
    enter(cgroup)
    os.seteuid(euid)
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as connection:
        connection.setblocking(False)
        connection.connect_ex((address, port))
        return connection.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0").decode()
