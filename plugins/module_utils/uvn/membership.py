# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Membership: which UID's sockets the kernel binds to which VRF, or refuses.

One BPF program on the root cgroup decides at every socket() (bpf/membership.bpf.c). Its link and its maps are pinned, so
they outlive the process that made them; the kernel is the only place where this state is kept, and every method
here asks it anew. libbpf.so.1 (1.1 or newer) is driven through ctypes and loaded at the first use.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import errno
import functools
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .errors import UvnError

PIN_DIR = "/sys/fs/bpf/uvn"
OBJECT_PATH = "/usr/lib/uvn/membership.bpf.o"

PROGRAM = "uvn_membership"
LINK = "link_membership"
MAPS = ("uvn_uid", "uvn_config", "uvn_counters")
COUNTERS = ("bound", "exempt", "refused", "audited")  # enum counter
MAX_ENTRIES = 65536  # of uvn_uid
EXEMPT = 0  # in place of an ifindex

_MAX_UID = 2**32 - 1
_SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, Linux 5.14
_CONFIG = struct.Struct("=QII")  # struct config: netns_cookie, min_uid, mode


@dataclass(frozen=True)
class Config:
    """What the program decides by.

    Parameters
    ----------
    netns_cookie: the one network namespace that is managed; sockets of all others are left alone.
    min_uid: smallest managed UID; those below it, and always root, are left alone.
    enforce: refuse (EPERM) a managed UID without an entry; False only counts it and lets it pass.
    """

    netns_cookie: int
    min_uid: int
    enforce: bool


def prefixes(first: int, last: int) -> list[tuple[int, int]]:
    """Return the shortest list of (UID, prefix length) that covers the UIDs `first` to `last`, in order."""
    if not 0 <= first <= last <= _MAX_UID:
        raise UvnError(f"the UID range {first}-{last} is not one; give two numbers from 0 to {_MAX_UID}, smaller first")
    blocks = []
    while first <= last:
        aligned = (first & -first).bit_length() - 1 if first else 32
        bits = min(aligned, (last - first + 1).bit_length() - 1)
        blocks.append((first, 32 - bits))
        first += 1 << bits
    return blocks


class Membership:
    """The membership program of this node.

    Parameters
    ----------
    pin_dir: directory of the pins, made by `load`; its parent must be on a BPF file system.
    cgroup: cgroup2 directory whose processes are managed; None is the root of the cgroup2 hierarchy.
    object_path: the compiled program.

    Every method raises UvnError when the kernel or libbpf refuses; load, attach, detach and delete return whether they
    changed something.
    First use of a node: `load`, then `set` what must not be refused, then `attach`.
    """

    def __init__(self, pin_dir: str = PIN_DIR, cgroup: str | None = None, object_path: str = OBJECT_PATH) -> None:
        self.pin_dir = pin_dir
        self.object_path = object_path
        self._cgroup = cgroup

    @property
    def cgroup(self) -> str:
        """The cgroup2 directory; UvnError if it was to be found and none is mounted."""
        return self._cgroup or _cgroup2_mount()

    # the program

    def load(self, config: Config) -> bool:
        """Write `config`; make what maps are missing; if attached, replace a program that is not the object's.

        The replacement is one atomic step for every socket(): the old program or the new one, never none, never both.
        """
        with self._loaded() as program:
            changed = self._write_config(config)
            with self._pin(LINK) as link:
                if link is not None and not self._same_program(link, program):
                    new = _libbpf().bpf_program__fd(program)
                    _check(_libbpf().bpf_link_update(link, new, None), f"update {self._path(LINK)}")
                    changed = True
        return changed

    def current(self) -> bool:
        """Whether the attached program is the one of the object file, on the pinned maps. Changes nothing."""
        if not self.attached() or not all(os.path.exists(self._path(name)) for name in MAPS):
            return False
        with self._loaded() as program, self._pin(LINK) as link:
            return link is not None and self._same_program(link, program)

    def attach(self) -> bool:
        """Attach the program to the cgroup; from here on UIDs without an entry are refused. `load` comes first."""
        if self.attached():
            return False
        if self.config() is None:
            raise UvnError(f"membership has no configuration in {self.pin_dir}; load it before it is attached")
        with self._loaded() as program:
            self._unpin(LINK)  # a link whose cgroup is gone, or another one
            link = self._attach_cgroup(program)
            try:
                _check(_libbpf().bpf_link__pin(link, os.fsencode(self._path(LINK))), f"pin {self._path(LINK)}")
            finally:
                _libbpf().bpf_link__destroy(link)  # closes it; the pin holds the attachment
        return True

    def attached(self) -> bool:
        """Whether the pinned link is attached to the cgroup."""
        with self._pin(LINK) as link:
            return link is not None and _link_info(link)[1] == self._cgroup_id()

    def detach(self) -> bool:
        """Detach the program and remove link, maps and directory; sockets already bound stay so."""
        with self._pin(LINK) as link:
            if link is not None:
                # the end of the last pin would detach as well, but only after an RCU grace period
                _check(_libbpf().bpf_link_detach(link), f"detach {self._path(LINK)}")
        changed = [self._unpin(name) for name in (LINK, *MAPS)]
        with contextlib.suppress(OSError):  # not there, or it holds pins that are not ours
            os.rmdir(self.pin_dir)
        return any(changed)

    # the maps

    def config(self) -> Config | None:
        """The configuration in the kernel, None if there is none."""
        value = ctypes.create_string_buffer(_CONFIG.size)
        with self._pin("uvn_config") as fd:
            if fd is None:
                return None
            _check(_libbpf().bpf_map_lookup_elem(fd, bytes(4), value), "read the map uvn_config")
        netns_cookie, min_uid, mode = _CONFIG.unpack(value.raw)
        return Config(netns_cookie, min_uid, bool(mode)) if netns_cookie else None

    def entries(self) -> dict[tuple[int, int], int]:
        """All entries: (UID, prefix length) to ifindex; EXEMPT (0) where sockets are not bound."""
        found = {}
        last, key, value = None, ctypes.create_string_buffer(8), ctypes.c_uint32()
        with self._pin("uvn_uid") as fd:
            while fd is not None:
                if _absent(_libbpf().bpf_map_get_next_key(fd, last, key), "read the map uvn_uid"):
                    break
                last = key.raw
                if not _absent(_libbpf().bpf_map_lookup_elem(fd, last, ctypes.byref(value)), "read the map uvn_uid"):
                    found[_parse_key(last)] = value.value
        return found

    def get(self, uid: int) -> int | None:
        """The ifindex that sockets of `uid` are bound to, by its longest prefix; EXEMPT (0); None without an entry."""
        value = ctypes.c_uint32()
        with self._pin("uvn_uid") as fd:
            if fd is None:
                return None
            result = _libbpf().bpf_map_lookup_elem(fd, _key(uid, 32), ctypes.byref(value))
        return None if _absent(result, f"read the entry of UID {uid}") else value.value

    def set(self, uid: int, ifindex: int, prefixlen: int = 32) -> None:
        """Bind new sockets of `uid`, or of the aligned block `uid`/`prefixlen`, to `ifindex`; EXEMPT (0): to nothing.

        Repeat it when the device is made anew. Sockets that exist keep what they have.
        """
        key, value = _key(uid, prefixlen), ctypes.c_uint32(ifindex)
        with self._pin("uvn_uid") as fd:
            if fd is None:
                raise UvnError(f"membership is not loaded: there is no {self._path('uvn_uid')}; run `uvn node apply`")
            result = _libbpf().bpf_map_update_elem(fd, key, ctypes.byref(value), 0)
        if result == -errno.ENOSPC:
            raise UvnError(
                f"no room for UID {uid}: the map uvn_uid is full with {MAX_ENTRIES} entries; "
                "merge exempt UIDs into aligned ranges or remove the networks of users who have left"
            )
        _check(result, f"write the entry of UID {uid}")

    def delete(self, uid: int, prefixlen: int = 32) -> bool:
        """Remove the entry; no entry is no error. Do it before the VRF goes: its ifindex may be given away again."""
        key = _key(uid, prefixlen)
        with self._pin("uvn_uid") as fd:
            return fd is not None and not _absent(
                _libbpf().bpf_map_delete_elem(fd, key), f"delete the entry of UID {uid}"
            )

    def counters(self) -> dict[str, int]:
        """socket() calls of managed UIDs since the maps were made: bound, exempt, refused, audited (let pass)."""
        with self._pin("uvn_counters") as fd:
            if fd is None:
                return dict.fromkeys(COUNTERS, 0)
            values = (ctypes.c_uint64 * _check(_libbpf().libbpf_num_possible_cpus(), "count the CPUs"))()
            totals = {}
            for number, name in enumerate(COUNTERS):
                key = ctypes.c_uint32(number)
                result = _libbpf().bpf_map_lookup_elem(fd, ctypes.byref(key), values)
                _check(result, "read the map uvn_counters")
                totals[name] = sum(values)
            return totals

    @staticmethod
    def netns_cookie() -> int:
        """The cookie of this process's network namespace (SO_NETNS_COOKIE, Linux 5.14)."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                return struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0]
        except OSError as e:
            raise UvnError(
                f"cannot read the cookie of the network namespace: {e.strerror}; use Linux 5.14 or newer"
            ) from e

    def _path(self, name: str) -> str:
        return os.path.join(self.pin_dir, name)

    @contextlib.contextmanager
    def _pin(self, name: str) -> Iterator[int | None]:
        """The descriptor of a pinned object, None if there is none. Not kept: the pin may be another one next time."""
        path = self._path(name)
        fd = _libbpf().bpf_obj_get(os.fsencode(path))
        if fd == -errno.ENOENT:
            yield None
            return
        _check(fd, f"open {path}")
        try:
            yield fd
        finally:
            os.close(fd)

    def _unpin(self, name: str) -> bool:
        try:
            os.unlink(self._path(name))
        except FileNotFoundError:
            return False
        except OSError as e:
            raise _error(f"remove {self._path(name)}", e.errno) from e
        return True

    @contextlib.contextmanager
    def _loaded(self) -> Iterator[int]:
        """The object's program, loaded on the pinned maps (made if they are not there), attached to nothing."""
        lib = _libbpf()
        _require_bpffs(os.path.dirname(self.pin_dir))
        if not os.path.exists(self.object_path):
            raise UvnError(f"the membership program {self.object_path} is missing; install it with the role uvn_node")
        obj = lib.bpf_object__open_file(os.fsencode(self.object_path), None)
        if not obj:
            raise _error(f"open {self.object_path}", ctypes.get_errno(), "install it anew with the role uvn_node")
        try:
            for name in MAPS:
                bpf_map = _found(lib.bpf_object__find_map_by_name, obj, name)
                _check(lib.bpf_map__set_pin_path(bpf_map, os.fsencode(self._path(name))), f"use {self._path(name)}")
            _check(lib.bpf_object__load(obj), f"load {self.object_path}")
            yield _found(lib.bpf_object__find_program_by_name, obj, PROGRAM)
        finally:
            lib.bpf_object__close(obj)
            _warnings.clear()

    def _write_config(self, config: Config) -> bool:
        if self.config() == config:
            return False
        value = _CONFIG.pack(config.netns_cookie, config.min_uid, config.enforce)
        with self._pin("uvn_config") as fd:
            _check(_libbpf().bpf_map_update_elem(fd, bytes(4), value, 0), "write the map uvn_config")
        return True

    def _cgroup_id(self) -> int:
        try:
            return os.stat(self.cgroup).st_ino
        except OSError as e:
            raise _error(f"open the cgroup {self.cgroup}", e.errno) from e

    def _attach_cgroup(self, program: int) -> int:
        try:
            cgroup = os.open(self.cgroup, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as e:
            raise _error(f"open the cgroup {self.cgroup}", e.errno) from e
        try:
            link = _libbpf().bpf_program__attach_cgroup(program, cgroup)
            if not link:
                remedy = f"`bpftool cgroup show {self.cgroup}` names programs that do not allow multi"
                raise _error(f"attach {PROGRAM} to {self.cgroup}", ctypes.get_errno(), remedy)
            return link
        finally:
            os.close(cgroup)

    @staticmethod
    def _same_program(link: int, program: int) -> bool:
        attached = _check(_libbpf().bpf_prog_get_fd_by_id(_link_info(link)[0]), "open the attached program")
        try:
            return _identity(attached) == _identity(_libbpf().bpf_program__fd(program))
        finally:
            os.close(attached)


# the kernel's structures that libbpf has no accessor for (include/uapi/linux/bpf.h)


def _link_info(fd: int) -> tuple[int, int]:
    """(prog_id, cgroup.cgroup_id) of struct bpf_link_info; cgroup_id is the inode number of the cgroup, 0 if it is gone."""
    info = _info(fd, ctypes.create_string_buffer(32))
    return struct.unpack_from("=I", info, 8)[0], struct.unpack_from("=Q", info, 16)[0]


def _identity(fd: int) -> tuple[bytes, frozenset[int]]:
    """(tag, map_ids) of struct bpf_prog_info. The tag is a hash of the instructions; it leaves out which maps they use."""
    ids = (ctypes.c_uint32 * 64)()
    info = ctypes.create_string_buffer(64)
    struct.pack_into("=IQ", info, 52, len(ids), ctypes.addressof(ids))  # nr_map_ids, map_ids
    _info(fd, info)
    return info.raw[8:16], frozenset(ids[: struct.unpack_from("=I", info, 52)[0]])


def _info(fd: int, buffer: ctypes.Array) -> bytes:
    size = ctypes.c_uint32(len(buffer))
    _check(_libbpf().bpf_obj_get_info_by_fd(fd, buffer, ctypes.byref(size)), "read a BPF object's info")
    return buffer.raw


def _key(uid: int, prefixlen: int) -> bytes:
    """struct uid_prefix"""
    if not (0 <= uid <= _MAX_UID and 0 <= prefixlen <= 32 and uid % (1 << (32 - prefixlen)) == 0):
        raise UvnError(f"{uid}/{prefixlen} is no block of UIDs; split the range with prefixes()")
    return struct.pack("=I", prefixlen) + struct.pack(">I", uid)


def _parse_key(key: bytes) -> tuple[int, int]:
    return struct.unpack_from(">I", key, 4)[0], struct.unpack_from("=I", key)[0]


# the machine


def _mounts() -> Iterator[tuple[str, str, str]]:
    """(major:minor, mount point, file system type) of every mount, proc_pid_mountinfo(5)"""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _dash, source = line.partition(" - ")
            _id, _parent, device, _root, point = fields.split(" ")[:5]
            yield device, point, source.split(" ")[0]


def _cgroup2_mount() -> str:
    for _device, point, fstype in _mounts():
        if fstype == "cgroup2":
            return point
    raise UvnError("no cgroup2 file system is mounted; boot with systemd.unified_cgroup_hierarchy=1")


def _require_bpffs(path: str) -> None:
    try:
        device = os.stat(path).st_dev
    except OSError as e:
        raise _error(f"use {path}", e.errno, "mount a BPF file system: mount -t bpf bpf /sys/fs/bpf") from e
    number = f"{os.major(device)}:{os.minor(device)}"
    if not any(device == number and fstype == "bpf" for device, _point, fstype in _mounts()):
        raise UvnError(f"{path} is not on a BPF file system; mount one: mount -t bpf bpf /sys/fs/bpf")


# libbpf


_POINTER, _STRING, _INT, _U32, _U64 = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64

# name: (result, arguments), as in libbpf's libbpf.h and bpf.h. Errors are -errno, or NULL and errno.
_FUNCTIONS = {
    "libbpf_num_possible_cpus": (_INT,),
    "bpf_object__open_file": (_POINTER, _STRING, _POINTER),
    "bpf_object__find_map_by_name": (_POINTER, _POINTER, _STRING),
    "bpf_object__find_program_by_name": (_POINTER, _POINTER, _STRING),
    "bpf_object__load": (_INT, _POINTER),
    "bpf_object__close": (None, _POINTER),
    "bpf_map__set_pin_path": (_INT, _POINTER, _STRING),
    "bpf_program__fd": (_INT, _POINTER),
    "bpf_program__attach_cgroup": (_POINTER, _POINTER, _INT),
    "bpf_link__pin": (_INT, _POINTER, _STRING),
    "bpf_link__destroy": (_INT, _POINTER),
    "bpf_link_update": (_INT, _INT, _INT, _POINTER),
    "bpf_link_detach": (_INT, _INT),
    "bpf_obj_get": (_INT, _STRING),
    "bpf_obj_get_info_by_fd": (_INT, _INT, _POINTER, _POINTER),
    "bpf_prog_get_fd_by_id": (_INT, _U32),
    "bpf_map_update_elem": (_INT, _INT, _POINTER, _POINTER, _U64),
    "bpf_map_lookup_elem": (_INT, _INT, _POINTER, _POINTER),
    "bpf_map_delete_elem": (_INT, _INT, _POINTER),
    "bpf_map_get_next_key": (_INT, _INT, _POINTER, _POINTER),
}

_warnings: collections.deque[str] = collections.deque(maxlen=20)  # of libbpf, oldest first


@functools.cache
def _libbpf() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as e:
        raise UvnError(f"libbpf 1.1 or newer cannot be used ({e}); install libbpf1 (Debian) or libbpf (RHEL)") from e
    lib.libbpf_set_print.restype = None
    lib.libbpf_set_print(_printer())
    return lib


@functools.cache  # libbpf keeps the address only, the cache keeps the function
def _printer() -> ctypes._FuncPointer:
    return ctypes.CFUNCTYPE(_INT, _INT, _STRING, _POINTER)(_keep_warning)


def _keep_warning(level: int, template: bytes, arguments: int) -> int:
    """libbpf_print_fn_t: keeps for the error sentence what would go to stderr. A va_list is passed as a pointer."""
    if level == 0:  # LIBBPF_WARN
        text = ctypes.create_string_buffer(1024)
        ctypes.CDLL(None).vsnprintf(text, ctypes.c_size_t(len(text)), template, ctypes.c_void_p(arguments))
        _warnings.append(text.value.decode(errors="replace"))
    return 0


def _found(find: Callable[[int, bytes], int | None], obj: int, name: str) -> int:
    handle = find(obj, name.encode())
    if not handle:
        raise _error(
            f"find {name} in the membership object", ctypes.get_errno(), "install it anew with the role uvn_node"
        )
    return handle


def _check(result: int, action: str) -> int:
    if result < 0:
        raise _error(action, -result)
    return result


def _absent(result: int, action: str) -> bool:
    return result == -errno.ENOENT or _check(result, action) < 0


def _error(action: str, code: int | None, remedy: str = "") -> UvnError:
    """The sentence: what failed, why (in libbpf's words if it said something, the first of them), what to do."""
    if code in (errno.EPERM, errno.EACCES) and os.geteuid() != 0:
        remedy = "it takes root"
    reason = _warnings[0].splitlines()[0].replace("libbpf: ", "") if _warnings else os.strerror(code or 0)
    _warnings.clear()
    return UvnError(f"cannot {action}: {reason}" + (f"; {remedy}" if remedy else ""))
