# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a comparison costs: uvnd makes one every minute, and logins wait for it."""

from __future__ import annotations

import sys

import pytest
from uvn import diff, plan
from uvn.identity import identify

USERS = 3000
LINES_PER_OBJECT = 60  # as a comparison that looks at each object a few times


class Lines:
    """Counts the lines of diff.py that run inside its `with`, each round of a comprehension too. AssertionError above `limit`."""

    def __init__(self, limit: int) -> None:
        self.count, self.limit = 0, limit

    def __enter__(self) -> Lines:
        self._before = sys.gettrace()
        sys.settrace(lambda frame, _event, _argument: self._line if frame.f_code.co_filename == diff.__file__ else None)
        return self

    def __exit__(self, *_exc: object) -> None:
        sys.settrace(self._before)

    def _line(self, _frame, _event, _argument):
        self.count += 1
        assert self.count <= self.limit, f"more than {self.limit} lines"
        return self._line


def everybody(site, host, users):
    """The node's own objects and one user's networks times `users`."""
    who = [identify(site, 2000 + number) for number in range(users)]
    return plan.node(site, host, 1, (), who), [obj for one in who for obj in plan.user_network(site, one, host)]


@pytest.mark.parametrize("what", ["nothing to do", "all links go"])
def test_the_lines_that_run_grow_with_the_objects_and_no_faster(site, host, what):
    node, networks = everybody(site, host, USERS if what == "nothing to do" else USERS // 10)
    desired, observed = (node, node) if what == "nothing to do" else ([], networks)
    with Lines(LINES_PER_OBJECT * len(observed)) as lines:
        changes = diff.diff(desired, observed)
    assert lines.count > len(observed), "the lines were counted"
    assert bool(changes) is (what == "all links go")
