//! Descriptors that change: after they were read, and while they are.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "tests may stop"
)]

use std::sync::atomic::{AtomicBool, Ordering};

use vionet_queue::{Batch, DeviceReads, DeviceWrites, Fault, Format, RingFeatures};
use vionet_raw::copy_out;
use vionet_testkit::attack::{Attack, Ground, Manners, REGIONS, RINGS};
use vionet_testkit::{GuestRam, Random, Reach, each_seed};

const FORMATS: [Format; 2] = [Format::Split, Format::Packed];

fn manners<D: Reach>(format: Format) -> Manners {
    Manners { format, writable: D::WRITABLE, indirect: true }
}

fn features(format: Format) -> RingFeatures {
    RingFeatures { format, event_idx: false, indirect: true, in_order: false }
}

/// Lists are taken, their descriptors made nonsense of, and then used.
fn change<D: Reach>(ram: &GuestRam, format: Format, seed: u64, look: impl Fn(&Batch<D>, usize)) {
    let mut random = Random::new(seed);
    let mut ground = Ground::new(ram, RINGS[0], manners::<D>(format), &mut random);
    let start = ground.cursor();
    let mut queue = ground.setup().activate(ram.space(), features(format), start).unwrap();
    let mut batch = Batch::<D>::new(ram.space().clone(), 12);
    ground.attack(Attack::Changed, &mut random);
    ground.expose();
    assert_eq!(queue.take(64, &mut batch), Ok(2));
    ground.second_act(Attack::Changed, &mut random).unwrap();
    for (index, (_, len)) in ground.good().enumerate() {
        let row = batch.row(index).unwrap();
        assert_eq!(row.bytes(), len, "as it was when it was read");
        assert_eq!(D::reach(&mut batch, row), (12, u64::from(len) - 12));
        look(&batch, index);
        D::fill(&mut batch, index);
    }
    queue.put(&mut batch, 2);
    let _told = queue.publish();
    assert_eq!(queue.stop().unwrap(), ground.cursor());
}

#[test]
fn what_was_taken_is_used_as_it_was_read() {
    each_seed(20_000, |seed| {
        let ram = GuestRam::new(REGIONS);
        let format = FORMATS[usize::from(seed % 2 == 1)];
        change::<DeviceReads>(&ram, format, seed, |batch, index| {
            let row = batch.row(index).unwrap();
            let mut bytes = vec![0; row.bytes() as usize];
            let lead = copy_out(batch.lead(row), 0, &mut bytes);
            let rest = copy_out(batch.payload(row), 0, bytes.get_mut(lead..).unwrap());
            assert_eq!(lead + rest, bytes.len());
        });
        change::<DeviceWrites>(&ram, format, seed, |_, _| {});
    });
}

/// All of the last region of buffers, and its last bytes: either is good, and the address of one
/// with the length of the other is not.
const WHOLE: (u64, u32) = (0x4_2000, 0x1000);
const END: (u64, u32) = (0x4_2fe0, 0x20);

/// Ends the other side, also when a test goes wrong.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn race<D: Reach>(format: Format) {
    let (ram, mut random) = (GuestRam::new(REGIONS), Random::new(7));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for (at, len) in [WHOLE, END] {
                    for ring in RINGS {
                        ram.write(ring, &[&at.to_le_bytes()[..], &len.to_le_bytes()].concat());
                    }
                }
            }
        });
        let _ends = Ends(&done);
        for round in 0..20_000 {
            let ring = RINGS[round % 2];
            let mut ground = Ground::new(&ram, ring, manners::<D>(format), &mut random);
            let start = ground.cursor();
            let mut queue = ground.setup().activate(ram.space(), features(format), start).unwrap();
            let mut batch = Batch::<D>::new(ram.space().clone(), 12);
            ground.add_good(&mut random);
            ground.expose();
            match queue.take(64, &mut batch) {
                Ok(count) => {
                    assert_eq!(count, 1);
                    let row = batch.row(0).unwrap();
                    let (lead, rest) = D::reach(&mut batch, row);
                    assert_eq!(lead + rest, u64::from(row.bytes()), "checked is what is used");
                }
                Err(fault) => assert_eq!(fault, Fault::BufferUnmapped),
            }
            queue.untake(&mut batch);
            assert!(queue.stop().is_ok());
        }
    });
}

#[test]
fn what_changes_while_it_is_read_is_used_as_it_was_checked() {
    for format in FORMATS {
        race::<DeviceReads>(format);
        race::<DeviceWrites>(format);
    }
}
