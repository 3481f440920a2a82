# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmarks share: timing of processes, medians and quartiles, result files."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import statistics
import sys
import time
from typing import Any, Callable, Iterable, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / ".cache" / "bench"
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
CMDLINE = "/proc/cmdline"


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles, with the samples they are of."""
    low, _middle, high = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    return {"median": statistics.median(samples), "q1": low, "q3": high, "samples": list(samples)}


def ratio(numerator: dict[str, Any], denominator: dict[str, Any]) -> dict[str, Any]:
    """The ratio of two series of interleaved rounds: its median and quartiles over the rounds."""
    return summary([a / b for a, b in zip(numerator["samples"], denominator["samples"])])


def interleaved(rounds: int, measurements: Iterable[Callable[[], dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Every measurement once a round, so that a change of the machine's load meets all of them; a summary for each name."""
    samples: dict[str, list[float]] = {}
    for _round in range(rounds):
        for measure in measurements:
            for name, value in measure().items():
                samples.setdefault(name, []).append(value)
    return {name: summary(values) for name, values in samples.items()}


def milliseconds(function: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments)
    return 1000 * (time.perf_counter() - start)


def spawn(argv: Sequence[str], environment: dict[str, str] | None = None) -> None:
    """Run a program to its end, as cheaply as it can be started."""
    null = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    pid = os.posix_spawn(argv[0], argv, {**ENVIRONMENT, **(environment or {})}, file_actions=null)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise RuntimeError(f"{' '.join(argv)} ended with status {status}")


def only_in_the_lab() -> None:
    """The benchmarks install UVN and change the node as they like."""
    with open(CMDLINE, encoding="ascii") as file:
        if "lab.node=kernel" not in file.read().split():
            sys.exit("this benchmark takes the machine for itself; run it in the lab's guest: make bench")


def write(name: str, results: dict[str, Any]) -> None:
    """Results and what they were measured on, as .cache/bench/NAME.json."""
    machine = {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "accelerator": os.environ.get("UVN_BENCH_ACCEL", "unknown"),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine, **results}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
