//! What the registers of a device mean, whatever bus they lie on: values in, steps out.
//!
//! ```text
//!   pci, mmio  --Field, value-->  Registers  --Step-->  the device (plane.rs)
//!                                     ^                    |
//!                                     +------ did ---------+
//! ```
//!
//! The driver's writes say what it wants: a draft of each queue, a status. Of what the device is
//! the registers know which queues live. [`Registers::next_step`] is the next thing to do about
//! the difference, so that writes need no order, and one that is taken back leaves nothing behind.
//! A step may take a while (a worker has to give its pair back); the driver sees the old state
//! until it is done, and reads on.

mod saved;

use alloc::sync::Arc;
use alloc::vec::Vec;

use vionet_queue::{Cursor, QueueSetup};
use vionet_raw::AddressSpace;
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_spec::net::CONFIG_LEN;
use vionet_spec::ring::SIZE_MAX;
use vionet_spec::status::{
    ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, SUSPEND,
};

use super::draft::{Area, Draft, Half, Refused, halves};
use crate::nic::{OpError, QueueIndex};

/// The registers that both buses have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    NumQueues,
    Status,
    ConfigGeneration,
    QueueSelect,
    QueueSizeMax,
    QueueSize,
    QueueArea(Area, Half),
    /// PCI: 1 enables, 0 is ignored.
    QueueEnable,
    /// MMIO: 1 enables, 0 stops.
    QueueReady,
    QueueReset,
}

/// What the device is to be brought to next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Reset,
    Negotiate(FeatureBits),
    /// Let queues live in the registers' memory.
    Memory,
    /// Let the queue interrupt and be kicked.
    Wire(QueueIndex),
    Enable(QueueIndex, bool),
    Start {
        index: QueueIndex,
        setup: QueueSetup,
        /// Where it goes on; at the beginning when not given.
        from: Option<Cursor>,
    },
    Stop(QueueIndex),
}

/// What of the device is seen through registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) offer: FeatureBits,
    pub(super) config: [u8; CONFIG_LEN],
    pub(super) generation: u8,
}

/// What the embedder or the driver must be told of a step or a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Told {
    Nothing,
    /// The status shows NEEDS_RESET from now on (ST-04).
    NeedsReset,
}

/// The registers of one device.
pub(super) struct Registers {
    size_max: u16,
    status: u8,
    device_select: u32,
    driver_select: u32,
    features: FeatureBits,
    /// A bit past all that a feature can have was written.
    beyond: bool,
    queue_select: u32,
    queues: Vec<Draft>,
    space: Arc<AddressSpace>,
    /// What was agreed, once it was.
    agreed: Option<FeatureBits>,
    has_memory: bool,
    resetting: bool,
    negotiating: bool,
    suspending: bool,
    /// The whole function is being reset.
    is_away: bool,
    /// By the embedder.
    pub(super) paused: bool,
    /// The bus lets the device access memory; where not, queues stand still.
    pub(super) is_master: bool,
    /// Queues stop, and start again in other memory.
    moving: bool,
    /// What the driver sees of the configuration while it is suspended (SUS-05).
    frozen: Option<([u8; CONFIG_LEN], u8)>,
}

impl Registers {
    /// After reset. `size_max` is a power of two.
    pub(super) fn new(queues: u16, size_max: u16, space: Arc<AddressSpace>) -> Self {
        Self {
            size_max,
            status: 0,
            device_select: 0,
            driver_select: 0,
            features: FeatureBits::NONE,
            beyond: false,
            queue_select: 0,
            queues: (0..queues).map(|_| Draft::new(size_max)).collect(),
            space,
            agreed: None,
            has_memory: false,
            resetting: false,
            negotiating: false,
            suspending: false,
            is_away: false,
            paused: false,
            is_master: true,
            moving: false,
            frozen: None,
        }
    }

    pub(super) const fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// The queue that the queue registers are about, if there is one.
    pub(super) fn selected(&self) -> Option<QueueIndex> {
        let index = u16::try_from(self.queue_select).ok()?;
        (usize::from(index) < self.queues.len()).then_some(QueueIndex(index))
    }

    pub(super) fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// Whether `feature` was agreed on.
    pub(super) fn has(&self, feature: Feature) -> bool {
        self.agreed.is_some_and(|agreed| agreed.has(feature))
    }

    fn draft(&self) -> Option<&Draft> {
        self.queues.get(self.selected()?.slot())
    }

    fn draft_mut(&mut self) -> Option<&mut Draft> {
        let slot = self.selected()?.slot();
        self.queues.get_mut(slot)
    }

    /// Whether queues are to live (ST-02, ST-07, ST-08).
    fn runs(&self) -> bool {
        let stands = self.resetting || self.suspending || self.paused || self.moving;
        !stands
            && self.is_master
            && self.status & (DRIVER_OK | FAILED | DEVICE_NEEDS_RESET) == DRIVER_OK
    }

    /// Whether the driver has brought the device up and it is not in error.
    pub(super) fn is_up(&self) -> bool {
        self.status & DRIVER_OK != 0 && !self.resetting
    }

    pub(super) fn read(&self, field: Field, seen: &Seen) -> u32 {
        let of_queue = |value: &dyn Fn(&Draft) -> u32| self.draft().map_or(0, value);
        match field {
            Field::DeviceFeatureSelect => self.device_select,
            Field::DeviceFeature => word(seen.offer, self.device_select),
            Field::DriverFeatureSelect => self.driver_select,
            Field::DriverFeature => word(self.features, self.driver_select),
            Field::NumQueues => u32::from(self.queue_count()),
            Field::Status => u32::from(self.status),
            Field::ConfigGeneration => {
                u32::from(self.frozen.map_or(seen.generation, |(_, generation)| generation))
            }
            Field::QueueSelect => self.queue_select,
            Field::QueueSizeMax => of_queue(&|_| u32::from(self.size_max)),
            Field::QueueSize => of_queue(&|draft| u32::from(draft.size)),
            Field::QueueArea(area, half) => of_queue(&|draft| {
                let [low, high] = halves(draft.area(area));
                if half == Half::Low { low } else { high }
            }),
            Field::QueueEnable => of_queue(&|draft| u32::from(draft.enabled)),
            // It reads what was written, but 0 only when nothing touches the queue any more.
            Field::QueueReady => of_queue(&|draft| u32::from(draft.enabled || draft.live)),
            Field::QueueReset => of_queue(&|draft| u32::from(draft.resetting)),
        }
    }

    /// Bytes of the device configuration from `offset` on; 0 past its end.
    pub(super) fn read_config(&self, offset: u64, data: &mut [u8], seen: &Seen) {
        let config = self.frozen.map_or(seen.config, |(config, _)| config);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = config.iter().skip(start).chain(core::iter::repeat(&0));
        for (to, from) in data.iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    pub(super) fn write(&mut self, field: Field, value: u32, seen: &Seen) {
        // While a reset goes on the driver waits for it (PCOM-25).
        if self.resetting {
            return;
        }
        match field {
            Field::DeviceFeatureSelect => self.device_select = value,
            Field::DriverFeatureSelect => self.driver_select = value,
            Field::DriverFeature => self.write_features(value),
            Field::Status => {
                let [status, ..] = value.to_le_bytes();
                self.write_status(status, seen);
            }
            Field::QueueSelect => self.queue_select = value,
            Field::QueueSize => self.write_size(value),
            Field::QueueArea(area, half) => {
                if let Some(draft) = self.draft_mut().filter(|draft| draft.is_open()) {
                    let [low, high] = halves(draft.area(area));
                    let (low, high) = if half == Half::Low { (value, high) } else { (low, value) };
                    *draft.area_mut(area) = u64::from(high) << 32 | u64::from(low);
                }
            }
            Field::QueueEnable | Field::QueueReady => self.write_enable(field, value),
            Field::QueueReset => {
                let known = self.has(Feature::RING_RESET);
                if let Some(draft) = self.draft_mut()
                    && known
                    && value == 1
                    && draft.enabled
                {
                    draft.resetting = true;
                    self.settle();
                }
            }
            Field::DeviceFeature
            | Field::NumQueues
            | Field::ConfigGeneration
            | Field::QueueSizeMax => {}
        }
    }

    fn write_features(&mut self, value: u32) {
        // Features change only through a reset (FEAT-08).
        if self.status & FEATURES_OK != 0 {
            return;
        }
        match self.driver_select {
            select @ 0..4 => {
                let shift = select.saturating_mul(32);
                let mask = u128::from(u32::MAX).wrapping_shl(shift);
                let word = u128::from(value).wrapping_shl(shift);
                self.features = FeatureBits(self.features.0 & !mask | word);
            }
            _ => self.beyond |= value != 0,
        }
    }

    fn write_size(&mut self, value: u32) {
        let packed = self.has(Feature::RING_PACKED);
        let max = self.size_max;
        let Some(draft) = self.draft_mut().filter(|draft| draft.is_open()) else { return };
        let size = u16::try_from(value).ok().filter(|size| (1..=max).contains(size));
        match size.filter(|size| packed || size.is_power_of_two()) {
            Some(size) => (draft.size, draft.wrong_size) = (size, false),
            // What the driver thinks its ring to be is not known (PCOM-23, MMIO-26).
            None => draft.wrong_size = true,
        }
    }

    fn write_enable(&mut self, field: Field, value: u32) {
        let Some(draft) = self.draft_mut() else { return };
        match (field, value) {
            (_, 1) if draft.is_open() && !draft.wrong_size => {
                draft.enabled = true;
                draft.cursor = None;
                draft.refused = Refused::No;
            }
            (Field::QueueReady, 0) if !draft.resetting => draft.enabled = false,
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8, seen: &Seen) {
        if value == 0 {
            return self.begin_reset();
        }
        if self.status & DEVICE_NEEDS_RESET != 0 {
            return;
        }
        // A bit that is not written stays (ST-06).
        self.status |= value & (ACKNOWLEDGE | DRIVER | FAILED);
        if value & FEATURES_OK != 0 && self.status & FEATURES_OK == 0 {
            self.negotiating = true;
        }
        let agreed = self.status & FEATURES_OK != 0;
        let suspended = self.status & SUSPEND != 0;
        if value & DRIVER_OK != 0 && suspended {
            self.status = self.status & !SUSPEND | DRIVER_OK;
            self.suspending = false;
            self.frozen = None;
        } else if value & DRIVER_OK != 0 && (agreed || self.negotiating) {
            // Without features there is nothing to be OK about; with them it stays for their end.
            self.status |= DRIVER_OK;
        }
        let may_suspend = self.has(Feature::SUSPEND) && self.status & DRIVER_OK != 0;
        if value & SUSPEND != 0 && value & DRIVER_OK == 0 && may_suspend && !suspended {
            self.suspending = true;
            self.settle_suspend(seen);
        }
    }

    fn begin_reset(&mut self) {
        self.resetting = true;
        self.forget();
    }

    /// As [`Self::begin_reset`], and the function is not there until it is over.
    pub(super) fn begin_function_reset(&mut self) {
        self.is_away = true;
        self.begin_reset();
    }

    pub(super) fn is_away(&self) -> bool {
        self.is_away
    }

    /// What the driver has written is gone; the status is kept until the device is at rest.
    fn forget(&mut self) {
        self.device_select = 0;
        self.driver_select = 0;
        self.features = FeatureBits::NONE;
        self.beyond = false;
        self.queue_select = 0;
        self.agreed = None;
        self.negotiating = false;
        self.suspending = false;
        self.frozen = None;
        let size_max = self.size_max;
        self.queues.iter_mut().for_each(|draft| *draft = Draft::new(size_max));
    }

    /// The next thing to do about the difference between what is wanted and what is.
    pub(super) fn next_step(&mut self, seen: &Seen) -> Option<Step> {
        if self.resetting {
            return Some(Step::Reset);
        }
        if self.negotiating {
            if !self.beyond {
                return Some(Step::Negotiate(self.features));
            }
            self.refuse_features();
        }
        let runs = self.runs();
        let queues = (0..).map(QueueIndex).zip(&self.queues);
        let wanted = |draft: &Draft| runs && draft.enabled && !draft.resetting;
        for (index, draft) in queues.clone() {
            if draft.live && !wanted(draft) {
                return Some(Step::Stop(index));
            }
            if draft.opened && (draft.resetting || !draft.enabled) {
                return Some(Step::Enable(index, false));
            }
        }
        self.moving = false;
        self.settle();
        self.settle_suspend(seen);
        let runs = self.runs();
        let wanted = |draft: &Draft| runs && draft.enabled && !draft.resetting;
        let mut queues = (0..).map(QueueIndex).zip(&mut self.queues);
        let (index, draft) = queues
            .find(|(_, draft)| wanted(draft) && !draft.live && draft.refused == Refused::No)?;
        Some(if !self.has_memory {
            Step::Memory
        } else if !draft.wired {
            Step::Wire(index)
        } else if !draft.opened {
            Step::Enable(index, true)
        } else {
            draft.live = true;
            Step::Start { index, setup: draft.setup(), from: draft.cursor }
        })
    }

    /// The device has done a step, or refused it. `cursor` is where a stopped queue stands.
    pub(super) fn did(
        &mut self,
        step: Step,
        result: Result<(), OpError>,
        cursor: Option<Cursor>,
    ) -> Told {
        match step {
            Step::Reset => {
                // A step that was under way when the reset came has been done since.
                self.forget();
                self.resetting = false;
                self.is_away = false;
                self.has_memory = false;
                self.moving = false;
                self.status = 0;
            }
            Step::Negotiate(bits) => match result {
                Ok(()) => {
                    self.negotiating = false;
                    self.agreed = Some(bits);
                    self.status |= FEATURES_OK;
                }
                Err(_) => self.refuse_features(),
            },
            Step::Memory => self.has_memory = true,
            Step::Wire(index) => self.of(index, |draft| draft.wired = true),
            Step::Enable(index, on) => self.of(index, |draft| draft.opened = on),
            Step::Stop(index) => {
                let keeps = |draft: &Draft| draft.enabled && !draft.resetting;
                self.of(index, |draft| {
                    draft.live = false;
                    draft.cursor = cursor.filter(|_| keeps(draft));
                });
            }
            Step::Start { index, .. } => {
                let refused = if result.is_ok() { Refused::No } else { Refused::Idle };
                self.of(index, |draft| (draft.live, draft.refused) = (result.is_ok(), refused));
                if let Err(OpError::Queue(..)) = result {
                    return self.broken();
                }
            }
        }
        Told::Nothing
    }

    /// The driver has broken a rule, or a queue is lost: only a reset helps (ST-03).
    pub(super) fn broken(&mut self) -> Told {
        if self.resetting || self.status & (DRIVER_OK | SUSPEND) == 0 {
            return Told::Nothing;
        }
        let news = self.status & DEVICE_NEEDS_RESET == 0;
        self.status |= DEVICE_NEEDS_RESET;
        if news { Told::NeedsReset } else { Told::Nothing }
    }

    /// Queues go on in this memory, as soon as they have left the one of before.
    pub(super) fn move_to(&mut self, space: Arc<AddressSpace>) {
        self.space = space;
        self.has_memory = false;
        self.moving = true;
    }

    /// Queues that the host could not start are tried again.
    pub(super) fn try_again(&mut self) {
        self.queues.iter_mut().for_each(|draft| draft.refused = Refused::No);
    }

    fn refuse_features(&mut self) {
        self.negotiating = false;
        self.status &= !DRIVER_OK;
    }

    fn of(&mut self, index: QueueIndex, change: impl FnOnce(&mut Draft)) {
        if let Some(draft) = self.queues.get_mut(index.slot()) {
            change(draft);
        }
    }

    /// Ends the resets of queues that nothing touches any more (PCOM-13, VQR-04).
    fn settle(&mut self) {
        let size_max = self.size_max;
        let ready = |draft: &&mut Draft| draft.resetting && !draft.live && !draft.opened;
        for draft in self.queues.iter_mut().filter(ready) {
            *draft = Draft::new(size_max);
        }
    }

    /// Shows that the device is suspended once nothing is touched any more (SUS-03, SUS-04).
    fn settle_suspend(&mut self, seen: &Seen) {
        let shown = self.status & SUSPEND != 0;
        if self.suspending && !shown && !self.queues.iter().any(|draft| draft.live) {
            self.status = self.status & !DRIVER_OK | SUSPEND;
            self.frozen = Some((seen.config, seen.generation));
        }
    }
}

/// 32 of the bits; none past the last word (PCOM-03).
fn word(bits: FeatureBits, select: u32) -> u32 {
    let shift = select.checked_mul(32).filter(|shift| *shift < 128);
    let low = shift.map_or(0, |shift| bits.0.wrapping_shr(shift) & u128::from(u32::MAX));
    u32::try_from(low).unwrap_or(0)
}

/// The largest power of two that is a queue size and no more than asked for.
pub(super) fn size_max(wanted: u16) -> u16 {
    let wanted = wanted.clamp(2, SIZE_MAX);
    if wanted.is_power_of_two() { wanted } else { wanted.next_power_of_two() >> 1 }
}

#[cfg(test)]
mod tests {
    use vionet_raw::MemoryMap;

    use super::*;

    const SEEN: Seen = Seen { offer: FeatureBits::NONE, config: [0; CONFIG_LEN], generation: 0 };

    fn registers() -> Registers {
        let space = AddressSpace::new(Arc::new(MemoryMap::empty()));
        Registers::new(2, 256, Arc::new(space))
    }

    /// Does what is to be done up to the start of a queue, which is begun.
    fn begin_start(registers: &mut Registers) -> Step {
        loop {
            let step = registers.next_step(&SEEN).expect("a queue is to be started");
            if matches!(step, Step::Start { .. }) {
                return step;
            }
            assert_eq!(registers.did(step, Ok(()), None), Told::Nothing);
        }
    }

    /// Registers of a driver that has brought up its first queue, whose start has begun.
    fn starting() -> (Registers, Step) {
        let mut registers = registers();
        let up = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        registers.write(Field::DriverFeature, 0, &SEEN);
        registers.write(Field::DriverFeatureSelect, 1, &SEEN);
        let bits = FeatureBits::of(&[Feature::RING_RESET, Feature::SUSPEND]);
        registers.write(Field::DriverFeature, word(bits, 1), &SEEN);
        registers.write(Field::Status, up.into(), &SEEN);
        registers.write(Field::QueueReady, 1, &SEEN);
        registers.write(Field::Status, (up | DRIVER_OK).into(), &SEEN);
        let start = begin_start(&mut registers);
        (registers, start)
    }

    #[test]
    fn a_queue_that_is_being_started_is_not_the_drivers_again_before_it_has_stopped() {
        let (mut registers, start) = starting();
        registers.write(Field::QueueReady, 0, &SEEN);
        assert_eq!(registers.read(Field::QueueReady, &SEEN), 1, "MMIO-28: it may yet start");
        let descriptors = Field::QueueArea(Area::Descriptors, Half::Low);
        registers.write(descriptors, 0x5000, &SEEN);
        registers.write(Field::QueueReady, 1, &SEEN);
        assert_eq!(registers.read(descriptors, &SEEN), 0, "what is started is what it reads");
        assert_eq!(registers.did(start, Ok(()), None), Told::Nothing);
        assert_eq!(registers.next_step(&SEEN), Some(Step::Stop(QueueIndex(0))));
        assert_eq!(registers.did(Step::Stop(QueueIndex(0)), Ok(()), None), Told::Nothing);
        assert_eq!(registers.read(Field::QueueReady, &SEEN), 0);
    }

    #[test]
    fn a_device_is_not_suspended_while_a_queue_is_being_started() {
        let (mut registers, start) = starting();
        registers.write(Field::Status, SUSPEND.into(), &SEEN);
        assert_eq!(registers.read(Field::Status, &SEEN) & u32::from(SUSPEND), 0, "SUS-03");
        assert_eq!(registers.did(start, Ok(()), None), Told::Nothing);
        assert_eq!(registers.next_step(&SEEN), Some(Step::Stop(QueueIndex(0))));
        assert_eq!(registers.did(Step::Stop(QueueIndex(0)), Ok(()), None), Told::Nothing);
        assert_eq!(registers.next_step(&SEEN), None);
        assert_ne!(registers.read(Field::Status, &SEEN) & u32::from(SUSPEND), 0);
    }

    #[test]
    fn a_queue_that_could_not_be_started_is_the_drivers_again() {
        let (mut registers, start) = starting();
        let lost = Err(OpError::PairLost(crate::nic::PairIndex(0)));
        assert_eq!(registers.did(start, lost, None), Told::Nothing);
        assert_eq!(registers.next_step(&SEEN), None, "it is not tried for ever");
        registers.write(Field::QueueReady, 0, &SEEN);
        assert_eq!(registers.read(Field::QueueReady, &SEEN), 0);
    }
}
