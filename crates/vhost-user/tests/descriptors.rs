//! A process that has run out of descriptors, and gets some back.
//!
//! One test in this file: it takes all descriptors of the process.
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

use std::os::unix::net::UnixStream;
use std::time::Duration;

use bench::{Back, FrontEnd, Place};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vionet_vhost_user::Server;

#[test]
fn a_front_end_waits_while_there_is_no_descriptor_for_it() {
    let place = Place::new("full");
    let back = Back::new(Server::bind(place.path()).unwrap());
    place.connect().barrier();
    back.wait_for_text("gone");
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(100), ..limit }).unwrap();
    let mut taken = Vec::new();
    let error = loop {
        match rustix::io::dup(&socket) {
            Ok(fd) => taken.push(fd),
            Err(error) => break error,
        }
    };
    assert_eq!(error, Errno::MFILE);
    connect(&socket, &SocketAddrUnix::new(place.path()).unwrap()).unwrap();
    back.wait_for_text("has to wait");
    std::thread::sleep(Duration::from_millis(300));
    assert!(back.texts().is_empty(), "told once");
    drop(taken);
    FrontEnd::new(UnixStream::from(socket)).barrier();
}
