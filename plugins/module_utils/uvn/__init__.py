# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""User Virtual Network: a private network for every user of a cluster node.

Reading order: site, identity, underlay, plan, diff (pure); kernel, membership, nat (the machine);
reconcile (brings them together); service, client, cli (who asks).
"""
