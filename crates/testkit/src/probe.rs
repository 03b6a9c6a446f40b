//! The five verbs of a queue, each checked against guest memory and against [`judge`].

use std::collections::VecDeque;

use vionet_queue::{
    Armed, Batch, Cursor, DeviceReads, DeviceWrites, Direction, Fault, Published, Queue,
    QueueSetup, ROWS_MAX, RingFeatures, Row, SPANS_MAX,
};

use crate::{Broken, GuestRam, Judged, judge};

/// What a probe has to know of the spans of either direction.
pub trait Reach: Direction + Sized {
    /// Bytes in the spans of the row's lead and of its payload, after the first and the last byte
    /// of each span have been touched.
    fn reach(batch: &mut Batch<Self>, row: Row) -> (u64, u64);

    /// Says that the chain at `index` is completely written, if it can be.
    fn fill(_: &mut Batch<Self>, _: usize) {}
}

impl Reach for DeviceReads {
    fn reach(batch: &mut Batch<Self>, row: Row) -> (u64, u64) {
        let [lead, payload] = [batch.lead(row), batch.payload(row)].map(|spans| {
            for span in spans {
                let mut byte = [0];
                span.prefetch();
                assert_eq!(span.copy_to(0, &mut byte), 1, "a span has a byte");
                assert_eq!(span.copy_to(span.len() - 1, &mut byte), 1);
            }
            spans.iter().map(|span| span.len() as u64).sum()
        });
        (lead, payload)
    }
}

impl Reach for DeviceWrites {
    fn reach(batch: &mut Batch<Self>, row: Row) -> (u64, u64) {
        let [lead, payload] = [batch.lead(row), batch.payload(row, row)].map(|spans| {
            for span in spans {
                assert_eq!(span.copy_from(0, &[0xd0]), 1, "a span has a byte");
                assert_eq!(span.copy_from(span.len() - 1, &[0xd1]), 1);
            }
            spans.iter().map(|span| span.len() as u64).sum()
        });
        (lead, payload)
    }

    fn fill(batch: &mut Batch<Self>, index: usize) {
        let row = batch.row(index).expect("a row for each chain");
        batch.set_written(index, row.bytes());
    }
}

/// A queue, its batch, and what they owe.
pub struct Probe<D: Reach> {
    ram: GuestRam,
    setup: QueueSetup,
    features: RingFeatures,
    lead: u32,
    queue: Queue,
    batch: Batch<D>,
    /// Chains taken and not put, oldest first.
    held: VecDeque<Judged>,
    /// Next used entry to be written, and used.idx as it should be published.
    used: u16,
    published: u16,
    told: bool,
    /// avail.idx as it was whenever the queue may have looked.
    seen: Vec<u16>,
}

impl<D: Reach> Probe<D> {
    /// Activates the queue.
    ///
    /// # Errors
    /// The rule the setup breaks.
    pub fn new(
        ram: &GuestRam,
        setup: QueueSetup,
        features: RingFeatures,
        from: Cursor,
        lead: u32,
    ) -> Result<Self, Fault> {
        let queue = setup.activate(ram.space(), features, from)?;
        assert_eq!((queue.size(), queue.cursor()), (setup.size, from));
        Ok(Self {
            ram: ram.clone(),
            setup,
            features,
            lead,
            queue,
            batch: Batch::new(ram.space().clone(), lead),
            held: VecDeque::new(),
            used: from.used,
            published: from.used,
            told: false,
            seen: vec![from.avail],
        })
    }

    /// The queue, to look at.
    #[must_use]
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Chains taken and not put.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    fn avail_idx(&self) -> u16 {
        self.ram.read_u16(self.setup.driver.0 + 2)
    }

    fn judge(&self, position: u16) -> Result<Judged, Broken> {
        judge(&self.ram, &self.setup, self.features.indirect, D::WRITABLE, position)
    }

    /// Takes up to `limit` chains and compares them with what is in the ring.
    ///
    /// # Errors
    /// As the queue's own; it has been found to be right.
    pub fn take(&mut self, limit: usize) -> Result<usize, Fault> {
        let (latched, before) = (self.queue.fault(), self.batch.len());
        let from = self.queue.cursor().avail;
        self.seen.push(self.avail_idx());
        let result = self.queue.take(limit, &mut self.batch);
        let taken = self.batch.len() - before;
        assert!(taken <= limit, "took {taken} of {limit}");
        if let Some(fault) = latched {
            assert_eq!((result, taken), (Err(fault), 0), "a broken queue gives nothing out");
            return result;
        }
        let next = from.wrapping_add(taken as u16);
        assert_eq!(self.queue.cursor().avail, next);
        for index in 0..taken {
            let chain = self.judge(from.wrapping_add(index as u16));
            self.held.push_back(chain.expect("only good chains are taken"));
        }
        match result {
            Ok(count) => {
                assert_eq!(count, taken);
                assert!(taken == limit || self.may_stop_at(next), "stopped early at {next}");
            }
            Err(fault) => self.check_fault(fault, next),
        }
        self.look();
        result
    }

    /// Compares every row in the batch, and touches its ends.
    fn look(&mut self) {
        assert_eq!(self.batch.len(), self.held.len());
        assert_eq!(self.batch.is_empty(), self.held.is_empty());
        assert!(self.batch.row(self.batch.len()).is_none());
        for (index, chain) in self.held.iter().enumerate() {
            let row = self.batch.row(index).expect("a row for each chain");
            let bytes = u64::from(row.bytes());
            assert_eq!(bytes, chain.bytes());
            let lead = bytes.min(u64::from(self.lead));
            assert_eq!(row.has_lead(), bytes >= u64::from(self.lead));
            assert_eq!(u64::from(row.payload_bytes()), bytes - lead);
            assert_eq!(D::reach(&mut self.batch, row), (lead, bytes - lead));
        }
    }

    /// The ring is empty there, or the batch is full.
    fn may_stop_at(&self, position: u16) -> bool {
        let held = self.held.iter().map(|chain| spans(chain.buffers.len())).sum::<usize>();
        let full = || match self.judge(position) {
            Ok(chain) => held + spans(chain.buffers.len()) > SPANS_MAX,
            Err(broken) => held + spans(broken.buffers) > SPANS_MAX,
        };
        self.batch.len() == ROWS_MAX || self.seen.contains(&position) || full()
    }

    fn check_fault(&self, fault: Fault, at: u16) {
        assert_eq!(self.queue.fault(), Some(fault));
        let owed = self.held.len() + usize::from(self.used.wrapping_sub(self.published));
        let jumped =
            |idx: &u16| usize::from(idx.wrapping_sub(at)) + owed > usize::from(self.setup.size);
        let found = match self.judge(at) {
            _ if fault == Fault::IndexJump => {
                return assert!(self.seen.iter().any(jumped), "no jump at {at}");
            }
            Ok(chain) => chain.buffers.len(),
            Err(broken) if broken.fault == fault => return,
            Err(broken) => broken.buffers,
        };
        // A chain that would not even fit into an empty batch.
        assert!(fault == Fault::ChainTooLong && spans(found) > SPANS_MAX, "{fault}");
    }

    /// Gives back up to `count` chains as completely written (0 in transmit); checks the entries.
    pub fn put(&mut self, count: usize) {
        let count = count.min(self.held.len());
        for index in 0..count {
            D::fill(&mut self.batch, index);
        }
        self.queue.put(&mut self.batch, count);
        if self.features.in_order && !D::WRITABLE {
            self.check_in_order(count);
            return self.look();
        }
        for chain in self.held.drain(..count) {
            let slot = u64::from(self.used % self.setup.size);
            let at = self.setup.device.0 + 4 + 8 * slot;
            assert_eq!(self.ram.read_u32(at), u32::from(chain.head), "used.id");
            let written = if D::WRITABLE { chain.bytes() as u32 } else { 0 };
            assert_eq!(self.ram.read_u32(at + 4), written, "used.len");
            self.used = self.used.wrapping_add(1);
        }
        self.look();
    }

    /// One entry, in the first place that is not published, names the last chain (SPN-11).
    fn check_in_order(&mut self, count: usize) {
        let last = self.held.drain(..count).next_back();
        self.used = self.used.wrapping_add(count as u16);
        if let Some(last) = last {
            let slot = u64::from(self.published % self.setup.size);
            let at = self.setup.device.0 + 4 + 8 * slot;
            assert_eq!(self.ram.read_u32(at), u32::from(last.head), "used.id");
            assert_eq!(self.ram.read_u32(at + 4), 0, "used.len");
        }
    }

    /// Gives all chains left back to the ring.
    pub fn untake(&mut self) {
        let avail = self.queue.cursor().avail;
        self.queue.untake(&mut self.batch);
        let back = avail.wrapping_sub(self.held.len() as u16);
        assert_eq!(self.queue.cursor().avail, back);
        self.held.clear();
        assert!(self.batch.is_empty());
    }

    /// Publishes; checks the index and the decision (SPN-01 to SPN-06).
    pub fn publish(&mut self) -> Published {
        let device = self.setup.device.0;
        let answer = self.queue.publish();
        let (old, new) = (self.published, self.used);
        let flags = self.ram.read_u16(self.setup.driver.0);
        let event = self.ram.read_u16(self.setup.driver.0 + 4 + 2 * u64::from(self.setup.size));
        let entries = (0..new.wrapping_sub(old)).map(|step| old.wrapping_add(step));
        let wanted = match self.features.event_idx {
            true => !self.told || entries.clone().any(|entry| entry == event),
            false => flags & 1 == 0,
        };
        let expected = if wanted && new != old { Published::Interrupt } else { Published::Quiet };
        assert_eq!(answer, expected, "flags={flags} event={event} {old}..{new}");
        if new != old {
            assert_eq!(self.ram.read_u16(device + 2), new, "used.idx");
            self.told = true;
        }
        self.published = new;
        answer
    }

    /// Arms; checks that there is nothing to take when it is safe to sleep.
    pub fn arm(&mut self) -> Armed {
        let next = self.queue.cursor().avail;
        let armed = self.queue.arm();
        self.seen.push(self.avail_idx());
        let expected = if self.avail_idx() == next { Armed::Sleep } else { Armed::WorkArrived };
        assert_eq!(armed, expected);
        if self.features.event_idx {
            let at = self.setup.device.0 + 4 + 8 * u64::from(self.setup.size);
            assert_eq!(self.ram.read_u16(at), next, "avail_event");
        }
        assert_eq!(self.ram.read_u16(self.setup.device.0), 0, "used.flags");
        armed
    }

    /// Wants no kicks.
    pub fn disarm(&mut self) {
        self.queue.disarm();
    }

    /// Whether the queue says that there is work.
    pub fn has_work(&mut self) -> bool {
        self.seen.push(self.avail_idx());
        self.queue.has_work()
    }

    /// Gives everything back, publishes and stops.
    pub fn stop(mut self) -> Cursor {
        self.untake();
        let _ = self.publish();
        let cursor = self.queue.cursor();
        assert_eq!(cursor.used, self.published);
        assert_eq!(self.queue.stop().expect("nothing is owed"), cursor);
        cursor
    }
}

/// The most spans that so many buffers can have: one more for the lead, two where regions touch.
const fn spans(buffers: usize) -> usize {
    2 + 2 * buffers
}
