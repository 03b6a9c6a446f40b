//! Breaking off a system call in which a thread is stuck.
//!
//! A descriptor that a stranger gave us shares its file flags with the stranger: it can be made
//! blocking after we have looked, and then a write to it may wait for ever. A signal with a
//! handler that does nothing, and without `SA_RESTART`, ends any such wait with `EINTR`.
//!
//! ```text
//!   worker:   write(call) ......................... EINTR: counts as not delivered, goes on
//!   control:  no answer for a while --> interrupt() --> again until there is one
//! ```
//!
//! The signal may come a moment before the call: whoever interrupts does so until it has helped.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::Duration;

use super::check;

/// A thread of this process that can be interrupted.
///
/// A thread that has ended is not there any more; if its number belongs to another thread of this
/// process by then, that one sees one interrupted call.
#[derive(Clone, Copy, Debug)]
pub struct ThreadHandle {
    process: libc::pid_t,
    thread: libc::pid_t,
    signal: libc::c_int,
}

impl ThreadHandle {
    /// The calling thread, which does not block the signal from now on.
    ///
    /// # Errors
    /// When every real-time signal of the process has a handler already.
    pub fn current() -> io::Result<Self> {
        static SIGNAL: OnceLock<Option<libc::c_int>> = OnceLock::new();
        let signal = SIGNAL.get_or_init(install).ok_or_else(|| {
            io::Error::other("no real-time signal is left to interrupt a worker with")
        })?;
        let set = only(signal)?;
        let unblock = libc::SIG_UNBLOCK;
        // SAFETY: the set is initialised; a null pointer says that the old mask is not wanted.
        let failed = unsafe { libc::pthread_sigmask(unblock, &raw const set, ptr::null_mut()) };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        // SAFETY: getpid takes nothing and cannot fail.
        let process = unsafe { libc::getpid() };
        // SAFETY: gettid takes nothing and cannot fail.
        let thread = unsafe { libc::gettid() };
        Ok(Self { process, thread, signal })
    }

    /// Ends the system call in which the thread waits, if it does.
    pub fn interrupt(&self) {
        let Self { process, thread, signal } = *self;
        // SAFETY: the signal has a handler that does nothing; a thread that has ended is an error
        // of the call, and all there is to do about it is nothing.
        unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) };
    }

    /// Waits until the thread has ended, which it must have been told to do; what it is stuck in
    /// is broken off. A panic of the thread stays its own.
    pub fn join<T>(&self, thread: JoinHandle<T>) {
        let mut waits = 0_u32;
        while !thread.is_finished() {
            std::thread::sleep(Duration::from_micros(100));
            waits = waits.wrapping_add(1);
            if waits.is_multiple_of(100) {
                self.interrupt();
            }
        }
        drop(thread.join());
    }
}

extern "C" fn nothing(_signal: libc::c_int) {}

/// Takes the last real-time signal that nobody has taken.
fn install() -> Option<libc::c_int> {
    (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev().find(|signal| take(*signal).is_ok_and(|ours| ours))
}

/// Whether the signal was free and is ours now.
fn take(signal: libc::c_int) -> io::Result<bool> {
    let mut found = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null action asks for the current one, which the call writes.
    check(unsafe { libc::sigaction(signal, ptr::null(), found.as_mut_ptr()) }.into())?;
    // SAFETY: sigaction has succeeded.
    let mut action = unsafe { found.assume_init() };
    if action.sa_sigaction != libc::SIG_DFL {
        return Ok(false);
    }
    action.sa_sigaction = address_of(nothing);
    action.sa_flags = 0;
    // SAFETY: the action is a whole one, with a handler that may run at any moment since it does
    // nothing at all.
    check(unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) }.into())?;
    Ok(true)
}

#[allow(clippy::as_conversions, reason = "there is no other way to a function's address")]
fn address_of(handler: extern "C" fn(libc::c_int)) -> libc::sighandler_t {
    handler as libc::sighandler_t
}

/// The set of this one signal.
fn only(signal: libc::c_int) -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset fills the set it is given.
    check(unsafe { libc::sigemptyset(set.as_mut_ptr()) }.into())?;
    // SAFETY: sigemptyset has succeeded.
    let mut set = unsafe { set.assume_init() };
    // SAFETY: the set is initialised and the signal is a valid one.
    check(unsafe { libc::sigaddset(&raw mut set, signal) }.into())?;
    Ok(set)
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Write};
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_write_that_waits_for_ever_is_broken_off() {
        let (_reader, mut full) = std::io::pipe().unwrap();
        let (sender, receiver) = channel();
        let thread = std::thread::spawn(move || {
            sender.send(ThreadHandle::current().unwrap()).unwrap();
            loop {
                if let Err(error) = full.write(&[0; 4096]) {
                    return error.kind();
                }
            }
        });
        let handle = receiver.recv().unwrap();
        while !thread.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
            handle.interrupt();
        }
        assert_eq!(thread.join().unwrap(), ErrorKind::Interrupted);
        // The thread is gone: nothing happens, to nobody.
        handle.interrupt();
    }

    #[test]
    fn joining_breaks_off_what_the_thread_is_stuck_in() {
        let (_reader, mut full) = std::io::pipe().unwrap();
        let (sender, receiver) = channel();
        let thread = std::thread::spawn(move || {
            sender.send(ThreadHandle::current().unwrap()).unwrap();
            while full.write(&[0; 4096]).is_ok() {}
        });
        receiver.recv().unwrap().join(thread);
    }

    #[test]
    fn all_threads_share_one_signal() {
        let first = ThreadHandle::current().unwrap();
        let second = std::thread::spawn(|| ThreadHandle::current().unwrap()).join().unwrap();
        assert_eq!(first.signal, second.signal);
        assert_ne!(first.thread, second.thread);
    }
}
