//! Device statistics (VIRTIO 1.4 §5.1.9.5.11): which there are, and replies of counters.
//!
//! ```text
//!   entry  vq_index le16 | reserved 6 | types_bitmap le64
//!   reply  type u8 | 0 | vq_index le16 | 0 le16 | size le16 | counters le64 ...
//! ```

use vionet_spec::feature::{Feature, FeatureBits};

use super::{Answer, Refused};
use crate::nic::{QueueIndex, QueueRole};
use crate::stats::{ControlSnapshot, DropReason, LaneSnapshot};

const ENTRY_LEN: usize = 16;
const HEADER_LEN: u16 = 8;
const COUNTER_LEN: u16 = 8;
/// The most counters of a type.
const COUNTERS_MAX: usize = 6;

/// A type of statistics, by its bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    RxBasic,
    RxCsum,
    RxGso,
    RxSpeed,
    TxBasic,
    TxCsum,
    TxGso,
    TxSpeed,
    Control,
}

const KINDS: [Kind; 9] = [
    Kind::RxBasic,
    Kind::RxCsum,
    Kind::RxGso,
    Kind::RxSpeed,
    Kind::TxBasic,
    Kind::TxCsum,
    Kind::TxGso,
    Kind::TxSpeed,
    Kind::Control,
];

impl Kind {
    const fn bit(self) -> u8 {
        match self {
            Self::RxBasic => 0,
            Self::RxCsum => 1,
            Self::RxGso => 2,
            Self::RxSpeed => 3,
            Self::TxBasic => 16,
            Self::TxCsum => 17,
            Self::TxGso => 18,
            Self::TxSpeed => 19,
            Self::Control => 32,
        }
    }

    fn mask(self) -> u64 {
        1_u64.wrapping_shl(self.bit().into())
    }

    /// One of these must have been negotiated.
    const fn needs(self) -> &'static [Feature] {
        match self {
            Self::RxCsum => &[Feature::GUEST_CSUM],
            Self::RxGso => &[Feature::GUEST_TSO4, Feature::GUEST_TSO6],
            Self::TxCsum => &[Feature::CSUM],
            Self::TxGso => &[Feature::HOST_TSO4, Feature::HOST_TSO6, Feature::HOST_USO],
            Self::RxBasic | Self::RxSpeed | Self::TxBasic | Self::TxSpeed | Self::Control => &[],
        }
    }

    const fn fits(self, role: QueueRole) -> bool {
        match self {
            Self::RxBasic | Self::RxCsum | Self::RxGso | Self::RxSpeed => {
                matches!(role, QueueRole::Receive(_))
            }
            Self::TxBasic | Self::TxCsum | Self::TxGso | Self::TxSpeed => {
                matches!(role, QueueRole::Transmit(_))
            }
            Self::Control => matches!(role, QueueRole::Control),
        }
    }
}

/// Where the numbers come from.
pub(crate) struct Source<'a> {
    pub(crate) agreed: FeatureBits,
    pub(crate) role: &'a dyn Fn(QueueIndex) -> Option<QueueRole>,
    /// Of a receive or transmit queue.
    pub(crate) lane: &'a dyn Fn(QueueRole) -> Option<LaneSnapshot>,
    /// Without the command in work.
    pub(crate) control: ControlSnapshot,
}

impl Source<'_> {
    /// Whether the type can be had under what was negotiated (NET-STAT-06).
    fn has(&self, kind: Kind) -> bool {
        let needs = kind.needs();
        needs.is_empty() || needs.iter().any(|feature| self.agreed.has(*feature))
    }

    /// The types that can be asked for.
    pub(crate) fn supported(&self) -> u64 {
        let kinds = KINDS.into_iter().filter(|kind| self.has(*kind));
        kinds.fold(0, |sum, kind| sum | kind.mask())
    }

    /// Whether every entry can be answered; if not, none is (NET-STAT-02 to 06).
    pub(crate) fn check(&self, entries: &[u8]) -> Result<(), Refused> {
        let (entries, []) = entries.as_chunks::<ENTRY_LEN>() else {
            return Err(Refused::Malformed);
        };
        for entry in entries {
            let (queue, types) = decode(entry);
            let role = (self.role)(queue).ok_or(Refused::Value)?;
            let fits = KINDS.into_iter().filter(|kind| self.has(*kind) && kind.fits(role));
            let allowed = fits.fold(0, |sum, kind| sum | kind.mask());
            if types & !allowed != 0 {
                return Err(Refused::Value);
            }
        }
        Ok(())
    }

    /// Writes a reply for each type of each entry; the entries have been checked.
    pub(crate) fn write_replies(&self, entries: &[u8], answer: &mut Answer<'_>) {
        let (entries, _) = entries.as_chunks::<ENTRY_LEN>();
        for entry in entries {
            let (queue, types) = decode(entry);
            let Some(role) = (self.role)(queue) else { continue };
            let lane = (self.lane)(role);
            for kind in KINDS.into_iter().filter(|kind| types & kind.mask() != 0) {
                let (counters, count) = self.counters(kind, lane.as_ref());
                let bytes = u16::try_from(count).unwrap_or(0).saturating_mul(COUNTER_LEN);
                let [q0, q1] = queue.0.to_le_bytes();
                let [s0, s1] = bytes.saturating_add(HEADER_LEN).to_le_bytes();
                answer.write(&[kind.bit(), 0, q0, q1, 0, 0, s0, s1]);
                for counter in counters.into_iter().take(count) {
                    answer.write(&counter.to_le_bytes());
                }
            }
        }
    }

    fn counters(&self, kind: Kind, lane: Option<&LaneSnapshot>) -> ([u64; COUNTERS_MAX], usize) {
        let told = |by: fn(&LaneSnapshot) -> [u64; COUNTERS_MAX]| lane.map(by).unwrap_or_default();
        match kind {
            Kind::RxBasic => (told(|lane| basic(lane, DropReason::NoBuffer)), 6),
            Kind::RxCsum => (told(receive_checksums), 4),
            Kind::RxGso => (told(receive_segments), 4),
            Kind::TxBasic => (told(|lane| basic(lane, DropReason::BadHeader)), 6),
            Kind::TxCsum => (told(transmit_checksums), 2),
            Kind::TxGso => (told(transmit_segments), 6),
            Kind::RxSpeed | Kind::TxSpeed => (told(allowance), 2),
            Kind::Control => {
                // The command in work counts, and it will have been done (NET-STAT-11).
                let done = |count: u64| count.wrapping_add(1);
                let ControlSnapshot { commands, obeyed, .. } = self.control;
                ([done(commands), done(obeyed), 0, 0, 0, 0], 2)
            }
        }
    }
}

fn decode(entry: &[u8; ENTRY_LEN]) -> (QueueIndex, u64) {
    let [q0, q1, _, _, _, _, _, _, types @ ..] = *entry;
    (QueueIndex(u16::from_le_bytes([q0, q1])), u64::from_le_bytes(types))
}

/// notifications, packets, bytes, interrupts, drops, and those for one reason.
fn basic(lane: &LaneSnapshot, reason: DropReason) -> [u64; COUNTERS_MAX] {
    [
        lane.kicks,
        lane.frames(),
        lane.bytes,
        lane.interrupts,
        lane.drops_total(),
        lane.dropped_for(reason),
    ]
}

/// csum_valid, needs_csum, csum_none, csum_bad.
fn receive_checksums(lane: &LaneSnapshot) -> [u64; COUNTERS_MAX] {
    [lane.validated, lane.open_checksums, lane.closed_checksums, 0, 0, 0]
}

/// gso_packets, gso_bytes, gso_packets_coalesced, gso_bytes_coalesced.
fn receive_segments(lane: &LaneSnapshot) -> [u64; COUNTERS_MAX] {
    let (frames, bytes) = (lane.uncut, lane.uncut_bytes);
    [frames, bytes, lane.coalesced, lane.coalesced_bytes, 0, 0]
}

/// csum_none, needs_csum.
fn transmit_checksums(lane: &LaneSnapshot) -> [u64; COUNTERS_MAX] {
    [lane.closed_checksums, lane.open_checksums, 0, 0, 0, 0]
}

/// gso_packets, gso_bytes, gso_segments, gso_segments_bytes, gso_packets_noseg, gso_bytes_noseg.
fn transmit_segments(lane: &LaneSnapshot) -> [u64; COUNTERS_MAX] {
    let (frames, bytes) = (lane.uncut, lane.uncut_bytes);
    let (segments, segment_bytes) = (lane.segments, lane.segment_bytes);
    // What was not cut here went on whole.
    [frames, bytes, segments, segment_bytes, 0, 0]
}

/// packets_allowance_exceeded, bytes_allowance_exceeded.
fn allowance(lane: &LaneSnapshot) -> [u64; COUNTERS_MAX] {
    [lane.limited, lane.limited_bytes, 0, 0, 0, 0]
}
