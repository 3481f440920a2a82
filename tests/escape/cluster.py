# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's cluster with parts of UVN taken off, the victim's listeners, and the attacker's logins."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Iterator

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "isolation"))

import attacker  # noqa: E402
from attacks import ATTACKS, LEGITIMATE, Attack  # noqa: E402
from sessions import lab, ssh  # noqa: E402

NODES = ("login1", "c1")
SOON = 120  # seconds a login or a node's change may take

# uvnd would put back at once what is taken off.
STOP = "systemctl stop uvnd.socket uvnd.service"
START = "/usr/sbin/uvn node apply && systemctl start uvnd.socket uvnd.service"
DETACH = "import sys; sys.path.insert(0, '/usr/lib/uvn'); from uvn import bpf; bpf.Link('/sys/fs/bpf/uvn/link_membership').detach()"
MODE = "sed -i 's/\"mode\": \"{}\"/\"mode\": \"{}\"/' /etc/uvn/site.json"
FAMILIES = "smc vsock_loopback kcm"
POISONED = {"FDB poisoning": attacker.FDB_MAC, "ARP in a VXLAN frame": attacker.ARP_MAC}
FORGET = f"ip neigh flush dev {attacker.VXLAN}; for mac in {' '.join(POISONED.values())}; do bridge fdb del $mac dev {attacker.VXLAN}; done; true"
TABLES = f"bridge fdb show dev {attacker.VXLAN}; ip neigh show dev {attacker.VXLAN}"
SET_UID = f"install --mode=4755 --owner=root /usr/bin/python3 {attacker.SET_UID}"
OFF = {  # how a part is taken off, and put back
    "membership": (f'{STOP}; python3 -I -c "{DETACH}"; nft delete table inet uvn', START),
    "guard": (
        f"{STOP}; {MODE.format('enforce', 'audit')}; /usr/sbin/uvn node apply; sysctl -qw net.mptcp.enabled=1; "
        f"mv /etc/modprobe.d/uvn.conf /root/uvn-modprobe.conf; modprobe -qa sctp {FAMILIES}; true",
        f"{MODE.format('audit', 'enforce')}; mv /root/uvn-modprobe.conf /etc/modprobe.d/uvn.conf; "
        f"for module in smc_diag {FAMILIES}; do modprobe -qr $module; done; {START}",
    ),
}


def on_nodes(command: str) -> None:
    """A shell command as root on all nodes at once."""
    threads = [threading.Thread(target=lab, args=("run", node, "--timeout", str(2 * SOON), "--", command)) for node in NODES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def without(part: str) -> Iterator[None]:
    """The nodes with a part of UVN taken off."""
    off, on = OFF[part]
    on_nodes(off)
    try:
        yield
    finally:
        on_nodes(on)


class Victim:
    """bob's listeners on a node, for the length of a `with`; `got` is what came in."""

    def __init__(self, node: str) -> None:
        source = (HERE / "victim.py").read_text()
        self.process = subprocess.Popen(
            ssh("bob", node, "python3", "-I", "-c", source), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.got: list[str] = []
        self.ready = threading.Event()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            if line.startswith('"'):
                self.got.append(json.loads(line))
                self.ready.set()

    def __enter__(self) -> Victim:
        assert self.ready.wait(SOON), "bob's listeners did not open"
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.stdin.close()
        self.process.wait(SOON)
        self.reader.join()


def attack(node: str, names: list[str]) -> dict[str, str]:
    """alice's programs, one after the other in one login."""
    command = ssh("alice", node, "python3", "-I", "-", json.dumps(names))
    done = subprocess.run(command, input=(HERE / "attacker.py").read_text(), capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
    return json.loads(done.stdout.strip().splitlines()[-1])


def provide() -> None:
    """Networks for both on both nodes, so that their logins need no uvnd; ping sockets for users, as Debian 13 has them; all ICMP errors."""
    settings = "'net.ipv4.ping_group_range=0 2147483647' net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0"
    on_nodes(f"sysctl -qw {settings}; /usr/sbin/uvn ensure alice && /usr/sbin/uvn ensure bob")


def measure(held_by: set[str]) -> dict[str, tuple[bool, str]]:
    """All attacks that these parts hold, and what must pass: whether each got through, and what the attacker saw."""
    wanted = [one for one in ATTACKS if one.held_by in held_by]
    on_nodes(f"{FORGET}; {SET_UID}")
    try:
        with Victim("login1") as here, Victim("c1") as there:
            said: dict[str, str] = {}
            for node in sorted({one.node for one in wanted}):
                names = [one.name for one in wanted if one.node == node]
                said.update(attack(node, [*names, *(LEGITIMATE if node == "login1" else ())]))
    finally:
        on_nodes(f"rm --force {attacker.SET_UID}")
    tables = lab("run", "login1", "--", TABLES)
    got = [*here.got, *there.got, *(f"token {name}" for name, mac in POISONED.items() if mac in tables)]
    results = {one.name: (arrived(one, said[one.name], got), said[one.name]) for one in wanted}
    results.update({name: (said[name] == "hello", said[name]) for name in LEGITIMATE})
    results["open"] = (True, f"{here.got[0]} {'lsm' if 'bpf' in lab('run', 'login1', '--', 'cat /sys/kernel/security/lsm') else ''}")
    return results


def arrived(one: Attack, said: str, got: list[str]) -> bool:
    """Whether an attack got through: bob has its token, or alice has what was bob's."""
    if one.held_by == "guard" and "another's NAT address" in one.name:
        return any(text.startswith("ext offnet") for text in got)
    return f"token {one.name}" in got or said in ("secret", "secret of bob")
