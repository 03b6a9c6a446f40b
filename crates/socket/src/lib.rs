//! What every server of front-ends on a Unix socket needs, whatever they speak with each other.
//!
//! ```text
//!   listen      a socket at a path: there from one moment to the next, and nobody else's
//!   source      where front-ends come from: such a socket, an inherited one, or one connection
//!   descriptor  what a front-end hands over is one kind of descriptor per kind of message
//!   patience    a message that has been begun must be ended in time
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::disallowed_methods,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        reason = "tests may stop"
    )
)]

pub mod descriptor;
mod listen;
mod patience;
mod source;

pub use descriptor::DescriptorError;
pub use listen::{ListenError, Made, listen_at};
pub use patience::Patience;
pub use source::{Source, wait};
