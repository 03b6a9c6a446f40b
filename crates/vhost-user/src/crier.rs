//! Signals on error descriptors, from a thread that can be torn away from them.
//!
//! The front-end can make an eventfd of its own blocking at any time, and full: then a write to it
//! waits for ever. Workers signal the call descriptors and are interrupted when that takes too
//! long; what is left to the control plane is signalled here, so that it never waits itself.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use vionet_raw::host::interrupt::ThreadHandle;

/// How many signals may wait for one that does not get through.
const WAITING_MAX: usize = 64;

/// Writes to an eventfd. A full counter is signalled already, and a front-end that broke its own
/// eventfd hears nothing.
pub(crate) fn signal(eventfd: &OwnedFd) {
    let (Ok(_) | Err(_)) = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
}

/// The thread, from the first signal on. Dropping it ends the thread, whatever that waits for.
#[derive(Default)]
pub(crate) struct Crier(Option<Thread>);

struct Thread {
    signals: SyncSender<Arc<OwnedFd>>,
    quits: Arc<AtomicBool>,
    handle: ThreadHandle,
    join: JoinHandle<()>,
}

impl Crier {
    /// Signals `eventfd` soon; never waits. Where no thread can be had the signal is lost: the
    /// event that goes with it is told to the program all the same.
    pub(crate) fn signal(&mut self, eventfd: &Arc<OwnedFd>) {
        if self.0.is_none() {
            self.0 = Thread::start();
        }
        if let Some(thread) = &self.0 {
            // Full: the front-end does not take what it is told.
            let (Ok(()) | Err(_)) = thread.signals.try_send(Arc::clone(eventfd));
        }
    }
}

impl Thread {
    fn start() -> Option<Self> {
        let (signals, letters) = sync_channel::<Arc<OwnedFd>>(WAITING_MAX);
        let quits = Arc::new(AtomicBool::new(false));
        let (told, known) = channel();
        let seen = Arc::clone(&quits);
        let thread = std::thread::Builder::new().name("vionet-err".into()).spawn(move || {
            // Without a handle nothing is written: there would be no way back.
            if let Ok(handle) = ThreadHandle::current()
                && told.send(handle).is_ok()
            {
                cry(&letters, &seen);
            }
        });
        let join = thread.ok()?;
        let handle = known.recv().ok()?;
        Some(Self { signals, quits, handle, join })
    }
}

fn cry(letters: &Receiver<Arc<OwnedFd>>, quits: &AtomicBool) {
    while let Ok(eventfd) = letters.recv() {
        if quits.load(Ordering::Relaxed) {
            return;
        }
        signal(&eventfd);
    }
}

impl Drop for Crier {
    fn drop(&mut self) {
        let Some(Thread { signals, quits, handle, join }) = self.0.take() else { return };
        quits.store(true, Ordering::Relaxed);
        drop(signals);
        handle.join(join);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn descriptors_are_signalled_and_one_that_blocks_holds_nobody_up() {
        let mut crier = Crier::default();
        let good = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        crier.signal(&good);
        assert_eq!(rustix::io::read(&*good, &mut [0; 8]), Ok(8));

        let full = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        signal_to_the_brim(&full);
        for _ in 0..10 * WAITING_MAX {
            crier.signal(&full);
        }
        // Long enough to be stuck in the first one.
        std::thread::sleep(Duration::from_millis(20));
        drop(crier);
        assert_eq!(Arc::strong_count(&full), 1, "the thread has let go of it");
    }

    fn signal_to_the_brim(eventfd: &OwnedFd) {
        rustix::io::write(eventfd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    }
}
