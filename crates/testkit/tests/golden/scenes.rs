//! Devices in all kinds of states, the same ones each time: nothing in them depends on threads.

use std::sync::Arc;

use vionet::transport::{MmioNic, PciNic};
use vionet::{Hands, Instant, NicConfig, Op, QueueIndex, State};
use vionet_queue::{Cursor, Format, RingFeatures};
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_spec::pci;
use vionet_spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, SUSPEND};
use vionet_testkit::{Arrangement, Buffer, GuestRam, PackedDriver, SplitDriver};

use crate::board::front::{capability, set_common, set_config, switch_on};
use crate::board::{Front, MAC};
use crate::hostile::{device, ram, wiring};

const RINGS: u64 = 0x1_0000;
const BUFFERS: u64 = 0x10_0000;
const CONFIG: NicConfig =
    NicConfig { mac: MAC, mtu: 1500, pairs: 1, speed: None, mac_may_change: true, standby: false };

/// Each scene by its name.
pub(crate) fn all() -> [(&'static str, State); 4] {
    [("pci", pci()), ("mmio", mmio()), ("mmio-early", early()), ("device", bare())]
}

fn choose(nic: &dyn Front, bits: FeatureBits) {
    nic.set_status(ACKNOWLEDGE);
    nic.set_status(ACKNOWLEDGE | DRIVER);
    (0..4).for_each(|word| nic.choose(word, (bits.0 >> (32 * word)) as u32));
    nic.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(nic.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

fn enable(nic: &dyn Front, queue: u32, setup: vionet_queue::QueueSetup) {
    nic.select(queue);
    nic.set_size(setup.size.into());
    nic.set_areas([setup.descriptors.0, setup.driver.0, setup.device.0]);
    nic.enable();
}

fn serve(hands: &Hands) {
    for place in (0..hands.places()).cycle().take(8) {
        _ = hands.service(place, Instant::from_nanos(1));
    }
}

/// Sends a command; it is obeyed.
fn command(nic: &dyn Front, ram: &GuestRam, control: &mut SplitDriver, bytes: &[u8]) {
    ram.write(BUFFERS, bytes);
    ram.write(BUFFERS + 0x1000, &[0xee]);
    let buffers =
        [Buffer::readable(BUFFERS, bytes.len() as u32), Buffer::writable(BUFFERS + 0x1000, 1)];
    control.post(&buffers, Arrangement::Direct).unwrap();
    control.expose();
    nic.kick(4);
    assert_eq!(nic.tend(), None);
    assert_eq!(control.collect().len(), 1);
    assert_eq!(ram.read(BUFFERS + 0x1000, 1), [0], "{bytes:?}");
}

/// Everything that a driver can command, each once.
fn commands() -> Vec<Vec<u8>> {
    let groups: Vec<u8> = (0..65).flat_map(|last| [1, 0, 0x5e, 0, 0, last]).collect();
    let stations = [[2, 0, 0, 0, 0, 8], [2, 0, 0, 0, 0, 9]].concat();
    let table = [&[1, 0, 2, 0, 0, 0][..], &stations, &[65, 0, 0, 0], &groups].concat();
    let key: Vec<u8> = (0..40).collect();
    let hash = [&[4, 2, 0x3f, 0, 0, 0][..], &[0; 8], &[40], &key].concat();
    let rss = [&[4, 1, 7, 0, 0, 0][..], &[3, 0, 1, 0], &[0, 0, 1, 0, 1, 0, 0, 0], &[2, 0], &[40]];
    let rss = [&rss.concat()[..], &key].concat();
    let offloads = [&[5, 0][..], &(1_u64 << 1 | 1 << 7 | 1 << 54).to_le_bytes()].concat();
    vec![
        vec![0, 0, 1],
        vec![0, 5, 1],
        table,
        vec![1, 1, 2, 0, 0, 0, 0, 7],
        vec![2, 0, 1, 0],
        vec![2, 0, 0xff, 0x0f],
        hash,
        rss,
        offloads,
        vec![6, 0, 4, 0, 0, 0, 50, 0, 0, 0],
        vec![6, 1, 8, 0, 0, 0, 60, 0, 0, 0],
        vec![6, 2, 2, 0, 0, 0, 9, 0, 0, 0, 70, 0, 0, 0],
        vec![7, 0, 0x11, 0, 0, 0],
    ]
}

/// Two pairs on PCI, with all features that go with split rings, after every command.
fn pci() -> State {
    let (ram, hands) = (ram(), Hands::new().unwrap());
    let config = NicConfig { mtu: 9000, pairs: 2, speed: Some(10_000), standby: true, ..CONFIG };
    let nic = PciNic::new(device(config, &hands), &wiring(&ram, Some(64))).unwrap();
    switch_on(&nic);
    let words = (0..4).map(|word| u128::from(Front::offered(&nic, word)) << (32 * word));
    let left_out =
        [Feature::RING_PACKED, Feature::IN_ORDER, Feature::EVENT_IDX, Feature::NOTIFICATION_DATA];
    let offered = FeatureBits(words.sum());
    choose(&nic, left_out.into_iter().fold(offered, FeatureBits::without));
    let ring = |queue: u64| SplitDriver::new(&ram, RINGS + 0x1000 * queue, 16, false, 0);
    let mut rings: Vec<_> = (0..5).map(ring).collect();
    for (queue, ring) in (0..).zip(&rings) {
        enable(&nic, queue, ring.setup());
        set_common(&nic, pci::COMMON_QUEUE_VECTOR, u64::from(queue), 2);
        let entry = PciNic::TABLE.start + 16 * u64::from(queue);
        for (place, word) in [(0, 0xfee0_0000), (4, 0), (8, 0x40 + u64::from(queue)), (12, 0)] {
            // The vector of the second receive queue stays masked.
            let word = if place == 12 { u64::from(queue == 2) } else { word };
            set_common(&nic, entry + place, word, 4);
        }
    }
    set_common(&nic, pci::COMMON_CONFIG_VECTOR, 5, 2);
    set_config(&nic, capability(&nic, pci::CAPABILITY_MSIX) + 2, pci::MSIX_ENABLE.into(), 2);
    set_config(&nic, pci::HEADER_BAR0, 0xe000_0000, 4);
    nic.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    for bytes in commands() {
        command(&nic, &ram, &mut rings[4], &bytes);
    }
    // A frame of no flow goes out and comes back, on the pair for those.
    rings[2].post(&[Buffer::writable(BUFFERS + 0x4000, 2048)], Arrangement::Direct).unwrap();
    rings[2].expose();
    ram.write(BUFFERS, &[0; 100]);
    rings[1].post(&[Buffer::readable(BUFFERS, 100)], Arrangement::Direct).unwrap();
    rings[1].expose();
    serve(&hands);
    assert_eq!((rings[1].collect().len(), rings[2].collect().len()), (1, 1));
    Front::announce(&nic);
    nic.pause().unwrap();
    nic.save().unwrap()
}

/// A packed ring of an odd size in its third lap; suspended, and the link went down behind that.
fn mmio() -> State {
    let (ram, hands) = (ram(), Hands::new().unwrap());
    let nic = MmioNic::new(device(CONFIG, &hands), &wiring(&ram, None)).unwrap();
    let bits = [
        Feature::VERSION_1,
        Feature::RING_PACKED,
        Feature::IN_ORDER,
        Feature::EVENT_IDX,
        Feature::INDIRECT_DESC,
        Feature::RING_RESET,
        Feature::SUSPEND,
        Feature::STATUS,
    ];
    choose(&nic, FeatureBits::of(&bits));
    let how =
        RingFeatures { format: Format::Packed, event_idx: true, indirect: true, in_order: true };
    let from = Cursor::start(Format::Packed);
    let mut rx = PackedDriver::new(&ram, RINGS, how, 7, from);
    let mut tx = PackedDriver::new(&ram, RINGS + 0x1000, how, 7, from);
    enable(&nic, 0, rx.setup());
    enable(&nic, 1, tx.setup());
    nic.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    for _ in 0..17 {
        rx.post(&[Buffer::writable(BUFFERS + 0x4000, 2048)], None).unwrap();
        rx.expose();
        tx.post(&[Buffer::readable(BUFFERS, 72)], None).unwrap();
        tx.expose();
        serve(&hands);
        assert_eq!((tx.collect().len(), rx.collect().len()), (1, 1));
    }
    nic.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | SUSPEND);
    assert_eq!(nic.status() & SUSPEND, SUSPEND);
    nic.turn_link(false);
    nic.pause().unwrap();
    nic.save().unwrap()
}

/// A driver in the middle of its beginning, which has not done all of it well.
fn early() -> State {
    let (ram, hands) = (ram(), Hands::new().unwrap());
    let nic = MmioNic::new(device(CONFIG, &hands), &wiring(&ram, None)).unwrap();
    nic.set_status(ACKNOWLEDGE | DRIVER);
    nic.choose(1, 1);
    nic.choose(9, 1);
    nic.select(1);
    nic.set_size(300);
    nic.set_areas([0x1234_5678_9abc, 2, 3]);
    nic.select(77);
    nic.offered(3);
    nic.pause().unwrap();
    nic.save().unwrap()
}

/// Without registers.
fn bare() -> State {
    let (ram, hands) = (ram(), Hands::new().unwrap());
    let mut device = device(CONFIG, &hands);
    device.apply(Op::Memory(Arc::clone(ram.space()))).unwrap();
    device.apply(Op::Negotiate(FeatureBits::of(&[Feature::VERSION_1, Feature::STATUS]))).unwrap();
    let [_, mut tx] = [0, 1].map(|queue: u16| {
        let ring = SplitDriver::new(&ram, RINGS + 0x1000 * u64::from(queue), 16, false, 0);
        let (index, setup) = (QueueIndex(queue), ring.setup());
        device.apply(Op::EnableQueue(index, true)).unwrap();
        device.apply(Op::StartQueue { index, setup, cursor: Cursor::default() }).unwrap();
        ring
    });
    tx.post(&[Buffer::readable(BUFFERS, 72)], Arrangement::Direct).unwrap();
    tx.expose();
    serve(&hands);
    assert_eq!(tx.collect().len(), 1);
    device.apply(Op::StopQueue(QueueIndex(0))).unwrap();
    device.apply(Op::StopQueue(QueueIndex(1))).unwrap();
    device.save().unwrap()
}
