//! A guest's TCP: downloads, uploads, measurements, and a port that echoes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use smoltcp::wire::IpEndpoint;

use crate::error::GuestError;
use crate::guest::{Guest, clock};
use crate::peer::{Content, WORD_COUNT, WORD_RECEIVE, WORD_SEND};

/// Which way data goes in a measurement, seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The guest sends.
    Transmit,
    /// The guest receives.
    Receive,
}

/// Bytes of a TCP socket's buffers, each way.
const TCP_BUFFER: usize = 4 << 20;
/// The longest head of an HTTP answer.
const HEAD_MAX: usize = 64 << 10;

/// An HTTP answer as it comes in.
#[derive(Default)]
struct Answer {
    head: Vec<u8>,
    in_body: bool,
    /// Bytes of content so far, and in all where the server says so.
    body: u64,
    expected: Option<u64>,
}

impl Answer {
    /// Takes what came; content goes on to `take`.
    fn feed(&mut self, bytes: &[u8], take: &mut dyn FnMut(&[u8])) -> Result<(), GuestError> {
        if self.in_body {
            self.body = self.body.saturating_add(u64::try_from(bytes.len()).unwrap_or(0));
            take(bytes);
            return Ok(());
        }
        self.head.extend_from_slice(bytes);
        let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else {
            let long = self.head.len() > HEAD_MAX;
            return if long { Err(GuestError::Network("the download: no HTTP")) } else { Ok(()) };
        };
        let content = self.head.split_off(end.saturating_add(4).min(self.head.len()));
        let text = String::from_utf8_lossy(&self.head);
        let mut lines = text.lines();
        let mut words = lines.next().unwrap_or("").split_whitespace();
        if !words.next().is_some_and(|word| word.starts_with("HTTP/1.")) {
            return Err(GuestError::Network("the download: no HTTP"));
        }
        if words.next() != Some("200") {
            return Err(GuestError::Network("the download: not found"));
        }
        self.expected = lines.find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        self.in_body = true;
        if content.is_empty() { Ok(()) } else { self.feed(&content, take) }
    }

    fn is_complete(&self) -> bool {
        self.in_body && self.expected.is_some_and(|expected| self.body >= expected)
    }

    /// The length of the content, once the server has nothing more.
    fn finish(&self) -> Result<u64, GuestError> {
        if self.in_body && self.expected.is_none_or(|expected| self.body == expected) {
            return Ok(self.body);
        }
        Err(GuestError::Network("the download: it ended early"))
    }
}

impl Guest {
    /// Opens a TCP connection, lets `work` use it, and ends it whatever happens.
    fn with_connection<T>(
        &mut self,
        to: SocketAddr,
        work: impl FnOnce(&mut Self, SocketHandle) -> Result<T, GuestError>,
    ) -> Result<T, GuestError> {
        let buffer = || tcp::SocketBuffer::new(vec![0; TCP_BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let handle = self.sockets.add(socket);
        let result = self.connect(handle, to).and_then(|()| work(self, handle));
        self.tcp(handle).abort();
        // The reset is on its way, or the back-end is gone, which the next step will tell.
        let (Ok(()) | Err(_)) = self.turn();
        self.sockets.remove(handle);
        result
    }

    fn connect(&mut self, handle: SocketHandle, to: SocketAddr) -> Result<(), GuestError> {
        let port = self.port();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        let begun = socket.connect(self.interface.context(), IpEndpoint::from(to), port);
        begun.map_err(|_| GuestError::Network("a connection: no address of that family"))?;
        self.until("connecting", |guest| match guest.tcp(handle).state() {
            tcp::State::Closed => Err(GuestError::Network("the connection: refused")),
            tcp::State::SynSent | tcp::State::SynReceived => Ok(None),
            _ => Ok(Some(())),
        })
    }

    fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut::<tcp::Socket<'_>>(handle)
    }

    /// Downloads `path` by HTTP and hands the content to `take`; returns its length and the time
    /// since the connection stood (smoltcp looks for one neighbour per second).
    ///
    /// # Errors
    /// When the server refuses, nothing comes for longer than patience lasts, or the connection
    /// ends before all has come that the server promised.
    pub fn download(
        &mut self,
        from: SocketAddr,
        path: &str,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<(u64, Duration), GuestError> {
        self.with_connection(from, |guest, handle| {
            let start = clock();
            let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", from.ip());
            guest.send_all(handle, request.as_bytes())?;
            let mut answer = Answer::default();
            while !answer.is_complete() {
                let more = guest.receive_some(handle, &mut |bytes| answer.feed(bytes, take))?;
                if !more {
                    break;
                }
            }
            Ok((answer.finish()?, start.elapsed()))
        })
    }

    /// Sends `len` bytes of [`Content`] to [`crate::Peer::streams`], which counts those that are
    /// right; returns how long it took until all were.
    ///
    /// # Errors
    /// When the connection fails, or what arrives is not what was sent.
    pub fn upload(&mut self, to: SocketAddr, len: u64) -> Result<Duration, GuestError> {
        self.with_connection(to, |guest, handle| {
            let start = clock();
            guest.send_all(handle, &[WORD_COUNT])?;
            for piece in Content::new(len) {
                guest.send_all(handle, &piece)?;
            }
            guest.tcp(handle).close();
            let mut answer = Vec::new();
            while answer.len() < 8 {
                let more = guest.receive_some(handle, &mut |bytes| {
                    answer.extend_from_slice(bytes.get(..8).unwrap_or(bytes));
                    Ok(())
                })?;
                if !more {
                    break;
                }
            }
            if answer == len.to_le_bytes() {
                return Ok(start.elapsed());
            }
            Err(GuestError::Network("the upload: it arrived changed"))
        })
    }

    fn send_all(&mut self, handle: SocketHandle, bytes: &[u8]) -> Result<(), GuestError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = self.until("sending", |guest| {
                let sent = guest.tcp(handle).send_slice(rest);
                let sent = sent.map_err(|_| GuestError::Network("the connection: lost"))?;
                Ok((sent > 0).then_some(sent))
            })?;
            rest = rest.get(sent..).unwrap_or(&[]);
        }
        Ok(())
    }

    /// Hands the next bytes to `take`; false when the far end has no more.
    fn receive_some(
        &mut self,
        handle: SocketHandle,
        take: &mut dyn FnMut(&[u8]) -> Result<(), GuestError>,
    ) -> Result<bool, GuestError> {
        self.until("receiving", |guest| {
            let socket = guest.tcp(handle);
            if socket.can_recv() {
                let taken = socket.recv(|bytes| (bytes.len(), take(bytes)));
                taken.map_err(|_| GuestError::Network("the connection: lost"))??;
                return Ok(Some(true));
            }
            match socket.state() {
                // Without a FIN of the far end: reset, or given up.
                tcp::State::Closed => Err(GuestError::Network("the connection: lost")),
                _ => Ok((!socket.may_recv()).then_some(false)),
            }
        })
    }

    /// Sends or receives as fast as it goes for `time`, to or from [`crate::Peer::streams`];
    /// returns bytes per second.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn measure(
        &mut self,
        to: SocketAddr,
        direction: Direction,
        time: Duration,
    ) -> Result<f64, GuestError> {
        self.with_connection(to, |guest, handle| {
            let word = match direction {
                Direction::Transmit => WORD_SEND,
                Direction::Receive => WORD_RECEIVE,
            };
            guest.send_all(handle, &[word])?;
            let start = clock();
            let bytes = guest.stream(handle, direction, start, time)?;
            let seconds = start.elapsed().as_secs_f64();
            #[expect(clippy::as_conversions, reason = "a rate for people; lossy past 2^52 bytes")]
            Ok(bytes as f64 / seconds)
        })
    }

    /// The bytes that went one way until `time` after `start`.
    fn stream(
        &mut self,
        handle: SocketHandle,
        direction: Direction,
        start: Instant,
        time: Duration,
    ) -> Result<usize, GuestError> {
        let mut bytes = 0_usize;
        while start.elapsed() < time {
            let socket = self.tcp(handle);
            let moved = match direction {
                Direction::Transmit => socket.send(|room| (room.len(), room.len())).ok(),
                Direction::Receive => socket.recv(|got| (got.len(), got.len())).ok(),
            };
            let moved = moved.ok_or(GuestError::Network("the measurement: connection lost"))?;
            bytes = bytes.saturating_add(moved);
            self.turn()?;
        }
        Ok(match direction {
            // What is still queued here has not gone anywhere.
            Direction::Transmit => bytes.saturating_sub(self.tcp(handle).send_queue()),
            Direction::Receive => bytes,
        })
    }

    /// Accepts one connection on `port` and sends back what comes, until the far end is done;
    /// returns the bytes that went round.
    ///
    /// # Errors
    /// When nobody connects, or nothing goes round for longer than patience lasts.
    pub fn echo_once(&mut self, port: u16) -> Result<u64, GuestError> {
        let buffer = || tcp::SocketBuffer::new(vec![0; 1 << 16]);
        let handle = self.sockets.add(tcp::Socket::new(buffer(), buffer()));
        let listening = self.tcp(handle).listen(port);
        let result = listening
            .map_err(|_| GuestError::Network("a port to listen on"))
            .and_then(|()| self.echo(handle));
        // Once more, so that our FIN goes out, or a reset where the far end was not done.
        if result.is_err() {
            self.tcp(handle).abort();
        }
        let (Ok(()) | Err(_)) = self.turn();
        self.sockets.remove(handle);
        result
    }

    fn echo(&mut self, handle: SocketHandle) -> Result<u64, GuestError> {
        let mut round = 0_u64;
        self.until("waiting for a connection", |guest| {
            Ok(guest.tcp(handle).may_send().then_some(()))
        })?;
        let mut data = vec![0; 1 << 16];
        loop {
            let more = self.until("echoing", |guest| {
                let socket = guest.tcp(handle);
                let room = socket.send_capacity().saturating_sub(socket.send_queue());
                let Some(data) = data.get_mut(..room) else { return Ok(Some(0)) };
                if socket.can_recv() && !data.is_empty() {
                    let got = socket.recv_slice(data).unwrap_or(0);
                    let (Ok(_) | Err(_)) = socket.send_slice(data.get(..got).unwrap_or(&[]));
                    return Ok(Some(got));
                }
                Ok((!socket.may_recv() && !socket.can_recv()).then_some(0))
            })?;
            if more == 0 {
                break;
            }
            round = round.saturating_add(u64::try_from(more).unwrap_or(0));
        }
        self.tcp(handle).close();
        self.until("ending the connection", |guest| {
            let socket = guest.tcp(handle);
            let ended = matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait);
            Ok(ended.then_some(round))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds pieces; the outcome and the content.
    fn read(pieces: &[&[u8]]) -> (Result<u64, GuestError>, Vec<u8>, bool) {
        let (mut answer, mut content) = (Answer::default(), Vec::new());
        for piece in pieces {
            let fed = answer.feed(piece, &mut |bytes| content.extend_from_slice(bytes));
            if let Err(error) = fed {
                return (Err(error), content, false);
            }
        }
        (answer.finish(), content, answer.is_complete())
    }

    #[test]
    fn content_begins_behind_the_head_wherever_the_pieces_end() {
        let whole = b"HTTP/1.0 200 OK\r\ncontent-LENGTH: 5\r\nX: y\r\n\r\nhello";
        for cut in 0..=whole.len() {
            let (left, right) = whole.split_at(cut);
            let (outcome, content, complete) = read(&[left, right]);
            assert_eq!((outcome.unwrap(), &content[..], complete), (5, &b"hello"[..], true));
        }
    }

    #[test]
    fn without_a_length_the_end_of_the_connection_is_the_end() {
        let (outcome, content, complete) = read(&[b"HTTP/1.1 200 OK\r\n\r\nhi"]);
        assert_eq!((outcome.unwrap(), &content[..], complete), (2, &b"hi"[..], false));
    }

    #[test]
    fn what_is_cut_short_refused_or_not_http_is_an_error() {
        for wrong in [
            &b""[..],
            b"HTTP/1.0 200 OK\r\n",
            b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhell",
            b"HTTP/1.0 404 Not Found\r\n\r\n",
            b"SSH-2.0-x\r\n\r\n",
        ] {
            assert!(matches!(read(&[wrong]).0, Err(GuestError::Network(_))));
        }
        // A head without end is refused when it is too long, not when memory is.
        let (mut answer, long) = (Answer::default(), vec![b'x'; HEAD_MAX]);
        answer.feed(&long, &mut |_| {}).unwrap();
        answer.feed(b"x", &mut |_| {}).unwrap_err();
    }
}
