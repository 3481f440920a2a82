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
ALL = ("login1", *NODES)
OWN = "/etc/uvn-slurm"  # a directory of the node's own, for sites that share /etc/slurm
# A prolog of the site's in place of the plug-in, as docs/slurm.md has it.
PROLOG = f"""
mv {LINE} /root/uvn-line
printf '#!/bin/sh\\n/usr/sbin/uvn ensure "$SLURM_JOB_UID" || true\\n' >/etc/slurm/uvn-prolog
chmod 755 /etc/slurm/uvn-prolog
echo Prolog=/etc/slurm/uvn-prolog >>/etc/slurm/slurm.conf
"""
NO_PROLOG = f"mv /root/uvn-line {LINE}; rm /etc/slurm/uvn-prolog; sed -i '/^Prolog=/d' /etc/slurm/slurm.conf"
# c2 gets slurm.conf and plugstack.conf from the controller.
CONFIGLESS = {
    "login1": "echo SlurmctldParameters=enable_configless >>/etc/slurm/slurm.conf; systemctl restart slurmctld",
    "c2": """
        mkdir -p /root/slurm /run/systemd/system/slurmd.service.d
        mv /etc/slurm/slurm.conf /etc/slurm/plugstack.conf /root/slurm/
        cat >/run/systemd/system/slurmd.service.d/configless.conf <<'END'
[Unit]
ConditionPathExists=
[Service]
Environment=SLURMD_OPTIONS=--conf-server=login1
END
        systemctl daemon-reload; systemctl restart slurmd""",
}
CONFIGURED = {
    "login1": "sed -i '/enable_configless/d' /etc/slurm/slurm.conf; systemctl restart slurmctld",
    "c2": """
        mv /root/slurm/* /etc/slurm/; rm -r /run/systemd/system/slurmd.service.d /run/slurm/conf
        systemctl daemon-reload; systemctl restart slurmd""",
}


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


def ran_in(slurm, user) -> set[str]:
    """The devices of the sockets of a job on both nodes, once these are at work again."""
    slurm.back()
    return {line.split()[1] for line in user.check("srun", "--nodes=2", *python(ABOUT)).splitlines()}


def test_the_line_moves_to_another_directory_and_removal_finds_it_there(slurm, alice):
    """Removal is not told of the directory: a line without the plug-in would keep slurmd from starting."""
    for node in ALL:
        slurm.root(node, f"mkdir {OWN}; cp /etc/slurm/plugstack.conf /root/; echo 'include {OWN}/*.conf' >>/etc/slurm/plugstack.conf")
    try:
        assert all(play(f"uvn_node_plugstack={OWN}").values())
        for node in ALL:
            slurm.root(node, f"test -e {OWN}/uvn.conf; ! test -e {LINE}")
        assert ran_in(slurm, alice) == {alice.vrf}
        play("uvn_node_state=absent")
        for node in ALL:
            slurm.root(node, f"! ls {OWN}/uvn.conf {LINE} /usr/lib/uvn/spank.so 2>/dev/null")
        assert ran_in(slurm, alice) == {"default"}
    finally:
        for node in ALL:
            slurm.root(node, f"mv /root/plugstack.conf /etc/slurm/; rm -rf {OWN}")
        changed = play()
    assert all(changed.values())
    assert ran_in(slurm, alice) == {alice.vrf}


def test_a_configless_node(slurm, alice):
    for node, script in CONFIGLESS.items():
        slurm.root(node, script)
    try:
        slurm.wait(lambda: "plugstack.conf" in slurm.root("c2", "ls /run/slurm/conf/ || true"), "slurmd has its files from the controller")
        assert ran_in(slurm, alice) == {alice.vrf}
        assert set(play().values()) == {0}
    finally:
        for node, script in CONFIGURED.items():
            slurm.root(node, script)
    assert ran_in(slurm, alice) == {alice.vrf}


def test_a_prolog_in_place_of_the_plugin(slurm, alice):
    def everywhere(script: str) -> None:
        for node in ALL:
            slurm.root(node, script)
        for node, unit in (("login1", "slurmctld"), ("c1", "slurmd"), ("c2", "slurmd")):
            slurm.root(node, f"systemctl restart {unit}")

    slurm.root("c1", "uvn remove alice")
    everywhere(PROLOG)
    try:
        assert ran_in(slurm, alice) == {alice.vrf}
    finally:
        everywhere(NO_PROLOG)
    assert ran_in(slurm, alice) == {alice.vrf}
