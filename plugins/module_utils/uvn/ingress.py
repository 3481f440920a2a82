# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ingress: listed hosts reach users' listeners, and slurmstepd the network of its job's user (bpf/ingress.bpf.c).

The links and maps are pinned beside those of membership, whose entries the programs read.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import struct
from typing import Callable, Sequence

from . import bpf
from .diff import Change
from .errors import UvnError
from .kernel import socket_index
from .objects import Classifier, Ingress, IpNetwork, Object, Ports
from .site import PROTOCOLS

OBJECT_PATH = f"{bpf.OBJECT_DIR}/ingress.bpf.o"

CLASSIFIER = "uvn_ingress"
PROGRAMS = ("uvn_bind4", "uvn_bind6", "uvn_release", "uvn_connect4", "uvn_connect6")  # on the cgroup
SHARED = ("uvn_uid", "uvn_config")  # membership makes and removes them
MAPS = ("uvn_ports", "uvn_hosts", "uvn_owner", "uvn_bound", "uvn_flow", "uvn_job")
CONTROL = len(PROTOCOLS)  # key of uvn_ports after those of PROTOCOLS, enum ports

_RANGES = 16  # of a host
_NAME = 16  # bytes, IFNAMSIZ
_MAPPED = ipaddress.ip_network("::ffff:0:0/96")
_JOB = re.compile(r"^0::(/.*?/job_\d+)(?:/|$)", re.MULTILINE)


class Gate:
    """The ingress programs of this node; parameters as of `Membership`. Methods raise UvnError when the kernel refuses."""

    def __init__(self, pin_dir: str = bpf.PIN_DIR, cgroup: str | None = None, object_path: str = OBJECT_PATH) -> None:
        self.pin_dir = pin_dir
        self.object_path = object_path
        self._cgroup = cgroup
        self._ports = bpf.Map(self._path("uvn_ports"), 4, 4 * _RANGES)
        self._hosts = bpf.Map(self._path("uvn_hosts"), 20, len(PROTOCOLS) * 4 * _RANGES)
        self._jobs = bpf.Map(self._path("uvn_job"), 8, _NAME)
        self._links = {name: bpf.Link(self._path(f"link_{name[len('uvn_') :]}")) for name in PROGRAMS}

    @property
    def cgroup(self) -> str:
        """The cgroup2 directory whose processes are managed."""
        return self._cgroup or bpf.cgroup2_mount()

    def observe(self, devices: Sequence[str]) -> list[Object]:
        """What exists of the programs, on the cgroup and on devices."""
        found: dict[str, int] = {}
        for device in devices:
            index = socket_index(device)
            if index is not None and bpf.Classifier(index).program() is not None:
                found[device] = index
        if not found and all(link.target() is None for link in self._links.values()):
            return []
        if not os.path.exists(self.object_path):  # the files went first
            return [*(Classifier(device, current=False) for device in found), Ingress((), (), current=False)]
        with self._loaded() as program:
            whole = all(link.target() == bpf.cgroup_id(self.cgroup) for link in self._links.values())
            current = whole and all(link.runs(program(name)) for name, link in self._links.items())
            classifiers = [Classifier(device, bpf.Classifier(index).runs(program(CLASSIFIER))) for device, index in found.items()]
        return [Ingress(self._open(), _unpack(self._ports.get(_number(CONTROL))), current), *classifiers]

    def apply(self, changes: Sequence[Change]) -> None:
        """Carry out changes of `Ingress` and `Classifier` objects."""
        for change in changes:
            if isinstance(change.object, Classifier):
                self._classify(change)
            elif change.op == "delete":
                self._remove()
            else:
                self._install(change.object)

    def register(self, pid: int, vrf: str) -> bool:
        """Let the daemon of a job's step, process `pid`, connect within `vrf`; whether it is one, in a cgroup of Slurm's."""
        try:
            with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
                match = _JOB.search(file.read())
        except OSError as error:
            raise UvnError(f"process {pid} of a job: {error.strerror}; it has ended") from None
        if match is None or self._links["uvn_connect4"].target() is None:
            return False
        number = bpf.cgroup_id(f"{self.cgroup}{match[1]}")
        self._jobs.set(struct.pack("=Q", number), vrf.encode().ljust(_NAME, b"\0"))
        return True

    def _install(self, wanted: Ingress) -> None:
        with self._loaded() as program:
            for number, ports in enumerate((*wanted.ports, wanted.control)):
                self._ports.set(_number(number), _pack(ports))
            hosts = {_key(network): b"".join(map(_pack, ports)) for network, ports in wanted.hosts}
            for key in set(self._hosts.items()) - set(hosts):
                self._hosts.delete(key)
            for key, value in hosts.items():
                self._hosts.set(key, value)
            for name, link in self._links.items():
                if link.target() == bpf.cgroup_id(self.cgroup):
                    link.update(program(name))
                else:
                    link.attach_cgroup(program(name), self.cgroup)

    def _classify(self, change: Change) -> None:
        index = socket_index(change.object.device)
        if index is None:
            raise UvnError(f"cannot {change}: the device is gone; try again")
        if change.op == "delete":
            bpf.Classifier(index).detach()
            return
        with self._loaded() as program:
            bpf.Classifier(index).attach(program(CLASSIFIER))

    def _remove(self) -> None:
        for link in self._links.values():
            link.detach()
        for name in MAPS:
            bpf.unpin(self._path(name))
        with contextlib.suppress(OSError):  # membership is there, or pins that are not ours
            os.rmdir(self.pin_dir)

    def _open(self) -> tuple[tuple[IpNetwork, tuple[Ports, ...]], ...]:
        entries = [
            (_network(key), tuple(_unpack(value[start : start + 4 * _RANGES]) for start in range(0, len(value), 4 * _RANGES)))
            for key, value in self._hosts.items().items()
        ]
        return tuple(sorted(entries, key=lambda entry: (entry[0].version, entry[0])))

    def _path(self, name: str) -> str:
        return os.path.join(self.pin_dir, name)

    def _loaded(self) -> contextlib.AbstractContextManager[Callable[[str], int]]:
        return bpf.loaded(self.object_path, self.pin_dir, (*SHARED, *MAPS))


def _number(number: int) -> bytes:
    return struct.pack("=I", number)


def _pack(ports: Ports) -> bytes:
    """struct ranges"""
    return b"".join(struct.pack("=HH", first, last) for first, last in ports).ljust(4 * _RANGES, b"\0")


def _unpack(value: bytes | None) -> Ports:
    return tuple((first, last) for first, last in struct.iter_unpack("=HH", value or b"") if last)


def _key(network: IpNetwork) -> bytes:
    """struct host_prefix; IPv4 as IPv4-mapped IPv6"""
    if network.version == 6:
        return struct.pack("=I", network.prefixlen) + network.network_address.packed
    return struct.pack("=I", 96 + network.prefixlen) + _MAPPED[0].packed[:12] + network.network_address.packed


def _network(key: bytes) -> IpNetwork:
    length, address = struct.unpack_from("=I", key)[0], ipaddress.IPv6Address(key[4:])
    if length >= 96 and address in _MAPPED:
        return ipaddress.ip_network((address.packed[12:], length - 96))
    return ipaddress.ip_network((address, length))
