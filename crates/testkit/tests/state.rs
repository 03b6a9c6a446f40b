//! A device saved in the middle of traffic, and restored: on the same bus, on another one, in
//! another process. Every frame arrives, once and in order.
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

mod board;
#[path = "state/guest.rs"]
mod guest;
#[path = "state/wire.rs"]
mod wire;
#[path = "state/world.rs"]
mod world;

use std::sync::Arc;
use std::time::Duration;

use guest::{Guest, every_ring};
use vionet::State;
use vionet_spec::feature::FeatureBits;
use wire::Network;
use world::{Bus, CONFIG, World, nic};

#[test]
fn a_nic_that_is_moved_in_the_middle_of_traffic_loses_nothing() {
    for how in every_ring() {
        let guest = Guest::new(how);
        let (network, near) = Network::new();
        let memory = Arc::clone(guest.ram.space());
        let make = |bus| nic(bus, CONFIG, near.try_clone().unwrap(), &memory);
        let first = make(Bus::Pci);
        guest.bring_up(&*first, FeatureBits::NONE);
        let world = World::new(guest, network, first);
        world.during(|| {
            for bus in [Bus::Pci, Bus::Mmio, Bus::Mmio, Bus::Pci] {
                world.let_pass(200);
                let old = world.nic();
                old.pause().unwrap();
                let bytes = old.save().unwrap().encode();
                let before = old.snapshot();
                let new = make(bus);
                new.restore(&State::decode(&bytes).unwrap()).unwrap();
                assert_eq!(new.snapshot(), before, "counters go on");
                *world.nic.lock().unwrap() = Some(Arc::clone(&new));
                drop(old);
                std::thread::sleep(Duration::from_millis(2));
                new.resume().unwrap();
            }
            world.let_pass(200);
            world.settle();
        });
        let total = world.nic().snapshot().total;
        let (guest, network) = (world.guest.lock().unwrap(), world.network.lock().unwrap());
        assert_eq!(total.transmit.frames(), guest.sent, "{how:?}");
        assert_eq!(total.receive.frames(), network.sent, "{how:?}");
    }
}
