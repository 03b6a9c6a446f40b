//! The verbs of `vionet-queue`, for both directions.

use vionet_queue::{Armed, Batch, DeviceReads, DeviceWrites, Direction, Published, Queue};

/// Transmit: take, give some back, the rest to the ring.
#[unsafe(no_mangle)]
pub extern "C" fn gate_queue_tx(queue: &mut Queue, batch: &mut Batch<DeviceReads>) -> usize {
    let spans = batch.row(0).map_or(0, |row| batch.lead(row).len() ^ batch.payload(row).len());
    spans ^ verbs(queue, batch)
}

/// Receive: the same, and the lengths written.
#[unsafe(no_mangle)]
pub extern "C" fn gate_queue_rx(queue: &mut Queue, batch: &mut Batch<DeviceWrites>) -> usize {
    let (first, last) = (batch.row(0), batch.row(1));
    let spans = match (first, last) {
        (Some(first), Some(last)) => batch.lead(first).len() ^ batch.payload(first, last).len(),
        _ => 0,
    };
    batch.set_written(spans, queue.size().into());
    spans ^ verbs(queue, batch)
}

#[inline(always)]
fn verbs<D: Direction>(queue: &mut Queue, batch: &mut Batch<D>) -> usize {
    let taken = queue.take(usize::from(queue.size()), batch).unwrap_or(0);
    queue.put(batch, taken / 2);
    queue.untake(batch);
    queue.disarm();
    let interrupt = queue.publish() == Published::Interrupt;
    let arrived = queue.arm() == Armed::WorkArrived || queue.has_work();
    taken ^ usize::from(interrupt) ^ usize::from(arrived)
}
