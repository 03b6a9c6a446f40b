//! A thread that tends a NIC behind registers, for an embedder without a loop of its own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};

use crate::run::{Report, bell, ring};

/// Tends the NIC whenever it asks for that. Dropping it ends the thread, and with it the last
/// hold it has on the NIC.
pub struct Keeper {
    quits: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// A thread that calls `tend` whenever `attention` is readable, until there is no report, and
    /// `tell` with each.
    pub(super) fn start(
        attention: OwnedFd,
        tend: impl Fn() -> Option<Report> + Send + 'static,
        mut tell: impl FnMut(Report) + Send + 'static,
    ) -> io::Result<Self> {
        let quits = Arc::new(bell()?);
        let quit = Arc::clone(&quits);
        let thread = std::thread::Builder::new().name("vionet-keeper".into()).spawn(move || {
            loop {
                while let Some(report) = tend() {
                    tell(report);
                }
                let mut fds = [&attention, &*quit]
                    .map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
                // An interrupted wait is a wait that has ended.
                let (Ok(_) | Err(_)) = poll(&mut fds, None);
                let [_, quit] = fds;
                if !quit.revents().is_empty() {
                    return;
                }
            }
        })?;
        Ok(Self { quits, thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        ring(&*self.quits);
        if let Some(thread) = self.thread.take() {
            // What it told was the embedder's to hear; a panic there ends here.
            let (Ok(()) | Err(_)) = thread.join();
        }
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keeper")
    }
}
