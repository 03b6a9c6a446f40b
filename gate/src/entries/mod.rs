//! The entry points of the data path, each exported so that the optimiser must keep it.
//!
//! ```text
//!   frame.rs     headers, parsing, checksums, segments
//!   memory.rs    translation, spans, shared rings
//!   queue.rs     take, put, untake, publish, arm
//!   pair.rs      a whole step, and what endpoints call in it
//! ```
//!
//! A new step of the data path gets a function here: take by reference, hand back a number.
#![allow(improper_ctypes_definitions, reason = "nobody calls these; they only have to link")]

mod frame;
mod memory;
mod pair;
#[cfg(any(feature = "plant-panic", feature = "plant-allocation"))]
mod planted;
mod queue;
