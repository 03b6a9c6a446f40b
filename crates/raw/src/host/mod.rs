//! What needs an operating system: shared mappings, vectored calls over spans, taps, signals.

pub mod fd;
pub mod interrupt;
pub mod mmap;
pub mod signal;
pub mod socket;
pub mod tun;
pub mod vector;

use std::io;

/// The error of a call that reports failure as a negative number.
fn check(result: i64) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
