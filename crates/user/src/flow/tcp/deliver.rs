//! To the guest: acknowledgements, and what the socket has, as far as window and room go.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use rustix::net::sockopt;
use vionet::Instant;
use vionet::endpoint::{Refused, RxHeader};
use vionet_frame::build::{HEADERS_MAX, Payload, TcpHeader};
use vionet_frame::parse::TcpFlags;
use vionet_raw::host::vector::{self, Flags};
use vionet_raw::{WriteSpan, copy_in};

use super::super::Port;
use super::{
    Fate, PIECES, SCALE, Shop, State, TcpFlow, Turn, WINDOW_POLL, WINDOW_SMALL, is_after, is_later,
};

/// Payload of one delivery at the most, headers included 64 KiB.
const PAYLOAD_MAX: u32 = 65_535 - 80;
/// Deliveries in one turn of a flow, before the others have theirs.
const TURN: usize = 16;

impl TcpFlow {
    /// Sends what is due and what the socket has, as far as there is room.
    pub(in super::super) fn turn(&mut self, port: &mut dyn Port, shop: &mut Shop<'_>) -> Turn {
        if self.state == State::Connecting {
            match sockopt::socket_error(&self.socket) {
                Ok(Ok(())) if self.acks_due > 0 => self.state = State::Answered,
                Ok(Ok(())) => return Turn::Idle,
                Ok(Err(_)) | Err(_) => return Turn::Ended(Fate::Reset),
            }
        }
        // Asked of the kernel once a turn, not once a segment.
        self.window_told = self.window();
        if self.state == State::Open {
            for _ in 0..TURN {
                match self.deliver(port, shop) {
                    Ok(Some(true)) => {}
                    Ok(Some(false)) => return self.acknowledge(port, shop, Turn::Idle),
                    Ok(None) => return Turn::NoRoom,
                    Err(_) => return Turn::Ended(Fate::Reset),
                }
            }
            return self.acknowledge(port, shop, Turn::More);
        }
        self.acknowledge(port, shop, Turn::Idle)
    }

    /// Sends the acknowledgements that are due, or the SYN.
    fn acknowledge(&mut self, port: &mut dyn Port, shop: &mut Shop<'_>, then: Turn) -> Turn {
        while self.acks_due > 0 {
            let flags = match self.state {
                State::Calling => TcpFlags::SYN,
                State::Answered => TcpFlags::SYN | TcpFlags::ACK,
                State::Connecting | State::Open => TcpFlags::ACK,
            };
            // A probe lies before the window, so that the guest has to answer.
            let is_probe = self.state == State::Open && self.guest_window == 0 && self.resends > 0;
            let seq = if is_probe { self.una.wrapping_sub(1) } else { self.next };
            if !self.send_bare(flags, seq, port) {
                return Turn::NoRoom;
            }
            self.acks_due = self.acks_due.saturating_sub(1);
            if self.state != State::Open {
                self.acks_due = 0;
                self.next = self.una.wrapping_add(1);
                self.most = self.next;
                self.wait_for_ack(shop.now);
            }
        }
        if self.window_told < WINDOW_SMALL && self.poll_at.is_none() && !self.guest_ended {
            self.poll_at = Some(shop.now.after(WINDOW_POLL));
        }
        if self.is_over() { Turn::Ended(Fate::Close) } else { then }
    }

    fn header(&self, flags: TcpFlags, seq: u32) -> TcpHeader {
        let is_syn = flags.contains(TcpFlags::SYN);
        let scales = self.guest_scale.is_some() || self.state == State::Calling;
        let shown = if !is_syn && scales { self.window_told >> SCALE } else { self.window_told };
        let (source, destination) = (self.key.remote.port(), self.key.guest.port());
        TcpHeader {
            source,
            destination,
            seq,
            ack: if flags.contains(TcpFlags::ACK) { self.take_next } else { 0 },
            flags,
            window: u16::try_from(shown).unwrap_or(u16::MAX),
            mss: is_syn.then(|| self.our_mss()),
            window_scale: (is_syn && scales).then_some(SCALE),
        }
    }

    /// The largest segment we take: the guest may leave any frame whole.
    fn our_mss(&self) -> u16 {
        const IPV4_HEADERS: u16 = 40;
        const IPV6_HEADERS: u16 = 60;
        let headers = if self.route.addresses.is_v4() { IPV4_HEADERS } else { IPV6_HEADERS };
        crate::config::MTU_MAX.saturating_sub(headers)
    }

    /// Sends a segment without payload; false when there is no room.
    fn send_bare(&mut self, flags: TcpFlags, seq: u32, port: &mut dyn Port) -> bool {
        let header = self.header(flags, seq);
        let mut room = [0; HEADERS_MAX];
        let Ok(built) = self.route.tcp(&mut room, &header, &Payload::Bytes(&[])) else {
            return true;
        };
        let frame = room.get(..built.len).unwrap_or(&[]);
        port.push(&RxHeader::default(), frame) != Err(Refused::Full)
    }

    /// Sends the guest a RST, once; if there is no room the guest finds out by itself.
    pub(in super::super) fn send_reset(&mut self, port: &mut dyn Port) {
        let flags = TcpFlags::RST | TcpFlags::ACK;
        let seq = self.next;
        let (true | false) = self.send_bare(flags, seq, port);
    }

    /// One delivery: `Some(true)` if something was sent, `Some(false)` if there is nothing to
    /// send or no window, `None` if the guest has no room.
    fn deliver(&mut self, port: &mut dyn Port, shop: &mut Shop<'_>) -> io::Result<Option<bool>> {
        if !self.readable || self.has_ended(self.next) {
            return Ok(Some(false));
        }
        let flight = self.next.wrapping_sub(self.una);
        let mut usable = self.guest_window.saturating_sub(flight);
        if !self.peeks_at_offset {
            let again = u32::try_from(shop.again.len()).unwrap_or(u32::MAX);
            usable = usable.min(again.saturating_sub(flight));
        }
        if usable == 0 {
            if flight == 0 && self.resend_at.is_none() {
                self.wait_for_ack(shop.now);
            }
            return Ok(Some(false));
        }
        let whole = if shop.cuts { PAYLOAD_MAX } else { u32::from(self.mss) };
        let headers = self.headers_len();
        let want = usable.min(whole);
        // A segment of full size at least: not worth a crumb of the guest's last buffer.
        if !port.has_room(headers.saturating_add(want.min(u32::from(self.mss)))) {
            return Ok(None);
        }
        let want = want.min(port.room().saturating_sub(headers));
        if want == 0 {
            // Buffers that never hold a segment: tried again by the timer, and given up in the end.
            self.readable = false;
            self.wait_for_ack(shop.now);
            return Ok(Some(false));
        }
        let got = if shop.leaves_open {
            self.deliver_direct(port, shop, want)
        } else {
            self.deliver_copied(port, shop, want)
        };
        match got {
            Ok(0) => Ok(self.send_fin(port, shop.now).then_some(true)),
            Ok(len) => {
                self.next = self.next.wrapping_add(u32::try_from(len).unwrap_or(0));
                if is_after(self.next, self.most) {
                    self.most = self.next;
                }
                self.acks_due = 0;
                if self.resend_at.is_none() {
                    self.wait_for_ack(shop.now);
                }
                Ok(Some(true))
            }
            Err(cause) if is_later(&cause) => {
                self.readable = false;
                Ok(Some(false))
            }
            Err(cause) => Err(cause),
        }
    }

    fn send_fin(&mut self, port: &mut dyn Port, now: Instant) -> bool {
        let seq = self.next;
        if !self.send_bare(TcpFlags::FIN | TcpFlags::ACK, seq, port) {
            return false;
        }
        self.fin_at = Some(seq);
        self.acks_due = 0;
        self.next = seq.wrapping_add(1);
        if is_after(self.next, self.most) {
            self.most = self.next;
        }
        self.wait_for_ack(now);
        true
    }

    fn headers_len(&self) -> u32 {
        const IPV4: u32 = 14 + 20 + 20;
        const IPV6: u32 = 14 + 40 + 20;
        if self.route.addresses.is_v4() { IPV4 } else { IPV6 }
    }

    /// What is peeked at and thrown away before the fresh bytes, for want of a peek offset.
    fn stale(&self) -> usize {
        let flight = self.next.wrapping_sub(self.una);
        if self.peeks_at_offset { 0 } else { usize::try_from(flight).unwrap_or(0) }
    }

    /// Fresh bytes out of a peek that has brought `got`.
    fn fresh(&self, got: usize, stale: usize) -> io::Result<usize> {
        match got.saturating_sub(stale) {
            0 if stale > 0 && !self.hung_up => Err(ErrorKind::WouldBlock.into()),
            fresh => Ok(fresh),
        }
    }

    /// From the socket straight into the guest's buffers, the checksum left open.
    fn deliver_direct(
        &mut self,
        port: &mut dyn Port,
        shop: &mut Shop<'_>,
        want: u32,
    ) -> io::Result<usize> {
        let headers = self.headers_len();
        let skip = usize::try_from(headers).unwrap_or(0);
        let most = usize::try_from(want).unwrap_or(0);
        let stale = self.stale();
        let header = self.header(TcpFlags::ACK | TcpFlags::PSH, self.next);
        let mut room = [0; HEADERS_MAX];
        let Some(window) = port.window(headers.saturating_add(want)) else {
            return Err(ErrorKind::WouldBlock.into());
        };
        let mut pieces = [WriteSpan::local(&mut []); PIECES];
        let pieces = skip_writable(window, skip, most, &mut pieces);
        let again = shop.again.get_mut(..stale).unwrap_or(&mut []);
        let (got, _) = vector::receive(self.socket.as_fd(), again, pieces, &mut [], Flags::PEEK)?;
        let len = self.fresh(got, stale)?;
        if len == 0 {
            return Ok(0);
        }
        let Ok(built) = self.route.tcp(&mut room, &header, &Payload::Later(len)) else {
            return Err(ErrorKind::InvalidData.into());
        };
        copy_in(window, 0, room.get(..built.len).unwrap_or(&[]));
        let header_len = u16::try_from(built.len).unwrap_or(0);
        let request = if shop.cuts { built.cut_into(self.mss) } else { built.request };
        let total = u32::try_from(len).unwrap_or(0).saturating_add(headers);
        let header = RxHeader { request, header_len, validated: true, ..RxHeader::default() };
        port.commit(total, &header);
        Ok(len)
    }

    /// By way of private memory, the checksum complete.
    fn deliver_copied(
        &mut self,
        port: &mut dyn Port,
        shop: &mut Shop<'_>,
        want: u32,
    ) -> io::Result<usize> {
        let headers = usize::try_from(self.headers_len()).unwrap_or(0);
        let most = usize::try_from(want).unwrap_or(0);
        let stale = self.stale();
        let end = headers.saturating_add(most);
        let frame = shop.scratch.get_mut(..end).unwrap_or(&mut []);
        let Some((front, body)) = frame.split_at_mut_checked(headers) else {
            return Err(ErrorKind::InvalidData.into());
        };
        let again = shop.again.get_mut(..stale).unwrap_or(&mut []);
        let (got, _) = vector::receive(self.socket.as_fd(), again, &[], body, Flags::PEEK)?;
        let len = self.fresh(got, stale)?;
        if len == 0 {
            return Ok(0);
        }
        let header = self.header(TcpFlags::ACK | TcpFlags::PSH, self.next);
        let payload = body.get(..len).unwrap_or(&[]);
        let Ok(built) = self.route.tcp(front, &header, &Payload::Bytes(payload)) else {
            return Err(ErrorKind::InvalidData.into());
        };
        let frame = shop.scratch.get(..built.len.saturating_add(len)).unwrap_or(&[]);
        match port.push(&RxHeader::default(), frame) {
            Ok(()) => Ok(len),
            // Peeked at, not taken: it comes again.
            Err(Refused::Full | Refused::Dropped) => {
                self.rewind();
                Err(ErrorKind::WouldBlock.into())
            }
        }
    }
}

/// At most `most` bytes of the spans behind their first `skip`, in `room`.
fn skip_writable<'r, 'm>(
    spans: &[WriteSpan<'m>],
    skip: usize,
    most: usize,
    room: &'r mut [WriteSpan<'m>; PIECES],
) -> &'r [WriteSpan<'m>] {
    let (mut skip, mut left, mut count) = (skip, most, 0_usize);
    for span in spans {
        if skip >= span.len() {
            skip = skip.saturating_sub(span.len());
            continue;
        }
        let Some(slot) = room.get_mut(count) else { break };
        *slot = span.split(skip).1.split(left).0;
        left = left.saturating_sub(slot.len());
        skip = 0;
        count = count.saturating_add(1);
    }
    room.get(..count).unwrap_or(&[])
}
