//! What an endpoint sees of the guest's receive side: a plain sink, or one that looks at frames.
//!
//! ```text
//!   endpoint --push, window + commit--> RxSink = Guest: straight into the guest's buffers (rx.rs)
//!                                             | Judged: only as far as there is credit
//!                                             |         private copy of the head -> Judge
//!                                                  |-- not wanted: dropped, counted
//!                                                  |-- for this pair: its GuestSink
//!                                                  +-- for another pair: that one's inlet
//! ```
//!
//! A frame that is to be looked at is never looked at in the guest's memory: where an endpoint
//! would fill a window, it gets a private one.

use alloc::sync::Arc;

use vionet_frame::hash::Hashed;
use vionet_frame::header::Offloads;
use vionet_raw::{ReadSpan, Scratch, WriteSpan, copy_out};
use vionet_spec::net::FRAME_MAX;

#[cfg(feature = "std")]
use super::inlet::{Inlet, Opened};
use super::judge::{Door, HEAD, Judge, Verdict};
use super::meter::Meter;
use super::rx::{Filled, GuestSink};
use super::{BATCH, Refused};
use crate::endpoint::RxHeader;
use crate::limit::Wire;
use crate::negotiate::Plan;
use crate::nic::PairIndex;
use crate::stats::{DropReason, LaneStats};
use crate::time::Instant;

/// Who looks at the frames that come by a pair.
#[derive(Clone)]
pub(crate) struct Inspection {
    pub(crate) judge: Arc<Judge>,
    /// The inlets of all pairs, where frames may be for others.
    #[cfg(feature = "std")]
    pub(crate) siblings: Arc<[Arc<Inlet>]>,
}

/// The same with what a pair needs for it.
pub(crate) struct Bench {
    pub(crate) by: Inspection,
    /// Room for one frame.
    scratch: Scratch,
}

impl Bench {
    /// With the room of an earlier one, if there was one: an inspection changes with each command
    /// of the driver, and must not cost more than it has to.
    pub(crate) fn new(by: Inspection, scratch: Option<Scratch>) -> Self {
        Self { by, scratch: scratch.unwrap_or_else(|| Scratch::new(FRAME_MAX)) }
    }

    pub(crate) fn into_scratch(self) -> Scratch {
        self.scratch
    }
}

/// Where received frames go.
pub struct RxSink<'a>(Kind<'a>);

enum Kind<'a> {
    Guest(GuestSink<'a>),
    Judged(JudgedSink<'a>),
}

struct JudgedSink<'a> {
    /// Looks at frames, if that is wanted.
    judge: Option<&'a Judge>,
    /// Lets pass as many as it may, if that is limited.
    meter: Option<Meter>,
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
}

impl<'a> RxSink<'a> {
    #[inline]
    pub(super) fn guest(sink: GuestSink<'a>) -> Self {
        Self(Kind::Guest(sink))
    }

    /// One that looks, or lets pass only as much as it may; `own` is the pair's lane, if it is at
    /// hand.
    pub(super) fn apart(
        look: Option<Look<'a>>,
        own: Option<GuestSink<'a>>,
        meter: Option<Meter>,
        (plan, stats, now): (&'a Plan, &'a LaneStats, Instant),
    ) -> Self {
        let mut sink = JudgedSink {
            judge: None,
            meter,
            scratch: None,
            #[cfg(feature = "std")]
            siblings: &[],
            #[cfg(feature = "std")]
            opened: None,
            here: PairIndex(0),
            own,
            plan,
            stats,
            budget: BATCH,
            now,
        };
        if let Some(Look { bench, here }) = look {
            sink.here = here;
            (sink.judge, sink.scratch) = (Some(&*bench.by.judge), Some(&mut bench.scratch));
            #[cfg(feature = "std")]
            {
                sink.siblings = &bench.by.siblings;
            }
        }
        Self(Kind::Judged(sink))
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
            Kind::Judged(sink) => sink.finish(),
        }
    }

    /// What has passed the meter, into whichever pair.
    pub(super) fn passed(&self) -> Wire {
        match &self.0 {
            Kind::Guest(_) => Wire::NONE,
            Kind::Judged(sink) => sink.meter.as_ref().map_or(Wire::NONE, Meter::passed),
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
            Kind::Judged(sink) => sink.window(want),
        }
    }

    /// The longest frame that fits now, in bytes; 0 when there is no room or this step has
    /// delivered enough.
    pub fn room(&mut self) -> u32 {
        match &mut self.0 {
            Kind::Guest(sink) => sink.room(),
            Kind::Judged(sink) => sink.room(),
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
            Kind::Guest(sink) => {
                let (Ok(()) | Err(_)) = sink.commit(len, header);
            }
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

    /// Delivers frames from private memory, one after the other, until there is no room; of how
    /// many the caller is rid.
    #[inline]
    pub fn push_all<'f>(
        &mut self,
        header: &RxHeader,
        frames: impl IntoIterator<Item = &'f [u8]>,
    ) -> usize {
        let frames = frames.into_iter();
        match &mut self.0 {
            Kind::Guest(sink) => sink.push_all(header, frames),
            Kind::Judged(sink) => {
                let mut is_taken = |frame| sink.push(header, frame) != Err(Refused::Full);
                frames.map_while(|frame| is_taken(frame).then_some(())).count()
            }
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
    #[inline(never)]
    fn finish(&mut self) -> Filled {
        let spent = self.budget == 0 || self.holds();
        let filled = self.own.as_mut().map(GuestSink::finish).unwrap_or_default();
        Filled { spent: filled.spent || spent, ..filled }
    }

    #[inline(never)]
    fn window(&mut self, want: u32) -> Option<&[WriteSpan<'_>]> {
        if self.judge.is_none() && self.budget > 0 && !self.holds() {
            return self.own.as_mut()?.window(want);
        }
        let has_room = self.has_room(want);
        self.scratch.as_mut().filter(|_| has_room).map(|scratch| scratch.room(0))
    }

    fn room(&mut self) -> u32 {
        let (ends, spreads) = (self.budget == 0 || self.holds(), self.spreads());
        match &mut self.own {
            _ if ends => 0,
            Some(own) if !spreads => own.room(),
            Some(_) | None => self.plan.frame_max,
        }
    }

    fn spreads(&self) -> bool {
        self.judge.is_some_and(Judge::spreads)
    }

    /// Pays for a frame that was delivered.
    fn pay(&mut self, len: u32, header: &RxHeader, frame: &[ReadSpan<'_>]) {
        if let Some(meter) = &mut self.meter {
            meter.pass(len, header, frame);
        }
    }

    /// Whether there is no credit to fetch a frame with.
    fn holds(&self) -> bool {
        self.meter.as_ref().is_some_and(Meter::holds)
    }

    fn dropped(&mut self, reason: DropReason) {
        self.stats.dropped(reason, 1);
        self.budget = self.budget.saturating_sub(1);
    }

    fn has_room(&mut self, len: u32) -> bool {
        let (ends, spreads) = (self.budget == 0 || self.holds(), self.spreads());
        match &mut self.own {
            _ if ends => false,
            // A frame for another pair waits for nobody: what does not fit there is lost.
            Some(own) if !spreads => own.has_room(len),
            Some(_) | None => true,
        }
    }

    /// What becomes of the frame of `len` bytes that begins with `head`.
    fn look(&mut self, len: u32, head: &[u8]) -> Result<Verdict, Refused> {
        if self.budget == 0 || self.holds() {
            return Err(Refused::Full);
        }
        #[cfg(feature = "std")]
        let siblings = self.siblings;
        #[cfg(feature = "std")]
        let door = |pair| siblings.get(usize::from(pair)).map_or(Door::Closed, |at| at.door());
        #[cfg(not(feature = "std"))]
        let door = |_| Door::Open;
        let here = Verdict { hash: Hashed::NONE, pair: self.here };
        let verdict = self.judge.map_or(Ok(here), |judge| judge.look(head, self.here, door));
        let above = self.meter.as_ref().is_some_and(Meter::drops);
        let verdict = match verdict {
            Ok(_) if above => {
                self.stats.limited(len);
                Err(DropReason::RateLimited)
            }
            verdict => verdict,
        };
        verdict.map_err(|reason| {
            self.dropped(reason);
            Refused::Dropped
        })
    }

    #[inline(never)]
    fn push(&mut self, header: &RxHeader, frame: &[u8]) -> Result<(), Refused> {
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let verdict = self.look(len, frame.get(..HEAD).unwrap_or(frame))?;
        self.hand_over(verdict, header, |to, header| to.push_apart(header, frame))?;
        self.pay(len, header, &[ReadSpan::local(frame)]);
        Ok(())
    }

    #[inline(never)]
    fn commit(&mut self, len: u32, header: &RxHeader) {
        if self.judge.is_none() {
            return self.commit_unseen(len, header);
        }
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

    /// The same where nobody looks: the frame is in the guest's own buffers.
    fn commit_unseen(&mut self, len: u32, header: &RxHeader) {
        let Ok(_) = self.look(len, &[]) else { return };
        let pushed = self.own.as_mut().map(|own| own.commit(len, header));
        if let (Some(Ok(())), Some(meter)) = (pushed, &mut self.meter) {
            meter.pass_told(len, header);
        }
    }

    #[inline(never)]
    fn push_seen(
        &mut self,
        header: &RxHeader,
        len: u32,
        seen: &[u8],
        frame: &[ReadSpan<'_>],
    ) -> Result<(), Refused> {
        if self.judge.is_none() {
            let verdict = self.look(len, &[])?;
            let push = |to: &mut GuestSink<'_>, header: &RxHeader| {
                to.push_checked_apart(header, len, seen, frame)
            };
            self.hand_over(verdict, header, push)?;
            self.pay(len, header, frame);
            return Ok(());
        }
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
        let verdict = self.look(len, head)?;
        let head = if seen.len() > head.len() { seen } else { head };
        let push = |to: &mut GuestSink<'_>, header: &RxHeader| {
            to.push_checked_apart(header, len, head, frame)
        };
        self.hand_over(verdict, header, push)?;
        self.pay(len, header, frame);
        Ok(())
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

#[cfg(test)]
mod tests {
    use alloc::boxed::Box;
    use std::os::fd::BorrowedFd;

    use vionet_frame::filter::Filter;
    use vionet_spec::feature::{Feature, FeatureBits};

    use super::*;
    use crate::config::NicConfig;
    use crate::endpoint::{EndpointFault, EndpointQueue, TxBatch, Watch};
    use crate::negotiate::Offer;
    use crate::pair::{PairConfig, QueuePair, Steering};

    struct Nowhere;

    impl EndpointQueue for Nowhere {
        fn transmit(&mut self, _frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
            Ok(())
        }

        fn receive(&mut self, _sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
            Ok(())
        }

        fn watch(&self) -> Watch {
            Watch::default()
        }

        fn fd(&self) -> Option<BorrowedFd<'_>> {
            None
        }
    }

    #[test]
    fn frames_are_looked_at_in_the_same_room_whoever_looks_and_whenever() {
        let offer = Offer::new(&NicConfig::default());
        let agreed = offer.accept(FeatureBits::of(&[Feature::VERSION_1])).unwrap();
        let plan = *agreed.plan();
        let mut pair = QueuePair::new(PairIndex(0), plan, Box::new(Nowhere), Arc::default());
        let mut configure = |looks: bool| {
            let (filter, steering) = (Filter::new(None, true, false), Steering::AsItCame);
            let judge = Judge { guard: None, filter, hash: None, steering };
            let by = Inspection { judge: Arc::new(judge), siblings: Arc::default() };
            pair.configure(PairConfig {
                plan,
                link_up: true,
                in_use: true,
                delays: [crate::control::Coalescing::default(); 2],
                limits: None,
                inspection: looks.then_some(by),
            });
            assert_eq!(pair.bench.is_some(), looks);
            let at_work = pair.bench.as_ref().map(|bench| bench.scratch.bytes().as_ptr());
            at_work.or(pair.spare.as_ref().map(|spare| spare.bytes().as_ptr()))
        };
        assert_eq!(configure(false), None, "none where nothing is looked at");
        let room = configure(true);
        assert!(room.is_some());
        for looks in [true, false, false, true, true] {
            assert_eq!(configure(looks), room);
        }
    }
}
