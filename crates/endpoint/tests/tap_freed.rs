//! A tap is free again as soon as its NIC is gone, or has another endpoint.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "tests may stop"
)]

mod namespace;

use std::sync::Arc;
use std::time::{Duration, Instant};

use namespace::{in_namespace, ip};
use vionet::endpoint::Endpoint;
use vionet::transport::{Lines, Message, MmioNic, Wiring};
use vionet::{Device, NicConfig};
use vionet_endpoint::{Echo, PortConfig, Switch, Tap};
use vionet_spec::mmio;
use vionet_spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use vionet_testkit::{Arrangement, Buffer, GuestRam, SplitDriver};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const RINGS: u64 = 0x1_0000;
const BUFFERS: u64 = 0x10_0000;

struct Nowhere;

impl Lines for Nowhere {
    fn level(&self, _: bool) {}
    fn message(&self, _: u16, _: Message) {}
}

/// A NIC with a driver on it, and the driver's rings.
struct Guest {
    nic: MmioNic,
    ram: GuestRam,
    tx: SplitDriver,
    rx: SplitDriver,
    sent: u64,
}

impl Guest {
    fn on(endpoint: Box<dyn Endpoint>, ram: &GuestRam) -> Self {
        let config = NicConfig { mac: MAC, mtu: 1500, ..NicConfig::default() };
        let device = Device::new(config, endpoint).unwrap();
        let wiring = Wiring::new(Arc::clone(ram.space()), Arc::new(Nowhere));
        let nic = MmioNic::new(device, &wiring).unwrap();
        let set = |at: u64, value: u32| nic.write(at, &value.to_le_bytes());
        set(mmio::STATUS, (ACKNOWLEDGE | DRIVER).into());
        set(mmio::DRIVER_FEATURES_SEL, 1);
        set(mmio::DRIVER_FEATURES, 1);
        set(mmio::STATUS, (ACKNOWLEDGE | DRIVER | FEATURES_OK).into());
        let [rx, tx] = [0, 1].map(|queue: u32| {
            let at = RINGS + 0x1000 * u64::from(queue);
            ram.write(at, &[0; 0x1000]);
            let ring = SplitDriver::new(ram, at, 16, false, 0);
            let setup = ring.setup();
            set(mmio::QUEUE_SEL, queue);
            set(mmio::QUEUE_SIZE, 16);
            set(mmio::QUEUE_DESC_LOW, setup.descriptors.0 as u32);
            set(mmio::QUEUE_DRIVER_LOW, setup.driver.0 as u32);
            set(mmio::QUEUE_DEVICE_LOW, setup.device.0 as u32);
            set(mmio::QUEUE_READY, 1);
            ring
        });
        set(mmio::STATUS, (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK).into());
        Self { nic, ram: ram.clone(), tx, rx, sent: 0 }
    }

    /// A frame goes out, and nowhere else.
    fn send(&mut self) {
        // The receive buffers stay posted: what the kernel says by itself may come.
        let room = Buffer::writable(BUFFERS + 0x4000, 2048);
        while self.rx.post(&[room], Arrangement::Direct).is_some() {}
        self.rx.expose();
        let frame = [&[0; 12][..], &[0xff; 6], &MAC, &[0x88, 0xb5], &[0; 46]].concat();
        self.ram.write(BUFFERS, &frame);
        let frame = Buffer::readable(BUFFERS, frame.len() as u32);
        self.tx.post(&[frame], Arrangement::Direct).unwrap();
        self.tx.expose();
        self.nic.write(mmio::QUEUE_NOTIFY, &1_u32.to_le_bytes());
        let start = Instant::now();
        while self.tx.collect().is_empty() {
            // A start that took longer than an access may wait goes on here.
            assert_eq!(self.nic.tend(), None);
            assert!(start.elapsed() < Duration::from_secs(10), "the frame is not taken");
            std::thread::yield_now();
        }
        self.rx.collect();
        self.sent += 1;
        let transmit = self.nic.snapshot().total.transmit;
        assert_eq!(transmit.frames(), self.sent, "{transmit:?}");
        assert_eq!(transmit.drops_total(), 0);
    }
}

fn ram() -> GuestRam {
    GuestRam::new(&[(RINGS, 0x1_0000), (BUFFERS, 0x1_0000)])
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_tap_is_opened_again_at_once_a_thousand_times() {
    if !in_namespace("a_tap_is_opened_again_at_once_a_thousand_times") {
        return;
    }
    ip("tuntap add dev freed mode tap vnet_hdr");
    ip("link set freed up");
    let ram = ram();
    let before = (threads(), descriptors());
    for _ in 0..1000 {
        // It has one queue: whoever holds that keeps everybody else out.
        let tap = Tap::open("freed", 1).expect("the tap is free");
        Tap::open("freed", 1).expect_err("and taken");
        let mut guest = Guest::on(Box::new(tap), &ram);
        guest.send();
        drop(guest);
        // The kernel lists a thread that has been joined for a moment more.
        let start = Instant::now();
        while (threads(), descriptors()) != before {
            assert!(start.elapsed() < Duration::from_secs(1), "nothing is left of it");
        }
    }
}

#[test]
fn endpoints_are_changed_under_a_running_driver_and_free_their_tap() {
    if !in_namespace("endpoints_are_changed_under_a_running_driver_and_free_their_tap") {
        return;
    }
    ip("tuntap add dev swapped mode tap vnet_hdr");
    ip("link set swapped up");
    let ram = ram();
    let mut guest = Guest::on(Box::new(Tap::open("swapped", 1).unwrap()), &ram);
    let switch = Switch::new("office");
    for _ in 0..50 {
        guest.send();
        let port = PortConfig { mac: MAC, isolated: false };
        guest.nic.replace_endpoint(|| Ok(Box::new(switch.port(port).unwrap()))).unwrap();
        guest.send();
        guest.nic.replace_endpoint(|| Ok(Box::new(Echo))).unwrap();
        guest.send();
        for _ in 0..2 {
            guest.nic.replace_endpoint(|| Ok(Box::new(Tap::open("swapped", 1)?))).unwrap();
        }
    }
    // One that is held by another is not to be had; the guest lives on without a link.
    guest.nic.replace_endpoint(|| Ok(Box::new(Echo))).unwrap();
    let holder = Tap::open("swapped", 1).unwrap();
    guest.nic.replace_endpoint(|| Ok(Box::new(Tap::open("swapped", 1)?))).unwrap_err();
    drop(holder);
    guest.nic.replace_endpoint(|| Ok(Box::new(Tap::open("swapped", 1)?))).unwrap();
    guest.send();
}
