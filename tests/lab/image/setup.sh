#!/bin/sh
# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Runs in the new root (chroot, nothing mounted): accounts, keys, units.
set -eu
here=/uvn-lab-setup

install_keys() { # USER HOME: the host's key and the account's own one open the account on every node
    install -d -m 0700 -o "$1" -g "$1" "$2/.ssh"
    install -m 0600 -o "$1" -g "$1" "$here/keys/$1" "$2/.ssh/id_ed25519"
    install -m 0644 -o "$1" -g "$1" "$here/keys/$1.pub" "$2/.ssh/id_ed25519.pub"
    cat "$here/keys/host.pub" "$here/keys/$1.pub" >"$2/.ssh/authorized_keys"
    chown "$1:$1" "$2/.ssh/authorized_keys"
}

useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin labsvc
install_keys root /root
while read -r user uid; do
    useradd --create-home --uid "$uid" --user-group --shell /bin/bash "$user"
    install_keys "$user" "/home/$user"
done <"$here/users"

rm -f /etc/ssh/ssh_host_*
install -m 0600 "$here/keys/node" /etc/ssh/ssh_host_ed25519_key
install -m 0644 "$here/keys/node.pub" /etc/ssh/ssh_host_ed25519_key.pub

systemctl --quiet disable munge slurmctld slurmd firewalld
sha512sum <"$here/keys/node" >/etc/munge/munge.key # the same on every node
install -d -o slurm -g slurm /var/lib/slurm/slurmctld /var/log/slurm

# As sites with several networks have it: Open MPI uses every interface that it sees unless told. Without IPv6, since Open MPI 5.0.7 cannot pair
# the interfaces of nodes that have both (github.com/open-mpi/ompi/issues/14079). The packages' file may lack its last line end.
printf '\n%s\n' 'btl_tcp_if_include = em1,ib0' 'oob_tcp_if_include = em1' 'btl_tcp_disable_family = 6' >>/etc/openmpi/openmpi-mca-params.conf

systemctl --quiet enable systemd-networkd systemd-networkd-wait-online lab-services lab-dns lab-ready
systemctl --quiet set-default multi-user.target
systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer getty@tty1.service serial-getty@ttyS0.service systemd-pstore.service systemd-firstboot.service \
    systemd-network-generator.service modprobe@configfs.service modprobe@dm_mod.service modprobe@drm.service \
    modprobe@efi_pstore.service modprobe@fuse.service modprobe@loop.service dev-hugepages.mount sys-kernel-config.mount \
    sys-fs-fuse-connections.mount

ln -sf ../locale.conf /etc/default/locale # which Debian 13 has itself
install -d -m 2755 -g systemd-journal /var/log/journal
rm -f /etc/hostname /etc/motd /etc/update-motd.d/* /boot/initrd.img* /boot/vmlinuz*
: >/etc/machine-id
touch /etc/.updated /var/.updated
