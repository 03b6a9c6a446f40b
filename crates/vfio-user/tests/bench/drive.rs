//! Bytes to a conversation: half of it makes sense, half of it does not.
//!
//! Fit for a fuzzer as it stands: any input is a conversation, and the same input the same one.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::RecvFlags;

use super::guest::{BUFFERS, DOORBELLS, Guest, LEN, RINGS, TABLE};
use super::{
    BAR, CONFIG, Client, DMA_MAP, DMA_UNMAP, FEATURE, MIG_READ, MIG_WRITE, NO_REPLY, REGION_READ,
    REGION_WRITE, SET_IRQS, WRITE_MULTI, irq_set, longs, message, place, range, region, words,
};

/// What a live session is made of.
const USUAL: [u16; 18] = [
    DMA_MAP,
    DMA_UNMAP,
    4,
    5,
    7,
    SET_IRQS,
    SET_IRQS,
    REGION_READ,
    REGION_WRITE,
    REGION_WRITE,
    REGION_WRITE,
    REGION_WRITE,
    13,
    WRITE_MULTI,
    FEATURE,
    FEATURE,
    MIG_READ,
    MIG_WRITE,
];

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

    fn address(&mut self) -> u64 {
        match self.below(6) {
            0 => RINGS,
            1 => BUFFERS,
            2 => u64::from(self.byte()) << 12,
            3 => u64::MAX - u64::from(self.byte()),
            _ => self.word(),
        }
    }

    fn size(&mut self) -> u64 {
        match self.below(4) {
            0 => self.word(),
            1 => u64::from(self.byte()) << 12,
            _ => LEN,
        }
    }

    /// An offset in the registers, often of one that there is.
    fn offset(&mut self) -> u64 {
        match self.below(8) {
            0 => self.word(),
            1 => TABLE + u64::from(self.byte()),
            2 => DOORBELLS + u64::from(self.byte() % 8),
            3 => u64::from(self.byte()) << 8,
            _ => u64::from(self.byte() % 0x40),
        }
    }

    fn place(&mut self) -> (u32, u64, u32) {
        let region = match self.below(8) {
            0 => self.byte().into(),
            1 => CONFIG,
            _ => BAR,
        };
        let count = match self.below(8) {
            0 => self.word() as u32,
            1 => self.byte().into(),
            more => 1 << (more % 4),
        };
        (region, self.offset(), count)
    }
}

/// Talks to a server as `bytes` say, for as long as it listens.
pub fn drive(bytes: &[u8], client: &Client) {
    let mut input = Input(bytes);
    let mut guest = match input.below(4) {
        0 => Guest::default(),
        1 => {
            client.agree();
            Guest::default()
        }
        _ => {
            client.agree();
            Guest::start(client)
        }
    };
    while !input.0.is_empty() {
        let goes_on = match input.below(4) {
            0 => traffic(&mut input, client, &mut guest),
            _ => say(&mut input, client, &guest),
        };
        if !goes_on {
            return;
        }
        // Replies are nobody's business here.
        let mut rest = [0; 8192];
        let (Ok(_) | Err(_)) = rustix::net::recv(&client.socket, &mut rest, RecvFlags::DONTWAIT);
    }
}

/// The driver's side of it.
fn traffic(input: &mut Input<'_>, client: &Client, guest: &mut Guest) -> bool {
    match input.below(4) {
        0 => {
            let at = RINGS + u64::from(input.byte()) * 0x80;
            guest.ram.write(at, &input.word().to_ne_bytes());
        }
        _ if guest.tx.free() > 0 && guest.rx.free() > 0 => guest.post(input.byte()),
        _ => {}
    }
    let queue = input.below(3);
    let kick = [place(BAR, DOORBELLS + 4 * u64::from(queue), 2), vec![queue as u8, 0]].concat();
    client.send(REGION_WRITE, NO_REPLY, &kick, &[])
}

fn say(input: &mut Input<'_>, client: &Client, guest: &Guest) -> bool {
    let command = match input.below(32) {
        0 => input.byte().into(),
        usual => USUAL[usual as usize % USUAL.len()],
    };
    let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
    let payload = match command {
        DMA_MAP => {
            fds.extend((input.below(4) > 0).then(|| guest.file.as_fd()));
            let offset = if input.below(4) == 0 { input.word() } else { 0 };
            region(input.address(), input.size(), offset)
        }
        DMA_UNMAP => range(input.address(), input.size()),
        SET_IRQS => {
            let flags = if input.below(4) == 0 { input.byte().into() } else { 4 | 32 };
            let (start, count) = (input.below(4), input.below(5));
            let eventfds = guest.vectors.iter().cycle().map(AsFd::as_fd);
            fds.extend(eventfds.take(if input.below(4) == 0 { 0 } else { count as usize }));
            let mut set = irq_set(flags, input.below(4), start, count);
            set.extend((0..input.below(3)).map(|_| input.byte()));
            set
        }
        REGION_READ => {
            let (region, offset, count) = input.place();
            place(region, offset, count)
        }
        REGION_WRITE => {
            let (region, offset, count) = input.place();
            let data = (0..count.min(64)).map(|_| input.byte());
            place(region, offset, count).into_iter().chain(data).collect()
        }
        WRITE_MULTI => {
            let count = input.below(5);
            let mut all = longs(&[if input.below(8) == 0 { input.word() } else { count.into() }]);
            for _ in 0..count {
                let (region, offset, count) = input.place();
                all.extend(place(region, offset, count));
                all.extend(input.word().to_ne_bytes());
            }
            all
        }
        5 => words(&[32, 0, input.below(12), 0, 0, 0, 0, 0]),
        4 | 7 => words(&[16, 0, input.below(8), 0]),
        13 => Vec::new(),
        FEATURE => {
            let feature = 1 + input.below(3);
            let what = 1 << (16 + input.below(3));
            words(&[16, feature | what, input.below(6), 0])
        }
        MIG_READ => words(&[16, u32::from(input.byte()) << input.below(8)]),
        MIG_WRITE => {
            let data: Vec<u8> = (0..input.byte()).map(|_| input.byte()).collect();
            let len = data.len() as u32;
            words(&[len + 8, len]).into_iter().chain(data).collect()
        }
        _ => (0..input.below(64)).map(|_| input.byte()).collect(),
    };
    let stdin = std::io::stdin();
    match input.below(24) {
        0 => fds.push(stdin.as_fd()),
        1 => fds.extend(vec![guest.vectors[0].as_fd(); input.below(20) as usize]),
        _ => {}
    }
    talk(input, client, command, &payload, &fds)
}

fn talk(
    input: &mut Input<'_>,
    client: &Client,
    command: u16,
    payload: &[u8],
    fds: &[BorrowedFd<'_>],
) -> bool {
    let mut bytes = message(1, command, if input.below(4) == 0 { NO_REPLY } else { 0 }, payload);
    match input.below(128) {
        // The header lies about the length or the flags, or the message stops half way.
        0 => {
            let lie = (input.word() as u32 % 8192).to_ne_bytes();
            bytes[4..8].copy_from_slice(&lie);
            client.send_raw(&bytes, fds)
        }
        1 => {
            bytes[8] = input.byte();
            client.send_raw(&bytes, fds)
        }
        2 => client.send_raw(&bytes[..bytes.len().min(11)], fds),
        // In pieces.
        3..10 => client.send_raw(&bytes[..7], fds) && client.send_raw(&bytes[7..], &[]),
        _ => client.send_raw(&bytes, fds),
    }
}
