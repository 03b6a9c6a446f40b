//! The ready-made host of a queue pair: one thread that services it, sleeps and wakes.
//!
//! ```text
//!   mail? -> take a pair in, give it back, quit
//!   pair? -> service ->  Again: round once more      Wait: sleep until
//!                                                      a kick      (edge of its eventfd)
//!                                                      the endpoint (level, only if wanted)
//!                                                      a deadline, or mail
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fmt, io};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use crate::endpoint::{EndpointFault, Watch};
use crate::nic::PairIndex;
use crate::pair::{Next, PairFault, QueuePair};
use crate::time::Instant;

/// What a worker has to say to the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// A driver broke a rule; that queue stands still until it is stopped.
    Fault(PairFault),
    /// The host side of a pair failed.
    Host {
        /// The pair.
        pair: PairIndex,
        /// What happened.
        fault: EndpointFault,
    },
    /// A worker has ended by a defect of ours; its pair is lost.
    Lost(PairIndex),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => write!(f, "{fault}"),
            Self::Host { pair, fault } => write!(f, "queue pair {}: {fault}", pair.0),
            Self::Lost(pair) => write!(f, "the worker of queue pair {} is lost", pair.0),
        }
    }
}

/// The eventfds that kick a pair's receive and transmit queue.
pub(crate) type Kicks = [Option<Arc<OwnedFd>>; 2];

/// Where workers leave their reports.
#[derive(Clone)]
pub(crate) struct ReportBox {
    sender: Sender<Report>,
    bell: Arc<OwnedFd>,
}

impl ReportBox {
    pub(crate) fn new() -> io::Result<(Self, Receiver<Report>)> {
        let (sender, receiver) = channel();
        Ok((Self { sender, bell: Arc::new(bell()?) }, receiver))
    }

    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn put(&self, report: Report) {
        // Nobody listens any more only while the device is being dropped.
        if self.sender.send(report).is_ok() {
            ring(&self.bell);
        }
    }
}

enum Mail {
    Take(Box<QueuePair>, Kicks),
    Give(Sender<Box<QueuePair>>),
    Quit,
}

/// A thread that hosts one pair at a time.
pub(crate) struct Worker {
    mail: Sender<Mail>,
    waiting: Arc<AtomicBool>,
    bell: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// How long a worker may take to give a pair back; a step takes microseconds.
const RECALL_MAX: Duration = Duration::from_secs(10);

/// How often a queue that is not kicked is looked at.
const POLL_EVERY: Duration = Duration::from_micros(50);

impl Worker {
    pub(crate) fn new(index: PairIndex, reports: ReportBox) -> io::Result<Self> {
        let (mail, letters) = channel();
        let waiting = Arc::new(AtomicBool::new(false));
        let bell = Arc::new(bell()?);
        let mut desk =
            Desk::new(letters, Arc::clone(&waiting), Arc::clone(&bell), reports.clone())?;
        let thread = std::thread::Builder::new().name(format!("vionet-pair{}", index.0)).spawn(
            move || {
                // No panic is known to be reachable; one that is must not end in silence.
                let work = std::panic::AssertUnwindSafe(|| desk.work());
                if std::panic::catch_unwind(work).is_err() {
                    reports.put(Report::Lost(index));
                }
            },
        )?;
        Ok(Self { mail, waiting, bell, thread: Some(thread) })
    }

    pub(crate) fn start(&self, pair: Box<QueuePair>, kicks: Kicks) {
        self.send(Mail::Take(pair, kicks));
    }

    /// The pair, or `None` when the worker has lost it (it has panicked) or does not answer.
    pub(crate) fn recall(&self) -> Option<Box<QueuePair>> {
        let (sender, receiver) = channel();
        self.send(Mail::Give(sender));
        receiver.recv_timeout(RECALL_MAX).ok()
    }

    fn send(&self, mail: Mail) {
        // A worker that is gone shows when its pair is recalled.
        if self.mail.send(mail).is_ok() {
            self.waiting.store(true, Ordering::Release);
            ring(&self.bell);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.send(Mail::Quit);
        if let Some(thread) = self.thread.take() {
            // A panic of the worker has been reported when it happened.
            drop(thread.join());
        }
    }
}

fn bell() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

fn ring(bell: &OwnedFd) {
    // The counter can only be full when it is rung already.
    let (Ok(_) | Err(_)) = rustix::io::write(bell, &1_u64.to_ne_bytes());
}

fn silence(bell: &OwnedFd) {
    // Empty means silent already.
    let (Ok(_) | Err(_)) = rustix::io::read(bell, &mut [0; 8]);
}

/// The worker's side.
struct Desk {
    letters: Receiver<Mail>,
    waiting: Arc<AtomicBool>,
    bell: Arc<OwnedFd>,
    reports: ReportBox,
    epoll: OwnedFd,
    origin: std::time::Instant,
    /// The last failure of the host side that was reported: the same one is not told again.
    told: Option<EndpointFault>,
}

/// A pair at work, and what of it is registered with epoll.
struct Job {
    pair: Box<QueuePair>,
    kicks: Kicks,
    /// The interest registered for the endpoint's descriptor.
    interest: EventFlags,
    /// A live queue has no eventfd to be kicked by: it is looked at all the time (VU-RNG-02).
    polled: bool,
}

enum Adopted {
    Idle,
    Busy(Job),
    Quit,
}

const BELL: u64 = 0;
const KICK: u64 = 1;
const ENDPOINT: u64 = 2;

impl Desk {
    fn new(
        letters: Receiver<Mail>,
        waiting: Arc<AtomicBool>,
        bell: Arc<OwnedFd>,
        reports: ReportBox,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &bell, EventData::new_u64(BELL), EventFlags::IN)?;
        let origin = start_clock();
        Ok(Self { letters, waiting, bell, reports, epoll, origin, told: None })
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn work(&mut self) {
        let mut job = None;
        loop {
            if self.waiting.swap(false, Ordering::Acquire) {
                silence(&self.bell);
                match self.read_mail(job) {
                    Adopted::Idle => job = None,
                    Adopted::Busy(one) => job = Some(one),
                    Adopted::Quit => return,
                }
            }
            let now = self.now();
            match job.as_mut() {
                None => self.sleep(None, now),
                Some(job) => self.breathe(job, now),
            }
        }
    }

    /// One step, then sleep if there is nothing to do.
    fn breathe(&mut self, job: &mut Job, now: Instant) {
        let step = job.pair.service(now);
        if let Some(fault) = step.fault {
            self.reports.put(Report::Fault(fault));
        }
        if step.host.is_some() && step.host != self.told {
            self.told = step.host;
            if let Some(fault) = step.host {
                self.reports.put(Report::Host { pair: job.pair.index(), fault });
            }
        }
        match step.next {
            Next::Again => {}
            Next::Wait(watch) => {
                self.set_interest(job, &watch);
                let poll = job.polled.then(|| now.after(POLL_EVERY));
                self.sleep([watch.deadline, poll].into_iter().flatten().min(), now);
            }
        }
    }

    fn read_mail(&mut self, mut job: Option<Job>) -> Adopted {
        while let Ok(mail) = self.letters.try_recv() {
            match mail {
                Mail::Take(pair, kicks) => job = Some(self.adopt(pair, kicks)),
                Mail::Give(answer) => {
                    if let Some(job) = job.take() {
                        // Nobody waits for it any more: the pair ends here.
                        drop(answer.send(self.release(job)));
                    }
                }
                Mail::Quit => return Adopted::Quit,
            }
        }
        job.map_or(Adopted::Idle, Adopted::Busy)
    }

    fn adopt(&mut self, pair: Box<QueuePair>, kicks: Kicks) -> Job {
        for kick in kicks.iter().flatten() {
            // An edge is enough: every step looks at the ring itself, and nothing is read.
            let flags = EventFlags::IN | EventFlags::ET;
            self.watch_error(epoll::add(&self.epoll, kick, EventData::new_u64(KICK), flags), &pair);
        }
        let interest = EventFlags::empty();
        if let Some(fd) = pair.endpoint_fd() {
            let data = EventData::new_u64(ENDPOINT);
            self.watch_error(epoll::add(&self.epoll, fd, data, interest), &pair);
        }
        self.told = None;
        let polled = pair.live().iter().zip(&kicks).any(|(live, kick)| *live && kick.is_none());
        Job { pair, kicks, interest, polled }
    }

    fn release(&mut self, job: Job) -> Box<QueuePair> {
        let Job { pair, kicks, interest: _, polled: _ } = job;
        for kick in kicks.iter().flatten() {
            self.watch_error(epoll::delete(&self.epoll, kick), &pair);
        }
        if let Some(fd) = pair.endpoint_fd() {
            self.watch_error(epoll::delete(&self.epoll, fd), &pair);
        }
        pair
    }

    fn set_interest(&self, job: &mut Job, watch: &Watch) {
        let mut wanted = EventFlags::empty();
        wanted.set(EventFlags::IN, watch.readable);
        wanted.set(EventFlags::OUT, watch.writable);
        if wanted == job.interest {
            return;
        }
        job.interest = wanted;
        if let Some(fd) = job.pair.endpoint_fd() {
            let data = EventData::new_u64(ENDPOINT);
            self.watch_error(epoll::modify(&self.epoll, fd, data, wanted), &job.pair);
        }
    }

    #[cold]
    fn watch_failed(&self, errno: Errno, pair: &QueuePair) {
        let fault = EndpointFault::Io(errno.raw_os_error());
        self.reports.put(Report::Host { pair: pair.index(), fault });
    }

    fn watch_error(&self, result: Result<(), Errno>, pair: &QueuePair) {
        if let Err(errno) = result {
            self.watch_failed(errno, pair);
        }
    }

    fn sleep(&self, deadline: Option<Instant>, now: Instant) {
        let timeout = deadline.and_then(|at| Timespec::try_from(at.since(now)).ok());
        let mut room = [const { std::mem::MaybeUninit::<epoll::Event>::uninit() }; 4];
        // Which descriptor woke us does not matter: the next step looks at everything. An
        // interrupted wait is a wait that has ended.
        let (Ok(_) | Err(_)) = epoll::wait(&self.epoll, &mut room, timeout.as_ref());
    }
}

#[allow(clippy::disallowed_methods, reason = "the worker loop is where the clock is read")]
fn start_clock() -> std::time::Instant {
    std::time::Instant::now()
}
