# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure parts of the virtual cluster: which suite a node gets, and what goes into a suite's image."""

from __future__ import annotations

import io
import lzma
import sys
import tarfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))

from uvnlab import image, topology  # noqa: E402
from uvnlab.common import LabError  # noqa: E402


def test_nodes_are_asked_for_with_or_without_a_suite():
    assert topology.parse_request(["c1", "c2=trixie"]) == {"c1": None, "c2": "trixie"}


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("c9", "there is no node 'c9'; choose one of login1,"),
        ("c2=sid", "node c2: there is no suite 'sid'; choose one of bookworm, trixie"),
        ("c2=", "node c2: there is no suite ''; choose one of bookworm, trixie"),
    ],
)
def test_what_cannot_be_booted_is_refused(word, sentence):
    with pytest.raises(LabError, match=sentence):
        topology.parse_request(["c1", word])


def test_suites_have_the_same_packages_but_those_that_are_marked():
    assert set(image.packages("trixie")) - set(image.packages("bookworm")) == {"linux-sysctl-defaults", "libpmi2-0t64"}
    assert set(image.packages("bookworm")) - set(image.packages("trixie")) == {"libpmi2-0"}


@pytest.fixture
def base(tmp_path):
    """A package archive with one module compressed, one not, and the others built in, but for those named."""

    def make(*missing: str) -> Path:
        modules, builtin = "./usr/lib/modules/6.12", image.INITRD_MODULES[2:]
        files = {
            "./boot/vmlinuz-6.12": b"kernel",
            "./usr/bin/busybox": b"shell",
            f"{modules}/kernel/{image.INITRD_MODULES[0]}": b"plain",
            f"{modules}/kernel/{image.INITRD_MODULES[1]}.xz": lzma.compress(b"compressed"),
            f"{modules}/modules.builtin": "".join(f"kernel/{n}\n" for n in builtin if n not in missing).encode(),
            "./usr/share/initramfs-tools/conf-hooks.d/busybox": b"no shell",
        }
        with tarfile.open(tmp_path / "base.tar", "w") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return tmp_path / "base.tar"

    return make


def test_the_initrd_gets_modules_uncompressed_and_no_built_in_ones(base):
    plain, compressed = image.INITRD_MODULES[:2]
    boot = image.extract(base())
    assert boot == {"vmlinuz": b"kernel", "busybox": b"shell", plain: b"plain", compressed: b"compressed"}
    assert b"compressed" in image.initrd(boot)


def test_a_driver_that_is_nowhere_is_an_error(base):
    with pytest.raises(LabError, match=f"holds no {image.INITRD_MODULES[-1]}; remove the file"):
        image.extract(base(image.INITRD_MODULES[-1]))
