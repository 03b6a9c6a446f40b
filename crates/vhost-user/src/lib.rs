//! The vhost-user back-end: a front-end's messages become operations on a [`vionet::Device`].
//!
//! ```text
//!   Unix socket --bytes, descriptors--> channel --Message--> session --Op--> Device
//!                                       framing              |  memory  table -> map
//!                                                            +- rings   which may run
//!   Server: listens, one front-end at a time, watches what workers report, stops when told
//! ```
//!
//! A front-end is trusted with its own memory and with nothing else: a malformed message ends its
//! connection, and the process goes on listening. What it hands over is one kind of descriptor per
//! kind of message, and nothing that it still holds the other end of is waited for:
//! workers are interrupted, error descriptors are signalled on the side (`Herald`), and a message
//! that has been begun must be ended in time.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::disallowed_methods,
        reason = "tests may stop"
    )
)]

mod backchannel;
mod channel;
mod event;
mod memory;
mod message;
mod rings;
mod server;
mod session;
mod visit;

pub use event::{Event, ProtocolError};
pub use server::{End, Limits, ServeError, Server};
pub use visit::Door;
