//! Counters of a device: each is written by one owner alone, and read by anyone.
//!
//! ```text
//!   LaneStats   --snapshot-->  LaneSnapshot    --> inspect, DEVICE_STATS, whoever else looks
//!   counters that run          plain values
//! ```
//!
//! Every value of a snapshot only grows, and so does every sum of values. A difference may shrink:
//! one term already has a frame that the other does not have yet. So nothing is subtracted.

use core::sync::atomic::{AtomicU64, Ordering};

use vionet_frame::filter::Unwanted;
use vionet_frame::guard::Refusal;

macro_rules! reasons {
    ($(#[$doc:meta])* $kind:ident { $($(#[$vdoc:meta])* $name:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum $kind { $($(#[$vdoc])* $name,)* }

        impl $kind {
            /// Every reason, in the order of the counters, of saved states, too: a new one comes at
            /// the end.
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
        /// Others have delivered more than the host's rate limit lets through (receive).
        RateLimited = "rate-limited",
        /// The link is down.
        LinkDown = "link-down",
        /// The receive queue that it is for does not run (receive).
        QueueDown = "queue-down",
        /// The driver's filter: it has no whole Ethernet header, or not its tag.
        FilterTooShort = "filter-too-short",
        /// The driver's filter: it is for another station.
        FilterUnicast = "filter-unicast",
        /// The driver's filter: it is for a group that the guest is not in.
        FilterMulticast = "filter-multicast",
        /// The driver's filter: broadcasts are switched off.
        FilterBroadcast = "filter-broadcast",
        /// The driver's filter: it belongs to a VLAN that the guest is not in.
        FilterVlan = "filter-vlan",
        /// The host's policy: no whole Ethernet header.
        GuardTooShort = "guard-too-short",
        /// The host's policy: sent from an address that is not the NIC's.
        GuardSourceMac = "guard-source-mac",
        /// The host's policy: for a station that is not the NIC (receive).
        GuardDestinationMac = "guard-destination-mac",
        /// The host's policy: a VLAN that is not the NIC's, or none where there has to be one.
        GuardVlan = "guard-vlan",
        /// The host's policy: more tags, or other ones, than are looked behind.
        GuardTags = "guard-tags",
        /// The host's policy: an EtherType that no rule looks into.
        GuardEtherType = "guard-ether-type",
        /// The host's policy: lengths or versions contradict each other.
        GuardMalformed = "guard-malformed",
        /// The host's policy: a header that a rule needs is beyond the bytes at hand, or behind
        /// too many others.
        GuardHidden = "guard-hidden",
        /// The host's policy: a fragment of which its receiver could make what a rule forbids.
        GuardFragment = "guard-fragment",
        /// The host's policy: a packet in the name of another IP address.
        GuardSourceIp = "guard-source-ip",
        /// The host's policy: aRP in the name of another.
        GuardArp = "guard-arp",
        /// The host's policy: neighbour discovery in the name of another.
        GuardNeighbor = "guard-neighbor",
        /// The host's policy: a DHCP server's message.
        GuardDhcpServer = "guard-dhcp-server",
        /// The host's policy: a router advertisement.
        GuardRouterAdvert = "guard-router-advert",
        /// The host's policy: a redirect.
        GuardRedirect = "guard-redirect",
    }
}

impl From<Unwanted> for DropReason {
    fn from(why: Unwanted) -> Self {
        match why {
            Unwanted::TooShort => Self::FilterTooShort,
            Unwanted::Unicast => Self::FilterUnicast,
            Unwanted::Multicast => Self::FilterMulticast,
            Unwanted::Broadcast => Self::FilterBroadcast,
            Unwanted::Vlan => Self::FilterVlan,
        }
    }
}

impl From<Refusal> for DropReason {
    fn from(why: Refusal) -> Self {
        match why {
            Refusal::TooShort => Self::GuardTooShort,
            Refusal::SourceMac => Self::GuardSourceMac,
            Refusal::DestinationMac => Self::GuardDestinationMac,
            Refusal::Vlan => Self::GuardVlan,
            Refusal::Tags => Self::GuardTags,
            Refusal::EtherType => Self::GuardEtherType,
            Refusal::Malformed => Self::GuardMalformed,
            Refusal::Hidden => Self::GuardHidden,
            Refusal::Fragment => Self::GuardFragment,
            Refusal::SourceIp => Self::GuardSourceIp,
            Refusal::Arp => Self::GuardArp,
            Refusal::Neighbor => Self::GuardNeighbor,
            Refusal::DhcpServer => Self::GuardDhcpServer,
            Refusal::RouterAdvert => Self::GuardRouterAdvert,
            Refusal::Redirect => Self::GuardRedirect,
        }
    }
}

/// How many drop reasons there are.
const REASONS: usize = 38;
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

    /// Goes on from this number; only while no pair is out.
    #[cfg(feature = "std")]
    pub(crate) fn set(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }

    /// The count so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    (
        $(#[$about:meta])* $stats:ident => $snapshot:ident {
            $($(#[$doc:meta])* $name:ident,)*
        }
        and {
            $($(#[$also_doc:meta])* $vis:vis $also:ident: $from:ty => $to:ty,)*
        }
    ) => {
        $(#[$about])*
        #[derive(Debug, Default)]
        pub struct $stats {
            $($(#[$doc])* pub $name: Counter,)*
            $($(#[$also_doc])* $vis $also: $from,)*
        }

        $(#[$about])*
        ///
        /// Plain values, of one moment.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $snapshot {
            $($(#[$doc])* pub $name: u64,)*
            $($(#[$also_doc])* $vis $also: $to,)*
        }

        impl $stats {
            /// Its counters that have a name. Saved states have them in this order: a new one comes
            /// at the end.
            #[cfg(feature = "std")]
            pub(crate) fn counters(&self) -> impl ExactSizeIterator<Item = &Counter> {
                [$(&self.$name),*].into_iter()
            }

            /// The counters as they stand; what is counted meanwhile may be in some of them.
            #[must_use]
            pub fn snapshot(&self) -> $snapshot {
                $snapshot {
                    $($name: self.$name.value(),)*
                    $($also: self.$also.values(),)*
                }
            }
        }

        impl $snapshot {
            const NAMES: &[&str] = &[$(stringify!($name)),*];

            fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                Self::NAMES.iter().copied().zip([$(self.$name),*])
            }

            /// The sum of both.
            #[must_use]
            pub fn plus(mut self, other: &Self) -> Self {
                $(self.$name = self.$name.wrapping_add(other.$name);)*
                $(add_each(&mut self.$also, &other.$also);)*
                self
            }
        }
    };
}

counters! {
    /// Counters of one direction.
    LaneStats => LaneSnapshot {
        /// Bytes of the frames that went through, without virtio headers.
        bytes,
        /// Batches that held at least one frame.
        batches,
        /// Interrupts sent to the driver.
        interrupts,
        /// Times the driver wanted no interrupt for used buffers.
        suppressed,
        /// Times the guest had no buffers for what was waiting (receive).
        starved,
        /// Times something was left with the guest: the host side was full, or a limit was reached
        /// (transmit).
        stalled,
        /// Times the platform had no translation yet for what the driver had posted.
        untranslated,
        /// Faults of the driver that stopped the queue.
        faults,
        /// Failed calls of the host side.
        host_errors,
        /// Kicks of the driver that woke the worker.
        kicks,
        /// Frames whose checksum was neither open nor validated.
        closed_checksums,
        /// Frames whose checksum was still to be completed.
        open_checksums,
        /// Frames whose outermost checksum had been validated (receive).
        validated,
        /// Frames that were still to be cut.
        uncut,
        /// Their bytes.
        uncut_bytes,
        /// Frames that were merged of several (receive).
        coalesced,
        /// Their bytes.
        coalesced_bytes,
        /// Segments cut here (transmit).
        segments,
        /// Their bytes.
        segment_bytes,
        /// Frames held back by a rate limit, each once (transmit); those that were dropped for one,
        /// and times the host side began not to be asked for some (receive).
        limited,
        /// The bytes of the frames.
        limited_bytes,
    }
    and {
        /// How many batches had how many frames, by powers of two.
        pub batch_sizes: Histogram => [u64; HISTOGRAM],
        /// How many frames the pair's own worker has moved from one wake-up to its next sleep,
        /// likewise.
        pub wake_sizes: Histogram => [u64; HISTOGRAM],
        drops: Drops => [u64; REASONS],
    }
}

fn add_each<const N: usize>(to: &mut [u64; N], from: &[u64; N]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = to.wrapping_add(*from));
}

/// Dropped frames, in the order of the reasons.
#[derive(Debug)]
struct Drops([Counter; REASONS]);

impl Default for Drops {
    fn default() -> Self {
        Self(core::array::from_fn(|_| Counter::default()))
    }
}

impl Drops {
    fn values(&self) -> [u64; REASONS] {
        self.0.each_ref().map(Counter::value)
    }
}

/// How often a number came up, by powers of two: 1, 2 to 3, 4 to 7, and so on; the last place has
/// all that is larger.
#[derive(Debug, Default)]
pub struct Histogram([Counter; HISTOGRAM]);

/// Places of a [`Histogram`].
pub const HISTOGRAM: usize = 12;

impl Histogram {
    /// The counters, place by place.
    #[cfg(feature = "std")]
    pub(crate) const fn counters(&self) -> &[Counter] {
        &self.0
    }

    /// Counts a number above 0; only the owner calls this.
    #[inline]
    pub(crate) fn add(&self, number: usize) {
        let place = usize::try_from((number | 1).ilog2()).unwrap_or(0);
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
    /// Dropped frames, in the order of the reasons.
    #[cfg(feature = "std")]
    pub(crate) const fn drop_counters(&self) -> &[Counter] {
        &self.drops.0
    }

    /// Adds dropped frames.
    pub(crate) fn dropped(&self, reason: DropReason, count: u64) {
        let index = DropReason::ALL.iter().position(|one| *one == reason);
        if let Some(counter) = index.and_then(|index| self.drops.0.get(index)) {
            // Pairs that deliver to each other may both drop.
            counter.0.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Counts a frame that a rate limit has kept from the guest.
    pub(crate) fn limited(&self, len: u32) {
        self.limited.add(1);
        self.limited_bytes.add(len.into());
    }

    /// Frames that went through.
    #[must_use]
    pub fn frames(&self) -> u64 {
        let parts = [&self.closed_checksums, &self.open_checksums, &self.validated];
        parts.map(Counter::value).into_iter().fold(0, u64::wrapping_add)
    }

    /// Frames dropped for one reason.
    #[must_use]
    pub fn dropped_for(&self, reason: DropReason) -> u64 {
        self.snapshot().dropped_for(reason)
    }
}

impl LaneSnapshot {
    /// Frames that went through.
    #[must_use]
    pub fn frames(&self) -> u64 {
        let parts = [self.closed_checksums, self.open_checksums, self.validated];
        parts.into_iter().fold(0, u64::wrapping_add)
    }

    /// All counters by name, but batches and wake-ups by size and drops by reason; `frames` and
    /// `bytes` come first.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        core::iter::once(("frames", self.frames())).chain(self.named())
    }

    /// Frames dropped for one reason.
    #[must_use]
    pub fn dropped_for(&self, reason: DropReason) -> u64 {
        self.drops().find(|(one, _)| *one == reason).map_or(0, |(_, count)| count)
    }

    /// Dropped frames, by every reason.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().copied().zip(self.drops)
    }

    /// All dropped frames.
    #[must_use]
    pub fn drops_total(&self) -> u64 {
        self.drops.into_iter().fold(0, u64::wrapping_add)
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

counters! {
    /// Counters of a device's control queue.
    ControlStats => ControlSnapshot {
        /// Commands that were answered.
        commands,
        /// Those that were obeyed; the others were refused.
        obeyed,
        /// Faults of the driver that stopped the queue.
        faults,
    }
    and {}
}

impl ControlSnapshot {
    /// All counters by name.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.named()
    }
}

impl ControlStats {
    pub(crate) fn count(&self, obeyed: bool) {
        self.commands.add(1);
        self.obeyed.add(u64::from(obeyed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NET-STAT-09.
    #[test]
    fn counters_wrap() {
        let counter = Counter::default();
        counter.add(u64::MAX);
        counter.add(3);
        assert_eq!(counter.value(), 2);
    }
}
