//! UDP: one socket per conversation of the guest, or the published socket it came in by.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use vionet::Instant;
use vionet_frame::build::Route;

use super::Key;

/// How datagrams of a flow leave.
pub(super) enum Via {
    /// A connected socket of its own.
    Own(OwnedFd),
    /// A published socket, to this peer.
    Published {
        /// Which one.
        listener: u32,
        /// The real address of the far end.
        peer: SocketAddr,
    },
}

pub(super) struct UdpFlow {
    pub(super) via: Via,
    pub(super) key: Key,
    /// From the far end to the guest.
    pub(super) route: Route,
    /// Where the guest has last sent it from.
    pub(super) pair: u16,
    pub(super) seen: Instant,
    /// Both sides have spoken: worth keeping longer.
    pub(super) answered: bool,
    pub(super) queued: bool,
}
