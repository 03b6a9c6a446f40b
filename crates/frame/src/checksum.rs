//! The Internet checksum (RFC 1071): the ones' complement sum of 16-bit words.
//!
//! Two properties make it fast and easy to take in pieces:
//!  * the sum does not care about the byte order of the words, only the result does, so they are
//!    added as they lie in memory, several at once, and turned at the end;
//!  * a piece that starts at an odd offset has every byte in the other half of its word, so its
//!    sum is that of the same bytes at an even offset with the two halves exchanged.
//!
//! ```text
//!   pieces   | a b c | d e | f g h |
//!   words    | ab | cd | ef | gh |        sum(abc) + swap(sum(de)) + swap(sum(fgh))
//! ```

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::header::{CsumAt, HeaderFault};

/// Offset of the checksum in a TCP header.
pub const TCP_CSUM_OFFSET: u16 = 16;
/// Offset of the checksum in a UDP header.
pub const UDP_CSUM_OFFSET: u16 = 6;

/// A sum under way, over bytes that may come in pieces of any length.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum {
    /// The folded sum, in the machine's byte order.
    value: u16,
    /// An odd number of bytes has been added.
    odd: bool,
}

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self { value: 0, odd: false };

    /// The sum of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut sum = Self::ZERO;
        sum.add(bytes);
        sum
    }

    /// The sum of an even number of bytes that was folded to `partial` before.
    #[must_use]
    pub const fn from_partial(partial: u16) -> Self {
        Self { value: partial.to_be(), odd: false }
    }

    /// Adds the next `bytes`.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        self.join(sum_words(bytes), bytes.len() & 1 == 1);
    }

    /// Adds a 16-bit number in network byte order.
    #[inline]
    pub fn add_u16(&mut self, number: u16) {
        self.join(number.to_be(), false);
    }

    /// Adds a 32-bit number in network byte order.
    #[inline]
    pub fn add_u32(&mut self, number: u32) {
        self.join(fold(u64::from(number.to_be())), false);
    }

    /// The sum of these bytes followed by those of `next`.
    #[must_use]
    pub fn followed_by(mut self, next: Self) -> Self {
        self.join(next.value, next.odd);
        self
    }

    /// The folded sum, not complemented: what a header with NEEDS_CSUM holds in its field.
    #[must_use]
    pub const fn partial(self) -> u16 {
        u16::from_be(self.value)
    }

    /// The checksum: the complement of the folded sum. 0 over bytes that hold a right checksum.
    #[must_use]
    pub const fn checksum(self) -> u16 {
        !u16::from_be(self.value)
    }

    /// The checksum as UDP writes it: 0 would mean "none", so it is sent as 0xFFFF (RFC 768).
    #[must_use]
    pub const fn udp_checksum(self) -> u16 {
        match self.checksum() {
            0 => u16::MAX,
            checksum => checksum,
        }
    }

    #[inline]
    fn join(&mut self, value: u16, odd: bool) {
        let value = if self.odd { value.swap_bytes() } else { value };
        // After a carry the sum is at most 2^16 - 2, so there is room for it.
        let (sum, carry) = self.value.overflowing_add(value);
        self.value = sum.wrapping_add(u16::from(carry));
        self.odd ^= odd;
    }
}

/// The sum of the IPv4 pseudo header (RFC 9293 §3.1) for `len` bytes of `protocol`.
#[must_use]
pub fn pseudo_header_v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, len: u32) -> Sum {
    let mut sum = Sum::ZERO;
    sum.add_u32(source.to_bits());
    sum.add_u32(destination.to_bits());
    sum.add_u16(u16::from(protocol));
    sum.add_u32(len);
    sum
}

/// The sum of the IPv6 pseudo header (RFC 8200 §8.1) for `len` bytes of `protocol`.
#[must_use]
pub fn pseudo_header_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, len: u32) -> Sum {
    let mut sum = Sum::of(&source.octets());
    sum.add(&destination.octets());
    sum.add_u16(u16::from(protocol));
    sum.add_u32(len);
    sum
}

/// The checksum of an IPv4 header with its options; 0 if the header holds its right checksum.
#[must_use]
pub fn ipv4_header_checksum(header: &[u8]) -> u16 {
    Sum::of(header).checksum()
}

/// Completes the checksum that the driver left open (NET-TX-16): the sum from `at.start` to the
/// end of the frame, complemented, goes into the field, which held the pseudo header's sum.
///
/// A field at offset 6 is taken for UDP's, where 0 is sent as 0xFFFF (RFC 768).
///
/// # Errors
/// [`HeaderFault::ChecksumOutside`] if the field does not lie in `frame` (NET-TX-29).
pub fn complete(frame: &mut [u8], at: CsumAt) -> Result<(), HeaderFault> {
    let part = frame.get_mut(usize::from(at.start)..).ok_or(HeaderFault::ChecksumOutside)?;
    let sum = Sum::of(part);
    let checksum = if at.offset == UDP_CSUM_OFFSET { sum.udp_checksum() } else { sum.checksum() };
    let field = part.get_mut(usize::from(at.offset)..).and_then(|rest| rest.first_chunk_mut());
    *field.ok_or(HeaderFault::ChecksumOutside)? = checksum.to_be_bytes();
    Ok(())
}

/// Bytes of a word that is added at once.
const WORD: usize = 8;
/// Words that are added side by side.
const LANES: usize = 8;
const BLOCK: usize = WORD * LANES;

/// The folded sum of `bytes` as 16-bit words in the machine's byte order, zero-padded.
///
/// A sum of 32-bit halves comes to the same as one of 16-bit words, once folded. One total is
/// taken of the words and one of their upper halves: no carry is ever looked for, which lets the
/// compiler use vectors. The first total may wrap; less the second at its place, what is left of
/// it is the sum of the lower halves, which cannot.
#[inline]
fn sum_words(bytes: &[u8]) -> u16 {
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    let (mut all, mut uppers) = ([0_u64; LANES], [0_u64; LANES]);
    for block in blocks {
        let (words, _) = block.as_chunks::<WORD>();
        for ((word, all), uppers) in words.iter().zip(&mut all).zip(&mut uppers) {
            let word = u64::from_ne_bytes(*word);
            *all = all.wrapping_add(word);
            *uppers = uppers.wrapping_add(word >> 32);
        }
    }
    let add = |sum: u64, word: &u64| sum.wrapping_add(*word);
    let (all, uppers) = (all.iter().fold(0, add), uppers.iter().fold(0, add));
    let mut total = add_around(all.wrapping_sub(uppers << 32), uppers);
    let (words, rest) = rest.as_chunks::<WORD>();
    for word in words {
        total = add_around(total, u64::from_ne_bytes(*word));
    }
    let (halves, rest) = rest.as_chunks::<4>();
    for half in halves {
        total = add_around(total, u64::from(u32::from_ne_bytes(*half)));
    }
    let (pairs, rest) = rest.as_chunks::<2>();
    for pair in pairs {
        total = add_around(total, u64::from(u16::from_ne_bytes(*pair)));
    }
    for last in rest {
        total = add_around(total, u64::from(u16::from_ne_bytes([*last, 0])));
    }
    fold(total)
}

/// A sum with the carry brought round.
#[inline]
const fn add_around(total: u64, word: u64) -> u64 {
    let (sum, carry) = total.overflowing_add(word);
    // After a carry the sum is at most 2^64 - 2, so there is room for it.
    if carry { sum.wrapping_add(1) } else { sum }
}

/// A ones' complement sum brought down to 16 bits.
#[inline]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff).wrapping_add(sum >> 32);
    let sum = (sum & 0xffff).wrapping_add((sum >> 16) & 0xffff).wrapping_add(sum >> 32);
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    let [low, high, ..] = sum.to_le_bytes();
    u16::from_le_bytes([low, high])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// The definition, word by word.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0_u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071_comes_out() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&bytes).partial(), 0xddf2);
        assert_eq!(Sum::of(&bytes).checksum(), 0x220d);
    }

    #[test]
    fn all_ones_do_not_overflow() {
        for len in [1, 2, 63, 64, 65, 65_535, 65_536, 1 << 20] {
            let bytes = std::vec![0xff; len];
            assert_eq!(Sum::of(&bytes).partial(), plain(&bytes), "{len}");
        }
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_ones() {
        let mut frame = [0xff, 0xff, 0, 0, 0, 0, 0, 0];
        complete(&mut frame, CsumAt { start: 0, offset: 6 }).unwrap();
        assert_eq!(frame, [0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff]);
        let mut frame = [0xff, 0xff, 0, 0, 0, 0, 0, 0];
        complete(&mut frame, CsumAt { start: 0, offset: 4 }).unwrap();
        assert_eq!(frame, [0xff, 0xff, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_field_outside_the_frame_is_refused_and_the_frame_left_alone() {
        let mut frame = [7; 20];
        for (start, offset) in [(0, 19), (19, 0), (20, 0), (21, 0), (u16::MAX, u16::MAX)] {
            let fault = complete(&mut frame, CsumAt { start, offset });
            assert_eq!(fault, Err(HeaderFault::ChecksumOutside));
            assert_eq!(frame, [7; 20]);
        }
        assert_eq!(complete(&mut frame, CsumAt { start: 2, offset: 16 }), Ok(()));
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_definition(bytes: Vec<u8>, from in 0_usize..8) {
            let bytes = bytes.get(from..).unwrap_or(&[]);
            prop_assert_eq!(Sum::of(bytes).partial(), plain(bytes));
        }

        #[test]
        fn pieces_of_any_parity_add_up(pieces: Vec<Vec<u8>>) {
            let all = pieces.concat();
            let mut added = Sum::ZERO;
            pieces.iter().for_each(|piece| added.add(piece));
            let joined =
                pieces.iter().fold(Sum::ZERO, |sum, piece| sum.followed_by(Sum::of(piece)));
            prop_assert_eq!(added, Sum::of(&all));
            prop_assert_eq!(joined, Sum::of(&all));
        }

        #[test]
        fn a_completed_checksum_verifies(
            mut frame in proptest::collection::vec(any::<u8>(), 60..300),
            start in 0_u16..40, offset in (0_u16..9).prop_map(|half| half * 2)
        ) {
            let (from, at) = (usize::from(start), usize::from(start + offset));
            let pseudo = u16::from_be_bytes([frame[at], frame[at + 1]]);
            complete(&mut frame, CsumAt { start, offset }).unwrap();
            let mut received = Sum::from_partial(pseudo);
            received.add(&frame[from..]);
            prop_assert_eq!(received.checksum(), 0);
        }
    }
}
