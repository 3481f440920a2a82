# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The BPF objects that are shipped are those that the sources give (needs make, clang, llvm and libbpf-dev)."""

from __future__ import annotations

import ctypes
import os
import pathlib
import re
import shutil
import subprocess

import pytest
from uvn import ingress, lsm, membership, plan, site

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = ROOT / "roles" / "uvn_node" / "files"
OBJECTS = {
    "membership.bpf.o": (membership.LINKS, membership.MAPS),
    **{programs.file: (programs.links, programs.maps) for programs in (lsm.STAY, lsm.USERS)},
    "ingress.bpf.o": ((ingress.CLASSIFIER, *ingress.PROGRAMS), (*ingress.SHARED, *ingress.MAPS)),
}
PROPERTIES = ("type", "key_size", "value_size", "max_entries", "map_flags")


def run(*command):
    if shutil.which(command[0]) is None:
        pytest.fail(f"{command[0]} is missing: install make, clang, llvm and libbpf-dev", pytrace=False)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpf")
    run("make", "-C", ROOT / "bpf", f"OUT={path}")
    return path


def instructions(path):
    """Disassembly with relocations, without the line that names the file."""
    return run("llvm-objdump", "-dr", path).split("Disassembly", 1)[1]


def maps(path, names):
    """{map: definition}, as libbpf reads them from BTF."""
    lib = ctypes.CDLL("libbpf.so.1")
    lib.bpf_object__open_file.restype = lib.bpf_object__find_map_by_name.restype = ctypes.c_void_p
    lib.bpf_object__find_map_by_name.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    bpf_object = lib.bpf_object__open_file(os.fsencode(path), None)
    assert bpf_object, f"libbpf does not open {path}"
    definitions = {}
    for name in names:
        bpf_map = lib.bpf_object__find_map_by_name(bpf_object, name.encode())
        assert bpf_map, f"{path} has no map {name}"
        definitions[name] = {p: getattr(lib, f"bpf_map__{p}")(ctypes.c_void_p(bpf_map)) for p in PROPERTIES}
    lib.bpf_object__close(ctypes.c_void_p(bpf_object))
    return definitions


@pytest.mark.parametrize("name", OBJECTS)
def test_instructions_are_those_of_the_source(rebuilt, name):
    programs, _maps = OBJECTS[name]
    shipped = instructions(FILES / name)
    assert all(f"<{program}>" in shipped for program in programs)
    assert instructions(rebuilt / name) == shipped, (
        f"built with {run('clang', '--version').splitlines()[0]}; after a change of the source or the compiler "
        "run `make -B -C bpf` and commit the objects"
    )


@pytest.mark.parametrize("name", OBJECTS)
def test_maps_are_those_of_the_source(rebuilt, name):
    _programs, names = OBJECTS[name]
    shipped = maps(FILES / name, names)
    assert shipped["uvn_uid"] == {
        "type": 11,  # BPF_MAP_TYPE_LPM_TRIE
        "key_size": 8,
        "value_size": 4,
        "max_entries": 65536,
        "map_flags": 1,  # BPF_F_NO_PREALLOC
    }
    assert maps(rebuilt / name, names) == shipped, "run `make -B -C bpf` and commit the objects"


@pytest.mark.parametrize("name", OBJECTS)
def test_debug_information_is_stripped_and_names_no_directory(name):
    sections = run("llvm-readelf", "-S", FILES / name)
    assert ".BTF" in sections and ".debug" not in sections
    assert ".rodata" not in sections, "a map of its own for each load: the attached program would never be the installed one"
    assert re.findall(rb"/(?:home|root|work|usr|tmp)/", (FILES / name).read_bytes()) == []


def test_membership_and_the_plan_agree():
    assert f"#define MULTICAST {plan.MULTICAST_MARK:#x} " in (ROOT / "bpf" / "membership.bpf.c").read_text()


def test_ingress_and_the_plan_agree():
    source = (ROOT / "bpf" / "ingress.bpf.c").read_text()
    assert f"#define MARK {plan.INGRESS_MARK:#x} " in source
    assert f"bpf_htonl({plan.VRF_MAC << 16:#010x} | uid >> 16)" in source and "bpf_htons((__u16)uid)" in source
    assert f"#define RANGES {site.MAX_PORT_RANGES}\n" in source
    assert "enum ports { TCP, UDP, CONTROL, PORTS };" in source and (*site.PROTOCOLS, "control") == ("tcp", "udp", "control")
    assert maps(FILES / "ingress.bpf.o", ["uvn_hosts"])["uvn_hosts"]["max_entries"] > site.MAX_HOSTS
