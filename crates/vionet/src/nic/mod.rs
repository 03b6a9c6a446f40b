//! The control plane: takes operations, answers with effects, never sees a frame.
//!
//! A queue pair is in one of three places: not there (`Closed`), at home in the [`Nic`], or out
//! with a worker. Every change to a pair (a queue starts or stops, an interrupt is rewired, a
//! command of the driver is obeyed, the device is reset) is made at home:
//!
//! ```text
//!   apply(op)    pairs it touches that are out?    Recall each, keep the op
//!   returned()   all are home                      perform the op
//!   perform      first queue of a closed pair?     Open, keep the op;  opened() performs it
//!   done         pairs with a live queue           Start each;  Done(result)
//! ```
//!
//! So "a queue is stopped while a worker still writes to it" has no representation, and there is
//! one mechanism instead of one per kind of change. The control queue is no pair's: it is served
//! right here, a command an operation.

mod attach;
mod commands;
mod configure;
mod op;
mod queues;
#[cfg(feature = "std")]
mod saved;
mod slot;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use vionet_frame::guard::{Guard, Rule};
use vionet_frame::steer::AutoSteer;
use vionet_queue::Cursor;
use vionet_raw::{AddressSpace, MemoryMap};
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_spec::net::{CONFIG_LEN, MTU_MIN, S_ANNOUNCE, S_LINK_UP};

pub use op::{Effect, Effects, Op, OpError, PairIndex, QueueIndex, QueueRole};
use slot::{PairSlot, Place, QueueSlot};

use crate::config::{ConfigSpace, NicConfig, PAIRS_MAX};
use crate::control::{ControlLane, ControlState};
use crate::endpoint::Capabilities;
use crate::interrupt::Interrupt;
use crate::negotiate::{Negotiated, Offer};
#[cfg(feature = "std")]
use crate::pair::Inlet;
use crate::pair::{DeviceLimits, Limits, QueuePair, TRANSLATION_REST};
use crate::stats::{ControlStats, PairStats};

/// What waits for pairs to come home, or for the endpoint to open.
enum Job {
    Op(Op),
    /// The command in work of the control queue.
    Command,
    /// The pairs have queues of the new endpoint.
    Attached,
}

/// The control plane of a network device.
pub struct Nic {
    config: NicConfig,
    capabilities: Capabilities,
    offer: Offer,
    /// The host wants the link up.
    link_up: bool,
    /// Nothing is behind the device: the link is down.
    is_absent: bool,
    /// The endpoint has been taken away, and another comes: no pair goes out.
    is_detached: bool,
    config_interrupt: Option<Arc<dyn Interrupt>>,
    generation: u8,
    negotiated: Option<Negotiated>,
    space: Arc<AddressSpace>,
    pairs: Vec<PairSlot>,
    queues: Vec<QueueSlot>,
    control: Option<ControlLane>,
    state: ControlState,
    /// Policy of the host about what the guest may send and get.
    guard: Option<Arc<Guard>>,
    /// Rate limits of the host.
    limits: Option<DeviceLimits>,
    /// Where the pairs deliver to each other, when they do; made outside.
    #[cfg(feature = "std")]
    inlets: Arc<[Arc<Inlet>]>,
    /// Which pair each flow was last sent on; where the host side does not know.
    flows: Option<Arc<AutoSteer>>,
    /// What makes flows' numbers unpredictable, where flows are remembered.
    #[cfg_attr(not(feature = "std"), expect(dead_code, reason = "flows need threads"))]
    secret: u64,
    /// Commands that may still be obeyed in this operation.
    commands_left: u16,
    has_commands: bool,
    control_stats: Arc<ControlStats>,
    pending: Option<Job>,
    awaiting: usize,
}

impl Nic {
    /// A device in its reset state, in front of an endpoint of these capabilities.
    #[must_use]
    pub fn new(config: NicConfig, capabilities: Capabilities) -> Self {
        let mtu = config.mtu.min(capabilities.mtu).max(MTU_MIN);
        let pairs = config.pairs.min(capabilities.pairs_max).clamp(1, PAIRS_MAX);
        let config = NicConfig { mtu, pairs, ..config };
        let queues = pairs.saturating_mul(2).saturating_add(1);
        Self {
            config,
            capabilities,
            offer: Offer::new(&config),
            link_up: true,
            is_absent: false,
            is_detached: false,
            config_interrupt: None,
            generation: 0,
            negotiated: None,
            space: Self::no_memory(),
            pairs: (0..pairs).map(|index| PairSlot::new(PairIndex(index))).collect(),
            queues: (0..queues).map(|_| QueueSlot::default()).collect(),
            control: None,
            state: ControlState::new(&config),
            guard: None,
            limits: None,
            #[cfg(feature = "std")]
            inlets: Arc::default(),
            flows: None,
            secret: 0,
            commands_left: 0,
            has_commands: false,
            control_stats: Arc::default(),
            pending: None,
            awaiting: 0,
        }
    }

    /// The same behind an IOMMU, which [`Op::Memory`] brings: ACCESS_PLATFORM is offered.
    #[must_use]
    pub fn behind_platform(mut self) -> Self {
        self.set_platform();
        self
    }

    /// The same, before features are settled.
    pub(crate) fn set_platform(&mut self) {
        self.offer = self.offer.with_platform();
    }

    /// The same under a policy of the host. Where that holds the guest to its MAC address, in
    /// frames or in what they say, the driver is not offered to change it.
    #[must_use]
    pub fn guarded(mut self, guard: Guard) -> Self {
        self.set_guard(guard);
        self
    }

    /// The same, before features are settled.
    pub(crate) fn set_guard(&mut self, guard: Guard) {
        if [Rule::Mac, Rule::Arp, Rule::Neighbor].into_iter().any(|rule| guard.has(rule)) {
            self.offer = self.offer.without(Feature::CTRL_MAC_ADDR);
        }
        self.guard = Some(Arc::new(guard));
    }

    /// What a front carries beside the rest, before features are settled.
    #[cfg(feature = "std")]
    pub(crate) fn offer_also(&mut self, more: FeatureBits) {
        self.offer = self.offer.with(more);
    }

    /// The host's rate limits, if there are any.
    #[must_use]
    pub fn limits(&self) -> Option<&Limits> {
        self.limits.as_ref().map(DeviceLimits::limits)
    }

    /// The same with a random number, which makes it unpredictable where unknown flows go.
    #[must_use]
    pub fn with_secret(self, secret: u64) -> Self {
        Self { secret, ..self }
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

    /// How many queue pairs the device has.
    #[must_use]
    pub fn pair_count(&self) -> u16 {
        self.config.pairs
    }

    /// How many queues the device has, the control queue among them.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.config.pairs.saturating_mul(2).saturating_add(1)
    }

    /// What a queue is for, by the features agreed on; `None` for one that the driver has no use
    /// for. Without MQ and RSS there is one pair, and the control queue is next to it (NET-Q-02,
    /// NET-Q-03).
    #[must_use]
    pub fn role(&self, index: QueueIndex) -> Option<QueueRole> {
        let pairs = self.usable_pairs();
        let pair = index.pair();
        if pair.0 < pairs {
            let receive = index.is_receive();
            return Some(if receive {
                QueueRole::Receive(pair)
            } else {
                QueueRole::Transmit(pair)
            });
        }
        let agreed = self.negotiated.is_some_and(|agreed| agreed.bits().has(Feature::CTRL_VQ));
        let control = index.0 == pairs.saturating_mul(2) && agreed;
        control.then_some(QueueRole::Control)
    }

    /// How many pairs the driver has a use for, by the features agreed on.
    fn usable_pairs(&self) -> u16 {
        let agreed = self.negotiated.map(|agreed| agreed.bits()).unwrap_or_default();
        let several = agreed.has(Feature::MQ) || agreed.has(Feature::RSS);
        if several { self.config.pairs } else { 1 }
    }

    /// The counters of each pair, in pair order.
    pub fn stats(&self) -> impl Iterator<Item = &Arc<PairStats>> {
        self.pairs.iter().map(|slot| &slot.stats)
    }

    /// The counters of the control queue.
    #[must_use]
    pub fn control_stats(&self) -> &Arc<ControlStats> {
        &self.control_stats
    }

    /// The guest's MAC address now.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.state.mac
    }

    /// How many pairs frames are spread over now.
    #[must_use]
    pub fn active_pairs(&self) -> u16 {
        self.spread()
    }

    /// Whether the link is up: the host wants it, and there is a host side.
    #[must_use]
    pub fn is_link_up(&self) -> bool {
        self.link_up && !self.is_absent
    }

    /// The device configuration space (VIRTIO 1.4 §5.1.4). Every field can be read, also before
    /// anything was negotiated (CFG-01).
    #[must_use]
    pub fn config_space(&self) -> [u8; CONFIG_LEN] {
        let link = if self.is_link_up() { S_LINK_UP } else { 0 };
        let announce = if self.state.announce { S_ANNOUNCE } else { 0 };
        let space = ConfigSpace {
            mac: self.state.mac,
            status: link | announce,
            pairs: self.config.pairs,
            mtu: self.config.mtu,
            speed: self.config.speed,
            ..ConfigSpace::of_hashing()
        };
        space.encode()
    }

    /// Differs whenever the configuration space differs (CFG-03).
    #[must_use]
    pub fn config_generation(&self) -> u8 {
        self.generation
    }

    /// The position of a stopped queue.
    #[must_use]
    pub fn cursor(&self, index: QueueIndex) -> Option<Cursor> {
        self.queues.get(index.slot())?.cursor
    }

    /// Whether the control queue runs.
    #[must_use]
    pub fn has_control(&self) -> bool {
        self.control.is_some()
    }

    /// Whether commands wait that [`Op::Commands`] has left for the next one.
    #[must_use]
    pub fn has_commands(&self) -> bool {
        self.has_commands
    }

    /// How soon to apply [`Op::Commands`] without a kick: the platform had no translation for the
    /// next command, and no kick says when it has one.
    #[must_use]
    pub fn commands_due_in(&self) -> Option<Duration> {
        let control = self.control.as_ref().filter(|control| control.is_untranslated());
        control.map(|_| TRANSLATION_REST)
    }

    /// Begins an operation; it is over when [`Effect::Done`] says so.
    pub fn apply(&mut self, op: Op, effects: &mut Effects) {
        if self.pending.is_some() {
            return effects.push(Effect::Done(Err(OpError::Busy)));
        }
        let touched = match &op {
            Op::Negotiate(_)
            | Op::NegotiateByFrontEnd(_)
            | Op::Memory(_)
            | Op::SetConfigInterrupt(_) => None,
            // Every pair has to know over how many frames are spread.
            Op::EnableQueue(index, enabled) if self.changes_spread(*index, *enabled) => {
                return self.recall(|_| true, Job::Op(op), effects);
            }
            Op::StartQueue { index, cursor, .. }
                if self.role(*index) == Some(QueueRole::Control)
                    && (self.awaits_control() || self.begins_anew(*index, *cursor)) =>
            {
                return self.recall(|_| true, Job::Op(op), effects);
            }
            Op::StartQueue { index, .. }
            | Op::StopQueue(index)
            | Op::EnableQueue(index, _)
            | Op::SetInterrupt(index, _) => self.pair_of(*index),
            Op::Rewire(pair) => Some(*pair),
            Op::Commands => return self.begin_commands(effects),
            Op::Announce(_) => Some(PairIndex(0)),
            Op::SetLink(_) | Op::SetLimits(_) | Op::Detach | Op::Attach(_) | Op::Reset => {
                return self.recall(|_| true, Job::Op(op), effects);
            }
        };
        self.recall(|slot| Some(slot.index) == touched, Job::Op(op), effects);
    }

    fn recall(&mut self, touched: impl Fn(&PairSlot) -> bool, job: Job, effects: &mut Effects) {
        for slot in self.pairs.iter().filter(|slot| touched(slot)) {
            if slot.is_out() {
                effects.push(Effect::Recall(slot.index));
                self.awaiting = self.awaiting.saturating_add(1);
            }
        }
        if self.awaiting > 0 {
            self.pending = Some(job);
        } else {
            self.perform(job, effects);
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
        if !slot.is_out() {
            return;
        }
        slot.place = pair.map_or(Place::Lost, |pair| Place::Home(pair.arrived()));
        self.awaiting = self.awaiting.saturating_sub(1);
        if self.awaiting == 0
            && let Some(job) = self.pending.take()
        {
            self.perform(job, effects);
        }
    }

    /// Performs a job; every pair it touches is at home.
    fn perform(&mut self, job: Job, effects: &mut Effects) {
        let op = match job {
            Job::Op(op) => op,
            Job::Command => return self.obey_and_go_on(effects),
            Job::Attached => return self.attached(effects),
        };
        let result = match op {
            Op::Negotiate(bits) => self.negotiate(bits, false),
            Op::NegotiateByFrontEnd(bits) => self.negotiate(bits, true),
            Op::Memory(space) => {
                self.space = space;
                Ok(())
            }
            Op::StartQueue { index, setup, cursor } => {
                if let Some(settings) = self.settings_to_open(index) {
                    self.pending = Some(Job::Op(op));
                    return effects.push(Effect::Open(settings));
                }
                self.start_queue(index, setup, cursor, effects)
            }
            Op::StopQueue(index) => self.stop_queue(index),
            Op::EnableQueue(index, enabled) => self.enable_queue(index, enabled, effects),
            Op::SetInterrupt(index, interrupt) => self.set_interrupt(index, interrupt, effects),
            Op::SetConfigInterrupt(interrupt) => {
                self.config_interrupt = interrupt;
                Ok(())
            }
            Op::Rewire(_) | Op::Commands => Ok(()),
            Op::SetLink(up) => {
                self.set_link(up, effects);
                Ok(())
            }
            Op::SetLimits(limits) => {
                self.limits = limits.map(|all| DeviceLimits::new(all, self.config.pairs));
                self.configure_pairs();
                Ok(())
            }
            Op::Announce(mac) => {
                self.announce(mac, effects);
                Ok(())
            }
            Op::Detach => {
                self.detach();
                Ok(())
            }
            Op::Attach(capabilities) => return self.attach(capabilities, effects),
            Op::Reset => {
                self.reset();
                Ok(())
            }
        };
        self.finish(result, effects);
    }

    /// Sends out every pair that has a live queue, and says that the operation is over.
    fn finish(&mut self, result: Result<(), OpError>, effects: &mut Effects) {
        self.send_out(effects);
        effects.push(Effect::Done(result));
    }

    fn send_out(&mut self, effects: &mut Effects) {
        if self.is_detached {
            return;
        }
        for slot in &mut self.pairs {
            if slot.is_live() && matches!(slot.place, Place::Home(_)) {
                let place = core::mem::replace(&mut slot.place, Place::Out);
                if let Place::Home(pair) = place {
                    effects.push(Effect::Start(pair.leaving()));
                }
            }
        }
    }

    fn negotiate(&mut self, bits: FeatureBits, by_front_end: bool) -> Result<(), OpError> {
        let is_same = self.negotiated.is_some_and(|agreed| agreed.bits() == bits);
        let runs = self.control.is_some() || self.pairs.iter().any(PairSlot::is_live);
        if runs && !is_same {
            return Err(OpError::QueuesRunning);
        }
        let offer = &self.offer;
        let agreed =
            if by_front_end { offer.accept_by_front_end(bits) } else { offer.accept(bits) };
        let agreed = agreed.map_err(OpError::Refused)?;
        // A machine that was paused says the same again: flows and commands live on. What ends
        // with a driver is ended by a reset.
        if is_same {
            return Ok(());
        }
        self.state = ControlState::new(&self.config);
        if !by_front_end {
            self.state.begin(bits);
        }
        self.negotiated = Some(agreed);
        // The endpoint is opened anew, with the new settings.
        for slot in &mut self.pairs {
            slot.place = Place::Closed;
        }
        #[cfg(feature = "std")]
        self.set_inlets(Vec::new());
        self.flows = None;
        Ok(())
    }

    fn set_link(&mut self, up: bool, effects: &mut Effects) {
        let before = self.is_link_up();
        self.link_up = up;
        self.link_changed(before, effects);
    }

    /// Whatever the link depends on may have changed since it was so.
    fn link_changed(&mut self, before: bool, effects: &mut Effects) {
        if self.is_link_up() != before {
            self.configure_pairs();
            self.config_changed(effects);
        }
    }

    /// Asks the driver to announce itself if it can (NET-CTRL-ANN-02), else sends a RARP.
    fn announce(&mut self, mac: [u8; 6], effects: &mut Effects) {
        let agreed = self.negotiated.as_ref().map(Negotiated::bits);
        let can =
            |bits: FeatureBits| bits.has(Feature::GUEST_ANNOUNCE) && bits.has(Feature::STATUS);
        if agreed.is_some_and(can) && self.control.is_some() {
            self.state.announce = true;
            return self.config_changed(effects);
        }
        if let Some(pair) = self.pairs.first_mut().and_then(PairSlot::home) {
            pair.send_rarp(mac);
        }
    }

    /// The device has changed its configuration: the driver is to look again (INIT-06).
    fn config_changed(&mut self, effects: &mut Effects) {
        self.generation = self.generation.wrapping_add(1);
        if self.negotiated.is_some() {
            effects.push(Effect::ConfigChanged);
            if let Some(interrupt) = &self.config_interrupt {
                effects.push(Effect::Interrupt(Arc::clone(interrupt)));
            }
        }
    }

    /// Destructured without `..`: a new field breaks the build until someone says what reset
    /// does to it.
    fn reset(&mut self) {
        let Self {
            config,
            capabilities: _,
            offer: _,
            link_up: _,
            is_absent: _,
            is_detached: _,
            config_interrupt,
            generation,
            negotiated,
            space,
            pairs,
            queues,
            control,
            state,
            guard: _,
            limits: _,
            #[cfg(feature = "std")]
            inlets,
            flows,
            secret: _,
            commands_left,
            has_commands,
            control_stats: _,
            pending,
            awaiting,
        } = self;
        *config_interrupt = None;
        *generation = generation.wrapping_add(1);
        *negotiated = None;
        *space = Self::no_memory();
        *control = None;
        *state = ControlState::new(config);
        #[cfg(feature = "std")]
        {
            *inlets = Arc::default();
        }
        *flows = None;
        *commands_left = 0;
        *has_commands = false;
        *pending = None;
        *awaiting = 0;
        for slot in pairs {
            let PairSlot { index: _, place, stats: _ } = slot;
            *place = Place::Closed;
        }
        queues.iter_mut().for_each(|slot| *slot = QueueSlot::default());
    }
}

impl fmt::Debug for Nic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nic")
            .field("config", &self.config)
            .field("negotiated", &self.negotiated.map(|agreed| agreed.bits()))
            .finish_non_exhaustive()
    }
}
