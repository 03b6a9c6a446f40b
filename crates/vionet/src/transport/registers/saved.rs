//! The registers' part of a saved state, which is the same on all buses.

use vionet_spec::feature::{Feature, FeatureBits};
use vionet_spec::net::CONFIG_LEN;
use vionet_spec::status::{
    ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, SUSPEND,
};

use super::{Draft, Registers};
use crate::state::{Body, Driver, Queue, RestoreError};

const STATUS_BITS: u8 =
    ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | SUSPEND | DEVICE_NEEDS_RESET | FAILED;
const _: () = assert!(CONFIG_LEN == 28, "as the state has it");

impl Registers {
    /// Adds what they hold; the device is paused and at rest.
    pub(in crate::transport) fn save(&self, body: &mut Body) {
        body.driver = Driver {
            status: self.status,
            features: self.features.0,
            beyond: self.beyond,
            device_select: self.device_select,
            driver_select: self.driver_select,
            queue_select: self.queue_select,
            size_max: self.size_max,
            frozen: self.frozen,
            config_due: body.driver.config_due,
        };
        body.queues = self.queues.iter().map(Draft::save).collect();
    }

    /// Whether no driver has begun, and nothing is under way.
    pub(in crate::transport) fn are_untouched(&self) -> bool {
        let at_rest = |draft: &Draft| !draft.enabled && !draft.live && !draft.resetting;
        self.status == 0 && !self.resetting && self.queues.iter().all(at_rest)
    }

    /// Whether a driver can have written this.
    ///
    /// # Errors
    /// What none can have.
    pub(in crate::transport) fn check(&self, saved: &Body) -> Result<(), RestoreError> {
        let Body { driver, queues, control, .. } = saved;
        let has = |bit: u8| driver.status & bit != 0;
        let features = FeatureBits(driver.features);
        let unless = RestoreError::unless;
        if driver.size_max != 0 {
            let [saved, here] = [driver.size_max, self.size_max].map(|size| size.to_string());
            RestoreError::unless_same("a largest queue size of", saved, here)?;
        }
        unless(driver.status & !STATUS_BITS == 0, "a status with bits that mean nothing")?;
        unless(has(FEATURES_OK) || !has(DRIVER_OK | SUSPEND), "a driver without features")?;
        unless(!has(FEATURES_OK) || !driver.beyond, "features that no device has")?;
        let suspended = has(SUSPEND);
        let may = features.has(Feature::SUSPEND) && !has(DRIVER_OK);
        unless(!suspended || may, "a suspended device that cannot be")?;
        unless(suspended == driver.frozen.is_some(), "a configuration that stands still")?;
        if has(FEATURES_OK) && !control.begun {
            return Err(RestoreError::FrontEnd);
        }
        unless(queues.len() == self.queues.len(), "queues that are not there")?;
        let packed = has(FEATURES_OK) && features.has(Feature::RING_PACKED);
        let can_be = |queue: &Queue| {
            let fits = (1..=self.size_max).contains(&queue.size);
            let fits = fits && (packed || queue.size.is_power_of_two());
            // Registers have a size for each queue; others for those alone that were started.
            let fits = fits || driver.size_max == 0 && *queue == Queue::default();
            fits && !(queue.enabled && queue.wrong_size)
                && (queue.enabled || queue.cursor.is_none())
        };
        unless(queues.iter().all(can_be), "a queue of a size that cannot be")?;
        let has_run = queues.iter().any(|queue| queue.cursor.is_some());
        unless(!has_run || has(DRIVER_OK | SUSPEND), "a queue that ran too early")
    }

    /// Puts everything back, of a state that has been checked. Nothing runs before the embedder
    /// resumes the device.
    pub(in crate::transport) fn restore(&mut self, saved: &Body) {
        let Body { driver, queues, .. } = saved;
        self.forget();
        self.status = driver.status;
        self.features = FeatureBits(driver.features);
        self.beyond = driver.beyond;
        self.device_select = driver.device_select;
        self.driver_select = driver.driver_select;
        self.queue_select = driver.queue_select;
        self.agreed = (driver.status & FEATURES_OK != 0).then_some(self.features);
        self.suspending = driver.status & SUSPEND != 0;
        self.frozen = driver.frozen;
        self.has_memory = false;
        self.paused = true;
        for (draft, queue) in self.queues.iter_mut().zip(queues) {
            draft.restore(queue);
        }
    }
}

impl Draft {
    fn save(&self) -> Queue {
        let mut queue = Queue {
            size: self.size,
            wrong_size: self.wrong_size,
            areas: self.areas,
            enabled: self.enabled,
            cursor: None,
        };
        queue.set_cursor(self.cursor.filter(|_| self.enabled));
        queue
    }

    fn restore(&mut self, saved: &Queue) {
        if *saved == Queue::default() {
            return;
        }
        self.size = saved.size;
        self.wrong_size = saved.wrong_size;
        self.areas = saved.areas;
        self.enabled = saved.enabled;
        self.opened = saved.enabled;
        self.cursor = saved.cursor();
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;

    use vionet_raw::{AddressSpace, MemoryMap};

    use super::*;
    use crate::state::Control;

    #[test]
    fn a_queue_has_not_run_before_the_driver_has_brought_the_device_up() {
        let space = Arc::new(AddressSpace::new(Arc::new(MemoryMap::empty())));
        let registers = Registers::new(1, 256, space);
        let checked = |status, cursor| {
            let queue = Queue { size: 256, enabled: true, cursor, ..Queue::default() };
            let driver = Driver { status, ..Driver::default() };
            let control = Control { begun: true, ..Control::default() };
            let queues = [queue].into();
            registers.check(&Body { driver, queues, control, ..Body::default() })
        };
        let agreed = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        assert_eq!(checked(agreed, None), Ok(()));
        for up in [agreed | DRIVER_OK, agreed | DRIVER_OK | FAILED] {
            assert_eq!(checked(up, Some([1, 1])), Ok(()));
        }
        for status in [0, ACKNOWLEDGE | DRIVER, agreed, agreed | FAILED] {
            let refused = checked(status, Some([1, 1]));
            assert!(matches!(refused, Err(RestoreError::Value(_))), "{status:#x}: {refused:?}");
        }
    }
}
