#!/bin/busybox sh
# Process 1 of the guest: mounts, loads the NIC's driver, then runs the host's commands.
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
ip link set lo up
for module in ipv6 virtio_pci virtio_mmio virtio_net; do modprobe "$module" 2>/dev/null; done

# The agent's line. No echo, and a line feed stays one byte.
exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty -echo -onlcr
echo "@@READY $(uname -r) $(cut -d' ' -f1 /proc/uptime)"
# One command a line, "id command"; silence for long means that the host is gone.
while read -r -t 300 id command; do
  ( eval "$command" ) </dev/null
  printf '@@END %s %s\n' "$id" "$?"
done
poweroff -f
