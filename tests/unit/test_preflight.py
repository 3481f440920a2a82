# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter hpc.uvn.preflight: each thing that is missing or in the way is one sentence, and what is not is none."""

from __future__ import annotations

import copy
import ctypes
import os

import collection  # noqa: F401
import pytest
from ansible_collections.hpc.uvn.plugins.filter.preflight import FilterModule
from ansible_collections.hpc.uvn.plugins.module_utils.uvn.login import acceptable
from conftest import SITE
from hypothesis import example, given
from hypothesis import strategies as st

preflight = FilterModule().filters()["preflight"]

FOUND = {
    "os": "Debian GNU/Linux 12 (bookworm)",
    "family": "debian",
    "booted": True,
    "kernels": {"6.1.0-37-amd64": []},
    "cgroup": "cgroup2fs",
    "ip": True,
    "ipv6": True,
    "sshd_pam": "yes",
    "pyroute2": {"version": "0.7.2", "path": "/usr/lib/python3/dist-packages"},
    "pyroute2_candidate": "0.7.2-2",
    "slurm": {},
    "units": {"slurmd.service": {"active": "active", "enabled": True}},
}


def link(name, kind=None, group="default", addresses=(), **data):
    """A device as `ip -json -details address show` prints it."""
    info = {"linkinfo": {"info_kind": kind, "info_data": data}} if kind else {}
    return {"ifname": name, "group": group, "addr_info": [{"local": address} for address in addresses], **info}


def rule(priority, table=None, **more):
    return {"priority": priority, "src": "all", **({"table": str(table)} if table else {}), **more}


def route(destination, device=None, table=None, protocol="2"):
    entry = {"dst": destination, "protocol": protocol, "flags": []}
    return {**entry, **({"dev": device} if device else {}), **({"table": str(table)} if table else {})}


def chain(family, table, name, policy, hook="input"):
    """A base chain as `nft --json list ruleset` prints it."""
    return {"family": family, "table": table, "name": name, "type": "filter", "hook": hook, "prio": 0, "policy": policy}


def looks_for(family, table, right):
    """A rule of nftables that accepts by the device."""
    match = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": right}}
    return {"rule": {"family": family, "table": table, "chain": "input", "expr": [match, {"accept": None}]}}


OURS = str(0x55000000 + 2001)
# A node with UVN and alice's network, and what a site may well have beside them.
NETWORK = {
    "addresses": [
        link("lo", addresses=["127.0.0.1", "::1"]),
        link("em1", addresses=["192.168.80.91", "fd00:80::91"]),
        link("enp0s20f0u1", addresses=["10.3.0.1"]),
        link("vrf10", "vrf", table=10),
        link("vxlan9", "vxlan", port=4789, id=2001),
        link("uvn", "dummy", str(0x55000000), ["fd75:766e::7d1"]),
        link("vrf2001", "vrf", OURS, ["127.0.0.1", "100.64.7.209"], table=100002001),
        link("em1u2001", "vxlan", OURS, ["192.168.80.91"], port=800, id=2001),
    ],
    "rules4": [
        rule(100, 77),
        rule(200, 78, fwmark="0x5"),
        rule(1000, l3mdev=None),
        rule(32763, dst="100.64.0.0", dstlen=10, iif="lo", action="7", protocol="117"),
        rule(32764, 100000000, dst="100.64.0.0", dstlen=10, protocol="117"),
        rule(32765, 255),
        rule(32766, 254),
        rule(32767, 253),
    ],
    "rules6": [rule(0, 255), rule(32766, 254)],
    "routes4": [
        route("default", "em1", protocol="4"),
        route("100.64.7.209", "vrf2001", 100000000, "117"),
        route("default", None, 100002001, "117"),
        route("100.64.7.209", "vrf2001", 100002001),
        route("10.9.0.0/16", "em1", 77, "3"),
        route("default", "em1", 78, "3"),
    ],
    "routes6": [route("fd75:766e::7d1", "uvn")],
    "sockets": [
        "UNCONN 0 0 0.0.0.0:800 0.0.0.0:* ",
        'UNCONN 0 0 127.0.0.53%lo:53 0.0.0.0:* users:(("systemd-resolve",pid=142,fd=13))',
    ],
    "tables": ["255 local", "254 main", "77 storage"],
    "firewall": {"nftables": [{"chain": chain("ip", "filter", "INPUT", "drop")}, {"chain": chain("inet", "uvn", "input", "accept")}]},
}


def judge(network):
    return preflight(FOUND, SITE, network=network)


def test_a_fit_node_is_fit():
    assert preflight(FOUND, SITE) == [] and judge(NETWORK) == []


@pytest.mark.parametrize(
    ("found", "options", "sentence"),
    [
        ({"family": "unknown", "os": "Arch Linux"}, {}, "Arch Linux is neither of the Debian nor of the RHEL family"),
        ({"booted": False}, {}, "systemd is not running here, which UVN needs to start before sshd; set uvn_node_build"),
        ({"authselect": ""}, {}, "authselect does not manage the PAM stack of this node"),
        ({"kernels": {"6.8.0-31-generic": ["vrf", "vxlan"]}}, {}, "the kernel 6.8.0-31-generic lacks the modules vrf, vxlan; on Ubuntu install "),
        ({"cgroup": "tmpfs"}, {}, "/sys/fs/cgroup is tmpfs, not cgroup2fs; boot the node with"),
        ({"sshd_pam": "no"}, {}, "sshd runs with UsePAM no, so users would log in without a network"),
        ({"ip": False}, {}, "the command ip is missing"),
        ({"pyroute2": {"version": "0.6.4", "path": "/usr/lib/x"}}, {}, "/usr/bin/python3 finds pyroute2 0.6.4 in /usr/lib/x, UVN needs 0.7.2"),
        ({"pyroute2": None, "pyroute2_candidate": "0.5.14"}, {}, "the package python3-pyroute2 of this node's repositories is of version 0.5.14"),
        ({"pyroute2": None, "pyroute2_candidate": ""}, {}, "/usr/bin/python3 finds no pyroute2, and no repository of this node has the package"),
        ({}, {"wheel": "/none/pyroute2-0.7.12-py3-none-any.whl"}, "uvn_node_pyroute2_wheel: /none/pyroute2-0.7.12-py3-none-any.whl is not a file"),
        ({}, {"wheel": "/etc/hostname"}, "uvn_node_pyroute2_wheel: /etc/hostname is not named as a wheel of pyroute2 is"),
        ({}, {"users": ["alice"], "build": True}, "uvn_node_users: alice cannot get networks in an image or a chroot"),
    ],
)
def test_what_is_missing_is_named(found, options, sentence):
    (finding,) = preflight({**FOUND, **found}, SITE, **options)
    assert finding.startswith(sentence) and "; " in finding and "\n" not in finding


def test_ipv6_is_needed_by_a_group_of_ipv6_only():
    without = {**FOUND, "ipv6": False}
    assert preflight(without, SITE) == [] and preflight(FOUND, {**SITE, "group": "ff05::1:1"}) == []
    (finding,) = preflight(without, {**SITE, "group": "ff05::1:1"})
    assert finding.startswith("IPv6 is off on this node, and the multicast group ff05::1:1 of the users' networks is of IPv6; ")


def test_an_old_wheel_is_refused(tmp_path):
    wheel = tmp_path / "pyroute2-0.6.13-py3-none-any.whl"
    wheel.touch()
    (finding,) = preflight(FOUND, SITE, wheel=str(wheel))
    assert "is of version 0.6.13, UVN needs 0.7.2" in finding


def test_a_wheel_makes_up_for_the_package(tmp_path):
    wheel = tmp_path / "pyroute2-0.7.12-py3-none-any.whl"
    wheel.touch()
    assert preflight({**FOUND, "pyroute2": None, "pyroute2_candidate": ""}, SITE, wheel=str(wheel)) == []


def test_everything_is_named_at_once():
    bad = {**FOUND, "cgroup": "tmpfs", "sshd_pam": "no", "kernels": {"6.1": ["vrf"]}}
    assert len(preflight(bad, SITE, network={**NETWORK, "tables": ["100001001 mine"]})) == 4


def test_an_image_needs_neither_systemd_nor_cgroups():
    assert preflight({**FOUND, "booted": False, "cgroup": "tmpfs"}, SITE, build=True) == []


def test_removal_needs_no_more_than_a_known_system():
    assert preflight({**FOUND, "cgroup": "tmpfs", "sshd_pam": "no", "kernels": {"6.1": ["vrf"]}}, SITE, state="absent") == []


@pytest.mark.parametrize(
    ("where", "entry", "sentence"),
    [
        ("addresses", link("green", "dummy", OURS), "the device green has the link group 0x550007d1"),
        ("addresses", link("vrf2002", "vrf", table=7), "the device vrf2002 is not UVN's, and UVN needs its name"),
        ("addresses", link("em1u2002", "dummy"), "the device em1u2002 is not UVN's, and UVN needs its name"),
        ("addresses", link("uvn2", "vrf", table=100002002), "the routing table 100002002 belongs to the VRF uvn2"),
        ("routes4", route("10.0.0.0/8", "em1", 100002002, "3"), "the routing table 100002002 holds the IPv4 route 10.0.0.0/8 dev em1"),
        ("routes6", route("default", "em1", 100000000, "3"), "the routing table 100000000 holds the IPv6 route default dev em1"),
        ("rules6", rule(40000, 100002002), "the routing table 100002002 is looked up by the IPv6 rule 40000"),
        ("tables", "100002002 storage", "the routing table 100002002 is named storage in iproute2's rt_tables"),
        ("addresses", link("vx0", "vxlan", port=801), "the VXLAN vx0 uses the UDP port 801"),
        ("addresses", link("vx0", "vxlan", port=800), "the VXLAN vx0 uses the UDP port 800"),
        (
            "sockets",
            'UNCONN 0 0 [::]:801 [::]:* users:(("named",pid=42,fd=7))',
            "the UDP port 801, which is the port of an underlay, is in use by named (PID 42)",
        ),
        ("sockets", "UNCONN 0 0 0.0.0.0:801 0.0.0.0:* ", "the UDP port 801, which is the port of an underlay, is in use by a socket of the kernel"),
        ("rules4", rule(1000, 77), "the rule IPv4 1000: from all lookup 77 has one of the preferences that UVN needs"),
        ("rules4", rule(32765, 254, src="10.0.0.0", srclen=8), "the rule IPv4 32765: from 10.0.0.0/8 lookup 254 has one of the preferences"),
        ("rules4", rule(500, 78, iif="em1"), "the rule IPv4 500: from all iif em1 lookup 78 would come before the rule local"),
        ("rules4", rule(500, 254), "the rule IPv4 500: from all lookup 254 would come before the rule local"),
        ("addresses", link("tailscale0", addresses=["100.101.102.103"]), "the address 100.101.102.103 of tailscale0 is in 100.64.0.0/10"),
        ("routes4", route("100.100.0.0/16", "em1", protocol="4"), "a route leads to 100.100.0.0/16, which is in 100.64.0.0/10"),
        ("routes6", route("fd75:766e::/80", "em1", protocol="4"), "a route leads to fd75:766e::/80, which is in fd75:766e::/64"),
    ],
)
def test_a_conflict_is_named(where, entry, sentence):
    network = copy.deepcopy(NETWORK)
    network[where].append(entry)
    (finding,) = judge(network)
    assert finding.startswith(sentence) and "; " in finding and "\n" not in finding


@pytest.mark.parametrize(
    ("where", "entry"),
    [
        ("addresses", link("vrf999", "vrf", table=999)),  # no UID that is managed
        ("addresses", link("usb0u2002", "dummy")),  # no NIC usb0 here
        ("addresses", link("vx0", "vxlan", port=4789, id=2001, group="239.192.193.194")),  # UVN's group on another port
        ("rules4", rule(33000, 78)),
        ("routes4", route("default", "em1", 5, "3")),
        ("routes6", route("fd00::/8", "em1", protocol="4")),  # an aggregate that UVN's rules come before
        ("tables", "100000999 storage"),
    ],
)
def test_what_is_not_in_the_way_is_not_named(where, entry):
    network = copy.deepcopy(NETWORK)
    network[where].append(entry)
    assert judge(network) == []


@pytest.mark.parametrize(
    ("nodes", "missing"), [(["192.168.80.64/26"], False), (["192.168.80.91"], False), (["192.168.80.0/26", "fd00:80::91"], True)]
)
def test_a_node_that_its_own_list_does_not_know_is_named(nodes, missing):
    from uvn.site import parse

    site = {**SITE, "underlays": [{**SITE["underlays"][0], "nodes": nodes}, SITE["underlays"][1]]}
    findings = preflight(FOUND, parse(site).as_dict(), network=NETWORK)
    expected = "the address 192.168.80.91 of em1 is in none of the `nodes` of the underlay with UDP port 800, so that other nodes would drop"
    assert [finding.startswith(expected) for finding in findings] == [True] * missing


# -- Slurm -----------------------------------------------------------------------------------------------------------

SLURM = {
    "version": "22.05.8",
    "lines": [],
    "directory": True,
    "included": True,
    "config": {
        "CommunicationParameters": "block_null_hash",
        "ProctrackType": "proctrack/cgroup",
        "PrologFlags": "Alloc,Contain,DeferBatch",
        "SlurmctldPort": "6817",
        "SlurmdPort": "6818",
        "SrunPortRange": "61000-61999",
    },
}
SLURM_SITE = {**SITE, "ingress": [{"hosts": ["192.168.80.0/21"], "ports": ["61000-64999"]}], "control_ports": ["6817-6819"]}


@pytest.fixture
def spank(tmp_path):
    path = tmp_path / "spank.so"
    path.write_bytes(b"\x7fELF...uvn: built for Slurm 22.05\0...")
    return str(path)


def slurm_findings(spank, setting=None, **found):
    from uvn.site import parse

    slurm = {**SLURM, "config": {**SLURM["config"], **(setting or {})}, **found}
    return preflight({**FOUND, "slurm": slurm}, parse(SLURM_SITE).as_dict(), spank=spank)


def test_a_slurm_as_it_should_be_is_no_finding(spank):
    assert slurm_findings(spank) == []


def test_slurm_is_not_looked_at_without_a_plugin_or_without_slurmd(spank):
    assert preflight({**FOUND, "slurm": {**SLURM, "included": False}}, SITE) == []
    assert preflight(FOUND, SITE, spank=spank) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": "23.11.4"}, "is built for Slurm 22.05, the node has 23.11.4; build it with the headers of 23.11"),
        ({"directory": False}, "the directory /etc/slurm/plugstack.conf.d is not there; make it"),
        ({"included": False}, "add the line `include /etc/slurm/plugstack.conf.d/*.conf`"),
        ({"config": None}, "`scontrol show config` gives no answer"),
    ],
)
def test_what_is_wrong_with_slurm_is_named(spank, change, sentence):
    (finding,) = slurm_findings(spank, **change)
    assert sentence in finding


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("PrologFlags", "Alloc,Contain", "PrologFlags lacks DeferBatch"),
        ("PrologFlags", "(null)", "PrologFlags lacks Alloc,Contain,DeferBatch"),
        ("ProctrackType", "proctrack/linuxproc", "set ProctrackType=proctrack/cgroup"),
        ("CommunicationParameters", "(null)", "lacks block_null_hash"),
        ("SrunPortRange", "0-0", "no entry of uvn_ingress opens that range"),
        ("SrunPortRange", "60000-61999", "no entry of uvn_ingress opens that range"),
        ("SlurmctldPort", "6815-6817", "SlurmctldPort is 6815-6817, which uvn_control_ports does not hold"),
    ],
)
def test_what_slurm_conf_must_say(spank, key, value, sentence):
    (finding,) = slurm_findings(spank, {key: value})
    assert sentence in finding


def test_a_file_that_is_not_the_plugin(tmp_path):
    (finding,) = slurm_findings(str(tmp_path / "nothing.so"))
    assert "is not UVN's plug-in" in finding


@pytest.mark.parametrize(
    ("family", "table", "name", "policy", "remedy"),
    [
        ("inet", "filter", "input", "drop", 'a rule `iifname "vrf*" accept` in input'),
        ("inet", "firewalld", "filter_INPUT", "accept", "`firewall-cmd --permanent --zone=trusted --add-interface=vrf+`"),
    ],
)
def test_a_firewall_of_nftables_must_know_the_vrfs(family, table, name, policy, remedy):
    site_chain = {"chain": chain(family, table, name, policy)}
    (finding,) = judge({**NETWORK, "firewall": {"nftables": [site_chain, looks_for(family, table, "em1"), looks_for("ip", "x", "vrf*")]}})
    assert finding.startswith(f"the chain {name} of nftables' table {family} {table} would refuse") and remedy in finding
    for right in ("vrf*", {"set": ["lo", "vrf*"]}):
        assert judge({**NETWORK, "firewall": {"nftables": [site_chain, looks_for(family, table, right)]}}) == []


def test_a_firewall_that_accepts_is_not_in_the_way():
    chains = [chain("inet", "filter", "input", "accept"), chain("inet", "filter", "forward", "drop", "forward")]
    assert judge({**NETWORK, "firewall": {"nftables": [{"chain": one} for one in chains]}}) == []
    assert judge({**NETWORK, "firewall": {}}) == []


# -- names -------------------------------------------------------------------------------------------------------------


def exempting(name):
    return {**SITE, "exempt": {"users": [name], "groups": [name], "uids": []}}


@pytest.mark.parametrize("name", ["domain admins", "a#b", "[a]", "a]", "DOM\\", "a\xa0b", "j\udcfc"])
def test_a_name_that_a_line_of_pam_cannot_hold(name):
    users, groups = preflight(FOUND, exempting(name))
    assert users.startswith(f"uvn_exempt.users: {name!r} cannot stand in a line of PAM") and groups.startswith("uvn_exempt.groups: ")


@pytest.mark.parametrize("name", ["", "-a", "a/b"])
def test_users_to_provision_have_names(name):
    (finding,) = preflight(FOUND, SITE, users=["alice", name, "DOM\\first last"])
    assert finding.startswith(f"uvn_node_users: {name!r} is not an account name")


@pytest.fixture(scope="module")
def passes(tmp_path_factory):
    """A function: whether libpam lets a user pass by a line as the role writes it."""
    directory = tmp_path_factory.mktemp("pam")
    pam = ctypes.CDLL("libpam.so.0")

    def ask(condition, user):
        line = b"account\t[success=1 default=ignore]\tpam_succeed_if.so quiet " + condition
        (directory / "uvn").write_bytes(line + b"\naccount required pam_deny.so\naccount required pam_permit.so\n")
        handle, conversation = ctypes.c_void_p(), (ctypes.c_void_p * 2)()
        assert pam.pam_start_confdir(b"uvn", user, ctypes.byref(conversation), str(directory).encode(), ctypes.byref(handle)) == 0
        answer = pam.pam_acct_mgmt(handle, 0)
        pam.pam_end(handle, answer)
        return answer == 0

    return ask


@given(st.lists(st.sampled_from([*b"\\#[]@.$'`*=,;(){}%!~ab", 0xA0, 0xA9, 0xC2, 0xC3]) | st.integers(33, 255), min_size=1, max_size=6).map(bytes))
@example("DOM\\jürgen".encode())
@example(b"a@b")
@example(b"a\\")
def test_pam_exempts_exactly_the_accounts_whose_names_pass(passes, name):
    name = os.fsdecode(name)
    if acceptable(name) and preflight(FOUND, exempting(name)) == []:
        condition = b"user = " + os.fsencode(name)
        assert passes(condition, os.fsencode(name)) and not passes(condition, b"other") and not passes(condition, os.fsencode(name) + b"x")


# -- variables ---------------------------------------------------------------------------------------------------------

KNOWN = ["uvn_exempt", "uvn_mode", "uvn_node_build", "uvn_node_state", "uvn_underlays"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("uvn_exemt", "uvn_exempt"), ("uvn_node_biuld", "uvn_node_build"), ("uvn_mod", "uvn_mode"), ("uvn_moed", "uvn_mode"), ("uvn_x", "uvn_")],
)
@pytest.mark.parametrize("state", ["present", "absent"])
def test_a_misspelt_variable_is_named_with_the_nearest(name, nearest, state):
    (finding,) = preflight(FOUND, SITE, state=state, variables=[*KNOWN, name], known=KNOWN)
    assert finding.startswith(f"the variable {name} is none of UVN's, so what it says would be left out; the nearest is {nearest}")


def test_other_variables_are_nobodys_business():
    others = ["uvn_node__site", "uvn_node__found", "uvn_spank_host", "uvn_spank_headers", "uvn_spank__directory", "uvnx", "my_uvn_x", "ansible_host"]
    assert preflight(FOUND, SITE, variables=[*KNOWN, *others], known=KNOWN) == []
