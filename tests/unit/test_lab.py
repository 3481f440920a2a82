# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure parts of the virtual cluster: which suite a node gets, and what goes into a suite's image."""

from __future__ import annotations

import io
import json
import lzma
import socket
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))

from uvnlab import common, guests, image, qmp, snapshots, topology  # noqa: E402
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


def test_every_checkout_has_a_lab_of_its_own(monkeypatch, tmp_path):
    monkeypatch.delenv("UVN_LAB_DIR", raising=False)
    monkeypatch.setenv("UVN_LAB_CACHE", str(tmp_path))
    directories = []
    for checkout in ("here/main", "there/main"):
        monkeypatch.setattr(common, "SOURCE", tmp_path / checkout / "tests" / "lab")
        directories.append(common.run_dir())
    assert len(set(directories)) == 2 and all(path.parent == tmp_path / "labs" for path in directories)


def test_labs_of_others_are_seen(tmp_path):
    """By the words of their processes, as those of QEMU."""
    words = ["-name", "uvn-lab-c1", "-pidfile", str(tmp_path / "c1.pid")]
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        ["qemu-system-x86_64", "-c", code, *words], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        assert guests.elsewhere(tmp_path / "mine").get(tmp_path) == ["c1"]
        assert tmp_path not in guests.elsewhere(tmp_path)
        process.stdin.close()


def test_a_guest_is_kept_once_and_under_what_decides_how_it_boots(tmp_path):
    first, other = (snapshots.Snapshot(tmp_path, "bookworm-c1", line) for line in ("quiet", "quiet norandmaps"))
    assert first.path != other.path and not first.exists()
    with first.to_be_made() as directory:
        (directory / "ram").write_bytes(b"memory")
    assert (first.path / "ram").read_bytes() == b"memory" and not other.exists()
    with first.to_be_made() as directory:
        assert directory is None


def test_whether_guests_are_kept_is_yes_or_no(monkeypatch):
    assert snapshots.wanted("tcg") and not snapshots.wanted("kvm") and not snapshots.wanted("icount")
    monkeypatch.setenv("UVN_LAB_SNAPSHOTS", "no")
    assert not snapshots.wanted("tcg")
    monkeypatch.setenv("UVN_LAB_SNAPSHOTS", "never")
    with pytest.raises(LabError, match="UVN_LAB_SNAPSHOTS is 'never'; set it to yes or no"):
        snapshots.wanted("tcg")


@pytest.fixture
def qemu(tmp_path):
    """A monitor that answers what it is given, after an event, and tells what it was asked."""

    def start(*answers: dict) -> tuple[Path, list]:
        asked, path = [], tmp_path / "qmp"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with listener, listener.accept()[0] as connection, connection.makefile("rw") as file:
                print(json.dumps({"QMP": {}}), file=file, flush=True)
                for answer in ({"return": {}}, *answers):
                    asked.append(json.loads(file.readline()).get("execute"))
                    print(json.dumps({"event": "STOP"}), json.dumps(answer), sep="\n", file=file, flush=True)

        threading.Thread(target=serve, daemon=True).start()
        return path, asked

    return start


def test_a_guest_is_saved_when_qemu_says_so(qemu, tmp_path):
    path, asked = qemu(*[{"return": {}}] * 3, {"return": {"status": "active"}}, {"return": {"status": "completed"}})
    qmp.save(path, tmp_path / "devices", "c1")
    assert asked == ["qmp_capabilities", "stop", "migrate-set-capabilities", "migrate", "query-migrate", "query-migrate"]


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ([{"error": {"desc": "no such thing"}}], "node c1: QEMU refuses stop: no such thing"),
        ([{"return": {}}] * 3 + [{"return": {"status": "failed", "error-desc": "no room"}}], "node c1: QEMU's migrate failed: no room"),
        ([], "node c1: QEMU ended; see: lab console c1"),
    ],
)
def test_what_goes_wrong_with_a_monitor_is_said(qemu, tmp_path, answers, sentence):
    path, _asked = qemu(*answers)
    with pytest.raises(LabError, match=sentence):
        qmp.save(path, tmp_path / "devices", "c1")
