//! A whole device without threads: driver, control plane, pair and host side, stepped by hand.
#![allow(dead_code, reason = "each file of tests uses its part")]

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use vionet::endpoint::{
    Arrival, Capabilities, EndpointFault, EndpointQueue, Inlet, Refused, RxHeader, RxSink,
    Settings, TxBatch, Watch,
};
use vionet::stats::{DropReason, PairStats};
use vionet::{
    Effect, Effects, Instant, Interrupt, LaneSnapshot, Nic, NicConfig, Op, OpError, PairFault,
    PairIndex, QueueIndex, QueuePair, Step,
};
use vionet_frame::guard::Guard;
use vionet_frame::header::{NetHeader, Offloads, Request};
use vionet_queue::Cursor;
use vionet_raw::copy_out;
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_testkit::{Arrangement, Buffer, GuestRam, SplitDriver, Used};

pub const RX: QueueIndex = QueueIndex(0);
pub const TX: QueueIndex = QueueIndex(1);
pub const CONTROL: QueueIndex = QueueIndex(2);
const SIZE: u16 = 64;
/// Where frames lie; rings are below.
pub const FRAMES: u64 = 0x10_0000;

/// The host side's memory of what happened, shared with the test.
#[derive(Default)]
pub struct HostSide {
    pub sent: Vec<(Vec<u8>, Request)>,
    pub to_deliver: VecDeque<(Vec<u8>, RxHeader)>,
    /// Takes so many frames and then is full.
    pub room: Option<usize>,
    pub fault: Option<EndpointFault>,
    pub opened_with: Vec<Settings>,
    pub by_window: bool,
    /// So many frames come first that the host side itself drops.
    pub bad: usize,
    /// All that is there is delivered at once, joined.
    pub by_batch: bool,
    /// Others deliver, through this.
    pub inlet: Option<Arc<Inlet>>,
    /// Looks at the counters behind each frame that is pushed.
    pub watched: Option<Arc<PairStats>>,
    pub seen: Vec<LaneSnapshot>,
}

pub type Shared = Arc<Mutex<HostSide>>;

struct TestQueue(Shared);

impl EndpointQueue for TestQueue {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        let mut host = self.0.lock().unwrap();
        if let Some(fault) = host.fault {
            return Err(fault);
        }
        while let Some(frame) = frames.frames().first() {
            if host.room == Some(0) {
                break;
            }
            host.room = host.room.map(|room| room - 1);
            let mut bytes = vec![0; frame.len as usize];
            assert_eq!(copy_out(frames.bytes(frame), 0, &mut bytes), bytes.len());
            host.sent.push((bytes, frame.request));
            frames.sent(1);
        }
        Ok(())
    }

    fn receive(&mut self, sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        let mut host = self.0.lock().unwrap();
        if host.by_batch {
            let frames: Vec<_> = host.to_deliver.drain(..).collect();
            let arrivals = frames.iter().map(|(bytes, header)| Arrival {
                bytes,
                request: header.request,
                header_len: header.header_len,
                validated: header.validated,
            });
            let left = sink.push_joined(&arrivals.collect::<Vec<_>>());
            let kept = frames.into_iter().enumerate().filter(|(at, _)| left >> at & 1 == 1);
            host.to_deliver.extend(kept.map(|(_, frame)| frame));
            return Ok(());
        }
        for _ in 0..std::mem::take(&mut host.bad) {
            sink.dropped(DropReason::NotAgreed);
        }
        while let Some((frame, header)) = host.to_deliver.pop_front() {
            if host.by_window {
                let Some(window) = sink.window(frame.len() as u32) else {
                    host.to_deliver.push_front((frame, header));
                    break;
                };
                vionet_raw::copy_in(window, 0, &frame);
                sink.commit(frame.len() as u32, &header);
            } else if sink.push(&header, &frame) == Err(Refused::Full) {
                host.to_deliver.push_front((frame, header));
                break;
            }
            let seen = host.watched.as_ref().map(|stats| stats.rx.snapshot());
            host.seen.extend(seen);
        }
        Ok(())
    }

    fn watch(&self) -> Watch {
        let full = self.0.lock().unwrap().room == Some(0);
        Watch { readable: true, writable: full, deadline: None }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn inlet(&self) -> Option<Arc<Inlet>> {
        self.0.lock().unwrap().inlet.clone()
    }
}

/// Counts the interrupts of a queue.
#[derive(Clone, Default)]
pub struct Bell(Arc<AtomicU64>);

impl Bell {
    pub fn rung(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Interrupt for Bell {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

pub struct Bench {
    pub nic: Nic,
    pub pair: Option<Box<QueuePair>>,
    pub host: Shared,
    pub ram: GuestRam,
    pub rx: SplitDriver,
    pub tx: SplitDriver,
    pub control: SplitDriver,
    pub bells: [Bell; 2],
    /// Of the control queue and of the configuration.
    pub other_bells: [Bell; 2],
    pub recalls: usize,
    pub adapted: Vec<Settings>,
    pub config_changes: usize,
    pub control_faults: Vec<PairFault>,
    pub now: Instant,
    /// Chains that a test has posted, where it counts them.
    pub posted: usize,
    next: u64,
}

pub const EVERYTHING: Offloads = Offloads::ALL;
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

impl Bench {
    /// A device whose driver has agreed to `features` beside VERSION_1, queues running.
    pub fn new(features: &[Feature], transmit: Offloads) -> Self {
        let mut bench = Self::idle(transmit);
        bench.apply(Op::Negotiate(Self::bits(features))).unwrap();
        bench.start_queues();
        bench
    }

    pub fn bits(features: &[Feature]) -> FeatureBits {
        FeatureBits::of(features).with(Feature::VERSION_1)
    }

    /// A device in its reset state.
    pub fn idle(transmit: Offloads) -> Self {
        let ram = GuestRam::new(&[(0x1_0000, 0x1_0000), (0x2_0000, 0x2_0000), (FRAMES, 0x40_0000)]);
        let rx = SplitDriver::new(&ram, 0x1_0000, SIZE, false, 0);
        let tx = SplitDriver::new(&ram, 0x2_0000, SIZE, false, 0);
        let control = SplitDriver::new(&ram, 0x3_0000, SIZE, false, 0);
        let config = NicConfig { mac: MAC, mtu: 1500, ..NicConfig::default() };
        let capabilities = Capabilities { transmit, receive: EVERYTHING, pairs_max: 1, mtu: 9000 };
        let nic = Nic::new(config, capabilities);
        let (bells, other_bells) = <([Bell; 2], [Bell; 2])>::default();
        let host = Shared::default();
        Self {
            nic,
            pair: None,
            host,
            ram,
            rx,
            tx,
            control,
            bells,
            other_bells,
            recalls: 0,
            adapted: Vec::new(),
            config_changes: 0,
            control_faults: Vec::new(),
            now: Instant::from_nanos(0),
            posted: 0,
            next: FRAMES,
        }
    }

    /// The same under a policy of the host.
    pub fn guarded(guard: Guard, transmit: Offloads) -> Self {
        let mut bench = Self::idle(transmit);
        let nic = std::mem::replace(&mut bench.nic, Self::idle(transmit).nic);
        bench.nic = nic.guarded(guard);
        bench
    }

    pub fn start_queues(&mut self) {
        self.apply(Op::Memory(Arc::clone(self.ram.space()))).unwrap();
        for (index, bell) in [RX, TX].into_iter().zip(self.bells.clone()) {
            self.apply(Op::SetInterrupt(index, Some(Arc::new(bell)))).unwrap();
            self.apply(Op::EnableQueue(index, true)).unwrap();
        }
        for (index, setup) in [(RX, self.rx.setup()), (TX, self.tx.setup())] {
            self.apply(Op::StartQueue { index, setup, cursor: Cursor::default() }).unwrap();
        }
    }

    /// Runs the effects of an operation as an embedder does.
    pub fn apply(&mut self, op: Op) -> Result<(), OpError> {
        let mut effects = Effects::default();
        self.nic.apply(op, &mut effects);
        let mut result = None;
        while let Some(effect) = effects.next_effect() {
            match effect {
                Effect::Open(settings) => {
                    self.host.lock().unwrap().opened_with.push(settings);
                    let queue: Box<dyn EndpointQueue> = Box::new(TestQueue(Arc::clone(&self.host)));
                    self.nic.opened(Ok(vec![queue]), &mut effects);
                }
                Effect::Recall(index) => {
                    assert_eq!(index, PairIndex(0));
                    self.recalls += 1;
                    let pair = self.pair.take();
                    assert!(pair.is_some(), "recalled a pair that is not out");
                    self.nic.returned(index, pair, &mut effects);
                }
                Effect::Start(pair) => {
                    assert!(self.pair.replace(pair).is_none(), "started a pair that is out");
                }
                Effect::Adapt(settings) => {
                    assert!(self.pair.is_none(), "an endpoint is adapted while no pair is out");
                    self.adapted.push(settings);
                }
                Effect::Interrupt(interrupt) => interrupt.raise(),
                Effect::ControlFault(fault) => self.control_faults.push(fault),
                Effect::ConfigChanged => self.config_changes += 1,
                Effect::Done(outcome) => {
                    assert!(result.replace(outcome).is_none(), "an operation is done once");
                }
            }
        }
        result.expect("an operation ends")
    }

    /// Starts the control queue as well.
    pub fn start_control(&mut self) {
        let [control, config] = self.other_bells.clone();
        self.apply(Op::SetInterrupt(CONTROL, Some(Arc::new(control)))).unwrap();
        self.apply(Op::SetConfigInterrupt(Some(Arc::new(config)))).unwrap();
        let (index, setup) = (CONTROL, self.control.setup());
        self.apply(Op::StartQueue { index, setup, cursor: Cursor::default() }).unwrap();
    }

    /// Has a command obeyed: the acknowledgement and `room` bytes of result, as far as used.
    pub fn command(&mut self, bytes: &[u8], room: usize) -> (u8, Vec<u8>) {
        self.command_cut(bytes, &[], room, &[])
    }

    /// The same, the bytes of command and answer cut into buffers of these lengths and the rest.
    pub fn command_cut(
        &mut self,
        bytes: &[u8],
        cuts: &[usize],
        room: usize,
        answer_cuts: &[usize],
    ) -> (u8, Vec<u8>) {
        let at = self.allocate(bytes.len());
        self.ram.write(at, bytes);
        let answer = self.allocate(1 + room);
        self.ram.write(answer, &vec![0xee; 1 + room]);
        let mut buffers = cut(at, bytes.len(), cuts, Buffer::readable);
        buffers.extend(cut(answer, 1 + room, answer_cuts, Buffer::writable));
        self.control.post(&buffers, Arrangement::Direct).expect("room in the ring");
        self.control.expose();
        self.apply(Op::Commands).unwrap();
        let used = self.control.collect();
        assert_eq!(used.len(), 1, "the command is answered");
        let answered = self.ram.read(answer, 1 + room as u32);
        let written = used[0].len as usize;
        assert!(answered[written..].iter().all(|byte| *byte == 0xee), "no more than was told");
        (answered[0], answered[1..written.max(1)].to_vec())
    }

    pub fn step(&mut self) -> Step {
        self.pair.as_mut().expect("the pair is out").service(self.now)
    }

    pub fn stats(&self) -> Arc<PairStats> {
        Arc::clone(self.nic.stats().next().unwrap())
    }

    pub fn drops(&self, receive: bool, reason: DropReason) -> u64 {
        let stats = self.stats();
        let lane = if receive { &stats.rx } else { &stats.tx };
        lane.dropped_for(reason)
    }

    pub fn allocate(&mut self, len: usize) -> u64 {
        let at = self.next;
        self.next += len as u64;
        at
    }

    /// Posts a frame to send, cut into buffers of the lengths given, the rest in a last one.
    pub fn send(&mut self, header: &NetHeader, frame: &[u8], cuts: &[usize]) {
        let bytes: Vec<u8> = header.encode().iter().chain(frame).copied().collect();
        self.send_raw(&bytes, cuts);
    }

    pub fn send_raw(&mut self, bytes: &[u8], cuts: &[usize]) {
        let at = self.allocate(bytes.len());
        self.ram.write(at, bytes);
        let buffers = cut(at, bytes.len(), cuts, Buffer::readable);
        self.tx.post(&buffers, Arrangement::Direct).expect("room in the ring");
        self.tx.expose();
    }

    /// Posts a receive buffer; returns where it is.
    pub fn post(&mut self, len: usize) -> u64 {
        let at = self.allocate(len);
        self.ram.write(at, &vec![0xee; len]);
        self.rx.post(&[Buffer::writable(at, len as u32)], Arrangement::Direct).unwrap();
        self.rx.expose();
        at
    }

    pub fn deliver(&mut self, frame: &[u8], header: RxHeader) {
        self.host.lock().unwrap().to_deliver.push_back((frame.to_vec(), header));
    }

    pub fn sent(&self) -> Vec<Vec<u8>> {
        self.host.lock().unwrap().sent.iter().map(|(bytes, _)| bytes.clone()).collect()
    }

    pub fn used_tx(&mut self) -> Vec<Used> {
        self.tx.collect()
    }

    /// The header and the frame in a receive buffer, and what follows.
    pub fn received(&self, at: u64, len: u32) -> (NetHeader, Vec<u8>) {
        let bytes = self.ram.read(at, len);
        let (header, frame) = bytes.split_first_chunk().expect("a header");
        (NetHeader::decode(header), frame.to_vec())
    }
}

/// A frame whose bytes tell where they belong.
pub fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// Buffers of the lengths given, and one of the rest.
fn cut(at: u64, len: usize, cuts: &[usize], make: fn(u64, u32) -> Buffer) -> Vec<Buffer> {
    let mut buffers = Vec::new();
    let (mut from, mut rest) = (at, len);
    for cut in cuts.iter().copied().chain([usize::MAX]) {
        let len = cut.min(rest);
        if len > 0 {
            buffers.push(make(from, len as u32));
        }
        from += len as u64;
        rest -= len;
    }
    buffers
}
