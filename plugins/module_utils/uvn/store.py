# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept in files: users provisioned to stay, sysctls as they were before UVN, who was exempt, and whose network is vouched for."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any, Iterable, Mapping

from .errors import UvnError
from .login import acceptable
from .objects import Sysctl

RUN = "/run/uvn"
READY = f"{RUN}/ready"
STATE = "/var/lib/uvn/state.json"


class Store:
    """A small JSON file, replaced atomically. Raises UvnError when it cannot be read or written."""

    def __init__(self, path: str = STATE) -> None:
        self._path = path

    def persistent(self) -> set[int]:
        """UIDs whose networks are made at boot and stay."""
        return set(self._read()["persistent"])

    def set_persistent(self, uids: Iterable[int], persistent: bool) -> None:
        """Note or forget UIDs."""
        data = self._read()
        noted = set(data["persistent"])
        after = noted | set(uids) if persistent else noted - set(uids)
        if after != noted:
            self._write({**data, "persistent": sorted(after)})

    def remember(self, sysctls: Iterable[Sysctl]) -> None:
        """Note the values of sysctls that are not noted yet."""
        data = self._read()
        known = {obj.path: obj.value for obj in sysctls}
        before = {**known, **data["sysctls"]}
        if before != data["sysctls"]:
            self._write({**data, "sysctls": before})

    def remembered(self) -> list[Sysctl]:
        """The sysctls as they were before UVN, in the order that is safe to restore."""
        return [Sysctl(path, value) for path, value in sorted(self._read()["sysctls"].items()) if os.path.exists(f"/proc/sys/{path}")]

    def exempt(self) -> set[int]:
        """UIDs that were exempt by name or group: at the next boot the directory may be silent."""
        return set(self._read()["exempt"]["uids"])

    def exempt_groups(self) -> dict[str, int]:
        """The numbers of the exempt groups, as last known."""
        return self._read()["exempt"]["groups"]

    def note_exempt(self, uids: Iterable[int], groups: Mapping[str, int]) -> None:
        """Note them in place of those before."""
        data, exempt = self._read(), {"uids": sorted(uids), "groups": dict(groups)}
        if exempt != data["exempt"]:
            self._write({**data, "exempt": exempt})

    def forget(self) -> None:
        """Remove the file."""
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass

    def _read(self) -> dict[str, Any]:
        nothing: dict[str, Any] = {"persistent": [], "sysctls": {}, "exempt": {"uids": [], "groups": {}}}
        try:
            with open(self._path, encoding="utf-8") as file:
                return {**nothing, **json.load(file)}
        except FileNotFoundError:
            return nothing
        except (OSError, ValueError) as error:
            raise UvnError(f"{self._path}: {error}; repair it or delete it (it holds the users provisioned to stay)") from None

    def _write(self, data: dict[str, Any]) -> None:
        os.makedirs(os.path.dirname(self._path), mode=0o755, exist_ok=True)
        temporary = f"{self._path}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)


def vouch(uid: int, name: str | None) -> None:
    """From now on a login of the account `name` is one file test (uvn-login): of a link that names the UID."""
    if name and acceptable(name):
        os.makedirs(READY, mode=0o755, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{READY}/{name}")
        os.symlink(str(uid), f"{READY}/{name}")


def vouched() -> dict[str, int]:
    """Account names with the UIDs that are vouched for. What is no link of ours is nobody's."""
    found = {}
    for name in os.listdir(READY) if os.path.isdir(READY) else ():
        with contextlib.suppress(OSError, ValueError):
            found[name] = int(os.readlink(f"{READY}/{name}"))
    return found


def withdraw(uid: int) -> None:
    """Before a network goes: no login passes without asking, under whatever name."""
    for name, of in vouched().items():
        if of == uid:
            _unlink(name)


def withdraw_strangers(uids: Mapping[str, int | None]) -> None:
    """Logins of accounts that have another UID by now, or None, ask again; of names that are not in `uids` nothing is known."""
    for name, uid in vouched().items():
        if uids.get(name, uid) != uid:
            _unlink(name)


def _unlink(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{READY}/{name}")
