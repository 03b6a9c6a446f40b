//! The engine: frames in, frames out, and the tables in between.
//!
//! [`Engine::input`] takes what the guest sends, [`Engine::output`] delivers what there is for it.
//! What belongs to one kind of flow is in a file of its own.

mod connections;
mod datagrams;
mod pairs;
mod published;

use std::collections::{HashMap, VecDeque};
use std::hash::RandomState;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use vionet::Instant;
use vionet::endpoint::{Refused, RxHeader};
use vionet::stats::DropReason;
use vionet_frame::build::Route;
use vionet_frame::parse::{Addresses, HEAD_MAX, Ip, Parsed, Transport, parse};
use vionet_raw::{ReadSpan, copy_out};

use pairs::Side;

use super::dns::Dns;
use super::icmp::PingFlow;
use super::slab::Slab;
use super::tcp::TcpFlow;
use super::udp::UdpFlow;
use super::{Key, Listeners, Owner, Port};
use crate::config::{ConfigError, UserConfig};
use crate::policy::{Policy, Protocol};
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
/// Events of one look at the sockets.
const EVENTS: usize = 64;
/// What kernels without a peek offset may have in flight.
const AGAIN: usize = 256 << 10;
/// A frame and its headers.
const SCRATCH: usize = (64 << 10) + 256;

pub(crate) struct Engine {
    services: Services,
    policy: Policy,
    config: UserConfig,
    dns: Dns,
    listeners: Arc<Listeners>,
    replies: ReplyBuf,
    /// Of each pair, in order; one at least.
    sides: Vec<Side>,
    /// The pair that is at work.
    pair: u16,
    /// The first so many pairs are in use.
    active: u16,
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
    /// Sockets, tables and buffers for one guest of so many pairs; everything is allocated here.
    pub(crate) fn new(
        config: &UserConfig,
        listeners: Arc<Listeners>,
        pairs: u16,
    ) -> Result<Self, EngineError> {
        let services = Services::new(config).map_err(EngineError::Config)?;
        let first = Side::new()?;
        for (index, listener) in listeners.iter() {
            let owner = match listener.protocol {
                Protocol::Tcp => Owner::TcpListener(index),
                Protocol::Udp | Protocol::Icmp => Owner::UdpListener(index),
            };
            let data = EventData::new_u64(owner.pack());
            epoll::add(&first.epoll, &listener.socket, data, EventFlags::IN)?;
        }
        let others = (1..pairs).map(|_| Side::new());
        let sides = std::iter::once(Ok(first)).chain(others).collect::<Result<_, _>>()?;
        let flows = TCP_MAX.saturating_add(UDP_MAX).saturating_add(PING_MAX);
        let flows = usize::try_from(flows).unwrap_or(0);
        Ok(Self {
            services,
            policy: Policy::new(config),
            config: config.clone(),
            dns: Dns::new(config),
            listeners,
            replies: ReplyBuf::new(),
            sides,
            pair: 0,
            active: 1,
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
            swept: Instant::default(),
            advertise_at: None,
            origin: clock_origin(),
        })
    }

    /// When [`Self::output`] is to be called for a pair at the latest.
    pub(crate) fn deadline(&self, pair: u16) -> Option<Instant> {
        let timer = self.sides.get(usize::from(pair)).and_then(|side| side.timer);
        let sweep = (!self.is_idle()).then(|| self.swept.after(SWEEP));
        [timer, sweep, self.advertise_at].into_iter().flatten().min()
    }

    fn is_idle(&self) -> bool {
        self.tcp.len() == 0 && self.udp.len() == 0 && self.ping.len() == 0 && self.dns.is_idle()
    }

    // ---- from the guest ------------------------------------------------------------------------

    /// Takes a frame of `len` bytes that the guest has sent on `pair`.
    pub(crate) fn input(
        &mut self,
        pair: u16,
        bytes: &[ReadSpan<'_>],
        len: usize,
        now: Instant,
    ) -> Taken {
        if pair >= self.active {
            return Err(DropReason::QueueDisabled);
        }
        self.pair = pair;
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

    // ---- to the guest --------------------------------------------------------------------------

    /// Delivers what there is for the guest on `pair`, as far as it has room.
    pub(crate) fn output(&mut self, pair: u16, port: &mut dyn Port, now: Instant) {
        self.pair = pair;
        self.look_at_timers(port, now);
        if !self.flush_replies(port) {
            return;
        }
        self.look_at_sockets(port, now);
        while self.take_turns(port, now) {}
        let (true | false) = self.flush_replies(port);
    }

    /// One turn of each flow of this pair that has work; whether some may have more.
    fn take_turns(&mut self, port: &mut dyn Port, now: Instant) -> bool {
        let mut again = false;
        for _ in 0..self.work.len() {
            let Some(owner) = self.work.pop_front() else { break };
            if !self.is_here(owner) {
                self.work.push_back(owner);
                continue;
            }
            if !self.take_turn(owner, port, now) {
                self.work.push_front(owner);
                return false;
            }
            again = true;
        }
        again
    }

    /// False when the guest has no room.
    fn flush_replies(&mut self, port: &mut dyn Port) -> bool {
        while let Some(frame) = self.replies.first() {
            if port.push(&RxHeader::PLAIN, frame) == Err(Refused::Full) {
                return false;
            }
            self.replies.pop();
        }
        true
    }

    fn look_at_sockets(&mut self, port: &mut dyn Port, now: Instant) {
        let mut room = [const { std::mem::MaybeUninit::<epoll::Event>::uninit() }; EVENTS];
        let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
        let Some(side) = self.here() else { return };
        let Ok((events, _)) = epoll::wait(&side.epoll, &mut room, Some(&no_wait)) else { return };
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

    // ---- time ----------------------------------------------------------------------------------

    fn look_at_timers(&mut self, port: &mut dyn Port, now: Instant) {
        if let Some(side) = self.here()
            && side.timer.is_some_and(|at| at <= now)
        {
            side.timer = None;
            let mine = self.tcp.iter().filter(|(_, flow)| flow.pair == self.pair);
            for index in mine.map(|(index, _)| index).collect::<Vec<_>>() {
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

#[allow(clippy::disallowed_methods, reason = "an origin for the times handed in, read once")]
fn clock_origin() -> std::time::Instant {
    std::time::Instant::now()
}

#[cfg(test)]
impl Engine {
    /// The TCP connections, for a test that has failed.
    pub(super) fn flows(&self) -> impl Iterator<Item = String> + '_ {
        self.tcp.iter().map(|(_, flow)| format!("{flow:?}"))
    }
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
