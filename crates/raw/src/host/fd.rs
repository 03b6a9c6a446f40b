//! Descriptors that were handed to this process by number.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::check;

/// Takes over descriptor `number`, given on the command line (`--fd N`), and marks it
/// close-on-exec. Each number can be adopted once; 0, 1 and 2 never. One that is close-on-exec
/// already was not inherited: this process has opened it, and it has an owner.
///
/// # Errors
/// When no such descriptor was inherited, or it has been adopted, or it is standard input or
/// output.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    use std::sync::Mutex;
    static ADOPTED: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());
    let mut adopted = ADOPTED.lock().unwrap_or_else(|broken| broken.into_inner());
    if number <= 2 || adopted.contains(&number) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_GETFD only reads a flag; a number that is not open makes it fail.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    check(flags.into())?;
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_SETFD only sets a flag of a descriptor that was just seen open.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    adopted.push(number);
    // SAFETY: the descriptor is open, came from outside, and the list above makes this its one
    // owner in this process.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn what_this_process_has_opened_is_not_adopted() {
        let ours = File::open("/dev/null").unwrap();
        assert!(adopt(ours.as_raw_fd()).is_err());
        // SAFETY: F_SETFD only sets a flag.
        assert_eq!(unsafe { libc::fcntl(ours.as_raw_fd(), libc::F_SETFD, 0) }, 0);
        let number = ours.into_raw_fd();
        assert_eq!(adopt(number).unwrap().as_raw_fd(), number);
        assert!(adopt(number).is_err());
    }
}
