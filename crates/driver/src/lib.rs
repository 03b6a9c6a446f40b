//! The driver side of a virtio network device over vhost-user: a guest without a machine.
//!
//! ```text
//!   Guest     lease, resolve, download, measure       guest.rs
//!     |       smoltcp is its TCP/IP stack             stack.rs
//!   Nic       frames through two queues               nic.rs, ring.rs
//!     |       in a memory file of its own             memory.rs
//!   FrontEnd  messages on a Unix socket               front_end.rs
//!     v
//!   any vhost-user network back-end
//! ```
//!
//! It serves to show a back-end working, and to test one; [`Peer`] is what it talks to. What the
//! back-end writes is checked: a device that breaks a rule is an error, never a panic.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may stop")
)]

mod error;
mod front_end;
mod guest;
mod memory;
mod nic;
mod peer;
mod ring;
mod stack;

pub use error::GuestError;
pub use front_end::FrontEnd;
pub use guest::{Direction, Guest, GuestOptions, Lease};
pub use nic::Nic;
pub use peer::{Content, NAME, Peer};
