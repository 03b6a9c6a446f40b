//! A driver that does to registers whatever the input says, on either bus: every access returns
//! soon, and the device can be reset and driven again.
#![no_main]
#![allow(dead_code, unreachable_pub, reason = "the board serves tests, too")]

#[path = "../../crates/testkit/tests/board/mod.rs"]
mod board;

use board::Board;
use board::storm::storm;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((bus, rest)) if bus & 1 == 0 => storm(&mut Board::pci(1), rest),
        Some((_, rest)) => storm(&mut Board::mmio(1), rest),
        None => {}
    }
});
