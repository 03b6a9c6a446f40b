//! A client that the input plays against the server of vfio-user: it must answer, refuse or hang
//! up, and be gone when the client is.
#![no_main]
#![allow(dead_code, unreachable_pub, reason = "the bench serves tests, too")]

#[path = "../../crates/vfio-user/tests/bench/mod.rs"]
mod bench;

use bench::Back;
use bench::drive::drive;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (mut back, client) = Back::pair();
    drive(bytes, &client);
    drop(client);
    // Both ends are fine, the client's and that by an error of protocol; a hang is not.
    let (Ok(_) | Err(_)) = back.end();
});
