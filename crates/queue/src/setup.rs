//! From what a driver has configured to a live queue.

use alloc::sync::Arc;

use vionet_raw::{AddressSpace, GuestAddr};

use crate::fault::Fault;
use crate::packed::PackedRing;
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

/// A position between two chains: where a queue goes on. In a split queue both are free-running;
/// in a packed one bits 0 to 14 are a slot and bit 15 is the wrap counter of that side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cursor {
    /// The next entry to take.
    pub avail: u16,
    /// The next entry to use.
    pub used: u16,
}

impl Cursor {
    /// Where a queue begins that has never run: at 0, and wrap counters begin at 1 (PKD-02).
    #[must_use]
    pub const fn start(format: Format) -> Self {
        match format {
            Format::Split => Self { avail: 0, used: 0 },
            Format::Packed => Self { avail: 1 << 15, used: 1 << 15 },
        }
    }
}

/// A queue as the driver has configured it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Number of entries.
    pub size: u16,
    /// The descriptor area.
    pub descriptors: GuestAddr,
    /// The driver area: the available ring, or the driver's event suppression.
    pub driver: GuestAddr,
    /// The device area: the used ring, or the device's event suppression.
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
            Format::Split => {
                Ok(Queue::split(SplitRing::new(&self, space, features, from)?.begun()))
            }
            Format::Packed => {
                Ok(Queue::packed(PackedRing::new(&self, space, features, from)?.begun()))
            }
        }
    }

    /// Whether [`Self::activate`] would succeed; nothing is touched. Of memory that the platform
    /// translates it is not known yet where it is.
    ///
    /// # Errors
    /// The rule that the configuration breaks.
    pub fn check(
        self,
        space: &Arc<AddressSpace>,
        features: RingFeatures,
        from: Option<Cursor>,
    ) -> Result<(), Fault> {
        let from = from.unwrap_or(Cursor::start(features.format));
        let checked = match features.format {
            Format::Split => SplitRing::new(&self, space, features, from).map(drop),
            Format::Packed => PackedRing::new(&self, space, features, from).map(drop),
        };
        match checked {
            Err(Fault::RingUnmapped) if space.is_translated() => Ok(()),
            checked => checked,
        }
    }
}
