//! Which pair each flow is with: the one that the guest has last sent it on (NET-CTRL-MQ-03).
//!
//! ```text
//!   side of a pair:  epoll: sockets of its flows     timer: when one of them is due
//!                    the first: published ports and DNS, too
//! ```
//!
//! The engine is one, and whoever works for a pair has it meanwhile. A flow's events come to its
//! pair's worker, and what it has for the guest goes into that pair's buffers, or waits for them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use vionet::Instant;

use super::super::Owner;
use super::super::udp::Via;
use super::Engine;

/// What of the engine belongs to one pair.
pub(super) struct Side {
    pub(super) epoll: Arc<OwnedFd>,
    /// When timers of its flows are looked at next.
    pub(super) timer: Option<Instant>,
}

impl Side {
    pub(super) fn new() -> Result<Self, Errno> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        Ok(Self { epoll, timer: None })
    }
}

impl Engine {
    /// Readable when [`Engine::output`] has something to do for a pair.
    pub(crate) fn fd(&self, pair: u16) -> Option<Arc<OwnedFd>> {
        self.sides.get(usize::from(pair)).map(|side| Arc::clone(&side.epoll))
    }

    /// The side of the pair that is at work.
    pub(super) fn here(&mut self) -> Option<&mut Side> {
        self.sides.get_mut(usize::from(self.pair))
    }

    /// A flow of the pair at work is due then.
    pub(super) fn remind(&mut self, at: Option<Instant>) {
        if let Some(side) = self.here() {
            side.timer = [side.timer, at].into_iter().flatten().min();
        }
    }

    /// The first `active` pairs are in use: flows of others go to one of them.
    pub(crate) fn use_pairs(&mut self, active: u16) {
        self.active = active.max(1);
        let tcp = self.tcp.iter().map(|(index, flow)| (Owner::Tcp(index), flow.pair));
        let udp = self.udp.iter().map(|(index, flow)| (Owner::Udp(index), flow.pair));
        let ping = self.ping.iter().map(|(index, flow)| (Owner::Icmp(index), flow.pair));
        let strays = tcp.chain(udp).chain(ping).filter(|(_, pair)| *pair >= self.active);
        for (owner, pair) in strays.collect::<Vec<_>>() {
            self.bring(owner, pair.checked_rem(self.active).unwrap_or(0));
        }
        // Which of them had asked for it is not remembered.
        let soonest = self.sides.iter().filter_map(|side| side.timer).min();
        self.sides.iter_mut().for_each(|side| side.timer = soonest);
    }

    /// Whether the pair at work has a flow's turn to take.
    pub(super) fn is_here(&mut self, owner: Owner) -> bool {
        let pair = match owner {
            Owner::Tcp(index) => self.tcp.get_mut(index).map(|flow| flow.pair),
            Owner::Udp(index) => self.udp.get_mut(index).map(|flow| flow.pair),
            Owner::Icmp(index) => self.ping.get_mut(index).map(|flow| flow.pair),
            Owner::TcpListener(_) | Owner::UdpListener(_) | Owner::Dns => None,
        };
        pair.is_none_or(|pair| pair == self.pair)
    }

    /// The guest has sent a flow's frame on the pair at work.
    #[inline]
    pub(super) fn follow(&mut self, owner: Owner) {
        if !self.is_here(owner) {
            self.bring(owner, self.pair);
        }
    }

    /// A flow is with another pair from now on.
    #[cold]
    fn bring(&mut self, owner: Owner, to: u16) {
        let old = self.place(owner).map(|(_, pair, _)| std::mem::replace(pair, to));
        let old = old.and_then(|old| self.fd(old));
        if let (Some(old), Some((socket, ..))) = (old, self.place(owner)) {
            // One that could not be watched is not there to be taken away.
            let (Ok(()) | Err(_)) = epoll::delete(&old, socket);
        }
        // A flow that nobody watches any more is forgotten when it has been silent for long.
        let (true | false) = self.watch(owner);
    }

    /// Has a new flow's socket, or one that was brought, watched for its pair. What there is for
    /// it already is an event, too.
    pub(super) fn watch(&mut self, owner: Owner) -> bool {
        let epoll = self.place(owner).map(|(_, pair, _)| *pair).and_then(|pair| self.fd(pair));
        let (Some(epoll), Some((socket, _, flags))) = (epoll, self.place(owner)) else {
            // It has none of its own.
            return true;
        };
        epoll::add(&epoll, socket, EventData::new_u64(owner.pack()), flags).is_ok()
    }

    /// A flow's socket, its pair, and the events it is watched for.
    fn place(&mut self, owner: Owner) -> Option<(&OwnedFd, &mut u16, EventFlags)> {
        let flags = EventFlags::IN | EventFlags::ET;
        match owner {
            Owner::Tcp(index) => {
                let flow = self.tcp.get_mut(index)?;
                let flags = flags | EventFlags::OUT | EventFlags::RDHUP;
                Some((&flow.socket, &mut flow.pair, flags))
            }
            Owner::Udp(index) => {
                let flow = self.udp.get_mut(index)?;
                let Via::Own(socket) = &flow.via else { return None };
                Some((socket, &mut flow.pair, flags))
            }
            Owner::Icmp(index) => {
                let flow = self.ping.get_mut(index)?;
                Some((&flow.socket, &mut flow.pair, flags))
            }
            Owner::TcpListener(_) | Owner::UdpListener(_) | Owner::Dns => None,
        }
    }
}
