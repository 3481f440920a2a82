# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user's addresses cost by pyroute2's own socket, one by one and in a batch, and by UVN's socket with pyroute2's messages.

Run as root: unshare --net python3 tests/bench/netlink.py [ADDRESSES]
"""

from __future__ import annotations

import ipaddress
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "plugins" / "module_utils"))

from pyroute2 import IPRoute
from uvn.kernel import NEW, RTM_NEWADDR, _address
from uvn.netlink import Netlink
from uvn.objects import Address

ROUNDS = 7
DEVICE = "uvnbench"


def addresses(count: int) -> list[Address]:
    return [Address(DEVICE, ipaddress.ip_interface(f"10.77.{number // 250}.{number % 250 + 1}/32")) for number in range(count)]


def one_by_one(ipr: IPRoute, index: int, wanted: list[Address]) -> None:
    for address in wanted:
        ipr.addr("add", index=index, address=str(address.interface.ip), prefixlen=32, flags=0x200)


def together(netlink: Netlink, index: int, wanted: list[Address]) -> None:
    refused = netlink.apply([_address(address, RTM_NEWADDR, NEW, lambda _device: index) for address in wanted])
    assert not any(refused), refused


def flush() -> None:
    subprocess.run(["ip", "address", "flush", "dev", DEVICE], check=True)


def main(count: int) -> None:
    subprocess.run(["ip", "link", "add", DEVICE, "type", "dummy"], check=True)
    wanted = addresses(count)
    with IPRoute() as ipr:
        index, netlink = ipr.link_lookup(ifname=DEVICE)[0], Netlink()
        variants = {"pyroute2's socket": lambda: one_by_one(ipr, index, wanted), "UVN's socket": lambda: together(netlink, index, wanted)}
        times: dict[str, list[float]] = {name: [] for name in variants}
        for _round in range(ROUNDS):
            for name, run in variants.items():
                start = time.perf_counter()
                run()
                times[name].append(1e6 * (time.perf_counter() - start) / count)
                flush()
    subprocess.run(["ip", "link", "del", DEVICE], check=True)
    base = statistics.median(times["UVN's socket"])
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"{name:<20} {middle:8.0f} us an address (from {min(values):.0f} to {max(values):.0f}), {middle / base:.1f} times UVN's")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
