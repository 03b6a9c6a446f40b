//! A device of several pairs, stepped by hand: which of them a received frame goes to.
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
    unreachable_pub,
    reason = "tests may stop"
)]

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use vionet::endpoint::{
    Capabilities, Delivery, EndpointFault, EndpointQueue, Inlet, RxHeader, RxSink, Settings,
    TxBatch, Watch,
};
use vionet::{
    Effect, Effects, Instant, Nic, NicConfig, Op, OpError, PairIndex, QueueIndex, QueuePair,
};
use vionet_frame::header::Offloads;
use vionet_queue::{Cursor, QueueSetup};
use vionet_spec::control::{ERR, OK};
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_testkit::{Arrangement, Buffer, GuestRam, SplitDriver};

const PAIRS: u16 = 4;
const CONTROL: QueueIndex = QueueIndex(2 * PAIRS);
const SIZE: u16 = 64;
/// Received frames lie here, and those sent and commands behind them.
const FRAMES: u64 = 0x20_0000;
const START: Instant = Instant::from_nanos(0);

type Frames = Arc<Mutex<VecDeque<Vec<u8>>>>;

/// The host side of a pair: it counts what it is given to send and brings what waits.
struct HostQueue {
    to_deliver: Frames,
    inlet: Option<Arc<Inlet>>,
}

impl EndpointQueue for HostQueue {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        frames.sent(frames.frames().len());
        Ok(())
    }

    fn receive(&mut self, sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        let mut waiting = self.to_deliver.lock().unwrap();
        while let Some(frame) = waiting.pop_front() {
            let _ = sink.push(&RxHeader::default(), &frame);
        }
        Ok(())
    }

    fn watch(&self) -> Watch {
        Watch { readable: true, writable: false, deadline: None }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn inlet(&self) -> Option<Arc<Inlet>> {
        self.inlet.clone()
    }
}

struct Bench {
    nic: Nic,
    pairs: Vec<Option<Box<QueuePair>>>,
    hosts: Vec<Frames>,
    /// Where the host side delivers, if it does so itself.
    inlets: Vec<Option<Arc<Inlet>>>,
    ram: GuestRam,
    rings: Vec<SplitDriver>,
    next: u64,
    /// What the host side was last told of a change.
    adapted: Option<Settings>,
}

impl Bench {
    /// Every queue runs; the host side delivers through inlets of its own if it `pushes`.
    fn new(features: &[Feature], pushes: bool) -> Self {
        let ram = GuestRam::new(&[(0x1_0000, 0x10_0000), (FRAMES, 0x40_0000)]);
        let ring = |index: u64| SplitDriver::new(&ram, 0x1_0000 * (1 + index), SIZE, false, 0);
        let rings = (0..=u64::from(CONTROL.0)).map(ring).collect();
        let config = NicConfig { pairs: PAIRS, mtu: 1500, ..NicConfig::default() };
        let (transmit, receive) = (Offloads::ALL, Offloads::ALL);
        let nic = Nic::new(config, Capabilities { transmit, receive, pairs_max: 8, mtu: 1500 });
        let inlet = |_| pushes.then(|| Arc::new(Inlet::new().unwrap()));
        let mut bench = Self {
            nic,
            pairs: (0..PAIRS).map(|_| None).collect(),
            hosts: (0..PAIRS).map(|_| Frames::default()).collect(),
            inlets: (0..PAIRS).map(inlet).collect(),
            ram,
            rings,
            next: FRAMES + 0x1000,
            adapted: None,
        };
        bench.negotiate(features);
        (0..=CONTROL.0).for_each(|index| bench.start(QueueIndex(index)));
        bench
    }

    fn negotiate(&mut self, features: &[Feature]) {
        let always = [Feature::VERSION_1, Feature::CTRL_VQ];
        let bits = FeatureBits::of(features) | FeatureBits::of(&always);
        self.apply(Op::Negotiate(bits)).unwrap();
        self.apply(Op::Memory(Arc::clone(self.ram.space()))).unwrap();
        (0..CONTROL.0).for_each(|i| self.apply(Op::EnableQueue(QueueIndex(i), true)).unwrap());
    }

    fn start(&mut self, index: QueueIndex) {
        let setup = self.rings[usize::from(index.0)].setup();
        let cursor = self.nic.cursor(index).unwrap_or_default();
        self.apply(Op::StartQueue { index, setup, cursor }).unwrap();
    }

    fn apply(&mut self, op: Op) -> Result<(), OpError> {
        let mut effects = Effects::default();
        self.nic.apply(op, &mut effects);
        let mut result = None;
        while let Some(effect) = effects.next_effect() {
            match effect {
                Effect::Open(settings) => {
                    if settings.spreads {
                        let inlets = (0..settings.pairs).map(|_| Arc::new(Inlet::new().unwrap()));
                        self.nic.set_inlets(inlets.collect());
                    }
                    let both = self.hosts.iter().zip(&self.inlets);
                    let queues = both.map(|(host, inlet)| -> Box<dyn EndpointQueue> {
                        Box::new(HostQueue { to_deliver: Arc::clone(host), inlet: inlet.clone() })
                    });
                    self.nic.opened(Ok(queues.collect()), &mut effects);
                }
                Effect::Recall(index) => {
                    let pair = self.pairs[usize::from(index.0)].take();
                    self.nic.returned(index, pair, &mut effects);
                }
                Effect::Start(pair) => {
                    let at = usize::from(pair.index().0);
                    assert!(self.pairs[at].replace(pair).is_none());
                }
                Effect::ControlFault(fault) => panic!("{fault:?}"),
                Effect::Adapt(settings) => {
                    // None of them is at work meanwhile.
                    assert!(self.pairs.iter().all(Option::is_none));
                    self.adapted = Some(settings);
                }
                Effect::Interrupt(_) | Effect::ConfigChanged => {}
                Effect::Done(outcome) => result = Some(outcome),
            }
        }
        result.expect("an operation ends")
    }

    fn command(&mut self, bytes: &[u8]) -> u8 {
        let at = self.next;
        self.next += 0x1000;
        self.ram.write(at, bytes);
        let buffers = [Buffer::readable(at, bytes.len() as u32), Buffer::writable(at + 0x800, 1)];
        let ring = &mut self.rings[usize::from(CONTROL.0)];
        ring.post(&buffers, Arrangement::Direct).unwrap();
        ring.expose();
        self.apply(Op::Commands).unwrap();
        assert_eq!(self.rings[usize::from(CONTROL.0)].collect().len(), 1);
        self.ram.read(at + 0x800, 1)[0]
    }

    fn set_pairs(&mut self, pairs: u16) -> u8 {
        let [low, high] = pairs.to_le_bytes();
        self.command(&[4, 0, low, high])
    }

    /// Each receive queue has a buffer more, until it is full.
    fn post(&mut self) {
        for ring in self.rings.iter_mut().step_by(2).take(usize::from(PAIRS)) {
            // Nobody reads what is in them.
            let _ = ring.post(&[Buffer::writable(FRAMES, 2048)], Arrangement::Direct);
            ring.expose();
        }
    }

    fn step(&mut self) {
        self.pairs.iter_mut().flatten().for_each(|pair| _ = pair.service(START));
    }

    /// How many frames have come to each pair.
    fn got(&mut self) -> Vec<usize> {
        let receive = self.rings.iter_mut().step_by(2).take(usize::from(PAIRS));
        receive.map(|ring| ring.collect().len()).collect()
    }

    /// The host side brings a frame on a pair: which pairs of the guest have got it.
    fn bring(&mut self, pair: u16, frame: &[u8]) -> Vec<u16> {
        self.post();
        match &self.inlets[usize::from(pair)] {
            Some(inlet) => {
                let (Delivery::Done | Delivery::Closed) =
                    inlet.deliver(START, |sink| _ = sink.push(&RxHeader::default(), frame));
            }
            None => {
                self.hosts[usize::from(pair)].lock().unwrap().push_back(frame.to_vec());
                self.step();
                self.hosts[usize::from(pair)].lock().unwrap().clear();
            }
        }
        let got = self.got();
        let counted = (0..PAIRS).zip(got);
        counted.flat_map(|(pair, count)| vec![pair; count]).collect()
    }

    /// The driver sends a frame on a pair: whether its buffer comes back.
    fn send(&mut self, pair: u16, frame: &[u8]) -> bool {
        let bytes = [&[0; 12], frame].concat();
        self.ram.write(self.next, &bytes);
        let ring = &mut self.rings[usize::from(2 * pair + 1)];
        let buffer = Buffer::readable(self.next, bytes.len() as u32);
        ring.post(&[buffer], Arrangement::Direct).unwrap();
        ring.expose();
        self.next += 2048;
        self.step();
        self.rings[usize::from(2 * pair + 1)].collect().len() == 1
    }
}

/// A UDP frame of the guest's, or the one that answers it.
fn udp(port: u16, from_guest: bool) -> Vec<u8> {
    let mut frame = [&[2; 12][..], &[8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0]].concat();
    let (guest, host) = ([10, 0, 0, 2], [10, 0, 0, 1]);
    let ([p0, p1], ports) = (port.to_be_bytes(), [0, 53]);
    if from_guest {
        frame.extend([guest, host].concat());
        frame.extend([p0, p1, ports[0], ports[1]]);
    } else {
        frame.extend([host, guest].concat());
        frame.extend([ports[0], ports[1], p0, p1]);
    }
    frame.resize(60, 0);
    frame
}

const ARP: [u8; 60] = {
    let mut frame = [0; 60];
    frame[12] = 8;
    frame[13] = 6;
    frame
};

/// The pairs that get a frame which the host brings on each.
fn receiving(bench: &mut Bench) -> Vec<u16> {
    (0..PAIRS).flat_map(|pair| bench.bring(pair, &ARP)).collect()
}

#[test]
fn a_front_that_serves_the_control_queue_itself_uses_the_pairs_that_it_enables() {
    let mut bench = Bench::new(&[Feature::MQ], false);
    bench.apply(Op::Reset).unwrap();
    let features = [Feature::VERSION_1, Feature::MQ, Feature::GUEST_ANNOUNCE];
    let bits = FeatureBits::of(&features);
    assert!(bench.apply(Op::Negotiate(bits)).is_err(), "NET-DEP-09");
    bench.apply(Op::NegotiateByFrontEnd(bits)).unwrap();
    assert_eq!(bench.nic.negotiated().unwrap().bits(), bits);
    assert_eq!(bench.nic.role(CONTROL), None);
    bench.apply(Op::Memory(Arc::clone(bench.ram.space()))).unwrap();
    for index in (0..CONTROL.0).map(QueueIndex) {
        bench.apply(Op::EnableQueue(index, index.0 < 6)).unwrap();
        bench.start(index);
    }
    assert_eq!(receiving(&mut bench), [0, 1, 2]);
    assert!(bench.send(2, &ARP));
    // Other rules hold as ever.
    bench.apply(Op::Reset).unwrap();
    let open = FeatureBits::of(&[Feature::VERSION_1, Feature::HOST_TSO4]);
    assert!(bench.apply(Op::NegotiateByFrontEnd(open)).is_err());
}

/// As a front-end brings it: everything is enabled, the control queue has not come.
fn by_front_end(features: &[Feature], pushes: bool) -> (Bench, FeatureBits) {
    let mut bench = Bench::new(&[Feature::MQ], pushes);
    bench.apply(Op::Reset).unwrap();
    let bits = FeatureBits::of(features) | FeatureBits::of(&[Feature::VERSION_1, Feature::MQ]);
    bench.apply(Op::NegotiateByFrontEnd(bits)).unwrap();
    bench.apply(Op::Memory(Arc::clone(bench.ram.space()))).unwrap();
    for index in (0..CONTROL.0).map(QueueIndex) {
        bench.apply(Op::EnableQueue(index, true)).unwrap();
        bench.start(index);
    }
    (bench, bits)
}

#[test]
fn commands_limit_the_pairs_in_use_once_the_control_queue_has_come_and_for_good() {
    for pushes in [false, true] {
        let (mut bench, bits) = by_front_end(&[Feature::CTRL_VQ], pushes);
        let all = |bench: &mut Bench| {
            let flows = (0..100).flat_map(|port| bench.bring(port % PAIRS, &udp(port, false)));
            flows.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
        };
        assert_eq!((all(&mut bench), bench.nic.active_pairs()), (vec![0, 1, 2, 3], 4));
        bench.apply(Op::EnableQueue(CONTROL, true)).unwrap();
        assert_eq!(bench.nic.active_pairs(), 4, "the control queue is no pair's");
        // A ring that cannot be changes nothing.
        let setup = QueueSetup { size: 7, ..bench.rings[0].setup() };
        let cursor = Cursor::default();
        let broken = Op::StartQueue { index: CONTROL, setup, cursor };
        assert!(bench.apply(broken).is_err() && all(&mut bench).len() == 4);
        bench.start(CONTROL);
        assert_eq!((all(&mut bench), bench.nic.active_pairs()), (vec![0], 1), "NET-CTRL-MQ-05");
        assert_eq!(bench.adapted.map(|settings| settings.active), Some(1));
        assert_eq!(bench.set_pairs(2), OK);
        bench.apply(Op::StopQueue(CONTROL)).unwrap();
        for same in [Op::NegotiateByFrontEnd(bits), Op::Negotiate(bits)] {
            bench.apply(same).unwrap();
            bench.apply(Op::EnableQueue(QueueIndex(0), true)).unwrap();
            assert_eq!((all(&mut bench), bench.nic.active_pairs()), (vec![0, 1], 2));
        }
        bench.start(CONTROL);
        assert_eq!((all(&mut bench), bench.nic.active_pairs()), (vec![0, 1], 2));
    }
}

#[test]
fn what_a_front_end_may_leave_out_a_driver_may_not_though_it_was_agreed_on_before() {
    let (mut bench, bits) = by_front_end(&[], false);
    bench.apply(Op::NegotiateByFrontEnd(bits)).unwrap();
    assert!(bench.apply(Op::Negotiate(bits)).is_err(), "NET-DEP-09");
    assert_eq!(receiving(&mut bench), [0, 1, 2, 3], "nothing has changed");
}

#[test]
fn pairs_that_a_front_end_enables_and_disables_one_by_one_take_part_and_leave() {
    let (mut bench, _) = by_front_end(&[Feature::CTRL_VQ], true);
    let known = |bench: &mut Bench| {
        let flows = (0..100).flat_map(|port| bench.bring(0, &udp(port, false)));
        flows.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    for pair in [3, 2, 1] {
        bench.apply(Op::EnableQueue(QueueIndex(2 * pair), false)).unwrap();
        assert_eq!(known(&mut bench), (0..pair).collect::<Vec<_>>());
        assert_eq!(bench.adapted.map(|settings| settings.active), Some(pair));
    }
    // Behind a gap they have no part.
    for (pair, wanted) in [(2, 1), (3, 1), (1, 4)] {
        bench.apply(Op::EnableQueue(QueueIndex(2 * pair), true)).unwrap();
        assert_eq!(known(&mut bench), (0..wanted).collect::<Vec<_>>());
    }
}

#[test]
fn as_many_pairs_receive_as_the_driver_has_said_and_one_before() {
    let mut bench = Bench::new(&[Feature::MQ], false);
    assert_eq!(receiving(&mut bench), [0], "NET-Q-05, NET-CTRL-MQ-05");
    assert_eq!(bench.set_pairs(3), OK);
    assert_eq!(receiving(&mut bench), [0, 1, 2], "NET-CTRL-MQ-06");
    for wrong in [0, PAIRS + 1, 0x8000, u16::MAX] {
        assert_eq!(bench.set_pairs(wrong), ERR, "NET-CTRL-MQ-12: {wrong}");
    }
    assert_eq!((bench.nic.active_pairs(), receiving(&mut bench)), (3, vec![0, 1, 2]));
    assert_eq!(bench.set_pairs(1), OK);
    assert_eq!(receiving(&mut bench), [0], "NET-CTRL-MQ-09");
    assert_eq!(bench.set_pairs(PAIRS), OK);
    bench.apply(Op::Reset).unwrap();
    bench.negotiate(&[Feature::MQ]);
    assert_eq!(bench.nic.active_pairs(), 1, "NET-CTRL-MQ-05: after reset");
}

#[test]
fn queues_that_were_not_started_get_nothing_and_harm_nobody() {
    let mut bench = Bench::new(&[Feature::MQ], false);
    for queue in [2, 3, 6, 7] {
        bench.apply(Op::StopQueue(QueueIndex(queue))).unwrap();
    }
    assert_eq!(bench.set_pairs(PAIRS), OK);
    assert_eq!(receiving(&mut bench), [0, 2], "NET-CTRL-MQ-11");
    bench.apply(Op::Rewire(PairIndex(1))).unwrap();
    assert!(bench.send(0, &ARP));
}

#[test]
fn what_is_sent_on_pairs_that_are_not_in_use_is_tolerated() {
    let mut bench = Bench::new(&[Feature::MQ], false);
    assert!(bench.send(2, &ARP), "NET-CTRL-MQ-13");
    assert_eq!(bench.set_pairs(2), OK);
    assert!(bench.send(3, &ARP) && bench.send(1, &ARP), "NET-CTRL-MQ-14");
    assert_eq!(receiving(&mut bench), [0, 1]);
}

#[test]
fn a_flow_is_received_on_the_pair_it_was_sent_on() {
    let mut bench = Bench::new(&[Feature::MQ], true);
    assert!(bench.send(2, &udp(7, true)));
    assert_eq!(bench.bring(0, &udp(7, false)), [0], "NET-CTRL-MQ-05");
    assert_eq!(bench.set_pairs(PAIRS), OK);
    for pair in (0..PAIRS).rev() {
        assert!(bench.send(pair, &udp(100 + pair, true)));
    }
    for pair in 0..PAIRS {
        for from in 0..PAIRS {
            let got = bench.bring(from, &udp(100 + pair, false));
            assert_eq!(got, [pair], "NET-CTRL-MQ-02, -03, by {from}");
        }
    }
    let unknown: Vec<u16> =
        (1000..1200).flat_map(|port| bench.bring(0, &udp(port, false))).collect();
    assert_eq!(unknown.len(), 200, "NET-CTRL-MQ-04");
    for pair in 0..PAIRS {
        assert!(unknown.iter().filter(|one| **one == pair).count() > 10);
    }
    assert_eq!(bench.set_pairs(2), OK);
    let few = (1000..1100).flat_map(|port| bench.bring(1, &udp(port, false)));
    assert!(few.collect::<Vec<_>>().iter().all(|pair| *pair < 2), "NET-CTRL-MQ-06");
    assert!(bench.bring(0, &udp(103, false))[0] < 2);
}

#[test]
fn a_flow_whose_queue_is_stopped_goes_to_another_pair() {
    let mut bench = Bench::new(&[Feature::MQ], true);
    assert_eq!(bench.set_pairs(PAIRS), OK);
    assert!(bench.send(2, &udp(7, true)));
    assert_eq!(bench.bring(0, &udp(7, false)), [2]);
    bench.apply(Op::StopQueue(QueueIndex(4))).unwrap();
    assert_eq!(bench.bring(0, &udp(7, false)), [3], "NET-CTRL-MQ-07");
}

#[test]
fn while_every_receive_queue_is_stopped_frames_are_dropped() {
    let mut bench = Bench::new(&[Feature::MQ], true);
    assert_eq!(bench.set_pairs(PAIRS), OK);
    (0..PAIRS).for_each(|pair| bench.apply(Op::StopQueue(QueueIndex(2 * pair))).unwrap());
    for pair in 0..PAIRS {
        assert_eq!(bench.bring(pair, &udp(9, false)), [0_u16; 0], "NET-CTRL-MQ-08");
    }
    assert!(bench.send(1, &ARP), "transmitting goes on");
}

/// RSS_CONFIG: TCP over IPv4 by the key of the published vectors.
fn rss(table: &[u16], unclassified: u16, transmit: u16) -> Vec<u8> {
    let key = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f,
        0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
        0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];
    let mask = table.len() as u16 - 1;
    let fields = [&[mask, unclassified], table, &[transmit]].concat();
    let fields: Vec<u8> = fields.into_iter().flat_map(u16::to_le_bytes).collect();
    [&[4, 1, 2, 0, 0, 0][..], &fields, &[40], &key].concat()
}

/// 66.9.149.187:2794 to 161.142.100.80:1766 over TCP, whose hash is 0x51ccc178.
fn published() -> Vec<u8> {
    let mut frame = udp(0, true);
    frame[23] = 6;
    frame[26..34].copy_from_slice(&[66, 9, 149, 187, 161, 142, 100, 80]);
    frame[34..38].copy_from_slice(&[0x0a, 0xea, 0x06, 0xe6]);
    frame
}

#[test]
fn frames_go_where_the_drivers_table_says() {
    let mut bench = Bench::new(&[Feature::RSS, Feature::MQ, Feature::HASH_REPORT], false);
    assert_eq!(bench.bring(0, &published()), [0]);
    let hash_config = [&[4, 2, 2, 0, 0, 0][..], &[0; 8], &[1, 7]].concat();
    assert_eq!(bench.command(&hash_config), OK, "NET-CTRL-HASH-01");
    // The low bits of the hash are 000.
    assert_eq!(bench.command(&rss(&[3, 0, 1, 2], 1, 2)), OK);
    assert_eq!(bench.command(&hash_config), ERR, "NET-CTRL-HASH-01: not beside RSS");
    for by in 0..PAIRS {
        assert_eq!(bench.bring(by, &published()), [3], "NET-RSS-03, by {by}");
        assert_eq!(bench.bring(by, &ARP), [1], "NET-RSS-02, by {by}");
    }
    for wrong in [rss(&[0, 4], 0, 1), rss(&[0, 0], 4, 1), rss(&[0, 0x8001], 0, 1)] {
        assert_eq!(bench.command(&wrong), ERR, "NET-RSS-08");
    }
    for wrong in [rss(&[0; 3], 0, 1), rss(&[0; 256], 0, 1), rss(&[0], 0, 0), rss(&[0], 0, 5)] {
        assert_eq!(bench.command(&wrong), ERR, "NET-RSS-06, -09, -10");
    }
    assert_eq!(bench.bring(0, &published()), [3], "a refusal changes nothing");
    bench.apply(Op::StopQueue(QueueIndex(6))).unwrap();
    assert_eq!(bench.bring(0, &published()), [0_u16; 0], "NET-RSS-04");
    assert_eq!(bench.bring(0, &ARP), [1]);
    bench.start(QueueIndex(6));
    assert_eq!(bench.bring(0, &published()), [3]);
    assert_eq!(bench.set_pairs(PAIRS), OK);
    assert_eq!(bench.bring(2, &published()), [2], "NET-CTRL-MQ-10: automatic again");
    assert_eq!(bench.command(&rss(&[0], 0, 4)), OK);
    assert_eq!(bench.bring(2, &published()), [0], "NET-CTRL-MQ-10: by the table again");
    assert_eq!(bench.nic.active_pairs(), 4, "NET-RSS-06");
    assert_eq!(bench.command(&rss(&[0], 0, 1)), OK);
    assert_eq!(bench.nic.active_pairs(), 1, "NET-RSS-06");
}
