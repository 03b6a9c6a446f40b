//! The driver side of a virtio network device over vhost-user: a guest without a machine.
//!
//! ```text
//!   Guest     lease, resolve, download, measure       guest.rs, probe.rs, transfer.rs
//!     |       smoltcp is its TCP/IP stack             stack.rs, discovery.rs
//!   Nic       frames, their checksums                 nic.rs      load()   as many frames as
//!     |                                                             |      go     load/
//!     +-------------------------------------------------------------+
//!   Port      two queues of either format             port.rs, ring/
//!     |       in a memory file of its own             memory.rs
//!   FrontEnd  messages on a Unix socket               front_end.rs
//!     v
//!   any vhost-user network back-end
//! ```
//!
//! It serves to show a back-end working, and to test one; [`Peer`] is what it talks to. What the
//! back-end writes is checked: a device that breaks a rule is an error, never a panic.
//!
//! ```no_run
//! use vionet_driver::{Direction, Guest, GuestError, GuestOptions, Peer};
//!
//! fn tour(socket: &std::path::Path, peer: std::net::SocketAddr) -> Result<f64, GuestError> {
//!     let mut guest = Guest::start(socket, &GuestOptions::default())?;
//!     println!("{}", guest.lease()?.address);
//!     let rate = guest.measure(peer, Direction::Receive, std::time::Duration::from_secs(1))?;
//!     guest.stop().map(|()| rate)
//! }
//! ```
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

mod discovery;
mod error;
mod front_end;
mod guest;
mod load;
mod memory;
#[cfg(test)]
mod model;
mod nic;
mod peer;
mod port;
mod probe;
mod ring;
mod stack;
mod transfer;

pub use error::GuestError;
pub use front_end::{FrontEnd, RingBells, RingPlace};
pub use guest::{Autoconf, Guest, GuestOptions, Lease};
pub use load::{Histogram, LoadOptions, LoadReport, Way, load};
pub use nic::{FRAME_MAX, Nic, Received};
pub use peer::{ADDRESSES, Content, NAME, Peer};
pub use ring::RingFormat;
pub use transfer::Direction;
