//! A device at one moment, in plain values: for people who look, and programs that watch.

use alloc::vec::Vec;

use vionet_spec::feature::FeatureBits;

use crate::nic::Nic;
use crate::stats::{ControlSnapshot, LaneSnapshot, PairStats};

/// What a device is and has done so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The guest's MAC address now.
    pub mac: [u8; 6],
    /// The MTU shown to the driver, in bytes.
    pub mtu: u16,
    /// Whether the link is up.
    pub link_up: bool,
    /// What was agreed with the driver, if it was.
    pub features: Option<FeatureBits>,
    /// How many pairs frames are spread over.
    pub active_pairs: u16,
    /// The queue pairs, in order.
    pub pairs: Vec<PairSnapshot>,
    /// All of them together.
    pub total: PairSnapshot,
    /// Counters of the control queue.
    pub control: ControlSnapshot,
}

/// A queue pair's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairSnapshot {
    /// Guest to host.
    pub transmit: LaneSnapshot,
    /// Host to guest.
    pub receive: LaneSnapshot,
}

impl PairSnapshot {
    fn of(pair: &PairStats) -> Self {
        Self { transmit: pair.tx.snapshot(), receive: pair.rx.snapshot() }
    }

    fn plus(self, other: &Self) -> Self {
        Self {
            transmit: self.transmit.plus(&other.transmit),
            receive: self.receive.plus(&other.receive),
        }
    }
}

impl Nic {
    /// The device as it is now. Counters of pairs that are out may be a moment old.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let pairs: Vec<_> = self.stats().map(|pair| PairSnapshot::of(pair)).collect();
        let none = PairSnapshot::of(&PairStats::default());
        let total = pairs.iter().fold(none, PairSnapshot::plus);
        Snapshot {
            mac: self.mac(),
            mtu: self.mtu(),
            link_up: self.is_link_up(),
            features: self.negotiated().map(|agreed| agreed.bits()),
            active_pairs: self.active_pairs(),
            pairs,
            total,
            control: self.control_stats().snapshot(),
        }
    }
}
