# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel tests: run as root, on the machine itself or in a guest of the lab, against the kernel that is there."""

from __future__ import annotations

import os
import pathlib
import sys

import pytest

USERS = (2001, 2002, 2003)
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "plugins" / "module_utils"))


@pytest.fixture(scope="session", autouse=True)
def root():
    if os.geteuid() != 0:
        pytest.fail("kernel tests need root: run them in the lab's guest, or with sudo", pytrace=False)


@pytest.fixture(scope="module")
def lans():
    """The bridges that nodes are on."""
    from nodes import bridges

    bridges("add")
    yield
    bridges("delete")


@pytest.fixture(scope="module")
def host(lans):
    """A node with uvnd and a default route."""
    from daemon import LOG, Host

    LOG.unlink(missing_ok=True)
    node = Host("uvn-d", 71)
    node.sh("ip route add default via 10.10.0.1; ip -6 route add default via 2001:db8:10::1")
    node.start()
    yield node
    node.delete()


@pytest.fixture
def nobody(host):
    """A test begins without networks, with uvnd running and the site file as it was."""
    from daemon import configure
    from uvn import client

    yield
    configure(host.configuration)
    if host.uvnd is None:
        host.start()
    uids = [network["uid"] for network in client.request({"op": "status"})["networks"]]
    client.request({"op": "remove", "uids": [*uids, *USERS]})


@pytest.fixture
def crowd():
    """Sixty more accounts, by name."""
    accounts = {f"uvncrowd{number}": 3000 + number for number in range(1, 61)}
    passwd = pathlib.Path("/etc/passwd")
    before = passwd.read_text()
    passwd.write_text(before + "".join(f"{name}:x:{uid}:{uid}::/nonexistent:/bin/sh\n" for name, uid in accounts.items()))
    yield accounts
    passwd.write_text(before)


def pytest_collection_modifyitems(items):
    """The module vrf cannot be unloaded: what wants a kernel without it comes first."""
    items.sort(key=lambda item: "test_without_vrf" not in item.nodeid)
