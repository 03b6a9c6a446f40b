//! A front-end that the input plays against the server of vhost-user: it must answer, refuse or
//! hang up, and be gone when the front-end is.
#![no_main]
#![allow(dead_code, unreachable_pub, reason = "the bench serves tests, too")]

#[path = "../../crates/vhost-user/tests/bench/mod.rs"]
mod bench;

use bench::Back;
use bench::drive::drive;
use bench::guest::Guest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (mut back, mut front) = Back::pair();
    drive(bytes, &mut front, &mut Guest::new());
    drop(front);
    // Both ends are fine, the front-end's and that by an error of protocol; a hang is not.
    let (Ok(_) | Err(_)) = back.end();
});
