//! One TCP connection: the guest's TCP on one side, a socket of the host on the other.
//!
//! No data is kept here. What the guest sends is acknowledged when the socket has taken it; what
//! the socket brings stays in the kernel (it is peeked at) until the guest has acknowledged it, so
//! the kernel's receive buffer is the retransmission queue.
//!
//! ```text
//!   guest --segment--> take_next? --sendmsg--> socket      ack = what the socket took
//!                                                          window = what it would take
//!   guest <--segment-- [ una ..... next ) <--peek-- socket
//!                        |                            ^
//!                        +-- ack --> discard from the socket
//! ```
//!
//! | state       | meaning                                   | leaves by                      |
//! |-------------|-------------------------------------------|--------------------------------|
//! | Connecting  | guest's SYN is here, the host is asked    | writable: SYN-ACK; error: RST  |
//! | Answered    | SYN-ACK is out                            | the guest's ACK                |
//! | Calling     | connection from the host, SYN to the guest| the guest's SYN-ACK            |
//! | Open        | data flows                                | both FINs, or a RST            |
//!
//! There is no congestion machine: the way to the guest is memory, and the way out is the host
//! kernel's. Segments are lost only if the guest itself drops them; three duplicate
//! acknowledgements, or a timer, send them again.

mod deliver;

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{Shutdown, shutdown, sockopt};
use vionet::Instant;
use vionet_frame::build::Route;
use vionet_frame::parse::{Tcp, TcpFlags};
use vionet_raw::ReadSpan;
use vionet_raw::host::socket::{discard, set_peek_offset, unacknowledged};
use vionet_raw::host::vector::{self, Flags};

use super::Key;

/// How our window is scaled.
const SCALE: u8 = 8;
/// Segment size of a peer that names none (RFC 9293 §3.7.1).
const MSS_DEFAULT: u16 = 536;
/// Spans of a window that are used; the rest of a window of more pieces stays empty.
pub(super) const PIECES: usize = 192;

const RESEND_FIRST: Duration = Duration::from_millis(200);
const RESEND_TRIES: u8 = 9;
/// How soon a window that was told small is looked at again.
const WINDOW_POLL: Duration = Duration::from_millis(5);
/// Windows below this are small.
const WINDOW_SMALL: u32 = 1 << 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Connecting,
    Answered,
    Calling,
    Open,
}

/// What is to become of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Fate {
    Stay,
    /// Both sides are through with it, or the guest has reset it.
    Close,
    /// It has failed: the guest is to be told by a RST.
    Reset,
}

/// What a turn of a flow has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing more to do until something happens.
    Idle,
    /// There is more to do.
    More,
    /// The guest has no room.
    NoRoom,
    Ended(Fate),
}

/// What the flows of one engine share while they work.
pub(super) struct Shop<'s> {
    pub(super) now: Instant,
    /// Segments may be left whole, checksums open.
    pub(super) leaves_open: bool,
    pub(super) cuts: bool,
    pub(super) scratch: &'s mut [u8],
    /// For kernels without a peek offset: what is peeked at again and thrown away.
    pub(super) again: &'s mut [u8],
}

#[derive(Debug)]
pub(super) struct TcpFlow {
    pub(super) socket: OwnedFd,
    pub(super) key: Key,
    /// From the far end to the guest.
    pub(super) route: Route,
    /// Where the guest has last sent it from.
    pub(super) pair: u16,
    pub(super) state: State,
    /// It is in the engine's list of flows with work.
    pub(super) queued: bool,
    pub(super) seen: Instant,

    /// Next byte expected from the guest.
    take_next: u32,
    guest_ended: bool,
    /// Acknowledgements owed: one, or more where the guest is to send again at once.
    acks_due: u8,
    /// The socket took less than was given: something is missing.
    short: bool,
    window_told: u32,
    pub(super) poll_at: Option<Instant>,

    /// Oldest byte the guest has not acknowledged, next to send, and the furthest ever sent.
    una: u32,
    next: u32,
    most: u32,
    guest_window: u32,
    guest_scale: Option<u8>,
    mss: u16,
    readable: bool,
    hung_up: bool,
    /// Where our FIN is, once it was sent.
    fin_at: Option<u32>,
    duplicates: u8,
    peeks_at_offset: bool,
    pub(super) resend_at: Option<Instant>,
    resends: u8,
}

/// Whether sequence number `a` lies behind `b`, not further than half the space.
const fn is_after(a: u32, b: u32) -> bool {
    let distance = a.wrapping_sub(b);
    distance != 0 && distance < 1 << 31
}

impl TcpFlow {
    /// A connection that the guest asks for with this SYN; the host is being asked.
    pub(super) fn from_guest(
        socket: OwnedFd,
        key: Key,
        route: Route,
        syn: &Tcp,
        iss: u32,
        now: Instant,
    ) -> Self {
        let mut flow = Self::new(socket, key, route, State::Connecting, iss, now);
        flow.take_next = syn.seq.wrapping_add(1);
        flow.greet(syn);
        flow
    }

    /// A connection that has come in from the host; the guest is to be called.
    pub(super) fn from_host(
        socket: OwnedFd,
        key: Key,
        route: Route,
        iss: u32,
        now: Instant,
    ) -> Self {
        Self::new(socket, key, route, State::Calling, iss, now)
    }

    /// Sends the SYN with the next turn.
    pub(super) fn call(&mut self) {
        self.acks_due = 1;
    }

    fn new(socket: OwnedFd, key: Key, route: Route, state: State, iss: u32, now: Instant) -> Self {
        let peeks_at_offset = set_peek_offset(socket.as_fd(), 0).is_ok();
        Self {
            socket,
            key,
            route,
            pair: 0,
            state,
            queued: false,
            seen: now,
            take_next: 0,
            guest_ended: false,
            acks_due: 0,
            short: false,
            window_told: WINDOW_SMALL,
            poll_at: None,
            una: iss,
            next: iss,
            most: iss,
            guest_window: 0,
            guest_scale: None,
            mss: MSS_DEFAULT,
            readable: false,
            hung_up: false,
            fin_at: None,
            duplicates: 0,
            peeks_at_offset,
            resend_at: None,
            resends: 0,
        }
    }

    /// Takes over what a SYN says of its sender.
    fn greet(&mut self, syn: &Tcp) {
        self.mss = syn.mss.unwrap_or(MSS_DEFAULT).max(MSS_DEFAULT);
        self.guest_scale = syn.window_scale.map(|scale| scale.min(14));
        self.guest_window = u32::from(syn.window);
    }

    /// Whether an idle connection may be forgotten after a shorter time.
    pub(super) fn is_half_open(&self) -> bool {
        self.state != State::Open
    }

    /// The socket has something to say.
    pub(super) fn on_event(&mut self, readable: bool, writable: bool, hung_up: bool, now: Instant) {
        self.readable |= readable || hung_up;
        self.hung_up |= hung_up;
        if writable && self.state == State::Connecting {
            // Decided by the socket's error when the flow has its turn.
            self.acks_due = 1;
        } else if writable && self.state == State::Open {
            self.open_window();
        }
        self.seen = now;
    }

    /// The socket takes more again: say so, and have what it refused sent again at once.
    fn open_window(&mut self) {
        if self.short {
            self.short = false;
            self.acks_due = 4;
        } else if self.window_told < WINDOW_SMALL {
            self.acks_due = self.acks_due.max(1);
        }
    }

    /// What the timers have to say at `now`.
    pub(super) fn on_time(&mut self, now: Instant) -> Fate {
        if self.poll_at.is_some_and(|at| at <= now) {
            self.poll_at = None;
            if self.window() > self.window_told.saturating_mul(2) {
                self.open_window();
            } else {
                self.poll_at = Some(now.after(WINDOW_POLL));
            }
        }
        if self.resend_at.is_some_and(|at| at <= now) {
            self.resends = self.resends.saturating_add(1);
            if self.resends > RESEND_TRIES {
                return Fate::Reset;
            }
            self.rewind();
            self.wait_for_ack(now);
        }
        Fate::Stay
    }

    /// Sends again from the oldest byte that is not acknowledged.
    fn rewind(&mut self) {
        self.next = self.una;
        self.duplicates = 0;
        match self.state {
            State::Open => {
                self.readable = true;
                if self.guest_window == 0 {
                    // A probe: the answer tells the window.
                    self.acks_due = 1;
                }
                // If it fails, the next peek starts elsewhere and the guest sees a gap: repaired
                // by the next rewind, or given up after the last.
                let (Ok(()) | Err(_)) = set_peek_offset(self.socket.as_fd(), 0);
            }
            State::Answered | State::Calling => self.acks_due = 1,
            State::Connecting => {}
        }
    }

    fn wait_for_ack(&mut self, now: Instant) {
        let delay = RESEND_FIRST.saturating_mul(1_u32.wrapping_shl(u32::from(self.resends.min(8))));
        self.resend_at = Some(now.after(delay));
    }

    /// A segment of this connection.
    pub(super) fn on_segment(&mut self, tcp: &Tcp, payload: &InFrame<'_>, now: Instant) -> Fate {
        self.seen = now;
        match self.state {
            State::Connecting if tcp.flags.contains(TcpFlags::RST) => Fate::Close,
            // The guest asks again while the host is still being asked.
            State::Connecting => Fate::Stay,
            State::Calling => self.on_answer(tcp),
            State::Answered | State::Open => self.on_open(tcp, payload, now),
        }
    }

    /// The guest answers our SYN.
    fn on_answer(&mut self, tcp: &Tcp) -> Fate {
        let answers_us = tcp.flags.contains(TcpFlags::ACK) && tcp.ack == self.most;
        if tcp.flags.contains(TcpFlags::RST) {
            return if answers_us { Fate::Close } else { Fate::Stay };
        }
        if !tcp.flags.contains(TcpFlags::SYN) || !answers_us {
            return Fate::Stay;
        }
        self.greet(tcp);
        self.take_next = tcp.seq.wrapping_add(1);
        self.una = tcp.ack;
        self.next = tcp.ack;
        self.become_open();
        self.acks_due = 1;
        Fate::Stay
    }

    fn become_open(&mut self) {
        self.state = State::Open;
        self.resend_at = None;
        self.resends = 0;
        // Data may have been there before anybody listened for it.
        self.readable = true;
    }

    fn on_open(&mut self, tcp: &Tcp, payload: &InFrame<'_>, now: Instant) -> Fate {
        if tcp.flags.contains(TcpFlags::RST) {
            // Only a reset at the very next byte is believed (RFC 5961 §3.2).
            if tcp.seq != self.take_next {
                self.acks_due = self.acks_due.max(1);
                return Fate::Stay;
            }
            self.abort();
            return Fate::Close;
        }
        if tcp.flags.contains(TcpFlags::SYN) || !tcp.flags.contains(TcpFlags::ACK) {
            self.acks_due = 1;
            return Fate::Stay;
        }
        if tcp.ack.wrapping_sub(self.una) > self.most.wrapping_sub(self.una) {
            // Acknowledges what was never sent: a challenge, nothing else (RFC 5961 §5).
            self.acks_due = 1;
            return Fate::Stay;
        }
        if self.state == State::Answered {
            if tcp.ack != self.most {
                return Fate::Stay;
            }
            // The byte that is acknowledged is our SYN.
            self.una = tcp.ack;
            self.become_open();
        }
        self.on_ack(tcp, payload.len, now);
        match self.on_data(tcp, payload, now) {
            // A last acknowledgement may still be due: the flow ends with its next turn.
            Ok(()) => Fate::Stay,
            Err(_) => Fate::Reset,
        }
    }

    /// Has the far end see a reset, too, when the socket is closed.
    pub(super) fn abort(&self) {
        // Without it the far end sees an end instead of a reset.
        let (Ok(()) | Err(_)) = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
    }

    fn is_over(&self) -> bool {
        self.guest_ended && self.has_ended(self.una)
    }

    /// Whether `seq` lies behind our FIN.
    fn has_ended(&self, seq: u32) -> bool {
        self.fin_at.is_some_and(|fin| fin.wrapping_add(1) == seq)
    }

    fn on_ack(&mut self, tcp: &Tcp, payload_len: usize, now: Instant) {
        let scale = u32::from(self.guest_scale.unwrap_or(0));
        let window = u32::from(tcp.window).wrapping_shl(scale);
        let same_window = window == self.guest_window;
        self.guest_window = window;
        let acked = tcp.ack.wrapping_sub(self.una);
        if acked == 0 {
            let is_duplicate = payload_len == 0 && same_window && self.next != self.una;
            if is_duplicate && !tcp.flags.intersects(TcpFlags::FIN) {
                self.duplicates = self.duplicates.saturating_add(1);
                if self.duplicates == 3 {
                    self.rewind();
                    self.wait_for_ack(now);
                }
            }
            return;
        }
        self.duplicates = 0;
        self.resends = 0;
        self.release(acked);
        self.una = tcp.ack;
        if is_after(self.una, self.next) {
            // What was about to be sent again has arrived meanwhile.
            self.next = self.una;
        }
        if self.una == self.next {
            self.resend_at = None;
        } else {
            self.wait_for_ack(now);
        }
    }

    /// Takes what the guest has out of the socket. SYN and FIN count as a byte each and are not in
    /// there: asking for more than there is takes what there is.
    fn release(&self, acked: u32) {
        let acked = usize::try_from(acked).unwrap_or(0);
        // Nothing to take, or a socket that has failed: both show at the next peek.
        let (Ok(_) | Err(_)) = discard(self.socket.as_fd(), acked);
    }

    fn on_data(&mut self, tcp: &Tcp, payload: &InFrame<'_>, now: Instant) -> io::Result<()> {
        let payload_len = payload.len;
        let is_fin = tcp.flags.contains(TcpFlags::FIN);
        if payload_len == 0 && !is_fin {
            // A bare acknowledgement from before our window is a keep-alive: answer it.
            if tcp.seq != self.take_next {
                self.acks_due = self.acks_due.max(1);
            }
            return Ok(());
        }
        self.acks_due = self.acks_due.max(1);
        let known = self.take_next.wrapping_sub(tcp.seq);
        if is_after(tcp.seq, self.take_next) || self.guest_ended {
            // Something before it is missing, or nothing can follow any more.
            return Ok(());
        }
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        if known > payload_len {
            return Ok(());
        }
        let fresh = payload_len.saturating_sub(known);
        let took = if fresh > 0 { self.give(payload, known)? } else { 0 };
        self.take_next = self.take_next.wrapping_add(u32::try_from(took).unwrap_or(0));
        if took < fresh {
            self.short = true;
        } else if is_fin {
            self.take_next = self.take_next.wrapping_add(1);
            self.guest_ended = true;
            // A socket that cannot be shut down has failed, and says so at the next peek.
            let (Ok(()) | Err(_)) = shutdown(&self.socket, Shutdown::Write);
        }
        if self.window_told < WINDOW_SMALL && self.poll_at.is_none() {
            self.poll_at = Some(now.after(WINDOW_POLL));
        }
        Ok(())
    }

    /// Gives the payload behind its first `skip` bytes to the socket; returns what it took.
    fn give(&self, payload: &InFrame<'_>, skip: usize) -> io::Result<usize> {
        let mut pieces = [ReadSpan::local(&[]); PIECES];
        let pieces = payload.behind(skip, &mut pieces);
        match vector::send(self.socket.as_fd(), &[], pieces, None, Flags::NONE) {
            Ok(took) => Ok(took),
            Err(cause) if is_later(&cause) => Ok(0),
            Err(cause) => Err(cause),
        }
    }

    /// What the socket would take now, in bytes. Half of its buffer: the kernel counts more for a
    /// segment than its payload.
    fn window(&self) -> u32 {
        let size = sockopt::socket_send_buffer_size(&self.socket).unwrap_or(0);
        let queued = unacknowledged(self.socket.as_fd()).unwrap_or(0);
        let free = size.checked_div(2).unwrap_or(0).saturating_sub(queued);
        u32::try_from(free).unwrap_or(u32::MAX).min(0xffff << SCALE)
    }
}

fn is_later(cause: &io::Error) -> bool {
    matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// The payload of a frame, where the guest has put it.
pub(super) struct InFrame<'f> {
    /// The whole frame.
    pub(super) frame: &'f [ReadSpan<'f>],
    /// Where the payload starts.
    pub(super) at: usize,
    /// How long it is; padding may follow.
    pub(super) len: usize,
}

impl<'f> InFrame<'f> {
    /// The payload behind its first `skip` bytes, in `room`. A payload in more pieces than there
    /// is room for ends early.
    pub(super) fn behind<'r>(
        &self,
        skip: usize,
        room: &'r mut [ReadSpan<'f>; PIECES],
    ) -> &'r [ReadSpan<'f>] {
        let (mut left, mut count) = (self.len.saturating_sub(skip), 0_usize);
        let mut skip = self.at.saturating_add(skip);
        for span in self.frame {
            if skip >= span.len() {
                skip = skip.saturating_sub(span.len());
                continue;
            }
            let Some(slot) = room.get_mut(count).filter(|_| left > 0) else { break };
            *slot = span.split(skip).1.split(left).0;
            left = left.saturating_sub(slot.len());
            skip = 0;
            count = count.saturating_add(1);
        }
        room.get(..count).unwrap_or(&[])
    }
}
