//! Bytes to a conversation: half of it makes sense, half of it does not.
//!
//! Fit for a fuzzer as it stands: any input is a conversation, and the same input the same one.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::RecvFlags;

use super::guest::{GUEST, Guest, LEN, SIZE, USER};
use super::{F_PACKED, F_PROTOCOL, F_VERSION_1, FrontEnd, NEED_REPLY};

/// What a live session is made of.
const USUAL: [u32; 20] =
    [2, 5, 8, 9, 10, 11, 12, 13, 14, 18, 34, 37, 38, 9, 11, 12, 18, 20, 24, 39];

/// Reads the input as numbers; past its end there are zeroes.
struct Input<'b>(&'b [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, bound: u32) -> u32 {
        u32::from(self.byte()) % bound
    }

    fn word(&mut self) -> u64 {
        let mut bytes = [0; 8];
        bytes.iter_mut().for_each(|byte| *byte = self.byte());
        u64::from_ne_bytes(bytes)
    }

    /// An address or size that is often one that can be.
    fn place(&mut self) -> u64 {
        match self.below(6) {
            0 => GUEST,
            1 => USER,
            2 => LEN,
            3 => u64::from(self.byte()) << 12,
            4 => u64::MAX - u64::from(self.byte()),
            _ => self.word(),
        }
    }
}

/// Talks to a server as `bytes` say, for as long as it listens.
pub fn drive(bytes: &[u8], front: &mut FrontEnd, guest: &mut Guest) {
    let mut input = Input(bytes);
    match input.below(8) {
        0 => {}
        format => {
            guest.reboot();
            guest.start_with(front, if format < 3 { F_PACKED } else { 0 });
        }
    }
    while !input.0.is_empty() {
        let goes_on = match input.below(4) {
            0 => traffic(&mut input, guest),
            _ => say(&mut input, front, guest),
        };
        if !goes_on {
            return;
        }
        // Replies are nobody's business here.
        let mut rest = [0; 512];
        let (Ok(_) | Err(_)) = rustix::net::recv(&front.socket, &mut rest, RecvFlags::DONTWAIT);
    }
}

/// The driver's side of it, which breaks the rules of the ring now and then.
fn traffic(input: &mut Input<'_>, guest: &mut Guest) -> bool {
    let ring = input.below(2) as usize;
    match input.below(8) {
        0 => guest.post(ring, input.place(), input.word() as u32, input.byte().into()),
        1 => any_descriptor(input, guest, ring),
        2..4 => drop(guest.post_room()),
        _ => guest.transmit(&[0xff; 100], false),
    }
    guest.kick(ring);
    true
}

/// A slot as no split ring has it: in a packed one these are buffers, and whose turn it is.
fn any_descriptor(input: &mut Input<'_>, guest: &Guest, ring: usize) {
    let slot = u64::from(input.below(u32::from(SIZE)));
    let flags = u16::from(input.byte()) | u16::from(input.byte()) << 8;
    let words = [input.place(), u64::from(input.byte()) << 4 | u64::from(flags) << 48];
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_ne_bytes).collect();
    guest.write(GUEST + guest.rings[ring].at() + 16 * slot, &bytes);
}

fn say(input: &mut Input<'_>, front: &FrontEnd, guest: &Guest) -> bool {
    let id = match input.below(32) {
        0 => input.below(50),
        usual => USUAL[usual as usize % USUAL.len()],
    };
    let flags = match input.below(32) {
        0 => u32::from(input.byte()),
        1 => 0,
        _ => NEED_REPLY,
    };
    let index = match input.below(8) {
        0 => input.word() as u32,
        other => other % 2,
    };
    let words: Vec<u64> = match (id, input.below(8)) {
        (_, 0) if input.below(8) == 0 => (0..input.below(36)).map(|_| input.word()).collect(),
        (2, 1) => vec![F_VERSION_1 | F_PROTOCOL | F_PACKED],
        (2, 2..4) => vec![F_VERSION_1 | F_PROTOCOL],
        (2 | 16 | 19 | 20 | 39, _) => vec![input.place() & 0xffff_ffff],
        (5, 1..5) => return talk(input, front, id, flags, &guest.table(), &[guest.fd()]),
        (5, _) => {
            let count = u64::from(input.below(10));
            std::iter::once(count).chain((0..4 * count).map(|_| input.place())).collect()
        }
        (8 | 18, _) => vec![u64::from(index) | u64::from(input.byte()) << 32],
        (10 | 11, _) => vec![u64::from(index) | input.place() << 32],
        (9, 1..5) => {
            let addresses = guest.rings[index as usize % 2].addresses(USER);
            return talk(input, front, id, flags, &addresses, &[]);
        }
        (9, _) => [u64::from(index)].into_iter().chain((0..4).map(|_| input.place())).collect(),
        (12..=14, kind) => vec![u64::from(index) | u64::from(kind > 5) << 8],
        (24 | 25, _) => vec![u64::from(input.byte()) | 4 << 32, input.word()],
        (37 | 38, 1..5) => return talk(input, front, id, flags, &guest.region(), &[guest.fd()]),
        (37 | 38, _) => (0..5).map(|_| input.place()).collect(),
        _ => Vec::new(),
    };
    let payload: Vec<u8> = words.into_iter().flat_map(u64::to_ne_bytes).collect();
    let kick = guest.rings[0].kick.as_fd();
    let stdin = std::io::stdin();
    let fds = match (id, input.below(8)) {
        (12..=14, 1) => match input.below(16) {
            0 => vec![front.socket.as_fd()],
            1 => vec![stdin.as_fd()],
            2 => vec![guest.fd()],
            _ => vec![kick],
        },
        (12..=14, 2..) => vec![kick],
        (_, 1) => vec![kick; input.below(9) as usize],
        (_, 2) => vec![guest.fd()],
        _ => Vec::new(),
    };
    talk(input, front, id, flags, &payload, &fds)
}

fn talk(
    input: &mut Input<'_>,
    front: &FrontEnd,
    id: u32,
    flags: u32,
    payload: &[u8],
    fds: &[BorrowedFd<'_>],
) -> bool {
    match input.below(255) {
        // The header lies about the length, or the message stops half way.
        0 => {
            let size = input.word() as u32 % 2048;
            let words = [id, 1 | flags, size].into_iter().flat_map(u32::to_ne_bytes);
            let message: Vec<u8> = words.chain(payload.iter().copied()).collect();
            front.send_raw(&message, fds)
        }
        1 => front.send_raw(&payload[..payload.len().min(11)], fds),
        2 if payload.len() > 32 => {
            // In pieces.
            let size = payload.len() as u32;
            let words = [id, 1 | flags, size].into_iter().flat_map(u32::to_ne_bytes);
            let message: Vec<u8> = words.chain(payload.iter().copied()).collect();
            front.send_raw(&message[..7], fds) && front.send_raw(&message[7..], &[])
        }
        _ => front.send(id, flags, payload, fds),
    }
}
