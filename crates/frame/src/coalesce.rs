//! Joining arrived segments of one flow to a frame that the guest's stack handles as one: the
//! reverse of `segment.rs` (what hosts call GRO, and the standard RSC).
//!
//! ```text
//!   batch    | A0 | B0 | A1 | A2 | ARP | B1 |        up to 64 frames, in private memory
//!   groups     A: 0 -> 2 -> 3    B: 0 -> 1           chains of places, nothing is copied
//!   joined   | ARP | headers of A0', payload of A0, A1, A2 | headers of B0', ... |
//! ```
//!
//! A pure function over one batch: every group ends with it at the latest, so no frame waits for
//! another that may not come. Frames of one flow keep their order; different flows may change
//! places.
//!
//! Joined are only segments that a sender could have cut from one frame: cutting the result gives
//! them back, byte for byte. So headers must be equal but for what cutting changes; the
//! acknowledgement number, window and options with their timestamps are not changed by it. The
//! checksums of what is joined are right, whoever looked: the result is left with its checksum
//! open, by which the guest may take it for verified (NET-RX-16).

mod group;

use crate::header::{GsoRequest, Offloads, Request};
use group::{Candidate, Flow, Group};

/// The most frames of one batch.
pub const ARRIVALS_MAX: usize = 64;
/// The most bytes of headers of a joined frame: Ethernet with two tags, IPv6, TCP with options.
pub const JOINED_HEADERS_MAX: usize = 128;
/// The most flows that are joined at one time.
const FLOWS_MAX: usize = 8;
/// No place: the end of a group.
const END: u8 = u8::MAX;

/// A frame that has arrived, in private memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrival<'f> {
    /// The frame from its Ethernet header on.
    pub bytes: &'f [u8],
    /// What is left open in it.
    pub request: Request,
    /// Bytes of all headers, or 0 where nobody has looked.
    pub header_len: u16,
    /// Its checksum has been validated.
    pub validated: bool,
}

/// A frame to deliver: several joined, or one as it came.
#[derive(Debug)]
pub struct Joined<'j, 'f> {
    arrivals: &'j [Arrival<'f>],
    next: &'j [u8; ARRIVALS_MAX],
    first: u8,
    segments: u16,
    header: &'j [u8],
    len: u32,
    request: Request,
    validated: bool,
}

impl<'j, 'f> Joined<'j, 'f> {
    /// How many frames it was; 1 for one as it came.
    #[must_use]
    pub const fn segments(&self) -> u16 {
        self.segments
    }

    /// Bytes of the frame.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a frame has bytes")]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// What is left open in it.
    #[must_use]
    pub const fn request(&self) -> Request {
        self.request
    }

    /// Bytes of all headers, or 0 where nobody has looked.
    #[must_use]
    pub fn header_len(&self) -> u16 {
        match u16::try_from(self.header.len()) {
            Ok(len @ 1..) => len,
            Ok(0) | Err(_) => self.arrival(self.first).header_len,
        }
    }

    /// Its checksum has been validated.
    #[must_use]
    pub const fn validated(&self) -> bool {
        self.validated
    }

    /// The places in the batch of the frames that it is made of, in their order.
    pub fn places(&self) -> impl Iterator<Item = usize> + use<'j, 'f> {
        let next = self.next;
        let chain = core::iter::successors(Some(self.first), move |at| {
            next.get(usize::from(*at)).copied().filter(|at| *at != END)
        });
        chain.take(self.segments.into()).map(usize::from)
    }

    /// The frame's bytes in pieces, to be put one behind the other: [`ARRIVALS_MAX`] and one more
    /// at most.
    pub fn pieces(&self) -> impl Iterator<Item = &'j [u8]> + use<'j, 'f>
    where
        'f: 'j,
    {
        let (arrivals, header) = (self.arrivals, self.header);
        let payloads = self.places().filter_map(move |at| arrivals.get(at)).map(move |arrival| {
            let bytes: &'j [u8] = arrival.bytes;
            bytes.get(header.len()..).unwrap_or(&[])
        });
        core::iter::once(header).chain(payloads)
    }

    fn arrival(&self, at: u8) -> Arrival<'f> {
        self.arrivals.get(usize::from(at)).copied().unwrap_or_default()
    }
}

/// Joins what can be joined of a batch for a guest that takes frames as `can` says, and gives
/// each frame to `deliver`. Of more than [`ARRIVALS_MAX`] frames only the first so many are taken.
pub fn coalesce<'f>(arrivals: &[Arrival<'f>], can: Offloads, deliver: impl FnMut(&Joined<'_, 'f>)) {
    let arrivals = arrivals.get(..ARRIVALS_MAX).unwrap_or(arrivals);
    Batch { arrivals, next: [END; ARRIVALS_MAX], groups: [None; FLOWS_MAX], turn: 0, deliver }
        .run(can);
}

/// A batch in work.
struct Batch<'a, 'f, D> {
    arrivals: &'a [Arrival<'f>],
    /// For each frame the next one of its group.
    next: [u8; ARRIVALS_MAX],
    groups: [Option<Group>; FLOWS_MAX],
    /// The slot that has to go when another is wanted.
    turn: usize,
    deliver: D,
}

impl<'f, D: FnMut(&Joined<'_, 'f>)> Batch<'_, 'f, D> {
    fn run(&mut self, can: Offloads) {
        for (place, arrival) in (0_u8..).zip(self.arrivals) {
            match Flow::of(arrival) {
                // Nothing that has an order among itself.
                Flow::None => self.pass(place, arrival.validated),
                // Whose frame it is cannot be told: all before it go first.
                Flow::Unknown => {
                    self.close_all();
                    self.pass(place, arrival.validated);
                }
                Flow::Of(candidate) => self.add(place, &candidate, can),
            }
        }
        self.close_all();
    }

    /// A frame of a known flow: joined to its group, or the first of a new one, or passed on after
    /// what has come before.
    fn add(&mut self, place: u8, new: &Candidate<'_>, can: Offloads) {
        let arrivals = self.arrivals;
        let bytes_of = |group: &Group| {
            arrivals.get(usize::from(group.first)).map_or::<&[u8], _>(&[], |first| first.bytes)
        };
        let same = |group: &Group| new.is_of_flow(group, bytes_of(group));
        let slot = self.groups.iter().position(|slot| slot.as_ref().is_some_and(same));
        if let Some(slot) = slot {
            if let Some(Some(group)) = self.groups.get_mut(slot)
                && new.follows(group, bytes_of(group))
                && new.is_right()
            {
                if let Some(next) = self.next.get_mut(usize::from(group.last)) {
                    *next = place;
                }
                if group.append(place, new) {
                    self.close(slot);
                }
                return;
            }
            self.close(slot);
        }
        if !new.may_begin(can) || !new.is_right() {
            return self.pass(place, new.validated);
        }
        let free = self.groups.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.turn = self.turn.wrapping_add(1) % FLOWS_MAX;
            self.turn
        });
        self.close(slot);
        if let Some(slot) = self.groups.get_mut(slot) {
            *slot = Some(new.begin(place));
        }
    }

    /// Delivers all groups, the one that began first before the others.
    fn close_all(&mut self) {
        for _ in 0..FLOWS_MAX {
            let begun = |(slot, group): (usize, &Option<Group>)| {
                group.as_ref().map(|group| (group.first, slot))
            };
            let Some((_, slot)) = self.groups.iter().enumerate().filter_map(begun).min() else {
                return;
            };
            self.close(slot);
        }
    }

    /// Delivers a group, if there is one in the slot.
    fn close(&mut self, slot: usize) {
        let Some(group) = self.groups.get_mut(slot).and_then(Option::take) else { return };
        let first = self.arrivals.get(usize::from(group.first)).map(|first| first.bytes);
        let mut room = [0; JOINED_HEADERS_MAX];
        let header = match first {
            Some(first) if group.segments > 1 => group.write_headers(first, &mut room),
            Some(_) | None => None,
        };
        // One alone goes as it came; at least its checksum has been looked at.
        let Some(header) = header else { return self.pass(group.first, true) };
        let request = Request {
            csum: Some(group.csum()),
            gso: Some(GsoRequest { kind: group.kind, size: group.size, ecn: group.ecn }),
            tunnel: None,
        };
        let len = header.len().saturating_add(usize::from(group.total));
        (self.deliver)(&Joined {
            arrivals: self.arrivals,
            next: &self.next,
            first: group.first,
            segments: group.segments,
            header,
            len: u32::try_from(len).unwrap_or(u32::MAX),
            request,
            validated: true,
        });
    }

    /// Delivers a frame as it came.
    fn pass(&mut self, place: u8, validated: bool) {
        let Some(arrival) = self.arrivals.get(usize::from(place)) else { return };
        (self.deliver)(&Joined {
            arrivals: self.arrivals,
            next: &self.next,
            first: place,
            segments: 1,
            header: &[],
            len: u32::try_from(arrival.bytes.len()).unwrap_or(u32::MAX),
            request: arrival.request,
            validated,
        });
    }
}
