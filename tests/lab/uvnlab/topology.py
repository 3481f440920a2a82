# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes, networks and accounts of the lab, and the configuration files that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

from .common import LabError

SUITES = ("bookworm", "trixie")
USERS = {"alice": 2001, "bob": 2002, "carol": 2003, "exempted": 2009}


@dataclass(frozen=True)
class Lan:
    """A network between the guests; `number` is the fourth byte of its NICs' MAC addresses."""

    name: str
    number: int
    ipv4: str
    prefix4: int
    ipv6: str

    def address4(self, host: int) -> str:
        return f"{self.ipv4}.{host}"

    def address6(self, host: int) -> str:
        return f"{self.ipv6}::{host}"  # the host's decimal digits read as hexadecimal ones, so that both families look alike

    def mac(self, host: int) -> str:
        return f"02:75:76:{self.number:02x}:00:{host:02x}"


EM1 = Lan("em1", 1, "192.168.80", 21, "fd00:80")
IB0 = Lan("ib0", 2, "192.168.40", 21, "fd00:40")
WAN0 = Lan("wan0", 3, "10.10.0", 24, "2001:db8:10")
LANS = (EM1, IB0, WAN0)
MGMT0 = Lan("mgmt0", 9, "10.0.2", 24, "")  # QEMU's user networking: ssh from the host, nothing else


# What configures the NICs, and its units.
MANAGERS = {
    "networkd": ("systemd-networkd.service", "systemd-networkd.socket", "systemd-networkd-wait-online.service"),
    "NetworkManager": ("NetworkManager.service", "NetworkManager-wait-online.service"),
}


@dataclass(frozen=True)
class Node:
    """A guest; `host` is the last part of its addresses, `cpus` what it gets where the host has plenty and KVM, `memory` in MiB.

    `suite` is Debian's, unless `up` is told another; `manager` is what configures its NICs, one of MANAGERS.
    """

    name: str
    host: int
    lans: tuple[Lan, ...]
    cpus: int
    memory: int
    suite: str = "bookworm"
    manager: str = "networkd"


NODES = {
    node.name: node
    for node in (
        Node("login1", 91, LANS, 2, 1024),
        Node("c1", 92, LANS, 2, 1024),
        Node("c2", 93, LANS, 2, 1024, manager="NetworkManager"),
        Node("ext", 5, (EM1, WAN0), 1, 768),
        Node("kernel", 99, (), 2, 1024),
        Node("kernel13", 98, (), 2, 1024, "trixie"),
    )
}
CLUSTER = ("login1", "c1", "c2", "ext")
UVN_NODES = ("login1", "c1", "c2")
GATEWAY = NODES["ext"].host
OFFNET4, OFFNET6 = "198.51.100.10", "2001:db8:100::10"


def parse_request(words: list[str]) -> dict[str, str | None]:
    """`NODE` and `NODE=SUITE` as a node's name to the suite asked for, None where it is left open."""
    asked: dict[str, str | None] = {}
    for word in words:
        name, equals, suite = word.partition("=")
        if name not in NODES:
            raise LabError(f"there is no node {name!r}; choose one of {', '.join(NODES)}")
        if equals and suite not in SUITES:
            raise LabError(f"node {name}: there is no suite {suite!r}; choose one of {', '.join(SUITES)}")
        asked[name] = suite or None
    return asked


def hosts() -> str:
    """/etc/hosts, the same on every node."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]

    def add(lan: Lan, host: int, *names: str) -> None:
        lines.append(f"{lan.address4(host)} {' '.join(names)}")
        lines.append(f"{lan.address6(host)} {' '.join(names)}")

    for name in UVN_NODES:
        host = NODES[name].host
        add(EM1, host, name, f"{name}-em")
        add(IB0, host, f"{name}-ib")
        add(WAN0, host, f"{name}-wan")
    add(EM1, GATEWAY, "licence", "ext-em")
    add(WAN0, GATEWAY, "ext", "ext-wan")
    lines += [f"{OFFNET4} offnet", f"{OFFNET6} offnet"]
    return "\n".join(lines) + "\n"


def link_file(lan: Lan) -> str:
    macs = " ".join(lan.mac(node.host) for node in NODES.values())
    return f"[Match]\nDriver=virtio_net\nMACAddress={macs}\n\n[Link]\nName={lan.name}\n"


def network_file(node: Node, lan: Lan) -> str:
    """systemd-networkd's file of one NIC of one node; all nodes carry all files, the kernel command line chooses."""
    match = f"[Match]\nName={lan.name}\nKernelCommandLine=lab.node={node.name}\n"
    if lan is MGMT0:
        online = "no" if node.lans else "yes"
        return (
            f"{match}\n[Link]\nRequiredForOnline={online}\n\n"
            "[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nAddress=10.0.2.15/24\n"
        )
    lines = ["[Network]", "IPv6AcceptRA=no", "IPv6DuplicateAddressDetection=0"]
    lines.append(f"Address={lan.address4(node.host)}/{lan.prefix4}")
    lines.append(f"Address={lan.address6(node.host)}/64")
    if lan is WAN0:
        lines += [f"DNS={lan.address4(GATEWAY)}", "Domains=~."]
        if node.host != GATEWAY:
            lines += [f"Gateway={lan.address4(GATEWAY)}", f"Gateway={lan.address6(GATEWAY)}"]
    return match + "\n" + "\n".join(lines) + "\n"


def connection_file(node: Node, lan: Lan) -> str:
    """The same for NetworkManager."""
    ipv4, ipv6 = ["address1=10.0.2.15/24"], ["method=disabled"]
    if lan is not MGMT0:
        ipv4 = [f"address1={lan.address4(node.host)}/{lan.prefix4}"]
        ipv6 = ["method=manual", f"address1={lan.address6(node.host)}/64"]
    if lan is WAN0:
        ipv4 += [f"gateway={lan.address4(GATEWAY)}", f"dns={lan.address4(GATEWAY)}", "dns-search=~."]
        ipv6 += [f"gateway={lan.address6(GATEWAY)}"]
    connection = ["[connection]", f"id={lan.name}", "type=ethernet", f"interface-name={lan.name}"]
    match = ["[match]", f"kernel-command-line=lab.node={node.name}"]
    metric = f"route-metric={100 + lan.number}"  # else it depends on which NIC is up first
    return "\n".join([*connection, *match, "[ipv4]", "method=manual", metric, *ipv4, "[ipv6]", metric, *ipv6, ""])


def network_files() -> dict[str, str]:
    """The configuration of all nodes' NICs, by path below /etc."""
    files = {f"systemd/network/10-{lan.name}.link": link_file(lan) for lan in (*LANS, MGMT0)}
    for node in NODES.values():
        for lan in (*node.lans, MGMT0):
            if node.manager == "networkd":
                files[f"systemd/network/10-{lan.name}-{node.name}.network"] = network_file(node, lan)
            else:
                files[f"NetworkManager/system-connections/{lan.name}-{node.name}.nmconnection"] = connection_file(node, lan)
    only_ext = "[Match]\nKernelCommandLine=lab.node=ext\n"
    files["systemd/network/20-offnet.netdev"] = f"{only_ext}\n[NetDev]\nName=offnet\nKind=dummy\n"
    files["systemd/network/20-offnet.network"] = (
        "[Match]\nName=offnet\nKernelCommandLine=lab.node=ext\n\n[Network]\nIPv6DuplicateAddressDetection=0\n"
        f"Address={OFFNET4}/32\nAddress={OFFNET6}/128\n"
    )
    return files


def dnsmasq_conf() -> str:
    """The DNS server on ext: knows the lab's outside world, answers NXDOMAIN for anything else."""
    return (
        "no-resolv\nno-hosts\nbind-dynamic\nuser=dnsmasq\ngroup=nogroup\n"
        f"listen-address={WAN0.address4(GATEWAY)}\nlisten-address={WAN0.address6(GATEWAY)}\n"
        f"host-record=offnet.lab.test,{OFFNET4},{OFFNET6}\n"
        f"host-record=ext.lab.test,{WAN0.address4(GATEWAY)},{WAN0.address6(GATEWAY)}\n"
        f"host-record=licence.lab.test,{EM1.address4(GATEWAY)},{EM1.address6(GATEWAY)}\n"
        "local=/lab.test/\nlocal=/#/\n"
    )
