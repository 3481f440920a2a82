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
OPTIONS = {  # of QEMU, by accelerator
    "kvm": ["-accel", "kvm", "-cpu", "host"],
    "tcg": ["-accel", "tcg,thread=multi", "-cpu", "max"],
    # The guest's clock counts instructions, one a nanosecond: what a benchmark measures does not depend on the host's load.
    "icount": ["-accel", "tcg,thread=single", "-icount", "shift=0", "-cpu", "max"],
}


def accelerator(image: Image) -> str:
    """A key of OPTIONS: UVN_LAB_ACCEL, or `kvm` or `tcg` as a probe found since the host booted."""
    wanted = os.environ.get("UVN_LAB_ACCEL")
    if wanted:
        if wanted not in OPTIONS:
            raise LabError(f"UVN_LAB_ACCEL is {wanted!r}; set it to {', '.join(OPTIONS)}, or leave it out to let a probe decide")
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


def kvm_boots(image: Image) -> bool:
    """Boot a guest that prints one line: /dev/kvm may exist and yet hang every guest."""
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-m", "256", "-no-reboot"]
    command += ["-serial", "stdio", *OPTIONS["kvm"], "-kernel", str(image.kernel), "-initrd", str(image.initrd)]
    command += ["-append", "console=ttyS0 quiet panic=-1 lab.probe"]
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return b"lab: probe" in result.stdout
