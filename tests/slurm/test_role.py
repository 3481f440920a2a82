# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role on nodes with Slurm: a second run changes nothing, removal leaves a Slurm that works, and the plug-in comes back."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from cluster import ABOUT, NODES, python

ROOT = Path(__file__).resolve().parents[2]
INVENTORIES = ("molecule/default/inventory/site.yml", "tests/slurm/site.yml")
LINE = "/etc/slurm/plugstack.conf.d/uvn.conf"


def play(*variables: str) -> dict[str, int]:
    """Run the site's playbook; node -> number of changes."""
    lab = subprocess.run([ROOT / "tests/lab/lab", "inventory", "--path"], capture_output=True, text=True, check=True).stdout.strip()
    options = [option for path in (lab, *INVENTORIES) for option in ("-i", path)]
    options += [option for variable in variables for option in ("-e", variable)]
    done = subprocess.run(
        ["ansible-playbook", *options, "playbooks/site.yml"],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {node: int(count) for node, count in re.findall(r"^(\w+) +: ok=\d+ +changed=(\d+)", done.stdout, re.MULTILINE)}


def test_a_second_run_changes_nothing():
    assert play() == {"login1": 0, "c1": 0, "c2": 0}


def test_removal_leaves_a_slurm_that_works_and_the_plugin_comes_back(slurm, alice):
    play("uvn_node_state=absent")
    try:
        for node in NODES:
            slurm.root(node, f"! ls {LINE} /usr/lib/uvn/spank.so 2>/dev/null")
        assert {line.split()[1] for line in alice.check("srun", "--nodes=2", *python(ABOUT)).splitlines()} == {"default"}
    finally:
        changed = play()
    assert all(changed.values())
    assert {line.split()[1] for line in alice.check("srun", "--nodes=2", *python(ABOUT)).splitlines()} == {alice.vrf}
