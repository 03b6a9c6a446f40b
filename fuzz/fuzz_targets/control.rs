//! The driver's commands: chains cut and turned as the input says, under features that it chooses,
//! with frames in and out between them, on one to four pairs.
//!
//! Whatever is commanded, a chain is used once at most, a command that is refused has changed
//! nothing that can be seen, pairs that are not in use get no frames, and every pair comes to rest.
#![no_main]

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use vionet::endpoint::{
    Capabilities, Endpoint, EndpointFault, EndpointQueue, Inlet, OpenError, Refused, RxHeader,
    RxSink, Settings, TxBatch, Watch,
};
use vionet::{
    Effect, Effects, Instant, Next, Nic, NicConfig, Op, OpError, PairIndex, QueueIndex, QueuePair,
};
use vionet_endpoint::{PortConfig, Switch};
use vionet_frame::header::Offloads;
use vionet_queue::Cursor;
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_testkit::{Arrangement, Buffer, GuestRam, SplitDriver};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SIZE: u16 = 16;
const RINGS: u64 = 0x1_0000;
/// What a command's buffers are cut out of: those to read, those to write; then the frames.
const COMMANDS: u64 = 0x10_0000;
const ANSWERS: u64 = 0x12_0000;
const FRAMES: u64 = 0x14_0000;
const PAIRS_MAX: u16 = 4;
const STEPS_MAX: usize = 100;
const REST_MAX: usize = 200;
/// Nothing in the queue has a name of its own for these: the ring is a plain one.
const RING_FEATURES: [u8; 4] = [28, 29, 34, 35];

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

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }
}

/// A host side that brings what the input says.
#[derive(Clone, Default)]
struct Host(Arc<Mutex<[VecDeque<Vec<u8>>; PAIRS_MAX as usize]>>);

impl Endpoint for Host {
    fn name(&self) -> String {
        "input".into()
    }
    fn capabilities(&self) -> Capabilities {
        let (transmit, receive) = (Offloads::NONE, Offloads::ALL);
        Capabilities { transmit, receive, pairs_max: PAIRS_MAX, mtu: 1500 }
    }
    fn open(&mut self, settings: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        let queue = |pair| -> Box<dyn EndpointQueue> { Box::new(HostQueue(self.clone(), pair)) };
        Ok((0..usize::from(settings.pairs)).map(queue).collect())
    }
    fn adapt(&mut self, _: &Settings) -> Result<(), OpenError> {
        Ok(())
    }
}

struct HostQueue(Host, usize);

impl EndpointQueue for HostQueue {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        frames.sent(frames.frames().len());
        Ok(())
    }
    fn receive(&mut self, sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        let frames = &mut self.0.0.lock().unwrap()[self.1];
        while let Some(frame) = frames.pop_front() {
            if frame.len() % 2 == 0 {
                if sink.push(&RxHeader::PLAIN, &frame) == Err(Refused::Full) {
                    break;
                }
            } else if let Some(window) = sink.window(frame.len() as u32) {
                vionet_raw::copy_in(window, 0, &frame);
                sink.commit(frame.len() as u32, &RxHeader::PLAIN);
            }
        }
        Ok(())
    }
    fn watch(&self) -> Watch {
        Watch { readable: true, ..Watch::default() }
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

struct Device {
    endpoint: Box<dyn Endpoint>,
    nic: Nic,
    out: Vec<Option<Box<QueuePair>>>,
    control_faults: usize,
    now: Instant,
}

impl Device {
    fn apply(&mut self, op: Op) -> Result<(), OpError> {
        let mut effects = Effects::default();
        self.nic.apply(op, &mut effects);
        let mut result = None;
        while let Some(effect) = effects.next_effect() {
            match effect {
                Effect::Open(settings) => {
                    let inlets = if settings.spreads { settings.pairs } else { 0 };
                    let inlets = (0..inlets).map(|_| Arc::new(Inlet::new().unwrap()));
                    self.nic.set_inlets(inlets.collect());
                    self.nic.opened(self.endpoint.open(&settings), &mut effects);
                }
                Effect::Start(pair) => {
                    let place = &mut self.out[usize::from(pair.index().0)];
                    assert!(place.replace(pair).is_none(), "started once");
                }
                Effect::Recall(index) => {
                    let pair = self.out[usize::from(index.0)].take();
                    assert!(pair.is_some(), "recalled when out");
                    self.nic.returned(index, pair, &mut effects);
                }
                Effect::Adapt(settings) => self.endpoint.adapt(&settings).expect("it can"),
                Effect::ControlFault(_) => self.control_faults += 1,
                Effect::Interrupt(_) | Effect::ConfigChanged => {}
                Effect::Done(outcome) => assert!(result.replace(outcome).is_none(), "done once"),
            }
        }
        result.expect("an operation ends")
    }

    /// What a driver or an embedder can see of what commands set.
    fn seen(&self) -> (Vec<u8>, u8, u16, [u8; 6]) {
        let nic = &self.nic;
        let space = nic.config_space().to_vec();
        (space, nic.config_generation(), nic.active_pairs(), nic.mac())
    }

    /// Steps every pair until there is nothing to do.
    fn rest(&mut self) {
        for _ in 0..REST_MAX {
            let mut again = false;
            for pair in self.out.iter_mut().flatten() {
                let step = pair.service(self.now);
                assert_eq!(step.host, None, "nothing on the host can fail here");
                again |= step.next == Next::Again;
            }
            if !again {
                return;
            }
        }
        panic!("it never comes to rest");
    }
}

struct Guest {
    device: Device,
    host: Host,
    ram: GuestRam,
    lanes: Vec<SplitDriver>,
    control: SplitDriver,
    control_index: QueueIndex,
    pairs: u16,
}

impl Guest {
    fn new(input: &mut Input<'_>) -> Option<Self> {
        let how = input.byte();
        let pairs = u16::from(how & 3) + 1;
        let host = Host::default();
        let endpoint: Box<dyn Endpoint> = if how & 4 == 0 {
            Box::new(host.clone())
        } else {
            let port = PortConfig { mac: MAC, isolated: false };
            Box::new(Switch::new("fuzz").port(port).expect("a port"))
        };
        let config = NicConfig { mac: MAC, mtu: 1500, pairs, ..NicConfig::default() };
        let nic = Nic::new(config, endpoint.capabilities());
        let chosen = u128::from(u64::from_le_bytes(std::array::from_fn(|_| input.byte())));
        let ring = RING_FEATURES.into_iter().fold(0, |sum, bit| sum | 1_u128 << bit);
        let bits = FeatureBits(nic.offer().0 & chosen & !ring);
        let bits = bits.with(Feature::VERSION_1).with(Feature::CTRL_VQ);
        let out = (0..pairs).map(|_| None).collect();
        let now = Instant::from_nanos(1);
        let mut device = Device { endpoint, nic, out, control_faults: 0, now };
        device.apply(Op::Negotiate(bits)).ok()?;
        let ram = GuestRam::new(&[(RINGS, 0x1_0000), (COMMANDS, 0x6_0000)]);
        device.apply(Op::Memory(Arc::clone(ram.space()))).expect("memory");
        let driver =
            |place: u16| SplitDriver::new(&ram, RINGS + u64::from(place) * 0x1000, SIZE, false, 0);
        let many = bits.has(Feature::MQ) || bits.has(Feature::RSS);
        let control_index = QueueIndex(if many { 2 * pairs } else { 2 });
        let lanes = (0..control_index.0).map(driver).collect();
        let control = driver(2 * PAIRS_MAX);
        let mut guest = Self { device, host, ram, lanes, control, control_index, pairs };
        for index in 0..control_index.0 {
            guest.device.apply(Op::EnableQueue(QueueIndex(index), true)).expect("a queue");
            guest.start(QueueIndex(index), Cursor::default());
        }
        guest.start(control_index, Cursor::default());
        Some(guest)
    }

    fn start(&mut self, index: QueueIndex, cursor: Cursor) {
        let control = index == self.control_index;
        let driver = if control { &self.control } else { &self.lanes[usize::from(index.0)] };
        let setup = driver.setup();
        self.device.apply(Op::StartQueue { index, setup, cursor }).expect("an honest ring");
    }

    fn command(&mut self, input: &mut Input<'_>) {
        let command = if input.byte() & 7 == 0 { any_command(input) } else { likely(input) };
        self.ram.write(COMMANDS, &command);
        self.ram.write(ANSWERS, &[0xee; 0x100]);
        let mut buffers = Vec::new();
        let mut at = 0;
        let shape = input.byte();
        while at < command.len() && buffers.len() < 6 {
            let rest = command.len() - at;
            let len = if shape & 1 == 0 { rest } else { usize::from(input.byte()) % rest + 1 };
            let len = if buffers.len() == 5 { rest } else { len };
            buffers.push(Buffer::readable(COMMANDS + at as u64, len as u32));
            at += len;
        }
        let mut answer = ANSWERS;
        for _ in 0..(shape >> 1 & 3) {
            let len = if shape & 8 == 0 { 60 } else { u32::from(input.byte() % 40) };
            buffers.push(Buffer::writable(answer, len));
            answer += u64::from(len);
        }
        if shape >> 4 == 15 && buffers.len() > 1 {
            let [a, b] = [input.byte(), input.byte()].map(|at| usize::from(at) % buffers.len());
            buffers.swap(a, b);
        }
        if buffers.is_empty() {
            return;
        }
        let first = buffers.iter().find(|buffer| buffer.writable && buffer.len > 0);
        let ack = first.map(|buffer| buffer.at);
        let Some(_) = self.control.post(&buffers, Arrangement::Direct) else { return };
        self.control.expose();
        let (before, faults) = (self.device.seen(), self.device.control_faults);
        self.device.apply(Op::Commands).expect("commands are never refused");
        let used = self.control.collect();
        let broken = self.device.control_faults > faults;
        assert_eq!(used.len(), usize::from(!broken), "answered once, or the queue stands still");
        if broken {
            assert_eq!(self.device.seen(), before, "a broken chain is no command");
            self.device.apply(Op::StopQueue(self.control_index)).expect("a queue");
            let at = RINGS + u64::from(2 * PAIRS_MAX) * 0x1000;
            self.control = SplitDriver::new(&self.ram, at, SIZE, false, 0);
            return self.start(self.control_index, Cursor::default());
        }
        let Some(ack) = ack else { return assert_eq!(used[0].len, 0) };
        assert!(used[0].len >= 1);
        match self.ram.read(ack, 1)[0] {
            0 => {}
            1 => {
                assert_eq!(self.device.seen(), before, "what is refused changes nothing");
                assert_eq!(used[0].len, 1, "nor is there a result");
            }
            other => panic!("no acknowledgement: {other}"),
        }
    }

    /// Frames come by pairs, and the guest sends some.
    fn traffic(&mut self, input: &mut Input<'_>) {
        for pair in 0..self.control_index.0 / 2 {
            let lane = &mut self.lanes[usize::from(2 * pair)];
            while lane.free() > 4 {
                let at = FRAMES + u64::from(pair) * 0x1000;
                let len = 100 + u32::from(pair) * 300;
                lane.post(&[Buffer::writable(at, len)], Arrangement::Direct).expect("room");
            }
            lane.expose();
        }
        for _ in 0..1 + input.byte() % 8 {
            let kind = input.byte();
            let pair = usize::from(kind) % usize::from(self.control_index.0 / 2);
            let len = 20 + usize::from(input.byte()) * 2 + usize::from(kind >> 7);
            let mut frame = vec![0; len];
            frame[..6].copy_from_slice(
                &[MAC, [0xff; 6], [1, 0, 0x5e, 0, 0, 1]][usize::from(kind >> 2) % 3],
            );
            frame[12..14].copy_from_slice(&[8, 0]);
            if kind & 16 != 0 && len > 60 {
                frame[14..24].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0, 0, 64, 6]);
                frame[33..36].copy_from_slice(&input.bytes(3));
            }
            if kind & 32 == 0 {
                self.host.0.lock().unwrap()[pair].push_back(frame);
                continue;
            }
            let at = FRAMES + 0x8000 + pair as u64 * 0x1000;
            self.ram.write(at, &[vec![0; 20], frame].concat());
            let lane = &mut self.lanes[2 * pair + 1];
            let buffer = Buffer::readable(at, len as u32 + 20);
            if lane.post(&[buffer], Arrangement::Direct).is_some() {
                lane.expose();
            }
        }
        self.device.rest();
        // Also behind a gap that the front-end has made: that is not the driver's doing.
        let in_use = self.device.nic.pairs_in_use();
        for (index, lane) in (0..).map(QueueIndex).zip(&mut self.lanes) {
            let used = lane.collect();
            let idle = index.is_receive() && index.pair().0 >= in_use;
            assert!(!idle || used.is_empty(), "NET-CTRL-MQ-06: pair {}", index.pair().0);
        }
    }

    /// The front-end does something in between.
    fn interfere(&mut self, input: &mut Input<'_>) {
        let index = QueueIndex(u16::from(input.byte()) % self.control_index.0);
        match input.byte() % 6 {
            0 => {
                self.device.apply(Op::StopQueue(index)).expect("a queue");
                let cursor = self.device.nic.cursor(index).expect("where it was");
                self.start(index, cursor);
            }
            1 => self.device.apply(Op::EnableQueue(index, false)).expect("a queue"),
            2 => self.device.apply(Op::EnableQueue(index, true)).expect("a queue"),
            3 => self.device.apply(Op::SetLink(input.byte() & 1 == 0)).expect("a link"),
            4 => self.device.apply(Op::Announce(MAC)).expect("an announcement"),
            _ => self.device.apply(Op::Rewire(PairIndex(index.pair().0))).expect("a pair"),
        }
        self.device.now = Instant::from_nanos(1 + u64::from(input.word()) * 1000);
    }
}

fn any_command(input: &mut Input<'_>) -> Vec<u8> {
    let len = usize::from(input.byte());
    let len = if len == 255 { 20_000 } else { len };
    let mut bytes = input.bytes(len.min(300));
    bytes.resize(len, 0);
    bytes
}

/// A command that might be one, give or take a byte.
fn likely(input: &mut Input<'_>) -> Vec<u8> {
    const LENGTHS: &[(u8, u8, usize)] = &[
        (0, 0, 1),
        (0, 1, 1),
        (0, 2, 1),
        (0, 3, 1),
        (0, 4, 1),
        (0, 5, 1),
        (1, 0, 20),
        (1, 1, 6),
        (2, 0, 2),
        (2, 1, 2),
        (3, 0, 0),
        (4, 0, 2),
        (4, 1, 63),
        (4, 2, 53),
        (5, 0, 8),
        (6, 0, 8),
        (6, 1, 8),
        (6, 2, 12),
        (6, 3, 4),
        (7, 0, 4),
        (8, 0, 0),
        (8, 1, 32),
    ];
    let (class, code, len) = LENGTHS[usize::from(input.byte()) % LENGTHS.len()];
    let mut bytes = vec![class, code];
    match (class, code, input.byte()) {
        (0, _, _) => bytes.push(input.byte() & 1),
        (1, 0, 0..200) => {
            bytes.extend([[1, 0, 0, 0].as_slice(), &MAC, &[1, 0, 0, 0], &[1; 6]].concat())
        }
        (4, 0, 0..200) => bytes.extend([input.byte() % 6, 0]),
        (4, 1, 0..200) => {
            let hash = u32::from(input.word() & 0x1ff).to_le_bytes();
            bytes.extend(hash);
            bytes.extend([3, 0, input.byte() % 5, 0]);
            (0..4).for_each(|_| bytes.extend([input.byte() % 5, 0]));
            bytes.extend([1 + input.byte() % 4, 0, 40]);
            bytes.extend(input.bytes(40));
        }
        (4, 2, 0..200) => {
            bytes.extend(u32::from(input.word() & 0x1ff).to_le_bytes());
            bytes.extend([0; 8]);
            bytes.push(40);
            bytes.extend(input.bytes(40));
        }
        (_, _, _) => bytes.extend(input.bytes(len)),
    }
    match input.byte() {
        0 => bytes.push(7),
        1 => drop(bytes.pop()),
        _ => {}
    }
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let Some(mut guest) = Guest::new(&mut input) else { return };
    assert!(guest.pairs <= PAIRS_MAX);
    for _ in 0..STEPS_MAX {
        if input.0.is_empty() {
            break;
        }
        match input.byte() & 7 {
            0..=3 => guest.command(&mut input),
            4..=6 => guest.traffic(&mut input),
            _ => guest.interfere(&mut input),
        }
    }
    guest.device.apply(Op::Reset).expect("reset");
});
