//! Virtqueues, device side (VIRTIO 1.4 §2.6 to §2.8).
//!
//! A queue is two areas of shared memory and a promise: the driver makes chains of buffers
//! available, the device gives each of them back once, used.
//!
//! ```text
//!   driver:  fills descriptors, writes heads into the available ring, moves avail.idx ---+
//!   device:  take()     avail.idx moved? walk the chains, check them, translate them  <--+
//!            ...        the batch is worked on
//!            put()      ids and lengths into the used ring, not yet visible
//!            publish()  moves used.idx (release), then: does the driver want an interrupt?
//!            arm()      nothing left: asks for a kick, and looks once more
//! ```
//!
//! Five verbs are the whole vocabulary: `take`, `put`, `untake`, `publish`, `arm`. Each works on
//! a whole batch and asks for the ring format once.
//!
//! The driver is hostile. A chain is walked with a counted loop, every field of it is loaded once,
//! and either all of it is good or none of it is used; a broken rule latches a [`Fault`] and the
//! queue gives nothing out any more.
#![no_std]
#![forbid(unsafe_code)]
#![deny(clippy::wildcard_enum_match_arm)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may stop")
)]

extern crate alloc;

mod chain;
mod fault;
mod kick;
mod notification;
mod packed;
mod queue;
mod setup;
mod split;
mod table;
mod walk;

pub use chain::{
    Batch, CHAIN_MAX, Command, DeviceReads, DeviceWrites, Direction, ROWS_MAX, Row, SPANS_MAX,
    Single,
};
pub use fault::Fault;
pub use kick::{Armed, Published};
pub use notification::Notification;
pub use queue::{Queue, Unfinished};
pub use setup::{Cursor, Format, QueueSetup, RingFeatures};
