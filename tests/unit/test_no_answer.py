# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An error of the kernel's is not taken for "there is no such thing": what is there would be made once more, or left."""

from __future__ import annotations

import errno
import subprocess
from types import SimpleNamespace

import pytest
from uvn import bpf, kernel, lsm, nat
from uvn.errors import UvnError
from uvn.objects import Sysctl


def test_a_sysctl_that_cannot_be_read_is_not_absent():
    assert kernel.sysctls([Sysctl("net/no/such/thing", "1", optional=True)]) == [Sysctl("net/no/such/thing", "1", optional=True)]
    with pytest.raises(UvnError, match="^cannot read the sysctl net: Is a directory$"):
        kernel.sysctls([Sysctl("net", "1", optional=True)])


@pytest.mark.parametrize("code", bpf._NO_CLASSIFIER)
def test_no_classifier(monkeypatch, code):
    monkeypatch.setattr(bpf, "libbpf", lambda: SimpleNamespace(bpf_tc_query=lambda _hook, _options: code))
    assert bpf.Classifier(2).program() is None


def test_a_classifier_that_cannot_be_asked_for_is_not_absent(monkeypatch):
    monkeypatch.setattr(bpf, "libbpf", lambda: SimpleNamespace(bpf_tc_query=lambda _hook, _options: -errno.EPERM))
    with pytest.raises(UvnError, match="cannot look for a classifier: Operation not permitted"):
        bpf.Classifier(2).program()


def test_security_modules_that_cannot_be_read_are_not_absent(monkeypatch, tmp_path):
    monkeypatch.setattr(lsm, "ACTIVE", str(tmp_path / "lsm"))
    assert not lsm.possible()
    (tmp_path / "lsm").mkdir()
    with pytest.raises(UvnError, match=f"^cannot read {tmp_path}/lsm: Is a directory; "):
        lsm.possible()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FileNotFoundError(), "^/usr/sbin/modprobe is missing; install the package kmod$"),
        (subprocess.TimeoutExpired("modprobe", 60), "^/usr/sbin/modprobe did not end within 60 s; "),
    ],
)
def test_a_modprobe_that_does_not_answer_is_no_missing_module(monkeypatch, error, sentence):
    def run(*_arguments, **_options):
        raise error

    monkeypatch.setattr(nat.os.path, "exists", lambda _path: True)
    monkeypatch.setattr(nat.subprocess, "run", run)
    with pytest.raises(UvnError, match=sentence):
        nat.versions()
