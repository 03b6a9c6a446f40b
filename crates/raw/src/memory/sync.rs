//! The atomics that shared cells are made of: the processor's, or those of a model checker.
//!
//! Built with `--cfg loom`, every load, store and fence of a ring goes to [`super::model`], so that
//! the proof is about the code that runs and not about a copy of it. Otherwise this is but a name.

#[cfg(not(loom))]
pub use core::sync::atomic::fence;
#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

#[cfg(loom)]
pub use super::model::fence;
#[cfg(loom)]
pub(crate) use super::model::{AtomicU16, AtomicU32, AtomicU64};

pub(crate) use core::sync::atomic::Ordering;
