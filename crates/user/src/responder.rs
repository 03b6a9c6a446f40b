//! A host side that leases an address to its guest by itself, in front of any other host side.
//!
//! ```text
//!   guest --frames--> DHCP, ARP for us? --yes--> answer --.
//!                            | no                         v
//!                            v                    queue of replies
//!                      the inner endpoint                 |
//!   guest <--frames--------- | <--------------------------'
//! ```
//!
//! With a tap or a port of a switch behind it, a guest gets its address without a DHCP server on
//! that network, and none of its DHCP messages reach it. Everything else passes untouched: of a
//! frame that is neither ARP nor UDP 24 bytes are looked at.
//!
//! A reply waits until the guest has buffers, in front of what the inner endpoint brings. So many
//! wait as fit; a request beyond them is dropped and counted, and the client asks again. Where
//! others deliver to the guest (a switch), a reply is delivered at once or dropped.

use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vionet::Instant;
use vionet::endpoint::{
    Capabilities, Delivery, Endpoint, EndpointFault, EndpointQueue, Inlet, OpenError, Refused,
    RxHeader, RxSink, Settings, TxBatch, Watch,
};
use vionet::stats::DropReason;
use vionet_frame::parse::{
    ETHER_TYPE_ARP, ETHER_TYPE_IPV4, ETHERNET_LEN, Mac, Network, PROTOCOL_UDP, Transport, parse,
};
use vionet_raw::{ReadSpan, copy_out};

use crate::config::ConfigError;
use crate::lease::Lease;
use crate::services::{Asked, Handled, ReplyBuf, arp, dhcp4, is_group};

/// What of a frame tells that it is none of ours: up to the protocol of IPv4.
const LOOK: usize = 24;
/// Longer messages are not DHCP's: the longest frame that Ethernet has without jumbo frames.
const MESSAGE_MAX: usize = 1522;
/// Room for replies, in bytes: ten or more.
const REPLIES_ROOM: usize = 16 << 10;

/// What a [`Responder`] says, and in whose name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponderConfig {
    /// The MAC address of the lease's server and router.
    pub mac: Mac,
    /// What DHCP leases.
    pub lease: Lease,
    /// Answer ARP for the lease's server and router, with `mac`. Not for a network where they
    /// answer themselves, as a tap's host does.
    pub arp: bool,
}

impl ResponderConfig {
    /// Finds the first contradiction.
    ///
    /// # Errors
    /// What it is.
    pub fn check(&self) -> Result<(), ConfigError> {
        if is_group(self.mac) || self.mac == [0; 6] {
            return Err(ConfigError::Mac(self.mac));
        }
        self.lease.check()
    }
}

/// An endpoint with a DHCP server, and perhaps ARP, in front of it.
pub struct Responder {
    inner: Box<dyn Endpoint>,
    answers: Answers,
}

impl Responder {
    /// Puts the services of `config` in front of `inner`.
    ///
    /// # Errors
    /// Those of [`ResponderConfig::check`].
    pub fn new(inner: Box<dyn Endpoint>, config: &ResponderConfig) -> Result<Self, ConfigError> {
        config.check()?;
        let (lease, mac) = (config.lease.clone(), config.mac);
        let arp_for = config.arp.then_some([lease.server, lease.router.unwrap_or(lease.server)]);
        Ok(Self { inner, answers: Answers { mac, arp_for, dhcp: dhcp4::Server::new(lease) } })
    }
}

impl std::fmt::Debug for Responder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "dhcp in front of {}", self.inner.name())
    }
}

impl Endpoint for Responder {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn open(&mut self, settings: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        let queues = self.inner.open(settings)?.into_iter().map(|inner| {
            let queue = ResponderQueue {
                inlet: inner.inlet(),
                inner,
                answers: self.answers.clone(),
                message: vec![0; MESSAGE_MAX].into_boxed_slice(),
                replies: ReplyBuf::with_room(REPLIES_ROOM),
            };
            let queue: Box<dyn EndpointQueue> = Box::new(queue);
            queue
        });
        Ok(queues.collect())
    }

    fn adapt(&mut self, settings: &Settings) -> Result<(), OpenError> {
        self.inner.adapt(settings)
    }
}

/// Who answers what.
#[derive(Clone)]
struct Answers {
    mac: Mac,
    /// Our addresses, if ARP for them is answered here.
    arp_for: Option<[Ipv4Addr; 2]>,
    dhcp: dhcp4::Server,
}

/// What the look at a frame came to.
enum Look {
    /// It is not ours.
    Other,
    /// It is, and lies copied, so many bytes long.
    Ours(usize),
    /// It would be ours, and is longer than what we read.
    TooLong,
}

impl Answers {
    /// Looks whether a frame is ours. If it is, the copy in `message` is what counts, whatever the
    /// guest makes of its own.
    fn look(&self, bytes: &[ReadSpan<'_>], len: usize, message: &mut [u8]) -> Look {
        let head: [u8; LOOK] = match bytes.first().and_then(ReadSpan::read) {
            Some(head) => head,
            None => {
                let mut head = [0; LOOK];
                copy_out(bytes, 0, &mut head);
                head
            }
        };
        let [_, _, _, _, _, _, _, _, _, _, _, _, t0, t1, .., f0, f1, _, protocol] = head;
        let is_candidate = match u16::from_be_bytes([t0, t1]) {
            ETHER_TYPE_ARP => self.arp_for.is_some(),
            // Of later fragments nobody knows the port; of DHCP there are none.
            ETHER_TYPE_IPV4 if protocol == PROTOCOL_UDP => {
                u16::from_be_bytes([f0, f1]) & 0x1fff == 0 && is_to_server(bytes, &head)
            }
            _ => false,
        };
        if !is_candidate {
            return Look::Other;
        }
        let Some(copy) = message.get_mut(..len) else { return Look::TooLong };
        if copy_out(bytes, 0, copy) == len && self.is_ours(copy) {
            Look::Ours(len)
        } else {
            Look::Other
        }
    }

    fn is_ours(&self, frame: &[u8]) -> bool {
        let Ok(parsed) = parse(frame, frame.len()) else { return false };
        match &parsed.network {
            Network::Arp(message) => self.owns(message.target_ip),
            Network::Ip(ip) => match &ip.transport {
                Transport::Udp(udp) => {
                    let to = ip.addresses.destination();
                    udp.destination == dhcp4::SERVER_PORT && self.dhcp.listens(to)
                }
                Transport::Tcp(_)
                | Transport::Icmp(_)
                | Transport::LaterFragment
                | Transport::Other => false,
            },
            Network::Other => false,
        }
    }

    fn owns(&self, addr: Ipv4Addr) -> bool {
        self.arp_for.is_some_and(|ours| ours.contains(&addr))
    }

    /// Queues the answer to a frame that is ours.
    fn answer(&self, frame: &[u8], replies: &mut ReplyBuf) -> Result<(), DropReason> {
        let parsed = parse(frame, frame.len()).map_err(|_| DropReason::Unparsable)?;
        let handled = match &parsed.network {
            Network::Arp(message) => {
                arp::answer(self.mac, |addr| self.owns(addr), parsed.source, message, replies)
            }
            Network::Ip(ip) if ip.fragment.is_some() => return Err(DropReason::Unsupported),
            Network::Ip(_) | Network::Other => {
                let asked = Asked::of(frame, &parsed).ok_or(DropReason::Unparsable)?;
                self.dhcp.answer(self.mac, &asked, replies)
            }
        };
        match handled {
            Handled::Answered | Handled::Absorbed => Ok(()),
            Handled::Dropped(crate::services::DropReason::QueueFull) => Err(DropReason::HostFull),
            Handled::Dropped(_) | Handled::NotForUs => Err(DropReason::Unsupported),
        }
    }
}

/// Whether a UDP datagram over IPv4 is for the port of DHCP servers.
fn is_to_server(bytes: &[ReadSpan<'_>], head: &[u8; LOOK]) -> bool {
    let words = head.get(ETHERNET_LEN).map_or(0, |first| usize::from(first & 0xf));
    let at = words.saturating_mul(4).saturating_add(ETHERNET_LEN).saturating_add(2);
    let mut port = [0; 2];
    copy_out(bytes, at, &mut port) == port.len() && u16::from_be_bytes(port) == dhcp4::SERVER_PORT
}

struct ResponderQueue {
    inner: Box<dyn EndpointQueue>,
    /// Where others deliver to the guest, if they do.
    inlet: Option<Arc<Inlet>>,
    answers: Answers,
    /// The frame that is answered.
    message: Box<[u8]>,
    replies: ReplyBuf,
}

impl ResponderQueue {
    /// The first frame that is not for the inner endpoint, how many are before it, and what it is.
    fn find(&mut self, frames: &TxBatch<'_>) -> Option<(usize, Look)> {
        frames.frames().iter().enumerate().find_map(|(at, frame)| {
            let len = usize::try_from(frame.len).unwrap_or(usize::MAX);
            match self.answers.look(frames.bytes(frame), len, &mut self.message) {
                Look::Other => None,
                look => Some((at, look)),
            }
        })
    }

    fn settle(&mut self, frames: &mut TxBatch<'_>, look: &Look) {
        let result = match look {
            Look::Other => return,
            Look::TooLong => Err(DropReason::TooLong),
            Look::Ours(len) => {
                let message = self.message.get(..*len).unwrap_or_default();
                self.answers.answer(message, &mut self.replies)
            }
        };
        match result {
            Ok(()) => frames.sent(1),
            Err(reason) => frames.dropped(1, reason),
        }
    }

    /// Delivers what waits; whether nothing waits any more.
    fn reply(replies: &mut ReplyBuf, sink: &mut RxSink<'_>) -> bool {
        while let Some(reply) = replies.first() {
            match sink.push(&RxHeader::PLAIN, reply) {
                Ok(()) | Err(Refused::Dropped) => replies.pop(),
                Err(Refused::Full) => return false,
            }
        }
        true
    }

    /// Nobody asks us for frames where others deliver: replies go the others' way.
    fn reply_by_inlet(&mut self, now: Instant) {
        let Some(inlet) = self.inlet.as_ref().filter(|_| !self.replies.is_empty()) else { return };
        let replies = &mut self.replies;
        let delivery = inlet.deliver(now, |sink| {
            if !Self::reply(replies, sink) {
                for _ in 0..replies.len() {
                    sink.dropped(DropReason::NoBuffer);
                }
            }
        });
        // A guest that takes nothing loses them, as it would on a wire.
        let (Delivery::Done | Delivery::Closed) = delivery;
        self.replies.clear();
    }
}

impl EndpointQueue for ResponderQueue {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        while let Some((before, look)) = self.find(frames) {
            if before > 0 {
                let all = frames.frames().len();
                frames.with_part(before, |part| self.inner.transmit(part))?;
                if all.saturating_sub(frames.frames().len()) < before {
                    // It is full: what is behind has to wait as well.
                    return Ok(());
                }
            }
            self.settle(frames, &look);
            self.reply_by_inlet(frames.now());
        }
        if frames.frames().is_empty() { Ok(()) } else { self.inner.transmit(frames) }
    }

    fn receive(&mut self, sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        if Self::reply(&mut self.replies, sink) { self.inner.receive(sink) } else { Ok(()) }
    }

    fn watch(&self) -> Watch {
        self.inner.watch()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.fd()
    }

    fn inlet(&self) -> Option<Arc<Inlet>> {
        self.inlet.clone()
    }
}
