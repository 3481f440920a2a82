/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Copyright (c) 2026 The UVN authors */
/*
 * SPANK plug-in: no task of a job starts without its user's network. See docs/slurm.md.
 *
 *     required /usr/lib/uvn/spank.so [timeout=SECONDS]
 *
 * The network is made in the prolog, before anything connects, and asked for again by every step. A refusal ends the task
 * before it becomes the user's program: only there does Slurm take a failure for the step's and not for the node's, and only
 * there does the user read why. All other callbacks succeed. Slurm up to 23.02 takes a positive result for success.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <slurm/slurm.h>
#include <slurm/spank.h>

SPANK_PLUGIN(uvn, 1);

/* The role reads it, to say which Slurm the file is for. */
__attribute__((used)) static const char built_for[] = "uvn: built for Slurm " BUILT_FOR;

#ifndef SOCKET
#define SOCKET "/run/uvn/uvnd.sock"
#endif
#define TIMEOUT 60
#define GROUPS 65536 /* NGROUPS_MAX */
#define FAILURE (-1)
#define PLAIN "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._@+ $"

static char refusal[1024]; /* why this step has no network; empty: it has one */

/* Seconds to wait for uvnd. */
static int timeout_of(int ac, char **av)
{
	int seconds = TIMEOUT, given;

	for (int i = 0; i < ac; i++)
		if (sscanf(av[i], "timeout=%d", &given) == 1 && given > 0)
			seconds = given;
		else
			slurm_error("uvn: unknown argument %s; give timeout=SECONDS", av[i]);
	return seconds;
}

/* The number in the four hexadecimal digits of a \u of JSON, -1 if there are not four. */
static int unit(const char *in)
{
	int value = 0;

	for (int i = 0; i < 4; i++) {
		if (!isxdigit((unsigned char)in[i]))
			return -1;
		value = value << 4 | (isdigit((unsigned char)in[i]) ? in[i] - '0' : tolower((unsigned char)in[i]) - 'a' + 10);
	}
	return value;
}

/*
 * One character of a string of JSON, whose end has not come, into UTF-8: `out` has room for 4 bytes and their end. Control characters are
 * spaces, and half of a surrogate pair, as Python has for a byte that is no UTF-8, is a question mark. Returns where the next one begins.
 */
static const char *character(const char *in, char *out)
{
	int code = (unsigned char)*in, low;

	memset(out, 0, 5);
	if (*in != '\\' || !in[1]) {
		out[0] = code < ' ' || code == 0x7f ? ' ' : *in;
		return in + 1;
	}
	if (in[1] != 'u' || (code = unit(in + 2)) < 0) {
		out[0] = strchr("bfnrt", in[1]) ? ' ' : in[1];
		return in + 2;
	}
	in += 6;
	if (code >= 0xd800 && code < 0xdc00 && in[0] == '\\' && in[1] == 'u' && (low = unit(in + 2)) >= 0xdc00 && low < 0xe000) {
		code = 0x10000 + ((code - 0xd800) << 10 | (low - 0xdc00));
		in += 6;
	}
	if (code < 0x80) {
		out[0] = code < ' ' || code == 0x7f ? ' ' : code;
	} else if (code < 0x800) {
		out[0] = 0xc0 | code >> 6;
		out[1] = 0x80 | (code & 0x3f);
	} else if (code >= 0xd800 && code < 0xe000) {
		out[0] = '?';
	} else if (code < 0x10000) {
		out[0] = 0xe0 | code >> 12;
		out[1] = 0x80 | (code >> 6 & 0x3f);
		out[2] = 0x80 | (code & 0x3f);
	} else {
		out[0] = 0xf0 | code >> 18;
		out[1] = 0x80 | (code >> 12 & 0x3f);
		out[2] = 0x80 | (code >> 6 & 0x3f);
		out[3] = 0x80 | (code & 0x3f);
	}
	return in;
}

/* The sentence in {"ok": false, "error": "..."}, as json.dumps of Python writes it. */
static void sentence(const char *reply, char *text, size_t size)
{
	const char *key = "\"error\": \"", *in = strstr(reply, key);
	size_t length = 0;
	char next[5];

	for (in = in ? in + strlen(key) : ""; *in && *in != '"' && length + sizeof(next) <= size; length += strlen(next)) {
		in = character(in, next);
		memcpy(text + length, next, sizeof(next));
	}
	text[length] = '\0';
	if (!length)
		snprintf(text, size, "uvnd ended before it answered");
}

/*
 * What the directory says of a UID, as uvnd wants it: ", "accounts": [...]". Nothing if it does not answer; uvnd then goes by what
 * it knows. The name is for uvnd's journal; one that JSON would have to quote is left out. To be freed, NULL without memory.
 */
static char *introduction(uid_t uid)
{
	struct passwd *account = getpwuid(uid);
	int count = GROUPS;
	gid_t *groups = malloc(sizeof(*groups) * GROUPS);
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	if (out && groups && account && getgrouplist(account->pw_name, account->pw_gid, groups, &count) >= 0) {
		fprintf(out, ", \"accounts\": [{\"uid\": %u, ", (unsigned)uid);
		if (strspn(account->pw_name, PLAIN) == strlen(account->pw_name))
			fprintf(out, "\"name\": \"%s\", ", account->pw_name);
		fprintf(out, "\"gids\": [");
		for (int i = 0; i < count; i++)
			fprintf(out, i ? ", %u" : "%u", (unsigned)groups[i]);
		fprintf(out, "]}]");
	}
	if (out)
		fclose(out);
	free(groups);
	return text;
}

/* Send a line and read until the other side closes. Returns 0, or -1 and errno. */
static int converse(int fd, const char *line, int seconds, char *reply, size_t size)
{
	struct timeval limit = {.tv_sec = seconds};
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = SOCKET};
	time_t end = time(NULL) + seconds;
	size_t length = 0;
	ssize_t count;

	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) ||
	    connect(fd, (struct sockaddr *)&address, sizeof(address)) || send(fd, line, strlen(line), MSG_NOSIGNAL) < 0)
		return -1;
	while (length + 1 < size && (count = recv(fd, reply + length, size - 1 - length, 0)) != 0) {
		if (count < 0 && errno != EINTR)
			return -1;
		length += count > 0 ? count : 0;
		if (time(NULL) > end) {
			errno = ETIMEDOUT;
			return -1;
		}
	}
	reply[length] = '\0';
	return 0;
}

/* Ask uvnd for the network of the job's user; `pid` is a process of the job, or 0. Fills `refusal`. */
static void ask(spank_t spank, int ac, char **av, pid_t pid)
{
	char *account, *line, reply[2048] = "", why[768];
	uid_t uid;
	int fd, failed;

	refusal[0] = '\0';
	if (spank_get_item(spank, S_JOB_UID, &uid) != ESPANK_SUCCESS) {
		snprintf(refusal, sizeof(refusal), "uvn: Slurm does not say whose job this is");
		return;
	}
	account = introduction(uid);
	if (asprintf(&line, "{\"op\": \"ensure\", \"brief\": true, \"uid\": %u, \"job\": %d%s}\n", (unsigned)uid, (int)pid, account ? account : "") < 0)
		line = NULL;
	free(account);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	failed = !line || fd < 0 || converse(fd, line, timeout_of(ac, av), reply, sizeof(reply));
	if (failed)
		snprintf(why, sizeof(why), "uvnd does not answer at " SOCKET " (%s)",
			 errno == EAGAIN ? "no answer in time" : strerror(errno));
	if (fd >= 0)
		close(fd);
	free(line);
	if (!failed && !strncmp(reply, "{\"ok\": true", strlen("{\"ok\": true")))
		return;
	if (!failed)
		sentence(reply, why, sizeof(why));
	snprintf(refusal, sizeof(refusal), "UVN: no private network for UID %u on this node: %s; please tell the administrators",
		 (unsigned)uid, why);
	slurm_error("%s", refusal);
}

/* On every node of an allocation, before its first step, in a process of slurmd's. */
int slurm_spank_job_prolog(spank_t spank, int ac, char **av)
{
	ask(spank, ac, av, 0);
	return 0;
}

/* In slurmstepd, which is in the job's cgroup and has not yet connected to anybody. */
int slurm_spank_init(spank_t spank, int ac, char **av)
{
	if (spank_context() == S_CTX_REMOTE)
		ask(spank, ac, av, getpid());
	return 0;
}

/* In the task, as the user, whose terminal or file is its standard error; the next step is the user's program. */
int slurm_spank_task_init(spank_t spank, int ac, char **av)
{
	(void)spank, (void)ac, (void)av;
	if (!refusal[0])
		return 0;
	slurm_error("%s", refusal);
	return FAILURE;
}
