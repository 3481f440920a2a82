/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Copyright (c) 2026 The UVN authors */
/*
 * Keeps a socket in the VRF it was made for, where no cgroup program is asked (membership.bpf.c has the others): by 32-bit system calls,
 * on ping and raw sockets, and before a port is taken by a socket that has no device.
 *
 * setsockopt: as there. Programs on the cgroup are not asked for a 32-bit caller's (__sys_setsockopt).
 * connect:    to AF_UNSPEC, which clears the device, is for UDP sockets whose port is not their own choice: with the device goes that port.
 * bind:       an address of link scope is refused; so is a chosen port after connect() to AF_UNSPEC. Of two threads, one is first.
 * sendmsg:    a socket without its device is refused, before the kernel gives it a port among all networks (inet_autobind). So is a message
 *             that may name a device, from a socket that a program of set-UID root opened for a user: the guard takes it for root's.
 *
 * Structures are read by the offsets of the kernel that runs (CO-RE).
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <asm-generic/socket.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "shared.h"
#include "stay.h"

enum { UNSPEC = 0, INET6 = 10 };  /* AF_ */
enum { DGRAM = 2, RAW = 3 };	  /* SOCK_ */
enum use { FRESH, CHOSE_PORT, DISSOLVED };

/* what a socket was used for first; it may not be used for the other any more */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} uvn_use SEC(".maps");

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct sock_common {
	int skc_bound_dev_if;
};
typedef struct {
	__u32 val;
} kuid_t;
struct sock {
	struct sock_common __sk_common;
	kuid_t sk_uid;
	__u16 sk_type;
	__u16 sk_protocol;
};
struct socket {
	struct sock *sk;
};
struct msghdr {
	void *msg_name;
	int msg_namelen;
	unsigned long msg_controllen;
};
#pragma clang attribute pop

static __always_inline __u32 *home(struct sock *sock)
{
	return sock ? bpf_sk_storage_get(&uvn_socket, sock, NULL, 0) : NULL;
}

static __always_inline int moves(void)
{
	return enforced() ? -EPERM : 0;
}

/* Whether the socket was not used for anything else than `use`. */
static __always_inline int used(struct sock *sock, __u32 use)
{
	__u32 *known = bpf_sk_storage_get(&uvn_use, sock, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	__u32 before;

	if (!known) /* no memory */
		return 0;
	before = __sync_val_compare_and_swap(known, FRESH, use);
	return before == FRESH || before == use;
}

/* Whether a message may name a device, in a control message or as a scope id. */
static __always_inline int names_device(struct msghdr *message)
{
	struct sockaddr_in6 address = {};

	if (message->msg_controllen)
		return 1;
	if (message->msg_namelen < (int)sizeof(address))
		return 0;
	bpf_probe_read_kernel(&address, sizeof(address), message->msg_name);
	return address.sin6_family == INET6 && address.sin6_scope_id;
}

static __always_inline int opened_by_system(struct sock *sock)
{
	__u32 zero = 0;
	struct config *config = bpf_map_lookup_elem(&uvn_config, &zero);

	return config && sock->sk_uid.val < config->min_uid;
}

/* The arguments of a hook, and after them what another program decided. */

SEC("lsm/socket_setsockopt") /* socket, level, optname */
int uvn_lsm_option(__u64 *arguments)
{
	int level = arguments[1], option = arguments[2];

	if (arguments[3])
		return (int)arguments[3];
	if (level != SOL_SOCKET || (option != SO_BINDTODEVICE && option != SO_BINDTOIFINDEX))
		return 0;
	return home(((struct socket *)arguments[0])->sk) ? moves() : 0;
}

SEC("lsm/socket_connect") /* socket, address, length */
int uvn_lsm_connect(__u64 *arguments)
{
	struct sock *sock = ((struct socket *)arguments[0])->sk;
	__u16 family = 0;

	if (arguments[3])
		return (int)arguments[3];
	bpf_probe_read_kernel(&family, sizeof(family), (void *)arguments[1]);
	if (family != UNSPEC || !home(sock) || (sock->sk_type != DGRAM && sock->sk_type != RAW))
		return 0;
	return sock->sk_protocol == IPPROTO_UDP && used(sock, DISSOLVED) ? 0 : moves();
}

SEC("lsm/socket_bind") /* socket, address, length */
int uvn_lsm_bind(__u64 *arguments)
{
	struct sock *sock = ((struct socket *)arguments[0])->sk;
	struct sockaddr_in6 address = {}; /* of IPv4 the port is in the same place */

	if (arguments[3])
		return (int)arguments[3];
	if (!home(sock))
		return 0;
	bpf_probe_read_kernel(&address, sizeof(address), (void *)arguments[1]);
	if (address.sin6_family == INET6 && link_scope(address.sin6_addr.s6_addr32[0]))
		return moves();
	return !address.sin6_port || used(sock, CHOSE_PORT) ? 0 : moves();
}

SEC("lsm/socket_sendmsg") /* socket, message, size */
int uvn_lsm_send(__u64 *arguments)
{
	struct sock *sock = ((struct socket *)arguments[0])->sk;

	if (arguments[3])
		return (int)arguments[3];
	if (!sock || (sock->__sk_common.skc_bound_dev_if && (!names_device((struct msghdr *)arguments[1]) || !opened_by_system(sock))))
		return 0;
	return home(sock) ? moves() : 0;
}

char _license[] SEC("license") = "GPL";
