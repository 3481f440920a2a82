# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The PAM program: names that are paths never reach the file test, and only the opening of a session is looked at.

What an account may be called is one rule, login.acceptable; that uvn-login and all others go by it is tested here.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import SITE
from hypothesis import example, given
from hypothesis import strategies as st
from uvn import login as client
from uvn import site, store
from uvn.errors import UvnError

PROGRAM = Path(__file__).resolve().parents[2] / "roles" / "uvn_node" / "files" / "uvn-login"


def login(user: str, kind: str = "open_session", program: Path = PROGRAM, shell: str = "/bin/sh") -> "subprocess.CompletedProcess[str]":
    environment = {"PAM_TYPE": kind, "PAM_USER": user, "LC_ALL": "de_DE.ISO-8859-1"}
    command = [*shell.split(), str(program)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, errors="surrogateescape", timeout=60, check=False)


@pytest.mark.parametrize("user", ["", ".", "..", ".hidden", "/", "../ready/alice", "alice/../bob", "/etc/passwd"])
def test_a_name_that_is_a_path_is_refused(user):
    done = login(user)
    assert (done.returncode, done.stdout) == (1, f"UVN: '{user}' is not an account name; tell your administrator\n")


@pytest.mark.parametrize("user", ["no such account", "alice\nbob", "a" * 300, '"', "-L"])
def test_a_name_without_a_network_is_refused(user):
    """Where there is no network for the name, nothing lets it in: neither the file test nor what comes after it."""
    assert login(user).returncode != 0


def test_the_end_of_a_session_is_not_looked_at():
    assert login("../x", "close_session").returncode == 0


# Bytes that getent could print, as Python sees them; those that matter to a path, a shell, JSON or a terminal come often.
NAMES = st.lists(st.sampled_from([*b"/.-:\\\"'@ $`*?[]#%~ab\n\t\x7f\x1b", 0xC3, 0xA9, 0xFF]) | st.integers(1, 255), max_size=9).map(bytes)
GOOD = ["alice", "DOM\\alice", "first last", "alice@realm.example", "jürgen", "太郎", "a'b", "$(id)", "`id`", "*", "a.b-c", "HOST$"]
GOOD += ["a" * 255, "ü" * 127]
WRONG = ["", ".", "..", ".a", "-a", "a/b", "a:b", 'a"b', "a\nb", "a\tb", "a\x1bb", "a\x7f", "a" * 256, "ü" * 128]


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """uvn-login with another ready directory, and a stand-in for what comes after the file test: it prints `asks uvnd`."""
    root = tmp_path_factory.mktemp("login")
    (root / "ready").mkdir()
    text = PROGRAM.read_text()
    client_program = 'exec ${1:+timeout 30} /usr/bin/python3 -IS /usr/lib/uvn/uvn/login.py "$@"'
    for old, new in (("/run/uvn/ready/", f"{root}/ready/"), (client_program, "echo asks uvnd; exit 3")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (root / "uvn-login").write_text(text)
    return root


@given(NAMES)
@example("DOM\\alice".encode())
@example("jürgen".encode())
@example(b"j\xfcrgen")
@example(b"a" * 256)
def test_every_name_is_accepted_or_refused_everywhere(asked, name):
    name = os.fsdecode(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "READY", str(asked / "ready"))
        assert store.vouched() == {}
        store.vouch(2001, name)
        ready = store.vouched()
        warm = login(name, program=asked / "uvn-login")
        store.withdraw(2001)
        assert store.vouched() == {}
        cold = login(name, program=asked / "uvn-login")
    try:
        exempt = site.parse({**SITE, "exempt": {"users": [name], "groups": [name]}}).exempt
    except UvnError as error:
        exempt = None
        assert "is not an account name" in str(error)
    if client.acceptable(name):
        assert ready == {name: 2001} and (warm.returncode, cold.stdout) == (0, "asks uvnd\n") and exempt.users == exempt.groups == (name,)
    else:
        assert ready == {} and exempt is None
        assert all(done.returncode == 1 and done.stdout.endswith("' is not an account name; tell your administrator\n") for done in (warm, cold))


@pytest.mark.parametrize("name", GOOD)
def test_names_of_directories_are_accepted(name):
    assert client.acceptable(name)


@pytest.mark.parametrize("name", [*WRONG, "\ud800", "a\0b"])
def test_dangerous_names_are_refused(name):
    assert not client.acceptable(name)


@pytest.mark.parametrize("shell", ["dash", "bash --posix", "busybox sh"])
@pytest.mark.parametrize("name", [*GOOD, *WRONG])
def test_every_shell_that_may_be_sh_goes_by_the_rule(asked, shell, name):
    done = login(name, program=asked / "uvn-login", shell=shell)
    assert (done.stdout == "asks uvnd\n") == client.acceptable(name)


@given(NAMES.filter(lambda name: client.acceptable(os.fsdecode(name))))
@example("DOM\\alice".encode())
@example("太郎 😀".encode())
@example(b"j\xfcrgen")
def test_uvnd_is_asked_for_the_very_name(name):
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAM_USER", os.fsdecode(name))
        patch.setattr(client, "ask", lambda message: asked.append(message.encode()) or b'{"ok": true}')
        assert client.main() == 0
    (message,) = asked
    assert message.endswith(b"\n") and message.count(b"\n") == 1
    assert json.loads(message) == {"op": "ensure", "brief": True, "user": os.fsdecode(name)}
    assert os.fsencode(json.loads(message)["user"]) == name


def test_a_refusal_names_what_is_no_utf8(monkeypatch, capsys):
    monkeypatch.setenv("PAM_USER", "j\udcfcrgen")
    monkeypatch.setattr(client, "SOCKET", "/nonexistent")
    assert client.main() == 1
    assert "no private network for j\\udcfcrgen: uvnd does not answer" in capsys.readouterr().out


def test_what_is_no_link_of_ours_is_nobodys(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "READY", str(tmp_path))
    (tmp_path / "alice").touch()
    (tmp_path / "bob").mkdir()
    (tmp_path / "carol").symlink_to("somewhere")
    store.vouch(2004, "dora")
    assert store.vouched() == {"dora": 2004}
    store.withdraw(2004)
    assert sorted(os.listdir(tmp_path)) == ["alice", "bob", "carol"]
