//! DNS: the guest's queries go to the host's current resolver and the answers come back.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};
use vionet_raw::host::vector::{self, Flags};

use super::Owner;
use crate::config::UserConfig;
use crate::host;
use crate::resolver::{Asked, Asker, Forwarder, Resolver};

/// The longest message; longer ones go over TCP (RFC 6891 §6.2.5).
pub(super) const MESSAGE_MAX: usize = 4096;

/// The forwarder with its sockets, one per family, made when first needed.
pub(super) struct Dns {
    pub(super) resolver: Resolver,
    forwarder: Forwarder,
    sockets: [Option<OwnedFd>; 2],
}

impl Dns {
    pub(super) fn new(config: &UserConfig) -> Self {
        let (resolver, forwarder) = (Resolver::new(config), Forwarder::new());
        Self { resolver, forwarder, sockets: [None, None] }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.forwarder.is_empty()
    }

    /// Sends a query on. `Some(len)` when the first `len` bytes of the message are to be sent
    /// back as a failure instead.
    pub(super) fn ask(
        &mut self,
        asker: Asker,
        message: &mut [u8],
        now: Instant,
        epoll: &OwnedFd,
    ) -> Option<usize> {
        let servers = self.resolver.servers(now);
        match self.forwarder.ask(asker, message, servers, now) {
            Asked::Ignore => None,
            Asked::Fail { len } => Some(len),
            Asked::Forward(server) => {
                // A query that cannot be sent is asked again by the guest, or expires.
                if let Some(socket) = self.socket(&server, epoll) {
                    let to = Some(server);
                    let (Ok(_) | Err(_)) =
                        vector::send(socket.as_fd(), message, &[], to, Flags::NONE);
                }
                None
            }
        }
    }

    fn socket(&mut self, server: &SocketAddr, epoll: &OwnedFd) -> Option<&OwnedFd> {
        let [v4, v6] = &mut self.sockets;
        let slot = if server.is_ipv4() { v4 } else { v6 };
        if slot.is_none() {
            let socket = host::open_udp(server).ok()?;
            let data = EventData::new_u64(Owner::Dns.pack());
            epoll::add(epoll, &socket, data, EventFlags::IN).ok()?;
            *slot = Some(socket);
        }
        slot.as_ref()
    }

    /// The next answer and who asked, its message in `room`.
    pub(super) fn answer(&mut self, room: &mut [u8]) -> Option<(Asker, usize)> {
        for socket in self.sockets.iter().flatten() {
            while let Ok((len, from)) =
                vector::receive(socket.as_fd(), room, &[], &mut [], Flags::NONE)
            {
                let message = room.get_mut(..len).unwrap_or(&mut []);
                let asker = from.and_then(|from| self.forwarder.answer(from, message));
                if let Some(asker) = asker {
                    return Some((asker, len));
                }
            }
        }
        None
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.forwarder.expire(now);
    }
}
