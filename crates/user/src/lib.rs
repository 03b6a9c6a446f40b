//! User-mode network: a guest's network through the sockets of an unprivileged process.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        clippy::disallowed_methods,
        clippy::let_underscore_must_use,
        clippy::wildcard_enum_match_arm,
        reason = "tests may stop"
    )
)]

pub mod addr;
pub mod config;
mod endpoint;
mod flow;
mod host;
mod lease;
pub mod policy;
pub mod ports;
pub mod resolver;
mod responder;
pub mod services;

pub use endpoint::UserNet;
pub use lease::{DNS_MAX, Lease};
pub use responder::{Responder, ResponderConfig};
