//! A front-end by hand: messages as bytes, rings in shared memory, the real server behind them.

pub mod drive;
pub mod guest;
pub mod packed;

use std::io::{ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vionet::{Device, NicConfig};
use vionet_endpoint::Echo;
use vionet_vhost_user::{End, Event, ServeError, Server};

pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
pub const MTU: u16 = 1500;
pub const VERSION: u32 = 1;
pub const NEED_REPLY: u32 = 8;
pub const F_PROTOCOL: u64 = 1 << 30;
pub const F_VERSION_1: u64 = 1 << 32;
pub const F_MRG_RXBUF: u64 = 1 << 15;
pub const F_PACKED: u64 = 1 << 34;
/// INDIRECT_DESC, EVENT_IDX, RING_PACKED, IN_ORDER and HASH_REPORT: the bench's driver is a plain
/// one.
pub const UNKNOWN_TO_THE_GUEST: u64 = 1 << 28 | 1 << 29 | 1 << 34 | 1 << 35 | 1 << 57;
pub const REPLY_ACK: u64 = 1 << 3;
pub const NO_FD: u64 = 1 << 8;
/// Long enough for a busy machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The server in a thread of its own, with a device that sends every frame back.
pub struct Back {
    thread: Option<JoinHandle<Result<End, ServeError>>>,
    stop: OwnedFd,
    events: Receiver<Event>,
}

impl Back {
    pub fn new(server: Server) -> Self {
        Self::of_pairs(server, 1)
    }

    fn of_pairs(mut server: Server, pairs: u16) -> Self {
        let stop = event();
        let watched = stop.try_clone().unwrap();
        let (sender, events) = channel();
        let thread = std::thread::spawn(move || {
            let config = NicConfig { mac: MAC, mtu: MTU, pairs, ..NicConfig::default() };
            let mut device = Device::new(config, Box::new(Echo)).unwrap();
            server.run(&mut device, watched.as_fd(), &mut |event| drop(sender.send(event)))
        });
        Self { thread: Some(thread), stop, events }
    }

    /// A server on one end of a pair, and the other end.
    pub fn pair() -> (Self, FrontEnd) {
        Self::pair_with(1)
    }

    /// The same with a device of so many queue pairs.
    pub fn pair_with(pairs: u16) -> (Self, FrontEnd) {
        let (front, back) = UnixStream::pair().unwrap();
        (Self::of_pairs(Server::from_fd(back.into()).unwrap(), pairs), FrontEnd::new(front))
    }

    /// The next event that `wanted` accepts; those before it are skipped.
    pub fn wait_for<T>(&self, wanted: impl Fn(Event) -> Option<T>) -> T {
        loop {
            let event = self.events.recv_timeout(PATIENCE).expect("the event came");
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    }

    pub fn wait_for_text(&self, part: &str) -> String {
        self.wait_for(|event| Some(event.to_string()).filter(|text| text.contains(part)))
    }

    /// Every event so far, as text.
    pub fn texts(&self) -> Vec<String> {
        self.events.try_iter().map(|event| event.to_string()).collect()
    }

    pub fn stop(&mut self) -> Result<End, ServeError> {
        signal(&self.stop);
        self.end()
    }

    /// How the server ended by itself.
    pub fn end(&mut self) -> Result<End, ServeError> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        signal(&self.stop);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// A path for a socket, with nothing there at first and nothing left at the end.
pub struct Place(PathBuf);

impl Place {
    pub fn new(name: &str) -> Self {
        let folder = std::env::temp_dir();
        let path = folder.join(format!("vionet-vu-{name}-{}.sock", std::process::id()));
        drop(std::fs::remove_file(&path));
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn connect(&self) -> FrontEnd {
        FrontEnd::new(UnixStream::connect(&self.0).unwrap())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

/// The connection, from the front-end's side.
pub struct FrontEnd {
    pub socket: UnixStream,
    /// Ask for an acknowledgement with every message, as some front-ends do.
    pub asks: bool,
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub id: u32,
    pub flags: u32,
    pub payload: Vec<u8>,
}

impl FrontEnd {
    pub fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, asks: false }
    }

    /// Sends bytes with descriptors; false when the other side is gone.
    pub fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
        let pieces = [IoSlice::new(bytes)];
        sendmsg(&self.socket, &pieces, &mut control, SendFlags::NOSIGNAL)
            .is_ok_and(|sent| sent == bytes.len())
    }

    pub fn send(&self, id: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let words = [id, VERSION | flags, payload.len() as u32];
        let header = words.into_iter().flat_map(u32::to_ne_bytes);
        let message: Vec<u8> = header.chain(payload.iter().copied()).collect();
        self.send_raw(&message, fds)
    }

    /// The next reply, or `None` when the connection has been closed instead.
    pub fn receive(&self) -> Option<Reply> {
        let mut header = [0; 12];
        match (&self.socket).read_exact(&mut header) {
            Ok(()) => {}
            Err(cause) => match cause.kind() {
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => return None,
                _ => panic!("no answer: {cause}"),
            },
        }
        let word =
            |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let mut payload = vec![0; word(8) as usize];
        (&self.socket).read_exact(&mut payload).expect("the payload follows its header");
        Some(Reply { id: word(0), flags: word(4), payload })
    }

    /// Sends a request of its own reply and checks the reply's form.
    pub fn ask(&self, id: u32, payload: &[u8]) -> Vec<u8> {
        let flags = if self.asks { NEED_REPLY } else { 0 };
        assert!(self.send(id, flags, payload, &[]));
        let reply = self.receive().expect("an answer");
        assert_eq!((reply.id, reply.flags), (id, 5), "VU-FRM-03");
        reply.payload
    }

    pub fn ask_number(&self, id: u32) -> u64 {
        u64::from_ne_bytes(self.ask(id, &[]).try_into().expect("eight bytes"))
    }

    /// Sends what has no reply of its own, and the answer if it was asked for.
    pub fn tell_with(&self, id: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        let flags = if self.asks { NEED_REPLY } else { 0 };
        assert!(self.send(id, flags, payload, fds));
        if self.asks {
            assert_eq!(self.receive().map(|reply| number_of(&reply)), Some(0), "message {id}");
        }
    }

    pub fn tell(&self, id: u32, payload: &[u8]) {
        self.tell_with(id, payload, &[]);
    }

    pub fn tell_number(&self, id: u32, value: u64) {
        self.tell(id, &value.to_ne_bytes());
    }

    pub fn tell_state(&self, id: u32, index: u32, number: u32) {
        self.tell(id, &state(index, number));
    }

    /// Sends a message that asks for its acknowledgement, and that number.
    pub fn outcome(&self, id: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Option<u64> {
        assert!(self.send(id, NEED_REPLY, payload, fds));
        self.receive().map(|reply| number_of(&reply))
    }

    /// Waits until everything before has taken effect.
    pub fn barrier(&self) {
        self.ask_number(1);
    }

    pub fn is_closed(&self) -> bool {
        !self.send(1, 0, &[], &[]) || self.receive().is_none()
    }

    pub fn base(&self, index: u32) -> u32 {
        let answer = self.ask(11, &state(index, 0));
        assert_eq!(answer[..4], index.to_ne_bytes());
        u32::from_ne_bytes(answer[4..].try_into().expect("eight bytes in all"))
    }
}

fn number_of(reply: &Reply) -> u64 {
    assert_eq!(reply.flags, 5, "VU-FRM-03");
    u64::from_ne_bytes(reply.payload.as_slice().try_into().expect("VU-FRM-04: eight bytes"))
}

pub fn state(index: u32, number: u32) -> Vec<u8> {
    [index, number].into_iter().flat_map(u32::to_ne_bytes).collect()
}

pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

pub fn signal(fd: &OwnedFd) {
    rustix::io::write(fd, &1_u64.to_ne_bytes()).unwrap();
}

/// Takes what an eventfd has counted; 0 when it was never signalled.
pub fn heard(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(fd, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

pub fn wait_readable(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::try_from(PATIENCE).unwrap())).unwrap() > 0
}
