# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uvnd: a loop over the socket of requests, the kernel's notifications and the time."""

# pylint: disable=ansible-bad-function  # a program of the nodes, no Ansible module imports it

from __future__ import annotations

import functools
import json
import os
import select
import socket
import time

from .client import SOCKET
from .keeper import Keeper, log
from .netlink import Refused
from .service import Service
from .site import PATH
from .store import RUN
from .witness import KMSG, Witness

REQUEST_MAX = 4 * 2**20  # bytes
REQUEST_TIMEOUT = 5  # seconds for a client to send its line
FIRST_SOCKET = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)


def main(site_path: str = PATH) -> int:
    """Run until stopped: on the socket systemd hands over, or on one of our own."""
    keeper = Keeper(site_path)
    service = Service(keeper)
    listener = _listener()
    witnesses = _witnesses()
    keeper.between = functools.partial(_serve_waiting, service, listener)
    while True:
        keeper.work()
        select.select([listener, keeper.events, keeper.nftables, keeper.inquiry, *witnesses], [], [], keeper.wait())
        keeper.read()
        _testify(witnesses)
        _serve_waiting(service, listener)


def _witnesses() -> list[Witness]:
    """One, or none where the kernel's log cannot be read: logins do not depend on it."""
    try:
        return [Witness()]
    except OSError as error:
        log(f"{KMSG}: {error.strerror}; the programs behind what the guard finds will not be named", error=True)
        return []


def _testify(witnesses: list[Witness]) -> None:
    try:
        for seen in (line for witness in witnesses for line in witness.read()):
            log(seen)
    except (OSError, Refused) as error:
        log(f"a program behind what the guard found cannot be named: {error}", error=True)


def _serve_waiting(service: Service, listener: socket.socket) -> None:
    """Every connection that waits."""
    while select.select([listener], [], [], 0)[0]:
        _serve(service, listener)


def _serve(service: Service, listener: socket.socket) -> None:
    """One connection; a client that is slow, broken or gone costs at most REQUEST_TIMEOUT."""
    connection, _address = listener.accept()
    with connection:
        connection.settimeout(REQUEST_TIMEOUT)
        try:
            message = json.loads(line(connection))
            if not isinstance(message, dict):
                raise ValueError("not a JSON object")
            connection.sendall(json.dumps(service.handle(message)).encode() + b"\n")
        except (OSError, ValueError, RecursionError) as error:
            log(f"request dropped: {error}", error=True)


def line(connection: socket.socket) -> bytes:
    """What a client sends up to the end of its line. Raises ValueError when that is too long or takes too long."""
    data = b""
    deadline = time.monotonic() + REQUEST_TIMEOUT
    while not data.endswith(b"\n"):
        part = connection.recv(65536)
        data += part
        if not part or len(data) > REQUEST_MAX or time.monotonic() > deadline:
            raise ValueError(f"no line of at most {REQUEST_MAX} bytes within {REQUEST_TIMEOUT} s")
    return data


def _listener() -> socket.socket:
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        return socket.socket(fileno=FIRST_SOCKET)
    os.makedirs(RUN, mode=0o755, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.path.exists(SOCKET):
        os.unlink(SOCKET)
    os.umask(0o177)
    listener.bind(SOCKET)
    os.umask(0o022)
    listener.listen(1024)
    return listener
