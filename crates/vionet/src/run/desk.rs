//! A worker's side: the pairs it hosts, which of them are ready, when the others wake.
//!
//! ```text
//!   round:  each ready pair -> service ->  Again, or worked lately: stays ready (spins)
//!                                          Wait: sleeps until
//!                                            a kick       (edge of its eventfd)
//!                                            the endpoint (level, only if wanted)
//!                                            a deadline
//!   nothing ready: epoll until one of these, or mail
//!   some ready, some asleep: a glance at epoll every few rounds
//! ```
//!
//! A spinning pair leaves kicks unwanted. How long it spins follows from what spinning would have
//! brought: a sleep shorter than the window calls for all of it, a longer one halves it.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Kicks, Report, ReportBox, silence};
use crate::endpoint::{EndpointFault, Watch};
use crate::nic::PairIndex;
use crate::pair::{Next, QueuePair, Step};
use crate::time::Instant;

/// What a worker is asked for.
pub(super) enum Mail {
    /// A place is taken, by a pair that is to come.
    Seat {
        place: usize,
        pair: PairIndex,
        reports: ReportBox,
    },
    /// The pair to work on.
    Start {
        place: usize,
        pair: Box<QueuePair>,
        kicks: Kicks,
    },
    /// The pair is wanted back.
    Recall {
        place: usize,
        answer: Sender<Option<Box<QueuePair>>>,
        /// Whose bell to ring when it is on its way.
        bell: Option<ReportBox>,
    },
    /// The place is free again.
    Leave {
        place: usize,
    },
    Quit,
}

/// How often a queue that is not kicked is looked at.
const POLL_EVERY: Duration = Duration::from_micros(50);

/// After so many rounds of those that are ready comes a glance at those asleep.
const GLANCE: u32 = 16;

/// Events fetched in one call.
const EVENTS: usize = 64;

/// The event of the mail's bell; every other one names a place and what has happened there.
const BELL: u64 = u64::MAX;

/// What an event is about, in its lowest bits; its place is above.
const SOURCE_BITS: u32 = 2;
const ENDPOINT: u64 = 2;
const NEIGHBOURS: u64 = 3;

pub(super) struct Desk {
    letters: Receiver<Mail>,
    waiting: Arc<AtomicBool>,
    bell: Arc<OwnedFd>,
    epoll: OwnedFd,
    poll: Duration,
    places: Vec<Option<Place>>,
    /// Places with something to do, each once.
    ready: Vec<usize>,
    /// When the pair of each place wants to be looked at; the end of time for most.
    deadlines: Vec<Instant>,
    rounds: u32,
}

/// A taken place.
struct Place {
    index: PairIndex,
    reports: ReportBox,
    job: Option<Job>,
}

/// A pair at work, and what of it is registered with epoll.
struct Job {
    pair: Box<QueuePair>,
    kicks: Kicks,
    /// What events of the endpoint name it by.
    event: u64,
    /// The interest registered for the endpoint's descriptor.
    interest: EventFlags,
    /// The eventfd of the queue was readable before it was watched: its first event is no kick.
    stale: [bool; 2],
    /// A live queue has no eventfd to be kicked by: it is looked at all the time (VU-RNG-02).
    polled: bool,
    is_ready: bool,
    /// How long spinning is worth it now.
    window: Duration,
    spin_until: Instant,
    slept_at: Instant,
    /// The last failure of the host side that was reported: the same one is not told again.
    told: Option<EndpointFault>,
}

/// What to do with a pair after a step.
enum Then {
    Stay,
    Sleep(Instant),
    Lost,
}

const NEVER: Instant = Instant::from_nanos(u64::MAX);

impl Desk {
    pub(super) fn new(
        letters: Receiver<Mail>,
        waiting: Arc<AtomicBool>,
        bell: Arc<OwnedFd>,
        poll: Duration,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &bell, EventData::new_u64(BELL), EventFlags::IN)?;
        let (places, ready, deadlines) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { letters, waiting, bell, epoll, poll, places, ready, deadlines, rounds: 0 })
    }

    pub(super) fn work(&mut self) {
        loop {
            if self.waiting.swap(false, Ordering::Acquire) {
                silence(&self.bell);
                if self.read_mail() {
                    return;
                }
            }
            if self.ready.is_empty() {
                self.wait(true);
                continue;
            }
            self.round();
            self.rounds = self.rounds.wrapping_add(1);
            if self.ready.len() < self.places.len() && self.rounds.is_multiple_of(GLANCE) {
                self.wait(false);
            }
        }
    }

    /// Services every ready pair once.
    fn round(&mut self) {
        let now = now();
        let mut ready = std::mem::take(&mut self.ready);
        ready.retain(|place| self.breathe(*place, now));
        self.ready = ready;
    }

    /// One step of one pair; whether it stays ready.
    fn breathe(&mut self, place: usize, now: Instant) -> bool {
        let Some(Some(at)) = self.places.get_mut(place) else { return false };
        let Some(job) = at.job.as_mut() else { return false };
        match job.breathe(&self.epoll, &at.reports, now) {
            Then::Stay => true,
            Then::Sleep(deadline) => {
                if let Some(slot) = self.deadlines.get_mut(place) {
                    *slot = deadline;
                }
                false
            }
            Then::Lost => {
                let Some(job) = at.job.take() else { return false };
                let pair = job.unwatch(&self.epoll);
                // What was interrupted in mid-step may not be in order: it is not touched again,
                // and a second panic must not end the other pairs.
                let (Ok(()) | Err(_)) = catch_unwind(AssertUnwindSafe(move || drop(pair)));
                at.reports.put(Report::Lost(at.index));
                false
            }
        }
    }

    /// Looks for what wakes sleeping pairs; waits for it if there is nothing else to do.
    fn wait(&mut self, asleep: bool) {
        let soonest = self.deadlines.iter().min().copied().filter(|at| *at < NEVER);
        let before = now();
        let timeout = if asleep {
            soonest.and_then(|at| Timespec::try_from(at.since(before)).ok())
        } else {
            Some(Timespec { tv_sec: 0, tv_nsec: 0 })
        };
        let mut room = [const { std::mem::MaybeUninit::<epoll::Event>::uninit() }; EVENTS];
        // An interrupted wait is a wait that has ended.
        let events = epoll::wait(&self.epoll, &mut room, timeout.as_ref());
        let (events, _) = events.unwrap_or_default();
        let after = now();
        for event in events {
            let data = event.data.u64();
            if let Ok(place) = usize::try_from(data >> SOURCE_BITS)
                && data != BELL
            {
                self.count_kick(place, data);
                self.wake(place, after);
            }
        }
        if soonest.is_some_and(|at| at <= after) {
            for place in 0..self.deadlines.len() {
                if self.deadlines.get(place).is_some_and(|at| *at <= after) {
                    self.wake(place, after);
                }
            }
        }
    }

    fn count_kick(&mut self, place: usize, event: u64) {
        if let Some(Some(Place { job: Some(job), .. })) = self.places.get_mut(place)
            && event & ENDPOINT == 0
        {
            let [rx, tx] = &mut job.stale;
            let is_rx = event & 1 == 0;
            if !std::mem::take(if is_rx { rx } else { tx }) {
                job.pair.count_kick(is_rx);
            }
        }
    }

    fn wake(&mut self, place: usize, now: Instant) {
        let Some(Some(Place { job: Some(job), .. })) = self.places.get_mut(place) else { return };
        if job.is_ready {
            return;
        }
        job.woken(self.poll, now);
        self.ready.push(place);
        if let Some(deadline) = self.deadlines.get_mut(place) {
            *deadline = NEVER;
        }
    }

    /// Whether it is time to end.
    fn read_mail(&mut self) -> bool {
        while let Ok(mail) = self.letters.try_recv() {
            match mail {
                Mail::Seat { place, pair, reports } => {
                    let wanted = place.saturating_add(1).max(self.places.len());
                    self.places.resize_with(wanted, || None);
                    self.deadlines.resize(wanted, NEVER);
                    self.set(place, Some(Place { index: pair, reports, job: None }));
                }
                Mail::Start { place, pair, kicks } => {
                    let Some(Some(at)) = self.places.get_mut(place) else { continue };
                    at.job = Some(Job::new(pair, kicks, &self.epoll, place, &at.reports));
                    self.wake(place, now());
                }
                Mail::Recall { place, answer, bell } => {
                    let pair = self.take(place).map(|job| job.unwatch(&self.epoll));
                    // If nobody waits for it any more the pair ends here.
                    drop(answer.send(pair));
                    bell.iter().for_each(ReportBox::answered);
                }
                Mail::Leave { place } => {
                    drop(self.take(place).map(|job| job.unwatch(&self.epoll)));
                    self.set(place, None);
                }
                Mail::Quit => return true,
            }
        }
        false
    }

    fn set(&mut self, place: usize, to: Option<Place>) {
        if let Some(at) = self.places.get_mut(place) {
            *at = to;
        }
    }

    fn take(&mut self, place: usize) -> Option<Job> {
        self.ready.retain(|ready| *ready != place);
        if let Some(deadline) = self.deadlines.get_mut(place) {
            *deadline = NEVER;
        }
        self.places.get_mut(place)?.as_mut()?.job.take()
    }
}

impl Job {
    fn new(
        pair: Box<QueuePair>,
        kicks: Kicks,
        epoll: &OwnedFd,
        place: usize,
        reports: &ReportBox,
    ) -> Self {
        let place = u64::try_from(place).unwrap_or(BELL).wrapping_shl(SOURCE_BITS);
        let event = place | ENDPOINT;
        let index = pair.index();
        let stale = kicks.each_ref().map(|kick| kick.as_ref().is_some_and(is_readable));
        for (source, kick) in (place..).zip(&kicks) {
            // An edge is enough: every step looks at the ring itself, and nothing is read.
            let flags = EventFlags::IN | EventFlags::ET;
            let data = EventData::new_u64(source);
            let added = kick.as_ref().map_or(Ok(()), |kick| epoll::add(epoll, kick, data, flags));
            told_of(added, index, reports);
        }
        let interest = EventFlags::empty();
        if let Some(fd) = pair.endpoint_fd() {
            let data = EventData::new_u64(event);
            told_of(epoll::add(epoll, fd, data, interest), index, reports);
        }
        if let Some(fd) = pair.bell_fd() {
            let data = EventData::new_u64(place | NEIGHBOURS);
            told_of(epoll::add(epoll, fd, data, EventFlags::IN), index, reports);
        }
        let polled = pair.live().iter().zip(&kicks).any(|(live, kick)| *live && kick.is_none());
        let start = Instant::from_nanos(0);
        Self {
            pair,
            kicks,
            event,
            interest,
            stale,
            polled,
            is_ready: false,
            window: Duration::ZERO,
            spin_until: start,
            slept_at: start,
            told: None,
        }
    }

    /// Ends all watching.
    fn unwatch(self, epoll: &OwnedFd) -> Box<QueuePair> {
        for kick in self.kicks.iter().flatten() {
            // One that could not be added is not there to be taken away.
            let (Ok(()) | Err(_)) = epoll::delete(epoll, kick);
        }
        for fd in [self.pair.endpoint_fd(), self.pair.bell_fd()].into_iter().flatten() {
            let (Ok(()) | Err(_)) = epoll::delete(epoll, fd);
        }
        self.pair
    }

    /// One step, and what follows from it.
    #[inline]
    fn breathe(&mut self, epoll: &OwnedFd, reports: &ReportBox, now: Instant) -> Then {
        let spins = now < self.spin_until;
        let pair = &mut self.pair;
        // No panic is known to be reachable; one that is must not take other pairs along.
        let step =
            catch_unwind(AssertUnwindSafe(
                || {
                    if spins { pair.spin(now) } else { pair.service(now) }
                },
            ));
        let Ok(step) = step else { return Then::Lost };
        if step.fault.is_some() || step.host.is_some() {
            self.tell(&step, reports);
        }
        match step.next {
            Next::Again => {
                self.spin_until = now.after(self.window);
                Then::Stay
            }
            Next::Wait(_) if step.worked && !self.window.is_zero() => {
                self.spin_until = now.after(self.window);
                Then::Stay
            }
            Next::Wait(_) if spins => Then::Stay,
            Next::Wait(watch) => {
                self.set_interest(epoll, &watch, reports);
                self.is_ready = false;
                self.slept_at = now;
                self.pair.count_wake();
                let poll = if self.polled { now.after(POLL_EVERY) } else { NEVER };
                Then::Sleep(watch.deadline.map_or(poll, |at| at.min(poll)))
            }
        }
    }

    /// A sleep is over: would spinning have spared it?
    fn woken(&mut self, poll: Duration, now: Instant) {
        self.is_ready = true;
        let slept = now.since(self.slept_at);
        let half = self.window.checked_div(2).unwrap_or_default();
        self.window = if slept < poll { poll } else { half };
    }

    fn set_interest(&mut self, epoll: &OwnedFd, watch: &Watch, reports: &ReportBox) {
        let mut wanted = EventFlags::empty();
        wanted.set(EventFlags::IN, watch.readable);
        wanted.set(EventFlags::OUT, watch.writable);
        if wanted == self.interest {
            return;
        }
        self.interest = wanted;
        if let Some(fd) = self.pair.endpoint_fd() {
            let data = EventData::new_u64(self.event);
            let set = match epoll::modify(epoll, fd, data, wanted) {
                // It has come since the pair has.
                Err(Errno::NOENT) => epoll::add(epoll, fd, data, wanted),
                set => set,
            };
            told_of(set, self.pair.index(), reports);
        }
    }

    #[cold]
    fn tell(&mut self, step: &Step, reports: &ReportBox) {
        if let Some(fault) = step.fault {
            reports.put(Report::Fault(fault));
        }
        if let Some(fault) = step.host
            && self.told != step.host
        {
            self.told = step.host;
            reports.put(Report::Host { pair: self.pair.index(), fault });
        }
    }
}

fn is_readable(fd: &Arc<OwnedFd>) -> bool {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&at_once)) == Ok(1)
}

/// A descriptor that cannot be watched is a trouble of the host side.
fn told_of(result: Result<(), Errno>, pair: PairIndex, reports: &ReportBox) {
    if let Err(errno) = result {
        let fault = EndpointFault::Io(errno.raw_os_error());
        reports.put(Report::Host { pair, fault });
    }
}

/// Nanoseconds since the first question; the same clock for all workers.
#[allow(clippy::disallowed_methods, reason = "the worker loop is where the clock is read")]
fn now() -> Instant {
    static ORIGIN: OnceLock<std::time::Instant> = OnceLock::new();
    let origin = ORIGIN.get_or_init(std::time::Instant::now);
    Instant::from_nanos(u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
}
