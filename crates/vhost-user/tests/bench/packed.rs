//! The driver of a packed ring, one slot per buffer (VIRTIO 1.4 §2.8).

use std::os::fd::AsFd;

use vionet_raw::{GuestAddr, PackedDescriptor, PackedDescriptors};

use super::guest::{GUEST, Guest, HEADER, ROOM, USER};
use super::{FrontEnd, heard, wait_readable};

const WRAP: u16 = 1 << 15;
const DESC_F_WRITE: u16 = 2;
const DESC_F_AVAIL: u16 = 1 << 7;
const DESC_F_USED: u16 = 1 << 15;

/// A guest's memory with two packed rings in it.
pub struct PackedGuest {
    pub guest: Guest,
    pub lanes: [Lane; 2],
}

/// Where the driver of a ring is: a slot, and in bit 15 the wrap counter.
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    pub size: u16,
    pub next: u16,
    seen: u16,
}

impl Lane {
    fn new(size: u16) -> Self {
        Self { size, next: WRAP, seen: WRAP }
    }

    fn after(self, at: u16) -> u16 {
        if (at & !WRAP) + 1 == self.size { !at & WRAP } else { at + 1 }
    }

    /// Both positions of a device that has used everything, as GET_VRING_BASE tells them.
    pub fn position(self) -> u32 {
        u32::from(self.next) << 16 | u32::from(self.next)
    }
}

impl PackedGuest {
    pub fn new(sizes: [u16; 2]) -> Self {
        Self { guest: Guest::new(), lanes: sizes.map(Lane::new) }
    }

    fn descriptors(&self, ring: usize) -> PackedDescriptors {
        let at = GuestAddr(GUEST + self.guest.rings[ring].at());
        self.guest.space.descriptors(at, self.lanes[ring].size).unwrap()
    }

    /// What a driver does when it resets a ring: it is empty, and may have another size.
    pub fn reset(&mut self, ring: usize, size: u16) {
        self.lanes[ring] = Lane::new(size);
        let descriptors = self.descriptors(ring);
        (0..size).for_each(|slot| descriptors.slot(slot).store_flags(0));
    }

    /// Where the next buffer of a ring is.
    fn buffer(&self, ring: usize) -> u64 {
        let slot = u64::from(self.lanes[ring].next & !WRAP);
        GUEST + self.guest.rings[ring].at() + 0x4000 + slot * u64::from(ROOM)
    }

    /// Gives one buffer to a ring; returns where it is.
    fn post(&mut self, ring: usize, len: u32, flags: u16) -> u64 {
        let lane = self.lanes[ring];
        let (slot, wrap) = (lane.next & !WRAP, lane.next & WRAP != 0);
        let addr = self.buffer(ring);
        let descriptors = self.descriptors(ring);
        descriptors.slot(slot).store(PackedDescriptor { addr, len, id: slot });
        let turn = if wrap { DESC_F_AVAIL } else { DESC_F_USED };
        descriptors.slot(slot).store_flags(flags | turn);
        self.lanes[ring].next = lane.after(lane.next);
        addr
    }

    /// Waits for interrupts until everything posted has been used.
    fn settle(&mut self, ring: usize) {
        let descriptors = self.descriptors(ring);
        while self.lanes[ring].seen != self.lanes[ring].next {
            let lane = &mut self.lanes[ring];
            let wanted = if lane.seen & WRAP != 0 { DESC_F_AVAIL | DESC_F_USED } else { 0 };
            let flags = descriptors.slot(lane.seen & !WRAP).flags();
            if flags & (DESC_F_AVAIL | DESC_F_USED) == wanted {
                lane.seen = lane.after(lane.seen);
            } else {
                assert!(wait_readable(&self.guest.rings[ring].call), "ring {ring} goes on");
                heard(&self.guest.rings[ring].call);
            }
        }
    }

    /// Sends a frame and waits until it has come back.
    pub fn echo(&mut self, text: &str) {
        let frame: Vec<u8> = [0xff; 14].iter().chain(text.as_bytes()).copied().collect();
        let room = self.post(0, ROOM, DESC_F_WRITE);
        self.guest.kick(0);
        let bytes: Vec<u8> = [0; HEADER as usize].iter().chain(&frame).copied().collect();
        self.guest.write(self.buffer(1), &bytes);
        self.post(1, bytes.len() as u32, 0);
        self.guest.kick(1);
        self.settle(1);
        self.settle(0);
        let mut back = vec![0; frame.len()];
        assert!(self.guest.space.read(GuestAddr(room + u64::from(HEADER)), &mut back));
        assert_eq!(back, frame);
    }

    /// What a front-end sends for one ring, with the ring's size, at position `base`.
    pub fn start_ring(&self, front: &FrontEnd, ring: usize, base: u32) {
        let (lane, ring) = (self.lanes[ring], &self.guest.rings[ring]);
        front.tell_state(8, ring.index, u32::from(lane.size));
        front.tell_state(10, ring.index, base);
        front.tell(9, &ring.addresses(USER));
        front.tell_with(13, &ring.number(), &[ring.call.as_fd()]);
        front.tell_state(18, ring.index, 1);
        front.tell_with(12, &ring.number(), &[ring.kick.as_fd()]);
    }
}
