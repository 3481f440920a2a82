# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard as planned, as text for nft, and as read back."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvn import guard
from uvn.diff import Change, diff
from uvn.identity import identify
from uvn.netlink import attributes_of
from uvn.objects import Chain, Element, Guard
from uvn.plan import CAUSES, SETS, SILENT, TO_ALL, node, own_elements
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
        base = {**dict(zip(("type", "hook", "prio"), hook.split())), "policy": "accept", **changes} if hook else {}
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
    assert [rule.rpartition(" goto ")[2] for rule in others] == ["unicast", *["answering"] * (len(others) - 2), "foreign"]
    assert chain(planned[0], "answering")[-1] == "goto unicast"
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
    elements += [Element("direct4", (ipaddress.ip_address(uid),)), Element("direct6", (ipaddress.ip_address(2**127 + uid),))]
    assert {element.set for element in elements} == {name for name in guard.KEYS if not guard.is_interval(name)}
    for element in elements:
        assert Element(element.set, guard._unpack(element.set, guard._pack(element.set, element.value))) == element


def test_an_address_is_in_network_order():
    assert guard._pack("nat4", (1, ipaddress.ip_address("100.64.0.1")))[4:] == bytes((100, 64, 0, 1))


def test_every_set_is_filled_by_uvn_or_by_packets():
    assert {name for name, definition in SETS.items() if "dynamic" not in definition} == set(guard.KEYS)


def bounds(element):
    """What the kernel lists of a network: the keys, and whether they are ends."""
    for part in guard._parts(element):
        attributes = dict(part)
        key = attributes_of(attributes[guard.NFTA_SET_ELEM_KEY | guard.NLA_F_NESTED])[guard.NFTA_DATA_VALUE]
        yield guard._unpack(element.set, key), guard.NFTA_SET_ELEM_FLAGS in attributes


NETWORKS = st.integers(0, 32).flatmap(lambda length: st.integers(0, 2**length - 1).map(lambda number: (number << 32 - length, length)))


@given(st.lists(NETWORKS, max_size=9), st.booleans(), st.randoms())
def test_networks_are_read_as_they_were_written(some, six, random):
    """Neighbours, those at the ends and the one of all addresses among them; the kernel lists in an order of its own, and `nft` adds an end at 0."""
    family, width = (ipaddress.IPv6Network, 128) if six else (ipaddress.IPv4Network, 32)
    listed = [family((number << width - 32, length)) for number, length in some]
    wanted = list(ipaddress.collapse_addresses(listed))
    name = "closed6" if six else "closed4"
    found = [bound for network in wanted for bound in bounds(Element(name, (network,)))]
    if not wanted or int(wanted[0].network_address):
        found.append(((family((0, width)).network_address,), True))
    random.shuffle(found)
    assert list(ipaddress.collapse_addresses(network for (network,) in guard.networks(found))) == wanted


def test_networks_stay_apart_as_they_are_planned(site, host):
    """What is read back equals what was planned, network by network, else every look would mend."""
    for element in node(site, host, 1, []):
        if isinstance(element, Element) and guard.is_interval(element.set):
            assert list(guard.networks(bounds(element))) == [element.value]


# -- what passes -----------------------------------------------------------------------------------------------------


def guard_of(host, **keys):
    from conftest import SITE

    (table,) = (obj for obj in node(parse({**SITE, **keys}), host, 1, []) if isinstance(obj, Guard))
    return table


def test_nobody_forwards_frames(host):
    """NAT keeps source ports below 1024, so they say nothing about who sent what is forwarded."""
    for router in (False, True):
        assert chain(guard_of(replace(host, router=router)), "forward")[0] == "udp dport @ports goto forged"


def test_frames_come_from_nodes(host):
    assert chain(guard_of(host), "input")[0] == "udp dport @ports goto frames"
    assert chain(guard_of(host), "frames") == (
        "meta iifgroup & 0xff000000 == 0x55000000 goto forged",
        "udp sport != 512-1023 goto forged",
        "ip saddr != @nodes4 goto forged",
        "ip6 saddr != @nodes6 goto forged",
    )


def test_where_users_packets_go_is_asked_before_where_they_come_from(host):
    outward = chain(guard_of(host), "outward")
    (first,) = (number for number, rule in enumerate(outward) if rule == "meta skuid . ip saddr @nat4 accept")
    assert [rule for rule in outward[:first] if "accept" in rule] == [
        "ip daddr @direct4 meta skuid . ip saddr @nat4 accept",
        "ip6 daddr @direct6 meta skuid . ip6 saddr @nat6 accept",
    ]
    assert {"ip daddr @closed4 goto stray", "ip6 daddr @closed6 goto stray"} < set(outward[:first])


def test_exempt_accounts_begin_no_connection_of_any_protocol(planned):
    assert [rule for rule in chain(planned[0], "inward") if rule.endswith("goto answering")] == [
        f"meta skuid {uids} goto answering" for uids in ("@exempt", "61184-65519", "65534")
    ]
    assert chain(planned[0], "answering") == (
        "tcp flags & (syn | ack) == syn goto foreign",
        "sctp chunk init exists goto foreign",
        "dccp type request goto foreign",
        "goto unicast",
    )


def test_no_range_is_of_one_number(host):
    """nft up to 1.0.2 refuses it."""
    opening = {"hosts": ["10.0.0.1"], "ports": [7, "60000-60001"], "protocol": "udp"}
    rules = [rule for _name, _hook, rules in guard_of(host, ingress=[opening]).chains for rule in rules]
    assert [found for rule in rules for found in re.findall(r"\b(\d+)-(\d+)\b", rule) if found[0] == found[1]] == []


def test_new_connections_of_a_nat_address_are_bounded(host):
    rules = chain(guard_of(host, flows=77), "begun")
    assert rules[-2:] == (
        "meta skuid >= 1000 add @flows4 { ip saddr ct count over 77 } goto crowded",
        "meta skuid >= 1000 add @flows6 { ip6 saddr ct count over 77 } goto crowded",
    )
    assert rules[0] == "meta skuid < 1000 accept" and "meta skuid @exempt accept" in rules


def test_every_uid_has_a_budget_of_lines_for_each_cause(planned):
    for cause in CAUSES.keys() - SILENT:
        _counter, of_uid, end, of_all, verdict = chain(planned[0], cause)
        assert of_uid.startswith(f"update @said_{cause} {{ meta skuid limit rate 6/minute }} limit rate ") and "log prefix" in of_uid
        assert end == f"meta skuid >= 0 {verdict}", "what has a UID spends the others' budget no more"
        assert of_all.startswith("limit rate 6/minute log prefix")
