# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure parts of the benchmarks: statistics, the input of `ip -batch`, tables."""

from __future__ import annotations

import ipaddress
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "bench"))

import batch
import harness
import report
from uvn.identity import identify
from uvn.objects import Member, Nexthop, Route, Vxlan
from uvn.plan import user_network
from uvn.site import parse


def test_summary_has_median_and_quartiles():
    assert harness.summary([5, 1, 4, 2, 3]) == {"median": 3, "q1": 2, "q3": 4, "samples": [5, 1, 4, 2, 3]}
    assert harness.summary([7]) == {"median": 7, "q1": 7, "q3": 7, "samples": [7]}


def test_ratio_is_taken_round_by_round():
    """A load that doubles both sides of a round leaves its ratio as it is."""
    assert harness.ratio(harness.summary([2, 4, 20]), harness.summary([1, 2, 10])) == harness.summary([2, 2, 2])


def test_measurements_take_turns():
    order = []

    def measure(name):
        order.append(name)
        return {name: len(order)}

    series = harness.interleaved(2, [lambda: measure("a"), lambda: measure("b")])
    assert order == ["a", "b", "a", "b"]
    assert series["a"]["samples"] == [1, 3] and series["b"]["samples"] == [2, 4]


def test_only_the_labs_guest_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "CMDLINE", str(tmp_path / "cmdline"))
    (tmp_path / "cmdline").write_text("root=/dev/vda lab.node=c1")
    with pytest.raises(SystemExit, match="make bench"):
        harness.only_in_the_lab()


def test_batch_has_a_command_for_every_object_but_members_and_elements(site, host):
    *objects, _own, _nat4, _nat6, member = user_network(site, identify(site, 2001), host)
    lines = batch.render(objects).splitlines()
    for obj in objects:
        text = str(getattr(obj, "interface", None) or getattr(obj, "destination", None) or obj.device)
        assert any(text in line.split() for line in lines), f"{obj} is missing"
    assert len(lines) == len(set(lines)) == len(objects) + 2 * 3  # three devices are brought up by two commands each
    assert isinstance(member, Member) and batch.render([member]) == ""


def test_batch_renders_a_vxlan_with_all_options(site, host):
    (line,) = (line for line in batch.render(user_network(site, identify(site, 2001), host)).splitlines() if "link add em1u2001" in line)
    assert line == (
        f"link add em1u2001 group {0x55000000 + 2001} master vrf2001 address 02:37:17:24:84:2e mtu 1450 type vxlan id 2001 dev em1 "
        "group 239.192.193.194 local 192.168.80.91 ttl 5 dstport 800 srcport 512 1023 learning noudpcsum"
    )


def test_batch_renders_an_ipv6_underlay_and_an_altname(host):
    site = parse({"underlays": [{"subnets": ["fd00:80::/64"], "port": 800}], "group": "ff05::114"})
    (vxlan,) = (obj for obj in user_network(site, identify(site, 2001), host) if isinstance(obj, Vxlan))
    long = Vxlan(**{**vars(vxlan), "altname": "enp129s0f1np1u2001"})
    lines = batch.render([long]).splitlines()
    assert "udp6zerocsumtx udp6zerocsumrx" in lines[0]
    assert "link property add dev em1u2001 altname enp129s0f1np1u2001" in lines


def test_batch_renders_several_next_hops():
    hops = (Nexthop("em1", ipaddress.ip_address("192.168.80.1"), 2, onlink=True), Nexthop("ib0"))
    route = Route(5, ipaddress.ip_network("10.0.0.0/8"), 20, nexthops=hops, source=ipaddress.ip_address("100.64.7.209"))
    assert batch.render([route]) == (
        "route replace unicast 10.0.0.0/8 table 5 proto 117 metric 20 src 100.64.7.209 "
        "nexthop via 192.168.80.1 dev em1 onlink weight 2 nexthop dev ib0 weight 1\n"
    )


def test_table():
    assert report.table(["", "a"], [["x", "1"]]) == "|  | a |\n| --- | ---: |\n| x | 1 |\n"


@pytest.mark.parametrize("value, text", [(1234.56, "1235"), (12.345, "12.3"), (1.2345, "1.23"), (0.12345, "0.123")])
def test_numbers_have_three_digits(value, text):
    assert report.number(value) == text


def test_insert_replaces_what_is_between_the_markers_and_nothing_else():
    document = "a\n<!-- x: written by make plots -->\nold\n<!-- end of x -->\nb\n"
    once = report.insert(document, "x", "new \\1")
    assert once == "a\n<!-- x: written by make plots -->\n\nnew \\1\n<!-- end of x -->\nb\n"
    assert report.insert(once, "x", "new \\1") == once
    with pytest.raises(SystemExit, match="markers of y"):
        report.insert(document, "y", "new")


def _series(names):
    return {name: harness.summary([1.0 + position, 2.0 + position]) for position, name in enumerate(names)}


def test_every_table_is_rendered_into_the_document():
    machine = {"kernel": "6.1", "python": "3.11", "cpus": 2, "accelerator": "TCG"}
    levels = [{"others": n, "series": _series(report.LOGIN_ROWS), "batch by kind": {"vrf": 1.0}} for n in (0, 1000)]
    bulk = {"count": 1000, "seconds": 10, "per second": 100.0, "KiB per user": {"used": 148.0, "slab": 99.0, "percpu": 2.0}}
    ways = _series(f"{metric}, {way}" for metric in report.METRICS for way in report.WAYS)
    mtus = [{"mtu": 1500, "series": ways, "tracked": {way: [0, 0] for way in report.WAYS}}]
    login = {"machine": machine, "levels": levels, "bulk": [{"made": bulk, "removed": bulk}]}
    ratios = {"a job": ("job, alice", "job, exempted")}
    jobs = {"slurm": "Slurm 22.05.8", "series": _series(["job, alice", "job, exempted"]), "ratios": ratios}
    text = report.DOCUMENT.read_text(encoding="utf-8")
    for name, part in (
        ("jobs", report.jobs_tables(jobs)),
        ("login", report.login_tables(login)),
        ("bulk", report.bulk_table(login)),
        ("datapath", report.datapath_tables({"machine": machine, "connections": 50, "mtus": mtus})),
    ):
        text = report.insert(text, name, part)
    assert "| paper's steps in shell, cold | 4.50 (4.25–4.75) | 4.50 (4.25–4.75) |" in text
    assert "| 1,000 | 100 | 100 | 148 | 99.0 | 2.00 |" in text
    assert "| stream, Mb/s, MTU 1500, native | 1.50 (1.25–1.75) | 1 |" in text
    assert "| job, exempted | 2 | 2.50 (2.25–2.75) |" in text and "| a job | 0.583 (0.542–0.625) |" in text
    for line in re.findall(r"^\|.*\n", text, re.MULTILINE):
        assert line.endswith("|\n") and "None" not in line
