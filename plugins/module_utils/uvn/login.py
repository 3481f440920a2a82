# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PAM's first login of a user: tell uvnd what the directory says of the account, ask for the network, and wait.

With the argument `exempt` the account has no network to wait for, and is let in whatever uvnd says.
Started by uvn-login as `python3 -IS login.py` and not imported: a login must not pay for the library's imports.
Exit status 0 lets the session in; the sentence on standard output reaches the user.
"""

# pylint: disable=ansible-bad-function  # a program of the nodes; modules only have its `acceptable`

import _socket
import os
import pwd
import sys

SOCKET = "/run/uvn/uvnd.sock"
TIMEOUT = 60  # seconds
EXEMPT = sys.argv[1:] == ["exempt"]
NAME_MAX = 255  # bytes of a file name, include/uapi/linux/limits.h
REFUSED = "UVN: no private network for {user}: {reason}; the login is refused, please tell the administrators"
UNTOLD = "UVN: uvnd does not know yet that {user} is exempt: {reason}; sockets may be refused for a minute"


def main():
    """Return the exit status of the login."""
    user = os.environ.get("PAM_USER", "")
    if not acceptable(user):
        return refuse(user, "the account name is not acceptable")
    try:
        reply = ask('{"op": "ensure", "brief": true, "user": %s%s}\n' % (quoted(user), introduction(user)))
    except OSError as error:
        return refuse(user, "uvnd does not answer at %s (%s)" % (SOCKET, error))
    if reply.startswith(b'{"ok": true'):
        return 0
    return refuse(user, sentence(reply))


def introduction(user):
    """The account as uvnd wants it; nothing if the directory does not answer, uvnd then goes by what it knows."""
    try:
        entry = pwd.getpwnam(user)
        groups = os.getgrouplist(user, entry.pw_gid)
    except (KeyError, OSError):
        return ""
    exempt = ', "exempt": true' if EXEMPT else ""
    return ', "accounts": [{"name": %s, "uid": %d, "gids": %s%s}]' % (quoted(user), entry.pw_uid, groups, exempt)


def acceptable(name):
    """Whether an account may have this name: as a file in /run/uvn/ready, and on a terminal. uvn-login asks the same.

    It is the rule for all of UVN, and here because this program imports nothing of the library.
    """
    try:
        size = len(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # half a surrogate pair, which no account has
        return False
    return 0 < size <= NAME_MAX and name[0] not in "-." and not any(c in '/:"' or c < " " or c == "\x7f" for c in name)


def quoted(text):
    """As a JSON string (RFC 8259, section 7); bytes that are no UTF-8 are halves of surrogate pairs here, as for json."""
    return '"%s"' % "".join("\\u%04x" % ord(c) if c in '"\\' or c < " " or "\ud800" <= c <= "\udfff" else c for c in text)


def ask(message):
    """Send one line, return everything uvnd says."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT)
    connection.connect(SOCKET)
    connection.sendall(message.encode())
    reply = b""
    while True:
        data = connection.recv(65536)
        if not data:
            return reply
        reply += data


def sentence(reply):
    """The error in a reply; json is imported only when something failed."""
    import json

    try:
        return json.loads(reply)["error"]
    except (ValueError, KeyError):
        return "uvnd ended before it answered"


def refuse(user, reason):
    """Say why, to the user and to the journal."""
    import syslog

    text = (UNTOLD if EXEMPT else REFUSED).format(user=user, reason=reason).encode("utf-8", "backslashreplace").decode()
    syslog.openlog("uvn-login", 0, syslog.LOG_AUTH)
    syslog.syslog(syslog.LOG_ERR, text)
    print(text)
    return 1


if __name__ == "__main__":
    sys.exit(main())
