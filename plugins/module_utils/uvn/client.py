# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking uvnd: one JSON object a line, one request and one reply per connection."""

from __future__ import annotations

import json
import socket
from typing import Any

from .errors import UvnError

SOCKET = "/run/uvn/uvnd.sock"
TIMEOUT = 120  # seconds


def request(message: dict[str, Any], path: str = SOCKET, timeout: float = TIMEOUT) -> dict[str, Any]:
    """Send a request and return the reply. Raises UvnError with uvnd's sentence, or when it does not answer."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(path)
            connection.sendall(json.dumps(message).encode() + b"\n")
            reply = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
    except (OSError, ValueError) as error:
        raise UvnError(f"uvnd does not answer at {path} ({error}); see `systemctl status uvnd.socket uvnd`") from None
    if not reply.get("ok"):
        raise UvnError(reply.get("error", f"uvnd sent an unknown reply: {reply!r}"))
    return reply
