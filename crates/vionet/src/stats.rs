//! Counters of a device: each is written by one owner alone, and read by anyone.

use core::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($(#[$doc:meta])* $kind:ident { $($(#[$vdoc:meta])* $name:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum $kind { $($(#[$vdoc])* $name,)* }

        impl $kind {
            /// Every reason, in the order of the counters.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The reason as a word for counters and logs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }

        impl core::fmt::Display for $kind {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

reasons! {
    /// Why a frame was dropped.
    DropReason {
        /// The driver's chain is shorter than the virtio header (transmit).
        NoHeader = "no-header",
        /// The driver's virtio header breaks a rule (transmit).
        BadHeader = "bad-header",
        /// The frame is shorter than an Ethernet header.
        TooShort = "too-short",
        /// The frame is longer than the device or its endpoint carries.
        TooLong = "too-long",
        /// The frame could not be finished in software: it does not parse.
        Unparsable = "unparsable",
        /// The host side refused this frame.
        HostRefused = "host-refused",
        /// The host side has no room.
        HostFull = "host-full",
        /// The host side is gone.
        EndpointGone = "endpoint-gone",
        /// The queue is started but not enabled.
        QueueDisabled = "queue-disabled",
        /// The guest's receive buffers cannot hold the frame (receive).
        NoBuffer = "no-buffer",
        /// The endpoint left open what the guest did not agree to (receive).
        NotAgreed = "not-agreed",
        /// A policy of the endpoint refused it.
        Policy = "policy",
        /// The source address is another's (transmit).
        Spoofed = "spoofed",
        /// The endpoint speaks no such protocol.
        Unsupported = "unsupported",
        /// A bounded table of the endpoint is full.
        TableFull = "table-full",
        /// The link is down.
        LinkDown = "link-down",
    }
}

/// How many drop reasons there are.
const REASONS: usize = 16;
const _: () = assert!(DropReason::ALL.len() == REASONS, "one counter per reason");

/// A counter with one writer; readers may be a moment behind.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the pair's owner calls this.
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        // One writer: a load and a store do, without a locked instruction.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// The count so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of one direction.
#[derive(Debug, Default)]
pub struct LaneStats {
    /// Frames that went through.
    pub frames: Counter,
    /// Their bytes, without virtio headers.
    pub bytes: Counter,
    /// Batches that held at least one frame.
    pub batches: Counter,
    /// Interrupts sent to the driver.
    pub interrupts: Counter,
    /// Times the driver wanted no interrupt for used buffers.
    pub suppressed: Counter,
    /// Times the guest had no buffers for what was waiting.
    pub starved: Counter,
    /// Times the platform had no translation yet for what the driver had posted.
    pub untranslated: Counter,
    /// Faults of the driver that stopped the queue.
    pub faults: Counter,
    /// Failed calls of the host side.
    pub host_errors: Counter,
    /// Kicks of the driver that woke the worker.
    pub kicks: Counter,
    /// Frames whose checksum was still to be completed.
    pub open_checksums: Counter,
    /// Frames whose outermost checksum had been validated (receive).
    pub validated: Counter,
    /// Frames that were still to be cut.
    pub uncut: Counter,
    /// Their bytes.
    pub uncut_bytes: Counter,
    /// Frames that were merged of several (receive).
    pub coalesced: Counter,
    /// Their bytes.
    pub coalesced_bytes: Counter,
    /// Segments cut here (transmit).
    pub segments: Counter,
    /// Their bytes.
    pub segment_bytes: Counter,
    /// Frames held back by a rate limit.
    pub limited: Counter,
    /// Their bytes.
    pub limited_bytes: Counter,
    /// How many batches had how many frames.
    pub batch_sizes: Histogram,
    drops: [Counter; REASONS],
}

/// How often a number came up, by powers of two: 1, 2 to 3, 4 to 7, and so on; the last place has
/// all that is larger.
#[derive(Debug, Default)]
pub struct Histogram([Counter; HISTOGRAM]);

/// Places of a [`Histogram`].
pub const HISTOGRAM: usize = 8;

impl Histogram {
    /// Counts a number above 0; only the owner calls this.
    #[inline]
    pub(crate) fn add(&self, number: usize) {
        let place = usize::try_from(number.checked_ilog2().unwrap_or(0)).unwrap_or(0);
        if let Some(counter) = self.0.get(place.min(HISTOGRAM.wrapping_sub(1))) {
            counter.add(1);
        }
    }

    /// How often so far, place by place.
    #[must_use]
    pub fn values(&self) -> [u64; HISTOGRAM] {
        self.0.each_ref().map(Counter::value)
    }
}

impl LaneStats {
    /// Adds dropped frames.
    pub(crate) fn dropped(&self, reason: DropReason, count: u64) {
        let index = DropReason::ALL.iter().position(|one| *one == reason);
        if let Some(counter) = index.and_then(|index| self.drops.get(index)) {
            counter.add(count);
        }
    }

    /// Frames dropped for one reason.
    #[must_use]
    pub fn dropped_for(&self, reason: DropReason) -> u64 {
        self.drops().find(|(one, _)| *one == reason).map_or(0, |(_, count)| count)
    }

    /// Dropped frames, by reason.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().zip(&self.drops).map(|(reason, count)| (*reason, count.value()))
    }

    /// All dropped frames.
    #[must_use]
    pub fn drops_total(&self) -> u64 {
        self.drops().fold(0, |sum, (_, count)| sum.wrapping_add(count))
    }
}

/// Counters of a queue pair.
#[derive(Debug, Default)]
pub struct PairStats {
    /// Guest to host.
    pub tx: LaneStats,
    /// Host to guest.
    pub rx: LaneStats,
}

/// Counters of a device's control queue.
#[derive(Debug, Default)]
pub struct ControlStats {
    /// Commands that were answered.
    pub commands: Counter,
    /// Those that were obeyed; the others were refused.
    pub obeyed: Counter,
    /// Faults of the driver that stopped the queue.
    pub faults: Counter,
}

impl ControlStats {
    pub(crate) fn count(&self, obeyed: bool) {
        self.commands.add(1);
        self.obeyed.add(u64::from(obeyed));
    }
}
