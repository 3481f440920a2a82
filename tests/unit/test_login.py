# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The PAM program: names that are paths never reach the file test, and only the opening of a session is looked at."""

import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "roles" / "uvn_node" / "files" / "uvn-login"


def login(user: str, kind: str = "open_session") -> "subprocess.CompletedProcess[str]":
    environment = {"PAM_TYPE": kind, "PAM_USER": user}
    return subprocess.run(["/bin/sh", str(PROGRAM)], env=environment, capture_output=True, text=True, timeout=60, check=False)


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
