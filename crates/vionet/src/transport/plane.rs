//! The control plane behind registers: a device, brought step by step to what they say.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use vionet_raw::AddressSpace;
use vionet_spec::feature::{Feature, FeatureBits};

use super::doorbell::Doorbells;
use super::line::{Wire, Wires};
use super::registers::{Field, Registers, Seen, Step, Told, size_max};
use super::{Wiring, WiringError};
use crate::device::Device;
use crate::interrupt::Interrupt;
use crate::nic::{Op, OpError, QueueIndex};
use crate::run::{Report, clock};

/// What registers carry and other fronts do not.
const CARRIED: FeatureBits = FeatureBits::of(&[Feature::NOTIFICATION_DATA, Feature::SUSPEND]);

/// How long an access waits for workers.
const PATIENCE: Duration = Duration::from_millis(20);

/// How long the embedder's own verbs wait: longer than a worker may take to answer.
const SETTLE_MAX: Duration = Duration::from_secs(11);

/// How many reports are kept for an embedder that does not ask for them.
const REPORTS_MAX: usize = 64;

/// A worker has not given back what it works on in time; it is tried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsettled;

impl fmt::Display for Unsettled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a worker of the device does not come to rest; ask again, or drop the device")
    }
}

impl std::error::Error for Unsettled {}

/// What the device is at.
enum Doing {
    Step(Step),
    Commands,
}

/// A device and its registers; behind one lock.
pub(super) struct Plane<W> {
    device: Device,
    pub(super) registers: Registers,
    wires: Arc<W>,
    doorbells: Arc<Doorbells>,
    doing: Option<Doing>,
    commands_due: bool,
    /// An interrupt for the configuration came while the driver had suspended the device.
    config_due: bool,
    reports: VecDeque<Report>,
}

impl<W: Wires> Plane<W> {
    pub(super) fn new(device: Device, wiring: &Wiring, wires: Arc<W>) -> Result<Self, WiringError> {
        let translated = wiring.memory.is_translated();
        let device = device.behind_registers(CARRIED, translated).map_err(WiringError)?;
        let queues = device.queues();
        let doorbells = Arc::new(Doorbells::new(queues).map_err(WiringError)?);
        let memory = Arc::clone(&wiring.memory);
        let registers = Registers::new(queues, size_max(wiring.queue_size), memory);
        Ok(Self {
            device,
            registers,
            wires,
            doorbells,
            doing: None,
            commands_due: false,
            config_due: false,
            reports: VecDeque::new(),
        })
    }

    pub(super) fn doorbells(&self) -> &Arc<Doorbells> {
        &self.doorbells
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    fn seen(&self) -> Seen {
        Seen {
            offer: self.device.offer(),
            config: self.device.config_space(),
            generation: self.device.config_generation(),
        }
    }

    pub(super) fn read(&mut self, field: Field) -> u32 {
        // Whoever waits for something looks here.
        self.go_on(Duration::ZERO);
        self.registers.read(field, &self.seen())
    }

    pub(super) fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        self.go_on(Duration::ZERO);
        self.registers.read_config(offset, data, &self.seen());
    }

    pub(super) fn write(&mut self, field: Field, value: u32) {
        // What was begun before is given its time: not every driver polls for the end of a reset.
        self.go_on(PATIENCE);
        let seen = self.seen();
        self.registers.write(field, value, &seen);
        self.go_on(PATIENCE);
    }

    /// Brings the device nearer to what the registers say. Waits for workers, not longer than
    /// `patience`.
    fn go_on(&mut self, patience: Duration) {
        let start = clock();
        loop {
            if let Some(doing) = self.doing.take() {
                let left = patience.saturating_sub(start.elapsed());
                let Some(result) = self.device.outcome(left) else {
                    self.doing = Some(doing);
                    break;
                };
                self.done(&doing, result);
            }
            self.hear();
            let seen = self.seen();
            if let Some(step) = self.registers.next_step(&seen) {
                let op = self.op(step);
                self.doing = Some(Doing::Step(step));
                self.device.begin(op);
            } else if std::mem::take(&mut self.commands_due) {
                self.doing = Some(Doing::Commands);
                self.device.begin(Op::Commands);
            } else {
                break;
            }
        }
        self.tell_config();
    }

    fn op(&mut self, step: Step) -> Op {
        match step {
            Step::Reset => Op::Reset,
            Step::Negotiate(bits) => Op::Negotiate(bits),
            Step::Memory => Op::Memory(Arc::clone(self.registers.space())),
            Step::Wire(index) => {
                if let Some(bell) = self.doorbells.of(index) {
                    self.device.place_kick(index, bell);
                }
                Op::SetInterrupt(index, Some(self.wire(Some(index))))
            }
            Step::Enable(index, on) => Op::EnableQueue(index, on),
            Step::Start { index, setup, from } => {
                let cursor = from.unwrap_or_else(|| self.device.first_cursor());
                Op::StartQueue { index, setup, cursor }
            }
            Step::Stop(index) => Op::StopQueue(index),
        }
    }

    fn wire(&self, queue: Option<QueueIndex>) -> Arc<dyn Interrupt> {
        Arc::new(Wire { wires: Arc::clone(&self.wires), queue })
    }

    fn done(&mut self, doing: &Doing, result: Result<(), OpError>) {
        // What was reported before belongs to the life that may just have ended.
        self.hear();
        let Doing::Step(step) = doing else { return self.device.obeyed() };
        let cursor = match step {
            Step::Stop(index) => self.device.cursor(*index),
            Step::Start { index: _, .. } => {
                if let Err(OpError::Endpoint(error)) = &result {
                    self.device.put(Report::Endpoint(error.clone()));
                }
                None
            }
            Step::Reset => {
                self.wires.reset();
                self.config_due = false;
                None
            }
            Step::Negotiate(_) | Step::Memory | Step::Wire(_) | Step::Enable(..) => None,
        };
        let told = self.registers.did(*step, result, cursor);
        self.doorbells.set_with_data(self.registers.has(Feature::NOTIFICATION_DATA));
        self.tell(told);
    }

    /// Takes note of what workers have reported.
    fn hear(&mut self) {
        while let Some(report) = self.device.report() {
            match &report {
                Report::Fault(_) | Report::Lost(_) => {
                    let told = self.registers.broken();
                    self.tell(told);
                }
                Report::ConfigChanged => self.config_due = true,
                Report::Host { .. } | Report::Endpoint(_) => {}
            }
            if report != Report::ConfigChanged {
                self.keep(report);
            }
        }
    }

    fn tell(&mut self, told: Told) {
        if told == Told::NeedsReset {
            self.wires.config();
        }
    }

    /// Interrupts for a changed configuration, unless the driver has suspended the device: then
    /// when it resumes (SUS-07, SUS-08).
    fn tell_config(&mut self) {
        if self.config_due && self.registers.is_up() {
            self.config_due = false;
            self.wires.config();
        }
    }

    fn keep(&mut self, report: Report) {
        if self.reports.len() >= REPORTS_MAX {
            self.reports.pop_front();
        }
        self.reports.push_back(report);
    }

    /// Obeys the driver's commands and goes on with what waits; then the next report.
    pub(super) fn tend(&mut self) -> Option<Report> {
        self.commands_due |= self.device.silence();
        self.go_on(Duration::ZERO);
        self.reports.pop_front()
    }

    pub(super) fn attention(&self) -> BorrowedFd<'_> {
        self.device.reports()
    }

    pub(super) fn doorbell(&self, index: QueueIndex) -> Option<Arc<OwnedFd>> {
        self.doorbells.of(index).cloned()
    }

    /// Goes on until there is nothing to do about the registers.
    fn settle(&mut self) -> Result<(), Unsettled> {
        self.go_on(SETTLE_MAX);
        if self.doing.is_none() { Ok(()) } else { Err(Unsettled) }
    }

    pub(super) fn pause(&mut self) -> Result<(), Unsettled> {
        self.registers.paused = true;
        self.settle()
    }

    pub(super) fn resume(&mut self) -> Result<(), Unsettled> {
        self.registers.paused = false;
        self.registers.try_again();
        self.settle()
    }

    pub(super) fn reset(&mut self) -> Result<(), Unsettled> {
        let seen = self.seen();
        self.registers.write(Field::Status, 0, &seen);
        self.registers.paused = false;
        self.settle()
    }

    pub(super) fn set_memory(&mut self, memory: Arc<AddressSpace>) -> Result<(), Unsettled> {
        self.registers.move_to(memory);
        self.settle()
    }

    /// An operation that is no register's: link, limits, announcement.
    pub(super) fn apply(&mut self, op: Op) -> Result<(), OpError> {
        self.settle().map_err(|Unsettled| OpError::Busy)?;
        let result = self.device.apply(op);
        self.go_on(Duration::ZERO);
        result
    }
}

/// What an embedder can do with a device, whatever registers it is behind.
macro_rules! verbs {
    ($nic:ident) => {
        impl $nic {
            /// The eventfd of a queue's kicks: for an ioeventfd, or a loop of one's own.
            #[must_use]
            pub fn doorbell(&self, index: QueueIndex) -> Option<Arc<OwnedFd>> {
                held(&self.plane).doorbell(index)
            }

            /// How many queues the device has.
            #[must_use]
            pub fn queues(&self) -> u16 {
                held(&self.plane).registers.queue_count()
            }

            /// Calls `see` with the descriptor that is readable when [`Self::tend`] is to be
            /// called: the driver has sent commands, a worker has something to say, or a step that
            /// an access did not wait for can go on.
            pub fn with_attention<R>(&self, see: impl FnOnce(BorrowedFd<'_>) -> R) -> R {
                see(held(&self.plane).attention())
            }

            /// Does what waits, without waiting; then the next report, if there is one. Call it
            /// until there is none.
            pub fn tend(&self) -> Option<Report> {
                held(&self.plane).tend()
            }

            /// A thread that tends the NIC, and calls `tell` with each report. It may be dropped
            /// before the NIC or after it.
            ///
            /// # Errors
            /// When the system has no thread or descriptor left.
            pub fn keeper(
                self: &Arc<Self>,
                tell: impl FnMut(Report) + Send + 'static,
            ) -> std::io::Result<$crate::transport::Keeper> {
                let attention = self.with_attention(|fd| fd.try_clone_to_owned())?;
                let nic = Arc::downgrade(self);
                let tend = move || nic.upgrade().and_then(|nic| nic.tend());
                $crate::transport::Keeper::start(attention, tend, tell)
            }

            /// Stops every queue: when this returns, guest memory is not touched any more. What
            /// the driver writes meanwhile is kept, and its kicks are not lost.
            ///
            /// # Errors
            /// When a worker does not give its pair back within 11 seconds.
            pub fn pause(&self) -> Result<(), Unsettled> {
                held(&self.plane).pause()
            }

            /// Starts every queue where [`Self::pause`] has stopped it, and tries those again that
            /// the host could not start.
            ///
            /// # Errors
            /// As for [`Self::pause`].
            pub fn resume(&self) -> Result<(), Unsettled> {
                held(&self.plane).resume()
            }

            /// Gives every queue other memory, more or less of it than before. When this returns
            /// the memory of before is not touched any more.
            ///
            /// # Errors
            /// As for [`Self::pause`].
            pub fn set_memory(&self, memory: Arc<AddressSpace>) -> Result<(), Unsettled> {
                held(&self.plane).set_memory(memory)
            }

            /// The link is up, or down: the driver is told.
            ///
            /// # Errors
            /// When the operation before is not done yet.
            pub fn set_link(&self, up: bool) -> Result<(), OpError> {
                held(&self.plane).apply(Op::SetLink(up))
            }

            /// Holds the guest to these rates, or to none.
            ///
            /// # Errors
            /// When the operation before is not done yet.
            pub fn set_limits(&self, limits: Option<Limits>) -> Result<(), OpError> {
                held(&self.plane).apply(Op::SetLimits(limits))
            }

            /// Has the guest's addresses made known, as after a migration.
            ///
            /// # Errors
            /// When the operation before is not done yet.
            pub fn announce(&self) -> Result<(), OpError> {
                let mut plane = held(&self.plane);
                let mac = plane.device().mac();
                plane.apply(Op::Announce(mac))
            }

            /// The device as it is now: for people who look.
            #[must_use]
            pub fn snapshot(&self) -> Snapshot {
                held(&self.plane).device().snapshot()
            }
        }
    };
}
pub(super) use verbs;
