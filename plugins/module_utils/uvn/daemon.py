# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uvnd: a loop over the socket of requests, the kernel's notifications and the time.

What fails in a round is logged, and the next round comes: logins depend on it. A round that does not end is ended by systemd's watchdog.
"""

# pylint: disable=ansible-bad-function  # a program of the nodes, no Ansible module imports it

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import os
import select
import socket
import time
import traceback

from .client import SOCKET
from .keeper import Keeper, log
from .service import Service
from .site import PATH
from .store import RUN
from .witness import KMSG, Witness

REQUEST_MAX = 4 * 2**20  # bytes
REQUEST_TIMEOUT = 5  # seconds for a client to send its line
FIRST_SOCKET = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
ALIVE = "WATCHDOG=1"  # sd_notify(3)
IDLE = 20  # seconds between two rounds at most; WatchdogSec of uvnd.service is several of these
AT_ONCE = 50  # requests that are answered before the kernel's notifications are looked at again


def main(site_path: str = PATH) -> int:
    """Run until stopped: on the socket systemd hands over, or on one of our own."""
    faulthandler.enable()  # the watchdog's SIGABRT then tells where we were
    witnesses = _witnesses()
    keeper = Keeper(site_path)
    service = Service(keeper)
    listener = _listener()
    keeper.alive = functools.partial(notify, ALIVE)
    keeper.between = functools.partial(_serve_waiting, service, listener)
    notify("READY=1")
    while True:
        _round(keeper, service, listener, witnesses)


def _round(keeper: Keeper, service: Service, listener: socket.socket, witnesses: list[Witness]) -> None:
    """Work that is due, then what comes first of a request, a notification and the time."""
    keeper.alive()
    keeper.work()
    ready = select.select([listener, keeper.events, keeper.nftables, keeper.inquiry, *witnesses], [], [], min(keeper.wait(), IDLE))[0]
    keeper.attempt(keeper.read)
    _serve_waiting(service, listener)
    for witness in [one for one in witnesses if one in ready]:
        witnesses.remove(witness)
        witness.close()
        log("the process that names programs has ended; those behind what the guard finds will not be named until uvnd starts again", error=True)


def notify(state: str) -> None:
    """Tell systemd, where it started us (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, contextlib.suppress(OSError):  # it is busy, or starts anew
            manager.setblocking(False)
            manager.connect(f"\0{path[1:]}" if path.startswith("@") else path)
            manager.send(state.encode())


def _witnesses() -> list[Witness]:
    """One, or none where the kernel's log cannot be read: logins do not depend on it."""
    try:
        return [Witness(log, KMSG)]
    except OSError as error:
        log(f"{KMSG}: {error.strerror}; the programs behind what the guard finds will not be named", error=True)
        return []


def _serve_waiting(service: Service, listener: socket.socket) -> None:
    """Connections that wait, AT_ONCE of them at most."""
    for _number in range(AT_ONCE):
        if not select.select([listener], [], [], 0)[0]:
            return
        _serve(service, listener)


def _serve(service: Service, listener: socket.socket) -> None:
    """One connection; a client that is slow, broken or gone costs at most REQUEST_TIMEOUT.

    Raises OSError when no connection can be accepted, for want of descriptors or memory: then uvnd has to start anew.
    """
    connection, _address = listener.accept()
    notify(ALIVE)
    with connection:
        connection.settimeout(REQUEST_TIMEOUT)
        try:
            message = json.loads(line(connection))
            if not isinstance(message, dict):
                raise ValueError("not a JSON object")
            connection.sendall(json.dumps(service.handle(message)).encode() + b"\n")
        except (OSError, ValueError, RecursionError) as error:
            log(f"request dropped: {error}", error=True)
        except Exception:  # a fault of ours, and others wait
            log(f"request failed: {traceback.format_exc()}", error=True)


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
