# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The suite itself can fail: the agent tells the outcomes apart, and a wrong one is a mismatch. Needs no lab."""

from __future__ import annotations

import itertools
import socket

import cases
import matrix
import pytest
from sessions import local_login


@pytest.fixture(scope="module")
def agents():
    pair = [local_login("user", "one"), local_login("user", "two")]
    yield pair
    for agent in pair:
        agent.close()


def probe(agent, **spec) -> dict:
    return agent.probes([{"proto": "tcp", "family": 4, "address": "127.0.0.1", "timeout": 1, **spec}])[0]


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
def test_agent_reaches_a_listener_and_is_refused_without(agents, proto, family):
    one, two = agents
    where = {"proto": proto, "family": family, "address": cases.LOCALHOST[family]}
    (opened,) = one.listen([{**where, "port": 0}])
    reached = probe(two, **where, port=opened["port"])
    assert reached["result"] == "answer"
    assert reached["text"] == f"{one.hello['hello']} from {where['address']}\n"
    one.call("close", port=opened["port"])
    assert probe(two, **where, port=opened["port"])["result"] == "refused"


def test_agent_cannot_listen_twice_on_a_port(agents):
    one, two = agents
    spec = {"proto": "tcp", "family": 4, "address": "127.0.0.1", "port": 0}
    (opened,) = one.listen([spec])
    assert two.listen([{**spec, "port": opened["port"]}]) == [{"result": "eaddrinuse"}]
    one.call("close", port=0)


def test_agent_tells_silence_hangup_and_timeout_apart(agents):
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        port = server.getsockname()[1]
        assert probe(agents[0], port=port)["result"] == "silent"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        assert probe(agents[0], proto="udp", port=server.getsockname()[1])["result"] == "timeout"


def test_agent_takes_a_thousand_probes_in_one_call(agents):
    specs = [{"proto": "tcp", "family": 4, "address": "127.0.0.1", "port": 9, "timeout": 5}] * 1000
    assert {result["result"] for result in agents[0].probes(specs)} == {"refused"}


def some(expected: str, **wanted) -> cases.Case:
    chosen = [case for case in cases.table() if case.expected == expected and case.proto == "tcp"]
    return next(case for case in chosen if all(getattr(case, name) == value for name, value in wanted.items()))


def judged(case: cases.Case, outcome: str, text: str = "", plain: bool = False) -> bool:
    return matrix.result(case, {"result": outcome, "text": text, "ms": 1}, plain).ok


def test_a_reached_port_of_another_user_is_a_mismatch():
    case = some("closed", group="other-localhost")
    assert judged(case, "refused")
    assert not judged(case, "answer", case.answer)
    assert not judged(case, "answer", "somebody else")


@pytest.mark.parametrize("outcome", ["silent", "hangup", "eperm", "error", "eacces"])
def test_odd_outcomes_do_not_count_as_closed(outcome):
    """A probe that accepts a connection, or that could not be made, proves nothing."""
    assert not judged(some("closed", group="other-nodes"), outcome)


def test_a_refusal_is_asked_for_where_silence_could_be_a_broken_path():
    assert not judged(some("closed", group="other-nodes"), "timeout")


def test_own_port_must_answer_with_the_own_name_from_the_right_source():
    case = some("own", group="own-nodes")
    assert judged(case, "answer", f"{case.answer}77 from {case.source}\n")
    assert not judged(case, "answer", f"{case.answer}77 from 203.0.113.1\n")
    assert not judged(case, "answer", f"bob {case.answer.split()[1]} 77 from {case.source}\n")
    assert not judged(case, "refused")


def test_without_uvn_closed_ports_are_expected_open():
    case = some("closed", group="other-localhost")
    assert judged(case, "answer", case.answer, plain=True)
    assert not judged(case, "refused", plain=True)
    results = [matrix.result(case, {"result": "refused"}, True)]
    assert "not what nodes without UVN do" in matrix.summary(results, True)


def test_table_names_every_case_once():
    names = [case.id for case in cases.table()]
    assert len(names) == len(set(names))


def test_table_asks_every_user_for_every_protocol_family_and_direction():
    asked = {(case.row, case.group, case.proto, case.family) for case in cases.table()}
    for user in cases.MANAGED:
        for node in cases.NODES:
            for group in ("own-localhost", "own-addresses", "own-nodes", "off-subnet", "direct"):
                assert {(f"{user}@{node}", group, p, f) for p in ("tcp", "udp", "icmp") for f in (4, 6)} <= asked
            for group in ("other-localhost", "other-addresses", "other-nodes", "same-port", "system"):
                assert {(f"{user}@{node}", group, p, f) for p in ("tcp", "udp") for f in (4, 6)} <= asked


@pytest.mark.parametrize("nodes", [("c1",), ("c1", "c2"), cases.NODES])
def test_a_sample_has_every_combination_of_three_factors(nodes):
    whole = [case for case in cases.table() if case.node in nodes]
    sample = cases.sample(whole)
    assert set(sample) < set(whole)

    def factors(case) -> tuple:
        return (case.user, case.node, case.group, case.proto, case.family, *cases.place(case), case.expected)

    has = [[factors(case) for case in some] for some in (whole, sample)]
    for three in itertools.combinations(range(len(cases.FACTORS)), 3):
        in_whole, in_sample = ({tuple(case[n] for n in three) for case in some} for some in has)
        assert in_whole == in_sample


def test_the_place_of_an_address_is_what_it_is():
    places = {(case.target, cases.place(case)) for case in cases.table() if case.row == "alice@c1" and case.family == 4}
    assert {
        ("localhost", ("localhost", False)),
        ("bob.nat", ("nat", False)),
        ("bob@c2.wan0", ("wan0", True)),
        ("mgmt0", ("mgmt0", False)),
        ("offnet", ("off-subnet", False)),
        ("licence", ("direct", False)),
        ("stub", ("resolver", False)),
    } <= places


def test_dns_answers_are_read():
    query = cases.dns_query("offnet.lab.test", "udp")
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes([198, 51, 100, 10])
    reply = query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + query[12:] + record
    assert cases.dns_answer(reply.decode("latin-1"), "udp") == "A 198.51.100.10"
    refused = query[:2] + b"\x81\x85\0\1\0\0\0\0\0\0" + query[12:]
    assert cases.dns_answer(refused.decode("latin-1"), "udp") == "DNS rcode 5 without an answer"
