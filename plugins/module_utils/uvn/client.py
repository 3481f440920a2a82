# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking uvnd: one JSON object a line, one request and one reply per connection.

A request brings along what the directory says of the accounts that it names: uvnd asks no directory, which may keep it waiting.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

from . import accounts
from .errors import UvnError

SOCKET = "/run/uvn/uvnd.sock"
TIMEOUT = 120  # seconds


def request(message: dict[str, Any], path: str = SOCKET, timeout: float = TIMEOUT) -> dict[str, Any]:
    """Send a request and return the reply. Raises UvnError with uvnd's sentence, when it does not answer, or for a name that is no account's."""
    brought = introductions(message)
    if brought:
        message = {**message, "accounts": brought}
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


def introductions(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The accounts that a request names. An account of which the directory says nothing is left out, and uvnd goes by what it knows."""
    found = []
    for key, look_up in (("user", accounts.by_name), ("uid", accounts.by_uid)):
        for asked in [*message.get(f"{key}s", []), *([message[key]] if key in message else [])]:
            with contextlib.suppress(accounts.Silent):
                account = accounts.account(look_up(asked))
                if account:
                    found.append({"name": account.name, "uid": account.uid, "gids": sorted(account.gids)})
                elif key == "user":
                    raise UvnError(f"user {asked!r} is unknown on this node; `getent passwd` must find the account")
    return found
