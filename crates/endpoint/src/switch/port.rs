//! A port at work: where each frame of a batch goes, and how it gets there.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vionet::endpoint::{
    Delivery, EndpointFault, EndpointQueue, Inlet, Refused, RxHeader, RxSink, TxBatch, TxFrame,
    Watch,
};
use vionet::stats::DropReason;
use vionet_frame::checksum::complete;
use vionet_frame::header::{Offloads, Tunnel};
use vionet_frame::segment::{SEGMENT_HEADERS_MAX, Segments, is_summed_as_said};
use vionet_raw::{ReadSpan, copy_out};
use vionet_spec::net::FRAME_MAX;

use super::table::{Mac, PortNumber, Source};
use super::{Fabric, Outlet, join};

/// Frames of one batch that are looked at together.
pub(super) const BATCH: usize = 64;
/// Bytes that one step copies, to all ports together: so long the other guests of this worker wait,
/// and whoever wants the pair back. A storm of long frames would be a gigabyte.
const STEP_MAX: u64 = 8 << 20;
/// What of a frame decides where it goes: both addresses.
pub(super) const HEAD: usize = 12;

/// New addresses that a port learns in a second: learning is dear, and the guest can invent them.
const NEW_MAX: u16 = 64;

/// Where a frame goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    /// Behind this port; nowhere, if that is where it came from.
    Port(PortNumber),
    Everyone,
    /// Its source address is another port's.
    Spoofed,
}

/// The addresses of a frame as they were seen, and what follows from them.
#[derive(Clone, Copy)]
struct Seen {
    head: [u8; HEAD],
    target: Target,
}

pub(super) struct PortQueue {
    fabric: Arc<Fabric>,
    port: PortNumber,
    isolated: bool,
    inlet: Arc<Inlet>,
    /// The open ports as of `version`.
    outlets: Arc<[Outlet]>,
    version: u64,
    seen: Box<[Seen; BATCH]>,
    /// Addresses learned in this second.
    learned: (u32, u16),
    /// A frame that is finished before it goes to a guest that could not do it.
    frame: Box<[u8]>,
}

impl PortQueue {
    pub(super) fn new(
        fabric: Arc<Fabric>,
        port: PortNumber,
        isolated: bool,
        inlet: Arc<Inlet>,
    ) -> Self {
        let seen = Box::new([Seen { head: [0; HEAD], target: Target::Everyone }; BATCH]);
        let frame = vec![0; FRAME_MAX].into_boxed_slice();
        let outlets = Arc::default();
        Self { fabric, port, isolated, inlet, outlets, version: 0, seen, learned: (0, 0), frame }
    }

    /// Reads the addresses of each frame once, and decides.
    fn look(&mut self, batch: &TxBatch<'_>, frames: &[TxFrame]) {
        let now = u32::try_from(batch.now().nanos().checked_div(1_000_000_000).unwrap_or(0))
            .unwrap_or(u32::MAX);
        let Self { fabric, port, seen, learned, .. } = self;
        if learned.0 != now {
            *learned = (now, 0);
        }
        // All are fetched at once: one after the other, each would be waited for.
        for first in frames.iter().filter_map(|frame| batch.bytes(frame).first()) {
            first.prefetch();
        }
        let mut last: Option<Seen> = None;
        for (frame, seen) in frames.iter().zip(seen.iter_mut()) {
            let head = head_of(batch.bytes(frame));
            // Frames of a flow come together.
            if let Some(last) = last.filter(|last| last.head == head) {
                *seen = last;
                continue;
            }
            let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = head;
            let to = Mac::new([d0, d1, d2, d3, d4, d5]);
            let from = Mac::new([s0, s1, s2, s3, s4, s5]);
            let source = fabric.table.source(from, *port, now);
            if source == Source::New && learned.1 < NEW_MAX {
                learned.1 = learned.1.saturating_add(1);
                fabric.table.learn(from, *port, now);
            }
            let target = if source == Source::Anothers {
                Target::Spoofed
            } else if to.is_group() {
                Target::Everyone
            } else {
                fabric.table.port_of(to, now).map_or(Target::Everyone, Target::Port)
            };
            *seen = Seen { head, target };
            last = Some(*seen);
        }
    }

    /// The first of `frames` that may be handed over when `left` bytes may be copied, one at least;
    /// and the bytes it takes.
    fn share<'f>(&self, frames: &'f [TxFrame], left: u64) -> (&'f [TxFrame], u64) {
        let ports = u64::try_from(self.outlets.len()).unwrap_or(u64::MAX);
        let (mut count, mut bytes) = (0_usize, 0_u64);
        for (frame, seen) in frames.iter().zip(self.seen.iter()) {
            let copies = if seen.target == Target::Everyone { ports } else { 1 };
            let more = bytes.saturating_add(u64::from(frame.len).saturating_mul(copies));
            if count > 0 && more > left {
                break;
            }
            (count, bytes) = (count.saturating_add(1), more);
        }
        (frames.get(..count).unwrap_or(frames), bytes)
    }

    /// Pushes what is meant for one port; one inlet of it is locked, once.
    fn deliver(&mut self, outlet: &Outlet, batch: &TxBatch<'_>, frames: &[TxFrame]) {
        let Self { seen, frame: room, .. } = self;
        let meant = |target| target == Target::Everyone || target == Target::Port(outlet.port);
        if !seen.iter().take(frames.len()).any(|seen| meant(seen.target)) {
            return;
        }
        let can = outlet.receive;
        let mut push = |sink: &mut RxSink<'_>| {
            let all = frames.iter().zip(seen.iter()).filter(|(_, seen)| meant(seen.target));
            let all = all.map(|(frame, seen)| (frame, &seen.head, batch.bytes(frame)));
            if !can.intersection(Offloads::TSO4 | Offloads::TSO6).is_empty() {
                return join::deliver(sink, &mut all.peekable(), can, room);
            }
            all.for_each(|frame| hand_over(sink, frame, can, room));
        };
        // A pair whose queue is stopped takes nothing, and keeps nothing from the others. A port
        // whose guest is not there is one without a cable.
        for inlet in &outlet.inlets {
            match inlet.deliver(batch.now(), &mut push) {
                Delivery::Done => return,
                Delivery::Closed => {}
            }
        }
    }

    /// Counts every frame, first to last, as sent or as what kept it.
    fn settle(&self, batch: &mut TxBatch<'_>, count: usize) {
        let mut rest = self.seen.get(..count).unwrap_or(&[]);
        while let Some(first) = rest.first() {
            let spoofed = first.target == Target::Spoofed;
            let run =
                rest.iter().take_while(|seen| (seen.target == Target::Spoofed) == spoofed).count();
            if spoofed {
                batch.dropped(run, DropReason::Spoofed);
            } else {
                batch.sent(run);
            }
            rest = rest.get(run..).unwrap_or(&[]);
        }
    }
}

/// The addresses of a frame; zeroes where a guest has cut it short.
#[inline]
fn head_of(bytes: &[ReadSpan<'_>]) -> [u8; HEAD] {
    if let Some(head) = bytes.first().and_then(ReadSpan::read) {
        return head;
    }
    let mut head = [0; HEAD];
    copy_out(bytes, 0, &mut head);
    head
}

/// A frame of a batch, its addresses as they were seen, and where its bytes lie.
pub(super) type Given<'b> = (&'b TxFrame, &'b [u8; HEAD], &'b [ReadSpan<'b>]);

/// Gives a frame to a guest, as it is if the guest can finish it.
#[inline]
pub(super) fn hand_over(sink: &mut RxSink<'_>, given: Given<'_>, can: Offloads, room: &mut [u8]) {
    let (frame, head, bytes) = given;
    let request = frame.request;
    if !request.needs().is_subset(can) {
        return finish(sink, given, can, room);
    }
    if let Some(tunnel) = &request.tunnel {
        return hand_over_tunnel(sink, given, tunnel, can, room);
    }
    let header = RxHeader { request, ..RxHeader::default() };
    count(sink.push_checked(&header, frame.len, head, bytes), sink);
}

/// The same for a frame in a tunnel. With another outer checksum than its header says it is cut
/// here, as for a guest that takes no tunnels: each segment then has its right one.
#[cold]
fn hand_over_tunnel(
    sink: &mut RxSink<'_>,
    given: Given<'_>,
    tunnel: &Tunnel,
    can: Offloads,
    room: &mut [u8],
) {
    let (frame, _, bytes) = given;
    let mut front = [0; SEGMENT_HEADERS_MAX];
    let front = copy_seen(given, &mut front);
    if !is_summed_as_said(front, frame.len, tunnel) {
        return finish(sink, given, can, room);
    }
    let header = RxHeader { request: frame.request, ..RxHeader::default() };
    count(sink.push_checked(&header, frame.len, front, bytes), sink);
}

/// Gives a frame to a guest that would not take it as it is.
fn finish(sink: &mut RxSink<'_>, given: Given<'_>, can: Offloads, room: &mut [u8]) {
    let request = given.0.request;
    let len = usize::try_from(given.0.len).unwrap_or(usize::MAX);
    let Some(whole) = room.get_mut(..len) else { return sink.dropped(DropReason::TooLong) };
    let whole = copy_seen(given, whole);
    match (request.csum, request.gso) {
        (Some(_), Some(_)) => match Segments::new(whole, &request) {
            Ok(segments) => cut(sink, segments, can),
            Err(_) => sink.dropped(DropReason::Unparsable),
        },
        (Some(at), None) if complete(whole, at).is_ok() => {
            count(sink.push(&RxHeader::PLAIN, whole), sink);
        }
        (_, _) => sink.dropped(DropReason::Unparsable),
    }
}

/// Copies as much of a frame as there is room for: its addresses as they were seen, and the rest as
/// it is by now.
pub(super) fn copy_seen<'r>((_, head, bytes): Given<'_>, room: &'r mut [u8]) -> &'r mut [u8] {
    let len = copy_out(bytes, 0, room);
    let room = room.get_mut(..len).unwrap_or_default();
    room.iter_mut().zip(head).for_each(|(to, from)| *to = *from);
    room
}

/// Cuts a frame and pushes its segments.
fn cut(sink: &mut RxSink<'_>, mut segments: Segments<'_>, can: Offloads) {
    let mut headers = [0; SEGMENT_HEADERS_MAX];
    while let Some(segment) = segments.next_into(&mut headers) {
        let request = segment.finish(&mut headers, can);
        let payload = segment.payload;
        let front = headers.get(..segment.header_len).unwrap_or(&[]);
        let len = u32::try_from(front.len().saturating_add(payload.len())).unwrap_or(u32::MAX);
        let header = RxHeader { request, ..RxHeader::default() };
        let spans = [ReadSpan::local(front), ReadSpan::local(payload)];
        let pushed = sink.push_spans(&header, len, &spans);
        count(pushed, sink);
        if pushed == Err(Refused::Full) {
            return;
        }
    }
}

/// A guest without room loses the frame; what is dropped for another reason is counted already.
fn count(pushed: Result<(), Refused>, sink: &mut RxSink<'_>) {
    if pushed == Err(Refused::Full) {
        sink.dropped(DropReason::NoBuffer);
    }
}

impl EndpointQueue for PortQueue {
    fn transmit(&mut self, batch: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        if let Some(outlets) = self.fabric.news(&mut self.version) {
            self.outlets = outlets;
        }
        // What is left stays with the guest, and comes again in its next step.
        let mut left = STEP_MAX;
        while !batch.frames().is_empty() && left > 0 {
            let all = batch.frames();
            let frames = all.get(..BATCH).unwrap_or(all);
            self.look(batch, frames);
            let (frames, bytes) = self.share(frames, left);
            left = left.saturating_sub(bytes);
            for outlet in Arc::clone(&self.outlets).iter() {
                if outlet.port != self.port && !(self.isolated && outlet.isolated) {
                    self.deliver(outlet, batch, frames);
                }
            }
            self.settle(batch, frames.len());
        }
        Ok(())
    }

    fn receive(&mut self, _sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        Ok(())
    }

    fn watch(&self) -> Watch {
        Watch::default()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn inlet(&self) -> Option<Arc<Inlet>> {
        Some(Arc::clone(&self.inlet))
    }
}

impl Drop for PortQueue {
    fn drop(&mut self) {
        self.fabric.detach(&self.inlet);
    }
}
