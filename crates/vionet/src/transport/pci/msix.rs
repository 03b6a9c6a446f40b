//! Interrupts on PCI: MSI-X vectors with their masks and pending bits, or the line.
//!
//! What the driver has set for all of them changes under a lock that every interrupt shares: one
//! is raised before such a change or after it, and a change takes what waits along. So none is lost
//! between MSI-X and the line. Each vector has a lock of its own, held while its message is sent:
//! when a write that masks it has returned, no message is under way. Workers share that one only
//! where queues share the vector.

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vionet_spec::pci::{
    ISR_CONFIG, ISR_QUEUE, MSIX_ENTRY_CONTROL, MSIX_ENTRY_LEN, MSIX_ENTRY_MASKED, NO_VECTOR,
};

use crate::nic::QueueIndex;
use crate::run::held;
use crate::state::{Pci, RestoreError, Vector};
use crate::transport::draft::halves;
use crate::transport::line::{Line, Wires};
use crate::transport::{Lines, Message};

/// Everything that can interrupt, and where it goes.
pub(super) struct Vectors {
    lines: Arc<dyn Lines>,
    line: Line,
    mode: RwLock<Mode>,
    entries: Vec<Mutex<Entry>>,
}

/// What the configuration space lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gates {
    /// MSI-X is used, and not the line.
    pub(super) enabled: bool,
    /// Messages may be sent, where their vector is not masked.
    pub(super) open: bool,
    /// The line may be asserted.
    pub(super) line: bool,
}

/// What holds for all vectors: which event has which, and what is let through.
struct Mode {
    gates: Gates,
    /// What they are when the reset of the function is over: until then nothing is let through.
    after_reset: Option<Gates>,
    config: u16,
    queues: Vec<u16>,
}

/// An entry of the table, with its pending bit.
struct Entry {
    message: Message,
    masked: bool,
    /// Why a message is to be sent that may not be sent yet, as in the ISR status.
    pending: u8,
    /// What the embedder was last told.
    route: Option<Message>,
}

impl Entry {
    const RESET: Self =
        Self { message: Message { address: 0, data: 0 }, masked: true, pending: 0, route: None };

    /// One of its four words.
    fn word(&self, index: u64) -> u32 {
        let [low, high] = halves(self.message.address);
        match index {
            0 => low,
            1 => high,
            2 => self.message.data,
            _ => u32::from(self.masked),
        }
    }

    fn set_word(&mut self, index: u64, value: u32) {
        let [low, high] = halves(self.message.address);
        match index {
            0 => self.message.address = whole(value, high),
            1 => self.message.address = whole(low, value),
            2 => self.message.data = value,
            _ => self.masked = value & MSIX_ENTRY_MASKED != 0,
        }
    }
}

fn whole(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

impl Vectors {
    /// As after power-on, which [`Self::power_on`] must make it with what is let through then.
    pub(super) fn new(vectors: u16, queues: u16, lines: Arc<dyn Lines>, gates: Gates) -> Self {
        let queues = (0..queues).map(|_| NO_VECTOR).collect();
        Self {
            line: Line::new(Arc::clone(&lines), gates.line),
            lines,
            mode: RwLock::new(Mode { gates, after_reset: None, config: NO_VECTOR, queues }),
            entries: (0..vectors).map(|_| Mutex::new(Entry::RESET)).collect(),
        }
    }

    fn mode(&self) -> RwLockReadGuard<'_, Mode> {
        self.mode.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn mode_mut(&self) -> RwLockWriteGuard<'_, Mode> {
        self.mode.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bits of the ISR status, left as they are.
    pub(super) fn reasons(&self) -> u8 {
        self.line.reasons()
    }

    /// Reads the ISR status, which clears it and lowers the line (PISR-05, PISR-06).
    pub(super) fn take_reasons(&self) -> u8 {
        self.line.take(u8::MAX)
    }

    /// What the configuration space lets through from now on. What waited for MSI-X shows on the
    /// line when that is switched off; what the line showed is sent when it is switched on.
    /// While the function is being reset: from the end of that on.
    pub(super) fn let_through(&self, gates: Gates) {
        let mut mode = self.mode_mut();
        match &mut mode.after_reset {
            Some(later) => *later = gates,
            None => self.open(&mut mode, gates),
        }
    }

    fn open(&self, mode: &mut Mode, gates: Gates) {
        let is_switched_on = gates.enabled && !mode.gates.enabled;
        mode.gates = gates;
        self.line.set_open(gates.line);
        for (vector, entry) in (0..).zip(&self.entries) {
            let mut entry = held(entry);
            if !gates.enabled {
                self.line.add(std::mem::take(&mut entry.pending));
            }
            self.refresh(gates, vector, &mut entry);
        }
        if is_switched_on {
            let reasons = self.line.reasons();
            let queues = mode.queues.iter().map(|vector| (*vector, ISR_QUEUE));
            for (vector, reason) in queues.chain([(mode.config, ISR_CONFIG)]) {
                self.raise(gates, vector, reasons & reason);
            }
        }
    }

    /// The function is being reset: the table is as after power-on, and nothing is let through
    /// before the device has been reset, too.
    pub(super) fn power_on(&self, gates: Gates) {
        let mut mode = self.mode_mut();
        self.forget(&mut mode);
        for entry in &self.entries {
            let mut entry = held(entry);
            entry.message = Message::default();
            entry.masked = true;
        }
        self.open(&mut mode, Gates { enabled: false, open: false, line: false });
        mode.after_reset = Some(gates);
    }

    /// Nothing is pending, nothing mapped.
    fn forget(&self, mode: &mut Mode) {
        mode.config = NO_VECTOR;
        mode.queues.fill(NO_VECTOR);
        self.entries.iter().for_each(|entry| held(entry).pending = 0);
        self.line.take(u8::MAX);
    }

    /// Sends what is pending and may be sent; tells a changed route.
    fn refresh(&self, gates: Gates, vector: u16, entry: &mut Entry) {
        let open = gates.open && !entry.masked;
        let route = open.then_some(entry.message);
        if route != entry.route {
            entry.route = route;
            self.lines.route(vector, route);
        }
        if open && std::mem::take(&mut entry.pending) != 0 {
            self.lines.message(vector, entry.message);
        }
    }

    fn raise(&self, gates: Gates, vector: u16, reason: u8) {
        // One that is not there is NO_VECTOR (MSIX-11, MSIX-12).
        if let Some(entry) = self.entries.get(usize::from(vector)) {
            let mut entry = held(entry);
            entry.pending |= reason;
            self.refresh(gates, vector, &mut entry);
        }
    }

    /// What was written as a vector, as it reads back (MSIX-06, MSIX-09).
    fn mapped(&self, vector: u32) -> u16 {
        let known = u16::try_from(vector).ok();
        let known = known.filter(|vector| usize::from(*vector) < self.entries.len());
        known.unwrap_or(NO_VECTOR)
    }

    pub(super) fn map_config(&self, vector: u32) {
        self.mode_mut().config = self.mapped(vector);
    }

    pub(super) fn map_queue(&self, index: QueueIndex, vector: u32) {
        if let Some(slot) = self.mode_mut().queues.get_mut(index.slot()) {
            *slot = self.mapped(vector);
        }
    }

    pub(super) fn of_config(&self) -> u16 {
        self.mode().config
    }

    pub(super) fn of_queue(&self, index: QueueIndex) -> u16 {
        self.mode().of_queue(index)
    }

    /// A word of the table, by its offset in bytes.
    pub(super) fn read_table(&self, offset: u64) -> u32 {
        let Some((_, entry, word)) = self.entry(offset) else { return 0 };
        held(entry).word(word)
    }

    pub(super) fn write_table(&self, offset: u64, value: u32) {
        let Some((vector, entry, word)) = self.entry(offset) else { return };
        let mode = self.mode();
        let mut entry = held(entry);
        entry.set_word(word, value);
        self.refresh(mode.gates, vector, &mut entry);
    }

    /// Masks a vector or unmasks it, as a write to its entry would.
    pub(super) fn mask(&self, vector: u16, masked: bool) {
        let offset = u64::from(vector).saturating_mul(MSIX_ENTRY_LEN);
        let masked = if masked { MSIX_ENTRY_MASKED } else { 0 };
        self.write_table(offset.saturating_add(MSIX_ENTRY_CONTROL), masked);
    }

    fn entry(&self, offset: u64) -> Option<(u16, &Mutex<Entry>, u64)> {
        let vector = u16::try_from(offset / MSIX_ENTRY_LEN).ok()?;
        let entry = self.entries.get(usize::from(vector))?;
        Some((vector, entry, offset % MSIX_ENTRY_LEN / 4))
    }

    /// A word of the pending bits, by its offset in bytes.
    pub(super) fn read_pending(&self, offset: u64) -> u32 {
        let first = usize::try_from(offset.saturating_mul(8)).unwrap_or(usize::MAX);
        let entries = self.entries.iter().skip(first).take(32);
        (0..).zip(entries).fold(0, |bits, (bit, entry)| {
            bits | u32::from(held(entry).pending != 0).wrapping_shl(bit)
        })
    }
}

impl Mode {
    fn of_queue(&self, index: QueueIndex) -> u16 {
        self.queues.get(index.slot()).copied().unwrap_or(NO_VECTOR)
    }
}

impl Vectors {
    /// Adds vectors and reasons.
    pub(super) fn save(&self, pci: &mut Pci) {
        let mode = self.mode();
        pci.reasons = self.reasons();
        (pci.config_vector, pci.queue_vectors) = (mode.config, mode.queues.clone());
        let entries = self.entries.iter().map(|entry| {
            let Entry { message: Message { address, data }, masked, pending, .. } = *held(entry);
            Vector { address, data, masked, pending }
        });
        pci.vectors = entries.collect();
    }

    /// Whether a driver can have set these.
    pub(super) fn check(&self, saved: &Pci) -> Result<(), RestoreError> {
        let unless = RestoreError::unless;
        let same = saved.queue_vectors.len() == self.mode().queues.len()
            && saved.vectors.len() == self.entries.len();
        unless(same, "vectors that are not there")?;
        let mut mapped = saved.queue_vectors.iter().chain([&saved.config_vector]);
        let is_known = |vector: &u16| self.mapped(u32::from(*vector)) == *vector;
        unless(mapped.all(is_known), "an interrupt by a vector that is not there")?;
        let has_reason = |vector: &Vector| vector.pending & !(ISR_QUEUE | ISR_CONFIG) == 0;
        unless(saved.vectors.iter().all(has_reason), "a message for no reason there is")
    }

    /// Puts back vectors and reasons that have been checked, let through as is said.
    pub(super) fn restore(&self, saved: &Pci, gates: Gates) {
        let mut mode = self.mode_mut();
        (mode.config, mode.queues) = (saved.config_vector, saved.queue_vectors.clone());
        (mode.gates, mode.after_reset) = (gates, None);
        self.line.restore(saved.reasons);
        self.line.set_open(gates.line);
        for ((vector, entry), saved) in (0..).zip(&self.entries).zip(&saved.vectors) {
            let Vector { address, data, masked, pending } = *saved;
            let mut entry = held(entry);
            entry.message = Message { address, data };
            (entry.masked, entry.pending) = (masked, pending);
            self.refresh(gates, vector, &mut entry);
        }
    }

    /// Puts back reasons that another bus has had.
    pub(super) fn restore_reasons(&self, reasons: u8) {
        self.line.restore(reasons);
    }
}

impl Wires for Vectors {
    fn queue(&self, index: QueueIndex) {
        let mode = self.mode();
        if mode.gates.enabled {
            self.raise(mode.gates, mode.of_queue(index), ISR_QUEUE);
        } else {
            self.line.add(ISR_QUEUE);
        }
    }

    fn config(&self) {
        let mode = self.mode();
        self.line.add(ISR_CONFIG);
        if mode.gates.enabled {
            self.raise(mode.gates, mode.config, ISR_CONFIG);
        }
    }

    fn reset(&self) {
        let mut mode = self.mode_mut();
        self.forget(&mut mode);
        if let Some(gates) = mode.after_reset.take() {
            self.open(&mut mode, gates);
        }
    }
}

#[cfg(test)]
#[path = "msix/tests.rs"]
mod tests;
