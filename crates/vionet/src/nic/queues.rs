//! Queues of the device: starting, stopping, enabling, wiring. Pairs are at home here.

use alloc::sync::Arc;

use vionet_queue::{Cursor, Direction, Queue, QueueSetup};
use vionet_raw::AddressSpace;

use super::slot::{PairSlot, Place, QueueSlot};
use super::{Effect, Effects, Nic, OpError, PairIndex, QueueIndex, QueueRole};
use crate::control::ControlLane;
use crate::endpoint::Settings;
use crate::interrupt::Interrupt;
use crate::negotiate::Negotiated;
use crate::pair::Lane;

impl Nic {
    /// The pair a queue belongs to, if it belongs to one.
    pub(super) fn pair_of(&self, index: QueueIndex) -> Option<PairIndex> {
        match self.role(index)? {
            QueueRole::Receive(pair) | QueueRole::Transmit(pair) => Some(pair),
            QueueRole::Control => None,
        }
    }

    /// What to open the endpoint with, when starting `index` has to wait for that.
    pub(super) fn settings_to_open(&self, index: QueueIndex) -> Option<Settings> {
        let slot = self.pairs.get(self.pair_of(index)?.slot())?;
        if matches!(slot.place, Place::Closed) { self.settings() } else { None }
    }

    pub(super) fn start_queue(
        &mut self,
        index: QueueIndex,
        setup: QueueSetup,
        cursor: Cursor,
        effects: &mut Effects,
    ) -> Result<(), OpError> {
        let agreed = self.negotiated.ok_or(OpError::NotNegotiated)?;
        let role = self.role(index).ok_or(OpError::NoSuchQueue(index))?;
        let space = agreed.space(&self.space);
        let interrupt = self.slot(index)?.interrupt.clone();
        let enabled = self.slot(index)?.enabled;
        let activate = |space| {
            let queue = setup.activate(space, agreed.ring(), cursor);
            queue.map_err(|fault| OpError::Queue(index, fault))
        };
        let pair_index = match role {
            QueueRole::Receive(pair) | QueueRole::Transmit(pair) => pair,
            QueueRole::Control => {
                if self.control.is_some() {
                    return Err(OpError::AlreadyRunning(index));
                }
                let is_another = self.begins_anew(index, cursor);
                self.control = Some(ControlLane::new(activate(&space)?, space));
                let slot = self.slot(index)?;
                (slot.setup, slot.cursor) = (Some(setup), None);
                self.has_commands = true; // Some may wait already (INIT-05).
                if is_another {
                    self.state.next_driver(&self.config);
                }
                if self.awaits_control() {
                    self.state.begin(agreed.bits());
                    self.configure_pairs();
                    self.adapt_endpoint(effects);
                }
                return Ok(());
            }
        };
        let slot = self.pairs.get_mut(pair_index.slot()).ok_or(OpError::NoSuchQueue(index))?;
        let pair = slot.home().ok_or(OpError::PairLost(pair_index))?;
        let receive = matches!(role, QueueRole::Receive(_));
        let live = if receive { pair.rx.is_some() } else { pair.tx.is_some() };
        if live {
            return Err(OpError::AlreadyRunning(index));
        }
        let queue = activate(&space)?;
        if receive {
            pair.rx = Some(raise_lane(queue, space, &agreed, enabled, interrupt));
            pair.rx.iter_mut().for_each(|lane| lane.begins_at(cursor, &agreed));
        } else {
            pair.tx = Some(raise_lane(queue, space, &agreed, enabled, interrupt));
            pair.tx.iter_mut().for_each(|lane| lane.begins_at(cursor, &agreed));
        }
        let slot = self.slot(index)?;
        slot.setup = Some(setup);
        if slot.cursor.take() != Some(cursor) {
            // It does not go on where it stood: it is another one.
            self.state.queue_ended(index);
        }
        self.configure_pairs();
        Ok(())
    }

    pub(super) fn stop_queue(&mut self, index: QueueIndex) -> Result<(), OpError> {
        self.slot(index)?;
        let stopped = match self.role(index) {
            Some(QueueRole::Control) => {
                self.has_commands = false;
                self.control.take().map(ControlLane::stop)
            }
            Some(QueueRole::Receive(pair)) => {
                self.home(pair).and_then(|pair| pair.rx.take()).map(Lane::stop)
            }
            Some(QueueRole::Transmit(pair)) => {
                self.home(pair).and_then(|pair| pair.tx.take()).map(Lane::stop)
            }
            None => None,
        };
        if let Some(cursor) = stopped {
            self.slot(index)?.cursor = Some(cursor);
        }
        Ok(())
    }

    pub(super) fn enable_queue(
        &mut self,
        index: QueueIndex,
        enabled: bool,
        effects: &mut Effects,
    ) -> Result<(), OpError> {
        let before = self.spread();
        self.slot(index)?.enabled = enabled;
        match self.role(index) {
            Some(QueueRole::Receive(pair)) => {
                let lane = self.home(pair).and_then(|pair| pair.rx.as_mut());
                lane.into_iter().for_each(|lane| lane.set_enabled(enabled));
            }
            Some(QueueRole::Transmit(pair)) => {
                let lane = self.home(pair).and_then(|pair| pair.tx.as_mut());
                lane.into_iter().for_each(|lane| lane.set_enabled(enabled));
            }
            Some(QueueRole::Control) | None => {}
        }
        if !enabled && !self.is_live(index) {
            let slot = self.slot(index)?;
            (slot.cursor, slot.setup) = (None, None);
            self.state.queue_ended(index);
        }
        if self.spread() != before {
            self.configure_pairs();
            self.adapt_endpoint(effects);
        }
        Ok(())
    }

    /// Whether the driver's commands may be a front-end's to obey: the control queue has not been
    /// started here, and may never be.
    pub(super) fn awaits_control(&self) -> bool {
        self.state.pairs.is_none()
    }

    /// How many pairs the driver has said it uses, or may use where it has not been asked
    /// (VIRTIO 1.4 §5.1.9.5.5).
    #[must_use]
    pub fn pairs_in_use(&self) -> u16 {
        let most = self.usable_pairs();
        self.state.pairs.unwrap_or(most).min(most)
    }

    /// How many pairs frames are spread over: those in use that are enabled, without a gap.
    /// Where a front-end obeys the driver's commands itself, enabling is all we hear of it.
    pub(super) fn spread(&self) -> u16 {
        self.spread_where(|index| self.queues.get(index.slot()).is_some_and(|slot| slot.enabled))
    }

    /// Whether enabling a queue, or disabling it, changes that.
    pub(super) fn changes_spread(&self, index: QueueIndex, enabled: bool) -> bool {
        let now = |one: QueueIndex| self.queues.get(one.slot()).is_some_and(|slot| slot.enabled);
        let then = |one| if one == index { enabled } else { now(one) };
        self.spread_where(then) != self.spread_where(now)
    }

    fn spread_where(&self, is_enabled: impl Fn(QueueIndex) -> bool) -> u16 {
        let in_use = self.pairs_in_use();
        let gap = (0..in_use).find(|pair| !is_enabled(PairIndex(*pair).receive()));
        gap.unwrap_or(in_use).max(1)
    }

    /// Tells the open endpoint what has changed.
    pub(super) fn adapt_endpoint(&self, effects: &mut Effects) {
        let open = self.pairs.iter().any(|slot| !matches!(slot.place, Place::Closed));
        if let Some(settings) = self.settings().filter(|_| open) {
            effects.push(Effect::Adapt(settings));
        }
    }

    pub(super) fn set_interrupt(
        &mut self,
        index: QueueIndex,
        interrupt: Option<Arc<dyn Interrupt>>,
        effects: &mut Effects,
    ) -> Result<(), OpError> {
        self.slot(index)?.interrupt.clone_from(&interrupt);
        match self.role(index) {
            Some(QueueRole::Receive(pair)) => {
                if let Some(lane) = self.home(pair).and_then(|pair| pair.rx.as_mut()) {
                    lane.set_interrupt(interrupt);
                }
            }
            Some(QueueRole::Transmit(pair)) => {
                if let Some(lane) = self.home(pair).and_then(|pair| pair.tx.as_mut()) {
                    lane.set_interrupt(interrupt);
                }
            }
            // As for a lane: an answer may have been told to the old one only (VU-MSG-05).
            Some(QueueRole::Control) if self.control.is_some() => {
                interrupt.into_iter().for_each(|new| effects.push(Effect::Interrupt(new)));
            }
            Some(QueueRole::Control) | None => {}
        }
        Ok(())
    }

    /// Whether a queue that has stood elsewhere is to begin where queues begin. A front-end does
    /// not do that to one it has paused; of the control queue it means that there is another
    /// driver, where the front-end has no message for a reset.
    pub(super) fn begins_anew(&self, index: QueueIndex, cursor: Cursor) -> bool {
        let agreed = self.negotiated.as_ref();
        let is_start = agreed.is_some_and(|all| cursor == Cursor::start(all.ring().format));
        is_start && self.cursor(index).is_some_and(|stood| stood != cursor)
    }

    /// Whether the queue runs; its pair, if it has one, is at home.
    pub(super) fn is_live(&self, index: QueueIndex) -> bool {
        let home = |pair: PairIndex| match self.pairs.get(pair.slot()).map(|slot| &slot.place) {
            Some(Place::Home(pair)) => Some(pair),
            Some(Place::Closed | Place::Out | Place::Lost) | None => None,
        };
        match self.role(index) {
            Some(QueueRole::Receive(pair)) => home(pair).is_some_and(|pair| pair.rx.is_some()),
            Some(QueueRole::Transmit(pair)) => home(pair).is_some_and(|pair| pair.tx.is_some()),
            Some(QueueRole::Control) => self.control.is_some(),
            None => false,
        }
    }

    fn home(&mut self, pair: PairIndex) -> Option<&mut crate::pair::QueuePair> {
        self.pairs.get_mut(pair.slot()).and_then(PairSlot::home)
    }

    pub(super) fn slot(&mut self, index: QueueIndex) -> Result<&mut QueueSlot, OpError> {
        self.queues.get_mut(index.slot()).ok_or(OpError::NoSuchQueue(index))
    }
}

fn raise_lane<D: Direction>(
    queue: Queue,
    space: Arc<AddressSpace>,
    agreed: &Negotiated,
    enabled: bool,
    interrupt: Option<Arc<dyn Interrupt>>,
) -> Lane<D> {
    let mut lane = Lane::new(queue, space, agreed.plan(), enabled);
    lane.set_interrupt(interrupt);
    lane
}
