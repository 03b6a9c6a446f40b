//! The vfio-user server: a client's messages become accesses to a [`vionet::transport::PciNic`].
//!
//! ```text
//!   Unix socket --bytes, descriptors--> channel --Message--> message --Request--> session
//!                                       framing              decoding               |
//!              +------------- PciNic <--------- registers, reset -------------------+
//!              |                 ^------------- memory map ------- dma  <-----------+
//!              +--> irqs: which vector signals which eventfd  <---------------------+
//!                     |
//!                   crier: the one thread that writes to descriptors of the client
//!
//!   Server: listens, one client at a time, tends the device, stops when told
//! ```
//!
//! Unlike over vhost-user, the whole function is ours: its configuration space, every register, the
//! control queue, all of what the device can do reaches a stock driver.
//!
//! A client is trusted with its own memory and with nothing else. A message that cannot be framed
//! ends its connection; one that makes no sense is answered with an error. Nothing that the client
//! holds the other end of is waited for: its eventfds are written to by a thread that can be torn
//! away from them, a message that has been begun must be ended in time, and a client that does not
//! read its replies is gone. When it goes, the device is as after power-on, for the next; counters
//! go on, for they say what this device has done since its server was started, under whichever
//! client: a device that comes by migration brings none along.
//!
//! Sections named here are those of the vfio-user protocol specification, version 0.1.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::disallowed_methods,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        reason = "tests may stop"
    )
)]

mod capabilities;
mod channel;
mod crier;
mod dma;
mod event;
mod function;
mod irqs;
mod message;
mod migration;
mod reply;
mod server;
mod session;

pub use event::{Event, ProtocolError, Refusal};
pub use function::Function;
pub use server::{End, Limits, ServeError, Server};
