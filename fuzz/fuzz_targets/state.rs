//! The body of a saved state as a stranger makes it, on PCI, on MMIO, and without registers: it is
//! refused, or what it has become is saved and restored again, and the device works on.
#![no_main]
#![allow(dead_code, unreachable_pub, reason = "the harness serves tests, too")]

#[path = "../../crates/testkit/tests/golden/hostile.rs"]
mod hostile;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| hostile::attempt(bytes));
