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

use core::fmt;
use core::ops::BitOr;

use vionet_spec::net::{
    HDR_F_NEEDS_CSUM, HDR_GSO_ECN, HDR_GSO_NONE, HDR_GSO_TCPV4, HDR_GSO_TCPV6, HDR_GSO_UDP,
    HDR_GSO_UDP_L4, HDR_LEN,
};

/// Header flag: an outer UDP checksum is to be completed as well (§5.1.9).
const HDR_F_UDP_TUNNEL_CSUM: u8 = 8;
/// Bits of `gso_type`: an inner frame in a UDP tunnel over IPv4 or IPv6.
const HDR_GSO_UDP_TUNNEL: u8 = 0x20 | 0x40;
/// Bytes of the checksum field.
const FIELD_LEN: u32 = 2;

/// The header as it lies in the buffer: every 12 bytes are one, sensible or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct NetHeader {
    /// Flag bits: NEEDS_CSUM 1, DATA_VALID 2, RSC_INFO 4.
    pub flags: u8,
    /// Kind of segmentation, with the ECN bit 0x80.
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
}

impl NetHeader {
    /// Bytes of the header in a buffer.
    pub const LEN: usize = HDR_LEN;

    /// Every 12 bytes are some header; whether it makes sense is [`check`]'s question.
    #[must_use]
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
        }
    }

    /// The 12 bytes of this header.
    #[must_use]
    pub const fn encode(&self) -> [u8; HDR_LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1]
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

/// What headers of one direction may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Offloads(u8);

impl Offloads {
    /// Nothing: every frame is complete.
    pub const NONE: Self = Self(0);
    /// Checksums left to be completed.
    pub const CSUM: Self = Self(1);
    /// TCP over IPv4 left to be cut.
    pub const TSO4: Self = Self(1 << 1);
    /// TCP over IPv6 left to be cut.
    pub const TSO6: Self = Self(1 << 2);
    /// TCP with ECN left to be cut.
    pub const ECN: Self = Self(1 << 3);
    /// UDP left to be fragmented.
    pub const UFO: Self = Self(1 << 4);
    /// UDP left to be cut into datagrams.
    pub const USO: Self = Self(1 << 5);
    /// All of them.
    pub const ALL: Self = Self((1 << 6) - 1);

    /// Whether every offload of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        other.is_subset(self)
    }

    /// Whether every offload of this set is in `other`.
    #[must_use]
    pub const fn is_subset(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// The offloads in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The offloads in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The offloads of this set that are not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether nothing is allowed.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Offloads {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl fmt::Debug for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(Offloads, &str); 6] = [
            (Offloads::CSUM, "csum"),
            (Offloads::TSO4, "tso4"),
            (Offloads::TSO6, "tso6"),
            (Offloads::ECN, "ecn"),
            (Offloads::UFO, "ufo"),
            (Offloads::USO, "uso"),
        ];
        let present = NAMES.iter().filter(|(one, _)| self.contains(*one)).map(|(_, name)| name);
        f.debug_set().entries(present).finish()
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

/// What a checked header asks for. The default asks for nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Request {
    /// Complete this checksum.
    pub csum: Option<CsumAt>,
    /// Cut the frame; there is always a checksum with it.
    pub gso: Option<GsoRequest>,
}

impl Request {
    /// What the other side must be able to do to take the frame as it is.
    #[must_use]
    pub const fn needs(&self) -> Offloads {
        let csum = if self.csum.is_some() { Offloads::CSUM } else { Offloads::NONE };
        match self.gso {
            Some(GsoRequest { kind, ecn, .. }) => {
                let ecn = if ecn { Offloads::ECN } else { Offloads::NONE };
                csum.union(kind.needs()).union(ecn)
            }
            None => csum,
        }
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
    /// NET-TX-07, NET-TX-33: a tunnel bit is set and no tunnel feature was negotiated.
    TunnelNotAllowed,
    /// NET-TX-12, NET-TX-35: an outer checksum is left open without its feature.
    TunnelChecksumNotAllowed,
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
            Self::TunnelChecksumNotAllowed => "outer checksum left open without its feature",
        })
    }
}

impl core::error::Error for HeaderFault {}

/// Holds a driver's header against its frame of `frame_len` bytes and what was negotiated
/// (VIRTIO 1.4 §5.1.9.2).
///
/// Unknown flags (NET-TX-01), DATA_VALID and RSC_INFO (NET-TX-32) and `num_buffers` (NET-TX-25)
/// are ignored; the checksum fields are ignored without NEEDS_CSUM (NET-TX-02).
///
/// # Errors
/// The first rule that the header breaks; see [`HeaderFault`].
pub fn check(
    header: &NetHeader,
    frame_len: u32,
    allowed: Offloads,
) -> Result<Request, HeaderFault> {
    if header.gso_type & HDR_GSO_UDP_TUNNEL != 0 {
        return Err(HeaderFault::TunnelNotAllowed);
    }
    if header.flags & HDR_F_UDP_TUNNEL_CSUM != 0 {
        return Err(HeaderFault::TunnelChecksumNotAllowed);
    }
    let csum = check_csum(header, frame_len, allowed)?;
    let kind = Gso::of(header.gso_type).ok_or(HeaderFault::GsoUnknown)?;
    if kind == Gso::None {
        return Ok(Request { csum, gso: None });
    }
    Ok(Request { csum, gso: Some(check_gso(kind, header, csum, allowed)?) })
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vionet_spec::net::{HDR_F_DATA_VALID, HDR_F_RSC_INFO};

    fn tso4() -> NetHeader {
        NetHeader {
            flags: HDR_F_NEEDS_CSUM,
            gso_type: HDR_GSO_TCPV4,
            hdr_len: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 0,
        }
    }

    #[test]
    fn the_fields_lie_where_the_standard_puts_them() {
        let bytes = [1, 0x81, 0x36, 0x00, 0xa8, 0x05, 0x22, 0x00, 0x10, 0x00, 0x02, 0x01];
        let header = NetHeader::decode(&bytes);
        assert_eq!(header, NetHeader { gso_type: 0x81, num_buffers: 0x102, ..tso4() });
        assert_eq!(header.encode(), bytes);
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
        let header = NetHeader { flags, csum_start: 9999, ..NetHeader::default() };
        assert_eq!(check(&header, 60, Offloads::ALL), Ok(Request::default()));
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
            (NetHeader { gso_type: 0x21, ..tso4() }, Offloads::ALL, TunnelNotAllowed),
            (NetHeader { gso_type: 0x61, ..tso4() }, Offloads::ALL, TunnelNotAllowed),
            (NetHeader { flags: 9, ..tso4() }, Offloads::ALL, TunnelChecksumNotAllowed),
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
        }

        #[test]
        fn a_sanitised_header_is_always_acceptable(
            bytes: [u8; 12], small: bool,
            len in 0_u32..70_000, hdr_len in 0_u16..200, may in 0_u8..64
        ) {
            let mut header = NetHeader::decode(&bytes);
            if small {
                header = NetHeader {
                    flags: header.flags & 7,
                    gso_type: header.gso_type & 0x85,
                    csum_start: header.csum_start & 0xff,
                    csum_offset: header.csum_offset & 0x1f,
                    ..header
                };
            }
            let allowed = Offloads(may);
            if let Ok(request) = check(&header, len, allowed) {
                prop_assert!(request.needs().difference(Offloads::ECN).is_subset(allowed));
                let safe = request.to_header(hdr_len);
                prop_assert_eq!(check(&safe, len, allowed), Ok(request));
                prop_assert_eq!(safe.flags & !HDR_F_NEEDS_CSUM, 0);
                prop_assert_eq!(safe.num_buffers, 0);
            }
        }
    }
}
