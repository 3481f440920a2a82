# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What membership costs: the map by libbpf through ctypes against one `bpftool` process, and socket() with the program.

Run as root: python3 tests/bench/membership.py [ENTRIES]. It works in a BPF file system and a cgroup of its own.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "plugins" / "module_utils"))

from uvn.bpf import cgroup2_mount
from uvn.membership import Config, Membership

UID = 2001
BPFTOOL = shutil.which("bpftool", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")


def microseconds(function, repeat):
    """Median of five rounds of `repeat` calls, per call."""
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(repeat):
            function()
        rounds.append((time.perf_counter() - start) / repeat * 1e6)
    return sorted(rounds)[2]


def report(what, function, repeat=1000):
    print(f"{what:48} {microseconds(function, repeat):10.1f} us", flush=True)


def bpftool(*arguments):
    return lambda: subprocess.run([BPFTOOL, *arguments], check=True, stdout=subprocess.DEVNULL)


def socket_as_user():
    os.setresuid(UID, 0, 0)  # the program goes by the real UID
    report("socket() + close(), user's", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        report("setsockopt(), user's", lambda: sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 3), 10_000)
        report("connect() of a datagram socket, user's", lambda: sock.connect(("127.0.0.1", 9)), 10_000)
    os.setresuid(0, 0, 0)


@contextlib.contextmanager
def own_membership():
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["mount", "-t", "bpf", "bpf", directory], check=True)
        cgroup = pathlib.Path(cgroup2_mount(), f"uvn-bench-{os.getpid()}")
        cgroup.mkdir()
        shipped = ROOT / "roles" / "uvn_node" / "files" / "membership.bpf.o"
        membership = Membership(f"{directory}/uvn", str(cgroup), str(shipped))
        try:
            yield membership
        finally:
            membership.detach()
            (cgroup.parent / "cgroup.procs").write_text(str(os.getpid()))
            cgroup.rmdir()
            subprocess.run(["umount", directory], check=True)


def main(entries):
    with own_membership() as membership:
        config = Config(membership.netns_cookie(), 1000, enforce=True)
        start = time.perf_counter()
        membership.load(config)
        print(f"{'first load() of the process, with libbpf':48} {(time.perf_counter() - start) * 1e6:10.1f} us")
        report("load() again", lambda: membership.load(config), 10)

        pathlib.Path(membership.cgroup, "cgroup.procs").write_text(str(os.getpid()))
        print("without the program:")
        socket_as_user()
        membership.set(UID, socket.if_nametoindex("lo"))
        membership.attach()
        print("with the program:")
        socket_as_user()

        report("set()", lambda: membership.set(UID, 1))
        report("get()", lambda: membership.get(UID))
        for uid in range(10_000, 10_000 + entries - 1):
            membership.set(uid, 1)
        report(f"entries() of {entries}", membership.entries, 1)
        report(f"get() among {entries}", lambda: membership.get(UID))
        socket_as_user()

        pinned = ["pinned", f"{membership.pin_dir}/uvn_uid", "key", "hex", "20", "0", "0", "0", "0", "0", "7", "d1"]
        report("bpftool map update", bpftool("map", "update", *pinned, "value", "hex", "1", "0", "0", "0"), 20)
        report("bpftool map lookup", bpftool("map", "lookup", *pinned), 20)


if __name__ == "__main__":
    if BPFTOOL is None:
        sys.exit("bpftool is missing: there is nothing to compare with")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
