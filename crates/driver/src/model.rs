//! For tests: the device's side of a ring, honest or not, in the driver's own memory.

use std::sync::Arc;

use vionet_raw::{
    AddressSpace, Descriptor, GuestAddr, SharedIndex, SharedRing, UsedElem, UserAddr,
};

use crate::front_end::RingPlace;

pub(crate) struct Device {
    pub(crate) descriptors: SharedRing<Descriptor>,
    avail_idx: SharedIndex,
    avail_ring: SharedRing<u16>,
    used_event: SharedIndex,
    pub(crate) used_idx: SharedIndex,
    used_ring: SharedRing<UsedElem>,
    avail_event: SharedIndex,
    next_avail: u16,
    next_used: u16,
}

impl Device {
    /// Finds the ring where the front-end says that it is.
    pub(crate) fn of(space: &Arc<AddressSpace>, place: &RingPlace) -> Self {
        let guest = |user: u64, offset: u64| {
            let GuestAddr(at) = space.map().guest_of(UserAddr(user)).expect("a user address");
            GuestAddr(at + offset)
        };
        let size = u64::from(place.size);
        Self {
            descriptors: space.ring(guest(place.descriptors, 0), place.size).unwrap(),
            avail_idx: space.index(guest(place.avail, 2)).unwrap(),
            avail_ring: space.ring(guest(place.avail, 4), place.size).unwrap(),
            used_event: space.index(guest(place.avail, 4 + 2 * size)).unwrap(),
            used_idx: space.index(guest(place.used, 2)).unwrap(),
            used_ring: space.ring(guest(place.used, 4), place.size).unwrap(),
            avail_event: space.index(guest(place.used, 4 + 8 * size)).unwrap(),
            next_avail: 0,
            next_used: 0,
        }
    }

    /// Takes the next buffer: its id and descriptor.
    pub(crate) fn take(&mut self) -> Option<(u16, Descriptor)> {
        if self.avail_idx.load_acquire() == self.next_avail {
            return None;
        }
        let id = self.avail_ring.load(self.next_avail);
        self.next_avail = self.next_avail.wrapping_add(1);
        Some((id, self.descriptors.load(id)))
    }

    /// Gives buffer `id` back with `len` bytes; not yet visible.
    pub(crate) fn put(&mut self, id: u32, len: u32) {
        self.used_ring.store(self.next_used, UsedElem { id, len });
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows what was put; true when the driver wants to be called for it.
    pub(crate) fn publish(&mut self) -> bool {
        let old = self.used_idx.load();
        self.used_idx.store_release(self.next_used);
        let (new, event) = (self.next_used, self.used_event.load());
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// Asks for a kick with the next buffer.
    pub(crate) fn arm(&mut self) {
        self.avail_event.store(self.next_avail);
    }
}
