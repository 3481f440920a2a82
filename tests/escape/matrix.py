#!/usr/bin/env python3
# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attack the cluster with parts of UVN taken off and with all of it, and print what got through."""

from __future__ import annotations

from attacks import ATTACKS, LEGITIMATE, PARTS
from cluster import OFF, measure, provide, without


def measure_all() -> dict[str, dict[str, tuple[bool, str]]]:
    """Results by state: the part that is off, or "on"."""
    found = {}
    provide()
    for part in OFF:
        with without(part):
            found[part] = measure({part})
    found["on"] = measure(set(PARTS))
    return found


def render(found: dict[str, dict[str, tuple[bool, str]]]) -> str:
    """A line for each attack: what holds it, whether it got through with that taken off and with everything on."""
    lines = [f"{'attack':<45} {'held by':<12} {'without':<8} with UVN"]
    for one in ATTACKS:
        before = _word(found.get(one.held_by, {}).get(one.name))
        after = found["on"][one.name]
        lines.append(f"{one.name:<45} {one.held_by:<12} {before:<8} {_word(after):<8} {after[1]}{'; known limit' if one.limit else ''}")
    lines += [f"{name:<45} {'must pass':<12} {_word(found['guard'][name]):<8} {_word(found['on'][name])}" for name in LEGITIMATE]
    return "\n".join(lines)


def _word(result: tuple[bool, str] | None) -> str:
    return "-" if result is None else "through" if result[0] else "stopped"


if __name__ == "__main__":
    print(render(measure_all()))
