# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The membership program on a real kernel, in a cgroup, a BPF file system and a network namespace of its own."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import time
import traceback

import pytest
from uvn.bpf import cgroup2_mount, libbpf
from uvn.errors import UvnError
from uvn.membership import COUNTERS, EXEMPT, MAX_ENTRIES, Config, Membership, prefixes

OBJECT = pathlib.Path(__file__).resolve().parents[2] / "roles" / "uvn_node" / "files" / "membership.bpf.o"

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SO_BINDTODEVICE, SO_BINDTOIFINDEX = socket.SO_BINDTODEVICE, 62
BPF_CGROUP_INET_SOCK_CREATE = 2
PR_SET_DUMPABLE = 4

MIN_UID = 1000
ALICE, BOB, NOBODY = 2001, 2002, 2003  # NOBODY has no entry
SYSTEM = 33
DEVICE, OTHER_DEVICE = "uvntest1", "uvntest2"
INET = [
    (family, kind) for family in (socket.AF_INET, socket.AF_INET6) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
]

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags):
    if _libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture(scope="module", autouse=True)
def netns():
    """A network namespace of the test's own, with two devices to bind to: VRFs where the kernel has them."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    unshare(CLONE_NEWNET)
    vrf = subprocess.run(["ip", "link", "add", DEVICE, "type", "vrf", "table", "101"], capture_output=True, check=False)
    if vrf.returncode == 0:
        ip("link", "add", OTHER_DEVICE, "type", "vrf", "table", "102")
    else:
        ip("link", "add", DEVICE, "type", "bridge")
        ip("link", "add", OTHER_DEVICE, "type", "bridge")
    yield
    _libc.setns(home, CLONE_NEWNET)
    os.close(home)


@pytest.fixture(scope="module")
def bpffs(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpf")
    subprocess.run(["mount", "-t", "bpf", "bpf", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def cgroup():
    path = pathlib.Path(cgroup2_mount(), f"uvn-test-{os.getpid()}")
    path.mkdir()
    yield path
    if path.exists():
        path.rmdir()


@pytest.fixture
def idle(bpffs, cgroup):
    """Membership that is not loaded."""
    membership = Membership(str(bpffs / "uvn"), str(cgroup), str(OBJECT))
    yield membership
    membership.detach()
    assert not (bpffs / "uvn").exists()


@pytest.fixture
def config(netns):
    return Config(Membership.netns_cookie(), MIN_UID, enforce=True)


@pytest.fixture
def membership(idle, config):
    """Membership that is attached and has an entry for alice."""
    assert idle.load(config)
    idle.set(ALICE, socket.if_nametoindex(DEVICE))
    assert idle.attach()
    return idle


def start(function):
    """Run `function` in a child; return its PID and the pipe that will hold its result as JSON."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            result = {"value": function()}
        except BaseException:  # noqa: BLE001 - the child must end here
            result = {"error": traceback.format_exc()}
        os.write(writing, json.dumps(result).encode())
        os._exit(0)
    os.close(writing)
    return pid, reading


def finish(pid, reading):
    with open(reading, encoding="utf-8") as pipe:
        result = json.load(pipe)
    os.waitpid(pid, 0)
    if "error" in result:
        pytest.fail(result["error"])
    return result["value"]


def as_user(cgroup, uid, function):
    """The result of `function`, run as `uid` in `cgroup` by a child without capabilities (if `uid` is not 0)."""
    return finish(*start(lambda: become(cgroup, uid) or function()))


def become(cgroup, uid):
    pathlib.Path(cgroup, "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # as after execve(); else /proc/self stays root's


def bound_device(sock):
    return sock.getsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, 16).rstrip(b"\0").decode()


def bindings():
    """What became of a socket of every kind in INET: its device ('' if none), or the name of the error."""
    found = []
    for family, kind in INET:
        try:
            with socket.socket(family, kind) as sock:
                found.append(bound_device(sock))
        except OSError as e:
            found.append(errno.errorcode[e.errno])
    return found


def of(membership, uid):
    """The one thing that becomes of every socket of `uid`."""
    (only,) = set(as_user(membership.cgroup, uid, bindings))
    return only


def attached_programs(cgroup):
    """IDs of the programs attached to the cgroup itself."""
    ids, count = (ctypes.c_uint32 * 16)(), ctypes.c_uint32(16)
    fd = os.open(cgroup, os.O_RDONLY)
    try:
        result = libbpf().bpf_prog_query(fd, BPF_CGROUP_INET_SOCK_CREATE, 0, None, ids, ctypes.byref(count))
    finally:
        os.close(fd)
    assert result == 0, os.strerror(-result)
    return ids[: count.value]


def patched_object(path, instruction):
    """A copy of the object with `instruction` in place of the call of bpf_get_current_uid_gid."""
    get_uid, code = bytes.fromhex("850000000f000000"), OBJECT.read_bytes()
    assert code.count(get_uid) == 1
    path.write_bytes(code.replace(get_uid, instruction))
    return str(path)


def changed_object(path):
    """An object whose program takes every caller for alice: r0 = ALICE."""
    return patched_object(path, bytes.fromhex("b7000000") + ALICE.to_bytes(4, "little"))


# who is bound, who is refused, who is left alone


def test_sockets_of_a_user_with_an_entry_are_bound(membership):
    assert of(membership, ALICE) == DEVICE
    assert membership.counters()["bound"] == len(INET)


def test_managed_user_without_an_entry_is_refused(membership):
    assert of(membership, NOBODY) == "EPERM"
    assert membership.counters()["refused"] == len(INET)


def test_other_families_are_left_alone(membership):
    def others():
        socket.socketpair(socket.AF_UNIX)
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)

    as_user(membership.cgroup, NOBODY, others)
    assert set(membership.counters().values()) == {0}


def test_exempt_user_is_not_bound(membership):
    membership.set(NOBODY, EXEMPT)
    assert of(membership, NOBODY) == ""
    assert membership.counters()["exempt"] == len(INET)


@pytest.mark.parametrize("uid", [0, SYSTEM, MIN_UID - 1])
def test_uids_below_the_limit_are_left_alone(membership, uid):
    membership.set(SYSTEM, socket.if_nametoindex(DEVICE))  # even with an entry
    assert of(membership, uid) == ""
    assert set(membership.counters().values()) == {0}


@pytest.mark.parametrize("uid", [MIN_UID, 65534, 4194304, 2**31, 2**32 - 2])
def test_uids_from_the_limit_up_are_managed(membership, uid):
    assert of(membership, uid) == "EPERM"
    membership.set(uid, socket.if_nametoindex(OTHER_DEVICE))
    assert of(membership, uid) == OTHER_DEVICE


def test_the_real_uid_counts(membership):
    def as_setuid_program():
        os.setresuid(ALICE, 0, 0)
        return bindings()

    assert set(as_user(membership.cgroup, 0, as_setuid_program)) == {DEVICE}


def test_another_network_namespace_is_left_alone(membership):
    def elsewhere():
        unshare(CLONE_NEWUSER | CLONE_NEWNET)
        return bindings()

    assert set(as_user(membership.cgroup, ALICE, elsewhere)) == {""}
    assert set(as_user(membership.cgroup, NOBODY, elsewhere)) == {""}


@pytest.mark.parametrize("uid, expected", [(ALICE, DEVICE), (NOBODY, "EPERM")])
def test_a_user_namespace_does_not_change_the_user(membership, uid, expected):
    def as_root_of_a_user_namespace():
        unshare(CLONE_NEWUSER)
        pathlib.Path("/proc/self/uid_map").write_text(f"0 {uid} 1", encoding="ascii")
        assert os.getuid() == 0
        return bindings()

    assert set(as_user(membership.cgroup, uid, as_root_of_a_user_namespace)) == {expected}


def test_another_cgroup_is_left_alone(membership):
    assert set(as_user(cgroup2_mount(), NOBODY, bindings)) == {""}


@pytest.mark.parametrize("family, kind", INET)
@pytest.mark.parametrize(
    "option, value", [(SO_BINDTODEVICE, b""), (SO_BINDTODEVICE, b"lo"), (SO_BINDTOIFINDEX, 0), (SO_BINDTOIFINDEX, 1)]
)
def test_a_bound_socket_cannot_be_taken_out(membership, family, kind, option, value):
    def rebind():
        with socket.socket(family, kind) as sock:
            try:
                sock.setsockopt(socket.SOL_SOCKET, option, value)
            except OSError as e:
                return [errno.errorcode[e.errno], bound_device(sock)]
            return ["", bound_device(sock)]

    assert as_user(membership.cgroup, ALICE, rebind) == ["EPERM", DEVICE]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_entry_of_a_device_that_is_gone_fails_closed(membership, address):
    ip("link", "set", "lo", "up")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    receiver = socket.socket(family, socket.SOCK_DGRAM)  # of the test itself, which is not in the cgroup
    receiver.bind((address, 0))

    def send():
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            try:
                return sock.sendto(b"x", receiver.getsockname()[:2])
            except OSError as e:
                return errno.errorcode[e.errno]

    with receiver:
        membership.set(ALICE, 2**20)
        assert as_user(membership.cgroup, ALICE, send) in ("ENODEV", "ENETUNREACH")
        membership.set(ALICE, EXEMPT)
        assert as_user(membership.cgroup, ALICE, send) == 1


# the map


def test_change_and_removal_of_an_entry_take_effect_at_once(membership):
    membership.set(ALICE, socket.if_nametoindex(OTHER_DEVICE))
    assert of(membership, ALICE) == OTHER_DEVICE
    assert membership.delete(ALICE)
    assert of(membership, ALICE) == "EPERM"
    assert not membership.delete(ALICE)


def test_entries_are_read_back(membership):
    device = socket.if_nametoindex(DEVICE)
    membership.set(61184, EXEMPT, prefixlen=24)
    assert membership.entries() == {(ALICE, 32): device, (61184, 24): EXEMPT}
    assert [membership.get(uid) for uid in (ALICE, BOB, 61184, 61439, 61440)] == [device, None, EXEMPT, EXEMPT, None]
    assert not membership.delete(61184)  # that is another entry
    assert membership.delete(61184, prefixlen=24)
    assert membership.entries() == {(ALICE, 32): device}


def test_a_subordinate_range_maps_to_its_owner_and_not_beyond(membership):
    first, last = 100003, 165538
    for uid, prefixlen in prefixes(first, last):
        membership.set(uid, socket.if_nametoindex(DEVICE), prefixlen)
    observed = {uid: of(membership, uid) for uid in (first - 1, first, 131072, last, last + 1)}
    assert observed == {first - 1: "EPERM", first: DEVICE, 131072: DEVICE, last: DEVICE, last + 1: "EPERM"}
    for uid, prefixlen in prefixes(first, last):
        assert membership.delete(uid, prefixlen)
    assert of(membership, first) == "EPERM"


def test_the_longest_prefix_decides(membership):
    membership.set(2000, EXEMPT, prefixlen=28)
    assert [of(membership, uid) for uid in (2000, ALICE, BOB, 2016)] == ["", DEVICE, "", "EPERM"]


def test_a_full_map_is_an_error_with_a_remedy(membership):
    free = MAX_ENTRIES - len(membership.entries())
    for uid in range(1_000_000, 1_000_000 + free):
        membership.set(uid, EXEMPT)
    with pytest.raises(UvnError, match="full with 65536 entries; merge"):
        membership.set(BOB, EXEMPT)
    membership.set(ALICE, EXEMPT)  # a change needs no room


@pytest.mark.parametrize("uid, prefixlen", [(2001, 28), (-1, 32), (2**32, 32), (0, 33)])
def test_what_is_no_block_of_uids_is_refused(membership, uid, prefixlen):
    with pytest.raises(UvnError, match="is no block of UIDs"):
        membership.set(uid, EXEMPT, prefixlen)


# configuration


def test_audit_lets_pass_and_counts(membership, config):
    assert membership.load(Config(config.netns_cookie, MIN_UID, enforce=False))
    assert of(membership, NOBODY) == ""
    assert of(membership, ALICE) == DEVICE
    assert membership.counters() == {"bound": len(INET), "exempt": 0, "refused": 0, "audited": len(INET)}
    assert membership.load(config)
    assert of(membership, NOBODY) == "EPERM"


def test_a_new_limit_takes_effect(membership, config):
    assert of(membership, NOBODY) == "EPERM"
    assert membership.load(Config(config.netns_cookie, NOBODY + 1, enforce=True))
    assert membership.config().min_uid == NOBODY + 1
    assert of(membership, NOBODY) == ""


def test_root_gets_in_whatever_the_limit(membership, config):
    membership.load(Config(config.netns_cookie, 0, enforce=True))
    assert of(membership, 0) == ""
    assert of(membership, 1) == "EPERM"


# load, replace, detach


def test_loading_alone_refuses_nobody(idle, config):
    assert idle.config() is None
    assert idle.load(config)
    assert idle.config() == config
    assert not idle.attached()
    assert of(idle, NOBODY) == ""


def test_the_second_time_changes_nothing(membership, config):
    before = attached_programs(membership.cgroup)
    assert membership.current()
    assert not membership.load(config)
    assert not membership.attach()
    assert attached_programs(membership.cgroup) == before
    assert len(before) == 1


def test_another_program_takes_the_place_of_the_old(membership, config, tmp_path):
    before = attached_programs(membership.cgroup)
    update = Membership(membership.pin_dir, membership.cgroup, changed_object(tmp_path / "changed.o"))
    assert not update.current()
    assert update.load(config)
    assert update.current()
    after = attached_programs(membership.cgroup)
    assert len(before) == len(after) == 1 and before != after
    assert of(membership, NOBODY) == DEVICE  # the changed program, on the entries that were there


def test_there_is_no_gap_while_programs_are_replaced(membership, config, tmp_path):
    """Alice calls socket() all the time while the program is replaced: always bound, by one program or the other."""
    update = Membership(membership.pin_dir, membership.cgroup, changed_object(tmp_path / "changed.o"))

    def hammer():
        become(membership.cgroup, ALICE)
        outcomes, end = set(), time.monotonic() + 2
        while time.monotonic() < end:
            outcomes.update(bindings())
        return sorted(outcomes)

    pid, reading = start(hammer)
    replaced = 0
    while not select.select([reading], [], [], 0)[0]:
        replaced += update.load(config) + membership.load(config)
    assert finish(pid, reading) == [DEVICE]
    assert replaced > 2


def test_detach_removes_everything(membership):
    assert membership.detach()
    assert not os.path.exists(membership.pin_dir)
    assert attached_programs(membership.cgroup) == []
    assert of(membership, NOBODY) == ""
    assert (membership.attached(), membership.current(), membership.config()) == (False, False, None)
    assert (membership.entries(), membership.get(ALICE)) == ({}, None)
    assert membership.counters() == dict.fromkeys(COUNTERS, 0)
    assert not membership.delete(ALICE)
    assert not membership.detach()


def test_detach_leaves_the_pins_of_others(membership, bpffs):
    other = bpffs / "uvn" / "of_the_site"
    subprocess.run(["mv", f"{membership.pin_dir}/uvn_counters", other], check=True)
    assert membership.detach()
    assert os.listdir(bpffs / "uvn") == ["of_the_site"]
    other.unlink()
    (bpffs / "uvn").rmdir()


def test_it_outlives_the_process_that_attached_it(idle, config):
    def load():
        idle.load(config)
        idle.set(ALICE, socket.if_nametoindex(DEVICE))
        return idle.attach()

    assert finish(*start(load))
    assert idle.attached()
    assert of(idle, ALICE) == DEVICE
    assert of(idle, NOBODY) == "EPERM"


def test_a_process_killed_while_it_loads_leaves_a_state_to_continue_from(idle, config):
    for delay in (0.0005, 0.002, 0.004, 0.006, 0.01, 0.02):
        pid, reading = start(lambda: idle.load(config) and idle.attach())
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        idle.load(config)
        idle.attach()
        assert idle.current()
        assert len(attached_programs(idle.cgroup)) == 1
        assert of(idle, NOBODY) == "EPERM"
        idle.detach()


def test_a_link_whose_cgroup_is_gone_is_replaced(membership, cgroup):
    cgroup.rmdir()
    cgroup.mkdir()
    assert not membership.attached()
    assert of(membership, NOBODY) == ""
    assert membership.attach()
    assert of(membership, NOBODY) == "EPERM"


def test_a_program_on_maps_that_are_not_the_pinned_ones_is_replaced(membership, config):
    """Somebody removed a pin: the program reads a map that can no longer be written."""
    os.unlink(os.path.join(membership.pin_dir, "uvn_uid"))
    assert not membership.current()
    assert membership.load(config)
    assert membership.current()
    assert len(attached_programs(membership.cgroup)) == 1
    assert of(membership, ALICE) == "EPERM"
    membership.set(ALICE, socket.if_nametoindex(DEVICE))
    assert of(membership, ALICE) == DEVICE


# refusals: one sentence, nothing on stderr


def test_missing_object(idle, config):
    with pytest.raises(UvnError, match="the BPF object /nonexistent/m.o is missing; install it with the role"):
        Membership(idle.pin_dir, idle.cgroup, "/nonexistent/m.o").load(config)


def test_damaged_object(idle, config, tmp_path, capfd):
    damaged = tmp_path / "damaged.o"
    damaged.write_bytes(OBJECT.read_bytes()[:100])
    with pytest.raises(UvnError, match=f"cannot open {damaged}: .*; install it anew with the role uvn_node"):
        Membership(idle.pin_dir, idle.cgroup, str(damaged)).load(config)
    assert capfd.readouterr().err == ""


def test_a_program_the_verifier_refuses(idle, config, tmp_path, capfd):
    read_nowhere = bytes.fromhex("7900000000000000")  # r0 = *(u64 *)(r0 + 0), with r0 = the namespace's cookie
    refused = patched_object(tmp_path / "refused.o", read_nowhere)
    with pytest.raises(UvnError, match="cannot load .*refused.o: prog 'uvn_membership': .*failed"):
        Membership(idle.pin_dir, idle.cgroup, refused).load(config)
    assert not idle.attached()
    assert capfd.readouterr().err == ""


def test_no_bpf_file_system(cgroup, config, tmp_path):
    with pytest.raises(UvnError, match="is not on a BPF file system; mount one: mount -t bpf"):
        Membership(str(tmp_path / "uvn"), str(cgroup), str(OBJECT)).load(config)


def test_missing_cgroup(idle, config):
    idle.load(config)
    elsewhere = Membership(idle.pin_dir, "/nonexistent", str(OBJECT))
    with pytest.raises(UvnError, match="cannot open the cgroup /nonexistent: No such file"):
        elsewhere.attach()
    idle.attach()
    with pytest.raises(UvnError, match="cannot open the cgroup /nonexistent: No such file"):
        elsewhere.attached()


def test_a_program_of_the_site_that_allows_no_other(idle, config):
    idle.load(config)
    cgroup = os.open(idle.cgroup, os.O_RDONLY)
    with idle._loaded() as program:
        site = libbpf().bpf_program__fd(program("uvn_membership"))
        assert libbpf().bpf_prog_attach(site, cgroup, BPF_CGROUP_INET_SOCK_CREATE, 0) == 0
        with pytest.raises(UvnError, match="cannot attach .*; `bpftool cgroup show .*` names programs"):
            idle.attach()
        assert libbpf().bpf_prog_detach2(site, cgroup, BPF_CGROUP_INET_SOCK_CREATE) == 0
    os.close(cgroup)
    assert idle.attach()


def test_attach_before_load(idle):
    with pytest.raises(UvnError, match="has no configuration in .*; load it before"):
        idle.attach()


def test_set_before_load(idle):
    with pytest.raises(UvnError, match="uvn_uid is not loaded: .*; run `uvn node apply`"):
        idle.set(ALICE, EXEMPT)


def test_a_pin_that_is_another_map(membership, config, capfd):
    pins = [os.path.join(membership.pin_dir, name) for name in ("uvn_config", "uvn_counters", "other")]
    os.unlink(pins[0])
    os.rename(pins[1], pins[0])
    with pytest.raises(UvnError, match=r"cannot load .*: couldn't reuse pinned map at '.*uvn_config': parameter mism"):
        membership.load(config)
    assert capfd.readouterr().err == ""


def test_without_root(membership, config):
    def attempts():
        sentences = []
        for attempt in (membership.entries, lambda: membership.load(config), lambda: membership.set(ALICE, EXEMPT)):
            try:
                attempt()
            except UvnError as e:
                sentences.append(str(e))
        return sentences

    sentences = as_user(membership.cgroup, ALICE, attempts)
    assert len(sentences) == 3
    assert all(sentence.endswith("; it takes root") for sentence in sentences), sentences
