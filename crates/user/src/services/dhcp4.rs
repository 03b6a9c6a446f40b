//! DHCP for IPv4 (RFC 2131): one guest, one address, always the same.
//!
//! ```text
//!   DISCOVER                        -> OFFER
//!   REQUEST  for our address        -> ACK
//!            for another address    -> NAK, the guest starts over
//!            to another server      -> silence
//!   INFORM                          -> ACK without address or lease
//!   RELEASE, DECLINE                -> silence
//! ```
//!
//! There is no lease to keep: whoever asks behind this NIC is the guest. So the server has no
//! state, survives everything, and gives a rebooted guest its old address.

use std::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::{
    ArpHardware, DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpPacket, DhcpRepr,
    EthernetAddress,
};
use vionet_frame::build::UdpHeader;
use vionet_frame::parse::{Addresses, Mac};

use super::{Asked, BROADCAST, DropReason, Handled, ReplyBuf, answered, is_group, names, route};
use crate::lease::{DNS_MAX, Lease};

pub(crate) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// Every client takes a packet of 576 bytes (RFC 2131 §2); that leaves this for the message.
const MESSAGE_MAX: usize = 576 - 28;
/// A larger message that the client allows ends here.
const MESSAGE_MAX_EVER: usize = 1280;
/// BOOTP's message size; some clients and relays take no less (RFC 1542 §2.1).
const MESSAGE_MIN: usize = 300;
const MAGIC: u32 = 0x6382_5363;

// Option codes (RFC 2132, RFC 3397).
const HOST_NAME: u8 = 12;
const DOMAIN_NAME: u8 = 15;
const INTERFACE_MTU: u8 = 26;
const BROADCAST_ADDRESS: u8 = 28;
const REQUESTED_IP: u8 = 50;
const MESSAGE_TYPE: u8 = 53;
const SERVER_ID: u8 = 54;
const MESSAGE: u8 = 56;
const MESSAGE_SIZE: u8 = 57;
const CLIENT_ID: u8 = 61;
const DOMAIN_SEARCH: u8 = 119;

/// The answers, which depend on the configuration alone.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    lease: Lease,
    mtu: [u8; 2],
    hostname: Vec<u8>,
    domain: Vec<u8>,
    search: Vec<u8>,
}

/// What matters of a client's message.
struct Request<'a> {
    kind: DhcpMessageType,
    xid: u32,
    secs: u16,
    client: Mac,
    client_ip: Ipv4Addr,
    is_broadcast: bool,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client_id: Option<&'a [u8]>,
    message_max: usize,
}

/// What the server says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reply {
    Offer,
    Ack,
    /// ACK to INFORM: configuration without an address.
    Inform,
    Nak,
}

impl Server {
    pub(crate) fn new(lease: Lease) -> Self {
        let text = |name: Option<&String>| name.map_or_else(Vec::new, |name| name.clone().into());
        Self {
            mtu: lease.mtu.to_be_bytes(),
            hostname: text(lease.hostname.as_ref()),
            domain: text(lease.search.first()),
            search: names::encode_all(&lease.search),
            lease,
        }
    }

    /// Whether a datagram to `addr` is for this server.
    pub(crate) fn listens(&self, addr: IpAddr) -> bool {
        [Ipv4Addr::BROADCAST, self.lease.net.broadcast(), self.lease.server]
            .iter()
            .any(|ours| addr == IpAddr::V4(*ours))
    }

    /// Queues the answer, from the MAC address `from`.
    pub(crate) fn answer(&self, from: Mac, asked: &Asked<'_>, out: &mut ReplyBuf) -> Handled {
        let malformed = Handled::Dropped(DropReason::Malformed);
        let Ok(packet) = DhcpPacket::new_checked(asked.payload) else { return malformed };
        let Some(request) = read(&packet) else { return malformed };
        let reply = match self.decide(&request) {
            Ok(reply) => reply,
            Err(handled) => return handled,
        };
        let mut message = [0; MESSAGE_MAX_EVER];
        let Some(message) = self.write(&request, reply, &mut message) else { return malformed };
        let (to, destination) = self.address(&request, reply);
        let addresses = Addresses::V4 { source: self.lease.server, destination };
        let header = UdpHeader { source: SERVER_PORT, destination: CLIENT_PORT };
        answered(out.udp(&route(from, to, addresses), &header, message))
    }

    /// RFC 2131 §4.3.
    fn decide(&self, request: &Request<'_>) -> Result<Reply, Handled> {
        match request.kind {
            DhcpMessageType::Discover => Ok(Reply::Offer),
            DhcpMessageType::Inform if !request.client_ip.is_unspecified() => Ok(Reply::Inform),
            DhcpMessageType::Request => {
                if request.server.is_some_and(|server| server != self.lease.server) {
                    return Err(Handled::Absorbed);
                }
                // SELECTING and INIT-REBOOT name the address in an option, RENEWING and REBINDING
                // in the header (RFC 2131 §4.3.2).
                let header = Some(request.client_ip).filter(|addr| !addr.is_unspecified());
                match request.requested.or(header) {
                    Some(wanted) if wanted == self.lease.guest => Ok(Reply::Ack),
                    Some(_) => Ok(Reply::Nak),
                    None => Err(Handled::Dropped(DropReason::Malformed)),
                }
            }
            DhcpMessageType::Release | DhcpMessageType::Decline => Err(Handled::Absorbed),
            DhcpMessageType::Inform
            | DhcpMessageType::Offer
            | DhcpMessageType::Ack
            | DhcpMessageType::Nak
            | DhcpMessageType::Unknown(_) => Err(Handled::Dropped(DropReason::Unsupported)),
        }
    }

    /// Where the reply goes (RFC 2131 §4.1).
    fn address(&self, request: &Request<'_>, reply: Reply) -> (Mac, Ipv4Addr) {
        let everybody = (BROADCAST, Ipv4Addr::BROADCAST);
        if reply == Reply::Nak {
            everybody
        } else if !request.client_ip.is_unspecified() {
            (request.client, request.client_ip)
        } else if request.is_broadcast {
            everybody
        } else {
            (request.client, self.lease.guest)
        }
    }

    /// The reply, with those of its options that the client's limit leaves room for.
    fn write<'m>(
        &self,
        request: &Request<'_>,
        reply: Reply,
        room: &'m mut [u8; MESSAGE_MAX_EVER],
    ) -> Option<&'m [u8]> {
        let is_nak = reply == Reply::Nak;
        let broadcast = self.lease.net.broadcast().octets();
        let has_broadcast = !self.lease.is_point_to_point();
        // In order of importance.
        let wishes: [(bool, u8, &[u8]); 7] = [
            // RFC 6842 §3: the client's identifier comes back.
            (true, CLIENT_ID, request.client_id.unwrap_or_default()),
            (is_nak, MESSAGE, b"this network has one address, ask again"),
            (!is_nak, INTERFACE_MTU, &self.mtu),
            (!is_nak && has_broadcast, BROADCAST_ADDRESS, &broadcast),
            (!is_nak, DOMAIN_NAME, &self.domain),
            (!is_nak, HOST_NAME, &self.hostname),
            (!is_nak, DOMAIN_SEARCH, &self.search),
        ];
        let repr = self.repr(request, reply);
        let mut len = repr.buffer_len();
        let fitting = wishes.into_iter().filter(|(is_due, _, data)| {
            let longer = len.saturating_add(2).saturating_add(data.len());
            let fits = *is_due && (1..=255).contains(&data.len()) && longer <= request.message_max;
            len = if fits { longer } else { len };
            fits
        });
        let mut options = [DhcpOption { kind: 0, data: &[] }; 7];
        let mut used = 0;
        for (slot, (_, kind, data)) in options.iter_mut().zip(fitting) {
            *slot = DhcpOption { kind, data };
            used = usize::saturating_add(used, 1);
        }
        let repr = DhcpRepr { additional_options: options.get(..used)?, ..repr };
        let message = room.get_mut(..len.max(MESSAGE_MIN))?;
        repr.emit(&mut DhcpPacket::new_unchecked(&mut *message)).ok()?;
        Some(message)
    }

    fn repr(&self, request: &Request<'_>, reply: Reply) -> DhcpRepr<'static> {
        let (message_type, has_lease) = match reply {
            Reply::Offer => (DhcpMessageType::Offer, true),
            Reply::Ack => (DhcpMessageType::Ack, true),
            Reply::Inform => (DhcpMessageType::Ack, false),
            Reply::Nak => (DhcpMessageType::Nak, false),
        };
        let is_nak = reply == Reply::Nak;
        let dns = self.lease.dns.iter().copied().take(DNS_MAX);
        let none = Ipv4Addr::UNSPECIFIED;
        DhcpRepr {
            message_type,
            transaction_id: request.xid,
            secs: request.secs,
            client_hardware_address: EthernetAddress(request.client),
            client_ip: if is_nak { none } else { request.client_ip },
            your_ip: if has_lease { self.lease.guest } else { none },
            server_ip: none,
            router: self.lease.router.filter(|_| !is_nak),
            subnet_mask: (!is_nak).then_some(self.lease.net.mask()),
            relay_agent_ip: none,
            broadcast: request.is_broadcast,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(self.lease.server),
            parameter_request_list: None,
            dns_servers: (!is_nak && dns.clone().next().is_some()).then(|| dns.collect()),
            max_size: None,
            lease_duration: has_lease.then_some(self.lease.seconds),
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        }
    }
}

/// Reads a client's message. smoltcp's own representation would refuse client identifiers that
/// are no MAC address, so only its fields and its walk along the options are used.
fn read<'a>(packet: &'a DhcpPacket<&'a [u8]>) -> Option<Request<'a>> {
    let client = packet.client_hardware_address().0;
    let is_request = packet.opcode() == DhcpOpCode::Request
        && packet.hardware_type() == ArpHardware::Ethernet
        && packet.hardware_len() == 6
        && packet.magic_number() == MAGIC
        && packet.relay_agent_ip().is_unspecified();
    if !is_request || is_group(client) || client == [0; 6] {
        return None;
    }
    let mut request = Request {
        kind: DhcpMessageType::Unknown(0),
        xid: packet.transaction_id(),
        secs: packet.secs(),
        client,
        client_ip: packet.client_ip(),
        is_broadcast: packet.flags().contains(DhcpFlags::BROADCAST),
        requested: None,
        server: None,
        client_id: None,
        message_max: MESSAGE_MAX,
    };
    for option in packet.options() {
        match (option.kind, option.data) {
            (MESSAGE_TYPE, &[kind]) => request.kind = kind.into(),
            (REQUESTED_IP, &[a, b, c, d]) => request.requested = Some(Ipv4Addr::new(a, b, c, d)),
            (SERVER_ID, &[a, b, c, d]) => request.server = Some(Ipv4Addr::new(a, b, c, d)),
            (CLIENT_ID, [_, _, ..]) => request.client_id = Some(option.data),
            (MESSAGE_SIZE, &[high, low]) => {
                let size = usize::from(u16::from_be_bytes([high, low])).saturating_sub(28);
                request.message_max = size.clamp(MESSAGE_MAX, MESSAGE_MAX_EVER);
            }
            _ => {}
        }
    }
    Some(request)
}
