# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A site file that cannot be used, while uvnd runs: nobody is locked out, requests say so, and the journal is told once."""

from __future__ import annotations

import json
import socket
import types

import pytest
from conftest import SITE
from uvn import keeper, service
from uvn.errors import UvnError


class Reconciler:
    """One that finds nothing to do."""

    held = False

    def __init__(self, site, *_options):
        self.site = site
        self.kernel = types.SimpleNamespace(devices=lambda *_kinds: {})

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        pass

    def close(self):
        pass

    def is_exempt(self, _uid):
        return False


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "site.json"
    file.write_text(json.dumps({**SITE, "ttl": 7}))
    return file


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(keeper, "log", lambda text, error=False: lines.append(text))
    return lines


@pytest.fixture
def kept(path, said, monkeypatch):
    """A Keeper of the file that asks no kernel."""
    monkeypatch.setattr(keeper, "Reconciler", Reconciler)
    monkeypatch.setattr(keeper.events, "listen", lambda: socket.socketpair()[0])
    monkeypatch.setattr(keeper.events, "listen_to_nftables", lambda: socket.socketpair()[0])
    return keeper.Keeper(str(path))


def spoil(path, text="{'version': 1}"):
    """Replace the file in one step."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_the_last_good_configuration_stays_in_force(kept, path, said):
    assert kept.in_force().site.ttl == 7
    for text in ("{'version': 1}", json.dumps({**SITE, "ttl": 0})):
        spoil(path, text)
        assert kept.in_force().site.ttl == 7
        with pytest.raises(UvnError, match="site.json: "):
            kept.reconciler()
    path.unlink()
    assert kept.in_force().site.ttl == 7
    spoil(path, json.dumps({**SITE, "ttl": 9}))
    assert kept.in_force().site.ttl == kept.reconciler().site.ttl == 9


def test_the_journal_is_told_once_for_each_file(kept, path, said):
    kept.in_force()
    for count, text in enumerate(("{", "{", "[]", None), start=1):
        spoil(path, text) if text else path.unlink()
        for _time in range(20):
            kept.in_force()
        assert len(said) == count and all(line.startswith(f"{path}: ") for line in said)


def test_the_journal_is_reminded_after_a_long_time(kept, path, said, monkeypatch):
    kept.in_force()
    spoil(path)
    kept.in_force()
    now = keeper.time.monotonic()
    monkeypatch.setattr(keeper.time, "monotonic", lambda: now + keeper.REMIND + 1)
    kept.in_force(), kept.in_force()
    assert len(said) == 2


def test_without_a_good_file_from_before_there_is_none(kept, path):
    spoil(path)
    with pytest.raises(UvnError, match="not a complete JSON document"):
        kept.in_force()


def test_logins_go_on_and_what_an_administrator_asks_for_is_refused(kept, path, said, monkeypatch):
    kept.in_force()
    spoil(path)
    monkeypatch.setattr(service, "log", lambda text, error=False: None)
    monkeypatch.setattr(service, "vouched", lambda: {"alice": 2001})
    uvnd = service.Service(kept)
    assert uvnd.handle({"op": "ensure", "brief": True, "uid": 2001}) == {"ok": True}
    for message in ({"op": "ensure", "uid": 2001}, {"op": "remove", "uid": 2001}, {"op": "show", "uid": 2001}, {"op": "status"}):
        assert uvnd.handle(message)["error"].startswith(f"{path}: not a complete JSON document")
