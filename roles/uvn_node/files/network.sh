# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Prints, as JSON, what of a node's network could be in UVN's way; hpc.uvn.preflight judges it. Reads only.
# shellcheck shell=sh

PATH=/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL

# The lines of standard input as a JSON list of strings. Users choose the names of their programs: what is no text, or not for a terminal, is `?`.
strings() {
    /usr/bin/python3 -ISc '
import json
lines = open(0, encoding="utf-8", errors="replace", newline="\n").read().split("\n")
print(json.dumps(["".join(c if c.isprintable() else "?" for c in " ".join(line.split())) for line in lines if line.strip()]))'
}

# `ip` prints nothing, or the beginning of a list, where the kernel is without a protocol.
json() {
    answer=$(ip -json "$@" 2>/dev/null) || answer=
    echo "${answer:-[]}"
}

firewall=$(nft --json list ruleset 2>/dev/null)

cat <<END
{
"addresses": $(json -details address show),
"rules4": $(json -N -4 rule show),
"rules6": $(json -N -6 rule show),
"routes4": $(json -N -4 route show table all),
"routes6": $(json -N -6 route show table all),
"sockets": $(ss --no-header --all --udp --numeric --processes | strings),
"tables": $(cat /usr/share/iproute2/rt_tables /etc/iproute2/rt_tables /etc/iproute2/rt_tables.d/*.conf 2>/dev/null | grep '^[0-9]' | strings),
"firewall": ${firewall:-{\}}
}
END
