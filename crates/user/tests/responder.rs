//! A guest behind a responder gets its lease and the gateway's address; the rest passes it by.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests may stop"
)]

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr};
use vionet::endpoint::{
    Capabilities, Endpoint, EndpointFault, EndpointQueue, Inlet, OpenError, Refused, RxHeader,
    RxSink, Settings, TxBatch, Watch,
};
use vionet::stats::DropReason;
use vionet::{Effect, Effects, Instant, Nic, NicConfig, Op, QueueIndex, QueuePair};
use vionet_frame::header::Offloads;
use vionet_queue::Cursor;
use vionet_raw::copy_out;
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_testkit::{Arrangement, Buffer, GuestRam, SplitDriver};
use vionet_user::addr::Ipv4Net;
use vionet_user::config::ConfigError;
use vionet_user::{Lease, Responder, ResponderConfig};

const RX: QueueIndex = QueueIndex(0);
const TX: QueueIndex = QueueIndex(1);
const FRAMES: u64 = 0x10_0000;
const ROOM: u32 = 2048;

const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const OUR_MAC: [u8; 6] = [0xfe, 0xe1, 0xba, 0xd0, 0, 1];
const GUEST: [u8; 4] = [100, 64, 1, 3];
const SERVER: [u8; 4] = [100, 64, 1, 2];

/// The inner host side, shared with the test.
#[derive(Default)]
struct Inner {
    sent: Vec<Vec<u8>>,
    to_deliver: VecDeque<Vec<u8>>,
    room: Option<usize>,
    inlet: Option<Arc<Inlet>>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Inner>>);

impl Endpoint for Shared {
    fn adapt(&mut self, _: &Settings) -> Result<(), OpenError> {
        Ok(())
    }

    fn name(&self) -> String {
        "inner".into()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { transmit: Offloads::NONE, receive: Offloads::NONE, pairs_max: 1, mtu: 1500 }
    }

    fn open(&mut self, _: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        Ok(vec![Box::new(self.clone())])
    }
}

impl EndpointQueue for Shared {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        let mut inner = self.0.lock().unwrap();
        while let Some(frame) = frames.frames().first() {
            if inner.room == Some(0) {
                break;
            }
            inner.room = inner.room.map(|room| room - 1);
            let mut bytes = vec![0; frame.len as usize];
            assert_eq!(copy_out(frames.bytes(frame), 0, &mut bytes), bytes.len());
            inner.sent.push(bytes);
            frames.sent(1);
        }
        Ok(())
    }

    fn receive(&mut self, sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        let mut inner = self.0.lock().unwrap();
        while let Some(frame) = inner.to_deliver.front() {
            if sink.push(&RxHeader::default(), frame) == Err(Refused::Full) {
                break;
            }
            inner.to_deliver.pop_front();
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

struct Guest {
    nic: Nic,
    pair: Option<Box<QueuePair>>,
    host: Responder,
    inner: Shared,
    ram: GuestRam,
    rx: SplitDriver,
    tx: SplitDriver,
    posted: VecDeque<u64>,
    next: u64,
}

fn lease() -> Lease {
    let net = Ipv4Net::new(GUEST.into(), 31).unwrap();
    Lease {
        dns: vec![Ipv4Addr::new(9, 9, 9, 9), Ipv4Addr::new(1, 1, 1, 1)],
        seconds: 600,
        hostname: Some("vm7".into()),
        ..Lease::new(net, GUEST.into(), SERVER.into(), 1400)
    }
}

impl Guest {
    fn new(arp: bool) -> Self {
        let config = ResponderConfig { mac: OUR_MAC, lease: lease(), arp };
        Self::before(Shared::default(), &config)
    }

    fn before(inner: Shared, config: &ResponderConfig) -> Self {
        let host = Responder::new(Box::new(inner.clone()), config).unwrap();
        let nic = Nic::new(
            NicConfig { mac: GUEST_MAC, mtu: 1500, ..NicConfig::default() },
            host.capabilities(),
        );
        let ram = GuestRam::new(&[(0x1_0000, 0x1_0000), (0x2_0000, 0x1_0000), (FRAMES, 0x80_0000)]);
        let rx = SplitDriver::new(&ram, 0x1_0000, 64, false, 0);
        let tx = SplitDriver::new(&ram, 0x2_0000, 64, false, 0);
        let (pair, posted) = (None, VecDeque::new());
        let mut guest = Self { nic, pair, host, inner, ram, rx, tx, posted, next: FRAMES };
        guest.apply(Op::Negotiate(FeatureBits::of(&[Feature::VERSION_1])));
        guest.apply(Op::Memory(Arc::clone(guest.ram.space())));
        for (index, setup) in [(RX, guest.rx.setup()), (TX, guest.tx.setup())] {
            guest.apply(Op::EnableQueue(index, true));
            guest.apply(Op::StartQueue { index, setup, cursor: Cursor::default() });
        }
        guest
    }

    fn apply(&mut self, op: Op) {
        let mut effects = Effects::default();
        self.nic.apply(op, &mut effects);
        while let Some(effect) = effects.next_effect() {
            match effect {
                Effect::Open(settings) => {
                    self.nic.opened(self.host.open(&settings), &mut effects);
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

    fn post(&mut self, count: usize) {
        for _ in 0..count {
            self.rx.post(&[Buffer::writable(self.next, ROOM)], Arrangement::Direct).unwrap();
            self.posted.push_back(self.next);
            self.next += u64::from(ROOM);
        }
        self.rx.expose();
    }

    fn send(&mut self, frame: &[u8]) {
        self.ram.write(self.next, &[0; 12]);
        self.ram.write(self.next + 12, frame);
        let buffer = Buffer::readable(self.next, 12 + frame.len() as u32);
        self.tx.post(&[buffer], Arrangement::Direct).unwrap();
        self.next += u64::from(ROOM);
        self.tx.expose();
    }

    fn step(&mut self) {
        let step = self.pair.as_mut().unwrap().service(Instant::from_nanos(0));
        assert_eq!((step.fault, step.host), (None, None));
    }

    fn received(&mut self) -> Vec<Vec<u8>> {
        let used = self.rx.collect();
        let frames = used.iter().map(|used| {
            let at = self.posted.pop_front().unwrap();
            self.ram.read(at, used.len).split_off(12)
        });
        frames.collect()
    }

    fn passed(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.inner.0.lock().unwrap().sent)
    }

    fn drops(&self, receive: bool, reason: DropReason) -> u64 {
        let stats = self.nic.stats().next().unwrap();
        let lane = if receive { &stats.rx } else { &stats.tx };
        lane.dropped_for(reason)
    }
}

fn ethernet(ether_type: u16, rest: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &GUEST_MAC, &ether_type.to_be_bytes(), rest].concat()
}

fn udp(flags: u16, destination: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    let len = (28 + payload.len()) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(len.to_be_bytes());
    ip.extend([0, 1]);
    ip.extend(flags.to_be_bytes());
    ip.extend([64, 17, 0, 0, 0, 0, 0, 0]);
    ip.extend(destination);
    ip.extend(68_u16.to_be_bytes());
    ip.extend(port.to_be_bytes());
    ip.extend((len - 20).to_be_bytes());
    ip.extend([0, 0]);
    ethernet(0x0800, &[&ip[..], payload].concat())
}

/// A message of the guest's DHCP client.
fn message(kind: u8, options: &[u8]) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, 0];
    message.extend([0; 16]);
    message.extend(GUEST_MAC);
    message.extend([0; 202]);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind]);
    message.extend(options);
    message.push(255);
    message
}

fn discover() -> Vec<u8> {
    udp(0, [255; 4], 67, &message(1, &[]))
}

fn arp_for(target: [u8; 4]) -> Vec<u8> {
    let form = [0, 1, 8, 0, 6, 4, 0, 1];
    ethernet(0x0806, &[&form[..], &GUEST_MAC, &GUEST, &[0; 6], &target].concat())
}

fn other(mark: u8) -> Vec<u8> {
    ethernet(0x88b5, &[mark; 50])
}

fn is_offer(frame: &[u8]) -> bool {
    frame.len() > 42 && frame[34..38] == [0, 67, 0, 68]
}

#[test]
fn a_guest_gets_its_lease_and_nobody_behind_hears_of_it() {
    let mut guest = Guest::new(false);
    guest.post(2);
    guest.send(&discover());
    guest.send(&udp(0, [255; 4], 67, &message(3, &[50, 4, 100, 64, 1, 3, 54, 4, 100, 64, 1, 2])));
    guest.step();
    assert!(guest.passed().is_empty());
    let replies = guest.received();
    let kinds: Vec<_> = replies
        .iter()
        .map(|reply| {
            assert_eq!((&reply[..6], &reply[6..12]), (&GUEST_MAC[..], &OUR_MAC[..]));
            assert_eq!(reply[26..34], [SERVER, GUEST].concat());
            let packet = DhcpPacket::new_checked(&reply[42..]).unwrap();
            let repr = DhcpRepr::parse(&packet).unwrap();
            assert_eq!(repr.your_ip, Ipv4Addr::from(GUEST));
            assert_eq!(repr.router, Some(SERVER.into()));
            assert_eq!(repr.subnet_mask, Some(Ipv4Addr::new(255, 255, 255, 254)));
            assert_eq!(repr.lease_duration, Some(600));
            assert_eq!(repr.dns_servers.unwrap().as_slice(), lease().dns);
            let option = |code| packet.options().find(|one| one.kind == code);
            assert_eq!(option(12).unwrap().data, b"vm7");
            assert_eq!(option(26).unwrap().data, 1400_u16.to_be_bytes());
            assert!(option(28).is_none(), "two hosts have no broadcast address");
            repr.message_type
        })
        .collect();
    assert_eq!(kinds, [DhcpMessageType::Offer, DhcpMessageType::Ack]);
    assert_eq!(guest.tx.collect().len(), 2);
}

#[test]
fn a_lease_without_a_router_names_none() {
    let lease = Lease { router: None, ..lease() };
    let config = ResponderConfig { mac: OUR_MAC, lease, arp: false };
    let mut guest = Guest::before(Shared::default(), &config);
    guest.post(1);
    guest.send(&discover());
    guest.step();
    let replies = guest.received();
    let packet = DhcpPacket::new_checked(&replies[0][42..]).unwrap();
    assert_eq!(DhcpRepr::parse(&packet).unwrap().router, None);
}

#[test]
fn everything_else_passes_in_order_and_untouched() {
    let mut guest = Guest::new(true);
    guest.post(8);
    let others = [
        other(1),
        udp(0, [255; 4], 68, &message(1, &[])),
        udp(0, [100, 64, 9, 9], 67, &message(1, &[])),
        udp(7, [255; 4], 67, &[0; 40]),
        arp_for([100, 64, 1, 9]),
        arp_for(GUEST),
        udp(0, [255; 4], 53, &[]),
        ethernet(0x8100, &discover()[12..]),
        other(2)[..20].to_vec(),
    ];
    for frame in &others {
        guest.send(&discover());
        guest.send(frame);
    }
    guest.step();
    assert_eq!(guest.passed(), others);
    assert_eq!(guest.received().len(), 8);
}

#[test]
fn arp_for_the_gateway_is_answered_only_if_asked_for() {
    for arp in [true, false] {
        let mut guest = Guest::new(arp);
        guest.post(2);
        guest.send(&arp_for(SERVER));
        guest.step();
        let replies = guest.received();
        if arp {
            let reply = [
                &GUEST_MAC[..],
                &OUR_MAC,
                &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2],
                &OUR_MAC,
                &SERVER,
                &GUEST_MAC,
                &GUEST,
            ];
            assert_eq!(replies[0][..42], reply.concat());
            assert!(guest.passed().is_empty());
        } else {
            assert!(replies.is_empty());
            assert_eq!(guest.passed(), [arp_for(SERVER)]);
        }
    }
}

#[test]
fn replies_come_before_what_the_host_side_brings() {
    let mut guest = Guest::new(false);
    guest.inner.0.lock().unwrap().to_deliver.push_back(other(9));
    guest.post(2);
    guest.send(&discover());
    guest.step();
    let received = guest.received();
    assert!(is_offer(&received[0]));
    assert_eq!(received[1], other(9));
}

#[test]
fn replies_wait_for_buffers_and_are_bounded() {
    let mut guest = Guest::new(false);
    for _ in 0..60 {
        guest.send(&discover());
    }
    guest.step();
    assert_eq!(guest.tx.collect().len(), 60, "the guest has all its buffers back");
    let dropped = guest.drops(false, DropReason::HostFull);
    assert!((1..50).contains(&dropped));
    guest.post(60);
    guest.step();
    let received = guest.received();
    assert_eq!(received.len() as u64, 60 - dropped);
    assert!(received.iter().all(|frame| is_offer(frame)));
}

#[test]
fn a_full_host_side_holds_up_what_is_behind_it() {
    let mut guest = Guest::new(false);
    guest.inner.0.lock().unwrap().room = Some(2);
    guest.post(4);
    for mark in 0..3 {
        guest.send(&other(mark));
    }
    guest.send(&discover());
    guest.step();
    assert_eq!(guest.passed(), [other(0), other(1)]);
    assert_eq!((guest.tx.collect().len(), guest.received().len()), (2, 0));
    guest.inner.0.lock().unwrap().room = None;
    guest.step();
    assert_eq!(guest.passed(), [other(2)]);
    assert_eq!((guest.tx.collect().len(), guest.received().len()), (2, 1));
}

#[test]
fn messages_that_are_none_are_dropped_and_counted() {
    let mut guest = Guest::new(false);
    guest.post(4);
    guest.send(&udp(0, [255; 4], 67, &[0; 300]));
    guest.send(&udp(0x2000, [255; 4], 67, &message(1, &[])));
    guest.send(&udp(0, [255; 4], 67, &[0; 1500]));
    guest.step();
    assert_eq!(guest.drops(false, DropReason::Unsupported), 2);
    assert_eq!(guest.drops(false, DropReason::TooLong), 1);
    assert!(guest.passed().is_empty() && guest.received().is_empty());
}

#[test]
fn where_others_deliver_replies_go_their_way() {
    let inner = Shared::default();
    inner.0.lock().unwrap().inlet = Some(Arc::new(Inlet::new().unwrap()));
    let config = ResponderConfig { mac: OUR_MAC, lease: lease(), arp: false };
    let mut guest = Guest::before(inner, &config);
    guest.post(1);
    guest.send(&discover());
    guest.send(&other(1));
    guest.send(&discover());
    guest.step();
    assert!(is_offer(&guest.received()[0]));
    assert_eq!(guest.passed(), [other(1)]);
    assert_eq!(guest.drops(true, DropReason::NoBuffer), 1, "nobody waits for the guest");
    guest.post(1);
    guest.step();
    assert!(guest.received().is_empty());
    guest.send(&discover());
    guest.step();
    assert_eq!(guest.received().len(), 1);
}

#[test]
fn a_configuration_that_contradicts_itself_is_refused() {
    let config = ResponderConfig { mac: [1, 0, 0, 0, 0, 1], lease: lease(), arp: false };
    let group = Responder::new(Box::new(Shared::default()), &config);
    assert_eq!(group.err(), Some(ConfigError::Mac([1, 0, 0, 0, 0, 1])));
    let short =
        ResponderConfig { lease: Lease { seconds: 1, ..lease() }, mac: OUR_MAC, arp: false };
    let short = Responder::new(Box::new(Shared::default()), &short);
    assert_eq!(short.err(), Some(ConfigError::LeaseTooShort(1)));
}
