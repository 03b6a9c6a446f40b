//! Published ports: connections and datagrams from the host into the guest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::net::{SocketFlags, acceptfrom_with};
use vionet::Instant;
use vionet_frame::build::HEADERS_MAX;
use vionet_raw::host::vector::{self, Flags};

use super::super::tcp::TcpFlow;
use super::super::udp::{UdpFlow, Via};
use super::super::{Key, Owner, Port};
use super::{DATAGRAM_ROOM, DATAGRAMS, Engine};
use crate::policy::Protocol;

/// Connections taken from one listener in one turn.
const CALLS: usize = 16;

impl Engine {
    pub(super) fn accept(&mut self, index: u32, now: Instant) {
        let listeners = Arc::clone(&self.listeners);
        let Some(listener) = listeners.get(index) else { return };
        for _ in 0..CALLS {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let Ok((socket, peer)) = acceptfrom_with(&listener.socket, flags) else { return };
            let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
            // A connection that cannot be carried on is closed by dropping it.
            let Some(peer) = peer else { continue };
            let Some(key) =
                self.key_inbound(Protocol::Tcp, peer, listener.to_addr, listener.to_port)
            else {
                continue;
            };
            let Some(route) = self.route(key.remote.ip(), key.guest.ip()) else { continue };
            if self.table.contains_key(&key) {
                continue;
            }
            let iss = self.draw();
            let mut flow = TcpFlow::from_host(socket, key, route, iss, now);
            flow.call();
            if self.adopt_tcp(flow).is_ok()
                && let Some(index) = self.table.get(&key).copied()
            {
                self.enqueue(Owner::Tcp(index));
            }
        }
    }

    pub(super) fn receive_published(&mut self, index: u32, port: &mut dyn Port, now: Instant) {
        let listeners = Arc::clone(&self.listeners);
        let Some(listener) = listeners.get(index) else { return };
        for _ in 0..DATAGRAMS {
            if !port.has_room(DATAGRAM_ROOM) {
                return;
            }
            let body = self.scratch.get_mut(HEADERS_MAX..).unwrap_or(&mut []);
            let got = vector::receive(listener.socket.as_fd(), body, &[], &mut [], Flags::NONE);
            let Ok((len, Some(peer))) = got else { return };
            let Some(key) =
                self.key_inbound(Protocol::Udp, peer, listener.to_addr, listener.to_port)
            else {
                continue;
            };
            let Some(route) = self.route(key.remote.ip(), key.guest.ip()) else { continue };
            if !self.table.contains_key(&key) {
                let via = Via::Published { listener: index, peer };
                let (pair, answered, queued) = (self.pair, true, false);
                let flow = UdpFlow { via, key, route, pair, seen: now, answered, queued };
                if self.adopt_udp(flow).is_err() {
                    continue;
                }
            }
            self.deliver_datagram(&key, &route, len, port);
        }
    }

    /// Who calls whom, as the guest sees it: callers from the host itself appear as the gateway.
    pub(super) fn key_inbound(
        &self,
        protocol: Protocol,
        peer: SocketAddr,
        to_addr: Option<IpAddr>,
        to_port: u16,
    ) -> Option<Key> {
        let own = match peer.ip() {
            IpAddr::V4(_) => self.services.guest_v4().map(IpAddr::V4),
            IpAddr::V6(_) => self.services.guest_v6().map(IpAddr::V6),
        };
        let guest = to_addr.filter(|to| to.is_ipv4() == peer.is_ipv4()).or(own)?;
        let gateway = match peer.ip() {
            IpAddr::V4(_) => self.config.ipv4.map(|net| IpAddr::V4(net.gateway)),
            IpAddr::V6(_) => self.config.ipv6.map(|net| IpAddr::V6(net.gateway)),
        };
        let remote = if is_host_only(peer.ip()) {
            self.config.map_host_loopback.stand_in(peer.ip()).or(gateway)?
        } else {
            peer.ip()
        };
        let guest = SocketAddr::new(guest, to_port);
        Some(Key { protocol, guest, remote: SocketAddr::new(remote, peer.port()) })
    }
}

/// Addresses that mean nothing beyond the host they belong to.
fn is_host_only(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip == Ipv4Addr::UNSPECIFIED,
        IpAddr::V6(ip) => {
            ip.is_loopback() || ip.is_unicast_link_local() || ip == Ipv6Addr::UNSPECIFIED
        }
    }
}
