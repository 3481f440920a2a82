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
  - The node's own state is compared with the plan, so this finds what somebody changed by hand.
author:
  - The UVN authors (!UNKNOWN)
extends_documentation_fragment:
  - hpc.uvn.attributes.info
options:
  gather_subset:
    description:
      - What to return. V(all) is everything, V(node) the node's own state, V(networks) the users' networks,
        V(versions) what UVN stands on.
    type: list
    elements: str
    choices: [all, networks, node, versions]
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
  description: The node's own state.
  returned: when O(gather_subset) has V(node) or V(all)
  type: dict
  contains:
    mode:
      description: V(enforce), or V(audit) where nothing is refused or dropped.
      type: str
      returned: always
    membership:
      description: Whether the membership program is attached, that is, whether users are isolated.
      type: bool
      returned: always
    sockets:
      description: How many sockets the membership program bound, refused and let pass since it was loaded.
      type: dict
      returned: always
    moves:
      description: How many calls that would have taken a user's socket out of its network were refused and let pass.
      type: dict
      returned: always
    guard:
      description: Packets by cause that were dropped, or would have been, since the guard was made.
      type: dict
      returned: always
    hooks:
      description: Whether the programs on security hooks are attached, which takes BPF among the kernel's active security modules.
      type: bool
      returned: always
    families:
      description: How many sockets of address families that are no part of users' networks were refused and let pass.
      type: dict
      returned: always
    abstract:
      description: How many connections and datagrams to other users' abstract Unix sockets were refused and let pass.
      type: dict
      returned: always
    ipv6:
      description: Whether users have IPv6, which needs it on the node (C(enabled)), and whether it leaves the listed subnets (C(ip6tables)).
      type: dict
      returned: always
      sample: {enabled: true, ip6tables: true}
    strays:
      description: Sockets of users outside their networks, up to 100 of each user, with the program that holds each where it was found.
      type: list
      elements: dict
      returned: always
    drift:
      description: What differs from the plan, one sentence each. Empty when all is well.
      type: list
      elements: str
      returned: always
networks:
  description: One entry for every user who has a network on the node.
  returned: when O(gather_subset) has V(networks) or V(all)
  type: list
  elements: dict
  contains:
    uid:
      description: The user's numeric ID.
      type: int
      returned: always
      sample: 1234
    user:
      description: The user's name, null when no account has the ID any more, or uvnd has not heard which.
      type: str
      returned: always
      sample: alice
    vrf:
      description: The name of the user's VRF.
      type: str
      returned: always
      sample: vrf1234
    persistent:
      description: Whether the network stays when the user leaves.
      type: bool
      returned: always
versions:
  description: Versions of what UVN stands on; null for what is not installed.
  returned: when O(gather_subset) has V(versions) or V(all)
  type: dict
  sample: {kernel: 6.1.0-37-amd64, pyroute2: 0.7.2, python: 3.11.2}
"""

import platform
import sys
from importlib import metadata

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.uvn.client import request
from ..module_utils.uvn.errors import UvnError

FROM_UVND = {"networks", "node"}


def gather(subsets: set) -> dict:
    """The subsets asked for; uvnd is asked only when it has to answer."""
    if "all" in subsets:
        subsets = FROM_UVND | {"versions"}
    reply = request({"op": "status"}) if subsets & FROM_UVND else {}
    facts = {subset: reply[subset] for subset in FROM_UVND & subsets}
    if "versions" in subsets:
        facts["versions"] = versions()
    return facts


def versions() -> dict:
    """Version of the kernel and of the libraries that UVN uses."""
    path = ["/usr/lib/uvn", *sys.path]  # where the role unpacks a wheel comes first, as for uvnd
    pyroute2 = next((found.version for found in metadata.distributions(name="pyroute2", path=path)), None)
    return {"kernel": platform.release(), "pyroute2": pyroute2, "python": platform.python_version()}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "gather_subset": {
                "type": "list",
                "elements": "str",
                "choices": ["all", "networks", "node", "versions"],
                "default": ["all"],
            },
        },
        supports_check_mode=True,
    )
    try:
        facts = gather(set(module.params["gather_subset"]))
    except UvnError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **facts)


if __name__ == "__main__":
    main()
