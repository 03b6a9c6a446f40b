//! Memory that others can change, and the system calls over it: the only unsafe code of vionet.
//!
//! What a caller may rely on:
//!
//! * No safe function here can touch memory outside the regions of a [`MemoryMap`], whatever
//!   addresses and lengths it is given. An address from a guest is an allegation until
//!   [`SpanStore::push`] or [`AddressSpace`] has found it inside a region.
//! * Guest memory is never seen as a Rust reference. It is copied out of ([`ReadSpan`]), copied
//!   into ([`WriteSpan`]), or loaded and stored a cell at a time ([`SharedRing`],
//!   [`SharedIndex`]); a load is one atomic snapshot, so nothing can be fetched twice by accident.
//! * Whatever holds a pointer into a region also holds the map that keeps the region mapped.
//!
//! ```text
//!   MemoryMap = [Region, Region, ...]         immutable; a change of memory is a new map
//!       ^ Arc
//!   AddressSpace --- ring(), index() ---> SharedRing, SharedIndex    cells, loaded and stored
//!       ^ Arc
//!   SpanStore ------ push() ------------> ReadSpan, WriteSpan        iovec-shaped, copied
//! ```
//!
//! The feature `host` adds what needs an operating system: mappings of shared files, vectored
//! system calls over spans, tap devices.
#![cfg_attr(not(any(feature = "host", test, loom)), no_std)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        reason = "tests may stop"
    )
)]

extern crate alloc;

pub mod memory;

#[cfg(feature = "host")]
pub mod host;

pub use memory::{
    Access, AddressSpace, Descriptor, GuestAddr, MapError, MemoryMap, PackedDescriptor,
    PackedDescriptors, Pushed, ReadSpan, Region, Scratch, SharedIndex, SharedRing, SpanStore,
    Translate, Untranslated, UsedElem, UserAddr, WriteSpan, copy_behind, copy_in, copy_out, fence,
    has_string_moves,
};

#[cfg(loom)]
pub use memory::model;
