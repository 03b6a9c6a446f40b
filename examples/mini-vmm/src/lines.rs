//! The NIC's interrupts: an irqfd for each MSI-X vector, and the line of old.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use vionet::transport::{Lines, Message};
use vmm_sys_util::eventfd::EventFd;

use crate::failure::{Failure, complain};
use crate::kvm::Vm;

/// The pin of the IO-APIC, and the number (GSI), of the NIC's line: the first that the ISA bus
/// knows nothing of.
pub(crate) const INTX_PIN: u8 = 16;
/// Pins of the IO-APIC; numbers of messages begin behind them.
const PINS: u32 = 24;

/// Interrupts of one NIC.
pub(crate) struct NicLines {
    vm: Arc<Vm>,
    /// By vector. Workers raise them without a lock and without an ioctl, which a sandbox may
    /// deny them. Where neither matters, KVM_SIGNAL_MSI in `message` needs no routes at all.
    irqfds: Vec<EventFd>,
    /// By vector, what the driver has told last. KVM takes only whole tables.
    routes: Mutex<Vec<Option<Message>>>,
}

impl NicLines {
    /// For a NIC of so many vectors: one a queue, and one for the configuration.
    pub(crate) fn new(vm: &Arc<Vm>, vectors: u16) -> Result<Self, Failure> {
        let gsis = PINS..PINS.saturating_add(vectors.into());
        let irqfds = gsis.map(|gsi| vm.irqfd(gsi)).collect::<Result<_, _>>()?;
        let routes = Mutex::new(vec![None; vectors.into()]);
        Ok(Self { vm: Arc::clone(vm), irqfds, routes })
    }
}

impl Lines for NicLines {
    fn level(&self, asserted: bool) {
        complain(self.vm.line(INTX_PIN.into(), asserted));
    }

    fn message(&self, vector: u16, _message: Message) {
        // Where it goes is known: `route` came before.
        if let Some(irqfd) = self.irqfds.get(usize::from(vector)) {
            let (Ok(()) | Err(_)) = irqfd.write(1);
        }
    }

    fn route(&self, vector: u16, message: Option<Message>) {
        // A masked vector keeps its route: nobody writes its irqfd until it is told anew.
        let Some(message) = message else { return };
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = routes.get_mut(usize::from(vector)) {
            *slot = Some(message);
            complain(self.vm.route(&table(&routes)));
        }
    }
}

/// All routes: the old controllers' pins as they are wired by default, and the messages.
fn table(messages: &[Option<Message>]) -> Vec<kvm_irq_routing_entry> {
    let mut table = Vec::new();
    for pin in 0..PINS {
        if pin < 16 {
            let chip = if pin < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
            table.push(to_pin(pin, chip, pin & 7));
        }
        table.push(to_pin(pin, KVM_IRQCHIP_IOAPIC, pin));
    }
    let messages = (PINS..).zip(messages);
    table.extend(messages.filter_map(|(gsi, message)| Some(to_message(gsi, (*message)?))));
    table
}

fn to_pin(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

fn to_message(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: u32::from_le_bytes([a, b, c, d]),
        address_hi: u32::from_le_bytes([e, f, g, h]),
        data: message.data,
        ..Default::default()
    };
    entry
}
