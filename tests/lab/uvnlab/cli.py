# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A virtual cluster for UVN's tests: QEMU guests of Debian 12 and 13 on this host, see tests/lab/README.md."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time

from . import image, topology
from .common import LabError, say
from .guests import Lab, elsewhere


def build(arguments: argparse.Namespace) -> None:
    images = image.build(topology.SUITES, arguments.quiet)
    if not arguments.quiet:
        say(f"the images are in {images.path}")


def up(arguments: argparse.Namespace) -> None:
    Lab().up(topology.parse_request(arguments.node or list(topology.CLUSTER)))


def down(arguments: argparse.Namespace) -> None:
    Lab().down(arguments.node)


def reboot(arguments: argparse.Namespace) -> None:
    Lab().reboot(arguments.node)


def status(arguments: argparse.Namespace) -> int:
    """0 when every node that runs answers, 3 when none runs or one does not answer yet."""
    lab = Lab()
    states = set()
    print(f"{'NODE':9}{'STATE':9}{'SUITE':9}{'PID':>8}  {'SSH':15}  CONSOLE")
    for guest in lab.guests.values():
        state = guest.state()
        if state == "down":
            print(f"{guest.name:9}{state:9}{'-':9}{'-':>8}")
            continue
        states.add(state)
        address = f"127.0.0.1:{lab.state['ssh'][guest.name]:<5}"
        print(f"{guest.name:9}{state:9}{guest.suite:9}{guest.pid():8}  {address}  {guest.console}")
    if states:
        print(f"\nimages {lab.state['images']}, {lab.state['accelerator'].upper()}")
    for directory, nodes in sorted(elsewhere(lab.dir).items()):
        print(f"\nanother lab runs {' '.join(sorted(nodes))}: UVN_LAB_DIR={directory}")
    return 0 if states == {"up"} else 3


def run(arguments: argparse.Namespace) -> int:
    """ssh's exit code; 124 when the time is over, as timeout(1)."""
    lab = Lab()
    lab.guest(arguments.node)
    words = arguments.words
    command = ["ssh", "-F", str(lab.ssh_config)]
    if arguments.user:
        command += ["-l", arguments.user, "-o", "ControlMaster=no", "-o", "ControlPath=none"]
    if arguments.tty or (not words and sys.stdin.isatty()):
        command.append("-tt")  # even when the input is no terminal
    command.append(arguments.node)
    if words:  # one word is a shell command line, several are an argument vector
        command += ["--", words[0] if len(words) == 1 else shlex.join(words)]
    try:
        return subprocess.run(command, timeout=arguments.timeout).returncode
    except subprocess.TimeoutExpired:
        print(f"lab: node {arguments.node}: the command took more than {arguments.timeout:g} s", file=sys.stderr)
        return 124


def copy(arguments: argparse.Namespace) -> int:
    lab = Lab()
    *sources, target = arguments.path
    if not sources:
        raise LabError("copy needs a source and a target: lab copy SRC NODE:DST")
    remote = [path.split(":", 1)[0] for path in arguments.path if is_remote(path)]
    if not remote:
        raise LabError(f"{target}: neither source nor target names a node; write the target as NODE:DST")
    for name in remote:
        lab.guest(name)
    return subprocess.run(["scp", "-rpq", "-F", str(lab.ssh_config), "--", *sources, target]).returncode


def is_remote(path: str) -> bool:
    return ":" in path and "/" not in path.split(":", 1)[0]


def console(arguments: argparse.Namespace) -> None:
    guest = Lab().guest(arguments.node, must_run=False)
    if not guest.console.exists():
        raise LabError(
            f"node {guest.name} has no console log yet ({guest.console}); start it with: lab up {guest.name}"
        )
    with open(guest.console, "rb") as file:
        while True:
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.flush()
            if not arguments.follow:
                return
            time.sleep(0.5)


def inventory(arguments: argparse.Namespace) -> None:
    lab = Lab()
    if not any(lab.guest(name, must_run=False).running() for name in topology.CLUSTER):
        raise LabError("no node of the cluster runs, an inventory would be empty; run: lab up")
    groups = {"uvn_nodes": topology.UVN_NODES, "outside": ("ext",)}
    lines = ["all:", "  vars:", "    ansible_user: root", "    ansible_python_interpreter: /usr/bin/python3"]
    lines += [f"    ansible_ssh_common_args: -F {shlex.quote(str(lab.ssh_config))}", "    ansible_ssh_pipelining: true"]
    lines.append("  children:")
    for group, names in groups.items():
        running = [name for name in names if lab.guest(name, must_run=False).running()]
        lines += [f"    {group}:", "      hosts:" + ("" if running else " {}")]
        lines += [f"        {name}:\n          ansible_port: {lab.state['ssh'][name]}" for name in running]
    text = "\n".join(lines) + "\n"
    path = lab.dir / "inventory.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(path if arguments.path else text, end="\n" if arguments.path else "")


def ssh_config(arguments: argparse.Namespace) -> None:
    lab = Lab()
    if not lab.ssh_config.exists():
        raise LabError("there is no ssh configuration before the lab is up; run: lab up")
    print(lab.ssh_config if arguments.path else lab.ssh_config.read_text().rstrip())


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="lab", description=__doc__)
    commands = main.add_subparsers(dest="action", required=True, metavar="COMMAND")

    def add(function, name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        return command

    command = add(build, "build", "make the images of all suites, those that are not there with the present inputs")
    command.add_argument("--quiet", action="store_true", help="report nothing but errors")
    command = add(up, "up", "boot nodes and wait until they answer ssh; builds images if needed")
    command.add_argument(
        "node",
        nargs="*",
        metavar="NODE[=SUITE]",
        help=f"default: {' '.join(topology.CLUSTER)}; `kernel` and `kernel13` are guests without LANs; "
        f"suites: {', '.join(topology.SUITES)}",
    )
    add(status, "status", "show the nodes; exit code 0: those that run answer, 3: none runs or one does not answer yet")
    command = add(run, "run", "log in over ssh and run a command; its exit code is passed on")
    command.usage = "lab run NODE [--user USER] [--timeout S] [-t] [-- CMD...]"
    command.epilog = (
        "One word after -- is a shell command line, several are an argument vector, none is an interactive shell."
    )
    command.add_argument("node")
    command.add_argument(
        "--user", help="log in as this user, always by a new connection (default: root, by a shared one)"
    )
    command.add_argument("--timeout", type=float, metavar="S", help="give up after so many seconds, exit code 124")
    command.add_argument("-t", "--tty", action="store_true", help="allocate a terminal")
    command = add(copy, "copy", "copy files and directories, as scp -r: SRC... NODE:DST or NODE:SRC... DST")
    command.add_argument("path", nargs="+")
    command = add(console, "console", "show a node's console log")
    command.add_argument("node")
    command.add_argument("-f", "--follow", action="store_true", help="go on showing what is appended")
    command = add(reboot, "reboot", "reboot nodes, all at once, and wait until they answer again")
    command.add_argument("node", nargs="+")
    command = add(down, "down", "end nodes (default: all) and discard their disks")
    command.add_argument("node", nargs="*")
    for function, name, text in (
        (inventory, "inventory", "write and print an Ansible inventory of the nodes that run"),
        (ssh_config, "ssh-config", "print the configuration for ssh -F"),
    ):
        command = add(function, name, text)
        command.add_argument("--path", action="store_true", help="print the file's path instead")
    return main


def main() -> int:
    words = sys.argv[1:]
    cut = words.index("--") if words[:1] == ["run"] and "--" in words else len(words)
    arguments = parser().parse_args(words[:cut])
    arguments.words = words[cut + 1 :]  # the command of `run`: never options of ours
    try:
        return arguments.function(arguments) or 0
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
