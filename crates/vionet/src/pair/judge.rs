//! What is asked of every received frame, when anything is: may the guest have it, does it want it,
//! what is its hash, and which pair is it for?
//!
//! ```text
//!   head (private) --> guard --> filter --> hash --> pair        (1.4 §5.1.9.6: in this order)
//!                      policy    driver's   report   table, or where it came
//! ```
//!
//! Made anew at every change and shared by the pairs; looking at a frame changes nothing.

use alloc::boxed::Box;
use alloc::sync::Arc;

use vionet_frame::filter::Filter;
use vionet_frame::guard::Guard;
use vionet_frame::hash::{FlowHash, HASH_HEAD_LEN, Hashed};
use vionet_frame::steer::{AutoSteer, IndirectionTable};
use vionet_raw::copy_out;

use super::TxBatch;
use crate::nic::PairIndex;
use crate::stats::DropReason;

/// The bytes of a frame that are looked at, or all of a shorter one.
pub(crate) const HEAD: usize = HASH_HEAD_LEN;

/// Which pair a frame goes to.
#[derive(Clone, Debug)]
pub(crate) enum Steering {
    /// The one it came by: there is one, or the host side chooses.
    AsItCame,
    /// By hash and table (NET-RSS-03).
    Table(Box<IndirectionTable>),
    /// Where its flow was last sent from, among so many (NET-CTRL-MQ-02).
    Flow(Arc<AutoSteer>, u16),
}

/// What a frame finds at a pair that it may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "std"), expect(dead_code, reason = "others deliver with threads"))]
pub(crate) enum Door {
    /// The driver takes no frames there.
    Closed,
    /// It could, but has never posted a buffer: only a front-end that obeys the driver's commands
    /// knows whether it will.
    Empty,
    Open,
}

/// What is decided about every received frame of a NIC.
#[derive(Clone, Debug)]
pub(crate) struct Judge {
    pub(crate) guard: Option<Arc<Guard>>,
    pub(crate) filter: Filter,
    /// The hash to report or to steer by.
    pub(crate) hash: Option<FlowHash>,
    pub(crate) steering: Steering,
}

/// What is known of a frame that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) hash: Hashed,
    pub(crate) pair: PairIndex,
}

impl Judge {
    /// Whether it has nothing to say: then it is not asked.
    pub(crate) fn is_idle(&self) -> bool {
        self.guard.is_none()
            && !self.filter.is_on()
            && self.hash.is_none()
            && matches!(self.steering, Steering::AsItCame)
    }

    /// Whether frames go to other pairs than they came by.
    pub(crate) fn spreads(&self) -> bool {
        !matches!(self.steering, Steering::AsItCame)
    }

    /// Where flows are remembered, if that decides.
    pub(crate) fn flows(&self) -> Option<&Arc<AutoSteer>> {
        match &self.steering {
            Steering::Flow(flows, _) => Some(flows),
            Steering::AsItCame | Steering::Table(_) => None,
        }
    }

    /// Judges the frame that begins with `head`, which came by pair `here`.
    /// Where the flow decides, pairs whose `door` is closed are passed over (NET-CTRL-MQ-07), and
    /// those of which the driver makes no use, if there are others.
    pub(crate) fn look(
        &self,
        head: &[u8],
        here: PairIndex,
        door: impl Fn(u16) -> Door,
    ) -> Result<Verdict, DropReason> {
        if let Some(guard) = &self.guard {
            guard.receive(head)?;
        }
        self.filter.accepts(head)?;
        let hash = self.hash.as_ref().map_or(Hashed::NONE, |hash| hash.of(head));
        let pair = match &self.steering {
            Steering::AsItCame => here,
            Steering::Table(table) => PairIndex(table.queue_of(hash)),
            Steering::Flow(flows, pairs) => {
                let pair = flows.queue_of(head, *pairs, |pair| door(pair) == Door::Open);
                let any = || flows.queue_of(head, *pairs, |pair| door(pair) != Door::Closed);
                PairIndex(pair.or_else(any).ok_or(DropReason::QueueDown)?)
            }
        };
        Ok(Verdict { hash, pair })
    }
}

/// The flows of these frames are received on `pair` from now on (NET-CTRL-MQ-03).
pub(super) fn remember(flows: &AutoSteer, batch: &TxBatch<'_>, pair: PairIndex) {
    for frame in batch.frames() {
        let mut head = [0; HEAD];
        let len = copy_out(batch.bytes(frame), 0, &mut head);
        flows.sent(head.get(..len).unwrap_or(&head), pair.0);
    }
}
