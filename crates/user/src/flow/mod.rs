//! Flows: the guest's conversations, each carried by one socket of the host.
//!
//! ```text
//!   guest's frame --parse--> local service?  --> services (ARP, DHCP, ...)      replies
//!                            flow known?     --> its socket                        |
//!                            new flow?       --> policy --> socket --> table       v
//!   guest's buffers <-- segments, datagrams <-- sockets that are readable <-- the engine
//! ```
//!
//! Everything happens inside the two calls of the endpoint: no thread. Tables are bounded and
//! allocated at the start; what does not fit is refused and counted. Queue pairs share the engine,
//! one at a time: a lock for each call, and no frame goes from one pair to another.

mod dns;
mod engine;
mod icmp;
mod inbound;
mod port;
mod slab;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

pub(crate) use engine::Engine;
pub(crate) use inbound::Listeners;
pub(crate) use port::Port;

use std::net::SocketAddr;

use crate::policy::Protocol;

/// What tells flows apart: the guest's end and the far end, both as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) protocol: Protocol,
    pub(crate) guest: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// What a descriptor of the engine belongs to, packed into the data word of its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Tcp(u32),
    Udp(u32),
    Icmp(u32),
    TcpListener(u32),
    UdpListener(u32),
    Dns,
}

impl Owner {
    pub(crate) fn pack(self) -> u64 {
        let (kind, index) = match self {
            Self::Tcp(index) => (0, index),
            Self::Udp(index) => (1, index),
            Self::Icmp(index) => (2, index),
            Self::TcpListener(index) => (3, index),
            Self::UdpListener(index) => (4, index),
            Self::Dns => (5_u32, 0),
        };
        u64::from(kind) << 32 | u64::from(index)
    }

    pub(crate) fn unpack(word: u64) -> Option<Self> {
        let [i0, i1, i2, i3, kind, ..] = word.to_le_bytes();
        let index = u32::from_le_bytes([i0, i1, i2, i3]);
        Some(match kind {
            0 => Self::Tcp(index),
            1 => Self::Udp(index),
            2 => Self::Icmp(index),
            3 => Self::TcpListener(index),
            4 => Self::UdpListener(index),
            5 => Self::Dns,
            _ => return None,
        })
    }
}
