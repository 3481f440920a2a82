# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ssh opens for a user lands in the user's network: -L, -R, -D and X11 forwarding.

The connections come from the test's own host, the user's laptop.
"""

from __future__ import annotations

import re
import select
import shlex
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass

import cases
import pytest
from sessions import kill, ssh

NODE = "c1"
REMOTE_PORT = 18100  # both users ask for it with -R
DISPLAY = 77  # of the X server on the laptop, port 6000 + DISPLAY


@dataclass
class Forwards:
    """One user's ssh with everything forwarded; ports are on the laptop."""

    process: subprocess.Popen
    own: int  # -L to the own listener
    foreign: int  # -L to the other user's listener
    socks: int  # -D
    display: str  # what the session has in $DISPLAY
    errors: object


class Greeter:
    """A server on the laptop that greets whoever connects; `data` is what the last one sent."""

    def __init__(self, text: str, port: int = 0):
        self.server = socket.create_server(("127.0.0.1", port))
        self.port, self.text, self.data = self.server.getsockname()[1], text, b""
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                connection, _peer = self.server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                connection.sendall(self.text.encode() + b"\n")
                try:
                    self.data = connection.recv(4096)
                except OSError:
                    pass

    def close(self) -> None:
        self.server.close()


def free_ports(count: int) -> list:
    servers = [socket.create_server(("127.0.0.1", 0)) for _unused in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def open_forwards(user: str, other: str, greeter: Greeter, x11: bool) -> Forwards:
    own, foreign, socks = free_ports(3)
    forwards = [
        f"-D127.0.0.1:{socks}",
        f"-L127.0.0.1:{own}:127.0.0.1:{cases.WILDCARD[user]}",
        f"-L127.0.0.1:{foreign}:127.0.0.1:{cases.WILDCARD[other]}",
        f"-R{REMOTE_PORT}:127.0.0.1:{greeter.port}",
    ]
    options = ("-oExitOnForwardFailure=yes", "-oLogLevel=INFO", "-Y" if x11 else "-x", *forwards)
    login = ssh(user, NODE, "sh", "-c", 'echo "D=$DISPLAY"; cat', options=options)
    argv = ["env", f"DISPLAY=127.0.0.1:{DISPLAY}", *login]
    pipe, errors = subprocess.PIPE, tempfile.TemporaryFile()
    process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=errors, start_new_session=True)
    ready = select.select([process.stdout], [], [], 60)[0]
    line = process.stdout.readline().decode().strip() if ready else ""
    if not line.startswith("D="):
        kill(process)
        errors.seek(0)
        raise AssertionError(f"{shlex.join(argv)}: {errors.read().decode()}")
    return Forwards(process, own, foreign, socks, line[2:], errors)


@pytest.fixture(scope="module")
def forwards(listening):
    """alice and bob, both with -L, -R, -D to c1; alice with X11 forwarding to a display on her laptop."""
    greeters = {user: Greeter(f"{user}'s laptop") for user in cases.MANAGED}
    opened = {}
    try:
        for user, other in (("alice", "bob"), ("bob", "alice")):
            opened[user] = open_forwards(user, other, greeters[user], x11=user == "alice")
        yield opened
    finally:
        for forward in opened.values():
            kill(forward.process)
        for greeter in greeters.values():
            greeter.close()


def connect(agent, port: int, **more) -> dict:
    return agent.probes([{"proto": "tcp", "family": 4, "address": "127.0.0.1", "port": port, "timeout": 15, **more}])[0]


@pytest.mark.parametrize("user", cases.MANAGED)
def test_local_forward_reaches_the_own_listener(forwards, host, user):
    assert connect(host, forwards[user].own)["text"].startswith(f"{user} {NODE} ")


@pytest.mark.parametrize("user", cases.MANAGED)
def test_local_forward_to_another_users_listener_is_refused(forwards, host, user):
    """sshd connects as the user: the channel fails, the laptop sees an end without a byte."""
    forward = forwards[user]
    result = connect(host, forward.foreign)
    assert (result["result"], result["text"]) == ("hangup", "")
    time.sleep(0.2)
    forward.errors.seek(0)
    assert "connect failed: Connection refused" in forward.errors.read().decode()


def socks_request(address: str, port: int) -> str:
    """SOCKS 5: no authentication (RFC 1928, 3), CONNECT to an IPv4 address (4)."""
    request = b"\5\1\0" + b"\5\1\0\1" + socket.inet_aton(address) + port.to_bytes(2, "big")
    return request.decode("latin-1")


@pytest.mark.parametrize("user, other", [("alice", "bob"), ("bob", "alice")])
def test_dynamic_forward_reaches_only_the_own_listener(forwards, host, user, other):
    wanted = {"send": socks_request("127.0.0.1", cases.WILDCARD[user])}
    assert f"{user} {NODE} " in connect(host, forwards[user].socks, **wanted)["text"]
    unwanted = {"send": socks_request("127.0.0.1", cases.WILDCARD[other]), "want": 1 << 20}
    assert other not in connect(host, forwards[user].socks, **unwanted)["text"]


def test_remote_forwards_of_two_users_share_a_port(forwards, cluster):
    """Each listener is in its user's network; nobody else finds one there."""
    for user in cases.MANAGED:
        assert connect(cluster.session(user, NODE), REMOTE_PORT)["text"] == f"{user}'s laptop\n"
    for user in ("exempted", "root"):
        assert connect(cluster.session(user, NODE), REMOTE_PORT)["result"] == "refused"


def x11_setup(cookie: str) -> str:
    """The first packet of an X client, little-endian, protocol 11.0 (X11 protocol, encoding of connection setup)."""
    name = b"MIT-MAGIC-COOKIE-1"
    header = b"l\0" + b"\x0b\0\0\0" + len(name).to_bytes(2, "little") + b"\x10\0" + b"\0\0"
    return (header + name + b"\0\0" + bytes.fromhex(cookie)).decode("latin-1")


def test_x11_forwarding_is_for_its_user_only(forwards, cluster):
    """alice's display on c1 reaches the X server on her laptop; to the others its port is closed."""
    display = forwards["alice"].display
    match = re.fullmatch(r"localhost:(\d+)\.0", display)
    assert match, f"DISPLAY is {display!r}"
    port = 6000 + int(match.group(1))
    server = Greeter("the X server of alice's laptop", 6000 + DISPLAY)
    try:
        alice = cluster.session("alice", NODE)
        cookie = alice.check("xauth", "list", f":{match.group(1)}").split()[-1]
        assert connect(alice, port, send=x11_setup(cookie))["text"] == server.text + "\n"
        for user in ("bob", "exempted", "root"):
            assert connect(cluster.session(user, NODE), port, connect_only=True)["result"] == "refused", user
    finally:
        server.close()
