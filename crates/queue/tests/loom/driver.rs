//! An honest driver of either format, as small as the standard allows: one descriptor a buffer.

use loom::sync::atomic::{Ordering, fence};
use vionet_queue::{Format, QueueSetup};
use vionet_raw::{
    AddressSpace, Descriptor, GuestAddr, PackedDescriptor, PackedDescriptors, SharedIndex,
    SharedRing, UsedElem,
};
use vionet_spec::ring::{
    AVAIL_F_NO_INTERRUPT, DESC_F_AVAIL, DESC_F_USED, DESC_F_WRITE, EVENT_FLAGS_DESC,
    EVENT_FLAGS_DISABLE, EVENT_FLAGS_ENABLE, IDX_OFFSET, RING_OFFSET, USED_ELEM_LEN,
    USED_F_NO_NOTIFY,
};

use crate::Kind;

/// Two entries: enough for a batch, and the second lap comes soon.
pub(crate) const SIZE: u16 = 2;
pub(crate) const SETUP: QueueSetup = QueueSetup {
    size: SIZE,
    descriptors: GuestAddr(0x000),
    driver: GuestAddr(0x100),
    device: GuestAddr(0x200),
};
const PAYLOADS: u64 = 0x300;
const BUFFERS: u64 = 0x400;

/// The wrap counter of a packed ring there.
fn wrap(post: u16) -> bool {
    (post / SIZE).is_multiple_of(2)
}

/// A place in a packed ring as the standard writes it.
fn place(post: u16) -> u16 {
    (post % SIZE) | (u16::from(wrap(post)) << 15)
}

/// The length of a buffer, by which the device knows its number.
pub(crate) fn length(post: u16) -> u32 {
    100 + u32::from(post)
}

/// How much of it the device says it has written.
pub(crate) fn written(post: u16) -> u32 {
    50 + u32::from(post)
}

/// A word of each buffer, loaded and stored without any order: stale when the ring's order allows.
pub(crate) struct Payloads([SharedIndex; SIZE as usize]);

impl Payloads {
    pub(crate) fn new(space: &AddressSpace) -> Self {
        Self([0, 2].map(|offset| space.index(GuestAddr(PAYLOADS + offset)).unwrap()))
    }

    fn clear(&self) {
        self.0.iter().for_each(|word| word.store(0));
    }

    pub(crate) fn fill(&self, post: u16) {
        self.0[usize::from(post % SIZE)].store(post + 1);
    }

    pub(crate) fn check(&self, post: u16) {
        let found = self.0[usize::from(post % SIZE)].load();
        assert_eq!(found, post + 1, "buffer {post} holds what was there before");
    }
}

enum Ring {
    Split {
        descriptors: SharedRing<Descriptor>,
        avail_flags: SharedIndex,
        avail_idx: SharedIndex,
        avail_ring: SharedRing<u16>,
        used_event: SharedIndex,
        used_flags: SharedIndex,
        used_idx: SharedIndex,
        used_ring: SharedRing<UsedElem>,
        avail_event: SharedIndex,
    },
    Packed {
        descriptors: PackedDescriptors,
        driver_place: SharedIndex,
        driver_flags: SharedIndex,
        device_place: SharedIndex,
        device_flags: SharedIndex,
    },
}

pub(crate) struct Driver {
    ring: Ring,
    event_idx: bool,
    /// Flags of a buffer, beside the lap's.
    direction: u16,
    posted: u16,
    reaped: u16,
    /// Ids without a buffer, the last one back on top: each lap has them in another order.
    free: Vec<u16>,
    /// The ids of the buffers under way.
    ids: [u16; SIZE as usize],
}

impl Driver {
    /// A driver that wants no interrupts; all cells are touched once, for the model to know them.
    pub(crate) fn new(space: &AddressSpace, kind: Kind, writable: bool) -> Self {
        let index = |area: GuestAddr, offset| {
            let cell = space.index(area.checked_add(offset).unwrap()).unwrap();
            cell.store(0);
            cell
        };
        let at = |area: GuestAddr| area.checked_add(RING_OFFSET).unwrap();
        let QueueSetup { descriptors, driver, device, .. } = SETUP;
        let size = u64::from(SIZE);
        let ring = match kind.format {
            Format::Split => Ring::Split {
                descriptors: space.ring(descriptors, SIZE).unwrap(),
                avail_flags: index(driver, 0),
                avail_idx: index(driver, IDX_OFFSET),
                avail_ring: space.ring(at(driver), SIZE).unwrap(),
                used_event: index(driver, RING_OFFSET + 2 * size),
                used_flags: index(device, 0),
                used_idx: index(device, IDX_OFFSET),
                used_ring: space.ring(at(device), SIZE).unwrap(),
                avail_event: index(device, RING_OFFSET + USED_ELEM_LEN * size),
            },
            Format::Packed => Ring::Packed {
                descriptors: space.descriptors(descriptors, SIZE).unwrap(),
                driver_place: index(driver, 0),
                driver_flags: index(driver, 2),
                device_place: index(device, 0),
                device_flags: index(device, 2),
            },
        };
        for slot in 0..SIZE {
            match &ring {
                Ring::Split { descriptors, avail_ring, used_ring, .. } => {
                    descriptors.store(slot, Descriptor::default());
                    avail_ring.store(slot, 0);
                    used_ring.store(slot, UsedElem::default());
                }
                Ring::Packed { descriptors, .. } => {
                    descriptors.slot(slot).store(PackedDescriptor::default());
                    descriptors.slot(slot).store_flags(0);
                }
            }
        }
        let direction = if writable { DESC_F_WRITE } else { 0 };
        let driver = Self {
            ring,
            event_idx: kind.event_idx,
            direction,
            posted: 0,
            reaped: 0,
            free: (0..SIZE).rev().collect(),
            ids: [0; SIZE as usize],
        };
        driver.disarm();
        Payloads::new(space).clear();
        driver
    }

    pub(crate) fn reaped(&self) -> u16 {
        self.reaped
    }

    /// Makes one more buffer available; whether the device wants to be kicked for it.
    pub(crate) fn post(&mut self) -> bool {
        let post = self.posted;
        self.posted += 1;
        let (addr, len, id) = (BUFFERS, length(post), self.free.pop().unwrap());
        self.ids[usize::from(post % SIZE)] = id;
        match &self.ring {
            Ring::Split { descriptors, avail_ring, avail_idx, avail_event, used_flags, .. } => {
                let descriptor = Descriptor { addr, len, flags: self.direction, next: 0 };
                descriptors.store(id, descriptor);
                avail_ring.store(post, id);
                avail_idx.store_release(self.posted);
                fence(Ordering::SeqCst);
                if self.event_idx {
                    avail_event.load() == post
                } else {
                    used_flags.load() & USED_F_NO_NOTIFY == 0
                }
            }
            Ring::Packed { descriptors, device_flags, device_place, .. } => {
                let lap = if wrap(post) { DESC_F_AVAIL } else { DESC_F_USED };
                let slot = descriptors.slot(post % SIZE);
                slot.store(PackedDescriptor { addr, len, id });
                slot.store_flags(self.direction | lap);
                fence(Ordering::SeqCst);
                match device_flags.load_acquire() {
                    EVENT_FLAGS_ENABLE => true,
                    EVENT_FLAGS_DISABLE => false,
                    EVENT_FLAGS_DESC if self.event_idx => device_place.load() == place(post),
                    other => panic!("{other} is no wish"),
                }
            }
        }
    }

    fn has_used(&self) -> bool {
        match &self.ring {
            Ring::Split { used_idx, .. } => used_idx.load_acquire() != self.reaped,
            Ring::Packed { descriptors, .. } => {
                let flags = descriptors.slot(self.reaped % SIZE).flags();
                let both = [DESC_F_AVAIL, DESC_F_USED].map(|bit| flags & bit != 0);
                both == [wrap(self.reaped); 2] && self.reaped != self.posted
            }
        }
    }

    /// Takes one used buffer back, if there is one; it must be the next, and what is said of it
    /// must be true.
    pub(crate) fn reap(&mut self) -> bool {
        if !self.has_used() {
            return false;
        }
        let post = self.reaped;
        let said = match &self.ring {
            Ring::Split { used_ring, .. } => {
                let UsedElem { id, len } = used_ring.load(post);
                (id, len)
            }
            Ring::Packed { descriptors, .. } => {
                let PackedDescriptor { id, len, .. } = descriptors.slot(post % SIZE).load();
                (u32::from(id), len)
            }
        };
        let len = if self.direction == DESC_F_WRITE { written(post) } else { 0 };
        let id = self.ids[usize::from(post % SIZE)];
        assert_eq!(said, (u32::from(id), len), "used entry {post} is old");
        self.free.push(id);
        self.reaped += 1;
        true
    }

    /// Asks for an interrupt with the next used buffer, and looks once more: whether it may sleep.
    pub(crate) fn arm(&self) -> bool {
        match &self.ring {
            Ring::Split { used_event, .. } if self.event_idx => used_event.store(self.reaped),
            Ring::Split { avail_flags, .. } => avail_flags.store(0),
            Ring::Packed { driver_place, driver_flags, .. } if self.event_idx => {
                driver_place.store(place(self.reaped));
                driver_flags.store_release(EVENT_FLAGS_DESC);
            }
            Ring::Packed { driver_flags, .. } => driver_flags.store_release(EVENT_FLAGS_ENABLE),
        }
        fence(Ordering::SeqCst);
        !self.has_used()
    }

    /// Wants no interrupts, as far as the format can say so.
    pub(crate) fn disarm(&self) {
        match &self.ring {
            Ring::Split { .. } if self.event_idx => {}
            Ring::Split { avail_flags, .. } => avail_flags.store(AVAIL_F_NO_INTERRUPT),
            Ring::Packed { driver_flags, .. } => driver_flags.store_release(EVENT_FLAGS_DISABLE),
        }
    }
}
