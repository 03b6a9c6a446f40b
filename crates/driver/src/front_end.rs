//! The vhost-user front-end: what a VMM says to a back-end (vhost-user protocol, QEMU's order).

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::error::GuestError;

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;

const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// Virtio feature bit of the protocol itself.
pub(crate) const F_PROTOCOL_FEATURES: u64 = 1 << 30;
const PROTOCOL_F_REPLY_ACK: u64 = 1 << 3;

/// How long a back-end may take for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Where a ring is, in the front-end's address space.
#[derive(Clone, Copy, Debug)]
pub struct RingPlace {
    /// Number of entries.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

/// A connection to a vhost-user back-end.
#[derive(Debug)]
pub struct FrontEnd {
    socket: UnixStream,
    features: u64,
    acknowledges: bool,
}

impl FrontEnd {
    /// Connects and begins the session.
    ///
    /// # Errors
    /// When the back-end cannot be reached, or does not answer as one.
    pub fn connect(path: &Path) -> Result<Self, GuestError> {
        let socket = UnixStream::connect(path).map_err(GuestError::Connect)?;
        socket.set_read_timeout(Some(ANSWER_MAX)).map_err(GuestError::Socket)?;
        socket.set_write_timeout(Some(ANSWER_MAX)).map_err(GuestError::Socket)?;
        let mut end = Self { socket, features: 0, acknowledges: false };
        end.features = end.ask(GET_FEATURES, "GET_FEATURES")?;
        if end.features & F_PROTOCOL_FEATURES != 0 {
            let offered = end.ask(GET_PROTOCOL_FEATURES, "GET_PROTOCOL_FEATURES")?;
            let wanted = offered & PROTOCOL_F_REPLY_ACK;
            end.send(SET_PROTOCOL_FEATURES, &wanted.to_ne_bytes(), &[])?;
            end.acknowledges = wanted != 0;
        }
        end.tell(SET_OWNER, "SET_OWNER", &[], &[])?;
        Ok(end)
    }

    /// The virtio features that the back-end offers.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.features & !F_PROTOCOL_FEATURES
    }

    /// Chooses features.
    ///
    /// # Errors
    /// When the back-end refuses them.
    pub fn set_features(&mut self, features: u64) -> Result<(), GuestError> {
        let bits = features | self.features & F_PROTOCOL_FEATURES;
        self.tell(SET_FEATURES, "SET_FEATURES", &bits.to_ne_bytes(), &[])
    }

    /// Shares one region of memory.
    ///
    /// # Errors
    /// When the back-end cannot map it.
    pub fn set_memory(
        &mut self,
        guest: u64,
        user: u64,
        len: u64,
        file: BorrowedFd<'_>,
    ) -> Result<(), GuestError> {
        let table = [1, guest, len, user, 0].into_iter().flat_map(u64::to_ne_bytes);
        let table: Vec<u8> = table.collect();
        self.tell(SET_MEM_TABLE, "SET_MEM_TABLE", &table, &[file])
    }

    /// Configures ring `index` and kicks it into life at position 0.
    ///
    /// # Errors
    /// When the back-end refuses any of it.
    pub fn start_ring(
        &mut self,
        index: u32,
        place: &RingPlace,
        kick: BorrowedFd<'_>,
        call: BorrowedFd<'_>,
    ) -> Result<(), GuestError> {
        let state = |number: u32| [index, number].map(u32::to_ne_bytes).concat();
        let size = u32::from(place.size);
        self.tell(SET_VRING_NUM, "SET_VRING_NUM", &state(size), &[])?;
        self.tell(SET_VRING_BASE, "SET_VRING_BASE", &state(0), &[])?;
        let addresses = [place.descriptors, place.used, place.avail, 0];
        let addresses = addresses.into_iter().flat_map(u64::to_ne_bytes);
        let payload: Vec<u8> = state(0).into_iter().chain(addresses).collect();
        self.tell(SET_VRING_ADDR, "SET_VRING_ADDR", &payload, &[])?;
        let number = u64::from(index).to_ne_bytes();
        self.tell(SET_VRING_CALL, "SET_VRING_CALL", &number, &[call])?;
        self.tell(SET_VRING_KICK, "SET_VRING_KICK", &number, &[kick])?;
        self.tell(SET_VRING_ENABLE, "SET_VRING_ENABLE", &state(1), &[])
    }

    /// Stops ring `index`; returns its position.
    ///
    /// # Errors
    /// When the back-end does not answer.
    pub fn stop_ring(&mut self, index: u32) -> Result<u16, GuestError> {
        let state = [index, 0].map(u32::to_ne_bytes).concat();
        self.send(GET_VRING_BASE, &state, &[])?;
        let answer: [u8; 8] = self.receive(GET_VRING_BASE, "GET_VRING_BASE")?;
        let [_, _, _, _, n0, n1, ..] = answer;
        Ok(u16::from_ne_bytes([n0, n1]))
    }

    fn ask(&mut self, id: u32, name: &'static str) -> Result<u64, GuestError> {
        self.send(id, &[], &[])?;
        self.receive(id, name).map(u64::from_ne_bytes)
    }

    /// Sends a request and waits until it has taken effect.
    fn tell(
        &mut self,
        id: u32,
        name: &'static str,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), GuestError> {
        self.send(id, payload, fds)?;
        if self.acknowledges {
            let answer = self.receive(id, name).map(u64::from_ne_bytes)?;
            return if answer == 0 { Ok(()) } else { Err(GuestError::Refused(name)) };
        }
        // Without acknowledgements a later answer says that this one was handled.
        self.ask(GET_FEATURES, name).map(drop)
    }

    fn send(&mut self, id: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), GuestError> {
        let flags = if self.acknowledges { VERSION | NEED_REPLY } else { VERSION };
        let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = [id, flags, size].into_iter().flat_map(u32::to_ne_bytes);
        let message: Vec<u8> = header.chain(payload.iter().copied()).collect();
        if fds.is_empty() {
            return self.socket.write_all(&message).map_err(GuestError::Socket);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(GuestError::Refused("more descriptors than a message brings"));
        }
        let pieces = [IoSlice::new(&message)];
        let sent = sendmsg(&self.socket, &pieces, &mut control, SendFlags::NOSIGNAL);
        match sent {
            Ok(count) if count == message.len() => Ok(()),
            Ok(_) => Err(GuestError::Closed),
            Err(errno) => Err(GuestError::Socket(errno.into())),
        }
    }

    fn receive(&mut self, id: u32, name: &'static str) -> Result<[u8; 8], GuestError> {
        let mut header = [0; 12];
        self.fill(&mut header)?;
        let [i0, i1, i2, i3, f0, f1, f2, f3, s0, s1, s2, s3] = header;
        let words = [[i0, i1, i2, i3], [f0, f1, f2, f3], [s0, s1, s2, s3]].map(u32::from_ne_bytes);
        if words != [id, VERSION | REPLY, 8] {
            return Err(GuestError::BadReply(name));
        }
        let mut payload = [0; 8];
        self.fill(&mut payload)?;
        Ok(payload)
    }

    fn fill(&mut self, room: &mut [u8]) -> Result<(), GuestError> {
        use std::io::ErrorKind::{TimedOut, UnexpectedEof, WouldBlock};
        self.socket.read_exact(room).map_err(|cause| match cause.kind() {
            UnexpectedEof => GuestError::Closed,
            TimedOut | WouldBlock => GuestError::Timeout("waiting for the back-end", ANSWER_MAX),
            _ => GuestError::Socket(cause),
        })
    }
}

impl AsFd for FrontEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
