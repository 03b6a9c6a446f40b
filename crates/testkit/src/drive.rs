//! Bytes in: a ring, and what is done with it. One harness for the fuzzer, for properties and for
//! the inputs that are kept.
//!
//! ```text
//!   byte 0     size 2^(0..=6), format, direction, lead  then steps of an operation byte and what
//!   byte 1     features, position, odd setups           it needs; missing bytes read as 0
//! ```
//!
//! Each verb runs through [`Probe`], which compares it with the rules; memory lies between pages
//! that fault.

use vionet_queue::{Batch, Cursor, DeviceReads, DeviceWrites, Format, QueueSetup, RingFeatures};
use vionet_raw::GuestAddr;

use crate::GuestRam;
use crate::probe::{Probe, Reach};

/// Where the ring is; it fills one page.
const RING: u64 = 0x1000;
/// Buffers and tables: two regions that touch, and one further on.
const REGIONS: &[(u64, usize)] =
    &[(RING, 0x1000), (0x4000, 0x1000), (0x5000, 0x1000), (0x1_0000_0000, 0x2000)];
/// Steps of one input, so that a long input ends.
const STEPS_MAX: usize = 256;

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// An address, more often than not one that means something.
    fn address(&mut self) -> u64 {
        let offset = u64::from(self.word());
        match offset & 3 {
            0 => 0x4000 + (offset >> 2 & 0xfff),
            1 => 0x5000 + (offset >> 2 & 0xfff),
            2 => 0x1_0000_0000 + (offset >> 2 & 0x1fff),
            _ => match self.byte() {
                0 => RING + offset,
                1 => u64::MAX - offset,
                2 => 0,
                by => offset << (by & 63),
            },
        }
    }

    fn len(&mut self) -> u32 {
        let len = u32::from(self.word());
        match len & 7 {
            0 => len << 16 | 0xffff,
            1 => 16 * (len >> 3),
            _ => len >> 3 & 0x7ff,
        }
    }
}

/// Runs one input to its end.
///
/// # Panics
/// When the queue does what it should not.
pub fn drive(input: &[u8]) {
    let mut input = Input(input);
    let shape = input.byte();
    let ram = GuestRam::new(REGIONS);
    let size = 1 << (shape & 7).min(6);
    let lead = [12, 0, 1, 100][usize::from(shape >> 4 & 3)];
    let n = u64::from(size);
    let setup = QueueSetup {
        size,
        descriptors: GuestAddr(RING),
        driver: GuestAddr(RING + 16 * n),
        device: GuestAddr((RING + 18 * n + 6).next_multiple_of(4)),
    };
    let how = input.byte();
    let features = RingFeatures {
        format: if shape & 0x40 == 0 { Format::Split } else { Format::Packed },
        event_idx: how & 1 != 0,
        indirect: how & 2 != 0,
        in_order: how & 4 != 0,
    };
    if features.format == Format::Packed && how & 0x80 == 0 {
        return match shape & 0x80 {
            0 => packed::<DeviceReads>(&ram, features, lead, &mut input),
            _ => packed::<DeviceWrites>(&ram, features, lead, &mut input),
        };
    }
    let start = [0, 1, 0x7fff, 0xffff][usize::from(how >> 3 & 3)];
    // Chains may be owed from a life before this one.
    let from = Cursor { avail: start, used: start.wrapping_sub(u16::from(how >> 5 & 3)) };
    ram.write_u16(setup.driver.0 + 2, start);
    if how & 0x80 != 0 {
        return odd_setup(&ram, features, &mut input);
    }
    if shape & 0x80 == 0 {
        steps::<DeviceReads>(&ram, setup, features, from, lead, &mut input);
    } else {
        steps::<DeviceWrites>(&ram, setup, features, from, lead, &mut input);
    }
}

/// A queue at any addresses, of any size: it may be refused, and what comes of it may be a fault.
fn odd_setup(ram: &GuestRam, features: RingFeatures, input: &mut Input<'_>) {
    let setup = QueueSetup {
        size: input.word(),
        descriptors: GuestAddr(input.address()),
        driver: GuestAddr(input.address()),
        device: GuestAddr(input.address()),
    };
    let from = Cursor { avail: input.word(), used: input.word() };
    let Ok(mut queue) = setup.activate(ram.space(), features, from) else { return };
    let mut batch = vionet_queue::Batch::<DeviceReads>::new(ram.space().clone(), 12);
    for _ in 0..4 {
        let _ = queue.take(8, &mut batch);
        queue.put(&mut batch, 2);
        let _ = (queue.publish(), queue.arm());
        queue.disarm();
        queue.untake(&mut batch);
    }
    assert!(queue.stop().is_ok(), "all was given back");
}

fn steps<D: Reach>(
    ram: &GuestRam,
    setup: QueueSetup,
    features: RingFeatures,
    from: Cursor,
    lead: u32,
    input: &mut Input<'_>,
) {
    let mut probe = Probe::<D>::new(ram, setup, features, from, lead).expect("a good setup");
    for _ in 0..STEPS_MAX {
        if input.0.is_empty() {
            break;
        }
        step(ram, &setup, &mut probe, input);
    }
    probe.stop();
}

fn step<D: Reach>(ram: &GuestRam, setup: &QueueSetup, probe: &mut Probe<D>, input: &mut Input<'_>) {
    let (operation, n) = (input.byte(), u64::from(setup.size));
    let avail = setup.driver.0;
    match operation & 15 {
        0 | 1 => {
            let at = setup.descriptors.0 + 16 * (u64::from(input.byte()) % n);
            write_descriptor(ram, at, operation, D::WRITABLE, input);
        }
        2 => {
            let at = 0x4000 + 16 * u64::from(input.byte());
            write_descriptor(ram, at, operation, D::WRITABLE, input);
        }
        3 => {
            let slot = u64::from(input.byte()) % n;
            ram.write_u16(avail + 4 + 2 * slot, u16::from(input.byte()) % (setup.size + 1));
        }
        4 | 5 => {
            let next = ram.read_u16(avail + 2).wrapping_add(u16::from(operation >> 4));
            ram.write_u16(avail + 2, next);
        }
        6 => ram.write_u16(avail + 2, input.word()),
        7 => ram.write_u16(avail, input.word()),
        8 => ram.write_u16(avail + 4 + 2 * n, input.word()),
        9 | 10 => {
            let _ = probe.take(usize::from(operation >> 4) * 5);
        }
        11 => probe.put(usize::from(operation >> 4)),
        12 => probe.untake(),
        13 => {
            let _ = probe.publish();
        }
        14 => {
            let _ = probe.arm();
        }
        _ => {
            probe.disarm();
            let _ = probe.has_work();
        }
    }
}

/// A packed ring of any size and position. What comes out is touched: memory ends at pages that
/// fault. What was taken can always be given back, and the position gone on from.
fn packed<D: Reach>(ram: &GuestRam, features: RingFeatures, lead: u32, input: &mut Input<'_>) {
    let size = 1 + u16::from(input.byte()) % 64;
    let setup = QueueSetup {
        size,
        descriptors: GuestAddr(RING),
        driver: GuestAddr(RING + 0x800),
        device: GuestAddr(RING + 0x804),
    };
    let place = |word: u16| ((word & 0x7fff) % size) | (word & 0x8000);
    let mut from = Cursor { avail: place(input.word()), used: place(input.word()) };
    let mut queue = setup.activate(ram.space(), features, from).expect("a good setup");
    let mut batch = Batch::<D>::new(ram.space().clone(), lead);
    let mut steps = 0;
    while !input.0.is_empty() && steps < STEPS_MAX {
        steps += 1;
        let operation = input.byte();
        let count = usize::from(operation >> 4);
        match operation & 15 {
            0..=4 => {
                let at = RING + 16 * u64::from(input.byte() % 64);
                let (addr, len, id) = (input.address(), input.len(), input.word());
                let lap = [0x80, 0x8000, 0x8080, 0][count & 3];
                let usual = u16::from(D::WRITABLE) << 1;
                let odd = if count & 12 == 12 { u16::from(input.byte()) & 7 } else { usual };
                ram.write_descriptor(at, addr, len, id, lap | odd);
            }
            5 => ram.write_u16(setup.driver.0, input.word()),
            6 => ram.write_u16(setup.driver.0 + 2, u16::from(operation >> 4)),
            7..=9 => {
                let before = batch.len();
                let _ = queue.take(count * 5, &mut batch);
                for index in before..batch.len() {
                    let row = batch.row(index).expect("a row that was taken");
                    let (lead, rest) = D::reach(&mut batch, row);
                    assert_eq!(lead + rest, u64::from(row.bytes()));
                }
            }
            10 => {
                for index in 0..count.min(batch.len()) {
                    D::fill(&mut batch, index);
                }
                queue.put(&mut batch, count);
            }
            11 => queue.untake(&mut batch),
            12 => {
                let _ = queue.publish();
            }
            13 => {
                let _ = (queue.arm(), queue.has_work());
            }
            14 => queue.disarm(),
            _ => {
                queue.untake(&mut batch);
                let _ = queue.publish();
                from = queue.stop().expect("all was given back");
                queue = setup.activate(ram.space(), features, from).expect("a position of its own");
            }
        }
    }
    queue.untake(&mut batch);
    let _ = queue.publish();
    assert!(queue.stop().is_ok(), "all was given back");
}

/// Flags come from the operation's high bits, with the direction that is right as the usual one.
fn write_descriptor(ram: &GuestRam, at: u64, operation: u8, writable: bool, input: &mut Input<'_>) {
    let (high, next) = (u16::from(operation >> 4), u16::from(input.byte()));
    let flags = (high & 5) | (u16::from(writable) << 1 ^ if high & 10 == 10 { 2 } else { 0 });
    let (addr, len) = (input.address(), input.len());
    ram.write_descriptor(at, addr, len, flags, next);
}
