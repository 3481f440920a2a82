# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every part of the lab uses: the error, the directories, progress messages, checks of the host."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent

# Debian package of each program the lab runs on the host.
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "scp": "openssh-client",
    "tar": "tar",
}


class LabError(Exception):
    """One sentence for the user: object, value and remedy."""


def cache_dir() -> Path:
    """Images and, unless UVN_LAB_DIR says otherwise, the running labs."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uvn-lab"
    return Path(os.environ.get("UVN_LAB_CACHE") or default).absolute()


def run_dir() -> Path:
    """State of one lab, that of this checkout."""
    checkout = SOURCE.parent.parent
    default = cache_dir() / "labs" / f"{checkout.name[:16]}-{hashlib.sha256(os.fsencode(checkout)).hexdigest()[:8]}"
    return Path(os.environ.get("UVN_LAB_DIR") or default).absolute()


def say(message: str) -> None:
    print(f"lab: {message}", file=sys.stderr, flush=True)


def check_host() -> None:
    """Refuse early when a program is missing, and name its package."""
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = {package for program, package in PROGRAMS.items() if not shutil.which(program)}
    if os.geteuid() and not shutil.which("newuidmap"):
        missing.add("uidmap")
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists():
        missing.add("debian-archive-keyring")
    if missing:
        raise LabError(f"programs are missing on this host; run: apt install {' '.join(sorted(missing))}")


@contextlib.contextmanager
def locked(path: Path, waiting_for: str) -> Iterator[None]:
    """Hold an exclusive lock on a file; say what is waited for when somebody else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for {waiting_for} (another lab command holds {path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def step(title: str, log: Path | None = None, quiet: bool = False, every: float = 10.0) -> Iterator[None]:
    """Report a long step: its start, every few seconds the time it took so far and the log's last line, its end."""
    if quiet:
        yield
        return
    start = time.monotonic()
    done = threading.Event()

    def report() -> None:
        while not done.wait(every):
            say(f"  {time.monotonic() - start:.0f} s  {last_line(log)}")

    say(title)
    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        done.set()
        reporter.join()
    say(f"  done in {time.monotonic() - start:.0f} s")


def last_line(log: Path | None) -> str:
    """The last line of a log file, cut to a terminal's width."""
    if log is None or not log.exists():
        return ""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 400))
        lines = file.read().decode(errors="replace").split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    return lines[-1][:90] if lines else ""
