//! The entry points of the data path, each exported so that the optimiser must keep it.
//!
//! ```text
//!   frame.rs     headers, parsing, checksums, segments
//!   memory.rs    translation, spans, shared rings
//! ```
//!
//! A new step of the data path gets a function here: take by reference, hand back a number.
#![allow(improper_ctypes_definitions, reason = "nobody calls these; they only have to link")]

mod frame;
mod memory;
#[cfg(any(feature = "plant-panic", feature = "plant-allocation"))]
mod planted;
