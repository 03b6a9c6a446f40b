//! Sockets of the host, made for flows: non-blocking, closed on exec.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, SocketFlags, SocketType, bind, connect, ipproto, listen, socket_with,
    sockopt,
};

fn family(address: &SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn socket(
    address: &SocketAddr,
    kind: SocketType,
    protocol: Option<Protocol>,
) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(socket_with(family(address), kind, flags, protocol)?)
}

/// A TCP connection to `to` in the making; the socket becomes writable when it is decided.
pub(crate) fn connect_tcp(to: &SocketAddr) -> io::Result<OwnedFd> {
    let socket = socket(to, SocketType::STREAM, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match connect(&socket, to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}

/// A UDP socket that speaks to `to` alone.
pub(crate) fn connect_udp(to: &SocketAddr) -> io::Result<OwnedFd> {
    let socket = socket(to, SocketType::DGRAM, None)?;
    connect(&socket, to)?;
    Ok(socket)
}

/// A ping socket that speaks to `to` alone; needs `net.ipv4.ping_group_range` to include us.
pub(crate) fn connect_ping(to: &SocketAddr) -> io::Result<OwnedFd> {
    let protocol = if to.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
    let socket = socket(to, SocketType::DGRAM, Some(protocol))?;
    connect(&socket, to)?;
    Ok(socket)
}

/// A UDP socket for queries to any server of the family of `like`.
pub(crate) fn open_udp(like: &SocketAddr) -> io::Result<OwnedFd> {
    let any: SocketAddr = if like.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = socket(&any, SocketType::DGRAM, None)?;
    bind(&socket, &any)?;
    Ok(socket)
}

/// A socket bound to `at`: listening for TCP, ready for UDP.
pub(crate) fn publish(at: &SocketAddr, is_tcp: bool) -> io::Result<OwnedFd> {
    const BACKLOG: i32 = 128;
    let kind = if is_tcp { SocketType::STREAM } else { SocketType::DGRAM };
    let socket = socket(at, kind, None)?;
    if at.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if is_tcp {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, at)?;
    if is_tcp {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}
