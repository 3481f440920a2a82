# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter hpc.uvn.preflight: what keeps a node from becoming an UVN node, judged on the controller from what was observed."""

from __future__ import annotations

DOCUMENTATION = r"""
name: preflight
short_description: Name what keeps a node from becoming an UVN node
version_added: 0.1.0
author:
  - The UVN authors (!UNKNOWN)
description:
  - Judges what the role P(hpc.uvn.uvn_node#role) observed of a node, before anything is changed there.
  - All that is missing or in the way is named at once, each in one sentence with the value and the remedy.
options:
  _input:
    description:
      - What the role's C(observe.sh) printed.
    type: dict
    required: true
  site:
    description:
      - The site configuration as P(hpc.uvn.site#filter) returns it.
    type: dict
    required: true
  state:
    description:
      - What the role is to do. Removal needs less.
    type: str
    choices: [absent, present]
    default: present
  build:
    description:
      - Whether the node is an image or a chroot, so that the kernel at hand is not its own.
    type: bool
    default: false
  users:
    description:
      - Users to provision.
    type: list
    elements: str
    default: []
  wheel:
    description:
      - Path on the controller of a wheel of pyroute2.
    type: str
    default: ''
  spank:
    description:
      - Path on the controller of the SPANK plug-in.
    type: str
    default: ''
  plugstack:
    description:
      - Directory on the node that Slurm's plugstack.conf includes.
    type: str
    default: /etc/slurm/plugstack.conf.d
  variables:
    description:
      - Names of the variables that the play has for the host. One that begins with C(uvn_) and that nothing reads is a slip, and what it was
        to say would be left out.
    type: list
    elements: str
    default: []
  known:
    description:
      - Names of the role's variables.
    type: list
    elements: str
    default: []
  network:
    description:
      - What the role's C(network.sh) printed. Without it, nothing in the kernel is in the way.
    type: dict
"""

EXAMPLES = r"""
- name: Refuse what cannot work
  ansible.builtin.assert:
    that: uvn_node__findings | length == 0
    fail_msg: "{{ uvn_node__findings }}"
  vars:
    uvn_node__findings: "{{ uvn_node__found | hpc.uvn.preflight(uvn_node__site, network=uvn_node__network) }}"
"""

RETURN = r"""
_value:
  description: One sentence for each thing that is missing or in the way.
  type: list
  elements: str
"""

import difflib
import os
import re
from typing import Any, Callable, Iterator

from ansible_collections.hpc.uvn.plugins.module_utils.uvn.login import acceptable
from ansible_collections.hpc.uvn.plugins.module_utils.uvn.site import parse
from ansible_collections.hpc.uvn.plugins.plugin_utils.conflicts import Conflicts

PYROUTE2 = (0, 7, 2)  # the first version that can delete on kernels from 5.19 on and filters dumps
INGRESS_MODULES = ("sch_ingress", "cls_bpf")
INTERNAL = ("uvn_node__", "uvn_spank__")
OF_PLAYBOOKS = ("uvn_spank_host", "uvn_spank_headers")  # of playbooks/spank.yml
WHEEL = re.compile(r"pyroute2-([0-9.]+)(\.post\d+)?-py3-none-any\.whl")


def preflight(
    found: dict[str, Any],
    site: dict[str, Any],
    state: str = "present",
    build: bool = False,
    users: list[str] | None = None,
    wheel: str = "",
    spank: str = "",
    plugstack: str = "/etc/slurm/plugstack.conf.d",
    variables: list[str] | None = None,
    known: list[str] | None = None,
    network: dict[str, Any] | None = None,
) -> list[str]:
    """One sentence for each thing that keeps a node from its state."""
    findings = [*_unread(variables or [], known or []), *_place(found, build)]
    if state == "present" and not findings:
        findings += [*_system(found, site, build), *_pyroute2(found, wheel), *_users(users or [], build), *_exempt(site)]
        findings += _slurm(found, site, spank, plugstack) if spank and found["slurm"] else []
        findings += Conflicts(parse(site), network).all() if network else []
    return findings


def _unread(variables: list[str], known: list[str]) -> Iterator[str]:
    """Variables that are meant for the role and that it would pass over."""
    for name in sorted(variables):
        if name.startswith("uvn_") and not name.startswith(INTERNAL) and name not in (*known, *OF_PLAYBOOKS):
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
            yield f"the variable {name} is none of UVN's, so what it says would be left out; the nearest is {nearest[0]}, rename or remove it"


def _place(found: dict[str, Any], build: bool) -> Iterator[str]:
    """Whether the role knows how to work here at all."""
    if found["family"] not in ("debian", "rhel"):
        yield (
            f"{found['os']} is neither of the Debian nor of the RHEL family, the only ones whose PAM stacks hpc.uvn.uvn_node knows how to "
            "change; leave this host out of the play"
        )
    elif not found["booted"] and not build:
        yield "systemd is not running here, which UVN needs to start before sshd; set uvn_node_build to true if this is an image or a chroot"
    if found.get("authselect") == "":
        yield (
            "authselect does not manage the PAM stack of this node (`authselect current` names no profile), so the role cannot change it; "
            "run `authselect select` with the profile that fits, such as sssd or local"
        )


def _system(found: dict[str, Any], site: dict[str, Any], build: bool) -> Iterator[str]:
    for kernel, lacking in sorted(found["kernels"].items()):
        modules = [module for module in lacking if site.get("ingress") or module not in INGRESS_MODULES]
        if modules:
            yield (
                f"the kernel {kernel} lacks the module{'s' * (len(modules) > 1)} {', '.join(modules)}; on Ubuntu install "
                f"linux-modules-extra-{kernel}, on RHEL kernel-modules-core-{kernel} and kernel-modules-{kernel}, elsewhere a kernel that "
                "has what is missing"
            )
    if not build and found["cgroup"] != "cgroup2fs":
        yield f"/sys/fs/cgroup is {found['cgroup']}, not cgroup2fs; boot the node with systemd.unified_cgroup_hierarchy=1"
    if not build and not found["ip"]:
        yield "the command ip is missing, so what is in the way cannot be seen; install the package that has it, iproute2 or iproute"
    if not build and not found["ipv6"] and ":" in site.get("group", ""):
        yield (
            f"IPv6 is off on this node, and the multicast group {site['group']} of the users' networks is of IPv6; switch IPv6 on (no ipv6.disable=1 "
            "on the kernel's command line, net.ipv6.conf.all.disable_ipv6=0, net.ipv6.conf.default.disable_ipv6=0), or set uvn_group to one of IPv4"
        )
    if found["sshd_pam"] not in ("yes", "absent"):
        yield (
            f"sshd runs with UsePAM {found['sshd_pam']}, so users would log in without a network and all their connections would fail; "
            'set "UsePAM yes" in /etc/ssh/sshd_config'
        )


def _pyroute2(found: dict[str, Any], wheel: str) -> Iterator[str]:
    """The wheel, when there is one; else what the node has, else what its distribution would install."""
    needed = ".".join(map(str, PYROUTE2))
    remedy = f"give the role a wheel of {needed} or newer in uvn_node_pyroute2_wheel"
    name = WHEEL.fullmatch(os.path.basename(wheel))
    if wheel and not name:
        yield f"uvn_node_pyroute2_wheel: {wheel} is not named as a wheel of pyroute2 is; give the file as `pip download pyroute2` names it"
    elif wheel and not os.path.isfile(wheel):
        yield f"uvn_node_pyroute2_wheel: {wheel} is not a file on the controller; `pip download --no-deps pyroute2` fetches one"
    elif name and _version(name[1]) < PYROUTE2:
        yield f"uvn_node_pyroute2_wheel: {wheel} is of version {name[1]}, UVN needs {needed}; {remedy}"
    elif not wheel and found["pyroute2"]:
        version, path = found["pyroute2"]["version"], found["pyroute2"]["path"]
        if _version(version) < PYROUTE2:
            yield f"/usr/bin/python3 finds pyroute2 {version} in {path}, UVN needs {needed}; {remedy}, or install a newer package"
    elif not wheel and not _version(found["pyroute2_candidate"]):
        yield f"/usr/bin/python3 finds no pyroute2, and no repository of this node has the package python3-pyroute2; add one, or {remedy}"
    elif not wheel and _version(found["pyroute2_candidate"]) < PYROUTE2:
        yield f"the package python3-pyroute2 of this node's repositories is of version {found['pyroute2_candidate']}, UVN needs {needed}; {remedy}"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[-+~a-z]", text)[0]))


def _users(users: list[str], build: bool) -> Iterator[str]:
    for user in users:
        if not acceptable(user):
            yield f"uvn_node_users: {user!r} is not an account name; give it as `getent passwd` prints it"
    if users and build:
        yield (
            f"uvn_node_users: {', '.join(users)} cannot get networks in an image or a chroot; leave the list empty here and provision them "
            "on the booted node"
        )


def _exempt(site: dict[str, Any]) -> Iterator[str]:
    """Names that a line of PAM cannot hold; pam-auth-update cannot merge lines with libpam's brackets."""
    for kind in ("users", "groups"):
        for name in site.get("exempt", {}).get(kind, []):
            if not name.isprintable() or re.search(r"[\s#\[\]]|\\$", name):
                yield (
                    f"uvn_exempt.{kind}: {name!r} cannot stand in a line of PAM (a space, #, a bracket, a backslash at the end); exempt the accounts "
                    "by uvn_exempt.uids, or have the directory show the name without it (sssd: override_space, winbind: winbind normalize names)"
                )


def _slurm(found: dict[str, Any], site: dict[str, Any], spank: str, plugstack: str) -> Iterator[str]:
    """Whether jobs would have their networks, and srun would hear from them."""
    slurm = found["slurm"]
    release = ".".join(slurm["version"].split(".")[:2])
    built = _built_for(spank)
    if built is None:
        yield f"uvn_node_spank: {spank} is not UVN's plug-in; `make -C spank` builds it, see docs/slurm.md"
    elif built != release:
        yield f"uvn_node_spank: {spank} is built for Slurm {built}, the node has {slurm['version']}; build it with the headers of {release}"
    if not slurm["directory"]:
        yield f"uvn_node_plugstack: the directory {plugstack} is not there; make it on the node, and include its files in Slurm's plugstack.conf"
    if not slurm["included"]:
        yield (
            f"Slurm's plugstack.conf does not include UVN's file; add the line `include {plugstack}/*.conf` to it, on the controller where "
            "the cluster is configless"
        )
    if slurm["config"] is None:
        if found["units"]["slurmd.service"]["active"] == "active":
            yield "`scontrol show config` gives no answer, so it cannot be seen whether jobs would work; start slurmctld and munge"
        return
    yield from _slurm_conf(slurm["config"], site)


def _slurm_conf(config: dict[str, str], site: dict[str, Any]) -> Iterator[str]:
    """What slurm.conf must say, each with its reason."""
    flags = {flag.lower() for flag in config.get("PrologFlags", "").split(",")}
    missing = [flag for flag in ("Alloc", "Contain", "DeferBatch") if flag.lower() not in flags]
    if missing:
        remedy = "set PrologFlags=Alloc,Contain,DeferBatch"
        yield f"PrologFlags lacks {','.join(missing)}, so steps would start before every node has the network; {remedy}"
    if config.get("ProctrackType") != "proctrack/cgroup":
        yield f"ProctrackType is {config.get('ProctrackType')}, so slurmstepd is in no job's cgroup; set ProctrackType=proctrack/cgroup"
    if "block_null_hash" not in config.get("CommunicationParameters", "").lower():
        yield "CommunicationParameters lacks block_null_hash, so a credential that a user's program receives could be used again; add it"
    first, _dash, last = config.get("SrunPortRange", "0-0").partition("-")
    if not any(opening["protocol"] == "tcp" and _covers(opening["ports"], int(first), int(last)) for opening in site["ingress"]):
        yield (
            f"SrunPortRange is {config.get('SrunPortRange')}, and no entry of uvn_ingress opens that range, so slurmctld and slurmstepd would not "
            "reach srun and salloc; set SrunPortRange=61000-64999, say, and open it to the hosts of slurmctld and slurmd"
        )
    for key in ("SlurmctldPort", "SlurmdPort"):
        low, _dash, high = config[key].partition("-")
        if not _covers(site["control_ports"], int(low), int(high or low)):
            yield f"{key} is {config[key]}, which uvn_control_ports does not hold: a user could listen there; add it"


def _covers(ranges: list[str], first: int, last: int) -> bool:
    pairs = [(int(part.split("-")[0]), int(part.split("-")[-1])) for part in ranges]
    return any(low <= first and last <= high for low, high in pairs)


def _built_for(spank: str) -> str | None:
    """The release of Slurm that a plug-in is built for, None of another file."""
    try:
        with open(spank, "rb") as file:
            match = re.search(rb"uvn: built for Slurm ([0-9.]+)\0", file.read())
    except OSError:
        return None
    return match[1].decode() if match else None


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable]:
        return {"preflight": preflight}
