/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Copyright (c) 2026 The UVN authors */
/*
 * Binds every inet socket to the VRF of the user who makes it.
 *
 * The kernel runs this in inet_create() and inet6_create(), once for each socket() of AF_INET or AF_INET6, in the
 * context of the caller. No other family comes here, and sockets the kernel makes for itself do not either
 * (net/ipv4/af_inet.c, net/ipv6/af_inet6.c).
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define REFUSE 0 /* socket() fails with EPERM */
#define ALLOW 1

enum mode { AUDIT, ENFORCE };
enum counter { BOUND, EXEMPT, REFUSED, AUDITED, COUNTERS };

struct uid_prefix {
	__u32 prefixlen; /* 32: one UID */
	__be32 uid;	 /* as the initial user namespace numbers it */
};

struct config {
	__u64 netns_cookie; /* of the only network namespace that is managed */
	__u32 min_uid;
	__u32 mode;
};

/* ifindex of the VRF; 0: exempt */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct uid_prefix);
	__type(value, __u32);
} uvn_uid SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
} uvn_config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} uvn_counters SEC(".maps");

static __always_inline int count(enum counter counter, int verdict)
{
	__u32 key = counter;
	__u64 *value = bpf_map_lookup_elem(&uvn_counters, &key);

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
	if (!ifindex)
		return config->mode == AUDIT ? count(AUDITED, ALLOW) : count(REFUSED, REFUSE);
	if (!*ifindex)
		return count(EXEMPT, ALLOW);
	sock->bound_dev_if = *ifindex;
	return count(BOUND, ALLOW);
}

char _license[] SEC("license") = "GPL";
