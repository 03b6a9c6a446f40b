//! What the guest talks to: servers on the host's loopback, each in a thread.
//!
//! * HTTP on one port: `GET /file` answers with [`Content`].
//! * Streams on another: the client says `S` and sends, or `R` and receives, until it has enough.
//! * DNS on a third: [`NAME`] is known, nothing else is.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The one name that the peer's DNS server knows.
pub const NAME: &str = "demo.vionet.test";

/// What the name stands for: an address for documentation (RFC 5737).
const ANSWER: [u8; 4] = [192, 0, 2, 80];

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

/// Servers on the host's loopback; they stop when this is dropped.
#[derive(Debug)]
pub struct Peer {
    http: SocketAddr,
    streams: SocketAddr,
    dns: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// How soon a server notices that it is to stop.
const TICK: Duration = Duration::from_millis(50);

impl Peer {
    /// Starts the servers; the file has `file_len` bytes.
    ///
    /// # Errors
    /// When the loopback has no free port, or threads are short.
    pub fn start(file_len: u64) -> io::Result<Self> {
        let local = (Ipv4Addr::LOCALHOST, 0);
        let (http, streams) = (TcpListener::bind(local)?, TcpListener::bind(local)?);
        let dns = UdpSocket::bind(local)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut peer = Self {
            http: http.local_addr()?,
            streams: streams.local_addr()?,
            dns: dns.local_addr()?,
            stop: Arc::clone(&stop),
            threads: Vec::new(),
        };
        peer.spawn("peer-http", move |stop| {
            serve(&http, stop, move |stream| answer_http(stream, file_len));
        })?;
        peer.spawn("peer-streams", move |stop| serve(&streams, stop, answer_stream))?;
        dns.set_read_timeout(Some(TICK))?;
        peer.spawn("peer-dns", move |stop| serve_dns(&dns, stop))?;
        Ok(peer)
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce(&Arc<AtomicBool>) + Send + 'static,
    ) -> io::Result<()> {
        let stop = Arc::clone(&self.stop);
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

    /// Where names are resolved.
    #[must_use]
    pub fn dns(&self) -> SocketAddr {
        self.dns
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A server that has panicked has been seen by its client.
            drop(thread.join());
        }
    }
}

/// Serves each connection in a thread of its own, until told to stop.
fn serve(
    listener: &TcpListener,
    stop: &Arc<AtomicBool>,
    answer: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
) {
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(2));
            continue;
        };
        let answer = answer.clone();
        let blocking = stream.set_nonblocking(false).and_then(|()| {
            // A client that goes away without a word does not keep its thread for ever.
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.set_write_timeout(Some(Duration::from_secs(20)))
        });
        if blocking.is_ok() {
            // A client that ends early is how measurements end.
            thread::spawn(move || drop(answer(stream)));
        }
    }
}

fn answer_http(mut stream: TcpStream, file_len: u64) -> io::Result<()> {
    let mut request = Vec::new();
    let mut room = [0; 1024];
    while !request.windows(4).any(|four| four == b"\r\n\r\n") && request.len() < 8192 {
        let got = stream.read(&mut room)?;
        if got == 0 {
            return Ok(());
        }
        request.extend(room.get(..got).unwrap_or(&[]));
    }
    if !request.starts_with(b"GET /file ") {
        return stream.write_all(b"HTTP/1.0 404 Not Found\r\n\r\n");
    }
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {file_len}\r\n\r\n")?;
    Content::new(file_len).try_for_each(|piece| stream.write_all(&piece))
}

fn answer_stream(mut stream: TcpStream) -> io::Result<()> {
    let mut room = vec![0; 256 << 10];
    let mut word = [0];
    stream.read_exact(&mut word)?;
    match &word {
        b"R" => loop {
            stream.write_all(&room)?;
        },
        _ => while stream.read(&mut room)? > 0 {},
    }
    Ok(())
}

fn serve_dns(socket: &UdpSocket, stop: &Arc<AtomicBool>) {
    let mut room = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut room) else { continue };
        if let Some(answer) = answer_dns(room.get(..len).unwrap_or(&[])) {
            // Lost answers are asked for again.
            drop(socket.send_to(&answer, from));
        }
    }
}

/// The answer to a query for the one name (RFC 1035 §4.1).
fn answer_dns(query: &[u8]) -> Option<Vec<u8>> {
    const ADDRESS: [u8; 2] = [0, 1];
    let (header, rest) = query.split_first_chunk::<12>()?;
    let [i0, i1, ..] = *header;
    let name_len = rest.iter().position(|byte| *byte == 0)?.checked_add(1)?;
    let (name, rest) = rest.split_at_checked(name_len)?;
    let kind = rest.get(..2)?;
    let question = query.get(12..name_len.checked_add(16)?)?;
    let wanted: Vec<u8> = NAME
        .split('.')
        .flat_map(|label| {
            let len = u8::try_from(label.len()).unwrap_or(0);
            std::iter::once(len).chain(label.bytes())
        })
        .chain([0])
        .collect();
    let known = name == wanted;
    let has_answer = known && kind == ADDRESS;
    let (code, count) = (if known { 0x80 } else { 0x83 }, u8::from(has_answer));
    let mut answer = vec![i0, i1, 0x81, code, 0, 1, 0, count, 0, 0, 0, 0];
    answer.extend(question);
    if has_answer {
        // The name at offset 12, type A, class IN, 60 seconds, 4 bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(ANSWER);
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_the_same_on_every_run_and_as_long_as_said() {
        let bytes = |len| Content::new(len).flatten().collect::<Vec<u8>>();
        assert_eq!(bytes(100_000), bytes(100_000));
        assert_eq!(bytes(100_001).len(), 100_001);
        assert_eq!(bytes(70_000), bytes(100_000)[..70_000]);
        assert!(bytes(0).is_empty());
    }

    #[test]
    fn the_one_name_is_known_and_others_are_not() {
        let query = |name: &str| {
            let mut query = vec![7, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for label in name.split('.') {
                query.push(u8::try_from(label.len()).unwrap());
                query.extend(label.bytes());
            }
            query.extend([0, 0, 1, 0, 1]);
            query
        };
        let answer = answer_dns(&query(NAME)).unwrap();
        assert_eq!((&answer[..2], answer[3], answer[7]), (&[7, 8][..], 0x80, 1));
        assert!(answer.ends_with(&ANSWER));
        assert_eq!(answer_dns(&query("other.test")).unwrap()[3], 0x83, "name error");
        for len in 0..16 {
            assert!(answer_dns(&query(NAME)[..len]).is_none());
        }
    }
}
