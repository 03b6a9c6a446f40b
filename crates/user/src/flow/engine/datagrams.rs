//! Datagrams of the guest: UDP, echo, and the DNS queries among them.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use vionet::Instant;
use vionet::endpoint::{Refused, RxHeader};
use vionet::stats::DropReason;
use vionet_frame::build::{HEADERS_MAX, IcmpHeader, Payload, Route, UdpHeader};
use vionet_frame::parse::{Icmp, Udp};
use vionet_raw::host::vector::{self, Flags};
use vionet_raw::{ReadSpan, copy_out};

use super::super::dns::MESSAGE_MAX;
use super::super::icmp::{ECHO_V4, ECHO_V6, PingFlow};
use super::super::tcp::{InFrame, PIECES};
use super::super::udp::{UdpFlow, Via};
use super::super::{Key, Owner, Port};
use super::{DATAGRAM_ROOM, DATAGRAMS, Engine, Frame, Taken};
use crate::host;
use crate::policy::{Protocol, Verdict};
use crate::resolver::{Asker, DNS_PORT};
use crate::services::{Handled, IcmpError};

impl Engine {
    pub(super) fn udp_input(&mut self, frame: &Frame<'_>, udp: &Udp, now: Instant) -> Taken {
        let key = Self::key(Protocol::Udp, frame.ip, udp.source, udp.destination);
        if self.config.dns && udp.destination == DNS_PORT && self.services.is_own(key.remote.ip()) {
            return self.dns_input(frame, &key, now);
        }
        let index = match self.table.get(&key).copied() {
            Some(index) => index,
            None => self.open_udp(frame, key, now)?,
        };
        self.follow(Owner::Udp(index));
        let payload =
            InFrame { frame: frame.bytes, at: frame.ip.payload, len: frame.ip.payload_len };
        let mut pieces = [ReadSpan::local(&[]); PIECES];
        let pieces = payload.behind(0, &mut pieces);
        let Some(flow) = self.udp.get_mut(index) else { return Ok(()) };
        flow.seen = now;
        let sent = match &flow.via {
            Via::Own(socket) => vector::send(socket.as_fd(), &[], pieces, None, Flags::NONE),
            Via::Published { listener, peer } => {
                let Some(listener) = self.listeners.get(*listener) else { return Ok(()) };
                vector::send(listener.socket.as_fd(), &[], pieces, Some(*peer), Flags::NONE)
            }
        };
        match sent {
            Ok(_) => Ok(()),
            Err(cause) => Err(self.explain_to_guest(frame, &cause)),
        }
    }

    /// Tells the guest what the host said to a datagram of its.
    pub(super) fn explain_to_guest(&mut self, frame: &Frame<'_>, cause: &io::Error) -> DropReason {
        let error = match cause.kind() {
            ErrorKind::ConnectionRefused => IcmpError::PortUnreachable,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                IcmpError::HostUnreachable
            }
            ErrorKind::PermissionDenied => IcmpError::Prohibited,
            ErrorKind::WouldBlock => return DropReason::HostFull,
            _ => return DropReason::HostRefused,
        };
        self.refuse(frame, error);
        DropReason::HostRefused
    }

    pub(super) fn open_udp(
        &mut self,
        frame: &Frame<'_>,
        key: Key,
        now: Instant,
    ) -> Result<u32, DropReason> {
        let to = match self.policy.decide(key.remote.ip(), Protocol::Udp, key.remote.port()) {
            Verdict::Allow(ip) => SocketAddr::new(ip, key.remote.port()),
            Verdict::Refuse(refusal) => {
                if !refusal.is_silent() {
                    self.refuse(frame, IcmpError::Prohibited);
                }
                return Err(DropReason::Policy);
            }
        };
        let socket =
            host::connect_udp(&to).map_err(|cause| self.explain_to_guest(frame, &cause))?;
        let via = Via::Own(socket);
        let route = self.route_back(frame);
        let (pair, answered, queued) = (self.pair, false, false);
        self.adopt_udp(UdpFlow { via, key, route, pair, seen: now, answered, queued })
    }

    pub(super) fn adopt_udp(&mut self, flow: UdpFlow) -> Result<u32, DropReason> {
        if self.udp.is_full() {
            self.forget_oldest_udp();
        }
        let key = flow.key;
        let index = self.udp.insert(flow).map_err(|_| DropReason::TableFull)?;
        self.table.insert(key, index);
        if !self.watch(Owner::Udp(index)) {
            self.end_udp(index);
            return Err(DropReason::HostFull);
        }
        Ok(index)
    }

    /// Datagrams have no end: the one that was silent longest makes room.
    pub(super) fn forget_oldest_udp(&mut self) {
        let oldest = self.udp.iter().min_by_key(|(_, flow)| flow.seen).map(|(index, _)| index);
        if let Some(index) = oldest {
            self.end_udp(index);
        }
    }

    pub(super) fn dns_input(&mut self, frame: &Frame<'_>, key: &Key, now: Instant) -> Taken {
        let len = frame.ip.payload_len;
        if len > MESSAGE_MAX {
            return Err(DropReason::TooLong);
        }
        let message = self.scratch.get_mut(..len).ok_or(DropReason::TooLong)?;
        copy_out(frame.bytes, frame.ip.payload, message);
        let asker = Asker { guest: key.guest, dns: key.remote.ip() };
        let now = self.origin.checked_add(Duration::from_nanos(now.nanos()));
        let now = now.unwrap_or(self.origin);
        let Some(first) = self.sides.first() else { return Ok(()) };
        if let Some(len) = self.dns.ask(asker, message, now, &first.epoll) {
            let route = self.route_back(frame);
            let header = UdpHeader { source: DNS_PORT, destination: key.guest.port() };
            let message = self.scratch.get(..len).unwrap_or(&[]);
            let (true | false) = self.replies.udp(&route, &header, message);
        }
        Ok(())
    }

    pub(super) fn icmp_input(&mut self, frame: &Frame<'_>, icmp: &Icmp, now: Instant) -> Taken {
        let (request, _) = if frame.ip.addresses.is_v4() { ECHO_V4 } else { ECHO_V6 };
        if icmp.kind != request || icmp.code != 0 {
            return Err(DropReason::Unsupported);
        }
        let key = Self::key(Protocol::Icmp, frame.ip, icmp.id, 0);
        let index = match self.table.get(&key).copied() {
            Some(index) => index,
            None => self.open_ping(frame, key, now)?,
        };
        self.follow(Owner::Icmp(index));
        let Some(flow) = self.ping.get_mut(index) else { return Ok(()) };
        flow.seen = now;
        let ([i0, i1], [s0, s1]) = (icmp.id.to_be_bytes(), icmp.seq.to_be_bytes());
        let header = [request, 0, 0, 0, i0, i1, s0, s1];
        let payload =
            InFrame { frame: frame.bytes, at: frame.ip.payload, len: frame.ip.payload_len };
        let mut pieces = [ReadSpan::local(&[]); PIECES];
        let pieces = payload.behind(0, &mut pieces);
        match vector::send(flow.socket.as_fd(), &header, pieces, None, Flags::NONE) {
            Ok(_) => Ok(()),
            Err(cause) => Err(self.explain_to_guest(frame, &cause)),
        }
    }

    pub(super) fn open_ping(
        &mut self,
        frame: &Frame<'_>,
        key: Key,
        now: Instant,
    ) -> Result<u32, DropReason> {
        let to = match self.policy.decide(key.remote.ip(), Protocol::Icmp, 0) {
            Verdict::Allow(ip) => SocketAddr::new(ip, 0),
            Verdict::Refuse(refusal) => {
                if !refusal.is_silent() {
                    self.refuse(frame, IcmpError::Prohibited);
                }
                return Err(DropReason::Policy);
            }
        };
        let socket =
            host::connect_ping(&to).map_err(|cause| self.explain_to_guest(frame, &cause))?;
        let route = self.route_back(frame);
        let flow = PingFlow { socket, key, route, pair: self.pair, seen: now, queued: false };
        let index = self.ping.insert(flow).map_err(|_| DropReason::TableFull)?;
        self.table.insert(key, index);
        if !self.watch(Owner::Icmp(index)) {
            self.end_ping(index);
            return Err(DropReason::HostFull);
        }
        Ok(index)
    }

    pub(super) fn end_udp(&mut self, index: u32) {
        if let Some(flow) = self.udp.remove(index) {
            self.table.remove(&flow.key);
        }
    }

    pub(super) fn end_ping(&mut self, index: u32) {
        if let Some(flow) = self.ping.remove(index) {
            self.table.remove(&flow.key);
        }
    }

    pub(super) fn turn_udp(&mut self, index: u32, port: &mut dyn Port, now: Instant) -> bool {
        for _ in 0..DATAGRAMS {
            let Some(flow) = self.udp.get_mut(index) else { return true };
            let Via::Own(socket) = &flow.via else { return true };
            if !port.has_room(DATAGRAM_ROOM) {
                return false;
            }
            let body = self.scratch.get_mut(HEADERS_MAX..).unwrap_or(&mut []);
            match vector::receive(socket.as_fd(), body, &[], &mut [], Flags::NONE) {
                Ok((len, _)) => {
                    flow.seen = now;
                    flow.answered = true;
                    let (key, route) = (flow.key, flow.route);
                    self.deliver_datagram(&key, &route, len, port);
                }
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => {
                    flow.queued = false;
                    return true;
                }
                Err(cause) => {
                    if cause.kind() == ErrorKind::ConnectionRefused {
                        let Key { guest, remote, .. } = flow.key;
                        let error = IcmpError::PortUnreachable;
                        let (Handled::Answered
                        | Handled::Absorbed
                        | Handled::Dropped(_)
                        | Handled::NotForUs) =
                            self.services.refuse_udp(guest, remote, None, error, &mut self.replies);
                    }
                }
            }
        }
        self.work.push_back(Owner::Udp(index));
        true
    }

    /// Delivers the datagram of `len` bytes that lies in the scratch room behind its headers.
    pub(super) fn deliver_datagram(
        &mut self,
        key: &Key,
        route: &Route,
        len: usize,
        port: &mut dyn Port,
    ) {
        let header = UdpHeader { source: key.remote.port(), destination: key.guest.port() };
        self.deliver_built(len, port, |room, payload| {
            route.udp(room, &header, payload).map(|built| built.len)
        });
    }

    pub(super) fn deliver_built<E>(
        &mut self,
        len: usize,
        port: &mut dyn Port,
        build: impl FnOnce(&mut [u8], &Payload<'_>) -> Result<usize, E>,
    ) {
        let end = HEADERS_MAX.saturating_add(len);
        let mut headers = [0; HEADERS_MAX];
        let body = self.scratch.get(HEADERS_MAX..end).unwrap_or(&[]);
        let Ok(header_len) = build(&mut headers, &Payload::Bytes(body)) else {
            return port.dropped(DropReason::TooLong);
        };
        // The headers go right in front of the payload, which stays where it is.
        let start = HEADERS_MAX.saturating_sub(header_len);
        let Some(frame) = self.scratch.get_mut(start..end) else { return };
        let written = headers.get(..header_len).unwrap_or(&[]);
        frame.iter_mut().zip(written).for_each(|(to, from)| *to = *from);
        if port.push(&RxHeader::default(), frame) == Err(Refused::Full) {
            port.dropped(DropReason::NoBuffer);
        }
    }

    pub(super) fn turn_ping(&mut self, index: u32, port: &mut dyn Port) -> bool {
        for _ in 0..DATAGRAMS {
            let Some(flow) = self.ping.get_mut(index) else { return true };
            if !port.has_room(DATAGRAM_ROOM) {
                return false;
            }
            let body = self.scratch.get_mut(HEADERS_MAX..).unwrap_or(&mut []);
            let mut header = [0; 8];
            match vector::receive(flow.socket.as_fd(), &mut header, &[], body, Flags::NONE) {
                Ok((len, _)) => {
                    let (_, reply) = if flow.key.guest.is_ipv4() { ECHO_V4 } else { ECHO_V6 };
                    let [kind, _, _, _, _, _, s0, s1] = header;
                    if kind != reply {
                        continue;
                    }
                    let seq = u16::from_be_bytes([s0, s1]);
                    let header = IcmpHeader::echo(reply, flow.key.guest.port(), seq);
                    let route = flow.route;
                    self.deliver_built(len.saturating_sub(8), port, |room, payload| {
                        route.icmp(room, &header, payload).map(|built| built.len)
                    });
                }
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => {
                    flow.queued = false;
                    return true;
                }
                // An error from the way, consumed by reading it: the guest times out.
                Err(_) => {}
            }
        }
        self.work.push_back(Owner::Icmp(index));
        true
    }

    pub(super) fn dns_answers(&mut self) {
        let room = self.scratch.len().min(MESSAGE_MAX);
        for _ in 0..DATAGRAMS {
            let message = self.scratch.get_mut(..room).unwrap_or(&mut []);
            let Some((asker, len)) = self.dns.answer(message) else { return };
            let from = SocketAddr::new(asker.dns, DNS_PORT);
            let Some(route) = self.route(from.ip(), asker.guest.ip()) else { continue };
            let header = UdpHeader { source: DNS_PORT, destination: asker.guest.port() };
            let message = self.scratch.get(..len).unwrap_or(&[]);
            let (true | false) = self.replies.udp(&route, &header, message);
        }
    }
}
