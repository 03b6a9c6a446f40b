//! The vhost-user front-end: what a VMM says to a back-end, in QEMU's order.
//!
//! ```text
//!   over       GET_FEATURES, GET/SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_OWNER
//!   set_...    SET_FEATURES, then SET_MEM_TABLE, or ADD_MEM_REG where memory has slots
//!   start_ring SET_VRING_NUM, _BASE, _ADDR, _KICK, _CALL, _ERR, _ENABLE
//!   stop_ring  GET_VRING_BASE
//! ```
//!
//! A message is a header of three words (request, flags, bytes that follow) and its payload. Every
//! wait for an answer ends after [`ANSWER_MAX`].

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::error::GuestError;
use crate::guest::clock;

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
const SET_VRING_ERR: u32 = 14;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ENABLE: u32 = 18;
const GET_MAX_MEM_SLOTS: u32 = 36;
const ADD_MEM_REG: u32 = 37;

const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// Virtio feature bit of the protocol itself.
pub(crate) const F_PROTOCOL_FEATURES: u64 = 1 << 30;
const PROTOCOL_F_MQ: u64 = 1;
const PROTOCOL_F_REPLY_ACK: u64 = 1 << 3;
const PROTOCOL_F_CONFIGURE_MEM_SLOTS: u64 = 1 << 15;

/// How long a back-end may take for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long a socket may be there without anybody listening on it.
const LISTEN_MAX: Duration = Duration::from_millis(500);
const NAP: Duration = Duration::from_millis(2);

/// Where a ring is, in the front-end's address space.
#[derive(Clone, Copy, Debug)]
pub struct RingPlace {
    /// Number of entries.
    pub size: u16,
    /// The position to begin at, as the messages write it: of a packed ring both wrap counters.
    pub base: u32,
    /// Descriptor area.
    pub descriptors: u64,
    /// Available ring, or the driver's event suppression.
    pub avail: u64,
    /// Used ring, or the device's event suppression.
    pub used: u64,
}

/// What a ring rings, and what rings for it.
#[derive(Clone, Copy, Debug)]
pub struct RingBells<'b> {
    /// Rung by the driver: there are new buffers.
    pub kick: BorrowedFd<'b>,
    /// Rung by the device: buffers are used.
    pub call: BorrowedFd<'b>,
    /// Rung by the device: the ring is broken.
    pub error: BorrowedFd<'b>,
}

/// A connection to a vhost-user back-end.
#[derive(Debug)]
pub struct FrontEnd {
    socket: UnixStream,
    features: u64,
    protocol: u64,
}

impl FrontEnd {
    /// Connects and begins the session. A socket is seen when it is bound, a moment before its
    /// owner listens; that moment is waited for, half a second at most.
    ///
    /// # Errors
    /// When the back-end cannot be reached, or does not answer as one.
    pub fn connect(path: &Path) -> Result<Self, GuestError> {
        let start = clock();
        loop {
            match UnixStream::connect(path) {
                Ok(socket) => return Self::over(socket),
                Err(cause)
                    if cause.kind() == ErrorKind::ConnectionRefused
                        && start.elapsed() < LISTEN_MAX =>
                {
                    std::thread::sleep(NAP);
                }
                Err(cause) => return Err(GuestError::Connect(cause)),
            }
        }
    }

    /// Begins the session over a connected socket.
    ///
    /// # Errors
    /// When the other end does not answer as a back-end.
    pub fn over(socket: UnixStream) -> Result<Self, GuestError> {
        socket.set_read_timeout(Some(ANSWER_MAX)).map_err(GuestError::Socket)?;
        socket.set_write_timeout(Some(ANSWER_MAX)).map_err(GuestError::Socket)?;
        let mut end = Self { socket, features: 0, protocol: 0 };
        end.features = end.ask(GET_FEATURES, "GET_FEATURES")?;
        if end.features & F_PROTOCOL_FEATURES != 0 {
            let known = PROTOCOL_F_MQ | PROTOCOL_F_REPLY_ACK | PROTOCOL_F_CONFIGURE_MEM_SLOTS;
            let wanted = end.ask(GET_PROTOCOL_FEATURES, "GET_PROTOCOL_FEATURES")? & known;
            end.send(SET_PROTOCOL_FEATURES, &wanted.to_ne_bytes(), &[], false)?;
            end.protocol = wanted;
        }
        if end.has(PROTOCOL_F_MQ) && end.ask(GET_QUEUE_NUM, "GET_QUEUE_NUM")? == 0 {
            return Err(GuestError::Missing("a single queue"));
        }
        end.tell(SET_OWNER, "SET_OWNER", &[], &[])?;
        Ok(end)
    }

    fn has(&self, feature: u64) -> bool {
        self.protocol & feature != 0
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
        let slots = self.has(PROTOCOL_F_CONFIGURE_MEM_SLOTS);
        if slots && self.ask(GET_MAX_MEM_SLOTS, "GET_MAX_MEM_SLOTS")? == 0 {
            return Err(GuestError::Missing("a single slot for memory"));
        }
        // The number of regions where it is a table, and padding.
        let head = [u32::from(!slots), 0].into_iter().flat_map(u32::to_ne_bytes);
        let region = [guest, len, user, 0].into_iter().flat_map(u64::to_ne_bytes);
        let payload: Vec<u8> = head.chain(region).collect();
        if slots {
            self.tell(ADD_MEM_REG, "ADD_MEM_REG", &payload, &[file])
        } else {
            self.tell(SET_MEM_TABLE, "SET_MEM_TABLE", &payload, &[file])
        }
    }

    /// Configures ring `index` and starts it.
    ///
    /// # Errors
    /// When the back-end refuses any of it.
    pub fn start_ring(
        &mut self,
        index: u32,
        place: &RingPlace,
        bells: RingBells<'_>,
    ) -> Result<(), GuestError> {
        let state = |number: u32| [index, number].map(u32::to_ne_bytes).concat();
        let size = u32::from(place.size);
        self.tell(SET_VRING_NUM, "SET_VRING_NUM", &state(size), &[])?;
        self.tell(SET_VRING_BASE, "SET_VRING_BASE", &state(place.base), &[])?;
        let addresses = [place.descriptors, place.used, place.avail, 0];
        let addresses = addresses.into_iter().flat_map(u64::to_ne_bytes);
        let payload: Vec<u8> = state(0).into_iter().chain(addresses).collect();
        self.tell(SET_VRING_ADDR, "SET_VRING_ADDR", &payload, &[])?;
        let number = u64::from(index).to_ne_bytes();
        self.tell(SET_VRING_KICK, "SET_VRING_KICK", &number, &[bells.kick])?;
        self.tell(SET_VRING_CALL, "SET_VRING_CALL", &number, &[bells.call])?;
        self.tell(SET_VRING_ERR, "SET_VRING_ERR", &number, &[bells.error])?;
        self.tell(SET_VRING_ENABLE, "SET_VRING_ENABLE", &state(1), &[])
    }

    /// Stops ring `index`; returns its position.
    ///
    /// # Errors
    /// When the back-end does not answer.
    pub fn stop_ring(&mut self, index: u32) -> Result<u16, GuestError> {
        let state = [index, 0].map(u32::to_ne_bytes).concat();
        self.send(GET_VRING_BASE, &state, &[], false)?;
        let answer = self.receive(GET_VRING_BASE, "GET_VRING_BASE")?;
        let [_, _, _, _, n0, n1, ..] = answer;
        Ok(u16::from_ne_bytes([n0, n1]))
    }

    /// The process at the other end, where the system tells.
    #[must_use]
    pub fn peer_process(&self) -> Option<u32> {
        let credentials = rustix::net::sockopt::socket_peercred(&self.socket).ok()?;
        u32::try_from(credentials.pid.as_raw_nonzero().get()).ok()
    }

    fn ask(&mut self, id: u32, name: &'static str) -> Result<u64, GuestError> {
        self.send(id, &[], &[], false)?;
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
        let acknowledged = self.has(PROTOCOL_F_REPLY_ACK);
        self.send(id, payload, fds, acknowledged)?;
        if acknowledged {
            let answer = self.receive(id, name).map(u64::from_ne_bytes)?;
            return if answer == 0 { Ok(()) } else { Err(GuestError::Refused(name)) };
        }
        // Without acknowledgements a later answer says that this one was handled.
        self.ask(GET_FEATURES, name).map(drop)
    }

    fn send(
        &mut self,
        id: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
        acknowledged: bool,
    ) -> Result<(), GuestError> {
        let flags = if acknowledged { VERSION | NEED_REPLY } else { VERSION };
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
        match sendmsg(&self.socket, &pieces, &mut control, SendFlags::NOSIGNAL) {
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
        use ErrorKind::{TimedOut, UnexpectedEof, WouldBlock};
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

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::thread::{self, JoinHandle};

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    use super::*;

    const OFFER: u64 = F_PROTOCOL_FEATURES | 0x1234;

    /// One message as a back-end gets it: request, flags, payload, number of descriptors.
    type Message = (u32, u32, Vec<u8>, usize);

    fn next_message(socket: &UnixStream) -> Option<Message> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut header = [0; 12];
        let mut pieces = [std::io::IoSliceMut::new(&mut header)];
        let got = recvmsg(socket, &mut pieces, &mut control, RecvFlags::WAITALL).unwrap();
        if got.bytes == 0 {
            return None;
        }
        let fds = |message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<OwnedFd>>().len(),
            _ => 0,
        };
        let count = control.drain().map(fds).sum();
        let word = |at| u32::from_ne_bytes(*header[at..].first_chunk::<4>().unwrap());
        let mut payload = vec![0; word(8) as usize];
        let mut reader = socket;
        reader.read_exact(&mut payload).unwrap();
        Some((word(0), word(4), payload, count))
    }

    fn reply(mut socket: &UnixStream, id: u32, number: u64) {
        let header = [id, VERSION | REPLY, 8].into_iter().flat_map(u32::to_ne_bytes);
        let message: Vec<u8> = header.chain(number.to_ne_bytes()).collect();
        socket.write_all(&message).unwrap();
    }

    /// A back-end that answers the number asked for, acknowledges, and tells what it heard.
    fn back_end(protocol: u64, refuse: u32) -> (UnixStream, JoinHandle<Vec<Message>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let thread = thread::spawn(move || {
            let mut heard = Vec::new();
            while let Some(message) = next_message(&theirs) {
                let (id, flags, ..) = message;
                match id {
                    GET_FEATURES => reply(&theirs, id, OFFER),
                    GET_PROTOCOL_FEATURES => reply(&theirs, id, protocol),
                    GET_QUEUE_NUM | GET_MAX_MEM_SLOTS => reply(&theirs, id, 8),
                    // Index 1, position 77.
                    GET_VRING_BASE => reply(&theirs, id, 77 << 32 | 1),
                    _ if flags & NEED_REPLY != 0 => reply(&theirs, id, u64::from(id == refuse)),
                    _ => {}
                }
                heard.push(message);
            }
            heard
        });
        (ours, thread)
    }

    fn whole_session(protocol: u64) -> Vec<Message> {
        let (socket, thread) = back_end(protocol, 0);
        let mut end = FrontEnd::over(socket).unwrap();
        assert_eq!(end.offered(), 0x1234);
        end.set_features(0x34).unwrap();
        let file = vionet_raw::host::mmap::memory_file("front-end-test", 4096).unwrap();
        let fd = file.as_fd();
        end.set_memory(1 << 20, 7 << 40, 4096, fd).unwrap();
        let place = RingPlace { size: 128, base: 0, descriptors: 1, avail: 2, used: 3 };
        end.start_ring(1, &place, RingBells { kick: fd, call: fd, error: fd }).unwrap();
        assert_eq!(end.stop_ring(1).unwrap(), 77);
        drop(end);
        thread.join().unwrap()
    }

    fn requests(heard: &[Message]) -> Vec<u32> {
        heard.iter().map(|message| message.0).collect()
    }

    #[test]
    fn a_session_has_the_order_of_qemu_and_every_descriptor_its_message() {
        let heard = whole_session(PROTOCOL_F_MQ | PROTOCOL_F_REPLY_ACK | 1 << 63);
        let order = [1, 15, 16, 17, 3, 2, 5, 8, 10, 9, 12, 13, 14, 18, 11];
        assert_eq!(requests(&heard), order);
        for (id, flags, payload, fds) in &heard {
            let brings = matches!(*id, SET_MEM_TABLE | 12..=14);
            assert_eq!(*fds, usize::from(brings), "descriptors of {id}");
            let asks = matches!(*id, 1 | 11 | 15 | 16 | 17);
            assert_eq!(flags & NEED_REPLY == 0, asks, "flags of {id}");
            if *id == SET_PROTOCOL_FEATURES {
                assert_eq!(payload[..], 9_u64.to_ne_bytes(), "only what is known is taken");
            }
        }
        let table: Vec<u8> =
            [1, 1 << 20, 4096, 7 << 40, 0].into_iter().flat_map(u64::to_le_bytes).collect();
        assert_eq!(heard[6].2, table);
    }

    #[test]
    fn memory_goes_into_slots_where_there_are_slots() {
        let heard = whole_session(PROTOCOL_F_REPLY_ACK | PROTOCOL_F_CONFIGURE_MEM_SLOTS);
        assert_eq!(requests(&heard)[..7], [1, 15, 16, 3, 2, 36, 37]);
        let (.., payload, fds) = &heard[6];
        assert_eq!((payload.len(), *fds), (40, 1));
        assert_eq!(payload[..8], [0; 8], "padding");
    }

    #[test]
    fn without_acknowledgements_each_request_is_followed_by_a_question() {
        let heard = whole_session(0);
        assert_eq!(requests(&heard)[..7], [1, 15, 16, 3, 1, 2, 1]);
        assert!(heard.iter().all(|message| message.1 & NEED_REPLY == 0));
    }

    #[test]
    fn a_socket_that_is_not_listened_on_yet_is_waited_for_but_not_for_ever() {
        use rustix::net::{
            AddressFamily, SocketAddrUnix, SocketType, accept, bind, listen, socket,
        };
        let path = std::env::temp_dir().join(format!("vionet-late-{}", std::process::id()));
        let late = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&late, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let never = FrontEnd::connect(&path);
        assert!(matches!(never, Err(GuestError::Connect(_))), "{never:?}");
        let owner = thread::spawn(move || {
            thread::sleep(LISTEN_MAX / 10);
            listen(&late, 1).unwrap();
            drop(accept(&late).unwrap());
        });
        let reached = FrontEnd::connect(&path);
        assert!(!matches!(reached, Err(GuestError::Connect(_))), "{reached:?}");
        owner.join().unwrap();
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_refusal_names_the_request() {
        let (socket, _thread) = back_end(PROTOCOL_F_REPLY_ACK, SET_FEATURES);
        let mut end = FrontEnd::over(socket).unwrap();
        let refused = end.set_features(1);
        assert!(matches!(refused, Err(GuestError::Refused("SET_FEATURES"))), "{refused:?}");
    }

    #[test]
    fn answers_that_make_no_sense_and_ends_are_errors() {
        let answer = |bytes: &[u8]| {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(bytes).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            FrontEnd::over(ours).unwrap_err()
        };
        let words = |words: [u32; 3]| words.map(u32::to_ne_bytes).concat();
        for wrong in [
            [GET_FEATURES, VERSION, 8],
            [GET_FEATURES, VERSION | REPLY, 4],
            [GET_FEATURES, VERSION | REPLY, u32::MAX],
            [SET_OWNER, VERSION | REPLY, 8],
            [GET_FEATURES, REPLY, 8],
        ] {
            assert!(matches!(answer(&words(wrong)), GuestError::BadReply("GET_FEATURES")));
        }
        let half = [words([GET_FEATURES, VERSION | REPLY, 8]), vec![0; 3]].concat();
        assert!(matches!(answer(&half), GuestError::Closed));
        assert!(matches!(answer(&[]), GuestError::Closed));
    }
}
