# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter hpc.uvn.site: the site configuration, checked on the controller before a node is touched."""

from __future__ import annotations

DOCUMENTATION = r"""
name: site
short_description: Validate a site configuration and complete it
version_added: 0.1.0
author:
  - The UVN authors (!UNKNOWN)
description:
  - Turns what a site decided into the content of C(/etc/uvn/site.json). Every key is present, networks and addresses are in
    their canonical form.
  - It fails with one sentence that begins with the path to the wrong value.
options:
  _input:
    description:
      - The site configuration. C(underlays) is required, the other keys have defaults.
      - A key whose value is null takes its default as well.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the complete configuration
  ansible.builtin.debug:
    msg: "{{ {'underlays': [{'subnets': ['192.168.80.0/21'], 'port': 800}]} | hpc.uvn.site }}"
"""

RETURN = r"""
_value:
  description: The validated, complete configuration.
  type: dict
"""

from typing import Any, Callable

from ansible.errors import AnsibleFilterError
from ansible_collections.hpc.uvn.plugins.module_utils.uvn.errors import UvnError
from ansible_collections.hpc.uvn.plugins.module_utils.uvn.site import parse


def site(value: Any) -> dict[str, Any]:
    """The validated, complete form of a site configuration; raises AnsibleFilterError with one sentence."""
    try:
        return parse(_plain(value)).as_dict()
    except UvnError as error:
        raise AnsibleFilterError(f"hpc.uvn.site: {error}") from None


def _plain(value: Any) -> Any:
    """Without the keys that are null."""
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if item is not None}
    return value


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable]:
        return {"site": site}
