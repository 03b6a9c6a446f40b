//! Host sides of a virtio network device.
//!
//! [`Tap`] is a tap device of the kernel, with virtio headers and offloads where it has them.
//! [`Switch`] joins the NICs of one process, guest memory to guest memory. The others serve tests
//! and measurements: [`Null`] drops and counts, [`Echo`] sends back, [`Flood`] generates.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may stop")
)]

mod bench;
mod switch;
mod tap;

pub use bench::{Echo, Flood, Null};
pub use switch::{PORTS_MAX, PortConfig, Switch, SwitchPort};
pub use tap::Tap;

/// The programs of `docs/embedding.md`.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/embedding.md")]
mod embedding {}
