# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module reports of a list of changes; it needs nothing of the library."""

from __future__ import annotations

from typing import Any, Sequence


def report(changes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results `changed`, `changes` and `diff` of a module, all from one list, so that they cannot disagree.

    Parameters
    ----------
    changes: what uvnd replies or what `Change.as_dict()` gives: `op` (`create`, `replace`, `delete`), `kind`, `name`,
        the object's other values, and under `before` the object that a `replace` replaces.
    """
    changes = list(changes)
    before = [line(change.get("before", change)) for change in changes if change["op"] != "create"]
    after = [line(change) for change in changes if change["op"] != "delete"]
    return {"changed": bool(changes), "changes": changes, "diff": {"before": _text(before), "after": _text(after)}}


def line(values: dict[str, Any]) -> str:
    """One object as one line: kind, name, then its values by name."""
    rest = sorted(key for key in values if key not in ("op", "kind", "name", "before"))
    return " ".join([f"{values['kind']} {values['name']}:", *(f"{key}={_value(values[key])}" for key in rest)])


def _value(value: Any) -> str:
    """A value as the documentation writes it: lists with commas, no quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={_value(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return "-" if value is None else str(value)


def _text(lines: Sequence[str]) -> str:
    return "".join(f"{text}\n" for text in lines)
