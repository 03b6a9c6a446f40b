//! A guest's memory and rings, and the order in which front-ends set them up.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use vionet_raw::host::mmap::{Mapping, memory_file};
use vionet_raw::{
    Access, AddressSpace, Descriptor, GuestAddr, MemoryMap, Pushed, SpanStore, UserAddr, copy_in,
};

use super::{FrontEnd, NO_FD, event, heard, signal, wait_readable};

pub const GUEST: u64 = 0x4000_0000;
pub const USER: u64 = 0x7f00_0000_0000;
pub const LEN: u64 = 0x20_0000;
pub const SIZE: u16 = 16;
pub const HEADER: u32 = 12;
pub const ROOM: u32 = 2048;

/// One region of shared memory with rings in it: two for each queue pair.
pub struct Guest {
    pub file: OwnedFd,
    pub space: Arc<AddressSpace>,
    pub rings: Vec<Ring>,
}

/// One ring: its descriptors, and where its driver is.
pub struct Ring {
    pub index: u32,
    pub kick: OwnedFd,
    pub call: OwnedFd,
    pub err: OwnedFd,
    pub size: u16,
    next: u16,
}

impl Ring {
    fn new(index: u32) -> Self {
        Self { index, kick: event(), call: event(), err: event(), size: SIZE, next: 0 }
    }

    /// Where its areas begin in the guest's memory.
    pub fn at(&self) -> u64 {
        u64::from(self.index) * 0x4_0000
    }

    /// SET_VRING_ADDR with front-end addresses from `user` on.
    pub fn addresses(&self, user: u64) -> Vec<u8> {
        let (desc, avail, used) = (self.at(), self.at() + 0x1000, self.at() + 0x2000);
        let addresses = [user + desc, user + used, user + avail, 0];
        let words = [self.index, 0].into_iter().flat_map(u32::to_ne_bytes);
        words.chain(addresses.into_iter().flat_map(u64::to_ne_bytes)).collect()
    }

    pub fn number(&self) -> [u8; 8] {
        u64::from(self.index).to_ne_bytes()
    }

    fn buffer(&self) -> u64 {
        GUEST + self.at() + 0x4000 + u64::from(self.next % self.size) * u64::from(ROOM)
    }
}

impl Guest {
    pub fn new() -> Self {
        Self::with_rings(2)
    }

    pub fn with_rings(count: u32) -> Self {
        let file = memory_file("guest", LEN).unwrap();
        let mapping = Mapping::shared(file.as_fd(), 0, LEN).unwrap();
        let region = mapping.into_region(GuestAddr(GUEST), UserAddr(USER));
        let map = MemoryMap::new(vec![region]).unwrap();
        let space = Arc::new(AddressSpace::new(Arc::new(map)));
        Self { file, space, rings: (0..count).map(Ring::new).collect() }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The whole memory as a region, for SET_MEM_TABLE.
    pub fn table(&self) -> Vec<u8> {
        [1, GUEST, LEN, USER, 0].into_iter().flat_map(u64::to_ne_bytes).collect()
    }

    /// The same for ADD_MEM_REG and REM_MEM_REG.
    pub fn region(&self) -> Vec<u8> {
        [0, GUEST, LEN, USER, 0].into_iter().flat_map(u64::to_ne_bytes).collect()
    }

    /// What a driver does when it starts: its rings are empty again.
    pub fn reboot(&mut self) {
        self.reboot_at(0);
    }

    /// Rings of another size, empty.
    pub fn resize(&mut self, size: u16) {
        self.rings.iter_mut().for_each(|ring| ring.size = size);
        self.reboot();
    }

    /// Empty rings, with both indices of each at `start`.
    pub fn reboot_at(&mut self, start: u16) {
        for ring in &mut self.rings {
            ring.next = start;
            for area in [0x1000, 0x2000] {
                let idx = self.space.index(GuestAddr(GUEST + ring.at() + area + 2)).unwrap();
                idx.store(start);
            }
        }
    }

    /// Gives one buffer to a ring.
    pub fn post(&mut self, ring: usize, at: u64, len: u32, flags: u16) {
        self.post_before(ring, at, len, flags, 0);
    }

    /// The same with the descriptor `next` behind it, which is there already, if `flags` say so.
    pub fn post_before(&mut self, ring: usize, addr: u64, len: u32, flags: u16, next: u16) {
        let ring = &mut self.rings[ring];
        let slot = ring.next % ring.size;
        let base = GUEST + ring.at();
        let descriptors = self.space.ring::<Descriptor>(GuestAddr(base), ring.size).unwrap();
        descriptors.store(slot, Descriptor { addr, len, flags, next });
        self.space.ring::<u16>(GuestAddr(base + 0x1004), ring.size).unwrap().store(slot, slot);
        ring.next = ring.next.wrapping_add(1);
        self.space.index(GuestAddr(base + 0x1002)).unwrap().store_release(ring.next);
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        let mut store = SpanStore::<4>::new(Arc::clone(&self.space), Access::Both);
        assert_eq!(store.push(GuestAddr(at), bytes.len() as u32), Pushed::Added(1));
        assert_eq!(copy_in(store.writable(0, 1), 0, bytes), bytes.len());
    }

    pub fn kick(&self, ring: usize) {
        signal(&self.rings[ring].kick);
    }

    pub fn used(&self, ring: usize) -> u16 {
        let at = GUEST + self.rings[ring].at() + 0x2002;
        self.space.index(GuestAddr(at)).unwrap().load_acquire()
    }

    /// Waits for interrupts until everything posted has been used.
    pub fn settle(&self, ring: usize) {
        while self.used(ring) != self.rings[ring].next {
            assert!(wait_readable(&self.rings[ring].call), "ring {ring} goes on");
            heard(&self.rings[ring].call);
        }
    }

    /// Posts a frame to send; with `kicked` the device is told.
    pub fn transmit(&mut self, frame: &[u8], kicked: bool) {
        self.transmit_on(0, frame, kicked);
    }

    pub fn transmit_on(&mut self, pair: usize, frame: &[u8], kicked: bool) {
        let ring = 2 * pair + 1;
        let at = self.rings[ring].buffer();
        let bytes: Vec<u8> = [0; HEADER as usize].iter().chain(frame).copied().collect();
        self.write(at, &bytes);
        self.post(ring, at, bytes.len() as u32, 0);
        if kicked {
            self.kick(ring);
        }
    }

    pub fn post_room(&mut self) -> u64 {
        self.post_room_on(0)
    }

    pub fn post_room_on(&mut self, pair: usize) -> u64 {
        let at = self.rings[2 * pair].buffer();
        self.post(2 * pair, at, ROOM, 2);
        at
    }

    /// Sends a frame and waits until it has come back.
    pub fn echo(&mut self, text: &str) {
        self.echo_on(0, text);
    }

    /// The same on another pair.
    pub fn echo_on(&mut self, pair: usize, text: &str) {
        let frame: Vec<u8> = [0xff; 14].iter().chain(text.as_bytes()).copied().collect();
        let room = self.post_room_on(pair);
        self.kick(2 * pair);
        self.transmit_on(pair, &frame, true);
        self.settle(2 * pair + 1);
        self.settle(2 * pair);
        let mut back = vec![0; frame.len()];
        assert!(self.space.read(GuestAddr(room + u64::from(HEADER)), &mut back));
        assert_eq!(back, frame);
    }

    /// What QEMU sends for one ring at start (VU-SEQ-03, step 4), at position `base`.
    pub fn start_ring(&self, front: &FrontEnd, ring: usize, base: u32) {
        let ring = &self.rings[ring];
        front.tell_state(8, ring.index, u32::from(ring.size));
        front.tell_state(10, ring.index, base);
        front.tell(9, &ring.addresses(USER));
        front.tell_with(12, &ring.number(), &[ring.kick.as_fd()]);
        front.tell_with(13, &ring.number(), &[ring.call.as_fd()]);
    }

    pub fn start_rings(&self, front: &FrontEnd) {
        self.start_ring(front, 0, 0);
        self.start_ring(front, 1, 0);
    }

    /// Everything from the first message to two running rings, the short way.
    pub fn start(&self, front: &mut FrontEnd) {
        self.start_with(front, 0);
    }

    /// The same with more features.
    pub fn start_with(&self, front: &mut FrontEnd, more: u64) {
        front.ask_number(1);
        front.tell_number(16, super::REPLY_ACK);
        front.asks = true;
        front.tell(3, &[]);
        let usual = super::F_VERSION_1 | super::F_MRG_RXBUF | super::F_PROTOCOL;
        front.tell_number(2, usual | more);
        front.tell_with(5, &self.table(), &[self.fd()]);
        for ring in &self.rings {
            front.tell_with(14, &ring.number(), &[ring.err.as_fd()]);
            front.tell_state(18, ring.index, 1);
        }
        self.start_rings(front);
    }
}

/// The payload of a ring's descriptor message that brings none.
pub fn without_fd(ring: u32) -> [u8; 8] {
    (u64::from(ring) | NO_FD).to_ne_bytes()
}
