//! A split virtqueue, driver side (VIRTIO 1.4 §2.7), one descriptor per buffer.
//!
//! Descriptor `i` always describes buffer `i`, so nothing is chained and a used id names its
//! buffer; the device's word for it is checked all the same.
//!
//! ```text
//!   next_used        published        next_avail       positions, modulo 2^16
//!       |  the device's  |  lent, unseen  |
//! ```

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vionet_raw::{AddressSpace, Descriptor, GuestAddr, SharedIndex, SharedRing, UsedElem};
use vionet_spec::ring::{DESC_F_WRITE, DESC_LEN, IDX_OFFSET, RING_OFFSET, USED_ELEM_LEN};

use crate::error::GuestError;
use crate::front_end::RingPlace;
use crate::memory::{GUEST_BASE, USER_BASE};

pub(crate) struct Ring {
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
        // Each buffer is one chain, so no more can be used than was published: a device cannot go
        // round and round between two of our publications.
        if ready > self.published.wrapping_sub(self.next_used) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::Memory;
    use crate::model::Device;

    const SIZE: u16 = 8;

    fn pair(writable: bool) -> (Memory, Ring, Device) {
        let memory = Memory::new(ring_bytes(SIZE)).unwrap();
        let ring = Ring::new(&memory.space, GUEST_BASE, SIZE, writable).unwrap();
        let device = Device::of(&memory.space, ring.place());
        (memory, ring, device)
    }

    fn place(index: u16) -> u64 {
        GUEST_BASE + u64::from(index) * 100
    }

    #[test]
    fn what_is_lent_reaches_the_device_only_when_published() {
        for (writable, flags) in [(true, DESC_F_WRITE), (false, 0)] {
            let (_memory, mut ring, mut device) = pair(writable);
            ring.lend(3, place(3), 50);
            assert_eq!(device.take(), None);
            assert!(ring.publish(), "the first buffer is kicked for");
            let descriptor = Descriptor { addr: place(3), len: 50, flags, next: 0 };
            assert_eq!(device.take(), Some((3, descriptor)));
            assert_eq!(device.take(), None);
        }
    }

    #[test]
    fn kicks_and_calls_come_when_asked_for_and_only_then() {
        let (_memory, mut ring, mut device) = pair(true);
        (0..4).for_each(|index| ring.lend(index, place(index), 1));
        assert!(ring.publish());
        assert!(!ring.publish(), "nothing new");
        ring.lend(4, place(4), 1);
        assert!(!ring.publish(), "the device still works on the first");
        while device.take().is_some() {}
        device.arm();
        ring.lend(5, place(5), 1);
        assert!(ring.publish(), "the device sleeps");
        ring.lend(6, place(6), 1);
        assert!(!ring.publish(), "it has been kicked");
        assert!(!ring.arm(), "nothing is used yet");
        device.put(0, 1);
        assert!(device.publish(), "the driver sleeps");
        device.put(1, 1);
        assert!(!device.publish(), "the driver has been called");
        assert!(ring.arm(), "it would not sleep now");
    }

    #[test]
    fn an_index_that_jumps_is_an_error() {
        let (_memory, mut ring, device) = pair(true);
        ring.lend(0, place(0), 1);
        ring.publish();
        for jump in [2, SIZE, SIZE + 1, 0x8000, u16::MAX] {
            device.used_idx.store_release(jump);
            assert!(matches!(ring.used(), Err(GuestError::Device("used.idx jumps"))), "{jump}");
        }
    }

    #[test]
    fn a_buffer_that_the_device_does_not_have_is_an_error() {
        for id in [1, u32::from(SIZE), 0x1_0000, u32::MAX] {
            let (_memory, mut ring, mut device) = pair(true);
            ring.lend(0, place(0), 1);
            ring.publish();
            device.put(id, 1);
            device.publish();
            assert!(matches!(ring.used(), Err(GuestError::Device(_))), "id {id}");
        }
    }

    #[test]
    fn a_buffer_that_is_not_published_yet_cannot_be_used() {
        let (_memory, mut ring, mut device) = pair(true);
        ring.lend(0, place(0), 1);
        ring.publish();
        device.put(0, 1);
        device.put(0, 1);
        device.used_idx.store_release(1);
        assert_eq!(ring.used().unwrap(), Some((0, 1)));
        ring.lend(0, place(0), 1);
        device.publish();
        assert!(matches!(ring.used(), Err(GuestError::Device("used.idx jumps"))));
        ring.publish();
        assert_eq!(ring.used().unwrap(), Some((0, 1)));
    }

    #[test]
    fn a_buffer_used_twice_is_an_error() {
        let (_memory, mut ring, mut device) = pair(true);
        ring.lend(0, place(0), 1);
        ring.lend(1, place(1), 1);
        ring.publish();
        device.put(0, 1);
        device.put(0, 1);
        device.publish();
        assert_eq!(ring.used().unwrap(), Some((0, 1)));
        assert!(ring.used().is_err());
    }

    proptest! {
        /// An honest device, out of order, over the wrap of every index: each buffer comes back
        /// exactly once.
        #[test]
        fn every_buffer_comes_back_once(
            turns in prop::collection::vec((0..=SIZE, any::<u64>()), 1..200),
        ) {
            let (_memory, mut ring, mut device) = pair(true);
            let mut free: Vec<u16> = (0..SIZE).collect();
            let mut held: Vec<u16> = Vec::new();
            for (count, mut order) in turns {
                for _ in 0..count {
                    let Some(index) = free.pop() else { break };
                    ring.lend(index, place(index), 1);
                }
                ring.publish();
                while let Some((id, _)) = device.take() {
                    held.push(id);
                }
                for _ in 0..count {
                    if held.is_empty() { break }
                    let id = held.swap_remove(order as usize % held.len());
                    order /= 8;
                    device.put(u32::from(id), u32::from(id) + 7);
                }
                device.publish();
                while let Some((index, len)) = ring.used().unwrap() {
                    prop_assert_eq!(len, u32::from(index) + 7);
                    prop_assert!(!free.contains(&index));
                    free.push(index);
                }
            }
            prop_assert_eq!(free.len() + held.len(), usize::from(SIZE));
        }

        /// Any device at all: nothing panics, and no more comes back than was lent.
        #[test]
        fn whatever_the_device_writes_is_an_answer_or_an_error(
            used in prop::collection::vec((0..12_u32, any::<u32>()), 0..40), jump in any::<u16>(),
        ) {
            let (_memory, mut ring, mut device) = pair(true);
            (0..SIZE).for_each(|index| ring.lend(index, place(index), 1));
            ring.publish();
            for (id, len) in &used {
                device.put(*id, *len);
            }
            device.used_idx.store_release(jump);
            let mut back = 0;
            while let Ok(Some((index, _))) = ring.used() {
                prop_assert!(index < SIZE);
                back += 1;
            }
            prop_assert!(back <= SIZE);
        }
    }
}
