//! TCP connections of the guest: opened, fed, given their turn, ended.

use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::time::Duration;

use vionet::Instant;
use vionet::stats::DropReason;
use vionet_frame::build::{HEADERS_MAX, Payload, TcpHeader};
use vionet_frame::header::Offloads;
use vionet_frame::parse::{Tcp, TcpFlags};

use super::super::tcp::{Fate, InFrame, Shop, TcpFlow, Turn};
use super::super::{Key, Owner, Port};
use super::{Engine, Frame, Taken};
use crate::host;
use crate::policy::{Protocol, Verdict};
use crate::resolver::DNS_PORT;

impl Engine {
    pub(super) fn tcp_input(&mut self, frame: &Frame<'_>, tcp: &Tcp, now: Instant) -> Taken {
        let key = Self::key(Protocol::Tcp, frame.ip, tcp.source, tcp.destination);
        if let Some(index) = self.table.get(&key).copied() {
            let payload =
                InFrame { frame: frame.bytes, at: frame.ip.payload, len: frame.ip.payload_len };
            self.follow(Owner::Tcp(index));
            let Some(flow) = self.tcp.get_mut(index) else { return Ok(()) };
            let fate = flow.on_segment(tcp, &payload, now);
            match fate {
                Fate::Stay => self.enqueue(Owner::Tcp(index)),
                Fate::Close => self.end_tcp(index),
                Fate::Reset => {
                    self.end_tcp(index);
                    self.refuse_tcp(frame, tcp);
                }
            }
            return Ok(());
        }
        let is_new = tcp.flags.contains(TcpFlags::SYN)
            && !tcp.flags.intersects(TcpFlags::ACK | TcpFlags::RST);
        if !is_new {
            if !tcp.flags.contains(TcpFlags::RST) {
                self.refuse_tcp(frame, tcp);
            }
            return Ok(());
        }
        match self.open_tcp(frame, tcp, key, now) {
            Ok(()) => Ok(()),
            Err(reason) => {
                self.refuse_tcp(frame, tcp);
                Err(reason)
            }
        }
    }

    pub(super) fn open_tcp(
        &mut self,
        frame: &Frame<'_>,
        tcp: &Tcp,
        key: Key,
        now: Instant,
    ) -> Taken {
        if self.tcp.is_full() {
            self.forget_oldest_half_open();
        }
        let to = self.destination(&key, now)?;
        let socket = host::connect_tcp(&to).map_err(|_| DropReason::HostRefused)?;
        let iss = self.draw();
        let flow = TcpFlow::from_guest(socket, key, self.route_back(frame), tcp, iss, now);
        self.adopt_tcp(flow)
    }

    /// A guest that opens more than it uses loses those it has waited for longest.
    fn forget_oldest_half_open(&mut self) {
        let half_open = self.tcp.iter().filter(|(_, flow)| flow.is_half_open());
        let oldest = half_open.min_by_key(|(_, flow)| flow.seen).map(|(index, _)| index);
        if let Some(index) = oldest {
            self.end_tcp(index);
        }
    }

    pub(super) fn adopt_tcp(&mut self, mut flow: TcpFlow) -> Taken {
        let key = flow.key;
        flow.pair = self.pair;
        let index = self.tcp.insert(flow).map_err(|_| DropReason::TableFull)?;
        self.table.insert(key, index);
        if !self.watch(Owner::Tcp(index)) {
            self.end_tcp(index);
            return Err(DropReason::HostFull);
        }
        Ok(())
    }

    /// Where a new flow of the guest really goes.
    pub(super) fn destination(
        &mut self,
        key: &Key,
        now: Instant,
    ) -> Result<SocketAddr, DropReason> {
        let (ip, port) = (key.remote.ip(), key.remote.port());
        let is_dns = self.config.dns && self.services.is_own(ip) && port == DNS_PORT;
        if is_dns && key.protocol == Protocol::Tcp {
            let now = self.origin.checked_add(Duration::from_nanos(now.nanos()));
            let servers = self.dns.resolver.servers(now.unwrap_or(self.origin));
            return servers.first().copied().ok_or(DropReason::HostRefused);
        }
        match self.policy.decide(ip, key.protocol, port) {
            Verdict::Allow(ip) => Ok(SocketAddr::new(ip, port)),
            Verdict::Refuse(_) => Err(DropReason::Policy),
        }
    }

    pub(super) fn draw(&mut self) -> u32 {
        self.drawn = self.drawn.wrapping_add(1);
        let [a, b, c, d, ..] = self.random.hash_one(self.drawn).to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// Answers a segment that belongs to nothing with a RST (RFC 9293 §3.10.7.1).
    pub(super) fn refuse_tcp(&mut self, frame: &Frame<'_>, tcp: &Tcp) {
        let route = self.route_back(frame);
        let has_ack = tcp.flags.contains(TcpFlags::ACK);
        let occupies =
            [TcpFlags::SYN, TcpFlags::FIN].into_iter().fold(frame.ip.payload_len, |len, flag| {
                len.saturating_add(usize::from(tcp.flags.contains(flag)))
            });
        let behind = tcp.seq.wrapping_add(u32::try_from(occupies).unwrap_or(0));
        let header = TcpHeader {
            source: tcp.destination,
            destination: tcp.source,
            seq: if has_ack { tcp.ack } else { 0 },
            ack: if has_ack { 0 } else { behind },
            flags: if has_ack { TcpFlags::RST } else { TcpFlags::RST | TcpFlags::ACK },
            ..TcpHeader::default()
        };
        let mut room = [0; HEADERS_MAX];
        if let Ok(built) = route.tcp(&mut room, &header, &Payload::Bytes(&[])) {
            self.reply(room.get(..built.len).unwrap_or(&[]));
        }
    }

    pub(super) fn end_tcp(&mut self, index: u32) {
        if let Some(flow) = self.tcp.remove(index) {
            self.table.remove(&flow.key);
        }
    }

    pub(super) fn turn_tcp(&mut self, index: u32, port: &mut dyn Port, now: Instant) -> bool {
        let Some(flow) = self.tcp.get_mut(index) else { return true };
        let receive = port.takes();
        let tso = if flow.key.guest.is_ipv4() { Offloads::TSO4 } else { Offloads::TSO6 };
        let mut shop = Shop {
            now,
            leaves_open: receive.contains(Offloads::CSUM),
            cuts: receive.contains(tso),
            scratch: &mut self.scratch,
            again: &mut self.again,
        };
        let turn = flow.turn(port, &mut shop);
        let timer = [flow.resend_at, flow.poll_at].into_iter().flatten().min();
        if turn == Turn::Ended(Fate::Reset) {
            flow.send_reset(port);
        }
        flow.queued = turn != Turn::Idle;
        self.remind(timer);
        match turn {
            Turn::NoRoom => return false,
            Turn::Idle => {}
            Turn::More => self.work.push_back(Owner::Tcp(index)),
            Turn::Ended(Fate::Stay | Fate::Close | Fate::Reset) => self.end_tcp(index),
        }
        true
    }

    pub(super) fn tcp_timers(&mut self, index: u32, port: &mut dyn Port, now: Instant) {
        let Some(flow) = self.tcp.get_mut(index) else { return };
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let due = is_due(flow.resend_at) || is_due(flow.poll_at);
        if due && flow.on_time(now) == Fate::Reset {
            flow.send_reset(port);
            flow.abort();
            return self.end_tcp(index);
        }
        let timer = [flow.resend_at, flow.poll_at].into_iter().flatten().min();
        self.remind(timer);
        if due {
            self.enqueue(Owner::Tcp(index));
        }
    }
}
