//! Doorbells: an eventfd per queue, which a register write or a VMM's ioeventfd rings.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::nic::QueueIndex;
use crate::run::{bell, ring};

/// The doorbells of all queues. Ringing one takes no lock.
pub(super) struct Doorbells {
    bells: Vec<Arc<OwnedFd>>,
    /// NOTIFICATION_DATA was agreed on: a kick has 32 bits.
    with_data: AtomicBool,
}

impl Doorbells {
    pub(super) fn new(queues: u16) -> io::Result<Self> {
        let bells = (0..queues).map(|_| bell().map(Arc::new)).collect::<io::Result<_>>()?;
        Ok(Self { bells, with_data: AtomicBool::new(false) })
    }

    pub(super) fn of(&self, index: QueueIndex) -> Option<&Arc<OwnedFd>> {
        self.bells.get(index.slot())
    }

    pub(super) fn set_with_data(&self, with_data: bool) {
        self.with_data.store(with_data, Ordering::Relaxed);
    }

    /// Bytes that a kick on PCI has (PNOT-11, PNOT-12).
    pub(super) fn width(&self) -> usize {
        if self.with_data.load(Ordering::Relaxed) { 4 } else { 2 }
    }

    /// A kick. With NOTIFICATION_DATA its upper half says how far the driver is, which the ring
    /// itself says, too (NDAT-04). One for a queue that is not there is nobody's (PNOT-13).
    pub(super) fn kick(&self, value: u32) -> Option<()> {
        let [low, high, ..] = value.to_le_bytes();
        let narrow = self.width() == 4 || u16::try_from(value).is_ok();
        let bell = self.of(QueueIndex(u16::from_le_bytes([low, high]))).filter(|_| narrow)?;
        ring(bell);
        Some(())
    }
}
