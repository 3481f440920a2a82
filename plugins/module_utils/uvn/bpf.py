# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""BPF objects whose maps and links are pinned: load, attach, replace, read and write.

Maps and links outlive the process that made them; the kernel is the only place where their state is kept, and everything here asks
it anew. libbpf.so.1 (1.1 or newer) is driven through ctypes and loaded at the first use.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import errno
import functools
import os
import struct
from collections.abc import Callable, Iterator, Sequence

from .errors import UvnError

PIN_DIR = "/sys/fs/bpf/uvn"
OBJECT_DIR = "/usr/lib/uvn"
PRIORITY = 0x5556  # of our classifiers
_TC_INGRESS, _TC_REPLACE = 1, 1  # enum bpf_tc_attach_point, BPF_TC_F_REPLACE
_NO_CLASSIFIER = (-errno.ENOENT, -errno.EINVAL, -errno.ENODEV)  # no program of ours, no qdisc, no device


class Full(UvnError):
    """A map has no room for another key."""


class Map:
    """A pinned map.

    Parameters
    ----------
    path: the pin. key_size, value_size: bytes.

    Methods raise UvnError when the kernel refuses. Without a pin, the map reads as empty.
    """

    def __init__(self, path: str, key_size: int, value_size: int) -> None:
        self.path = path
        self._name = os.path.basename(path)
        self._key_size, self._value_size = key_size, value_size

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, None if there is none."""
        with _pinned(self.path) as fd:
            return None if fd is None else self._lookup(fd, key)

    def items(self) -> dict[bytes, bytes]:
        """All keys with their values, in the kernel's order."""
        found = {}
        last, key = None, ctypes.create_string_buffer(self._key_size)
        with _pinned(self.path) as fd:
            while fd is not None:
                if _absent(libbpf().bpf_map_get_next_key(fd, last, key), f"read the map {self._name}"):
                    break
                last = key.raw
                value = self._lookup(fd, last)
                if value is not None:
                    found[last] = value
        return found

    def set(self, key: bytes, value: bytes) -> None:
        """Write the value of `key`. Raises Full when there is no room for it."""
        with _pinned(self.path) as fd:
            if fd is None:
                raise UvnError(f"{self._name} is not loaded: there is no {self.path}; run `uvn node apply`")
            result = libbpf().bpf_map_update_elem(fd, key, value, 0)
        if result in (-errno.ENOSPC, -errno.E2BIG):
            raise Full(f"the map {self._name} is full")
        _check(result, f"write the map {self._name}")

    def delete(self, key: bytes) -> bool:
        """Remove `key`; whether it was there."""
        with _pinned(self.path) as fd:
            return fd is not None and not _absent(libbpf().bpf_map_delete_elem(fd, key), f"write the map {self._name}")

    def _lookup(self, fd: int, key: bytes) -> bytes | None:
        value = ctypes.create_string_buffer(self._value_size)
        return None if _absent(libbpf().bpf_map_lookup_elem(fd, key, value), f"read the map {self._name}") else value.raw


class Link:
    """The pinned attachment of one program; `path` is the pin. Methods raise UvnError when the kernel refuses."""

    def __init__(self, path: str) -> None:
        self.path = path

    def target(self) -> int | None:
        """The inode number of the cgroup that the program is attached to, 0 if it is gone; None without a link."""
        with _pinned(self.path) as fd:
            return None if fd is None else _link_info(fd)[1]

    def runs(self, program: int) -> bool:
        """Whether the attached program is `program`, on the same maps."""
        with _pinned(self.path) as fd:
            return fd is not None and _same_program(fd, program)

    def update(self, program: int) -> bool:
        """Put `program` in the place of another one that is attached; whether it did.

        One atomic step for every caller: the old program or the new one, never none, never both.
        """
        with _pinned(self.path) as fd:
            if fd is None or _same_program(fd, program):
                return False
            _check(libbpf().bpf_link_update(fd, libbpf().bpf_program__fd(program), None), f"update {self.path}")
        return True

    def attach_cgroup(self, program: int, cgroup: str) -> None:
        """Attach `program` to a cgroup2 directory and pin the link, in the place of a pin that is there."""
        unpin(self.path)
        self._pin(_attach_cgroup(program, cgroup))

    def attach_lsm(self, program: int) -> None:
        """Attach `program` to the security hook that its section names and pin the link, in the place of a pin that is there."""
        link = libbpf().bpf_program__attach_lsm(program)
        if not link:
            raise _error(f"attach {libbpf().bpf_program__name(program).decode()}", ctypes.get_errno())
        unpin(self.path)
        self._pin(link)

    def _pin(self, link: int) -> None:
        try:
            _check(libbpf().bpf_link__pin(link, os.fsencode(self.path)), f"pin {self.path}")
        finally:
            libbpf().bpf_link__destroy(link)  # closes it; the pin holds the attachment

    def detach(self) -> bool:
        """Take the program down and remove the pin; whether there was one."""
        with _pinned(self.path) as fd:
            if fd is not None:
                # the end of the last pin would detach as well, but only after an RCU grace period
                _check(libbpf().bpf_link_detach(fd), f"detach {self.path}")
        return unpin(self.path)


class Classifier:
    """Our program on what comes in by a device (tc, clsact), known by its priority; `ifindex` is the device's.

    Methods raise UvnError when the kernel refuses.
    """

    def __init__(self, ifindex: int) -> None:
        self._ifindex = ifindex

    def program(self) -> int | None:
        """The id of the program, None if there is none."""
        options = _TcOptions(handle=1, priority=PRIORITY)
        result = libbpf().bpf_tc_query(self._hook(), options)
        if result not in _NO_CLASSIFIER:
            _check(result, "look for a classifier")
        _warnings.clear()  # libbpf warns of what is not there
        return options.prog_id if not result else None

    def runs(self, program: int) -> bool:
        """Whether the attached program is `program`, on the same maps."""
        attached = self.program()
        return attached is not None and _same(attached, program)

    def attach(self, program: int) -> None:
        """Attach `program`, in the place of another one of ours."""
        created = libbpf().bpf_tc_hook_create(self._hook())
        if created != -errno.EEXIST:
            _check(created, "add the qdisc clsact")
        _warnings.clear()
        options = _TcOptions(libbpf().bpf_program__fd(program), flags=_TC_REPLACE, handle=1, priority=PRIORITY)
        _check(libbpf().bpf_tc_attach(self._hook(), options), "attach a classifier")

    def detach(self) -> None:
        """Take the program down; no program is no error."""
        result = libbpf().bpf_tc_detach(self._hook(), _TcOptions(handle=1, priority=PRIORITY))
        if result not in _NO_CLASSIFIER:
            _check(result, "detach a classifier")
        _warnings.clear()

    def _hook(self) -> _TcHook:
        return _TcHook(self._ifindex)


class _Sized(ctypes.Structure):
    """A structure of libbpf's that begins with its own size."""

    def __init__(self, *values: int, **named: int) -> None:
        super().__init__(ctypes.sizeof(self), *values, **named)


class _TcHook(_Sized):
    _fields_ = [("sz", ctypes.c_size_t), ("ifindex", ctypes.c_int), ("attach_point", ctypes.c_int), ("parent", ctypes.c_uint32)]

    def __init__(self, ifindex: int) -> None:
        super().__init__(ifindex, _TC_INGRESS)


class _TcOptions(_Sized):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("prog_fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
    ]


@contextlib.contextmanager
def loaded(path: str, pin_dir: str, maps: Sequence[str]) -> Iterator[Callable[[str], int]]:
    """Load the object file `path` on its `maps` pinned in `pin_dir`, made if they are not there, attached to nothing.

    Yields a function from a program's name to the program. Raises UvnError.
    """
    lib = libbpf()
    _require_bpffs(os.path.dirname(pin_dir))
    if not os.path.exists(path):
        raise UvnError(f"the BPF object {path} is missing; install it with the role uvn_node")
    obj = lib.bpf_object__open_file(os.fsencode(path), None)
    if not obj:
        raise _error(f"open {path}", ctypes.get_errno(), "install it anew with the role uvn_node")

    def found(find: Callable[[int, bytes], int | None], name: str) -> int:
        handle = find(obj, name.encode())
        if not handle:
            raise _error(f"find {name} in {path}", ctypes.get_errno(), "install it anew with the role uvn_node")
        return handle

    try:
        for name in maps:
            pin = os.path.join(pin_dir, name)
            _check(lib.bpf_map__set_pin_path(found(lib.bpf_object__find_map_by_name, name), os.fsencode(pin)), f"use {pin}")
        _check(lib.bpf_object__load(obj), f"load {path}")
        yield lambda name: found(lib.bpf_object__find_program_by_name, name)
    finally:
        lib.bpf_object__close(obj)
        _warnings.clear()


def unpin(path: str) -> bool:
    """Remove a pin; whether there was one."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as e:
        raise _error(f"remove {path}", e.errno) from e
    return True


def cpus() -> int:
    """The number of values that a per-CPU map has for a key."""
    return _check(libbpf().libbpf_num_possible_cpus(), "count the CPUs")


def cgroup_id(path: str) -> int:
    """The number that the kernel knows a cgroup2 directory by."""
    try:
        return os.stat(path).st_ino
    except OSError as e:
        raise _error(f"open the cgroup {path}", e.errno) from e


@contextlib.contextmanager
def _pinned(path: str) -> Iterator[int | None]:
    """The descriptor of a pinned object, None if there is none. Not kept: the pin may be another one next time."""
    fd = libbpf().bpf_obj_get(os.fsencode(path))
    if fd == -errno.ENOENT:
        yield None
        return
    _check(fd, f"open {path}")
    try:
        yield fd
    finally:
        os.close(fd)


def _attach_cgroup(program: int, path: str) -> int:
    try:
        cgroup = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as e:
        raise _error(f"open the cgroup {path}", e.errno) from e
    try:
        link = libbpf().bpf_program__attach_cgroup(program, cgroup)
        if not link:
            name = libbpf().bpf_program__name(program).decode()
            remedy = f"`bpftool cgroup show {path}` names programs that do not allow multi"
            raise _error(f"attach {name} to {path}", ctypes.get_errno(), remedy)
        return link
    finally:
        os.close(cgroup)


def _same_program(link: int, program: int) -> bool:
    return _same(_link_info(link)[0], program)


def _same(attached_id: int, program: int) -> bool:
    attached = _check(libbpf().bpf_prog_get_fd_by_id(attached_id), "open the attached program")
    try:
        return _identity(attached) == _identity(libbpf().bpf_program__fd(program))
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
    _check(libbpf().bpf_obj_get_info_by_fd(fd, buffer, ctypes.byref(size)), "read a BPF object's info")
    return buffer.raw


# the machine


def _mounts() -> Iterator[tuple[str, str, str]]:
    """(major:minor, mount point, file system type) of every mount, proc_pid_mountinfo(5)"""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _dash, source = line.partition(" - ")
            _id, _parent, device, _root, point = fields.split(" ")[:5]
            yield device, point, source.split(" ")[0]


def cgroup2_mount() -> str:
    """Where the cgroup2 hierarchy is mounted; UvnError if it is not."""
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
    "bpf_program__name": (_STRING, _POINTER),
    "bpf_program__attach_cgroup": (_POINTER, _POINTER, _INT),
    "bpf_program__attach_lsm": (_POINTER, _POINTER),
    "bpf_link__pin": (_INT, _POINTER, _STRING),
    "bpf_link__destroy": (_INT, _POINTER),
    "bpf_link_update": (_INT, _INT, _INT, _POINTER),
    "bpf_link_detach": (_INT, _INT),
    "bpf_tc_hook_create": (_INT, ctypes.POINTER(_TcHook)),
    "bpf_tc_attach": (_INT, ctypes.POINTER(_TcHook), ctypes.POINTER(_TcOptions)),
    "bpf_tc_detach": (_INT, ctypes.POINTER(_TcHook), ctypes.POINTER(_TcOptions)),
    "bpf_tc_query": (_INT, ctypes.POINTER(_TcHook), ctypes.POINTER(_TcOptions)),
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
def libbpf() -> ctypes.CDLL:
    """The library; UvnError if it is missing or too old."""
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
