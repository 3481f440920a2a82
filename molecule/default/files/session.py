# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session that is open while UVN is taken away: the networks of its sockets before and after, and whether the new ones work."""

import os
import socket
import time

SO_BINDTODEVICE = 25  # include/uapi/asm-generic/socket.h


def network() -> str:
    """The device that the kernel bound a new socket to."""
    with socket.socket() as probe:
        return probe.getsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, 16).rstrip(b"\0").decode() or "default"


print(network())
with open("/tmp/session-open", "w"):
    pass
while os.path.exists("/etc/uvn/site.json"):  # the last that goes
    time.sleep(0.5)
print(network())
for host in ("127.0.0.1", "::1", "c1"):
    with socket.create_connection((host, 7007), timeout=30) as connection:
        print(connection.recv(100).decode().split()[1])
