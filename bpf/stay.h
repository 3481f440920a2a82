/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Copyright (c) 2026 The UVN authors */
/* What the programs share that keep a socket in the VRF it was made for. */

enum move { MOVE_REFUSED, MOVE_AUDITED, MOVES };

/* ifindex of the VRF a socket was made for; an accepted socket has its listener's */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, __u32);
} uvn_socket SEC(".maps");

/* calls that would take a socket elsewhere */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MOVES);
	__type(key, __u32);
	__type(value, __u64);
} uvn_moves SEC(".maps");

static __always_inline int enforcing(void)
{
	__u32 zero = 0;
	struct config *config = bpf_map_lookup_elem(&uvn_config, &zero);

	return config && config->mode;
}

/* Counts such a call; whether it is refused. */
static __always_inline int enforced(void)
{
	__u32 move = enforcing() ? MOVE_REFUSED : MOVE_AUDITED;
	__u64 *value = bpf_map_lookup_elem(&uvn_moves, &move);

	if (value)
		*value += 1;
	return move == MOVE_REFUSED;
}

/* Whether an IPv6 address that begins so takes a scope id, which bind() makes the socket's device (__ipv6_addr_needs_scope_id). */
static __always_inline int link_scope(__be32 first)
{
	__u32 word = bpf_ntohl(first);

	return word >> 22 == 0xfe80 >> 6 || (word >> 24 == 0xff && ((word >> 16 & 15) == 1 || (word >> 16 & 15) == 2));
}
