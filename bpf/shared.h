/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Copyright (c) 2026 The UVN authors */
/* What all programs know of users and of the node: pinned maps, which membership makes and removes. */
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
