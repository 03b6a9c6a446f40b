//! The Toeplitz hash: which 32 bits of the key meet each bit of the input, looked up by bytes.
//!
//! ```text
//!   key     k0 k1 k2 k3 ...                     bit i of the input, if set, adds (xor) the
//!           |<-- 32 bits from bit i -->|        window of the key that begins at bit i
//! ```
//!
//! The windows of eight neighbouring bits have 256 sums. Tabled, a byte of the input costs one
//! look-up, at the price of 1 KiB: 12 KiB are in use for IPv4, 36 KiB in all. Tables by nibbles
//! are an eighth of that, yet they take twice the time, and half as long again when other work
//! drives either out of the nearest cache.

use core::fmt;

use vionet_spec::hash::KEY_MAX;

/// The longest input, in bytes: two IPv6 addresses and two ports.
pub const INPUT_MAX: usize = 36;

/// The sums of the windows of eight bits, by the bits.
type Table = [u32; 256];

/// A key, made ready for hashing.
#[derive(Clone, PartialEq, Eq)]
#[repr(align(64))]
pub struct Toeplitz {
    /// For each byte of the input.
    bytes: [Table; INPUT_MAX],
    key: [u8; KEY_MAX],
}

impl fmt::Debug for Toeplitz {
    /// Without the tables, which are long, and tell the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Toeplitz").finish_non_exhaustive()
    }
}

impl Toeplitz {
    /// The key of zeroes: every hash is 0.
    pub const ZERO: Self = Self { bytes: [[0; 256]; INPUT_MAX], key: [0; KEY_MAX] };

    /// Makes a key ready. One shorter than [`KEY_MAX`] is used as if zeroes followed; `None` if it
    /// is longer.
    #[must_use]
    pub fn new(key: &[u8]) -> Option<Self> {
        let mut padded = [0; KEY_MAX];
        padded.get_mut(..key.len())?.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
        let mut toeplitz = Self { key: padded, ..Self::ZERO };
        for (table, five) in toeplitz.bytes.iter_mut().zip(padded.windows(5)) {
            let [a, b, c, d, e] = *five else { return None };
            *table = sums(u64::from_be_bytes([0, 0, 0, a, b, c, d, e]));
        }
        Some(toeplitz)
    }

    /// The key, filled up with zeroes.
    pub(super) const fn key(&self) -> &[u8; KEY_MAX] {
        &self.key
    }

    /// The hash of `input`; of [`INPUT_MAX`] bytes of it, if it is longer.
    #[must_use]
    pub fn hash(&self, input: &[u8]) -> u32 {
        self.bytes.iter().zip(input).fold(0, |hash, (table, byte)| hash ^ sum(table, *byte))
    }

    /// What `bytes` add to the hash where they are the input from byte `at`.
    #[inline]
    pub(super) fn part<const N: usize>(&self, at: usize, bytes: &[u8; N]) -> u32 {
        let tables = self.bytes.get(at..).and_then(<[_]>::first_chunk::<N>);
        let pairs = tables.into_iter().flatten().zip(bytes);
        pairs.fold(0, |hash, (table, byte)| hash ^ sum(table, *byte))
    }
}

/// The sums of the eight windows of 32 bits that begin in the first byte of `key`, of 40 bits.
fn sums(mut key: u64) -> Table {
    let mut table = [0; 256];
    let mut known: usize = 1;
    // A bit of the byte at a time, the last first: the sums so far, each with its window added.
    for _ in 0..8 {
        key >>= 1;
        let window = u32::try_from(key & 0xffff_ffff).unwrap_or(0);
        let (sums, new) = table.split_at_mut_checked(known).unwrap_or_default();
        new.iter_mut().zip(sums).for_each(|(new, sum)| *new = *sum ^ window);
        known = known.saturating_mul(2);
    }
    table
}

#[inline]
fn sum(table: &Table, byte: u8) -> u32 {
    table.get(usize::from(byte)).copied().unwrap_or(0)
}

/// The key of the published verification suite for receive-side scaling.
#[cfg(test)]
pub(crate) const PUBLISHED_KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

#[cfg(test)]
mod tests {
    use super::PUBLISHED_KEY as KEY;
    use super::*;
    use core::net::{Ipv4Addr, Ipv6Addr};
    use std::vec::Vec;

    fn octets(address: &str) -> Vec<u8> {
        match address.parse::<Ipv4Addr>() {
            Ok(v4) => v4.octets().to_vec(),
            Err(_) => address.parse::<Ipv6Addr>().unwrap().octets().to_vec(),
        }
    }

    #[test]
    fn the_published_vectors_are_met() {
        let vectors = [
            ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323e_8fc2, 0x51cc_c178),
            ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xd718_262a, 0xc626_b0ea),
            ("24.19.198.95", 12898, "12.22.207.184", 38024, 0xd2d0_a5de, 0x5c2b_394a),
            ("38.27.205.30", 48228, "209.142.163.6", 2217, 0x8298_9176, 0xafc7_327f),
            ("153.39.163.191", 44251, "202.188.127.2", 1303, 0x5d18_09c5, 0x10e8_28a2),
            ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x2cc1_8cd5, 0x4020_7d3d),
            ("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739, 0x0f0c_461c, 0xdde5_1bbf),
            (
                "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
                44251,
                "fe80::200:f8ff:fe21:67cf",
                38024,
                0x4b61_e985_u32,
                0x02d1_feef_u32,
            ),
        ];
        let toeplitz = Toeplitz::new(&KEY).unwrap();
        for (source, from, destination, to, addresses, with_ports) in vectors {
            let mut input = [octets(source), octets(destination)].concat();
            assert_eq!(toeplitz.hash(&input), addresses, "{source}");
            input.extend(u16::to_be_bytes(from));
            input.extend(u16::to_be_bytes(to));
            assert_eq!(toeplitz.hash(&input), with_ports, "{source}");
        }
    }

    #[test]
    fn a_hash_is_the_sum_of_its_parts() {
        let toeplitz = Toeplitz::new(&KEY).unwrap();
        let input: [u8; 12] = core::array::from_fn(|at| at as u8 * 21 + 1);
        let (addresses, ports) = (*input.first_chunk::<8>().unwrap(), *input.last_chunk().unwrap());
        let parts = toeplitz.part(0, &addresses) ^ toeplitz.part::<4>(8, &ports);
        assert_eq!(toeplitz.hash(&input), parts);
    }

    #[test]
    fn a_short_key_is_followed_by_zeroes_and_a_long_one_refused() {
        let mut padded = [0; 40];
        padded[..7].copy_from_slice(&KEY[..7]);
        assert_eq!(Toeplitz::new(&KEY[..7]), Toeplitz::new(&padded));
        assert_eq!(Toeplitz::new(&[]), Some(Toeplitz::ZERO));
        assert_eq!(Toeplitz::new(&[0; 41]), None);
    }

    #[test]
    fn input_beyond_the_key_adds_nothing() {
        let toeplitz = Toeplitz::new(&KEY).unwrap();
        assert_eq!(toeplitz.hash(&[0xff; 50]), toeplitz.hash(&[0xff; INPUT_MAX]));
    }
}
