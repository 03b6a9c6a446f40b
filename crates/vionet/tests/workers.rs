//! Workers: pairs on threads of their own and on shared ones, asleep and awake.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    missing_docs,
    reason = "tests may stop"
)]

use std::num::NonZeroU16;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use vionet::endpoint::{
    Capabilities, Endpoint, EndpointFault, EndpointQueue, OpenError, RxSink, Settings, TxBatch,
    Watch,
};
use vionet::{
    Device, Interrupt, NicConfig, Op, PairIndex, QueueIndex, Report, WorkerOptions, Workers,
};
use vionet_frame::header::Offloads;
use vionet_queue::Cursor;
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_testkit::{Arrangement, Buffer, GuestRam, SplitDriver};

const TX: QueueIndex = QueueIndex(1);
const SIZE: u16 = 64;

/// Counts frames; breaks at one that is 99 bytes long, and takes 12 seconds for one of 98.
struct Counter(Arc<AtomicU64>);

impl Endpoint for Counter {
    fn name(&self) -> String {
        "counter".into()
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { transmit: Offloads::NONE, receive: Offloads::NONE, pairs_max: 1, mtu: 1500 }
    }
    fn adapt(&mut self, _: &Settings) -> Result<(), OpenError> {
        Ok(())
    }

    fn open(&mut self, _: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        Ok(vec![Box::new(Self(Arc::clone(&self.0)))])
    }
}

impl EndpointQueue for Counter {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        assert!(frames.frames().iter().all(|frame| frame.len != 99), "a planted defect");
        self.0.fetch_add(frames.frames().len() as u64, Ordering::SeqCst);
        if frames.frames().iter().any(|frame| frame.len == 98) {
            std::thread::sleep(Duration::from_secs(12));
        }
        frames.sent(frames.frames().len());
        Ok(())
    }
    fn receive(&mut self, _: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        Ok(())
    }
    fn watch(&self) -> Watch {
        Watch::default()
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// An interrupt through a descriptor.
struct Call(OwnedFd);

impl Interrupt for Call {
    fn raise(&self) {
        let (Ok(_) | Err(_)) = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

struct Guest {
    device: Device,
    ram: GuestRam,
    tx: SplitDriver,
    kick: OwnedFd,
    sent: Arc<AtomicU64>,
}

fn counter() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

impl Guest {
    fn new(workers: &Workers, call: Option<OwnedFd>) -> Self {
        let sent = Arc::<AtomicU64>::default();
        let config = NicConfig { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, ..NicConfig::default() };
        let endpoint = Box::new(Counter(Arc::clone(&sent)));
        let mut device = Device::with_workers(config, endpoint, workers).unwrap();
        let ram = GuestRam::new(&[(0x1_0000, 0x1_0000), (0x10_0000, 0x1_0000)]);
        let tx = SplitDriver::new(&ram, 0x1_0000, SIZE, true, 0);
        let kick = counter();
        let bits = FeatureBits::of(&[Feature::VERSION_1, Feature::EVENT_IDX]);
        device.apply(Op::Negotiate(bits)).unwrap();
        device.apply(Op::Memory(Arc::clone(ram.space()))).unwrap();
        device.set_kick(TX, Some(kick.try_clone().unwrap())).unwrap();
        let call = call.map(|call| -> Arc<dyn Interrupt> { Arc::new(Call(call)) });
        device.apply(Op::SetInterrupt(TX, call)).unwrap();
        device.apply(Op::EnableQueue(TX, true)).unwrap();
        let (setup, cursor) = (tx.setup(), Cursor::default());
        device.apply(Op::StartQueue { index: TX, setup, cursor }).unwrap();
        Self { device, ram, tx, kick, sent }
    }

    /// Sends a frame, with a kick if the device wants one.
    fn send(&mut self, len: u32) -> bool {
        self.ram.write(0x10_0000, &vec![0; 12 + len as usize]);
        let buffer = Buffer::readable(0x10_0000, 12 + len);
        self.tx.post(&[buffer], Arrangement::Direct).expect("room in the ring");
        let wanted = self.tx.expose();
        if wanted {
            rustix::io::write(&self.kick, &1_u64.to_ne_bytes()).unwrap();
        }
        wanted
    }

    fn wait_for(&mut self, sent: u64) {
        let start = Instant::now();
        while self.sent.load(Ordering::SeqCst) < sent {
            assert!(start.elapsed() < Duration::from_secs(5), "a frame is not sent");
            std::thread::yield_now();
        }
    }

    fn next_report(&mut self) -> Report {
        let start = Instant::now();
        loop {
            if let Some(report) = self.device.next_report() {
                return report;
            }
            assert!(start.elapsed() < Duration::from_secs(5), "no report");
            std::thread::yield_now();
        }
    }
}

fn shared(threads: u16, poll: Duration) -> Workers {
    Workers::new(WorkerOptions { threads: NonZeroU16::new(threads), poll })
}

/// The threads of this process whose names begin so, with their switches to sleep.
fn threads(name: &str) -> Vec<u64> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let status = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("status"));
    let all = tasks.filter_map(|task| status(task.unwrap()).ok());
    let named = all.filter(|status| status.starts_with(&format!("Name:\t{name}")));
    let switches = |status: String| -> u64 {
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse().unwrap()
    };
    named.map(switches).collect()
}

/// Threads are counted: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn pairs_share_threads_which_sleep_until_there_is_work_and_end_with_the_last_of_them() {
    let _alone = alone();
    let workers = shared(2, Duration::ZERO);
    let mut guests: Vec<_> = (0..9).map(|_| Guest::new(&workers, None)).collect();
    assert_eq!(threads("vionet-work").len(), 2);
    for round in 1..=50 {
        for guest in &mut guests {
            guest.send(60);
        }
        for guest in &mut guests {
            guest.wait_for(round);
            guest.tx.collect();
        }
    }
    // Half of them go; the rest does not mind, and new ones take their places.
    guests.truncate(4);
    for guest in &mut guests {
        guest.send(60);
        guest.wait_for(51);
    }
    guests.push(Guest::new(&workers, None));
    guests[4].send(60);
    guests[4].wait_for(1);
    assert_eq!(threads("vionet-work").len(), 2);
    std::thread::sleep(Duration::from_millis(50));
    let before = threads("vionet-work");
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(threads("vionet-work"), before, "idle pairs wake nobody");
    drop(guests);
    assert_eq!(threads("vionet-work").len(), 0);
    assert_eq!(threads("vionet-pair").len(), 0);
    let _own = Guest::new(&Workers::default(), None);
    assert_eq!(threads("vionet-pair").len(), 1);
}

#[test]
fn a_defect_in_one_pair_leaves_the_others_on_its_thread_alone() {
    let _alone = alone();
    let workers = shared(1, Duration::ZERO);
    let mut guests: Vec<_> = (0..3).map(|_| Guest::new(&workers, None)).collect();
    guests[1].send(99);
    assert_eq!(guests[1].next_report(), Report::Lost(PairIndex(0)));
    for at in [0, 2] {
        guests[at].send(60);
        guests[at].wait_for(1);
    }
    assert!(guests[1].device.apply(Op::StopQueue(TX)).is_ok());
    assert!(guests[1].device.apply(Op::Reset).is_ok());
}

#[test]
fn a_worker_that_does_not_answer_is_reported_and_waited_for_no_longer_than_10_seconds() {
    let _alone = alone();
    let mut guest = Guest::new(&Workers::default(), None);
    guest.send(98);
    guest.wait_for(1);
    let start = Instant::now();
    guest.device.apply(Op::StopQueue(TX)).unwrap();
    let took = start.elapsed();
    assert!((10..12).contains(&took.as_secs()), "{took:?}");
    assert_eq!(guest.device.cursor(TX), None, "where it stands nobody knows");
    assert_eq!(guest.next_report(), Report::Silent(PairIndex(0)));
    guest.device.apply(Op::Reset).unwrap();
    assert_eq!(guest.device.next_report(), None, "once is enough");
    // The worker lives, and ends as it should.
    drop(guest);
    assert_eq!(threads("vionet-pair").len(), 0);
}

#[test]
fn a_worker_stuck_in_an_interrupt_gives_its_pairs_back() {
    let _alone = alone();
    let workers = shared(1, Duration::ZERO);
    let call = counter();
    let theirs = call.try_clone().unwrap();
    let mut stuck = Guest::new(&workers, Some(call));
    let mut other = Guest::new(&workers, None);
    stuck.send(60);
    stuck.wait_for(1);
    // The frame is counted before its interrupt is raised.
    while stuck.device.stats().next().unwrap().tx.interrupts.value() == 0 {
        std::thread::yield_now();
    }
    // The other holder of the descriptor fills it and makes it blocking behind our back.
    rustix::io::ioctl_fionbio(&theirs, false).unwrap();
    let (Ok(_) | Err(_)) = rustix::io::read(&theirs, &mut [0; 8]);
    rustix::io::write(&theirs, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    stuck.tx.collect();
    stuck.tx.listen(0);
    stuck.send(60);
    stuck.wait_for(2);
    std::thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    stuck.device.apply(Op::StopQueue(TX)).unwrap();
    assert_eq!(stuck.device.cursor(TX).unwrap().used, 2);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    other.send(60);
    other.wait_for(1);
    drop(stuck);
    drop(other);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn a_pair_that_spins_wants_no_kicks_and_sleeps_when_the_work_has_ended() {
    let _alone = alone();
    let workers = shared(1, Duration::from_millis(20));
    let mut guest = Guest::new(&workers, None);
    let mut kicks = 0;
    for sent in 1..=200 {
        kicks += u32::from(guest.send(60));
        guest.wait_for(sent);
        guest.tx.collect();
    }
    assert!(kicks < 100, "{kicks} of 200 frames were kicked for");
    std::thread::sleep(Duration::from_millis(200));
    assert!(guest.send(60), "it sleeps, and has asked for a kick");
    guest.wait_for(201);
}
