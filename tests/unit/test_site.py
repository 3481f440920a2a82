# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration: accepted as documented, refused with the path, the value and the remedy."""

from __future__ import annotations

import copy
import json

import pytest
from conftest import SITE
from hypothesis import given, settings
from hypothesis import strategies as st
from uvn.errors import UvnError
from uvn.site import load, parse


def changed(**sections):
    data = copy.deepcopy(SITE)
    data.update(sections)
    return data


def test_the_normalised_form_is_a_fixpoint(site):
    assert parse(site.as_dict()) == site
    assert parse(json.loads(json.dumps(site.as_dict()))) == site


BAD = {
    "no dictionary": ([], "the configuration: \\[\\] is not a dictionary"),
    "no underlays": ({}, "underlays is missing"),
    "empty underlays": (changed(underlays=[]), "underlays: \\[\\] is not a list"),
    "unknown key": (changed(grup="239.0.0.1"), "unknown key 'grup'; known are"),
    "newer version": (changed(version=2), "version: 2 is not 1"),
    "port twice": (
        changed(underlays=[SITE["underlays"][0], {"subnets": ["10.0.0.0/8"], "port": 800}]),
        "underlays\\[1\\].port: 800 is already the port of underlays\\[0\\]",
    ),
    "port 0": (changed(underlays=[{"subnets": ["10.0.0.0/8"], "port": 0}]), "underlays\\[0\\].port: 0 is not an integer"),
    "subnet twice": (
        changed(underlays=[{"subnets": ["10.0.0.0/8"], "port": 1}, {"subnets": ["10.1.0.0/16"], "port": 2}]),
        "underlays\\[1\\].subnets\\[0\\]: 10.1.0.0/16 overlaps 10.0.0.0/8 of underlays\\[0\\]",
    ),
    "subnet twice in one": (
        changed(underlays=[{"subnets": ["10.0.0.0/8", "10.0.0.0/8"], "port": 1}]),
        "underlays\\[0\\].subnets\\[1\\]: 10.0.0.0/8 overlaps",
    ),
    "host bits": (changed(underlays=[{"subnets": ["10.0.0.1/8"], "port": 1}]), "has host bits set"),
    "number as network": (changed(underlays=[{"subnets": [5], "port": 1}]), "underlays\\[0\\].subnets\\[0\\]: 5 is not a network"),
    "direct elsewhere": (
        changed(underlays=[{"subnets": ["10.0.0.0/8"], "port": 1, "direct": ["192.0.2.1"]}]),
        "underlays\\[0\\].direct\\[0\\]: 192.0.2.1 is in none of this underlay's subnets",
    ),
    "nodes elsewhere": (
        changed(underlays=[{"subnets": ["10.0.0.0/8"], "port": 1, "nodes": ["10.0.0.1", "192.0.2.0/24"]}]),
        "underlays\\[0\\].nodes\\[1\\]: 192.0.2.0/24 is in none of this underlay's subnets",
    ),
    "nodes of the other family": (
        changed(underlays=[{"subnets": ["10.0.0.0/8", "fd00::/64"], "port": 1, "nodes": ["fd00::1"]}]),
        "underlays\\[0\\].nodes: none is IPv4, as the frames to the group 239.192.193.194 are",
    ),
    "no flows": (changed(flows=0), "flows: 0 is not an integer from 1 to 1048576"),
    "unicast group": (changed(group="10.0.0.1"), "group: 10.0.0.1 is not multicast"),
    "wide group": (changed(group="239.0.0.0/8"), "the limit is 256"),
    "group of the other family": (changed(group="ff05::1", underlays=[{"subnets": ["10.0.0.0/8"], "port": 1}]), "none is IPv6"),
    "nat of the other family": (changed(nat={"ipv4": "fd00::/64"}), "nat.ipv4: fd00::/64 is not an IPv4 network"),
    "range below min_uid": (changed(ranges=[{"first": 500, "last": 2000, "index": 1}]), "ranges\\[0\\].first: 500 is below"),
    "range backwards": (changed(ranges=[{"first": 5000, "last": 2000, "index": 1}]), "ranges\\[0\\].last: 2000 is not"),
    "index beyond 22 bits": (
        changed(ranges=[{"first": 1000, "last": 2000, "index": 4194000}]),
        "UID 2000 gets index 4195000, the limit of nat.ipv4 100.64.0.0/10 is 4194302",
    ),
    "index beyond 24 bits": (
        changed(nat={"ipv4": "10.0.0.0/7"}, vni_base=16777000, ranges=[{"first": 1000, "last": 2000, "index": 1}]),
        "the limit of the VNI",
    ),
    "overlapping UIDs": (
        changed(ranges=[{"first": 1000, "last": 2000, "index": 1}, {"first": 2000, "last": 3000, "index": 5000}]),
        "ranges\\[1\\]: UIDs 2000-3000 overlap ranges\\[0\\]",
    ),
    "overlapping indices": (
        changed(ranges=[{"first": 1000, "last": 2000, "index": 1}, {"first": 3000, "last": 4000, "index": 1001}]),
        "ranges\\[1\\]: indices 1001-2001 overlap",
    ),
    "exempt nonsense": (changed(exempt={"uids": ["12-x"]}), "exempt.uids\\[0\\]: '12-x' is neither"),
    "exempt name": (changed(exempt={"users": ["a:b"]}), "exempt.users\\[0\\]: 'a:b' is not an account name"),
    "ingress without ports": (changed(ingress=[{"hosts": ["10.0.0.1"]}]), "ingress\\[0\\]: ports is missing"),
    "a port too high": (changed(ingress=[{"hosts": ["10.0.0.1"], "ports": [65536]}]), "ingress\\[0\\].ports\\[0\\]: 65536 is not an integer"),
    "no protocol": (
        changed(ingress=[{"hosts": ["10.0.0.1"], "ports": [1], "protocol": "sctp"}]),
        "ingress\\[0\\].protocol: 'sctp' is not one of tcp, udp",
    ),
    "ports backwards": (changed(control_ports=["6819-6817"]), "control_ports\\[0\\]: 6817 is not an integer from 6819"),
    "too many ranges": (changed(control_ports=[*range(1, 18)]), "control_ports: 17 port ranges, the limit is 16"),
    "an open control port": (
        changed(ingress=[{"hosts": ["::/0"], "ports": ["6000-7000"]}], control_ports=[6818]),
        "ingress\\[0\\].ports: 6000-7000 overlaps the control ports 6818-6818",
    ),
    "digits of another alphabet": (changed(exempt={"uids": ["²"]}), "exempt.uids\\[0\\]: '²' is neither a UID nor a range"),
    "too many digits": (changed(control_ports=["1" * 5000]), "is neither a port nor a range"),
    "a range without an end": (changed(control_ports=["1-"]), "'1-' is neither a port nor a range"),
    "boolean as number": (changed(ttl=True), "ttl: True is not an integer"),
}


@pytest.mark.parametrize(("data", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_with_the_path(data, sentence):
    with pytest.raises(UvnError, match=sentence):
        parse(data)


def test_a_file_cut_off_is_refused(tmp_path):
    path = tmp_path / "site.json"
    path.write_text(json.dumps(SITE)[:-10], encoding="utf-8")
    with pytest.raises(UvnError, match="not a complete JSON document"):
        load(str(path))


def test_a_missing_file_names_the_role(tmp_path):
    with pytest.raises(UvnError, match="the role hpc.uvn.uvn_node writes it"):
        load(str(tmp_path / "site.json"))


RANGES = st.from_regex("[0-9²٣]{1,6}(-[0-9²]{0,6})?", fullmatch=True)
WORDS = st.sampled_from(["10.0.0.0/8", "fd00::/64", "239.1.1.1", "tcp", "audit"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | RANGES | WORDS
ANYTHING = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3))


def like(value):
    """Values of the shape of one that is accepted, with anything in the place of some leaves."""
    if isinstance(value, dict):
        return st.fixed_dictionaries({}, optional={key: like(item) for key, item in value.items()}) | ANYTHING
    if isinstance(value, list) and value:
        return st.lists(st.one_of(*map(like, value)), max_size=4) | ANYTHING
    return st.just(value) | (ANYTHING if value == [] else RANGES if str(value)[:1].isdigit() else LEAVES)


COMPLETE = {
    **parse({**SITE, "ingress": [{"hosts": ["10.0.0.1"], "ports": ["1-2"], "protocol": "udp"}], "control_ports": [3]}).as_dict(),
    "exempt": {"users": ["a"], "groups": ["b"], "uids": ["7-9"]},
}


# One section at a time mostly: the first wrong value hides those after it.
SECTIONS = {key: like(value) for key, value in {**COMPLETE, "x": 1}.items()}
ONE = st.one_of([values.map(lambda value, key=key: {key: value}) for key, values in SECTIONS.items()])


@settings(max_examples=400)
@given(ONE | st.fixed_dictionaries({}, optional=SECTIONS))
def test_any_configuration_is_accepted_or_refused_with_a_sentence(data):
    try:
        parse({**SITE, **data})
    except UvnError as error:
        assert str(error)
