#!/usr/bin/env python3
# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure the truth table of cases.py over real ssh logins and print it as a matrix.

matrix.py            on nodes with UVN: exit 0 when everything is as the table says, 1 when not
matrix.py --before   on nodes without UVN: exit 0 when users do reach each other's ports (the negative control:
                     the same probes, so a probe that can never reach anything is found out)
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cases  # noqa: E402
from sessions import Cluster, Session, SessionError  # noqa: E402

LEGEND = "✓ as UVN promises, ✗ not; ● reached, ○ closed"
CLOSED = {"refused", "timeout", "unreachable", "eaddrinuse"}  # anything else is not a way of being closed


@dataclass(frozen=True)
class Result:
    """A case and what came of it. `plain`: judged as a node without UVN."""

    case: cases.Case
    outcome: str
    text: str
    milliseconds: int
    plain: bool = False

    @property
    def reached(self) -> bool:
        return self.outcome not in CLOSED

    @property
    def isolated(self) -> bool:
        """As the truth table wants it of nodes with UVN."""
        case = self.case
        if case.expected == "closed":
            return self.outcome in CLOSED and case.code in ("", self.outcome)
        return self.answers(case.answer)

    @property
    def good(self) -> bool:
        """What the matrix marks by ✓. Without UVN only that matters which isolation is about."""
        about_others = self.case.group.startswith("other-") or self.case.group == "same-port"
        return self.isolated if about_others else self.ok

    @property
    def ok(self) -> bool:
        """As expected of the nodes that were measured."""
        if not self.plain:
            return self.isolated
        return self.answers(self.case.plain) if self.case.plain else self.outcome in CLOSED

    def answers(self, expected: str) -> bool:
        source = self.case.source
        return self.outcome == "answer" and self.text.startswith(expected) and (not source or self.source == source)

    @property
    def source(self) -> str:
        """The address the other side says it was reached from."""
        return self.text.split()[-1] if self.text else ""

    @property
    def measured(self) -> str:
        if self.outcome in ("answer", "error"):
            return repr(self.text.strip())
        return f"{self.outcome} after {self.milliseconds} ms"

    @property
    def wanted(self) -> str:
        case = self.case
        answer = case.plain if self.plain else case.answer if case.expected != "closed" else ""
        if not answer:
            return f"closed ({case.code})" if case.code and not self.plain else "closed"
        return repr(answer.strip() + "...") + (f" from {case.source}" if case.source else "")

    def __str__(self) -> str:
        case = self.case
        place = f"[{case.address}]:{case.port}" if case.family == 6 else f"{case.address}:{case.port}"
        where = f"{case.proto}{case.family} {place} ({case.target})"
        return f"{case.row} -> {where}: expected {self.wanted}, measured {self.measured}; {case.reason}"


def result(case: cases.Case, raw: dict, plain: bool) -> Result:
    """What the agent says about a probe, as a Result."""
    text = raw.get("text", "")
    if case.port == cases.DNS and raw["result"] == "answer":
        text = cases.dns_answer(text, case.proto)
    return Result(case, raw["result"], text, raw.get("ms", 0), plain)


def listen(cluster: Cluster, user: str, plain: bool) -> list:
    """Open the user's listeners on every node, once a session."""

    def on(node: str) -> list:
        session = cluster.session(user, node)
        if not hasattr(session, "listeners"):
            pairs = cases.listen_cases(user, node)
            found = session.listen([spec for _case, spec in pairs])
            session.listeners = [
                (
                    Result(case, "answer", "listening", 0, plain)
                    if raw["result"] == "listening"
                    else Result(case, raw["result"], "", 0, plain)
                )
                for (case, _spec), raw in zip(pairs, found)
            ]
        return session.listeners

    return [entry for found in cluster.each(on, list(cases.NODES)) for entry in found]


def ask(session: Session, questions: list, plain: bool) -> list:
    """Probe the cases of one row."""
    found = session.probes([case.spec(plain) for case in questions])
    return [result(case, raw, plain) for case, raw in zip(questions, found)]


def again(cluster: Cluster, results: list, plain: bool, say) -> list:
    """Ask once more what should have been reached and was too slow for a busy emulated node; never what is closed."""
    slow = [entry for entry in results if not entry.ok and entry.outcome in ("timeout", "silent")]
    slow = [entry.case for entry in slow if plain or entry.case.expected != "closed"]
    if not slow:
        return results
    say(f"{len(slow)} cases had no answer in time and are asked once more")
    second = {}
    for pair in {(case.user, case.node): None for case in slow}:
        questions = [case for case in slow if (case.user, case.node) == pair]
        second.update({entry.case: entry for entry in ask(cluster.session(*pair), questions, plain)})
    return [second.get(entry.case, entry) for entry in results]


def measure(cluster: Cluster, plain: bool = False, say=lambda _text: None, select=lambda _case: True) -> list:
    """Log in where there is no session yet, listen, and probe everything that is selected. Returns Results."""
    begin = time.monotonic()
    pairs = [(user, node) for user in cases.LISTENERS for node in cases.NODES]
    cluster.open(pairs)
    say(f"{len(pairs)} ssh sessions after {time.monotonic() - begin:.0f} s")
    results = []
    for user in cases.LISTENERS:  # one after the other: on plain nodes the first one has the shared port
        results += listen(cluster, user, plain)
    wanted = [case for case in cases.table() if select(case) and not (plain and case.plain is None)]
    by_row = {pair: [case for case in wanted if (case.user, case.node) == pair] for pair in pairs}
    pairs = [pair for pair in pairs if by_row[pair]]

    def probe(pair: tuple) -> list:
        return ask(cluster.session(*pair), by_row[pair], plain)

    results += [entry for row in cluster.each(probe, pairs) for entry in row]
    results = again(cluster, results, plain, say)
    say(f"{len(results)} cases after {time.monotonic() - begin:.0f} s")
    return results


def cell(results: list) -> tuple:
    """(text, good) of the cases of one row and column."""
    if not results:
        return "", True
    wrong = sum(not entry.good for entry in results)
    reached = sum(entry.reached for entry in results)
    counts = " ".join(f"{number}{sign}" for number, sign in ((reached, "●"), (len(results) - reached, "○")) if number)
    return f"{'✗' if wrong else '✓'} {counts}", not wrong


def grid(results: list) -> list:
    """Rows of (title, {group: (text, fine)})."""
    rows = {}
    for entry in results:
        rows.setdefault(entry.case.row, {}).setdefault(entry.case.group, []).append(entry)
    return [(row, {group: cell(groups.get(group, [])) for group in cases.GROUPS}) for row, groups in rows.items()]


def show(results: list, title: str) -> None:
    """Print the matrix; by rich where it is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return show_plain(results, title)
    table = Table(title=title, box=None, pad_edge=False, padding=(0, 1))
    table.caption = LEGEND
    table.add_column("from", style="bold", no_wrap=True)
    for heading in cases.GROUPS.values():
        table.add_column(heading, no_wrap=True)
    for row, cells in grid(results):
        styled = [f"[{'green' if fine else 'red'}]{text}[/]" if text else "" for text, fine in cells.values()]
        table.add_row(row, *styled)
    # a log or a pipe has no width of its own: as wide as the table needs
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def show_plain(results: list, title: str) -> None:
    """The matrix in plain text, one line a cell line."""
    rows = [["from", *cases.GROUPS.values()]]
    rows += [[row, *(text for text, _fine in cells.values())] for row, cells in grid(results)]
    lines = [[text.split("\n") for text in row] for row in rows]
    widths = [max(len(line) for row in lines for line in row[column]) for column in range(len(rows[0]))]
    print(title)
    for row in lines:
        for number in range(max(len(text) for text in row)):
            parts = [text[number] if number < len(text) else "" for text in row]
            print("  ".join(part.ljust(width) for part, width in zip(parts, widths)).rstrip())
    print(LEGEND)


def junit(results: list, path: str, seconds: float) -> None:
    """Write the results as JUnit, a test case a line of the truth table."""
    failures = sum(not entry.ok for entry in results)
    counts = {"tests": str(len(results)), "failures": str(failures), "errors": "0", "skipped": "0"}
    suites = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(suites, "testsuite", name="uvn.isolation.matrix", time=f"{seconds:.1f}", **counts)
    for entry in results:
        time_taken = f"{entry.milliseconds / 1000:.3f}"
        case = ElementTree.SubElement(suite, "testcase", classname=entry.case.row, name=entry.case.id, time=time_taken)
        if not entry.ok:
            ElementTree.SubElement(case, "failure", message=f"expected {entry.wanted}").text = str(entry)
    ElementTree.ElementTree(suites).write(path, encoding="utf-8", xml_declaration=True)


def summary(results: list, plain: bool) -> str:
    """The last line: what the numbers mean."""
    wrong = sum(not entry.ok for entry in results)
    foreign = [entry for entry in results if entry.case.group.startswith("other-")]
    reached = sum(entry.reached for entry in foreign)
    isolation = f"{reached} of {len(foreign)} attempts on other users' ports got through"
    if plain:
        absent = wrong == 0 and reached == len(foreign) > 0
        verdict = "isolation is absent, as expected without UVN" if absent else "not what nodes without UVN do"
        return f"{isolation}: {verdict} ({wrong} of {len(results)} cases not as expected)"
    return f"{isolation}; {len(results) - wrong} of {len(results)} cases as expected"


def main() -> int:
    parser = argparse.ArgumentParser(description="The isolation matrix of the lab: expected against measured.")
    parser.add_argument("--before", action="store_true", help="nodes without UVN: check that isolation is absent")
    parser.add_argument("--junit", metavar="FILE", help="write JUnit XML as well")
    parser.add_argument("--all", action="store_true", help="list every case, not only the mismatches")
    arguments = parser.parse_args()
    plain, begin = arguments.before, time.monotonic()
    try:
        with Cluster() as cluster:
            results = measure(cluster, plain, lambda text: print(text, file=sys.stderr))
    except (SessionError, OSError) as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 2
    seconds = time.monotonic() - begin
    show(results, "Without UVN" if plain else "With UVN")
    for entry in results:
        if arguments.all or not entry.ok:
            print(("ok       " if entry.ok else "MISMATCH ") + str(entry))
    if arguments.junit:
        junit(results, arguments.junit, seconds)
    print(f"{summary(results, plain)}, {seconds:.0f} s")
    return 0 if all(entry.ok for entry in results) else 1


if __name__ == "__main__":
    sys.exit(main())
