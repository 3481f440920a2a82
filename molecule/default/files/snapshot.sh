# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Prints everything of a node that UVN could leave behind, in an order that does not change.
# shellcheck shell=sh

PATH=/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL

echo '## links'
ip -brief link show | awk '{ print $1 }' | sort
echo '## rules'
# The kernel adds the rule of l3mdev with the first VRF and keeps it.
ip -4 rule show | grep -v l3mdev
ip -6 rule show | grep -v l3mdev
echo '## routes'
for family in 4 6; do
    ip -$family route show table all | sed 's/ expires [^ ]*//' | sort
done
echo '## packet filter'
for save in iptables-save ip6tables-save; do
    $save 2>/dev/null | grep -e '^-A' -e UVN
done
nft list tables inet
echo '## kernel parameters'
sysctl --all --pattern 'l3mdev|forwarding|accept_ra$|igmp_max|mptcp.enabled' 2>/dev/null | sort
echo '## BPF'
ls /sys/fs/bpf
echo '## units'
systemctl list-units --all --no-legend --no-pager --plain 'uvn*'
echo '## PAM'
sha256sum /etc/pam.d/*
echo '## files'
find /etc /usr /var/lib /run/uvn -xdev -not -type d -not -path '*/__pycache__/*' -not -path '/var/lib/systemd/*' \
    -not -path '/var/lib/NetworkManager/*' 2>/dev/null | sort
