//! The control plane's part of a saved state. Every pair is at home, and no queue runs.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use vionet_spec::feature::FeatureBits;
use vionet_spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};

use super::slot::{Place, QueueSlot};
use super::{Nic, QueueIndex};
use crate::config::NicConfig;
use crate::control::ControlState;
use crate::negotiate::{Negotiated, Refusal};
use crate::state::{Body, Config, Counters, Driver, Lane, Queue, RestoreError, SaveError};
use crate::stats::{ControlSnapshot, Counter, LaneStats};

impl Nic {
    /// The device as a front without registers leaves it.
    ///
    /// # Errors
    /// When a queue runs.
    pub(crate) fn save(&self) -> Result<Body, SaveError> {
        if let Some(index) = self.first_live() {
            return Err(SaveError::Running(index));
        }
        let features = self.negotiated.map(|agreed| agreed.bits());
        let queues: Vec<_> = self.queues.iter().map(saved_queue).collect();
        let mut status = 0;
        if features.is_some() {
            let runs = queues.iter().any(|queue| queue.enabled);
            let ok = if runs { DRIVER_OK } else { 0 };
            status = ACKNOWLEDGE | DRIVER | FEATURES_OK | ok;
        }
        // Whoever goes on with it has a host side, and the driver has seen the link go down.
        let features = features.unwrap_or_default();
        Ok(Body {
            config: saved_config(&self.config),
            link_up: self.link_up,
            generation: self.generation.wrapping_add(self.is_absent.into()),
            driver: Driver {
                status,
                features: features.0,
                config_due: self.is_absent,
                ..Driver::default()
            },
            queues,
            control: self.state.save(&self.config, features),
            counters: self.saved_counters(),
            bus: crate::state::Bus::None,
        })
    }

    /// A queue that runs, if one does.
    fn first_live(&self) -> Option<QueueIndex> {
        let out = self.pairs.iter().find(|slot| slot.is_out()).map(|slot| slot.index.receive());
        let mut all = (0..self.queues()).map(QueueIndex);
        out.or_else(|| all.find(|index| self.is_live(*index)))
    }

    /// Takes the state, of which `driver` has been judged by whoever is in front.
    ///
    /// # Errors
    /// Whatever keeps it from being taken; nothing has changed then.
    pub(crate) fn restore(&mut self, saved: &Body) -> Result<(), RestoreError> {
        if self.negotiated.is_some() || self.first_live().is_some() {
            return Err(RestoreError::InUse);
        }
        check_config(&saved.config, &self.config)?;
        let agreed = self.agreed(saved).map_err(RestoreError::Features)?;
        let state = ControlState::restore(&saved.control, &self.config, agreed.as_ref())?;
        RestoreError::unless(saved.queues.len() == self.queues.len(), "queues that are not there")?;
        self.check_queues(saved, agreed.as_ref())?;
        self.check_counters(&saved.counters)?;
        let Body { link_up, generation, queues, counters, .. } = saved;
        (self.link_up, self.generation) = (*link_up, *generation);
        (self.negotiated, self.state) = (agreed, state);
        let runs = saved.driver.is_running();
        for (slot, queue) in self.queues.iter_mut().zip(queues) {
            slot.enabled = queue.enabled;
            slot.setup = (queue.enabled && runs).then(|| queue.setup());
            slot.cursor = queue.cursor();
        }
        self.pairs.iter_mut().for_each(|slot| slot.place = Place::Closed);
        self.restore_counters(counters);
        Ok(())
    }

    fn agreed(&self, saved: &Body) -> Result<Option<Negotiated>, Refusal> {
        if saved.driver.status & FEATURES_OK == 0 {
            return Ok(None);
        }
        let bits = FeatureBits(saved.driver.features);
        let offer = &self.offer;
        let begun = saved.control.begun;
        let agreed = if begun { offer.accept(bits) } else { offer.accept_by_front_end(bits) };
        agreed.map(Some)
    }

    /// Rings are where they can be, of queues that are to run: as if they had just been enabled.
    fn check_queues(&self, saved: &Body, agreed: Option<&Negotiated>) -> Result<(), RestoreError> {
        let Some(agreed) = agreed.filter(|_| saved.driver.is_running()) else { return Ok(()) };
        let space = agreed.space(&self.space);
        for (index, queue) in (0..).map(QueueIndex).zip(&saved.queues) {
            if queue.enabled {
                let check = queue.setup().check(&space, agreed.ring(), queue.cursor());
                check.map_err(|fault| RestoreError::Queue(index, fault))?;
            }
        }
        Ok(())
    }

    fn saved_counters(&self) -> Counters {
        let ControlSnapshot { commands, obeyed, faults } = self.control_stats.snapshot();
        let lanes = self.pairs.iter().map(|slot| [&slot.stats.rx, &slot.stats.tx].map(saved_lane));
        Counters { control: [commands, obeyed, faults], pairs: lanes.collect() }
    }

    fn check_counters(&self, saved: &Counters) -> Result<(), RestoreError> {
        let fits = |lane: &Lane| {
            let rows = [lane.counters.len(), lane.batch_sizes.len(), lane.wake_sizes.len()];
            let here = LaneStats::default();
            let known = [here.counters().len(), here.batch_sizes.values().len()];
            let [counters, sizes] = known;
            let within =
                rows.iter().zip([counters, sizes, sizes]).all(|(len, known)| *len <= known);
            within && lane.drops.len() <= here.drop_counters().len()
        };
        let known = saved.pairs.iter().flatten().all(fits);
        let all = saved.pairs.len() == self.pairs.len();
        RestoreError::unless(known && all, "counters that are not there")
    }

    fn restore_counters(&mut self, saved: &Counters) {
        set_all(self.control_stats.counters(), &saved.control);
        for (slot, lanes) in self.pairs.iter().zip(&saved.pairs) {
            for (lane, saved) in [&slot.stats.rx, &slot.stats.tx].into_iter().zip(lanes) {
                set_all(lane.counters(), &saved.counters);
                set_all(lane.batch_sizes.counters(), &saved.batch_sizes);
                set_all(lane.wake_sizes.counters(), &saved.wake_sizes);
                set_all(lane.drop_counters(), &saved.drops);
            }
        }
    }
}

fn set_all<'a>(counters: impl IntoIterator<Item = &'a Counter>, saved: &[u64]) {
    // Counters that the saved device did not have begin at 0.
    let saved = saved.iter().chain(core::iter::repeat(&0));
    counters.into_iter().zip(saved).for_each(|(counter, count)| counter.set(*count));
}

fn saved_lane(lane: &LaneStats) -> Lane {
    let values = |counters: &[Counter]| counters.iter().map(Counter::value).collect();
    Lane {
        counters: lane.counters().map(Counter::value).collect(),
        batch_sizes: values(lane.batch_sizes.counters()),
        wake_sizes: values(lane.wake_sizes.counters()),
        drops: values(lane.drop_counters()),
    }
}

fn saved_queue(slot: &QueueSlot) -> Queue {
    let Some(setup) = slot.setup.filter(|_| slot.enabled) else { return Queue::default() };
    let areas = [setup.descriptors.0, setup.driver.0, setup.device.0];
    let mut queue = Queue { size: setup.size, areas, enabled: true, ..Queue::default() };
    queue.set_cursor(slot.cursor);
    queue
}

fn saved_config(config: &NicConfig) -> Config {
    let NicConfig { mac, mtu, pairs, speed, mac_may_change, standby } = *config;
    Config { mac, mtu, pairs, speed, mac_may_change, standby }
}

/// What the driver has been shown of it is the same here.
fn check_config(saved: &Config, here: &NicConfig) -> Result<(), RestoreError> {
    let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let speed = |speed: Option<u32>| speed.map_or("unknown".into(), |speed| format!("{speed}"));
    let same = RestoreError::unless_same;
    same("the address", mac(saved.mac), mac(here.mac))?;
    same("an MTU of", saved.mtu.to_string(), here.mtu.to_string())?;
    same("a number of queue pairs of", saved.pairs.to_string(), here.pairs.to_string())?;
    same("a speed in Mbit/s of", speed(saved.speed), speed(here.speed))
}
