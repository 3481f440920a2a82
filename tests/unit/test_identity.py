# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Identity: the numbers of a user are unique, bounded, and the paper's where the paper's fit."""

from __future__ import annotations

import ipaddress

import pytest
from conftest import SITE
from hypothesis import given
from hypothesis import strategies as st
from uvn.errors import UvnError
from uvn.identity import NAME_MAX, identify, multicast_group, uid_of_index, vxlan_names
from uvn.site import MAX_UID, MAX_VNI, parse

RANGES = [
    {"first": 1000, "last": 60000, "index": 1000},
    {"first": 1200000000, "last": 1201999999, "index": 1000000},
    {"first": 4294900000, "last": MAX_UID, "index": 70000},
]
WIDE = parse({**SITE, "ranges": RANGES})
UIDS = st.one_of(*(st.integers(r["first"], r["last"]) for r in RANGES))


def test_the_paper_s_scheme_is_the_default(site):
    who = identify(site, 1234)
    assert (who.vni, who.vrf, who.table) == (1234, "vrf1234", 100001234)
    assert who.nat4 == ipaddress.ip_address("100.64.4.210")
    assert who.nat6 == ipaddress.ip_address("fd75:766e::4d2")


@given(UIDS)
def test_every_number_fits_its_field(uid):
    who = identify(WIDE, uid)
    assert 1 <= who.vni <= MAX_VNI
    assert 255 < who.table < 2**32
    assert 0x55000000 < who.group <= 0x55FFFFFF
    assert who.nat4 in WIDE.nat4 and who.nat6 in WIDE.nat6
    assert len(who.vrf) <= NAME_MAX
    assert uid_of_index(WIDE, who.index) == uid


@given(UIDS, UIDS)
def test_two_users_share_no_number(one, other):
    a, b = identify(WIDE, one), identify(WIDE, other)
    assert (one == other) == (a.vni == b.vni) == (a.table == b.table) == (a.group == b.group)
    assert (one == other) == (a.nat4 == b.nat4) == (a.nat6 == b.nat6) == (a.vrf == b.vrf)


@pytest.mark.parametrize(("uid", "sentence"), [(999, "below min_uid 1000"), (61000000, "in none of the site's UID ranges")])
def test_other_uids_have_no_network(uid, sentence):
    with pytest.raises(UvnError, match=sentence):
        identify(WIDE, uid)


def test_names_of_the_design():
    assert vxlan_names("em1", 800, 1234) == ("em1u1234", None)
    assert vxlan_names("enp129s0f1np1", 800, 1234) == ("m8u1234", "enp129s0f1np1u1234")


@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=15), st.integers(1, 65535), st.integers(1, MAX_UID))
def test_names_always_fit(nic, port, uid):
    name, altname = vxlan_names(nic, port, uid)
    assert len(name) <= NAME_MAX
    assert (altname is None) == (name == f"{nic}u{uid}")


@given(st.integers(1, MAX_VNI))
def test_a_group_prefix_is_chosen_from(vni):
    site = parse({**SITE, "group": "239.192.193.0/28"})
    assert multicast_group(site, vni) in site.group
