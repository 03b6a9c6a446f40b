//! The ready-made hosts of queue pairs: threads that service pairs, sleep and wake.
//!
//! ```text
//!   Device -- seat() --> Workers -- own thread per pair, or the emptiest of a few shared ones
//!      |                    |
//!      |  start, recall     v
//!      +----- mail -----> Desk: every pair that is ready is serviced once a round   (desk.rs)
//! ```
//!
//! A pair costs a shared thread nothing while it sleeps: only what has been woken is looked at.

mod desk;
mod hand;
mod herald;
mod report;

use std::num::NonZeroU16;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fmt, io};

use rustix::event::{EventfdFlags, eventfd};
use vionet_raw::host::interrupt::ThreadHandle;

use crate::nic::PairIndex;
use crate::pair::QueuePair;
use desk::{Desk, Mail};
pub use hand::Hands;
use hand::Spot;
pub use herald::Herald;
pub use report::Report;
pub(crate) use report::{Homecomings, ReportBox};

/// The eventfds that kick a pair's receive and transmit queue.
pub(crate) type Kicks = [Option<Arc<OwnedFd>>; 2];

/// How pairs are spread over threads, and how these wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerOptions {
    /// So many threads for all pairs; a thread of its own for each pair when not given. Pairs on
    /// one thread should trust each other's front-ends: one that makes its call descriptor block
    /// holds the thread up until its own pair is recalled.
    pub threads: Option<NonZeroU16>,
    /// After work, a pair is looked at for up to this long before it sleeps; less where that has
    /// not paid lately. Zero: it sleeps at once.
    pub poll: Duration,
}

/// Threads for the pairs of any number of devices; a thread ends with its last pair.
#[derive(Clone, Default)]
pub struct Workers(Arc<Crew>);

#[derive(Default)]
struct Crew {
    options: WorkerOptions,
    shared: Mutex<Vec<Weak<Thread>>>,
    /// The embedder's loop works, and no thread.
    hands: Option<Hands>,
}

impl Workers {
    /// Threads are started when pairs come that need them.
    #[must_use]
    pub fn new(options: WorkerOptions) -> Self {
        Self(Arc::new(Crew { options, shared: Mutex::default(), hands: None }))
    }

    /// No threads at all: the embedder's loop services the pairs.
    #[must_use]
    pub fn by_hand(hands: &Hands) -> Self {
        Self(Arc::new(Crew { hands: Some(hands.clone()), ..Crew::default() }))
    }

    /// A place for a pair that will report to `reports`.
    pub(crate) fn seat(&self, pair: PairIndex, reports: ReportBox) -> io::Result<Seat> {
        let Crew { options, shared, hands } = &*self.0;
        if let Some(hands) = hands {
            return Ok(Seat::Hand(hands.take_place(pair, reports)));
        }
        let poll = options.poll;
        let Some(threads) = options.threads else {
            let thread = Thread::start(&format!("vionet-pair{}", pair.0), poll)?;
            return Ok(Seat::take(Arc::new(thread), pair, reports));
        };
        let mut shared = held(shared);
        shared.retain(|thread| thread.strong_count() > 0);
        let alive: Vec<_> = shared.iter().filter_map(Weak::upgrade).collect();
        let emptiest = alive.iter().min_by_key(|thread| held(&thread.seats).taken());
        let thread = match emptiest {
            Some(thread) if alive.len() >= usize::from(threads.get()) => Arc::clone(thread),
            Some(_) | None => {
                let name = format!("vionet-work{}", alive.len());
                let thread = Arc::new(Thread::start(&name, poll)?);
                shared.push(Arc::downgrade(&thread));
                thread
            }
        };
        Ok(Seat::take(thread, pair, reports))
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Workers").field(&self.0.options).finish()
    }
}

/// A lock whose holder has panicked guards nothing that could be half done here.
pub(crate) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which places of a thread are taken.
#[derive(Default)]
struct Seats(Vec<bool>);

impl Seats {
    fn taken(&self) -> usize {
        self.0.iter().filter(|taken| **taken).count()
    }

    fn take(&mut self) -> usize {
        let free = self.0.iter().position(|taken| !taken);
        let place = free.unwrap_or(self.0.len());
        if free.is_none() {
            self.0.push(false);
        }
        self.set(place, true);
        place
    }

    fn set(&mut self, place: usize, taken: bool) {
        if let Some(seat) = self.0.get_mut(place) {
            *seat = taken;
        }
    }
}

/// How long a worker may take to give a pair back; a step takes microseconds.
const RECALL_MAX: Duration = Duration::from_secs(10);

/// A worker that has not answered for this long may be stuck in a system call.
pub(crate) const LATE: Duration = Duration::from_millis(20);

/// A thread that hosts pairs. Dropping it ends and joins it.
pub(crate) struct Thread {
    mail: Sender<Mail>,
    waiting: Arc<AtomicBool>,
    bell: Arc<OwnedFd>,
    seats: Mutex<Seats>,
    handle: ThreadHandle,
    join: Option<JoinHandle<()>>,
}

impl Thread {
    fn start(name: &str, poll: Duration) -> io::Result<Self> {
        let (mail, letters) = channel();
        let waiting = Arc::new(AtomicBool::new(false));
        let bell = Arc::new(bell()?);
        let mut desk = Desk::new(letters, Arc::clone(&waiting), Arc::clone(&bell), poll)?;
        let (sender, receiver) = channel();
        let join = std::thread::Builder::new().name(name.into()).spawn(move || {
            if sender.send(ThreadHandle::current()).is_ok() {
                desk.work();
            }
        })?;
        let handle = receiver.recv().map_err(io::Error::other)??;
        let seats = Mutex::default();
        Ok(Self { mail, waiting, bell, seats, handle, join: Some(join) })
    }

    fn send(&self, mail: Mail) {
        // A worker that is gone shows when its pair is recalled.
        if self.mail.send(mail).is_ok() {
            // Rung first: a bell that rings on after its mail was read would keep the worker awake.
            ring(&self.bell);
            self.waiting.store(true, Ordering::Release);
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.send(Mail::Quit);
        if let Some(thread) = self.join.take() {
            // It ends within a step, unless a signalled descriptor holds it up.
            self.handle.join(thread);
        }
    }
}

/// A pair's place; leaving it takes the pair along, if it is still there.
pub(crate) enum Seat {
    Thread { thread: Arc<Thread>, place: usize },
    Hand(Arc<Spot>),
}

impl Seat {
    fn take(thread: Arc<Thread>, pair: PairIndex, reports: ReportBox) -> Self {
        let place = held(&thread.seats).take();
        thread.send(Mail::Seat { place, pair, reports });
        Self::Thread { thread, place }
    }

    pub(crate) fn start(&self, pair: Box<QueuePair>, kicks: Kicks) {
        match self {
            Self::Thread { thread, place } => {
                thread.send(Mail::Start { place: *place, pair, kicks });
            }
            // Whoever services it has the doorbells.
            Self::Hand(spot) => spot.put(pair),
        }
    }

    /// Asks for the pair; with `bell`, that is rung when it comes.
    pub(crate) fn recall(&self, bell: Option<&ReportBox>) -> Recall {
        let (answer, receiver) = channel();
        let thread = match self {
            Self::Thread { thread, place } => {
                thread.send(Mail::Recall { place: *place, answer, bell: bell.cloned() });
                Some(Arc::clone(thread))
            }
            Self::Hand(spot) => {
                // The receiver is right here.
                drop(answer.send(spot.take()));
                None
            }
        };
        Recall { thread, receiver, asked: clock(), late: LATE, is_silent: false }
    }
}

/// A pair on its way home.
pub(crate) struct Recall {
    thread: Option<Arc<Thread>>,
    receiver: Receiver<Option<Box<QueuePair>>>,
    asked: std::time::Instant,
    /// When, after it was asked for, the worker is next taken for stuck.
    late: Duration,
    /// It has been said that the worker does not answer.
    is_silent: bool,
}

/// What has come of a recall.
pub(crate) enum Answer {
    Home(Box<QueuePair>),
    /// The worker has lost it, and has said so.
    Lost,
    /// The worker is not there any more.
    Gone,
    /// The worker is silent for longer than any step may take: said once.
    Silent,
    NotYet,
}

impl Recall {
    /// Waits for the pair, not longer than this.
    pub(crate) fn wait(&mut self, patience: Duration) -> Answer {
        match self.receiver.recv_timeout(patience.min(LATE)) {
            Ok(Some(pair)) => return Answer::Home(pair),
            Ok(None) => return Answer::Lost,
            Err(RecvTimeoutError::Disconnected) => return Answer::Gone,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let waited = self.asked.elapsed();
        if waited >= self.late {
            // A descriptor we signal on may be full, and its other holder have made it
            // blocking: the call that waits for it is broken off.
            self.late = waited.saturating_add(LATE);
            self.thread.iter().for_each(|thread| thread.handle.interrupt());
        }
        if waited >= RECALL_MAX && !self.is_silent {
            self.is_silent = true;
            return Answer::Silent;
        }
        Answer::NotYet
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.is_silent
    }
}

#[allow(clippy::disallowed_methods, reason = "how long a worker has been waited for")]
pub(crate) fn clock() -> std::time::Instant {
    std::time::Instant::now()
}

impl Drop for Seat {
    fn drop(&mut self) {
        match self {
            Self::Thread { thread, place } => {
                thread.send(Mail::Leave { place: *place });
                held(&thread.seats).set(*place, false);
            }
            Self::Hand(spot) => spot.leave(),
        }
    }
}

pub(crate) fn bell() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

pub(crate) fn ring(bell: impl AsFd) {
    // The counter can only be full when it is rung already.
    let (Ok(_) | Err(_)) = rustix::io::write(bell, &1_u64.to_ne_bytes());
}

pub(crate) fn silence(bell: impl AsFd) {
    // Empty means silent already.
    let (Ok(_) | Err(_)) = rustix::io::read(bell, &mut [0; 8]);
}
