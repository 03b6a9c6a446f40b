//! Nobody sleeps through work, and nobody reads what is not there yet: the publish and notify
//! protocol of both ring formats under the model checker loom (`cargo xtask loom`).
//!
//! ```text
//!   driver, of the test           cells of the ring             device, the real Queue
//!   -------------------           -----------------             ----------------------
//!   post()  entry, index  --->  loom gives each load   --->  take()     index, entry
//!           fence, look: kick?  each value that it           arm()      wish, fence, look: sleep?
//!   reap()  index, entry  <---  may see, in each       <---  put()      entry
//!   arm()   wish, fence, look   order of the threads         publish()  index, fence, look: wake?
//! ```
//!
//! The device runs the code that it always runs, down to each load, store and fence. Each claim is
//! made twice: it holds of the device, and not of a device with the flaw that it is about. All
//! orders are tried but in the last test, which tries those of two preemptions, or of
//! `LOOM_MAX_PREEMPTIONS`.
#![cfg(loom)]
#![forbid(unsafe_code)]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests may stop"
)]

mod driver;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use loom::sync::Notify;
use loom::thread;
use vionet_queue::{
    Armed, Batch, Cursor, DeviceReads, DeviceWrites, Direction, Format, Published, Queue,
    RingFeatures,
};
use vionet_raw::AddressSpace;
use vionet_raw::model::{Flaw, plant};
use vionet_testkit::GuestRam;

use driver::{Driver, Payloads, SETUP, SIZE, length, written};

/// A ring format, and how notifications are suppressed.
#[derive(Clone, Copy, Debug)]
struct Kind {
    format: Format,
    event_idx: bool,
}

const KINDS: [Kind; 4] = [
    Kind { format: Format::Split, event_idx: false },
    Kind { format: Format::Split, event_idx: true },
    Kind { format: Format::Packed, event_idx: false },
    Kind { format: Format::Packed, event_idx: true },
];

/// The device.
struct Device<D: Direction> {
    queue: Queue,
    batch: Batch<D>,
    payloads: Payloads,
    taken: u16,
}

impl<D: Direction> Device<D> {
    fn new(space: &Arc<AddressSpace>, kind: Kind) -> Self {
        let Kind { format, event_idx } = kind;
        let features = RingFeatures { format, event_idx, indirect: false, in_order: false };
        let queue = SETUP.activate(space, features, Cursor::start(format)).unwrap();
        let batch = Batch::new(Arc::clone(space), 12);
        Self { queue, batch, payloads: Payloads::new(space), taken: 0 }
    }

    /// Takes up to `limit` chains; each must be the one that is next, as it was posted.
    fn take(&mut self, limit: usize) -> usize {
        let count = self.queue.take(limit, &mut self.batch).unwrap_or_else(|fault| {
            panic!("available entry {} is old: {fault}", self.taken);
        });
        let rows = self.batch.live();
        for row in &rows[rows.len() - count..] {
            assert_eq!(row.bytes(), length(self.taken), "available entry {} is old", self.taken);
            if !D::WRITABLE {
                self.payloads.check(self.taken);
            }
            self.taken += 1;
        }
        count
    }

    fn put(&mut self, count: usize) {
        self.queue.put(&mut self.batch, count);
    }
}

impl Device<DeviceWrites> {
    /// Writes to the chain at `index` of the batch, which is buffer `post`.
    fn write(&mut self, index: usize, post: u16) {
        self.payloads.fill(post);
        self.batch.set_written(index, written(post));
    }
}

/// Both sides at the start of an execution: no buffer was posted, nobody wants to be woken.
fn stage<D: Direction>(ram: &GuestRam, kind: Kind) -> (Driver, Payloads, Device<D>) {
    let payloads = Payloads::new(ram.space());
    let driver = Driver::new(ram.space(), kind, D::WRITABLE);
    let mut device = Device::new(ram.space(), kind);
    device.queue.disarm();
    (driver, payloads, device)
}

/// Where a wish may be found: not said, or said for the buffer before.
const WISHES: [bool; 2] = [false, true];

/// The claim holds in all orders, or in those of at most so many preemptions.
fn explore(preemptions: Option<usize>, claim: impl Fn(&GuestRam) + Send + Sync + 'static) {
    let ram = GuestRam::new(&[(0, 4096)]);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions;
    model.max_branches = 10_000;
    model.check(move || claim(&ram));
}

/// The claim holds of the device as it is; of one with the flaw it does not, with this complaint.
fn prove(
    bound: Option<usize>,
    kind: Kind,
    (flaw, complaint): (Flaw, &str),
    claim: impl Fn(&GuestRam, Flaw) + Send + Sync + Copy + 'static,
) {
    explore(bound, move |ram| claim(ram, Flaw::None));
    let flawed = move || explore(bound, move |ram| claim(ram, flaw));
    let panic = catch_unwind(AssertUnwindSafe(flawed)).expect_err("the flaw makes a difference");
    let formatted = panic.downcast_ref::<String>().map(String::as_str);
    let said = formatted.or(panic.downcast_ref::<&str>().copied()).unwrap_or_default();
    assert!(said.contains(complaint), "{kind:?} with {flaw:?} fails otherwise: {said}");
}

#[test]
fn a_kick_is_asked_for_or_the_work_is_seen_and_not_without_the_fence_of_arm() {
    for (kind, armed_before) in KINDS.into_iter().flat_map(|kind| WISHES.map(|w| (kind, w))) {
        prove(None, kind, (Flaw::NoFence, "the device sleeps"), move |ram, flaw| {
            let (mut driver, payloads, mut device) = stage::<DeviceReads>(ram, kind);
            if armed_before {
                assert_eq!(device.queue.arm(), Armed::Sleep);
            }
            payloads.fill(0);
            assert!(driver.post() || !armed_before);
            assert_eq!(device.take(1), 1);
            if !kind.event_idx {
                device.queue.disarm();
            }
            let device = thread::spawn(move || {
                plant(flaw);
                let armed = device.queue.arm();
                if armed == Armed::WorkArrived {
                    // No more than is promised: it does not look at the index again.
                    assert_eq!(device.take(1), 1);
                }
                armed
            });
            payloads.fill(1);
            let kicks = driver.post();
            let armed = device.join().unwrap();
            assert!(kicks || armed == Armed::WorkArrived, "the device sleeps through work");
        });
    }
}

#[test]
fn an_interrupt_is_sent_or_the_buffer_is_seen_and_not_without_the_fence_of_publish() {
    for (kind, armed_before) in KINDS.into_iter().flat_map(|kind| WISHES.map(|w| (kind, w))) {
        prove(None, kind, (Flaw::NoFence, "the driver sleeps"), move |ram, flaw| {
            let (mut driver, payloads, mut device) = stage::<DeviceWrites>(ram, kind);
            driver.post();
            driver.post();
            assert_eq!(device.take(2), 2);
            if armed_before {
                assert!(driver.arm());
            }
            device.write(0, 0);
            device.put(1);
            assert!(device.queue.publish() == Published::Interrupt || !armed_before);
            assert!(driver.reap());
            if !kind.event_idx {
                driver.disarm();
            }
            let device = thread::spawn(move || {
                plant(flaw);
                device.write(0, 1);
                device.put(1);
                device.queue.publish()
            });
            let sleeps = driver.arm();
            if !sleeps {
                assert!(driver.reap());
                payloads.check(1);
            }
            let published = device.join().unwrap();
            assert!(!sleeps || published == Published::Interrupt, "the driver sleeps through it");
        });
    }
}

/// One lap round the ring, so that what is old there looks like something.
fn lap<D: Direction>(
    (driver, payloads, device): (&mut Driver, &Payloads, &mut Device<D>),
    write: impl Fn(&mut Device<D>, usize, u16),
) {
    for post in 0..SIZE {
        payloads.fill(post);
        driver.post();
    }
    assert_eq!(device.take(2), 2);
    (0..SIZE).for_each(|post| write(device, usize::from(post), post));
    device.put(2);
    let _any = device.queue.publish();
    (0..SIZE).for_each(|_| assert!(driver.reap()));
}

#[test]
fn the_device_takes_no_chain_before_its_contents_and_does_without_acquire() {
    for kind in KINDS {
        prove(None, kind, (Flaw::NoAcquire, " is old"), move |ram, flaw| {
            let (mut driver, payloads, mut device) = stage::<DeviceReads>(ram, kind);
            lap((&mut driver, &payloads, &mut device), |_, _, _| ());
            let device = thread::spawn(move || {
                plant(flaw);
                device.take(2);
                device.take(2);
                device
            });
            for post in SIZE..2 * SIZE {
                payloads.fill(post);
                driver.post();
            }
            let mut device = device.join().unwrap();
            device.take(2);
            assert_eq!(device.taken, 2 * SIZE);
        });
    }
}

#[test]
fn the_driver_sees_a_whole_batch_with_its_contents_and_does_not_without_release() {
    for kind in KINDS {
        prove(None, kind, (Flaw::NoRelease, " is old"), move |ram, flaw| {
            let (mut driver, payloads, mut device) = stage::<DeviceWrites>(ram, kind);
            lap((&mut driver, &payloads, &mut device), Device::write);
            driver.post();
            driver.post();
            assert_eq!(device.take(2), 2);
            let device = thread::spawn(move || {
                plant(flaw);
                device.write(0, 2);
                device.write(1, 3);
                device.put(2);
                let _any = device.queue.publish();
            });
            if driver.reap() {
                payloads.check(2);
                assert!(driver.reap(), "the driver sees half a batch");
                payloads.check(3);
            }
            device.join().unwrap();
            while driver.reaped() < 2 * SIZE {
                assert!(driver.reap());
                payloads.check(driver.reaped() - 1);
            }
        });
    }
}

/// Buffers of the whole dance: one more than the ring holds.
const DANCE: u16 = SIZE + 1;

/// Both sides work until all is done, and sleep whenever they may. Loom calls it a deadlock when
/// nobody will ever wake them.
fn dance(ram: &GuestRam, kind: Kind, flaw: Flaw) {
    let (mut driver, payloads, mut device) = stage::<DeviceReads>(ram, kind);
    let kick = Arc::new(Notify::new());
    let interrupt = Arc::new(Notify::new());
    let device = thread::spawn({
        let (kick, interrupt) = (Arc::clone(&kick), Arc::clone(&interrupt));
        move || {
            plant(flaw);
            while device.taken < DANCE {
                let count = device.take(2);
                if count > 0 {
                    device.queue.disarm();
                    device.put(count);
                    if device.queue.publish() == Published::Interrupt {
                        interrupt.notify();
                    }
                } else if device.queue.arm() == Armed::Sleep {
                    kick.wait();
                }
            }
        }
    });
    for post in 0..DANCE {
        // There must be room, and before the end all must be back.
        while post - driver.reaped() == SIZE {
            sleep_or_reap(&mut driver, &interrupt);
        }
        payloads.fill(post);
        if driver.post() {
            kick.notify();
        }
    }
    while driver.reaped() < DANCE {
        sleep_or_reap(&mut driver, &interrupt);
    }
    device.join().unwrap();
}

fn sleep_or_reap(driver: &mut Driver, interrupt: &Notify) {
    if driver.reap() {
        driver.disarm();
    } else if driver.arm() {
        interrupt.wait();
    }
}

#[test]
fn both_sides_sleep_and_wake_until_all_is_done_and_do_not_without_fences() {
    let bound = loom::model::Builder::new().preemption_bound.or(Some(2));
    for kind in KINDS {
        prove(bound, kind, (Flaw::NoFence, "deadlock"), move |ram, flaw| dance(ram, kind, flaw));
    }
}
