# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every attack is real without the part that holds it, and fails with it; what must pass does."""

from __future__ import annotations

import attacks
import pytest
from cluster import OFF

ATTACKS = {one.name: one for one in attacks.ATTACKS}


@pytest.mark.parametrize("name", [one.name for one in attacks.ATTACKS if one.held_by in OFF and not one.limit])
def test_the_attack_is_real(results, name):
    state = results[ATTACKS[name].held_by]
    through, said = state[name]
    if ATTACKS[name].needs not in state["open"][1]:
        pytest.skip(f"the kernel has no {ATTACKS[name].needs}")
    assert through, f"stopped although the {ATTACKS[name].held_by} is off: {said}"


@pytest.mark.parametrize("name", [one.name for one in attacks.ATTACKS if not one.limit])
def test_the_attack_fails(results, name):
    through, said = results["on"][name]
    if ATTACKS[name].needs == "lsm" and "lsm" not in results["on"]["open"][1]:
        pytest.skip("bpf is not among the active security modules of this kernel")
    assert not through, said


@pytest.mark.parametrize("name", [one.name for one in attacks.ATTACKS if one.limit])
def test_a_known_limit_is_as_documented(results, name):
    through, said = results["on"][name]
    assert through, f"it is stopped ({said}): threat-model.md is to say so"


@pytest.mark.parametrize("state", [*OFF, "on"])
@pytest.mark.parametrize("name", attacks.LEGITIMATE)
def test_what_must_pass_does(results, state, name):
    through, said = results[state][name]
    assert through, said
