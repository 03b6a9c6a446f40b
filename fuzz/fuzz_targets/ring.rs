//! A split ring that the input has written, and the verbs that it calls on it: every answer must be
//! the one that the rules give.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vionet_testkit::drive(bytes));
