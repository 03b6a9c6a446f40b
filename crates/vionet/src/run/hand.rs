//! Pairs that no thread of ours works on: the embedder's loop does.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::{Report, ReportBox, bell, held, ring, silence};
use crate::nic::PairIndex;
use crate::pair::{Next, QueuePair};
use crate::time::Instant;

/// Where pairs wait for the embedder's loop to step them. Handles to the same place are alike.
///
/// A loop waits for the doorbells of the queues, for [`Self::bell`], and for what
/// [`Next::Wait`] has said of each pair; then it services every pair until it waits again.
#[derive(Clone)]
pub struct Hands(Arc<Table>);

struct Table {
    spots: Mutex<Vec<Arc<Spot>>>,
    bell: OwnedFd,
    /// How many pairs have come and not been serviced: while there are any, the bell is rung.
    unseen: AtomicUsize,
}

/// A pair's place.
pub(crate) struct Spot {
    index: PairIndex,
    reports: ReportBox,
    pair: Mutex<Option<Box<QueuePair>>>,
    /// It has come and not been serviced.
    is_unseen: AtomicBool,
    table: Arc<Table>,
}

impl Hands {
    /// A place for the pairs of any number of devices.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let (spots, unseen) = (Mutex::default(), AtomicUsize::new(0));
        Ok(Self(Arc::new(Table { spots, bell: bell()?, unseen })))
    }

    /// How many places are taken: the first device's pairs, in order, then the next one's.
    #[must_use]
    pub fn places(&self) -> usize {
        held(&self.0.spots).len()
    }

    /// Readable when a pair has come to its place: it wants to be serviced.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }

    /// One step of the pair at a place, and what it waits for then; `None` while there is none.
    /// Never waits, but for another thread that is in the same call or takes the pair away.
    pub fn service(&self, place: usize, now: Instant) -> Option<Next> {
        let spot = held(&self.0.spots).get(place).cloned();
        spot.iter().for_each(|spot| spot.see());
        self.0.hush();
        let spot = spot?;
        let mut pair = held(&spot.pair);
        let step = pair.as_mut()?.service(now);
        if let Some(fault) = step.fault {
            spot.reports.put(Report::Fault(fault));
        }
        if let Some(fault) = step.host {
            spot.reports.put(Report::Host { pair: spot.index, fault });
        }
        Some(step.next)
    }

    /// Calls `see` with the descriptors of the pair at a place, to wait on: the endpoint's, as
    /// [`Next::Wait`] says, and the one that its neighbours ring.
    pub fn with_fds<R>(
        &self,
        place: usize,
        see: impl FnOnce([Option<BorrowedFd<'_>>; 2]) -> R,
    ) -> R {
        let spot = held(&self.0.spots).get(place).cloned();
        let pair = spot.as_ref().map(|spot| held(&spot.pair));
        let pair = pair.as_ref().and_then(|pair| pair.as_ref());
        see([pair.and_then(|pair| pair.endpoint_fd()), pair.and_then(|pair| pair.bell_fd())])
    }

    pub(super) fn take_place(&self, index: PairIndex, reports: ReportBox) -> Arc<Spot> {
        let (table, is_unseen) = (Arc::clone(&self.0), AtomicBool::new(false));
        let spot = Arc::new(Spot { index, reports, pair: Mutex::default(), is_unseen, table });
        held(&self.0.spots).push(Arc::clone(&spot));
        spot
    }
}

impl Table {
    /// Silences the bell, unless it rings for one more.
    fn hush(&self) {
        silence(&self.bell);
        // Who comes in between is counted before it rings.
        if self.unseen.load(Ordering::SeqCst) > 0 {
            ring(&self.bell);
        }
    }
}

impl Spot {
    pub(super) fn put(&self, pair: Box<QueuePair>) {
        *held(&self.pair) = Some(pair);
        if !self.is_unseen.swap(true, Ordering::SeqCst) {
            self.table.unseen.fetch_add(1, Ordering::SeqCst);
        }
        ring(&self.table.bell);
    }

    /// It is serviced now, or gone.
    fn see(&self) {
        if self.is_unseen.swap(false, Ordering::SeqCst) {
            self.table.unseen.fetch_sub(1, Ordering::SeqCst);
        }
    }

    pub(super) fn take(&self) -> Option<Box<QueuePair>> {
        self.see();
        held(&self.pair).take()
    }

    pub(super) fn leave(&self) {
        drop(self.take());
        held(&self.table.spots).retain(|spot| !std::ptr::eq(&raw const **spot, self));
    }
}

impl fmt::Debug for Hands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hands").field("places", &self.places()).finish()
    }
}
