#!/bin/busybox sh
# Process 1 of the guest: uses its network, tells what it saw in lines "key=value", and resets.
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
# what is typed would tear what is told
stty -echo
ip link set lo up
for module in ipv6 virtio_pci virtio_net; do modprobe "$module" 2>/dev/null; done

echo "cpus=$(nproc)"
net lease
ping -A -c 300 -W 5 10.0.2.2 | sed -n 's/^\([0-9]*\) packets transmitted, \([0-9]*\) packets received.*/pings=\1,\2/p'
net download http://10.0.2.9:8099/blob
# name and count of each interrupt of the NIC
awk '/virtio/ { n = 0; for (i = 2; $i ~ /^[0-9]+$/; i++) n += $i; print "interrupt=" n, $i, $(i + 1), $NF }' /proc/interrupts
# the terminal: what was said while nobody listened is lost
while read -r -t 60 word; do
  [ "$word" = hello ] && echo "heard=$word" && break
done
# an init that ends would panic, and reset as well: only a guest that got here says so
echo "done=yes"
reboot -f
