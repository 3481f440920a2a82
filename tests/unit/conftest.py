# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The library is imported as the package `uvn`, as on the nodes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

slow = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}  # loaded machines are
settings.register_profile("ci", **slow)
settings.register_profile("dev", max_examples=20, **slow)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

sys.path.insert(0, str(Path(__file__).parents[2] / "plugins" / "module_utils"))

SITE = {
    "underlays": [
        {"subnets": ["192.168.80.0/21", "fd00:80::/64"], "port": 800, "direct": ["192.168.80.5", "fd00:80::5"]},
        {"subnets": ["192.168.40.0/21", "fd00:40::/64"], "port": 801},
    ]
}


@pytest.fixture
def site():
    from uvn.site import parse

    return parse(SITE)


@pytest.fixture
def host():
    """A node with two underlay NICs, one to the outside, and its default routes."""
    import ipaddress

    from uvn.objects import TABLE_MAIN, Nexthop, Route
    from uvn.underlay import Host, Nic

    def nic(name, *addresses, mtu=1500):
        return Nic(name, mtu, tuple(ipaddress.ip_interface(a) for a in addresses))

    def route(destination, metric, device, gateway=None):
        hop = Nexthop(device, ipaddress.ip_address(gateway) if gateway else None)
        return Route(TABLE_MAIN, ipaddress.ip_network(destination), metric, nexthops=(hop,))

    return Host(
        nics=(
            nic("em1", "192.168.80.91/21", "fd00:80::91/64"),
            nic("ib0", "192.168.40.91/21", "fd00:40::91/64", mtu=2044),
            nic("wan0", "10.10.0.91/24", "2001:db8:10::91/64"),
        ),
        routes=(
            route("0.0.0.0/0", 0, "wan0", "10.10.0.5"),
            route("10.10.0.0/24", 0, "wan0"),
            route("192.168.80.0/21", 0, "em1"),
            route("192.168.40.0/21", 0, "ib0"),
            route("fd00:80::/64", 256, "em1"),
            route("::/0", 1024, "wan0", "2001:db8:10::5"),
        ),
    )
