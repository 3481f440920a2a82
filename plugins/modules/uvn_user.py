#!/usr/bin/python
# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: uvn_user
short_description: Give users their private network on a node, or take it away
version_added: 0.1.0
description:
  - Users get their network by themselves when they log in. This module is for those whose network must be there before,
    for example because their services start at boot.
  - It asks C(uvnd), the daemon that the role P(hpc.uvn.uvn_node#role) installs, so that login, boot and Ansible have one writer
    and one plan.
author:
  - The UVN authors (!UNKNOWN)
extends_documentation_fragment:
  - hpc.uvn.attributes
options:
  name:
    description:
      - Login names of the users, as C(getent passwd) of the node prints them.
      - Exactly one of O(name) and O(uid) is required. With an empty list nothing is done.
    type: list
    elements: str
    aliases: [names, user]
  uid:
    description:
      - Numeric IDs of the users, for users that the node cannot resolve at the moment.
    type: list
    elements: int
    aliases: [uids]
  state:
    description:
      - With V(present) the whole network of every user is there and complete; a damaged one is repaired.
      - With V(absent) it is gone. The users' processes that still run cannot open sockets until they log in again.
    type: str
    choices: [absent, present]
    default: present
  persistent:
    description:
      - Whether the network comes back when the node boots.
      - With V(false) it is like one that a login made, and lasts until the node goes down.
      - Has no effect with O(state=absent).
    type: bool
    default: true
seealso:
  - module: hpc.uvn.uvn_host
  - module: hpc.uvn.uvn_info
"""

EXAMPLES = r"""
- name: The network of the account that runs the web portal is there from boot on
  hpc.uvn.uvn_user:
    name: portal

- name: The networks of a whole course, in one request
  hpc.uvn.uvn_user:
    name: "{{ course_accounts }}"

- name: Take away what is left of a deleted account
  hpc.uvn.uvn_user:
    uid: 4711
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
      sample: create
    kind:
      description: What kind of object it is.
      type: str
      returned: always
      sample: vrf
    name:
      description: The object's name.
      type: str
      returned: always
      sample: vrf1234
networks:
  description: The user's network as it is now, when exactly one user is named and O(state=present); else empty.
  returned: success
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.changes import report
from ..module_utils.uvn.client import TIMEOUT, request
from ..module_utils.uvn.errors import UvnError


def message(params: dict, check: bool) -> dict:
    """The request to uvnd that the module's parameters mean."""
    who = {"users": params["name"]} if params["name"] is not None else {"uids": params["uid"]}
    if params["state"] == "absent":
        return {"op": "remove", **who, "check": check}
    return {"op": "ensure", **who, "persistent": params["persistent"], "check": check}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "list", "elements": "str", "aliases": ["names", "user"]},
            "uid": {"type": "list", "elements": "int", "aliases": ["uids"]},
            "state": {"type": "str", "choices": ["absent", "present"], "default": "present"},
            "persistent": {"type": "bool", "default": True},
        },
        mutually_exclusive=[("name", "uid")],
        required_one_of=[("name", "uid")],
        supports_check_mode=True,
    )
    if not (module.params["name"] or module.params["uid"]):
        module.exit_json(networks=[], **report([]))
    try:
        asked = message(module.params, module.check_mode)
        reply = request(asked, timeout=TIMEOUT + len(asked.get("users", asked.get("uids", []))))
    except UvnError as error:
        module.fail_json(msg=str(error))
    module.exit_json(networks=reply.get("networks", []), **report(reply["changes"]))


if __name__ == "__main__":
    main()
