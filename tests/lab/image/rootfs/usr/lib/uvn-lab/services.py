# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The system services that the tests call: every answer is one line, `NODE SERVICE [CLIENT]`.

    7007 tcp, udp   wildcard   on every address
    7008 tcp        loopback   on 127.0.0.1 and ::1
    7009 udp        pktinfo    on every address; answers over the device the question came in by (IP_PKTINFO), as DNS servers do
on ext
    27000 tcp       licence    on its em1 addresses, with the client's address
    8080 tcp, udp   offnet     on its addresses outside the cluster's subnets, with the client's address
"""

import os
import selectors
import socket

NODE = os.uname().nodename
IP_FREEBIND, IPV6_FREEBIND = 15, 78
IP_PKTINFO, IPV6_RECVPKTINFO, IPV6_PKTINFO = 8, 49, 50
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM

EVERYWHERE = ("0.0.0.0", "::")
ON_NODES = [
    ("wildcard", TCP, EVERYWHERE, 7007),
    ("wildcard", UDP, EVERYWHERE, 7007),
    ("loopback", TCP, ("127.0.0.1", "::1"), 7008),
    ("pktinfo", UDP, EVERYWHERE, 7009),
]
ON_EXT = [
    ("licence", TCP, ("192.168.80.5", "fd00:80::5"), 27000),
    ("offnet", TCP, ("198.51.100.10", "2001:db8:100::10"), 8080),
    ("offnet", UDP, ("198.51.100.10", "2001:db8:100::10"), 8080),
]


def bound(kind: int, address: str, port: int) -> socket.socket:
    """A socket at the address, which need not exist yet."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    sock.bind((address, port))
    return sock


def answer(service: str, client: tuple) -> bytes:
    words = [NODE, service]
    if service in ("licence", "offnet"):
        words.append(client[0])
    return (" ".join(words) + "\n").encode()


def serve_tcp(selector, listener, service: str) -> None:
    def accept():
        connection, client = listener.accept()
        connection.setblocking(False)

        def drain():  # until the client closes: closing with unread data would reset the connection under the answer
            try:
                data = connection.recv(65536)
            except OSError:
                data = b""
            if not data:
                selector.unregister(connection)
                connection.close()

        selector.register(connection, selectors.EVENT_READ, drain)
        try:
            connection.sendall(answer(service, client))
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    listener.listen(128)
    selector.register(listener, selectors.EVENT_READ, accept)


def serve_udp(selector, sock, service: str) -> None:
    def reply():
        client = sock.recvfrom(65536)[1]
        sock.sendto(answer(service, client), client)

    selector.register(sock, selectors.EVENT_READ, reply)


def serve_pktinfo(selector, sock, service: str) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)

    def reply():
        _, control, _, client = sock.recvmsg(65536, 256)
        back = []
        for level, kind, data in control:
            if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
                back.append((level, kind, data[:4] + data[8:12] + bytes(4)))  # ifindex, spec_dst := destination
            elif (level, kind) == (socket.IPPROTO_IPV6, IPV6_PKTINFO):
                back.append((level, kind, data))
        sock.sendmsg([answer(service, client)], back, 0, client)

    selector.register(sock, selectors.EVENT_READ, reply)


def main() -> None:
    selector = selectors.DefaultSelector()
    for service, kind, addresses, port in ON_NODES + (ON_EXT if NODE == "ext" else []):
        serve = serve_tcp if kind == TCP else serve_pktinfo if service == "pktinfo" else serve_udp
        for address in addresses:
            serve(selector, bound(kind, address, port), service)
    while True:
        for key, _ in selector.select():
            try:
                key.data()
            except OSError as error:  # an unreachable client must not end the service
                print(f"{key.data.__qualname__}: {error}", flush=True)


main()
