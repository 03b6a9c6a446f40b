//! A device behind registers: for a VMM that has it in its own process.
//!
//! ```text
//!    vCPU: access --> PciNic, MmioNic           which bytes are which register   (pci, mmio.rs)
//!                       |     \
//!                       |      doorbell: an eventfd, no lock                     (doorbell.rs)
//!                       v
//!                     Turns, one lock           who acts, and who waits          (turns.rs)
//!                     Plane                     steps of the device, one by one  (plane.rs)
//!                     Registers                 what registers mean  (registers.rs, draft.rs)
//!                       |
//!                     Device                    pairs, workers, endpoint
//!                       |
//!    VMM: Lines <-- interrupt lines, MSI-X                                (line.rs, pci/msix.rs)
//! ```
//!
//! An access never waits longer than 20 milliseconds for a worker, whatever verbs of the embedder
//! and other vCPUs are waiting for. What takes longer goes on by itself, and shows in the registers
//! when it is done: a driver polls for that (RST-03). A kick takes no lock. Accesses may come from
//! any number of vCPUs at once.

mod doorbell;
mod draft;
mod keeper;
mod line;
mod mmio;
mod pci;
mod plane;
mod registers;
mod turns;

use std::io;
use std::sync::Arc;

use vionet_raw::AddressSpace;

pub use keeper::Keeper;
pub use mmio::MmioNic;
pub use pci::{BarMove, PciNic};
pub use turns::Unsettled;

/// An MSI-X message: what is written, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Message {
    /// The address written to.
    pub address: u64,
    /// The 32 bits written.
    pub data: u32,
}

/// Where a device's interrupts go. Calls come from workers and from register accesses, each in
/// the order of its events; they never wait, and do not call back into the device.
pub trait Lines: Send + Sync {
    /// The interrupt line is asserted, or not: called when that changes. It is asserted until the
    /// driver has read or acknowledged why (PCI: only while MSI-X is off).
    fn level(&self, asserted: bool);

    /// Sends the message of a vector. One with an irqfd writes to that instead.
    fn message(&self, vector: u16, message: Message);

    /// A vector has this message from now on, or none while it is masked: where to route the
    /// irqfd of the vector, for those who have one.
    fn route(&self, vector: u16, message: Option<Message>) {
        let (_, _) = (vector, message);
    }
}

/// What a device behind registers is wired to.
#[derive(Clone)]
pub struct Wiring {
    /// The guest's memory; [`MmioNic::set_memory`] and [`PciNic::set_memory`] change it.
    pub memory: Arc<AddressSpace>,
    /// Where interrupts go.
    pub lines: Arc<dyn Lines>,
    /// The largest queue size offered: a power of two up to 32768. Others are rounded down.
    pub queue_size: u16,
}

impl Wiring {
    /// The largest queue size when nothing else is wished.
    pub const QUEUE_SIZE: u16 = 256;

    /// Memory and interrupts, with queues of [`Self::QUEUE_SIZE`].
    #[must_use]
    pub fn new(memory: Arc<AddressSpace>, lines: Arc<dyn Lines>) -> Self {
        Self { memory, lines, queue_size: Self::QUEUE_SIZE }
    }
}

impl core::fmt::Debug for Wiring {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Wiring")
            .field("memory", &self.memory)
            .field("queue_size", &self.queue_size)
            .finish_non_exhaustive()
    }
}

/// The registers could not be made: the system has no descriptor left for a queue's doorbell.
#[derive(Debug)]
pub struct WiringError(io::Error);

impl From<io::Error> for WiringError {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

impl core::fmt::Display for WiringError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "the doorbells of the device could not be made: {}", self.0)
    }
}

impl std::error::Error for WiringError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}
