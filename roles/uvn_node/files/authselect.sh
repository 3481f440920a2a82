# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Puts UVN's lines into the PAM stack of a node of the RHEL family (`present`), or takes them out (`absent`): by a profile of our own, since
# authselect replaces what is edited by hand. The profile is the node's present one, by symbolic links, except for the two files
# that every service's session includes; crond and systemd-user do not include postlogin.
# shellcheck shell=sh
set -eu

PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH

CUSTOM=/etc/authselect/custom
OURS=$CUSTOM/uvn
FILES='system-auth password-auth'

current=$(authselect current --raw)
profile=${current%% *}
features=${current#"$profile"}

if [ "$1" = absent ]; then
    base=$(readlink "$OURS/nsswitch.conf")
    base=${base%/*}
    name=${base##*/}
    [ "${base%/*}" != "$CUSTOM" ] || name=custom/$name
    # shellcheck disable=SC2086 # a list of words
    exec authselect select "$name" $features
fi

if [ "$profile" != custom/uvn ]; then
    rm -rf "$OURS"
    authselect create-profile uvn --base-on="$profile" --symlink-meta --symlink-nsswitch --symlink-dconf --symlink-pam
fi
base=$(readlink "$OURS/nsswitch.conf")
for file in $FILES; do
    rm -f "$OURS/$file"
    cat "${base%/*}/$file" /usr/lib/uvn/pam-session >"$OURS/$file"
done
# shellcheck disable=SC2086 # a list of words
exec authselect select custom/uvn $features
