//! A split virtqueue, driver side (VIRTIO 1.4 §2.7), one descriptor per buffer.
//!
//! Descriptor `i` always describes buffer `i`, so nothing is chained and a used id names its
//! buffer; the device's word for it is checked all the same.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vionet_raw::{AddressSpace, Descriptor, GuestAddr, SharedIndex, SharedRing, UsedElem};
use vionet_spec::ring::{DESC_F_WRITE, DESC_LEN, IDX_OFFSET, RING_OFFSET, USED_ELEM_LEN};

use crate::error::GuestError;
use crate::front_end::RingPlace;
use crate::memory::{GUEST_BASE, USER_BASE};

pub(crate) struct Ring {
    size: u16,
    writable: bool,
    descriptors: SharedRing<Descriptor>,
    avail_idx: SharedIndex,
    avail_ring: SharedRing<u16>,
    used_event: SharedIndex,
    used_idx: SharedIndex,
    used_ring: SharedRing<UsedElem>,
    avail_event: SharedIndex,
    /// Which buffers the device has.
    lent: Vec<bool>,
    next_avail: u16,
    published: u16,
    next_used: u16,
    place: RingPlace,
}

/// Bytes to keep for a ring of `size` entries: 16 + 2 + 8 for each, the indices, the gaps.
pub(crate) fn ring_bytes(size: u16) -> u64 {
    u64::from(size).saturating_mul(32).saturating_add(4096).next_multiple_of(4096)
}

impl Ring {
    /// A ring of `size` entries (a power of two) at guest address `at`.
    pub(crate) fn new(
        space: &Arc<AddressSpace>,
        at: u64,
        size: u16,
        writable: bool,
    ) -> Result<Self, GuestError> {
        let entries = u64::from(size);
        let avail = at.saturating_add(entries.saturating_mul(u64::from(DESC_LEN)));
        let avail_len = entries.saturating_mul(2).saturating_add(6);
        let used = avail.saturating_add(avail_len).next_multiple_of(64);
        let short = || GuestError::Device("a ring outside of memory");
        let index = |at: u64, offset: u64| {
            space.index(GuestAddr(at.saturating_add(offset))).ok_or_else(short)
        };
        let behind = |at: u64, entry: u64| entries.saturating_mul(entry).saturating_add(at);
        let user = |at: u64| at.wrapping_sub(GUEST_BASE).wrapping_add(USER_BASE);
        Ok(Self {
            size,
            writable,
            descriptors: space.ring(GuestAddr(at), size).ok_or_else(short)?,
            avail_idx: index(avail, IDX_OFFSET)?,
            avail_ring: space
                .ring(GuestAddr(avail.saturating_add(RING_OFFSET)), size)
                .ok_or_else(short)?,
            used_event: index(avail, behind(RING_OFFSET, 2))?,
            used_idx: index(used, IDX_OFFSET)?,
            used_ring: space
                .ring(GuestAddr(used.saturating_add(RING_OFFSET)), size)
                .ok_or_else(short)?,
            avail_event: index(used, behind(RING_OFFSET, USED_ELEM_LEN))?,
            lent: vec![false; usize::from(size)],
            next_avail: 0,
            published: 0,
            next_used: 0,
            place: RingPlace { size, descriptors: user(at), avail: user(avail), used: user(used) },
        })
    }

    pub(crate) fn place(&self) -> &RingPlace {
        &self.place
    }

    /// Lends buffer `index` of `len` bytes at `at` to the device; not yet visible.
    pub(crate) fn lend(&mut self, index: u16, at: u64, len: u32) {
        let flags = if self.writable { DESC_F_WRITE } else { 0 };
        self.descriptors.store(index, Descriptor { addr: at, len, flags, next: 0 });
        self.avail_ring.store(self.next_avail, index);
        self.next_avail = self.next_avail.wrapping_add(1);
        if let Some(lent) = self.lent.get_mut(usize::from(index)) {
            *lent = true;
        }
    }

    /// Makes what was lent visible; true when the device wants a kick for it.
    pub(crate) fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_avail);
        if old == new {
            return false;
        }
        self.avail_idx.store_release(new);
        self.published = new;
        fence(Ordering::SeqCst);
        let event = self.avail_event.load();
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// The next used buffer and the bytes written to it.
    pub(crate) fn used(&mut self) -> Result<Option<(u16, u32)>, GuestError> {
        let ready = self.used_idx.load_acquire().wrapping_sub(self.next_used);
        if ready == 0 {
            return Ok(None);
        }
        if ready > self.size {
            return Err(GuestError::Device("used.idx jumps"));
        }
        let UsedElem { id, len } = self.used_ring.load(self.next_used);
        self.next_used = self.next_used.wrapping_add(1);
        let index = u16::try_from(id).ok();
        let lent = index.and_then(|index| self.lent.get_mut(usize::from(index)));
        match (index, lent) {
            (Some(index), Some(lent)) if *lent => {
                *lent = false;
                Ok(Some((index, len)))
            }
            _ => Err(GuestError::Device("a buffer is used that it does not have")),
        }
    }

    /// Asks for an interrupt with the next used buffer; true when one is there already.
    pub(crate) fn arm(&mut self) -> bool {
        self.used_event.store(self.next_used);
        fence(Ordering::SeqCst);
        self.used_idx.load_acquire() != self.next_used
    }
}
