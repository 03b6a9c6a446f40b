//! No interrupt is lost, whatever the driver does to where it goes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;

const OFF: Gates = Gates { enabled: false, open: false, line: true };
const MASKED: Gates = Gates { enabled: true, open: false, line: false };
const OPEN: Gates = Gates { enabled: true, open: true, line: false };
const QUEUE: QueueIndex = QueueIndex(0);

/// No message may be sent.
struct Quiet;

impl Lines for Quiet {
    fn level(&self, _asserted: bool) {}

    fn message(&self, _vector: u16, _message: Message) {
        panic!("all vectors are masked whenever they are enabled");
    }
}

#[test]
fn vectors_that_are_enabled_and_masked_at_once_are_never_open() {
    let vectors = Vectors::new(1, 1, Arc::new(Quiet), OFF);
    vectors.map_queue(QUEUE, 0);
    vectors.write_table(12, 0);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                vectors.queue(QUEUE);
            }
        });
        for _ in 0..200_000 {
            vectors.let_through(MASKED);
            vectors.let_through(OFF);
        }
        done.store(true, Ordering::Relaxed);
        worker.join().unwrap();
    });
}

/// What has come out.
#[derive(Default)]
struct Seen {
    asserted: AtomicBool,
    sent: Mutex<Vec<u16>>,
}

impl Lines for Seen {
    fn level(&self, asserted: bool) {
        assert_ne!(self.asserted.swap(asserted, Ordering::SeqCst), asserted);
    }

    fn message(&self, vector: u16, _message: Message) {
        held(&self.sent).push(vector);
    }
}

/// The write of another vCPU that was on its way when the reset began.
#[test]
fn nothing_is_let_through_before_the_end_of_a_reset_whatever_is_written_meanwhile() {
    let seen = Arc::<Seen>::default();
    let lines: Arc<dyn Lines> = Arc::<Seen>::clone(&seen);
    let vectors = Vectors::new(1, 1, lines, OFF);
    let asserts = || {
        vectors.config();
        seen.asserted.load(Ordering::SeqCst)
    };
    vectors.power_on(OFF);
    vectors.let_through(OFF);
    assert!(!asserts(), "it is being reset");
    vectors.power_on(OFF);
    assert!(!asserts(), "and again");
    vectors.let_through(Gates { line: false, ..OFF });
    vectors.reset();
    assert!(!asserts(), "as was written last");
    vectors.let_through(OFF);
    assert!(asserts());
}

/// What a worker, the control plane or the driver does.
#[derive(Clone, Copy, Debug)]
enum Act {
    Used,
    Changed,
    LetThrough(Gates),
    Mask(u16, bool),
    Map(u16),
    ReadIsr,
}

const ACTS: [Act; 13] = [
    Act::Used,
    Act::Changed,
    Act::LetThrough(OFF),
    Act::LetThrough(Gates { line: false, ..OFF }),
    Act::LetThrough(MASKED),
    Act::LetThrough(OPEN),
    Act::Mask(0, true),
    Act::Mask(0, false),
    Act::Mask(1, true),
    Act::Mask(1, false),
    Act::Map(0),
    Act::Map(1),
    Act::ReadIsr,
];

/// One queue, whose events the driver must come to know of, and the configuration on vector 2.
struct World {
    seen: Arc<Seen>,
    vectors: Vectors,
    gates: Gates,
    masked: [bool; 3],
    /// Events that the driver has not been told of.
    owed: [bool; 2],
}

impl World {
    fn new() -> Self {
        let seen = Arc::<Seen>::default();
        let lines: Arc<dyn Lines> = Arc::<Seen>::clone(&seen);
        let vectors = Vectors::new(3, 1, lines, OFF);
        vectors.map_queue(QUEUE, 0);
        vectors.map_config(2);
        vectors.write_table(12, 0);
        vectors.write_table(2 * 16 + 12, 0);
        let (masked, owed) = ([false, true, false], [false; 2]);
        Self { seen, vectors, gates: OFF, masked, owed }
    }

    fn act(&mut self, act: Act) {
        let mut taken = 0;
        match act {
            Act::Used => {
                self.owed[0] = true;
                self.vectors.queue(QUEUE);
            }
            Act::Changed => {
                self.owed[1] = true;
                self.vectors.config();
            }
            Act::LetThrough(gates) => {
                self.gates = gates;
                self.vectors.let_through(gates);
            }
            Act::Mask(vector, masked) => {
                self.masked[usize::from(vector)] = masked;
                self.vectors.write_table(u64::from(vector) * 16 + 12, masked.into());
            }
            Act::Map(vector) => self.vectors.map_queue(QUEUE, vector.into()),
            Act::ReadIsr => taken = self.vectors.take_reasons(),
        }
        let bits = [ISR_QUEUE, ISR_CONFIG];
        let sent = std::mem::take(&mut *held(&self.seen.sent));
        for vector in sent {
            assert!(self.gates.open && !self.masked[usize::from(vector)]);
            self.owed[usize::from(vector == 2)] = false;
        }
        let (reasons, pending) = (self.vectors.reasons(), self.vectors.read_pending(0));
        for (event, bit) in bits.into_iter().enumerate() {
            self.owed[event] &= taken & bit == 0;
            let vectors = if event == 0 { 0b011 } else { 0b100 };
            let shows =
                if self.gates.enabled { pending & vectors != 0 } else { reasons & bit != 0 };
            assert!(!self.owed[event] || shows, "event {event} is lost");
        }
        let asserted = self.seen.asserted.load(Ordering::SeqCst);
        assert_eq!(asserted, self.gates.line && reasons != 0);
    }
}

/// A worker raises an interrupt before a change or after it, never within: so all orders of what
/// they do are all there is.
#[test]
fn no_order_of_events_and_changes_loses_an_interrupt() {
    const DEPTH: u32 = 5;
    let count = ACTS.len();
    for order in 0..count.pow(DEPTH) {
        let acts = (0..DEPTH).map(|place| ACTS[order / count.pow(place) % count]);
        let mut world = World::new();
        let acts: Vec<_> = acts.collect();
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            acts.iter().for_each(|act| world.act(*act));
        }));
        assert!(run.is_ok(), "{acts:?}");
    }
}

#[test]
fn no_interrupt_is_lost_while_the_driver_changes_its_mind() {
    let seen = Arc::<Seen>::default();
    let lines: Arc<dyn Lines> = Arc::<Seen>::clone(&seen);
    let vectors = Vectors::new(2, 1, lines, OFF);
    vectors.map_queue(QUEUE, 0);
    vectors.write_table(12, 0);
    vectors.write_table(16 + 12, 0);
    let start = std::sync::Barrier::new(2);
    let changes: [&(dyn Fn() + Sync); 6] = [
        &|| vectors.let_through(OPEN),
        &|| vectors.let_through(OFF),
        &|| vectors.let_through(MASKED),
        &|| vectors.let_through(OPEN),
        &|| vectors.map_queue(QUEUE, 1),
        &|| vectors.write_table(16 + 12, 1),
    ];
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..3000 * changes.len() {
                start.wait();
                vectors.queue(QUEUE);
                start.wait();
            }
        });
        for round in 0..3000 {
            vectors.let_through(OFF);
            vectors.map_queue(QUEUE, 0);
            vectors.write_table(16 + 12, 0);
            for (number, change) in changes.iter().enumerate() {
                start.wait();
                change();
                start.wait();
                let sent = !std::mem::take(&mut *held(&seen.sent)).is_empty();
                let pending = vectors.read_pending(0) != 0;
                let line = seen.asserted.load(Ordering::SeqCst);
                assert!(sent || pending || line, "change {number} of round {round}");
                vectors.take_reasons();
            }
        }
    });
}
