#!/bin/sh
# Called by udhcpc: applies a lease and says what was in it.
case $1 in
deconfig)
  ip -4 addr flush dev "$interface"
  ip link set "$interface" up
  ;;
bound | renew)
  ip -4 addr flush dev "$interface"
  ip addr add "$ip/${mask:-24}" dev "$interface"
  : >/etc/resolv.conf
  for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
  for hop in $router; do
    # a router outside the prefix needs a route of its own
    ip route add default via "$hop" dev "$interface" 2>/dev/null || {
      ip route add "$hop" dev "$interface"
      ip route add default via "$hop" dev "$interface"
    }
    break
  done
  [ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
  echo "address=$ip"
  echo "prefix=${mask:-24}"
  echo "router=${router%% *}"
  echo "dns=$dns"
  echo "lease=$lease"
  ;;
esac
