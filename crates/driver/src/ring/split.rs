//! A split virtqueue, driver side (VIRTIO 1.4 §2.7). Descriptor `i` always describes buffer `i`.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vionet_raw::{AddressSpace, Descriptor, GuestAddr, SharedIndex, SharedRing, UsedElem};
use vionet_spec::ring::{
    AVAIL_F_NO_INTERRUPT, DESC_F_WRITE, DESC_LEN, IDX_OFFSET, RING_OFFSET, USED_ELEM_LEN,
    USED_F_NO_NOTIFY,
};

use super::{Loans, Shape, Used};
use crate::error::GuestError;
use crate::front_end::RingPlace;
use crate::memory::user_address;

pub(crate) struct SplitRing {
    event_idx: bool,
    flags: u16,
    descriptors: SharedRing<Descriptor>,
    avail_flags: SharedIndex,
    avail_idx: SharedIndex,
    avail_ring: SharedRing<u16>,
    used_event: SharedIndex,
    used_flags: SharedIndex,
    used_idx: SharedIndex,
    used_ring: SharedRing<UsedElem>,
    avail_event: SharedIndex,
    loans: Loans,
    next_avail: u16,
    next_used: u16,
    /// The device's index as it was last seen.
    seen_used: u16,
    place: RingPlace,
}

impl SplitRing {
    pub(super) fn new(space: &Arc<AddressSpace>, at: u64, shape: Shape) -> Option<Self> {
        let entries = u64::from(shape.size);
        let avail = at.saturating_add(entries.saturating_mul(u64::from(DESC_LEN)));
        let avail_len = entries.saturating_mul(2).saturating_add(6);
        let used = avail.saturating_add(avail_len).next_multiple_of(64);
        let index = |at: u64, offset: u64| space.index(GuestAddr(at.saturating_add(offset)));
        let behind = |entry: u64| entries.saturating_mul(entry).saturating_add(RING_OFFSET);
        let ring = |at: u64| GuestAddr(at.saturating_add(RING_OFFSET));
        Some(Self {
            event_idx: shape.event_idx,
            flags: if shape.writable { DESC_F_WRITE } else { 0 },
            descriptors: space.ring(GuestAddr(at), shape.size)?,
            avail_flags: index(avail, 0)?,
            avail_idx: index(avail, IDX_OFFSET)?,
            avail_ring: space.ring(ring(avail), shape.size)?,
            used_event: index(avail, behind(2))?,
            used_flags: index(used, 0)?,
            used_idx: index(used, IDX_OFFSET)?,
            used_ring: space.ring(ring(used), shape.size)?,
            avail_event: index(used, behind(USED_ELEM_LEN))?,
            loans: Loans::new(shape),
            next_avail: 0,
            next_used: 0,
            seen_used: 0,
            place: RingPlace {
                size: shape.size,
                base: 0,
                descriptors: user_address(at),
                avail: user_address(avail),
                used: user_address(used),
            },
        })
    }

    pub(super) fn place(&self) -> &RingPlace {
        &self.place
    }

    #[inline]
    pub(super) fn lend(&mut self, index: u16, at: u64, len: u32) {
        let descriptor = Descriptor { addr: at, len, flags: self.flags, next: 0 };
        self.descriptors.store(index, descriptor);
        self.avail_ring.store(self.next_avail, index);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.loans.lend(index, len);
    }

    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let count = self.loans.show();
        if count == 0 {
            return false;
        }
        self.avail_idx.store_release(self.next_avail);
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return self.used_flags.load() & USED_F_NO_NOTIFY == 0;
        }
        let ahead = self.next_avail.wrapping_sub(self.avail_event.load());
        ahead.wrapping_sub(1) < count
    }

    #[inline]
    pub(super) fn used(&mut self) -> Result<Option<Used>, GuestError> {
        if self.seen_used == self.next_used {
            let seen = self.used_idx.load_acquire();
            let ready = seen.wrapping_sub(self.next_used);
            if ready == 0 {
                return Ok(None);
            }
            // Each buffer is one chain, so no more can be used than was shown: a device cannot go
            // round and round between two of our publications.
            if ready > self.loans.shown {
                return Err(GuestError::Device("used.idx jumps"));
            }
            self.seen_used = seen;
        }
        let used = match self.loans.next_of_run()? {
            Some(used) => used,
            None => {
                let UsedElem { id, len } = self.used_ring.load(self.next_used);
                self.loans.settle(id, len)?
            }
        };
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some(used))
    }

    pub(super) fn arm(&mut self) -> bool {
        self.used_event.store(self.next_used);
        if !self.event_idx {
            self.avail_flags.store(0);
        }
        fence(Ordering::SeqCst);
        self.used_idx.load_acquire() != self.next_used
    }

    #[inline]
    pub(super) fn disarm(&mut self) {
        if !self.event_idx {
            self.avail_flags.store(AVAIL_F_NO_INTERRUPT);
            return;
        }
        // An event just behind is a lap away. Moved seldom: the device reads that cache line.
        const HALF: u16 = 1 << 15;
        let behind = self.next_used.wrapping_sub(1);
        if behind.wrapping_sub(self.used_event.load()) & HALF != 0 {
            self.used_event.store(behind);
        }
    }
}
