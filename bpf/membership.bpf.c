/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Copyright (c) 2026 The UVN authors */
/*
 * Binds every inet socket to the VRF of the user who makes it, and keeps it there.
 *
 * The kernel runs uvn_membership in inet_create() and inet6_create(), once for each socket() of AF_INET or AF_INET6, in the
 * context of the caller. No other family comes here, and sockets the kernel makes for itself do not either
 * (net/ipv4/af_inet.c, net/ipv6/af_inet6.c).
 *
 * A user could undo the binding, and a socket in another's VRF has a part in its ports, its look-ups and its ICMP errors. So
 * uvn_membership writes it down as well, and the socket stays there:
 *
 * setsockopt: SO_BINDTODEVICE and SO_BINDTOIFINDEX are refused, to programs with CAP_NET_RAW and of set-UID root too.
 * bind:       an IPv6 address of link scope is refused: it brings a device with it (__inet6_bind).
 * bind, connect: a datagram socket whose device connect() to AF_UNSPEC cleared (__udp_disconnect) gets it back first.
 * receive:    a packet that is about to enter a socket's queue (sk_filter_trim_cap) is dropped if it came by another network,
 *             or if it is what a user's network says to everybody and the socket is no user's.
 *
 * sockets.bpf.c has what does not come here.
 */
#include <linux/bpf.h>
#include <asm-generic/socket.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "shared.h"
#include "stay.h"

#define REFUSE 0 /* the call fails with EPERM, a packet is dropped */
#define ALLOW 1
#define BUFFER 4096 /* bytes of an option that the kernel has for programs, at least */

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

/* stay */

static __always_inline __u32 *home(struct bpf_sock *sock)
{
	return sock ? bpf_sk_storage_get(&uvn_socket, sock, NULL, 0) : NULL;
}

static __always_inline int moves(void)
{
	return enforced() ? REFUSE : ALLOW;
}

SEC("cgroup/setsockopt")
int uvn_stay_option(struct bpf_sockopt *ctx)
{
	if (ctx->optlen > BUFFER)
		ctx->optlen = 0; /* the kernel goes on with what the caller has, of which only a part is here */
	if (ctx->level == SOL_SOCKET && (ctx->optname == SO_BINDTODEVICE || ctx->optname == SO_BINDTOIFINDEX) && home(ctx->sk))
		return moves();
	return ALLOW;
}

static __always_inline int stays(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sock = ctx->sk;
	__u32 *vrf = home(sock);

	if (!vrf || sock->bound_dev_if == *vrf)
		return ALLOW;
	if (!sock->bound_dev_if && (!enforcing() || !bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTOIFINDEX, vrf, sizeof(*vrf))))
		return ALLOW;
	return moves();
}

SEC("cgroup/bind4")
int uvn_stay_bind4(struct bpf_sock_addr *ctx)
{
	return stays(ctx);
}

SEC("cgroup/bind6")
int uvn_stay_bind6(struct bpf_sock_addr *ctx)
{
	if (link_scope(ctx->user_ip6[0]) && home(ctx->sk) && !moves())
		return REFUSE;
	return stays(ctx);
}

SEC("cgroup/connect4")
int uvn_stay_conn4(struct bpf_sock_addr *ctx)
{
	return stays(ctx);
}

SEC("cgroup/connect6")
int uvn_stay_conn6(struct bpf_sock_addr *ctx)
{
	return stays(ctx);
}

/* receive */

static __always_inline int drop(void *counters)
{
	return enforcing() ? count(counters, STRAY_REFUSED, REFUSE) : count(counters, STRAY_AUDITED, ALLOW);
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
