# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception of the domain."""

from __future__ import annotations


class UvnError(Exception):
    """One sentence for the user: the object, its value, the limit and the remedy."""


class NoNetwork(UvnError):
    """This UID has no network by the site's decision: it is below `min_uid` or in no range."""
