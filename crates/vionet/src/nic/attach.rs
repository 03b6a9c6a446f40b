//! The endpoint's queues: opened when the first queue starts, taken away from under a running
//! driver, replaced by those of another endpoint.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::slot::{PairSlot, Place};
use super::{Effect, Effects, Job, Nic, OpError};
use crate::absent::Absent;
use crate::endpoint::{Capabilities, EndpointQueue, OpenError};
#[cfg(feature = "std")]
use crate::pair::Inlet;
use crate::pair::{Guarded, Lower, QueuePair};

impl Nic {
    /// Before answering [`Effect::Open`] whose settings have `spreads`: an inlet for each pair.
    #[cfg(feature = "std")]
    pub fn set_inlets(&mut self, inlets: Vec<Arc<Inlet>>) {
        self.inlets = inlets.into();
    }

    /// Answers [`Effect::Open`] with one endpoint queue per pair, in pair order.
    pub fn opened(
        &mut self,
        queues: Result<Vec<Box<dyn EndpointQueue>>, OpenError>,
        effects: &mut Effects,
    ) {
        let (Some(job), Some(agreed)) = (self.pending.take(), self.negotiated) else { return };
        let queues = match queues {
            Ok(queues) => queues,
            Err(error) => return self.finish(Err(OpError::Endpoint(error)), effects),
        };
        let transmit = agreed.plan().transmit;
        for (slot, queue) in self.pairs.iter_mut().zip(queues) {
            let queue = Lower::around(queue, transmit, self.capabilities.transmit);
            let queue = Guarded::around(queue, self.guard.as_ref());
            match &mut slot.place {
                Place::Home(pair) => pair.set_endpoint(queue),
                Place::Closed | Place::Out | Place::Lost => {
                    let stats = Arc::clone(&slot.stats);
                    let pair = QueuePair::new(slot.index, *agreed.plan(), queue, stats);
                    slot.place = Place::Home(Box::new(pair));
                }
            }
            #[cfg(feature = "std")]
            {
                let inlet = self.inlets.get(slot.index.slot()).cloned();
                slot.home().into_iter().for_each(|pair| pair.add_inlet(inlet.clone()));
            }
        }
        self.gather_inlets();
        self.configure_pairs();
        self.perform(job, effects);
    }

    /// Whether nothing is behind the device.
    #[cfg(feature = "std")]
    pub(crate) fn is_absent(&self) -> bool {
        self.is_absent
    }

    /// Lets go of the endpoint's queues; every pair is at home.
    pub(super) fn detach(&mut self) {
        self.pairs.iter_mut().filter_map(PairSlot::home).for_each(|pair| {
            pair.set_endpoint(Box::new(Absent));
        });
        #[cfg(feature = "std")]
        self.set_inlets(Vec::new());
        self.flows = None;
        self.is_detached = true;
    }

    pub(super) fn attach(&mut self, with: Option<Capabilities>, effects: &mut Effects) {
        let before = self.is_link_up();
        let Some(capabilities) = with else {
            self.detach();
            (self.is_detached, self.is_absent) = (false, true);
            self.configure_pairs();
            self.link_changed(before, effects);
            return self.finish(Ok(()), effects);
        };
        if let Err(error) = self.suits(&capabilities) {
            return self.finish(Err(error), effects);
        }
        // An endpoint is opened only when the queues of its opening before are gone.
        self.detach();
        self.capabilities = capabilities;
        let is_open = self.pairs.iter().any(|slot| !matches!(slot.place, Place::Closed));
        match self.settings().filter(|_| is_open) {
            Some(settings) => {
                self.pending = Some(Job::Attached);
                effects.push(Effect::Open(settings));
            }
            None => self.attached(effects),
        }
    }

    /// Whether the driver sees nothing of the change.
    fn suits(&self, capabilities: &Capabilities) -> Result<(), OpError> {
        let too_small = |what, shown, has| Err(OpError::TooSmall { what, shown, has });
        if capabilities.pairs_max < self.config.pairs {
            return too_small("queue pairs", self.config.pairs, capabilities.pairs_max);
        }
        if capabilities.mtu < self.config.mtu {
            return too_small("bytes of MTU", self.config.mtu, capabilities.mtu);
        }
        Ok(())
    }

    pub(super) fn attached(&mut self, effects: &mut Effects) {
        let before = self.is_link_up();
        (self.is_detached, self.is_absent) = (false, false);
        self.link_changed(before, effects);
        self.finish(Ok(()), effects);
    }
}
