//! Interrupts on PCI: MSI-X vectors with their masks and pending bits, or the line.
//!
//! Each vector has a lock of its own, held while its message is sent: when a write that masks it
//! has returned, no message is under way. Workers share it only where queues share the vector.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use vionet_spec::pci::{ISR_CONFIG, ISR_QUEUE, MSIX_ENTRY_LEN, MSIX_ENTRY_MASKED, NO_VECTOR};

use crate::nic::QueueIndex;
use crate::run::held;
use crate::transport::line::{Line, Wires};
use crate::transport::{Lines, Message};

/// Everything that can interrupt, and where it goes.
pub(super) struct Vectors {
    lines: Arc<dyn Lines>,
    line: Line,
    enabled: AtomicBool,
    /// Enabled, and not all of them masked: one value, so that a write to both bits is one change.
    open: AtomicBool,
    entries: Vec<Mutex<Entry>>,
    config: AtomicU16,
    queues: Vec<AtomicU16>,
}

/// An entry of the table, with its pending bit.
struct Entry {
    message: Message,
    masked: bool,
    pending: bool,
    /// What the embedder was last told.
    route: Option<Message>,
}

impl Entry {
    const RESET: Self = Self {
        message: Message { address: 0, data: 0 },
        masked: true,
        pending: false,
        route: None,
    };

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

fn halves(address: u64) -> [u32; 2] {
    let [b0, b1, b2, b3, b4, b5, b6, b7] = address.to_le_bytes();
    [u32::from_le_bytes([b0, b1, b2, b3]), u32::from_le_bytes([b4, b5, b6, b7])]
}

fn whole(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

impl Vectors {
    pub(super) fn new(vectors: u16, queues: u16, lines: Arc<dyn Lines>) -> Self {
        Self {
            line: Line::new(Arc::clone(&lines)),
            lines,
            enabled: AtomicBool::new(false),
            open: AtomicBool::new(false),
            entries: (0..vectors).map(|_| Mutex::new(Entry::RESET)).collect(),
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        }
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// The bits of the ISR status, left as they are.
    pub(super) fn reasons(&self) -> u8 {
        self.line.reasons()
    }

    /// Reads the ISR status, which clears it and lowers the line (PISR-05, PISR-06).
    pub(super) fn take_reasons(&self) -> u8 {
        self.line.take(u8::MAX)
    }

    /// What the driver has written to MSI-X message control and to the command register.
    pub(super) fn control(&self, enabled: bool, all_masked: bool, line: bool) {
        self.open.store(enabled && !all_masked, Ordering::Release);
        self.enabled.store(enabled, Ordering::Release);
        self.line.set_open(line && !enabled);
        for (vector, entry) in (0..).zip(&self.entries) {
            self.refresh(vector, &mut held(entry));
        }
    }

    /// The function is reset: the table is as after power-on.
    pub(super) fn power_on(&self) {
        self.reset();
        for entry in &self.entries {
            let mut entry = held(entry);
            entry.message = Message::default();
            entry.masked = true;
        }
        self.control(false, false, true);
    }

    /// Sends what is pending and may be sent; tells a changed route.
    fn refresh(&self, vector: u16, entry: &mut Entry) {
        let open = self.open.load(Ordering::Acquire) && !entry.masked;
        let route = open.then_some(entry.message);
        if route != entry.route {
            entry.route = route;
            self.lines.route(vector, route);
        }
        if open && std::mem::take(&mut entry.pending) {
            self.lines.message(vector, entry.message);
        }
    }

    fn raise(&self, vector: u16) {
        // One that is not there is NO_VECTOR (MSIX-11, MSIX-12).
        if let Some(entry) = self.entries.get(usize::from(vector)) {
            let mut entry = held(entry);
            entry.pending = true;
            self.refresh(vector, &mut entry);
        }
    }

    /// What was written as a vector, as it reads back (MSIX-06, MSIX-09).
    fn mapped(&self, vector: u32) -> u16 {
        let known = u16::try_from(vector).ok();
        let known = known.filter(|vector| usize::from(*vector) < self.entries.len());
        known.unwrap_or(NO_VECTOR)
    }

    pub(super) fn map_config(&self, vector: u32) {
        self.config.store(self.mapped(vector), Ordering::Release);
    }

    pub(super) fn map_queue(&self, index: QueueIndex, vector: u32) {
        if let Some(slot) = self.queues.get(index.slot()) {
            slot.store(self.mapped(vector), Ordering::Release);
        }
    }

    pub(super) fn of_config(&self) -> u16 {
        self.config.load(Ordering::Acquire)
    }

    pub(super) fn of_queue(&self, index: QueueIndex) -> u16 {
        self.queues.get(index.slot()).map_or(NO_VECTOR, |slot| slot.load(Ordering::Acquire))
    }

    /// A word of the table, by its offset in bytes.
    pub(super) fn read_table(&self, offset: u64) -> u32 {
        let Some((_, entry, word)) = self.entry(offset) else { return 0 };
        held(entry).word(word)
    }

    pub(super) fn write_table(&self, offset: u64, value: u32) {
        let Some((vector, entry, word)) = self.entry(offset) else { return };
        let mut entry = held(entry);
        entry.set_word(word, value);
        self.refresh(vector, &mut entry);
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
        (0..)
            .zip(entries)
            .fold(0, |bits, (bit, entry)| bits | u32::from(held(entry).pending).wrapping_shl(bit))
    }
}

impl Wires for Vectors {
    fn queue(&self, index: QueueIndex) {
        if self.is_enabled() {
            self.raise(self.of_queue(index));
        } else {
            self.line.add(ISR_QUEUE);
        }
    }

    fn config(&self) {
        self.line.add(ISR_CONFIG);
        if self.is_enabled() {
            self.raise(self.of_config());
        }
    }

    fn reset(&self) {
        self.config.store(NO_VECTOR, Ordering::Release);
        self.queues.iter().for_each(|slot| slot.store(NO_VECTOR, Ordering::Release));
        self.entries.iter().for_each(|entry| held(entry).pending = false);
        self.line.take(u8::MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// No message may be sent.
    struct Quiet;

    impl Lines for Quiet {
        fn level(&self, _asserted: bool) {}

        fn message(&self, _vector: u16, _message: Message) {
            panic!("all vectors are masked whenever they are enabled");
        }
    }

    #[test]
    fn vectors_that_are_enabled_and_masked_at_once_are_never_open() {
        let vectors = Vectors::new(1, 1, Arc::new(Quiet));
        vectors.map_queue(QueueIndex(0), 0);
        vectors.write_table(12, 0);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    vectors.queue(QueueIndex(0));
                }
            });
            for _ in 0..200_000 {
                vectors.control(true, true, true);
                vectors.control(false, false, true);
            }
            done.store(true, Ordering::Relaxed);
            worker.join().unwrap();
        });
    }
}
