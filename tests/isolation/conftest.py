# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One set of ssh sessions for the whole run; what disturbs a node comes after what does not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cases  # noqa: E402
import matrix  # noqa: E402
from sessions import Cluster, local_login  # noqa: E402

ORDER = ("cron", "closed", "persistence")  # markers of what runs late, in this order
MEANING = {
    "cron": "waits for cron, which was given its job at the start",
    "closed": "takes networks or the daemon away and brings them back",
    "persistence": "restarts services or a node",
}


def pytest_configure(config):
    for marker in ORDER:
        config.addinivalue_line("markers", f"{marker}: {MEANING[marker]}")


def pytest_collection_modifyitems(items):
    def position(item):
        return max((number for number, marker in enumerate(ORDER, 1) if item.get_closest_marker(marker)), default=0)

    items.sort(key=position)


@pytest.fixture(scope="session")
def cluster():
    """The sessions, with those of the matrix opened together."""
    with Cluster() as sessions:
        sessions.open([(user, node) for user in cases.LISTENERS for node in cases.NODES])
        yield sessions


@pytest.fixture(scope="session")
def results(cluster):
    """The matrix, measured once."""
    return matrix.measure(cluster)


@pytest.fixture(scope="session")
def listening(cluster):
    """Everybody's listeners are open."""
    for user in cases.LISTENERS:
        matrix.listen(cluster, user, False)


@pytest.fixture(scope="session")
def host():
    """An agent on the test's own host: the user's laptop."""
    agent = local_login("user", "host")
    yield agent
    agent.close()


CRON_SCRIPT = """\
import json, os, socket
s = socket.socket(socket.AF_INET)
device = s.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).split(b"\\0")[0].decode()
about = {"uid": os.getuid(), "device": device, "cgroup": open("/proc/self/cgroup").read().strip()}
with open("cron.new", "w") as file:
    json.dump(about, file)
os.rename("cron.new", "cron.json")
"""


@pytest.fixture(scope="session")
def cron_job(cluster):
    """alice's crontab on c2 has a job for the next minute; gone at the end."""
    alice = cluster.session("alice", "c2")
    alice.check("rm", "-f", "cron.json")
    alice.check("tee", "cron.py", stdin=CRON_SCRIPT)
    alice.check("crontab", "-", stdin="* * * * * /usr/bin/python3 -I cron.py\n")
    yield alice
    cluster.session("alice", "c2").run("crontab", "-r")


@pytest.fixture(scope="session", autouse=True)
def cron_at_the_start(request):
    """cron needs up to a minute: give it the job before everything else when its test is going to run."""
    if any("cron_job" in item.fixturenames for item in request.session.items):
        request.getfixturevalue("cron_job")
