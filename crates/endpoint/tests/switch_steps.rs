//! One guest of a switch stepped by hand, without threads: how much a step may cost the others.
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
    reason = "tests may stop"
)]

use std::sync::Arc;

use vionet::stats::DropReason;
use vionet::{
    Effect, Effects, Endpoint, Instant, Next, Nic, NicConfig, Op, QueueIndex, QueuePair, Step,
};
use vionet_endpoint::{PortConfig, Switch, SwitchPort};
use vionet_frame::header::NetHeader;
use vionet_queue::Cursor;
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_testkit::{Arrangement, Buffer, GuestRam, SplitDriver};

const SIZE: u16 = 64;
const FRAMES: u64 = 0x10_0000;
const RECEIVE: u64 = 0x20_0000;
const LONG: usize = 60_000;

struct Guest {
    nic: Nic,
    port: SwitchPort,
    pair: Option<Box<QueuePair>>,
    ram: GuestRam,
    rings: [SplitDriver; 2],
}

impl Guest {
    fn new(switch: &Switch, last: u8) -> Self {
        let mac = [2, 0, 0, 0, 0, last];
        let port = switch.port(PortConfig { mac, isolated: false }).unwrap();
        let nic =
            Nic::new(NicConfig { mac, mtu: 1500, ..NicConfig::default() }, port.capabilities());
        let ram = GuestRam::new(&[(0x1_0000, 0x1_0000), (0x2_0000, 0x1_0000), (FRAMES, 0x20_0000)]);
        let rings = [0x1_0000, 0x2_0000].map(|at| SplitDriver::new(&ram, at, SIZE, false, 0));
        let mut guest = Self { nic, port, pair: None, ram, rings };
        guest.start();
        guest
    }

    fn start(&mut self) {
        let tso = [Feature::CSUM, Feature::HOST_TSO4, Feature::GUEST_CSUM, Feature::GUEST_TSO4];
        let bits = FeatureBits::of(&tso).with(Feature::VERSION_1);
        self.apply(Op::Negotiate(bits));
        self.apply(Op::Memory(Arc::clone(self.ram.space())));
        for (index, setup) in [0, 1].map(QueueIndex).into_iter().zip([0, 1]) {
            let (setup, cursor) = (self.rings[setup].setup(), Cursor::default());
            self.apply(Op::EnableQueue(index, true));
            self.apply(Op::StartQueue { index, setup, cursor });
        }
    }

    fn apply(&mut self, op: Op) {
        let mut effects = Effects::default();
        self.nic.apply(op, &mut effects);
        while let Some(effect) = effects.next_effect() {
            match effect {
                Effect::Open(settings) => {
                    let queues = self.port.open(&settings);
                    self.nic.opened(queues, &mut effects);
                }
                Effect::Recall(index) => self.nic.returned(index, self.pair.take(), &mut effects),
                Effect::Start(pair) => self.pair = Some(pair),
                Effect::Adapt(_)
                | Effect::Interrupt(_)
                | Effect::ControlFault(_)
                | Effect::ConfigChanged => {}
                Effect::Done(outcome) => outcome.unwrap(),
            }
        }
    }

    /// Posts all the room that the ring has; its chains share one buffer.
    fn post(&mut self) {
        self.post_small(0x1_0000);
    }

    fn post_small(&mut self, len: u32) {
        let ring = &mut self.rings[0];
        while ring.post(&[Buffer::writable(RECEIVE, len)], Arrangement::Direct).is_some() {}
        ring.expose();
    }

    fn received(&mut self) -> usize {
        self.rings[0].collect().len()
    }

    /// Posts as many of these frames as the ring takes; they share one buffer.
    fn send(&mut self, header: &NetHeader, frame: &[u8]) {
        let bytes: Vec<u8> = header.encode().iter().chain(frame).copied().collect();
        self.ram.write(FRAMES, &bytes);
        let buffer = Buffer::readable(FRAMES, bytes.len() as u32);
        let ring = &mut self.rings[1];
        while ring.post(&[buffer], Arrangement::Direct).is_some() {}
        ring.expose();
    }

    fn step(&mut self) -> Step {
        self.pair.as_mut().unwrap().service(Instant::from_nanos(0))
    }
}

/// A TCP frame to everyone, to be cut.
fn long_frame(from: u8) -> (NetHeader, Vec<u8>) {
    let mut bytes = vec![0xff; 6];
    bytes.extend([2, 0, 0, 0, 0, from, 8, 0, 0x45, 0]);
    bytes.extend(((LONG - 14) as u16).to_be_bytes());
    bytes.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.resize(LONG, 7);
    let header = NetHeader {
        flags: 1,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::PLAIN
    };
    (header, bytes)
}

#[test]
fn a_storm_of_long_frames_goes_out_in_steps_and_whole() {
    const PORTS: u8 = 20;
    let switch = Switch::new("lan");
    let mut sender = Guest::new(&switch, 1);
    let mut others: Vec<Guest> = (0..PORTS).map(|last| Guest::new(&switch, 10 + last)).collect();
    others.iter_mut().for_each(Guest::post);
    let (header, frame) = long_frame(1);
    sender.send(&header, &frame);
    let mut counts = vec![0; others.len()];
    let mut steps = 0;
    loop {
        let step = sender.step();
        steps += 1;
        assert!(step.worked && steps <= usize::from(SIZE), "each step gets on");
        let mut copied = 0;
        for (count, guest) in counts.iter_mut().zip(&mut others) {
            let received = guest.received();
            *count += received;
            copied += received * LONG;
        }
        assert!(copied <= 10 << 20, "{copied} bytes in one step");
        if step.next != Next::Again {
            break;
        }
    }
    assert!(counts.iter().all(|count| *count == usize::from(SIZE)), "{counts:?} in {steps} steps");
    assert_eq!(sender.rings[1].collect().len(), usize::from(SIZE));
}

#[test]
fn a_pair_that_its_worker_lost_takes_no_frames_and_ends_without_harm() {
    let switch = Switch::new("lan");
    let [mut sender, mut guest] = [1, 2].map(|last| Guest::new(&switch, last));
    guest.post();
    let lost = guest.pair.take();
    // It does not come back when it is wanted.
    guest.apply(Op::Reset);
    let new = [0x1_8000, 0x2_8000].map(|at| SplitDriver::new(&guest.ram, at, SIZE, false, 0));
    let mut old = std::mem::replace(&mut guest.rings, new);
    guest.start();
    guest.post();
    let (header, frame) = long_frame(1);
    sender.send(&header, &frame);
    while sender.step().next == Next::Again {}
    assert_eq!(old[0].collect().len(), 0, "a ring from before the reset");
    assert_eq!(guest.received(), usize::from(SIZE));
    drop(lost);
    guest.post();
    sender.rings[1].collect();
    sender.send(&header, &frame);
    while sender.step().next == Next::Again {}
    assert_eq!(guest.received(), usize::from(SIZE));
}

#[test]
fn a_long_frame_that_fits_no_buffer_is_the_receivers_loss_and_leaves_nothing_behind() {
    let switch = Switch::new("lan");
    let [mut sender, mut guest] = [1, 2].map(|last| Guest::new(&switch, last));
    guest.ram.write(RECEIVE, &[0xee; 2048]);
    guest.post_small(1526);
    let (header, frame) = long_frame(1);
    sender.send(&header, &frame);
    let _ = sender.step();
    assert_eq!(sender.rings[1].collect().len(), usize::from(SIZE), "its sender goes on");
    assert_eq!(guest.received(), 0);
    assert_eq!(guest.ram.read(RECEIVE, 2048), [0xee; 2048]);
    let stats = guest.nic.stats().next().unwrap();
    assert_eq!(stats.rx.dropped_for(DropReason::NoBuffer), u64::from(SIZE));
    // Nothing of host memory comes with a frame that fits, before or behind it.
    sender.send(&NetHeader { num_buffers: 0x5555, ..NetHeader::default() }, &frame[..60]);
    let _ = sender.step();
    assert_eq!(guest.received(), usize::from(SIZE));
    let bytes = guest.ram.read(RECEIVE, 2048);
    assert_eq!(bytes[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!((&bytes[12..72], &bytes[72..]), (&frame[..60], &[0xee; 2048 - 72][..]));
}
