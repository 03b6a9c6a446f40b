//! Seam 2: how the driver is told of used buffers.

/// Interrupts the driver on behalf of one queue: a call eventfd, an MSI-X vector, an irqfd.
pub trait Interrupt: Send {
    /// Interrupts the driver. Never blocks; several calls may be merged into one interrupt.
    fn raise(&self);
}
