//! Rings with any one thing spoilt, over and over: nothing panics, spins or leaves guest memory,
//! and the queue finds exactly what is wrong.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "tests may stop"
)]

use std::collections::HashMap;

use vionet_queue::{Cursor, DeviceReads, DeviceWrites, Fault};
use vionet_testkit::hostile::{spoil, spoil_descriptor};
use vionet_testkit::{Arrangement, Buffer, GuestRam, Probe, Random, Reach, SplitDriver};

const RING: u64 = 0x1000;
const TABLES: u64 = 0x8000;
const ROUNDS: u64 = 60_000;

/// An honest ring of 16 with some chains in it.
fn ring<D: Reach>(ram: &GuestRam, random: &mut Random) -> SplitDriver {
    let start = random.one_of(&[0, 7, 0xfff8]);
    let mut driver = SplitDriver::new(ram, RING, 16, random.once_in(2), start);
    for chain in 0..random.below(10) {
        let count = 1 + random.below(4);
        let buffers: Vec<_> = (0..count)
            .map(|_| Buffer {
                at: 0x4000 + random.below(0x2000),
                len: 1 + random.below(0x1000) as u32,
                writable: D::WRITABLE,
            })
            .collect();
        let table = TABLES + 0x100 * chain;
        let (direct, reversed) = (random.below(2) as usize, random.once_in(2));
        let arrangement = if random.once_in(2) {
            Arrangement::Direct
        } else {
            Arrangement::Indirect { direct, table, reversed }
        };
        driver.post(&buffers, arrangement);
    }
    driver.expose();
    driver
}

fn attack<D: Reach>(seed: u64) -> HashMap<Fault, u32> {
    let mut random = Random::new(seed);
    let ram =
        GuestRam::new(&[(RING, 0x1000), (0x4000, 0x1000), (0x5000, 0x2000), (TABLES, 0x1000)]);
    let mut found = HashMap::new();
    for _ in 0..ROUNDS {
        let driver = ring::<D>(&ram, &mut random);
        let setup = driver.setup();
        let start = driver.used_idx();
        let from = Cursor { avail: start, used: start };
        let mut probe = Probe::<D>::new(&ram, setup, driver.features(), from, 12).unwrap();
        for _ in 0..1 + random.below(3) {
            if random.once_in(3) {
                let at = TABLES + 0x100 * random.below(10) + 16 * random.below(4);
                spoil_descriptor(&ram, at, &mut random);
            } else {
                spoil(&ram, &setup, &mut random);
            }
            if let Err(fault) = probe.take(random.below(20) as usize) {
                *found.entry(fault).or_default() += 1;
            }
            probe.put(random.below(6) as usize);
            let _told = probe.publish();
            if random.once_in(4) {
                probe.untake();
            }
            let _armed = probe.arm();
        }
        probe.stop();
    }
    found
}

#[test]
fn a_spoilt_transmit_ring_breaks_the_rule_it_breaks_and_nothing_else() {
    let found = attack::<DeviceReads>(0x7a);
    assert!(found.contains_key(&Fault::WritableInTransmit), "{found:?}");
    assert!(found.len() >= 12, "the attack comes to most rules: {found:?}");
}

#[test]
fn a_spoilt_receive_ring_breaks_the_rule_it_breaks_and_nothing_else() {
    let found = attack::<DeviceWrites>(0x12);
    assert!(found.contains_key(&Fault::ReadableInReceive), "{found:?}");
    assert!(found.len() >= 13, "the attack comes to most rules: {found:?}");
}
