# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Prints, as YAML, what the role must know of a node. Reads only. Arguments: `build` for an image or a chroot, else `live`; the directory
# that plugstack.conf includes.
# shellcheck shell=sh

PATH=/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL

UNITS="uvn-node.service uvnd.socket uvnd.service systemd-networkd.service systemd-resolved.service slurmd.service"

yes_if() {
    if "$@" >/dev/null 2>&1; then echo true; else echo false; fi
}

# Each line of standard input as a string of YAML, in UTF-8 and without what YAML has no character for.
strings() {
    # By way of UTF-16, which ends where Unicode does; iconv's UTF-8 goes on.
    iconv -c --from-code=UTF-8 --to-code=UTF-16LE | iconv -c --from-code=UTF-16LE --to-code=UTF-8 | tr --delete '\000-\011\013-\037\177' |
        sed "s/\xc2[\x80-\x9f]//g; s/\xef\xbf[\xbe\xbf]//g; s/'/''/g; s/.*/'&'/"
}

# The modules that the kernel $1 lacks, be they built in or not.
lacks_modules() {
    for module in vrf vxlan dummy xt_addrtype xt_devgroup sch_ingress cls_bpf; do
        grep -qs "/$module\.ko" "/lib/modules/$1/modules.dep" "/lib/modules/$1/modules.builtin" || echo "$module,"
    done
}

# The kernel that runs; of an image those that are in it.
kernels() {
    if [ "$mode" = live ]; then uname -r; else ls /lib/modules 2>/dev/null; fi
}

# Whether new devices take IPv6 addresses; an image cannot know.
ipv6() {
    if [ "$mode" = build ]; then echo true; return; fi
    for name in all default; do cat "/proc/sys/net/ipv6/conf/$name/disable_ipv6" 2>/dev/null || echo 1; done |
        awk '$1 { off = 1 } END { print off ? "false" : "true" }'
}

# What sshd decides by when it opens a session; without an answer of its own, its configuration files.
sshd_pam() {
    [ -x /usr/sbin/sshd ] || { echo absent; return; }
    answer=$(sshd -T 2>/dev/null | awk '$1 == "usepam" { print $2; exit }')
    [ -n "$answer" ] || answer=$(cat /etc/ssh/sshd_config.d/*.conf /etc/ssh/sshd_config 2>/dev/null |
        awk 'tolower($1) == "usepam" { print tolower($2); exit }')
    echo "${answer:-no}"
}

packages() {
    case $family in
        debian) echo iproute2 iptables kmod libbpf1 libpam-runtime nftables python3-pyroute2 ;;
        rhel) echo authselect iproute iptables-nft kmod libbpf nftables python3-pyroute2 ;;
    esac
}

# The packages of packages() that are not installed.
missing_packages() {
    for package in $(packages); do
        case $family in
            debian) [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ;;
            rhel) rpm --query --quiet "$package" ;;
        esac || echo "$package,"
    done
}

# Version and place of the pyroute2 of the system's Python; importing it would take longer than the rest.
pyroute2() {
    /usr/bin/python3 -I -c '
import json, os, sys
for path in sys.path:
    for name in os.listdir(path) if os.path.isdir(path) else []:
        if name.startswith("pyroute2-") and name.endswith(("-info", ".egg-info")):
            sys.exit(print(json.dumps({"version": name.split("-")[1].replace(".dist", ""), "path": path})))
print("null")'
}

# The version of pyroute2 that the node's repositories have.
pyroute2_candidate() {
    case $family in
        debian) apt-cache policy python3-pyroute2 | awk '$1 == "Candidate:" { print $2 }' ;;
        rhel) dnf --quiet repoquery --latest-limit=1 --queryformat='%{version}\n' python3-pyroute2 2>/dev/null | tail --lines=1 ;;
    esac
}

# UVN's lines for Slurm: where this run wants it, and where plugstack.conf includes one that a former run put elsewhere.
lines() {
    included=$(cat /run/slurm/conf/plugstack.conf /etc/slurm/plugstack.conf 2>/dev/null | awk '$1 == "include" { print $2 }')
    # shellcheck disable=SC2086 # patterns of files
    for file in "$plugstack/uvn.conf" $included; do
        case $file in */uvn.conf) ! grep --quiet --no-messages /usr/lib/uvn/spank.so "$file" || printf '%s\n' "$file" ;; esac
    done | sort --unique | strings | paste --serial --delimiters=,
}

# Whether slurmd's plugstack.conf includes $1. A configless slurmd has what the controller sent; of an image nobody knows it.
includes() {
    if [ -e /run/slurm/conf/slurm.conf ]; then conf=/run/slurm/conf; else conf=/etc/slurm; fi
    awk -v files="$1" '$1 == "include" && $2 == files { found = 1 } END { exit !found }' "$conf/plugstack.conf" ||
        { [ "$mode" = build ] && ! [ -e /etc/slurm/slurm.conf ]; }
}

# What Slurm is configured to do, from its controller, and whether its plug-in stack reads our file.
slurm() {
    [ -x /usr/sbin/slurmd ] || { echo 'slurm: {}'; return; }
    echo 'slurm:'
    echo "  version: $(slurmd -V | cut --delimiter=' ' --fields=2 | strings)"
    echo "  lines: [$(lines)]"
    echo "  directory: $(yes_if test -d "$plugstack")"
    echo "  included: $(yes_if includes "$plugstack/*.conf")"
    echo '  config:'
    if [ "$mode" = live ] && systemctl --quiet is-active slurmd.service; then # else scontrol waits for a controller in vain
        timeout 30 scontrol show config 2>/dev/null |
            awk '$1 ~ /^(CommunicationParameters|ProctrackType|PrologFlags|SlurmctldPort|SlurmdPort|SrunPortRange)$/ { print $1 ": " $3 }' |
            strings | sed "s/^'\([A-Za-z]*: \)/    \1'/"
    fi
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
    if [ "$mode" = build ]; then
        for unit in $UNITS; do
            printf '  %s: {active: inactive, enabled: %s}\n' "$unit" "$(yes_if systemctl --root=/ --quiet is-enabled "$unit")"
        done
        return
    fi
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
    awk '$1 == "session" { $1 = $1; print }' "/etc/pam.d/$1" 2>/dev/null | strings | sed 's/^/    - /'
}

rules() {
    ip "-$1" rule show | awk '{ sub(":", "", $1); $1 = $1; print }' | strings | sed 's/^/    - /'
}

mode=$1 plugstack=$2
ID='' ID_LIKE='' PRETTY_NAME=unknown
# shellcheck source=/dev/null
. /etc/os-release
case " $ID $ID_LIKE " in
    *' debian '*) family=debian sessions='common-session common-session-noninteractive' ;;
    *' rhel '* | *' fedora '*) family=rhel sessions='system-auth password-auth' ;;
    *) family=unknown sessions= ;;
esac

echo "os: $(printf '%s\n' "$PRETTY_NAME" | strings)"
echo "family: $family"
echo "booted: $(yes_if test -d /run/systemd/system)"
echo "kernels: $([ -n "$(kernels)" ] || echo '{}')"
for kernel in $(kernels); do echo "  $(printf '%s\n' "$kernel" | strings): [$(lacks_modules "$kernel")]"; done
echo "cgroup: $(stat --file-system --format=%T /sys/fs/cgroup)"
echo "ip: $(yes_if command -v ip)"
echo "ipv6: $(ipv6)"
echo "sshd_pam: $(sshd_pam | strings)"
[ "$family" != rhel ] || echo "authselect: $(printf '%s\n' "$(authselect current --raw 2>/dev/null)" | strings)"
echo "installed: $(yes_if test -e /etc/uvn/site.json)"
echo "configuration: $(sha1sum /etc/uvn/site.json 2>/dev/null | cut --characters=1-40)"
missing=$(missing_packages)
echo "missing_packages: [$missing]"
echo "unpacked: $(yes_if test -d /usr/lib/uvn/pyroute2)"
pyroute2=$(pyroute2)
echo "pyroute2: $pyroute2"
[ "$pyroute2" != null ] || echo "pyroute2_candidate: $(printf '%s\n' "$(pyroute2_candidate)" | strings)"
slurm
if [ "$mode" = live ] && ! [ -d /run/systemd/system ]; then exit 0; fi
echo 'units:'
units
echo 'pam:'
for file in $sessions; do
    echo "  $file:"
    pam_lines "$file"
done
[ "$mode" = live ] || { echo 'stale: []'; exit 0; }
echo "stale: [$(
    stale systemd-networkd.service /etc/systemd/networkd.conf.d/uvn.conf /etc/systemd/network/00-uvn.network
    stale systemd-resolved.service /etc/systemd/resolved.conf.d/uvn.conf
    stale slurmd.service /usr/lib/uvn/spank.so "$plugstack/uvn.conf"
    stale uvnd.service /etc/systemd/system/uvnd.* /etc/uvn/site.json /usr/sbin/uvn /usr/lib/uvn/*.o /usr/lib/uvn/uvn/*.py
)]"
echo 'sysctl:'
for name in tcp_l3mdev_accept udp_l3mdev_accept; do
    echo "  $name: $(cat "/proc/sys/net/ipv4/$name" 2>/dev/null || echo null)"
done
echo 'rules:'
echo '  ipv4:'
rules 4
if [ -e /proc/sys/net/ipv6/conf ]; then
    echo '  ipv6:'
    rules 6
fi
