# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel's notifications ask for."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvn import events
from uvn.events import Effects, Watcher
from uvn.identity import LINK_GROUP
from uvn.netlink import ATTRIBUTE, HEADER

TABLE_BASE, NAT6 = 100000000, 0xFD << 120
ALICE = LINK_GROUP + 2001


def message(kind, body, attributes=()):
    for number, value in attributes:
        body += ATTRIBUTE.pack(ATTRIBUTE.size + len(value), number) + value + bytes(-len(value) % 4)
    return HEADER.pack(HEADER.size + len(body), kind, 0, 0, 0) + body + bytes(-len(body) % 4)


def number(value):
    return struct.pack("=I", value)


def link(kind, index, changed=0, group=0, family=0):
    return message(kind, events.IFINFO.pack(family, 1, index, 0x1043, changed), [(events.IFLA_GROUP, number(group))])


def address(kind, index, value=1):
    return message(kind, events.IFADDR.pack(10, 128, 0, 0, index), [(events.IFA_ADDRESS, value.to_bytes(16, "big"))])


def route(kind, table, oif, destination=1):
    small = table if table < 256 else 252
    attributes = [(events.RTA_DST, destination.to_bytes(16, "big")), (events.RTA_TABLE, number(table)), (events.RTA_OIF, number(oif))]
    return message(kind, events.RTMSG.pack(2, 24, 0, 0, small, 3, 0, 1, 0), attributes)


def netconf(index):
    return message(events.RTM_NEWNETCONF, bytes(4), [(events.NETCONFA_IFINDEX, struct.pack("=i", index)), (2, number(1))])


LOOK, TOUCHED, HERS = Effects(look=True), Effects(look=True, touched=True), Effects(users={ALICE})
NIC, UNKNOWN, DEVICE, DUMMY = 2, 50, 99, 7
EVENTS = {
    "an address of a NIC goes": (address(events.RTM_DELADDR, NIC), TOUCHED),
    "an address of a NIC comes": (address(events.RTM_NEWADDR, NIC), TOUCHED),
    "an address of a new device": (address(events.RTM_NEWADDR, UNKNOWN), LOOK),
    "an address of a user's device": (address(events.RTM_DELADDR, DEVICE), HERS),
    "an address of the dummy": (address(events.RTM_NEWADDR, DUMMY), Effects(users={LINK_GROUP})),
    "a user's address on the dummy": (address(events.RTM_DELADDR, DUMMY, NAT6 + 2001), HERS),
    "a next hop object changes": (message(104, bytes(8), [(1, number(11))]), LOOK),
    "a NIC goes down": (link(events.RTM_NEWLINK, NIC, changed=1), TOUCHED),
    "a NIC gets another MTU": (link(events.RTM_NEWLINK, NIC), LOOK),
    "a NIC is deleted": (link(events.RTM_DELLINK, NIC), TOUCHED),
    "a bridge port's change": (link(events.RTM_NEWLINK, NIC, changed=1, family=events.AF_BRIDGE), Effects()),
    "a user's device is set down": (link(events.RTM_NEWLINK, DEVICE, changed=1, group=ALICE), HERS),
    "a user's device is deleted": (link(events.RTM_DELLINK, DEVICE, group=ALICE), Effects(users={ALICE}, gone={DEVICE: ALICE})),
    "a route of main": (route(events.RTM_NEWROUTE, 254, NIC), LOOK),
    "a route of a user's table": (route(events.RTM_DELROUTE, TABLE_BASE + 2001, NIC), HERS),
    "a reply route": (route(events.RTM_DELROUTE, TABLE_BASE, DEVICE), HERS),
    "the dummy's local route": (route(events.RTM_NEWROUTE, 255, DUMMY), Effects(users={LINK_GROUP})),
    "the local route of a user's address on the dummy": (route(events.RTM_DELROUTE, 255, DUMMY, NAT6 + 2001), HERS),
    "a rule": (message(33, bytes(12)), LOOK),
    "forwarding of all devices": (netconf(-1), Effects(node=True)),
    "rp_filter of future devices": (netconf(-2), Effects(node=True)),
    "forwarding of a NIC": (netconf(NIC), Effects(node=True)),
    "forwarding of a user's device": (netconf(DEVICE), Effects()),
    "forwarding of a new device": (netconf(UNKNOWN), Effects()),
    "two messages": (address(events.RTM_NEWADDR, DEVICE) + address(events.RTM_DELADDR, NIC), Effects(look=True, touched=True, users={ALICE})),
}


@pytest.fixture
def watcher():
    watcher = Watcher(TABLE_BASE, NAT6, {DEVICE: ALICE, DUMMY: LINK_GROUP})
    watcher.nics = {NIC, 3}
    return watcher


@pytest.mark.parametrize(("data", "expected"), EVENTS.values(), ids=EVENTS.keys())
def test_what_a_notification_asks_for(watcher, data, expected):
    assert watcher.read(data) == expected


def test_devices_are_learnt_and_forgotten(watcher):
    watcher.read(link(events.RTM_NEWLINK, 100, group=ALICE))
    assert watcher.read(address(events.RTM_NEWADDR, 100)) == HERS
    watcher.read(link(events.RTM_DELLINK, 100, group=ALICE))
    assert watcher.read(address(events.RTM_NEWADDR, 100)) == LOOK


def test_our_own_doing_is_left_out():
    effects = Effects(look=True, users={ALICE, LINK_GROUP + 7}, gone={1: ALICE, 2: LINK_GROUP + 7})
    assert effects.without(ALICE) == Effects(look=True, users={LINK_GROUP + 7}, gone={2: LINK_GROUP + 7})
    assert Effects(node=True).without(ALICE) == Effects(node=True)
    assert Effects(node=True).without(LINK_GROUP) == Effects()


def test_nothing_is_kept_of_devices_that_are_gone(watcher):
    """A container host makes and deletes devices for ever."""
    for index in range(200, 1200):
        assert watcher.read(link(events.RTM_NEWLINK, index)) == LOOK
        assert watcher.read(link(events.RTM_NEWLINK, index)) == Effects(), "told again, and the same"
        assert watcher.read(link(events.RTM_DELLINK, index)) == LOOK
    assert len(watcher._links) == 0


@given(st.binary(max_size=120))
def test_any_attributes_can_be_read(data):
    for kind in (events.RTM_NEWLINK, events.RTM_NEWADDR, events.RTM_NEWROUTE, events.RTM_NEWNETCONF):
        Watcher(TABLE_BASE, NAT6).read(message(kind, bytes(16) + data))
