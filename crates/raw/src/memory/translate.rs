//! Addresses that the platform translates: an IOMMU between a device and memory (VIRTIO 1.4 §6.1,
//! ACCESS_PLATFORM).
//!
//! ```text
//!   device address --Translate--> guest address --MemoryMap--> memory
//!                      '-- missing: ask again later; denied: the driver's mistake
//! ```
//!
//! An answer is asked for whenever it is needed. That of a buffer or a table is used until the end
//! of the step, or of the delivery, in which it was asked for, and never over a recall; that of a
//! ring until its queue stops. So whoever takes a translation back does so between two steps, or
//! waits for the pair to come home before he says that it is done; if it was a ring's, for its
//! queue to stop.

use core::fmt;

use super::map::GuestAddr;

/// What a device wants to do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Write it.
    Write,
    /// Both.
    Both,
}

/// Why a device address leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untranslated {
    /// Nobody has an answer yet.
    Missing,
    /// The platform does not allow it.
    Denied,
}

/// What translates the addresses of a device.
pub trait Translate: fmt::Debug + Send + Sync {
    /// Where the byte at device address `at` is in the guest's memory, and how many bytes from
    /// there on, of `len` that are asked for, lie one behind the other and may be accessed so.
    ///
    /// Called on the data path, perhaps from several threads: it does not wait. No more than `len`
    /// bytes are believed, and no bytes at all is as good as [`Untranslated::Missing`].
    ///
    /// # Errors
    /// When there is no answer, or none is allowed.
    fn translate(
        &self,
        at: u64,
        len: usize,
        access: Access,
    ) -> Result<(GuestAddr, usize), Untranslated>;
}
