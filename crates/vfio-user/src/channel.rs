//! Framing: messages and their descriptors over a stream socket that never blocks.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendFlags, recvmsg, sendmsg,
};
use vionet_socket::descriptor::check_no_socket;

use crate::event::ProtocolError;
use crate::message::{HEADER_LEN, Header, Message, PAYLOAD_MAX};

/// The most descriptors that come with one message, as told in VERSION; QEMU wants no more.
pub(crate) const FDS_MAX: usize = 16;

/// A connection to a client, and the message that is arriving on it.
pub(crate) struct Channel {
    socket: OwnedFd,
    /// Header and payload as far as they have come.
    bytes: Box<[u8; HEADER_LEN + PAYLOAD_MAX]>,
    filled: usize,
    fds: Vec<OwnedFd>,
    /// How many messages have come before this one.
    before: u64,
}

/// What reading has come to.
pub(crate) enum Incoming {
    Message(Message),
    /// Nothing more for now.
    Later,
    /// The client has closed the connection.
    Closed,
}

impl Channel {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        let bytes = Box::new([0; HEADER_LEN + PAYLOAD_MAX]);
        Self { socket, bytes, filled: 0, fds: Vec::new(), before: 0 }
    }

    /// The number of the message that has begun and not ended yet.
    pub(crate) fn half_said(&self) -> Option<u64> {
        (self.filled > 0).then_some(self.before)
    }

    /// Reads on; call again until it says [`Incoming::Later`].
    pub(crate) fn read(&mut self) -> Result<Incoming, ProtocolError> {
        loop {
            let header = self.header()?;
            let wanted = header.map_or(HEADER_LEN, |header| HEADER_LEN.saturating_add(header.size));
            if let Some(header) = header
                && self.filled == wanted
            {
                return Ok(Incoming::Message(self.complete(header)));
            }
            match self.receive(wanted)? {
                Some(0) if self.filled == 0 => return Ok(Incoming::Closed),
                Some(0) => return Err(ProtocolError::CutOff),
                Some(count) => self.filled = self.filled.saturating_add(count).min(wanted),
                None => return Ok(Incoming::Later),
            }
        }
    }

    fn header(&self) -> Result<Option<Header>, ProtocolError> {
        if self.filled < HEADER_LEN {
            return Ok(None);
        }
        let Some(bytes) = self.bytes.first_chunk() else { return Ok(None) };
        Header::decode(bytes).map(Some)
    }

    fn complete(&mut self, header: Header) -> Message {
        let end = HEADER_LEN.saturating_add(header.size);
        let payload = self.bytes.get(HEADER_LEN..end).unwrap_or(&[]).to_vec();
        self.filled = 0;
        self.before = self.before.wrapping_add(1);
        Message { header, payload, fds: std::mem::take(&mut self.fds) }
    }

    fn receive(&mut self, wanted: usize) -> Result<Option<usize>, ProtocolError> {
        let room = self.bytes.get_mut(self.filled..wanted).unwrap_or(&mut []);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2 * FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let got = match recvmsg(&self.socket, &mut [IoSliceMut::new(room)], &mut control, flags) {
            Ok(got) => got,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            // Gone with replies of ours unread.
            Err(Errno::CONNRESET) => return Ok(Some(0)),
            Err(errno) => return Err(ProtocolError::Socket(errno.into())),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        // What did not fit was closed by the kernel: the message cannot be trusted.
        if got.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > FDS_MAX {
            return Err(ProtocolError::TooManyFds);
        }
        // Who sends its own end of this socket along would never be seen to go.
        self.fds.iter().try_for_each(check_no_socket).map_err(ProtocolError::Descriptor)?;
        Ok(Some(got.bytes))
    }

    /// Sends a whole reply. A client that does not read its replies is gone for us.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<(), ProtocolError> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let mut control = SendAncillaryBuffer::default();
        match sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(_) | Err(Errno::AGAIN) => Err(ProtocolError::ReplyNotTaken),
            // Gone before it heard the answer: reading on will say so.
            Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(errno) => Err(ProtocolError::Socket(errno.into())),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
