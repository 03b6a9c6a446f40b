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
#[path = "foreign/vfio.rs"]
mod vfio;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bus::{Mmio, Pci, Way};
use rustix::event::{EventfdFlags, eventfd};
use vionet::transport::{Lines, Message, MmioNic, PciNic, Wiring};
use vionet::{Device, NicConfig};
use vionet_endpoint::Echo;
use vionet_vfio_user::{End, Event, Function, Server};
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
    exchange(transport);
    assert!(lines.0.load(Ordering::SeqCst) > 0, "it was interrupted");
}

fn exchange<T: Transport>(transport: impl Fn() -> T) {
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
    talk(&lines, || Pci::probe(nic.clone(), Way::Region));
}

#[test]
fn virtio_drivers_drives_the_device_through_the_window_of_its_configuration_space() {
    let lines = Arc::new(Counter::default());
    let wiring = Wiring::new(hal::memory(), lines.clone());
    let nic = Arc::new(PciNic::new(device(), &wiring).unwrap());
    talk(&lines, || Pci::probe(nic.clone(), Way::Window));
}

/// Two of another make: the driver, and the client through which it reaches the device.
#[test]
fn virtio_drivers_drives_the_device_through_the_vfio_user_client_of_another_make() {
    let path = std::env::temp_dir().join(format!("vionet-foreign-{}.sock", std::process::id()));
    let mut server = Server::bind(&path).unwrap();
    let (stop, watched) = std::os::unix::net::UnixStream::pair().unwrap();
    let function = Function::new(device()).unwrap();
    let serving = std::thread::spawn(move || {
        let mut bad = Vec::new();
        let end = server.run(&function, watched.as_fd(), &mut |event| match event {
            Event::Refused { .. } | Event::ProtocolError(_) | Event::Device(_) => {
                bad.push(event.to_string());
            }
            _ => {}
        });
        (end.unwrap(), bad)
    });
    for _ in 0..2 {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let line = eventfd(0, flags).unwrap();
        let remote = Arc::new(vfio::Remote::connect(&path, &line));
        for way in [Way::Region, Way::Window] {
            exchange(|| Pci::probe(remote.clone(), way));
            assert_eq!(rustix::io::read(&line, &mut [0; 8]), Ok(8), "it was interrupted");
            remote.unmask();
        }
        remote.leave();
    }
    drop(stop);
    assert_eq!(serving.join().unwrap(), (End::Stopped, Vec::new()));
}
