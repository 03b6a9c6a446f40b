//! Two threads on one ring, each asleep as often as it may be: whoever has work is woken.
//!
//! This holds the protocol against real scheduling; that the fences are where they must be it can
//! only make likely.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "tests may stop"
)]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use vionet_queue::{Armed, Batch, Cursor, DeviceReads, Published, Queue};
use vionet_testkit::{Arrangement, Buffer, GuestRam, Random, SplitDriver};

const CHAINS: usize = 60_000;
/// Far longer than any scheduling; who waits this long has been forgotten.
const TOO_LONG: Duration = Duration::from_secs(20);

fn sleep(bell: &Receiver<()>, who: &str) {
    assert_eq!(bell.recv_timeout(TOO_LONG), Ok(()), "{who} sleeps through work");
}

fn device(
    mut queue: Queue,
    mut batch: Batch<DeviceReads>,
    kicks: &Receiver<()>,
    bell: &Sender<()>,
) {
    let (mut done, mut random) = (0, Random::new(3));
    while done < CHAINS {
        queue.disarm();
        let limit = 1 + random.below(12) as usize;
        let taken = queue.take(limit, &mut batch).expect("an honest driver");
        let keep = random.below(3) as usize;
        let count = taken.saturating_sub(keep).max(taken.min(1));
        queue.put(&mut batch, count);
        queue.untake(&mut batch);
        done += count;
        if queue.publish() == Published::Interrupt {
            bell.send(()).unwrap();
        }
        if taken == 0 && queue.arm() == Armed::Sleep {
            sleep(kicks, "the device");
        }
    }
    queue.stop().expect("all is given back");
}

fn driver(mut driver: SplitDriver, interrupts: &Receiver<()>, bell: &Sender<()>) {
    let (mut posted, mut used, mut random) = (0, 0, Random::new(4));
    let mut expected = std::collections::VecDeque::new();
    while used < CHAINS {
        driver.ignore();
        for _ in 0..random.below(8) {
            if posted == CHAINS {
                break;
            }
            let buffer = Buffer::readable(0x8000, 64);
            let Some(head) = driver.post(&[buffer], Arrangement::Direct) else { break };
            expected.push_back(head);
            posted += 1;
        }
        if driver.expose() {
            // The device may have finished and gone.
            bell.send(()).ok();
        }
        let back = driver.collect();
        for chain in &back {
            assert_eq!(expected.pop_front(), Some(chain.head), "in order, once");
        }
        used += back.len();
        let idle = posted == CHAINS || driver.free() == 0;
        if idle && used < CHAINS && back.is_empty() {
            let ahead = random.below(driver.owed() as u64) as u16;
            if !driver.listen(ahead) {
                sleep(interrupts, "the driver");
            }
        }
    }
    assert_eq!(driver.owed(), 0);
}

fn run(event_idx: bool) {
    let ram = GuestRam::new(&[(0x1000, 0x2000), (0x8000, 0x1000)]);
    let side = SplitDriver::new(&ram, 0x1000, 16, event_idx, 0xff00);
    let from = Cursor { avail: 0xff00, used: 0xff00 };
    let queue = side.setup().activate(ram.space(), side.features(), from).unwrap();
    let batch = Batch::new(ram.space().clone(), 12);
    let ((kick, kicks), (interrupt, interrupts)) = (channel(), channel());
    std::thread::scope(|scope| {
        scope.spawn(move || device(queue, batch, &kicks, &interrupt));
        scope.spawn(move || driver(side, &interrupts, &kick));
    });
}

#[test]
fn nobody_sleeps_through_work_with_event_indices() {
    run(true);
}

#[test]
fn nobody_sleeps_through_work_with_flags() {
    run(false);
}
