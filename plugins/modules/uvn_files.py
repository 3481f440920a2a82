#!/usr/bin/python
# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: uvn_files
short_description: Install the files of UVN on a node in one go
version_added: 0.1.0
description:
  - Does for many small files in one connection what M(ansible.builtin.copy) does in two for each.
  - It serves the role P(hpc.uvn.uvn_node#role), whose two dozen files would otherwise be most of its run time.
  - Files belong to root. Each is replaced atomically.
author:
  - The UVN authors (!UNKNOWN)
extends_documentation_fragment:
  - hpc.uvn.attributes
options:
  files:
    description:
      - The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description:
          - Absolute path on the node. Missing parent directories are made.
        type: path
        required: true
      src:
        description:
          - File on the controller, sought as M(ansible.builtin.copy) does.
          - When it is a directory, the files in it are meant, and O(files[].path) is a directory as well.
        type: str
      content:
        description:
          - The text of the file.
        type: str
      base64:
        description:
          - The content of the file in base64. O(files[].src) becomes this on its way to the node.
        type: str
      unpack:
        description:
          - The content is a zip archive, such as a Python wheel. The files in it are meant, and O(files[].path) is a directory.
        type: bool
        default: false
      mode:
        description:
          - The file's permissions in octal.
        type: str
        default: "0644"
      state:
        description:
          - With V(absent) the file is deleted, and needs no content.
        type: str
        choices: [absent, present]
        default: present
  directories:
    description:
      - Directories that hold nothing but what O(files) puts there. Other files in them are deleted, as a former version may have left
        them. A directory that is empty then is deleted as well.
    type: list
    elements: path
    default: []
  validate:
    description:
      - Command that must accept the files before any is changed, in check mode too. If it does not, all stays as it is.
      - In each word, C(%s) stands for a directory that has the files as C(/) will have them.
      - It is not asked when nothing is to be changed, and not with O(state=absent).
    type: list
    elements: str
    default: []
  state:
    description:
      - With V(absent) all files are deleted, whatever O(files[].state) says.
    type: str
    choices: [absent, present]
    default: present
notes:
  - Compiled Python files (C(__pycache__)) in O(directories) are deleted with their sources and are not reported.
"""

EXAMPLES = r"""
- name: Install the library and its configuration
  hpc.uvn.uvn_files:
    files:
      - path: /usr/lib/uvn/uvn
        src: "{{ role_path }}/../../plugins/module_utils/uvn"
      - path: /etc/modules-load.d/uvn.conf
        content: |
          vrf
          vxlan
    directories:
      - /usr/lib/uvn/uvn

- name: Replace a configuration that its program accepts
  hpc.uvn.uvn_files:
    files:
      - path: /etc/uvn/site.json
        content: "{{ configuration | to_nice_json | string }}"
    validate: [/usr/sbin/uvn, --site, "%s/etc/uvn/site.json", site]

- name: Unpack a wheel
  hpc.uvn.uvn_files:
    files:
      - path: /usr/lib/uvn
        src: /srv/wheels/pyroute2-0.7.12-py3-none-any.whl
        unpack: true
"""

RETURN = r"""
paths:
  description: The files that were written or deleted; in check mode those that would be.
  returned: success
  type: list
  elements: str
  sample: [/etc/modules-load.d/uvn.conf]
"""

import base64
import io
import os
import stat
import tempfile
import zipfile

from ansible.module_utils.basic import AnsibleModule

CACHE = "__pycache__"


def wanted(params: dict) -> dict:
    """Path -> (content, permissions) of every file that shall be there, None for those that shall not."""
    result = {}
    for entry in params["files"]:
        path = os.path.normpath(entry["path"])
        if "absent" in (entry["state"], params["state"]):
            result[path] = None
        else:
            plain = entry["base64"] is None
            content = entry["content"].encode("utf-8") if plain else base64.b64decode(entry["base64"])
            files = unpacked(path, content) if entry["unpack"] else {path: content}
            result.update((name, (data, int(entry["mode"], 8))) for name, data in files.items())
    for directory in params["directories"]:
        for path in strays(directory):
            result.setdefault(path, None)
    return result


def unpacked(directory: str, archive: bytes) -> dict:
    """Path -> content of the files in a zip archive; each is below the directory."""
    result = {}
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        for member in file.infolist():
            path = os.path.normpath(os.path.join(directory, member.filename))
            if not path.startswith(directory + os.sep):
                raise zipfile.BadZipFile("%s would be outside of it" % member.filename)
            if not member.is_dir():
                result[path] = file.read(member)
    return result


def strays(directory: str) -> list:
    """The files below a directory, without Python's caches."""
    found = []
    for parent, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if name != CACHE)
        found += [os.path.join(parent, name) for name in sorted(names)]
    return found


def observe(path: str):
    """(content, permissions) of a regular file of root, () of anything else, None of nothing."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(status.st_mode) or (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        return ()
    with open(path, "rb") as file:
        return file.read(), stat.S_IMODE(status.st_mode)


def write(path: str, content: bytes, mode: int) -> None:
    """Put a file in place in one step."""
    parent = os.path.dirname(path)
    os.makedirs(parent, mode=0o755, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".uvn-", dir=parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def stage(root: str, files: dict) -> None:
    """Put the files that shall be there below another root."""
    for path, after in files.items():
        if after is not None:
            os.makedirs(root + os.path.dirname(path), exist_ok=True)
            with open(root + path, "wb") as file:
                file.write(after[0])
                os.fchmod(file.fileno(), after[1])


def validate(module: AnsibleModule, files: dict) -> None:
    """End the module when the command does not accept the files."""
    with tempfile.TemporaryDirectory(prefix="uvn-") as root:
        stage(root, files)
        status, output, errors = module.run_command([word.replace("%s", root) for word in module.params["validate"]])
    if status:
        reason = (errors.strip() or output.strip() or "exit status %d" % status).replace(root, "")
        module.fail_json(msg="the new files are not accepted, nothing was changed: %s" % reason)


def delete(path: str) -> None:
    """Delete a file and what Python compiled from it."""
    os.unlink(path)
    parent, name = os.path.split(path)
    cache = os.path.join(parent, CACHE)
    if os.path.isdir(cache):
        for compiled in os.listdir(cache):
            if compiled.split(".")[0] == os.path.splitext(name)[0]:
                os.unlink(os.path.join(cache, compiled))


def prune(directory: str) -> None:
    """Delete the empty directories at and below a directory."""
    for parent, _directories, _names in os.walk(directory, topdown=False):
        if not os.listdir(parent):
            os.rmdir(parent)


def show(path: str, before, after) -> dict:
    """One file's change as Ansible shows differences."""
    return {
        "before_header": path if before is not None else "/dev/null",
        "after_header": path if after is not None else "/dev/null",
        "before": text(before),
        "after": text(after),
    }


def text(observed) -> str:
    """What the difference says of a file's content and permissions."""
    if observed is None:
        return ""
    if observed == ():
        return "(not a regular file of root)\n"
    content, mode = observed
    try:
        return "mode %04o\n%s" % (mode, content.decode("utf-8"))
    except UnicodeDecodeError:
        return "mode %04o\n(%d bytes, not text)\n" % (mode, len(content))


def run(module: AnsibleModule) -> dict:
    """Compare, validate, and outside of check mode, write and delete."""
    params, check = module.params, module.check_mode
    files = wanted(params)
    changes = [(path, observe(path), after) for path, after in files.items()]
    changes = [(path, before, after) for path, before, after in changes if before != after]
    if changes and params["validate"] and params["state"] == "present":
        validate(module, files)
    for path, _before, after in [] if check else changes:
        if after is None:
            delete(path)
        else:
            write(path, *after)
    for directory in [] if check else params["directories"]:
        prune(directory)
    return {
        "changed": bool(changes),
        "paths": [change[0] for change in changes],
        "diff": [show(*change) for change in changes],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "src": {"type": "str"},
                    "content": {"type": "str"},
                    "base64": {"type": "str"},
                    "unpack": {"type": "bool", "default": False},
                    "mode": {"type": "str", "default": "0644"},
                    "state": {"type": "str", "choices": ["absent", "present"], "default": "present"},
                },
                "mutually_exclusive": [("src", "content", "base64")],
                "required_if": [("state", "present", ("src", "content", "base64"), True)],
            },
            "directories": {"type": "list", "elements": "path", "default": []},
            "validate": {"type": "list", "elements": "str", "default": []},
            "state": {"type": "str", "choices": ["absent", "present"], "default": "present"},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}; UVN's files are not all in place")
    except zipfile.BadZipFile as error:
        module.fail_json(msg=f"the file to unpack is no usable zip archive: {error}; nothing was changed")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
