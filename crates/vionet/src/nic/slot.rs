//! Where each pair is, and what is known of each queue beside its life.

use alloc::boxed::Box;
use alloc::sync::Arc;

use vionet_queue::{Cursor, QueueSetup};

use super::op::PairIndex;
use crate::interrupt::Interrupt;
use crate::pair::QueuePair;
use crate::stats::PairStats;

/// Where a pair is.
pub(super) enum Place {
    Closed,
    Home(Box<QueuePair>),
    Out,
    Lost,
}

/// What is known of a queue beside its life in the pair.
#[derive(Default)]
pub(super) struct QueueSlot {
    pub(super) enabled: bool,
    pub(super) interrupt: Option<Arc<dyn Interrupt>>,
    /// Where it stands, while it is stopped.
    pub(super) cursor: Option<Cursor>,
    /// How it was last started.
    pub(super) setup: Option<QueueSetup>,
}

pub(super) struct PairSlot {
    pub(super) index: PairIndex,
    pub(super) place: Place,
    pub(super) stats: Arc<PairStats>,
}

impl PairSlot {
    pub(super) fn new(index: PairIndex) -> Self {
        Self { index, place: Place::Closed, stats: Arc::default() }
    }

    pub(super) fn home(&mut self) -> Option<&mut QueuePair> {
        match &mut self.place {
            Place::Home(pair) => Some(pair),
            Place::Closed | Place::Out | Place::Lost => None,
        }
    }

    pub(super) fn is_out(&self) -> bool {
        matches!(self.place, Place::Out)
    }

    pub(super) fn is_live(&self) -> bool {
        match &self.place {
            Place::Home(pair) => pair.rx.is_some() || pair.tx.is_some(),
            Place::Out => true,
            Place::Closed | Place::Lost => false,
        }
    }
}
