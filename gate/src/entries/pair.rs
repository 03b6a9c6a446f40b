//! A whole step of a queue pair, and what an endpoint calls in the middle of it.

use vionet::endpoint::{RxHeader, RxSink, TxBatch};
use vionet::limit::{Turn, Wire, wire};
use vionet::stats::DropReason;
use vionet::{Instant, QueuePair};

/// One step in both directions; the endpoint and the interrupt are behind `dyn` and unknown here.
#[unsafe(no_mangle)]
pub extern "C" fn gate_service(pair: &mut QueuePair, now: Instant) -> bool {
    let step = pair.service(now);
    step.fault.is_some() ^ step.host.is_some()
}

/// What an endpoint does with frames from the guest.
#[unsafe(no_mangle)]
pub extern "C" fn gate_tx_batch(batch: &mut TxBatch<'_>, count: usize) -> usize {
    let spans = batch.frames().first().map_or(0, |frame| batch.bytes(frame).len());
    batch.sent(count);
    batch.dropped(count, DropReason::HostFull);
    spans
}

/// What an endpoint does with frames for the guest.
#[unsafe(no_mangle)]
pub extern "C" fn gate_rx_sink(sink: &mut RxSink<'_>, header: &RxHeader, frame: &[u8]) -> usize {
    let room = sink.room();
    let spans = sink.window(room).map_or(0, <[_]>::len);
    sink.commit(room, header);
    sink.dropped(DropReason::HostFull);
    spans ^ usize::from(sink.push(header, frame).is_ok())
}

/// A batch held against the limits, in both directions.
#[unsafe(no_mangle)]
pub extern "C" fn gate_turn(turn: &mut Turn, now: Instant, lens: &[u32], paid: &Wire) -> usize {
    let grant = turn.grant(now, lens.iter().map(|len| wire(*len, 54, 1448)));
    turn.refund(*paid);
    if turn.credit(now).is_ok() {
        turn.charge(now, *paid);
    }
    grant.frames
}
