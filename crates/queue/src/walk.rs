//! One buffer after another becomes a chain: what both ring formats share.

use vionet_spec::ring::DESC_F_WRITE;

use crate::chain::{Batch, Direction, Draft, Refused};
use crate::fault::Fault;

/// How the walk of one chain ended, or one step of it.
pub(crate) enum Walk {
    Done,
    /// The batch has no room; the chain stays in the ring.
    NoRoom,
    /// The platform has no translation yet; the chain stays in the ring.
    Missing,
}

/// Adds one buffer to the chain in the making.
#[inline]
pub(crate) fn add<D: Direction>(
    addr: u64,
    len: u32,
    flags: u16,
    batch: &mut Batch<D>,
    draft: &mut Draft,
) -> Result<Walk, Fault> {
    let writable = flags & DESC_F_WRITE != 0;
    if !D::MIXED && writable != D::WRITABLE {
        return Err(wrong_direction::<D>(draft));
    }
    if len == 0 {
        return Err(Fault::BufferEmpty);
    }
    let added = if D::MIXED {
        if !writable && draft.is_past_lead() {
            return Err(Fault::ReadableAfterWritable);
        }
        batch.extend_mixed(draft, addr, len, writable)
    } else {
        batch.extend(draft, addr, len)
    };
    match added {
        Ok(()) => Ok(Walk::Done),
        Err(Refused::Full) => Ok(Walk::NoRoom),
        Err(Refused::Missing) => Ok(Walk::Missing),
        Err(Refused::Unmapped) => Err(Fault::BufferUnmapped),
        Err(Refused::TooManyBytes) => Err(Fault::TooManyBytes),
    }
}

/// Forgets a chain for which there was no room; true when there may be room now.
#[cold]
pub(crate) fn no_room<D: Direction>(batch: &mut Batch<D>, draft: Draft) -> Result<bool, Fault> {
    batch.give_up(draft);
    if batch.is_empty() {
        return Err(Fault::ChainTooLong);
    }
    Ok(batch.compact())
}

/// A buffer that the other side of its queue would use: which rule is it that it breaks?
#[cold]
fn wrong_direction<D: Direction>(draft: &Draft) -> Fault {
    if !D::WRITABLE {
        Fault::WritableInTransmit
    } else if draft.is_empty() {
        Fault::ReadableInReceive
    } else {
        Fault::ReadableAfterWritable
    }
}
