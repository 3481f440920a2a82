#!/usr/bin/python
# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: uvn_info
short_description: Gather what UVN knows of a node and of its users' networks
version_added: 0.1.0
description:
  - Asks C(uvnd) for the node's state and for the networks that are on it.
author:
  - The UVN authors (!UNKNOWN)
extends_documentation_fragment:
  - hpc.uvn.attributes.info
options:
  gather_subset:
    description:
      - What to return. V(all) is everything, V(node) the node's own state and versions, V(networks) the users' networks.
    type: list
    elements: str
    choices: [all, networks, node]
    default: [all]
seealso:
  - module: hpc.uvn.uvn_host
  - module: hpc.uvn.uvn_user
"""

EXAMPLES = r"""
- name: Who has a network on this node?
  hpc.uvn.uvn_info:
    gather_subset: [networks]
  register: uvn

- name: Print their names
  ansible.builtin.debug:
    msg: "{{ uvn.networks | map(attribute='user') }}"
"""

RETURN = r"""
node:
  description: The node's own state, with the versions of UVN and of what it stands on.
  returned: when O(gather_subset) has V(node) or V(all)
  type: dict
networks:
  description: One entry for every user who has a network on the node.
  returned: when O(gather_subset) has V(networks) or V(all)
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.uvn.client import request
from ..module_utils.uvn.errors import UvnError

SUBSETS = ("networks", "node")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "gather_subset": {"type": "list", "elements": "str", "choices": ["all", *SUBSETS], "default": ["all"]},
        },
        supports_check_mode=True,
    )
    subsets = set(module.params["gather_subset"])
    try:
        reply = request({"op": "status"})
    except UvnError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **{subset: reply[subset] for subset in SUBSETS if subsets & {"all", subset}})


if __name__ == "__main__":
    main()
