//! Receive: from the endpoint into the guest's buffers.
//!
//! ```text
//!   stock (a batch that outlives the step)
//!   [ filled ][ filled ][ window ........ ][ spare ][ spare ]   <- take() when it runs short
//!                 next --^
//! ```
//!
//! The endpoint asks for a window, fills it, commits it. Only then is the virtio header written;
//! a window that is not committed has cost nothing. All filled chains become used in one go.

use vionet_frame::header::{NetHeader, Offloads};
use vionet_queue::{Batch, DeviceWrites, Fault, Queue, ROWS_MAX, Row};
use vionet_raw::{WriteSpan, copy_in};
use vionet_spec::net::{ETH_HDR_LEN, HDR_F_DATA_VALID, HDR_LEN, LINK_HDR_MAX};

mod push;

use super::BATCH;
use crate::endpoint::RxHeader;
use crate::negotiate::Plan;
use crate::stats::{DropReason, LaneStats};
use crate::time::Instant;

const NET_HDR: u32 = 12;
const _: () = assert!(HDR_LEN == 12, "as a length in a chain");
/// The shortest frame: an Ethernet header.
const LEN_MIN: u32 = 14;
const _: () = assert!(ETH_HDR_LEN == 14, "as a length of a frame");

/// Why a pushed frame was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Refused {
    /// The guest has no room now: keep the frame and come again.
    Full,
    /// The guest cannot take this frame at all; it is dropped and counted.
    Dropped,
}

/// Where received frames go: the guest's buffers, by windows.
pub(super) struct GuestSink<'a> {
    queue: &'a mut Queue,
    batch: &'a mut Batch<DeviceWrites>,
    plan: &'a Plan,
    stats: &'a LaneStats,
    /// The plan's, or 0 when the budget is spent: one look at this does for a plain frame.
    plain_max: u32,
    /// Chains before this one are filled.
    next: usize,
    /// Frames that may still be delivered or dropped in this step, of so many.
    budget: usize,
    /// The budget at first, less the frames that were dropped.
    granted: usize,
    /// Bytes that were delivered, counted when the step ends.
    bytes: u64,
    /// Delivered frames whose checksum is open, and those whose checksum is validated; likewise.
    summed: [u64; 2],
    /// Chains that went back empty.
    skipped: bool,
    /// The queue was looked at: what the batch says of chains left there is of this step.
    looked: bool,
    starved: bool,
    spent: bool,
    fault: Option<Fault>,
    now: Instant,
}

/// What a sink has come to.
#[derive(Default)]
pub(super) struct Filled {
    /// Buffers go back.
    pub(super) worked: bool,
    /// So many frames are in them.
    pub(super) frames: usize,
    pub(super) starved: bool,
    pub(super) spent: bool,
    pub(super) fault: Option<Fault>,
}

impl<'a> GuestSink<'a> {
    pub(super) fn new(
        queue: &'a mut Queue,
        batch: &'a mut Batch<DeviceWrites>,
        plan: &'a Plan,
        stats: &'a LaneStats,
        now: Instant,
    ) -> Self {
        // Translations are dear and hold for this step only: first let there be a frame.
        let early = batch.is_empty() && !batch.is_translated();
        let fault = if early { take_all(queue, batch) } else { None };
        Self {
            queue,
            batch,
            plan,
            stats,
            plain_max: plan.plain_max,
            next: 0,
            budget: BATCH,
            granted: BATCH,
            bytes: 0,
            summed: [0; 2],
            skipped: false,
            looked: early,
            starved: false,
            spent: false,
            fault,
            now,
        }
    }

    /// The same sink, for up to `budget` frames.
    #[cfg(feature = "std")]
    pub(super) fn with_budget(self, budget: usize) -> Self {
        let plain_max = if budget > 0 { self.plan.plain_max } else { 0 };
        Self { budget, granted: budget, plain_max, ..self }
    }

    /// Gives the filled chains back to the queue, not yet visible.
    #[inline]
    pub(super) fn finish(&mut self) -> Filled {
        self.put_filled();
        let Self { bytes, summed: [open, valid], skipped, starved, spent, fault, stats, .. } =
            *self;
        let frames = self.granted.saturating_sub(self.budget);
        if frames > 0 {
            let all = u64::try_from(frames).unwrap_or(0);
            stats.closed_checksums.add(all.wrapping_sub(open).wrapping_sub(valid));
            stats.bytes.add(bytes);
            if open | valid > 0 {
                stats.open_checksums.add(open);
                stats.validated.add(valid);
            }
        }
        Filled { worked: frames > 0 || skipped, frames, starved, spent, fault }
    }

    /// What the guest takes unfinished now.
    #[must_use]
    pub(super) fn takes(&self) -> Offloads {
        self.plan.receive
    }

    /// When this step began.
    #[must_use]
    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// Room for one frame of up to `want` bytes, nothing consumed. `None` when there is no such
    /// room now; then [`Self::room`] tells what there is.
    #[inline]
    pub(super) fn window(&mut self, want: u32) -> Option<&[WriteSpan<'_>]> {
        // Most frames fit into the next buffer.
        if self.budget > 0
            && let Some(row) = self.batch.row(self.next)
            && row.has_lead()
            && row.payload_bytes() >= want
        {
            return Some(self.batch.payload(row, row));
        }
        let (first, last) = self.reach(want)?;
        Some(self.batch.payload_joined(first, last))
    }

    /// The longest frame that fits now, in bytes; 0 when there is no room or this step has
    /// delivered enough.
    pub(super) fn room(&mut self) -> u32 {
        if !self.ready() {
            return 0;
        }
        let in_stock = self.room_in_stock();
        if in_stock >= self.plan.frame_max || !self.plan.mergeable {
            return in_stock;
        }
        self.refill();
        self.room_in_stock()
    }

    /// Whether it is time to fetch a frame of up to `len` bytes: it fits, or it never will and is
    /// to be dropped. If not, the guest is asked to say when it has posted more.
    pub(super) fn has_room(&mut self, len: u32) -> bool {
        if !self.ready() {
            return false;
        }
        if self.reach(len).is_some() || self.is_hopeless() {
            return true;
        }
        self.starved = true;
        false
    }

    fn room_in_stock(&self) -> u32 {
        let rows = if self.plan.mergeable { self.batch.len() } else { self.next.saturating_add(1) };
        let Some(first) = self.batch.row(self.next) else { return 0 };
        let more = (self.next.saturating_add(1)..rows).filter_map(|at| self.batch.row(at));
        let room = more.fold(first.payload_bytes(), |sum, row| sum.saturating_add(row.bytes()));
        room.min(self.plan.frame_max)
    }

    /// The window's first `len` bytes are a frame: writes its virtio header and settles its
    /// chains. A frame that breaks what was agreed is dropped and counted instead.
    #[inline]
    ///
    /// # Errors
    /// [`Refused::Dropped`].
    pub(super) fn commit(&mut self, len: u32, header: &RxHeader) -> Result<(), Refused> {
        self.deliver(len, header)
    }

    /// Counts a frame that the endpoint itself has dropped. It uses up the step's budget like
    /// any other: no step is without end.
    #[cold]
    pub(super) fn dropped(&mut self, reason: DropReason) {
        self.stats.dropped(reason, 1);
        if self.budget > 0 {
            self.spend();
            self.granted = self.granted.saturating_sub(1);
        }
    }

    /// No room for a frame: is it worth waiting?
    #[cold]
    fn refuse(&mut self) -> Refused {
        if !self.spent && self.is_hopeless() {
            self.dropped(DropReason::NoBuffer);
            return Refused::Dropped;
        }
        self.starved |= !self.spent;
        Refused::Full
    }

    /// Whether more buffers would not help: the stock is full, the guest has posted all it can, or
    /// a frame may have one buffer only and this one is too small.
    #[inline]
    fn is_hopeless(&self) -> bool {
        let spare = self.batch.len().saturating_sub(self.next);
        let all_posted = spare >= usize::from(self.queue.size());
        let too_small = !self.plan.mergeable && spare > 0;
        all_posted || too_small || self.batch.is_cramped()
    }

    /// The first and last chain of a window of `want` bytes.
    #[inline]
    fn reach(&mut self, want: u32) -> Option<(Row, Row)> {
        if !self.ready() {
            return None;
        }
        self.reach_in_stock(want).or_else(|| {
            self.refill();
            self.reach_in_stock(want)
        })
    }

    #[inline]
    fn reach_in_stock(&self, want: u32) -> Option<(Row, Row)> {
        let first = self.batch.row(self.next)?;
        let mut room = first.payload_bytes();
        let (mut last, mut at) = (first, self.next);
        while room < want && self.plan.mergeable {
            at = at.wrapping_add(1);
            last = self.batch.row(at)?;
            room = room.saturating_add(last.bytes());
        }
        (room >= want).then_some((first, last))
    }

    /// Whether a frame may be delivered: budget left, and a chain that can hold its header.
    #[inline]
    fn ready(&mut self) -> bool {
        loop {
            // Each time: chains that are too short come without end if the guest likes.
            if self.budget == 0 {
                self.spent = true;
                return false;
            }
            match self.batch.row(self.next) {
                Some(row) if row.has_lead() => return true,
                Some(_) => self.skip_short_chain(),
                None => {
                    self.refill();
                    if self.batch.row(self.next).is_none() {
                        self.starved = true;
                        return false;
                    }
                }
            }
        }
    }

    /// A chain too short for the header goes back empty (NET-RXB-04).
    #[cold]
    fn skip_short_chain(&mut self) {
        self.batch.set_written(self.next, 0);
        self.next = self.next.saturating_add(1);
        self.skipped = true;
        self.dropped(DropReason::NoHeader);
    }

    /// Makes room in the stock and takes what the driver has posted.
    #[cold]
    fn refill(&mut self) {
        let same = self.next == 0;
        self.put_filled();
        // A walk of a thousand descriptors is not for each frame.
        if self.fault.is_some() || same && self.is_stuck() {
            return;
        }
        self.fault = take_all(self.queue, self.batch);
        self.looked = true;
    }

    /// Whether this sink's last look had to leave a chain.
    fn is_stuck(&self) -> bool {
        self.looked && (self.batch.is_cramped() || self.batch.is_untranslated())
    }

    fn put_filled(&mut self) {
        if self.next > 0 {
            self.queue.put(self.batch, self.next);
            self.next = 0;
        }
    }

    #[inline]
    fn deliver(&mut self, len: u32, header: &RxHeader) -> Result<(), Refused> {
        self.settle(len, header).map_err(|reason| {
            self.dropped(reason);
            Refused::Dropped
        })
    }

    #[inline]
    fn settle(&mut self, len: u32, header: &RxHeader) -> Result<(), DropReason> {
        self.check(len, header)?;
        let first = self.batch.row(self.next).ok_or(DropReason::NoBuffer)?;
        let all = len.saturating_add(u32::from(self.plan.header_len));
        let buffers = if all <= first.bytes() {
            self.batch.set_written(self.next, all);
            1
        } else {
            self.spread(all)?
        };
        let net = self.net_header(header, u16::try_from(buffers).map_err(|_| DropReason::TooLong)?);
        match self.batch.lead(first) {
            [whole] if self.plan.has_short_header() && whole.write(&net.encode()) => {}
            lead => {
                // As much of the longest layout as was agreed on (NET-HDR-02).
                let net = net.encode_long();
                let net = net.get(..usize::from(self.plan.header_len)).unwrap_or(&net);
                copy_in(lead, 0, net);
            }
        }
        self.count_open(len, header);
        self.delivered(buffers, len);
        Ok(())
    }

    #[inline]
    fn delivered(&mut self, buffers: usize, len: u32) {
        self.next = self.next.wrapping_add(buffers);
        self.bytes = self.bytes.wrapping_add(u64::from(len));
        self.spend();
    }

    /// A frame less to go.
    #[inline]
    fn spend(&mut self) {
        self.budget = self.budget.wrapping_sub(1);
        if self.budget == 0 {
            self.plain_max = 0;
        }
    }

    /// The virtio header of a frame that takes so many buffers.
    fn net_header(&self, header: &RxHeader, num_buffers: u16) -> NetHeader {
        let mut net = header.request.to_header(header.header_len);
        if self.says_valid(header) {
            net.flags |= HDR_F_DATA_VALID;
        }
        if self.plan.coalesced_info {
            // A frame that was joined elsewhere has an unknown number of segments: one is true. So
            // is no duplicate acknowledgement: such have no data (RFC 5681 §2), and are not joined.
            net = net.with_coalesced(header.segments.max(1), 0);
        }
        net.num_buffers = num_buffers;
        net.hash_value = header.hash.value;
        net.hash_report = header.hash.report;
        net
    }

    /// Whether the guest is told that the checksum is good.
    fn says_valid(&self, header: &RxHeader) -> bool {
        header.validated
            && header.request.csum.is_none()
            && self.plan.receive.contains(Offloads::CSUM)
    }

    /// Counts a frame about which there was something to say.
    fn count_open(&mut self, len: u32, header: &RxHeader) {
        let len = u64::from(len);
        let says_valid = self.says_valid(header);
        let [open, valid] = &mut self.summed;
        *open = open.wrapping_add(u64::from(header.request.csum.is_some()));
        *valid = valid.wrapping_add(u64::from(says_valid));
        if header.request.gso.is_some() {
            self.stats.uncut.add(1);
            self.stats.uncut_bytes.add(len);
        }
        if header.segments > 1 {
            self.stats.coalesced.add(1);
            self.stats.coalesced_bytes.add(len);
        }
    }

    /// Settles the chains of a frame that one does not hold: how many there are.
    fn spread(&mut self, all: u32) -> Result<usize, DropReason> {
        let (mut rest, mut at) = (all, self.next);
        // All buffers but the last are filled to their full length (NET-RX-03).
        while rest > 0 {
            let row = self.batch.row(at).ok_or(DropReason::NoBuffer)?;
            let part = row.bytes().min(rest);
            self.batch.set_written(at, part);
            rest = rest.saturating_sub(part);
            at = at.wrapping_add(1);
        }
        if !self.plan.mergeable {
            return Err(DropReason::NoBuffer);
        }
        Ok(at.wrapping_sub(self.next))
    }

    /// What was agreed holds for every frame, whichever endpoint brought it.
    #[inline]
    fn check(&self, len: u32, header: &RxHeader) -> Result<(), DropReason> {
        let needs = header.request.needs();
        if !needs.is_subset(self.plan.receive) {
            return Err(DropReason::NotAgreed);
        }
        let most = match header.request.gso {
            Some(_) => self.plan.frame_max,
            None => u32::from(self.plan.mtu).saturating_add(LINK_HDR_MAX), // NET-CFG-05
        };
        if len > most {
            return Err(DropReason::TooLong);
        }
        if len < LEN_MIN {
            return Err(DropReason::TooShort);
        }
        Ok(())
    }
}

/// Takes what the driver has posted, as far as there is room: where both places that do so meet.
#[inline(never)]
fn take_all(queue: &mut Queue, batch: &mut Batch<DeviceWrites>) -> Option<Fault> {
    queue.take(ROWS_MAX, batch).err()
}
