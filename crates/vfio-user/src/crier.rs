//! The thread that writes to a client's eventfds, and can be torn away from them.
//!
//! ```text
//!   worker, register access --due(n)--> bits --bell, if there were none--> crier --> eventfd n
//! ```
//!
//! The client holds the other end of each eventfd and can make a write to it wait for ever. Whoever
//! interrupts the driver sets a bit, which cannot wait: neither a worker nor a register access is
//! ever at the client's mercy. Several interrupts of one vector that come close together are one.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use vionet_raw::host::interrupt::ThreadHandle;

const BITS: u32 = u64::BITS;

/// Which interrupts are due.
pub(crate) struct Due {
    words: Vec<AtomicU64>,
    /// Blocks its reader; its writers never, whatever they add.
    bell: OwnedFd,
    quits: AtomicBool,
}

impl Due {
    /// Room for interrupts 0 to `count`.
    pub(crate) fn new(count: u32) -> io::Result<Self> {
        let words = (0..=count / BITS).map(|_| AtomicU64::new(0)).collect();
        let bell = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { words, bell, quits: AtomicBool::new(false) })
    }

    /// An interrupt is due: never waits. One past the end is nobody's.
    pub(crate) fn set(&self, number: u32) {
        let word = usize::try_from(number / BITS).ok().and_then(|at| self.words.get(at));
        let Some(word) = word else { return };
        let bit = 1_u64.wrapping_shl(number % BITS);
        // Whoever finds others due rings no more: the bell is rung, or about to be.
        if word.fetch_or(bit, Ordering::AcqRel) == 0 {
            self.ring();
        }
    }

    /// The counter would have to be read for none of 2^64 rings to be full.
    fn ring(&self) {
        let (Ok(_) | Err(_)) = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Waits until something is due, and takes it; false when it is time to end.
    fn take(&self, each: &mut dyn FnMut(u32)) -> bool {
        // An interrupted wait is a wait that has ended.
        let (Ok(_) | Err(_)) = rustix::io::read(&self.bell, &mut [0; 8]);
        for (at, word) in (0..).zip(&self.words) {
            let bits = word.swap(0, Ordering::AcqRel);
            for bit in (0..BITS).filter(|bit| bits.wrapping_shr(*bit) & 1 == 1) {
                if self.quits.load(Ordering::Acquire) {
                    return false;
                }
                each(BITS.saturating_mul(at).saturating_add(bit));
            }
        }
        !self.quits.load(Ordering::Acquire)
    }

    /// Nothing is due any more.
    pub(crate) fn clear(&self) {
        self.words.iter().for_each(|word| word.store(0, Ordering::Release));
    }
}

/// The thread. Dropping it ends it, whatever it waits for.
pub(crate) struct Crier {
    due: Arc<Due>,
    handle: ThreadHandle,
    thread: Option<JoinHandle<()>>,
}

impl Crier {
    /// Calls `cry` with each number that is due, from a thread of its own.
    pub(crate) fn start(
        due: &Arc<Due>,
        mut cry: impl FnMut(u32) + Send + 'static,
    ) -> io::Result<Self> {
        due.quits.store(false, Ordering::Release);
        let (told, known) = channel();
        let seen = Arc::clone(due);
        let run = move || {
            let handle = ThreadHandle::current();
            let has_way_back = handle.is_ok();
            if told.send(handle).is_ok() && has_way_back {
                while seen.take(&mut cry) {}
            }
        };
        let thread = std::thread::Builder::new().name("vionet-crier".into()).spawn(run)?;
        let handle = known.recv().map_err(io::Error::other)??;
        Ok(Self { due: Arc::clone(due), handle, thread: Some(thread) })
    }
}

impl Drop for Crier {
    fn drop(&mut self) {
        self.due.quits.store(true, Ordering::Release);
        self.due.ring();
        if let Some(thread) = self.thread.take() {
            self.handle.join(thread);
        }
        self.due.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_due_is_cried_once_and_nothing_is_lost() {
        let due = Arc::new(Due::new(130).unwrap());
        let (sender, receiver) = channel();
        let crier = Crier::start(&due, move |number| sender.send(number).unwrap()).unwrap();
        for round in 0..1000 {
            for number in [0, 63, 64, 130] {
                due.set(number);
            }
            due.set(1000);
            let mut got: Vec<u32> = (0..4)
                .map(|_| receiver.recv_timeout(Duration::from_secs(20)).expect("it is cried"))
                .collect();
            got.sort_unstable();
            assert_eq!(got, [0, 63, 64, 130], "round {round}");
        }
        drop(crier);
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn the_end_of_it_breaks_off_a_write_that_waits_for_ever() {
        let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let due = Arc::new(Due::new(1).unwrap());
        let (sender, receiver) = channel();
        let cry = move |_| {
            sender.send(()).unwrap();
            assert!(rustix::io::write(&full, &1_u64.to_ne_bytes()).is_err());
        };
        let crier = Crier::start(&due, cry).unwrap();
        due.set(0);
        receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        due.set(0);
        due.set(1);
        drop(crier);
    }
}
