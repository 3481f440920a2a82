#!/usr/bin/python
# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: uvn_host
short_description: Bring a node's own network state for UVN up, or take it down
version_added: 0.1.0
description:
  - The state that all users' networks of a node share. It consists of kernel parameters, routing rules, multicast routes, iptables
    chains and the membership program.
  - It is the same state, from the same plan, that C(uvn-node.service) brings up at boot.
  - Files, packages, units and PAM belong to the role P(hpc.uvn.uvn_node#role).
author:
  - The UVN authors (!UNKNOWN)
extends_documentation_fragment:
  - hpc.uvn.attributes
requirements:
  - pyroute2 >= 0.7.2 on the node, of the system's Python or in C(/usr/lib/uvn)
options:
  state:
    description:
      - With V(present) the node is ready to give users their networks. Users who have processes get theirs before
        membership is switched on, so that nobody is cut off.
      - With V(absent) every user's network and the node's own state are gone, and nothing else.
    type: str
    choices: [absent, present]
    default: present
  site:
    description:
      - Path of the site configuration on the node.
    type: path
    default: /etc/uvn/site.json
  config:
    description:
      - The site configuration itself, as P(hpc.uvn.site#filter) gives it, instead of the file O(site).
      - It lets check mode announce what a configuration would do that is not yet on the node.
    type: dict
seealso:
  - module: hpc.uvn.uvn_user
  - module: hpc.uvn.uvn_info
"""

EXAMPLES = r"""
- name: Repair whatever somebody changed by hand
  hpc.uvn.uvn_host:

- name: Take UVN's state out of the kernel
  hpc.uvn.uvn_host:
    state: absent
"""

RETURN = r"""
changes:
  description:
    - The objects that were made, replaced or deleted, in this order; in check mode those that would be.
    - C(op), C(kind) and C(name) are always there, the other keys belong to the kind.
    - With C(op=replace), C(before) has the same keys with the values that were replaced.
  returned: success
  type: list
  elements: dict
  contains:
    op:
      description: What was done.
      type: str
      returned: always
      sample: replace
    kind:
      description: What kind of object it is.
      type: str
      returned: always
      sample: sysctl
    name:
      description: The object's name.
      type: str
      returned: always
      sample: net/ipv4/tcp_l3mdev_accept
"""

import sys

sys.path.insert(0, "/usr/lib/uvn")  # where the role unpacks a wheel of pyroute2, as for the command `uvn`

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils.changes import report  # noqa: E402
from ..module_utils.uvn.errors import UvnError  # noqa: E402
from ..module_utils.uvn.reconcile import Reconciler  # noqa: E402
from ..module_utils.uvn.site import load, parse  # noqa: E402


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["absent", "present"], "default": "present"},
            "site": {"type": "path", "default": "/etc/uvn/site.json"},
            "config": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    try:
        config = module.params["config"]
        site = load(module.params["site"]) if config is None else parse(config)
        present = module.params["state"] == "present"
        with Reconciler.open(site, consult=present) as reconciler:
            changes = reconciler.node(present, check=module.check_mode)
    except UvnError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**report([change.as_dict() for change in changes]))


if __name__ == "__main__":
    main()
