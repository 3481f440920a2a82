# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role's scripts print of a node can be read, whatever names others gave: users their programs, the site its files."""

from __future__ import annotations

import json
import re
import subprocess

import collection
import pytest
import yaml
from ansible_collections.hpc.uvn.plugins.filter.preflight import FilterModule
from conftest import SITE
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_preflight import FOUND, NETWORK

preflight = FilterModule().filters()["preflight"]
FILES = collection.ROOT / "roles" / "uvn_node" / "files"


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A function: write files of a node, run a script of the role there, and return what it printed."""
    root = tmp_path_factory.mktemp("node")
    (root / "bin").mkdir()
    (root / "pam.d").mkdir()

    def run(script, *arguments, programs=None, **files):
        for name, answer in (programs or {}).items():
            (root / f"{name}.answer").write_bytes(answer)
            (root / "bin" / name).write_text(f"#!/bin/sh\ncat '{root}/{name}.answer'\n")
            (root / "bin" / name).chmod(0o755)
        for name, content in files.items():
            (root / name).write_bytes(content)
        text = (FILES / script).read_text().replace("PATH=/", f"PATH={root}/bin:/", 1)
        text = text.replace("/etc/os-release", f"{root}/os-release").replace("/etc/pam.d/", f"{root}/pam.d/")
        done = subprocess.run(["/bin/sh", "-s", *arguments], input=text.encode(), capture_output=True, check=True, cwd="/")
        return done.stdout.decode("utf-8", "surrogateescape")  # as Ansible reads it

    return run


def sockets(node, *lines):
    """The sockets that `network.sh` prints when `ss` prints these lines."""
    return json.loads(node("network.sh", programs={"ss": b"".join(lines), "ip": b"[]", "nft": b"{}"}))["sockets"]


def socket_of(name, port=b"800"):
    return b"UNCONN 0      0      0.0.0.0:" + port + b"    0.0.0.0:*    users:((\"" + name + b"\",pid=7,fd=3))\n"


NAMES = st.lists(st.sampled_from([*b"\n\r\t \"\\'\x1b\x01:,)(*ESTAB0", 0xFF, 0xC2, 0x9B]) | st.integers(1, 255), min_size=1, max_size=15).map(bytes)


@settings(max_examples=20)
@given(NAMES)
@example(b"a\x01b\x1b[31m")
@example(b"\nESTAB 0 0 *:800")
@example(b"\nU 0 0 *:800 ")
@example(b'"\\u0000')
def test_a_program_may_have_any_name(node, name):
    """Its socket on an underlay's port is in the way, any other is not, and what is said of it is fit for a terminal."""
    read = sockets(node, socket_of(name, b"5000"), socket_of(name, b"801"))
    (finding,) = preflight(FOUND, SITE, network={**NETWORK, "sockets": read})
    assert finding.startswith("the UDP port 801, which is the port of an underlay, is in use by ")
    assert "a socket of the kernel" not in finding and finding.isprintable() and all(map(str.isprintable, read))


def test_what_two_programs_names_make_together_is_no_socket(node):
    forged = b'UNCONN 0 0 0.0.0.0:5000 0.0.0.0:* users:(("\nESTAB 0 0 a:9 ",pid=3,fd=3),("b:* z",pid=4,fd=3))\n'
    site = {**SITE, "underlays": [{"subnets": ["192.168.80.0/21"], "port": 9}]}
    assert preflight(FOUND, site, network={**NETWORK, "sockets": sockets(node, forged)}) == []


SPECIAL = [*b"'\"\\{}[]#:&*!|>%@`, \t\x1b\x7f", 0xC2, 0x85, 0xEF, 0xBF, 0xBE, 0xFF]
TEXTS = st.lists(st.sampled_from(SPECIAL) | st.integers(1, 255), max_size=9).map(bytes)


@settings(max_examples=60)
@given(st.lists(TEXTS.filter(lambda text: b"\n" not in text), min_size=1, max_size=20))
@example([b"\xef\xbf\xbe", b"\xc2\x85", b"\xed\xa0\x80", b"\xf4\xbf\x85\x80", b"j\xfcrgen"])
@example([b"'", b"null", b"- a: b # c", "DOM\\jürgen".encode(), b""])
def test_every_text_is_a_string_of_yaml(texts):
    """Each line is one string, and what is printable is in it as it was."""
    script = (FILES / "observe.sh").read_text()
    function = script[script.index("strings() {") : script.index("\n}\n", script.index("strings() {")) + 3]
    command = ["/bin/sh", "-c", f"LC_ALL=C; export LC_ALL\n{function}strings | sed 's/^/- /'"]
    done = subprocess.run(command, input=b"".join(text + b"\n" for text in texts), capture_output=True, check=True)
    read = yaml.safe_load(done.stdout.decode("utf-8", "surrogateescape"))
    assert len(read) == len(texts)
    for text, string in zip(texts, read):
        assert string == re.sub("[\0-\x1f\x7f-\x9f\ufffe\uffff]", "", text.decode("utf-8", "ignore"))


def observe(node, files):
    return yaml.safe_load(node("observe.sh", "build", "/etc/slurm/plugstack.conf.d", **files))


@pytest.mark.parametrize("name", ["Bob's Linux", "a: b # c", "Linux \\ 9", "Línux", "'"])
def test_a_distribution_may_have_any_name(node, name):
    quoted = name.replace("\\", "\\\\")
    assert observe(node, {"os-release": f'ID=debian\nPRETTY_NAME="{quoted}"\n'.encode()})["os"] == name


def test_pam_may_have_any_line(node):
    files = {"os-release": b"ID=debian\n", "pam.d/common-session-noninteractive": b""}
    line = "session\t[success=1 default=ignore]  pam_succeed_if.so user = DOM\\jürgen's # x".encode()
    found = observe(node, {**files, "pam.d/common-session": line + b"\x01\xfc\n"})
    assert found["pam"] == {"common-session": [" ".join(line.decode().split())], "common-session-noninteractive": None}
    assert isinstance(found["kernels"], dict)  # an image may have none
