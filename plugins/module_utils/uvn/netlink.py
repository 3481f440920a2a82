# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A netlink socket that sends many requests at once and has a time limit, and the messages a user has dozens of.

pyroute2's own socket and messages cost several times as much for the same requests (tests/bench/netlink.py prints how much); the socket
waits for ever when an answer is lost, and from 0.9.1 on does not say that a dump was interrupted. Its classes serve links and rules, whose
attributes are many and nested.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from typing import Any, Iterable, Iterator, NamedTuple, Sequence

from .errors import UvnError

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
IFINFO = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, changed flags
IFADDR = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
RTMSG = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, destination and source length, TOS, table, protocol, scope, type, flags
RTNEXTHOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, weight - 1, interface index
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_ACK_TLVS = 0x1, 0x4, 0x10, 0x200
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_DUMP = 0x100, 0x200, 0x400, 0x300
NLMSGERR_ATTR_MSG = 1
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
SO_RCVBUFFORCE = 33
RECEIVE_BUFFER = 4 * 2**20  # bytes; an acknowledgement takes less than 1 KiB
AT_ONCE = 200  # requests whose acknowledgements wait in the buffer
TIMEOUT = 10  # seconds
DUMP_TRIES = 5


class Refused(Exception):
    """The kernel's answer to a request: `code` is an errno, the text the kernel's own where it gave one."""

    def __init__(self, code: int, text: str = "") -> None:
        super().__init__(text or os.strerror(code))
        self.code = code


class Message(NamedTuple):
    """One message of the kernel, not decoded."""

    kind: int
    flags: int
    data: bytes


class Netlink:
    """One socket, for one thread. Open it after fork; after an OSError it opens itself anew.

    Raises UvnError when the kernel does not answer.
    """

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._protocol = protocol
        self._sequence = 0
        self._socket = _open(protocol)

    def close(self) -> None:
        self._socket.close()

    def get(self, request: bytes) -> Message:
        """The one answer to a request. Raises Refused, as when there is no such object."""
        for message in self._receive({self._send([request])}):
            if message.kind == NLMSG_ERROR:
                raise _refused(message)
            return message
        raise AssertionError("the kernel always answers a request")

    def dump(self, request: bytes) -> list[Message]:
        """All objects that match, filtered by the kernel; repeated when the tables changed meanwhile."""
        for _attempt in range(DUMP_TRIES):
            messages = list(self._receive({self._send([request])}))
            last = messages.pop()
            if any(message.flags & NLM_F_DUMP_INTR for message in (*messages, last)):
                continue
            return messages if _complete(last, request) else []
        raise UvnError(f"the kernel's tables changed during {DUMP_TRIES} dumps in a row; try again when the node is calmer")

    def each(self, request: bytes) -> Iterator[Message]:
        """The same one by one as they come, for what may be too much to keep; what changes meanwhile may be missing, or there twice."""
        for message in self._receive({self._send([request])}):
            if message.kind in (NLMSG_ERROR, NLMSG_DONE):
                _complete(message, request)
            else:
                yield message

    def apply(self, requests: Sequence[bytes]) -> list[Refused | None]:
        """Send requests together; for each what the kernel refused, or None. It carries out those after a refused one."""
        answers: list[Refused | None] = []
        for start in range(0, len(requests), AT_ONCE):
            part = requests[start : start + AT_ONCE]
            answers += self._answers(self._send(part), len(part))
        return answers

    def transaction(self, begin: bytes, requests: Sequence[bytes], end: bytes) -> list[Refused | None]:
        """Send requests of which the kernel carries out all or none; for each what it refused, or None."""
        return self._answers(self._send([begin, *requests, end]) - 1, len(requests))

    def _answers(self, last: int, count: int) -> list[Refused | None]:
        """The acknowledgements of `count` requests up to the number `last`."""
        refusals = [_refused(message) for message in self._receive(set(range(last - count + 1, last + 1)))]
        return [refusal if refusal.code else None for refusal in refusals]

    def _send(self, requests: Sequence[bytes]) -> int:
        """Number the requests and send them; the number of the last."""
        parts = []
        for request in requests:
            self._sequence = self._sequence + 1 & 0x7FFFFFFF
            length, kind, flags, _sequence, _port = HEADER.unpack_from(request)
            parts += [HEADER.pack(length, kind, flags, self._sequence, 0), request[HEADER.size :], bytes(-length % 4)]
        try:
            self._socket.send(b"".join(parts))
        except OSError as error:
            self._fail(error)
        return self._sequence

    def _receive(self, wanted: set[int]) -> Iterator[Message]:
        """The answers to the requests of these numbers, one each, or all parts of a dump and its end."""
        while wanted:
            try:
                data = self._socket.recv(2**18)
            except OSError as error:
                self._fail(error)
            for number, message in split(data):
                if number not in wanted:
                    continue  # of a request that was given up
                if not message.flags & 0x2 or message.kind in (NLMSG_ERROR, NLMSG_DONE):  # NLM_F_MULTI
                    wanted.discard(number)
                yield message

    def _fail(self, error: OSError) -> None:
        self._socket.close()
        self._socket = _open(self._protocol)
        raise UvnError(f"the kernel did not answer over netlink ({error}); try again") from None


def encode(cls: type, kind: int, flags: int, attributes: Sequence, fields: dict[str, Any] | None = None) -> bytes:
    """A request of one of pyroute2's message classes; `attributes` are pairs of its names and values."""
    message = cls()
    for field in message.fields:
        message[field[0]] = (fields or {}).get(field[0], 0)
    message["attrs"] = [list(attribute) for attribute in attributes]
    message["header"] = {"type": kind, "flags": flags | NLM_F_REQUEST}
    message.encode()
    return bytes(message.data)


def decode(cls: type, message: Message) -> Any:
    """A message as one of pyroute2's classes."""
    decoded = cls(message.data)
    decoded.decode()
    return decoded


def pack(kind: int, flags: int, body: bytes, attributes: Iterable[tuple[int, bytes]]) -> bytes:
    """A request of a struct and attributes by number, whose values are in the kernel's byte order."""
    payload = body + pack_attributes(attributes)
    return HEADER.pack(HEADER.size + len(payload), kind, flags | NLM_F_REQUEST, 0, 0) + payload


def pack_attributes(attributes: Iterable[tuple[int, bytes]]) -> bytes:
    parts = []
    for number, value in attributes:
        parts += [ATTRIBUTE.pack(ATTRIBUTE.size + len(value), number), value, bytes(-len(value) % 4)]
    return b"".join(parts)


def u32(number: int) -> bytes:
    """An attribute's value of 32 bits."""
    return number.to_bytes(4, sys.byteorder)


def number_of(value: bytes | None) -> int | None:
    """The number that an attribute's value holds, None of no attribute."""
    return None if value is None else int.from_bytes(value, sys.byteorder)


def split(data: bytes) -> Iterator[tuple[int, Message]]:
    """The messages in what one recv() gave, each with its sequence number."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, flags, number, _port = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            return
        yield number, Message(kind, flags, data[offset : offset + length])
        offset += length + -length % 4


def attributes_of(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes from an offset on, by number; of a repeated one the last."""
    return dict(attributes(data, offset))


def attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """The attributes from an offset on, number and value."""
    while offset + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < ATTRIBUTE.size:
            break
        yield kind & 0x3FFF, data[offset + ATTRIBUTE.size : offset + length]  # without NLA_F_NESTED, NLA_F_NET_BYTEORDER
        offset += length + -length % 4


def _open(protocol: int) -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
        opened.setsockopt(SOL_NETLINK, option, 1)
    opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    opened.settimeout(TIMEOUT)
    opened.bind((0, 0))
    return opened


def _complete(last: Message, request: bytes) -> bool:
    """Whether a dump came to its end; False where there is nothing to list. Raises UvnError when the kernel refused it."""
    error = _refused(last)
    if error.code in (errno.ENOENT, errno.ENODEV):  # a routing table that does not exist is empty, so is a device that has just gone
        return False
    if error.code:
        raise UvnError(f"the kernel refused to list what message type {HEADER.unpack_from(request)[1]} asks for: {error}")
    return True


def _refused(message: Message) -> Refused:
    """What an acknowledgement, an error or the end of a dump says; code 0 is success."""
    code = -struct.unpack_from("=i", message.data, HEADER.size)[0] if len(message.data) >= HEADER.size + 4 else 0
    text = b""
    if message.flags & NLM_F_ACK_TLVS:
        skip = HEADER.size + 4 + (HEADER.size if message.kind == NLMSG_ERROR else 0)  # NETLINK_CAP_ACK: only the request's header
        text = attributes_of(message.data, skip).get(NLMSGERR_ATTR_MSG, b"")
    return Refused(code, text.rstrip(b"\0").decode("utf-8", "replace"))
