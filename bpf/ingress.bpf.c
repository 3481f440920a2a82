/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Copyright (c) 2026 The UVN authors */
/*
 * Lets listed hosts reach users' TCP and UDP listeners, and slurmstepd the network of its job's user.
 *
 * bind:    one user at a time has a port of the listed ranges, on the whole node; control ports are nobody's.
 * ingress: a connection or datagram from a listed host to such a port goes into the network of the user who has it. The mark
 *          makes a connection's replies go the way that root's packets go, since the host may have no part of the user's network.
 * connect: a TCP connection of root in a registered job's cgroup is made in the network of the job's user.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <asm-generic/socket.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "shared.h"

#define REFUSE 0 /* EPERM */
#define ALLOW 1

#define MARK 0x55564e01 /* of what goes the way of root's packets although a user's socket sends it; users cannot set it */
#define RANGES 16
#define LEVELS 10 /* of cgroups above a job's */
#define NAME 16

#define lookup bpf_map_lookup_elem
#define update bpf_map_update_elem

struct range {
	__u16 first, last; /* both 0: no more ranges */
};

struct ranges {
	struct range range[RANGES];
};

struct open {
	struct ranges protocol[2]; /* TCP, UDP */
};

struct address {
	__be32 word[4]; /* IPv4 as ::ffff:a.b.c.d */
};

struct host_prefix {
	__u32 prefixlen;
	struct address address;
};

struct flow {
	struct address source, destination;
	__be16 ports[2];
};

struct owner {
	struct bpf_spin_lock lock;
	__u32 uid;
	__u32 sockets;
};

struct name {
	char vrf[NAME];
};

enum ports { TCP, UDP, CONTROL, PORTS };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PORTS);
	__type(key, __u32);
	__type(value, struct ranges);
} uvn_ports SEC(".maps");

/* which ports are open to which hosts */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct host_prefix);
	__type(value, struct open);
} uvn_hosts SEC(".maps");

/* by key_of() */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * 65536);
	__type(key, __u32);
	__type(value, struct owner);
} uvn_owner SEC(".maps");

/* the key of uvn_owner that a socket is counted for */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} uvn_bound SEC(".maps");

/* UID; a connection goes on when its listener has ended */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow);
	__type(value, __u32);
} uvn_flow SEC(".maps");

/* the VRF of the user of a job, by the job's cgroup; the kernel gives no cgroup id twice */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct name);
} uvn_job SEC(".maps");

static __always_inline struct config *managed(void *ctx)
{
	__u32 zero = 0;
	struct config *config = lookup(&uvn_config, &zero);

	return config && bpf_get_netns_cookie(ctx) == config->netns_cookie ? config : NULL;
}

static __always_inline __u32 vrf_of(__u32 uid)
{
	struct uid_prefix prefix = {.prefixlen = 32, .uid = bpf_htonl(uid)};
	__u32 *ifindex = lookup(&uvn_uid, &prefix);

	return ifindex ? *ifindex : 0;
}

static __always_inline int within(const struct ranges *ranges, __u16 port)
{
#pragma unroll
	for (int i = 0; i < RANGES; i++)
		if (ranges->range[i].last && port >= ranges->range[i].first && port <= ranges->range[i].last)
			return 1;
	return 0;
}

static __always_inline int is(__u32 ports, __u16 port)
{
	struct ranges *ranges = lookup(&uvn_ports, &ports);

	return ranges && within(ranges, port);
}

/* A port of TCP or UDP in uvn_owner. */
static __always_inline __u32 key_of(enum ports protocol, __u16 port)
{
	return (protocol == UDP) << 16 | port;
}

/* bind */

static __always_inline int bound(struct bpf_sock *sock)
{
	enum ports protocol = sock->protocol == IPPROTO_TCP ? TCP : UDP;
	__u32 uid = (__u32)bpf_get_current_uid_gid(), port = sock->src_port, key = key_of(protocol, port), other;
	struct config *config = managed(sock);
	struct owner *owner;
	__u32 *counted;

	if (sock->protocol != IPPROTO_TCP && sock->protocol != IPPROTO_UDP)
		return ALLOW;
	if (!config || !uid || uid < config->min_uid || !vrf_of(uid))
		return ALLOW;
	if (protocol == TCP && is(CONTROL, port))
		return REFUSE;
	if (!is(protocol, port))
		return ALLOW;
	owner = lookup(&uvn_owner, &key);
	counted = bpf_sk_storage_get(&uvn_bound, sock, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!owner || !counted)
		return REFUSE;

	bpf_spin_lock(&owner->lock);
	other = owner->sockets ? owner->uid : uid;
	if (other == uid) {
		owner->uid = uid;
		owner->sockets += 1;
	}
	bpf_spin_unlock(&owner->lock);
	if (other != uid)
		return REFUSE;
	*counted = key;
	return ALLOW;
}

SEC("cgroup/post_bind4")
int uvn_bind4(struct bpf_sock *sock)
{
	return bound(sock);
}

SEC("cgroup/post_bind6")
int uvn_bind6(struct bpf_sock *sock)
{
	return bound(sock);
}

SEC("cgroup/sock_release")
int uvn_release(struct bpf_sock *sock)
{
	__u32 *counted = bpf_sk_storage_get(&uvn_bound, sock, 0, 0);
	struct owner *owner;
	__u32 key;

	if (!counted || !*counted)
		return ALLOW;
	key = *counted;
	*counted = 0;
	owner = lookup(&uvn_owner, &key);
	if (!owner)
		return ALLOW;
	bpf_spin_lock(&owner->lock);
	owner->sockets -= 1;
	bpf_spin_unlock(&owner->lock);
	return ALLOW;
}

/* ingress */

static __always_inline void map4(struct address *address, __be32 ipv4)
{
	address->word[2] = bpf_htonl(0xffff);
	address->word[3] = ipv4;
}

/* Offset of the header of TCP or UDP, 0 if there is none at a fixed place. */
static __always_inline __u32 addresses(struct __sk_buff *skb, struct flow *flow, __u8 *protocol)
{
	struct ipv6hdr ipv6;
	struct iphdr ipv4;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ipv4, sizeof(ipv4)) || ipv4.frag_off & bpf_htons(0x3fff))
			return 0;
		*protocol = ipv4.protocol;
		map4(&flow->source, ipv4.saddr);
		map4(&flow->destination, ipv4.daddr);
		return ETH_HLEN + ipv4.ihl * 4;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ipv6, sizeof(ipv6)))
			return 0;
		*protocol = ipv6.nexthdr;
		__builtin_memcpy(&flow->source, &ipv6.saddr, sizeof(flow->source));
		__builtin_memcpy(&flow->destination, &ipv6.daddr, sizeof(flow->destination));
		return ETH_HLEN + sizeof(ipv6);
	}
	return 0;
}

/* The UID who has the port, if the host may reach it; 0: nobody. */
static __always_inline __u32 admitted(const struct flow *flow, enum ports protocol)
{
	struct host_prefix host = {.prefixlen = 128, .address = flow->source};
	struct open *open = lookup(&uvn_hosts, &host);
	__u16 port = bpf_ntohs(flow->ports[1]);
	__u32 key = key_of(protocol, port);
	struct owner *owner = lookup(&uvn_owner, &key);

	return open && within(&open->protocol[protocol == UDP], port) && owner && owner->sockets ? owner->uid : 0;
}

/* The UID whose connection a segment belongs to: a SYN decides it, and the rest follow. */
static __always_inline __u32 connected(struct __sk_buff *skb, __u32 offset, const struct flow *flow)
{
	__u32 uid, *known;
	struct tcphdr tcp;

	if (bpf_skb_load_bytes(skb, offset, &tcp, sizeof(tcp)))
		return 0;
	if (!tcp.syn || tcp.ack) {
		known = lookup(&uvn_flow, flow);
		return known ? *known : 0;
	}
	uid = admitted(flow, TCP);
	if (uid)
		update(&uvn_flow, flow, &uid, BPF_ANY);
	else
		bpf_map_delete_elem(&uvn_flow, flow);
	return uid;
}

SEC("tc")
int uvn_ingress(struct __sk_buff *skb)
{
	__be32 mac_head;
	__be16 mac_tail;
	struct flow flow = {};
	enum ports protocol;
	__u32 offset, vrf, uid;
	__u8 number = 0;

	offset = addresses(skb, &flow, &number);
	if (!offset || (number != IPPROTO_TCP && number != IPPROTO_UDP))
		return TC_ACT_OK;
	if (bpf_skb_load_bytes(skb, offset, flow.ports, sizeof(flow.ports)))
		return TC_ACT_OK;
	protocol = number == IPPROTO_TCP ? TCP : UDP;
	if (!is(protocol, bpf_ntohs(flow.ports[1])))
		return TC_ACT_OK;
	uid = protocol == TCP ? connected(skb, offset, &flow) : admitted(&flow, UDP);
	vrf = uid ? vrf_of(uid) : 0;
	if (!vrf)
		return TC_ACT_OK;
	skb->mark = MARK;
	mac_head = bpf_htonl(0x02550000 | uid >> 16); /* vrf_mac() of plan.py */
	mac_tail = bpf_htons((__u16)uid);
	if (bpf_skb_store_bytes(skb, 0, &mac_head, sizeof(mac_head), 0) ||
	    bpf_skb_store_bytes(skb, sizeof(mac_head), &mac_tail, sizeof(mac_tail), 0))
		return TC_ACT_SHOT;
	return bpf_redirect(vrf, BPF_F_INGRESS);
}

/* connect */

static __always_inline int slurmstepd(void)
{
	char comm[16];

	if (bpf_get_current_comm(comm, sizeof(comm)))
		return 0;
	return comm[0] == 's' && comm[1] == 'l' && comm[2] == 'u' && comm[3] == 'r' && comm[4] == 'm' && comm[5] == 's' &&
	       comm[6] == 't' && comm[7] == 'e' && comm[8] == 'p' && comm[9] == 'd' && !comm[10];
}

static __always_inline int connecting(struct bpf_sock_addr *ctx)
{
	struct name *name = NULL;
	__u32 mark = MARK;
	__u64 cgroup;

	/* An accepted socket that connects elsewhere would send past its user's network. */
	if (ctx->sk && ctx->sk->mark == MARK)
		return REFUSE;
	if (ctx->protocol != IPPROTO_TCP || (__u32)bpf_get_current_uid_gid() || !managed(ctx))
		return ALLOW;
	if (is(CONTROL, bpf_ntohs(ctx->user_port)))
		return ALLOW;
	for (int level = 1; level <= LEVELS && !name; level++) {
		cgroup = bpf_get_current_ancestor_cgroup_id(level);
		if (cgroup)
			name = lookup(&uvn_job, &cgroup);
	}
	/* Where the user has no network, the step is to say so: the guard lets the mark pass, though the socket is the user's. */
	if (!name || bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTODEVICE, name->vrf, sizeof(name->vrf)))
		if (slurmstepd())
			bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
	return ALLOW;
}

SEC("cgroup/connect4")
int uvn_connect4(struct bpf_sock_addr *ctx)
{
	if ((bpf_ntohl(ctx->user_ip4) >> 24) == IN_LOOPBACKNET)
		return ALLOW;
	return connecting(ctx);
}

SEC("cgroup/connect6")
int uvn_connect6(struct bpf_sock_addr *ctx)
{
	if (!ctx->user_ip6[0] && !ctx->user_ip6[1] && !ctx->user_ip6[2] && ctx->user_ip6[3] == bpf_htonl(1))
		return ALLOW;
	return connecting(ctx);
}

char _license[] SEC("license") = "GPL";
