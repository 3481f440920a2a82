# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uvnd's protocol, the client and the PAM client, over real Unix sockets; what uvnd does with the kernel is in tests/kernel."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time

import pytest
from conftest import SITE
from hypothesis import given
from hypothesis import strategies as st
from uvn import accounts, daemon, login, service, site, store
from uvn.client import request
from uvn.errors import UvnError


@pytest.fixture
def answering(tmp_path):
    """A server that answers one connection with given bytes; yields a function that starts it and the lines it got."""
    received, threads = [], []

    def start(reply):
        path = str(tmp_path / "uvnd.sock")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen()

        def serve():
            connection, _address = listener.accept()
            with connection:
                received.append(connection.makefile("rb").readline())
                connection.sendall(reply)
            listener.close()

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return path

    yield start, received
    for thread in threads:
        thread.join()


def test_the_client_sends_a_line_and_returns_the_reply(answering):
    start, received = answering
    assert request({"op": "status"}, start(b'{"ok": true, "networks": []}\n')) == {"ok": True, "networks": []}
    assert json.loads(received[0]) == {"op": "status"}


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [(b'{"ok": false, "error": "no such user"}\n', "^no such user$"), (b'{"ok"', "does not answer"), (b"", "does not answer")],
)
def test_the_client_raises_what_uvnd_says_or_that_it_says_nothing(answering, reply, sentence):
    start, _received = answering
    with pytest.raises(UvnError, match=sentence):
        request({"op": "status"}, start(reply))


def test_nobody_listens(tmp_path):
    with pytest.raises(UvnError, match="systemctl status uvnd.socket"):
        request({"op": "status"}, str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("reply", "status", "said"),
    [
        (b'{"ok": true, "changed": false}\n', 0, ""),
        (b'{"ok": false, "error": "the map is full"}\n', 1, "the map is full"),
        (b"", 1, "uvnd ended before it answered"),
    ],
)
def test_a_login_is_let_in_only_when_uvnd_says_so(answering, monkeypatch, capsys, reply, status, said):
    start, received = answering
    monkeypatch.setattr(login, "SOCKET", start(reply))
    monkeypatch.setenv("PAM_USER", "alice")
    assert login.main() == status
    assert json.loads(received[0]) == {"op": "ensure", "brief": True, "user": "alice"}, "the directory knows no alice"
    assert said in capsys.readouterr().out


def test_a_login_brings_along_what_the_directory_says_and_asks_it_once(answering, monkeypatch):
    asked = []
    start, received = answering
    monkeypatch.setattr(login, "SOCKET", start(b'{"ok": true}\n'))
    monkeypatch.setenv("PAM_USER", "root")
    monkeypatch.setattr(login.os, "getgrouplist", lambda *arguments: asked.append(arguments) or [0, 10])
    assert login.main() == 0
    brought = [{"name": "root", "uid": 0, "gids": [0, 10]}]
    assert json.loads(received[0]) == {"op": "ensure", "brief": True, "user": "root", "accounts": brought}
    assert asked == [("root", 0)]
    assert service.introduced({"accounts": brought}) == [accounts.Account(0, "root", frozenset({0, 10}))]


def test_a_login_says_whom_pam_found_in_an_exempt_group(answering, monkeypatch, capsys):
    start, received = answering
    monkeypatch.setattr(login, "SOCKET", start(b'{"ok": false, "error": "the map is full"}\n'))
    monkeypatch.setattr(login, "EXEMPT", True)
    monkeypatch.setenv("PAM_USER", "root")
    login.main()
    (account,) = service.introduced(json.loads(received[0]))
    assert (account.uid, account.exempt) == (0, True) and account.is_exempt(site.parse(SITE), ())
    assert "the map is full" in capsys.readouterr().out


def test_the_client_brings_along_what_the_directory_says(answering):
    start, received = answering
    request({"op": "ensure", "users": ["root"], "uid": 3999999999}, start(b'{"ok": true}\n'))
    (brought,) = json.loads(received[0])["accounts"]
    assert (brought["name"], brought["uid"], 0 in brought["gids"]) == ("root", 0, True)


@pytest.mark.parametrize("name", ["no-such-account", "nul\0byte", "\ud800"])
def test_the_client_refuses_a_name_that_is_no_account_s(name):
    with pytest.raises(UvnError, match="is unknown on this node"):
        request({"op": "ensure", "user": name}, "/nonexistent")


def test_the_client_leaves_an_account_to_uvnd_that_the_directory_says_nothing_of(answering, monkeypatch):
    def silent(name):
        raise accounts.Silent(name)

    start, received = answering
    monkeypatch.setattr(accounts, "by_name", silent)
    request({"op": "ensure", "user": "alice"}, start(b'{"ok": true}\n'))
    assert json.loads(received[0]) == {"op": "ensure", "user": "alice"}


def test_a_login_without_uvnd_is_refused_with_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(login, "SOCKET", str(tmp_path / "none"))
    monkeypatch.setenv("PAM_USER", "alice")
    assert login.main() == 1
    assert "uvnd does not answer" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", 'a"b', "a/b", "a:b", "a\nb"])
def test_a_login_of_an_impossible_name_asks_nobody(monkeypatch, capsys, name):
    monkeypatch.setattr(login, "SOCKET", "/nonexistent")
    monkeypatch.setenv("PAM_USER", name)
    assert login.main() == 1
    assert "not acceptable" in capsys.readouterr().out


BAD_TARGETS = [
    ({}, "names nobody"),
    ({"users": []}, "names nobody"),
    ({"user": "no-such-account"}, "unknown on this node"),
    ({"user": 7}, "not an account name"),
    ({"uid": "7"}, "not a UID"),
    ({"uids": [True]}, "not a UID"),
    ({"user": "nul\0byte"}, "unknown on this node"),
]


@pytest.mark.parametrize(("message", "sentence"), BAD_TARGETS)
def test_bad_targets_are_refused(message, sentence):
    with pytest.raises(UvnError, match=sentence):
        service.targets(message)


@pytest.mark.parametrize("message", [{"op": "show", "uids": [7, 8]}, {"op": "ensure", "uids": [7, 8], "job": 1}])
def test_what_is_for_one_user_is_refused_for_two(message):
    assert service.Service(Unconfigured()).handle(message) == {"ok": False, "error": "the request names 2 users; give one"}


@pytest.mark.parametrize("job", ["1", None, True, 1.0])
def test_a_job_is_a_number(job):
    reply = service.Service(Unconfigured()).handle({"op": "ensure", "uid": 7, "job": job})
    assert reply == {"ok": False, "error": f"job is {job!r}; give the PID of a slurmstepd"}


def test_targets_are_counted_once():
    assert service.targets({"user": "root", "uids": [0, 7], "uid": 7, "accounts": [{"uid": 0, "name": "root"}]}) == [0, 7]


def test_a_name_of_which_the_directory_says_nothing_is_that_of_the_login_before(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "READY", str(tmp_path))
    store.vouch(2001, "alice")
    assert service.targets({"user": "alice"}) == [2001]
    assert service.targets({"user": "alice", "accounts": [{"uid": 3001, "name": "alice"}]}) == [3001]


@pytest.mark.parametrize(
    "brought",
    [7, {"uid": 7}, [7], [{}], [{"uid": "7"}], [{"uid": True}], [{"uid": -1}], [{"uid": 2**32 - 1}], [{"uid": 7, "name": 7}], [{"uid": 7, "gids": 7}]]
    + [[{"uid": 7, "gids": [gid]}] for gid in (None, "7", -1, 7.0, [])]
    + [[{"uid": 7, "exempt": 1}], [{"uid": 7, "home": "/"}]],
)
@pytest.mark.parametrize("operation", ["ensure", "remove", "show"])
def test_accounts_that_are_none_are_refused_with_a_sentence(operation, brought):
    reply = service.Service(Unconfigured()).handle({"op": operation, "uid": 7, "accounts": brought})
    assert reply["ok"] is False
    assert ("; give a list" if not isinstance(brought, list) else " is not an account; ") in reply["error"]


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3), max_leaves=5)


class Unconfigured:
    """A node whose site file is missing."""

    def reconciler(self):
        return site.load("/nonexistent/site.json")

    in_force = reconciler


KEYS = ["user", "uid", "users", "uids", "check", "persistent", "brief", "job", "accounts"]
UIDS = st.fixed_dictionaries({"uids": st.lists(st.integers(), max_size=3)})


@given(st.sampled_from(["ensure", "remove", "show", "status"]) | VALUES, st.dictionaries(st.sampled_from(KEYS), VALUES) | UIDS)
def test_any_message_gets_a_reply_that_is_no_fault_of_uvnd(operation, message):
    reply = service.Service(Unconfigured()).handle({"op": operation, **message})
    assert reply["ok"] is False and "uvnd failed" not in reply["error"]


@given(st.binary(max_size=200))
def test_any_bytes_leave_the_daemon_running(data):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        try:
            assert daemon.line(ours).endswith(b"\n")
        except ValueError:
            assert not data.endswith(b"\n")


class Echo:
    """A service that answers everything."""

    def handle(self, message):
        return {"ok": True, **message}


def test_bad_clients_cost_a_bounded_time_each_and_the_next_one_is_served(tmp_path, monkeypatch):
    """Silent, endless, gone before the answer, broken: one after the other in front of a good one."""
    monkeypatch.setattr(daemon, "REQUEST_TIMEOUT", 0.2)
    monkeypatch.setattr(daemon, "REQUEST_MAX", 2**17)
    dropped = []
    monkeypatch.setattr(daemon, "log", lambda text, error=False: dropped.append(text))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(tmp_path / "uvnd.sock"))
        listener.listen()
        listener.settimeout(5)

        def client(data):
            one = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            one.connect(listener.getsockname())
            one.setblocking(False)
            one.send(data)
            return one

        for data in (b" ", b"x" * 2**17 + b"xx", b"[1]\n", b"{\n", b"\xff\n", b"[" * 99999 + b"\n"):
            client(data)
        client(b'{"op": "gone"}\n').close()
        good = client(b'{"op": "status"}\n')
        start = time.monotonic()
        daemon._serve_waiting(Echo(), listener)
        assert time.monotonic() - start < 5
        assert json.loads(good.recv(1000)) == {"ok": True, "op": "status"}
        assert len(dropped) == 7 and all(text.startswith("request dropped: ") for text in dropped)


def test_a_ready_file_is_withdrawn_under_every_name(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "READY", str(tmp_path))
    for name, uid in (("alice", 2001), ("alias", 2001), ("bob", 2002), ("../evil", 2001), (None, 2001)):
        store.vouch(uid, name)
    store.withdraw(2001)
    assert os.listdir(tmp_path) == ["bob"]


def test_names_that_now_belong_to_another_uid_ask_again(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "READY", str(tmp_path))
    for name, uid in (("alice", 2001), ("bob", 2002), ("left", 2003), ("silence", 2004)):
        store.vouch(uid, name)
    store.withdraw_strangers({"alice": 2001, "bob": 3002, "left": None})
    assert sorted(os.listdir(tmp_path)) == ["alice", "silence"]
