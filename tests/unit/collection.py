# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Import this first, and the checkout is importable as `ansible_collections.hpc.uvn`, wherever it lies."""

from __future__ import annotations

import sys
import types
from pathlib import Path

ROOT = Path(__file__).parents[2]

for name, path in (
    ("ansible_collections", []),
    ("ansible_collections.hpc", []),
    ("ansible_collections.hpc.uvn", [str(ROOT)]),
):
    package = types.ModuleType(name)
    package.__path__ = path
    sys.modules.setdefault(name, package)
