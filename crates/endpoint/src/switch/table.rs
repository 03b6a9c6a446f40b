//! Which address is behind which port: bounded, aged, read without a lock.
//!
//! ```text
//!   hash(address, secret)      -> a bucket of 4 entries
//!   entry = address | port     one word: found or not, never half        seen: when it last sent
//!   full of given addresses?   -> the entry that each port has to itself
//! ```
//!
//! A guest decides what addresses it sends from, so the table defends itself: the hash is keyed,
//! a port has room for so many addresses, nothing that is alive is pushed out, and an address that
//! was given to a port (its NIC's own) is that port's for ever. What is not in the table is
//! flooded, which costs time and loses nothing.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::PORTS_MAX;

/// A MAC address as the low 48 bits of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mac(u64);

impl Mac {
    pub(super) fn new(bytes: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = bytes;
        Self(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }

    /// To more than one station; such an address is nobody's own.
    pub(super) fn is_group(self) -> bool {
        self.0 >> 40 & 1 == 1
    }
}

/// A port of the switch, by number.
pub(super) type PortNumber = u16;

/// An address lives this long without being sent from, in seconds.
const AGE_MAX: u32 = 300;
/// Buckets of the table.
const BUCKETS: usize = 1024;
/// Entries of a bucket.
const WAYS: usize = 4;
/// Addresses that one port may have.
pub(super) const PORT_MAX: u16 = 256;
/// `seen` of an address that does not age.
const PINNED: u32 = u32::MAX;

#[derive(Default)]
struct Entry {
    /// The address, and above it the port counted from 1; 0 when free.
    word: AtomicU64,
    /// The second in which it was last sent from.
    seen: AtomicU32,
}

impl Entry {
    fn is_alive(&self, now: u32) -> bool {
        let seen = self.seen.load(Ordering::Relaxed);
        self.word.load(Ordering::Relaxed) != 0
            && (seen == PINNED || now.saturating_sub(seen) <= AGE_MAX)
    }
}

/// What the table knows of an address that a frame came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// It is behind the port the frame came in at.
    Known,
    /// It is new there, and may be learned.
    New,
    /// It was given to another port: whoever sends from it is not who it says.
    Anothers,
}

pub(super) struct Table {
    buckets: Box<[[Entry; WAYS]]>,
    /// By port: the address that was given to it, if its bucket had no room for one more of such.
    apart: Box<[Entry]>,
    /// How many there are.
    apart_count: AtomicU32,
    /// What makes a bucket of an address; no guest knows it.
    secret: [u64; 2],
    /// Held by whoever changes what is behind which port.
    writer: Mutex<()>,
}

impl Table {
    pub(super) fn new() -> Self {
        let buckets = (0..BUCKETS).map(|_| <[Entry; WAYS]>::default()).collect();
        let apart = (0..PORTS_MAX).map(|_| Entry::default()).collect();
        let random = RandomState::new();
        let secret = [random.hash_one(0), random.hash_one(1) | 1];
        Self { buckets, apart, apart_count: AtomicU32::new(0), secret, writer: Mutex::new(()) }
    }

    /// Twice a frame: a multiplication by a secret, whose halves are folded, does.
    #[inline]
    fn bucket(&self, mac: Mac) -> &[Entry] {
        let [blind, factor] = self.secret;
        let product = u128::from(mac.0 ^ blind).wrapping_mul(u128::from(factor));
        let folded = (product ^ product >> 64) & BUCKETS_MASK;
        let hash = usize::try_from(folded).unwrap_or(0);
        self.buckets.get(hash).map_or(&[], |bucket| bucket.as_slice())
    }

    fn find(&self, mac: Mac) -> Option<(&Entry, PortNumber)> {
        let found = find_in(self.bucket(mac), mac);
        if found.is_none() && self.apart_count.load(Ordering::Relaxed) > 0 {
            return find_in(&self.apart, mac);
        }
        found
    }

    /// The port that an address is behind, if that is known and not too long ago.
    #[inline]
    pub(super) fn port_of(&self, mac: Mac, now: u32) -> Option<PortNumber> {
        self.find(mac).filter(|(entry, _)| entry.is_alive(now)).map(|(_, port)| port)
    }

    /// A frame from `mac` came in at `port`.
    #[inline]
    pub(super) fn source(&self, mac: Mac, port: PortNumber, now: u32) -> Source {
        let Some((entry, at)) = self.find(mac) else { return Source::New };
        let seen = entry.seen.load(Ordering::Relaxed);
        if at != port {
            return if seen == PINNED { Source::Anothers } else { Source::New };
        }
        // Written once a second at most: the line stays shared. Not if the address is being given
        // away at this moment: that is for good.
        if seen != PINNED && seen != now {
            let relaxed = Ordering::Relaxed;
            let (Ok(_) | Err(_)) = entry.seen.compare_exchange(seen, now, relaxed, relaxed);
        }
        Source::Known
    }

    /// Learns an address that is new at `port`, or has moved there. It counts the port's
    /// addresses: not for every frame.
    #[cold]
    pub(super) fn learn(&self, mac: Mac, port: PortNumber, now: u32) {
        let _one = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if mac.is_group() || mac.0 == 0 || self.count(port, now) >= PORT_MAX {
            return;
        }
        let known = self.find(mac).map(|(entry, _)| entry);
        let free = || self.bucket(mac).iter().find(|entry| !entry.is_alive(now));
        if let Some(entry) = known.or_else(free)
            && entry.seen.load(Ordering::Relaxed) != PINNED
        {
            entry.seen.store(now, Ordering::Relaxed);
            entry.word.store(word(mac, port), Ordering::Relaxed);
        }
    }

    /// `mac` is the address that `port`'s NIC was given. Whoever had learned it elsewhere loses
    /// it; false when it was given to another port already.
    pub(super) fn give(&self, mac: Mac, port: PortNumber) -> bool {
        let _one = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let is_given = |entry: &Entry| entry.seen.load(Ordering::Relaxed) == PINNED;
        let known = self.find(mac);
        if known.is_some_and(|(entry, at)| is_given(entry) && at != port) {
            return false;
        }
        let known = known.map(|(entry, _)| entry);
        let room = || self.bucket(mac).iter().find(|entry| !is_given(entry));
        let apart = || {
            let own = self.apart.get(usize::from(port))?;
            let more = u32::from(own.word.load(Ordering::Relaxed) == 0);
            self.apart_count.fetch_add(more, Ordering::Relaxed);
            Some(own)
        };
        let Some(entry) = known.or_else(room).or_else(apart) else { return false };
        entry.word.store(word(mac, port), Ordering::Relaxed);
        entry.seen.store(PINNED, Ordering::Relaxed);
        true
    }

    /// Nothing is behind `port` any more.
    pub(super) fn forget(&self, port: PortNumber) {
        let _one = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in self.buckets.iter().flatten().chain(&self.apart) {
            if behind(entry) == Some(port) {
                entry.word.store(0, Ordering::Relaxed);
                entry.seen.store(0, Ordering::Relaxed);
            }
        }
        let apart = self.apart.iter().filter(|entry| behind(entry).is_some()).count();
        self.apart_count.store(u32::try_from(apart).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// How many living addresses a port has learned.
    fn count(&self, port: PortNumber, now: u32) -> u16 {
        let all = self.buckets.iter().flatten();
        let count = all.filter(|entry| behind(entry) == Some(port) && entry.is_alive(now)).count();
        u16::try_from(count).unwrap_or(u16::MAX)
    }
}

const BUCKETS_MASK: u128 = 1023;
const _: () = assert!(BUCKETS == 1024, "the mask is of the buckets");
const ADDRESS: u64 = (1 << 48) - 1;

fn word(mac: Mac, port: PortNumber) -> u64 {
    mac.0 | u64::from(port.saturating_add(1)) << 48
}

fn find_in(entries: &[Entry], mac: Mac) -> Option<(&Entry, PortNumber)> {
    entries.iter().find_map(|entry| {
        let word = entry.word.load(Ordering::Relaxed);
        let port = u16::try_from(word >> 48).unwrap_or(0).checked_sub(1)?;
        (word & ADDRESS == mac.0).then_some((entry, port))
    })
}

fn behind(entry: &Entry) -> Option<PortNumber> {
    u16::try_from(entry.word.load(Ordering::Relaxed) >> 48).ok()?.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u16) -> Mac {
        let [a, b] = last.to_be_bytes();
        Mac::new([2, 0, 0, 0, a, b])
    }

    #[test]
    fn an_address_is_found_where_it_last_sent_until_it_ages() {
        let table = Table::new();
        assert_eq!(table.port_of(mac(1), 0), None);
        assert_eq!(table.source(mac(1), 7, 10), Source::New);
        table.learn(mac(1), 7, 10);
        assert_eq!(table.source(mac(1), 7, 10), Source::Known);
        assert_eq!(table.port_of(mac(1), 10), Some(7));
        assert_eq!(table.source(mac(1), 8, 20), Source::New, "it has moved");
        table.learn(mac(1), 8, 20);
        assert_eq!(table.port_of(mac(1), 320), Some(8));
        assert_eq!(table.port_of(mac(1), 321), None);
        assert_eq!(table.source(mac(1), 8, 400), Source::Known);
        assert_eq!(table.port_of(mac(1), 401), Some(8));
        table.forget(8);
        assert_eq!(table.port_of(mac(1), 401), None);
    }

    #[test]
    fn group_addresses_are_nobodys() {
        let table = Table::new();
        let group = Mac::new([0x33, 0x33, 0, 0, 0, 1]);
        table.learn(group, 1, 0);
        table.learn(Mac::new([0; 6]), 1, 0);
        assert_eq!(table.port_of(group, 0), None);
        assert_eq!(table.port_of(Mac::new([0; 6]), 0), None);
    }

    #[test]
    fn an_address_that_was_given_cannot_be_taken_and_does_not_age() {
        let table = Table::new();
        table.learn(mac(1), 2, 0);
        assert!(table.give(mac(1), 1));
        assert_eq!(table.source(mac(1), 2, 5), Source::Anothers);
        table.learn(mac(1), 2, 5);
        assert_eq!(table.source(mac(1), 1, 5), Source::Known);
        assert_eq!(table.port_of(mac(1), 4_000_000), Some(1));
        assert!(!table.give(mac(1), 2));
        table.forget(1);
        assert!(table.give(mac(1), 2));
    }

    #[test]
    fn every_port_gets_its_own_address_though_all_fall_into_one_bucket() {
        let table = Table::new();
        let bucket = table.bucket(mac(0)).as_ptr();
        let all = (0..u32::MAX).map(|last| {
            let [a, b, c, d] = last.to_be_bytes();
            Mac::new([2, 0, a, b, c, d])
        });
        let meeting = all.filter(|mac| table.bucket(*mac).as_ptr() == bucket);
        let macs: Vec<Mac> = meeting.take(PORTS_MAX + 1).collect();
        let one_more = macs[PORTS_MAX];
        table.learn(one_more, 9, 0);
        for (port, mac) in (0..).zip(&macs[..PORTS_MAX]) {
            assert!(table.give(*mac, port), "port {port}");
        }
        for (port, mac) in (0..).zip(&macs[..PORTS_MAX]) {
            assert_eq!(table.port_of(*mac, 4_000_000), Some(port));
            assert_eq!(table.source(*mac, port, 5), Source::Known);
            assert_eq!(table.source(*mac, port + 1, 5), Source::Anothers);
            table.learn(*mac, port + 1, 5);
            assert!(!table.give(*mac, port + 1));
            assert!(table.give(*mac, port), "it has it already");
        }
        assert_eq!(table.source(one_more, 9, 5), Source::New, "no room, and nobody's");
        (0..).zip(&macs).for_each(|(port, _)| table.forget(port));
        assert!(macs.iter().all(|mac| table.port_of(*mac, 0).is_none()));
        assert_eq!(table.apart_count.load(Ordering::Relaxed), 0);
        assert!(table.give(one_more, 0));
    }

    #[test]
    fn a_flood_of_addresses_fills_one_ports_share_and_pushes_nobody_out() {
        let table = Table::new();
        for last in 0..100 {
            table.learn(mac(last), 1, 0);
        }
        let known =
            |port| (0..100).filter(|last| table.port_of(mac(*last), 1) == Some(port)).count();
        let before = known(1);
        for last in 1000..3000 {
            table.learn(mac(last), 2, 1);
        }
        assert_eq!(known(1), before);
        assert_eq!(table.count(2, 1), PORT_MAX);
    }

    #[test]
    fn an_address_is_given_for_good_though_another_sends_from_it_at_that_moment() {
        let table = Table::new();
        let ends = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut now = 0;
                while !ends.load(Ordering::Relaxed) {
                    now += 1;
                    table.source(mac(1), 1, now);
                }
            });
            for round in 0..2000 {
                table.learn(mac(1), 1, 0);
                assert!(table.give(mac(1), 2));
                std::thread::yield_now();
                let source = table.source(mac(1), 1, 0);
                if source != Source::Anothers {
                    ends.store(true, Ordering::Relaxed);
                    panic!("{source:?} in round {round}");
                }
                table.forget(2);
            }
            ends.store(true, Ordering::Relaxed);
        });
    }
}
