//! Frames on their way to the guest: a bounded queue in one block of memory.
//!
//! ```text
//!   | sent | frame | frame | frame | free ...                     |
//!          head                    tail
//! ```
//!
//! Nothing is allocated after the start. A frame that does not fit is dropped and counted: the
//! guest asked for more than it fetches, and will ask again.

use std::collections::VecDeque;

use vionet_frame::build::{IcmpHeader, Payload, Route, UdpHeader};
use vionet_frame::parse::{ETHERNET_LEN, ICMP_LEN, IPV4_LEN, IPV6_LEN, UDP_LEN};

/// The most frames that wait.
pub const REPLIES_MAX: usize = 64;
/// The most bytes that wait: two of the largest frames.
const BYTES_MAX: usize = 2 * (ETHERNET_LEN + 65_535);

/// Replies to the guest, first in first out.
#[derive(Debug)]
pub struct ReplyBuf {
    bytes: Box<[u8]>,
    /// Lengths of the frames that wait, in order.
    lens: VecDeque<usize>,
    head: usize,
    tail: usize,
    dropped: u64,
}

impl Default for ReplyBuf {
    fn default() -> Self {
        Self::new()
    }
}

impl ReplyBuf {
    /// An empty queue with all the memory it will ever use (128 KiB).
    #[must_use]
    pub fn new() -> Self {
        Self::with_room(BYTES_MAX)
    }

    /// The same with so many bytes of memory.
    pub(crate) fn with_room(bytes: usize) -> Self {
        Self {
            bytes: vec![0; bytes].into_boxed_slice(),
            lens: VecDeque::with_capacity(REPLIES_MAX),
            head: 0,
            tail: 0,
            dropped: 0,
        }
    }

    /// The frame that has waited longest, without virtio header; all checksums are complete.
    #[must_use]
    pub fn first(&self) -> Option<&[u8]> {
        let len = *self.lens.front()?;
        self.bytes.get(self.head..self.head.saturating_add(len))
    }

    /// Forgets the first frame.
    pub fn pop(&mut self) {
        if let Some(len) = self.lens.pop_front() {
            self.head = self.head.saturating_add(len);
        }
        if self.lens.is_empty() {
            (self.head, self.tail) = (0, 0);
        }
    }

    /// Forgets all frames, as when the guest resets its device.
    pub fn clear(&mut self) {
        self.lens.clear();
        (self.head, self.tail) = (0, 0);
    }

    /// Frames that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lens.len()
    }

    /// Whether no frame waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lens.is_empty()
    }

    /// Frames dropped so far because there was no room.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Queues a UDP datagram; whether there was room.
    pub fn udp(&mut self, route: &Route, header: &UdpHeader, payload: &[u8]) -> bool {
        let headers = headers_len(route, UDP_LEN);
        self.with_payload(headers, payload, |room| {
            route.udp(room, header, &Payload::Bytes(payload)).is_ok()
        })
    }

    /// Queues an ICMP or ICMPv6 message; whether there was room.
    pub fn icmp(&mut self, route: &Route, header: &IcmpHeader, payload: &[u8]) -> bool {
        let headers = headers_len(route, ICMP_LEN);
        self.with_payload(headers, payload, |room| {
            route.icmp(room, header, &Payload::Bytes(payload)).is_ok()
        })
    }

    fn with_payload(
        &mut self,
        headers: usize,
        payload: &[u8],
        write: impl FnOnce(&mut [u8]) -> bool,
    ) -> bool {
        self.push(headers.saturating_add(payload.len()), |room| {
            let Some((head, body)) = room.split_at_mut_checked(headers) else { return false };
            for (to, from) in body.iter_mut().zip(payload) {
                *to = *from;
            }
            write(head)
        })
    }

    /// Queues a frame of `len` bytes that `write` fills entirely; if it says no, nothing is queued.
    pub fn push(&mut self, len: usize, write: impl FnOnce(&mut [u8]) -> bool) -> bool {
        if self.tail.saturating_add(len) > self.bytes.len() && self.head > 0 {
            self.bytes.copy_within(self.head..self.tail, 0);
            (self.head, self.tail) = (0, self.tail.saturating_sub(self.head));
        }
        let end = self.tail.saturating_add(len);
        let room = match self.bytes.get_mut(self.tail..end) {
            Some(room) if self.lens.len() < REPLIES_MAX => room,
            _ => {
                self.dropped = self.dropped.saturating_add(1);
                return false;
            }
        };
        if !write(room) {
            return false;
        }
        self.lens.push_back(len);
        self.tail = end;
        true
    }
}

const fn headers_len(route: &Route, transport: usize) -> usize {
    let ip = if route.addresses.is_v4() { IPV4_LEN } else { IPV6_LEN };
    ETHERNET_LEN.saturating_add(ip).saturating_add(transport)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(out: &mut ReplyBuf, len: usize, mark: u8) -> bool {
        out.push(len, |room| {
            room.fill(mark);
            true
        })
    }

    #[test]
    fn frames_come_out_in_order_and_room_is_used_again() {
        let mut out = ReplyBuf::new();
        for round in 0..1000_u32 {
            let mark = (round % 251) as u8;
            assert!(put(&mut out, 60_000, mark));
            assert!(put(&mut out, 60_000, mark + 1));
            assert_eq!(out.first().unwrap(), [mark; 60_000]);
            out.pop();
            assert!(put(&mut out, 60_000, mark + 2), "the room of the first is free again");
            for wanted in [mark + 1, mark + 2] {
                assert_eq!(out.first().unwrap(), [wanted; 60_000]);
                out.pop();
            }
            assert!(out.is_empty());
        }
        assert_eq!(out.dropped(), 0);
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let mut out = ReplyBuf::new();
        assert!(!put(&mut out, BYTES_MAX + 1, 0));
        assert_eq!(out.dropped(), 1);
        for _ in 0..REPLIES_MAX {
            assert!(put(&mut out, 60, 7));
        }
        assert!(!put(&mut out, 60, 7));
        assert_eq!((out.len(), out.dropped()), (REPLIES_MAX, 2));
        out.clear();
        assert!(out.first().is_none());
        out.pop();
        assert!(put(&mut out, 60, 7));
    }

    #[test]
    fn a_frame_that_could_not_be_written_leaves_no_trace() {
        let mut out = ReplyBuf::new();
        assert!(!out.push(60, |_| false));
        assert!(out.is_empty());
        assert_eq!(out.dropped(), 0);
    }
}
