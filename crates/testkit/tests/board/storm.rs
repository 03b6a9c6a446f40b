//! A driver that does to registers whatever some bytes say: any register, width and alignment, any
//! value, in any order, with rings in guest memory that may be good, gone or broken.
//!
//! Whatever it does, an access returns soon, and the device can be reset and driven again.

use std::time::{Duration, Instant};

use vionet::QueueIndex;
use vionet::transport::{MmioNic, PciNic};
use vionet_spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};

use super::front::{common, get, switch_on};
use super::{BUFFERS, Board, Front, RINGS, SIZE, until};

/// No access takes longer: two waits for workers, and what the machine does to us.
const ACCESS_MAX: Duration = Duration::from_secs(3);

/// Bytes of the input, one after the other; zeros when they have run out.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl Input<'_> {
    pub(crate) fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }
    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }
    fn value(&mut self) -> u64 {
        let word = u64::from(self.word());
        match self.byte() % 10 {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => word,
            4 => word << 32 | word,
            5 => RINGS + word % 0x1_0000,
            6 => BUFFERS + word,
            7 => u64::from(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK),
            8 => 1 << (word % 64),
            _ => word % 8,
        }
    }
}

/// Registers that bytes can be put into.
pub(crate) trait Stormy: Front {
    fn strike(&self, input: &mut Input<'_>);
    /// Made as it was before anybody touched it.
    fn power_on(&self);
}

fn width(input: &mut Input<'_>) -> usize {
    [1, 2, 4, 8, 4, 4, 2, 3][usize::from(input.byte() % 8)]
}

impl Stormy for MmioNic {
    fn strike(&self, input: &mut Input<'_>) {
        let at = match input.byte() % 4 {
            0 => u64::from(input.word()),
            1 => 0x100 + u64::from(input.byte() % 40),
            _ => u64::from(input.byte() & 0xfc),
        };
        let (len, mut data) = (width(input), [0; 8]);
        if input.byte() & 1 == 0 {
            self.read(at, &mut data[..len]);
        } else {
            self.write(at, &input.value().to_le_bytes()[..len]);
        }
    }
    fn power_on(&self) {
        self.reset().unwrap();
    }
}

impl Stormy for PciNic {
    fn strike(&self, input: &mut Input<'_>) {
        let (len, mut data) = (width(input), [0; 8]);
        let kind = input.byte();
        let at = match kind % 8 {
            0..4 => u64::from(input.byte() % 0x40),
            4 => u64::from(input.byte() % 16) << 11 | u64::from(input.byte() % 64),
            5 => self.doorbell_offset(QueueIndex(u16::from(input.byte() % 6))).unwrap_or(0),
            _ => u64::from(input.byte()),
        };
        match (kind % 8 < 6, input.byte() & 1 == 0) {
            (true, true) => self.read_bar(input.byte() % 64 / 63, at, &mut data[..len]),
            (true, false) => self.write_bar(0, at, &input.value().to_le_bytes()[..len]),
            (false, true) => self.read_config(at as u16, &mut data[..len]),
            (false, false) => {
                self.write_config(at as u16, &input.value().to_le_bytes()[..len]);
            }
        }
    }
    fn power_on(&self) {
        self.reset().unwrap();
        switch_on(self);
    }
}

/// One thing that a driver, or whoever embeds the device, does.
pub(crate) fn act<F: Stormy>(nic: &F, input: &mut Input<'_>) {
    let start = Instant::now();
    match input.byte() {
        0 => nic.set_status(0),
        1 => drop(nic.tend()),
        2 => nic.pause().unwrap(),
        3 => nic.resume().unwrap(),
        4 => nic.turn_link(input.byte() & 1 == 0),
        5 => {
            nic.set_status(ACKNOWLEDGE | DRIVER);
            nic.choose(0, 0);
            nic.choose(1, u32::from(input.word()) & 0x0945 | 1);
            nic.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        }
        6..=9 => {
            nic.select(u32::from(input.byte() % 4));
            nic.set_size(u32::from(SIZE));
            let at = RINGS + 0x4000 * u64::from(input.byte() % 4);
            nic.set_areas([at, at + 0x1000, at + 0x2000]);
            nic.enable();
        }
        10 | 11 => nic.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK),
        12..=15 => nic.kick(u16::from(input.byte() % 3)),
        16 => nic.reset_queue(),
        _ => nic.strike(input),
    }
    assert!(start.elapsed() < ACCESS_MAX, "an access took {:?}", start.elapsed());
}

/// All that the bytes say; then the device works as ever.
pub(crate) fn storm<F: Stormy>(board: &mut Board<F>, bytes: &[u8]) {
    let mut input = Input(bytes);
    // Rings that some of the accesses will find.
    for ring in 0..u64::from(input.byte() % 4) {
        let at = RINGS + 0x4000 * ring;
        for entry in 0..u64::from(SIZE) {
            let len = u32::from(input.byte()) * 8;
            let flags = u16::from(input.byte() % 8);
            board.ram.write_descriptor(at + 16 * entry, BUFFERS + 64 * entry, len, flags, 1);
        }
        board.ram.write_u16(at + 0x1002, u16::from(input.byte()));
    }
    while !input.0.is_empty() {
        act(&*board.nic, &mut input);
    }
    works_again(board);
}

/// Whatever has been done to it, it is reset, and moves frames.
pub(crate) fn works_again<F: Stormy>(board: &mut Board<F>) {
    board.nic.resume().unwrap();
    board.nic.power_on();
    until("the status is 0", || board.nic.status() == 0);
    board.nic.turn_link(true);
    while board.nic.tend().is_some() {}
    board.bring_up(0);
    board.round_trip(1);
}

/// Registers that must look the same after every reset: all but the generation.
pub(crate) fn face_of_pci(nic: &PciNic) -> Vec<u64> {
    (0..0x3c).filter(|at| *at != 0x15).map(|at| common(nic, at, 1)).collect()
}

/// Registers that must look the same after every reset.
pub(crate) fn face_of_mmio(nic: &MmioNic) -> Vec<u32> {
    (0..0xfc).step_by(4).map(|at| get(nic, at)).collect()
}
