//! Another endpoint under a running driver, which notices nothing but that frames go elsewhere.
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

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use board::{BUFFERS, Board, MAC, MODERN, on_each_bus, until};
use guest::{Guest, every_ring};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vionet::OpError;
use vionet::endpoint::{Capabilities, Endpoint, EndpointQueue, OpenError, OpenKind, Settings};
use vionet::stats::DropReason;
use vionet_endpoint::{Echo, Null, PortConfig, Switch};
use vionet_frame::header::Offloads;
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_spec::net::{CONFIG_STATUS, S_LINK_UP};
use vionet_spec::pci::ISR_CONFIG;
use vionet_testkit::{Arrangement, Buffer};
use wire::{Network, Wire};
use world::{Bus, CONFIG, World, nic};

/// Whether nobody holds the other end of a pair of sockets any more.
fn is_hung_up(socket: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    poll(&mut polled, Some(&now)).unwrap();
    polled[0].revents().contains(PollFlags::HUP)
}

#[test]
fn what_one_endpoint_has_not_taken_goes_to_the_next() {
    for (bus, how) in [Bus::Pci, Bus::Mmio].into_iter().cycle().zip(every_ring()) {
        let guest = Guest::new(how);
        let (network, near) = Network::new();
        let nic = nic(bus, CONFIG, near, guest.ram.space());
        guest.bring_up(&*nic, FeatureBits::NONE);
        let world = World::new(guest, network, Arc::clone(&nic));
        world.during(|| {
            for _ in 0..4 {
                world.let_pass(100);
                // What comes from outside and was not fetched is lost with the old endpoint.
                world.hush();
                let old = RefCell::new(world.network.lock().unwrap());
                nic.replace(&|| {
                    let mut old = old.borrow_mut();
                    assert!(is_hung_up(&old.socket), "the old endpoint is gone");
                    old.work(0);
                    let (next, near) = Network::after(old.sent, old.got.count);
                    **old = next;
                    Ok(Box::new(Wire(near)))
                })
                .unwrap();
                drop(old);
                world.hushed.store(false, Ordering::SeqCst);
            }
            world.let_pass(100);
            world.settle();
        });
    }
}

fn link(board: &Board) -> u16 {
    let mut status = [0; 2];
    board.nic.config(CONFIG_STATUS as u64, &mut status);
    u16::from_le_bytes(status) & S_LINK_UP
}

/// An endpoint that can do little, or cannot be opened.
struct Small {
    capabilities: Capabilities,
    opens: bool,
}

impl Endpoint for Small {
    fn name(&self) -> String {
        "small".into()
    }
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }
    fn open(&mut self, _: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        assert!(!self.opens, "it is refused before");
        Err(none().err().unwrap())
    }
    fn adapt(&mut self, _: &Settings) -> Result<(), OpenError> {
        Ok(())
    }
}

fn none() -> Result<Box<dyn Endpoint>, OpenError> {
    Err(OpenError { kind: OpenKind::Host, reason: "there is none".into() })
}

fn small(pairs_max: u16, mtu: u16, opens: bool) -> Result<Box<dyn Endpoint>, OpenError> {
    let (transmit, receive) = (Offloads::NONE, Offloads::NONE);
    let capabilities = Capabilities { transmit, receive, pairs_max, mtu };
    Ok(Box::new(Small { capabilities, opens }))
}

fn echo() -> Result<Box<dyn Endpoint>, OpenError> {
    Ok(Box::new(Echo))
}

#[test]
fn without_a_new_endpoint_the_link_is_down_until_there_is_one() {
    on_each_bus(|board| {
        board.bring_up(0);
        board.round_trip(1);
        let (offered, generation) = (board.nic.offered(0), board.nic.generation());
        let makes: [&dyn Fn() -> Result<Box<dyn Endpoint>, OpenError>; 4] =
            [&none, &|| small(0, 1500, true), &|| small(4, 1499, true), &|| small(4, 1500, false)];
        for make in makes {
            let why = board.nic.replace(make).unwrap_err();
            assert!(matches!(why, OpError::Endpoint(_) | OpError::TooSmall { .. }), "{why}");
            assert_eq!(link(board), 0);
        }
        assert!(board.host.dropped.load(Ordering::SeqCst));
        assert_ne!(board.nic.generation(), generation);
        assert_eq!(board.nic.take_reasons() & ISR_CONFIG, ISR_CONFIG, "told once");
        assert_eq!(board.nic.offered(0), offered);
        // Frames are dropped, as without a cable; room for others stays.
        board.post(2);
        board.nic.kick(1);
        until("the frame is used", || !board.tx.collect().is_empty());
        let sent = board.nic.snapshot().total.transmit;
        assert_eq!((sent.dropped_for(DropReason::LinkDown), sent.drops_total()), (1, 1));
        // The host's own wish is another thing.
        board.nic.turn_link(false);
        board.nic.replace(&echo).unwrap();
        assert_eq!(link(board), 0);
        board.nic.turn_link(true);
        assert_eq!(link(board), S_LINK_UP);
        assert_eq!(board.nic.take_reasons() & ISR_CONFIG, ISR_CONFIG);
        board.round_trip(3);
    });
}

#[test]
fn the_next_driver_begins_with_the_endpoint_there_is() {
    on_each_bus(|board| {
        board.nic.replace(&echo).unwrap();
        board.bring_up(0);
        board.round_trip(1);
        board.nic.replace(&|| none()).unwrap_err();
        board.bring_up(0);
        assert_eq!(link(board), 0);
        board.nic.replace(&echo).unwrap();
        board.round_trip(2);
        board.nic.pause().unwrap();
        board.nic.replace(&echo).unwrap();
        board.post(3);
        board.is_left_alone();
        board.nic.resume().unwrap();
        board.comes_back(3);
        assert_eq!(board.sent(), 0, "the first endpoint has seen nothing");
    });
}

/// From an endpoint that is asked for frames to one that delivers them by itself, and back.
#[test]
fn a_switch_comes_and_goes() {
    on_each_bus(|board| {
        let switch = Switch::new("office");
        board.bring_up(0);
        board.round_trip(1);
        let port = || -> Result<Box<dyn Endpoint>, OpenError> {
            let port = switch.port(PortConfig { mac: MAC, isolated: false }).unwrap();
            Ok(Box::new(port))
        };
        for fill in 2..6 {
            board.nic.replace(&port).unwrap();
            board.post(fill);
            board.nic.kick(1);
            until("the frame is used", || !board.tx.collect().is_empty());
            board.nic.replace(&echo).unwrap();
            // The buffer that waited at the switch is filled by the next one.
            let frame = Buffer::readable(BUFFERS, 72);
            board.tx.post(&[frame], Arrangement::Direct).unwrap();
            board.tx.expose();
            board.nic.kick(1);
            board.comes_back(fill);
        }
    });
}

#[test]
fn what_the_new_endpoint_cannot_do_is_done_in_software() {
    on_each_bus(|board| {
        board.nic.replace(&|| Ok(Box::new(Null))).unwrap();
        board.negotiate_all([Feature::CSUM.mask().0 as u32, MODERN]);
        board.set_up(0);
        board.go();
        board.nic.replace(&echo).unwrap();
        // A UDP datagram whose sum is left open, as it must not come to a mirror that does none.
        let (start, offset) = (34, 6);
        let mut packet = vec![0; 60];
        packet[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        packet[16..18].copy_from_slice(&[0, 46]);
        packet[23] = 17;
        packet[38..40].copy_from_slice(&[0, 26]);
        let header = [1, 0, 0, 0, 0, 0, start, 0, offset, 0, 0, 0];
        board.ram.write(BUFFERS, &[&header[..], &packet].concat());
        let room = Buffer::writable(BUFFERS + 0x8000, 2048);
        board.rx.post(&[room], Arrangement::Direct).unwrap();
        board.rx.expose();
        board.tx.post(&[Buffer::readable(BUFFERS, 72)], Arrangement::Direct).unwrap();
        board.tx.expose();
        board.nic.kick(1);
        until("the frame comes back", || !board.rx.collect().is_empty());
        let back = board.ram.read(BUFFERS + 0x8000, 72);
        assert_eq!(back[..12][0] & 1, 0, "nothing is left open");
        let sum =
            back[12 + 34..].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum: u32 = sum.take(13).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "and the sum is right");
    });
}
