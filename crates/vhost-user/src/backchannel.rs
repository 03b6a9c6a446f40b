//! The socket on which the back-end asks (VU-BCH): the front-end reads it when it likes.

use std::io::IoSlice;
use std::os::fd::OwnedFd;

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use crate::message::{HEADER_LEN, bare};

/// The device configuration has changed.
const CONFIG_CHANGE: u32 = 2;

/// A front-end's ear, if it has given us one.
#[derive(Default)]
pub(crate) struct Backchannel(Option<OwnedFd>);

impl Backchannel {
    /// In place of the one before; whether there was one.
    pub(crate) fn replace(&mut self, socket: Option<OwnedFd>) -> bool {
        core::mem::replace(&mut self.0, socket).is_some()
    }

    /// Tells the front-end to read the device configuration again. No answer is asked for, and one
    /// that does not listen is not waited for (VU-BCH-03, VU-BCH-04).
    pub(crate) fn tell_config_changed(&mut self) {
        let Some(socket) = &self.0 else { return };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let mut control = SendAncillaryBuffer::default();
        match sendmsg(socket, &[IoSlice::new(&bare(CONFIG_CHANGE))], &mut control, flags) {
            Ok(HEADER_LEN) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // Half a message would be taken for the start of the next one.
            Ok(_) | Err(_) => self.0 = None,
        }
    }
}
