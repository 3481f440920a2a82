# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `uvn`: `python3 -I /usr/lib/uvn/uvn`, or the library in another place."""

# pylint: disable=ansible-bad-function  # a program of the nodes, no Ansible module imports it

import os
import sys

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # was the package itself, whose site.py is not Python's

    from uvn.cli import main

    sys.exit(main())
