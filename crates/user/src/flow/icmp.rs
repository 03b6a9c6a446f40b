//! Echo: a ping socket per identifier of the guest and destination.

use std::os::fd::OwnedFd;

use vionet::Instant;
use vionet_frame::build::Route;

use super::Key;

/// Echo request and reply of ICMP (RFC 792).
pub(super) const ECHO_V4: (u8, u8) = (8, 0);
/// Echo request and reply of ICMPv6 (RFC 4443 §4).
pub(super) const ECHO_V6: (u8, u8) = (128, 129);

pub(super) struct PingFlow {
    pub(super) socket: OwnedFd,
    /// The guest's identifier is the port of its end, the far end's port is 0.
    pub(super) key: Key,
    /// From the far end to the guest.
    pub(super) route: Route,
    /// Where the guest has last sent it from.
    pub(super) pair: u16,
    pub(super) seen: Instant,
    pub(super) queued: bool,
}
