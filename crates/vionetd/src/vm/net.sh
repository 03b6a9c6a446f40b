#!/bin/sh
# What a guest does with its network; every answer is a line "key=value".

now() { cut -d' ' -f1 /proc/uptime; }
since() { echo "$1 $(now)" | awk '{ t = $2 - $1; printf "%.2f\n", (t > 0 ? t : 0.01) }'; }

# the interface that virtio_net drives; its probe may still be under way
nic() {
  tries=0
  while [ $tries -lt 100 ]; do
    for path in /sys/class/net/*; do
      case $(readlink "$path/device/driver") in
      */virtio_net) echo "${path##*/}"; return 0 ;;
      esac
    done
    usleep 50000
    tries=$((tries + 1))
  done
  echo "no interface of virtio_net" >&2
  return 1
}

# a DHCPv4 lease, applied
lease() {
  nic=$(nic) || return 1
  echo "nic=$nic"
  ip link set "$nic" up
  udhcpc -i "$nic" -n -q -f -t 8 -T 1 -s /etc/udhcpc.sh
}

# the address and the router that router advertisements gave
address6() {
  nic=$(nic) || return 1
  ip link set "$nic" up
  tries=0
  while [ $tries -lt 60 ]; do
    address=$(ip -6 addr show dev "$nic" | awk '/inet6/ && !/scope link|tentative/ { print $2; exit }')
    router=$(ip -6 route show default | awk '/via/ { print $3; exit }')
    if [ -n "$address" ] && [ -n "$router" ]; then
      echo "address6=$address"
      echo "router6=$router"
      return 0
    fi
    usleep 100000
    tries=$((tries + 1))
  done
  return 1
}

# resolve NAME: the addresses the leased server gives
resolve() {
  nslookup "$1" >/tmp/resolve 2>&1
  found=$(awk '/^Name:/ { name = 1 } name && /^Address/ { print $NF }' /tmp/resolve | tr '\n' ' ')
  echo "resolved=$found"
  [ -n "$found" ] || { cat /tmp/resolve; return 1; }
}

# download URL: into /tmp/blob, with its size, time and checksum
download() {
  rm -f /tmp/blob
  start=$(now)
  wget -q -O /tmp/blob "$1" || return 1
  echo "seconds=$(since "$start")"
  echo "bytes=$(stat -c %s /tmp/blob)"
  echo "sha256=$(sha256sum </tmp/blob | cut -d' ' -f1)"
}

# send HOST PORT: /tmp/blob, straight from its pages, until the other end has all of it
send() {
  start=$(now)
  nc "$1" "$2" -e cat /tmp/blob || return 1
  tries=0
  while netstat -tn | awk -v port=":$2" '$5 ~ port "$" && $6 ~ /ESTAB|FIN_WAIT1/ { open = 1 } END { exit !open }'; do
    [ $tries -lt 1000 ] || return 1
    usleep 10000
    tries=$((tries + 1))
  done
  echo "seconds=$(since "$start")"
  echo "bytes=$(stat -c %s /tmp/blob)"
}

# upload HOST PORT: the same through a half-closed connection, to a server that closes last
upload() {
  start=$(now)
  nc "$1" "$2" </tmp/blob || return 1
  echo "seconds=$(since "$start")"
  echo "bytes=$(stat -c %s /tmp/blob)"
}

# frames: how many octets and frames passed since the driver was loaded
frames() {
  nic=$(nic) || return 1
  for count in rx_bytes rx_packets tx_bytes tx_packets rx_errors tx_errors; do
    echo "$count=$(cat "/sys/class/net/$nic/statistics/$count")"
  done
}

"$@"
