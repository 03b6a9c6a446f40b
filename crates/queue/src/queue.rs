//! A live queue: the one `match` on the ring format, per verb and batch.

use alloc::boxed::Box;
use core::fmt;

use crate::chain::{Batch, Direction};
use crate::fault::Fault;
use crate::kick::{Armed, Published};
use crate::packed::PackedRing;
use crate::setup::Cursor;
use crate::split::SplitRing;

enum Ring {
    Split(SplitRing),
    Packed(PackedRing),
}

/// A live virtqueue with one owner.
pub struct Queue {
    ring: Ring,
    /// Chains taken and not given back.
    held: usize,
    fault: Option<Fault>,
}

/// A queue that cannot stop: chains are still owed.
#[derive(Debug)]
pub struct Unfinished {
    /// The queue, to give them back to.
    pub queue: Queue,
    /// How many are owed.
    pub held: usize,
}

impl Queue {
    pub(crate) fn split(ring: SplitRing) -> Self {
        Self { ring: Ring::Split(ring), held: 0, fault: None }
    }

    pub(crate) fn packed(ring: PackedRing) -> Self {
        Self { ring: Ring::Packed(ring), held: 0, fault: None }
    }

    /// Takes up to `limit` chains and adds them to `into`; returns how many. It stops early when
    /// the batch is full. Every chain in the batch is checked and owed back.
    ///
    /// # Errors
    /// The rule that the driver has broken; the queue gives nothing out any more. Chains taken
    /// before the broken one are in the batch and still owed.
    #[inline]
    pub fn take<D: Direction>(
        &mut self,
        limit: usize,
        into: &mut Batch<D>,
    ) -> Result<usize, Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let before = into.len();
        let result = match &mut self.ring {
            Ring::Split(ring) => ring.take(limit, self.held, into),
            Ring::Packed(ring) => ring.take(limit, into),
        };
        let taken = into.len().saturating_sub(before);
        self.held = self.held.saturating_add(taken);
        match result {
            Ok(left) => {
                into.set_left(left);
                Ok(taken)
            }
            Err(fault) => {
                self.fault = Some(fault);
                Err(fault)
            }
        }
    }

    /// Gives the first `count` chains of the batch back as used, in order, each with the bytes
    /// written to it. Not visible to the driver before [`Self::publish`].
    #[inline]
    pub fn put<D: Direction>(&mut self, batch: &mut Batch<D>, count: usize) {
        let count = count.min(batch.len());
        match &mut self.ring {
            Ring::Split(ring) => ring.put::<D>(batch.rows(count)),
            Ring::Packed(ring) => ring.put::<D>(batch.rows(count)),
        }
        self.held = self.held.saturating_sub(count);
        batch.drop_front(count);
    }

    /// Gives the chains left in the batch back to the ring, as if they had not been taken.
    #[inline]
    pub fn untake<D: Direction>(&mut self, batch: &mut Batch<D>) {
        if batch.is_empty() {
            return;
        }
        match &mut self.ring {
            Ring::Split(ring) => ring.untake(batch.rows(usize::MAX)),
            Ring::Packed(ring) => ring.untake(batch.rows(usize::MAX)),
        }
        self.held = self.held.saturating_sub(batch.len());
        batch.clear();
    }

    /// Makes every `put` visible; says whether the driver wants an interrupt for it.
    #[inline]
    pub fn publish(&mut self) -> Published {
        match &mut self.ring {
            Ring::Split(ring) => ring.publish(),
            Ring::Packed(ring) => ring.publish(),
        }
    }

    /// Asks for a kick with the next chain, and looks once more.
    #[inline]
    pub fn arm(&mut self) -> Armed {
        match &mut self.ring {
            Ring::Split(ring) => ring.arm(),
            Ring::Packed(ring) => ring.arm(),
        }
    }

    /// Wants no kicks for now.
    #[inline]
    pub fn disarm(&mut self) {
        match &mut self.ring {
            Ring::Split(ring) => ring.disarm(),
            Ring::Packed(ring) => ring.disarm(),
        }
    }

    /// Whether there is a chain to take.
    #[inline]
    pub fn has_work(&mut self) -> bool {
        match &mut self.ring {
            Ring::Split(ring) => ring.has_work(),
            Ring::Packed(ring) => ring.has_work(),
        }
    }

    /// Ends the queue's life; its position remains.
    ///
    /// # Errors
    /// When chains are still owed: taken and not given back, or put and not published.
    pub fn stop(self) -> Result<Cursor, Box<Unfinished>> {
        let unpublished = match &self.ring {
            Ring::Split(ring) => ring.unpublished(),
            Ring::Packed(ring) => ring.unpublished(),
        };
        let held = self.held.saturating_add(unpublished);
        if held > 0 {
            return Err(Box::new(Unfinished { queue: self, held }));
        }
        Ok(self.cursor())
    }

    /// How many entries the queue has.
    #[must_use]
    pub fn size(&self) -> u16 {
        match &self.ring {
            Ring::Split(ring) => ring.size(),
            Ring::Packed(ring) => ring.size(),
        }
    }

    /// Whether the driver asks for an interrupt by a position (EVENT_IDX), once for each.
    #[must_use]
    pub fn has_event_idx(&self) -> bool {
        match &self.ring {
            Ring::Split(ring) => ring.has_event_idx(),
            Ring::Packed(ring) => ring.has_event_idx(),
        }
    }

    /// The queue's position: the next chain to take, and what the driver has seen used.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        match &self.ring {
            Ring::Split(ring) => ring.cursor(),
            Ring::Packed(ring) => ring.cursor(),
        }
    }

    /// The rule that the driver has broken, if it has.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue of {} at {:?}, {} held", self.size(), self.cursor(), self.held)
    }
}
