# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users are kept from by BPF programs on the kernel's security hooks, where BPF is one of its active security modules.

Odd address families and others' abstract Unix sockets (bpf/lsm.bpf.c), and sockets that leave their network by ways that pass no cgroup
(bpf/sockets.bpf.c). They go by the maps of membership.py, which is loaded before and detached after.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from . import bpf
from .errors import UvnError

COUNTED = ("uvn_families", "uvn_abstract")
COUNTERS = ("refused", "audited")  # enum counter
ACTIVE = "/sys/kernel/security/lsm"
BTF = "/sys/kernel/btf/vmlinux"


def possible() -> bool:
    """Whether BPF is one of the kernel's active security modules. Raises UvnError when the kernel does not say."""
    try:
        with open(ACTIVE, encoding="utf-8") as file:
            return "bpf" in file.read().strip().split(",") and os.path.exists(BTF)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UvnError(f"cannot read {ACTIVE}: {error.strerror}; mount securityfs on /sys/kernel/security") from None


@dataclass(frozen=True)
class Programs:
    """The programs of an object file: `links` are the pins of their links, `shared` maps are membership's, `own` ones go with them."""

    file: str
    links: dict[str, str]
    shared: tuple[str, ...]
    own: tuple[str, ...]

    @property
    def maps(self) -> tuple[str, ...]:
        """The names of all maps."""
        return (*self.shared, *self.own)


STAY = Programs(
    "sockets.bpf.o",
    {f"uvn_{name}": f"link_{name}" for name in ("lsm_option", "lsm_bind", "lsm_connect", "lsm_send")},
    ("uvn_uid", "uvn_config", "uvn_socket", "uvn_moves"),
    ("uvn_use",),
)
USERS = Programs(
    "lsm.bpf.o",
    {f"uvn_{name}": f"link_{name}" for name in ("create", "connect", "send")},
    ("uvn_uid", "uvn_config"),
    COUNTED,
)


class Hooks:
    """Programs on this node. Methods raise UvnError when the kernel or libbpf refuses."""

    def __init__(self, programs: Programs, pin_dir: str = bpf.PIN_DIR, object_dir: str = bpf.OBJECT_DIR) -> None:
        self.pin_dir = pin_dir
        self._programs = programs
        self._object_path = os.path.join(object_dir, programs.file)
        self._links = {program: bpf.Link(os.path.join(pin_dir, link)) for program, link in programs.links.items()}

    def current(self) -> bool:
        """Whether the attached programs are those of the object file, on the pinned maps. Changes nothing."""
        if not all(os.path.exists(link.path) for link in self._links.values()):
            return False
        with bpf.loaded(self._object_path, self.pin_dir, self._programs.maps) as program:
            return all(link.runs(program(name)) for name, link in self._links.items())

    def attach(self) -> None:
        """Attach the programs, in the place of others of ours."""
        with bpf.loaded(self._object_path, self.pin_dir, self._programs.maps) as program:
            for name, link in self._links.items():
                if not link.runs(program(name)):
                    link.attach_lsm(program(name))

    def detach(self) -> None:
        """Take the programs down."""
        for link in self._links.values():
            bpf.unpin(link.path)  # the kernel detaches with the last reference
        for name in self._programs.own:
            bpf.unpin(os.path.join(self.pin_dir, name))


def counted(pin_dir: str = bpf.PIN_DIR) -> dict[str, dict[str, int]]:
    """What the programs of USERS refused and audited (let pass), by `families` (sockets) and `abstract` (connections and datagrams)."""
    return {name[len("uvn_") :]: _counters(os.path.join(pin_dir, name)) for name in COUNTED}


def _counters(path: str) -> dict[str, int]:
    values = bpf.Map(path, 4, 8 * bpf.cpus())
    found = [values.get(struct.pack("=I", number)) or b"" for number in range(len(COUNTERS))]
    return {counter: sum(struct.unpack(f"={len(value) // 8}Q", value)) for counter, value in zip(COUNTERS, found)}
