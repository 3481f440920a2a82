# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every state of the cluster is measured once, with all its attacks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import matrix  # noqa: E402


@pytest.fixture(scope="session")
def results():
    """What got through, by state and attack."""
    found = matrix.measure_all()
    yield found
    print("\n" + matrix.render(found))
