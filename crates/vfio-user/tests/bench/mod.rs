//! A client by hand: messages as bytes, a driver in its shared memory, the real server behind them.

pub mod drive;
pub mod guest;

use std::io::{ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vionet::endpoint::Endpoint;
use vionet::transport::PciNic;
use vionet::{Device, NicConfig};
use vionet_endpoint::Echo;
use vionet_vfio_user::{End, Event, Function, ServeError, Server};

pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// Long enough for a busy machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const VERSION: u16 = 1;
pub const DMA_MAP: u16 = 2;
pub const DMA_UNMAP: u16 = 3;
pub const GET_INFO: u16 = 4;
pub const GET_REGION_INFO: u16 = 5;
pub const GET_IRQ_INFO: u16 = 7;
pub const SET_IRQS: u16 = 8;
pub const REGION_READ: u16 = 9;
pub const REGION_WRITE: u16 = 10;
pub const RESET: u16 = 13;
pub const WRITE_MULTI: u16 = 15;
pub const FEATURE: u16 = 16;
pub const MIG_READ: u16 = 17;
pub const MIG_WRITE: u16 = 18;

pub const NO_REPLY: u32 = 1 << 4;
pub const REPLY: u32 = 1;
pub const ERROR: u32 = 1 << 5;

pub const EINVAL: u32 = 22;
pub const EEXIST: u32 = 17;
pub const ENOENT: u32 = 2;
pub const EOPNOTSUPP: u32 = 95;

pub const BAR: u32 = 0;
pub const CONFIG: u32 = 7;

pub const INTX: u32 = 0;
pub const MSIX: u32 = 2;
pub const DATA_NONE: u32 = 1;
pub const DATA_BOOL: u32 = 1 << 1;
pub const DATA_EVENTFD: u32 = 1 << 2;
pub const MASK: u32 = 1 << 3;
pub const UNMASK: u32 = 1 << 4;
pub const TRIGGER: u32 = 1 << 5;

/// The server in a thread of its own, with a device that sends every frame back.
pub struct Back {
    thread: Option<JoinHandle<Result<End, ServeError>>>,
    stop: OwnedFd,
    events: Receiver<Event>,
    pub nic: Arc<PciNic>,
}

impl Back {
    pub fn new(server: Server) -> Self {
        Self::before(server, Box::new(Echo))
    }

    /// The same with another host side.
    pub fn before(mut server: Server, endpoint: Box<dyn Endpoint>) -> Self {
        let stop = event();
        let watched = stop.try_clone().unwrap();
        let (sender, events) = channel();
        let config = NicConfig { mac: MAC, mtu: 1500, ..NicConfig::default() };
        let function = Function::new(Device::new(config, endpoint).unwrap()).unwrap();
        let nic = Arc::clone(function.nic());
        let thread = std::thread::spawn(move || {
            server.run(&function, watched.as_fd(), &mut |event| drop(sender.send(event)))
        });
        Self { thread: Some(thread), stop, events, nic }
    }

    /// A server on one end of a pair, and the other end.
    pub fn pair() -> (Self, Client) {
        let (front, back) = UnixStream::pair().unwrap();
        (Self::new(Server::from_fd(back.into()).unwrap()), Client::new(front))
    }

    pub fn wait_for_text(&self, part: &str) -> String {
        loop {
            let text = self.events.recv_timeout(PATIENCE).expect("the event came").to_string();
            if text.contains(part) {
                return text;
            }
        }
    }

    /// Every event so far, as text.
    pub fn texts(&self) -> Vec<String> {
        self.events.try_iter().map(|event| event.to_string()).collect()
    }

    pub fn tell_to_stop(&self) {
        signal(&self.stop);
    }

    pub fn stop(&mut self) -> Result<End, ServeError> {
        self.tell_to_stop();
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
        let path = folder.join(format!("vionet-vfu-{name}-{}.sock", std::process::id()));
        drop(std::fs::remove_file(&path));
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A client that has said nothing yet.
    pub fn knock(&self) -> Client {
        Client::new(UnixStream::connect(&self.0).unwrap())
    }

    /// A client whose version is agreed on.
    pub fn connect(&self) -> Client {
        let client = self.knock();
        client.agree();
        client
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

/// The connection, from the client's side.
pub struct Client {
    pub socket: UnixStream,
    next: AtomicU16,
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub id: u16,
    pub command: u16,
    /// 0 without an error.
    pub error: u32,
    pub payload: Vec<u8>,
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

/// Where bytes of a region are.
pub fn place(region: u32, offset: u64, count: u32) -> Vec<u8> {
    [longs(&[offset]), words(&[region, count])].concat()
}

/// A region for DMA_MAP, to be read and written.
pub fn region(address: u64, size: u64, offset: u64) -> Vec<u8> {
    [words(&[32, 3]), longs(&[offset, address, size])].concat()
}

/// A region for DMA_UNMAP.
pub fn range(address: u64, size: u64) -> Vec<u8> {
    [words(&[24, 0]), longs(&[address, size])].concat()
}

pub fn irq_set(flags: u32, index: u32, start: u32, count: u32) -> Vec<u8> {
    words(&[20, flags, index, start, count])
}

/// A message as it goes over the socket.
pub fn message(id: u16, command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = 16 + payload.len() as u32;
    let ids = [id, command].into_iter().flat_map(u16::to_ne_bytes);
    ids.chain(words(&[size, flags, 0])).chain(payload.iter().copied()).collect()
}

impl Client {
    pub fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, next: AtomicU16::new(7) }
    }

    /// Sends bytes with descriptors; false when the other side is gone.
    pub fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
        let pieces = [IoSlice::new(bytes)];
        sendmsg(&self.socket, &pieces, &mut control, SendFlags::NOSIGNAL)
            .is_ok_and(|sent| sent == bytes.len())
    }

    pub fn send(&self, command: u16, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let id = self.next.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.send_raw(&message(id, command, flags, payload), fds)
    }

    /// The next reply, or `None` when the connection has been closed instead.
    pub fn receive(&self) -> Option<Reply> {
        let mut header = [0; 16];
        match (&self.socket).read_exact(&mut header) {
            Ok(()) => {}
            Err(cause) => match cause.kind() {
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => return None,
                _ => panic!("no answer: {cause}"),
            },
        }
        let half = |at: usize| u16::from_ne_bytes(header[at..at + 2].try_into().unwrap());
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; word(4) as usize - 16];
        (&self.socket).read_exact(&mut payload).expect("the payload follows its header");
        let error = word(12);
        assert_eq!(word(8), if error == 0 { REPLY } else { REPLY | ERROR }, "flags of the reply");
        assert!(error == 0 || payload.is_empty(), "an error has no payload");
        Some(Reply { id: half(0), command: half(2), error, payload })
    }

    /// Sends a command and hears its reply: the payload, or the error.
    pub fn outcome(
        &self,
        command: u16,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, u32> {
        assert!(self.send(command, 0, payload, fds), "the server listens");
        let reply = self.receive().expect("an answer");
        assert_eq!(
            (reply.id, reply.command),
            (self.next.load(Ordering::Relaxed), command),
            "the reply"
        );
        if reply.error == 0 { Ok(reply.payload) } else { Err(reply.error) }
    }

    pub fn ask(&self, command: u16, payload: &[u8]) -> Vec<u8> {
        self.outcome(command, payload, &[]).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    pub fn agree(&self) {
        let text = b"{\"capabilities\":{\"write_multiple\":true}}\0";
        let reply = self.ask(VERSION, &[&[0, 0, 0, 0][..], text].concat());
        assert_eq!(reply[..4], [0; 4]);
    }

    pub fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
        let asked = place(region, offset, data.len() as u32);
        let reply = self.ask(REGION_READ, &asked);
        assert_eq!(reply[..16], asked);
        data.copy_from_slice(&reply[16..]);
    }

    pub fn get(&self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.read(BAR, offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    pub fn write(&self, region: u32, offset: u64, data: &[u8]) {
        let place = place(region, offset, data.len() as u32);
        assert_eq!(self.ask(REGION_WRITE, &[&place, data].concat()), place);
    }

    pub fn set(&self, offset: u64, value: u64, len: usize) {
        self.write(BAR, offset, &value.to_le_bytes()[..len]);
    }

    pub fn map(&self, address: u64, size: u64, offset: u64, fd: &OwnedFd) -> Result<(), u32> {
        self.outcome(DMA_MAP, &region(address, size, offset), &[fd.as_fd()]).map(drop)
    }

    pub fn unmap(&self, address: u64, size: u64) -> Result<(), u32> {
        self.outcome(DMA_UNMAP, &range(address, size), &[]).map(drop)
    }

    pub fn set_irqs(&self, set: &[u8], fds: &[&OwnedFd]) -> Result<(), u32> {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.outcome(SET_IRQS, set, &fds).map(drop)
    }

    /// Waits until everything before has taken effect.
    pub fn barrier(&self) {
        self.ask(GET_INFO, &words(&[16, 0, 0, 0]));
    }

    pub fn is_closed(&self) -> bool {
        !self.send(GET_INFO, 0, &words(&[16, 0, 0, 0]), &[]) || self.receive().is_none()
    }
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

/// Waits for it to be signalled, and takes that.
pub fn rings(fd: &OwnedFd) -> bool {
    waits_for(fd, PATIENCE)
}

/// Whether it stays silent for a while.
pub fn is_silent(fd: &OwnedFd) -> bool {
    !waits_for(fd, Duration::from_millis(50))
}

fn waits_for(fd: &OwnedFd, time: Duration) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let ready = poll(&mut fds, Some(&Timespec::try_from(time).unwrap())).unwrap() > 0;
    ready && heard(fd) > 0
}
