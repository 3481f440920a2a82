# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who a user is to the network: UID -> index -> VNI, table, group, addresses, device names. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from .errors import NoNetwork
from .site import Site

NAME_MAX = 15  # IFNAMSIZ - 1, include/uapi/linux/if.h
LINK_GROUP = 0x55000000  # link group of index 0; a user's devices share the group LINK_GROUP + index
LINK_GROUP_MASK = 0xFF000000


@dataclass(frozen=True)
class Identity:
    """The numbers of one user's network, the same on every node of the site.

    Parameters: `uid` and `index` are integers, `vni` has 24 bits, `table` 32, `group` is the link group of the devices.
    """

    uid: int
    index: int
    vni: int
    table: int
    group: int
    nat4: ipaddress.IPv4Address
    nat6: ipaddress.IPv6Address

    @property
    def vrf(self) -> str:
        """Name of the VRF, `vrf` and the UID: at most 13 characters."""
        return f"vrf{self.uid}"


def identify(site: Site, uid: int) -> Identity:
    """The identity of a UID.

    Raises NoNetwork (an UvnError) when the UID is below `min_uid` or in none of the site's ranges.
    """
    if uid < site.min_uid:
        raise NoNetwork(f"UID {uid} is below min_uid {site.min_uid}: system accounts have no network of their own")
    for here in site.ranges:
        if here.first <= uid <= here.last:
            return _identity(site, uid, here.index + uid - here.first)
    raise NoNetwork(f"UID {uid} is in none of the site's UID ranges; add one that covers it to uvn_ranges")


def reply_table(site: Site) -> int:
    """The table with the routes to the NAT addresses, for the replies: that of index 0, which no user has."""
    return site.table_base


def uid_of_index(site: Site, index: int) -> int | None:
    """The UID that has an index, None when no range yields it."""
    for here in site.ranges:
        if here.index <= index <= here.index + here.last - here.first:
            return here.first + index - here.index
    return None


def exempt_uid(site: Site, uid: int) -> bool:
    """Whether the site exempts this UID by number (users and groups are resolved in accounts.py)."""
    return any(first <= uid <= last for first, last in site.exempt.uids)


def vxlan_names(nic: str, port: int, uid: int) -> tuple[str, str | None]:
    """Name and altname of the VXLAN of a user over a NIC.

    `em1u1234` where 15 characters allow it; else a short form that always fits, the UDP port of the underlay in base 36
    (at most 4 digits) before the UID, with the long name as the altname.
    """
    name = f"{nic}u{uid}"
    if len(name) <= NAME_MAX:
        return name, None
    return short_name(port, uid), name


def short_name(port: int, uid: int) -> str:
    """The name that always fits and that no two underlays share."""
    return f"{_base36(port)}u{uid}"


def multicast_group(site: Site, vni: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The multicast group of a VNI: the site's address, or one chosen from its prefix."""
    return site.group[vni % site.group.num_addresses]


def _identity(site: Site, uid: int, index: int) -> Identity:
    return Identity(
        uid=uid,
        index=index,
        vni=site.vni_base + index,
        table=site.table_base + index,
        group=LINK_GROUP + index,
        nat4=site.nat4[index],
        nat6=site.nat6[index],
    )


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits
