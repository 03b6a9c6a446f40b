//! A device of several pairs with real workers: its driver, and a host side of test frames.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use vionet::endpoint::{
    Capabilities, Delivery, Endpoint, EndpointFault, EndpointQueue, Inlet, OpenError, Refused,
    RxHeader, RxSink, Settings, TxBatch, Watch,
};
use vionet::stats::{DropReason, PairStats};
use vionet::{Device, Interrupt, NicConfig, Op, PairIndex, QueueIndex, Report, Workers};
use vionet_frame::header::Offloads;
use vionet_queue::Cursor;
use vionet_raw::copy_out;
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_testkit::{Arrangement, Buffer, GuestRam, SplitDriver};

pub const SIZE: u16 = 64;
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const OK: u8 = 0;
pub const ERR: u8 = 1;
const ROOM: u64 = 2048;
/// Rings, then buffers: those of each queue lie together.
const RINGS: u64 = 0x10_0000;
const BUFFERS: u64 = 0x100_0000;
const HEADER: usize = 12;
/// Long enough for a busy machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What a host side of several pairs is told and brings; shared with the test.
#[derive(Default)]
pub struct World {
    /// Frames that come by each pair.
    pub to_deliver: Vec<VecDeque<Vec<u8>>>,
    /// Frames that the guest has sent on each pair.
    pub sent: Vec<Vec<Vec<u8>>>,
    pub opened: Vec<Settings>,
    pub adapted: Vec<Settings>,
    /// Frames are fetched into a window, as from a tap.
    pub by_window: bool,
    /// Windows that were filled, over all.
    pub fetched: u64,
    /// Others deliver: each pair has an inlet.
    pub with_inlets: bool,
    pub inlets: Vec<Arc<Inlet>>,
}

#[derive(Clone)]
pub struct Host(Arc<(Mutex<World>, Vec<OwnedFd>)>);

impl Host {
    pub fn new(pairs: u16) -> Self {
        let count = usize::from(pairs);
        let world = World {
            to_deliver: vec![VecDeque::new(); count],
            sent: vec![Vec::new(); count],
            ..World::default()
        };
        Self(Arc::new((Mutex::new(world), (0..count).map(|_| counter()).collect())))
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.0.0.lock().unwrap()
    }

    /// Frames come by a pair.
    pub fn bring(&self, pair: usize, frames: impl IntoIterator<Item = Vec<u8>>) {
        self.world().to_deliver[pair].extend(frames);
        ring(&self.0.1[pair]);
    }

    pub fn sent(&self, pair: usize) -> usize {
        self.world().sent[pair].len()
    }

    /// Frames that the host side still has.
    pub fn waiting(&self) -> usize {
        self.world().to_deliver.iter().map(VecDeque::len).sum()
    }
}

impl Endpoint for Host {
    fn name(&self) -> String {
        "test".into()
    }

    fn capabilities(&self) -> Capabilities {
        let (transmit, receive) = (Offloads::NONE, Offloads::NONE);
        Capabilities { transmit, receive, pairs_max: self.0.1.len() as u16, mtu: 1500 }
    }

    fn open(&mut self, settings: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        let mut world = self.world();
        world.opened.push(*settings);
        let inlets = if world.with_inlets { settings.pairs } else { 0 };
        world.inlets = (0..inlets).map(|_| Arc::new(Inlet::new().unwrap())).collect();
        let queue = |pair| -> Box<dyn EndpointQueue> {
            let (pair, inlet) = (usize::from(pair), world.inlets.get(usize::from(pair)).cloned());
            Box::new(HostQueue { host: self.clone(), pair, inlet })
        };
        Ok((0..settings.pairs).map(queue).collect())
    }

    fn adapt(&mut self, settings: &Settings) -> Result<(), OpenError> {
        self.world().adapted.push(*settings);
        Ok(())
    }
}

struct HostQueue {
    host: Host,
    pair: usize,
    inlet: Option<Arc<Inlet>>,
}

impl EndpointQueue for HostQueue {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        let mut world = self.host.world();
        for frame in frames.frames() {
            let mut bytes = vec![0; frame.len as usize];
            assert_eq!(copy_out(frames.bytes(frame), 0, &mut bytes), bytes.len());
            world.sent[self.pair].push(bytes);
        }
        frames.sent(frames.frames().len());
        Ok(())
    }

    fn receive(&mut self, sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        // Silent first: what is brought from here on rings again.
        let (Ok(_) | Err(_)) = rustix::io::read(&self.host.0.1[self.pair], &mut [0; 8]);
        let mut world = self.host.world();
        while let Some(frame) = world.to_deliver[self.pair].pop_front() {
            if world.by_window {
                let Some(window) = sink.window(1514) else {
                    world.to_deliver[self.pair].push_front(frame);
                    break;
                };
                vionet_raw::copy_in(window, 0, &frame);
                sink.commit(frame.len() as u32, &RxHeader::PLAIN);
                world.fetched += 1;
            } else if sink.push(&RxHeader::PLAIN, &frame) == Err(Refused::Full) {
                world.to_deliver[self.pair].push_front(frame);
                break;
            }
        }
        if !world.to_deliver[self.pair].is_empty() {
            ring(&self.host.0.1[self.pair]);
        }
        Ok(())
    }

    fn watch(&self) -> Watch {
        Watch { readable: true, ..Watch::default() }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.host.0.1[self.pair].as_fd())
    }

    fn inlet(&self) -> Option<Arc<Inlet>> {
        self.inlet.clone()
    }
}

/// Pushes frames as another NIC's worker does; false when the door is closed.
pub fn deliver(inlet: &Inlet, frames: &[Vec<u8>]) -> bool {
    let delivery = inlet.deliver(now(), |sink| {
        for frame in frames {
            let (Ok(()) | Err(_)) = sink.push(&RxHeader::PLAIN, frame);
        }
    });
    delivery == Delivery::Done
}

/// A time that is not far from the workers'.
pub fn now() -> vionet::Instant {
    use std::sync::OnceLock;
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    vionet::Instant::from_nanos(ORIGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64)
}

/// Counts the interrupts of a queue.
#[derive(Clone, Default)]
pub struct Bell(Arc<AtomicU64>);

impl Bell {
    pub fn rung(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Interrupt for Bell {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

pub fn counter() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

pub fn ring(fd: &OwnedFd) {
    rustix::io::write(fd, &1_u64.to_ne_bytes()).unwrap();
}

/// A queue as its driver has it.
pub struct Queue {
    pub index: QueueIndex,
    pub driver: SplitDriver,
    pub bell: Bell,
    kick: OwnedFd,
    /// Where the buffer of each head is.
    buffers: Vec<u64>,
    next: u64,
}

impl Queue {
    fn new(ram: &GuestRam, place: u16, index: u16, event_idx: bool) -> Self {
        let at = RINGS + u64::from(place) * 0x2000;
        let driver = SplitDriver::new(ram, at, SIZE, event_idx, 0);
        let buffers = vec![0; usize::from(SIZE)];
        let index = QueueIndex(index);
        Self { index, driver, bell: Bell::default(), kick: counter(), buffers, next: 0 }
    }

    fn place(&mut self, number: u16) -> u64 {
        let at = u64::from(number) * u64::from(SIZE) + self.next % u64::from(SIZE);
        self.next += 1;
        BUFFERS + at * ROOM
    }

    /// Makes what was posted visible, and kicks if the device wants that.
    pub fn expose(&mut self) {
        if self.driver.expose() {
            ring(&self.kick);
        }
    }
}

/// A guest: a device of several pairs, every queue of it running, the last one for commands.
pub struct Guest {
    pub device: Device,
    pub host: Host,
    pub ram: GuestRam,
    pub rx: Vec<Queue>,
    pub tx: Vec<Queue>,
    pub control: Queue,
    /// Frames that have arrived on each pair.
    pub got: Vec<Vec<Vec<u8>>>,
}

impl Guest {
    pub fn new(pairs: u16, features: &[Feature]) -> Self {
        Self::in_front_of(Host::new(pairs), pairs, features)
    }

    pub fn in_front_of(host: Host, pairs: u16, features: &[Feature]) -> Self {
        let endpoint = Box::new(host.clone());
        let mut guest = Self::with(MAC, endpoint, host, pairs, features);
        guest.start(features);
        guest
    }

    /// The same before anything was agreed, in front of any endpoint.
    pub fn with(
        mac: [u8; 6],
        endpoint: Box<dyn Endpoint>,
        host: Host,
        pairs: u16,
        features: &[Feature],
    ) -> Self {
        let config = NicConfig { mac, mtu: 1500, pairs, ..NicConfig::default() };
        let device = Device::with_workers(config, endpoint, &Workers::default()).unwrap();
        let ram = GuestRam::new(&[(RINGS, 0x4_0000), (BUFFERS, 0x20_0000)]);
        let event_idx = features.contains(&Feature::EVENT_IDX);
        let many = features.contains(&Feature::MQ) || features.contains(&Feature::RSS);
        let control = if many { 2 * pairs } else { 2 };
        let rx = (0..pairs).map(|pair| Queue::new(&ram, 2 * pair, 2 * pair, event_idx));
        let tx = (0..pairs).map(|pair| Queue::new(&ram, 2 * pair + 1, 2 * pair + 1, event_idx));
        let (rx, tx) = (rx.collect(), tx.collect());
        let control = Queue::new(&ram, 2 * pairs, control, event_idx);
        let got = vec![Vec::new(); usize::from(pairs)];
        Self { device, host, ram, rx, tx, control, got }
    }

    /// Agrees, and starts every queue there is.
    pub fn start(&mut self, features: &[Feature]) {
        let bits = FeatureBits::of(features).with(Feature::VERSION_1).with(Feature::CTRL_VQ);
        self.device.apply(Op::Negotiate(bits)).unwrap();
        self.device.apply(Op::Memory(Arc::clone(self.ram.space()))).unwrap();
        let control = self.control.index;
        for queue in 0..control.0 {
            self.start_queue(QueueIndex(queue), Cursor::default());
        }
        self.start_queue(control, Cursor::default());
    }

    pub fn queue(&mut self, index: QueueIndex) -> &mut Queue {
        let pair = usize::from(index.pair().0);
        match index {
            _ if index == self.control.index => &mut self.control,
            _ if index.is_receive() => &mut self.rx[pair],
            _ => &mut self.tx[pair],
        }
    }

    pub fn start_queue(&mut self, index: QueueIndex, cursor: Cursor) {
        let queue = self.queue(index);
        let (setup, bell) = (queue.driver.setup(), queue.bell.clone());
        let kick = queue.kick.try_clone().unwrap();
        self.device.set_kick(index, Some(kick)).unwrap();
        self.device.apply(Op::SetInterrupt(index, Some(Arc::new(bell)))).unwrap();
        self.device.apply(Op::EnableQueue(index, true)).unwrap();
        self.device.apply(Op::StartQueue { index, setup, cursor }).unwrap();
    }

    /// Posts buffers for frames to arrive in.
    pub fn post(&mut self, pair: usize, count: usize) {
        let queue = &mut self.rx[pair];
        for _ in 0..count {
            let at = queue.place(queue.index.0);
            let buffer = Buffer::writable(at, ROOM as u32);
            let head = queue.driver.post(&[buffer], Arrangement::Direct).expect("room");
            queue.buffers[usize::from(head)] = at;
        }
        queue.expose();
    }

    /// Buffers for all that can be.
    pub fn fill(&mut self) {
        for pair in 0..self.rx.len() {
            let free = self.rx[pair].driver.free();
            self.post(pair, free);
        }
    }

    pub fn send(&mut self, pair: usize, frame: &[u8]) {
        let queue = &mut self.tx[pair];
        queue.driver.collect();
        let at = queue.place(queue.index.0);
        self.ram.write(at, &[&[0; HEADER], frame].concat());
        let buffer = Buffer::readable(at, (HEADER + frame.len()) as u32);
        queue.driver.post(&[buffer], Arrangement::Direct).expect("room");
        queue.expose();
    }

    /// Looks at what has arrived; how many frames on each pair so far.
    pub fn look(&mut self) -> Vec<usize> {
        for (queue, got) in self.rx.iter_mut().zip(&mut self.got) {
            for used in queue.driver.collect() {
                let at = queue.buffers[usize::from(used.head)];
                let bytes = self.ram.read(at, used.len);
                got.push(bytes[HEADER..].to_vec());
            }
        }
        self.got.iter().map(Vec::len).collect()
    }

    /// Waits until as many frames have arrived on each pair; no more may.
    pub fn expect(&mut self, wanted: &[usize]) {
        let start = Instant::now();
        while self.look() != wanted {
            assert!(start.elapsed() < PATIENCE, "{:?}, not {wanted:?}", self.look());
            std::thread::yield_now();
        }
    }

    /// Gives a command; the acknowledgement.
    pub fn command(&mut self, bytes: &[u8]) -> u8 {
        let (at, answer) = (BUFFERS + 0x1f_0000, BUFFERS + 0x1f_8000);
        self.ram.write(at, bytes);
        self.ram.write(answer, &[0xee]);
        let buffers = [Buffer::readable(at, bytes.len() as u32), Buffer::writable(answer, 1)];
        self.control.driver.post(&buffers, Arrangement::Direct).expect("room");
        self.control.expose();
        let start = Instant::now();
        loop {
            assert_eq!(self.device.next_report(), None::<Report>);
            let used = self.control.driver.collect();
            if let [used] = used[..] {
                assert_eq!(used.len, 1);
                return self.ram.read(answer, 1)[0];
            }
            assert!(start.elapsed() < PATIENCE, "a command is not answered");
        }
    }

    pub fn set_pairs(&mut self, pairs: u16) -> u8 {
        self.command(&[&[4, 0][..], &pairs.to_le_bytes()].concat())
    }

    pub fn stats(&self, pair: usize) -> Arc<PairStats> {
        Arc::clone(self.device.stats().nth(pair).unwrap())
    }

    /// Frames that were dropped on their way into the guest, by any pair.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.device.stats().map(|stats| stats.rx.dropped_for(reason)).sum()
    }

    /// A receive queue stops; where it was.
    pub fn stop(&mut self, pair: usize) -> Cursor {
        let index = PairIndex(pair as u16).receive();
        self.device.apply(Op::StopQueue(index)).unwrap();
        self.device.cursor(index).unwrap()
    }
}

/// Waits until something is so.
pub fn wait(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

/// A segment of TCP between two addresses, from a port that tells flows apart.
pub fn segment(source: [u8; 6], destination: [u8; 6], ports: [u16; 2], back: bool) -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[..6].copy_from_slice(&destination);
    frame[6..12].copy_from_slice(&source);
    frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 6]);
    let (mut from, mut to) = (([10, 0, 0, 1], ports[0]), ([10, 0, 0, 2], ports[1]));
    if back {
        std::mem::swap(&mut from, &mut to);
    }
    frame[26..30].copy_from_slice(&from.0);
    frame[30..34].copy_from_slice(&to.0);
    frame[34..36].copy_from_slice(&from.1.to_be_bytes());
    frame[36..38].copy_from_slice(&to.1.to_be_bytes());
    frame[46] = 0x50;
    frame
}

/// The segment of a flow to the guest.
pub fn flow(number: u16) -> Vec<u8> {
    segment([2, 9, 9, 9, 9, 9], MAC, [1000 + number, 80], false)
}
