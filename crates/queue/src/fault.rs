//! The rules of the ring that a driver can break, one variant each.

use core::fmt;

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $word:literal: $text:literal,)*) => {
        /// A rule that the driver has broken; the queue stands still from then on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Fault { $($(#[$doc])* $name,)* }

        impl Fault {
            /// All rules.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The rule as a word for counters.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }

        impl fmt::Display for Fault {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $text,)* })
            }
        }
    };
}

faults! {
    /// SPL-01, PKD-01: 0, above 32768, or no power of two in a split queue.
    BadSize = "bad-size": "the queue size is 0, too large or no power of two",
    /// SPL-02: an area is not aligned to 16, 2 or 4 bytes.
    Misaligned = "misaligned": "a ring area is not aligned",
    /// An area does not lie in one region of guest memory.
    RingUnmapped = "ring-unmapped": "a ring area is outside of guest memory",
    /// A packed queue is to go on at a slot that it does not have.
    BadPosition = "bad-position": "the queue is to go on at a slot it does not have",
    /// SPL-20: avail.idx is further ahead than the queue is long.
    IndexJump = "index-jump": "avail.idx is further ahead than the queue is long",
    /// PKD-24: more slots are made available than the device has given back.
    SlotsOverrun = "slots-overrun": "more slots are available than the queue has",
    /// PKD-26: a list's first descriptor is available before the rest of it.
    ListIncomplete = "list-incomplete": "a list is made available before all of it is there",
    /// A head in the available ring is no descriptor of the queue.
    HeadOutOfRange = "head-out-of-range": "an available head is outside the descriptor table",
    /// A `next` field is no descriptor of its table.
    NextOutOfRange = "next-out-of-range": "a chain goes on outside its table",
    /// SPL-10, SPL-14: more descriptors than the table has, so a loop, or more than are served.
    ChainTooLong = "chain-too-long": "a chain loops or has too many descriptors",
    /// SPL-10: more than 2^32 bytes in one chain.
    TooManyBytes = "too-many-bytes": "a chain has more than 2^32 bytes",
    /// SPL-12: INDIRECT without the feature.
    IndirectNotAgreed = "indirect-not-agreed": "an indirect descriptor without the feature",
    /// SPL-13: INDIRECT inside an indirect table.
    IndirectNested = "indirect-nested": "an indirect descriptor inside an indirect table",
    /// SPL-15: INDIRECT together with NEXT.
    IndirectWithNext = "indirect-with-next": "an indirect descriptor with NEXT set",
    /// SPL-19, SPL-04: an indirect table of 0 bytes, of no whole number of descriptors, or of more
    /// than [`CHAIN_MAX`](crate::CHAIN_MAX).
    IndirectLength = "indirect-length": "an indirect table of a bad length",
    /// An indirect table that is not all in guest memory.
    IndirectUnmapped = "indirect-unmapped": "an indirect table outside of guest memory",
    /// A buffer outside of guest memory.
    BufferUnmapped = "buffer-unmapped": "a buffer outside of guest memory",
    /// A buffer of 0 bytes.
    BufferEmpty = "buffer-empty": "a buffer of 0 bytes",
    /// SPL-05: a readable buffer behind a writable one.
    ReadableAfterWritable = "readable-after-writable": "a readable buffer behind a writable one",
    /// SPL-05: a buffer for the device to read on a receive queue (§5.1.6.3).
    ReadableInReceive = "readable-in-receive": "a readable buffer on a receive queue",
    /// SPL-05: a buffer for the device to write on a transmit queue (§5.1.6.2).
    WritableInTransmit = "writable-in-transmit": "a writable buffer on a transmit queue",
}

impl core::error::Error for Fault {}
