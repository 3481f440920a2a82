# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard as planned, as text for nft, and as read back."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvn import guard
from uvn.diff import Change, diff
from uvn.identity import identify
from uvn.objects import Chain, Element, Guard
from uvn.plan import CAUSES, SETS, TO_ALL, node, own_elements
from uvn.site import parse


@pytest.fixture
def planned(site, host):
    """The guard of a node with one user, and its elements."""
    objects = node(site, host, 1, [2009], [identify(site, 2001)])
    return [obj for obj in objects if isinstance(obj, (Guard, Element))]


def chain(table, name):
    (rules,) = (rules for own, _hook, rules in table.chains if own == name)
    return rules


def listed(table, **changes):
    """The table as `nft -j` lists it."""
    items = [{"counter": {"name": name, "packets": 0}} for name in table.counters] + [{"set": {"name": name}} for name in table.sets]
    for name, hook, rules in table.chains:
        where, _space, priority = hook.partition(" ")
        base = {"type": "filter", "hook": where, "prio": int(priority), "policy": "accept", **changes} if hook else {}
        items.append({"chain": {"name": name, **base}})
        items += [{"rule": {"chain": name, "comment": rule, "expr": []}} for rule in rules]
    return {"nftables": items}


def test_what_was_made_is_read_back_as_planned(planned):
    assert guard.parse(listed(planned[0])) == planned[0]


@pytest.mark.parametrize("changes", [{"policy": "drop"}, {"prio": 100}, {"type": "route"}, {"hook": "postrouting"}])
def test_a_chain_that_hooks_elsewhere_differs(planned, changes):
    assert guard.parse(listed(planned[0], **changes)) != planned[0]


def test_a_rule_of_somebody_else_differs(planned):
    found = listed(planned[0])
    found["nftables"].append({"rule": {"chain": "output", "expr": [{"accept": None}]}})
    assert guard.parse(found) != planned[0]


def test_a_table_that_sleeps_differs(planned):
    found = listed(planned[0])
    found["nftables"].append({"table": {"family": "inet", "name": "uvn", "flags": "dormant"}})
    assert guard.parse(found) != planned[0]


def test_a_changed_guard_is_made_anew_with_all_its_elements(planned):
    old = replace(planned[0], counters=())
    changes = diff(planned, [old, *planned[1:]])
    assert [(change.op, change.object) for change in changes] == [("replace", planned[0]), *(("create", obj) for obj in planned[1:])]
    text = guard.render(changes)
    assert text.startswith("table inet uvn\ndelete table inet uvn\ntable inet uvn {\n")
    assert "elements = { 2001 . 100.64.7.209 }" in text and "elements = { 800, 801 }" in text


def test_one_element_is_added_and_removed_alone(planned):
    assert diff(planned, planned[:-1]) == [Change("create", planned[-1])]
    assert diff(planned[:-1], planned) == [Change("delete", planned[-1])]


def test_the_guard_is_removed_as_a_whole(planned):
    assert guard.render(diff([], planned)) == "table inet uvn\ndelete table inet uvn\n"


def test_only_chains_of_causes_drop_and_audit_drops_nothing(site, host):
    for mode, verdict in (("enforce", "drop"), ("audit", "accept")):
        (table,) = (obj for obj in node(replace(site, mode=mode), host, 1, []) if isinstance(obj, Guard))
        assert {chain(table, cause)[-1] for cause in CAUSES} == {verdict}
        assert not [rule for name, _hook, rules in table.chains if name not in CAUSES for rule in rules if "drop" in rule]


def test_what_everybody_hears_is_neither_sent_to_users_nor_taken_from_them(planned):
    """By system and by exempt accounts; what the kernel itself sends (IGMP, MLD, neighbour discovery) has no UID and passes."""
    inward = chain(planned[0], "inward")
    assert [rule for rule in inward if rule.endswith(" accept")] == ["meta skuid . meta oifgroup @own accept"]
    others = [rule for rule in inward if rule.startswith("meta skuid") and "own" not in rule and "tcp" not in rule]
    assert {rule.rpartition(" goto ")[2] for rule in others[:-1]} == {"unicast"} and others[-1].endswith("goto foreign")
    assert {rule.rpartition(" ")[2] for rule in chain(planned[0], "unicast")[:-1]} == {"multicast"}
    marked = [rule.split(" meta mark set ")[0] for rule in chain(planned[0], "heard")]
    assert marked == [*TO_ALL, "udp dport { 5353, 5355 }"]


def test_what_accepts_is_iptables_and_what_drops_is_the_guards(site, host):
    chains = [obj for obj in node(site, host, 1, []) if isinstance(obj, Chain)]
    assert not [rule for obj in chains for rule in obj.rules if "DROP" in rule]


def test_a_router_of_the_site_forwards_what_is_not_ours(site, host):
    for router in (False, True):
        (table,) = (obj for obj in node(site, replace(host, router=router), 1, []) if isinstance(obj, Guard))
        assert (chain(table, "forward")[-1] == "goto routed") is not router


def test_comments_fit(planned):
    """NFTNL_UDATA_COMMENT_MAXLEN of libnftnl."""
    assert max(len(rule) for _name, _hook, rules in planned[0].chains for rule in rules) < 128


@given(st.integers(1000, 4194302))
def test_a_key_is_read_as_it_was_written(uid):
    from conftest import SITE

    site = parse(SITE)
    elements = [*own_elements(identify(site, uid)), Element("ports", (uid % 65536,)), Element("exempt", (uid,))]
    assert {element.set for element in elements} == set(SETS)
    for element in elements:
        assert Element(element.set, guard._unpack(element.set, guard._pack(element))) == element


def test_an_address_is_in_network_order():
    assert guard._pack(Element("nat4", (1, ipaddress.ip_address("100.64.0.1"))))[4:] == bytes((100, 64, 0, 1))
