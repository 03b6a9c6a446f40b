//! The interrupt line and why it is asserted: ISR status on PCI, InterruptStatus on MMIO.

use std::sync::{Arc, Mutex};

use super::Lines;
use crate::interrupt::Interrupt;
use crate::nic::QueueIndex;
use crate::run::held;

/// How a register file interrupts the driver.
pub(super) trait Wires: Send + Sync + 'static {
    /// A queue has used buffers.
    fn queue(&self, index: QueueIndex);
    /// The configuration has changed, or the device needs a reset.
    fn config(&self);
    /// The driver starts afresh: nothing is pending, nothing mapped.
    fn reset(&self);
}

/// One source of interrupts, as the device knows it.
pub(super) struct Wire<W> {
    pub(super) wires: Arc<W>,
    /// The queue; `None` for the configuration.
    pub(super) queue: Option<QueueIndex>,
}

impl<W: Wires> Interrupt for Wire<W> {
    fn raise(&self) {
        match self.queue {
            Some(index) => self.wires.queue(index),
            None => self.wires.config(),
        }
    }
}

/// A line that is asserted while a reason is there and the gate is open.
pub(super) struct Line {
    lines: Arc<dyn Lines>,
    state: Mutex<State>,
}

struct State {
    reasons: u8,
    open: bool,
    asserted: bool,
}

impl Line {
    pub(super) fn new(lines: Arc<dyn Lines>, open: bool) -> Self {
        let state = State { reasons: 0, open, asserted: false };
        Self { lines, state: Mutex::new(state) }
    }

    pub(super) fn reasons(&self) -> u8 {
        held(&self.state).reasons
    }

    /// Puts back the reasons of a saved state.
    pub(super) fn restore(&self, reasons: u8) {
        self.change(|state| state.reasons = reasons);
    }

    pub(super) fn add(&self, reason: u8) {
        self.change(|state| state.reasons |= reason);
    }

    /// Takes reasons away and tells which there were.
    pub(super) fn take(&self, reasons: u8) -> u8 {
        let mut before = 0;
        self.change(|state| {
            before = state.reasons;
            state.reasons &= !reasons;
        });
        before
    }

    /// Whether reasons show on the line.
    pub(super) fn set_open(&self, open: bool) {
        self.change(|state| state.open = open);
    }

    /// Levels are told under the lock: in the order in which they follow each other.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = held(&self.state);
        change(&mut state);
        let asserted = state.open && state.reasons != 0;
        if state.asserted != asserted {
            state.asserted = asserted;
            self.lines.level(asserted);
        }
    }
}
