//! What the program `vionet` is made of, as a library so that its tests can use the same parts.
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

pub mod bench;
pub mod cli;
pub mod demo;
pub mod doctor;
pub mod exit;
pub mod serve;
pub mod vm;
