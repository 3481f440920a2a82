# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users are kept from by BPF programs of the kernel's security hooks: odd address families, others' abstract Unix sockets.

They (bpf/lsm.bpf.c) go by the maps of membership.py, which has to be loaded.
"""

from __future__ import annotations

import os
import struct

from . import bpf

OBJECT_PATH = f"{bpf.OBJECT_DIR}/lsm.bpf.o"
LINKS = {"uvn_create": "link_create", "uvn_connect": "link_connect", "uvn_send": "link_send"}
COUNTED = ("uvn_families", "uvn_abstract")
MAPS = ("uvn_uid", "uvn_config", *COUNTED)
COUNTERS = ("refused", "audited")  # enum counter
ACTIVE = "/sys/kernel/security/lsm"
BTF = "/sys/kernel/btf/vmlinux"


def possible() -> bool:
    """Whether BPF is one of the kernel's active security modules."""
    try:
        with open(ACTIVE, encoding="utf-8") as file:
            return "bpf" in file.read().strip().split(",") and os.path.exists(BTF)
    except OSError:
        return False


class Hooks:
    """The programs on this node. Methods raise UvnError when the kernel or libbpf refuses."""

    def __init__(self, pin_dir: str = bpf.PIN_DIR, object_path: str = OBJECT_PATH) -> None:
        self.pin_dir = pin_dir
        self.object_path = object_path
        self._links = {program: bpf.Link(os.path.join(pin_dir, link)) for program, link in LINKS.items()}

    def current(self) -> bool:
        """Whether the attached programs are those of the object file, on the pinned maps. Changes nothing."""
        if not all(os.path.exists(link.path) for link in self._links.values()):
            return False
        with bpf.loaded(self.object_path, self.pin_dir, MAPS) as program:
            return all(link.runs(program(name)) for name, link in self._links.items())

    def attach(self) -> None:
        """Attach the programs, in the place of others of ours."""
        with bpf.loaded(self.object_path, self.pin_dir, MAPS) as program:
            for name, link in self._links.items():
                if not link.runs(program(name)):
                    link.attach_lsm(program(name))

    def detach(self) -> None:
        """Take the programs down."""
        for link in self._links.values():
            bpf.unpin(link.path)  # the kernel detaches with the last reference
        for name in COUNTED:
            bpf.unpin(os.path.join(self.pin_dir, name))

    def status(self) -> dict[str, dict[str, int]]:
        """By `families` and `abstract`: whether the programs are `attached`, and what they refused and audited (let pass).

        `families` counts sockets, `abstract` connections and datagrams between users.
        """
        attached = self.current()
        return {name[len("uvn_") :]: {"attached": attached, **self._counters(name)} for name in COUNTED}

    def _counters(self, name: str) -> dict[str, int]:
        values = bpf.Map(os.path.join(self.pin_dir, name), 4, 8 * bpf.cpus())
        found = [values.get(struct.pack("=I", number)) or b"" for number in range(len(COUNTERS))]
        return {counter: sum(struct.unpack(f"={len(value) // 8}Q", value)) for counter, value in zip(COUNTERS, found)}
