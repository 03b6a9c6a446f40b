//! An honest driver of a split ring (VIRTIO 1.4 §2.7), which notices what a device does wrong.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{Ordering, fence};

use vionet_queue::{Format, QueueSetup, RingFeatures};
use vionet_raw::{Descriptor, GuestAddr, SharedIndex, SharedRing, UsedElem};
use vionet_spec::ring::{
    AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, USED_F_NO_NOTIFY,
};

use crate::GuestRam;

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest address.
    pub at: u64,
    /// Bytes.
    pub len: u32,
    /// Whether it is the device that writes.
    pub writable: bool,
}

impl Buffer {
    /// A buffer for the device to read.
    #[must_use]
    pub const fn readable(at: u64, len: u32) -> Self {
        Self { at, len, writable: false }
    }

    /// A buffer for the device to write.
    #[must_use]
    pub const fn writable(at: u64, len: u32) -> Self {
        Self { at, len, writable: true }
    }
}

/// How the buffers of a chain are described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrangement {
    /// One descriptor of the queue each.
    Direct,
    /// The first so many with descriptors of the queue, the others with a table at `table`
    /// (SPL-18); its entries lie there in reverse when `reversed`.
    Indirect {
        /// Buffers before the table.
        direct: usize,
        /// Guest address of the table, aligned or not.
        table: u64,
        /// Entries run from the end of the table to its start, but for the first.
        reversed: bool,
    },
}

/// A used buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain.
    pub head: u16,
    /// Bytes written.
    pub len: u32,
}

struct Posted {
    slots: Vec<u16>,
    room: u32,
}

/// The driver's side of a split ring.
pub struct SplitDriver {
    ram: GuestRam,
    setup: QueueSetup,
    event_idx: bool,
    descriptors: SharedRing<Descriptor>,
    avail_flags: SharedIndex,
    avail_idx: SharedIndex,
    avail_ring: SharedRing<u16>,
    used_event: SharedIndex,
    used_flags: SharedIndex,
    used_idx: SharedIndex,
    used_ring: SharedRing<UsedElem>,
    avail_event: SharedIndex,
    free: Vec<u16>,
    posted: HashMap<u16, Posted>,
    /// Heads in the order made available, where they are used in it.
    in_order: Option<VecDeque<u16>>,
    /// Next available entry to write.
    next: u16,
    /// avail.idx as the device sees it.
    exposed: u16,
    /// Next used entry to read.
    seen: u16,
}

impl SplitDriver {
    /// Bytes that the ring of a queue of `size` takes, in whole pages.
    #[must_use]
    pub fn ring_bytes(size: u16) -> usize {
        let size = usize::from(size);
        (16 * size + 6 + 2 * size + 2 + 6 + 8 * size).next_multiple_of(4096)
    }

    /// A driver whose ring begins at `at`; `start` is the position of both indices.
    ///
    /// # Panics
    /// When there is no memory at `at`, or `size` is no power of two.
    #[must_use]
    pub fn new(ram: &GuestRam, at: u64, size: u16, event_idx: bool, start: u16) -> Self {
        let n = u64::from(size);
        let (driver, device) = (at + 16 * n, (at + 18 * n + 6).next_multiple_of(4));
        let space = ram.space();
        let index = |at: u64| space.index(GuestAddr(at)).expect("memory for an index");
        let driver_side = Self {
            ram: ram.clone(),
            setup: QueueSetup {
                size,
                descriptors: GuestAddr(at),
                driver: GuestAddr(driver),
                device: GuestAddr(device),
            },
            event_idx,
            descriptors: space.ring(GuestAddr(at), size).expect("memory for descriptors"),
            avail_flags: index(driver),
            avail_idx: index(driver + 2),
            avail_ring: space.ring(GuestAddr(driver + 4), size).expect("memory for heads"),
            used_event: index(driver + 4 + 2 * n),
            used_flags: index(device),
            used_idx: index(device + 2),
            used_ring: space.ring(GuestAddr(device + 4), size).expect("memory for used"),
            avail_event: index(device + 4 + 8 * n),
            free: (0..size).rev().collect(),
            posted: HashMap::new(),
            in_order: None,
            next: start,
            exposed: start,
            seen: start,
        };
        driver_side.avail_idx.store(start);
        driver_side.used_idx.store(start);
        driver_side.used_event.store(start);
        driver_side
    }

    /// The same with IN_ORDER agreed on: one used entry may stand for several chains (SPN-11).
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.in_order = Some(VecDeque::new());
        self
    }

    /// Where the ring is.
    #[must_use]
    pub fn setup(&self) -> QueueSetup {
        self.setup
    }

    /// What this driver has negotiated.
    #[must_use]
    pub fn features(&self) -> RingFeatures {
        let (event_idx, in_order) = (self.event_idx, self.in_order.is_some());
        RingFeatures { format: Format::Split, event_idx, indirect: true, in_order }
    }

    /// Descriptors that are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Chains that the device owes.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.posted.len()
    }

    /// Reorders the free descriptors, so that chains are scattered over the table.
    pub fn shuffle(&mut self, by: u64) {
        let mut random = crate::Random::new(by);
        for at in (1..self.free.len()).rev() {
            self.free.swap(at, random.below(at as u64 + 1) as usize);
        }
    }

    /// Describes a chain and puts its head into the available ring, not yet visible. `None` when
    /// descriptors are short.
    ///
    /// # Panics
    /// When a chain has no buffers, or its table no memory.
    pub fn post(&mut self, buffers: &[Buffer], arrangement: Arrangement) -> Option<u16> {
        assert!(!buffers.is_empty(), "a chain has a buffer at least");
        let (direct, rest) = match arrangement {
            Arrangement::Direct => (buffers, &[][..]),
            Arrangement::Indirect { direct, .. } => {
                buffers.split_at(direct.min(buffers.len().saturating_sub(1)))
            }
        };
        let count = direct.len() + usize::from(!rest.is_empty());
        let slots = self.free.split_off(self.free.len().checked_sub(count)?);
        for (position, slot) in slots.iter().enumerate() {
            let next = slots.get(position + 1).copied();
            let chained = if next.is_some() { DESC_F_NEXT } else { 0 };
            let descriptor = match direct.get(position) {
                Some(buffer) => Descriptor {
                    addr: buffer.at,
                    len: buffer.len,
                    flags: chained | write_flag(*buffer),
                    next: next.unwrap_or(0),
                },
                None => {
                    let len = 16 * rest.len() as u32;
                    let addr = self.write_table(rest, arrangement);
                    Descriptor { addr, len, flags: DESC_F_INDIRECT, next: 0 }
                }
            };
            self.descriptors.store(*slot, descriptor);
        }
        let head = slots[0];
        self.avail_ring.store(self.next, head);
        self.next = self.next.wrapping_add(1);
        let room = buffers.iter().filter(|buffer| buffer.writable).map(|buffer| buffer.len).sum();
        let before = self.posted.insert(head, Posted { slots, room });
        assert!(before.is_none(), "a free descriptor is no head");
        self.in_order.iter_mut().for_each(|order| order.push_back(head));
        Some(head)
    }

    fn write_table(&self, buffers: &[Buffer], arrangement: Arrangement) -> u64 {
        let Arrangement::Indirect { table, reversed, .. } = arrangement else {
            panic!("only an indirect arrangement has a table");
        };
        let count = buffers.len();
        let place = |position: usize| {
            if position == 0 || !reversed { position } else { count - position }
        };
        for (position, buffer) in buffers.iter().enumerate() {
            let last = position + 1 == count;
            let (chained, next) =
                if last { (0, 0) } else { (DESC_F_NEXT, place(position + 1) as u16) };
            let flags = chained | write_flag(*buffer);
            let at = table + 16 * place(position) as u64;
            self.ram.write_descriptor(at, buffer.at, buffer.len, flags, next);
        }
        table
    }

    /// Makes posted chains visible; says whether the device wants a kick for them.
    pub fn expose(&mut self) -> bool {
        let (old, new) = (self.exposed, self.next);
        self.avail_idx.store_release(new);
        self.exposed = new;
        fence(Ordering::SeqCst);
        if self.event_idx {
            // Within (event, event + step]: the distance from the event is at most the step.
            let past = new.wrapping_sub(self.avail_event.load());
            past >= 1 && past <= new.wrapping_sub(old)
        } else {
            old != new && self.used_flags.load() & USED_F_NO_NOTIFY == 0
        }
    }

    /// The chains that the device has used since the last time.
    ///
    /// # Panics
    /// When the device has used what it did not owe, or written more than there was room.
    pub fn collect(&mut self) -> Vec<Used> {
        let mut used = Vec::new();
        let end = self.used_idx.load_acquire();
        let distance = end.wrapping_sub(self.seen);
        assert!(usize::from(distance) <= self.posted.len(), "more used than owed");
        while self.seen != end {
            let UsedElem { id, len } = self.used_ring.load(self.seen);
            let head = u16::try_from(id).expect("a head is a descriptor's number");
            // Those before it have gone the same way, and have no entry.
            for passed in self.passed_before(head) {
                let posted = self.posted.remove(&passed).expect("the device used what it owed");
                self.free.extend(posted.slots.iter().rev());
                used.push(Used { head: passed, len: 0 });
                self.seen = self.seen.wrapping_add(1);
                assert_ne!(self.seen, end, "an entry stands for more than were used");
            }
            let posted = self.posted.remove(&head).expect("the device used what it owed");
            assert!(len <= posted.room, "used.len {len} is over the chain's {}", posted.room);
            self.free.extend(posted.slots.iter().rev());
            used.push(Used { head, len });
            self.seen = self.seen.wrapping_add(1);
        }
        used
    }

    /// In order: the chains that the entry of `head` stands for, beside its own.
    fn passed_before(&mut self, head: u16) -> Vec<u16> {
        let Some(order) = &mut self.in_order else { return Vec::new() };
        let last = order.iter().position(|one| *one == head).expect("the device used what it owed");
        let mut passed: Vec<_> = order.drain(..=last).collect();
        passed.pop();
        passed
    }

    /// Asks for an interrupt with the `ahead`-th used chain from now (0 is the next one) and
    /// fences. True when one is there already: look instead of sleeping.
    pub fn listen(&mut self, ahead: u16) -> bool {
        self.used_event.store(self.seen.wrapping_add(ahead));
        self.avail_flags.store(0);
        fence(Ordering::SeqCst);
        self.used_idx.load_acquire() != self.seen
    }

    /// Wants no interrupts for now.
    pub fn ignore(&mut self) {
        self.used_event.store(self.seen.wrapping_sub(1));
        self.avail_flags.store(AVAIL_F_NO_INTERRUPT);
    }

    /// used.idx as the device has published it.
    #[must_use]
    pub fn used_idx(&self) -> u16 {
        self.used_idx.load_acquire()
    }

    /// avail.idx as the device sees it.
    #[must_use]
    pub fn avail_idx(&self) -> u16 {
        self.exposed
    }

    /// The position that `listen` has asked to be told of.
    #[must_use]
    pub fn wish(&self) -> (u16, bool) {
        (self.used_event.load(), self.avail_flags.load() & AVAIL_F_NO_INTERRUPT == 0)
    }
}

const fn write_flag(buffer: Buffer) -> u16 {
    if buffer.writable { DESC_F_WRITE } else { 0 }
}
