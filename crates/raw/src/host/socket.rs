//! Socket calls of the user-mode network that have no safe equivalent elsewhere.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::check;

/// A socket address in the kernel's form.
pub(crate) union RawAddress {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
    storage: libc::sockaddr_storage,
}

fn size<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

impl RawAddress {
    pub(crate) fn empty() -> Self {
        // SAFETY: all zeroes is a valid sockaddr_storage: family AF_UNSPEC.
        Self { storage: unsafe { std::mem::zeroed() } }
    }

    fn family(&self) -> i32 {
        // SAFETY: every variant starts with the family; `empty` and `from` initialise all bytes of
        // it.
        i32::from(unsafe { self.storage.ss_family })
    }

    pub(crate) fn len(&self) -> libc::socklen_t {
        match self.family() {
            libc::AF_INET => size::<libc::sockaddr_in>(),
            libc::AF_INET6 => size::<libc::sockaddr_in6>(),
            _ => size::<libc::sockaddr_storage>(),
        }
    }

    pub(crate) fn base(&mut self) -> *mut libc::c_void {
        ptr::from_mut(self).cast()
    }
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> Self {
        let mut raw = Self::empty();
        match address {
            SocketAddr::V4(v4) => {
                raw.v4 = libc::sockaddr_in {
                    sin_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(0),
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
            }
            SocketAddr::V6(v6) => {
                raw.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::sa_family_t::try_from(libc::AF_INET6).unwrap_or(0),
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
            }
        }
        raw
    }
}

/// The address the kernel has written, or `None` for another family or none at all.
pub(crate) fn to_address(raw: &RawAddress, len: libc::socklen_t) -> Option<SocketAddr> {
    match raw.family() {
        libc::AF_INET if len >= size::<libc::sockaddr_in>() => {
            // SAFETY: the kernel says it has written an IPv4 address of full length.
            let v4 = unsafe { raw.v4 };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 if len >= size::<libc::sockaddr_in6>() => {
            // SAFETY: the kernel says it has written an IPv6 address of full length.
            let v6 = unsafe { raw.v6 };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// Where the next peek of a stream socket starts (SO_PEEK_OFF; TCP from Linux 6.9). It moves on
/// with each peek and back with what is taken out.
///
/// # Errors
/// `EOPNOTSUPP` or `ENOPROTOOPT` where the kernel does not have it for this kind of socket.
pub fn set_peek_offset(fd: BorrowedFd<'_>, offset: i32) -> io::Result<()> {
    let value = ptr::from_ref(&offset).cast();
    // SAFETY: the option takes an int, and `offset` outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            value,
            size::<libc::c_int>(),
        )
    };
    check(result.into()).map(drop)
}

/// Takes up to `len` bytes out of a stream socket without copying them anywhere.
///
/// # Errors
/// As recv(2); `EAGAIN` when there are none.
pub fn discard(fd: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with MSG_TRUNC a TCP socket takes bytes out and stores none, so a null buffer is
    // never written to; on other sockets the kernel fails with EFAULT instead.
    let taken = unsafe { libc::recv(fd.as_raw_fd(), ptr::null_mut(), len, flags) };
    check(taken.try_into().unwrap_or(-1))
}

/// Bytes in a TCP socket that its peer has not acknowledged yet (SIOCOUTQ).
///
/// # Errors
/// When the socket is not connected or not TCP.
pub fn unacknowledged(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut value: libc::c_int = 0;
    // SAFETY: the request fills one int.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut value) };
    check(result.into())?;
    Ok(usize::try_from(value).unwrap_or(0))
}
