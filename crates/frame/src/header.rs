//! The virtio header in front of every frame (VIRTIO 1.4 §5.1.9), and what it may ask of us.
//!
//! ```text
//!   12 bytes --decode--> NetHeader --check--> Request --to_header--> NetHeader
//!   anything             claims               facts                  safe for a host kernel
//! ```
//!
//! `decode` believes anything, `check` believes nothing. Only a [`Request`] is acted on, and only
//! a header made from a `Request` is handed to a host: no field of the guest's passes unseen.
//!
//! `hdr_len` is not in a `Request` at all: it is the driver's word for something that parsing
//! tells for certain (NET-TX-04, NET-TX-05, NET-TX-06, NET-TX-30).

mod offloads;

use core::fmt;

use vionet_spec::net::{
    HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM, HDR_F_RSC_INFO, HDR_F_UDP_TUNNEL_CSUM, HDR_GSO_ECN,
    HDR_GSO_NONE, HDR_GSO_TCPV4, HDR_GSO_TCPV6, HDR_GSO_UDP, HDR_GSO_UDP_L4,
    HDR_GSO_UDP_TUNNEL_IPV4, HDR_GSO_UDP_TUNNEL_IPV6, HDR_LEN, HDR_LEN_HASH, HDR_LEN_TUNNEL,
};

pub use offloads::Offloads;

/// Bits of `gso_type`: an inner frame in a UDP tunnel.
const HDR_GSO_UDP_TUNNEL: u8 = HDR_GSO_UDP_TUNNEL_IPV4 | HDR_GSO_UDP_TUNNEL_IPV6;
/// Bytes of the checksum field.
const FIELD_LEN: u32 = 2;
/// The least offset of an outer UDP header: Ethernet and IPv4 come before.
const OUTER_TH_MIN: u16 = 34;
/// Bytes of a UDP header.
const UDP_LEN: u16 = 8;
/// The least bytes of an IP header.
const IP_LEN_MIN: u16 = 20;

/// How long the header is, on every frame both ways (NET-HDR-01, NET-HDR-02).
///
/// OUT_NET_HEADER and IPSEC, which make it 32 bytes, are not offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum HeaderLayout {
    /// 12 bytes.
    #[default]
    Basic,
    /// 20 bytes: with the hash of HASH_REPORT.
    Hash,
    /// 24 bytes: with the offsets of a tunnel. The hash fields are there, if only as zeroes.
    Tunnel,
}

impl HeaderLayout {
    /// Bytes of the longest layout.
    pub const LEN_MAX: usize = HDR_LEN_TUNNEL;

    /// The layout with HASH_REPORT, and with any feature of UDP tunnels, of either direction.
    #[must_use]
    pub const fn of(hash_report: bool, udp_tunnel: bool) -> Self {
        match (hash_report, udp_tunnel) {
            (_, true) => Self::Tunnel,
            (true, false) => Self::Hash,
            (false, false) => Self::Basic,
        }
    }

    /// Bytes of the header.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no header is empty")]
    pub const fn len(self) -> usize {
        match self {
            Self::Basic => HDR_LEN,
            Self::Hash => HDR_LEN_HASH,
            Self::Tunnel => HDR_LEN_TUNNEL,
        }
    }
}

/// The header as it lies in the buffer: any bytes are one, sensible or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct NetHeader {
    /// Flag bits: NEEDS_CSUM 1, DATA_VALID 2, RSC_INFO 4, UDP_TUNNEL_CSUM 8.
    pub flags: u8,
    /// Kind of segmentation, with the tunnel bits 0x20 and 0x40 and the ECN bit 0x80.
    pub gso_type: u8,
    /// Bytes of all headers, by the sender's word.
    pub hdr_len: u16,
    /// Payload bytes of one segment.
    pub gso_size: u16,
    /// Offset in the frame from which the checksum is taken.
    pub csum_start: u16,
    /// Offset of the checksum field from `csum_start`.
    pub csum_offset: u16,
    /// Buffers that the frame spans, on receive.
    pub num_buffers: u16,
    /// Hash of the frame, on receive.
    pub hash_value: u32,
    /// What the hash was taken of, on receive; 0 for no hash.
    pub hash_report: u16,
    /// Offset in the frame of the outer UDP header.
    pub outer_th_offset: u16,
    /// Offset in the frame of the inner IP header.
    pub inner_nh_offset: u16,
}

impl NetHeader {
    /// Bytes of [`HeaderLayout::Basic`].
    pub const LEN: usize = HDR_LEN;
    /// The header of a finished frame of which nothing is said.
    pub const PLAIN: Self = Self::decode(&[0; HDR_LEN]);

    /// Every 12 bytes are some header; whether it makes sense is [`check`]'s question. The fields
    /// of longer layouts are 0.
    #[must_use]
    #[inline]
    pub const fn decode(bytes: &[u8; HDR_LEN]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1] = *bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
            num_buffers: u16::from_le_bytes([n0, n1]),
            hash_value: 0,
            hash_report: 0,
            outer_th_offset: 0,
            inner_nh_offset: 0,
        }
    }

    /// The same for the longest layout. Of a shorter one give the missing bytes as zeroes.
    #[must_use]
    pub const fn decode_long(bytes: &[u8; HeaderLayout::LEN_MAX]) -> Self {
        let [b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11, long @ ..] = *bytes;
        let [v0, v1, v2, v3, r0, r1, _, _, t0, t1, i0, i1] = long;
        Self {
            hash_value: u32::from_le_bytes([v0, v1, v2, v3]),
            hash_report: u16::from_le_bytes([r0, r1]),
            outer_th_offset: u16::from_le_bytes([t0, t1]),
            inner_nh_offset: u16::from_le_bytes([i0, i1]),
            ..Self::decode(&[b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11])
        }
    }

    /// The first 12 bytes of this header: all of it in [`HeaderLayout::Basic`].
    #[must_use]
    #[inline]
    pub const fn encode(&self) -> [u8; HDR_LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1]
    }

    /// This header in the longest layout; a shorter one is its first [`HeaderLayout::len`] bytes.
    /// What is reserved is 0 (NET-RX-40).
    #[must_use]
    #[inline]
    pub const fn encode_long(&self) -> [u8; HeaderLayout::LEN_MAX] {
        let [b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11] = self.encode();
        let [v0, v1, v2, v3] = self.hash_value.to_le_bytes();
        let [r0, r1] = self.hash_report.to_le_bytes();
        let [t0, t1] = self.outer_th_offset.to_le_bytes();
        let [i0, i1] = self.inner_nh_offset.to_le_bytes();
        [
            b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11, v0, v1, v2, v3, r0, r1, 0, 0, t0, t1,
            i0, i1,
        ]
    }

    /// This header of a frame to be cut, if it is one, with the numbers of segments and of
    /// duplicate ACKs that were joined in it where the checksum's place would be (NET-RX-21).
    /// For a driver with RSC_EXT only (NET-RX-22).
    #[must_use]
    pub const fn with_coalesced(self, segments: u16, dup_acks: u16) -> Self {
        if self.gso_type == HDR_GSO_NONE {
            return self;
        }
        let flags = self.flags | HDR_F_RSC_INFO;
        Self { flags, csum_start: segments, csum_offset: dup_acks, ..self }
    }
}

/// How a frame is to be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Gso {
    /// Not at all.
    None,
    /// TCP over IPv4, by sequence number (TSO).
    TcpV4,
    /// TCP over IPv6, by sequence number (TSO).
    TcpV6,
    /// One UDP datagram, into IP fragments (UFO).
    Udp,
    /// UDP, into datagrams of equal length (USO).
    UdpL4,
}

impl Gso {
    /// The kind in a header's `gso_type`, its ECN and tunnel bits left aside; `None` if unknown.
    #[must_use]
    pub const fn of(gso_type: u8) -> Option<Self> {
        match gso_type & !(HDR_GSO_ECN | HDR_GSO_UDP_TUNNEL) {
            HDR_GSO_NONE => Some(Self::None),
            HDR_GSO_TCPV4 => Some(Self::TcpV4),
            HDR_GSO_TCPV6 => Some(Self::TcpV6),
            HDR_GSO_UDP => Some(Self::Udp),
            HDR_GSO_UDP_L4 => Some(Self::UdpL4),
            _ => None,
        }
    }

    /// The `gso_type` of this kind, without the ECN bit.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::None => HDR_GSO_NONE,
            Self::TcpV4 => HDR_GSO_TCPV4,
            Self::TcpV6 => HDR_GSO_TCPV6,
            Self::Udp => HDR_GSO_UDP,
            Self::UdpL4 => HDR_GSO_UDP_L4,
        }
    }

    /// Whether this is one of the TCP kinds, the only ones that the ECN bit speaks of.
    #[must_use]
    pub const fn is_tcp(self) -> bool {
        matches!(self, Self::TcpV4 | Self::TcpV6)
    }

    /// What must be allowed for this kind, besides the checksum.
    #[must_use]
    pub const fn needs(self) -> Offloads {
        match self {
            Self::None => Offloads::NONE,
            Self::TcpV4 => Offloads::TSO4,
            Self::TcpV6 => Offloads::TSO6,
            Self::Udp => Offloads::UFO,
            Self::UdpL4 => Offloads::USO,
        }
    }
}

/// A checksum that is still to be completed. Both offsets lie within the frame it was checked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct CsumAt {
    /// Offset in the frame from which the sum is taken.
    pub start: u16,
    /// Offset of the 2-byte field from `start`.
    pub offset: u16,
}

impl CsumAt {
    /// Offset in the frame just past the checksum field.
    #[must_use]
    pub const fn end(self) -> u32 {
        let [s0, s1] = self.start.to_le_bytes();
        let [o0, o1] = self.offset.to_le_bytes();
        let start = u32::from_le_bytes([s0, s1, 0, 0]);
        let offset = u32::from_le_bytes([o0, o1, 0, 0]);
        start.saturating_add(offset).saturating_add(FIELD_LEN)
    }
}

/// A frame that is still to be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct GsoRequest {
    /// How; never [`Gso::None`] when it comes from [`check`].
    pub kind: Gso,
    /// Payload bytes of one segment, at least 1.
    pub size: u16,
    /// The TCP header has CWR set, for the first segment only (NET-TX-20).
    pub ecn: bool,
}

/// Where a frame that is still to be cut lies in a UDP tunnel (VIRTIO 1.4 §5.1.9.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Tunnel {
    /// Offset of the outer UDP header.
    pub outer_th_offset: u16,
    /// Offset of the inner IP header.
    pub inner_nh_offset: u16,
    /// The tunnel is one over IPv6, by the sender's word. The text speaks of the inner IP version
    /// here, Linux writes and reads the outer one: nothing of ours depends on it (NET-TX-34).
    pub over_v6: bool,
    /// The outer UDP checksum is to be completed in each segment, too (NET-TX-22).
    pub csum: bool,
}

impl Tunnel {
    const fn gso_bit(self) -> u8 {
        if self.over_v6 { HDR_GSO_UDP_TUNNEL_IPV6 } else { HDR_GSO_UDP_TUNNEL_IPV4 }
    }

    const fn needs(self) -> Offloads {
        let csum = if self.csum { Offloads::TUNNEL_CSUM } else { Offloads::NONE };
        Offloads::TUNNEL.union(csum)
    }
}

/// What a checked header asks for. The default asks for nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Request {
    /// Complete this checksum.
    pub csum: Option<CsumAt>,
    /// Cut the frame; there is always a checksum with it.
    pub gso: Option<GsoRequest>,
    /// What is to be cut, and its checksum, are those of a frame in a tunnel.
    pub tunnel: Option<Tunnel>,
}

impl Request {
    /// What the other side must be able to do to take the frame as it is.
    #[must_use]
    pub const fn needs(&self) -> Offloads {
        let mut needs = if self.csum.is_some() { Offloads::CSUM } else { Offloads::NONE };
        if let Some(GsoRequest { kind, ecn, .. }) = self.gso {
            let ecn = if ecn { Offloads::ECN } else { Offloads::NONE };
            needs = needs.union(kind.needs()).union(ecn);
        }
        if let Some(tunnel) = self.tunnel {
            needs = needs.union(tunnel.needs());
        }
        needs
    }

    /// A header that says this and nothing else, safe to hand to a host kernel or to a guest.
    ///
    /// `hdr_len` is the length of all headers as the caller's own parse found it, or 0 when the
    /// frame was not parsed. It is written for a frame to be cut only, and never below the end of
    /// the checksum field, so a reader that takes it as the part to be contiguous is served.
    /// `num_buffers` is 0; the receive path puts in its count.
    #[must_use]
    pub fn to_header(&self, hdr_len: u16) -> NetHeader {
        let mut header = NetHeader::default();
        if let Some(csum) = self.csum {
            header.flags = HDR_F_NEEDS_CSUM;
            header.csum_start = csum.start;
            header.csum_offset = csum.offset;
        }
        if let (Some(gso), Some(csum)) = (self.gso, self.csum) {
            let ecn = if gso.ecn && gso.kind.is_tcp() { HDR_GSO_ECN } else { 0 };
            header.gso_type = gso.kind.code() | ecn;
            header.gso_size = gso.size;
            header.hdr_len = hdr_len.max(u16::try_from(csum.end()).unwrap_or(u16::MAX));
            if let Some(tunnel) = self.tunnel {
                header.flags |= if tunnel.csum { HDR_F_UDP_TUNNEL_CSUM } else { 0 };
                header.gso_type |= tunnel.gso_bit();
                header.outer_th_offset = tunnel.outer_th_offset;
                header.inner_nh_offset = tunnel.inner_nh_offset;
            }
        }
        header
    }
}

/// A rule that a driver's header breaks. The frame is dropped; the queue goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum HeaderFault {
    /// NET-TX-26: a checksum is left open and CSUM was not negotiated.
    ChecksumNotAllowed,
    /// NET-TX-27: `gso_type` names no kind of segmentation.
    GsoUnknown,
    /// NET-TX-27: the feature of this kind of segmentation was not negotiated.
    GsoNotAllowed,
    /// NET-TX-28: segmentation without a checksum left open.
    GsoWithoutChecksum,
    /// NET-TX-28: segmentation into pieces of 0 bytes.
    GsoSizeZero,
    /// NET-TX-29: the 2-byte checksum field does not lie in the frame.
    ChecksumOutside,
    /// NET-TX-33: a tunnel bit is set and no tunnel feature was negotiated.
    TunnelNotAllowed,
    /// NET-TX-07: both tunnel bits are set.
    TunnelTwice,
    /// NET-TX-09: a tunnel without a checksum left open.
    TunnelWithoutChecksum,
    /// NET-TX-10: a tunnel whose checksum is said to be valid.
    TunnelDataValid,
    /// NET-TX-11, NET-TX-33: a tunnel with nothing to be cut in it, or a datagram to fragment.
    TunnelWithoutGso,
    /// NET-TX-34: outer UDP header, inner IP header and checksum do not follow each other.
    TunnelOffsets,
    /// NET-TX-35: an outer checksum is left open without its feature.
    TunnelChecksumNotAllowed,
    /// NET-TX-12: an outer checksum is left open without a tunnel.
    TunnelChecksumAlone,
}

impl fmt::Display for HeaderFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChecksumNotAllowed => "checksum left open without the CSUM feature",
            Self::GsoUnknown => "unknown kind of segmentation",
            Self::GsoNotAllowed => "segmentation asked for without its feature",
            Self::GsoWithoutChecksum => "segmentation asked for without a checksum left open",
            Self::GsoSizeZero => "segmentation into pieces of 0 bytes",
            Self::ChecksumOutside => "checksum field outside the frame",
            Self::TunnelNotAllowed => "tunnel segmentation asked for without its feature",
            Self::TunnelTwice => "tunnel over both ip versions at once",
            Self::TunnelWithoutChecksum => "tunnel without a checksum left open",
            Self::TunnelDataValid => "tunnel with a checksum said to be valid",
            Self::TunnelWithoutGso => "tunnel without a frame that can be cut in it",
            Self::TunnelOffsets => "offsets of the tunnel's headers out of order",
            Self::TunnelChecksumNotAllowed => "outer checksum left open without its feature",
            Self::TunnelChecksumAlone => "outer checksum left open without a tunnel",
        })
    }
}

impl core::error::Error for HeaderFault {}

/// Holds a driver's header against its frame of `frame_len` bytes and what was negotiated
/// (VIRTIO 1.4 §5.1.9.2).
///
/// Unknown flags (NET-TX-01), DATA_VALID and RSC_INFO (NET-TX-32) and `num_buffers` (NET-TX-25)
/// are ignored; so are the checksum fields without NEEDS_CSUM (NET-TX-02) and the offsets of a
/// tunnel without a tunnel bit (NET-TX-08).
///
/// # Errors
/// The first rule that the header breaks; see [`HeaderFault`].
pub fn check(
    header: &NetHeader,
    frame_len: u32,
    allowed: Offloads,
) -> Result<Request, HeaderFault> {
    let csum = check_csum(header, frame_len, allowed)?;
    let kind = Gso::of(header.gso_type).ok_or(HeaderFault::GsoUnknown)?;
    let tunnel = check_tunnel(kind, header, csum, allowed)?;
    if kind == Gso::None {
        return Ok(Request { csum, gso: None, tunnel: None });
    }
    Ok(Request { csum, gso: Some(check_gso(kind, header, csum, allowed)?), tunnel })
}

fn check_csum(
    header: &NetHeader,
    frame_len: u32,
    allowed: Offloads,
) -> Result<Option<CsumAt>, HeaderFault> {
    if header.flags & HDR_F_NEEDS_CSUM == 0 {
        return Ok(None);
    }
    if !allowed.contains(Offloads::CSUM) {
        return Err(HeaderFault::ChecksumNotAllowed);
    }
    let at = CsumAt { start: header.csum_start, offset: header.csum_offset };
    if at.end() > frame_len {
        return Err(HeaderFault::ChecksumOutside);
    }
    Ok(Some(at))
}

fn check_gso(
    kind: Gso,
    header: &NetHeader,
    csum: Option<CsumAt>,
    allowed: Offloads,
) -> Result<GsoRequest, HeaderFault> {
    if !allowed.contains(kind.needs()) {
        return Err(HeaderFault::GsoNotAllowed);
    }
    if csum.is_none() {
        return Err(HeaderFault::GsoWithoutChecksum);
    }
    if header.gso_size == 0 {
        return Err(HeaderFault::GsoSizeZero);
    }
    // NET-TX-31: the ECN bit is taken even if HOST_ECN was not negotiated; cutting such a frame
    // costs nothing more. On a kind that is not TCP it means nothing and goes no further.
    let ecn = kind.is_tcp() && header.gso_type & HDR_GSO_ECN != 0;
    Ok(GsoRequest { kind, size: header.gso_size, ecn })
}

fn check_tunnel(
    kind: Gso,
    header: &NetHeader,
    csum: Option<CsumAt>,
    allowed: Offloads,
) -> Result<Option<Tunnel>, HeaderFault> {
    let outer_csum = header.flags & HDR_F_UDP_TUNNEL_CSUM != 0;
    if outer_csum && !allowed.contains(Offloads::TUNNEL_CSUM) {
        return Err(HeaderFault::TunnelChecksumNotAllowed);
    }
    let over_v6 = match header.gso_type & HDR_GSO_UDP_TUNNEL {
        0 if outer_csum => return Err(HeaderFault::TunnelChecksumAlone),
        0 => return Ok(None),
        _ if !allowed.contains(Offloads::TUNNEL) => return Err(HeaderFault::TunnelNotAllowed),
        HDR_GSO_UDP_TUNNEL => return Err(HeaderFault::TunnelTwice),
        bit => bit == HDR_GSO_UDP_TUNNEL_IPV6,
    };
    let csum = csum.ok_or(HeaderFault::TunnelWithoutChecksum)?;
    if header.flags & HDR_F_DATA_VALID != 0 {
        return Err(HeaderFault::TunnelDataValid);
    }
    match kind {
        Gso::None | Gso::Udp => return Err(HeaderFault::TunnelWithoutGso),
        Gso::TcpV4 | Gso::TcpV6 | Gso::UdpL4 => {}
    }
    let NetHeader { outer_th_offset, inner_nh_offset, .. } = *header;
    let in_order = outer_th_offset >= OUTER_TH_MIN
        && outer_th_offset.saturating_add(UDP_LEN) <= inner_nh_offset
        && inner_nh_offset.saturating_add(IP_LEN_MIN) <= csum.start;
    if !in_order {
        return Err(HeaderFault::TunnelOffsets);
    }
    Ok(Some(Tunnel { outer_th_offset, inner_nh_offset, over_v6, csum: outer_csum }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec as many;
    use proptest::prelude::*;
    use proptest::sample::select;

    const OFFLOADS: [Offloads; 8] = [
        Offloads::CSUM,
        Offloads::TSO4,
        Offloads::TSO6,
        Offloads::ECN,
        Offloads::UFO,
        Offloads::USO,
        Offloads::TUNNEL,
        Offloads::TUNNEL_CSUM,
    ];

    fn tso4() -> NetHeader {
        NetHeader {
            flags: HDR_F_NEEDS_CSUM,
            gso_type: HDR_GSO_TCPV4,
            hdr_len: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
            ..NetHeader::PLAIN
        }
    }

    /// A frame in a Geneve tunnel, as in the standard's example, its outer checksum open.
    fn tunnelled() -> NetHeader {
        NetHeader {
            flags: HDR_F_NEEDS_CSUM | HDR_F_UDP_TUNNEL_CSUM,
            gso_type: HDR_GSO_TCPV4 | HDR_GSO_UDP_TUNNEL_IPV4,
            hdr_len: 104,
            csum_start: 84,
            outer_th_offset: 34,
            inner_nh_offset: 64,
            ..tso4()
        }
    }

    #[test]
    fn the_fields_lie_where_the_standard_puts_them() {
        let bytes = [1, 0x81, 0x36, 0x00, 0xa8, 0x05, 0x22, 0x00, 0x10, 0x00, 0x02, 0x01];
        let header = NetHeader::decode(&bytes);
        assert_eq!(header, NetHeader { gso_type: 0x81, num_buffers: 0x102, ..tso4() });
        assert_eq!(header.encode(), bytes);
        let long = [9, 8, 7, 6, 5, 4, 0, 0, 0x22, 0, 0x40, 0];
        let whole = *[bytes, long].as_flattened().first_chunk().unwrap();
        let long = NetHeader {
            hash_value: 0x0607_0809,
            hash_report: 0x0405,
            outer_th_offset: 34,
            inner_nh_offset: 64,
            ..header
        };
        assert_eq!(NetHeader::decode_long(&whole), long);
        assert_eq!(long.encode_long(), whole);
        assert_eq!(long.encode(), bytes);
    }

    #[test]
    fn the_layout_is_as_long_as_its_longest_feature_needs() {
        let len = |hash, tunnel| HeaderLayout::of(hash, tunnel).len();
        assert_eq!([len(false, false), len(true, false)], [12, 20]);
        assert_eq!([len(false, true), len(true, true)], [24, 24]);
    }

    #[test]
    fn counts_of_joined_segments_take_the_place_of_the_checksum() {
        let header = tso4().with_coalesced(7, 1);
        assert_eq!((header.flags, header.csum_start, header.csum_offset), (5, 7, 1));
        let whole = NetHeader { flags: HDR_F_NEEDS_CSUM, csum_start: 34, ..NetHeader::PLAIN };
        assert_eq!(whole.with_coalesced(7, 1), whole);
    }

    #[test]
    fn a_good_tunnel_passes_and_comes_back_as_it_was() {
        let request = check(&tunnelled(), 4000, Offloads::ALL).unwrap();
        let tunnel =
            Tunnel { outer_th_offset: 34, inner_nh_offset: 64, over_v6: false, csum: true };
        assert_eq!(request.tunnel, Some(tunnel));
        assert_eq!(request.to_header(104), tunnelled());
        let tunnels = Offloads::TUNNEL | Offloads::TUNNEL_CSUM;
        assert_eq!(request.needs(), Offloads::CSUM | Offloads::TSO4 | tunnels);
        // Over IPv6, its outer checksum complete or absent (NET-TX-36).
        let header = NetHeader { flags: 1, gso_type: 0x44, ..tunnelled() };
        let request = check(&header, 4000, Offloads::ALL.difference(Offloads::TUNNEL_CSUM));
        let request = request.unwrap();
        assert_eq!(request.to_header(104), header);
        assert_eq!(request.needs(), Offloads::CSUM | Offloads::TSO6 | Offloads::TUNNEL);
    }

    #[test]
    fn each_broken_rule_of_a_tunnel_has_its_fault() {
        use HeaderFault::*;
        let all = Offloads::ALL;
        let good = tunnelled();
        let cases = [
            (good, all.difference(Offloads::TUNNEL), TunnelNotAllowed),
            (good, all.difference(Offloads::TUNNEL_CSUM), TunnelChecksumNotAllowed),
            (NetHeader { gso_type: 0x61, ..good }, all, TunnelTwice),
            (NetHeader { flags: 8, ..good }, all, TunnelWithoutChecksum),
            (NetHeader { flags: 0, ..good }, all, TunnelWithoutChecksum),
            (NetHeader { flags: 3, ..good }, all, TunnelDataValid),
            (NetHeader { gso_type: 0x20, ..good }, all, TunnelWithoutGso),
            (NetHeader { gso_type: 0x23, ..good }, all, TunnelWithoutGso),
            (NetHeader { flags: 9, ..tso4() }, all, TunnelChecksumAlone),
            (NetHeader { gso_size: 0, ..good }, all, GsoSizeZero),
            (good, all.difference(Offloads::TSO4), GsoNotAllowed),
            (NetHeader { outer_th_offset: 33, ..good }, all, TunnelOffsets),
            (NetHeader { outer_th_offset: 57, ..good }, all, TunnelOffsets),
            (NetHeader { inner_nh_offset: 0, ..good }, all, TunnelOffsets),
            (NetHeader { inner_nh_offset: 65, ..good }, all, TunnelOffsets),
            (NetHeader { outer_th_offset: 65_535, ..good }, all, TunnelOffsets),
            (NetHeader { inner_nh_offset: 65_535, ..good }, all, TunnelOffsets),
        ];
        for (header, allowed, fault) in cases {
            assert_eq!(check(&header, 4000, allowed), Err(fault), "{header:?}");
        }
        // Without a tunnel bit the offsets mean nothing (NET-TX-08).
        let header = NetHeader { outer_th_offset: 9, inner_nh_offset: 3, ..tso4() };
        assert_eq!(check(&header, 4000, all).unwrap().tunnel, None);
    }

    #[test]
    fn a_plain_header_asks_for_nothing() {
        assert_eq!(check(&NetHeader::default(), 60, Offloads::NONE), Ok(Request::default()));
    }

    #[test]
    fn a_good_request_to_cut_passes_and_comes_back_as_it_was() {
        let request = check(&tso4(), 4000, Offloads::ALL).unwrap();
        assert_eq!(request.csum, Some(CsumAt { start: 34, offset: 16 }));
        assert_eq!(request.gso, Some(GsoRequest { kind: Gso::TcpV4, size: 1448, ecn: false }));
        assert_eq!(request.to_header(54), tso4());
        assert_eq!(request.needs(), Offloads::CSUM | Offloads::TSO4);
    }

    #[test]
    fn unknown_flags_and_those_of_the_device_are_ignored() {
        let flags = HDR_F_DATA_VALID | HDR_F_RSC_INFO | 0xf0;
        let header = NetHeader { flags, csum_start: 9999, num_buffers: 7, ..NetHeader::default() };
        assert_eq!(check(&header, 60, Offloads::ALL), Ok(Request::default()), "NET-TX-25");
        let header = NetHeader { num_buffers: 7, ..tso4() };
        assert_eq!(check(&header, 4000, Offloads::ALL), check(&tso4(), 4000, Offloads::ALL));
    }

    #[test]
    fn each_broken_rule_has_its_fault() {
        use HeaderFault::*;
        let plain = Offloads::CSUM;
        let cases = [
            (tso4(), Offloads::NONE, ChecksumNotAllowed),
            (tso4(), plain, GsoNotAllowed),
            (tso4(), plain | Offloads::TSO6 | Offloads::USO | Offloads::UFO, GsoNotAllowed),
            (NetHeader { gso_type: 2, ..tso4() }, Offloads::ALL, GsoUnknown),
            (NetHeader { gso_type: 0x11, ..tso4() }, Offloads::ALL, GsoUnknown),
            (NetHeader { flags: 0, ..tso4() }, Offloads::ALL, GsoWithoutChecksum),
            (NetHeader { gso_size: 0, ..tso4() }, Offloads::ALL, GsoSizeZero),
            (NetHeader { csum_start: 3983, ..tso4() }, Offloads::ALL, ChecksumOutside),
            (NetHeader { csum_start: u16::MAX, ..tso4() }, Offloads::ALL, ChecksumOutside),
        ];
        for (header, allowed, fault) in cases {
            assert_eq!(check(&header, 4000, allowed), Err(fault), "{header:?}");
        }
    }

    #[test]
    fn the_checksum_field_may_be_the_last_two_bytes() {
        let at = |frame_len| check(&tso4(), frame_len, Offloads::ALL);
        assert!(at(52).is_ok());
        assert_eq!(at(51), Err(HeaderFault::ChecksumOutside));
        assert_eq!(at(0), Err(HeaderFault::ChecksumOutside));
    }

    #[test]
    fn ecn_is_tolerated_without_its_feature_and_only_on_tcp() {
        let header = NetHeader { gso_type: HDR_GSO_TCPV4 | HDR_GSO_ECN, ..tso4() };
        let request = check(&header, 4000, Offloads::CSUM | Offloads::TSO4).unwrap();
        assert!(request.gso.unwrap().ecn);
        let header = NetHeader { gso_type: HDR_GSO_UDP_L4 | HDR_GSO_ECN, ..tso4() };
        let request = check(&header, 4000, Offloads::ALL).unwrap();
        assert!(!request.gso.unwrap().ecn);
        assert_eq!(request.to_header(0).gso_type, HDR_GSO_UDP_L4);
    }

    proptest! {
        #[test]
        fn decoding_and_encoding_are_inverse(bytes: [u8; 12]) {
            prop_assert_eq!(NetHeader::decode(&bytes).encode(), bytes);
            let long = *[bytes, bytes].as_flattened().first_chunk().unwrap();
            let header = NetHeader::decode_long(&long);
            prop_assert_eq!(NetHeader::decode_long(&header.encode_long()), header);
        }

        #[test]
        fn a_sanitised_header_is_always_acceptable(
            bytes: [u8; 24], small: bool, len in 0_u32..70_000, hdr_len in 0_u16..200,
            offloads in many(select(&OFFLOADS), 0..=OFFLOADS.len())
        ) {
            let mut header = NetHeader::decode_long(&bytes);
            if small {
                header = NetHeader {
                    flags: header.flags & 9,
                    gso_type: header.gso_type & 0xa5,
                    outer_th_offset: header.outer_th_offset & 0x3f,
                    inner_nh_offset: header.inner_nh_offset & 0x7f,
                    csum_start: header.csum_start & 0xff,
                    csum_offset: header.csum_offset & 0x1f,
                    ..header
                };
            }
            let allowed = offloads.into_iter().fold(Offloads::NONE, Offloads::union);
            if let Ok(request) = check(&header, len, allowed) {
                prop_assert!(request.needs().difference(Offloads::ECN).is_subset(allowed));
                let safe = request.to_header(hdr_len);
                prop_assert_eq!(check(&safe, len, allowed), Ok(request));
                prop_assert_eq!(safe.flags & !(HDR_F_NEEDS_CSUM | HDR_F_UDP_TUNNEL_CSUM), 0);
                prop_assert_eq!(safe.num_buffers, 0);
            }
        }
    }
}
