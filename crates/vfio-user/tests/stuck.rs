//! What a client is told and what it leaves while something on the host holds a worker up that is
//! with its memory.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "tests may stop"
)]

mod bench;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bench::guest::{BUFFERS, Guest, LEN, until};
use bench::{Back, Client, FEATURE, GET_INFO, Place, words};
use vionet::endpoint::{
    Capabilities, Endpoint, EndpointFault, EndpointQueue, OpenError, RxSink, Settings, TxBatch,
    Watch,
};
use vionet_frame::header::Offloads;
use vionet_vfio_user::Server;

/// A host side that takes no frame before it is let go.
#[derive(Clone, Default)]
struct Held {
    is_in: Arc<AtomicBool>,
    is_free: Arc<AtomicBool>,
}

impl Endpoint for Held {
    fn name(&self) -> String {
        "held".into()
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { transmit: Offloads::NONE, receive: Offloads::NONE, pairs_max: 1, mtu: 1500 }
    }
    fn open(&mut self, _: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        Ok(vec![Box::new(self.clone())])
    }
    fn adapt(&mut self, _: &Settings) -> Result<(), OpenError> {
        Ok(())
    }
}

impl EndpointQueue for Held {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        self.is_in.store(true, Ordering::SeqCst);
        // Not for ever: a test that fails meanwhile must come to its end.
        for _ in 0..6000 {
            if self.is_free.load(Ordering::SeqCst) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        frames.sent(frames.frames().len());
        Ok(())
    }
    fn receive(&mut self, _: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        Ok(())
    }
    fn watch(&self) -> Watch {
        Watch::default()
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// How often the guest's memory is mapped in this process, by the client and by the server.
fn mappings(guest: &Guest) -> usize {
    let inode = rustix::fs::fstat(&guest.file).unwrap().st_ino.to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.split_whitespace().nth(4) == Some(&*inode)).count()
}

const EBUSY: u32 = 16;
/// DEVICE_FEATURE with SET: the migration state; STOP, without a descriptor.
const SET_STOP: [u32; 4] = [16, 1 << 17 | 2, 1, u32::MAX];

/// A guest whose frame keeps a worker.
fn hold_up(client: &Client, held: &Held) -> Guest {
    let mut guest = Guest::default();
    guest.map(client);
    guest.bring_up(client, true);
    guest.post(1);
    guest.kick(client, 1);
    until("the worker is held up", || held.is_in.load(Ordering::SeqCst));
    guest
}

#[test]
fn what_could_not_be_done_is_not_done_later() {
    let place = Place::new("busy");
    let held = Held::default();
    let _back = Back::before(Server::bind(place.path()).unwrap(), Box::new(held.clone()));
    let client = place.connect();
    let mut guest = hold_up(&client, &held);
    assert_eq!(client.unmap(BUFFERS, LEN), Err(EBUSY));
    assert_eq!(client.outcome(FEATURE, &words(&SET_STOP), &[]), Err(EBUSY));
    held.is_free.store(true, Ordering::SeqCst);
    let mut used = 0;
    for count in 1..=2 {
        until("the device goes on with the memory it had", || {
            used += guest.tx.collect().len();
            used == count
        });
        guest.post(2);
        guest.kick(&client, 1);
    }
    assert_eq!(client.unmap(BUFFERS, LEN), Ok(()), "it is still mapped");
}

#[test]
fn a_server_that_is_told_to_stop_does_so_before_the_next_message() {
    let place = Place::new("stopped");
    let held = Held::default();
    let mut back = Back::before(Server::bind(place.path()).unwrap(), Box::new(held.clone()));
    let client = place.connect();
    let _guest = hold_up(&client, &held);
    client.send(FEATURE, 0, &words(&SET_STOP), &[]);
    client.send(GET_INFO, 0, &words(&[16, 0, 0, 0]), &[]);
    // It is waiting now.
    std::thread::sleep(Duration::from_secs(1));
    back.tell_to_stop();
    assert_eq!(client.receive().map(|reply| reply.error), Some(EBUSY));
    held.is_free.store(true, Ordering::SeqCst);
    assert_eq!(client.receive(), None);
    back.end().unwrap();
}

#[test]
fn the_memory_of_a_client_that_went_is_let_go_as_soon_as_the_worker_has_done_so() {
    let place = Place::new("stuck");
    let held = Held::default();
    let server = Server::bind(place.path()).unwrap();
    let back = Back::before(server, Box::new(held.clone()));
    let client = place.connect();
    let guest = hold_up(&client, &held);
    // The client's own: one for each region.
    let before = 2;
    assert!(mappings(&guest) > before);
    drop(client);
    // The server asks twice, for 11 seconds each.
    std::thread::sleep(Duration::from_secs(10));
    back.wait_for_text("does not come to rest");
    held.is_free.store(true, Ordering::SeqCst);
    let _next = place.connect();
    until("nothing is mapped any more", || mappings(&guest) == before);
}
