//! Whole queue pairs over memory that the input writes: rings of both formats, tables, headers and
//! payload, between steps of `service`, in front of null, echo, flood, or a switch that a second,
//! honest guest is on.
//!
//! Memory lies between pages that fault. Whatever is written, a step ends, a run of steps gets to
//! rest, a broken rule stops its queue alone and is named once, and the honest guest's frames go.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vionet::endpoint::{Endpoint, Settings};
use vionet::{Effect, Effects, Instant, Next, Nic, NicConfig, Op, OpError, QueueIndex, QueuePair};
use vionet_endpoint::{Echo, Flood, Null, PortConfig, Switch};
use vionet_queue::{Cursor, Format, QueueSetup};
use vionet_raw::GuestAddr;
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_testkit::{Arrangement, Buffer, GuestRam, SplitDriver};

const RX: QueueIndex = QueueIndex(0);
const TX: QueueIndex = QueueIndex(1);
/// One page of ring for each queue, with its parts at quarters of it.
const RINGS: [u64; 2] = [0x1_0000, 0x1_1000];
/// Buffers and tables: two regions that touch, and one far away.
const REGIONS: &[(u64, usize)] =
    &[(0x1_0000, 0x2000), (0x2_0000, 0x2000), (0x2_2000, 0x1000), (0x1_0000_0000, 0x3000)];
/// Operations of one input, and steps until a pair must have come to rest.
const STEPS_MAX: usize = 200;
const REST_MAX: usize = 2000;

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

    /// An address, more often than not one that means something.
    fn address(&mut self) -> u64 {
        let offset = u64::from(self.word());
        match offset & 7 {
            0..=2 => 0x2_0000 + (offset >> 3 & 0x1fff),
            3 => 0x2_1fff - (offset >> 3 & 0xff),
            4 => 0x1_0000_0000 + (offset >> 3 & 0x1fff),
            5 => RINGS[usize::from(self.byte() & 1)] + (offset >> 3 & 0xfff),
            6 => u64::MAX - (offset >> 3),
            _ => offset << (self.byte() & 63),
        }
    }

    fn len(&mut self) -> u32 {
        let len = u32::from(self.word());
        match len & 7 {
            0 => len << 16 | 0xffff,
            1 => 16 * (len >> 3),
            2 => 12 + 14,
            _ => len >> 3 & 0x7ff,
        }
    }
}

struct Device {
    endpoint: Box<dyn Endpoint>,
    nic: Nic,
    pair: Option<Box<QueuePair>>,
    /// Faults told, by queue.
    faults: [usize; 2],
}

impl Device {
    fn new(endpoint: Box<dyn Endpoint>, last: u8, bits: FeatureBits) -> Self {
        let config = NicConfig { mac: [2, 0, 0, 0, 0, last], mtu: 1500, ..NicConfig::default() };
        let nic = Nic::new(config, endpoint.capabilities());
        let mut device = Self { endpoint, nic, pair: None, faults: [0; 2] };
        device.apply(Op::Negotiate(bits)).expect("features that are offered");
        device
    }

    fn apply(&mut self, op: Op) -> Result<(), OpError> {
        let mut effects = Effects::default();
        self.nic.apply(op, &mut effects);
        let mut result = Ok(());
        while let Some(effect) = effects.next_effect() {
            match effect {
                Effect::Open(settings) => {
                    let settings: Settings = settings;
                    self.nic.opened(self.endpoint.open(&settings), &mut effects);
                }
                Effect::Start(pair) => self.pair = Some(pair),
                Effect::Recall(index) => {
                    let pair = self.pair.take();
                    self.nic.returned(index, pair, &mut effects);
                }
                Effect::Adapt(_)
                | Effect::Interrupt(_)
                | Effect::ControlFault(_)
                | Effect::ConfigChanged => {}
                Effect::Done(outcome) => result = outcome,
            }
        }
        result
    }

    fn start(&mut self, index: QueueIndex, setup: QueueSetup, cursor: Cursor) -> bool {
        self.apply(Op::EnableQueue(index, true)).expect("a queue that exists");
        self.apply(Op::StartQueue { index, setup, cursor }).is_ok()
    }

    /// One step; whether there is more to do.
    fn step(&mut self) -> bool {
        let Some(pair) = &mut self.pair else { return false };
        let step = pair.service(Instant::from_nanos(0));
        assert_eq!(step.host, None, "nothing on the host can fail here");
        if let Some(fault) = step.fault {
            let told = &mut self.faults[usize::from(fault.queue.0)];
            *told += 1;
            assert_eq!(*told, 1, "said once for each life of a queue");
        }
        step.next == Next::Again
    }

    /// Steps until there is nothing to do: the guest writes nothing meanwhile.
    fn rest(&mut self) {
        let steps = (0..REST_MAX).take_while(|_| self.step()).count();
        assert!(steps < REST_MAX, "it never comes to rest");
    }
}

/// A guest that does everything right, on the switch or by itself.
struct Honest {
    device: Device,
    ram: GuestRam,
    tx: SplitDriver,
    sent: u64,
}

impl Honest {
    fn new(endpoint: Box<dyn Endpoint>) -> Self {
        let ram = GuestRam::new(&[(0x1_0000, 0x1000), (0x2_0000, 0x1000)]);
        let tx = SplitDriver::new(&ram, 0x1_0000, 4, false, 0);
        let mut device = Device::new(endpoint, 2, FeatureBits::of(&[Feature::VERSION_1]));
        device.apply(Op::Memory(Arc::clone(ram.space()))).expect("memory");
        assert!(device.start(TX, tx.setup(), Cursor::default()));
        ram.write(
            0x2_0000,
            &[&[0; 12][..], &[0xff; 6], &[2, 0, 0, 0, 0, 2, 8, 0], &[5; 46]].concat(),
        );
        Self { device, ram, tx, sent: 0 }
    }

    /// Sends a frame to all; it goes, whatever the others do.
    fn send(&mut self) {
        self.tx.post(&[Buffer::readable(0x2_0000, 72)], Arrangement::Direct).expect("room");
        self.tx.expose();
        self.device.rest();
        assert_eq!(self.tx.collect().len(), 1, "an honest frame was held up");
        assert_eq!(self.device.faults, [0; 2]);
        self.sent += 1;
        let Self { device, ram, .. } = self;
        let _ = ram;
        let stats = device.nic.stats().next().expect("a pair");
        assert_eq!(stats.tx.frames(), self.sent);
    }
}

fn setup(index: usize, size: u16) -> QueueSetup {
    let [descriptors, driver, device] = [0, 0x800, 0xc00].map(|at| GuestAddr(RINGS[index] + at));
    QueueSetup { size, descriptors, driver, device }
}

/// Writes a descriptor that the device may take for one.
fn describe(ram: &GuestRam, at: u64, kind: u8, lap: u16, input: &mut Input<'_>) {
    let (addr, len) = (input.address(), input.len());
    let flags = u16::from(kind >> 4 & 7) | lap;
    ram.write_descriptor(at, addr, len, flags, input.word());
}

/// What the guest does next.
fn act(ram: &GuestRam, packed: bool, size: u16, device: &mut Device, input: &mut Input<'_>) {
    let operation = input.byte();
    let queue = usize::from(operation >> 3 & 1);
    let (ring, n) = (RINGS[queue], u64::from(size));
    match operation & 7 {
        0 => {
            let slot = u64::from(input.byte()) % n;
            describe(ram, ring + 16 * slot, operation, 0, input);
        }
        // The next buffers become available.
        1 | 2 if packed => {
            let (slot, flags) = (u64::from(input.byte()) % n, input.byte());
            let lap = [0x80, 0x8000, 0, 0x8080][usize::from(flags & 3)];
            let at = ring + 16 * slot;
            describe(ram, at, operation, 0, input);
            // The id and the flags have changed places with the split flags and next.
            ram.write_u16(at + 12, u16::from(flags >> 2));
            ram.write_u16(at + 14, lap | u16::from(operation >> 4 & 7));
        }
        1 | 2 => {
            let idx = ram.read_u16(ring + 0x802);
            let head =
                if operation & 0x80 == 0 { u16::from(input.byte()) % size } else { input.word() };
            ram.write_u16(ring + 0x804 + 2 * u64::from(idx % size), head);
            ram.write_u16(ring + 0x802, idx.wrapping_add(1));
        }
        3 => {
            let at = 0x2_0000 + u64::from(input.word() & 0x2fff);
            let bytes: Vec<u8> = (0..operation >> 4).map(|_| input.byte()).collect();
            let room = 0x2_3000_u64.saturating_sub(at) as usize;
            ram.write(at, &bytes[..bytes.len().min(room)]);
        }
        4 => {
            let at = ring + u64::from(input.word() & 0xffe);
            ram.write_u16(at, input.word());
        }
        5 => {
            let table = 0x2_0000 + 16 * u64::from(input.byte());
            describe(ram, table, operation, 0, input);
        }
        6 => {
            device.step();
        }
        _ => {
            let index = [RX, TX][queue];
            if device.apply(Op::StopQueue(index)).is_ok() {
                device.faults[queue] = 0;
                let cursor = Cursor { avail: input.word(), used: input.word() };
                let size = if operation & 0x80 == 0 { size } else { input.word() };
                device.start(index, setup(queue, size), cursor);
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let (shape, kind) = (input.byte(), input.byte());
    let ram = GuestRam::new(REGIONS);
    let packed = shape & 1 != 0;
    let chosen = [
        (1, Feature::RING_PACKED),
        (2, Feature::IN_ORDER),
        (4, Feature::EVENT_IDX),
        (8, Feature::INDIRECT_DESC),
        (16, Feature::MRG_RXBUF),
        (32, Feature::CSUM),
        (32, Feature::HOST_TSO4),
        (64, Feature::GUEST_CSUM),
        (64, Feature::GUEST_TSO4),
    ];
    let chosen = chosen.into_iter().filter(|(bit, _)| shape & bit != 0);
    let bits = chosen.fold(FeatureBits::of(&[Feature::VERSION_1]), |all, (_, one)| all.with(one));
    let switch = Switch::new("fuzz");
    let port = |last: u8| {
        let config = PortConfig { mac: [2, 0, 0, 0, 0, last], isolated: false };
        Box::new(switch.port(config).expect("an address of its own"))
    };
    let endpoint: Box<dyn Endpoint> = match kind & 3 {
        0 => Box::new(Null::default()),
        1 => Box::new(Echo::default()),
        2 => Box::new(Flood::new(14 + usize::from(kind >> 2) * 40).expect("a length that can be")),
        _ => port(1),
    };
    let mut honest = Honest::new(port(2));
    let mut device = Device::new(endpoint, 1, bits);
    device.apply(Op::Memory(Arc::clone(ram.space()))).expect("memory");
    let size = if packed { u16::from(kind >> 2 & 31) + 1 } else { 1 << (kind >> 2 & 7).min(6) };
    let cursor = Cursor::start(if packed { Format::Packed } else { Format::Split });
    assert!(device.start(RX, setup(0, size), cursor));
    assert!(device.start(TX, setup(1, size), cursor));
    for _ in 0..STEPS_MAX {
        if input.0.is_empty() {
            break;
        }
        act(&ram, packed, size, &mut device, &mut input);
        if input.0.len() & 15 == 0 {
            honest.send();
        }
    }
    device.rest();
    honest.send();
    device.apply(Op::Reset).expect("every pair comes home");
    assert!(device.pair.is_none());
    honest.send();
});
