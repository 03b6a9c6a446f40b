//! The engine: frames in, frames out, and the tables in between.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{SocketFlags, acceptfrom_with};
use vionet::Instant;
use vionet::endpoint::{Refused, RxHeader, Settings};
use vionet::stats::DropReason;
use vionet_frame::build::{HEADERS_MAX, IcmpHeader, Payload, Route, TcpHeader, UdpHeader};
use vionet_frame::header::Offloads;
use vionet_frame::parse::{
    Addresses, HEAD_MAX, Icmp, Ip, Parsed, Tcp, TcpFlags, Transport, Udp, parse,
};
use vionet_raw::host::vector::{self, Flags};
use vionet_raw::{ReadSpan, copy_out};

use super::dns::{Dns, MESSAGE_MAX};
use super::icmp::{ECHO_V4, ECHO_V6, PingFlow};
use super::slab::Slab;
use super::tcp::{Fate, InFrame, PIECES, Shop, TcpFlow, Turn};
use super::udp::{UdpFlow, Via};
use super::{Key, Listeners, Owner, Port};
use crate::config::{ConfigError, UserConfig};
use crate::host;
use crate::policy::{Policy, Protocol, Verdict};
use crate::resolver::{Asker, DNS_PORT};
use crate::services::{ADVERTISE_EVERY, HOP_LIMIT, Handled, IcmpError, ReplyBuf, Services};

const TCP_MAX: u32 = 4096;
const UDP_MAX: u32 = 1024;
const PING_MAX: u32 = 256;

const TCP_IDLE: Duration = Duration::from_secs(2 * 3600);
const TCP_HALF_OPEN: Duration = Duration::from_secs(150);
const UDP_IDLE: Duration = Duration::from_secs(180);
/// A question nobody has answered.
const UDP_UNANSWERED: Duration = Duration::from_secs(30);
const PING_IDLE: Duration = Duration::from_secs(30);
/// How often idle flows are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// Datagrams of one flow in one turn.
const DATAGRAMS: usize = 32;
/// Room without which no datagram is taken from its socket: a frame of the usual size.
const DATAGRAM_ROOM: u32 = 1514;
/// Connections taken from one listener in one turn.
const CALLS: usize = 16;
/// Events of one look at the sockets.
const EVENTS: usize = 64;
/// What kernels without a peek offset may have in flight.
const AGAIN: usize = 256 << 10;
/// A frame and its headers.
const SCRATCH: usize = (64 << 10) + 256;

pub(crate) struct Engine {
    settings: Settings,
    services: Services,
    policy: Policy,
    config: UserConfig,
    dns: Dns,
    listeners: Arc<Listeners>,
    replies: ReplyBuf,
    epoll: OwnedFd,
    tcp: Slab<TcpFlow>,
    udp: Slab<UdpFlow>,
    ping: Slab<PingFlow>,
    table: HashMap<Key, u32>,
    /// Flows with something to do, each at most once.
    work: VecDeque<Owner>,
    scratch: Box<[u8]>,
    again: Box<[u8]>,
    random: RandomState,
    drawn: u64,
    /// When timers are looked at next.
    timer: Option<Instant>,
    swept: Instant,
    advertise_at: Option<Instant>,
    origin: std::time::Instant,
}

/// A frame of the guest with what was found in it.
struct Frame<'f> {
    /// Private copy of its beginning: all decisions are taken on it.
    head: &'f [u8],
    bytes: &'f [ReadSpan<'f>],
    parsed: &'f Parsed,
    ip: &'f Ip,
}

type Taken = Result<(), DropReason>;

impl Engine {
    /// Sockets, tables and buffers for one guest; everything is allocated here.
    pub(crate) fn new(
        config: &UserConfig,
        listeners: Arc<Listeners>,
        settings: &Settings,
    ) -> Result<Self, EngineError> {
        let services = Services::new(config).map_err(EngineError::Config)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (index, listener) in listeners.iter() {
            let owner = match listener.protocol {
                Protocol::Tcp => Owner::TcpListener(index),
                Protocol::Udp | Protocol::Icmp => Owner::UdpListener(index),
            };
            let data = EventData::new_u64(owner.pack());
            epoll::add(&epoll, &listener.socket, data, EventFlags::IN)?;
        }
        let flows = TCP_MAX.saturating_add(UDP_MAX).saturating_add(PING_MAX);
        let flows = usize::try_from(flows).unwrap_or(0);
        Ok(Self {
            settings: *settings,
            services,
            policy: Policy::new(config),
            config: config.clone(),
            dns: Dns::new(config),
            listeners,
            replies: ReplyBuf::new(),
            epoll,
            tcp: Slab::new(TCP_MAX),
            udp: Slab::new(UDP_MAX),
            ping: Slab::new(PING_MAX),
            // Twice the room: a table that entries come to and go from never grows.
            table: HashMap::with_capacity(flows.saturating_mul(2)),
            work: VecDeque::with_capacity(flows),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            again: vec![0; AGAIN].into_boxed_slice(),
            random: RandomState::new(),
            drawn: 0,
            timer: None,
            swept: Instant::default(),
            advertise_at: None,
            origin: clock_origin(),
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// When [`Self::output`] is to be called at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let sweep = (!self.is_idle()).then(|| self.swept.after(SWEEP));
        [self.timer, sweep, self.advertise_at].into_iter().flatten().min()
    }

    fn is_idle(&self) -> bool {
        self.tcp.len() == 0 && self.udp.len() == 0 && self.ping.len() == 0 && self.dns.is_idle()
    }

    // ---- from the guest ------------------------------------------------------------------------

    /// Takes a frame of `len` bytes from the guest.
    pub(crate) fn input(&mut self, bytes: &[ReadSpan<'_>], len: usize, now: Instant) -> Taken {
        let mut room = [0; HEAD_MAX];
        let copied = copy_out(bytes, 0, &mut room);
        let head = room.get(..copied).unwrap_or(&[]);
        let parsed = parse(head, len).map_err(|_| DropReason::Unparsable)?;
        if self.services.wants(&parsed) {
            let whole = self.scratch.get_mut(..len).ok_or(DropReason::TooLong)?;
            copy_out(bytes, 0, whole);
            // Parsed again: the copy is what is answered, whatever the guest has made of its own.
            match self.services.answer(whole, &mut self.replies) {
                Handled::Answered | Handled::Absorbed => return Ok(()),
                Handled::Dropped(_) => return Err(DropReason::Unsupported),
                Handled::NotForUs => {}
            }
        }
        self.services.learn_from(&parsed);
        let Some(ip) = parsed.ip() else { return Err(DropReason::Unsupported) };
        if ip.fragment.is_some() {
            return Err(DropReason::Unsupported);
        }
        let frame = Frame { head, bytes, parsed: &parsed, ip };
        match &ip.transport {
            Transport::Tcp(tcp) => self.tcp_input(&frame, tcp, now),
            Transport::Udp(udp) => self.udp_input(&frame, udp, now),
            Transport::Icmp(icmp) => self.icmp_input(&frame, icmp, now),
            Transport::LaterFragment | Transport::Other => Err(DropReason::Unsupported),
        }
    }

    fn key(protocol: Protocol, ip: &Ip, source: u16, destination: u16) -> Key {
        let guest = SocketAddr::new(ip.addresses.source(), source);
        let remote = SocketAddr::new(ip.addresses.destination(), destination);
        Key { protocol, guest, remote }
    }

    /// The way back to the sender of a frame.
    fn route_back(&self, frame: &Frame<'_>) -> Route {
        Route {
            destination: frame.parsed.source,
            source: self.services.mac(),
            addresses: frame.ip.addresses.reversed(),
            hop_limit: HOP_LIMIT,
            traffic_class: 0,
        }
    }

    fn tcp_input(&mut self, frame: &Frame<'_>, tcp: &Tcp, now: Instant) -> Taken {
        let key = Self::key(Protocol::Tcp, frame.ip, tcp.source, tcp.destination);
        if let Some(index) = self.table.get(&key).copied() {
            let payload =
                InFrame { frame: frame.bytes, at: frame.ip.payload, len: frame.ip.payload_len };
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

    fn open_tcp(&mut self, frame: &Frame<'_>, tcp: &Tcp, key: Key, now: Instant) -> Taken {
        if self.tcp.is_full() {
            return Err(DropReason::TableFull);
        }
        let to = self.destination(&key, now)?;
        let socket = host::connect_tcp(&to).map_err(|_| DropReason::HostRefused)?;
        let iss = self.draw();
        let flow = TcpFlow::from_guest(socket, key, self.route_back(frame), tcp, iss, now);
        self.adopt_tcp(flow)
    }

    fn adopt_tcp(&mut self, flow: TcpFlow) -> Taken {
        let key = flow.key;
        let index = self.tcp.insert(flow).map_err(|_| DropReason::TableFull)?;
        self.table.insert(key, index);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let data = EventData::new_u64(Owner::Tcp(index).pack());
        let Some(flow) = self.tcp.get_mut(index) else { return Ok(()) };
        if epoll::add(&self.epoll, &flow.socket, data, flags).is_err() {
            self.end_tcp(index);
            return Err(DropReason::HostFull);
        }
        Ok(())
    }

    /// Where a new flow of the guest really goes.
    fn destination(&mut self, key: &Key, now: Instant) -> Result<SocketAddr, DropReason> {
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

    fn draw(&mut self) -> u32 {
        self.drawn = self.drawn.wrapping_add(1);
        let [a, b, c, d, ..] = self.random.hash_one(self.drawn).to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// Answers a segment that belongs to nothing with a RST (RFC 9293 §3.10.7.1).
    fn refuse_tcp(&mut self, frame: &Frame<'_>, tcp: &Tcp) {
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

    /// Queues a small frame for the guest; a full queue has counted it.
    fn reply(&mut self, frame: &[u8]) {
        let (true | false) = self.replies.push(frame.len(), |room| {
            room.iter_mut().zip(frame).for_each(|(to, from)| *to = *from);
            true
        });
    }

    fn refuse(&mut self, frame: &Frame<'_>, error: IcmpError) {
        let (Handled::Answered | Handled::Absorbed | Handled::Dropped(_) | Handled::NotForUs) =
            self.services.refuse(frame.head, frame.parsed, error, &mut self.replies);
    }

    fn udp_input(&mut self, frame: &Frame<'_>, udp: &Udp, now: Instant) -> Taken {
        let key = Self::key(Protocol::Udp, frame.ip, udp.source, udp.destination);
        if self.config.dns && udp.destination == DNS_PORT && self.services.is_own(key.remote.ip()) {
            return self.dns_input(frame, &key, now);
        }
        let index = match self.table.get(&key).copied() {
            Some(index) => index,
            None => self.open_udp(frame, key, now)?,
        };
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
    fn explain_to_guest(&mut self, frame: &Frame<'_>, cause: &io::Error) -> DropReason {
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

    fn open_udp(&mut self, frame: &Frame<'_>, key: Key, now: Instant) -> Result<u32, DropReason> {
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
        self.adopt_udp(UdpFlow { via, key, route, seen: now, answered: false, queued: false })
    }

    fn adopt_udp(&mut self, flow: UdpFlow) -> Result<u32, DropReason> {
        if self.udp.is_full() {
            self.forget_oldest_udp();
        }
        let key = flow.key;
        let index = self.udp.insert(flow).map_err(|_| DropReason::TableFull)?;
        self.table.insert(key, index);
        if let Some(UdpFlow { via: Via::Own(socket), .. }) = self.udp.get_mut(index) {
            let data = EventData::new_u64(Owner::Udp(index).pack());
            if epoll::add(&self.epoll, socket, data, EventFlags::IN | EventFlags::ET).is_err() {
                self.end_udp(index);
                return Err(DropReason::HostFull);
            }
        }
        Ok(index)
    }

    /// Datagrams have no end: the one that was silent longest makes room.
    fn forget_oldest_udp(&mut self) {
        let oldest = self.udp.iter().min_by_key(|(_, flow)| flow.seen).map(|(index, _)| index);
        if let Some(index) = oldest {
            self.end_udp(index);
        }
    }

    fn dns_input(&mut self, frame: &Frame<'_>, key: &Key, now: Instant) -> Taken {
        let len = frame.ip.payload_len;
        if len > MESSAGE_MAX {
            return Err(DropReason::TooLong);
        }
        let message = self.scratch.get_mut(..len).ok_or(DropReason::TooLong)?;
        copy_out(frame.bytes, frame.ip.payload, message);
        let asker = Asker { guest: key.guest, dns: key.remote.ip() };
        let now = self.origin.checked_add(Duration::from_nanos(now.nanos()));
        let now = now.unwrap_or(self.origin);
        if let Some(len) = self.dns.ask(asker, message, now, &self.epoll) {
            let route = self.route_back(frame);
            let header = UdpHeader { source: DNS_PORT, destination: key.guest.port() };
            let message = self.scratch.get(..len).unwrap_or(&[]);
            let (true | false) = self.replies.udp(&route, &header, message);
        }
        Ok(())
    }

    fn icmp_input(&mut self, frame: &Frame<'_>, icmp: &Icmp, now: Instant) -> Taken {
        let (request, _) = if frame.ip.addresses.is_v4() { ECHO_V4 } else { ECHO_V6 };
        if icmp.kind != request || icmp.code != 0 {
            return Err(DropReason::Unsupported);
        }
        let key = Self::key(Protocol::Icmp, frame.ip, icmp.id, 0);
        let index = match self.table.get(&key).copied() {
            Some(index) => index,
            None => self.open_ping(frame, key, now)?,
        };
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

    fn open_ping(&mut self, frame: &Frame<'_>, key: Key, now: Instant) -> Result<u32, DropReason> {
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
        let flow = PingFlow { socket, key, route, seen: now, queued: false };
        let index = self.ping.insert(flow).map_err(|_| DropReason::TableFull)?;
        self.table.insert(key, index);
        if let Some(flow) = self.ping.get_mut(index) {
            let data = EventData::new_u64(Owner::Icmp(index).pack());
            let flags = EventFlags::IN | EventFlags::ET;
            if epoll::add(&self.epoll, &flow.socket, data, flags).is_err() {
                self.end_ping(index);
                return Err(DropReason::HostFull);
            }
        }
        Ok(index)
    }

    fn enqueue(&mut self, owner: Owner) {
        let queued = match owner {
            Owner::Tcp(index) => self.tcp.get_mut(index).map(|flow| &mut flow.queued),
            Owner::Udp(index) => self.udp.get_mut(index).map(|flow| &mut flow.queued),
            Owner::Icmp(index) => self.ping.get_mut(index).map(|flow| &mut flow.queued),
            Owner::TcpListener(_) | Owner::UdpListener(_) | Owner::Dns => None,
        };
        if let Some(queued) = queued
            && !std::mem::replace(queued, true)
        {
            self.work.push_back(owner);
        }
    }

    fn end_tcp(&mut self, index: u32) {
        if let Some(flow) = self.tcp.remove(index) {
            self.table.remove(&flow.key);
        }
    }

    fn end_udp(&mut self, index: u32) {
        if let Some(flow) = self.udp.remove(index) {
            self.table.remove(&flow.key);
        }
    }

    fn end_ping(&mut self, index: u32) {
        if let Some(flow) = self.ping.remove(index) {
            self.table.remove(&flow.key);
        }
    }

    // ---- to the guest --------------------------------------------------------------------------

    /// Delivers what there is for the guest, as far as it has room.
    pub(crate) fn output(&mut self, port: &mut dyn Port, now: Instant) {
        self.look_at_timers(port, now);
        if !self.flush_replies(port) {
            return;
        }
        self.look_at_sockets(port, now);
        while let Some(owner) = self.work.pop_front() {
            if !self.take_turn(owner, port, now) {
                self.work.push_front(owner);
                break;
            }
        }
        let (true | false) = self.flush_replies(port);
    }

    /// False when the guest has no room.
    fn flush_replies(&mut self, port: &mut dyn Port) -> bool {
        while let Some(frame) = self.replies.first() {
            if port.push(&RxHeader::default(), frame) == Err(Refused::Full) {
                return false;
            }
            self.replies.pop();
        }
        true
    }

    fn look_at_sockets(&mut self, port: &mut dyn Port, now: Instant) {
        let mut room = [const { std::mem::MaybeUninit::<epoll::Event>::uninit() }; EVENTS];
        let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut room, Some(&no_wait)) else { return };
        for event in events {
            let Some(owner) = Owner::unpack(event.data.u64()) else { continue };
            let flags = event.flags;
            match owner {
                Owner::Tcp(index) => {
                    if let Some(flow) = self.tcp.get_mut(index) {
                        let failed = flags.intersects(EventFlags::ERR | EventFlags::HUP);
                        let hung_up = failed || flags.contains(EventFlags::RDHUP);
                        let writable = failed || flags.contains(EventFlags::OUT);
                        let readable = flags.contains(EventFlags::IN);
                        flow.on_event(readable, writable, hung_up, now);
                    }
                    self.enqueue(owner);
                }
                Owner::Udp(_) | Owner::Icmp(_) => self.enqueue(owner),
                Owner::TcpListener(index) => self.accept(index, now),
                Owner::UdpListener(index) => self.receive_published(index, port, now),
                Owner::Dns => self.dns_answers(),
            }
        }
    }

    /// One turn of a flow; false when the guest has no room for it.
    fn take_turn(&mut self, owner: Owner, port: &mut dyn Port, now: Instant) -> bool {
        match owner {
            Owner::Tcp(index) => self.turn_tcp(index, port, now),
            Owner::Udp(index) => self.turn_udp(index, port, now),
            Owner::Icmp(index) => self.turn_ping(index, port),
            Owner::TcpListener(_) | Owner::UdpListener(_) | Owner::Dns => true,
        }
    }

    fn turn_tcp(&mut self, index: u32, port: &mut dyn Port, now: Instant) -> bool {
        let Some(flow) = self.tcp.get_mut(index) else { return true };
        let receive = self.settings.receive;
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
        self.timer = [self.timer, timer].into_iter().flatten().min();
        match turn {
            Turn::NoRoom => return false,
            Turn::Idle => flow.queued = false,
            Turn::More => self.work.push_back(Owner::Tcp(index)),
            Turn::Ended(fate) => {
                if fate == Fate::Reset {
                    flow.send_reset(port);
                }
                self.end_tcp(index);
            }
        }
        true
    }

    fn turn_udp(&mut self, index: u32, port: &mut dyn Port, now: Instant) -> bool {
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
    fn deliver_datagram(&mut self, key: &Key, route: &Route, len: usize, port: &mut dyn Port) {
        let header = UdpHeader { source: key.remote.port(), destination: key.guest.port() };
        self.deliver_built(len, port, |room, payload| {
            route.udp(room, &header, payload).map(|built| built.len)
        });
    }

    fn deliver_built<E>(
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

    fn turn_ping(&mut self, index: u32, port: &mut dyn Port) -> bool {
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

    fn dns_answers(&mut self) {
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

    /// The way from `source` to the guest's address, or `None` when they are of two families or
    /// the guest has not shown its MAC address yet.
    fn route(&self, source: IpAddr, guest: IpAddr) -> Option<Route> {
        let addresses = match (source, guest) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Addresses::V4 { source, destination },
            (IpAddr::V6(source), IpAddr::V6(destination)) => Addresses::V6 { source, destination },
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        };
        let destination = self.services.learned().mac?;
        let (source, hop_limit) = (self.services.mac(), HOP_LIMIT);
        Some(Route { destination, source, addresses, hop_limit, traffic_class: 0 })
    }

    // ---- published ports -----------------------------------------------------------------------

    fn accept(&mut self, index: u32, now: Instant) {
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

    fn receive_published(&mut self, index: u32, port: &mut dyn Port, now: Instant) {
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
                let flow = UdpFlow { via, key, route, seen: now, answered: true, queued: false };
                if self.adopt_udp(flow).is_err() {
                    continue;
                }
            }
            self.deliver_datagram(&key, &route, len, port);
        }
    }

    /// Who calls whom, as the guest sees it: callers from the host itself appear as the gateway.
    fn key_inbound(
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

    // ---- time ----------------------------------------------------------------------------------

    fn look_at_timers(&mut self, port: &mut dyn Port, now: Instant) {
        if self.timer.is_some_and(|at| at <= now) {
            self.timer = None;
            for index in self.tcp.indices().collect::<Vec<_>>() {
                self.tcp_timers(index, port, now);
            }
        }
        if now.since(self.swept) >= SWEEP {
            self.swept = now;
            self.sweep(now);
        }
        if self.config.ra && self.advertise_at.is_none_or(|at| at <= now) {
            let (Handled::Answered | Handled::Absorbed | Handled::Dropped(_) | Handled::NotForUs) =
                self.services.advertise(&mut self.replies);
            self.advertise_at = Some(now.after(ADVERTISE_EVERY));
        }
    }

    fn tcp_timers(&mut self, index: u32, port: &mut dyn Port, now: Instant) {
        let Some(flow) = self.tcp.get_mut(index) else { return };
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let due = is_due(flow.resend_at) || is_due(flow.poll_at);
        if due && flow.on_time(now) == Fate::Reset {
            flow.send_reset(port);
            flow.abort();
            return self.end_tcp(index);
        }
        let timer = [flow.resend_at, flow.poll_at].into_iter().flatten().min();
        self.timer = [self.timer, timer].into_iter().flatten().min();
        if due {
            self.enqueue(Owner::Tcp(index));
        }
    }

    /// Forgets flows that nobody has used for long.
    fn sweep(&mut self, now: Instant) {
        let at = self.origin.checked_add(Duration::from_nanos(now.nanos()));
        self.dns.expire(at.unwrap_or(self.origin));
        let old_tcp = self.tcp.iter().filter(|(_, flow)| {
            let most = if flow.is_half_open() { TCP_HALF_OPEN } else { TCP_IDLE };
            now.since(flow.seen) > most
        });
        for index in old_tcp.map(|(index, _)| index).collect::<Vec<_>>() {
            self.end_tcp(index);
        }
        let old_udp = self.udp.iter().filter(|(_, flow)| {
            let most = if flow.answered { UDP_IDLE } else { UDP_UNANSWERED };
            now.since(flow.seen) > most
        });
        for index in old_udp.map(|(index, _)| index).collect::<Vec<_>>() {
            self.end_udp(index);
        }
        let old_ping = self.ping.iter().filter(|(_, flow)| now.since(flow.seen) > PING_IDLE);
        for index in old_ping.map(|(index, _)| index).collect::<Vec<_>>() {
            self.end_ping(index);
        }
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

#[allow(clippy::disallowed_methods, reason = "an origin for the times handed in, read once")]
fn clock_origin() -> std::time::Instant {
    std::time::Instant::now()
}

/// Why an engine cannot be made.
#[derive(Debug)]
pub(crate) enum EngineError {
    Config(ConfigError),
    Host(io::Error),
}

impl std::fmt::Display for EngineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Config(error) => write!(f, "{error}"),
            Self::Host(error) => write!(f, "no event queue: {error}; are descriptors short?"),
        }
    }
}

impl From<rustix::io::Errno> for EngineError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Host(errno.into())
    }
}
