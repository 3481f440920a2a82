/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Copyright (c) 2026 The UVN authors */
/*
 * Binds every inet socket to the VRF of the user who makes it, and keeps it there.
 *
 * The kernel runs uvn_membership in inet_create() and inet6_create(), once for each socket() of AF_INET or AF_INET6, in the
 * context of the caller. No other family comes here, and sockets the kernel makes for itself do not either
 * (net/ipv4/af_inet.c, net/ipv6/af_inet6.c).
 *
 * A user can undo the binding: connect() to AF_UNSPEC clears that of a datagram socket (__udp_disconnect), bind() to a
 * link-local IPv6 address replaces it (__inet6_bind). So uvn_membership writes it down as well, and uvn_receive, which runs
 * for every packet that is about to enter a socket's queue (sk_filter_trim_cap), goes by that.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "shared.h"

#define REFUSE 0 /* socket() fails with EPERM, a packet is dropped */
#define ALLOW 1

enum mode { AUDIT, ENFORCE };
enum counter { BOUND, EXEMPT, REFUSED, AUDITED, COUNTERS };
enum stray { STRAY_REFUSED, STRAY_AUDITED, STRAYS };

#define MULTICAST 0x55564e02 /* the guard's mark of what a user's network says to everybody (plan.py) */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} uvn_counters SEC(".maps");

/* packets for sockets that are no longer bound to the VRF they were made for */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, STRAYS);
	__type(key, __u32);
	__type(value, __u64);
} uvn_strays SEC(".maps");

/* packets that a user's network says to everybody, for sockets that are no user's */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, STRAYS);
	__type(key, __u32);
	__type(value, __u64);
} uvn_heard SEC(".maps");

/* ifindex of the VRF a socket was made for; an accepted socket has its listener's */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, __u32);
} uvn_socket SEC(".maps");

static __always_inline int count(void *counters, __u32 counter, int verdict)
{
	__u64 *value = bpf_map_lookup_elem(counters, &counter);

	if (value)
		*value += 1;
	return verdict;
}

SEC("cgroup/sock_create")
int uvn_membership(struct bpf_sock *sock)
{
	struct uid_prefix prefix = {.prefixlen = 32};
	struct config *config;
	__u32 uid, *ifindex, zero = 0;

	config = bpf_map_lookup_elem(&uvn_config, &zero);
	if (!config || bpf_get_netns_cookie(sock) != config->netns_cookie)
		return ALLOW;

	uid = (__u32)bpf_get_current_uid_gid(); /* the real UID */
	if (uid == 0 || uid < config->min_uid)
		return ALLOW;

	prefix.uid = bpf_htonl(uid);
	ifindex = bpf_map_lookup_elem(&uvn_uid, &prefix);
	if (!ifindex && config->mode == AUDIT)
		return count(&uvn_counters, AUDITED, ALLOW);
	if (!ifindex)
		return count(&uvn_counters, REFUSED, REFUSE);
	if (!*ifindex)
		return count(&uvn_counters, EXEMPT, ALLOW);
	if (!bpf_sk_storage_get(&uvn_socket, sock, ifindex, BPF_SK_STORAGE_GET_F_CREATE))
		return count(&uvn_counters, REFUSED, REFUSE); /* no memory */
	sock->bound_dev_if = *ifindex;
	return count(&uvn_counters, BOUND, ALLOW);
}

static __always_inline int drop(void *counters)
{
	__u32 zero = 0;
	struct config *config = bpf_map_lookup_elem(&uvn_config, &zero);

	if (!config || config->mode == AUDIT)
		return count(counters, STRAY_AUDITED, ALLOW);
	return count(counters, STRAY_REFUSED, REFUSE);
}

SEC("cgroup_skb/ingress")
int uvn_receive(struct __sk_buff *skb)
{
	struct bpf_sock *sock = skb->sk ? bpf_sk_fullsock(skb->sk) : NULL;
	__u32 *vrf = sock ? bpf_sk_storage_get(&uvn_socket, sock, NULL, 0) : NULL;

	if (!vrf)
		return skb->mark == MULTICAST ? drop(&uvn_heard) : ALLOW;
	return skb->ifindex == *vrf ? ALLOW : drop(&uvn_strays);
}

char _license[] SEC("license") = "GPL";
