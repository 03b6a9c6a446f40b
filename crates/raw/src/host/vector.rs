//! Vectored system calls over spans: guest memory goes straight to and from the kernel.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;
use super::socket::{RawAddress, to_address};
use crate::memory::{ReadSpan, WriteSpan};

/// The most pieces one call takes, private pieces included; Linux allows no more.
pub const PIECES_MAX: usize = 1024;

const PIECE: MaybeUninit<libc::iovec> = MaybeUninit::uninit();

/// A list of pieces on the stack; only the part in use is ever initialised.
struct Pieces {
    list: [MaybeUninit<libc::iovec>; PIECES_MAX],
    len: usize,
}

impl Pieces {
    #[inline]
    fn new() -> Self {
        Self { list: [PIECE; PIECES_MAX], len: 0 }
    }

    #[inline]
    fn push(&mut self, base: *mut u8, len: usize) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let slot = self.list.get_mut(self.len).ok_or_else(too_long)?;
        slot.write(libc::iovec { iov_base: base.cast(), iov_len: len });
        self.len = self.len.wrapping_add(1);
        Ok(())
    }

    fn count(&self) -> i32 {
        i32::try_from(self.len).unwrap_or(0)
    }

    /// The piece, when there is one: then the call for one piece does, which costs less.
    #[inline]
    fn single(&self) -> Option<libc::iovec> {
        let [first, ..] = &self.list;
        // SAFETY: the first `len` pieces are initialised.
        (self.len == 1).then(|| unsafe { first.assume_init() })
    }

    fn base(&mut self) -> *mut libc::iovec {
        self.list.as_mut_ptr().cast()
    }
}

#[cold]
fn too_long() -> io::Error {
    io::Error::from_raw_os_error(libc::EMSGSIZE)
}

#[inline]
fn outgoing(pieces: &mut Pieces, head: &[u8], spans: &[ReadSpan<'_>]) -> io::Result<()> {
    pieces.push(head.as_ptr().cast_mut(), head.len())?;
    for span in spans {
        pieces.push(span.base().cast_mut(), span.len())?;
    }
    Ok(())
}

#[inline]
fn incoming(
    pieces: &mut Pieces,
    head: &mut [u8],
    spans: &[WriteSpan<'_>],
    tail: &mut [u8],
) -> io::Result<()> {
    pieces.push(head.as_mut_ptr(), head.len())?;
    for span in spans {
        pieces.push(span.base(), span.len())?;
    }
    pieces.push(tail.as_mut_ptr(), tail.len())
}

/// Writes `head`, then the spans, as one message. Returns the bytes written.
///
/// # Errors
/// As writev(2); `EMSGSIZE` for more than [`PIECES_MAX`] pieces.
#[inline]
pub fn writev(fd: BorrowedFd<'_>, head: &[u8], spans: &[ReadSpan<'_>]) -> io::Result<usize> {
    let mut pieces = Pieces::new();
    outgoing(&mut pieces, head, spans)?;
    if let Some(libc::iovec { iov_base, iov_len }) = pieces.single() {
        // SAFETY: as below, for one piece.
        let done = unsafe { libc::write(fd.as_raw_fd(), iov_base, iov_len) };
        return check(done.try_into().unwrap_or(-1));
    }
    let count = pieces.count();
    // SAFETY: the first `count` pieces are initialised; each is memory that its borrow or span
    // keeps mapped for the call, and writev only reads it.
    check(unsafe { libc::writev(fd.as_raw_fd(), pieces.base(), count) }.try_into().unwrap_or(-1))
}

/// Reads one message into `head`, then the spans, then `tail`. Returns the bytes read; a result
/// beyond head and spans means the spans were too short for the message.
///
/// # Errors
/// As readv(2); `EMSGSIZE` for more than [`PIECES_MAX`] pieces.
#[inline]
pub fn readv(
    fd: BorrowedFd<'_>,
    head: &mut [u8],
    spans: &[WriteSpan<'_>],
    tail: &mut [u8],
) -> io::Result<usize> {
    let mut pieces = Pieces::new();
    incoming(&mut pieces, head, spans, tail)?;
    if let Some(libc::iovec { iov_base, iov_len }) = pieces.single() {
        // SAFETY: as below, for one piece.
        let done = unsafe { libc::read(fd.as_raw_fd(), iov_base, iov_len) };
        return check(done.try_into().unwrap_or(-1));
    }
    let count = pieces.count();
    // SAFETY: the first `count` pieces are initialised; private pieces are borrowed exclusively,
    // spans are guest memory that stays mapped and that no Rust reference points to.
    check(unsafe { libc::readv(fd.as_raw_fd(), pieces.base(), count) }.try_into().unwrap_or(-1))
}

/// How a message is sent or received; combined with `|`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Flags(i32);

impl Flags {
    /// Nothing special; calls never block and never raise SIGPIPE in any case.
    pub const NONE: Self = Self(0);
    /// Leave what is received in the socket.
    pub const PEEK: Self = Self(libc::MSG_PEEK);
    /// Return a datagram's full length even when the room was too short.
    pub const TRUNC: Self = Self(libc::MSG_TRUNC);
    /// More data follows at once.
    pub const MORE: Self = Self(libc::MSG_MORE);
}

impl std::ops::BitOr for Flags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Sends `head`, then the spans, on a socket; to `to` where it is not connected.
///
/// # Errors
/// As sendmsg(2); `EMSGSIZE` for more than [`PIECES_MAX`] pieces.
pub fn send(
    fd: BorrowedFd<'_>,
    head: &[u8],
    spans: &[ReadSpan<'_>],
    to: Option<SocketAddr>,
    flags: Flags,
) -> io::Result<usize> {
    let mut pieces = Pieces::new();
    outgoing(&mut pieces, head, spans)?;
    let mut address = to.map(RawAddress::from);
    let message = message(&mut pieces, address.as_mut());
    let flags = flags.0 | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message names initialised pieces, each mapped for the call and only read, and
    // an address on this stack frame or none.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) };
    check(sent.try_into().unwrap_or(-1))
}

/// Receives into `head`, then the spans, then `tail`. Returns the bytes received (with
/// [`Flags::TRUNC`] a datagram's whole length) and the sender where the socket tells one.
///
/// # Errors
/// As recvmsg(2); `EMSGSIZE` for more than [`PIECES_MAX`] pieces.
pub fn receive(
    fd: BorrowedFd<'_>,
    head: &mut [u8],
    spans: &[WriteSpan<'_>],
    tail: &mut [u8],
    flags: Flags,
) -> io::Result<(usize, Option<SocketAddr>)> {
    let mut pieces = Pieces::new();
    incoming(&mut pieces, head, spans, tail)?;
    let mut address = RawAddress::empty();
    let mut message = message(&mut pieces, Some(&mut address));
    let flags = flags.0 | libc::MSG_DONTWAIT;
    // SAFETY: the message names initialised pieces that may be written for the call, and an
    // address on this stack frame.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) };
    let len = check(got.try_into().unwrap_or(-1))?;
    Ok((len, to_address(&address, message.msg_namelen)))
}

fn message(pieces: &mut Pieces, address: Option<&mut RawAddress>) -> libc::msghdr {
    // SAFETY: all zeroes is a valid msghdr: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iovlen = pieces.len;
    message.msg_iov = pieces.base();
    if let Some(address) = address {
        message.msg_namelen = address.len();
        message.msg_name = address.base();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn a_message_is_gathered_and_scattered_in_order() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let spans = [ReadSpan::local(b"cd"), ReadSpan::local(b""), ReadSpan::local(b"efgh")];
        assert_eq!(writev(a.as_fd(), b"ab", &spans).unwrap(), 8);
        let (mut head, mut first, mut second, mut tail) = ([0; 1], [0; 3], [0; 2], [0; 9]);
        let windows = [WriteSpan::local(&mut first), WriteSpan::local(&mut second)];
        assert_eq!(readv(b.as_fd(), &mut head, &windows, &mut tail).unwrap(), 8);
        assert_eq!((&head, &first, &second, &tail[..2]), (b"a", b"bcd", b"ef", &b"gh"[..]));
    }

    #[test]
    fn datagrams_carry_their_sender_in_both_families() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let a = std::net::UdpSocket::bind(local).unwrap();
            let b = std::net::UdpSocket::bind(local).unwrap();
            let to = b.local_addr().unwrap();
            assert_eq!(send(a.as_fd(), b"x", &[], Some(to), Flags::NONE).unwrap(), 1);
            let mut room = [0; 4];
            let got = receive(b.as_fd(), &mut room, &[], &mut [], Flags::TRUNC).unwrap();
            assert_eq!(got, (1, Some(a.local_addr().unwrap())));
        }
    }
}
