# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The running lab: its guests, their QEMU processes, disks, ports and console logs, all below one run directory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from . import accel, image, qmp, snapshots, topology
from .common import LabError, last_line, locked, run_dir, say
from .snapshots import Snapshot
from .topology import NODES, Node

READY = re.compile(rb"lab: ready, boot ([0-9a-f-]{36})")
CMDLINE = (
    "root=/dev/vda rw console=ttyS0 quiet loglevel=4 panic=0 mitigations=off no_timer_check nowatchdog norandmaps net.ifnames=1 "
    "systemd.show_status=error systemd.hostname={name} systemd.machine_id={machine} lab.node={name}"
)
# The first login: a guest that was kept has the time of that.
SET_CLOCK = "date --set=@{now:.3f}"
# The login before a guest is kept: when its session has ended, the console says so.
SETTLE = "systemd-run --quiet sh -c 'while [ \"$(ls /run/systemd/sessions)\" ]; do sleep 0.2; done; echo lab: settled >/dev/console'"
SETTLED = b"lab: settled"


def timeout() -> float:
    """Seconds a guest may take to boot."""
    value = os.environ.get("UVN_LAB_TIMEOUT", "600")
    try:
        return float(value)
    except ValueError:
        raise LabError(f"UVN_LAB_TIMEOUT is {value!r}; set it to a number of seconds") from None


def escaped(path: Path) -> str:
    """A path inside a QEMU option, where a comma separates."""
    return str(path).replace(",", ",,")


class Guest:
    """One node's QEMU process and files."""

    def __init__(self, lab: Lab, node: Node) -> None:
        self.lab = lab
        self.node = node
        self.name = node.name
        self.disk = lab.dir / f"{node.name}.qcow2"
        self.pid_file = lab.dir / f"{node.name}.pid"
        self.console = lab.dir / f"{node.name}.log"

    def process(self) -> int | None:
        """A pidfd of the guest's QEMU, or None; a stale pid file whose number went to another process does not count."""
        try:
            pid = int(self.pid_file.read_text())
            fd = os.pidfd_open(pid)
        except (OSError, ValueError):
            return None
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            words = []
        if str(self.pid_file).encode() in words and not select.select([fd], [], [], 0)[0]:
            return fd
        os.close(fd)
        return None

    @property
    def suite(self) -> str:
        """What the disk was made from, else what the next one is made from."""
        return self.lab.state.get("suites", {}).get(self.name, self.node.suite)

    def running(self) -> bool:
        fd = self.process()
        if fd is None:
            return False
        os.close(fd)
        return True

    def pid(self) -> int:
        return int(self.pid_file.read_text())

    def boots(self) -> list[str]:
        """The boot ids that the guest announced on its console since QEMU started."""
        try:
            return [match.decode() for match in READY.findall(self.console.read_bytes())]
        except FileNotFoundError:
            return []

    def state(self) -> str:
        if not self.running():
            return "down"
        if self.panicked():
            return "panicked"
        return "up" if self.boots() else "booting"

    def panicked(self) -> bool:
        return self.console.exists() and b"Kernel panic" in self.console.read_bytes()

    def cpus(self, accelerator: str) -> int:
        """One without hardware virtualisation: with two, a kernel 6.12 that patches its own code (static keys) was seen to end
        with "Oops: int3" where memory held none: a translation of QEMU 7.2's that another processor's write had made stale, it seems."""
        if accelerator != "kvm":
            return 1
        neighbours = len(topology.CLUSTER) if self.node.lans else 1
        return max(1, min(self.node.cpus, len(os.sched_getaffinity(0)) // neighbours))

    def command_line(self) -> str:
        """The kernel's."""
        machine = hashlib.sha256(f"uvn-lab {self.name}".encode()).hexdigest()[:32]
        masked = [f"systemd.mask={unit}" for manager, units in topology.MANAGERS.items() if manager != self.node.manager for unit in units]
        return " ".join([CMDLINE.format(name=self.name, machine=machine), *masked])

    @property
    def monitor(self) -> Path:
        """The socket at which QEMU takes orders (QMP)."""
        return self.lab.dir / f"{self.name}.qmp"

    @property
    def memory(self) -> Path:
        """The guest's memory as a file, while it boots to be kept."""
        return self.lab.dir / f"{self.name}.ram"

    @property
    def snapshot(self) -> Snapshot:
        """What a boot of this node leads to, kept or not."""
        return Snapshot(self.lab.images.path / "booted", f"{self.suite}-{self.name}", self.command_line())

    def command(self, accelerator: str, memory: list[str]) -> list[str]:
        node, state, source = self.node, self.lab.state, self.lab.images.suite(self.suite)
        command = ["qemu-system-x86_64", "-name", f"uvn-lab-{node.name}", "-nodefaults", "-no-user-config"]
        command += ["-display", "none", "-daemonize", "-pidfile", str(self.pid_file), *accel.OPTIONS[accelerator]]
        command += ["-smp", str(self.cpus(accelerator)), "-m", str(node.memory), *memory]
        command += ["-chardev", f"file,id=console,path={escaped(self.console)},append=on", "-serial", "chardev:console"]
        command += ["-qmp", f"unix:{escaped(self.monitor)},server=on,wait=off"]
        command += ["-kernel", str(source.kernel), "-initrd", str(source.initrd), "-append", self.command_line()]
        command += ["-drive", f"file={escaped(self.disk)},format=qcow2,if=none,id=root,cache=unsafe,discard=unmap"]
        command += ["-device", "virtio-blk-pci,drive=root", "-device", "virtio-rng-pci"]
        forward = f"hostfwd=tcp:127.0.0.1:{state['ssh'][node.name]}-:22"
        lans = [(topology.MGMT0, f"user,restrict=on,ipv6=off,{forward}")]
        lans += [(lan, f"socket,mcast={state['lans'][lan.name]},localaddr=127.0.0.1") for lan in node.lans]
        for lan, backend in lans:
            command += ["-netdev", f"{backend},id={lan.name}"]
            command += ["-device", f"virtio-net-pci,netdev={lan.name},mac={lan.mac(node.host)},romfile="]
        return command

    def memory_file(self, path: Path, share: bool) -> list[str]:
        """Memory that is a file; `share`: the guest writes to it, else to a copy of its own."""
        backend = f"memory-backend-file,id=ram,size={self.node.memory}M,mem-path={escaped(path)},share={'on' if share else 'off'}"
        return ["-object", backend, "-machine", "pc,memory-backend=ram"]

    def start(self, accelerator: str, to_be_kept: bool = False) -> None:
        """Start QEMU on the node's disk, a new one unless the guest only was powered off."""
        if not self.disk.exists():
            self.make_disk(self.lab.images.suite(self.suite).disk, "raw")
        if self.console.exists():
            self.console.rename(self.console.with_suffix(".log.old"))
        self.memory.unlink(missing_ok=True)
        memory = self.memory_file(self.memory, share=True) if to_be_kept else []
        checked(self.command(accelerator, memory), f"node {self.name}")

    def keep(self) -> None:
        """End the guest and keep what it is, unless another lab has just kept the same."""
        with self.snapshot.to_be_made() as directory:
            if directory:
                qmp.save(self.monitor, directory / "devices", self.name)
                self.stop()
                for source, target in ((self.memory, "ram"), (self.disk, "disk"), (self.console, "console")):
                    shutil.move(source, directory / target)
        self.discard()

    def restore(self, accelerator: str) -> None:
        """Go on where `keep` ended it, on a disk and in memory of its own."""
        kept = self.snapshot.path
        self.make_disk(kept / "disk", "qcow2")
        shutil.copy(kept / "console", self.console)
        memory = [*self.memory_file(kept / "ram", share=False), "-incoming", "defer"]
        checked(self.command(accelerator, memory), f"node {self.name}")
        qmp.load(self.monitor, kept / "devices", self.name)

    def make_disk(self, backing: Path, form: str) -> None:
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", form, "-b", str(backing), str(self.disk)]
        checked(command, f"disk of node {self.name}")

    def stop(self) -> None:
        """End the guest's QEMU, as pulling the plug, and wait for it."""
        fd = self.process()
        if fd is not None:
            with contextlib.closing(os.fdopen(fd)):
                for number in (signal.SIGTERM, signal.SIGKILL):
                    signal.pidfd_send_signal(fd, number)
                    if select.select([fd], [], [], 10)[0]:
                        break
                else:
                    raise LabError(f"node {self.name}: QEMU process {self.pid()} does not end; end it by hand")
        self.pid_file.unlink(missing_ok=True)

    def discard(self) -> None:
        self.stop()
        self.disk.unlink(missing_ok=True)
        self.memory.unlink(missing_ok=True)


def checked(command: list[str], what: str) -> None:
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr.strip() or f"exit code {result.returncode}").splitlines()[-1]
        raise LabError(f"{what}: {command[0]} failed: {reason}")


class Lab:
    """The lab of the run directory; `state` is what must outlive one command: images, suites, ports, accelerator."""

    def __init__(self) -> None:
        self.dir = run_dir()
        self.guests = {name: Guest(self, node) for name, node in NODES.items()}
        self.state_file = self.dir / "state.json"
        self.state: dict = {}
        if self.state_file.exists():
            self.state = json.loads(self.state_file.read_text())

    @property
    def images(self) -> image.Images:
        return image.Images(Path(self.state["images"]))

    @property
    def ssh_config(self) -> Path:
        return self.dir / "ssh_config"

    def running(self) -> list[Guest]:
        return [guest for guest in self.guests.values() if guest.running()]

    def guest(self, name: str, must_run: bool = True) -> Guest:
        if name not in self.guests:
            raise LabError(f"there is no node {name!r}; choose one of {', '.join(self.guests)}")
        guest = self.guests[name]
        if must_run and not guest.running():
            raise LabError(f"node {name} is not running; start it with: lab up {name}")
        return guest

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """One `up` or `down` at a time, on fresh state."""
        with locked(self.dir / "lock", "the lab"):
            self.state = json.loads(self.state_file.read_text()) if self.state_file.exists() else {}
            yield

    def up(self, asked: dict[str, str | None]) -> None:
        """Start the nodes that do not run, each with the suite asked for, and wait until all of them answer ssh."""
        guests = [self.guest(name, must_run=False) for name in asked]
        with self.exclusive():
            missing = [guest for guest in guests if not guest.running()]
            suites = {guest: asked[guest.name] or guest.suite for guest in guests}
            for guest in guests:
                if guest not in missing and guest.suite != suites[guest]:
                    raise LabError(f"node {guest.name} runs {guest.suite}; end it first with: lab down {guest.name}")
            if missing:
                self.prepare({guest: suites[guest] for guest in missing})
            elif self.stale():
                say("the images' inputs changed since the lab came up; to renew it: lab down, lab up")
            start = time.monotonic()
            if missing:
                say(f"booting {' '.join(guest.name for guest in missing)} ({self.state['accelerator'].upper()})")
            self.boot(missing)
            self.wait({guest: 0 for guest in guests}, start)

    def boot(self, missing: list[Guest]) -> None:
        """Start guests: on their disks, from what was kept of a boot, or by a boot that is kept."""
        accelerator = self.state["accelerator"]
        new = [guest for guest in missing if snapshots.wanted(accelerator) and not guest.disk.exists()]
        fresh = [guest for guest in new if not guest.snapshot.exists()]
        for guest in missing:
            if guest not in new or guest in fresh:
                guest.start(accelerator, to_be_kept=guest in fresh)
        if fresh:
            self.wait({guest: 0 for guest in fresh}, time.monotonic(), SETTLE, SETTLED)
            say(f"keeping {' '.join(guest.name for guest in fresh)} as booted")
        for guest in fresh:
            guest.keep()
        for guest in new:
            guest.restore(accelerator)

    def stale(self) -> bool:
        return self.state.get("images") != str(image.current().path)

    def prepare(self, missing: dict[Guest, str]) -> None:
        """Bring images, disks and ports in line before the missing guests start."""
        running = self.running()
        if running and self.stale():
            names = " ".join(guest.name for guest in running)
            raise LabError(f"the images' inputs changed, but {names} run on older ones; end them with: lab down")
        built = image.build(sorted(set(missing.values())))
        for guest in self.guests.values():
            if self.stale() or guest.suite != missing.get(guest, guest.suite):
                guest.discard()
        if self.stale():
            self.state = {}
        state = self.state
        state["images"] = str(built.path)
        state.setdefault("suites", {}).update({guest.name: suite for guest, suite in missing.items()})
        state["accelerator"] = accel.accelerator(built.suite(next(iter(missing.values()))))
        state.setdefault("lans", {lan.name: multicast_address() for lan in topology.LANS})
        ports = state.setdefault("ssh", {})
        for guest in missing:
            ports[guest.name] = free_port(set(ports.values()))
        self.save()
        self.write_ssh_config()

    def save(self) -> None:
        self.state_file.write_text(json.dumps(self.state, indent=1) + "\n")

    def write_ssh_config(self) -> None:
        """For ssh -F, scp -F and ansible: root keeps one connection open, a user's login is always a new one."""
        key = self.dir / "key"  # the images may be removed while the lab runs
        key.unlink(missing_ok=True)
        shutil.copy(self.images.key, key)
        known_hosts = self.dir / "known_hosts"
        known_hosts.write_text(f"uvn-lab {self.images.node_key}\n")
        lines = [f"Host {name}\n    Port {port}" for name, port in self.state["ssh"].items()]
        lines.append(
            "Host *\n    HostName 127.0.0.1\n    User root\n"
            f'    IdentityFile "{key}"\n    IdentitiesOnly yes\n    PreferredAuthentications publickey\n'
            f'    HostKeyAlias uvn-lab\n    UserKnownHostsFile "{known_hosts}"\n    StrictHostKeyChecking yes\n'
            "    KexAlgorithms curve25519-sha256\n    ConnectTimeout 30\n    ServerAliveInterval 15\n    LogLevel ERROR"
        )
        control = self.dir / "ssh-%n"
        if len(str(control)) < 70:  # a Unix socket's path has 107 characters, and ssh appends to it
            lines.append(
                f'Match user root\n    ControlMaster auto\n    ControlPersist 600\n    ControlPath "{control}"'
            )
        self.ssh_config.write_text("\n".join(lines) + "\n")

    def wait(self, known: dict[Guest, int], start: float, login: str = SET_CLOCK, said: bytes = b"") -> None:
        """Until every guest has announced more boots than `known` on its console, then runs `login`, and has `said` that on its console."""
        waiting = dict(known)
        logins: dict[Guest, subprocess.Popen] = {}
        deadline, report = start + timeout(), time.monotonic() + 10
        while waiting:
            for guest in list(waiting):
                state = guest.state()
                if state in ("down", "panicked"):
                    last = f"its last line is {last_line(guest.console)!r}"
                    raise LabError(f"node {guest.name} is {state}, {last}; see: lab console {guest.name}")
                if guest in logins:
                    if logins[guest].poll() == 0 and said in guest.console.read_bytes():
                        say(f"  {guest.name} answers after {time.monotonic() - start:.0f} s")
                        del waiting[guest]
                    elif logins[guest].returncode:
                        del logins[guest]  # try again
                elif len(guest.boots()) > waiting[guest]:
                    logins[guest] = self.log_in(guest, login)
            now, names = time.monotonic(), [guest.name for guest in waiting]
            if waiting and now > deadline:
                late = f"{' '.join(names)} did not answer in {timeout():.0f} s (UVN_LAB_TIMEOUT)"
                raise LabError(f"{late}; see: lab console {names[0]}, {self.dir / 'ssh.log'}")
            if waiting and now > report:
                say(f"  {now - start:.0f} s  waiting for {' '.join(names)}")
                report = now + 10
            time.sleep(0.2)

    def log_in(self, guest: Guest, command: str) -> subprocess.Popen:
        """Start a login, which leaves root's connection open unless it is the one before a guest is kept; ssh's messages go to ssh.log."""
        words = ["ssh", "-F", str(self.ssh_config), "-o", "BatchMode=yes"]
        if command == SETTLE:
            words += ["-o", "ControlMaster=no", "-o", "ControlPath=none"]
        with open(self.dir / "ssh.log", "ab") as output:
            words += [guest.name, command.format(now=time.time())]
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def hang_up(self, guest: Guest) -> None:
        """End the connection that root keeps open."""
        if (self.dir / f"ssh-{guest.name}").exists():
            command = ["ssh", "-F", str(self.ssh_config), "-O", "exit", guest.name]
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)

    def down(self, names: list[str]) -> None:
        """End the nodes and discard their disks; console logs stay."""
        with self.exclusive():
            guests = [self.guest(name, must_run=False) for name in names] or list(self.guests.values())
            ended = [guest.name for guest in guests if guest.running()]
            for guest in guests:
                self.hang_up(guest)
                guest.discard()
                self.state.get("suites", {}).pop(guest.name, None)
            if self.running():
                self.save()
            else:
                self.state_file.unlink(missing_ok=True)
            say(f"ended {' '.join(ended)}; console logs are in {self.dir}" if ended else "nothing was running")

    def reboot(self, names: list[str]) -> None:
        """Reboot nodes, all at once, and wait for all."""
        guests = [self.guest(name) for name in names]
        with self.exclusive():
            counts, start = {guest: len(guest.boots()) for guest in guests}, time.monotonic()
            for guest in guests:
                command = ["ssh", "-F", str(self.ssh_config), "-o", "ControlMaster=no", guest.name, "systemctl reboot"]
                result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
                if result.returncode not in (0, 255):  # 255: the connection went down with the node
                    raise LabError(f"node {guest.name} refuses to reboot: {result.stderr.strip()}")
                self.hang_up(guest)
            say(f"rebooting {' '.join(names)}")
            self.wait(counts, start)


def elsewhere(own: Path) -> dict[Path, list[str]]:
    """Run directories of other labs on this host, with their nodes that run, as the processes' own words have it."""
    found: dict[Path, list[str]] = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if words[0].endswith("qemu-system-x86_64") and "-pidfile" in words[:-1]:
                pid_file = Path(words[words.index("-pidfile") + 1])
                if f"uvn-lab-{pid_file.stem}" in words and pid_file.parent != own:
                    found.setdefault(pid_file.parent, []).append(pid_file.stem)
    return found


def free_port(taken: set[int]) -> int:
    while True:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        if port not in taken:
            return port


def multicast_address() -> str:
    """A group and port that nobody on this host listens at: guests on one address share a LAN, and labs must not."""
    while True:
        group, port = f"239.255.{random.randrange(256)}.{random.randrange(1, 255)}", random.randrange(20000, 30000)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.bind((group, port))
            return f"{group}:{port}"
