//! Drivers good and hostile, for the tests of vionet.
//!
//! ```text
//!   GuestRam      guest memory between pages that fault: a stray access stops the test
//!   SplitDriver   an honest driver of a split ring; it notices what a device does wrong
//!   PackedDriver  the same of a packed ring
//!   Treadmill     a driver that costs nothing, for measuring
//!   judge()       what a device should find in a ring, said once more in the plainest way
//!   hostile       rings gone wrong, by seed
//!   attack        rings that break one rule each, and which
//!   drive()       bytes in, a ring and what is done with it out: for fuzzing and properties
//! ```
#![forbid(unsafe_code)]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::let_underscore_must_use,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "test code: to stop is how it reports"
)]

pub mod attack;
mod drive;
pub mod hostile;
mod judge;
mod packed;
mod probe;
mod ram;
mod random;
mod split;
mod treadmill;

pub use drive::drive;
pub use judge::{Broken, Judged, judge};
pub use packed::PackedDriver;
pub use probe::{Probe, Reach};
pub use ram::GuestRam;
pub use random::{Random, each_seed};
pub use split::{Arrangement, Buffer, SplitDriver, Used};
pub use treadmill::Treadmill;
