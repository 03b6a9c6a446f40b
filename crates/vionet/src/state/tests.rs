//! What a device makes of a state that no device can have been in, and what each counter is.

use std::boxed::Box;
use std::string::ToString;
use std::sync::Arc;
use std::vec;

use vionet_frame::header::Offloads;
use vionet_queue::Fault;
use vionet_spec::feature::Feature;
use vionet_spec::mmio;
use vionet_spec::status::{ACKNOWLEDGE, DRIVER};
use vionet_testkit::{GuestRam, SplitDriver};

use super::*;
use crate::absent::NoEndpoint;
use crate::endpoint::Capabilities;
use crate::negotiate::Refusal;
use crate::stats::DropReason;
use crate::transport::{Lines, Message, MmioNic, PciNic, Wiring};
use crate::{Device, Hands, Op, Workers};

const CONFIG: NicConfig = NicConfig {
    mac: [2, 0, 0, 0, 0, 1],
    mtu: 1500,
    pairs: 2,
    speed: None,
    mac_may_change: true,
    standby: false,
};

struct Nowhere;

impl Lines for Nowhere {
    fn level(&self, _: bool) {}
    fn message(&self, _: u16, _: Message) {}
}

struct Bench {
    ram: GuestRam,
    hands: Hands,
}

impl Bench {
    fn new() -> Self {
        let ram = GuestRam::new(&[(0x1_0000, 0x1_0000)]);
        Self { ram, hands: Hands::new().unwrap() }
    }

    fn device(&self) -> Device {
        let (transmit, receive) = (Offloads::NONE, Offloads::NONE);
        let all = Capabilities { transmit, receive, pairs_max: 8, mtu: 9000 };
        let workers = Workers::by_hand(&self.hands);
        Device::with_workers(CONFIG, Box::new(NoEndpoint(all)), &workers).unwrap()
    }

    fn wiring(&self) -> Wiring {
        Wiring::new(Arc::clone(self.ram.space()), Arc::new(Nowhere))
    }

    fn mmio(&self) -> MmioNic {
        MmioNic::new(self.device(), &self.wiring()).unwrap()
    }

    fn pci(&self) -> PciNic {
        PciNic::new(self.device(), &self.wiring()).unwrap()
    }

    /// A driver of everything that is offered but packed rings has come up with two queues.
    fn state(&self) -> State {
        let nic = self.mmio();
        let set = |at: u64, value: u32| nic.write(at, &value.to_le_bytes());
        set(mmio::STATUS, (ACKNOWLEDGE | DRIVER).into());
        for word in 0..4 {
            set(mmio::DEVICE_FEATURES_SEL, word);
            set(mmio::DRIVER_FEATURES_SEL, word);
            let mut offered = [0; 4];
            nic.read(mmio::DEVICE_FEATURES, &mut offered);
            let packed = if word == 1 { 1 << 2 } else { 0 };
            set(mmio::DRIVER_FEATURES, u32::from_le_bytes(offered) & !packed);
        }
        set(mmio::STATUS, (ACKNOWLEDGE | DRIVER | FEATURES_OK).into());
        for queue in 0..2 {
            let ring =
                SplitDriver::new(&self.ram, 0x1_0000 + 0x1000 * u64::from(queue), 16, false, 0);
            let setup = ring.setup();
            set(mmio::QUEUE_SEL, queue);
            set(mmio::QUEUE_SIZE, 16);
            set(mmio::QUEUE_DESC_LOW, low(setup.descriptors));
            set(mmio::QUEUE_DRIVER_LOW, low(setup.driver));
            set(mmio::QUEUE_DEVICE_LOW, low(setup.device));
            set(mmio::QUEUE_READY, 1);
        }
        set(mmio::STATUS, (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK).into());
        nic.pause().unwrap();
        nic.save().unwrap()
    }
}

#[test]
fn the_sum_is_that_of_ethernet() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}

fn low(address: GuestAddr) -> u32 {
    u32::try_from(address.0).unwrap()
}

type Change = (fn(&mut Body), &'static str);
type PciChange = (fn(&mut Pci), &'static str);

/// What is changed in a state that can be, and what is said about it.
const CHANGES: &[Change] = &[
    (
        |body| body.config.mac[5] = 9,
        "the address 02:00:00:00:00:09, this one has 02:00:00:00:00:01",
    ),
    (|body| body.config.mtu = 9000, "an MTU of 9000, this one has 1500"),
    (|body| body.config.pairs = 3, "queue pairs of 3, this one has 2"),
    (|body| body.config.speed = Some(7), "Mbit/s of 7, this one has unknown"),
    (|body| body.driver.size_max = 512, "queue size of 512, this one has 256"),
    (|body| body.driver.features |= 1 << 41, "41 was not offered"),
    (|body| body.driver.features |= Feature::STANDBY.mask().0, "STANDBY was not offered"),
    (|body| body.driver.features &= !Feature::GUEST_CSUM.mask().0, "GUEST_TSO4 needs"),
    (|body| body.driver.features &= !Feature::VERSION_1.mask().0, "legacy"),
    (|body| body.driver.status |= 1 << 5, "status"),
    (|body| body.driver.status &= !FEATURES_OK, "without features"),
    (|body| body.driver.status |= SUSPEND, "suspended"),
    (|body| body.driver.frozen = Some(([0; 28], 0)), "stands still"),
    (|body| body.driver.beyond = true, "features that no device has"),
    (|body| body.control.begun = false, "front-end"),
    (|body| body.queues.truncate(4), "queues that are not there"),
    (|body| body.queues[0].size = 0, "size"),
    (|body| body.queues[0].size = 15, "size"),
    (|body| body.queues[0].size = 512, "size"),
    (|body| body.queues[0].wrong_size = true, "size"),
    (|body| body.queues[3].cursor = Some([0, 0]), "size"),
    (|body| body.queues[1].areas[0] += 8, "queue 1 of the state cannot start here"),
    (|body| body.queues[1].areas[2] += 1 << 40, "queue 1 of the state cannot start here"),
    (|body| body.control.pairs = 0, "value that is not allowed"),
    (|body| body.control.pairs = 3, "value that is not allowed"),
    (|body| body.control.modes = 1 << 6, "unknown command"),
    (|body| body.control.mac = Some([1, 0, 0, 0, 0, 0]), "zero or a group's"),
    (|body| body.control.vlans = vec![4096], "above 4095"),
    (|body| body.control.offloads = Some(1), "value that is not allowed"),
    (|body| body.control.tunnels = 1 << 30, "tunnel type"),
    (|body| body.control.hash = Some(Hash { types: 1, key: vec![] }), "without a key"),
    (|body| body.control.hash = Some(Hash { types: 1, key: vec![0; 41] }), "longer"),
    (|body| body.control.hash = Some(Hash { types: 1 << 20, key: vec![1; 40] }), "hash type"),
    (|body| body.control.rss = Some(rss(vec![0, 1, 0])), "power of 2"),
    (|body| body.control.rss = Some(rss(vec![])), "longer"),
    (|body| body.control.rss = Some(rss(vec![0, 2])), "not enabled"),
    (|body| body.control.rss = Some(rss(vec![0; 256])), "longer"),
    (|body| (body.control.rss, body.control.pairs) = (Some(rss(vec![0, 1])), 1), "table denies"),
    (|body| body.control.coalescing.truncate(3), "delays"),
    (|body| body.counters.pairs.truncate(1), "counters"),
    (|body| body.counters.pairs[0][0].drops = vec![0; 200], "counters"),
    (|body| body.counters.pairs[1][1].counters = vec![0; 22], "counters"),
    (|body| body.bus = Bus::Mmio { reasons: 4 }, "no reason"),
];

fn rss(table: Vec<u16>) -> Rss {
    Rss { hash: Hash { types: 1, key: vec![1; 40] }, table, unclassified: 0 }
}

#[test]
fn what_no_driver_can_have_brought_about_is_refused_by_name_and_changes_nothing() {
    let bench = Bench::new();
    let good = bench.state();
    for (change, what) in CHANGES {
        let mut state = good.clone();
        change(&mut state.0);
        let nic = bench.mmio();
        let why = nic.restore(&state).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(why.contains(what), "{why:?} says nothing of {what:?}");
        assert_eq!(nic.restore(&good), Ok(()), "after {what}");
        assert!(nic.save() == Ok(good.clone()), "after {what}");
    }
}

#[test]
fn what_the_function_cannot_be_is_refused() {
    let bench = Bench::new();
    let nic = bench.pci();
    nic.pause().unwrap();
    let good = nic.save().unwrap();
    nic.reset().unwrap();
    let changes: [PciChange; 7] = [
        (|pci| pci.config[0] ^= 1, "configuration space"),
        (|pci| pci.config.truncate(255), "configuration space"),
        (|pci| pci.config[0x41] ^= 0x10, "configuration space"),
        (|pci| pci.queue_vectors.push(0), "vectors that are not there"),
        (|pci| pci.vectors.truncate(5), "vectors that are not there"),
        (|pci| pci.config_vector = 6, "vector that is not there"),
        (|pci| pci.vectors[0].pending = 8, "no reason"),
    ];
    for (change, what) in changes {
        let mut state = good.clone();
        let Bus::Pci(pci) = &mut state.0.bus else { panic!("a function") };
        change(pci);
        let why = nic.restore(&state).unwrap_err().to_string();
        assert!(why.contains(what), "{why:?} says nothing of {what:?}");
    }
    assert_eq!(nic.restore(&good), Ok(()));
}

#[test]
fn without_registers_queues_are_stopped_before_and_started_behind() {
    let bench = Bench::new();
    let mut here = bench.device();
    let bits = FeatureBits::of(&[Feature::VERSION_1, Feature::CTRL_VQ, Feature::MQ]);
    here.apply(Op::Negotiate(bits)).unwrap();
    here.apply(Op::Memory(Arc::clone(bench.ram.space()))).unwrap();
    let setup = SplitDriver::new(&bench.ram, 0x1_0000, 16, false, 7).setup();
    let (index, cursor) = (QueueIndex(3), Cursor { avail: 7, used: 7 });
    here.apply(Op::EnableQueue(index, true)).unwrap();
    here.apply(Op::StartQueue { index, setup, cursor }).unwrap();
    assert_eq!(here.save(), Err(SaveError::Running(QueueIndex(2))), "its pair is out");
    here.apply(Op::StopQueue(index)).unwrap();
    let state = here.save().unwrap();
    assert_eq!(here.restore(&state), Err(RestoreError::InUse));
    let mut there = bench.device();
    let error = RestoreError::Queue(index, Fault::RingUnmapped);
    assert_eq!(there.restore(&state), Err(error), "its memory is not known");
    there.apply(Op::Memory(Arc::clone(bench.ram.space()))).unwrap();
    there.restore(&state).unwrap();
    assert!(there.save() == Ok(state.clone()));
    assert_eq!(state.queues().collect::<Vec<_>>(), [(index, setup, Some(cursor))]);
    there.apply(Op::StartQueue { index, setup, cursor }).unwrap();
    // Behind registers it is a driver that has come up, and what they alone carry is not agreed on.
    bench.mmio().restore(&state).unwrap();
    bench.pci().restore(&state).unwrap();
    let suspends = bench.state();
    there.apply(Op::Reset).unwrap();
    let refused = Refusal::NotOffered(Feature::NOTIFICATION_DATA);
    assert_eq!(there.restore(&suspends), Err(RestoreError::Features(refused)));
}

/// In the order of the counters: a state has no names of them.
const COUNTERS: &str = "bytes batches interrupts suppressed starved stalled untranslated faults \
    host_errors kicks closed_checksums open_checksums validated uncut uncut_bytes coalesced \
    coalesced_bytes segments segment_bytes limited limited_bytes";
const DROPS: &str = "no-header bad-header too-short too-long unparsable host-refused host-full \
    endpoint-gone queue-disabled no-buffer not-agreed policy spoofed unsupported table-full \
    rate-limited link-down queue-down filter-too-short filter-unicast filter-multicast \
    filter-broadcast filter-vlan guard-too-short guard-source-mac guard-destination-mac guard-vlan \
    guard-tags guard-ether-type guard-malformed guard-hidden guard-fragment guard-source-ip \
    guard-arp guard-neighbor guard-dhcp-server guard-router-advert guard-redirect";

#[test]
fn each_counter_goes_on_as_itself() {
    let bench = Bench::new();
    let mut state = bench.state();
    let lane = &mut state.0.counters.pairs[1][0];
    lane.counters = (1..=21).collect();
    lane.drops = (1..=38).collect();
    // From a version that had fewer.
    state.0.counters.pairs[1][1].counters = vec![5];
    state.0.counters.control = [1, 2, 3];
    let nic = bench.mmio();
    nic.restore(&state).unwrap();
    let snapshot = nic.snapshot();
    let lane = &snapshot.pairs[1].receive;
    let expected = COUNTERS.split(' ').filter(|name| !name.is_empty()).zip(1..);
    // All frames come first, and are a sum.
    assert!(lane.counters().skip(1).eq(expected), "{lane:?}");
    let drops = lane.drops().map(|(reason, count)| (reason.name(), count));
    let expected = DROPS.split(' ').filter(|name| !name.is_empty()).zip(1..);
    assert!(drops.eq(expected), "{lane:?}");
    assert_eq!(DropReason::ALL.len(), 38, "new reasons come at the end");
    assert_eq!(snapshot.pairs[1].transmit.bytes, 5);
    let control = [("commands", 1), ("obeyed", 2), ("faults", 3)];
    assert!(snapshot.control.counters().eq(control));
    assert!(!std::format!("{state:?}").contains("key"), "it tells no secrets");
}

#[test]
fn more_queues_than_can_be_named_are_not_named() {
    let queue = Queue { enabled: true, ..Queue::default() };
    let driver = Driver { status: DRIVER_OK, ..Driver::default() };
    let state = State(Body { driver, queues: vec![queue; 70_000], ..Body::default() });
    let state = State::decode(&state.encode()).unwrap();
    assert_eq!(state.queues().count(), 1 << 16);
}
