//! One UDP datagram as IP fragments (UFO, NET-TX-19; RFC 791 §3.2, RFC 8200 §4.5).
//!
//! ```text
//!   frame      | Ethernet, IP | UDP | payload                          |
//!                             |<-- size -->|<-- size -->|<--- less --->|
//!   fragment 0 | Ethernet, IP'| UDP'| part |
//!   fragment 1 | Ethernet, IP'             | part       |
//! ```
//!
//! The datagram's checksum is completed first, over all of it: no fragment has one of its own, and
//! no host could complete it in one.

use super::{Packet, SEGMENT_HEADERS_MAX, Segment, SegmentFault};
use crate::checksum::{Sum, ipv4_header_checksum};
use crate::parse::{IPV4_LEN, IPV6_LEN, PROTOCOL_UDP, ParseFault, UDP_LEN};

/// IPv6 next header of a fragment header.
const FRAGMENT_HEADER: u8 = 44;
/// Offsets count in units of 8 bytes: all fragments but the last are a multiple of that.
const UNIT_MASK: usize = 8 - 1;
/// The most bytes of a part: with a fragment header it is still an IPv6 payload.
const PART_MAX: usize = (0xffff - 8) & !UNIT_MASK;
/// "More fragments" in an IPv4 header.
const MORE_V4: u16 = 0x2000;
/// "More fragments" in an IPv6 fragment header.
const MORE_V6: u16 = 1;
/// Bytes of a datagram that its identification is made from, besides the checksum of all.
const ID_BYTES: usize = 64;

/// A datagram that is cut into fragments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fragments {
    packet: Packet,
    /// The UDP header, complete.
    udp: [u8; UDP_LEN],
    /// What the fragments have in common in IPv6, where the driver has named nothing.
    id: u32,
}

impl Fragments {
    /// The datagram in `frame` up to `end`, to be cut into pieces of `size` bytes of IP payload.
    /// Also returns the size that the pieces really have.
    pub(super) fn of(
        frame: &[u8],
        packet: Packet,
        end: usize,
        size: usize,
    ) -> Result<(Self, usize), SegmentFault> {
        if packet.v4.is_none() && packet.l4 != packet.l3.saturating_add(IPV6_LEN) {
            return Err(SegmentFault::Extensions);
        }
        let truncated = SegmentFault::Unreadable(ParseFault::Truncated);
        let datagram = frame.get(packet.l4..end).ok_or(truncated)?;
        let len = u16::try_from(datagram.len()).map_err(|_| truncated)?;
        let ([s0, s1, d0, d1, ..], payload) =
            datagram.split_first_chunk::<UDP_LEN>().ok_or(truncated)?;
        let [n0, n1] = len.to_be_bytes();
        let open = [*s0, *s1, *d0, *d1, n0, n1, 0, 0];
        let mut pseudo = packet.pseudo;
        pseudo.add_u16(len);
        let sum = pseudo.followed_by(Sum::of(&open)).followed_by(Sum::of(payload));
        let [c0, c1] = sum.udp_checksum().to_be_bytes();
        let udp = [*s0, *s1, *d0, *d1, n0, n1, c0, c1];
        // A datagram that fits stays whole, whatever multiple its length is of.
        let size = if datagram.len() <= size { size } else { (size & !UNIT_MASK).min(PART_MAX) };
        Ok((Self { packet, udp, id: identification(&udp, payload) }, size))
    }

    /// Writes the headers of the fragment with `part` of the datagram, `done` bytes from its
    /// beginning; those of Ethernet and IP are in `room` already.
    pub(super) fn write<'f>(
        &self,
        room: &mut [u8; SEGMENT_HEADERS_MAX],
        part: &'f [u8],
        done: usize,
        is_last: bool,
    ) -> Option<Segment<'f>> {
        let is_whole = done == 0 && is_last;
        let offset = u16::try_from(done).ok()?;
        let Packet { l3, l4, v4, .. } = self.packet;
        let is_v4 = v4.is_some();
        let mut header_len = l4;
        if !is_v4 && !is_whole {
            let [_, _, _, _, _, _, next, ..] = room.get_mut(l3..)?.first_chunk_mut::<IPV6_LEN>()?;
            *next = FRAGMENT_HEADER;
            let [o0, o1] = (offset | if is_last { 0 } else { MORE_V6 }).to_be_bytes();
            let [i0, i1, i2, i3] = self.id.to_be_bytes();
            let header = [PROTOCOL_UDP, 0, o0, o1, i0, i1, i2, i3];
            header_len = put(room, header_len, header)?;
        }
        let payload = if done == 0 {
            header_len = put(room, header_len, self.udp)?;
            part.get(UDP_LEN..)?
        } else {
            part
        };
        let end = header_len.saturating_add(payload.len());
        // The identification stays: it is what the fragments have in common.
        self.packet.write_lengths(room, end, 0)?;
        if is_v4 && !is_whole {
            let header = room.get_mut(l3..l4)?;
            let [_, _, _, _, _, _, f0, f1, ..] = header.first_chunk_mut::<IPV4_LEN>()?;
            let more = if is_last { 0 } else { MORE_V4 };
            [*f0, *f1] = ((offset >> 3) | more).to_be_bytes();
            write_ipv4_checksum(header)?;
        }
        Some(Segment { header_len, payload, is_last, csum: None })
    }
}

/// Writes a header at `at` of the room; returns where it ends.
fn put(room: &mut [u8], at: usize, header: [u8; 8]) -> Option<usize> {
    *room.get_mut(at..)?.first_chunk_mut()? = header;
    Some(at.saturating_add(header.len()))
}

/// An identification for the fragments of a datagram, from what is in it (FNV-1a and the
/// checksum): equal ones meet only in equal datagrams, whose fragments may be mixed without harm,
/// or once in four thousand million.
fn identification(udp: &[u8; UDP_LEN], payload: &[u8]) -> u32 {
    let bytes = udp.iter().chain(payload.iter().take(ID_BYTES));
    let hash = bytes
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    // Spreads the last bytes over all bits.
    (hash ^ hash >> 15).wrapping_mul(0x2c1b_3c6d)
}

fn write_ipv4_checksum(header: &mut [u8]) -> Option<()> {
    let [_, _, _, _, _, _, _, _, _, _, c0, c1, ..] = header.first_chunk_mut::<IPV4_LEN>()?;
    [*c0, *c1] = [0, 0];
    let checksum = ipv4_header_checksum(header);
    let [_, _, _, _, _, _, _, _, _, _, c0, c1, ..] = header.first_chunk_mut::<IPV4_LEN>()?;
    [*c0, *c1] = checksum.to_be_bytes();
    Some(())
}
