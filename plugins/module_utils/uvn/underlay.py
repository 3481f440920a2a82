# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's NICs, addresses and routes as observed, matched to the site's subnets. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Tuple

from .objects import Interface, Route
from .site import Site, Underlay

IPV6_MTU = 1280  # bytes, the least that a link may have to carry IPv6 (RFC 8200, section 5)
VXLAN_OVERHEAD = {4: 50, 6: 70}  # bytes: outer Ethernet without IP 14, UDP 8, VXLAN 8, IP 20 or 40 (RFC 7348, section 5)


@dataclass(frozen=True)
class Nic:
    """A device of the default VRF that is up and has global addresses; `mtu` in bytes.

    `accept_ra` is the sysctl of that name, which forwarding changes the meaning of.
    """

    name: str
    mtu: int
    addresses: Tuple[Interface, ...]
    accept_ra: int = 0


@dataclass(frozen=True)
class Host:
    """What a node is before UVN.

    Parameters
    ----------
    nics, routes: its NICs, and the routes of table main; without what is of IPv6 where that is off.
    router: the site made it one (ip_forward).
    versions: the IP versions that the kernel has: 4 alone after a boot with ipv6.disable=1.
    ipv6: devices that are made now take IPv6 addresses.
    """

    nics: Tuple[Nic, ...]
    routes: Tuple[Route, ...]
    router: bool = False
    versions: Tuple[int, ...] = (4, 6)
    ipv6: bool = True


@dataclass(frozen=True)
class Attachment:
    """A NIC with its addresses in the subnets of one underlay; the VXLAN can have those that are `carried`."""

    underlay: Underlay
    nic: Nic
    addresses: Tuple[Interface, ...]
    carried: Tuple[Interface, ...]

    def address(self, version: int) -> Interface | None:
        """The first address of an IP version, None without one."""
        return next((a for a in self.addresses if a.version == version), None)

    def mtu(self, version: int) -> int:
        """MTU of a VXLAN over this NIC in bytes, the outer packets being of IP `version`."""
        return self.nic.mtu - VXLAN_OVERHEAD[version]

    def mac(self, uid: int) -> str:
        """A locally administered MAC address for the VXLAN of a user, made from the NIC's first address and the UID.

        Set explicitly because udev would else derive it from the machine id, which nodes of one image share. The UID is not hashed:
        two nodes have one MAC for a user when they have one for all, whatever the number of users.
        """
        digest = hashlib.sha256(str(self.addresses[0].ip).encode()).digest()
        return mac(0x02 << 40 | int.from_bytes(digest[:5], "big") ^ uid)


def mac(number: int) -> str:
    """A MAC address from its 48 bits."""
    return ":".join(f"{byte:02x}" for byte in number.to_bytes(6, "big"))


def attach(site: Site, host: Host) -> Tuple[Attachment, ...]:
    """Match NICs to underlays: for each underlay the first NIC, by name, with an address of the group's IP version."""
    found = []
    for underlay in site.underlays:
        for nic in sorted(host.nics, key=lambda nic: nic.name):
            addresses = tuple(a for a in nic.addresses if any(a.ip in subnet for subnet in underlay.subnets))
            if any(address.version == site.group.version for address in addresses):
                wide = nic.mtu - VXLAN_OVERHEAD[site.group.version] >= IPV6_MTU
                found.append(Attachment(underlay, nic, addresses, tuple(a for a in addresses if wide or a.version == 4)))
                break
    return tuple(found)
