//! A guest under load: it sends numbered frames as fast as its ring lets it, in chains of every
//! shape, and checks the numbers of those that come.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vionet_queue::{Cursor, Format, QueueSetup, RingFeatures};
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use vionet_testkit::{Arrangement, Buffer, GuestRam, PackedDriver, SplitDriver, Used};

use crate::board::Front;
use crate::wire::{Tally, frame};

pub(crate) const MEMORY: u64 = 0x20_0000;
const SIZE: u16 = 64;
const RINGS: [u64; 2] = [0x1_0000, 0x2_0000];
const TABLES: u64 = 0x8_0000;
const FRAMES: [u64; 2] = [0x10_0000, 0x18_0000];
const ROOM: u64 = 0x800;
const HEADER: u32 = 12;

enum Ring {
    Split(SplitDriver),
    Packed(PackedDriver),
}

impl Ring {
    fn new(ram: &GuestRam, at: u64, how: RingFeatures) -> Self {
        match how.format {
            Format::Split => {
                let ring = SplitDriver::new(ram, at, SIZE, how.event_idx, 0);
                Self::Split(if how.in_order { ring.in_order() } else { ring })
            }
            Format::Packed => {
                let from = Cursor::start(Format::Packed);
                Self::Packed(PackedDriver::new(ram, at, how, SIZE, from))
            }
        }
    }

    fn setup(&self) -> QueueSetup {
        match self {
            Self::Split(ring) => ring.setup(),
            Self::Packed(ring) => ring.setup(),
        }
    }

    fn post(&mut self, buffers: &[Buffer], table: Option<u64>) -> Option<u16> {
        match self {
            Self::Split(ring) => {
                let how = table.map_or(Arrangement::Direct, |table| Arrangement::Indirect {
                    direct: 0,
                    table,
                    reversed: false,
                });
                ring.post(buffers, how)
            }
            Self::Packed(ring) => ring.post(buffers, table),
        }
    }

    fn expose(&mut self) -> bool {
        match self {
            Self::Split(ring) => ring.expose(),
            Self::Packed(ring) => ring.expose(),
        }
    }

    fn collect(&mut self) -> Vec<Used> {
        match self {
            Self::Split(ring) => ring.collect(),
            Self::Packed(ring) => ring.collect(),
        }
    }
}

/// A ring with the places of what is posted in it.
struct Lane {
    ring: Ring,
    free: Vec<u64>,
    posted: HashMap<u16, u64>,
}

pub(crate) struct Guest {
    pub(crate) ram: GuestRam,
    /// The memory as a file, which another process may open.
    pub(crate) file: OwnedFd,
    how: RingFeatures,
    rx: Lane,
    tx: Lane,
    pub(crate) sent: u64,
    pub(crate) got: Tally,
}

/// Every way in which rings can be laid out.
pub(crate) fn every_ring() -> impl Iterator<Item = RingFeatures> {
    (0..16).map(|bits| RingFeatures {
        format: if bits & 1 == 0 { Format::Split } else { Format::Packed },
        event_idx: bits & 2 != 0,
        indirect: bits & 4 != 0,
        in_order: bits & 8 != 0,
    })
}

impl Guest {
    pub(crate) fn new(how: RingFeatures) -> Self {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, MEMORY).unwrap();
        let ram = GuestRam::shared(std::os::fd::AsFd::as_fd(&file), 0, MEMORY);
        let [rx, tx] = [0, 1].map(|lane: usize| {
            let free = (0..u64::from(SIZE)).map(|place| FRAMES[lane] + place * ROOM).collect();
            Lane { ring: Ring::new(&ram, RINGS[lane], how), free, posted: HashMap::new() }
        });
        Self { ram, file, how, rx, tx, sent: 0, got: Tally::default() }
    }

    /// Brings the NIC up, with these features beside.
    pub(crate) fn bring_up(&self, nic: &dyn Front, more: FeatureBits) {
        let ring = [
            (true, Feature::VERSION_1),
            (self.how.format == Format::Packed, Feature::RING_PACKED),
            (self.how.event_idx, Feature::EVENT_IDX),
            (self.how.indirect, Feature::INDIRECT_DESC),
            (self.how.in_order, Feature::IN_ORDER),
        ];
        let chosen = ring.into_iter().filter(|(chosen, _)| *chosen);
        let bits = chosen.fold(more, |bits, (_, feature)| bits.with(feature));
        nic.set_status(ACKNOWLEDGE);
        nic.set_status(ACKNOWLEDGE | DRIVER);
        (0..4).for_each(|word| nic.choose(word, (bits.0 >> (32 * word)) as u32));
        nic.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(nic.status() & FEATURES_OK, FEATURES_OK);
        for (queue, lane) in [(0, &self.rx), (1, &self.tx)] {
            let setup = lane.ring.setup();
            nic.select(queue);
            nic.set_size(setup.size.into());
            nic.set_areas([setup.descriptors.0, setup.driver.0, setup.device.0]);
            nic.enable();
        }
        nic.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Takes what has come and gives room for more; sends while `sends`. Kicks where it is asked
    /// to.
    pub(crate) fn work(&mut self, sends: bool, kick: impl Fn(u16)) {
        for Used { head, .. } in self.tx.ring.collect() {
            let place = self.tx.posted.remove(&head).unwrap();
            self.tx.free.push(place);
        }
        for Used { head, len } in self.rx.ring.collect() {
            let place = self.rx.posted.remove(&head).unwrap();
            let bytes = self.ram.read(place, len);
            self.got.see(&bytes[HEADER as usize..]);
            self.rx.free.push(place);
        }
        while let Some(place) = self.rx.free.pop() {
            let table = table_of(place).filter(|_| self.how.indirect && place & ROOM != 0);
            let room = [Buffer::writable(place, 600), Buffer::writable(place + 600, 600)];
            let Some(head) = self.rx.ring.post(&room, table) else {
                self.rx.free.push(place);
                break;
            };
            assert!(self.rx.posted.insert(head, place).is_none());
        }
        while let Some(place) = self.tx.free.pop().filter(|_| sends) {
            let bytes = [&[0; HEADER as usize][..], &frame(self.sent)].concat();
            self.ram.write(place, &bytes);
            let len = bytes.len() as u32;
            let (first, rest) = (HEADER + self.sent as u32 % 40, self.sent % 3);
            let whole = [Buffer::readable(place, len)];
            let two = [
                Buffer::readable(place, first),
                Buffer::readable(place + u64::from(first), len - first),
            ];
            let table = table_of(place).filter(|_| self.how.indirect && rest == 2);
            let buffers = if rest == 0 { &whole[..] } else { &two };
            let Some(head) = self.tx.ring.post(buffers, table) else {
                self.tx.free.push(place);
                break;
            };
            assert!(self.tx.posted.insert(head, place).is_none());
            self.sent += 1;
        }
        for (queue, lane) in [(0, &mut self.rx), (1, &mut self.tx)] {
            if lane.ring.expose() {
                kick(queue);
            }
        }
    }

    /// Everything that was sent has been taken.
    pub(crate) fn is_done(&self) -> bool {
        self.tx.posted.is_empty()
    }
}

/// A table of its own for each place of a frame.
fn table_of(place: u64) -> Option<u64> {
    Some(TABLES + (place - FRAMES[0]) / ROOM * 0x40)
}
