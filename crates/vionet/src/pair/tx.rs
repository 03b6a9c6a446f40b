//! Transmit: from the guest's chains to the endpoint's batch.
//!
//! The virtio header of each chain is copied out once and judged on the copy; what the endpoint
//! sees of it is the [`Request`] that came out, and the frame's bytes where they lie.

use vionet_frame::header::{HeaderLayout, NetHeader, Request, check};
use vionet_queue::{Batch, DeviceReads, Row};
use vionet_raw::{ReadSpan, copy_out};
use vionet_spec::net::{ETH_HDR_LEN, HDR_LEN};

use super::BATCH;
use crate::negotiate::Plan;
use crate::stats::{DropReason, LaneStats};
use crate::time::Instant;

const ETH_HDR: u32 = 14;
const _: () = assert!(ETH_HDR_LEN == 14, "as a length of frames");

/// A frame to send: its length and what its checked header asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct TxFrame {
    /// Its place among the chains of the batch, or the private spans.
    place: u16,
    /// Bytes of the frame, from the Ethernet header on.
    pub len: u32,
    /// What the driver left open, within [`crate::endpoint::Settings::transmit`].
    pub request: Request,
}

impl TxFrame {
    /// The frame in the spans at `place` of [`TxBatch::private`], of `len` bytes.
    pub(super) fn private(place: usize, len: usize, request: Request) -> Self {
        let place = u16::try_from(place).unwrap_or(u16::MAX);
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        Self { place, len, request }
    }
}

/// What is out of the ordinary in a batch.
pub(super) struct Noted {
    /// Chains that are no frames, and why: dropped when what comes before them is settled. Until
    /// then they are the guest's, and come again.
    unfit: [(u16, DropReason); BATCH],
    count: usize,
    /// In a frame at least something was left open.
    pub(super) is_open: bool,
}

impl Default for Noted {
    fn default() -> Self {
        Self { unfit: [(0, DropReason::NoHeader); BATCH], count: 0, is_open: false }
    }
}

impl Noted {
    #[cold]
    fn push(&mut self, place: u16, reason: DropReason) {
        if let Some(slot) = self.unfit.get_mut(self.count) {
            *slot = (place, reason);
            self.count = self.count.saturating_add(1);
        }
    }

    /// Counts those among the first `rows` chains that are no frames.
    #[inline]
    pub(super) fn count_unfit(&self, rows: usize, stats: &LaneStats) {
        if self.count > 0 {
            self.count_some(rows, stats);
        }
    }

    #[cold]
    fn count_some(&self, rows: usize, stats: &LaneStats) {
        for (place, reason) in self.unfit.iter().take(self.count) {
            if usize::from(*place) < rows {
                stats.dropped(*reason, 1);
            }
        }
    }
}

/// Judges every chain of `batch` and lists the good ones; returns how many there are.
///
/// Once a batch and by itself: its loop wants all registers.
#[inline(never)]
pub(super) fn judge(
    batch: &Batch<DeviceReads>,
    frames: &mut [TxFrame; BATCH],
    noted: &mut Noted,
    plan: &Plan,
) -> usize {
    let most = plan.frame_max.saturating_sub(ETH_HDR);
    let spans = batch.all_spans();
    (noted.count, noted.is_open) = (0, false);
    let mut count = 0_usize;
    for (place, row) in (0_u16..).zip(batch.live()) {
        let Some(slot) = frames.get_mut(count) else { break };
        let len = row.payload_bytes();
        let whole = row.whole_lead().and_then(|at| spans.get(usize::from(at)));
        let header = whole.and_then(ReadSpan::read::<HDR_LEN>);
        // Most frames ask for nothing: then nothing else in the header means anything.
        let is_plain =
            header.is_some_and(|[flags, kind, ..]| u16::from_le_bytes([flags, kind]) == 0);
        if is_plain && len.wrapping_sub(ETH_HDR) <= most {
            *slot = TxFrame { place, len, request: Request::default() };
            count = count.wrapping_add(1);
            continue;
        }
        let header = match header {
            Some(header) if plan.has_short_header() => Some(NetHeader::decode(&header)),
            Some(_) | None => gather(batch, *row, plan),
        };
        match judge_one(header, len, plan) {
            Ok(request) => *slot = TxFrame { place, len, request },
            Err(reason) => {
                noted.push(place, reason);
                continue;
            }
        }
        noted.is_open = true;
        count = count.wrapping_add(1);
    }
    count
}

/// What a header asks for, with a frame behind it of a length that can be.
#[inline(never)]
fn judge_one(header: Option<NetHeader>, len: u32, plan: &Plan) -> Result<Request, DropReason> {
    let header = header.ok_or(DropReason::NoHeader)?;
    if len < ETH_HDR {
        return Err(DropReason::TooShort);
    }
    if len > plan.frame_max {
        return Err(DropReason::TooLong);
    }
    check(&header, len, plan.transmit).map_err(|_| DropReason::BadHeader)
}

/// A header that the driver has scattered (NET-TX-23), or one longer than most. What it does not
/// have is zero.
#[cold]
fn gather(batch: &Batch<DeviceReads>, row: Row, plan: &Plan) -> Option<NetHeader> {
    let mut header = [0; HeaderLayout::LEN_MAX];
    let wanted = usize::from(plan.header_len);
    let got = copy_out(batch.lead(row), 0, header.get_mut(..wanted)?);
    (got == wanted).then(|| NetHeader::decode_long(&header))
}

/// Where the bytes of a batch's frames lie.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// In the guest's buffers, by row.
    Guest(&'a Batch<DeviceReads>),
    /// In private memory, two spans per frame.
    Private(&'a [[ReadSpan<'a>; 2]]),
}

/// What is counted of frames that are sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counts {
    /// Nothing: they were made here.
    Nothing,
    /// That they are the guest's; they have nothing else about them.
    Frames,
    /// Also what was left open in them.
    Open,
}

/// Frames from the guest, to be settled first to last.
pub struct TxBatch<'a> {
    source: Source<'a>,
    frames: &'a [TxFrame],
    done: usize,
    counts: Counts,
    stats: &'a LaneStats,
    now: Instant,
}

impl<'a> TxBatch<'a> {
    pub(super) fn new(
        batch: &'a Batch<DeviceReads>,
        frames: &'a [TxFrame],
        is_open: bool,
        stats: &'a LaneStats,
        now: Instant,
    ) -> Self {
        let counts = if is_open { Counts::Open } else { Counts::Frames };
        Self { source: Source::Guest(batch), frames, done: 0, counts, stats, now }
    }

    /// The frames not settled yet.
    #[inline]
    #[must_use]
    pub fn frames(&self) -> &'a [TxFrame] {
        self.frames.get(self.done..).unwrap_or(&[])
    }

    /// The bytes of one of [`Self::frames`], from the Ethernet header on.
    #[inline]
    #[must_use]
    pub fn bytes(&self, frame: &TxFrame) -> &[ReadSpan<'_>] {
        match &self.source {
            Source::Guest(batch) => {
                batch.row(frame.place.into()).map_or(&[], |row| batch.payload(row))
            }
            Source::Private(spans) => {
                let place = usize::from(frame.place);
                spans.get(place).map_or(&[], |both| both)
            }
        }
    }

    /// When this step began.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The first `count` frames are done and count as sent.
    #[inline]
    pub fn sent(&mut self, count: usize) {
        let sent = self.frames().iter().take(count);
        let bytes = sent.fold(0_u64, |sum, frame| sum.wrapping_add(u64::from(frame.len)));
        let open = if self.counts == Counts::Open { self.count_open(count) } else { 0 };
        let count = self.settle(count);
        if self.counts != Counts::Nothing {
            self.stats.closed_checksums.add(count.wrapping_sub(open));
            self.stats.bytes.add(bytes);
        }
    }

    /// Counts what was left open in the first `count` frames: of so many the checksum.
    #[inline(never)]
    fn count_open(&self, count: usize) -> u64 {
        let (mut open, mut uncut, mut uncut_bytes) = (0_u64, 0_u64, 0_u64);
        for frame in self.frames().iter().take(count) {
            open = open.wrapping_add(u64::from(frame.request.csum.is_some()));
            if frame.request.gso.is_some() {
                uncut = uncut.wrapping_add(1);
                uncut_bytes = uncut_bytes.wrapping_add(frame.len.into());
            }
        }
        self.stats.open_checksums.add(open);
        self.stats.uncut.add(uncut);
        self.stats.uncut_bytes.add(uncut_bytes);
        open
    }

    /// Counts segments that were cut here and went on.
    pub(super) fn count_segments(&self, frames: &[TxFrame]) {
        let bytes = frames.iter().fold(0_u64, |sum, frame| sum.wrapping_add(frame.len.into()));
        self.stats.segments.add(u64::try_from(frames.len()).unwrap_or(0));
        self.stats.segment_bytes.add(bytes);
    }

    /// The first `count` frames are done and count as dropped.
    #[inline]
    pub fn dropped(&mut self, count: usize, reason: DropReason) {
        let count = self.settle(count);
        self.stats.dropped(reason, count);
    }

    #[cold]
    pub(crate) fn drop_rest(&mut self, reason: DropReason) {
        self.dropped(self.frames().len(), reason);
    }

    #[inline]
    fn settle(&mut self, count: usize) -> u64 {
        let count = count.min(self.frames().len());
        self.done = self.done.saturating_add(count);
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    /// How many rows of the guest's batch are done: the settled frames, and the chains between
    /// them that were no frames.
    pub(super) fn settled_rows(&self) -> usize {
        match (&self.source, self.frames().first()) {
            (_, Some(frame)) => usize::from(frame.place),
            (Source::Guest(batch), None) => batch.len(),
            (Source::Private(_), None) => self.frames.len(),
        }
    }

    /// A batch of private frames, frame `i` in `spans[i]`, headers and payload, under the same
    /// counters: for what has been finished in software. Its frames are counted by whoever made
    /// them, drops by itself.
    pub(super) fn private<'b>(
        &self,
        frames: &'b [TxFrame],
        spans: &'b [[ReadSpan<'b>; 2]],
    ) -> TxBatch<'b>
    where
        'a: 'b,
    {
        TxBatch {
            source: Source::Private(spans),
            frames,
            done: 0,
            counts: Counts::Nothing,
            stats: self.stats,
            now: self.now,
        }
    }

    /// The same for frames that stand for the guest's own, and are counted as those when sent.
    pub(super) fn stand_in<'b>(
        &self,
        frames: &'b [TxFrame],
        spans: &'b [[ReadSpan<'b>; 2]],
    ) -> TxBatch<'b>
    where
        'a: 'b,
    {
        TxBatch { counts: self.counts, ..self.private(frames, spans) }
    }

    /// The first `count` frames were settled, and counted, in a [`Self::part`] of this batch.
    pub(super) fn settled_below(&mut self, count: usize) {
        self.settle(count);
    }

    /// The next `count` frames as a batch of their own; say here how many were settled there.
    pub(super) fn part(&self, count: usize) -> TxBatch<'_> {
        let Self { source, counts, stats, now, .. } = *self;
        let frames = self.frames().get(..count).unwrap_or(&[]);
        TxBatch { source, frames, done: 0, counts, stats, now }
    }

    /// Has the first `count` frames settled as a batch of their own: for an endpoint that hands
    /// some frames on and keeps others.
    #[inline]
    pub fn with_part<R>(&mut self, count: usize, settle: impl FnOnce(&mut TxBatch<'_>) -> R) -> R {
        let mut part = self.part(count);
        let result = settle(&mut part);
        let settled = part.done;
        self.settled_below(settled);
        result
    }
}
