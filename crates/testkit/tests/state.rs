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

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::Arc;

use board::until;
use guest::{Guest, MEMORY, every_ring};
use vionet::State;
use vionet_spec::feature::FeatureBits;
use vionet_testkit::GuestRam;
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

fn put(to: &mut impl Write, bytes: &[u8]) {
    to.write_all(&(bytes.len() as u32).to_le_bytes()).unwrap();
    to.write_all(bytes).unwrap();
}

fn take(from: &mut impl Read) -> Vec<u8> {
    let mut len = [0; 4];
    from.read_exact(&mut len).unwrap();
    let mut bytes = vec![0; u32::from_le_bytes(len) as usize];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

const SOCKET: &str = "VIONET_TEST_SOCKET";
const FILE: &str = "VIONET_TEST_MEMORY";
/// What the parent asks the child for beside kicks.
const SAVE: u8 = b's';

/// The other process: a NIC on MMIO, for as long as the parent wants it.
fn child(socket: &str) {
    let mut parent = UnixStream::connect(socket).unwrap();
    let state = State::decode(&take(&mut parent)).unwrap();
    let memory = File::options().read(true).write(true).open(std::env::var(FILE).unwrap()).unwrap();
    let ram = GuestRam::shared(memory.as_fd(), 0, MEMORY);
    let near = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let nic = nic(Bus::Mmio, state.config(), near, ram.space());
    nic.restore(&state).unwrap();
    nic.resume().unwrap();
    let mut asked = [0];
    loop {
        parent.read_exact(&mut asked).unwrap();
        match asked {
            [SAVE] => break,
            [queue] => nic.kick(queue.into()),
        }
    }
    nic.pause().unwrap();
    let bytes = nic.save().unwrap().encode();
    drop(nic);
    put(&mut parent, &bytes);
}

#[test]
fn a_nic_goes_on_in_another_process_and_comes_back() {
    if let Ok(socket) = std::env::var(SOCKET) {
        return child(&socket);
    }
    let socket = std::env::temp_dir().join(format!("vionet-state-{}", std::process::id()));
    let listener = UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    for how in every_ring() {
        let guest = Guest::new(how);
        let (network, near) = Network::new();
        let memory = Arc::clone(guest.ram.space());
        let file = format!("/proc/{}/fd/{}", std::process::id(), guest.file.as_raw_fd());
        let first = nic(Bus::Pci, CONFIG, near.try_clone().unwrap(), &memory);
        guest.bring_up(&*first, FeatureBits::NONE);
        let world = World::new(guest, network, first);
        world.during(|| {
            world.let_pass(100);
            let here = world.nic.lock().unwrap().take().unwrap();
            here.pause().unwrap();
            let bytes = here.save().unwrap().encode();
            drop(here);
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["a_nic_goes_on_in_another_process_and_comes_back", "--exact"]);
            command.stdin(Stdio::from(near.try_clone().unwrap())).stdout(Stdio::null());
            let mut child = command.env(SOCKET, &socket).env(FILE, &file).spawn().unwrap();
            let mut there = None;
            until("the other process calls", || {
                there = listener.accept().ok();
                there.is_some()
            });
            let mut there = there.unwrap().0;
            there.set_nonblocking(false).unwrap();
            {
                // Kicks wait until they have somebody to go to.
                let mut remote = world.remote.lock().unwrap();
                put(&mut there, &bytes);
                *remote = Some(there.try_clone().unwrap());
            }
            world.let_pass(200);
            *world.remote.lock().unwrap() = None;
            there.write_all(&[SAVE]).unwrap();
            let bytes = take(&mut there);
            assert!(child.wait().unwrap().success());
            let back = nic(Bus::Pci, CONFIG, near.try_clone().unwrap(), &memory);
            back.restore(&State::decode(&bytes).unwrap()).unwrap();
            *world.nic.lock().unwrap() = Some(Arc::clone(&back));
            back.resume().unwrap();
            world.let_pass(100);
            world.settle();
        });
        let total = world.nic().snapshot().total;
        let (guest, network) = (world.guest.lock().unwrap(), world.network.lock().unwrap());
        assert_eq!(total.transmit.frames(), guest.sent, "{how:?}");
        assert_eq!(total.receive.frames(), network.sent, "{how:?}");
    }
    std::fs::remove_file(&socket).unwrap();
}
