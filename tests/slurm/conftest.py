# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's Slurm with alice and bob logged in on login1, and root on every node."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "isolation")]

from cluster import NODES, Slurm  # noqa: E402


@pytest.fixture(scope="session")
def slurm():
    with Slurm() as slurm:
        yield slurm


@pytest.fixture
def alice(slurm):
    return slurm.user("alice")


@pytest.fixture
def bob(slurm):
    return slurm.user("bob")


@pytest.fixture(autouse=True)
def afterwards(slurm):
    """No job is left, and no node was taken out of service."""
    yield
    slurm.clear()
    assert slurm.states() == dict.fromkeys(NODES, "idle")
