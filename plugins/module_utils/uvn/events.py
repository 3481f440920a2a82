# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel's notifications mean to UVN. Pure, but for the socket at the end."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Iterator

from .identity import LINK_GROUP, LINK_GROUP_MASK
from .netlink import HEADER, IFADDR, IFINFO, RTMSG, Message, attributes_of, number_of, split

# RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE (include/uapi/linux/rtnetlink.h), RTNLGRP_IPV6_RULE,
# RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF, RTNLGRP_NEXTHOP
EVENTS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18 | 1 << 23 | 1 << 24 | 1 << 31
INDEX_MAX = 0xFFFFFF  # what LINK_GROUP_MASK leaves
RECEIVE_BUFFER = 8 * 2**20  # bytes; what does not fit is lost and makes us look at everything
SO_RCVBUFFORCE = 33
RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR, RTM_NEWROUTE, RTM_DELROUTE = 16, 17, 20, 21, 24, 25
RTM_NEWNETCONF, RTM_DELNETCONF = 80, 81
IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_GROUP = 3, 4, 10, 27
IFA_ADDRESS = 1
RTA_DST, RTA_OIF, RTA_TABLE = 1, 4, 15
NETCONFA_IFINDEX = 1  # include/uapi/linux/netconf.h
ALL, DEFAULT = 0xFFFFFFFF, 0xFFFFFFFE  # NETCONFA_IFINDEX_ALL and _DEFAULT, -1 and -2
NETCONF = 4  # bytes of struct netconfmsg, padded
IFF_UP = 1
AF_BRIDGE = 7
NETLINK_NETFILTER = 12
NFTABLES = 1 << 6  # NFNLGRP_NFTABLES (include/uapi/linux/netfilter/nfnetlink.h); changes by iptables-nft are told there as well


@dataclass
class Effects:
    """What a run of notifications asks for.

    Parameters
    ----------
    look: the node's NICs, addresses, routes, next hop objects or rules may have changed.
    touched: an address or the state of a NIC did, and the kernel may have dropped routes of any table without a word.
    node: what the node has for all users may have changed: nftables, forwarding or rp_filter.
    users: link groups of users whose devices, addresses or routes changed.
    gone: interface indices of users' devices that were deleted, with their link groups.
    """

    look: bool = False
    touched: bool = False
    node: bool = False
    users: set[int] = field(default_factory=set)
    gone: dict[int, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.look or self.touched or self.node or bool(self.users)

    def add(self, other: Effects) -> None:
        """Join what another run asks for."""
        self.look |= other.look
        self.touched |= other.touched
        self.node |= other.node
        self.users |= other.users
        self.gone.update(other.gone)

    def without(self, group: int) -> Effects:
        """The same but for one user, or for the node (LINK_GROUP)."""
        gone = {index: owner for index, owner in self.gone.items() if owner != group}
        return Effects(self.look, self.touched, self.node and group != LINK_GROUP, self.users - {group}, gone)


class Watcher:
    """Reads notifications; knows which interface indices are users' devices (by link group) and which the node's NICs.

    `nat6` is the IPv6 NAT address of index 0, as a number: these addresses are all on the node's dummy, and tell whose they are.
    """

    def __init__(self, table_base: int, nat6: int, devices: dict[int, int] | None = None) -> None:
        self.nics: set[int] = set()
        self._links: dict[int, tuple] = {}
        self._table_base = table_base
        self._nat6 = nat6
        self._devices = dict(devices or {})

    def read(self, data: bytes) -> Effects:
        """The effects of what one recv() gave."""
        effects = Effects()
        for _number, message in split(data):
            if message.kind in (RTM_NEWLINK, RTM_DELLINK):
                self._link(message, effects)
            elif message.kind in (RTM_NEWADDR, RTM_DELADDR):
                self._address(message, effects)
            elif message.kind in (RTM_NEWROUTE, RTM_DELROUTE):
                self._route(message, effects)
            elif message.kind in (RTM_NEWNETCONF, RTM_DELNETCONF):
                self._netconf(message, effects)
            else:
                effects.look = True  # rules and next hop objects
        return effects

    def _link(self, message: Message, effects: Effects) -> None:
        family, _type, index, flags, changed = IFINFO.unpack_from(message.data, HEADER.size)
        if family == AF_BRIDGE:
            return
        attributes = attributes_of(message.data, HEADER.size + IFINFO.size)
        group = number_of(attributes.get(IFLA_GROUP))
        deleted = message.kind == RTM_DELLINK
        if group is not None and group & LINK_GROUP_MASK == LINK_GROUP:
            self._device(index, group, deleted, effects)
            return
        about = None if deleted else (flags, *(attributes.get(number) for number in (IFLA_IFNAME, IFLA_MTU, IFLA_MASTER)))
        if deleted or self._links.get(index) != about:  # a NIC that gets a VXLAN on top is told of as well
            effects.look = True
        if deleted:
            self._links.pop(index, None)
        else:
            self._links[index] = about
        effects.touched |= index in self.nics and bool(deleted or changed & IFF_UP)

    def _device(self, index: int, group: int, deleted: bool, effects: Effects) -> None:
        effects.users.add(group)
        if deleted:
            effects.gone[index] = group
            self._devices.pop(index, None)
        else:
            self._devices[index] = group

    def _address(self, message: Message, effects: Effects) -> None:
        index = IFADDR.unpack_from(message.data, HEADER.size)[4]
        if index in self._devices:
            address = attributes_of(message.data, HEADER.size + IFADDR.size).get(IFA_ADDRESS)
            effects.users.add(self._owner(index, address))
        else:
            effects.look = True
            effects.touched |= index in self.nics

    def _route(self, message: Message, effects: Effects) -> None:
        table = RTMSG.unpack_from(message.data, HEADER.size)[4]
        attributes = attributes_of(message.data, HEADER.size + RTMSG.size)
        index = (number_of(attributes.get(RTA_TABLE)) or table) - self._table_base
        device = number_of(attributes.get(RTA_OIF))
        if 0 < index <= INDEX_MAX:
            effects.users.add(LINK_GROUP + index)
        elif device in self._devices:
            effects.users.add(self._owner(device, attributes.get(RTA_DST)))
        else:
            effects.look = True

    def _netconf(self, message: Message, effects: Effects) -> None:
        """The kernel tells of every new device as well; what concerns the node is that of its NICs, and of all devices."""
        index = number_of(attributes_of(message.data, HEADER.size + NETCONF).get(NETCONFA_IFINDEX))
        effects.node |= index in (ALL, DEFAULT) or index in self.nics

    def _owner(self, device: int, address: bytes | None) -> int:
        """The link group of the user to whom an address or a route on one of our devices belongs."""
        index = int.from_bytes(address, "big") - self._nat6 if address else 0
        return LINK_GROUP + index if 0 < index <= INDEX_MAX else self._devices[device]


def listen() -> socket.socket:
    """A socket with notifications of links, addresses, routes, next hop objects, rules, forwarding and rp_filter."""
    return _listen(socket.NETLINK_ROUTE, EVENTS)


def listen_to_nftables() -> socket.socket:
    """A socket with notifications of changes of nftables."""
    return _listen(NETLINK_NETFILTER, NFTABLES)


def drain(events: socket.socket, watcher: Watcher) -> Effects:
    """The effects of all notifications that wait."""
    effects = Effects()
    for data in _waiting(events):
        effects.add(watcher.read(data) if data else Effects(look=True, touched=True))
    return effects


def drain_nftables(events: socket.socket) -> Effects:
    """The effect of all notifications that wait."""
    return Effects(node=bool(list(_waiting(events))))


def _listen(protocol: int, groups: int) -> socket.socket:
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    events.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    events.bind((0, groups))
    return events


def _waiting(events: socket.socket) -> Iterator[bytes | None]:
    """What recv() gives until nothing waits; None where notifications were lost (ENOBUFS)."""
    while True:
        try:
            yield events.recv(2**18)
        except BlockingIOError:
            return
        except OSError:
            yield None
