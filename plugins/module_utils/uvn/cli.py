# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `uvn`."""

# pylint: disable=ansible-bad-function  # a program of the nodes, no Ansible module imports it

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from typing import Any, Sequence

from . import accounts
from .client import request
from .errors import UvnError
from .identity import exempt_uid, identify
from .site import PATH, load

NO_LSM = (
    "off: the kernel does not have bpf among its active security modules; users have sockets of every address family that\n"
    "            /etc/modprobe.d/uvn.conf does not switch off, reach each other's abstract Unix sockets, and can take datagram sockets into each\n"
    "            other's networks"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. An UvnError becomes one sentence on standard error."""
    arguments = _parser().parse_args(argv)
    sys.stdout.reconfigure(errors="backslashreplace")  # account names are what the directory has, whatever the locale
    try:
        return arguments.run(arguments) or 0
    except UvnError as error:
        print(f"uvn: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"uvn: {error.filename}: {error.strerror}; this command needs root", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="uvn", description="User Virtual Network: a private network for every user.")
    parser.add_argument("--site", default=PATH, help="site configuration (default: %(default)s)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    status = commands.add_parser("status", help="networks on this node, and what differs from the plan")
    status.add_argument("--json", action="store_true", help="for machines")
    status.set_defaults(run=_status)

    for name, run, text in (
        ("show", _show, "one user's network"),
        ("ensure", _ensure, "make or mend a user's network"),
        ("remove", _remove, "remove a user's network"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("user", metavar="USER", help="account name or UID")
        command.add_argument("--json", action="store_true", help="for machines")
        if name != "show":
            command.add_argument("--check", action="store_true", help="only say what would be done")
        command.set_defaults(run=run)

    node = commands.add_parser("node", help="the node's own state")
    node.add_argument("action", choices=("show", "apply", "remove"))
    node.set_defaults(run=_node)

    commands.add_parser("site", help="the complete site configuration, if it is valid").set_defaults(run=_site)

    which = commands.add_parser("identify", help="the network a process belongs to")
    which.add_argument("pid", metavar="PID", type=int)
    which.set_defaults(run=_identify)

    commands.add_parser("daemon", help="run uvnd (systemd does)").set_defaults(run=_daemon)
    return parser


def _status(arguments: argparse.Namespace) -> int:
    reply = request({"op": "status"})
    if arguments.json:
        return _print_json(reply)
    node = reply["node"]
    print(f"mode        {node['mode']}{'' if node['mode'] == 'enforce' else ': nothing is refused or dropped, users are not isolated'}")
    print(f"membership  {'attached' if node['membership'] else 'NOT ATTACHED: users are not isolated'}")
    print(f"sockets     {', '.join(f'{count} {name}' for name, count in node['sockets'].items())}")
    print(f"guard       {', '.join(f'{count} {cause}' for cause, count in node['guard'].items())}")
    print(f"hooks       {'attached' if node['hooks'] else NO_LSM}")
    for name in ("moves", "families", "abstract"):
        print(f"{name:<11} {', '.join(f'{count} {counter}' for counter, count in node[name].items())}")
    print(f"ipv6        {_ipv6(node['ipv6'])}")
    print(f"strays      {len(node['strays'])}")
    for stray in node["strays"]:
        holder = f"{stray['program']} (PID {stray['pid']})" if stray["pid"] else "no process found"
        print(f"            {stray['user'] or stray['uid']}: {stray['protocol']} port {stray['port']}, {holder}")
    print(f"node        {'as planned' if not node['drift'] else 'differs from the plan:'}")
    for line in node["drift"]:
        print(f"            {line}")
    print(f"networks    {len(reply['networks'])}")
    for network in reply["networks"]:
        stays = "  persistent" if network["persistent"] else ""
        print(f"            {network['vrf']:<14} {network['user'] or '(name unknown)'}{stays}")
    return 0


def _ipv6(state: dict[str, bool]) -> str:
    if not state["enabled"]:
        return "off on this node (ipv6.disable=1, or disable_ipv6 of all, default or uvn below net.ipv6.conf): users have IPv4 alone"
    return "on" if state["ip6tables"] else "on, but there is no ip6tables or no kernel module for it: users' IPv6 does not leave the listed subnets"


def _show(arguments: argparse.Namespace) -> int:
    reply = request({"op": "show", **_target(arguments.user)})
    if arguments.json:
        return _print_json(reply["network"])
    network = reply["network"]
    if network.get("exempt"):
        print(f"{network['user']} (UID {network['uid']}) is exempt: its processes stay in the default VRF")
        return 0
    if not network["objects"]:
        print(f"{network['user'] or 'UID'} ({network['uid']}) has no network on this node; a login or `uvn ensure` makes it")
        return 1
    print(f"{network['user']} (UID {network['uid']}): {network['vrf']}, VNI {network['vni']}, table {network['table']}")
    for item in network["objects"]:
        print(f"  {item['kind']:<8} {item['name']}{_details(item)}")
    return 0


def _ensure(arguments: argparse.Namespace) -> int:
    return _print_changes(arguments, request({"op": "ensure", "check": arguments.check, **_target(arguments.user)}))


def _remove(arguments: argparse.Namespace) -> int:
    return _print_changes(arguments, request({"op": "remove", "check": arguments.check, **_target(arguments.user)}))


def _site(arguments: argparse.Namespace) -> int:
    return _print_json(load(arguments.site).as_dict())


# What follows imports pyroute2, as only these commands do: that takes several times as long as all the rest of a command that asks uvnd.
def _node(arguments: argparse.Namespace) -> int:
    from .reconcile import Reconciler

    with Reconciler.open(load(arguments.site), consult=arguments.action != "remove") as reconciler:
        changes = reconciler.node(present=arguments.action != "remove", check=arguments.action == "show")
    for change in changes:
        print(f"{'would ' if arguments.action == 'show' else ''}{change}")
    if not changes:
        print("nothing to do")
    return 0


def _identify(arguments: argparse.Namespace) -> int:
    from .kernel import socket_index

    uid = accounts.uid_of_process(arguments.pid)
    if uid is None:
        raise UvnError(f"there is no process {arguments.pid}; give the PID of a running one")
    site = load(arguments.site)
    account = accounts.account(accounts.by_uid(uid))
    gids = [group.gid for group in map(accounts.group, site.exempt.groups) if group]
    user = account.name if account else "(no account)"
    if uid < site.min_uid or exempt_uid(site, uid) or (account and account.is_exempt(site, gids)):
        print(f"{arguments.pid}: {user} (UID {uid}) is not managed: default VRF")
        return 0
    who = identify(site, uid)
    if not _same_netns(arguments.pid):
        print(f"{arguments.pid}: {user} (UID {uid}): in a network namespace of its own, outside every user's network")
        return 0
    state = who.vrf if socket_index(who.vrf) else "no network on this node: inet sockets are refused"
    print(f"{arguments.pid}: {user} (UID {uid}): {state}")
    return 0


def _same_netns(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat("/proc/1/ns/net").st_ino
    except FileNotFoundError:
        raise UvnError(f"the process {pid} has ended; give the PID of a running one") from None


def _daemon(arguments: argparse.Namespace) -> int:
    from .daemon import main as serve

    return serve(arguments.site)


def _target(user: str) -> dict[str, Any]:
    return {"uid": int(user)} if re.fullmatch("[0-9]{1,10}", user) else {"user": user}


def _print_changes(arguments: argparse.Namespace, reply: dict[str, Any]) -> int:
    if arguments.json:
        return _print_json(reply)
    for change in reply["changes"]:
        print(f"{'would ' if arguments.check else ''}{change['op']} {change['kind']} {change['name']}")
    if not reply["changes"]:
        print("nothing to do")
    return 0


def _print_json(data: Any) -> int:
    print(json.dumps(data, indent=2))
    return 0


def _details(item: dict[str, Any]) -> str:
    if item["kind"] == "vxlan":
        return f"  VNI {item['vni']} over {item['nic']}, UDP port {item['port']}, MTU {item['mtu']}"
    if item["kind"] == "route":
        ways = ", ".join(hop["device"] + (f" via {hop['gateway']}" if hop["gateway"] else "") for hop in item["nexthops"])
        source = f" from {item['source']}" if item["source"] else ""
        return f"  {item['type']} {ways}{source}" if ways else f"  {item['type']}"
    return ""
