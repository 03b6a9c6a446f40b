//! What the guest's network answers by itself: the gateway's and the DNS forwarder's own voice.
//!
//! ```text
//!   guest --frame--> wants? --yes--> answer --> ReplyBuf --> guest
//!                      |               |- arp     who has our IPv4 addresses
//!                      |               |- ndp     the same for IPv6; router advertisements
//!                      |               |- dhcp4   an address, a route, a DNS server
//!                      |               |- dhcp6   the same for IPv6
//!                      |               `- icmp    echo to ourselves; errors on behalf of flows
//!                      `--no--> the flows: TCP, UDP, echo to the world
//! ```
//!
//! Bytes in, bytes out: no I/O, no clock, no allocation, and no input that stops it.
//! Checksums of the guest's frames are not verified: there is no wire to damage them, and a guest
//! with checksum offload leaves them unfinished. Replies carry complete ones.

pub(crate) mod arp;
pub(crate) mod dhcp4;
mod dhcp6;
mod icmp;
mod names;
mod ndp;
mod reply;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use vionet_frame::build::Route;
use vionet_frame::parse::{Addresses, Arp, Ip, Mac, Network, Parsed, Transport, parse};

use crate::config::{ConfigError, HostLoopback, Ipv4Guest, Ipv6Guest, UserConfig};
use crate::lease::Lease;

pub use icmp::IcmpError;
pub use ndp::ADVERTISE_EVERY;
pub use reply::{REPLIES_MAX, ReplyBuf};

/// TTL and hop limit of what we send.
pub const HOP_LIMIT: u8 = 64;
const BROADCAST: Mac = [0xff; 6];

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// A reply is queued.
    Answered,
    /// It was for us and no reply is due.
    Absorbed,
    /// It was for us and gets no reply, for this reason.
    Dropped(DropReason),
    /// It belongs to the flows.
    NotForUs,
}

/// Why a frame for a local service gets no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Lengths or values contradict the protocol.
    Malformed,
    /// A message type or form that this network does not serve.
    Unsupported,
    /// Fragments are not put together for local services.
    Fragment,
    /// An error about this packet is forbidden (RFC 1122 §3.2.2, RFC 4443 §2.4).
    NoErrorAllowed,
    /// The guest's MAC address is not known yet.
    UnknownGuest,
    /// The replies' queue is full.
    QueueFull,
}

/// Tells whether a reply could be queued.
const fn answered(queued: bool) -> Handled {
    if queued { Handled::Answered } else { Handled::Dropped(DropReason::QueueFull) }
}

/// What the guest has shown of itself; it may lie, which harms nobody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// Source of its last frame.
    pub mac: Option<Mac>,
    /// The IPv4 address it used last.
    pub v4: Option<Ipv4Addr>,
    /// The global IPv6 address it used last.
    pub v6: Option<Ipv6Addr>,
}

/// The local services of one guest's network.
#[derive(Debug)]
pub struct Services {
    servers: Servers,
    learned: Learned,
}

/// Who answers; fixed by the configuration.
#[derive(Debug)]
struct Servers {
    link: Link,
    dhcp4: Option<dhcp4::Server>,
    dhcp6: Option<dhcp6::Server>,
    router: Option<ndp::Router>,
}

/// Who answers a certain frame.
#[derive(Clone, Copy)]
enum Service<'s> {
    Arp(&'s Arp),
    Neighbor(Option<&'s ndp::Router>),
    Echo,
    Dhcp4(&'s dhcp4::Server),
    Dhcp6(&'s dhcp6::Server),
}

/// Our side of the link: the addresses we answer for.
#[derive(Clone, Debug)]
struct Link {
    mac: Mac,
    ipv4: Option<Ipv4Guest>,
    ipv6: Option<Ipv6Guest>,
    loopback_v4: Option<Ipv4Addr>,
    loopback_v6: Option<Ipv6Addr>,
}

impl Link {
    fn owns_v4(&self, addr: Ipv4Addr) -> bool {
        self.ipv4.is_some_and(|ours| {
            [Some(ours.gateway), Some(ours.dns), self.loopback_v4].contains(&Some(addr))
        })
    }

    fn owns_v6(&self, addr: Ipv6Addr) -> bool {
        self.ipv6.is_some_and(|ours| {
            let all = [Some(ours.gateway), Some(ours.dns), Some(ours.link_local), self.loopback_v6];
            all.contains(&Some(addr))
        })
    }

    fn owns(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(addr) => self.owns_v4(addr),
            IpAddr::V6(addr) => self.owns_v6(addr),
        }
    }

    const fn route(&self, destination: Mac, addresses: Addresses) -> Route {
        route(self.mac, destination, addresses)
    }
}

const fn route(source: Mac, destination: Mac, addresses: Addresses) -> Route {
    Route { destination, source, addresses, hop_limit: HOP_LIMIT, traffic_class: 0 }
}

impl Services {
    /// The services that `config` switches on.
    ///
    /// # Errors
    /// Those of [`UserConfig::check`].
    pub fn new(config: &UserConfig) -> Result<Self, ConfigError> {
        config.check()?;
        let HostLoopback { v4: loopback_v4, v6: loopback_v6 } = config.map_host_loopback;
        let (ipv4, ipv6) = (config.ipv4, config.ipv6);
        let servers = Servers {
            link: Link { mac: config.mac, ipv4, ipv6, loopback_v4, loopback_v6 },
            dhcp4: Lease::of(config).filter(|_| config.dhcp).map(dhcp4::Server::new),
            dhcp6: ipv6.filter(|_| config.dhcp).map(|net| dhcp6::Server::new(config, net)),
            router: ipv6.filter(|_| config.ra).map(|net| ndp::Router::new(config, net)),
        };
        Ok(Self { servers, learned: Learned::default() })
    }

    /// Whether a frame must be copied whole and given to [`Self::answer`].
    #[must_use]
    pub fn wants(&self, frame: &Parsed) -> bool {
        self.servers.find(frame).is_some()
    }

    /// Answers one whole frame (without virtio header) of at most 64 KiB, and learns from it.
    pub fn answer(&mut self, frame: &[u8], out: &mut ReplyBuf) -> Handled {
        match parse(frame, frame.len()) {
            Ok(parsed) => self.answer_parsed(frame, &parsed, out),
            Err(_) => Handled::Dropped(DropReason::Malformed),
        }
    }

    /// The same for a frame that is parsed already; `parsed` describes `frame`.
    pub fn answer_parsed(&mut self, frame: &[u8], parsed: &Parsed, out: &mut ReplyBuf) -> Handled {
        self.learn_from(parsed);
        let Self { servers, learned } = self;
        let link = &servers.link;
        match (servers.find(parsed), Asked::of(frame, parsed)) {
            (None, _) => Handled::NotForUs,
            (Some(Service::Arp(message)), _) => {
                let owns = |addr| link.owns_v4(addr);
                arp::answer(link.mac, owns, parsed.source, message, out)
            }
            (_, None) => Handled::Dropped(DropReason::Malformed),
            (_, Some(asked)) if asked.ip.fragment.is_some() => {
                Handled::Dropped(DropReason::Fragment)
            }
            (Some(Service::Echo), Some(asked)) => icmp::echo(link, &asked, out),
            (Some(Service::Neighbor(router)), Some(asked)) => {
                ndp::answer(link, router, &asked, learned, out)
            }
            (Some(Service::Dhcp4(server)), Some(asked)) => server.answer(link.mac, &asked, out),
            (Some(Service::Dhcp6(server)), Some(asked)) => server.answer(link, &asked, out),
        }
    }

    /// Queues the error that a flow's packet deserves. `head` is the frame's beginning, as far as
    /// it is at hand; the error quotes what it holds.
    pub fn refuse(
        &self,
        head: &[u8],
        parsed: &Parsed,
        error: IcmpError,
        out: &mut ReplyBuf,
    ) -> Handled {
        icmp::error(&self.servers.link, head, parsed, error, out)
    }

    /// Queues an error about a UDP datagram from `guest` to `peer` that is no longer at hand, as
    /// when the host's socket reports it. `reporter` is the router that said so, if known.
    pub fn refuse_udp(
        &self,
        guest: SocketAddr,
        peer: SocketAddr,
        reporter: Option<IpAddr>,
        error: IcmpError,
        out: &mut ReplyBuf,
    ) -> Handled {
        let Some(mac) = self.learned.mac else {
            return Handled::Dropped(DropReason::UnknownGuest);
        };
        icmp::udp_error(&self.servers.link, mac, (guest, peer), reporter, error, out)
    }

    /// Queues a router advertisement to all nodes; due every [`ADVERTISE_EVERY`] and when the
    /// link comes up.
    pub fn advertise(&self, out: &mut ReplyBuf) -> Handled {
        match &self.servers.router {
            Some(router) => {
                router.advertise(&self.servers.link, ndp::ALL_NODES, ndp::ALL_NODES_MAC, out)
            }
            None => Handled::NotForUs,
        }
    }

    /// Whether `addr` is one of ours in the guest's network: gateway, DNS, router's link-local,
    /// or a stand-in for the host's loopback.
    #[must_use]
    pub fn is_own(&self, addr: IpAddr) -> bool {
        self.servers.link.owns(addr)
    }

    /// Our MAC address.
    #[must_use]
    pub const fn mac(&self) -> Mac {
        self.servers.link.mac
    }

    /// What the guest has shown of itself so far.
    #[must_use]
    pub const fn learned(&self) -> &Learned {
        &self.learned
    }

    /// The address to connect to in the guest: the one seen last, else the one that DHCP gives;
    /// `None` when the family is off.
    #[must_use]
    pub fn guest_v4(&self) -> Option<Ipv4Addr> {
        self.servers.link.ipv4.map(|net| self.learned.v4.unwrap_or(net.guest))
    }

    /// The same for IPv6.
    #[must_use]
    pub fn guest_v6(&self) -> Option<Ipv6Addr> {
        self.servers.link.ipv6.map(|net| self.learned.v6.unwrap_or(net.guest))
    }

    /// Remembers the guest's MAC and IP address from any frame of it. A few comparisons.
    pub fn learn_from(&mut self, frame: &Parsed) {
        if is_group(frame.source) || frame.source == [0; 6] || frame.source == self.servers.link.mac
        {
            return;
        }
        self.learned.mac = Some(frame.source);
        match &frame.network {
            Network::Arp(message) => self.learn_v4(message.sender_ip),
            Network::Ip(Ip { addresses: Addresses::V4 { source, .. }, .. }) => {
                self.learn_v4(*source);
            }
            Network::Ip(Ip { addresses: Addresses::V6 { source, .. }, .. }) => {
                learn_v6(&mut self.learned, &self.servers.link, *source);
            }
            Network::Other => {}
        }
    }

    fn learn_v4(&mut self, addr: Ipv4Addr) {
        let Some(ours) = &self.servers.link.ipv4 else { return };
        let is_reserved = addr == ours.net.base() || addr == ours.net.broadcast();
        if ours.net.contains(addr) && !is_reserved && !self.servers.link.owns_v4(addr) {
            self.learned.v4 = Some(addr);
        }
    }
}

fn learn_v6(learned: &mut Learned, link: &Link, addr: Ipv6Addr) {
    let Some(ours) = &link.ipv6 else { return };
    if ours.net.contains(addr) && addr != ours.net.base() && !link.owns_v6(addr) {
        learned.v6 = Some(addr);
    }
}

impl Servers {
    /// Which service a frame is for; frames with VLAN tags are for none.
    fn find<'s>(&'s self, frame: &'s Parsed) -> Option<Service<'s>> {
        let link = &self.link;
        let is_ours = frame.destination == link.mac || is_group(frame.destination);
        if !is_ours || frame.tags != [None; 2] {
            return None;
        }
        let ip = match &frame.network {
            Network::Arp(message) => return link.ipv4.map(|_| Service::Arp(message)),
            Network::Ip(ip) => ip,
            Network::Other => return None,
        };
        let to = ip.addresses.destination();
        match (&ip.transport, ip.addresses.is_v4()) {
            (Transport::Udp(udp), true) if udp.destination == dhcp4::SERVER_PORT => {
                let server = self.dhcp4.as_ref();
                server.filter(|server| server.listens(to)).map(Service::Dhcp4)
            }
            (Transport::Udp(udp), false) if udp.destination == dhcp6::SERVER_PORT => {
                let is_for_servers = to == IpAddr::V6(dhcp6::ALL_SERVERS) || link.owns(to);
                self.dhcp6.as_ref().filter(|_| is_for_servers).map(Service::Dhcp6)
            }
            (Transport::Icmp(icmp), is_v4) => match (icmp.kind, is_v4) {
                (ndp::ROUTER_SOLICIT..=ndp::NEIGHBOR_ADVERT, false) => {
                    link.ipv6.map(|_| Service::Neighbor(self.router.as_ref()))
                }
                (icmp::ECHO_REQUEST_V4, true) | (icmp::ECHO_REQUEST_V6, false) => {
                    link.owns(to).then_some(Service::Echo)
                }
                _ => None,
            },
            _ => None,
        }
    }
}

/// An IP packet that a service was asked with.
pub(crate) struct Asked<'a> {
    /// Who sent the frame.
    mac: Mac,
    ip: &'a Ip,
    /// From the transport header to the packet's end.
    message: &'a [u8],
    /// What follows the transport header.
    payload: &'a [u8],
}

impl<'a> Asked<'a> {
    pub(crate) fn of(frame: &'a [u8], parsed: &'a Parsed) -> Option<Self> {
        let ip = parsed.ip()?;
        let message = frame.get(ip.l4..ip.end)?;
        let payload = frame.get(ip.payload..ip.payload.checked_add(ip.payload_len)?)?;
        Some(Self { mac: parsed.source, ip, message, payload })
    }
}

pub(crate) const fn is_group(mac: Mac) -> bool {
    let [first, ..] = mac;
    first & 1 == 1
}
