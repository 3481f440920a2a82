# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node's network has that UVN would collide with: judged on the controller from what `ip` and `ss` printed. Pure."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Iterator

from ansible_collections.hpc.uvn.plugins.module_utils.uvn.identity import (
    LINK_GROUP,
    LINK_GROUP_MASK,
    short_name,
    uid_of_index,
    vxlan_names,
)
from ansible_collections.hpc.uvn.plugins.module_utils.uvn.objects import TABLE_LOCAL, TABLE_MAIN
from ansible_collections.hpc.uvn.plugins.module_utils.uvn.plan import (
    NAT_DEVICE,
    PREFERENCE_L3MDEV,
    PREFERENCE_LOCAL,
    PREFERENCES,
)
from ansible_collections.hpc.uvn.plugins.module_utils.uvn.site import Site

PROTOCOL = 117  # of our routes and rules, as in kernel.py, whose import would change the controller's PATH
PROTOCOL_KERNEL = 2
MAIN, LOCAL, DEFAULT = TABLE_MAIN, TABLE_LOCAL, 253
IPTABLES = (("ip", "filter"), ("ip6", "filter"))  # the tables of iptables-nft, whose chain INPUT asks ours first
FIREWALLD = "firewalld"
# A line of `ss`. What a user's program has behind a line feed in its name is no such line: 15 bytes are too few, and a quotation mark follows.
SOCKET = re.compile(r'(?:UNCONN|ESTAB) \d+ \d+ [^\s"]+:(?P<port>\d+) [^\s"]+:(?:\d+|\*) ?(?P<owner>.*)')
KERNEL_RULES = {0: LOCAL, 32766: MAIN, 32767: DEFAULT}


class Conflicts:
    """What a node's network has that UVN would collide with.

    Parameters
    ----------
    network: the output of `ip -json` for `addresses`, `rules4`, `rules6`, `routes4`, `routes6` (the last four numeric),
        of `ss` for `sockets`, the lines of the files that name routing tables as `tables`, and that of `nft --json` for `firewall`.
    """

    def __init__(self, site: Site, network: dict[str, Any]) -> None:
        self.site = site
        self.links = network["addresses"]
        self.rules = [(4, rule) for rule in network["rules4"]] + [(6, rule) for rule in network["rules6"]]
        self.routes = [(4, route) for route in network["routes4"]] + [(6, route) for route in network["routes6"]]
        self.sockets = network["sockets"]
        self.named = network["tables"]
        self.firewall = network["firewall"].get("nftables", [])
        self.ours = {link["ifname"] for link in self.links if _is_ours(link)}
        self.foreign = [link for link in self.links if link["ifname"] not in self.ours]

    def all(self) -> list[str]:
        """One sentence for each conflict, without repetitions."""
        parts = (self._groups, self._names, self._tables, self._ports, self._nodes, self._rules, self._nat, self._firewalls)
        return list(dict.fromkeys(sentence for part in parts for sentence in part()))

    def _groups(self) -> Iterator[str]:
        for link in self.foreign:
            if _group(link) & LINK_GROUP_MASK == LINK_GROUP:
                yield (
                    f"the device {link['ifname']} has the link group {_group(link):#x}, and {LINK_GROUP:#x} to "
                    f"{LINK_GROUP | ~LINK_GROUP_MASK & 0xFFFFFFFF:#x} mark UVN's devices; give it another group (ip link set ... group)"
                )

    def _names(self) -> Iterator[str]:
        """Names that UVN would give."""
        nics = [link["ifname"] for link in self.links]
        for link in self.foreign:
            name = link["ifname"]
            match = re.fullmatch(r"(.+)u(\d+)|vrf(\d+)", name)
            uid = int(match[2] or match[3]) if match else 0
            names = {f"vrf{uid}"}
            for port in (underlay.port for underlay in self.site.underlays):
                names |= {short_name(port, uid), *(vxlan_names(nic, port, uid)[0] for nic in nics)} if uid else set()
            if name == NAT_DEVICE or (name in names and any(here.first <= uid <= here.last for here in self.site.ranges)):
                yield f"the device {name} is not UVN's, and UVN needs its name; rename it (ip link set {name} name ...)"

    def _tables(self) -> Iterator[str]:
        """Routing tables of users, and of the replies, that something else uses."""
        for version, route in self.routes:
            device = route.get("dev", "")
            if self._is_users(table := _table(route)) and int(route.get("protocol", 0)) != PROTOCOL and device not in self.ours:
                yield self._table_taken(table, f"holds the IPv{version} route {route['dst']} {f'dev {device}' if device else ''}".rstrip())
        for link in self.foreign:
            data = link.get("linkinfo", {})
            if data.get("info_kind") == "vrf" and self._is_users(table := int(data["info_data"]["table"])):
                yield self._table_taken(table, f"belongs to the VRF {link['ifname']}")
        for version, rule in self.rules:
            if self._is_users(table := _table(rule, 0)) and int(rule.get("protocol", 0)) != PROTOCOL:
                yield self._table_taken(table, f"is looked up by the IPv{version} rule {rule['priority']}")
        for line in self.named:
            number, _blank, name = line.partition(" ")
            if re.fullmatch("[0-9]{1,10}", number) and self._is_users(int(number)):
                yield self._table_taken(int(number), f"is named {name.strip()} in iproute2's rt_tables")

    def _table_taken(self, table: int, how: str) -> str:
        base = self.site.table_base
        top = max(here.index + here.last - here.first for here in self.site.ranges)
        return (
            f"the routing table {table} {how}, and UVN needs the tables {base} to {base + top}; "
            "use another table there, or set uvn_table_base"
        )

    def _is_users(self, table: int) -> bool:
        index = table - self.site.table_base
        return index == 0 or uid_of_index(self.site, index) is not None

    def _ports(self) -> Iterator[str]:
        """UDP ports of the underlays: other VXLANs, programs, and sockets of the kernel."""
        remedy = "use another port there or in uvn_underlays"
        vxlans = [link for link in self.links if link.get("linkinfo", {}).get("info_kind") == "vxlan"]
        for port in (underlay.port for underlay in self.site.underlays):
            users = [link["ifname"] for link in vxlans if link["linkinfo"]["info_data"].get("port") == port]
            for name in (name for name in users if name not in self.ours):
                yield f"the VXLAN {name} uses the UDP port {port}, which is the port of an underlay; {remedy}"
            for socket in filter(None, map(SOCKET.fullmatch, self.sockets)):
                owner = socket["owner"]
                if socket["port"] == str(port) and (owner or not users):
                    program = re.findall(r'"([^"]+)",pid=(\d+)', owner)
                    who = ", ".join(f"{name} (PID {pid})" for name, pid in program) or (
                        "a program" if owner else "a socket of the kernel (such as WireGuard's)"
                    )
                    yield f"the UDP port {port}, which is the port of an underlay, is in use by {who}; {remedy}"

    def _nodes(self) -> Iterator[str]:
        """Where the site says which addresses nodes have: the one that this node's frames would come from (underlay.py)."""
        for underlay in (underlay for underlay in self.site.underlays if underlay.nodes):
            found = [(name, address) for name, address in self._outer_addresses() if any(address in subnet for subnet in underlay.subnets)]
            for name, address in found[:1]:
                if not any(address in network for network in underlay.nodes):
                    yield (
                        f"the address {address} of {name} is in none of the `nodes` of the underlay with UDP port {underlay.port}, so that "
                        "other nodes would drop what this node's users send to them; add it in uvn_underlays"
                    )

    def _outer_addresses(self) -> list[tuple[str, Any]]:
        """Names and addresses of the NICs, of the IP version of the VXLANs' packets."""
        links = sorted(self.foreign, key=lambda link: link["ifname"])
        every = [(link["ifname"], ipaddress.ip_address(text)) for link in links for text in _addresses(link)]
        return [(name, address) for name, address in every if address.version == self.site.group.version]

    def _rules(self) -> Iterator[str]:
        """Rules at our preferences, and rules that would come before the rule `local` and lead elsewhere what is local or users'."""
        for version, rule in self.rules:
            if self._is_known(rule):
                continue
            text = _rule_text(version, rule)
            if rule["priority"] in PREFERENCES:
                taken = ", ".join(map(str, PREFERENCES))
                yield f"the rule {text} has one of the preferences that UVN needs ({taken}); give it another one"
            elif 0 < rule["priority"] < PREFERENCE_LOCAL and "fwmark" not in rule:
                route = self._astray(version, _table(rule, 0))
                if route:
                    yield (
                        f"the rule {text} would come before the rule local, which UVN moves from 0 to {PREFERENCE_LOCAL}, and its table sends "
                        f"{route['dst']} elsewhere; give the rule a preference from {PREFERENCE_LOCAL + 1} on, or limit its table"
                    )

    def _is_known(self, rule: dict[str, Any]) -> bool:
        """The kernel's rules, and ours."""
        if int(rule.get("protocol", 0)) == PROTOCOL:
            return True
        plain = rule["src"] == "all" and not set(rule) & {"dst", "iif", "oif", "fwmark", "not", "action"}
        if rule["priority"] == PREFERENCE_L3MDEV and "l3mdev" in rule:
            return plain
        known = {**KERNEL_RULES, PREFERENCE_LOCAL: LOCAL}
        return plain and known.get(rule["priority"]) == _table(rule, -1)

    def _astray(self, version: int, table: int) -> dict[str, Any] | None:
        """A route of the table to something that is this node's own, in a listed subnet, or an user's NAT address."""
        sensitive = [subnet for underlay in self.site.underlays for subnet in underlay.subnets]
        sensitive += [self.site.nat4, self.site.nat6]
        sensitive += [ipaddress.ip_network(address) for link in self.foreign for address in _addresses(link)]
        for other, route in self.routes:
            if (other, _table(route)) == (version, table):
                destination = _destination(version, route)
                if any(network.version == version and network.overlaps(destination) for network in sensitive):
                    return route
        return None

    def _nat(self) -> Iterator[str]:
        """Addresses and routes in the networks that must occur nowhere else."""
        for version, nat in ((4, self.site.nat4), (6, self.site.nat6)):
            remedy = f"set uvn_nat.ipv{version} to a network that occurs nowhere at the site"
            for link in self.foreign:
                for address in map(ipaddress.ip_address, _addresses(link)):
                    if address in nat:
                        yield f"the address {address} of {link['ifname']} is in {nat}, the network of users' NAT addresses; {remedy}"
            for other, route in self.routes:
                derived = int(route.get("protocol", 0)) in (PROTOCOL, PROTOCOL_KERNEL)  # from an address that was judged
                if other == version and not derived and _table(route) != LOCAL:
                    destination = _destination(version, route)
                    if destination.subnet_of(nat):
                        yield f"a route leads to {destination}, which is in {nat}, the network of users' NAT addresses; {remedy}"

    def _firewalls(self) -> Iterator[str]:
        """Chains of nftables that refuse what they do not know, and nobody's chain but themselves can make them accept."""
        for chain in (item["chain"] for item in self.firewall if "chain" in item):
            place = (chain["family"], chain["table"])
            if chain.get("hook") != "input" or place in IPTABLES or not _refuses(chain):
                continue
            rules = [item["rule"] for item in self.firewall if "rule" in item]
            if not any(_names_vrfs(rule) for rule in rules if (rule["family"], rule["table"]) == place):
                remedy = (
                    "`firewall-cmd --permanent --zone=trusted --add-interface=vrf+`"
                    if chain["table"] == FIREWALLD
                    else f'a rule `iifname "vrf*" accept` in {chain["name"]}, narrowed as the site wants it'
                )
                yield (
                    f"the chain {chain['name']} of nftables' table {' '.join(place)} would refuse users' connections to themselves, which come "
                    f"in by the devices vrf<UID> and are not tracked; let it accept them ({remedy}), and UDP to the ports of uvn_underlays"
                )


def _refuses(chain: dict[str, Any]) -> bool:
    """Whether a base chain refuses by its policy, or, as firewalld's, by its last rule."""
    return chain.get("policy") == "drop" or chain["table"] == FIREWALLD


def _names_vrfs(rule: dict[str, Any]) -> bool:
    """Whether a rule looks for the devices vrf<UID>."""
    matches = [part["match"] for part in rule["expr"] if "match" in part]
    return any(match["left"] == {"meta": {"key": "iifname"}} and "vrf*" in _words(match["right"]) for match in matches)


def _words(right: Any) -> list[Any]:
    """The right side of a match: one value or a set of them."""
    return right["set"] if isinstance(right, dict) and "set" in right else [right]


def _is_ours(link: dict[str, Any]) -> bool:
    """Whether link group, kind and name say that UVN made a device."""
    names = {"vrf": r"vrf\d+", "vxlan": r".+u\d+", "dummy": NAT_DEVICE}
    name = names.get(link.get("linkinfo", {}).get("info_kind", ""))
    return bool(name and re.fullmatch(name, link["ifname"])) and _group(link) & LINK_GROUP_MASK == LINK_GROUP


def _group(link: dict[str, Any]) -> int:
    """The link group; iproute2 knows some of them by name, none of ours."""
    return int(link["group"]) if re.fullmatch("[0-9]{1,10}", link["group"]) else 0


def _addresses(link: dict[str, Any]) -> list[str]:
    return [address["local"] for address in link.get("addr_info", []) if "local" in address]


def _table(entry: dict[str, Any], default: int = MAIN) -> int:
    """The number of the table; `ip` leaves it out where it is main."""
    return int(entry.get("table", default))


def _destination(version: int, route: dict[str, Any]):
    text = {4: "0.0.0.0/0", 6: "::/0"}[version] if route["dst"] == "default" else route["dst"]
    return ipaddress.ip_network(text)


def _rule_text(version: int, rule: dict[str, Any]) -> str:
    """As `ip rule` prints it, as far as it helps to find it."""
    words = [f"IPv{version} {rule['priority']}: from {_prefix(rule, 'src')}"]
    words += [f"to {_prefix(rule, 'dst')}"] if "dst" in rule else []
    words += [f"{key} {rule[key]}" for key in ("iif", "oif", "fwmark") if key in rule]
    words += [f"lookup {rule['table']}"] if "table" in rule else []
    return " ".join(words)


def _prefix(rule: dict[str, Any], key: str) -> str:
    length = rule.get(f"{key}len")
    return f"{rule[key]}/{length}" if length else rule[key]
