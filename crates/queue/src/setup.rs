//! From what a driver has configured to a live queue.

use alloc::sync::Arc;

use vionet_raw::{AddressSpace, GuestAddr};

use crate::fault::Fault;
use crate::queue::Queue;
use crate::split::SplitRing;

/// How a ring is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// VIRTIO 1.4 §2.7.
    Split,
    /// VIRTIO 1.4 §2.8.
    Packed,
}

/// What was negotiated about rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFeatures {
    /// The layout.
    pub format: Format,
    /// Notifications are suppressed by index.
    pub event_idx: bool,
    /// Descriptors may point to tables.
    pub indirect: bool,
    /// Buffers are used in the order made available.
    pub in_order: bool,
}

/// A position between two chains: where a queue goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cursor {
    /// The next entry to take; free-running in a split queue.
    pub avail: u16,
    /// The next entry to use; free-running in a split queue.
    pub used: u16,
}

/// A queue as the driver has configured it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Number of entries.
    pub size: u16,
    /// The descriptor area.
    pub descriptors: GuestAddr,
    /// The driver area: in a split queue, the available ring.
    pub driver: GuestAddr,
    /// The device area: in a split queue, the used ring.
    pub device: GuestAddr,
}

impl QueueSetup {
    /// A live queue that goes on at `from`. Its first publish interrupts if it may at all: what
    /// the driver was told before is not known.
    ///
    /// # Errors
    /// The rule that the configuration breaks.
    pub fn activate(
        self,
        space: &Arc<AddressSpace>,
        features: RingFeatures,
        from: Cursor,
    ) -> Result<Queue, Fault> {
        match features.format {
            Format::Split => Ok(Queue::split(SplitRing::new(&self, space, features, from)?)),
            Format::Packed => Err(Fault::FormatNotSupported),
        }
    }
}
