//! Which pair's receive queue a frame goes to: as the driver's table says, or where its flow was
//! last sent from (VIRTIO 1.4 §5.1.9.5.5 to .7).
//!
//! ```text
//!   RSS_CONFIG    hash & mask -> table -> pair           no hash -> the unclassified pair
//!   VQ_PAIRS_SET  flow -> slot -> the pair it was sent from
//!                      -> nothing there: spread over all pairs
//! ```
//!
//! Pairs are counted from 0. A table is judged whole when its command comes; steering a frame then
//! needs no further look. Commands are little-endian; what follows the last field is ignored.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use vionet_spec::hash::{KEY_MAX, REPORT_NONE, TABLE_MAX, TUNNELS_ALL, TYPES_ALL};

use crate::hash::headers::{self, Addresses, Ports};
use crate::hash::{FlowHash, Hashed};

/// Why a command that configures hashes or steering is refused. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ConfigFault {
    /// The data ends before its last field.
    Short,
    /// A hash type is enabled that is not supported.
    HashType,
    /// A tunnel type is enabled that is not supported.
    TunnelType,
    /// A reserved field is not 0.
    Reserved,
    /// The table's length is not a power of 2.
    TableLength,
    /// The table is longer than the device's.
    TableTooLong,
    /// An entry of the table is not an enabled queue.
    TableQueue,
    /// The queue for unclassified packets is not an enabled one.
    UnclassifiedQueue,
    /// The number of transmit queues is 0, or more than are enabled.
    TransmitQueues,
    /// The key is longer than the device's.
    KeyTooLong,
    /// Hash types are enabled, and there is no key.
    KeyMissing,
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "data ends before its last field",
            Self::HashType => "hash type that is not supported",
            Self::TunnelType => "tunnel type that is not supported",
            Self::Reserved => "reserved field is not 0",
            Self::TableLength => "indirection table's length is not a power of 2",
            Self::TableTooLong => "indirection table is longer than the device's",
            Self::TableQueue => "indirection table names a queue that is not enabled",
            Self::UnclassifiedQueue => "queue for unclassified packets is not enabled",
            Self::TransmitQueues => "number of transmit queues is 0 or more than are enabled",
            Self::KeyTooLong => "hash key is longer than the device's",
            Self::KeyMissing => "hash types without a key",
        })
    }
}

impl core::error::Error for ConfigFault {}

/// The data of RSS_CONFIG, judged (§5.1.9.5.7).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RssConfig {
    /// How frames are hashed; tunnels from outside, until told (NET-RSS-01).
    pub hash: FlowHash,
    /// Where frames go by their hash.
    pub table: IndirectionTable,
    /// The driver sends on this many transmit queues, the first ones (NET-RSS-06).
    pub transmit_pairs: u16,
}

impl RssConfig {
    /// Reads the command's data, of a device with `pairs` enabled pairs.
    ///
    /// # Errors
    /// See [`ConfigFault`]; all are the driver's, and answered with ERR (NET-RSS-08 to -11).
    pub fn decode(data: &[u8], pairs: u16) -> Result<Self, ConfigFault> {
        let mut data = Fields(data);
        let types = data.hash_types()?;
        let table = IndirectionTable::decode(&mut data, pairs)?;
        let transmit_pairs = data.le16()?;
        if transmit_pairs == 0 || transmit_pairs > pairs {
            return Err(ConfigFault::TransmitQueues);
        }
        Ok(Self { hash: data.flow_hash(types)?, table, transmit_pairs })
    }
}

/// Reads the data of HASH_CONFIG: how frames are hashed that are steered automatically
/// (§5.1.9.5.6.4).
///
/// # Errors
/// See [`ConfigFault`]; all are the driver's, and answered with ERR (NET-CTRL-HASH-03, -04).
pub fn decode_hash_config(data: &[u8]) -> Result<FlowHash, ConfigFault> {
    let mut data = Fields(data);
    let types = data.hash_types()?;
    if data.array()? != [0; 8] {
        return Err(ConfigFault::Reserved);
    }
    data.flow_hash(types)
}

/// Reads the data of HASH_TUNNEL_SET: the tunnels whose inner headers are hashed (§5.1.9.4.4), for
/// [`FlowHash::with_tunnels`].
///
/// # Errors
/// See [`ConfigFault`]; all are the driver's, and answered with ERR (NET-IHH-02).
pub fn decode_tunnel_types(data: &[u8]) -> Result<u32, ConfigFault> {
    let types = Fields(data).le32()?;
    if types & !TUNNELS_ALL == 0 { Ok(types) } else { Err(ConfigFault::TunnelType) }
}

/// The data of a command, from the next field on.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], ConfigFault> {
        let (field, rest) = self.0.split_first_chunk().ok_or(ConfigFault::Short)?;
        self.0 = rest;
        Ok(*field)
    }

    fn le16(&mut self) -> Result<u16, ConfigFault> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn le32(&mut self) -> Result<u32, ConfigFault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// NET-RSS-11, NET-CTRL-HASH-04.
    fn hash_types(&mut self) -> Result<u32, ConfigFault> {
        let types = self.le32()?;
        if types & !TYPES_ALL == 0 { Ok(types) } else { Err(ConfigFault::HashType) }
    }

    /// The key, and with it a hash of `types`.
    ///
    /// What a hash without a key is, the standard does not say; nobody can want one.
    fn flow_hash(&mut self, types: u32) -> Result<FlowHash, ConfigFault> {
        let [len] = self.array()?;
        let len = usize::from(len);
        if len > KEY_MAX {
            return Err(ConfigFault::KeyTooLong);
        }
        if len == 0 && types != 0 {
            return Err(ConfigFault::KeyMissing);
        }
        let key = self.0.get(..len).ok_or(ConfigFault::Short)?;
        FlowHash::new(key, types).ok_or(ConfigFault::KeyTooLong)
    }
}

/// Where frames go by their hash (§5.1.9.5.7).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndirectionTable {
    /// Pairs, by what the mask leaves of a hash; those beyond the mask are never looked at.
    pairs: [u16; TABLE_MAX],
    mask: u16,
    unclassified: u16,
}

impl IndirectionTable {
    fn decode(data: &mut Fields<'_>, pairs: u16) -> Result<Self, ConfigFault> {
        let mask = data.le16()?;
        let len = usize::from(mask).saturating_add(1);
        if !len.is_power_of_two() {
            return Err(ConfigFault::TableLength); // NET-RSS-09
        }
        let mut table = Self { pairs: [0; TABLE_MAX], mask, unclassified: data.le16()? };
        if table.unclassified >= pairs {
            return Err(ConfigFault::UnclassifiedQueue); // NET-RSS-08
        }
        let entries = table.pairs.get_mut(..len).ok_or(ConfigFault::TableTooLong)?; // NET-RSS-10
        for entry in entries {
            // NET-RSS-05, -08: bit 15 is reserved, and no pair has it.
            *entry = data.le16()?;
            if *entry >= pairs {
                return Err(ConfigFault::TableQueue);
            }
        }
        Ok(table)
    }

    /// Pairs, by what the mask leaves of a hash: as many as there are numbers up to the mask.
    #[must_use]
    pub fn entries(&self) -> &[u16] {
        self.pairs.get(..=usize::from(self.mask)).unwrap_or(&self.pairs)
    }

    /// Where frames go that have no hash.
    #[must_use]
    pub const fn unclassified(&self) -> u16 {
        self.unclassified
    }

    /// How many pairs, from the first on, frames may go to.
    #[must_use]
    pub fn pairs_used(&self) -> u16 {
        let last = self.entries().iter().fold(self.unclassified, |most, pair| most.max(*pair));
        last.saturating_add(1)
    }

    /// The pair whose receive queue the frame of this hash goes to (NET-RSS-02, -03). Under reset
    /// it is the end of the frame (NET-RSS-04).
    #[inline]
    #[must_use]
    pub fn queue_of(&self, hashed: Hashed) -> u16 {
        let [low, high, ..] = hashed.value.to_le_bytes();
        let at = usize::from(u16::from_le_bytes([low, high]) & self.mask);
        let entry = self.pairs.get(at).copied().filter(|_| hashed.report != REPORT_NONE);
        entry.unwrap_or(self.unclassified)
    }
}

/// How many flows are known at a time, at most.
const SLOTS: usize = 4096;
/// Digits of pi and of the golden ratio: numbers without a pattern.
const DIGITS: [u64; 2] = [0x243f_6a88_85a3_08d3, 0x9e37_79b9_7f4a_7c15];

/// Automatic steering: a flow is received on the pair that it was last sent on (§5.1.9.5.6;
/// NET-CTRL-MQ-02, -03).
///
/// One of these is shared by the workers of all pairs. A slot is a word, loaded and stored whole,
/// and needs no order with any other: a frame that comes beside the first of its flow may go to
/// another pair. A flow drives out the one in its slot, and two that look the same (one of 2^28
/// pairs of flows, if not meant to) go the same way: what a wrong slot costs is the wrong pair of
/// the same driver.
#[derive(Debug)]
pub struct AutoSteer {
    /// By the low bits of the flow's number: its high half, and below it the pair counted from 1.
    /// 0 when free.
    slots: [AtomicU32; SLOTS],
    /// Nobody who chooses flows knows it.
    secret: u64,
}

impl AutoSteer {
    /// Knows no flow yet. `secret` should be random, lest somebody make many flows look the same.
    #[must_use]
    pub const fn new(secret: u64) -> Self {
        Self { slots: [const { AtomicU32::new(0) }; SLOTS], secret }
    }

    /// The driver has sent the frame that begins with `head` on `pair`.
    #[inline]
    pub fn sent(&self, head: &[u8], pair: u16) {
        let Some(flow) = self.flow(head) else { return };
        let Some(number) = pair.checked_add(1) else { return };
        let word = flow & 0xffff_0000 | u32::from(number);
        // Nearly always it is there: other workers' copies of the line stay good.
        if let Some(slot) = self.slot(flow).filter(|slot| slot.load(Ordering::Relaxed) != word) {
            slot.store(word, Ordering::Relaxed);
        }
    }

    /// The pair whose receive queue the frame that begins with `head` goes to: of the first `pairs`
    /// (NET-CTRL-MQ-06) one that `is_ready`, its queue not under reset (NET-CTRL-MQ-07). `None` if
    /// none is, or `pairs` is 0: the frame is dropped (NET-CTRL-MQ-08).
    #[inline]
    #[must_use]
    pub fn queue_of(&self, head: &[u8], pairs: u16, is_ready: impl Fn(u16) -> bool) -> Option<u16> {
        let wanted = match self.flow(head) {
            Some(flow) => self.known(flow, pairs).unwrap_or_else(|| spread(flow, pairs)),
            None => 0,
        };
        (wanted..pairs).chain(0..wanted).find(|pair| is_ready(*pair))
    }

    #[inline]
    fn slot(&self, flow: u32) -> Option<&AtomicU32> {
        self.slots.get(usize::try_from(flow).ok()? % SLOTS)
    }

    #[inline]
    fn known(&self, flow: u32, pairs: u16) -> Option<u16> {
        let word = self.slot(flow)?.load(Ordering::Relaxed);
        let pair = u16::try_from(word & 0xffff).ok()?.checked_sub(1)?;
        (word >> 16 == flow >> 16 && pair < pairs).then_some(pair)
    }

    /// A number that the frames of a flow have in common, those that go back included. `None` for
    /// what is no IP packet.
    #[inline]
    fn flow(&self, head: &[u8]) -> Option<u32> {
        let packet = headers::ethernet(head)?;
        let &[p0, p1, q0, q1] = match packet.ports {
            Ports::Tcp(ports) | Ports::Udp(ports) => ports,
            Ports::None => &[0; 4],
        };
        let (from, to) = (u16::from_be_bytes([p0, p1]), u16::from_be_bytes([q0, q1]));
        let (source, destination) = match packet.addresses {
            Addresses::V4(source, destination) => {
                let halves = |address: &[u8; 4]| [0, u64::from(u32::from_be_bytes(*address))];
                (halves(source), halves(destination))
            }
            Addresses::V6(source, destination) => (halves(source), halves(destination)),
        };
        // Each end by itself, and a sum, in which the two have no order.
        let sum = self.end(source, from).wrapping_add(self.end(destination, to));
        u32::try_from(folded(sum, DIGITS[1]) >> 32).ok()
    }

    /// A number for one end of a flow. The port meets the first bits of an address, which are of no
    /// use to tell addresses apart.
    #[inline]
    fn end(&self, [high, low]: [u64; 2], port: u16) -> u64 {
        folded(low ^ self.secret, high ^ u64::from(port) << 48 ^ DIGITS[0])
    }
}

fn halves(address: &[u8; 16]) -> [u64; 2] {
    match address.as_chunks() {
        ([high, low], _) => [u64::from_be_bytes(*high), u64::from_be_bytes(*low)],
        _ => [0; 2],
    }
}

/// The halves of the product, the one over the other: every bit of both factors counts.
#[inline]
fn folded(a: u64, b: u64) -> u64 {
    let (low, high) = a.carrying_mul(b, 0);
    low ^ high
}

/// A pair for a flow that none is known for (NET-CTRL-MQ-04): as many flows for each.
#[inline]
fn spread(flow: u32, pairs: u16) -> u16 {
    u16::try_from(u64::from(flow).wrapping_mul(u64::from(pairs)) >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::vec;
    use std::vec::Vec;
    use vionet_spec::hash::{REPORT_TCPV4, TYPE_IPV4, TYPE_TCPV4};

    const KEY: [u8; 40] = [0x5a; 40];

    /// The parts of RSS_CONFIG's data that a test breaks.
    struct Command {
        types: u32,
        mask: u16,
        unclassified: u16,
        table: Vec<u16>,
        transmit: u16,
        key_len: u8,
    }

    impl Default for Command {
        fn default() -> Self {
            let table = vec![0, 1, 2, 3, 3, 2, 1, 0];
            let types = TYPE_IPV4 | TYPE_TCPV4;
            Self { types, mask: 7, unclassified: 2, table, transmit: 4, key_len: 40 }
        }
    }

    impl Command {
        fn data(&self) -> Vec<u8> {
            let mut data = self.types.to_le_bytes().to_vec();
            let table = [&[self.mask, self.unclassified], &self.table[..], &[self.transmit]];
            data.extend(table.concat().iter().flat_map(|field| field.to_le_bytes()));
            data.push(self.key_len);
            data.extend(KEY);
            data
        }

        fn decode(&self) -> Result<RssConfig, ConfigFault> {
            RssConfig::decode(&self.data(), 4)
        }
    }

    fn hashed(value: u32) -> Hashed {
        Hashed { value, report: REPORT_TCPV4 }
    }

    #[test]
    fn frames_go_where_the_table_says() {
        let config = Command::default().decode().unwrap();
        assert_eq!(config.transmit_pairs, 4);
        assert_eq!(config.hash, FlowHash::new(&KEY, TYPE_IPV4 | TYPE_TCPV4).unwrap());
        let queues: Vec<u16> =
            (0..16).map(|low| config.table.queue_of(hashed(0xabcd_ef00 | low))).collect();
        assert_eq!(queues, [0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3, 3, 2, 1, 0]);
        assert_eq!(config.table.queue_of(Hashed::NONE), 2);
    }

    #[test]
    fn tables_of_one_entry_and_of_the_most_are_taken() {
        let one = Command { mask: 0, table: vec![3], ..Command::default() }.decode().unwrap();
        assert_eq!(one.table.queue_of(hashed(u32::MAX)), 3);
        let table = (0..128).map(|at| at % 4).collect();
        let most = Command { mask: 127, table, ..Command::default() }.decode().unwrap();
        assert_eq!(most.table.queue_of(hashed(0xffff_ffff)), 3);
        assert_eq!(most.table.queue_of(hashed(0x80)), 0);
    }

    #[test]
    fn each_wrong_field_is_refused_by_its_name() {
        let good = Command::default;
        let cases = [
            (Command { types: 1 << 9, ..good() }, ConfigFault::HashType),
            (Command { types: 1 << 31 | 1, ..good() }, ConfigFault::HashType),
            (Command { mask: 6, table: vec![0; 7], ..good() }, ConfigFault::TableLength),
            (Command { mask: 255, table: vec![0; 256], ..good() }, ConfigFault::TableTooLong),
            (Command { mask: 0xffff, ..good() }, ConfigFault::TableTooLong),
            (Command { unclassified: 4, ..good() }, ConfigFault::UnclassifiedQueue),
            (Command { unclassified: 0x8000, ..good() }, ConfigFault::UnclassifiedQueue),
            (Command { mask: 1, table: vec![0, 4], ..good() }, ConfigFault::TableQueue),
            (Command { mask: 1, table: vec![0x8001, 0], ..good() }, ConfigFault::TableQueue),
            (Command { transmit: 0, ..good() }, ConfigFault::TransmitQueues),
            (Command { transmit: 5, ..good() }, ConfigFault::TransmitQueues),
            (Command { key_len: 41, ..good() }, ConfigFault::KeyTooLong),
            (Command { key_len: 255, ..good() }, ConfigFault::KeyTooLong),
            (Command { key_len: 0, ..good() }, ConfigFault::KeyMissing),
        ];
        for (at, (command, fault)) in cases.into_iter().enumerate() {
            assert_eq!(command.decode(), Err(fault), "case {at}");
        }
        assert_eq!(Command { types: 0, key_len: 0, ..good() }.decode().map(|_| ()), Ok(()));
    }

    #[test]
    fn data_cut_anywhere_is_short_and_more_than_enough_is_enough() {
        let mut data = Command::default().data();
        for len in 0..data.len() {
            assert_eq!(RssConfig::decode(&data[..len], 4), Err(ConfigFault::Short), "{len} bytes");
        }
        let whole = RssConfig::decode(&data, 4);
        data.push(0xff);
        assert_eq!(RssConfig::decode(&data, 4), whole);
        assert!(whole.is_ok());
    }

    #[test]
    fn hash_config_has_the_shape_of_rss_config() {
        let data = |reserved: [u8; 8], types: u32, key_len: u8| {
            [&types.to_le_bytes()[..], &reserved, &[key_len], &KEY].concat()
        };
        let good = data([0; 8], TYPE_TCPV4, 40);
        assert_eq!(decode_hash_config(&good).ok(), FlowHash::new(&KEY, TYPE_TCPV4));
        for len in 0..good.len() {
            assert_eq!(decode_hash_config(&good[..len]), Err(ConfigFault::Short), "{len} bytes");
        }
        for at in 0..8 {
            let mut reserved = [0; 8];
            reserved[at] = 1;
            let wrong = data(reserved, TYPE_TCPV4, 40);
            assert_eq!(decode_hash_config(&wrong), Err(ConfigFault::Reserved), "byte {at}");
        }
        assert_eq!(decode_hash_config(&data([0; 8], 0x200, 40)), Err(ConfigFault::HashType));
        assert_eq!(decode_hash_config(&data([0; 8], 1, 41)), Err(ConfigFault::KeyTooLong));
        assert_eq!(decode_hash_config(&data([0; 8], 1, 0)), Err(ConfigFault::KeyMissing));
    }

    #[test]
    fn tunnel_types_are_judged() {
        assert_eq!(decode_tunnel_types(&[0xff, 1, 0, 0]), Ok(TUNNELS_ALL));
        assert_eq!(decode_tunnel_types(&[0; 4]), Ok(0));
        assert_eq!(decode_tunnel_types(&[0, 2, 0, 0]), Err(ConfigFault::TunnelType));
        assert_eq!(decode_tunnel_types(&[0; 3]), Err(ConfigFault::Short));
    }

    fn udp4(source: [u8; 4], from: u16, destination: [u8; 4], to: u16) -> Vec<u8> {
        let fixed = [8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
        let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
        [&[2; 12][..], &fixed, &source, &destination, &ports, &[0, 8, 0, 0]].concat()
    }

    fn udp6(source: u128, from: u16, destination: u128, to: u16) -> Vec<u8> {
        let fixed = [0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 17, 64];
        let ips = [source.to_be_bytes(), destination.to_be_bytes()].concat();
        let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
        [&[2; 12][..], &fixed, &ips, &ports, &[0, 8, 0, 0]].concat()
    }

    const HOST: [u8; 4] = [10, 0, 0, 1];
    const GUEST: [u8; 4] = [10, 0, 0, 2];

    fn always(_: u16) -> bool {
        true
    }

    #[test]
    fn a_flow_comes_back_on_the_pair_it_was_sent_on() {
        let steer = Box::new(AutoSteer::new(7));
        let flows: Vec<_> = (0..8)
            .map(|pair: u16| {
                let v4 = (udp4(GUEST, 4000 + pair, HOST, 53), udp4(HOST, 53, GUEST, 4000 + pair));
                let v6 = (udp6(1, 4000 + pair, 2, 53), udp6(2, 53, 1, 4000 + pair));
                (pair, [v4, v6])
            })
            .collect();
        for (pair, frames) in &flows {
            frames.iter().for_each(|(there, _)| steer.sent(there, *pair));
        }
        for (pair, frames) in &flows {
            for (_, back) in frames {
                assert_eq!(steer.queue_of(back, 8, always), Some(*pair));
            }
        }
        // The last word counts.
        steer.sent(&flows[0].1[0].0, 5);
        assert_eq!(steer.queue_of(&flows[0].1[0].1, 8, always), Some(5));
    }

    #[test]
    fn a_pair_that_is_no_longer_enabled_gets_nothing() {
        let steer = Box::new(AutoSteer::new(7));
        let (there, back) = (udp4(GUEST, 4000, HOST, 53), udp4(HOST, 53, GUEST, 4000));
        steer.sent(&there, 6);
        assert_eq!(steer.queue_of(&back, 7, always), Some(6));
        for pairs in 1..=6 {
            assert!(steer.queue_of(&back, pairs, always).unwrap() < pairs);
        }
        assert_eq!(steer.queue_of(&back, 0, always), None);
        steer.sent(&there, u16::MAX);
        assert_eq!(steer.queue_of(&back, 7, always), Some(6), "no such pair");
    }

    #[test]
    fn a_pair_under_reset_gives_way_to_another() {
        let steer = Box::new(AutoSteer::new(7));
        let (there, back) = (udp4(GUEST, 4000, HOST, 53), udp4(HOST, 53, GUEST, 4000));
        steer.sent(&there, 2);
        assert_eq!(steer.queue_of(&back, 4, |pair| pair != 2), Some(3));
        assert_eq!(steer.queue_of(&back, 4, |pair| pair < 2), Some(0));
        assert_eq!(steer.queue_of(&back, 4, |_| false), None);
    }

    #[test]
    fn what_has_no_flow_goes_to_the_first_pair() {
        let steer = Box::new(AutoSteer::new(7));
        let arp = [&[0xff; 12][..], &[8, 6], &[0; 28]].concat();
        steer.sent(&arp, 3);
        assert_eq!(steer.queue_of(&arp, 4, always), Some(0));
        assert_eq!(steer.queue_of(&[], 4, always), Some(0));
    }

    #[test]
    fn unknown_flows_are_spread_evenly() {
        let steer = Box::new(AutoSteer::new(0));
        let v4 = |at: u16| udp4(HOST, 53, [10, 0, 1, at as u8], 4000 + at / 256);
        let v6 = |at: u16| udp6(0xfd00_u128 << 112 | u128::from(at % 61), 443, 9, at / 61);
        let frames = [(0..8192).map(v4).collect::<Vec<_>>(), (0..8192).map(v6).collect()];
        for (frames, pairs) in frames.iter().flat_map(|of| [(of, 2), (of, 8), (of, 13)]) {
            let mut counts = vec![0_u32; usize::from(pairs)];
            for frame in frames {
                counts[usize::from(steer.queue_of(frame, pairs, always).unwrap())] += 1;
            }
            let fair = 8192 / u32::from(pairs);
            assert!(counts.iter().all(|count| count.abs_diff(fair) < fair / 5), "{counts:?}");
        }
    }

    #[test]
    fn a_stranger_is_not_taken_for_the_flow_in_its_slot() {
        let steer = Box::new(AutoSteer::new(5));
        (0..20_000).for_each(|port| steer.sent(&udp4(GUEST, port, HOST, 443), 0));
        let stranger =
            |port: &u16| steer.queue_of(&udp4(HOST, 80, GUEST, *port), 8, always) == Some(0);
        // All slots say pair 0; an eighth of the strangers go there anyway.
        let count = (0..1000).filter(stranger).count();
        assert!(count < 200, "{count}");
    }

    #[test]
    fn a_thousand_flows_are_nearly_all_remembered() {
        let steer = Box::new(AutoSteer::new(3));
        let there = |port: u16| udp4(GUEST, port, HOST, 443);
        for port in 0..1000 {
            steer.sent(&there(port), port % 8);
        }
        let known = |port: &u16| {
            let flow = steer.flow(&there(*port)).unwrap();
            steer.known(flow, 8) == Some(port % 8)
        };
        let count = (0..1000).filter(known).count();
        // 1000 flows thrown into 4096 slots: 113 are driven out, give or take.
        assert!((840..=930).contains(&count), "{count}");
    }

    #[test]
    fn workers_share_the_table_without_a_lock() {
        let steer = AutoSteer::new(11);
        std::thread::scope(|scope| {
            for pair in 0..4 {
                let steer = &steer;
                scope.spawn(move || {
                    for port in 0..500 {
                        steer.sent(&udp4(GUEST, port, HOST, 443), pair);
                        let back = udp4(HOST, 443, GUEST, port);
                        assert!(steer.queue_of(&back, 4, always).unwrap() < 4);
                    }
                });
            }
        });
    }
}
