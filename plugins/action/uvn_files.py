# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of the module hpc.uvn.uvn_files: reads what `src` names."""

from __future__ import annotations

import base64
import os
from typing import Any, Iterator

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Replaces every `src` by its content, so that all files reach the node with the one run of the module."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args = dict(self._task.args)
        try:
            args["files"] = [file for entry in args.get("files") or [] for file in self._expand(dict(entry))]
        except (AnsibleError, OSError) as error:
            raise AnsibleActionFail(f"hpc.uvn.uvn_files: {error}") from error
        return {
            **result,
            **self._execute_module(module_name="hpc.uvn.uvn_files", module_args=args, task_vars=task_vars),
        }

    def _expand(self, entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """One entry for every file that `entry` means, with its content in base64."""
        src = entry.pop("src", None)
        if src is None:
            yield entry
            return
        found = self._find_needle("files", src)
        names = sorted(os.listdir(found)) if os.path.isdir(found) else [None]
        for name in names:
            source = found if name is None else os.path.join(found, name)
            if name is None or (os.path.isfile(source) and not name.startswith(".")):
                path = entry["path"] if name is None else os.path.join(entry["path"], name)
                yield {**entry, "path": path, "base64": self._read(source)}

    @staticmethod
    def _read(path: str) -> str:
        with open(path, "rb") as file:
            return base64.b64encode(file.read()).decode("ascii")
