//! The smallest embedding: a NIC on MMIO in a VMM's own process. `docs/embedding.md` explains it.
//!
//! `cargo run -p vionet-endpoint --example embed`
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vionet::transport::{Lines, Message, MmioNic, Wiring};
use vionet::{Device, NicConfig};
use vionet_endpoint::Echo;
use vionet_raw::host::mmap::Mapping;
use vionet_raw::{AddressSpace, GuestAddr, MemoryMap, UserAddr};

/// The VMM's interrupt controller.
struct Controller;

impl Lines for Controller {
    fn level(&self, asserted: bool) {
        println!("the NIC's line is {}", if asserted { "up" } else { "down" });
    }
    fn message(&self, _vector: u16, _message: Message) {
        // Only a NIC on PCI sends messages.
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // The guest's memory: one region of 16 MiB at guest address 0.
    let file = memfd_create("guest", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, 16 << 20)?;
    let region = Mapping::shared(file.as_fd(), 0, 16 << 20)?;
    let region = region.into_region(GuestAddr(0), UserAddr(0));
    let memory = Arc::new(AddressSpace::new(Arc::new(MemoryMap::new(vec![region])?)));

    // The NIC: what it is, what is behind it, what it is wired to.
    let config = NicConfig { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, ..NicConfig::default() };
    let device = Device::new(config, Box::new(Echo))?;
    let nic = Arc::new(MmioNic::new(device, &Wiring::new(memory, Arc::new(Controller)))?);

    // Whoever obeys the driver's commands and hears of trouble.
    let _keeper = nic.keeper(|report| println!("the NIC reports: {report}"))?;

    // A vCPU has exited with a read at offset 0 of the NIC's window, then with a write.
    let mut data = [0; 4];
    nic.read(0x000, &mut data);
    println!("MagicValue is {:?}", std::str::from_utf8(&data)?);
    nic.write(0x070, &1_u32.to_le_bytes());

    // The machine is paused and goes on.
    nic.pause()?;
    nic.resume()?;

    // A guest would get back each frame that it sends. Here there is none, and dropping the NIC
    // ends its threads.
    Ok(())
}
