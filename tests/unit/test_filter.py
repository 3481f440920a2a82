# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter hpc.uvn.site, and the PAM profile that the role makes of what it returns."""

from __future__ import annotations

import collection
import pytest
from ansible.errors import AnsibleFilterError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.hpc.uvn.plugins.filter.site import FilterModule
from conftest import SITE
from hypothesis import given
from hypothesis import strategies as st

site = FilterModule().filters()["site"]

OURS = "pam_exec.so type=open_session seteuid quiet stdout /usr/lib/uvn/uvn-login"


def test_missing_keys_get_their_defaults():
    result = site(SITE)
    assert result["underlays"][1] == {"subnets": ["192.168.40.0/21", "fd00:40::/64"], "port": 801, "direct": [], "nodes": []}
    assert (result["version"], result["min_uid"], result["group"]) == (1, 1000, "239.192.193.194")


def test_the_result_is_its_own_normal_form():
    assert site(site(SITE)) == site(SITE)


def test_null_means_default():
    assert site({**SITE, "ttl": None, "exempt": None}) == site(SITE)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({**SITE, "ttl": 0}, "hpc.uvn.site: ttl: 0 is not an integer from 1 to 255"),
        ({"underlays": None}, "hpc.uvn.site: the configuration: underlays is missing; it has no default"),
        ("login1", "hpc.uvn.site: the configuration: 'login1' is not a dictionary"),
    ],
)
def test_a_wrong_value_is_one_sentence_with_its_path(wrong, sentence):
    with pytest.raises(AnsibleFilterError) as error:
        site(wrong)
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


def profile(exempt: dict, min_uid: int = 1000) -> list:
    """The lines of the PAM profile as (control, module and options)."""
    configuration = {
        **SITE,
        "min_uid": min_uid,
        "ranges": [{"first": min_uid, "last": 60000, "index": 1}],
        "exempt": exempt,
    }
    template = (collection.ROOT / "roles/uvn_node/templates/pam-profile.j2").read_text()
    variables = {"uvn_node__site": site(configuration)}
    text = Templar(loader=DataLoader(), variables=variables).template(trust_as_template(template))
    head, lines = text.split("Session:\n")
    assert "Session-Interactive-Only" not in head  # its mere presence would leave out common-session-noninteractive
    return [tuple(line.strip().split("\t")) for line in lines.splitlines()]


def reaches_us(lines: list, user: str, uid: int, groups: tuple = ()) -> bool:
    """Walk the stack as libpam does (pam.conf(5)): a number jumps over so many lines, `ignore` goes on."""
    position = 0
    while position < len(lines):
        control, module = lines[position]
        if module == OURS:
            assert (control, position) == ("required", len(lines) - 1)
            return True
        assert module.startswith("pam_succeed_if.so quiet ")
        outcome = "success" if holds(module.split(" ", 2)[2], user, uid, groups) else "default"
        action = dict(part.split("=") for part in control.strip("[]").split(" "))[outcome]
        position += 1 + (0 if action == "ignore" else int(action))
    assert position == len(lines)  # past the end, libpam refuses
    return False


def holds(condition: str, user: str, uid: int, groups: tuple) -> bool:
    """pam_succeed_if(8)"""
    field, operator, value = condition.split(" ")
    if field == "user":
        return user == value if operator == "=" else value in groups
    return {"<": uid < int(value), "<=": uid <= int(value), ">=": uid >= int(value), "eq": uid == int(value)}[operator]


names = st.sampled_from(["anna", "bert", "carl", "dora"])
uids = st.integers(1, 70000)
ranges = st.tuples(uids, uids).map(lambda pair: "-".join(str(uid) for uid in sorted(pair)))


@given(
    users=st.lists(names, unique=True),
    groups=st.lists(names, unique=True),
    exempt=st.lists(st.one_of(uids.map(str), ranges)),
    who=st.tuples(names, uids, st.lists(names)),
    min_uid=st.integers(1, 50000),
)
def test_pam_asks_us_for_managed_accounts_and_only_for_them(users, groups, exempt, who, min_uid):
    lines = profile({"users": users, "groups": groups, "uids": exempt}, min_uid)
    user, uid, memberships = who
    bounds = [(int(text.split("-")[0]), int(text.split("-")[-1])) for text in exempt]
    managed = not (
        uid < min_uid
        or user in users
        or set(groups) & set(memberships)
        or any(first <= uid <= last for first, last in bounds)
    )
    assert reaches_us(lines, user, uid, tuple(memberships)) == managed
