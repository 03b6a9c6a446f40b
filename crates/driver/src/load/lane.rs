//! The two ends of a load: what sends frames into a transmit queue, and what takes them from a
//! receive queue.

use std::collections::VecDeque;

use super::frames::{self, FRAME_HEAD, Stamp};
use super::histogram::Histogram;
use crate::error::GuestError;
use crate::port::{HEAD, Port};

/// Bytes of a virtio header and of the head of a frame.
const LOOK: usize = 12 + FRAME_HEAD;

/// Counts since the queue was started.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    pub(super) frames: u64,
    pub(super) bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u32) {
        self.frames = self.frames.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(bytes.into());
    }
}

/// What is written into each frame before it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writing {
    /// Nothing: all are alike.
    Nothing,
    /// Its number and time.
    Stamp,
    /// All of it.
    Whole,
}

/// Fills the transmit queue.
pub(super) struct Sender {
    writing: Writing,
    addresses: [[u8; 6]; 2],
    /// Frame lengths, in turn.
    sizes: Vec<u32>,
    turn: usize,
    free: VecDeque<u16>,
    frame: Vec<u8>,
    next: u64,
    /// Frames whose buffers have come back: the device has taken them.
    pub(super) taken: Count,
    /// Frame lengths by buffer, while the device has it.
    lengths: Vec<u32>,
}

impl Sender {
    /// A sender from the second address to the first; every buffer is filled once.
    pub(super) fn new(
        port: &mut Port,
        entries: u16,
        sizes: &[u32],
        writing: Writing,
        addresses: [[u8; 6]; 2],
    ) -> Result<Self, GuestError> {
        let longest = sizes.iter().copied().max().unwrap_or(0);
        let mut frame = vec![0; usize::try_from(longest).unwrap_or(0)];
        let [to, from] = addresses;
        frames::write(&mut frame, to, from, Stamp { number: 0, at: 0 });
        for index in 0..entries {
            let at = port.tx_at(index);
            port.memory.write(at, &[0; 12])?;
            port.memory.write(at.saturating_add(HEAD.into()), &frame)?;
        }
        Ok(Self {
            writing,
            addresses,
            sizes: sizes.to_vec(),
            turn: 0,
            free: (0..entries).collect(),
            frame,
            next: 0,
            taken: Count::default(),
            lengths: vec![0; usize::from(entries)],
        })
    }

    /// Frames lent so far.
    pub(super) fn sent(&self) -> u64 {
        self.next
    }

    /// Takes back what the device has used; whether there was any.
    pub(super) fn reclaim(&mut self, port: &mut Port) -> Result<bool, GuestError> {
        let before = self.free.len();
        while let Some((index, written)) = port.tx.used()? {
            if written != 0 {
                return Err(GuestError::Device("a transmit buffer is said to be written"));
            }
            self.taken.add(self.lengths.get(usize::from(index)).copied().unwrap_or(0));
            self.free.push_back(index);
        }
        Ok(self.free.len() != before)
    }

    /// Lends up to `limit` frames, not yet visible; `at` tells when each was to be sent. How many.
    pub(super) fn send(
        &mut self,
        port: &mut Port,
        limit: u64,
        at: impl Fn(u64) -> u64,
    ) -> Result<u64, GuestError> {
        let mut sent = 0;
        while sent < limit {
            let Some(index) = self.free.pop_front() else { break };
            let size = self.sizes.get(self.turn).copied().unwrap_or(0);
            self.turn = self.turn.wrapping_add(1);
            if self.turn >= self.sizes.len() {
                self.turn = 0;
            }
            let place = port.tx_at(index);
            self.write(port, place.saturating_add(HEAD.into()), size, at(self.next))?;
            port.tx.lend(index, place, HEAD.saturating_add(size));
            if let Some(length) = self.lengths.get_mut(usize::from(index)) {
                *length = size;
            }
            self.next = self.next.wrapping_add(1);
            sent = sent.wrapping_add(1);
        }
        Ok(sent)
    }

    fn write(&mut self, port: &mut Port, place: u64, size: u32, at: u64) -> Result<(), GuestError> {
        let stamp = Stamp { number: self.next, at };
        match self.writing {
            Writing::Nothing => Ok(()),
            Writing::Stamp => port.memory.write(place.saturating_add(16), &stamp.bytes()),
            Writing::Whole => {
                let [to, from] = self.addresses;
                let len = usize::try_from(size).unwrap_or(0);
                let frame = self.frame.get_mut(..len).unwrap_or(&mut []);
                frames::write(frame, to, from, stamp);
                port.memory.write(place, frame)
            }
        }
    }
}

/// What is looked at in each frame that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// How long it is.
    Length,
    /// Its number and time.
    Stamp,
    /// All of it.
    Whole,
}

/// Empties the receive queue.
pub(super) struct Receiver {
    reading: Reading,
    mergeable: bool,
    buffer_len: u32,
    /// Frame lengths, in turn.
    sizes: Vec<u32>,
    /// Pieces of one frame, gathered.
    frame: Vec<u8>,
    /// The number that should come next.
    expected: u64,
    pub(super) got: Count,
    /// Frames that bear no mark of ours.
    pub(super) foreign: u64,
    /// Frames that came after a later one, or twice.
    pub(super) disorder: u64,
    /// Frames whose filling is not what was sent.
    pub(super) damaged: u64,
    /// From when a frame was to be sent until it was seen, while this is wanted.
    pub(super) latency: Option<Histogram>,
}

impl Receiver {
    pub(super) fn new(reading: Reading, mergeable: bool, buffer_len: u32, sizes: &[u32]) -> Self {
        Self {
            reading,
            mergeable,
            buffer_len,
            sizes: sizes.to_vec(),
            frame: Vec::new(),
            expected: 0,
            got: Count::default(),
            foreign: 0,
            disorder: 0,
            damaged: 0,
            latency: None,
        }
    }

    /// Takes up to `limit` frames and lends their buffers again, not yet visible; how many.
    pub(super) fn receive(
        &mut self,
        port: &mut Port,
        limit: u64,
        now: u64,
    ) -> Result<u64, GuestError> {
        let mut count = 0;
        while count < limit {
            let Some((index, len)) = port.rx.used()? else { break };
            self.one(port, index, len, now)?;
            count = count.wrapping_add(1);
        }
        Ok(count)
    }

    fn one(&mut self, port: &mut Port, index: u16, len: u32, now: u64) -> Result<(), GuestError> {
        if len < HEAD || len > self.buffer_len {
            return Err(GuestError::Device("a received frame of an impossible length"));
        }
        let mut bytes = len.saturating_sub(HEAD);
        if self.reading == Reading::Length && !self.mergeable {
            port.post(index);
            self.got.add(bytes);
            return Ok(());
        }
        let mut look = [0; LOOK];
        let held = usize::try_from(len).unwrap_or(0).min(LOOK);
        let at = port.rx_at(index);
        port.memory.read(at, look.get_mut(..held).unwrap_or(&mut []))?;
        let [_, _, _, _, _, _, _, _, _, _, n0, n1, ref head @ ..] = look;
        if self.reading == Reading::Whole {
            self.frame.clear();
            self.gather(port, at.saturating_add(HEAD.into()), bytes)?;
        }
        port.post(index);
        let buffers = if self.mergeable { u16::from_le_bytes([n0, n1]) } else { 1 };
        if buffers == 0 {
            return Err(GuestError::Device("num_buffers is 0"));
        }
        for _ in 1..buffers {
            // All buffers of a frame become visible together (VIRTIO 1.4 §5.1.9.3.1).
            let next = port.rx.used()?;
            let (index, len) = next.ok_or(GuestError::Device("num_buffers promises too much"))?;
            if len > self.buffer_len {
                return Err(GuestError::Device("more bytes than the buffer has"));
            }
            if self.reading == Reading::Whole {
                self.gather(port, port.rx_at(index), len)?;
            }
            port.post(index);
            bytes = bytes.saturating_add(len);
        }
        if self.reading == Reading::Length {
            self.got.add(bytes);
        } else {
            self.judge(head, bytes, now);
        }
        Ok(())
    }

    /// Adds bytes of a buffer to the frame that is looked at.
    fn gather(&mut self, port: &mut Port, at: u64, len: u32) -> Result<(), GuestError> {
        let start = self.frame.len();
        self.frame.resize(start.saturating_add(usize::try_from(len).unwrap_or(0)), 0);
        port.memory.read(at, self.frame.get_mut(start..).unwrap_or(&mut []))
    }

    fn judge(&mut self, head: &[u8; FRAME_HEAD], bytes: u32, now: u64) {
        let Some(stamp) = Stamp::of(head) else {
            self.foreign = self.foreign.wrapping_add(1);
            return;
        };
        self.got.add(bytes);
        if stamp.number < self.expected {
            self.disorder = self.disorder.wrapping_add(1);
        } else {
            self.expected = stamp.number.wrapping_add(1);
        }
        if self.reading == Reading::Whole && !self.is_whole(stamp.number, bytes) {
            self.damaged = self.damaged.wrapping_add(1);
        }
        if let Some(latency) = &mut self.latency {
            latency.add(now.saturating_sub(stamp.at));
        }
    }

    fn is_whole(&self, number: u64, bytes: u32) -> bool {
        let count = u64::try_from(self.sizes.len()).unwrap_or(1);
        let turn = usize::try_from(number.checked_rem(count).unwrap_or(0)).unwrap_or(0);
        self.sizes.get(turn) == Some(&bytes) && frames::is_whole(&self.frame, number)
    }
}
