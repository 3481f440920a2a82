# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent that runs inside a user's ssh session and does what a user's program would do.

It speaks JSON lines over stdin and stdout: one request, one reply. Everything runs in one poll loop, so that a
batch of hundreds of probes costs one round trip and the agent's own listeners answer while its probes are under way.
Standard library only, Python >= 3.9; it is sent over stdin (see sessions.py) and needs no file on the node.

A listener answers every TCP connection and every datagram with ``USER NODE PID from SOURCE``.

Outcome of a probe (key ``result``):
    answer       the text that came back is in ``text`` (ICMP: ``echo reply``)
    refused      RST, or an ICMP port unreachable for UDP
    unreachable  no route, or an ICMP unreachable
    timeout      nothing came back within ``timeout`` seconds
    silent       TCP: connected, but not a byte came within ``timeout`` seconds
    hangup       TCP: connected, then closed by the other side without a byte
    eperm        the kernel did not let this process have the socket or use it so
    anything else is the errno's name in lower case
"""

from __future__ import annotations

import errno
import heapq
import itertools
import json
import os
import pwd
import select
import socket
import struct
import subprocess
import sys
import threading
import time

USER = pwd.getpwuid(os.getuid()).pw_name
NODE = socket.gethostname()
IDENTITY = f"{USER} {NODE} {os.getpid()}"
IN_FLIGHT = 32  # probes under way at a time
RESEND = 0.8  # seconds between the copies of a datagram
SO_BINDTODEVICE = 25
KINDS = {
    "tcp": (socket.SOCK_STREAM, {4: 0, 6: 0}),
    "udp": (socket.SOCK_DGRAM, {4: 0, 6: 0}),
    "icmp": (socket.SOCK_DGRAM, {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}),
}
NAMES = {
    errno.ECONNREFUSED: "refused",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETDOWN: "unreachable",
    errno.ETIMEDOUT: "timeout",
    errno.ECONNRESET: "hangup",
    errno.EPIPE: "hangup",
}


def outcome(number):
    """Name of an errno as the outcome of a probe."""
    return NAMES.get(number) or errno.errorcode.get(number, str(number)).lower()


def make_socket(proto, family):
    kind, protocols = KINDS[proto]
    domain = socket.AF_INET if family == 4 else socket.AF_INET6
    sock = socket.socket(domain, kind, protocols[family])
    sock.setblocking(False)
    return sock


def sockaddr(family, address, port):
    """Address as the socket calls want it; ``fe80::1%em1`` carries its interface."""
    if family == 4:
        return (address, port)
    address, _percent, zone = address.partition("%")
    return (address, port, 0, socket.if_nametoindex(zone) if zone else 0)


class Loop:
    """One poll loop for stdin, listeners, probes and timers."""

    def __init__(self):
        self.poll = select.poll()
        self.handlers = {}
        self.timers = []
        self.count = itertools.count()

    def watch(self, fd, events, handler):
        self.handlers[fd] = handler
        self.poll.register(fd, events)

    def change(self, fd, events):
        self.poll.modify(fd, events)

    def forget(self, fd):
        if self.handlers.pop(fd, None):
            self.poll.unregister(fd)

    def at(self, when, function):
        heapq.heappush(self.timers, (when, next(self.count), function))

    def step(self):
        wait = None
        if self.timers:
            wait = max(0.0, self.timers[0][0] - time.monotonic()) * 1000 + 1
        for fd, event in self.poll.poll(wait):
            handler = self.handlers.get(fd)
            if handler:
                handler(event)
        while self.timers and self.timers[0][0] <= time.monotonic():
            heapq.heappop(self.timers)[2]()


LOOP = Loop()


class Listener:
    """Answers who it is; remembers whom it heard from."""

    def __init__(self, spec):
        self.proto, self.heard = spec["proto"], []
        self.sock = make_socket(self.proto, spec["family"])
        try:
            self.open(spec)
        except OSError:
            self.sock.close()
            raise
        LOOP.watch(self.sock.fileno(), select.POLLIN, self.accept if self.proto == "tcp" else self.receive)

    def open(self, spec):
        if self.proto == "tcp":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if spec["family"] == 6:
            self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.sock.bind(sockaddr(spec["family"], spec["address"], spec["port"]))
        if self.proto == "tcp":
            self.sock.listen(256)
        self.port = self.sock.getsockname()[1]

    def answer(self, peer):
        self.heard.append(peer[0])
        return f"{IDENTITY} from {peer[0]}\n".encode()

    def accept(self, _event):
        try:
            connection, peer = self.sock.accept()
        except OSError:
            return
        with connection:
            try:
                connection.send(self.answer(peer))
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def receive(self, _event):
        try:
            _data, peer = self.sock.recvfrom(2048)
            self.sock.sendto(self.answer(peer), peer)
        except OSError:
            pass

    def close(self):
        LOOP.forget(self.sock.fileno())
        self.sock.close()


class Probe:
    """One attempt to reach something; calls ``done(result)`` exactly once."""

    def __init__(self, spec, done):
        self.spec, self.done, self.sock, self.data = spec, done, None, b""
        self.stream = spec["proto"] == "tcp"
        self.connected = not self.stream
        self.begin = time.monotonic()
        self.deadline = self.begin + spec.get("timeout", 5)
        try:
            self.start()
        except OSError as error:
            if spec["proto"] == "icmp" and error.errno == errno.EACCES:
                self.ping()
            else:
                self.finish(outcome(error.errno))
        except (ValueError, OverflowError) as error:
            self.finish("error", str(error))

    def start(self):
        spec = self.spec
        self.sock = make_socket(spec["proto"], spec["family"])
        if spec.get("device"):
            self.sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, spec["device"].encode() + b"\0")
        if spec.get("source"):
            self.sock.bind(sockaddr(spec["family"], spec["source"], 0))
        self.payload = spec.get("send", "" if self.stream else "who\n").encode("latin-1")
        number = self.sock.connect_ex(sockaddr(spec["family"], spec["address"], spec.get("port", 0)))
        if number not in (0, errno.EINPROGRESS):
            raise OSError(number, "connect")
        LOOP.watch(self.sock.fileno(), select.POLLOUT if self.stream else select.POLLIN, self.event)
        LOOP.at(self.deadline, self.expire)
        if not self.stream:
            self.datagram()

    def ping(self):
        """By ping(8), which has the capability, where net.ipv4.ping_group_range leaves this group out."""
        wait = str(max(1, int(self.deadline - self.begin)))
        argv = ["ping", "-n", "-c", wait, "-W", wait, "-w", wait, f"-{self.spec['family']}", self.spec["address"]]
        pipe = subprocess.PIPE
        try:
            child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT)
        except OSError as error:
            return self.finish("error", f"ping: {error}")
        LOOP.watch(child.stdout.fileno(), select.POLLIN | select.POLLHUP, lambda _event: self.ping_output(child))

    def ping_output(self, child):
        data = os.read(child.stdout.fileno(), 4096)
        self.data += data
        answered = b"bytes from" in self.data
        if data and not answered:
            return
        LOOP.forget(child.stdout.fileno())
        child.kill()
        child.stdout.close()
        child.wait()
        words = (
            ("nreachable", "unreachable"),
            ("No route to host", "unreachable"),
            ("not permitted", "eperm"),
            ("100% packet loss", "timeout"),
        )
        failure = [result for text, result in words if text.encode() in self.data]
        if answered:
            self.finish("answer", "echo reply")
        else:
            self.finish(failure[0] if failure else "error")

    def datagram(self):
        """Send the datagram, and again every RESEND seconds: neighbours may not be resolved yet."""
        if not self.sock or time.monotonic() >= self.deadline:
            return
        data = self.payload
        if self.spec["proto"] == "icmp":
            data = struct.pack("!BBHHH", 8 if self.spec["family"] == 4 else 128, 0, 0, 0, 1) + b"uvn isolation"
        try:
            self.sock.send(data)
        except OSError as error:
            return self.finish(outcome(error.errno))
        LOOP.at(time.monotonic() + RESEND, self.datagram)

    def event(self, _event):
        try:
            if not self.connected:
                return self.connect_done()
            data = self.sock.recv(4096)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            return self.finish(outcome(error.errno) if not self.data else "answer")
        if not self.stream:
            return self.packet(data)
        self.data += data
        if not data:
            self.finish("answer" if self.data else "hangup")
        elif len(self.data) >= self.spec.get("want", 1 << 20) or (b"\n" in self.data and "want" not in self.spec):
            self.finish("answer")

    def connect_done(self):
        number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            return self.finish(outcome(number))
        self.connected = True
        if self.spec.get("connect_only"):
            return self.finish("answer", "connected")
        if self.payload:
            self.sock.send(self.payload)
        LOOP.change(self.sock.fileno(), select.POLLIN)

    def packet(self, data):
        if self.spec["proto"] == "icmp":
            if data[:1] not in (b"\0", b"\x81"):
                return
            self.data = b"echo reply"
        else:
            self.data = data
        self.finish("answer")

    def expire(self):
        if self.sock:
            self.finish("answer" if self.data else "silent" if self.stream and self.connected else "timeout")

    def finish(self, result, text=None):
        if self.sock:
            LOOP.forget(self.sock.fileno())
            self.sock.close()
            self.sock = None
        done, self.done = self.done, None
        if done:
            text = self.data.decode("latin-1") if text is None else text
            done({"result": result, "text": text, "ms": round((time.monotonic() - self.begin) * 1000)})


class Batch:
    """Many probes, IN_FLIGHT at a time; replies when the last one is done."""

    def __init__(self, specs, reply):
        self.specs, self.reply, self.next, self.left = specs, reply, 0, len(specs)
        self.results = [None] * len(specs)
        if not specs:
            reply({"results": []})
        for _unused in range(min(IN_FLIGHT, len(specs))):
            self.start()

    def start(self):
        if self.next < len(self.specs):
            number, self.next = self.next, self.next + 1
            # by timer, not by recursion: a thousand probes that fail at once must not nest
            LOOP.at(0, lambda: Probe(self.specs[number], lambda result: self.done(number, result)))

    def done(self, number, result):
        self.results[number] = result
        self.left -= 1
        if self.left:
            self.start()
        else:
            self.reply({"results": self.results})


LISTENERS = []
CHILDREN = {}
OUTPUT = threading.Lock()


def do_listen(request, reply):
    """Open the listeners; one result for each: its port, or why not."""
    results = []
    for spec in request["listeners"]:
        try:
            listener = Listener(spec)
            LISTENERS.append(listener)
            results.append({"result": "listening", "port": listener.port})
        except OSError as error:
            results.append({"result": outcome(error.errno)})
    reply({"results": results})


def do_close(request, reply):
    """Close the listeners on a port (0: all)."""
    for listener in [one for one in LISTENERS if request["port"] in (0, one.port)]:
        listener.close()
        LISTENERS.remove(listener)
    reply({})


def do_heard(request, reply):
    """Whom the listeners on a port heard from."""
    reply({"heard": [peer for one in LISTENERS if one.port == request["port"] for peer in one.heard]})


def do_probes(request, reply):
    Batch(request["probes"], reply)


def do_sockets(_request, reply):
    """Make TCP and UDP sockets; the device it is bound to, or why there is none (SO_BINDTODEVICE of socket(7))."""
    devices = {}
    for proto in ("tcp", "udp"):
        for family in (4, 6):
            try:
                with make_socket(proto, family) as sock:
                    value = sock.getsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, 16)
                    devices[proto + str(family)] = value.split(b"\0")[0].decode()
            except OSError as error:
                devices[proto + str(family)] = outcome(error.errno)
    reply({"devices": devices})


def do_getaddrinfo(request, reply):
    def work():
        try:
            found = socket.getaddrinfo(request["name"], None, type=socket.SOCK_STREAM)
            reply({"addresses": sorted({entry[4][0] for entry in found})})
        except OSError as error:
            reply({"addresses": [], "error": str(error)})

    threading.Thread(target=work, daemon=True).start()


def do_run(request, reply):
    """Run a command to its end: rc (None: it took longer than ``limit`` seconds), stdout, stderr."""

    def work():
        try:
            done = subprocess.run(
                request["argv"],
                check=False,
                input=request.get("stdin", ""),
                timeout=request["limit"],
                capture_output=True,
                text=True,
                errors="replace",
            )
            reply({"rc": done.returncode, "stdout": done.stdout, "stderr": done.stderr})
        except subprocess.TimeoutExpired as error:
            reply({"rc": None, "stdout": str(error.stdout or ""), "stderr": str(error.stderr or "")})
        except OSError as error:
            reply({"rc": 127, "stdout": "", "stderr": str(error)})

    threading.Thread(target=work, daemon=True).start()


def do_spawn(request, reply):
    """Start a command that stays until ``stop``; its output goes nowhere."""
    null = subprocess.DEVNULL
    child = subprocess.Popen(request["argv"], stdin=null, stdout=null, stderr=null)
    CHILDREN[child.pid] = child
    reply({"pid": child.pid})


def do_stop(request, reply):
    child = CHILDREN.pop(request["pid"])
    child.terminate()
    reply({"rc": child.wait(10)})


OPS = {
    "listen": do_listen,
    "close": do_close,
    "heard": do_heard,
    "probes": do_probes,
    "sockets": do_sockets,
    "getaddrinfo": do_getaddrinfo,
    "run": do_run,
    "spawn": do_spawn,
    "stop": do_stop,
}


def emit(message):
    data = (json.dumps(message, separators=(",", ":")) + "\n").encode()
    with OUTPUT:
        while data:
            data = data[os.write(1, data) :]


def handle(line):
    request = json.loads(line)
    number = request.pop("id")
    try:
        OPS[request.pop("op")](request, lambda answer: emit(dict(answer, id=number)))
    except Exception as error:  # the host side shows it with the request it belongs to
        emit({"id": number, "failed": f"{type(error).__name__}: {error}"})


class Input:
    """Requests from stdin; the end of stdin is the end of the agent."""

    def __init__(self):
        self.data, self.open = b"", True
        LOOP.watch(0, select.POLLIN | select.POLLHUP, self.read)

    def read(self, _event):
        data = os.read(0, 1 << 16)
        self.open = bool(data)
        self.data += data
        while b"\n" in self.data:
            line, self.data = self.data.split(b"\n", 1)
            handle(line)


def main():
    stdin = Input()
    with open("/proc/self/cgroup") as cgroup:
        emit(
            {
                "hello": IDENTITY,
                "user": USER,
                "node": NODE,
                "uid": os.getuid(),
                "pid": os.getpid(),
                "cgroup": cgroup.read().strip(),
                "environment": {
                    key: os.environ.get(key, "") for key in ("DISPLAY", "XDG_RUNTIME_DIR", "SSH_CONNECTION")
                },
            }
        )
    while stdin.open:
        LOOP.step()
    for child in CHILDREN.values():
        child.kill()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
