//! A client that the host has no thread for. Alone in its process, whose limit it lowers.
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

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use bench::{event, signal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vionet::{Device, NicConfig};
use vionet_endpoint::Echo;
use vionet_vfio_user::{Function, ServeError, Server};

fn address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    size.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn that_there_is_no_room_for_the_only_client_is_no_end_as_any_other() {
    let (_front, back) = UnixStream::pair().unwrap();
    let mut server = Server::from_fd(back.into()).unwrap();
    let device = Device::new(NicConfig::default(), Box::new(Echo)).unwrap();
    let function = Function::new(device).unwrap();
    // It ends at once if it serves the client all the same.
    let stop = event();
    signal(&stop);
    let limit = getrlimit(Resource::As);
    // Not enough for the stack of a thread.
    let current = Some(address_space() + (1 << 20));
    setrlimit(Resource::As, Rlimit { current, ..limit }).unwrap();
    let end = server.run(&function, stop.as_fd(), &mut |_| ());
    setrlimit(Resource::As, limit).unwrap();
    assert!(matches!(end, Err(ServeError::NoRoom(_))), "{end:?}");
}
