# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a boot led to, kept so that the next one need not: a guest's memory, devices, disk and console, beside the images they belong to."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from . import image
from .common import LabError, locked


def wanted(accelerator: str) -> bool:
    """Whether booted guests are kept: where a boot takes long, unless UVN_LAB_SNAPSHOTS is `no`."""
    value = os.environ.get("UVN_LAB_SNAPSHOTS", "yes")
    if value not in ("yes", "no"):
        raise LabError(f"UVN_LAB_SNAPSHOTS is {value!r}; set it to yes or no")
    return value == "yes" and accelerator == "tcg"


class Snapshot:
    """What is kept of one node in the directory `booted` of a set of images, under a hash of what decides how it boots."""

    def __init__(self, booted: Path, node: str, command_line: str) -> None:
        self._booted = booted
        self._node = node
        qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
        sources = "".join(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")))
        self.path = booted / f"{node}-{hashlib.sha256(f'{qemu}{command_line}{sources}'.encode()).hexdigest()[:12]}"

    def exists(self) -> bool:
        return self.path.is_dir()

    @contextlib.contextmanager
    def to_be_made(self) -> Iterator[Path | None]:
        """The directory to keep the guest in; None when another lab has kept it meanwhile."""
        with locked(self._booted / "lock", "another lab that keeps guests"):
            if self.exists():
                yield None
                return
            with image.complete(self.path) as directory:
                yield directory
            image.remove_old(self._booted.glob(f"{self._node}-*"))
