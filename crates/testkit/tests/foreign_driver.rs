//! A driver of another make, the crate virtio-drivers, over every register model.
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
    reason = "tests may stop"
)]

#[path = "foreign/bus.rs"]
mod bus;
#[path = "foreign/hal.rs"]
mod hal;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bus::{Mmio, Pci, Way};
use vionet::transport::{Lines, Message, MmioNic, PciNic, Wiring};
use vionet::{Device, NicConfig};
use vionet_endpoint::Echo;
use virtio_drivers::device::net::{TxBuffer, VirtIONet};
use virtio_drivers::transport::Transport;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Counts how often the line is asserted.
#[derive(Default)]
struct Counter(AtomicU32);

impl Lines for Counter {
    fn level(&self, asserted: bool) {
        self.0.fetch_add(u32::from(asserted), Ordering::SeqCst);
    }
    fn message(&self, _: u16, _: Message) {
        panic!("the driver does not use MSI-X");
    }
}

fn device() -> Device {
    let config = NicConfig { mac: MAC, mtu: 1500, ..NicConfig::default() };
    Device::new(config, Box::new(Echo)).unwrap()
}

/// Sends frames of many lengths and gets them back, on one driver after another.
fn talk<T: Transport>(lines: &Counter, transport: impl Fn() -> T) {
    for round in 0..3_u8 {
        let mut net = VirtIONet::<hal::Ram, T, 16>::new(transport(), 2048).unwrap();
        assert_eq!(net.mac_address(), MAC);
        for len in [14_u16, 60, 61, 590, 1514] {
            let frame: Vec<u8> = (0..len).map(|at| at as u8 ^ round).collect();
            net.send(TxBuffer::from(&frame)).unwrap();
            let start = Instant::now();
            let back = loop {
                match net.receive() {
                    Ok(back) => break back,
                    Err(virtio_drivers::Error::NotReady) => std::thread::yield_now(),
                    Err(error) => panic!("{error:?}"),
                }
                assert!(start.elapsed() < Duration::from_secs(5), "a frame is lost");
            };
            assert_eq!(back.packet(), frame);
            net.recycle_rx_buffer(back).unwrap();
            net.ack_interrupt();
        }
    }
    assert!(lines.0.load(Ordering::SeqCst) > 0, "it was interrupted");
}

#[test]
fn virtio_drivers_drives_the_device_over_mmio() {
    let lines = Arc::new(Counter::default());
    let wiring = Wiring::new(hal::memory(), lines.clone());
    let nic = Arc::new(MmioNic::new(device(), &wiring).unwrap());
    talk(&lines, || Mmio(Arc::clone(&nic)));
}

#[test]
fn virtio_drivers_finds_and_drives_the_device_on_pci() {
    let lines = Arc::new(Counter::default());
    let wiring = Wiring::new(hal::memory(), lines.clone());
    let nic = Arc::new(PciNic::new(device(), &wiring).unwrap());
    talk(&lines, || Pci::probe(Arc::clone(&nic), Way::Region));
}

#[test]
fn virtio_drivers_drives_the_device_through_the_window_of_its_configuration_space() {
    let lines = Arc::new(Counter::default());
    let wiring = Wiring::new(hal::memory(), lines.clone());
    let nic = Arc::new(PciNic::new(device(), &wiring).unwrap());
    talk(&lines, || Pci::probe(Arc::clone(&nic), Way::Window));
}
