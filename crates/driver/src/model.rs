//! For tests: a back-end that only nods, and the device's side of a ring, honest or not, in the
//! driver's own memory.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

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

/// A back-end that offers `features` and agrees to everything, until the session ends.
pub(crate) fn nodding(features: u64) -> UnixStream {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        let mut header = [0; 12];
        while theirs.read_exact(&mut header).is_ok() {
            let word = |at: usize| u32::from_ne_bytes(*header[at..].first_chunk().unwrap());
            theirs.read_exact(&mut vec![0; word(8) as usize]).unwrap();
            let number = match word(0) {
                1 => features | 1 << 30,
                15 => 1 << 3,
                _ => 0,
            };
            if matches!(word(0), 1 | 11 | 15) || word(4) & 8 != 0 {
                let head = [word(0), 5, 8].into_iter().flat_map(u32::to_ne_bytes);
                let answer: Vec<u8> = head.chain(number.to_ne_bytes()).collect();
                theirs.write_all(&answer).unwrap();
            }
        }
    });
    ours
}
