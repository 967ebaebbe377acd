#!/bin/sh
# First process of a lab node: makes the container look like a server that has just been switched on,
# then becomes systemd. What a real server would have (packages, users, tuning) does not belong here.
set -e
# A host with hybrid cgroups gives its containers v1; docker and systemd in the node want pure v2.
if [ ! -f /sys/fs/cgroup/cgroup.controllers ]; then
  umount -R -l /sys/fs/cgroup
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
# Docker's shared mounts need a shared root.
mount --make-rshared /
# The host's own disks are not this server's; its loop devices are made by lab-disks.
# KVM of the lab host can't run a guest here, and libvirt would try it at every call.
rm -f /dev/loop* /dev/vd* /dev/sd* /dev/nvme* /dev/kvm
# The lab plugs the NICs in right after the start: a server has them when it boots.
for nic in $(cat /etc/cloudctl-lab/nics); do
  tries=0
  while [ ! -e "/sys/class/net/$nic" ] && [ $tries -lt 600 ]; do
    tries=$((tries + 1))
    sleep 0.05
  done
done
exec /sbin/init
