//! A device at one moment, in plain values: for people who look, and programs that watch.

use alloc::vec::Vec;

use vionet_spec::feature::FeatureBits;

use crate::nic::Nic;
use crate::stats::{COUNTERS, DropReason, HISTOGRAM, LaneStats, PairStats};

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
    /// Counters of the control queue, by name.
    pub control: [(&'static str, u64); 3],
}

/// A queue pair's counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairSnapshot {
    /// Guest to host.
    pub transmit: LaneSnapshot,
    /// Host to guest.
    pub receive: LaneSnapshot,
}

/// The counters of one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneSnapshot {
    /// By name, in the order of [`LaneStats`]; `frames` and `bytes` come first.
    pub counters: [(&'static str, u64); COUNTERS],
    /// How many batches had how many frames, by powers of two.
    pub batch_sizes: [u64; HISTOGRAM],
    /// How many wake-ups of the pair's worker moved how many frames, likewise.
    pub wake_sizes: [u64; HISTOGRAM],
    /// Dropped frames; reasons that have not come up are left out.
    pub drops: Vec<(DropReason, u64)>,
}

impl LaneSnapshot {
    fn of(lane: &LaneStats) -> Self {
        Self {
            counters: lane.counters().map(|(name, counter)| (name, counter.value())),
            batch_sizes: lane.batch_sizes.values(),
            wake_sizes: lane.wake_sizes.values(),
            drops: lane.drops().filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// The sums of both; of counters that are the same ones in the same order.
    fn plus(mut self, other: &Self) -> Self {
        let counters = self.counters.iter_mut().zip(&other.counters);
        counters.for_each(|((_, to), (_, from))| *to = to.wrapping_add(*from));
        for (to, from) in
            [(&mut self.batch_sizes, &other.batch_sizes), (&mut self.wake_sizes, &other.wake_sizes)]
        {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = to.wrapping_add(*from));
        }
        for (reason, count) in &other.drops {
            match self.drops.iter_mut().find(|(one, _)| one == reason) {
                Some((_, to)) => *to = to.wrapping_add(*count),
                None => self.drops.push((*reason, *count)),
            }
        }
        self
    }
}

impl PairSnapshot {
    fn of(pair: &PairStats) -> Self {
        Self { transmit: LaneSnapshot::of(&pair.tx), receive: LaneSnapshot::of(&pair.rx) }
    }
}

impl Nic {
    /// The device as it is now. Counters of pairs that are out may be a moment old.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let control = self.control_stats();
        let pairs: Vec<_> = self.stats().map(|pair| PairSnapshot::of(pair)).collect();
        let none = PairSnapshot::of(&PairStats::default());
        let total = pairs.iter().fold(none, |sum, pair| PairSnapshot {
            transmit: sum.transmit.plus(&pair.transmit),
            receive: sum.receive.plus(&pair.receive),
        });
        Snapshot {
            mac: self.mac(),
            mtu: self.mtu(),
            link_up: self.is_link_up(),
            features: self.negotiated().map(|agreed| agreed.bits()),
            active_pairs: self.active_pairs(),
            pairs,
            total,
            control: [
                ("commands", control.commands.value()),
                ("obeyed", control.obeyed.value()),
                ("faults", control.faults.value()),
            ],
        }
    }
}
