//! Rings gone wrong, by seed: what an honest driver has written, with bits of it spoilt.

use vionet_queue::QueueSetup;

use crate::{GuestRam, Random};

/// Addresses and lengths that are worth trying anywhere.
const NUMBERS: &[u64] = &[
    0,
    1,
    2,
    15,
    16,
    17,
    0xfff,
    0x1000,
    0x1001,
    0x7fff,
    0x8000,
    0xffff,
    0x10000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_f000,
    0xffff_ffff_ffff_ffff,
];

fn number(random: &mut Random, near: u64) -> u64 {
    match random.below(4) {
        0 => random.one_of(NUMBERS),
        1 => near.wrapping_add(random.below(64)).wrapping_sub(32),
        2 => near ^ 1 << random.below(64),
        _ => random.next(),
    }
}

/// Spoils one thing in the ring: an index, a head, or a field of a descriptor.
pub fn spoil(ram: &GuestRam, setup: &QueueSetup, random: &mut Random) {
    let slot = random.below(setup.size.into());
    let descriptor = setup.descriptors.0 + 16 * slot;
    match random.below(10) {
        0 => {
            let at = setup.driver.0 + 2;
            let idx = number(random, ram.read_u16(at).into());
            ram.write_u16(at, idx as u16);
        }
        1 => {
            let head = number(random, setup.size.into());
            ram.write_u16(setup.driver.0 + 4 + 2 * slot, head as u16);
        }
        2 | 3 => spoil_descriptor(ram, descriptor, random),
        4 => ram.write(descriptor, &number(random, setup.descriptors.0).to_le_bytes()),
        5 => ram.write(descriptor + 8, &(number(random, 64) as u32).to_le_bytes()),
        6 => ram.write_u16(descriptor + 12, random.below(8) as u16),
        7 => ram.write_u16(descriptor + 14, number(random, setup.size.into()) as u16),
        8 => ram.write_u16(setup.driver.0, random.next() as u16),
        _ => {
            let at = setup.driver.0 + 4 + 2 * u64::from(setup.size);
            ram.write_u16(at, random.next() as u16);
        }
    }
}

/// Spoils one field of the descriptor at `at`, in a table of either kind.
pub fn spoil_descriptor(ram: &GuestRam, at: u64, random: &mut Random) {
    let word = u64::from_le_bytes(ram.read(at, 8).try_into().expect("eight bytes"));
    match random.below(4) {
        0 => ram.write(at, &number(random, word).to_le_bytes()),
        1 => ram.write(at + 8, &(number(random, 1500) as u32).to_le_bytes()),
        2 => ram.write_u16(at + 12, random.below(8) as u16),
        _ => ram.write_u16(at + 14, random.below(20) as u16),
    }
}
