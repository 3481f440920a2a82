# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The attacks as data: what holds each, and so which part is taken off to prove that it is real. attacker.py has the programs."""

from __future__ import annotations

from dataclasses import dataclass

PARTS = {
    "membership": "the BPF program that binds sockets",
    "guard": "the nftables table, the BPF programs for packets that come in, for sockets that would leave and on security hooks, "
    "MPTCP and address families off",
    "kernel": "the kernel itself, whatever UVN does",
    "permissions": "file permissions",
}


@dataclass(frozen=True)
class Attack:
    """One attack by alice on bob.

    Parameters
    ----------
    name: of the program in attacker.py. held_by: one of PARTS; the first two are taken off to prove that the attack is real.
    node: where alice is. limit: why it is not closed.
    needs: a listener of victim.py, without which the kernel has no such protocol; "lsm" where BPF must be a security module.
    """

    name: str
    held_by: str
    node: str = "login1"
    needs: str = ""
    limit: str = ""


ATTACKS = (
    Attack("TCP", "membership"),
    Attack("TCP, other node", "membership"),
    Attack("TCP, IPv6", "membership"),
    Attack("UDP", "membership"),
    Attack("UDP, other node", "membership"),
    Attack("UDP-Lite", "membership"),
    Attack("SCTP", "membership", needs="sctp"),
    Attack("TCP fast open", "membership"),
    Attack("SO_BINDTODEVICE", "membership"),
    Attack("SO_BINDTOIFINDEX", "membership"),
    Attack("io_uring", "membership"),
    Attack("systemd-run --user", "membership"),
    Attack("subordinate UID", "membership"),
    Attack("own network namespace, pasta", "membership"),
    Attack("own network namespace, slirp4netns", "membership"),
    Attack("NAT address", "kernel"),
    Attack("NAT address, from outside", "kernel", node="ext"),
    Attack("IP_PKTINFO, the NIC itself", "guard"),
    Attack("IP_PKTINFO, VRF", "guard"),
    Attack("IP_PKTINFO, VXLAN", "guard"),
    Attack("IP_PKTINFO, VRF, other node", "guard"),
    Attack("IP_PKTINFO, VXLAN, other node", "guard"),
    Attack("IP_PKTINFO, UDP-Lite", "guard"),
    Attack("IP_PKTINFO, unbound", "guard"),
    Attack("IP_PKTINFO, ping", "guard"),
    Attack("IPV6_PKTINFO, VRF", "kernel"),
    Attack("IPV6_PKTINFO, VXLAN", "kernel"),
    Attack("IP_UNICAST_IF", "kernel"),
    Attack("IP_UNICAST_IF, unbound", "guard"),
    Attack("IP_MULTICAST_IF", "kernel"),
    Attack("IP_MULTICAST_IF, unbound", "guard"),
    Attack("scope id", "guard"),
    Attack("unbound, then into the VRF", "guard"),
    Attack("unbound, then into the VXLAN", "guard"),
    Attack("unbound, IPv6", "guard"),
    Attack("unbound, eavesdropping", "guard"),
    Attack("unbound, impersonating", "guard"),
    Attack("errors of another's datagrams", "guard"),
    Attack("errors of another's datagrams, IPv6", "guard"),
    Attack("errors of another's datagrams, 32-bit call", "guard"),
    Attack("errors kept from a client", "guard"),
    Attack("a deaf listener", "guard"),
    Attack("a deaf listener, IPv6", "guard"),
    Attack("a deaf listener, unbound with its peer", "guard"),
    Attack("a deaf client", "guard"),
    Attack("a taken TCP port", "guard"),
    Attack("a taken UDP port", "guard"),
    Attack("many taken UDP ports", "guard"),
    Attack("set-UID root program", "guard"),
    Attack("link-local bind, UDP", "guard"),
    Attack("link-local bind, multicast", "guard"),
    Attack("link-local bind, TCP", "kernel"),
    Attack("IP_TRANSPARENT", "kernel"),
    Attack("IP_FREEBIND, another's NAT address", "guard"),
    Attack("IP_PKTINFO, another's NAT address", "guard"),
    Attack("VXLAN to localhost", "guard"),
    Attack("VXLAN to the own address", "guard"),
    Attack("VXLAN to another node", "guard"),
    Attack("VXLAN to the group", "guard"),
    Attack("VXLAN over IPv6", "kernel"),  # which listens on IPv4 only where the group is IPv4
    Attack("VXLAN from an unbound socket", "guard"),
    Attack("FDB poisoning", "guard"),
    Attack("ARP in a VXLAN frame", "guard"),
    Attack("VXLAN from a host without UVN", "guard", node="ext"),
    Attack("VXLAN to the group from a host without UVN", "guard", node="ext"),
    Attack("ping -I", "guard"),
    Attack("MPTCP", "guard", needs="mptcp"),
    Attack("AF_SMC", "guard", needs="smc"),
    Attack("AF_VSOCK", "guard", needs="vsock"),
    Attack("AF_KCM", "guard"),
    Attack("NETLINK_USERSOCK", "guard", needs="lsm"),
    Attack("L2TP over IP", "guard", needs="lsm"),
    Attack("abstract Unix socket", "guard", needs="lsm"),
    Attack("packet socket in a user namespace", "kernel"),
    Attack("raw socket in a user namespace", "kernel"),
    Attack("IP_TRANSPARENT in a user namespace", "kernel"),
    Attack("sudo", "permissions"),
    Attack("su", "permissions"),
    Attack("systemd-run --uid", "permissions"),
    Attack("uvnd's socket", "permissions"),
    Attack("ready file", "permissions"),
    Attack("a socket that its owner passes", "kernel", limit="whom a user hands a socket to has it"),
)

# What must pass, whatever is on or off.
LEGITIMATE = (
    "own localhost",
    "own localhost, IPv6",
    "own address",
    "outside",
    "root's service on another node",
    "DNS",
    "connected datagrams",
)
