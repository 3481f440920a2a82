# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk image, kernel and initrd of each Debian suite: made in two stages, both cached by a hash of their inputs.

Packages (a tar by mmdebstrap, the slow part), then accounts, keys and configuration (an ext4 file system by mke2fs -d).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import topology
from .common import SOURCE, LabError, cache_dir, check_host, last_line, locked, say, step

SIZE = "2G"
KEEP = 3  # sets of images, and package archives of each suite
INITRD_MODULES = (
    "virtio_ring.ko",
    "virtio.ko",
    "virtio_pci_legacy_dev.ko",
    "virtio_pci_modern_dev.ko",
    "virtio_pci.ko",
    "virtio_blk.ko",
)
SETUP = "uvn-lab-setup"

# Reads tar archives, writes the file system; as an ordinary user it runs where mmdebstrap maps root to a subordinate UID,
# which cannot read or write below a private home directory: hence streams.
MAKE_ROOT = f"""
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/root"
chmod 755 "$work" "$work/root"
tar -C "$work/root" --xattrs --xattrs-include='*' --numeric-owner --exclude='./dev/*' -x -i -f -
chroot "$work/root" /bin/sh /{SETUP}/setup.sh >&2
rm -rf "$work/root/{SETUP}"
mke2fs -q -t ext4 -L uvn-lab -E lazy_itable_init=1 -d "$work/root" "$work/image" {SIZE} >&2
cat "$work/image"
"""


@dataclass(frozen=True)
class Image:
    """The directory of one suite's image and the files in it."""

    path: Path

    @property
    def disk(self) -> Path:
        return self.path / "root.img"

    @property
    def kernel(self) -> Path:
        return self.path / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.path / "initrd"


@dataclass(frozen=True)
class Images:
    """The directory of the suites' images, which share their keys so that nodes of several suites make one cluster."""

    path: Path

    def suite(self, name: str) -> Image:
        return Image(self.path / name)

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def key(self) -> Path:
        """The private ssh key that opens every account on every node."""
        return self.keys / "host"

    @property
    def node_key(self) -> str:
        """The nodes' public host key, as in known_hosts."""
        return " ".join((self.keys / "node.pub").read_text().split()[:2])


def packages(suite: str) -> list[str]:
    lines = (SOURCE / "image" / "packages").read_text().splitlines()
    words = [line.split() for line in lines if not line.startswith("#")]
    return [name for name, *only in words if suite in (only or topology.SUITES)]


def mmdebstrap_command(suite: str) -> list[str]:
    """Prints a tar archive of Debian with the nodes' packages."""
    command = ["mmdebstrap", f"--mode={'unshare' if os.geteuid() else 'root'}", "--variant=minbase", "--format=tar"]
    for directory in ("doc", "man", "locale", "info", "lintian"):
        command.append(f"--dpkgopt=path-exclude=/usr/share/{directory}/*")
    command.append("--dpkgopt=force-unsafe-io")
    # The lab has an initrd of its own: Debian's takes longer to make and to boot.
    command.append(
        '--essential-hook=chroot "$1" dpkg-divert --quiet --local --rename --add /usr/sbin/update-initramfs'
        ' && ln -s /bin/true "$1/usr/sbin/update-initramfs"'
    )
    command += [f"--include={','.join(packages(suite))}", suite, "-"]
    if os.environ.get("UVN_LAB_MIRROR"):
        command.append(os.environ["UVN_LAB_MIRROR"])
    return command


def base_digest(suite: str) -> str:
    command = [word for word in mmdebstrap_command(suite) if not word.startswith("--mode=")]
    return hashlib.sha256(repr(command).encode()).hexdigest()[:16]


def image_digest() -> str:
    """Hash of everything that decides what is in the images, except what Debian's mirror serves on the day."""
    digest = hashlib.sha256("".join(base_digest(suite) for suite in topology.SUITES).encode())
    for path in [Path(__file__), *sorted((SOURCE / "image").rglob("*"))]:
        if path.is_file():
            digest.update(f"{path.relative_to(SOURCE)} {path.stat().st_mode & 0o777:o}\n".encode() + path.read_bytes())
    for name, text in generated_files().items():
        digest.update(f"{name}\n{text}".encode())
    return digest.hexdigest()[:16]


def generated_files() -> dict[str, str]:
    files = {f"etc/{name}": text for name, text in topology.network_files().items()}
    files["etc/hosts"] = topology.hosts()
    files["etc/uvn-lab/dnsmasq.conf"] = topology.dnsmasq_conf()
    files[f"{SETUP}/users"] = "".join(f"{user} {uid}\n" for user, uid in topology.USERS.items())
    return files


def current() -> Images:
    """The images of the present inputs, which need not exist."""
    return Images(cache_dir() / "images" / image_digest())


def build(suites: Iterable[str], quiet: bool = False) -> Images:
    """Make the suites' images, those that are not there."""
    check_host()
    images = current()
    with locked(cache_dir() / "build.lock", "the images"):
        build_keys(images)
        for suite in suites:
            image = images.suite(suite)
            if image.path.is_dir():
                continue
            start = time.monotonic()
            build_image(image, build_base(suite, quiet), images.keys, quiet)
            remove_old(cache_dir().glob(f"base-{suite}-*.tar"))
            if not quiet:
                say(f"image {image.path} built in {time.monotonic() - start:.0f} s")
        os.utime(images.path)
        remove_old(images.path.parent.iterdir())
    return images


def build_base(suite: str, quiet: bool) -> Path:
    base = cache_dir() / f"base-{suite}-{base_digest(suite)}.tar"
    if base.exists():
        os.utime(base)
        return base
    log = cache_dir() / "base.log"
    partial = base.with_suffix(".partial")
    with step(f"installing Debian {suite} and {len(packages(suite))} packages (mmdebstrap)", log, quiet):
        with open(partial, "wb") as output, open(log, "wb") as errors:
            result = subprocess.run(mmdebstrap_command(suite), stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
    if result.returncode:
        partial.unlink()
        remedy = "see the log"
        if os.geteuid():
            remedy += "; an ordinary user needs entries in /etc/subuid and /etc/subgid and user namespaces, root needs neither"
        raise LabError(f"mmdebstrap failed with code {result.returncode} ({log}: {last_line(log)}); {remedy}")
    return partial.rename(base)


@contextlib.contextmanager
def complete(path: Path) -> Iterator[Path]:
    """A new directory that gets its name when everything is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="partial-") as name:
        partial = Path(name, path.name)
        partial.mkdir()
        yield partial
        partial.rename(path)


def build_keys(images: Images) -> None:
    if not images.keys.is_dir():
        with complete(images.keys) as directory:
            make_keys(directory)


def build_image(image: Image, base: Path, keys: Path, quiet: bool) -> None:
    with complete(image.path) as directory, step("making the root file system, kernel and initrd", quiet=quiet):
        partial = Image(directory)
        boot = extract(base)
        partial.kernel.write_bytes(boot["vmlinuz"])
        partial.initrd.write_bytes(initrd(boot))
        make_root(base, overlay(keys), partial.disk)


def make_keys(directory: Path) -> None:
    """One key for the host, one for the nodes' sshd, one for each account, the same on every node."""
    for name in ("host", "node", "root", *topology.USERS):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"uvn-lab-{name}", "-f", str(directory / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def extract(base: Path) -> dict[str, bytes]:
    """Kernel, busybox and the initrd's modules, uncompressed, out of the packages."""
    found, builtin = {}, b""
    with tarfile.open(base) as tar:
        for member in tar:
            directory, _, name = member.name.rpartition("/")
            if not member.isfile() or "/usr/share/" in member.name:
                continue
            if name == "modules.builtin":
                builtin = tar.extractfile(member).read()
            elif directory.endswith("/boot") and name.startswith("vmlinuz-"):
                found["vmlinuz"] = tar.extractfile(member).read()
            elif name == "busybox" or name.removesuffix(".xz") in INITRD_MODULES:
                data = tar.extractfile(member).read()
                found[name.removesuffix(".xz")] = lzma.decompress(data) if name.endswith(".xz") else data
    for name in ("vmlinuz", "busybox", *INITRD_MODULES):
        if name not in found and f"/{name}\n".encode() not in builtin:
            raise LabError(f"{base} holds no {name}; remove the file and build again")
    return found


def initrd(boot: dict[str, bytes]) -> bytes:
    """A cpio archive (newc, Documentation/driver-api/early-userspace/buffer-format.rst) that the kernel unpacks itself."""
    out = io.BytesIO()
    number = 0

    def add(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        nonlocal number
        number += 1
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0")
        out.write(bytes(-out.tell() % 4) + data)
        out.write(bytes(-out.tell() % 4))

    for directory in ("bin", "dev", "proc", "root"):
        add(directory, 0o040755)
    add("dev/console", 0o020600, device=(5, 1))
    add("bin/busybox", 0o100755, boot["busybox"])
    add("bin/sh", 0o120777, b"busybox")
    for module in INITRD_MODULES:
        if module in boot:  # else the kernel has it built in
            add(module, 0o100644, boot[module])
    add("init", 0o100755, (SOURCE / "image" / "init").read_bytes())
    add("TRAILER!!!", 0)
    return out.getvalue()


def overlay(keys: Path) -> bytes:
    """A tar archive of what comes on top of the packages, everything owned by root."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:

        def add(name: str, data: bytes, mode: int) -> None:
            member = tarfile.TarInfo(f"./{name}")
            member.size, member.mode, member.mtime = len(data), mode, int(time.time())
            tar.addfile(member, io.BytesIO(data))

        for path in sorted((SOURCE / "image" / "rootfs").rglob("*")):
            if path.is_file():
                add(str(path.relative_to(SOURCE / "image" / "rootfs")), path.read_bytes(), 0o644)
        for name, text in generated_files().items():
            add(name, text.encode(), 0o600 if name.endswith(".nmconnection") else 0o644)  # NetworkManager reads no other
        add(f"{SETUP}/setup.sh", (SOURCE / "image" / "setup.sh").read_bytes(), 0o644)
        for path in sorted(keys.iterdir()):
            if path.name != "host":
                add(f"{SETUP}/keys/{path.name}", path.read_bytes(), 0o600)
        node_key = (keys / "node.pub").read_text().split()
        add("etc/ssh/ssh_known_hosts", f"* {node_key[0]} {node_key[1]}\n".encode(), 0o644)
    return out.getvalue()


def make_root(base: Path, top: bytes, disk: Path) -> None:
    command = ["sh", "-c", MAKE_ROOT]
    if os.geteuid():
        command = ["mmdebstrap", "--unshare-helper", *command]
    log = cache_dir() / "root.log"
    with open(log, "wb") as errors:
        maker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        sparse = ["dd", f"of={disk}", "bs=1M", "iflag=fullblock", "conv=sparse", "status=none"]
        writer = subprocess.Popen(sparse, stdin=maker.stdout)
        maker.stdout.close()
        try:
            with open(base, "rb") as packages_tar:
                shutil.copyfileobj(packages_tar, maker.stdin, 1 << 20)
            maker.stdin.write(top)
            maker.stdin.close()
        except BrokenPipeError:
            pass  # the exit code tells
        codes = (maker.wait(), writer.wait())
    if any(codes):
        raise LabError(f"the root file system could not be made ({log}: {last_line(log)}); see the log")
    with open(disk, "r+b") as file:
        file.truncate(int(SIZE.removesuffix("G")) << 30)  # dd leaves a trailing hole out


def remove_old(paths: Iterable[Path]) -> None:
    """Keep those used last: labs of other directories or branches may run on them."""
    for old in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)[KEEP:]:
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink()
