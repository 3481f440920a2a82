# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role's variables become under the ansible-core at hand: `python3 -m pytest tests/unit/test_role.py` with each that is to work."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import collection
import pytest
import yaml
from conftest import SITE
from uvn.site import parse

ROLE = collection.ROOT / "roles" / "uvn_node"
VARIABLES = {
    "uvn_underlays": SITE["underlays"],
    "uvn_node_build": False,
    "uvn_node_state": "present",
    "uvn_node_resolved": True,
    "uvn_node_users": [],
    "uvn_node_plugstack": "/etc/slurm/plugstack.conf.d",
    "uvn_node_spank": "",
    "uvn_node_pyroute2_wheel": "",
    "uvn_node__found": {"family": "rhel"},
    "role_path": str(ROLE),
}

# A node that has nothing in the way.
FIT = {
    "uvn_node__network": {},
    "uvn_node__found": {
        "os": "Debian",
        "family": "debian",
        "booted": True,
        "kernels": {},
        "cgroup": "cgroup2fs",
        "ip": True,
        "ipv6": True,
        "sshd_pam": "yes",
        "pyroute2": {"version": "0.7.2", "path": "/usr/lib/python3/dist-packages"},
        "slurm": {},
    },
}


@pytest.fixture
def play(tmp_path):
    """A function: run tasks with the role's variables and others on this machine; the result of ansible-playbook."""
    (tmp_path / "collections" / "ansible_collections" / "hpc").mkdir(parents=True)
    (tmp_path / "collections" / "ansible_collections" / "hpc" / "uvn").symlink_to(collection.ROOT)

    def run(*tasks, native=False, **variables):
        book = [{"hosts": "localhost", "gather_facts": False, "vars_files": [str(ROLE / "vars" / "main.yml")], "tasks": tasks}]
        (tmp_path / "play.yml").write_text(json.dumps(book))
        (tmp_path / "ansible.cfg").touch()
        for name in ("files", "templates"):  # Ansible looks for them beside the play
            (tmp_path / name).symlink_to(ROLE / name)
        (tmp_path / "vars.json").write_text(json.dumps({**VARIABLES, **variables, "ansible_python_interpreter": sys.executable}))
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "collections"),
            "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
            "ANSIBLE_HOME": str(tmp_path),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_JINJA2_NATIVE": str(native),  # of cores before 2.19, which always are
        }
        command = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local", "-e", f"@{tmp_path}/vars.json"]
        return subprocess.run([*command, str(tmp_path / "play.yml")], env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(params=[False, True], ids=["jinja", "native"])
def native(request):
    """Jinja's way to make a value of a template, which a site may choose before 2.19 (jinja2_native)."""
    return request.param


def install(play, tmp_path, **options):
    """Run the role's task that installs files, in check mode; what it says."""
    (task,) = (task for task in yaml.safe_load((ROLE / "tasks" / "present.yml").read_text()) if task["name"] == "Install files")
    said = {"ansible.builtin.copy": {"content": "{{ uvn_node__written | to_json }}", "dest": str(tmp_path / "said.json")}, "check_mode": False}
    done = play({**task, "check_mode": True, "ignore_errors": True}, said, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "said.json").read_text())


def test_the_site_file_is_json_and_the_library_to_be_installed_accepts_it(play, tmp_path, native):
    said = install(play, tmp_path, native=native)
    assert not said.get("failed"), said
    mode, text = next(change["after"] for change in said["diff"] if change["after_header"] == "/etc/uvn/site.json").split("\n", 1)
    assert mode == "mode 0644" and parse(json.loads(text)) == parse(SITE)


def test_what_the_library_does_not_accept_changes_nothing(play, tmp_path):
    said = install(play, tmp_path, uvn_node__configuration="{'control_ports': []}\n")
    assert said["failed"] and said["msg"].startswith(
        "the new files are not accepted, nothing was changed: uvn: /etc/uvn/site.json: not a complete JSON document"
    )


def findings(play, **variables):
    """The result of a play that ends with what the role has against a node."""
    return play({"ansible.builtin.assert": {"that": "uvn_node__findings | length == 0", "fail_msg": "{{ uvn_node__findings }}"}}, **variables)


def test_a_misspelt_variable_ends_the_play(play, native):
    done = findings(play, **FIT, uvn_mod="audit", native=native)
    assert done.returncode == 2 and "the variable uvn_mod is none of UVN\'s" in done.stdout and "the nearest is uvn_mode" in done.stdout, done


def test_the_variables_of_the_role_are_known(play):
    options = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    done = findings(play, **FIT, **dict.fromkeys(set(options) - set(VARIABLES)))
    assert done.returncode == 0, done
