//! Seam 2: how the driver is told of used buffers, and of a changed configuration.

/// Interrupts the driver: a call eventfd, an MSI-X vector, an irqfd.
pub trait Interrupt: Send + Sync {
    /// Interrupts the driver. Never blocks; several calls may be merged into one interrupt.
    fn raise(&self);
}
