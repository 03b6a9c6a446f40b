//! The control plane: takes operations, answers with effects, never sees a frame.
//!
//! A queue pair is in one of three places: not there (`Closed`), at home in the [`Nic`], or out
//! with a worker. Every change to a pair (a queue starts or stops, an interrupt is rewired, the
//! device is reset) is made at home:
//!
//! ```text
//!   apply(op)    pairs it touches that are out?    Recall each, keep the op
//!   returned()   all are home                      perform the op
//!   perform      first queue of a closed pair?     Open, keep the op;  opened() performs it
//!   done         pairs with a live queue           Start each;  Done(result)
//! ```
//!
//! So "a queue is stopped while a worker still writes to it" has no representation, and there is
//! one mechanism instead of one per kind of change.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use vionet_queue::{Cursor, Direction, Fault, Queue, QueueSetup};
use vionet_raw::{AddressSpace, MemoryMap};
use vionet_spec::feature::FeatureBits;
use vionet_spec::net::{CONFIG_LEN, MTU_MIN, S_LINK_UP};

use crate::endpoint::{Capabilities, EndpointQueue, OpenError, Settings};
use crate::interrupt::Interrupt;
use crate::negotiate::{Negotiated, Offer, Refusal};
use crate::pair::{Lane, Lower, QueuePair};
use crate::stats::PairStats;

/// A virtqueue of the device: receive queues are even, transmit queues odd (VIRTIO 1.4 §5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueIndex(pub u16);

/// A queue pair of the device, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PairIndex(pub u16);

impl QueueIndex {
    /// The pair the queue belongs to.
    #[must_use]
    pub const fn pair(self) -> PairIndex {
        PairIndex(self.0 >> 1)
    }

    /// Whether it is a receive queue.
    #[must_use]
    pub const fn is_receive(self) -> bool {
        self.0 & 1 == 0
    }

    fn lane(self) -> usize {
        usize::from(self.0 & 1)
    }
}

impl PairIndex {
    /// The pair's receive queue.
    #[must_use]
    pub const fn receive(self) -> QueueIndex {
        QueueIndex(self.0 << 1)
    }

    /// The pair's transmit queue.
    #[must_use]
    pub const fn transmit(self) -> QueueIndex {
        QueueIndex(self.0 << 1 | 1)
    }

    fn slot(self) -> usize {
        usize::from(self.0)
    }
}

/// What a NIC is from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicConfig {
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// The largest IP packet, in bytes; the endpoint's own bound where it is lower.
    pub mtu: u16,
}

/// What a driver asks for, through whatever front it asked.
pub enum Op {
    /// Settle the features. Refused while a queue runs, unless they are those in force.
    Negotiate(FeatureBits),
    /// Queues started from now on live in this memory.
    Memory(Arc<AddressSpace>),
    /// Bring a queue to life at a position.
    StartQueue {
        /// The queue.
        index: QueueIndex,
        /// Its size and its areas, as guest addresses.
        setup: QueueSetup,
        /// Where it goes on.
        cursor: Cursor,
    },
    /// End a queue's life; [`Nic::cursor`] then tells its position.
    StopQueue(QueueIndex),
    /// Let a queue move frames, or let it drop them.
    EnableQueue(QueueIndex, bool),
    /// How to interrupt the driver for a queue from now on; `None` for a driver that polls.
    SetInterrupt(QueueIndex, Option<Box<dyn Interrupt>>),
    /// Send the pair out anew: something about its wiring has changed outside.
    Rewire(PairIndex),
    /// Forget everything the driver has done, memory included.
    Reset,
}

/// What must now happen outside.
pub enum Effect {
    /// Open the endpoint and answer with [`Nic::opened`].
    Open(Settings),
    /// Take the pair back from its worker and answer with [`Nic::returned`].
    Recall(PairIndex),
    /// Hand the pair to a worker.
    Start(Box<QueuePair>),
    /// The operation is done, or refused with nothing changed.
    Done(Result<(), OpError>),
}

/// Effects in the order in which they must happen.
#[derive(Default)]
pub struct Effects(VecDeque<Effect>);

impl Effects {
    /// The next effect to bring about.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.0.pop_front()
    }

    fn push(&mut self, effect: Effect) {
        self.0.push_back(effect);
    }
}

/// Why an operation was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpError {
    /// The device has no such queue.
    NoSuchQueue(QueueIndex),
    /// The features were not acceptable.
    Refused(Refusal),
    /// Features can change only while every queue is stopped.
    QueuesRunning,
    /// A queue cannot start before the features are settled.
    NotNegotiated,
    /// The queue runs already.
    AlreadyRunning(QueueIndex),
    /// The queue's geometry breaks a rule.
    Queue(QueueIndex, Fault),
    /// The host side could not be opened.
    Endpoint(OpenError),
    /// The operation before is not done yet.
    Busy,
    /// A pair was lost outside; the device serves it no more.
    PairLost(PairIndex),
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchQueue(index) => write!(f, "the device has no queue {}", index.0),
            Self::Refused(refusal) => write!(f, "features refused: {refusal}"),
            Self::QueuesRunning => f.write_str("features cannot change while a queue runs"),
            Self::NotNegotiated => f.write_str("a queue cannot start before the features are set"),
            Self::AlreadyRunning(index) => write!(f, "queue {} runs already", index.0),
            Self::Queue(index, fault) => write!(f, "queue {} cannot start: {fault}", index.0),
            Self::Endpoint(error) => write!(f, "{error}"),
            Self::Busy => f.write_str("the operation before is not done yet"),
            Self::PairLost(pair) => write!(f, "the worker of queue pair {} is lost", pair.0),
        }
    }
}

impl core::error::Error for OpError {}

/// Where a pair is.
enum Place {
    Closed,
    Home(Box<QueuePair>),
    Out,
    Lost,
}

/// What is known of a queue beside its life in the pair.
struct QueueSlot {
    enabled: bool,
    interrupt: Option<Box<dyn Interrupt>>,
    cursor: Option<Cursor>,
}

impl QueueSlot {
    fn new() -> Self {
        Self { enabled: false, interrupt: None, cursor: None }
    }
}

struct PairSlot {
    index: PairIndex,
    place: Place,
    queues: [QueueSlot; 2],
    stats: Arc<PairStats>,
}

impl PairSlot {
    fn new(index: PairIndex) -> Self {
        let queues = [QueueSlot::new(), QueueSlot::new()];
        Self { index, place: Place::Closed, queues, stats: Arc::default() }
    }

    fn home(&mut self) -> Option<&mut QueuePair> {
        match &mut self.place {
            Place::Home(pair) => Some(pair),
            Place::Closed | Place::Out | Place::Lost => None,
        }
    }

    fn queue(&mut self, index: QueueIndex) -> Option<&mut QueueSlot> {
        self.queues.get_mut(index.lane())
    }

    fn is_live(&self) -> bool {
        match &self.place {
            Place::Home(pair) => pair.rx.is_some() || pair.tx.is_some(),
            Place::Out => true,
            Place::Closed | Place::Lost => false,
        }
    }
}

/// The control plane of a network device.
pub struct Nic {
    config: NicConfig,
    capabilities: Capabilities,
    offer: Offer,
    negotiated: Option<Negotiated>,
    space: Arc<AddressSpace>,
    pairs: Vec<PairSlot>,
    /// Waits for pairs to come home, or for the endpoint to open.
    pending: Option<Op>,
    awaiting: usize,
}

impl Nic {
    /// A device in its reset state, in front of an endpoint of these capabilities.
    #[must_use]
    pub fn new(config: NicConfig, capabilities: Capabilities) -> Self {
        let mtu = config.mtu.min(capabilities.mtu).max(MTU_MIN);
        Self {
            config: NicConfig { mtu, ..config },
            capabilities,
            offer: Offer::new(mtu),
            negotiated: None,
            space: Self::no_memory(),
            pairs: alloc::vec![PairSlot::new(PairIndex(0))],
            pending: None,
            awaiting: 0,
        }
    }

    /// The same behind an IOMMU, which [`Op::Memory`] brings: ACCESS_PLATFORM is offered.
    #[must_use]
    pub fn behind_platform(self) -> Self {
        Self { offer: self.offer.with_platform(), ..self }
    }

    fn no_memory() -> Arc<AddressSpace> {
        Arc::new(AddressSpace::new(Arc::new(MemoryMap::empty())))
    }

    /// The features to show to the driver.
    #[must_use]
    pub fn offer(&self) -> FeatureBits {
        self.offer.bits()
    }

    /// What was agreed, once it was.
    #[must_use]
    pub fn negotiated(&self) -> Option<&Negotiated> {
        self.negotiated.as_ref()
    }

    /// The MTU shown to the driver, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.config.mtu
    }

    /// How many queues the device has.
    #[must_use]
    pub fn queues(&self) -> u16 {
        u16::try_from(self.pairs.len().saturating_mul(2)).unwrap_or(u16::MAX)
    }

    /// The counters of each pair, in pair order.
    pub fn stats(&self) -> impl Iterator<Item = &Arc<PairStats>> {
        self.pairs.iter().map(|slot| &slot.stats)
    }

    /// The device configuration space (VIRTIO 1.4 §5.1.4). Fields of features that were not
    /// negotiated keep their offset.
    #[must_use]
    pub fn config_space(&self) -> [u8; CONFIG_LEN] {
        let [m0, m1, m2, m3, m4, m5] = self.config.mac;
        let [s0, s1] = S_LINK_UP.to_le_bytes();
        let [p0, p1] = 1_u16.to_le_bytes();
        let [t0, t1] = self.config.mtu.to_le_bytes();
        let mut space = [0; CONFIG_LEN];
        let known = [m0, m1, m2, m3, m4, m5, s0, s1, p0, p1, t0, t1];
        for (to, from) in space.iter_mut().zip(known) {
            *to = from;
        }
        space
    }

    /// The position of a stopped queue.
    #[must_use]
    pub fn cursor(&self, index: QueueIndex) -> Option<Cursor> {
        let slot = self.pairs.get(index.pair().slot())?;
        slot.queues.get(index.lane())?.cursor
    }

    /// Begins an operation; it is over when [`Effect::Done`] says so.
    pub fn apply(&mut self, op: Op, effects: &mut Effects) {
        if self.pending.is_some() {
            return effects.push(Effect::Done(Err(OpError::Busy)));
        }
        let touched = match &op {
            Op::Negotiate(_) | Op::Memory(_) => None,
            Op::StartQueue { index, .. }
            | Op::StopQueue(index)
            | Op::EnableQueue(index, _)
            | Op::SetInterrupt(index, _) => Some(index.pair()),
            Op::Rewire(pair) => Some(*pair),
            Op::Reset => return self.recall(|_| true, op, effects),
        };
        self.recall(|slot| Some(slot.index) == touched, op, effects);
    }

    fn recall(&mut self, touched: impl Fn(&PairSlot) -> bool, op: Op, effects: &mut Effects) {
        for slot in self.pairs.iter().filter(|slot| touched(slot)) {
            if matches!(slot.place, Place::Out) {
                effects.push(Effect::Recall(slot.index));
                self.awaiting = self.awaiting.saturating_add(1);
            }
        }
        if self.awaiting > 0 {
            self.pending = Some(op);
        } else {
            self.perform(op, effects);
        }
    }

    /// Answers [`Effect::Recall`]: the pair is back, or `None` when its worker has lost it.
    pub fn returned(
        &mut self,
        index: PairIndex,
        pair: Option<Box<QueuePair>>,
        effects: &mut Effects,
    ) {
        let Some(slot) = self.pairs.get_mut(index.slot()) else { return };
        if !matches!(slot.place, Place::Out) {
            return;
        }
        slot.place = pair.map_or(Place::Lost, |pair| Place::Home(pair.arrived()));
        self.awaiting = self.awaiting.saturating_sub(1);
        if self.awaiting == 0
            && let Some(op) = self.pending.take()
        {
            self.perform(op, effects);
        }
    }

    /// Answers [`Effect::Open`] with one endpoint queue per pair, in pair order.
    pub fn opened(
        &mut self,
        queues: Result<Vec<Box<dyn EndpointQueue>>, OpenError>,
        effects: &mut Effects,
    ) {
        let (Some(op), Some(agreed)) = (self.pending.take(), self.negotiated) else { return };
        let queues = match queues {
            Ok(queues) => queues,
            Err(error) => return self.finish(Err(OpError::Endpoint(error)), effects),
        };
        let plan = *agreed.plan();
        for (slot, queue) in self.pairs.iter_mut().zip(queues) {
            let queue = Lower::around(queue, plan.transmit, self.capabilities.transmit);
            let pair = QueuePair::new(slot.index, plan, queue, Arc::clone(&slot.stats));
            slot.place = Place::Home(Box::new(pair));
        }
        self.perform(op, effects);
    }

    /// Performs an operation; every pair it touches is at home.
    fn perform(&mut self, op: Op, effects: &mut Effects) {
        let result = match op {
            Op::Negotiate(bits) => self.negotiate(bits),
            Op::Memory(space) => {
                self.space = space;
                Ok(())
            }
            Op::StartQueue { index, setup, cursor } => {
                if let Some(settings) = self.settings_to_open(index) {
                    self.pending = Some(op);
                    return effects.push(Effect::Open(settings));
                }
                self.start_queue(index, setup, cursor)
            }
            Op::StopQueue(index) => self.stop_queue(index),
            Op::EnableQueue(index, enabled) => self.enable_queue(index, enabled),
            Op::SetInterrupt(index, interrupt) => self.set_interrupt(index, interrupt),
            Op::Rewire(_) => Ok(()),
            Op::Reset => {
                self.reset();
                Ok(())
            }
        };
        self.finish(result, effects);
    }

    /// Sends out every pair that has a live queue, and says that the operation is over.
    fn finish(&mut self, result: Result<(), OpError>, effects: &mut Effects) {
        for slot in &mut self.pairs {
            if slot.is_live() && matches!(slot.place, Place::Home(_)) {
                let place = core::mem::replace(&mut slot.place, Place::Out);
                if let Place::Home(pair) = place {
                    effects.push(Effect::Start(pair.leaving()));
                }
            }
        }
        effects.push(Effect::Done(result));
    }

    fn negotiate(&mut self, bits: FeatureBits) -> Result<(), OpError> {
        if self.negotiated.is_some_and(|agreed| agreed.bits() == bits) {
            return Ok(());
        }
        if self.pairs.iter().any(PairSlot::is_live) {
            return Err(OpError::QueuesRunning);
        }
        self.negotiated = Some(self.offer.accept(bits).map_err(OpError::Refused)?);
        // The endpoint is opened anew, with the new settings.
        for slot in &mut self.pairs {
            slot.place = Place::Closed;
        }
        Ok(())
    }

    /// What to open the endpoint with, when starting `index` has to wait for that.
    fn settings_to_open(&self, index: QueueIndex) -> Option<Settings> {
        let slot = self.pairs.get(index.pair().slot())?;
        let plan = self.negotiated.as_ref()?.plan();
        matches!(slot.place, Place::Closed).then(|| Settings {
            transmit: plan.transmit.intersection(self.capabilities.transmit),
            receive: plan.receive.intersection(self.capabilities.receive),
            pairs: u16::try_from(self.pairs.len()).unwrap_or(1),
            mtu: plan.mtu,
        })
    }

    fn start_queue(
        &mut self,
        index: QueueIndex,
        setup: QueueSetup,
        cursor: Cursor,
    ) -> Result<(), OpError> {
        let agreed = self.negotiated.ok_or(OpError::NotNegotiated)?;
        let space = agreed.space(&self.space);
        let slot = Self::slot(&mut self.pairs, index)?;
        let lost = OpError::PairLost(slot.index);
        let queue = slot.queue(index).ok_or(OpError::NoSuchQueue(index))?;
        let enabled = queue.enabled;
        let interrupt = queue.interrupt.take();
        let pair = slot.home().ok_or(lost)?;
        let live = if index.is_receive() { pair.rx.is_some() } else { pair.tx.is_some() };
        if live {
            return Err(OpError::AlreadyRunning(index));
        }
        match setup.activate(&space, agreed.ring(), cursor) {
            Ok(queue) if index.is_receive() => {
                pair.rx = Some(raise_lane(queue, space, &agreed, enabled, interrupt));
            }
            Ok(queue) => pair.tx = Some(raise_lane(queue, space, &agreed, enabled, interrupt)),
            Err(fault) => {
                if let Some(queue) = slot.queue(index) {
                    queue.interrupt = interrupt;
                }
                return Err(OpError::Queue(index, fault));
            }
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: QueueIndex) -> Result<(), OpError> {
        let slot = Self::slot(&mut self.pairs, index)?;
        let stopped = slot.home().and_then(|pair| {
            if index.is_receive() {
                pair.rx.take().map(Lane::stop)
            } else {
                pair.tx.take().map(Lane::stop)
            }
        });
        if let (Some((cursor, interrupt)), Some(queue)) = (stopped, slot.queue(index)) {
            queue.cursor = Some(cursor);
            queue.interrupt = interrupt;
        }
        Ok(())
    }

    fn enable_queue(&mut self, index: QueueIndex, enabled: bool) -> Result<(), OpError> {
        let slot = Self::slot(&mut self.pairs, index)?;
        let queue = slot.queue(index).ok_or(OpError::NoSuchQueue(index))?;
        queue.enabled = enabled;
        if let Some(pair) = slot.home() {
            if index.is_receive() {
                pair.rx.iter_mut().for_each(|lane| lane.set_enabled(enabled));
            } else {
                pair.tx.iter_mut().for_each(|lane| lane.set_enabled(enabled));
            }
        }
        Ok(())
    }

    fn set_interrupt(
        &mut self,
        index: QueueIndex,
        interrupt: Option<Box<dyn Interrupt>>,
    ) -> Result<(), OpError> {
        let slot = Self::slot(&mut self.pairs, index)?;
        let pair = slot.home();
        let rest = match pair.map(|pair| (&mut pair.rx, &mut pair.tx)) {
            Some((Some(lane), _)) if index.is_receive() => {
                lane.set_interrupt(interrupt);
                return Ok(());
            }
            Some((_, Some(lane))) if !index.is_receive() => {
                lane.set_interrupt(interrupt);
                return Ok(());
            }
            Some(_) | None => interrupt,
        };
        slot.queue(index).ok_or(OpError::NoSuchQueue(index))?.interrupt = rest;
        Ok(())
    }

    /// Destructured without `..`: a new field breaks the build until someone says what reset
    /// does to it.
    fn reset(&mut self) {
        let Self {
            config: _,
            capabilities: _,
            offer: _,
            negotiated,
            space,
            pairs,
            pending,
            awaiting,
        } = self;
        *negotiated = None;
        *space = Self::no_memory();
        *pending = None;
        *awaiting = 0;
        for slot in pairs {
            let PairSlot { index: _, place, queues, stats: _ } = slot;
            *place = Place::Closed;
            *queues = [QueueSlot::new(), QueueSlot::new()];
        }
    }

    fn slot(pairs: &mut [PairSlot], index: QueueIndex) -> Result<&mut PairSlot, OpError> {
        pairs.get_mut(index.pair().slot()).ok_or(OpError::NoSuchQueue(index))
    }
}

fn raise_lane<D: Direction>(
    queue: Queue,
    space: Arc<AddressSpace>,
    agreed: &Negotiated,
    enabled: bool,
    interrupt: Option<Box<dyn Interrupt>>,
) -> Lane<D> {
    let mut lane = Lane::new(queue, space, agreed.plan(), enabled);
    lane.set_interrupt(interrupt);
    lane
}

impl fmt::Debug for Nic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nic")
            .field("config", &self.config)
            .field("negotiated", &self.negotiated.map(|agreed| agreed.bits()))
            .finish_non_exhaustive()
    }
}
