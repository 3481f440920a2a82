# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Prints, as YAML, what the role must know of a node. Reads only. Arguments: the packages that UVN needs.
# shellcheck shell=sh

PATH=/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL

UNITS="uvn-node.service uvnd.socket uvnd.service systemd-networkd.service systemd-resolved.service"

yes_if() {
    if "$@" >/dev/null 2>&1; then echo true; else echo false; fi
}

# Whether the running kernel has the module $1, built in or not.
has_module() {
    grep -qs "/$1\.ko" "/lib/modules/$(uname -r)/modules.dep" "/lib/modules/$(uname -r)/modules.builtin"
}

# What sshd decides by when it opens a session; without an answer of its own, its configuration files.
sshd_pam() {
    [ -x /usr/sbin/sshd ] || { echo absent; return; }
    answer=$(sshd -T 2>/dev/null | awk '$1 == "usepam" { print $2; exit }')
    [ -n "$answer" ] || answer=$(cat /etc/ssh/sshd_config.d/*.conf /etc/ssh/sshd_config 2>/dev/null |
        awk 'tolower($1) == "usepam" { print tolower($2); exit }')
    echo "${answer:-no}"
}

missing_packages() {
    for package; do
        [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package,"
    done
}

# Names the unit $1 when it runs since before the last change of one of the other arguments.
stale() {
    unit=$1
    shift
    since=$(systemctl show --timestamp=unix --property=ActiveEnterTimestamp --value "$unit")
    newest=$(stat --format=%Y "$@" 2>/dev/null | sort --numeric-sort --reverse | head --lines=1)
    since=${since#@}
    [ -z "$since" ] || [ "${newest:-0}" -le "$since" ] || echo "$unit,"
}

units() {
    # shellcheck disable=SC2086 # a list of words
    systemctl show --property=Id,ActiveState,UnitFileState $UNITS |
        awk -F= '$1 == "Id" { id = $2 } $1 == "ActiveState" { active = $2 } $1 == "UnitFileState" { state = $2 }
                 /^$/ { show() } END { show() }
                 function show() {
                     if (id) printf "  %s: {active: %s, enabled: %s}\n", id, active, state == "enabled" ? "true" : "false"
                     id = ""
                 }'
}

pam_lines() {
    awk -v quote="'" '$1 == "session" { $1 = $1; gsub(quote, quote quote); print "    - " quote $0 quote }' "/etc/pam.d/$1" 2>/dev/null
}

rules() {
    ip "-$1" rule show | awk '{ sub(":", "", $1); $1 = $1; printf "    - \"%s\"\n", $0 }'
}

ID='' ID_LIKE='' PRETTY_NAME=unknown
# shellcheck source=/dev/null
. /etc/os-release

echo "os: '$PRETTY_NAME'"
case " $ID $ID_LIKE " in *' debian '*) echo 'debian: true' ;; *) echo 'debian: false' ;; esac
echo "kernel: '$(uname -r)'"
echo "booted: $(yes_if test -d /run/systemd/system)"
echo "vrf: $(yes_if has_module vrf)"
echo "vxlan: $(yes_if has_module vxlan)"
echo "cgroup: $(stat --file-system --format=%T /sys/fs/cgroup)"
echo "sshd_pam: '$(sshd_pam)'"
echo "installed: $(yes_if test -e /etc/uvn/site.json)"
echo "missing_packages: [$(missing_packages "$@")]"
[ -d /run/systemd/system ] || exit 0
echo 'units:'
units
echo "stale: [$(
    stale systemd-networkd.service /etc/systemd/networkd.conf.d/uvn.conf
    stale systemd-resolved.service /etc/systemd/resolved.conf.d/uvn.conf
    stale uvnd.service /etc/systemd/system/uvnd.* /etc/uvn/site.json /usr/sbin/uvn /usr/lib/uvn/*.o /usr/lib/uvn/uvn/*.py
)]"
echo 'pam:'
echo '  common-session:'
pam_lines common-session
echo '  common-session-noninteractive:'
pam_lines common-session-noninteractive
echo 'sysctl:'
for name in tcp_l3mdev_accept udp_l3mdev_accept; do
    echo "  $name: $(cat "/proc/sys/net/ipv4/$name" 2>/dev/null || echo null)"
done
echo 'rules:'
echo '  ipv4:'
rules 4
echo '  ipv6:'
rules 6
