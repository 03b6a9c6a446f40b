//! Which frames belong together: what is read of each, and what a group of them has come to.

use super::{Arrival, JOINED_HEADERS_MAX};
use crate::checksum::{Sum, TCP_CSUM_OFFSET, UDP_CSUM_OFFSET, ipv4_header_checksum};
use crate::header::{CsumAt, Gso, Offloads};
use crate::parse::{
    Addresses, IPV4_LEN, IPV6_LEN, Ip, PROTOCOL_TCP, PROTOCOL_UDP, Parsed, TcpFlags, Transport,
    UDP_LEN, parse,
};

/// "Don't fragment" in the first byte of an IPv4 header's fragment field.
const DF: u8 = 0x40;
/// The most bytes of an IPv4 packet. An IPv6 packet could have a header more.
const PACKET_MAX: usize = 0xffff;
/// What a joined frame takes from its segments.
const COLLECTED: TcpFlags = TcpFlags::FIN.union(TcpFlags::PSH);
/// What a segment may have that the group's first has not.
const LAST_ONLY: TcpFlags = COLLECTED.union(TcpFlags::CWR);
/// With these nothing is joined.
const SINGLE: TcpFlags = TcpFlags::SYN.union(TcpFlags::RST).union(TcpFlags::URG);

/// What flow a frame belongs to.
pub(super) enum Flow<'f> {
    /// No TCP and no UDP: joined with nothing, and nothing waits for it.
    None,
    /// It may belong to any: a fragment, or headers that are not read here.
    Unknown,
    /// A flow that is known.
    Of(Candidate<'f>),
}

/// A frame that may belong to a group: TCP or UDP, with no headers but the usual ones.
pub(super) struct Candidate<'f> {
    bytes: &'f [u8],
    addresses: Addresses,
    l3: usize,
    l4: usize,
    payload: usize,
    end: usize,
    /// `None` for UDP.
    tcp: Option<TcpFlags>,
    seq: u32,
    /// What is left open fits, nothing or the checksum of the transport; and nothing is behind
    /// the packet.
    is_plain: bool,
    /// That checksum is left open: the frame is of this host.
    is_open: bool,
    /// UDP without a checksum.
    is_unsummed: bool,
    pub(super) validated: bool,
}

/// Frames that are joined. Their places in the batch are a chain from the first to the last.
#[derive(Clone, Copy)]
pub(super) struct Group {
    pub(super) first: u8,
    pub(super) last: u8,
    pub(super) segments: u16,
    pub(super) kind: Gso,
    /// Payload bytes of each segment but the last.
    pub(super) size: u16,
    /// Payload bytes in all.
    pub(super) total: u16,
    pub(super) ecn: bool,
    /// FIN and PSH, which the last segment brings.
    flags: TcpFlags,
    /// The sequence number that is next.
    seq: u32,
    addresses: Addresses,
    l3: usize,
    l4: usize,
    payload: usize,
}

impl<'f> Flow<'f> {
    pub(super) fn of(arrival: &Arrival<'f>) -> Self {
        let bytes = arrival.bytes;
        let Ok(parsed) = parse(bytes, bytes.len()) else { return Self::Unknown };
        let Some(ip) = parsed.ip() else { return Self::None };
        let header_len = if ip.addresses.is_v4() { IPV4_LEN } else { IPV6_LEN };
        if ip.fragment.is_some() || ip.l4 != parsed.l3.saturating_add(header_len) {
            return Self::Unknown;
        }
        match ip.transport {
            Transport::Tcp(tcp) => {
                let open = CsumAt { start: 0, offset: TCP_CSUM_OFFSET };
                let new = Candidate::of(arrival, &parsed, ip, open);
                Self::Of(Candidate { tcp: Some(tcp.flags), seq: tcp.seq, ..new })
            }
            Transport::Udp(udp) => {
                let open = CsumAt { start: 0, offset: UDP_CSUM_OFFSET };
                let new = Candidate::of(arrival, &parsed, ip, open);
                // A datagram that is shorter than its packet is not one that was cut.
                let fills = ip.payload.saturating_add(ip.payload_len) == ip.end;
                let is_plain = new.is_plain && fills;
                Self::Of(Candidate {
                    is_plain,
                    is_unsummed: udp.checksum == 0 && !new.is_open,
                    ..new
                })
            }
            Transport::Icmp(_) | Transport::Other => Self::None,
            Transport::LaterFragment => Self::Unknown,
        }
    }
}

impl<'f> Candidate<'f> {
    fn of(arrival: &Arrival<'f>, parsed: &Parsed, ip: &Ip, open: CsumAt) -> Self {
        let request = &arrival.request;
        let place = request.csum.map(|at| (usize::from(at.start), at.offset));
        let is_open = place == Some((ip.l4, open.offset));
        Self {
            bytes: arrival.bytes,
            addresses: ip.addresses,
            l3: parsed.l3,
            l4: ip.l4,
            payload: ip.payload,
            end: ip.end,
            tcp: None,
            seq: 0,
            is_plain: request.gso.is_none()
                && (is_open || request.csum.is_none())
                && ip.end == arrival.bytes.len(),
            is_open,
            is_unsummed: false,
            validated: arrival.validated,
        }
    }

    fn payload_len(&self) -> usize {
        self.end.saturating_sub(self.payload)
    }

    /// Whether this frame's flow is that of a group, of which `first` is the first frame.
    pub(super) fn is_of_flow(&self, group: &Group, first: &[u8]) -> bool {
        let ports = self.l4..self.l4.saturating_add(4);
        self.l3 == group.l3
            && self.l4 == group.l4
            && self.tcp.is_some() == group.kind.is_tcp()
            && self.addresses == group.addresses
            && same(self.bytes, first, ports)
            && same(self.bytes, first, 0..self.l3)
    }

    /// Whether this frame is the next segment of its flow's group.
    pub(super) fn follows(&self, group: &Group, first: &[u8]) -> bool {
        let len = self.payload_len();
        let all = usize::from(group.total).saturating_add(self.end).saturating_sub(self.l3);
        self.is_plain
            && !self.is_unsummed
            && self.payload == group.payload
            && (1..=usize::from(group.size)).contains(&len)
            && all <= PACKET_MAX
            && self.same_network(group, first)
            && self.tcp.is_none_or(|flags| self.same_tcp(group, first, flags))
    }

    /// The IP header, but for the length and what an identification must be.
    fn same_network(&self, group: &Group, first: &[u8]) -> bool {
        if !self.addresses.is_v4() {
            let at =
                |from: usize, to: usize| self.l3.saturating_add(from)..self.l3.saturating_add(to);
            return same(self.bytes, first, at(0, 4)) && same(self.bytes, first, at(6, 8));
        }
        let fields = |bytes: &[u8]| {
            let [v, tos, _, _, i0, i1, f0, f1, ttl, protocol] =
                *bytes.get(self.l3..)?.first_chunk()?;
            Some(([v, tos, f0, f1, ttl, protocol], u16::from_be_bytes([i0, i1])))
        };
        let (Some((mine, id)), Some((theirs, first_id))) = (fields(self.bytes), fields(first))
        else {
            return false;
        };
        // One more for each segment, or all the same where it has no meaning (RFC 6864 §4.1).
        let [_, _, flags, ..] = mine;
        let counted = id == first_id.wrapping_add(group.segments);
        mine == theirs && (counted || flags & DF != 0 && id == first_id)
    }

    /// The TCP header, but for the sequence number, which is the next, and what is collected.
    fn same_tcp(&self, group: &Group, first: &[u8], flags: TcpFlags) -> bool {
        let at = |from: usize, to: usize| self.l4.saturating_add(from)..self.l4.saturating_add(to);
        let field = self.l4.saturating_add(13);
        let first_flags = first.get(field).map(|flags| TcpFlags(*flags).difference(LAST_ONLY));
        self.seq == group.seq
            && !flags.contains(TcpFlags::CWR)
            && first_flags == Some(flags.difference(LAST_ONLY))
            // Acknowledgement number and header length, window, options.
            && same(self.bytes, first, at(8, 13))
            && same(self.bytes, first, at(14, 16))
            && same(self.bytes, first, at(20, self.payload.saturating_sub(self.l4)))
    }

    /// Whether a group may begin with this frame, for a guest that can do what `can` says.
    pub(super) fn may_begin(&self, can: Offloads) -> bool {
        let needs = Offloads::CSUM.union(self.kind().needs());
        let flags_allow = self.tcp.is_none_or(|flags| {
            let cwr_allows = !flags.contains(TcpFlags::CWR) || can.contains(Offloads::ECN);
            flags.contains(TcpFlags::ACK) && !flags.intersects(SINGLE | COLLECTED) && cwr_allows
        });
        self.is_plain
            && !self.is_unsummed
            && self.payload_len() > 0
            && self.payload <= JOINED_HEADERS_MAX
            && can.contains(needs)
            && flags_allow
    }

    /// Whether the frame's checksums are right (NET-RX-16). That of an IPv4 header is written
    /// anew, so a wrong one must not come this way whoever has validated the other.
    pub(super) fn is_right(&self) -> bool {
        let header = self.bytes.get(self.l3..self.l4);
        if self.addresses.is_v4() && header.is_none_or(|header| ipv4_header_checksum(header) != 0) {
            return false;
        }
        if self.is_open || self.validated {
            return true;
        }
        let Some(part) = self.bytes.get(self.l4..self.end) else { return false };
        let Ok(len) = u32::try_from(part.len()) else { return false };
        let pseudo = self.addresses.pseudo_header(self.protocol(), len);
        pseudo.followed_by(Sum::of(part)).checksum() == 0
    }

    fn kind(&self) -> Gso {
        match (self.tcp, self.addresses.is_v4()) {
            (None, _) => Gso::UdpL4,
            (Some(_), true) => Gso::TcpV4,
            (Some(_), false) => Gso::TcpV6,
        }
    }

    fn protocol(&self) -> u8 {
        if self.tcp.is_some() { PROTOCOL_TCP } else { PROTOCOL_UDP }
    }

    /// A group of this frame alone.
    pub(super) fn begin(&self, place: u8) -> Group {
        let len = u16::try_from(self.payload_len()).unwrap_or(0);
        Group {
            first: place,
            last: place,
            segments: 1,
            kind: self.kind(),
            size: len,
            total: len,
            ecn: self.tcp.is_some_and(|flags| flags.contains(TcpFlags::CWR)),
            flags: TcpFlags::default(),
            seq: self.seq.wrapping_add(len.into()),
            addresses: self.addresses,
            l3: self.l3,
            l4: self.l4,
            payload: self.payload,
        }
    }
}

impl Group {
    /// Takes in a frame that follows. Returns whether it is the last: it is shorter, or says so.
    pub(super) fn append(&mut self, place: u8, new: &Candidate<'_>) -> bool {
        let len = u16::try_from(new.payload_len()).unwrap_or(0);
        self.last = place;
        self.segments = self.segments.saturating_add(1);
        self.total = self.total.saturating_add(len);
        self.seq = self.seq.wrapping_add(len.into());
        let flags = new.tcp.unwrap_or_default();
        if flags.contains(TcpFlags::FIN) {
            self.flags = self.flags | TcpFlags::FIN;
        }
        if flags.contains(TcpFlags::PSH) {
            self.flags = self.flags | TcpFlags::PSH;
        }
        len < self.size || flags.intersects(COLLECTED)
    }

    /// Where the checksum of the joined frame is left open.
    pub(super) fn csum(&self) -> CsumAt {
        let offset = if self.kind.is_tcp() { TCP_CSUM_OFFSET } else { UDP_CSUM_OFFSET };
        CsumAt { start: u16::try_from(self.l4).unwrap_or(u16::MAX), offset }
    }

    /// The headers of the joined frame: those of its first segment, but for lengths, flags, and
    /// checksums, of which that of the transport is left open (NET-RX-17, NET-RX-18).
    pub(super) fn write_headers<'r>(
        &self,
        first: &[u8],
        room: &'r mut [u8; JOINED_HEADERS_MAX],
    ) -> Option<&'r [u8]> {
        let header = room.get_mut(..self.payload)?;
        for (to, from) in header.iter_mut().zip(first) {
            *to = *from;
        }
        let behind_ip = self.payload.checked_sub(self.l4)?.checked_add(self.total.into())?;
        let transport_len = u16::try_from(behind_ip).ok()?;
        let ip = header.get_mut(self.l3..self.l4)?;
        if self.addresses.is_v4() {
            let len = transport_len.checked_add(u16::try_from(IPV4_LEN).ok()?)?;
            let [_, _, n0, n1, _, _, _, _, _, _, c0, c1, ..] = ip.first_chunk_mut::<IPV4_LEN>()?;
            [*n0, *n1] = len.to_be_bytes();
            [*c0, *c1] = [0, 0];
            let checksum = ipv4_header_checksum(ip);
            let [_, _, _, _, _, _, _, _, _, _, c0, c1, ..] = ip.first_chunk_mut::<IPV4_LEN>()?;
            [*c0, *c1] = checksum.to_be_bytes();
        } else {
            let [_, _, _, _, n0, n1, ..] = ip.first_chunk_mut::<IPV6_LEN>()?;
            [*n0, *n1] = transport_len.to_be_bytes();
        }
        let is_tcp = self.kind.is_tcp();
        let protocol = if is_tcp { PROTOCOL_TCP } else { PROTOCOL_UDP };
        let pseudo = self.addresses.pseudo_header(protocol, transport_len.into());
        let transport = header.get_mut(self.l4..)?;
        if is_tcp {
            let [_, _, _, _, _, _, _, _, _, _, _, _, _, flags, _, _, c0, c1, ..] =
                transport.first_chunk_mut::<{ crate::parse::TCP_LEN }>()?;
            *flags = TcpFlags(*flags).union(self.flags).0;
            [*c0, *c1] = pseudo.partial().to_be_bytes();
        } else {
            let [_, _, _, _, n0, n1, c0, c1] = transport.first_chunk_mut::<UDP_LEN>()?;
            [*n0, *n1] = transport_len.to_be_bytes();
            [*c0, *c1] = pseudo.partial().to_be_bytes();
        }
        Some(header)
    }
}

/// Whether a range is the same in both.
fn same(one: &[u8], other: &[u8], range: core::ops::Range<usize>) -> bool {
    one.get(range.clone()).is_some_and(|bytes| Some(bytes) == other.get(range))
}
