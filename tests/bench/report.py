# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the results of the benchmarks into docs/performance.md and docs/plots/ (`make plots`)."""

from __future__ import annotations

import json
import pathlib
import re
import sys
from typing import Any, Sequence

from harness import RESULTS, ROOT, ratio

DOCUMENT = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "plots"

LOGIN_ROWS = {  # series: (what, whether it is a reference)
    "login cold": "`uvn-login`, no network yet (cold)",
    "request cold": "of this, the request to uvnd",
    "login warm": "`uvn-login`, network there (warm)",
    "paper cold": "paper's steps in shell, cold",
    "paper warm": "paper's steps in shell, warm",
    "batch": "`ip -batch` of UVN's objects",
    "interpreter": "`python3 -I -S -c pass`",
    "sh": "`sh -c :`",
}
LOGIN_RATIOS = {  # (numerator, denominator): (what, aim)
    ("login cold", "paper cold"): ("cold login / paper's steps, cold", "≤ 0.1"),
    ("login warm", "paper warm"): ("warm login / paper's steps, warm", "≤ 0.2"),
    ("request cold", "batch"): ("cold request / `ip -batch`", "≤ 1.5"),
    ("login cold", "batch"): ("cold login / `ip -batch`", ""),
    ("login warm", "sh"): ("warm login / `sh -c :`", "flat"),
}
METRICS = {"stream": "Mb/s", "TCP messages": "messages/s", "UDP messages": "messages/s"}
ACCELERATORS = {  # as `lab status` names them
    "KVM": "hardware virtualisation",
    "TCG": "emulated by QEMU",
    "ICOUNT": "emulated by QEMU, whose clock counts instructions, one a nanosecond",
}
WAYS = {"native": "native", "unguarded": "UVN without the guard", "UVN": "UVN", "paper": "paper's rules"}
GUARD_RATIOS = {("UVN", "paper"): "≥ 1", ("UVN", "unguarded"): ""}  # (numerator, denominator): aim


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float) -> str:
    """Three significant digits, and no more of a large number."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}"


def spread(values: dict[str, Any]) -> str:
    """Median (first to third quartile)."""
    return f"{number(values['median'])} ({number(values['q1'])}–{number(values['q3'])})"


def login_tables(results: dict[str, Any]) -> str:
    levels = results["levels"]
    header = ["others' networks", *(f"{level['others']:,}" for level in levels)]
    times = [[what, *(spread(level["series"][name]) for level in levels)] for name, what in LOGIN_ROWS.items()]
    ratios = [
        [what, *(spread(ratio(level["series"][above], level["series"][below])) for level in levels), aim]
        for (above, below), (what, aim) in LOGIN_RATIOS.items()
    ]
    kinds = [
        [kind, *(number(level["batch by kind"][kind]) for level in levels)] for kind in levels[0]["batch by kind"]
    ]
    return "\n".join(
        (
            f"{_machine(results)} Milliseconds, median (quartiles):\n",
            table(header, times),
            "Ratios, median (quartiles) of the ratios of each round:\n",
            table([*header, "aim"], ratios),
            "What `ip -batch` takes by kind of object, each kind by a process of its own (`process`: one without a command), ms:\n",
            table(header, kinds),
        )
    )


def bulk_table(results: dict[str, Any]) -> str:
    rows = [
        [
            f"{both['made']['count']:,}",
            number(both["made"]["per second"]),
            number(both["removed"]["per second"]),
            *(number(both["made"]["KiB per user"][key]) for key in ("used", "slab", "percpu")),
        ]
        for both in results["bulk"]
    ]
    return table(["users", "made per second", "removed per second", "memory a user, KiB", "slab, KiB", "per CPU, KiB"], rows)


def datapath_tables(results: dict[str, Any]) -> str:
    rows = []
    for one in results["mtus"]:
        for metric, unit in METRICS.items():
            native = one["series"][f"{metric}, native"]
            for way in WAYS:
                values = one["series"][f"{metric}, {way}"]
                relative = "1" if way == "native" else spread(ratio(values, native))
                rows.append([f"{metric}, {unit}, MTU {one['mtu']}, {WAYS[way]}", spread(values), relative])
    ratios = [
        [f"{metric}, MTU {one['mtu']}, {WAYS[above]} / {WAYS[below]}"]
        + [spread(ratio(one["series"][f"{metric}, {above}"], one["series"][f"{metric}, {below}"])), aim]
        for one in results["mtus"]
        for metric in METRICS
        for (above, below), aim in GUARD_RATIOS.items()
    ]
    entries = [
        [f"MTU {one['mtu']}, {name}", *map(str, one["tracked"][way])] for one in results["mtus"] for way, name in WAYS.items()
    ]
    count = results["connections"]
    return "\n".join(
        (
            f"{_machine(results)} Median (quartiles):\n",
            table(["", "", "of native"], rows),
            "Ratios, median (quartiles) of the ratios of each round:\n",
            table(["", "", "aim"], ratios),
            f"Entries that {count} TCP connections and {count} UDP flows add to connection tracking:\n",
            table(["", "first node", "second node"], entries),
        )
    )


def jobs_tables(results: dict[str, Any]) -> str:
    series = results["series"]
    times = [[name, str(len(values["samples"])), spread(values)] for name, values in series.items()]
    ratios = [[what, spread(ratio(series[above], series[below]))] for what, (above, below) in results["ratios"].items()]
    return "\n".join(
        (
            f"{results['slurm']}, three emulated nodes. Seconds for jobs and steps, microseconds for MPI:\n",
            table(["", "times", "median (quartiles)"], times),
            "Ratios, median (quartiles) of the ratios of each round:\n",
            table(["", ""], ratios),
        )
    )


def insert(document: str, name: str, text: str) -> str:
    """The document with `text` between the markers of `name`."""
    begin, end = f"<!-- {name}: written by make plots -->\n", f"<!-- end of {name} -->\n"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(document):
        raise SystemExit(f"{DOCUMENT}: the markers of {name} are missing; put back {begin.strip()} and {end.strip()}")
    return pattern.sub(lambda _match: f"{begin}\n{text}\n{end}", document)


def plot_login(results: dict[str, Any], path: pathlib.Path) -> None:
    """Times against the number of users, references dashed."""
    figure, axes = _figure()
    others = [level["others"] for level in results["levels"]]
    for name, style in (
        ("paper cold", "--"),
        ("login cold", "-"),
        ("request cold", "-"),
        ("paper warm", "--"),
        ("interpreter", ":"),
        ("batch", "--"),
        ("login warm", "-"),
        ("sh", ":"),
    ):
        values = [level["series"][name] for level in results["levels"]]
        low = [value["median"] - value["q1"] for value in values]
        high = [value["q3"] - value["median"] for value in values]
        medians = [value["median"] for value in values]
        axes.errorbar(others, medians, (low, high), linestyle=style, marker="o", capsize=3, label=LOGIN_ROWS[name].replace("`", ""))
    axes.set_xscale("symlog", linthresh=100, linscale=0.5)
    axes.set_xticks(others, [f"{count:,}" for count in others])
    axes.set_yscale("log")
    axes.set_xlabel("other users' networks on the node")
    axes.set_ylabel("milliseconds")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def plot_datapath(results: dict[str, Any], path: pathlib.Path) -> None:
    """Ratios to native, with quartiles."""
    figure, axes = _figure()
    groups = [(one, metric) for one in results["mtus"] for metric in METRICS]
    for offset, way in ((-0.27, "unguarded"), (0, "UVN"), (0.27, "paper")):
        values = [ratio(one["series"][f"{metric}, {way}"], one["series"][f"{metric}, native"]) for one, metric in groups]
        medians = [value["median"] for value in values]
        low = [value["median"] - value["q1"] for value in values]
        high = [value["q3"] - value["median"] for value in values]
        places = [place + offset for place in range(len(groups))]
        axes.bar(places, medians, 0.27, yerr=(low, high), capsize=3, label=WAYS[way])
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(groups)), [f"{metric}\nMTU {one['mtu']}" for one, metric in groups])
    axes.set_ylabel("ratio to native")
    axes.legend(loc="lower right")
    _save(figure, path)


def _figure() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "uvn", "font.size": 9})  # the same results give the same file
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(8, 4))


def _save(figure: Any, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    path.write_text("".join(f"{line.rstrip()}\n" for line in path.read_text(encoding="utf-8").splitlines()), encoding="utf-8")


def _machine(results: dict[str, Any]) -> str:
    machine = results["machine"]
    rounds = len(next(iter((results.get("levels") or results["mtus"])[0]["series"].values()))["samples"])
    cpus = "1 CPU" if machine["cpus"] == 1 else f"{machine['cpus']} CPUs"
    how = ACCELERATORS.get(machine["accelerator"], machine["accelerator"])
    return f"Kernel {machine['kernel']}, Python {machine['python']}, {cpus}, {how}; {rounds} rounds."


def _read(name: str, made_by: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        sys.exit(f"{path} is missing; run `{made_by}` first")
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    login, datapath, jobs = _read("login", "make bench"), _read("datapath", "make bench"), _read("jobs", "make slurm")
    text = DOCUMENT.read_text(encoding="utf-8")
    parts = {"login": login_tables(login), "bulk": bulk_table(login), "datapath": datapath_tables(datapath), "jobs": jobs_tables(jobs)}
    for name, part in parts.items():
        text = insert(text, name, part)
    DOCUMENT.write_text(text, encoding="utf-8")
    plot_login(login, PLOTS / "login.svg")
    plot_datapath(datapath, PLOTS / "datapath.svg")


if __name__ == "__main__":
    main()
