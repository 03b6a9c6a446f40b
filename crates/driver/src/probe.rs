//! A guest's short questions: is anybody there, what is the address, does a datagram come back.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::{dns, icmp, udp};
use smoltcp::wire::{
    DnsQueryType, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpEndpoint,
};

use crate::error::GuestError;
use crate::guest::{Guest, clock};

const PING_ID: u16 = 0x7669;

impl Guest {
    /// Sends an echo request and waits for the reply; returns how long it took.
    ///
    /// # Errors
    /// When there is no reply.
    pub fn ping(&mut self, to: IpAddr) -> Result<Duration, GuestError> {
        let buffer =
            || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 2048]);
        let handle = self.sockets.add(icmp::Socket::new(buffer(), buffer()));
        let start = clock();
        let result = self.send_echo(handle, to).and_then(|()| {
            self.until("waiting for an echo reply", |guest| {
                let socket = guest.sockets.get_mut::<icmp::Socket<'_>>(handle);
                let came = socket.recv().is_ok_and(|(_, from)| IpAddr::from(from) == to);
                Ok(came.then(|| start.elapsed()))
            })
        });
        self.sockets.remove(handle);
        result
    }

    fn send_echo(&mut self, handle: SocketHandle, to: IpAddr) -> Result<(), GuestError> {
        const DATA: &[u8] = b"vionet built-in guest: anybody there?";
        let caps = smoltcp::phy::Device::capabilities(&self.link).checksum;
        let source = self.interface.ipv6_addr().unwrap_or(Ipv6Addr::UNSPECIFIED);
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(handle);
        let refused = |_| GuestError::Network("an echo request");
        let bound = socket.bind(icmp::Endpoint::Ident(PING_ID));
        bound.map_err(|_| GuestError::Network("an echo socket"))?;
        match to {
            IpAddr::V4(_) => {
                let request = Icmpv4Repr::EchoRequest { ident: PING_ID, seq_no: 1, data: DATA };
                let room = socket.send(request.buffer_len(), to.into()).map_err(refused)?;
                request.emit(&mut Icmpv4Packet::new_unchecked(room), &caps);
            }
            IpAddr::V6(to) => {
                let request = Icmpv6Repr::EchoRequest { ident: PING_ID, seq_no: 1, data: DATA };
                let room = socket.send(request.buffer_len(), IpAddress::Ipv6(to));
                let room = room.map_err(refused)?;
                request.emit(&source, &to, &mut Icmpv6Packet::new_unchecked(room), &caps);
            }
        }
        Ok(())
    }

    /// Resolves a name with the servers of the lease: its first IPv4 address, then its first IPv6
    /// address, where it has them.
    ///
    /// # Errors
    /// When no server answers, or none knows the name.
    pub fn resolve(&mut self, name: &str) -> Result<Vec<IpAddr>, GuestError> {
        let mut found = self.query(name, DnsQueryType::A)?;
        found.extend(self.query(name, DnsQueryType::Aaaa)?);
        if found.is_empty() {
            return Err(GuestError::Network("the name: no server knows it"));
        }
        Ok(found)
    }

    /// One question; no answer of that kind is an empty list.
    fn query(&mut self, name: &str, kind: DnsQueryType) -> Result<Vec<IpAddr>, GuestError> {
        if self.dns.is_empty() {
            return Err(GuestError::Network("the name: there is no server to ask"));
        }
        let handle = self.sockets.add(dns::Socket::new(&self.dns, vec![]));
        let socket = self.sockets.get_mut::<dns::Socket<'_>>(handle);
        let result = match socket.start_query(self.interface.context(), name, kind) {
            Err(_) => Err(GuestError::Network("the name: it is not one")),
            Ok(query) => self.until("waiting for the name to be resolved", |guest| {
                let socket = guest.sockets.get_mut::<dns::Socket<'_>>(handle);
                Ok(match socket.get_query_result(query) {
                    Ok(addresses) => Some(addresses.iter().copied().map(IpAddr::from).collect()),
                    Err(dns::GetQueryResultError::Pending) => None,
                    Err(dns::GetQueryResultError::Failed) => Some(Vec::new()),
                })
            }),
        };
        self.sockets.remove(handle);
        result
    }

    /// Sends a datagram of `len` bytes to an echo server, [`crate::Peer::echo`] or another, and
    /// waits until it comes back; returns how long it took.
    ///
    /// # Errors
    /// When it does not come back as it went.
    pub fn udp_echo(&mut self, to: SocketAddr, len: u16) -> Result<Duration, GuestError> {
        let data: Vec<u8> = crate::Content::new(u64::from(len)).flatten().collect();
        let buffer = || {
            let room = data.len().saturating_mul(2);
            udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; room.max(64)])
        };
        let port = self.port();
        let handle = self.sockets.add(udp::Socket::new(buffer(), buffer()));
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(handle);
        let far = IpEndpoint::from(to);
        let start = clock();
        let sent = socket.bind(port).is_ok() && socket.send_slice(&data, far).is_ok();
        let result = if sent {
            self.until("waiting for a datagram to come back", |guest| {
                let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
                let back =
                    socket.recv().is_ok_and(|(got, from)| from.endpoint == far && got == data);
                Ok(back.then(|| start.elapsed()))
            })
        } else {
            Err(GuestError::Network("a datagram"))
        };
        self.sockets.remove(handle);
        result
    }
}
