//! A guest's memory and its driver, which reaches the device through the client alone.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use vionet_raw::host::mmap::{Mapping, memory_file};
use vionet_raw::{AddressSpace, GuestAddr, MemoryMap, UserAddr};
use vionet_spec::pci;
use vionet_spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use vionet_testkit::{Arrangement, Buffer, GuestRam, SplitDriver};

use super::{Client, DATA_EVENTFD, MSIX, PATIENCE, TRIGGER, event, irq_set};

/// Where rings and buffers lie, each in a region of its own.
pub const RINGS: u64 = 0x1_0000;
pub const BUFFERS: u64 = 0x10_0000;
/// Bytes of each region.
pub const LEN: u64 = 0x1_0000;
pub const SIZE: u16 = 16;
const HEADER: u32 = 12;
const READY: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

pub const ISR: u64 = 0x1000;
pub const DOORBELLS: u64 = 0x3000;
pub const TABLE: u64 = 0x4000;
pub const PENDING: u64 = 0x6000;

pub struct Guest {
    pub file: OwnedFd,
    pub ram: GuestRam,
    pub rx: SplitDriver,
    pub tx: SplitDriver,
    /// For the vectors: configuration, receive, transmit.
    pub vectors: [OwnedFd; 3],
}

impl Default for Guest {
    fn default() -> Self {
        let file = memory_file("guest", 2 * LEN).unwrap();
        let region = |offset, at| {
            let mapping = Mapping::shared(file.as_fd(), offset, LEN).unwrap();
            mapping.into_region(GuestAddr(at), UserAddr(0))
        };
        let map = MemoryMap::new(vec![region(0, RINGS), region(LEN, BUFFERS)]).unwrap();
        let ram = GuestRam::over(Arc::new(AddressSpace::new(Arc::new(map))));
        let [rx, tx] = rings(&ram);
        Self { file, ram, rx, tx, vectors: [event(), event(), event()] }
    }
}

fn rings(ram: &GuestRam) -> [SplitDriver; 2] {
    ram.write(RINGS, &[0; 0x8000]);
    [RINGS, RINGS + 0x4000].map(|at| SplitDriver::new(ram, at, SIZE, false, 0))
}

impl Guest {
    pub fn map(&self, client: &Client) {
        client.map(RINGS, LEN, 0, &self.file).unwrap();
        client.map(BUFFERS, LEN, LEN, &self.file).unwrap();
    }

    /// All vectors have their eventfds.
    pub fn wire(&self, client: &Client) {
        let set = irq_set(DATA_EVENTFD | TRIGGER, MSIX, 0, 3);
        client.set_irqs(&set, &self.vectors.each_ref()).unwrap();
    }

    /// What firmware and a driver do until the device is at work; with MSI-X, or with the line.
    pub fn bring_up(&mut self, client: &Client, msix: bool) {
        switch_on(client);
        let control = if msix { pci::MSIX_ENABLE } else { 0 };
        let at = msix_control(client);
        client.write(super::CONFIG, at, &control.to_le_bytes());
        set_status(client, 0);
        assert_eq!(status(client), 0);
        set_status(client, ACKNOWLEDGE | DRIVER);
        for (word, bits) in [(0, 0), (1, 1)] {
            client.set(pci::COMMON_DRIVER_FEATURE_SELECT, word, 4);
            client.set(pci::COMMON_DRIVER_FEATURE, bits, 4);
        }
        set_status(client, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(status(client), ACKNOWLEDGE | DRIVER | FEATURES_OK);
        client.set(pci::COMMON_CONFIG_VECTOR, 0, 2);
        [self.rx, self.tx] = rings(&self.ram);
        for (queue, ring) in [(0, &self.rx), (1, &self.tx)] {
            let setup = ring.setup();
            client.set(pci::COMMON_QUEUE_SELECT, queue, 2);
            client.set(pci::COMMON_QUEUE_SIZE, setup.size.into(), 2);
            client.set(pci::COMMON_QUEUE_VECTOR, queue + 1, 2);
            let places =
                [pci::COMMON_QUEUE_DESC, pci::COMMON_QUEUE_DRIVER, pci::COMMON_QUEUE_DEVICE];
            for (at, area) in
                places.into_iter().zip([setup.descriptors, setup.driver, setup.device])
            {
                client.set(at, area.0 & 0xffff_ffff, 4);
                client.set(at + 4, area.0 >> 32, 4);
            }
            client.set(pci::COMMON_QUEUE_ENABLE, 1, 2);
        }
        set_status(client, READY);
        assert_eq!(status(client), READY);
    }

    /// A new guest's driver at work, with MSI-X.
    pub fn start(client: &Client) -> Self {
        let mut guest = Self::default();
        guest.map(client);
        guest.wire(client);
        guest.bring_up(client, true);
        guest
    }

    pub fn kick(&self, client: &Client, queue: u16) {
        client.set(DOORBELLS + 4 * u64::from(queue), queue.into(), 2);
    }

    /// Posts a buffer for a frame, and a frame; neither is kicked for.
    pub fn post(&mut self, fill: u8) {
        let room = Buffer::writable(BUFFERS + 0x8000, 2048);
        self.rx.post(&[room], Arrangement::Direct).expect("a free descriptor");
        self.rx.expose();
        self.ram.write(BUFFERS, &[0; HEADER as usize]);
        self.ram.write(BUFFERS + u64::from(HEADER), &[fill; 60]);
        let frame = Buffer::readable(BUFFERS, HEADER + 60);
        self.tx.post(&[frame], Arrangement::Direct).expect("a free descriptor");
        self.tx.expose();
    }

    /// A frame goes out and comes back.
    pub fn round_trip(&mut self, client: &Client, fill: u8) {
        self.post(fill);
        self.kick(client, 0);
        self.kick(client, 1);
        until("the frame comes back", || !self.rx.collect().is_empty());
        let frame = self.ram.read(BUFFERS + 0x8000 + u64::from(HEADER), 60);
        assert_eq!(frame, [fill; 60]);
        until("the frame is used", || !self.tx.collect().is_empty());
    }
}

/// The function answers at its registers, and may interrupt and touch memory.
pub fn switch_on(client: &Client) {
    let master = pci::COMMAND_MEMORY | pci::COMMAND_MASTER;
    client.write(super::CONFIG, pci::HEADER_COMMAND.into(), &master.to_le_bytes());
}

pub fn status(client: &Client) -> u8 {
    client.get(pci::COMMON_STATUS, 1) as u8
}

pub fn set_status(client: &Client, status: u8) {
    client.set(pci::COMMON_STATUS, status.into(), 1);
}

/// Where message control of MSI-X is.
pub fn msix_control(client: &Client) -> u64 {
    capability(client, pci::CAPABILITY_MSIX) + 2
}

/// Where a capability is, found by walking them.
pub fn capability(client: &Client, id: u8) -> u64 {
    let byte = |at: u64| {
        let mut byte = [0];
        client.read(super::CONFIG, at, &mut byte);
        byte[0]
    };
    let mut at = u64::from(byte(pci::HEADER_CAPABILITIES.into()));
    while byte(at) != id {
        at = byte(at + 1).into();
        assert_ne!(at, 0, "there is such a capability");
    }
    at
}

/// Waits for something that comes soon.
pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::yield_now();
    }
}
