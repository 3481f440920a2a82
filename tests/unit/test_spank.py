# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The SPANK plug-in against a stand-in for slurmstepd and one for uvnd (needs a C compiler; tests/slurm has the real ones)."""

from __future__ import annotations

import json
import pathlib
import shutil
import socket
import subprocess
import threading
import time

import pytest

SOURCE = pathlib.Path(__file__).resolve().parents[2] / "spank"

HEADER = """
#include <stdint.h>
typedef void *spank_t;
enum { S_JOB_UID = 0, S_CTX_REMOTE = 2, ESPANK_SUCCESS = 0 };
#define SPANK_PLUGIN(name, version) const char plugin_name[] = #name; const unsigned int spank_plugin_version = version;
int spank_get_item(spank_t, int, ...);
int spank_context(void);
void slurm_error(const char *, ...);
"""

# Calls the callbacks in the order of a step: argv[1] is the context, the rest are arguments of plugstack.conf. The directory knows 2001 as NAME.
STAND_IN = """
#include <grp.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <slurm/spank.h>
static int context;
int slurm_spank_job_prolog(spank_t, int, char **), slurm_spank_init(spank_t, int, char **), slurm_spank_task_init(spank_t, int, char **);
int spank_context(void) { return context; }
int spank_get_item(spank_t s, int item, ...)
{
    va_list arguments;
    va_start(arguments, item);
    *va_arg(arguments, uid_t *) = 2001;
    va_end(arguments);
    return s || item ? 1 : 0;
}
struct passwd *getpwuid(uid_t uid)
{
    static struct passwd account = {.pw_gid = 2001};
    account.pw_name = getenv("NAME");
    return uid == 2001 && account.pw_name ? &account : NULL;
}
int getgrouplist(const char *user, gid_t gid, gid_t *groups, int *count)
{
    if (*count < 3)
        return -1;
    groups[0] = gid, groups[1] = 4294967294, groups[2] = (unsigned char)user[0];
    return *count = 3;
}
void slurm_error(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    puts("");
    va_end(arguments);
}
int main(int argc, char **argv)
{
    context = atoi(argv[1]);
    int prolog = context == 5 ? slurm_spank_job_prolog(0, argc - 2, argv + 2) : 0;
    int init = context == 5 ? 0 : slurm_spank_init(0, argc - 2, argv + 2);
    int task = context == 2 ? slurm_spank_task_init(0, argc - 2, argv + 2) : 0;
    printf("returned %d %d %d\\n", prolog, init, task);
}
"""
LOCAL, REMOTE, PROLOG = "1", "2", "5"


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """The program, and the path of the socket that it asks."""
    if shutil.which("cc") is None:
        pytest.fail("cc is missing: install gcc", pytrace=False)
    path = tmp_path_factory.mktemp("spank")
    (path / "slurm").mkdir()
    (path / "slurm" / "spank.h").write_text(HEADER)
    (path / "slurm" / "slurm.h").write_text("")
    (path / "main.c").write_text(STAND_IN)
    command = ["cc", "-Wall", "-Werror", f"-I{path}", f'-DSOCKET="{path}/s"', '-DBUILT_FOR="22.05"', SOURCE / "uvn.c", path / "main.c"]
    subprocess.run([*command, "-o", path / "stand-in"], check=True)
    return path


@pytest.fixture
def step(build):
    """A function: run the callbacks while uvnd answers `reply` after `delay` seconds; what was said, and the request."""

    def run(reply, *arguments, context=REMOTE, delay=0.0, name=None):
        requests = []
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(build / "s"))
            listener.listen()
            listener.settimeout(0.5)

            def answer():
                try:
                    connection, _peer = listener.accept()
                except TimeoutError:
                    return
                with connection:
                    requests.append(json.loads(connection.makefile("rb").readline()))
                    time.sleep(delay)
                    try:
                        connection.sendall(reply)
                    except BrokenPipeError:
                        pass

            thread = threading.Thread(target=answer)
            thread.start()
            environment = {"NAME": name} if name else {}
            done = subprocess.run([build / "stand-in", context, *arguments], env=environment, capture_output=True, text=True, check=True)
            thread.join()
        (build / "s").unlink()
        return done.stdout.splitlines(), requests

    return run


def test_with_a_network_the_task_starts(step):
    said, (request,) = step(b'{"ok": true}\n')
    assert said == ["returned 0 0 0"]
    assert (request.pop("job") > 1, request) == (True, {"op": "ensure", "brief": True, "uid": 2001})


@pytest.mark.parametrize(("name", "told"), [("alice", {"name": "alice"}), ('DOM\\a"b', {}), ("älice", {})])
def test_what_the_directory_says_of_the_account_is_brought_along(step, name, told):
    said, (request,) = step(b'{"ok": true}\n', name=name)
    assert said == ["returned 0 0 0"]
    assert request["accounts"] == [{"uid": 2001, **told, "gids": [2001, 2**32 - 2, name.encode()[0]]}]


def test_the_prolog_asks_and_never_fails(step):
    said, (request,) = step(b'{"ok": false, "error": "no"}\n', context=PROLOG)
    assert said[-1] == "returned 0 0 0" and request["job"] == 0


def test_srun_and_sbatch_ask_nobody(step):
    assert step(b"", context=LOCAL) == (["returned 0 0 0"], [])


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (b'{"ok": false, "error": "UID 2001 is in no range of \\"ranges\\""}\n', 'UID 2001 is in no range of "ranges"'),
        (b'{"ok": false, "error": "' + b"x" * 5000, "x" * 700),
        (b"", "uvnd ended before it answered"),
        (b'{"ok": tru', "uvnd ended before it answered"),
    ],
)
def test_a_refusal_is_said_and_ends_the_task(step, reply, sentence):
    said, _requests = step(reply)
    assert said[0] == said[1] and said[0].startswith("UVN: no private network for UID 2001 on this node: ")
    assert sentence in said[0] and said[2] == "returned 0 0 -1"


TEXTS = ["jürgen's \"ranges\"", "太郎 😀 \\ a/b", "two\nlines\tand\r\x1b[31m", "\x7f\0", "j\udcfcrgen", "\ud83dx"]
TEXTS += ["\x80\u07ff\u0800\uffff\U00010000\U0010ffff"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_the_sentence_is_what_uvnd_wrote(step, text, ascii_only):
    """Control characters are spaces, for a terminal's sake; a byte that is no UTF-8 is a question mark."""
    reply = json.dumps({"ok": False, "error": text}, ensure_ascii=ascii_only).encode("utf-8", "replace" if ascii_only else "namereplace")
    said, _requests = step(reply + b"\n")
    expected = "".join(" " if c < " " or c == "\x7f" else "?" if "\ud800" <= c <= "\udfff" else c for c in text)
    assert said[0] == f"UVN: no private network for UID 2001 on this node: {expected}; please tell the administrators"


@pytest.mark.parametrize("broken", ["\\u12", "\\u12g4", "\\ud83d\\u00", "\\", "\\u"])
def test_what_is_no_json_ends_the_sentence_somewhere(step, broken):
    said, _requests = step(b'{"ok": false, "error": "a' + broken.encode())
    assert said[0].startswith("UVN: no private network for UID 2001 on this node: a") and said[-1] == "returned 0 0 -1"


def test_a_character_is_not_cut_in_two(step):
    for filler in range(4):
        said, _requests = step(json.dumps({"ok": False, "error": "x" * filler + "😀" * 300}).encode())
        assert "�" not in said[0] and said[0].count("😀") > 150


def test_the_wait_is_bounded(step):
    start = time.monotonic()
    said, _requests = step(b'{"ok": true}\n', "timeout=1", delay=3)
    assert "no answer in time" in said[0] and said[-1] == "returned 0 0 -1"
    assert time.monotonic() - start < 10


def test_nobody_listens(build):
    said = subprocess.run([build / "stand-in", REMOTE], capture_output=True, text=True, check=True).stdout
    assert f"uvnd does not answer at {build}/s (No such file or directory)" in said and said.endswith("returned 0 0 -1\n")


def test_an_argument_that_is_none_is_named_and_passed_over(step):
    said, _requests = step(b'{"ok": true}\n', "timeout=never")
    assert said == ["uvn: unknown argument timeout=never; give timeout=SECONDS", "returned 0 0 0"]
