//! The control plane behind registers: a device, brought step by step to what they say.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vionet_raw::AddressSpace;
use vionet_spec::feature::{Feature, FeatureBits};

use super::doorbell::Doorbells;
use super::line::{Wire, Wires};
use super::registers::{Field, Registers, Seen, Step, Told, size_max};
use super::{Wiring, WiringError};
use crate::device::Device;
use crate::endpoint::Endpoint;
use crate::interrupt::Interrupt;
use crate::nic::{Op, OpError, QueueIndex};
use crate::run::{LATE, Report};
use crate::state::{Body, RestoreError, SaveError};

/// What registers carry and other fronts do not.
const CARRIED: FeatureBits = FeatureBits::of(&[Feature::NOTIFICATION_DATA, Feature::SUSPEND]);

/// How many reports are kept for an embedder that does not ask for them.
const REPORTS_MAX: usize = 64;

/// What the device is at.
enum Doing {
    Step(Step),
    Commands,
    /// What the embedder has asked for.
    Asked,
}

/// An operation of the embedder's that is no register's.
enum Asked {
    Nothing,
    Wanted(Op),
    Begun,
    Done(Result<(), OpError>),
}

/// A device and its registers. Nothing here waits for a worker.
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
    asked: Asked,
    /// The endpoint has been let go of, or will have been, and is to stay.
    keeps_endpoint: bool,
    /// How often the device has come to be as everybody wants it.
    rests: u64,
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
            asked: Asked::Nothing,
            keeps_endpoint: false,
            rests: 0,
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

    pub(super) fn read(&self, field: Field) -> u32 {
        self.registers.read(field, &self.seen())
    }

    pub(super) fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.registers.read_config(offset, data, &self.seen());
    }

    pub(super) fn write(&mut self, field: Field, value: u32) {
        let seen = self.seen();
        self.registers.write(field, value, &seen);
        self.go_on();
    }

    /// Brings the device nearer to what is wanted, up to where a worker has to answer first.
    pub(super) fn go_on(&mut self) {
        loop {
            if let Some(doing) = self.doing.take() {
                let Some(result) = self.device.outcome() else {
                    self.doing = Some(doing);
                    // One of the workers may be silent.
                    self.hear();
                    break;
                };
                self.done(&doing, result);
            }
            self.hear();
            let Some((doing, op)) = self.next() else {
                self.rests = self.rests.wrapping_add(1);
                break;
            };
            self.doing = Some(doing);
            self.device.begin(op);
        }
        self.tell_config();
    }

    fn next(&mut self) -> Option<(Doing, Op)> {
        let seen = self.seen();
        if let Some(step) = self.registers.next_step(&seen) {
            return Some((Doing::Step(step), self.op(step)));
        }
        if let Asked::Wanted(_) = &self.asked
            && let Asked::Wanted(op) = std::mem::replace(&mut self.asked, Asked::Begun)
        {
            return Some((Doing::Asked, op));
        }
        if std::mem::take(&mut self.keeps_endpoint) {
            self.asked = Asked::Begun;
            return Some((Doing::Asked, self.device.as_before()));
        }
        std::mem::take(&mut self.commands_due).then_some((Doing::Commands, Op::Commands))
    }

    /// Whether there is nothing to do; after [`Self::go_on`].
    pub(super) fn is_at_rest(&self) -> bool {
        self.doing.is_none()
    }

    pub(super) fn rests(&self) -> u64 {
        self.rests
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
        let step = match doing {
            Doing::Step(step) => step,
            Doing::Commands => return self.device.obeyed(),
            Doing::Asked => return self.asked = Asked::Done(result),
        };
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
                // The host's trouble is no reason to have the driver start afresh.
                Report::Host { .. } | Report::Endpoint(_) | Report::Silent(_) => {}
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
        self.go_on();
        self.look_again();
        self.reports.pop_front()
    }

    /// Calls for attention in a while if a worker has to answer first: one that is stuck is to be
    /// broken off, and one that is silent reported, whether the driver looks or not.
    pub(super) fn look_again(&self) {
        if self.doing.is_some() {
            self.device.call_again(LATE);
        }
    }

    pub(super) fn doorbell(&self, index: QueueIndex) -> Option<Arc<OwnedFd>> {
        self.doorbells.of(index).cloned()
    }

    pub(super) fn pause(&mut self) {
        self.registers.paused = true;
    }

    pub(super) const fn is_paused(&self) -> bool {
        self.registers.paused
    }

    pub(super) fn resume(&mut self) {
        self.registers.paused = false;
        self.registers.try_again();
    }

    pub(super) fn reset(&mut self) {
        let seen = self.seen();
        self.registers.write(Field::Status, 0, &seen);
        self.registers.paused = false;
    }

    /// A reset of the whole function, also of one that the embedder has paused.
    pub(super) fn reset_function(&mut self) {
        self.registers.begin_function_reset();
    }

    /// Whether a reset of the function goes on.
    pub(super) fn is_away(&self) -> bool {
        self.registers.is_away()
    }

    /// Whether the bus lets the device access memory.
    pub(super) fn let_master(&mut self, on: bool) {
        self.registers.is_master = on;
    }

    /// The memory of the queues, which they may be on their way to.
    pub(super) const fn memory(&self) -> &Arc<AddressSpace> {
        self.registers.space()
    }

    pub(super) fn set_memory(&mut self, memory: Arc<AddressSpace>) {
        self.registers.move_to(memory);
    }

    /// Asks for an operation that is no register's: link, limits, announcement.
    pub(super) fn ask(&mut self, op: Op) {
        self.asked = Asked::Wanted(op);
    }

    /// How the operation asked for has ended, if it has.
    pub(super) fn answer(&mut self) -> Option<Result<(), OpError>> {
        if !matches!(self.asked, Asked::Done(_)) {
            return None;
        }
        match std::mem::replace(&mut self.asked, Asked::Nothing) {
            Asked::Done(result) => Some(result),
            Asked::Nothing | Asked::Wanted(_) | Asked::Begun => None,
        }
    }

    /// Takes back what was asked for, unless it was begun.
    pub(super) fn unask(&mut self) {
        if matches!(self.asked, Asked::Wanted(_)) {
            self.asked = Asked::Nothing;
        }
    }

    /// The device as it is, if it is paused, but for what is the bus's; at rest.
    pub(super) fn save(&self) -> Result<Body, SaveError> {
        if !self.registers.paused {
            return Err(SaveError::NotPaused);
        }
        let mut body = self.device.save_body()?;
        self.registers.save(&mut body);
        body.driver.config_due |= self.config_due;
        Ok(body)
    }

    /// Takes a state but for what is the bus's; the device is paused then. At rest.
    pub(super) fn restore(&mut self, saved: &Body) -> Result<(), RestoreError> {
        if !self.registers.are_untouched() {
            return Err(RestoreError::InUse);
        }
        self.registers.check(saved)?;
        let memory = Op::Memory(Arc::clone(self.registers.space()));
        // Memory is never refused.
        let (Ok(()) | Err(_)) = self.device.apply(memory);
        self.device.restore_body(saved)?;
        self.registers.restore(saved);
        self.config_due = saved.driver.config_due;
        self.doorbells.set_with_data(self.registers.has(Feature::NOTIFICATION_DATA));
        Ok(())
    }

    /// Puts another endpoint into the device, which has let go of the queues of the one before.
    pub(super) fn put_endpoint(&mut self, with: Option<Box<dyn Endpoint>>) -> Box<dyn Endpoint> {
        self.device.put_endpoint(with)
    }

    /// Takes back that the endpoint was to be let go of, now or when that has been done.
    pub(super) fn keep_endpoint(&mut self) {
        let was_begun = matches!(self.asked, Asked::Begun);
        self.unask();
        self.keeps_endpoint = was_begun;
    }
}

/// What an embedder can do with a device, whatever registers it is behind.
macro_rules! verbs {
    ($nic:ident) => {
        impl $nic {
            /// The eventfd of a queue's kicks: for an ioeventfd, or a loop of one's own.
            #[must_use]
            pub fn doorbell(&self, index: QueueIndex) -> Option<Arc<OwnedFd>> {
                self.plane.look(|plane| plane.doorbell(index))
            }

            /// How many queues the device has.
            #[must_use]
            pub fn queues(&self) -> u16 {
                self.plane.look(|plane| plane.registers.queue_count())
            }

            /// Calls `see` with the descriptor that is readable when [`Self::tend`] is to be
            /// called: the driver has sent commands, a worker has something to say, or a step that
            /// an access did not wait for can go on.
            pub fn with_attention<R>(&self, see: impl FnOnce(BorrowedFd<'_>) -> R) -> R {
                see(self.plane.attention())
            }

            /// Does what waits, without waiting; then the next report, if there is one. Call it
            /// until there is none.
            pub fn tend(&self) -> Option<Report> {
                self.plane.look(Plane::tend)
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
                self.plane.settle(Plane::pause)
            }

            /// As [`Self::pause`], but a pause that does not come about in time is taken back.
            ///
            /// # Errors
            /// As for [`Self::pause`]; the device goes on then, or stays paused if it was.
            pub fn try_pause(&self) -> Result<(), Unsettled> {
                let note = |plane: &mut Plane<_>| {
                    let was_paused = plane.is_paused();
                    plane.pause();
                    was_paused
                };
                self.plane.try_settle(note, |plane, was_paused| {
                    if !was_paused {
                        plane.resume();
                    }
                })
            }

            /// Starts every queue where [`Self::pause`] has stopped it, and tries those again that
            /// the host could not start.
            ///
            /// # Errors
            /// As for [`Self::pause`].
            pub fn resume(&self) -> Result<(), Unsettled> {
                self.plane.settle(Plane::resume)
            }

            /// Gives every queue other memory, more or less of it than before. When this returns
            /// the memory of before is not touched any more.
            ///
            /// # Errors
            /// As for [`Self::pause`].
            pub fn set_memory(&self, memory: Arc<AddressSpace>) -> Result<(), Unsettled> {
                self.plane.settle(|plane| plane.set_memory(memory))
            }

            /// As [`Self::set_memory`], but what does not come about in time is taken back.
            ///
            /// # Errors
            /// As for [`Self::pause`]; queues go on in the memory of before then.
            pub fn try_set_memory(&self, memory: Arc<AddressSpace>) -> Result<(), Unsettled> {
                let note = |plane: &mut Plane<_>| {
                    let before = Arc::clone(plane.memory());
                    plane.set_memory(memory);
                    before
                };
                self.plane.try_settle(note, Plane::set_memory)
            }

            /// The link is up, or down: the driver is told.
            ///
            /// # Errors
            /// [`OpError::Busy`] when a worker keeps it from being done within 11 seconds: it
            /// is not done then, or later if it was begun.
            pub fn set_link(&self, up: bool) -> Result<(), OpError> {
                self.plane.perform(Op::SetLink(up))
            }

            /// Holds the guest to these rates, or to none.
            ///
            /// # Errors
            /// [`OpError::Busy`] when a worker keeps it from being done within 11 seconds: it
            /// is not done then, or later if it was begun.
            pub fn set_limits(&self, limits: Option<Limits>) -> Result<(), OpError> {
                self.plane.perform(Op::SetLimits(limits))
            }

            /// Has the guest's addresses made known, as after a migration.
            ///
            /// # Errors
            /// [`OpError::Busy`] when a worker keeps it from being done within 11 seconds: it
            /// is not done then, or later if it was begun.
            pub fn announce(&self) -> Result<(), OpError> {
                let mac = self.plane.look(|plane| plane.device().mac());
                self.plane.perform(Op::Announce(mac))
            }

            /// Puts another endpoint in the place of the one there is, under a running driver,
            /// which is shown no difference: what the new one cannot do is done in software. No
            /// frame moves meanwhile. The old endpoint has been dropped when `make` is called, so
            /// a tap is free; of the NIC, `make` may call no verb but `snapshot`. What the guest
            /// has sent and the old one has not taken goes to the new one. Afterwards,
            /// [`Self::announce`] tells the new network where the guest is.
            ///
            /// # Errors
            /// What `make` says; or the new endpoint carries less than the driver has been shown,
            /// or cannot be opened. Then the NIC has none: its link is down until this is done
            /// again. [`OpError::Busy`] when a worker does not give its pair back within 11
            /// seconds: the old endpoint stays.
            pub fn replace_endpoint(
                &self,
                make: impl FnOnce() -> Result<Box<dyn Endpoint>, OpenError>,
            ) -> Result<(), OpError> {
                self.plane.replace_endpoint(make)
            }

            /// The device as it is now: for people who look.
            #[must_use]
            pub fn snapshot(&self) -> Snapshot {
                self.plane.look(|plane| plane.device().snapshot())
            }
        }
    };
}
pub(super) use verbs;
