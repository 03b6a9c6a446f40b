//! What a device should find at a head of a split ring: the rules once more, in the plainest way.
//!
//! Written for reading, not for speed, and without looking at the queue's own walk: the two are
//! compared. It re-reads guest memory as it likes, so it is no model of a good device.

use vionet_queue::{CHAIN_MAX, Fault, QueueSetup};
use vionet_spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};

use crate::{Buffer, GuestRam};

/// A chain as it should be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Its head.
    pub head: u16,
    /// Its buffers, in order.
    pub buffers: Vec<Buffer>,
}

impl Judged {
    /// All bytes of the chain.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.buffers.iter().map(|buffer| u64::from(buffer.len)).sum()
    }
}

/// A chain that breaks a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The rule.
    pub fault: Fault,
    /// Good buffers before it.
    pub buffers: usize,
}

struct Entry {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

fn entry(ram: &GuestRam, at: u64) -> Option<Entry> {
    let bytes = ram.holds(at, 16).then(|| ram.read(at, 16))?;
    let number = |from: usize, to: usize| {
        bytes[from..to].iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    Some(Entry {
        addr: number(0, 8),
        len: number(8, 12) as u32,
        flags: number(12, 14) as u16,
        next: number(14, 16) as u16,
    })
}

/// The chain at available position `position`, or the rule it breaks.
///
/// # Errors
/// The first broken rule in the order of the walk.
pub fn judge(
    ram: &GuestRam,
    setup: &QueueSetup,
    indirect: bool,
    writable: bool,
    position: u16,
) -> Result<Judged, Broken> {
    let mut chain = Judged { head: 0, buffers: Vec::new() };
    match walk(ram, setup, indirect, writable, position, &mut chain) {
        Ok(()) => Ok(chain),
        Err(fault) => Err(Broken { fault, buffers: chain.buffers.len() }),
    }
}

fn walk(
    ram: &GuestRam,
    setup: &QueueSetup,
    indirect: bool,
    writable: bool,
    position: u16,
    chain: &mut Judged,
) -> Result<(), Fault> {
    let slot = u64::from(position % setup.size);
    let head = ram.read_u16(setup.driver.0 + 4 + 2 * slot);
    if head >= setup.size {
        return Err(Fault::HeadOutOfRange);
    }
    chain.head = head;
    let (mut table, mut entries, mut inside) = (setup.descriptors.0, u32::from(setup.size), false);
    let (mut index, mut seen) = (head, 0);
    loop {
        let at = table.checked_add(16 * u64::from(index)).ok_or(Fault::IndirectUnmapped)?;
        if seen >= entries || chain.buffers.len() >= usize::from(CHAIN_MAX) {
            return Err(Fault::ChainTooLong);
        }
        let entry = entry(ram, at).ok_or(Fault::IndirectUnmapped)?;
        if entry.flags & DESC_F_INDIRECT != 0 {
            check_pointer(ram, &entry, indirect, inside)?;
            (table, entries, inside) = (entry.addr, entry.len / 16, true);
            (index, seen) = (0, 0);
            continue;
        }
        let buffer =
            Buffer { at: entry.addr, len: entry.len, writable: entry.flags & DESC_F_WRITE != 0 };
        if buffer.writable != writable {
            return Err(match (writable, chain.buffers.is_empty()) {
                (false, _) => Fault::WritableInTransmit,
                (true, true) => Fault::ReadableInReceive,
                (true, false) => Fault::ReadableAfterWritable,
            });
        }
        if buffer.len == 0 {
            return Err(Fault::BufferEmpty);
        }
        if chain.bytes() + u64::from(buffer.len) > u64::from(u32::MAX) {
            return Err(Fault::TooManyBytes);
        }
        if !ram.holds(buffer.at, buffer.len) {
            return Err(Fault::BufferUnmapped);
        }
        chain.buffers.push(buffer);
        if entry.flags & DESC_F_NEXT == 0 {
            return Ok(());
        }
        seen += 1;
        index = entry.next;
        if u32::from(index) >= entries {
            return Err(Fault::NextOutOfRange);
        }
    }
}

/// A descriptor that points to a table.
fn check_pointer(ram: &GuestRam, entry: &Entry, indirect: bool, inside: bool) -> Result<(), Fault> {
    if inside {
        return Err(Fault::IndirectNested);
    }
    if !indirect {
        return Err(Fault::IndirectNotAgreed);
    }
    if entry.flags & DESC_F_NEXT != 0 {
        return Err(Fault::IndirectWithNext);
    }
    let most = 16 * u32::from(CHAIN_MAX);
    if entry.len == 0 || !entry.len.is_multiple_of(16) || entry.len > most {
        return Err(Fault::IndirectLength);
    }
    if !ram.holds(entry.addr, entry.len) {
        return Err(Fault::IndirectUnmapped);
    }
    Ok(())
}
