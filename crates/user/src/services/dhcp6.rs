//! DHCP for IPv6 (RFC 8415): DNS servers and domains for all, an address for who asks for one.
//!
//! ```text
//!   INFORMATION-REQUEST             -> REPLY with DNS
//!   SOLICIT                         -> ADVERTISE, or REPLY if the client takes it at once
//!   REQUEST, RENEW, REBIND          -> REPLY with the address and DNS
//!   CONFIRM, RELEASE, DECLINE       -> REPLY with a status
//! ```
//!
//! Guests make their own addresses from the advertised prefix; the one leased here is the stable
//! one. As with IPv4 there is one guest and one address, hence no state. Options are read and
//! written here: the walk is a few lines, while the library at hand underflows on short options
//! and recurses as deep as a hostile guest nests them.

use std::net::Ipv6Addr;

use vionet_frame::build::UdpHeader;
use vionet_frame::parse::Addresses;

use super::{Asked, DropReason, Handled, Link, ReplyBuf, answered, names};
use crate::config::{Ipv6Guest, UserConfig};

pub(super) const SERVER_PORT: u16 = 547;
/// Where clients find servers (RFC 8415 §7.1).
pub(super) const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const CLIENT_PORT: u16 = 546;

const PREFERRED_S: u32 = 43_200;
const VALID_S: u32 = 86_400;
/// A client identifier is 1 to 130 bytes long (RFC 8415 §11.1).
const DUID_MAX: usize = 130;
const MESSAGE_MAX: usize = 1232;

// Message types (RFC 8415 §7.3).
const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const CONFIRM: u8 = 4;
const RENEW: u8 = 5;
const REBIND: u8 = 6;
const REPLY: u8 = 7;
const RELEASE: u8 = 8;
const DECLINE: u8 = 9;
const INFORMATION_REQUEST: u8 = 11;

// Option codes (RFC 8415 §21, RFC 3646).
const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_ADDR: u16 = 5;
const STATUS: u16 = 13;
const RAPID_COMMIT: u16 = 14;
const DNS_SERVERS: u16 = 23;
const DOMAIN_LIST: u16 = 24;

// Status codes (RFC 8415 §21.13).
const SUCCESS: u16 = 0;
const NO_ADDRESSES: u16 = 2;

/// The answers, which depend on the configuration alone.
#[derive(Debug)]
pub(super) struct Server {
    net: Ipv6Guest,
    /// Our DUID, made from the MAC address (RFC 8415 §11.4).
    id: [u8; 10],
    dns: Option<[u8; 16]>,
    search: Vec<u8>,
}

/// What matters of a client's message.
struct Request<'a> {
    kind: u8,
    xid: [u8; 3],
    client: Option<&'a [u8]>,
    server: Option<&'a [u8]>,
    /// Identifier of the association that wants an address.
    association: Option<[u8; 4]>,
    is_rapid: bool,
}

impl Server {
    pub(super) fn new(config: &UserConfig, net: Ipv6Guest) -> Self {
        let [a, b, c, d, e, f] = config.mac;
        Self {
            net,
            id: [0, 3, 0, 1, a, b, c, d, e, f],
            dns: config.dns.then_some(net.dns.octets()),
            search: names::encode_all(&config.search),
        }
    }

    pub(super) fn answer(&self, link: &Link, asked: &Asked<'_>, out: &mut ReplyBuf) -> Handled {
        let malformed = Handled::Dropped(DropReason::Malformed);
        let Addresses::V6 { source: client, .. } = asked.ip.addresses else { return malformed };
        if client.is_unspecified() || client.is_multicast() {
            return malformed;
        }
        let Some(request) = read(asked.payload) else { return malformed };
        if request.server.is_some_and(|server| server != self.id) {
            return Handled::Absorbed;
        }
        let Some(reply) = reply_kind(&request) else {
            return Handled::Dropped(DropReason::Unsupported);
        };
        let mut message = Message::new(reply, request.xid);
        if self.write(&request, &mut message).is_none() {
            return malformed;
        }
        let addresses = Addresses::V6 { source: self.net.link_local, destination: client };
        let route = link.route(asked.mac, addresses);
        let header = UdpHeader { source: SERVER_PORT, destination: CLIENT_PORT };
        answered(out.udp(&route, &header, message.bytes()))
    }

    fn write(&self, request: &Request<'_>, message: &mut Message) -> Option<()> {
        message.option(SERVER_ID, &[&self.id])?;
        if let Some(client) = request.client {
            message.option(CLIENT_ID, &[client])?;
        }
        match (request.kind, request.association) {
            (SOLICIT | REQUEST | RENEW | REBIND, Some(association)) => {
                self.write_address(association, message)?;
            }
            (SOLICIT | REQUEST | RENEW | REBIND, None) => {
                message.option(STATUS, &[&NO_ADDRESSES.to_be_bytes()])?;
            }
            (CONFIRM | RELEASE | DECLINE, _) => {
                message.option(STATUS, &[&SUCCESS.to_be_bytes()])?;
                return Some(());
            }
            _ => {}
        }
        if request.kind == SOLICIT && request.is_rapid {
            message.option(RAPID_COMMIT, &[])?;
        }
        if let Some(dns) = &self.dns {
            message.option(DNS_SERVERS, &[dns])?;
        }
        if !self.search.is_empty() {
            message.option(DOMAIN_LIST, &[&self.search])?;
        }
        Some(())
    }

    /// IA_NA with one IA_ADDR inside (RFC 8415 §21.4, §21.6).
    fn write_address(&self, association: [u8; 4], message: &mut Message) -> Option<()> {
        let [preferred, valid] = [PREFERRED_S.to_be_bytes(), VALID_S.to_be_bytes()];
        // When to renew and rebind is left to the client.
        let times = [0; 8];
        let inner = [IA_ADDR.to_be_bytes(), 24_u16.to_be_bytes()];
        let addr = self.net.guest.octets();
        let parts = [&association[..], &times, inner.as_flattened(), &addr, &preferred, &valid];
        message.option(IA_NA, &parts)
    }
}

/// The kind of message that answers; `None` for what no client may ask (RFC 8415 §16).
fn reply_kind(request: &Request<'_>) -> Option<u8> {
    let (has_client, has_server) = (request.client.is_some(), request.server.is_some());
    match (request.kind, has_client, has_server) {
        (SOLICIT, true, false) => Some(if request.is_rapid { REPLY } else { ADVERTISE }),
        (REQUEST | RENEW | RELEASE | DECLINE, true, true) | (CONFIRM | REBIND, true, false) => {
            Some(REPLY)
        }
        (INFORMATION_REQUEST, _, _) => Some(REPLY),
        _ => None,
    }
}

/// Reads type, transaction and top-level options; `None` if a length goes beyond the message.
fn read(message: &[u8]) -> Option<Request<'_>> {
    let ([kind, xid @ ..], mut rest) = message.split_first_chunk::<4>()?;
    let mut request = Request {
        kind: *kind,
        xid: *xid,
        client: None,
        server: None,
        association: None,
        is_rapid: false,
    };
    while let Some(([c0, c1, n0, n1], tail)) = rest.split_first_chunk::<4>() {
        let len = usize::from(u16::from_be_bytes([*n0, *n1]));
        let (data, tail) = tail.split_at_checked(len)?;
        rest = tail;
        match u16::from_be_bytes([*c0, *c1]) {
            CLIENT_ID if (1..=DUID_MAX).contains(&len) => request.client = Some(data),
            CLIENT_ID => return None,
            SERVER_ID => request.server = Some(data),
            IA_NA if request.association.is_none() => {
                request.association = Some(*data.first_chunk()?);
            }
            RAPID_COMMIT => request.is_rapid = true,
            _ => {}
        }
    }
    rest.is_empty().then_some(request)
}

/// A message under construction, of bounded length.
struct Message {
    bytes: [u8; MESSAGE_MAX],
    len: usize,
}

impl Message {
    fn new(kind: u8, [a, b, c]: [u8; 3]) -> Self {
        let mut message = Self { bytes: [0; MESSAGE_MAX], len: 0 };
        // Four bytes always fit.
        let _fits = message.put(&[kind, a, b, c]);
        message
    }

    /// Appends an option made of `parts`; `None` if the message would get too long.
    fn option(&mut self, code: u16, parts: &[&[u8]]) -> Option<()> {
        let len = parts.iter().fold(0_usize, |sum, part| sum.saturating_add(part.len()));
        self.put(&code.to_be_bytes())?;
        self.put(&u16::try_from(len).ok()?.to_be_bytes())?;
        parts.iter().try_for_each(|part| self.put(part))
    }

    fn put(&mut self, part: &[u8]) -> Option<()> {
        let end = self.len.checked_add(part.len())?;
        let room = self.bytes.get_mut(self.len..end)?;
        for (to, from) in room.iter_mut().zip(part) {
            *to = *from;
        }
        self.len = end;
        Some(())
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
