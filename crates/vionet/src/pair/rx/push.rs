//! Frames that are copied to the guest: from private memory, or from another guest's.
//!
//! What a frame stores is what bounds this: the guest's lines come from another core, and until
//! they are here every store waits in a queue of some sixty places.

use vionet_queue::{Batch, DeviceWrites};
use vionet_raw::{ReadSpan, WriteSpan, copy_behind, copy_in, has_string_moves};
use vionet_spec::net::HDR_LEN;

use super::{GuestSink, LEN_MIN, NET_HDR, Refused};
use crate::endpoint::RxHeader;
use crate::stats::DropReason;

/// So many chains before its turn one is fetched, to be written.
const AHEAD: usize = 8;

/// The virtio header of a frame in one buffer about which there is nothing to say: `num_buffers`.
const PLAIN: [u8; HDR_LEN] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

impl GuestSink<'_> {
    /// Delivers a frame from private memory.
    ///
    /// # Errors
    /// [`Refused::Full`]: keep the frame, come again. [`Refused::Dropped`]: forget it.
    #[inline]
    pub(in crate::pair) fn push(&mut self, header: &RxHeader, frame: &[u8]) -> Result<(), Refused> {
        let Ok(len) = u32::try_from(frame.len()) else { return Err(Refused::Dropped) };
        let fill = |room: &WriteSpan<'_>| {
            if has_string_moves() { room.move_all(frame) } else { room.write_all(frame) }
        };
        if self.push_single(header, len, fill) {
            return Ok(());
        }
        self.push_spread(header, len, |window| copy_in(window, 0, frame))
    }

    /// Delivers frames from private memory, one after the other; of how many the caller is rid.
    #[inline]
    pub(in crate::pair) fn push_all<'f>(
        &mut self,
        header: &RxHeader,
        frames: impl Iterator<Item = &'f [u8]>,
    ) -> usize {
        // What processor this is is asked once, and not for each frame.
        if has_string_moves() {
            self.push_each(header, frames, |room, frame| room.move_all(frame))
        } else {
            self.push_each(header, frames, |room, frame| room.write_all(frame))
        }
    }

    /// Where the run stands is kept in registers, and nothing is called for a frame but `fill`.
    fn push_each<'f>(
        &mut self,
        header: &RxHeader,
        frames: impl Iterator<Item = &'f [u8]>,
        fill: impl Fn(&WriteSpan<'_>, &[u8]) -> bool,
    ) -> usize {
        let plain_max = if header.is_plain() { self.plan.plain_max } else { 0 };
        let mut run = self.run();
        let mut done = 0_usize;
        for frame in frames {
            let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
            let is_plain = run.next < run.stop && len <= plain_max && len >= LEN_MIN;
            if is_plain && fill_plain(self.batch, run.next, len, |room| fill(room, frame)) {
                run.next = run.next.wrapping_add(1);
                run.bytes = run.bytes.wrapping_add(u64::from(len));
            } else {
                self.ran(&run);
                if self.push_apart(header, frame) == Err(Refused::Full) {
                    return done;
                }
                run = self.run();
            }
            done = done.wrapping_add(1);
        }
        self.ran(&run);
        done
    }

    fn run(&self) -> Run {
        Run { next: self.next, stop: self.next.wrapping_add(self.budget), bytes: self.bytes }
    }

    fn ran(&mut self, run: &Run) {
        (self.next, self.bytes) = (run.next, run.bytes);
        self.budget = run.stop.wrapping_sub(run.next);
        if self.budget == 0 {
            self.plain_max = 0;
        }
    }

    /// Delivers a frame of `len` bytes out of another guest's memory, in one copy. `head` is what
    /// was seen of it, and what the guest gets, whatever the first bytes of `frame` are by now.
    ///
    /// # Errors
    /// [`Refused::Full`]: there is no room now. [`Refused::Dropped`]: it never fits.
    #[inline]
    pub(in crate::pair) fn push_checked(
        &mut self,
        header: &RxHeader,
        len: u32,
        head: &[u8],
        frame: &[ReadSpan<'_>],
    ) -> Result<(), Refused> {
        self.batch.prefetch(self.next.wrapping_add(AHEAD));
        let fill = |payload: &WriteSpan<'_>| match frame {
            [whole] if u32::try_from(whole.len()) == Ok(len) => payload.write_frame(head, whole),
            pieces => {
                let copied = copy_both(head, pieces, core::slice::from_ref(payload));
                u32::try_from(copied) == Ok(len)
            }
        };
        if self.push_single(header, len, fill) {
            return Ok(());
        }
        self.push_spread(header, len, |window| copy_both(head, frame, window))
    }

    /// Delivers a frame of `len` bytes, which `fill` copies and counts, into as many chains as it
    /// takes.
    #[inline(never)]
    fn push_spread(
        &mut self,
        header: &RxHeader,
        len: u32,
        fill: impl FnOnce(&[WriteSpan<'_>]) -> usize,
    ) -> Result<(), Refused> {
        let Some((first, last)) = self.reach(len) else {
            return Err(self.refuse());
        };
        if u32::try_from(fill(self.batch.payload(first, last))) != Ok(len) {
            self.dropped(DropReason::Unparsable);
            return Err(Refused::Dropped);
        }
        self.deliver(len, header)
    }

    /// Delivers a frame into the next chain, if that is one buffer with room for it, as most are,
    /// and `fill` can fill it. If not, nothing has happened.
    #[inline]
    fn push_single(
        &mut self,
        header: &RxHeader,
        len: u32,
        fill: impl FnOnce(&WriteSpan<'_>) -> bool,
    ) -> bool {
        if !header.is_plain() {
            return self.push_told(header, len, fill);
        }
        if len > self.plain_max || len < LEN_MIN || !fill_plain(self.batch, self.next, len, fill) {
            return false;
        }
        self.delivered(1, len);
        true
    }

    /// The same for a frame about which there is something to say.
    #[inline(never)]
    fn push_told(
        &mut self,
        header: &RxHeader,
        len: u32,
        fill: impl FnOnce(&WriteSpan<'_>) -> bool,
    ) -> bool {
        if self.budget == 0 || !self.plan.has_short_header() || self.check(len, header).is_err() {
            return false;
        }
        let net = self.net_header(header, 1).encode();
        let Some(chain) = self.batch.single(self.next, len) else { return false };
        if !fill(chain.payload) || !chain.lead.write(&net) {
            return false;
        }
        *chain.written = len.saturating_add(NET_HDR);
        self.count_open(len, header);
        self.delivered(1, len);
        true
    }

    /// The same as [`Self::push`], for callers on whose speed the endpoint's own does not depend.
    #[inline(never)]
    pub(in crate::pair) fn push_apart(
        &mut self,
        header: &RxHeader,
        frame: &[u8],
    ) -> Result<(), Refused> {
        self.push(header, frame)
    }

    /// The same as [`Self::push_checked`], likewise.
    #[inline(never)]
    pub(in crate::pair) fn push_checked_apart(
        &mut self,
        header: &RxHeader,
        len: u32,
        head: &[u8],
        frame: &[ReadSpan<'_>],
    ) -> Result<(), Refused> {
        self.push_checked(header, len, head, frame)
    }
}

/// How far a run of plain frames has come.
struct Run {
    next: usize,
    /// Where the budget ends.
    stop: usize,
    bytes: u64,
}

/// Fills the chain at `next` with a frame of `len` bytes about which there is nothing to say, if it
/// is one buffer with room for it and `fill` can. If not, nothing has happened.
#[inline(always)]
fn fill_plain(
    batch: &mut Batch<DeviceWrites>,
    next: usize,
    len: u32,
    fill: impl FnOnce(&WriteSpan<'_>) -> bool,
) -> bool {
    let Some(chain) = batch.single(next, len) else { return false };
    // Drivers leave the header alone, and then it is as it was written here before: it stays in
    // the caches of both sides if it is not written again.
    let is_filled = fill(chain.payload) && chain.lead.write_if_new(&PLAIN);
    if is_filled {
        *chain.written = len.wrapping_add(NET_HDR); // `len` is what fits into a buffer behind it.
    }
    is_filled
}

/// Copies `head`, and what is behind its length in `frame`, to a window; how many bytes.
#[inline]
fn copy_both(head: &[u8], frame: &[ReadSpan<'_>], window: &[WriteSpan<'_>]) -> usize {
    copy_in(window, 0, head).saturating_add(copy_behind(frame, window, head.len()))
}
