//! What the guest talks to: servers on the host's loopback, each in a thread.
//!
//! * HTTP: `GET /file` answers with [`Content`].
//! * Streams: the client's first byte says what it wants. `R`: it receives until it has enough.
//!   `C`: it sends [`Content`], closes its side, and is told how many bytes of it were right (u64,
//!   little-endian). `S` and everything else: it sends, and nobody cares.
//! * Echo: a datagram goes back where it came from.
//! * DNS: [`NAME`] is known, nothing else is.

mod names;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::guest::clock;
pub use names::{ADDRESSES, NAME};

pub(crate) const WORD_SEND: u8 = b'S';
pub(crate) const WORD_RECEIVE: u8 = b'R';
pub(crate) const WORD_COUNT: u8 = b'C';

/// How soon a server notices that it is to stop.
const TICK: Duration = Duration::from_millis(50);
/// How long a client may be silent: one that goes away without a word keeps no thread for ever.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// Connections of one port at a time; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 64;

/// The content of the file: bytes that tell their place, the same on every run.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    left: u64,
    state: u64,
}

impl Content {
    /// A file of `len` bytes.
    #[must_use]
    pub const fn new(len: u64) -> Self {
        Self { left: len, state: 0x9e37_79b9_7f4a_7c15 }
    }
}

impl Iterator for Content {
    type Item = Vec<u8>;

    /// The next piece, 64 KiB or what is left.
    fn next(&mut self) -> Option<Vec<u8>> {
        const PIECE: u64 = 64 << 10;
        let len = self.left.min(PIECE);
        if len == 0 {
            return None;
        }
        self.left = self.left.saturating_sub(len);
        let mut piece = Vec::with_capacity(65_544);
        for _ in 0..len.div_ceil(8) {
            // Marsaglia's xorshift: long, and nothing a compression could shorten.
            self.state ^= self.state.wrapping_shl(13);
            self.state ^= self.state.wrapping_shr(7);
            self.state ^= self.state.wrapping_shl(17);
            piece.extend_from_slice(&self.state.to_le_bytes());
        }
        piece.truncate(usize::try_from(len).unwrap_or(0));
        Some(piece)
    }
}

/// Servers on the host's loopback. When this is dropped they stop, with all of their connections.
#[derive(Debug)]
pub struct Peer {
    http: SocketAddr,
    streams: SocketAddr,
    echo: SocketAddr,
    dns: SocketAddr,
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
}

/// Whether the servers are to stop.
#[derive(Clone, Debug, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Peer {
    /// Starts the servers on 127.0.0.1; the file has `file_len` bytes.
    ///
    /// # Errors
    /// When the loopback has no free port, or threads are short.
    pub fn start(file_len: u64) -> io::Result<Self> {
        Self::start_on(Ipv4Addr::LOCALHOST.into(), file_len)
    }

    /// Starts the servers on a loopback address of the host.
    ///
    /// # Errors
    /// When that address does not exist or has no free port, or threads are short.
    pub fn start_on(address: IpAddr, file_len: u64) -> io::Result<Self> {
        let local = (address, 0);
        let (http, streams) = (TcpListener::bind(local)?, TcpListener::bind(local)?);
        let (echo, dns) = (UdpSocket::bind(local)?, UdpSocket::bind(local)?);
        let mut peer = Self {
            http: http.local_addr()?,
            streams: streams.local_addr()?,
            echo: echo.local_addr()?,
            dns: dns.local_addr()?,
            stop: Stop::default(),
            threads: Vec::new(),
        };
        peer.spawn("peer-http", move |stop| {
            accept(&http, stop, move |line| answer_http(line, file_len));
        })?;
        peer.spawn("peer-streams", move |stop| accept(&streams, stop, answer_stream))?;
        peer.spawn("peer-echo", move |stop| {
            answer_datagrams(&echo, stop, |datagram| Some(datagram.to_vec()));
        })?;
        peer.spawn("peer-dns", move |stop| answer_datagrams(&dns, stop, names::answer))?;
        Ok(peer)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce(&Stop) + Send + 'static) -> io::Result<()> {
        let stop = self.stop.clone();
        let thread = thread::Builder::new().name(name.into()).spawn(move || work(&stop))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Where the file is served.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where streams are served.
    #[must_use]
    pub fn streams(&self) -> SocketAddr {
        self.streams
    }

    /// Where datagrams go back.
    #[must_use]
    pub fn echo(&self) -> SocketAddr {
        self.echo
    }

    /// Where names are resolved.
    #[must_use]
    pub fn dns(&self) -> SocketAddr {
        self.dns
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.0.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A server that has panicked has been seen by its client.
            drop(thread.join());
        }
    }
}

/// A connection whose waits end when the servers stop, or the client is silent for too long.
struct Line {
    stream: TcpStream,
    stop: Stop,
}

impl Line {
    fn new(stream: TcpStream, stop: Stop) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(TICK))?;
        Ok(Self { stream, stop })
    }

    fn patiently(
        &mut self,
        mut work: impl FnMut(&mut TcpStream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut since: Option<Instant> = None;
        loop {
            match work(&mut self.stream) {
                Err(cause)
                    if matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    let since = since.get_or_insert_with(clock);
                    if self.stop.is_asked() || since.elapsed() > IDLE_MAX {
                        return Err(cause);
                    }
                }
                // A client that never stops does not keep its server from stopping.
                Ok(_) if self.stop.is_asked() => return Err(ErrorKind::ConnectionAborted.into()),
                outcome => return outcome,
            }
        }
    }
}

impl Read for Line {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.patiently(|stream| stream.read(room))
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.patiently(|stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Serves each connection in a thread of its own, until told to stop; then waits for them.
fn accept(
    listener: &TcpListener,
    stop: &Stop,
    answer: impl Fn(&mut Line) -> io::Result<()> + Clone + Send + 'static,
) {
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    let tick = Timespec::try_from(TICK).ok();
    let mut connections: Vec<JoinHandle<()>> = Vec::new();
    while !stop.is_asked() {
        connections.retain(|thread| !thread.is_finished());
        if connections.len() >= CONNECTIONS_MAX {
            thread::sleep(TICK);
            continue;
        }
        let (Ok(_) | Err(_)) = poll(&mut [PollFd::new(listener, PollFlags::IN)], tick.as_ref());
        let Ok((stream, _)) = listener.accept() else { continue };
        let Ok(mut line) = Line::new(stream, stop.clone()) else { continue };
        let answer = answer.clone();
        // A client that ends early is how measurements end.
        let work = move || drop(answer(&mut line));
        connections.extend(thread::Builder::new().name("peer-line".into()).spawn(work));
    }
    for thread in connections {
        drop(thread.join());
    }
}

fn answer_http(line: &mut Line, file_len: u64) -> io::Result<()> {
    let mut request = Vec::new();
    let mut room = [0; 1024];
    while !request.windows(4).any(|four| four == b"\r\n\r\n") && request.len() < 8192 {
        let got = line.read(&mut room)?;
        if got == 0 {
            return Ok(());
        }
        request.extend(room.get(..got).unwrap_or(&[]));
    }
    if !request.starts_with(b"GET /file ") {
        return line.write_all(b"HTTP/1.0 404 Not Found\r\n\r\n");
    }
    write!(line, "HTTP/1.0 200 OK\r\nContent-Length: {file_len}\r\n\r\n")?;
    Content::new(file_len).try_for_each(|piece| line.write_all(&piece))
}

fn answer_stream(line: &mut Line) -> io::Result<()> {
    let mut room = vec![0; 256 << 10];
    let mut word = [0];
    line.read_exact(&mut word)?;
    match word {
        [WORD_RECEIVE] => loop {
            line.write_all(&room)?;
        },
        [WORD_COUNT] => {
            let right = count_right(line, &mut room)?;
            line.write_all(&right.to_le_bytes())
        }
        _ => {
            while line.read(&mut room)? > 0 {}
            Ok(())
        }
    }
}

/// Reads to the end; how many bytes were the content's, up to the first that was not.
fn count_right(line: &mut Line, room: &mut [u8]) -> io::Result<u64> {
    let mut content = Content::new(u64::MAX);
    let (mut expected, mut at) = (Vec::new(), 0_usize);
    let (mut right, mut all_right) = (0_u64, true);
    loop {
        let got = line.read(room)?;
        if got == 0 {
            return Ok(right);
        }
        let mut rest = room.get(..got).unwrap_or(&[]);
        while all_right && !rest.is_empty() {
            if at >= expected.len() {
                (expected, at) = (content.next().unwrap_or_default(), 0);
            }
            let ahead = expected.get(at..).unwrap_or(&[]);
            let count = ahead.len().min(rest.len());
            let same = ahead.iter().zip(rest).take_while(|(ours, theirs)| ours == theirs).count();
            right = right.saturating_add(u64::try_from(same).unwrap_or(0));
            all_right = same == count;
            at = at.saturating_add(count);
            rest = rest.get(count..).unwrap_or(&[]);
        }
    }
}

fn answer_datagrams(socket: &UdpSocket, stop: &Stop, answer: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    if socket.set_read_timeout(Some(TICK)).is_err() {
        return;
    }
    let mut room = vec![0; 1 << 16];
    while !stop.is_asked() {
        let Ok((len, from)) = socket.recv_from(&mut room) else { continue };
        if let Some(answer) = answer(room.get(..len).unwrap_or(&[])) {
            // Lost answers are asked for again.
            drop(socket.send_to(&answer, from));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;

    use super::*;

    #[test]
    fn the_file_is_the_same_on_every_run_and_as_long_as_said() {
        let bytes = |len| Content::new(len).flatten().collect::<Vec<u8>>();
        assert_eq!(bytes(100_000), bytes(100_000));
        assert_eq!(bytes(100_001).len(), 100_001);
        assert_eq!(bytes(70_000), bytes(100_000)[..70_000]);
        assert!(bytes(0).is_empty());
        // Sent to a stream as it is, the file is not taken for a question.
        assert!(![WORD_COUNT, WORD_RECEIVE].contains(&bytes(1)[0]));
    }

    fn count(bytes: &[u8]) -> u64 {
        let peer = Peer::start(0).unwrap();
        let mut stream = TcpStream::connect(peer.streams()).unwrap();
        stream.write_all(&[WORD_COUNT]).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        u64::from_le_bytes(answer.try_into().unwrap())
    }

    #[test]
    fn bytes_are_counted_up_to_the_first_wrong_one() {
        let mut bytes: Vec<u8> = Content::new(200_000).flatten().collect();
        assert_eq!(count(&bytes), 200_000);
        assert_eq!(count(&[]), 0);
        bytes[123_456] ^= 1;
        assert_eq!(count(&bytes), 123_456);
    }

    #[test]
    fn datagrams_go_back() {
        let peer = Peer::start(0).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(IDLE_MAX)).unwrap();
        for datagram in [&b"there and back"[..], b""] {
            socket.send_to(datagram, peer.echo()).unwrap();
            let mut room = [1; 100];
            let (len, from) = socket.recv_from(&mut room).unwrap();
            assert_eq!((&room[..len], from), (datagram, peer.echo()));
        }
    }

    #[test]
    fn servers_stop_with_connections_silent_busy_and_stuck() {
        let peer = Peer::start(1 << 30).unwrap();
        let _silent = TcpStream::connect(peer.http()).unwrap();
        let mut stuck = TcpStream::connect(peer.streams()).unwrap();
        stuck.write_all(&[WORD_RECEIVE]).unwrap();
        let mut busy = TcpStream::connect(peer.streams()).unwrap();
        let sender = thread::spawn(move || while busy.write_all(&[0; 10_000]).is_ok() {});
        thread::sleep(TICK);
        let start = clock();
        drop(peer);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        sender.join().unwrap();
    }
}
