//! A device at rest as bytes: saved here, it goes on in another process, behind other registers.
//!
//! ```text
//!   pause -> save -> State -> encode -> bytes          one format, whatever bus it was
//!                                         |
//!   resume <- restore <- State <- decode -+            into a device that nobody has driven yet
//!
//!   bytes:  "VIONET\x1aS" | version le16 | length le32 | CRC-32 le32 | body (format.rs)
//! ```
//!
//! A state has what a driver could notice: what was agreed, its registers, where each queue
//! stands, what its commands have set, all counters. It has no frame: what was taken of a queue is
//! done with or back in the ring before a device has paused. Nor has it what the host decides
//! and the driver does not see: endpoint, policy, limits, threads.
//!
//! Bytes are a stranger's. They are judged whole before anything changes: what a driver could not
//! have brought about is refused by name, and rings are checked as if it had just enabled them.

mod error;
mod format;

use core::fmt;
use std::vec::Vec;

use vionet_queue::{Cursor, QueueSetup};
use vionet_raw::GuestAddr;
use vionet_spec::feature::FeatureBits;
use vionet_spec::pci::{ISR_CONFIG, ISR_QUEUE};
use vionet_spec::status::{DEVICE_NEEDS_RESET, DRIVER_OK, FAILED, FEATURES_OK, SUSPEND};

pub use error::{RestoreError, SaveError, StateError};
pub(crate) use format::{
    Body, Bus, Config, Control, Counters, Driver, Hash, Lane, Pci, Queue, Rss, Vector,
};

use crate::config::NicConfig;
use crate::nic::QueueIndex;

/// What the bytes begin with; no text file does.
const MAGIC: [u8; 8] = *b"VIONET\x1aS";
const VERSION: u16 = 1;
/// Magic, version, length, sum.
const HEADER_LEN: usize = 18;
/// The longest body; that of 128 pairs with every counter at its end has 300 kB.
const BODY_MAX: usize = 1 << 20;

/// A device at rest. Saved by [`PciNic::save`], [`MmioNic::save`] or [`Device::save`], restored by
/// any of the three.
///
/// [`PciNic::save`]: crate::transport::PciNic::save
/// [`MmioNic::save`]: crate::transport::MmioNic::save
/// [`Device::save`]: crate::Device::save
#[derive(Clone, PartialEq, Eq)]
pub struct State(pub(crate) Body);

impl fmt::Debug for State {
    /// Without the rest, which is long, and tells the key of hashes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut state = f.debug_struct("State");
        state.field("config", &self.config()).field("features", &self.features());
        state.finish_non_exhaustive()
    }
}

impl State {
    /// The longest state, in bytes.
    pub const MAX: usize = BODY_MAX + HEADER_LEN;

    /// The state as bytes: the same state is the same bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Plain values into memory: nothing of it can fail.
        let body = postcard::to_allocvec(&self.0).unwrap_or_default();
        let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(body.len().saturating_add(HEADER_LEN));
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(crc32(&body).to_le_bytes());
        bytes.extend(body);
        bytes
    }

    /// The state that the bytes are; nothing may follow it.
    ///
    /// # Errors
    /// When they are none, of a version that is not known, or damaged. What a device makes of it
    /// is judged when it is restored.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let (magic, rest) = bytes.split_first_chunk().ok_or(StateError::NoState)?;
        if *magic != MAGIC {
            return Err(StateError::NoState);
        }
        let (version, rest) = rest.split_first_chunk().ok_or(StateError::Length)?;
        match u16::from_le_bytes(*version) {
            VERSION => {}
            version => return Err(StateError::Version { version, known: VERSION }),
        }
        let (len, rest) = rest.split_first_chunk().ok_or(StateError::Length)?;
        let (sum, body) = rest.split_first_chunk().ok_or(StateError::Length)?;
        let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
        if len != body.len() || len > BODY_MAX {
            return Err(StateError::Length);
        }
        if u32::from_le_bytes(*sum) != crc32(body) {
            return Err(StateError::Damaged);
        }
        match postcard::take_from_bytes(body) {
            Ok((body, [])) => Ok(Self(body)),
            Ok(_) | Err(_) => Err(StateError::Damaged),
        }
    }

    /// The same state, but the counters go on from those of a device that is here: for bytes of
    /// somebody who is not believed what was counted.
    #[must_use]
    pub fn with_counters_of(mut self, here: &Self) -> Self {
        self.0.counters = here.0.counters.clone();
        self
    }

    /// What a device has to be from the start to take this state.
    #[must_use]
    pub const fn config(&self) -> NicConfig {
        let Config { mac, mtu, pairs, speed, mac_may_change, standby } = self.0.config;
        NicConfig { mac, mtu, pairs, speed, mac_may_change, standby }
    }

    /// The largest queue size that registers have to show to take this state
    /// ([`Wiring::queue_size`](crate::transport::Wiring::queue_size)); any will do when not given.
    #[must_use]
    pub const fn queue_size(&self) -> Option<u16> {
        match self.0.driver.size_max {
            0 => None,
            size => Some(size),
        }
    }

    /// What was agreed with the driver, if it was.
    #[must_use]
    pub const fn features(&self) -> Option<FeatureBits> {
        let agreed = self.0.driver.status & FEATURES_OK != 0;
        if agreed { Some(FeatureBits(self.0.driver.features)) } else { None }
    }

    /// The queues that are to run, and where each goes on if it has run: for an embedder that
    /// starts them itself, behind [`Device::restore`](crate::Device::restore).
    pub fn queues(&self) -> impl Iterator<Item = (QueueIndex, QueueSetup, Option<Cursor>)> + '_ {
        // Bytes may have more of them than can be named; no device takes those.
        let queues = (0..=u16::MAX).map(QueueIndex).zip(&self.0.queues);
        let runs = self.0.driver.is_running();
        let enabled = queues.filter(move |(_, queue)| runs && queue.enabled);
        enabled.map(|(index, queue)| (index, queue.setup(), queue.cursor()))
    }
}

impl Driver {
    /// The driver has brought the device up, and nothing stands in its way.
    pub(crate) const fn is_running(&self) -> bool {
        self.status & (DRIVER_OK | SUSPEND) != 0 && self.status & (FAILED | DEVICE_NEEDS_RESET) == 0
    }
}

impl Bus {
    /// Why the driver was interrupted, as far as it has not looked.
    pub(crate) fn checked_reasons(&self) -> Result<u8, RestoreError> {
        let reasons = match self {
            Self::None => 0,
            Self::Mmio { reasons } | Self::Pci(Pci { reasons, .. }) => *reasons,
        };
        let known = reasons & !(ISR_QUEUE | ISR_CONFIG) == 0;
        RestoreError::unless(known, "an interrupt for no reason there is")?;
        Ok(reasons)
    }
}

impl Queue {
    pub(crate) fn setup(&self) -> QueueSetup {
        let [descriptors, driver, device] = self.areas.map(GuestAddr);
        QueueSetup { size: self.size, descriptors, driver, device }
    }

    pub(crate) fn cursor(&self) -> Option<Cursor> {
        self.cursor.map(|[avail, used]| Cursor { avail, used })
    }

    pub(crate) fn set_cursor(&mut self, cursor: Option<Cursor>) {
        self.cursor = cursor.map(|Cursor { avail, used }| [avail, used]);
    }
}

/// The sum of Ethernet and of zip files, bit by bit: it is asked for once a state.
fn crc32(bytes: &[u8]) -> u32 {
    let sum = bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            let low = sum & 1;
            sum >> 1 ^ 0xedb8_8320 & low.wrapping_neg()
        })
    });
    !sum
}

#[cfg(test)]
mod tests;
