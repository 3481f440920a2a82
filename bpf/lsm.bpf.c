/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Copyright (c) 2026 The UVN authors */
/*
 * Keeps users apart where there are no networks: the kernel asks, where BPF is one of its active security modules (security/security.c).
 *
 * create:        users have sockets of the families that programs need, and of no other: those either are bound to the user's VRF
 *                by membership, or carry nothing to other users.
 * connect, send: abstract Unix sockets know neither VRFs nor file permissions. The kernel asks for every connect() of a Unix
 *                stream and for every datagram between Unix sockets.
 *
 * Structures are read by the offsets of the kernel that runs (CO-RE).
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/netlink.h>
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

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} uvn_families SEC(".maps");

/* AF_ and SOCK_, which no header of the kernel's interface has */
enum family { UNIX = 1, INET = 2, INET6 = 10, NETLINK = 16, PACKET = 17, ALG = 38 };
enum type { RAW = 3 };

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
struct net {
	__u64 net_cookie;
};
struct nsproxy {
	struct net *net_ns;
};
struct task_struct {
	struct nsproxy *nsproxy;
};
#pragma clang attribute pop

/* What becomes of a call that is to be refused with an error. */
static __always_inline int refuse(void *counters, struct config *config, int error)
{
	__u32 counter = config->mode == AUDIT ? AUDITED : REFUSED;
	__u64 *value = bpf_map_lookup_elem(counters, &counter);

	if (value)
		*value += 1;
	return config->mode == AUDIT ? 0 : error;
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
	return refuse(&uvn_abstract, config, -EPERM);
}

/*
 * 0, or the error of a kernel that does not have it, which programs know how to go on from.
 *
 * Within a network namespace of the user's own, what stays within it is harmless: packet sockets, and all of NETLINK and IP.
 * Of NETLINK, only NETLINK_USERSOCK lets users send to each other (NL_CFG_F_NONROOT_SEND). Raw sockets take CAP_NET_RAW, and
 * membership binds them; MPTCP, SMC and L2TP have sockets underneath that it does not see.
 */
static __always_inline int missing(int family, int type, int protocol, int own_namespace)
{
	if (family == UNIX || family == ALG)
		return 0;
	if (family == NETLINK)
		return protocol != NETLINK_USERSOCK || own_namespace ? 0 : -EPROTONOSUPPORT;
	if (family == INET || family == INET6) {
		if (type == RAW || protocol == IPPROTO_IP || protocol == IPPROTO_TCP || protocol == IPPROTO_UDP)
			return 0;
		if (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6 || protocol == IPPROTO_SCTP)
			return 0;
		if (protocol == IPPROTO_DCCP || protocol == IPPROTO_UDPLITE || own_namespace)
			return 0;
		return -EPROTONOSUPPORT;
	}
	return family == PACKET && own_namespace ? 0 : -EAFNOSUPPORT;
}

static __always_inline int create(int family, int type, int protocol)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	__u32 zero = 0;
	struct config *config = bpf_map_lookup_elem(&uvn_config, &zero);
	int managed, error;

	if (!config)
		return 0;
	error = missing(family, type, protocol, BPF_CORE_READ(task, nsproxy, net_ns, net_cookie) != config->netns_cookie);
	if (!error)
		return 0;
	network((__u32)bpf_get_current_uid_gid(), config, &managed);
	return managed ? refuse(&uvn_families, config, error) : 0;
}

/* The arguments of a hook, and after them what another program decided. */

SEC("lsm/socket_create") /* family, type, protocol, whether it is the kernel's own */
int uvn_create(__u64 *arguments)
{
	if (arguments[4] || (int)arguments[3])
		return (int)arguments[4];
	return create((int)arguments[0], (int)arguments[1], (int)arguments[2]);
}

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
