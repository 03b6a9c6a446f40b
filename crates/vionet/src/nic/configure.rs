//! What pairs and the endpoint are told of what was agreed, commanded, and decided by the host.

use alloc::boxed::Box;
use alloc::sync::Arc;
#[cfg(feature = "std")]
use alloc::vec::Vec;

#[cfg(feature = "std")]
use vionet_frame::steer::AutoSteer;
use vionet_spec::feature::{Feature, FeatureBits};

use super::Nic;
#[cfg(feature = "std")]
use super::slot::PairSlot;
use crate::endpoint::Settings;
use crate::pair::{Inspection, Judge, PairConfig, Steering};

impl Nic {
    /// What the endpoint is to know of what was agreed.
    pub(super) fn settings(&self) -> Option<Settings> {
        let plan = self.negotiated.as_ref()?.plan();
        let receive = plan.receive.intersection(self.state.offloads);
        Some(Settings {
            transmit: plan.transmit.intersection(self.capabilities.transmit),
            receive: receive.intersection(self.capabilities.receive),
            pairs: self.config.pairs,
            active: self.spread(),
            spreads: self.config.pairs > 1 && self.negotiated.as_ref()?.bits().has(Feature::RSS),
            mtu: plan.mtu,
        })
    }

    /// Sets what the driver's commands and the host have decided in every pair at home.
    pub(super) fn configure_pairs(&mut self) {
        let Some(agreed) = self.negotiated.as_ref() else { return };
        let plan = self.state.plan(agreed.plan());
        let judge = Some(self.judge(agreed.bits())).filter(|judge| !judge.is_idle());
        let inspection = judge.map(|judge| Inspection {
            judge: Arc::new(judge),
            #[cfg(feature = "std")]
            siblings: Arc::clone(&self.inlets),
        });
        let link_up = self.is_link_up();
        let Self { pairs, state, limits, .. } = self;
        for slot in pairs {
            let delays = state.coalescing_of(slot.index);
            let in_use = state.pairs.is_none_or(|pairs| slot.index.0 < pairs);
            if let Some(pair) = slot.home() {
                let limits = limits.clone();
                let inspection = inspection.clone();
                pair.configure(PairConfig { plan, link_up, in_use, delays, limits, inspection });
            }
        }
    }

    /// What is to be asked of every received frame.
    pub(super) fn judge(&self, agreed: FeatureBits) -> Judge {
        let table = self.state.table().filter(|_| self.config.pairs > 1);
        let hashes = agreed.has(Feature::HASH_REPORT) || table.is_some();
        Judge {
            guard: self.guard.clone(),
            filter: self.state.filter().clone(),
            hash: hashes.then(|| self.state.hash()),
            steering: match (table, &self.flows) {
                (Some(table), _) => Steering::Table(Box::new(table.clone())),
                (None, Some(flows)) => Steering::Flow(Arc::clone(flows), self.spread()),
                (None, None) => Steering::AsItCame,
            },
        }
    }

    /// Where the host side delivers into the pairs itself, they pass on what is for others.
    pub(super) fn gather_inlets(&mut self) {
        #[cfg(feature = "std")]
        {
            let own = self.pairs.iter_mut().filter_map(PairSlot::home).map(|pair| pair.own_inlet());
            if let Some(own) = own.collect::<Option<Vec<_>>>().filter(|own| own.len() > 1) {
                self.inlets = own.into();
                self.flows = Some(Arc::new(AutoSteer::new(self.secret)));
            }
        }
    }
}
