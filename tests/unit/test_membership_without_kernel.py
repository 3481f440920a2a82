# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of membership needs no kernel."""

from __future__ import annotations

import pathlib
import random
import subprocess
import sys

import pytest

LIBRARY = str(pathlib.Path(__file__).resolve().parents[2] / "plugins" / "module_utils")
sys.path.insert(0, LIBRARY)

from uvn.errors import UvnError
from uvn.membership import prefixes


@pytest.mark.parametrize(
    "first, last, expected",
    [
        (2001, 2001, [(2001, 32)]),
        (
            61184,
            65519,
            [
                (61184, 24),
                (61440, 21),
                (63488, 22),
                (64512, 23),
                (65024, 24),
                (65280, 25),
                (65408, 26),
                (65472, 27),
                (65504, 28),
            ],
        ),
        (0, 2**32 - 1, [(0, 0)]),
        (1, 6, [(1, 32), (2, 31), (4, 31), (6, 32)]),
        (2**32 - 2, 2**32 - 1, [(2**32 - 2, 31)]),
    ],
)
def test_prefixes(first, last, expected):
    assert prefixes(first, last) == expected


def test_prefixes_cover_a_range_exactly_and_cannot_be_merged():
    numbers = random.Random(1)
    for _ in range(2000):
        first, last = sorted(numbers.choices(range(2**32), k=2))
        next_uid, previous = first, None
        for uid, prefixlen in prefixes(first, last):
            size = 1 << (32 - prefixlen)
            assert uid == next_uid and uid % size == 0
            # two blocks of one size that form an aligned block of twice the size
            assert not (previous == (uid - size, prefixlen) and (uid - size) % (2 * size) == 0)
            next_uid, previous = uid + size, (uid, prefixlen)
        assert next_uid == last + 1


@pytest.mark.parametrize("first, last", [(2, 1), (-1, 5), (0, 2**32)])
def test_what_is_no_range_is_refused(first, last):
    with pytest.raises(UvnError, match="is not one"):
        prefixes(first, last)


def test_the_library_is_imported_without_libbpf_and_says_what_to_install():
    program = (
        "import sys, ctypes\n"
        f"sys.path.insert(0, {LIBRARY!r})\n"
        "def missing(name, **_): raise OSError(f'{name}: cannot open shared object file')\n"
        "ctypes.CDLL = missing\n"
        "from uvn.membership import Membership, UvnError\n"
        "try: Membership().entries()\n"
        "except UvnError as e: print(e)\n"
    )
    said = subprocess.run([sys.executable, "-IS", "-c", program], check=True, capture_output=True, text=True).stdout
    assert said == (
        "libbpf 1.1 or newer cannot be used (libbpf.so.1: cannot open shared object file); "
        "install libbpf1 (Debian) or libbpf (RHEL)\n"
    )
