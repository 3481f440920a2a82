# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel tests: run as root, on the machine itself or in a guest of the lab, against the kernel that is there."""

from __future__ import annotations

import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "plugins" / "module_utils"))


@pytest.fixture(scope="session", autouse=True)
def root():
    if os.geteuid() != 0:
        pytest.fail("kernel tests need root: run them in the lab's guest, or with sudo", pytrace=False)


@pytest.fixture(scope="module")
def lans():
    """The bridges that nodes are on."""
    from nodes import bridges

    bridges("add")
    yield
    bridges("delete")


def pytest_collection_modifyitems(items):
    """The module vrf cannot be unloaded: what wants a kernel without it comes first."""
    items.sort(key=lambda item: "test_without_vrf" not in item.nodeid)
