//! A receive and a transmit queue, running on a back-end, and the memory they share with it.
//!
//! ```text
//!   rings | receive buffers, one for each entry | transmit buffers, likewise |  one memory file
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vionet_spec::feature::{Feature, FeatureBits};

use crate::error::GuestError;
use crate::front_end::{FrontEnd, RingBells};
use crate::memory::{GUEST_BASE, Memory, USER_BASE};
use crate::ring::{Ring, RingFormat, Shape, ring_bytes};

/// Bytes of the header before each frame.
pub(crate) const HEAD: u32 = 12;
const RX_INDEX: u32 = 0;
const TX_INDEX: u32 = 1;

/// What a port is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PortPlan {
    /// Entries of each ring.
    pub(crate) size: u16,
    /// Bytes of a receive buffer.
    pub(crate) rx_len: u32,
    /// Bytes of a transmit buffer.
    pub(crate) tx_len: u32,
    /// Features that must be there.
    pub(crate) needed: FeatureBits,
    /// Features that are taken where they are offered.
    pub(crate) wanted: FeatureBits,
}

/// Both queues, and what belongs to them.
pub(crate) struct Port {
    pub(crate) end: FrontEnd,
    pub(crate) memory: Memory,
    pub(crate) rx: Ring,
    pub(crate) tx: Ring,
    pub(crate) features: FeatureBits,
    kicks: [OwnedFd; 2],
    pub(crate) call: OwnedFd,
    pub(crate) broken: OwnedFd,
    plan: PortPlan,
    bases: [u64; 2],
}

/// Which queue to look after while waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Await {
    Receive,
    Transmit,
}

impl Port {
    /// Starts both queues over a session that has just begun; all receive buffers are lent.
    pub(crate) fn open(mut end: FrontEnd, plan: PortPlan) -> Result<Self, GuestError> {
        let features = choose(FeatureBits(u128::from(end.offered())), plan)?;
        let (entries, rings) = (u64::from(plan.size), ring_bytes(plan.size));
        let behind = |at: u64, len: u32| at.saturating_add(entries.saturating_mul(len.into()));
        let rx_base = GUEST_BASE.saturating_add(rings.saturating_mul(2));
        let tx_base = behind(rx_base, plan.rx_len);
        let top = behind(tx_base, plan.tx_len);
        let memory = Memory::new(top.saturating_sub(GUEST_BASE).next_multiple_of(4096))?;
        let shape = |writable| Shape {
            format: match features.has(Feature::RING_PACKED) {
                true => RingFormat::Packed,
                false => RingFormat::Split,
            },
            size: plan.size,
            event_idx: features.has(Feature::EVENT_IDX),
            in_order: features.has(Feature::IN_ORDER),
            writable,
        };
        let rx = Ring::new(&memory.space, GUEST_BASE, shape(true))?;
        let tx = Ring::new(&memory.space, GUEST_BASE.saturating_add(rings), shape(false))?;
        let (kicks, call, broken) = ([bell()?, bell()?], bell()?, bell()?);
        end.set_features(u64::try_from(features.0).unwrap_or(0))?;
        end.set_memory(GUEST_BASE, USER_BASE, memory.len, memory.file.as_fd())?;
        let bases = [rx_base, tx_base];
        let mut port = Self { end, memory, rx, tx, features, kicks, call, broken, plan, bases };
        (0..plan.size).for_each(|index| port.post(index));
        // The back-end looks when the ring is started.
        let (true | false) = port.rx.publish();
        port.start()?;
        Ok(port)
    }

    fn start(&mut self) -> Result<(), GuestError> {
        let [rx_kick, tx_kick] = self.kicks.each_ref().map(AsFd::as_fd);
        let (call, error) = (self.call.as_fd(), self.broken.as_fd());
        for (index, ring, kick) in [(RX_INDEX, &self.rx, rx_kick), (TX_INDEX, &self.tx, tx_kick)] {
            self.end.start_ring(index, ring.place(), RingBells { kick, call, error })?;
        }
        Ok(())
    }

    /// Where receive buffer `index` is.
    pub(crate) fn rx_at(&self, index: u16) -> u64 {
        let [base, _] = self.bases;
        base.saturating_add(u64::from(index).saturating_mul(self.plan.rx_len.into()))
    }

    /// Where transmit buffer `index` is.
    pub(crate) fn tx_at(&self, index: u16) -> u64 {
        let [_, base] = self.bases;
        base.saturating_add(u64::from(index).saturating_mul(self.plan.tx_len.into()))
    }

    /// Lends receive buffer `index` to the device; not yet visible.
    #[inline]
    pub(crate) fn post(&mut self, index: u16) {
        self.rx.lend(index, self.rx_at(index), self.plan.rx_len);
    }

    /// Makes what was lent visible and kicks the device where it wants that; how many kicks.
    pub(crate) fn flush(&mut self) -> u64 {
        let [rx_kick, tx_kick] = &self.kicks;
        let mut kicks = 0_u64;
        for (ring, kick) in [(&mut self.tx, tx_kick), (&mut self.rx, rx_kick)] {
            if ring.publish() {
                ring_bell(kick);
                kicks = kicks.saturating_add(1);
            }
        }
        kicks
    }

    /// Wants no interrupts.
    pub(crate) fn disarm(&mut self) {
        self.rx.disarm();
        self.tx.disarm();
    }

    /// Sleeps until the device has something for us, or `most` has gone by.
    pub(crate) fn wait(&mut self, queue: Await, most: Duration) -> Result<(), GuestError> {
        let ring = match queue {
            Await::Receive => &mut self.rx,
            Await::Transmit => &mut self.tx,
        };
        if ring.arm() {
            return Ok(());
        }
        self.look(most)
    }

    /// Sees whether the back-end is still there and well; waits for a sign of it for `most`.
    ///
    /// # Errors
    /// When the back-end is gone, or says that it has given up a ring.
    pub(crate) fn look(&mut self, most: Duration) -> Result<(), GuestError> {
        let timeout = Timespec::try_from(most).ok();
        let mut fds = [
            PollFd::new(&self.call, PollFlags::IN),
            PollFd::new(&self.broken, PollFlags::IN),
            PollFd::new(&self.end, PollFlags::IN | PollFlags::RDHUP),
        ];
        // Interrupted is as good as over: our caller looks again anyway.
        let (Ok(_) | Err(_)) = poll(&mut fds, timeout.as_ref());
        let [called, broken, socket] = fds.map(|fd| !fd.revents().is_empty());
        if called {
            let (Ok(_) | Err(_)) = rustix::io::read(&self.call, &mut [0; 8]);
        }
        match (broken, socket) {
            (true, _) => Err(GuestError::Device("it has given up a ring of ours")),
            // A back-end says nothing by itself: what is readable is its end.
            (false, true) => Err(GuestError::Closed),
            (false, false) => Ok(()),
        }
    }

    /// Stops both queues, in order.
    pub(crate) fn close(mut self) -> Result<(), GuestError> {
        self.end.stop_ring(RX_INDEX)?;
        self.end.stop_ring(TX_INDEX).map(drop)
    }
}

fn choose(offered: FeatureBits, plan: PortPlan) -> Result<FeatureBits, GuestError> {
    let mut chosen = offered & (plan.wanted | plan.needed);
    while let Some(row) = chosen.broken_dependency() {
        chosen = chosen.without(row.feature);
    }
    match (plan.needed & !chosen).lowest() {
        Some(feature) => Err(GuestError::Missing(feature.name().unwrap_or("a feature"))),
        None => Ok(chosen),
    }
}

fn bell() -> Result<OwnedFd, GuestError> {
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    bell.map_err(|errno| GuestError::Host(errno.into()))
}

pub(crate) fn ring_bell(bell: &OwnedFd) {
    // A full counter is rung already.
    let (Ok(_) | Err(_)) = rustix::io::write(bell, &1_u64.to_ne_bytes());
}
