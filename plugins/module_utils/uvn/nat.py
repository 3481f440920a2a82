# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""iptables: chains of our own, each with one jump from its built-in chain, refilled in one transaction.

What accepts must live where the site's firewall decides; what the site wrote is never touched.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Sequence

from .diff import Change
from .errors import UvnError
from .objects import Chain, Object

PREFIX = "UVN-"
COMMANDS = {4: "iptables", 6: "ip6tables"}
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
MODULE6 = "ip6t_icmp6"  # the match that iptables has of its own for IPv6; the kernel asks for its module by this name
TIMEOUT = 30  # seconds, for the lock that iptables takes
PASS = {"LOG", "NFLOG", "TRACE", "MARK", "CONNMARK", "CT", "DSCP", "TCPMSS"}  # targets after which the next rule comes
DEPTH = 10  # of chains that jump to chains


def observe() -> list[Object]:
    """Our chains as the kernel has them; one that is not jumped to exactly once, before all that may decide otherwise, differs.

    Others want to be first as well. What cannot decide against our chain may come before it, or two programs would repair for ever.
    """
    return [chain for version in versions() for chain in parse(version, _run(version, "-save", []))]


def versions() -> list[int]:
    """The IP versions whose iptables the node has; without ip6tables, its program or its modules, users' IPv6 ends at the node."""
    return [4, 6] if os.path.exists(_command(6, "-save")) and _has_module(MODULE6) else [4]


def _has_module(alias: str) -> bool:
    """Whether the kernel has a module or gets it as it would by itself, so that the site's files for modprobe decide."""
    return _execute(["/usr/sbin/modprobe", "--quiet", alias], "kmod", "see what it waits for with `ps`").returncode == 0


def parse(version: int, text: str) -> list[Object]:
    """The chains of UVN in the output of iptables-save."""
    chains: list[Object] = []
    for table, body in re.findall(r"^\*(\S+)\n(.*?)^COMMIT$", text, re.MULTILINE | re.DOTALL):
        lines = body.splitlines()
        for name in re.findall(rf"^:({PREFIX}\S+) ", body, re.MULTILINE):
            rules = [line[len(f"-A {name} ") :] for line in lines if line.startswith(f"-A {name} ")]
            chains.append(Chain(version, table, name, (*rules, *_misplaced(table, name, lines))))
    return chains


def _misplaced(table: str, name: str, lines: Sequence[str]) -> list[str]:
    """What is wrong with the jump to a chain of ours, in the place of a rule."""
    hook = [line for line in lines if line.startswith(f"-A {_builtin(name)} ")]
    if hook.count(_jump(name)) != 1:
        return ["(the jump to this chain is missing, or there twice)"]
    before = hook[: hook.index(_jump(name))]
    return [f"(the jump to this chain comes after {line})" for line in before if not _passes(line, table, lines)][:1]


def _passes(rule: str, table: str, lines: Sequence[str], depth: int = 0) -> bool:
    """Whether a packet that our chain accepts or translates still is after a rule."""
    found = re.search(r" -[jg] (\S+)", rule)
    target = found.group(1) if found else "LOG"  # a rule without a target counts
    if any(line.startswith(f":{target} ") for line in lines):  # a chain
        inside = (line for line in lines if line.startswith(f"-A {target} "))
        return depth < DEPTH and " -g " not in rule and all(_passes(line, table, lines, depth + 1) for line in inside)
    return target in PASS or (target == "ACCEPT" and table == "filter") or (target == "RETURN" and depth > 0)


def apply(changes: Sequence[Change]) -> None:
    """Carry out changes of chains, one transaction an IP version.

    Raises UvnError with what iptables-restore said.
    """
    for version in COMMANDS:
        mine = [change for change in changes if isinstance(change.object, Chain) and change.object.version == version]
        if mine:
            _run(version, "-restore", ["--noflush", "--wait", str(TIMEOUT)], render(mine, _run(version, "-save", [])))


def render(changes: Sequence[Change], saved: str) -> str:
    """Input for `iptables-restore --noflush`; naming a chain of our own empties it."""
    lines: list[str] = []
    for change in changes:
        chain = change.object
        jumps = len(re.findall(rf"^{re.escape(_jump(chain.chain))}$", saved, re.MULTILINE))
        lines += [f"*{chain.table}", f":{chain.chain} - [0:0]"]
        lines += [_jump(chain.chain).replace("-A", "-D", 1)] * jumps
        if change.op == "delete":
            lines.append(f"-X {chain.chain}")
        else:
            lines += [f"-A {chain.chain} {rule}" for rule in chain.rules]
            lines.append(_jump(chain.chain).replace("-A", "-I", 1))
        lines.append("COMMIT")
    return "\n".join(lines) + "\n"


def _builtin(chain: str) -> str:
    return chain[len(PREFIX) :]


def _jump(chain: str) -> str:
    return f"-A {_builtin(chain)} -j {chain}"


def _command(version: int, suffix: str) -> str:
    return f"/usr/sbin/{COMMANDS[version]}{suffix}"


def _run(version: int, suffix: str, arguments: list[str], text: str | None = None) -> str:
    command = _command(version, suffix)
    done = _execute([command, *arguments], "iptables", "see who holds /run/xtables.lock", text)
    if done.returncode:
        raise UvnError(f"{command} refused: {' '.join(done.stderr.split())}")
    return done.stdout


def _execute(command: list[str], package: str, remedy: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program of a package; `remedy` is for one that does not end. Raises UvnError when it cannot be run to its end."""
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, env=ENVIRONMENT, timeout=2 * TIMEOUT, check=False)
    except FileNotFoundError:
        raise UvnError(f"{command[0]} is missing; install the package {package}") from None
    except subprocess.TimeoutExpired:
        raise UvnError(f"{command[0]} did not end within {2 * TIMEOUT} s; {remedy}") from None
