//! What is in a network frame: headers, checksums, parsing, building, segmentation.
//!
//! Pure functions over bytes. Nothing here allocates or waits, and only [`steer::AutoSteer`] keeps
//! state between calls.
//!
//! ```text
//!   virtio header        frame
//!   +------------+  +----------+-----------+-----------+------------------+
//!   | 12-24 bytes|  | Ethernet | IPv4/IPv6 | TCP/UDP/..| payload          |
//!   +------------+  +----------+-----------+-----------+------------------+
//!    header.rs       parse.rs reads it, build.rs writes it
//!                               checksum.rs completes it, segment.rs cuts it, coalesce.rs joins it
//!                               hash.rs names its flow, steer.rs the pair that gets it
//! ```
//!
//! Invariants
//!  1. Every function is total: any bytes give a value or an error, never a panic. The bytes are
//!     a private copy; what the guest does to the original meanwhile is of no concern here.
//!  2. A length or offset found in the bytes is a claim, held against the real length before use.
//!  3. Work is bounded by the bytes given: walks have a fixed depth, segments a fixed maximum.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        clippy::disallowed_methods,
        reason = "tests may stop"
    )
)]

#[cfg(test)]
extern crate std;

pub mod build;
pub mod checksum;
pub mod coalesce;
pub mod filter;
pub mod guard;
pub mod hash;
pub mod header;
pub mod parse;
pub mod segment;
pub mod steer;
pub mod vlan;
