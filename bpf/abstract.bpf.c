/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Copyright (c) 2026 The UVN authors */
/*
 * Keeps users apart on abstract Unix sockets, which know neither VRFs nor file permissions.
 *
 * The kernel asks for every connect() of a Unix stream and for every datagram between Unix sockets (security/security.c),
 * where BPF is one of its active security modules. Structures are read by the offsets of the kernel that runs (CO-RE).
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "shared.h"

enum mode { AUDIT, ENFORCE };
enum counter { REFUSED, AUDITED, COUNTERS };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} uvn_abstract SEC(".maps");

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
typedef struct {
	__u32 val;
} kuid_t;
struct sock {
	kuid_t sk_uid;
};
struct socket {
	struct sock *sk;
};
struct sockaddr_un {
	char sun_path[108];
};
struct unix_address {
	int len;
	struct sockaddr_un name[0];
};
struct unix_sock {
	struct unix_address *addr;
};
#pragma clang attribute pop

static __always_inline int count(__u32 counter, int verdict)
{
	__u64 *value = bpf_map_lookup_elem(&uvn_abstract, &counter);

	if (value)
		*value += 1;
	return verdict;
}

/* The VRF of a managed user, 0 for one without a network; *managed tells others. */
static __always_inline __u32 network(__u32 uid, struct config *config, int *managed)
{
	struct uid_prefix prefix = {.prefixlen = 32, .uid = bpf_htonl(uid)};
	__u32 *ifindex = bpf_map_lookup_elem(&uvn_uid, &prefix);

	*managed = uid && uid >= config->min_uid && !(ifindex && !*ifindex);
	return ifindex ? *ifindex : 0;
}

static __always_inline int decide(struct sock *other)
{
	struct unix_address *address = BPF_CORE_READ((struct unix_sock *)other, addr);
	__u32 zero = 0, mine, theirs, my_network, their_network;
	int i_am, they_are;
	struct config *config;
	char first;

	if (!address) /* one of a pair, or a client */
		return 0;
	bpf_core_read(&first, sizeof(first), &address->name[0].sun_path[0]);
	config = bpf_map_lookup_elem(&uvn_config, &zero);
	if (first || !config)
		return 0;

	mine = (__u32)bpf_get_current_uid_gid();
	theirs = BPF_CORE_READ(other, sk_uid.val);
	my_network = network(mine, config, &i_am);
	their_network = network(theirs, config, &they_are);
	if (!i_am || !they_are || mine == theirs || (my_network && my_network == their_network))
		return 0;
	return config->mode == AUDIT ? count(AUDITED, 0) : count(REFUSED, -EPERM);
}

/* The arguments of a hook, and after them what another program decided. */

SEC("lsm/unix_stream_connect") /* sock, other, new */
int uvn_connect(__u64 *arguments)
{
	return arguments[3] ? (int)arguments[3] : decide((struct sock *)arguments[1]);
}

SEC("lsm/unix_may_send") /* sock, other */
int uvn_send(__u64 *arguments)
{
	return arguments[2] ? (int)arguments[2] : decide(BPF_CORE_READ((struct socket *)arguments[1], sk));
}

char _license[] SEC("license") = "GPL";
