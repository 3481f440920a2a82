# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uvnd's protocol, the client and the PAM client, over real Unix sockets; what uvnd does with the kernel is in tests/kernel."""

from __future__ import annotations

import json
import os
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvn import login, service, store
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
    assert json.loads(received[0]) == {"op": "ensure", "user": "alice"}
    assert said in capsys.readouterr().out


def test_a_login_without_uvnd_is_refused_with_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(login, "SOCKET", str(tmp_path / "none"))
    monkeypatch.setenv("PAM_USER", "alice")
    assert login.main() == 1
    assert "uvnd does not answer" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", 'a"b', "a/b", "a\\b", "a\nb"])
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


def test_targets_are_counted_once():
    assert service.targets({"user": "root", "uids": [0, 7], "uid": 7}) == [0, 7]


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3), max_leaves=5)


@given(st.dictionaries(st.sampled_from(["op", "user", "uid", "users", "uids", "check", "persistent"]), VALUES))
def test_any_message_gets_a_reply(message):
    reply = service.Service("/nonexistent/site.json").handle(message)
    assert reply["ok"] is False and reply["error"]


@given(st.binary(max_size=200))
def test_any_bytes_leave_the_daemon_running(data):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        try:
            assert service._line(ours).endswith(b"\n")
        except ValueError:
            assert not data.endswith(b"\n")


def address_event(kind, index):
    body = service.IFADDR.pack(2, 24, 0, 0, index)
    return service.NLMSG.pack(service.NLMSG.size + len(body), kind, 0, 0, 0) + body


def link_event(kind, index, changed):
    body = service.IFINFO.pack(0, 1, index, 0x1043, changed)
    return service.NLMSG.pack(service.NLMSG.size + len(body), kind, 0, 0, 0) + body


EVENTS = {
    "an address of a NIC goes": (address_event(21, 2), True),
    "an address of a NIC comes": (address_event(20, 2), True),
    "an address of a user's device": (address_event(21, 99), False),
    "a NIC goes down": (link_event(16, 2, 1), True),
    "a NIC gets a VXLAN on top": (link_event(16, 2, 0), False),
    "a NIC is deleted": (link_event(17, 2, 0), True),
    "a user's device is deleted": (link_event(17, 99, 0xFFFFFFFF), False),
    "the second of two messages": (address_event(20, 99) + address_event(21, 2), True),
}


@pytest.mark.parametrize(("data", "expected"), EVENTS.values(), ids=EVENTS.keys())
def test_events_that_may_have_taken_routes_along(data, expected):
    assert service.concerns(data, {2, 3}) is expected


def test_a_ready_file_is_withdrawn_under_every_name(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "READY", str(tmp_path))
    for name, uid in (("alice", 2001), ("alias", 2001), ("bob", 2002), ("../evil", 2001), (None, 2001)):
        store.vouch(uid, name)
    store.withdraw(2001)
    assert os.listdir(tmp_path) == ["bob"]
