//! An honest driver of a packed ring (VIRTIO 1.4 §2.8), which notices what a device does wrong.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use vionet_queue::{Cursor, Format, QueueSetup, RingFeatures};
use vionet_raw::{GuestAddr, PackedDescriptor, PackedDescriptors, SharedIndex};
use vionet_spec::ring::{
    DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_USED, DESC_F_WRITE, EVENT_FLAGS_DESC,
    EVENT_FLAGS_DISABLE, EVENT_FLAGS_ENABLE,
};

use crate::{Buffer, GuestRam, Used};

/// A slot, and the wrap counter of the lap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct At {
    slot: u16,
    wrap: bool,
}

impl At {
    /// One slot at a time, as the standard tells it.
    fn step(&mut self, size: u16) {
        self.slot += 1;
        if self.slot == size {
            *self = Self { slot: 0, wrap: !self.wrap };
        }
    }

    fn bits(self) -> u16 {
        self.slot | u16::from(self.wrap) << 15
    }
}

struct Posted {
    id: u16,
    slots: u16,
    room: u32,
}

/// The driver's side of a packed ring.
pub struct PackedDriver {
    ram: GuestRam,
    setup: QueueSetup,
    features: RingFeatures,
    ring: PackedDescriptors,
    event: [SharedIndex; 2],
    device: [SharedIndex; 2],
    ids: Vec<u16>,
    /// What the device owes, oldest first.
    posted: VecDeque<Posted>,
    free: u16,
    /// Next slot to make available.
    next: At,
    /// The next slot as the device can see it.
    exposed: At,
    /// Flags of posted first descriptors, stored when they are exposed.
    hidden: Vec<(u16, u16)>,
    /// Next slot to find used.
    seen: At,
}

impl PackedDriver {
    /// A driver whose ring begins at `at` and goes on at the position `from.avail`.
    ///
    /// # Panics
    /// When there is no memory at `at`.
    #[must_use]
    pub fn new(ram: &GuestRam, at: u64, features: RingFeatures, size: u16, from: Cursor) -> Self {
        let space = ram.space();
        let (driver, device) = (at + 16 * u64::from(size), at + 16 * u64::from(size) + 4);
        let pair = |at: u64| {
            [at, at + 2].map(|at| space.index(GuestAddr(at)).expect("memory for an event"))
        };
        let begin = At { slot: from.avail & 0x7fff, wrap: from.avail >> 15 == 1 };
        let ring = space.descriptors(GuestAddr(at), size).expect("memory for descriptors");
        for slot in 0..size {
            // Each slot as it was used last: in this lap before the position, else in the last one.
            let lap = begin.wrap == (slot < begin.slot);
            ring.slot(slot).store_flags(if lap { DESC_F_AVAIL | DESC_F_USED } else { 0 });
        }
        Self {
            ram: ram.clone(),
            setup: QueueSetup {
                size,
                descriptors: GuestAddr(at),
                driver: GuestAddr(driver),
                device: GuestAddr(device),
            },
            features: RingFeatures { format: Format::Packed, ..features },
            ring,
            event: pair(driver),
            device: pair(device),
            ids: (0..size).rev().collect(),
            posted: VecDeque::new(),
            free: size,
            next: begin,
            exposed: begin,
            hidden: Vec::new(),
            seen: begin,
        }
    }

    /// Where the ring is.
    #[must_use]
    pub fn setup(&self) -> QueueSetup {
        self.setup
    }

    /// What this driver has negotiated.
    #[must_use]
    pub fn features(&self) -> RingFeatures {
        self.features
    }

    /// Chains that the device owes.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.posted.len()
    }

    /// Describes a list, in the ring or in a table at `table`, not yet visible. `None` when slots
    /// are short.
    pub fn post(&mut self, buffers: &[Buffer], table: Option<u64>) -> Option<u16> {
        let slots = if table.is_some() { 1 } else { buffers.len() as u16 };
        if slots > self.free || slots == 0 {
            return None;
        }
        let id = self.ids.pop()?;
        let first = self.next.slot;
        for position in 0..slots {
            let At { slot, wrap } = self.next;
            let (addr, len, kind) = match table {
                Some(table) => (table, self.write_table(table, buffers), DESC_F_INDIRECT),
                None => {
                    let Buffer { at, len, writable } = buffers[usize::from(position)];
                    (at, len, if writable { DESC_F_WRITE } else { 0 })
                }
            };
            let last = position + 1 == slots;
            // Only the last id counts (PKD-06).
            let id = if last { id } else { 0x5a5a };
            self.ring.slot(slot).store(PackedDescriptor { addr, len, id });
            let chained = if last { 0 } else { DESC_F_NEXT };
            let lap = if wrap { DESC_F_AVAIL } else { DESC_F_USED };
            if slot == first && position == 0 {
                self.hidden.push((slot, kind | chained | lap));
            } else {
                self.ring.slot(slot).store_flags(kind | chained | lap);
            }
            self.next.step(self.setup.size);
        }
        self.free -= slots;
        let room = buffers.iter().filter(|buffer| buffer.writable).map(|buffer| buffer.len).sum();
        self.posted.push_back(Posted { id, slots, room });
        Some(id)
    }

    fn write_table(&self, table: u64, buffers: &[Buffer]) -> u32 {
        for (index, Buffer { at, len, writable }) in buffers.iter().enumerate() {
            // Of the flags in a table all but WRITE are to be ignored (PKD-28).
            let flags = DESC_F_NEXT | DESC_F_AVAIL | if *writable { DESC_F_WRITE } else { 0 };
            let entry = table + 16 * index as u64;
            self.ram.write_descriptor(entry, *at, *len, 0xabcd, flags);
        }
        16 * buffers.len() as u32
    }

    /// Makes posted lists visible; says whether the device wants a kick for them.
    pub fn expose(&mut self) -> bool {
        let old = self.exposed;
        // The first one last: the device finds all of them or none.
        for (slot, flags) in self.hidden.drain(..).rev() {
            self.ring.slot(slot).store_flags(flags);
        }
        self.exposed = self.next;
        fence(Ordering::SeqCst);
        if old == self.next {
            return false;
        }
        let [place, flags] = &self.device;
        match flags.load_acquire() {
            EVENT_FLAGS_ENABLE => true,
            EVENT_FLAGS_DISABLE => false,
            EVENT_FLAGS_DESC => {
                assert!(self.features.event_idx, "PKN-02: a place without the feature");
                let (wanted, mut at) = (place.load(), old);
                while at != self.next {
                    if at.bits() == wanted {
                        return true;
                    }
                    at.step(self.setup.size);
                }
                false
            }
            other => panic!("PKN-04: reserved flags {other:#x}"),
        }
    }

    /// The lists that the device has used since the last time, as it tells them: in order, one
    /// used descriptor may stand for several.
    ///
    /// # Panics
    /// When the device has used what it did not owe, or written more than there was room.
    pub fn collect(&mut self) -> Vec<Used> {
        let mut used = Vec::new();
        loop {
            let At { slot, wrap } = self.seen;
            let flags = self.ring.slot(slot).flags();
            let [avail, is_used] = [DESC_F_AVAIL, DESC_F_USED].map(|flag| flags & flag != 0);
            if avail != wrap || is_used != wrap || self.posted.is_empty() {
                return used;
            }
            let PackedDescriptor { id, len, .. } = self.ring.slot(slot).load();
            let last = self.posted.iter().position(|posted| posted.id == id);
            let last = last.expect("the device used what it owed");
            let (skipped, room) = (last, self.posted[last].room);
            assert!(skipped == 0 || self.features.in_order && flags & DESC_F_WRITE == 0);
            assert!(len <= room, "used.len {len} is over the list's {room}");
            // PKD-05: WRITE tells whether anything was written.
            assert_eq!(flags & DESC_F_WRITE != 0, len > 0);
            for posted in self.posted.drain(..=skipped) {
                let written = if posted.id == id { len } else { 0 };
                used.push(Used { head: posted.id, len: written });
                self.ids.push(posted.id);
                self.free += posted.slots;
                for _ in 0..posted.slots {
                    self.seen.step(self.setup.size);
                }
            }
        }
    }

    /// Asks for an interrupt with the `ahead`-th used list from now (0 is the next one) and
    /// fences. True when one is there already: look instead of sleeping.
    pub fn listen(&mut self, ahead: usize) -> bool {
        let [place, flags] = &self.event;
        if self.features.event_idx {
            let mut at = self.seen;
            let slots: u16 = self.posted.iter().take(ahead).map(|posted| posted.slots).sum();
            for _ in 0..slots {
                at.step(self.setup.size);
            }
            place.store(at.bits());
            flags.store_release(EVENT_FLAGS_DESC);
        } else {
            flags.store_release(EVENT_FLAGS_ENABLE);
        }
        fence(Ordering::SeqCst);
        let At { slot, wrap } = self.seen;
        let flags = self.ring.slot(slot).flags();
        (flags & DESC_F_AVAIL != 0) == wrap && (flags & DESC_F_USED != 0) == wrap
    }

    /// Wants no interrupts for now.
    pub fn ignore(&mut self) {
        let [_, flags] = &self.event;
        flags.store_release(EVENT_FLAGS_DISABLE);
    }
}
