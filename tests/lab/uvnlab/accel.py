# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the host's hardware virtualisation works: tried, not assumed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from .common import LabError, cache_dir, say
from .image import Image

PROBE_SECONDS = 8


def accelerator(image: Image) -> str:
    """`kvm` or `tcg`: UVN_LAB_ACCEL, or what a probe found since the host booted."""
    wanted = os.environ.get("UVN_LAB_ACCEL")
    if wanted:
        if wanted not in ("kvm", "tcg"):
            raise LabError(f"UVN_LAB_ACCEL is {wanted!r}; set it to kvm or tcg, or leave it out to let a probe decide")
        return wanted
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    cache = cache_dir() / "accelerator.json"
    try:
        known = json.loads(cache.read_text())
        if known["boot"] == boot and known["uid"] == os.geteuid():
            return known["accelerator"]
    except (OSError, ValueError, KeyError):
        pass
    found = "kvm" if kvm_boots(image) else "tcg"
    if found == "tcg":
        say(f"/dev/kvm is there, but no guest boots with it in {PROBE_SECONDS} s: using software emulation (TCG)")
    cache.write_text(json.dumps({"boot": boot, "uid": os.geteuid(), "accelerator": found}) + "\n")
    return found


def options(accel: str) -> list[str]:
    """QEMU's options for an accelerator."""
    if accel == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", "tcg,thread=multi", "-cpu", "max"]


def kvm_boots(image: Image) -> bool:
    """Boot a guest that prints one line: /dev/kvm may exist and yet hang every guest."""
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-m", "256", "-no-reboot"]
    command += ["-serial", "stdio", *options("kvm"), "-kernel", str(image.kernel), "-initrd", str(image.initrd)]
    command += ["-append", "console=ttyS0 quiet panic=-1 lab.probe"]
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return b"lab: probe" in result.stdout
