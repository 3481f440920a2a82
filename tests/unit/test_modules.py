# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules: what they ask for, what they report, and that a failure is one sentence."""

from __future__ import annotations

import base64
import io
import json
import os
import zipfile

import collection
import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.hpc.uvn.plugins.action.uvn_files import ActionModule
from ansible_collections.hpc.uvn.plugins.module_utils import changes as rendering
from ansible_collections.hpc.uvn.plugins.module_utils.uvn.errors import UvnError
from ansible_collections.hpc.uvn.plugins.modules import uvn_files, uvn_host, uvn_info, uvn_user
from conftest import SITE
from hypothesis import given
from hypothesis import strategies as st

MADE = {"op": "create", "kind": "vrf", "name": "vrf1234", "table": 100001234}
MENDED = {**MADE, "op": "replace", "table": 7, "before": {"kind": "vrf", "name": "vrf1234", "table": 100001234}}
GONE = {**MADE, "op": "delete"}


@pytest.fixture
def run(capsys):
    """Run a module's main() with parameters; returns what it printed."""

    def call(module, check=False, **parameters):
        with patch_module_args({**parameters, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def uvnd(monkeypatch):
    """uvnd's half of a conversation: the requests it got; `reply` is its answer, an exception is raised."""

    class Uvnd:
        reply: object = {"ok": True, "changed": True, "changes": [MADE], "networks": [{"user": "alice"}]}

        def __init__(self):
            self.requests = []

        def __call__(self, message, timeout=None):
            self.requests.append(message)
            if isinstance(self.reply, Exception):
                raise self.reply
            return self.reply

    conversation = Uvnd()
    monkeypatch.setattr(uvn_user, "request", conversation)
    monkeypatch.setattr(uvn_info, "request", conversation)
    return conversation


# changes


def test_each_operation_is_on_its_sides_of_the_difference():
    diff = rendering.report([MADE, MENDED, GONE])["diff"]
    assert diff["after"] == "vrf vrf1234: table=100001234\nvrf vrf1234: table=7\n"
    assert diff["before"] == "vrf vrf1234: table=100001234\nvrf vrf1234: table=100001234\n"


def test_values_are_written_without_quotes():
    hop = {"device": "em1", "gateway": None}
    line = rendering.line({"kind": "route", "name": "::/0", "nexthops": [hop], "metric": 1})
    assert line == "route ::/0: metric=1 nexthops=[{device=em1, gateway=-}]"


@given(st.lists(st.sampled_from([MADE, GONE])))
def test_changed_and_diff_agree(changes):
    result = rendering.report(changes)
    assert result["changed"] == bool(changes) == bool(result["diff"]["before"] or result["diff"]["after"])


# uvn_user


def test_users_are_ensured_by_name_and_stay(run, uvnd):
    result = run(uvn_user, name=["alice", "bob"])
    assert uvnd.requests == [{"op": "ensure", "users": ["alice", "bob"], "persistent": True, "check": False}]
    assert result["changed"] and result["changes"] == [MADE] and result["networks"] == [{"user": "alice"}]


def test_users_are_removed_by_uid(run, uvnd):
    run(uvn_user, uid=1234, state="absent")
    assert uvnd.requests == [{"op": "remove", "uids": [1234], "check": False}]


def test_check_mode_is_the_daemons_business(run, uvnd):
    run(uvn_user, check=True, name="alice", persistent=False)
    assert uvnd.requests == [{"op": "ensure", "users": ["alice"], "persistent": False, "check": True}]


def test_nothing_to_do_is_not_changed(run, uvnd):
    uvnd.reply = {"ok": True, "changed": False, "changes": []}
    result = run(uvn_user, name="alice")
    assert not result["changed"] and result["networks"] == []


@pytest.mark.parametrize("who", [{}, {"name": "alice", "uid": 1234}])
def test_users_are_named_in_one_way(run, uvnd, who):
    assert run(uvn_user, **who)["failed"] and not uvnd.requests


@pytest.mark.parametrize("who", [{"name": []}, {"uid": []}])
def test_an_empty_list_is_nothing_to_do(run, uvnd, who):
    result = run(uvn_user, **who)
    assert not result["changed"] and result["changes"] == [] and not uvnd.requests


@pytest.mark.parametrize(("module", "parameters"), [(uvn_user, {"name": "alice"}), (uvn_info, {})])
def test_a_refusal_of_the_daemon_is_the_message(run, uvnd, module, parameters):
    uvnd.reply = UvnError("user 'alice' is unknown on this node; `getent passwd` must find the account")
    result = run(module, **parameters)
    assert result["failed"] and result["msg"] == str(uvnd.reply) and "exception" not in result


# uvn_info


def test_everything_is_gathered_by_default(run, uvnd):
    uvnd.reply = {"ok": True, "networks": [{"user": "alice"}], "node": {"drift": []}}
    result = run(uvn_info)
    assert uvnd.requests == [{"op": "status"}] and not result["changed"]
    assert result["networks"] == [{"user": "alice"}] and result["node"] == {"drift": []}
    assert result["versions"]["kernel"] == os.uname().release


def test_versions_need_no_daemon(run, uvnd):
    result = run(uvn_info, gather_subset=["versions"])
    assert "versions" in result and "node" not in result and not uvnd.requests


# uvn_host


@pytest.fixture
def reconciler(monkeypatch):
    """Stands in for the library's Reconciler, which needs a kernel to work on; `calls` are the calls of `node`."""

    class Change:
        def as_dict(self):
            return MADE

    class Reconciler:
        calls: list = []
        error = None

        def __init__(self, site):
            self.site = site

        open = uvn_host.Reconciler.__dict__["open"]  # the real one

        def close(self):
            pass

        def __enter__(self):
            if self.error:
                raise self.error
            self.calls.append("locked")
            return self

        def __exit__(self, *_exc):
            pass

        def consult(self):
            self.calls.append("consulted")

        def node(self, present, check):
            self.calls.append((self.site.as_dict()["underlays"][0]["port"], present, check))
            return [Change()]

    monkeypatch.setattr(uvn_host, "Reconciler", Reconciler)
    monkeypatch.setattr(Reconciler, "calls", [])
    return Reconciler


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("state", ["present", "absent"])
def test_the_node_is_reconciled_with_the_file(run, reconciler, tmp_path, state, check):
    path = tmp_path / "site.json"
    path.write_text(json.dumps(SITE))
    result = run(uvn_host, check=check, state=state, site=str(path))
    assert reconciler.calls == [*(["consulted"] if state == "present" else []), "locked", (800, state == "present", check)]
    assert result["changed"] and result["changes"] == [MADE]


def test_a_configuration_goes_before_the_file(run, reconciler):
    run(uvn_host, config=SITE, site="/nonexistent")
    assert reconciler.calls == ["consulted", "locked", (800, True, False)]


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"site": "/nonexistent"}, "/nonexistent: No such file or directory"),
        ({"config": {**SITE, "ttl": 0}}, "ttl: 0 is not an integer from 1 to 255"),
    ],
)
def test_a_wrong_site_is_one_sentence(run, reconciler, parameters, sentence):
    result = run(uvn_host, **parameters)
    assert result["failed"] and result["msg"].startswith(sentence) and not reconciler.calls


def test_a_missing_library_is_one_sentence(run, reconciler, monkeypatch):
    monkeypatch.setattr(reconciler, "error", UvnError("pyroute2 >= 0.7.2 is missing; install it"))
    assert run(uvn_host, config=SITE)["msg"] == "pyroute2 >= 0.7.2 is missing; install it"


# uvn_files


@pytest.fixture
def root(tmp_path):
    """A directory tree with one file that belongs there and what a former version left."""
    (tmp_path / "lib" / "__pycache__").mkdir(parents=True)
    for name in ("kept.py", "former.py", "__pycache__/former.cpython-311.pyc", "__pycache__/kept.cpython-311.pyc"):
        (tmp_path / "lib" / name).write_text("")
    return tmp_path


def tree(root) -> set:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def files(root, *entries, **parameters) -> dict:
    return {"files": [{**entry, "path": str(root / entry["path"])} for entry in entries], **parameters}


KEPT = {"path": "lib/kept.py", "content": "new\n"}
TOOL = {"path": "sbin/tool", "content": "#!/bin/sh\n", "mode": "0755"}


def test_files_are_written_once(run, root):
    parameters = files(root, KEPT, TOOL, directories=[str(root / "lib")])
    announced = run(uvn_files, check=True, **parameters)
    assert (root / "lib/kept.py").read_text() == "" and not (root / "sbin").exists()

    done = run(uvn_files, **parameters)
    assert (
        done["paths"]
        == announced["paths"]
        == [str(root / path) for path in ("lib/kept.py", "sbin/tool", "lib/former.py")]
    )
    assert done["diff"] == announced["diff"]
    assert (root / "lib/kept.py").read_text() == "new\n"
    assert (root / "sbin/tool").stat().st_mode & 0o7777 == 0o755
    assert tree(root) == {"lib/kept.py", "lib/__pycache__/kept.cpython-311.pyc", "sbin/tool"}

    assert not run(uvn_files, **parameters)["changed"]


def test_permissions_are_put_right(run, root):
    run(uvn_files, **files(root, TOOL))
    (root / "sbin/tool").chmod(0o777)
    result = run(uvn_files, **files(root, TOOL))
    assert result["paths"] == [str(root / "sbin/tool")]
    assert (result["diff"][0]["before"], result["diff"][0]["after"]) == (
        "mode 0777\n#!/bin/sh\n",
        "mode 0755\n#!/bin/sh\n",
    )


def test_a_symbolic_link_is_replaced_not_followed(run, root):
    victim = root / "victim"
    victim.write_text("precious")
    (root / "link").symlink_to(victim)
    run(uvn_files, **files(root, {"path": "link", "content": "ours"}))
    assert (
        victim.read_text() == "precious" and not (root / "link").is_symlink() and (root / "link").read_text() == "ours"
    )


def test_everything_is_taken_away(run, root):
    run(uvn_files, **files(root, KEPT, TOOL))
    result = run(uvn_files, **files(root, KEPT, TOOL, directories=[str(root / "lib")], state="absent"))
    assert len(result["paths"]) == 3
    assert tree(root) == set() and not (root / "lib").exists()
    assert not run(uvn_files, **files(root, KEPT, TOOL, directories=[str(root / "lib")], state="absent"))["changed"]


def test_binary_files_arrive_whole(run, root):
    content = bytes(range(256))
    entry = {"path": "object.o", "base64": base64.b64encode(content).decode()}
    result = run(uvn_files, **files(root, entry))
    assert (root / "object.o").read_bytes() == content
    assert result["diff"][0]["after"] == "mode 0644\n(256 bytes, not text)\n"


@pytest.mark.parametrize("entry", [{"path": "a"}, {"path": "a", "content": "", "base64": ""}])
def test_a_file_has_one_source(run, root, entry):
    assert run(uvn_files, **files(root, entry))["failed"]


def test_a_failure_names_the_file(run, root):
    result = run(uvn_files, **files(root, {"path": "lib/kept.py/below", "content": ""}))
    assert result["failed"] and "kept.py" in result["msg"]


GOOD_FIRST = ["/bin/sh", "-c", 'grep -q new "$0/lib/kept.py" || { echo "no new in $0/lib/kept.py" >&2; exit 3; }']


@pytest.mark.parametrize("check", [False, True])
def test_files_that_are_not_accepted_change_nothing(run, root, check):
    """The command sees the files where they will be, with their permissions, and none of them has changed yet."""
    command = [*GOOD_FIRST, f"%s{root}"]
    result = run(uvn_files, check=check, **files(root, TOOL, {**KEPT, "content": "bad\n"}, directories=[str(root / "lib")], validate=command))
    assert result["msg"] == f"the new files are not accepted, nothing was changed: no new in {root}/lib/kept.py"
    assert (root / "lib/kept.py").read_text() == "" and (root / "lib/former.py").exists() and not (root / "sbin").exists()
    accepted = run(uvn_files, check=check, **files(root, TOOL, KEPT, validate=command))
    assert accepted["changed"] and (root / "sbin").exists() != check


def test_nothing_is_validated_without_a_change_and_at_the_removal(run, root):
    run(uvn_files, **files(root, TOOL))
    assert not run(uvn_files, **files(root, TOOL, validate=["/bin/false"]))["changed"]
    assert run(uvn_files, **files(root, TOOL, validate=["/bin/false"], state="absent"))["changed"]


def test_a_file_is_whole_when_it_is_synced(run, root, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_size), fsync(descriptor)))
    run(uvn_files, **files(root, TOOL))
    assert synced == [len(TOOL["content"])]


def test_an_empty_file_is_a_file(run, root):
    entry = {"path": "lib/__init__.py", "base64": ""}
    assert run(uvn_files, **files(root, entry))["changed"] and (root / "lib/__init__.py").read_bytes() == b""


def test_the_controller_reads_files_and_directories():
    action = ActionModule.__new__(ActionModule)
    action._find_needle = lambda directory, name: str(collection.ROOT / "plugins/module_utils" / name)
    (single,) = action._expand({"path": "/etc/x", "src": "changes.py", "mode": "0600"})
    assert (
        single["path"] == "/etc/x" and single["mode"] == "0600" and b"def report" in base64.b64decode(single["base64"])
    )
    library = {entry["path"]: entry for entry in action._expand({"path": "/usr/lib/uvn/uvn", "src": "uvn"})}
    assert "/usr/lib/uvn/uvn/site.py" in library and all(path.endswith(".py") for path in library)
    assert list(action._expand({"path": "/etc/y", "content": "z"})) == [{"path": "/etc/y", "content": "z"}]


def archive(**members) -> str:
    """A zip archive in base64."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, text in members.items():
            file.writestr(name, text)
    return base64.b64encode(content.getvalue()).decode()


def test_a_wheel_is_unpacked_and_an_older_one_replaced(run, root):
    old = {"path": "lib", "unpack": True, "base64": archive(**{"pyroute2/a.py": "1", "pyroute2-0.7.2.dist-info/METADATA": "m"})}
    new = {**old, "base64": archive(**{"pyroute2/a.py": "1", "pyroute2/b/": "", "pyroute2-0.7.3.dist-info/METADATA": "m"})}
    directories = [str(root / "lib")]
    run(uvn_files, **files(root, KEPT, old, directories=directories))
    result = run(uvn_files, **files(root, KEPT, new, directories=directories))
    assert sorted(result["paths"]) == [str(root / f"lib/pyroute2-0.7.{version}.dist-info/METADATA") for version in (2, 3)]
    assert {"lib/pyroute2/a.py", "lib/pyroute2-0.7.3.dist-info/METADATA"} < tree(root) and not (root / "lib/pyroute2-0.7.2.dist-info").exists()
    assert not run(uvn_files, **files(root, KEPT, new, directories=directories))["changed"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(base64.b64encode(b"text").decode(), "File is not a zip file"), (archive(**{"../victim": ""}), "../victim would be outside of it")],
)
def test_what_is_no_usable_archive_is_refused(run, root, content, reason):
    before = tree(root)
    result = run(uvn_files, **files(root, KEPT, {"path": "lib", "unpack": True, "base64": content}))
    assert result["failed"] and reason in result["msg"] and tree(root) == before and (root / "lib/kept.py").read_text() == ""
