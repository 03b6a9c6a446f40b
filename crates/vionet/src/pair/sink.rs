//! What an endpoint sees of the guest's receive side: a plain sink, or one that looks at frames.
//!
//! ```text
//!   endpoint --push, window + commit--> RxSink = Guest: straight into the guest's buffers (rx.rs)
//!                                             | Judged: private copy of the head -> Judge
//!                                                  |-- not wanted: dropped, counted
//!                                                  |-- for this pair: its GuestSink
//!                                                  +-- for another pair: that one's inlet
//! ```
//!
//! A frame that is to be looked at is never looked at in the guest's memory: where an endpoint
//! would fill a window, it gets a private one.

use alloc::sync::Arc;

use vionet_frame::header::Offloads;
use vionet_queue::DeviceWrites;
use vionet_raw::{ReadSpan, Scratch, WriteSpan, copy_out};
use vionet_spec::net::FRAME_MAX;

#[cfg(feature = "std")]
use super::inlet::{Inlet, Opened};
use super::judge::{HEAD, Judge, Verdict};
use super::rx::{Filled, GuestSink};
use super::{BATCH, Lane, Refused};
use crate::endpoint::{EndpointFault, EndpointQueue, RxHeader};
use crate::negotiate::Plan;
use crate::nic::PairIndex;
use crate::stats::{DropReason, LaneStats};
use crate::time::Instant;

/// What a pair needs to look at frames; made when there is a [`Judge`].
pub(crate) struct Bench {
    pub(crate) judge: Arc<Judge>,
    /// Room for one frame.
    scratch: Scratch,
    /// The inlets of all pairs, where frames may be for others.
    #[cfg(feature = "std")]
    siblings: Arc<[Arc<Inlet>]>,
}

impl Bench {
    #[cfg(feature = "std")]
    pub(crate) fn new(judge: Arc<Judge>, siblings: Arc<[Arc<Inlet>]>) -> Self {
        Self { judge, scratch: Scratch::new(FRAME_MAX), siblings }
    }

    #[cfg(not(feature = "std"))]
    pub(crate) fn new(judge: Arc<Judge>) -> Self {
        Self { judge, scratch: Scratch::new(FRAME_MAX) }
    }
}

/// Where received frames go.
pub struct RxSink<'a>(Kind<'a>);

enum Kind<'a> {
    Guest(GuestSink<'a>),
    Judged(JudgedSink<'a>),
}

struct JudgedSink<'a> {
    judge: &'a Judge,
    /// Lent out while a frame in it is handed over.
    scratch: Option<&'a mut Scratch>,
    #[cfg(feature = "std")]
    siblings: &'a [Arc<Inlet>],
    /// The inlet that frames go into now: they come in runs.
    #[cfg(feature = "std")]
    opened: Option<(u16, Opened<'a>)>,
    here: PairIndex,
    /// The lane of this pair, unless it is in its inlet like all others.
    own: Option<GuestSink<'a>>,
    plan: &'a Plan,
    stats: &'a LaneStats,
    budget: usize,
    now: Instant,
}

/// What looks at frames on their way to a pair, if anything does.
pub(super) struct Look<'a> {
    pub(super) bench: &'a mut Bench,
    pub(super) here: PairIndex,
    pub(super) plan: &'a Plan,
    pub(super) stats: &'a LaneStats,
    pub(super) now: Instant,
}

impl Look<'_> {
    /// Has the endpoint deliver what it has; `own` is the pair's lane, if it is at hand.
    #[inline(never)]
    pub(super) fn receive(
        self,
        endpoint: &mut dyn EndpointQueue,
        own: Option<&mut Lane<DeviceWrites>>,
    ) -> (Option<EndpointFault>, Filled) {
        let (plan, stats, now) = (self.plan, self.stats, self.now);
        let own =
            own.map(|lane| GuestSink::new(&mut lane.queue, &mut lane.batch, plan, stats, now));
        let mut sink = RxSink::judged(self, own);
        let host = endpoint.receive(&mut sink).err();
        (host, sink.finish())
    }
}

impl<'a> RxSink<'a> {
    #[inline]
    pub(super) fn guest(sink: GuestSink<'a>) -> Self {
        Self(Kind::Guest(sink))
    }

    /// One that looks; `own` is the pair's lane, if it is at hand.
    pub(super) fn judged(look: Look<'a>, own: Option<GuestSink<'a>>) -> Self {
        let Look { bench, here, plan, stats, now } = look;
        Self(Kind::Judged(JudgedSink {
            judge: &bench.judge,
            scratch: Some(&mut bench.scratch),
            #[cfg(feature = "std")]
            siblings: &bench.siblings,
            #[cfg(feature = "std")]
            opened: None,
            here,
            own,
            plan,
            stats,
            budget: BATCH,
            now,
        }))
    }

    #[cfg(feature = "std")]
    pub(super) fn with_budget(self, budget: usize) -> Self {
        Self(match self.0 {
            Kind::Guest(sink) => Kind::Guest(sink.with_budget(budget)),
            Kind::Judged(sink) => {
                let own = sink.own.map(|own| own.with_budget(budget));
                Kind::Judged(JudgedSink { own, budget, ..sink })
            }
        })
    }

    /// Gives the filled chains of the pair's own lane back, not yet visible.
    #[inline]
    pub(super) fn finish(&mut self) -> Filled {
        match &mut self.0 {
            Kind::Guest(sink) => sink.finish(),
            Kind::Judged(sink) => {
                let spent = sink.budget == 0;
                let filled = sink.own.as_mut().map(GuestSink::finish).unwrap_or_default();
                Filled { spent: filled.spent || spent, ..filled }
            }
        }
    }

    /// When this step began.
    #[must_use]
    pub fn now(&self) -> Instant {
        match &self.0 {
            Kind::Guest(sink) => sink.now(),
            Kind::Judged(sink) => sink.now,
        }
    }

    /// What the guest takes unfinished now.
    #[must_use]
    pub fn takes(&self) -> Offloads {
        match &self.0 {
            Kind::Guest(sink) => sink.takes(),
            Kind::Judged(sink) => sink.plan.receive,
        }
    }

    /// Room for one frame of up to `want` bytes, nothing consumed. `None` when there is no such
    /// room now; then [`Self::room`] tells what there is.
    #[inline]
    pub fn window(&mut self, want: u32) -> Option<&[WriteSpan<'_>]> {
        match &mut self.0 {
            Kind::Guest(sink) => sink.window(want),
            Kind::Judged(sink) => {
                let has_room = sink.has_room(want);
                sink.scratch.as_mut().filter(|_| has_room).map(|scratch| scratch.room(0))
            }
        }
    }

    /// The longest frame that fits now, in bytes; 0 when there is no room or this step has
    /// delivered enough.
    pub fn room(&mut self) -> u32 {
        match &mut self.0 {
            Kind::Guest(sink) => sink.room(),
            Kind::Judged(sink) => match &mut sink.own {
                Some(own) if !sink.judge.spreads() => own.room(),
                Some(_) | None if sink.budget > 0 => sink.plan.frame_max,
                Some(_) | None => 0,
            },
        }
    }

    /// Whether it is time to fetch a frame of up to `len` bytes: it fits, or it never will and is
    /// to be dropped. If not, the guest is asked to say when it has posted more.
    pub fn has_room(&mut self, len: u32) -> bool {
        match &mut self.0 {
            Kind::Guest(sink) => sink.has_room(len),
            Kind::Judged(sink) => sink.has_room(len),
        }
    }

    /// The window's first `len` bytes are a frame: writes its virtio header and settles its
    /// chains. A frame that breaks what was agreed is dropped and counted instead.
    #[inline]
    pub fn commit(&mut self, len: u32, header: &RxHeader) {
        match &mut self.0 {
            Kind::Guest(sink) => sink.commit(len, header),
            Kind::Judged(sink) => sink.commit(len, header),
        }
    }

    /// Delivers a frame from private memory.
    ///
    /// # Errors
    /// [`Refused::Full`]: keep the frame, come again. [`Refused::Dropped`]: forget it.
    #[inline]
    pub fn push(&mut self, header: &RxHeader, frame: &[u8]) -> Result<(), Refused> {
        match &mut self.0 {
            Kind::Guest(sink) => sink.push(header, frame),
            Kind::Judged(sink) => sink.push(header, frame),
        }
    }

    /// Delivers a frame of `len` bytes out of another guest's memory, in one copy.
    ///
    /// # Errors
    /// [`Refused::Full`]: there is no room now. [`Refused::Dropped`]: it never fits.
    #[inline]
    pub fn push_spans(
        &mut self,
        header: &RxHeader,
        len: u32,
        frame: &[ReadSpan<'_>],
    ) -> Result<(), Refused> {
        self.push_checked(header, len, &[], frame)
    }

    /// The same for a frame whose first bytes were looked at: `head` is what was seen, and what
    /// the guest gets, whatever the first bytes of `frame` are by now.
    ///
    /// # Errors
    /// As for [`Self::push_spans`].
    #[inline]
    pub fn push_checked(
        &mut self,
        header: &RxHeader,
        len: u32,
        head: &[u8],
        frame: &[ReadSpan<'_>],
    ) -> Result<(), Refused> {
        match &mut self.0 {
            Kind::Guest(sink) => sink.push_checked(header, len, head, frame),
            Kind::Judged(sink) => sink.push_seen(header, len, head, frame),
        }
    }

    /// Counts a frame that the endpoint itself has dropped. It uses up the step's budget like
    /// any other: no step is without end.
    #[cold]
    pub fn dropped(&mut self, reason: DropReason) {
        match &mut self.0 {
            Kind::Guest(sink) => sink.dropped(reason),
            Kind::Judged(sink) => sink.dropped(reason),
        }
    }
}

impl JudgedSink<'_> {
    fn dropped(&mut self, reason: DropReason) {
        self.stats.dropped(reason, 1);
        self.budget = self.budget.saturating_sub(1);
    }

    fn has_room(&mut self, len: u32) -> bool {
        match &mut self.own {
            _ if self.budget == 0 => false,
            // A frame for another pair waits for nobody: what does not fit there is lost.
            Some(own) if !self.judge.spreads() => own.has_room(len),
            Some(_) | None => true,
        }
    }

    /// What becomes of the frame that begins with `head`.
    fn look(&mut self, head: &[u8]) -> Result<Verdict, Refused> {
        if self.budget == 0 {
            return Err(Refused::Full);
        }
        #[cfg(feature = "std")]
        let siblings = self.siblings;
        #[cfg(feature = "std")]
        let is_ready = |pair| siblings.get(usize::from(pair)).is_some_and(|inlet| inlet.is_open());
        #[cfg(not(feature = "std"))]
        let is_ready = |_| true;
        self.judge.look(head, self.here, is_ready).map_err(|reason| {
            self.dropped(reason);
            Refused::Dropped
        })
    }

    #[inline(never)]
    fn push(&mut self, header: &RxHeader, frame: &[u8]) -> Result<(), Refused> {
        let verdict = self.look(frame.get(..HEAD).unwrap_or(frame))?;
        self.hand_over(verdict, header, |to, header| to.push_apart(header, frame))
    }

    #[inline(never)]
    fn commit(&mut self, len: u32, header: &RxHeader) {
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        let Some(scratch) = self.scratch.take() else { return };
        match scratch.bytes().get(..size) {
            Some(frame) => {
                // Where frames are spread, a window is no promise of room.
                if self.push(header, frame) == Err(Refused::Full) {
                    self.dropped(DropReason::NoBuffer);
                }
            }
            None => self.dropped(DropReason::TooLong),
        }
        self.scratch = Some(scratch);
    }

    #[inline(never)]
    fn push_seen(
        &mut self,
        header: &RxHeader,
        len: u32,
        seen: &[u8],
        frame: &[ReadSpan<'_>],
    ) -> Result<(), Refused> {
        // The head is read once, and is what the guest gets.
        let mut head = [0; HEAD];
        let known = seen.len().min(HEAD);
        for (to, from) in head.iter_mut().zip(seen) {
            *to = *from;
        }
        let more = head.get_mut(known..).map_or(0, |rest| copy_out(frame, known, rest));
        let whole = usize::try_from(len).unwrap_or(usize::MAX);
        let end = known.saturating_add(more).min(whole);
        let head = head.get(..end).unwrap_or(&[]);
        let verdict = self.look(head)?;
        let head = if seen.len() > head.len() { seen } else { head };
        let push = |to: &mut GuestSink<'_>, header: &RxHeader| {
            to.push_checked_apart(header, len, head, frame)
        };
        self.hand_over(verdict, header, push)
    }

    /// Gives a frame to the pair it is for.
    fn hand_over(
        &mut self,
        verdict: Verdict,
        header: &RxHeader,
        push: impl FnOnce(&mut GuestSink<'_>, &RxHeader) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let header = RxHeader { hash: verdict.hash, ..*header };
        if verdict.pair == self.here
            && let Some(own) = &mut self.own
        {
            return push(own, &header);
        }
        self.hand_to_sibling(verdict.pair, &header, push)
    }

    #[cfg(feature = "std")]
    fn hand_to_sibling(
        &mut self,
        pair: PairIndex,
        header: &RxHeader,
        push: impl FnOnce(&mut GuestSink<'_>, &RxHeader) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        self.budget = self.budget.saturating_sub(1);
        if self.opened.as_ref().is_none_or(|(open, _)| *open != pair.0) {
            // One at a time is open: the one before is closed first.
            self.opened = None;
            let inlet = self.siblings.get(usize::from(pair.0));
            // Whoever delivers holds the inlet of `here`, and two that did so could wait for each
            // other: one waits for pairs behind its own only.
            let may_wait = self.own.is_none() || pair > self.here;
            let open = inlet.and_then(|inlet| inlet.open(self.now, may_wait));
            self.opened = open.map(|open| (pair.0, open));
        }
        let Some((_, opened)) = &mut self.opened else {
            self.stats.dropped(DropReason::QueueDown, 1);
            return Err(Refused::Dropped);
        };
        opened.push(|sink| push(sink, header)).map_err(|_| Refused::Dropped)
    }

    #[cfg(not(feature = "std"))]
    fn hand_to_sibling(
        &mut self,
        _pair: PairIndex,
        _header: &RxHeader,
        _push: impl FnOnce(&mut GuestSink<'_>, &RxHeader) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        self.dropped(DropReason::QueueDown);
        Err(Refused::Dropped)
    }
}
