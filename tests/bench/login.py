# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a login costs, cold and warm, with 0, 100 and 1,000 other users' networks present; and 1,000 users by one request.

Run as root in the lab's guest (`make bench`): python3 tests/bench/login.py [ROUNDS]. UVN is installed as the role does it; uvnd and
the logins are in one network namespace. References, in the same rounds: bare starts of an interpreter and of sh, and in a second
namespace, with the same networks of others but without uvnd, the paper's steps in shell (paper.sh) and `ip -batch` of exactly the
objects that UVN makes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any, Callable, Iterator

from harness import ROOT, interleaved, milliseconds, only_in_the_lab, ratio, spawn, write

sys.path[:0] = [str(ROOT / "plugins" / "module_utils"), str(ROOT / "tests" / "kernel")]

from batch import by_kind, render
from nodes import SITE, Node, bridges, host_of
from pyroute2 import netns
from uvn.client import request
from uvn.identity import identify
from uvn.objects import Element
from uvn.plan import user_network

OTHERS = (0, 100, 1000)
FIRST = 10_000  # UID of the first of the other users
COLD, WARM, PAPER, BATCH = 5001, 5002, 5003, 5004  # UIDs of those who are measured
PAPER_SH = str(ROOT / "tests" / "bench" / "paper.sh")
LOGIN = "/usr/lib/uvn/uvn-login"
BATCH_FILE = "/tmp/bench.batch"
QUIET = 0.6  # seconds in which uvnd looks at the node after an event and is done
BULK_TIMEOUT = 1800  # seconds


def name(uid: int) -> str:
    return f"bench{uid}"


def install() -> None:
    """What the role puts on a node, as far as logins need it."""
    role = ROOT / "roles" / "uvn_node" / "files"
    shutil.rmtree("/usr/lib/uvn", ignore_errors=True)
    shutil.copytree(ROOT / "plugins" / "module_utils" / "uvn", "/usr/lib/uvn/uvn")
    for file in (*role.glob("*.bpf.o"), role / "uvn-login"):
        shutil.copy(file, "/usr/lib/uvn")
    shutil.copy(role / "uvn", "/usr/sbin/uvn")
    for program in (LOGIN, "/usr/sbin/uvn"):
        os.chmod(program, 0o755)
    os.makedirs("/etc/uvn", exist_ok=True)
    pathlib.Path("/etc/uvn/site.json").write_text(json.dumps(SITE), encoding="utf-8")
    uids = [COLD, WARM, PAPER, BATCH, *range(FIRST, FIRST + OTHERS[-1])]
    with open("/etc/passwd", "a", encoding="ascii") as file:
        file.writelines(f"{name(uid)}:x:{uid}:100::/:/bin/sh\n" for uid in uids if name(uid) not in known_accounts())


@functools.cache
def known_accounts() -> set[str]:
    return {line.split(":")[0] for line in pathlib.Path("/etc/passwd").read_text(encoding="utf-8").splitlines()}


@contextlib.contextmanager
def nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes with em1, ib0, wan0 and default routes."""
    outside = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    bridges("add")
    made = [Node(text, number) for text, number in (("bench", 91), ("bench-ref", 92))]
    for one in made:
        one.sh("ip route add default via 10.10.0.5; ip route add default via 2001:db8:10::5")
    try:
        yield made[0], made[1]
    finally:
        netns.setns(outside)
        os.close(outside)
        for one in made:
            one.delete()
        bridges("delete")


@contextlib.contextmanager
def uvnd(where: Node) -> Iterator[subprocess.Popen]:
    """The daemon, on a node with its state in place and membership attached; this process is there, too."""
    netns.setns(where.name)
    subprocess.run(["/usr/sbin/uvn", "node", "apply"], check=True, stdout=subprocess.DEVNULL)
    with open("/run/uvnd.log", "w", encoding="utf-8") as log:
        daemon = subprocess.Popen(["/usr/sbin/uvn", "daemon"], stdout=log, stderr=log)
    try:
        while not os.path.exists("/run/uvn/uvnd.sock"):
            time.sleep(0.1)
        request({"op": "status"})
        yield daemon
    finally:
        daemon.terminate()
        daemon.wait()
        subprocess.run(["/usr/sbin/uvn", "node", "remove"], check=True, stdout=subprocess.DEVNULL)
        os.unlink("/run/uvn/uvnd.sock")


class Measurements:
    """Each method returns milliseconds by name and leaves the node as it was."""

    def __init__(self, uvn: Node, reference: Node, daemon: subprocess.Popen) -> None:
        self.uvn, self.reference, self.daemon = uvn, reference, daemon
        self.host = reference.call(host_of)
        self.others = 0  # in the reference's namespace

    def all(self) -> list[Callable[[], dict[str, float]]]:
        return [self.starts, self.login_cold, self.login_warm, self.request_cold, self.batch, self.paper]

    def starts(self) -> dict[str, float]:
        self.settle()
        return {
            "sh": milliseconds(spawn, ["/bin/sh", "-c", ":"]),
            "interpreter": milliseconds(spawn, ["/usr/bin/python3", "-I", "-S", "-c", "pass"]),
        }

    def login_cold(self) -> dict[str, float]:
        self.settle()
        took = login(COLD)
        remove(COLD)
        return {"login cold": took}

    def login_warm(self) -> dict[str, float]:
        return {"login warm": login(WARM)}

    def request_cold(self) -> dict[str, float]:
        self.settle()
        took = milliseconds(request, {"op": "ensure", "user": name(COLD), "brief": True})
        remove(COLD)
        return {"request cold": took}

    def batch(self) -> dict[str, float]:
        """All objects by one `ip -batch`; after a sysctl UVN finds nothing to do but what is membership's and the guard's."""
        objects = self.objects(BATCH)
        with self.at_reference():
            took = ip_batch(objects)
            self.reference.sh(f"sysctl --quiet --write net.ipv4.conf.{identify(self.reference.site, BATCH).vrf}.accept_local=1")
            pending = [change for change in self.reference.pending(BATCH) if not isinstance(change.object, Element)]
            if pending:
                raise RuntimeError(f"`ip -batch` does not make what UVN makes; still to do: {'; '.join(map(str, pending))}")
            self.reference.remove(BATCH)
        return {"batch": took}

    def batch_by_kind(self) -> dict[str, float]:
        """What of `ip -batch` goes into which kind of object, each kind by a process of its own."""
        with self.at_reference():
            kinds = {kind: ip_batch(objects) for kind, objects in by_kind(self.objects(BATCH)).items() if render(objects)}
            kinds["process"] = ip_batch([])
            self.reference.remove(BATCH)
        return kinds

    def paper(self) -> dict[str, float]:
        with self.at_reference():
            cold, warm = (milliseconds(spawn, [PAPER_SH, "create", str(PAPER)]) for _time in range(2))
            spawn([PAPER_SH, "remove", str(PAPER)])
        return {"paper cold": cold, "paper warm": warm}

    def objects(self, uid: int) -> list:
        site = self.reference.site
        return user_network(site, identify(site, uid), self.host)

    def fill_reference(self, others: int) -> None:
        """The others' networks, as uvnd makes them on its node."""
        with self.at_reference():
            ip_batch([obj for uid in range(FIRST + self.others, FIRST + others) for obj in self.objects(uid)])
        self.others = others

    @contextlib.contextmanager
    def at_reference(self) -> Iterator[None]:
        """This process and those that it starts, in the reference's namespace."""
        self.settle()
        netns.setns(self.reference.name)
        try:
            yield
        finally:
            netns.setns(self.uvn.name)

    def settle(self) -> None:
        """Until uvnd has looked at the node after the last event, as it has when somebody logs in."""
        used = None
        while used != (used := cpu_time(self.daemon.pid)):
            time.sleep(QUIET)
        request({"op": "ensure", "user": name(WARM), "brief": True})


def cpu_time(pid: int) -> list[str]:
    """In user and kernel mode, clock ticks."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[11:13]


def login(uid: int) -> float:
    return milliseconds(spawn, [LOGIN], {"PAM_USER": name(uid), "PAM_TYPE": "open_session"})


def remove(uid: int) -> None:
    request({"op": "remove", "user": name(uid)})


def ip_batch(objects: list) -> float:
    pathlib.Path(BATCH_FILE).write_text(render(objects), encoding="ascii")
    return milliseconds(spawn, ["/sbin/ip", "-batch", BATCH_FILE])


def level(measurements: Measurements, others: int, rounds: int) -> dict[str, Any]:
    """All series with so many other users' networks present."""
    measurements.settle()
    series = interleaved(rounds, measurements.all())
    kinds = [measurements.batch_by_kind() for _round in range(3)]
    remove(WARM)
    breakdown = {kind: sorted(sample[kind] for sample in kinds)[1] for kind in kinds[0]}
    show(others, series, breakdown)
    return {"others": others, "series": series, "batch by kind": breakdown}


def bulk(operation: str, count: int) -> dict[str, Any]:
    """So many users by the one request that a `uvn_user` task makes: seconds, and the memory of kernel and node."""
    before = memory()
    users = [name(uid) for uid in range(FIRST, FIRST + count)]
    start = time.perf_counter()
    request({"op": operation, "users": users, "persistent": True}, timeout=BULK_TIMEOUT)
    took = time.perf_counter() - start
    after = memory()
    grown = {key: (after[key] - before[key]) / count for key in before}
    print(f"{operation} of {count} users: {took:.1f} s, {count / took:.1f} users/s; KiB per user: {grown}", flush=True)
    return {"count": count, "seconds": took, "per second": count / took, "KiB per user": grown}


def memory() -> dict[str, int]:
    """KiB in use, when what the kernel frees later is freed."""
    time.sleep(2)
    lines = (line.split() for line in pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    values = {line[0].rstrip(":"): int(line[1]) for line in lines}
    return {"used": values["MemTotal"] - values["MemAvailable"], "slab": values["Slab"], "percpu": values["Percpu"]}


RATIOS = {
    "cold login / paper's": ("login cold", "paper cold"),
    "warm login / paper's": ("login warm", "paper warm"),
    "cold request / ip -batch": ("request cold", "batch"),
    "cold login / ip -batch": ("login cold", "batch"),
    "warm login / sh": ("login warm", "sh"),
}


def show(others: int, series: dict[str, Any], breakdown: dict[str, float]) -> None:
    print(f"with {others} other users:")
    for what, values in series.items():
        print(f"  {what:28} {values['median']:9.1f} ms  ({values['q1']:.1f} to {values['q3']:.1f})")
    print("  ip -batch by kind, ms:", ", ".join(f"{kind} {took:.1f}" for kind, took in breakdown.items()))
    for what, (above, below) in RATIOS.items():
        values = ratio(series[above], series[below])
        print(f"  {what:28} {values['median']:9.3f}     ({values['q1']:.3f} to {values['q3']:.3f})", flush=True)


def main(rounds: int) -> None:
    only_in_the_lab()
    install()
    results: dict[str, Any] = {"levels": [], "bulk": []}
    with nodes() as (uvn, reference), uvnd(uvn) as daemon:
        reference.prepare()
        measurements = Measurements(uvn, reference, daemon)
        for others in OTHERS:
            measurements.fill_reference(others)
            if others:
                made = bulk("ensure", others)
            results["levels"].append(level(measurements, others, rounds))
            if others:
                results["bulk"].append({"made": made, "removed": bulk("remove", others)})
    write("login", results)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
