//! The virtio network device, host side (VIRTIO 1.4 §5.1).
//!
//! ```text
//!    messages or registers                    rings in shared memory
//!            | Op                                      |
//!            v                                         v
//!       +---------+   Start(pair), Recall(pair)   +-----------+
//!       |   Nic   | <---------------------------> | QueuePair |  data plane: one owner, one thread
//!       +---------+      moved, never shared      +-----------+
//!       control plane                            TxBatch | RxSink     one call per batch
//!       values in, values out                           v
//!                                                  EndpointQueue      the host side
//! ```
//!
//! Three nouns carry the design. [`Nic`] decides: it takes an [`Op`] and answers with [`Effect`]s,
//! and never sees a frame. [`QueuePair`] moves frames; it is either at home in the `Nic` or out
//! with a worker, and every change to it is made at home. [`Endpoint`] is the host side.
//!
//! With the feature `std` come ready-made workers (`run`) and all of it in one handle (`device`).
//! The data path itself needs neither: an embedder with a loop of its own calls
//! [`QueuePair::service`] from there.
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![forbid(unsafe_code)]
#![deny(clippy::wildcard_enum_match_arm)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may stop")
)]

extern crate alloc;

mod absent;
mod config;
mod control;
pub mod endpoint;
mod interrupt;
pub mod limit;
mod negotiate;
mod nic;
mod pair;
mod snapshot;
pub mod stats;
mod time;

#[cfg(feature = "std")]
mod device;
#[cfg(feature = "std")]
mod run;
#[cfg(feature = "std")]
pub mod state;
#[cfg(feature = "std")]
pub mod transport;

pub use config::{NicConfig, PAIRS_MAX};
pub use control::Coalescing;
pub use endpoint::{Endpoint, EndpointQueue};
pub use interrupt::Interrupt;
pub use negotiate::{Negotiated, Offer, Plan, Refusal};
pub use nic::{Effect, Effects, Nic, Op, OpError, PairIndex, QueueIndex, QueueRole};
pub use pair::{Limits, Next, PairFault, QueuePair, Step};
pub use snapshot::{PairSnapshot, Snapshot};
pub use stats::{ControlSnapshot, LaneSnapshot};
pub use time::Instant;

#[cfg(feature = "std")]
pub use device::{Device, DeviceError};
#[cfg(feature = "std")]
pub use run::{Hands, Herald, Report, WorkerOptions, Workers};
#[cfg(feature = "std")]
pub use state::State;
