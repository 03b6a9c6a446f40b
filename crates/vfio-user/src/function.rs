//! What is served: a device behind the registers of PCI, wired to a client that comes and goes.

use std::sync::Arc;

use vionet::Device;
use vionet::transport::{Lines, PciNic, Wiring, WiringError};
use vionet_raw::{AddressSpace, MemoryMap};

use crate::irqs::Irqs;

/// A network function for [`crate::Server`]: it belongs to whichever client is connected.
#[derive(Debug)]
pub struct Function {
    nic: Arc<PciNic>,
    irqs: Arc<Irqs>,
}

impl Function {
    /// Puts a device on PCI, as after power-on, without memory or interrupts.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new(device: Device) -> Result<Self, WiringError> {
        // One for each queue and one for the configuration; never fewer than two.
        let vectors = device.queues().saturating_add(1).max(2);
        let irqs = Arc::new(Irqs::new(vectors).map_err(WiringError::from)?);
        let lines: Arc<dyn Lines> = Arc::<Irqs>::clone(&irqs);
        let nic = PciNic::new(device, &Wiring::new(no_memory(), lines))?;
        Ok(Self { nic: Arc::new(nic), irqs })
    }

    /// The device, for whoever wants to see it or to change it: from any thread.
    #[must_use]
    pub fn nic(&self) -> &Arc<PciNic> {
        &self.nic
    }

    pub(crate) fn irqs(&self) -> &Arc<Irqs> {
        &self.irqs
    }
}

/// What the device may touch while there is no client.
pub(crate) fn no_memory() -> Arc<AddressSpace> {
    Arc::new(AddressSpace::new(Arc::new(MemoryMap::empty())))
}
