# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A kernel without VRF. Run in a guest that has not loaded the module yet: it cannot be unloaded."""

from __future__ import annotations

import pathlib

import pytest
from nodes import Node

CONFIGURATION = pathlib.Path("/etc/modprobe.d/uvn-test.conf")


@pytest.fixture
def node(lans):
    assert not pathlib.Path("/sys/module/vrf").exists(), "the module vrf is loaded; boot the guest anew (lab down, lab up)"
    CONFIGURATION.write_text("install vrf /bin/false\n")
    node = Node("uvn-v", 91)
    yield node
    node.delete()
    CONFIGURATION.unlink()


def test_a_kernel_without_vrf_is_named_and_nothing_is_left(node):
    node.prepare()
    with pytest.raises(AssertionError, match="cannot create vrf vrf2001: this kernel has no vrf module; install it"):
        node.ensure(2001)
    assert node.observe(2001) == []
    assert "2001" not in node.sh("ip -o link; ip rule; ip -6 rule")
