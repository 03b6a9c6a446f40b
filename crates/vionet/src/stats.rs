//! Counters of a queue pair: written by its worker alone, read by anyone.

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
    }
}

/// How many drop reasons there are.
const REASONS: usize = 15;
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
    drops: [Counter; REASONS],
}

impl LaneStats {
    /// Adds dropped frames.
    pub(crate) fn dropped(&self, reason: DropReason, count: u64) {
        let index = DropReason::ALL.iter().position(|one| *one == reason);
        if let Some(counter) = index.and_then(|index| self.drops.get(index)) {
            counter.add(count);
        }
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
