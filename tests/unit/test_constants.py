# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be written twice is the same twice: programs that import nothing, C, shell, units, udev, the role's variables, its documentation."""

from __future__ import annotations

import json
import re

import collection
import pytest
import yaml
from ansible_collections.hpc.uvn.plugins.module_utils.uvn import site as controllers  # as in the filters' imports
from ansible_collections.hpc.uvn.plugins.plugin_utils import conflicts
from conftest import SITE
from hypothesis import example, given
from hypothesis import strategies as st
from uvn import client, guard, identity, ingress, kernel, login, objects, plan, site, store

ROOT = collection.ROOT
ROLE = ROOT / "roles" / "uvn_node"
SPANK = (ROOT / "spank" / "uvn.c").read_text()
LOGIN = (ROLE / "files" / "uvn-login").read_text()


def one(pattern, text):
    """The one match of a pattern's group."""
    (found,) = re.findall(pattern, text, re.MULTILINE)
    return found


def test_paths():
    listens = one(r"^ListenStream=(.*)$", (ROLE / "files" / "uvnd.socket").read_text())
    assert listens == login.SOCKET == client.SOCKET == one(r'#define SOCKET "(.*)"', SPANK) == f"{store.RUN}/uvnd.sock"
    assert one(r'\[ -L "(.*)/\$PAM_USER" \]', LOGIN) == store.READY
    variables = (ROLE / "vars" / "main.yml").read_text()
    assert site.PATH in variables and f"'{store.RUN}'" in variables
    assert one(r"/usr/bin/python3 -IS (\S+)", LOGIN) == "/usr/lib/uvn/uvn/login.py"
    assert "path: /usr/lib/uvn/uvn\n    src: \"{{ role_path }}/../../plugins/module_utils/uvn\"" in variables


def test_a_login_and_a_job_wait_equally_long_and_an_administrator_longer():
    assert login.TIMEOUT == int(one(r"#define TIMEOUT (\d+)", SPANK)) < client.TIMEOUT


def test_a_reply_that_lets_in_begins_so():
    begin = json.dumps({"ok": True})[:-1]
    assert f"startswith(b'{begin}')" in (ROOT / "plugins/module_utils/uvn/login.py").read_text()
    assert json.dumps(begin) in SPANK


def test_the_controller_and_the_node_know_the_same_kernel():
    assert conflicts.PROTOCOL == kernel.PROTOCOL
    assert (conflicts.MAIN, conflicts.LOCAL) == (objects.TABLE_MAIN, objects.TABLE_LOCAL)


def test_ports_of_rules_and_maps():
    assert ingress._RANGES == site.MAX_PORT_RANGES


def test_the_sets_of_the_guard():
    """Which of them there are is in test_guard.py."""
    fields = {name: definition.split(";")[0].split(" . ") for name, definition in plan.SETS.items()}
    assert all(len(sizes) == len(fields[name]) for name, sizes in guard.KEYS.items())


GROUPS = one(r'ATTR\{netdev_group\}=="([^"]*)"', (ROLE / "files" / "udev.rules").read_text())
FIRST, LAST = identity.LINK_GROUP, identity.LINK_GROUP | ~identity.LINK_GROUP_MASK & 0xFFFFFFFF


@given(st.integers(0, 2**32 - 1) | st.integers(FIRST - 10**6, FIRST + 10**6) | st.integers(LAST - 10**6, LAST + 10**6))
@example(FIRST - 1)
@example(FIRST)
@example(LAST)
@example(LAST + 1)
@example(1426000000)
def test_udev_marks_exactly_the_link_groups_of_uvn(number):
    pattern = "|".join(glob.replace("?", "[0-9]") for glob in GROUPS.split("|"))  # as fnmatch(3), but for digits only
    assert bool(re.fullmatch(pattern, str(number))) == (FIRST <= number <= LAST)


# -- the site's decisions: site.py, the role's variables, its argument specification, the documentation ------------------

KEYS = {"underlays", *site.DEFAULTS} - {"version"}
MAPPED = dict(re.findall(r"^ +'(\w+)': (\w+)(?: \| default\(none\))?,$", (ROLE / "vars" / "main.yml").read_text(), re.MULTILINE))
OPTIONS = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
DEFAULTS = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
ROWS = {
    key: re.split(r"\s*\|\s*", line.strip("|").strip())
    for line in (ROOT / "docs" / "configuration.md").read_text().splitlines()
    if line.startswith("| `") and not line.startswith("| `uvn_node_")
    for key in re.findall(r"`([\w.\[\]]+)`", line.split(" | ")[0])
}


def sub_keys(value, path=""):
    """The documented names of keys within lists of dictionaries and dictionaries."""
    for key, item in value.items():
        inner = item[0] if isinstance(item, list) and item and isinstance(item[0], dict) else item if isinstance(item, dict) else None
        yield f"{path}{key}"
        if inner and key != "ranges":  # whose keys stand in the text of its row
            yield from sub_keys(inner, f"{path}{key}{'[]' if inner is not item else ''}.")


def test_the_role_hands_over_every_key():
    assert MAPPED == {key: f"uvn_{key}" for key in KEYS}


def test_the_role_specifies_every_option_and_no_other():
    assert set(OPTIONS) == {f"uvn_{key}" for key in KEYS} | set(DEFAULTS)
    assert {name: option["default"] for name, option in OPTIONS.items() if name in DEFAULTS} == DEFAULTS
    assert all("default" not in option for name, option in OPTIONS.items() if name not in DEFAULTS)
    assert [name for name, option in OPTIONS.items() if option.get("required")] == ["uvn_underlays"]


def test_the_library_on_the_controller_is_that_of_the_node():
    assert controllers.DEFAULTS == site.DEFAULTS


FULL = site.parse({**SITE, "ingress": [{"hosts": ["10.0.0.1"], "ports": [1]}]}).as_dict()


def test_options_within_options():
    for key in KEYS:
        value = FULL[key][0] if isinstance(FULL[key], list) and FULL[key] else FULL[key]
        assert set(OPTIONS[f"uvn_{key}"].get("options", {})) == (set(value) if isinstance(value, dict) else set())


def test_the_documentation_has_every_key_with_its_variable():
    documented = {*sub_keys({key: FULL[key] for key in KEYS})} - {"nat", "exempt"}
    assert set(ROWS) == documented | {"mode"}
    for key, cells in ROWS.items():
        variables = re.findall(r"`(\w+)`", cells[1])
        assert set(variables) <= set(OPTIONS) and ("." in key or f"uvn_{key}" in variables)


def leaves(value):
    """The values in a default, as the documentation writes them."""
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield str(value).lower()


@pytest.mark.parametrize("key", sorted(KEYS - {"underlays"}))
def test_every_default_is_told_truly(key):
    """In the column of the documentation, and in the option's description."""
    default = site.DEFAULTS[key]
    column = " ".join(cells[2] for name, cells in ROWS.items() if name.split(".")[0] == key).replace("–", "-")
    option = json.dumps(OPTIONS[f"uvn_{key}"])
    assert all(value in column for value in leaves(default)) and all(f"V({value})" in option for value in leaves(default))
    assert default != [] or ("`[]`" in column and "By default there are none" in option)


def test_the_documentation_has_every_variable_of_the_role():
    lines = [line for line in (ROOT / "docs" / "configuration.md").read_text().splitlines() if line.startswith("| `uvn_node_")]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    told = {name: "[]" if value == [] else "".join(leaves(value)) for name, value in DEFAULTS.items()}
    assert {name: default for name, default, _meaning in rows} == told


def test_limits_of_the_documentation():
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert f"at most {site.MAX_GROUPS} addresses" in ROWS["group"][3]
    assert f"at most {login.NAME_MAX} bytes" in text
