#!/bin/sh
# traffic VERB: what the tests make a guest do beyond the verbs of `net`.

# the feature bits the driver took, as numbers
features() {
  bits=$(cat "/sys/class/net/$(net nic)/device/features")
  echo "$bits" | awk '{ for (i = 1; i <= length($0); i++) if (substr($0, i, 1) == "1") printf "%d ", i - 1 }' |
    sed 's/^/features=/; s/ $/\n/'
}

# address6 ADDRESS/PREFIX: given by hand, and free to use
address6() {
  nic=$(net nic) || return 1
  ip -6 addr add "$1" dev "$nic" || return 1
  tries=0
  while ip -6 addr show dev "$nic" | grep -q tentative; do
    [ $tries -lt 50 ] || return 1
    usleep 100000
    tries=$((tries + 1))
  done
}

# udp HOST PORT BYTES BLOCK: a file by TFTP, and back again
udp() {
  rm -f /tmp/udp
  tftp -g -b "$4" -l /tmp/udp -r "$3" "$1" "$2" || return 1
  echo "sha256=$(sha256sum </tmp/udp | cut -d' ' -f1)"
  tftp -p -b "$4" -l /tmp/udp -r "$3" "$1" "$2"
}

# carrier 0|1: waits until the NIC says so
carrier() {
  nic=$(net nic) || return 1
  tries=0
  until [ "$(cat "/sys/class/net/$nic/carrier")" = "$1" ]; do
    [ $tries -lt 100 ] || return 1
    usleep 50000
    tries=$((tries + 1))
  done
}

# listen PORT: takes one connection, in the background
listen() {
  rm -f /tmp/in
  nc -l -p "$1" </dev/null >/tmp/in 2>&1 &
  # the back-end must not find the port closed
  tries=0
  until netstat -ltn | grep -q ":$1 "; do
    [ $tries -lt 50 ] || return 1
    usleep 50000
    tries=$((tries + 1))
  done
}

# received: what came in over it
received() {
  tries=0
  while pidof nc >/dev/null; do
    [ $tries -lt 200 ] || return 1
    usleep 50000
    tries=$((tries + 1))
  done
  echo "sha256=$(sha256sum </tmp/in | cut -d' ' -f1)"
}

# mean CMD..: runs it and says how many octets the mean frame had in each direction
mean() {
  net frames >/tmp/before
  "$@" || return 1
  net frames | paste -d= /tmp/before - | awk -F= '
    { d[$1] = $4 - $2 }
    END {
      printf "rx_mean=%d\ntx_mean=%d\n", d["rx_bytes"] / (d["rx_packets"] + 1), d["tx_bytes"] / (d["tx_packets"] + 1)
      printf "errors=%d\n", d["rx_errors"] + d["tx_errors"]
    }'
}

# reload TIMES ADDRESS/PREFIX PEER: takes the driver out and in again, and pings each time
reload() {
  round=1
  while [ "$round" -le "$1" ]; do
    rmmod virtio_net || return 1
    modprobe virtio_net || return 1
    nic=$(net nic) || return 1
    ip link set "$nic" up
    ip addr add "$2" dev "$nic"
    ping -c 2 -i 0.2 -W 3 -q "$3" >/tmp/ping || { cat /tmp/ping; echo "round $round"; return 1; }
    round=$((round + 1))
  done
  echo "rounds=$1"
}

# offloads [NAME on|off]..: switches them together, then says how all are
offloads() {
  nic=$(net nic) || return 1
  # it ends with 1 when nothing changed
  [ $# -eq 0 ] || ethtool -K "$nic" "$@" >/tmp/offloads 2>&1
  ethtool -k "$nic" | sed -n 's/^[[:space:]]*\([a-z0-9-]*\): /\1=/p'
}

# burst_listen 4|6 PORT: takes datagrams, in the background
burst_listen() {
  rm -f /tmp/burst
  socat -u "UDP$1-RECV:$2" CREATE:/tmp/burst </dev/null >/tmp/socat 2>&1 &
  tries=0
  until netstat -lun | grep -q ":$2 "; do
    [ $tries -lt 50 ] || { cat /tmp/socat; return 1; }
    usleep 50000
    tries=$((tries + 1))
  done
}

# burst_received BYTES: what came in, when it is so much
burst_received() {
  tries=0
  until [ "$(stat -c %s /tmp/burst)" -ge "$1" ]; do
    [ $tries -lt 100 ] || { netstat -s; break; }
    usleep 20000
    tries=$((tries + 1))
  done
  killall socat
  echo "bytes=$(stat -c %s /tmp/burst)"
  echo "sha256=$(sha256sum </tmp/burst | cut -d' ' -f1)"
}

# spread URL HOST PORT: down and up again, on every processor at once
spread() {
  rm -f /tmp/spread.*
  for cpu in $(seq 0 $(($(nproc) - 1))); do
    taskset "$(printf %x $((1 << cpu)))" sh -c "
      wget -q -O /tmp/spread.$cpu '$1' && nc $2 $3 </tmp/spread.$cpu" &
  done
  wait
  for file in /tmp/spread.*; do
    echo "sha256.${file##*.}=$(sha256sum <"$file" | cut -d' ' -f1)"
  done
}

# busy URL: downloads in the background, on every processor, until all is to be calm
busy() {
  rm -f /tmp/calm /tmp/done.* /tmp/sums.*
  for cpu in $(seq 0 $(($(nproc) - 1))); do
    taskset "$(printf %x $((1 << cpu)))" sh -c "
      until [ -e /tmp/calm ] && [ -s /tmp/sums.$cpu ]; do
        wget -q -T 20 -O - '$1' | sha256sum >>/tmp/sums.$cpu
      done
      touch /tmp/done.$cpu" >/dev/null 2>&1 &
  done
  # each has begun
  usleep 300000
}

# calm: waits for their ends; all sums must be the same
calm() {
  touch /tmp/calm
  tries=0
  until [ "$(ls /tmp/done.* 2>/dev/null | wc -l)" = "$(nproc)" ]; do
    [ $tries -lt 300 ] || { echo "still busy"; return 1; }
    usleep 100000
    tries=$((tries + 1))
  done
  echo "rounds=$(cat /tmp/sums.* | wc -l)"
  echo "bad=$(($(sort -u /tmp/sums.* | wc -l) - 1))"
}

# queues: the frames of each: what the driver counts or, as Linux since 6.9 does not tell that here,
# what the device counts, else its kicks; and the interrupts of each that has some of its own
queues() {
  ethtool -S "$(net nic)" >/tmp/counts
  for what in packets hw_packets kicks; do
    if grep -q "x[_a-z]*[0-9]_$what: " /tmp/counts; then break; fi
  done
  sed -n "s/^ *\([rt]x\)\(_queue_\)\{0,1\}\([0-9]*\)_$what: /\1\3=/p" /tmp/counts
  awk '/virtio[0-9]+-(input|output)/ {
    for (sum = 0, i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) sum += $i
    sub(/.*-/, "", $NF)
    print $NF "=" sum
  }' /proc/interrupts
}

# what the kernel had to say about its NIC that should worry us
complaints() {
  dmesg | grep -E 'virtio.*([Ff]ail|[Ee]rror|unexpected|not a head|bad gso)|NETDEV WATCHDOG|BUG:|Oops|WARNING:'
  true
}

"$@"
