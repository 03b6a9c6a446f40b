//! A whole device in one handle: the control plane, its endpoint, its workers.

mod moves;

use std::boxed::Box;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;
use std::{fmt, io};

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use vionet_frame::guard::Guard;
use vionet_queue::{Cursor, Format};
use vionet_spec::feature::FeatureBits;
use vionet_spec::net::CONFIG_LEN;

use crate::config::NicConfig;
use crate::endpoint::{Endpoint, EndpointFault, Inlet, OpenError, OpenKind, Settings};
use crate::negotiate::Negotiated;
use crate::nic::{Effect, Effects, Nic, Op, OpError, PairIndex, QueueIndex, QueueRole};
use crate::pair::Limits;
use crate::run::{
    Answer, Herald, Homecomings, Kicks, LATE, Recall, Report, ReportBox, Seat, Workers, ring,
    silence,
};
use crate::snapshot::Snapshot;
use crate::stats::{ControlStats, PairStats};

/// Why a device could not be made.
#[derive(Debug)]
pub struct DeviceError(io::Error);

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the workers of the device could not be started: {}", self.0)
    }
}

impl std::error::Error for DeviceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// A network device with its endpoint and a seat at a worker for each queue pair. Dropping it takes
/// the pairs back, ends the workers that nobody else has a seat at, and drops the endpoint then.
pub struct Device {
    nic: Nic,
    // Before the endpoint: its queues are gone when the endpoint goes.
    seats: Vec<Seat>,
    endpoint: Box<dyn Endpoint>,
    kicks: Vec<Option<Arc<OwnedFd>>>,
    /// The eventfd that the driver kicks the control queue with, while that runs.
    control: Option<Arc<OwnedFd>>,
    /// Behind a platform or registers: readable when it is time for commands that wait for a
    /// translation, or for another look at a worker that does not answer.
    timer: Option<OwnedFd>,
    reports: ReportBox,
    inbox: Receiver<Report>,
    /// Readable when `reports`, `control` or `timer` is.
    attention: Arc<OwnedFd>,
    /// Raises interrupts whose descriptors are a stranger's; without it they are raised at once.
    herald: Option<Herald>,
    /// What is still to be brought about of the operation begun.
    effects: Effects,
    /// Pairs that the operation waits for.
    recalls: Vec<(PairIndex, Recall)>,
    /// How the operation begun has ended.
    done: Option<Result<(), OpError>>,
}

impl Device {
    /// A device in its reset state in front of `endpoint`, with a thread for each pair.
    ///
    /// # Errors
    /// When the system has no thread or descriptor left for its workers.
    pub fn new(config: NicConfig, endpoint: Box<dyn Endpoint>) -> Result<Self, DeviceError> {
        Self::with_workers(config, endpoint, &Workers::default())
    }

    /// The same, its pairs hosted by `workers`, which other devices may use too.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn with_workers(
        config: NicConfig,
        endpoint: Box<dyn Endpoint>,
        workers: &Workers,
    ) -> Result<Self, DeviceError> {
        let secret = RandomState::new().hash_one(config.mac);
        let nic = Nic::new(config, endpoint.capabilities()).with_secret(secret);
        let (reports, inbox) = ReportBox::new().map_err(DeviceError)?;
        let attention = Arc::new(watch(reports.bell()).map_err(DeviceError)?);
        let seats = (0..nic.pair_count())
            .map(|index| workers.seat(PairIndex(index), reports.clone()))
            .collect::<Result<_, _>>()
            .map_err(DeviceError)?;
        let kicks = (0..nic.queues()).map(|_| None).collect();
        Ok(Self {
            nic,
            seats,
            endpoint,
            kicks,
            control: None,
            timer: None,
            reports,
            inbox,
            attention,
            herald: Some(Herald::default()),
            effects: Effects::default(),
            recalls: Vec::new(),
            done: None,
        })
    }

    /// The same behind an IOMMU, as [`Nic::behind_platform`].
    ///
    /// # Errors
    /// When the system has no descriptor left for a timer.
    pub fn behind_platform(mut self) -> Result<Self, DeviceError> {
        self.set_platform().map_err(DeviceError)?;
        Ok(self)
    }

    fn set_platform(&mut self) -> io::Result<()> {
        self.nic.set_platform();
        self.add_timer()
    }

    fn add_timer(&mut self) -> io::Result<()> {
        if self.timer.is_none() {
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            epoll::add(&self.attention, &timer, EventData::new_u64(2), EventFlags::IN)?;
            self.timer = Some(timer);
        }
        Ok(())
    }

    /// The same behind registers of ours: interrupts are the embedder's own, and what registers
    /// alone can carry is offered. Behind an IOMMU if its memory is (`translated`).
    pub(crate) fn behind_registers(
        mut self,
        more: FeatureBits,
        translated: bool,
    ) -> io::Result<Self> {
        self.herald = None;
        self.nic.offer_also(more);
        if translated {
            self.set_platform()?;
        }
        self.add_timer()?;
        Ok(self)
    }

    /// The same under a policy of the host, as [`Nic::guarded`].
    #[must_use]
    pub fn guarded(mut self, guard: Guard) -> Self {
        self.nic.set_guard(guard);
        self
    }

    /// The host's rate limits, if there are any.
    #[must_use]
    pub fn limits(&self) -> Option<&Limits> {
        self.nic.limits()
    }

    /// What the host side is, as the user wrote it.
    #[must_use]
    pub fn endpoint_name(&self) -> String {
        self.endpoint.name()
    }

    /// The features to show to the driver.
    #[must_use]
    pub fn offer(&self) -> FeatureBits {
        self.nic.offer()
    }

    /// What was agreed, once it was.
    #[must_use]
    pub fn negotiated(&self) -> Option<&Negotiated> {
        self.nic.negotiated()
    }

    /// The device configuration space.
    #[must_use]
    pub fn config_space(&self) -> [u8; CONFIG_LEN] {
        self.nic.config_space()
    }

    /// The MTU shown to the driver, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.nic.mtu()
    }

    /// Differs whenever the configuration space differs.
    #[must_use]
    pub fn config_generation(&self) -> u8 {
        self.nic.config_generation()
    }

    /// The guest's MAC address now.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.nic.mac()
    }

    /// How many pairs frames are spread over now.
    #[must_use]
    pub fn active_pairs(&self) -> u16 {
        self.nic.active_pairs()
    }

    /// Whether the link is up.
    #[must_use]
    pub fn is_link_up(&self) -> bool {
        self.nic.is_link_up()
    }

    /// How many queues the device has, the control queue among them.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.nic.queues()
    }

    /// The position of a stopped queue.
    #[must_use]
    pub fn cursor(&self, index: QueueIndex) -> Option<Cursor> {
        self.nic.cursor(index)
    }

    /// The device as it is now, as [`Nic::snapshot`].
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.nic.snapshot()
    }

    /// The counters of each pair, in pair order.
    pub fn stats(&self) -> impl Iterator<Item = &Arc<PairStats>> {
        self.nic.stats()
    }

    /// The counters of the control queue.
    #[must_use]
    pub fn control_stats(&self) -> &Arc<ControlStats> {
        self.nic.control_stats()
    }

    /// Does what is asked; returns when it is done and every pair runs again. A pair whose worker
    /// does not answer for ten seconds is given up, and reported.
    ///
    /// # Errors
    /// When it was refused; nothing has changed then.
    pub fn apply(&mut self, op: Op) -> Result<(), OpError> {
        // Of one that was begun before, only the end matters here.
        let (Some(_) | None) = self.finish();
        self.begin(op);
        self.finish().unwrap_or(Err(OpError::Busy))
    }

    /// Begins an operation; [`Self::outcome`] says when it is done.
    pub(crate) fn begin(&mut self, op: Op) {
        if matches!(op, Op::Reset) {
            self.kicks.iter_mut().for_each(|kick| *kick = None);
        }
        self.nic.apply(op, &mut self.effects);
        self.carry_out();
    }

    /// How the operation begun has ended, if it has. Never waits: where it has not,
    /// [`Self::homecomings`] tells when to ask again.
    pub(crate) fn outcome(&mut self) -> Option<Result<(), OpError>> {
        while self.done.is_none() && self.take_home(Duration::ZERO) {}
        self.done.take()
    }

    /// What counts the pairs that come home.
    pub(crate) fn homecomings(&self) -> &Arc<Homecomings> {
        self.reports.homecomings()
    }

    fn finish(&mut self) -> Option<Result<(), OpError>> {
        while self.done.is_none() && !self.recalls.is_empty() {
            self.take_home(LATE);
            self.give_up();
        }
        self.done.take()
    }

    /// Takes pairs that have come home, and goes on with the operation. Waits for one at most.
    /// Whether one has come, or never will.
    fn take_home(&mut self, patience: Duration) -> bool {
        let mut left = patience;
        let mut home = Vec::new();
        self.recalls.retain_mut(|(index, recall)| {
            match recall.wait(std::mem::take(&mut left)) {
                Answer::Home(pair) => home.push((*index, Some(pair))),
                Answer::Lost => home.push((*index, None)),
                Answer::Gone => {
                    self.reports.put(Report::Lost(*index));
                    home.push((*index, None));
                }
                Answer::Silent => {
                    self.reports.put(Report::Silent(*index));
                    return true;
                }
                Answer::NotYet => return true,
            }
            false
        });
        let come = !home.is_empty();
        for (index, pair) in home {
            self.nic.returned(index, pair, &mut self.effects);
        }
        self.carry_out();
        come
    }

    /// Gives pairs up whose workers do not answer.
    fn give_up(&mut self) {
        for (index, _) in self.recalls.extract_if(.., |(_, recall)| recall.is_silent()) {
            self.nic.returned(index, None, &mut self.effects);
        }
        self.carry_out();
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.effects.next_effect() {
            match effect {
                Effect::Open(settings) => self.open(&settings),
                Effect::Adapt(settings) => {
                    // What the endpoint brings against the agreement is dropped and counted.
                    if let Err(error) = self.endpoint.adapt(&settings) {
                        self.reports.put(Report::Endpoint(error));
                    }
                }
                Effect::Interrupt(interrupt) => match &mut self.herald {
                    Some(herald) => herald.raise(&interrupt),
                    None => interrupt.raise(),
                },
                Effect::ControlFault(fault) => self.reports.put(Report::Fault(fault)),
                Effect::ConfigChanged => self.reports.put(Report::ConfigChanged),
                Effect::Recall(index) => {
                    let bell = self.herald.is_none().then_some(&self.reports);
                    match self.seats.get(usize::from(index.0)) {
                        Some(seat) => self.recalls.push((index, seat.recall(bell))),
                        None => self.nic.returned(index, None, &mut self.effects),
                    }
                }
                Effect::Start(pair) => {
                    let kicks = self.kicks_of(pair.index());
                    if let Some(seat) = self.seats.get(usize::from(pair.index().0)) {
                        seat.start(pair, kicks);
                    }
                }
                Effect::Done(outcome) => {
                    self.done = Some(outcome);
                    self.watch_control();
                }
            }
        }
    }

    fn open(&mut self, settings: &Settings) {
        let queues = self.endpoint.open(settings);
        let inlets = if settings.spreads { settings.pairs } else { 0 };
        let inlets: io::Result<Vec<_>> = (0..inlets).map(|_| Inlet::new().map(Arc::new)).collect();
        let queues = queues.and_then(|queues| {
            self.nic.set_inlets(inlets.map_err(|cause| OpenError {
                kind: OpenKind::Host,
                reason: format!("no descriptor for a queue pair: {cause}"),
            })?);
            Ok(queues)
        });
        self.nic.opened(queues, &mut self.effects);
    }

    /// Where a queue begins that has never run, by what was agreed.
    pub(crate) fn first_cursor(&self) -> Cursor {
        let agreed = self.nic.negotiated();
        Cursor::start(agreed.map_or(Format::Split, |agreed| agreed.ring().format))
    }

    /// The eventfd of a queue's kicks, from when its pair is next sent out.
    pub(crate) fn place_kick(&mut self, index: QueueIndex, kick: &Arc<OwnedFd>) {
        if let Some(slot) = self.kicks.get_mut(index.slot()) {
            *slot = Some(Arc::clone(kick));
        }
    }

    /// The eventfd that the driver kicks a queue with; before the queue starts or while it runs.
    ///
    /// # Errors
    /// When there is no such queue.
    pub fn set_kick(&mut self, index: QueueIndex, kick: Option<OwnedFd>) -> Result<(), OpError> {
        let slot = self.kicks.get_mut(usize::from(index.0));
        let slot = slot.ok_or(OpError::NoSuchQueue(index))?;
        let old = core::mem::replace(slot, kick.map(Arc::new));
        // Before features are agreed on no pair is out, and it is not known whose queue this is.
        let result = match self.nic.role(index) {
            Some(QueueRole::Receive(pair) | QueueRole::Transmit(pair)) => {
                self.apply(Op::Rewire(pair))
            }
            Some(QueueRole::Control) | None => Ok(()),
        };
        self.watch_control();
        // The worker has let go of it now.
        drop(old);
        result
    }

    /// Readable when there is a report, or the driver has kicked the control queue: then ask for
    /// [`Self::next_report`] until there is none.
    #[must_use]
    pub fn reports(&self) -> BorrowedFd<'_> {
        self.attention.as_fd()
    }

    /// The same, to be kept.
    pub(crate) fn attention(&self) -> &Arc<OwnedFd> {
        &self.attention
    }

    /// Obeys the driver's commands, a bounded number of them; then the next report, in the order
    /// they came.
    pub fn next_report(&mut self) -> Option<Report> {
        if let Ok(report) = self.inbox.try_recv() {
            return Some(report);
        }
        // Silence the bells first, then look again: what comes between rings anew.
        if self.silence() {
            // Nothing in it can be refused.
            let (Ok(()) | Err(_)) = self.apply(Op::Commands);
            self.set_timer();
        }
        self.ring_for_commands();
        self.inbox.try_recv().ok()
    }

    /// A report of whoever is in front; it calls for attention as every other.
    pub(crate) fn put(&self, report: Report) {
        self.reports.put(report);
    }

    /// The next report, and nothing done about commands.
    pub(crate) fn report(&mut self) -> Option<Report> {
        self.inbox.try_recv().ok()
    }

    /// Silences what [`Self::reports`] rings for; whether there may be commands to obey.
    pub(crate) fn silence(&mut self) -> bool {
        silence(self.reports.bell());
        if let Some(kick) = &self.control {
            silence(kick.as_fd());
        }
        self.timer.iter().for_each(silence);
        self.control.is_some() || self.nic.has_commands()
    }

    /// Commands have been obeyed: calls for attention for those that wait, now or in a while.
    pub(crate) fn obeyed(&self) {
        self.set_timer();
        self.ring_for_commands();
    }

    /// Calls for attention while commands wait.
    fn ring_for_commands(&self) {
        if self.nic.has_commands() {
            self.reports.ring();
        }
    }

    /// A command that waits for its translation is asked about again in a while, and not before.
    fn set_timer(&self) {
        self.nic.commands_due_in().into_iter().for_each(|after| self.call_again(after));
    }

    /// Calls for attention in a while.
    pub(crate) fn call_again(&self, after: Duration) {
        if let (Some(timer), Ok(it_value)) = (&self.timer, Timespec::try_from(after)) {
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
            // A timer of our own takes any time that is one.
            let (Ok(_) | Err(_)) = timerfd_settime(timer, TimerfdTimerFlags::empty(), &once);
        }
    }

    /// Watches the kicks of the control queue while it runs, and no other.
    fn watch_control(&mut self) {
        let index = (0..self.nic.queues()).map(QueueIndex);
        let control = index
            .filter(|_| self.nic.has_control())
            .find(|index| self.nic.role(*index) == Some(QueueRole::Control));
        let kick = control.and_then(|index| self.kicks.get(usize::from(index.0))?.clone());
        let same = match (&kick, &self.control) {
            (Some(new), Some(old)) => Arc::ptr_eq(new, old),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if same {
            return;
        }
        if let Some(old) = self.control.take() {
            let (Ok(()) | Err(_)) = epoll::delete(&self.attention, old);
        }
        if let Some(new) = &kick {
            let added = epoll::add(&self.attention, new, EventData::new_u64(1), EventFlags::IN);
            if let Err(errno) = added {
                let fault = EndpointFault::Io(errno.raw_os_error());
                self.reports.put(Report::Host { pair: PairIndex(0), fault });
            }
        }
        self.control = kick;
        // What was kicked before is looked at now.
        ring(self.reports.bell());
    }

    fn kicks_of(&self, pair: PairIndex) -> Kicks {
        [pair.receive(), pair.transmit()]
            .map(|index| self.kicks.get(usize::from(index.0)).cloned().flatten())
    }
}

fn watch(bell: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attention = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&attention, bell, EventData::new_u64(0), EventFlags::IN)?;
    Ok(attention)
}

impl Drop for Device {
    fn drop(&mut self) {
        // Pairs come home and their queues are given back before the workers end.
        let (Ok(()) | Err(_)) = self.apply(Op::Reset);
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("nic", &self.nic).finish_non_exhaustive()
    }
}
