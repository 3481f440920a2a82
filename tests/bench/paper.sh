#!/bin/bash
# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The steps of create_uvn (R. Cox, Network Segmentation of Users, 2020) in plain shell, as the reference of the benchmarks: each is
# checked and made with ip, sysctl and iptables. The VRF comes up last, so that a VRF that is up means a complete network.
# Not here: putting the login's process into the VRF (`ip vrf exec`), and IPv6 but for ::1, which the original has not either.
#
# paper.sh create|remove UID

set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin

GROUP=239.192.193.194
TTL=5
UNDERLAYS="em1:800 ib0:801" # NIC and UDP port
OUTSIDE=wan0
SYSCTLS="net.ipv4.ip_forward net.ipv4.tcp_l3mdev_accept net.ipv4.udp_l3mdev_accept"

action=$1 uid=$2
[ "$uid" -ge 1000 ] || exit 0
vrf=vrf$uid
nat=100.$((64 + (uid >> 16))).$((uid >> 8 & 255)).$((uid & 255))

address() { # of a NIC, with its prefix length
    ip -4 -oneline address show dev "$1" scope global | awk '{ print $4; exit }'
}

has_link() {
    ip link show dev "$1" >/dev/null 2>&1
}

has_address() {
    [ -n "$(ip -oneline address show dev "$1" to "$2")" ]
}

rule() { # TABLE RULE...: appended unless it is there
    local table=$1
    shift
    iptables -w -t "$table" -C "$@" 2>/dev/null || iptables -w -t "$table" -A "$@"
}

node() {
    # shellcheck disable=SC2086 # a list
    for value in $(sysctl -n $SYSCTLS); do
        [ "$value" = 1 ] || sysctl -qw ${SYSCTLS// /=1 }=1
    done
    for family in -4 -6; do
        if [[ $(ip $family rule show) == 0:* ]]; then
            ip $family rule add pref 32765 table local
            ip $family rule delete pref 0
        fi
    done
}

underlay() { # NIC PORT
    local device=$1.$uid own
    own=$(address "$1")
    if ! has_link "$device"; then
        ip link add "$device" type vxlan id "$uid" dev "$1" group $GROUP ttl $TTL dstport "$2" noudpcsum
        ip link set "$device" master "$vrf"
    fi
    has_address "$device" "${own%/*}" || ip address add "$own" dev "$device"
    ip link set "$device" up
}

outside() {
    local own
    own=$(address $OUTSIDE)
    has_address "$vrf" "$nat" || ip address add "$nat/32" dev "$vrf"
    rule nat POSTROUTING -s "$nat" -o $OUTSIDE -j SNAT --to-source "${own%/*}"
    rule filter FORWARD -i "$vrf" -o $OUTSIDE -j ACCEPT
    rule filter FORWARD -i $OUTSIDE -o "$vrf" -j ACCEPT
}

create() {
    exec 9>/run/paper-uvn.lock
    flock 9
    node
    [ -n "$(ip link show dev "$vrf" up 2>/dev/null)" ] && return
    has_link "$vrf" || ip link add "$vrf" type vrf table "$uid"
    for own in 127.0.0.1/8 ::1/128; do
        has_address "$vrf" ${own%/*} || ip address add $own dev "$vrf"
    done
    for nic in $UNDERLAYS; do
        underlay "${nic%:*}" "${nic#*:}"
    done
    outside
    ip link set "$vrf" up
    ip route replace default dev $OUTSIDE vrf "$vrf"
    ip route replace "$nat" dev "$vrf"
}

remove() {
    local own
    own=$(address $OUTSIDE)
    for nic in $UNDERLAYS; do
        ip link delete "${nic%:*}.$uid"
    done
    ip link delete "$vrf"
    ip route flush table "$uid" 2>/dev/null || true
    iptables -w -t nat -D POSTROUTING -s "$nat" -o $OUTSIDE -j SNAT --to-source "${own%/*}"
    iptables -w -D FORWARD -i "$vrf" -o $OUTSIDE -j ACCEPT
    iptables -w -D FORWARD -i $OUTSIDE -o "$vrf" -j ACCEPT
}

"$action"
