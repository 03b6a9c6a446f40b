//! Interrupts raised for the control plane, from a thread that can be torn away from them.
//!
//! What is behind an interrupt came from the front-end, which can make a write to it wait for ever.
//! Workers are interrupted when that takes too long; the control plane must not wait at all. So
//! its interrupts (commands obeyed, configuration changed, a ring broken) are raised here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use vionet_raw::host::interrupt::ThreadHandle;

use crate::interrupt::Interrupt;

/// How many may wait for one that does not get through.
const WAITING_MAX: usize = 64;

/// The thread, from the first interrupt on. Dropping it ends the thread, whatever that waits for.
#[derive(Default)]
pub struct Herald(Option<Thread>);

struct Thread {
    letters: SyncSender<Arc<dyn Interrupt>>,
    quits: Arc<AtomicBool>,
    handle: ThreadHandle,
    join: JoinHandle<()>,
}

impl Herald {
    /// Raises the interrupt soon; never waits. Where no thread can be had, or the ones before do
    /// not get through, it is lost.
    pub fn raise(&mut self, interrupt: &Arc<dyn Interrupt>) {
        if self.0.is_none() {
            self.0 = Thread::start();
        }
        if let Some(thread) = &self.0 {
            let (Ok(()) | Err(_)) = thread.letters.try_send(Arc::clone(interrupt));
        }
    }
}

impl Thread {
    fn start() -> Option<Self> {
        let (letters, inbox) = sync_channel::<Arc<dyn Interrupt>>(WAITING_MAX);
        let quits = Arc::new(AtomicBool::new(false));
        let (told, known) = channel();
        let seen = Arc::clone(&quits);
        let thread = std::thread::Builder::new().name("vionet-herald".into()).spawn(move || {
            // Without a handle nothing is raised: there would be no way back.
            if let Ok(handle) = ThreadHandle::current()
                && told.send(handle).is_ok()
            {
                cry(&inbox, &seen);
            }
        });
        let join = thread.ok()?;
        let handle = known.recv().ok()?;
        Some(Self { letters, quits, handle, join })
    }
}

fn cry(inbox: &Receiver<Arc<dyn Interrupt>>, quits: &AtomicBool) {
    while let Ok(interrupt) = inbox.recv() {
        if quits.load(Ordering::Relaxed) {
            return;
        }
        interrupt.raise();
    }
}

impl Drop for Herald {
    fn drop(&mut self) {
        let Some(Thread { letters, quits, handle, join }) = self.0.take() else { return };
        quits.store(true, Ordering::Relaxed);
        drop(letters);
        handle.join(join);
    }
}

impl std::fmt::Debug for Herald {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("herald")
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    struct Bell(OwnedFd);

    impl Interrupt for Bell {
        fn raise(&self) {
            let (Ok(_) | Err(_)) = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
        }
    }

    #[test]
    fn interrupts_are_raised_and_one_that_blocks_holds_nobody_up() {
        let mut herald = Herald::default();
        let good = Arc::new(Bell(eventfd(0, EventfdFlags::CLOEXEC).unwrap()));
        let interrupt: Arc<dyn Interrupt> = Arc::<Bell>::clone(&good);
        herald.raise(&interrupt);
        assert_eq!(rustix::io::read(&good.0, &mut [0; 8]), Ok(8));

        let full = Arc::new(Bell(eventfd(0, EventfdFlags::CLOEXEC).unwrap()));
        rustix::io::write(&full.0, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let interrupt: Arc<dyn Interrupt> = Arc::<Bell>::clone(&full);
        for _ in 0..10 * WAITING_MAX {
            herald.raise(&interrupt);
        }
        // Long enough to be stuck in the first one.
        std::thread::sleep(Duration::from_millis(20));
        drop(herald);
        drop(interrupt);
        assert_eq!(Arc::strong_count(&full), 1, "the thread has let go of it");
    }
}
