//! A driver that does to registers whatever some bytes say: any register, width and alignment, any
//! value, in any order, with rings in guest memory that may be good, gone or broken.
//!
//! Whatever it does, an access returns soon, and the device can be reset and driven again.

use std::time::{Duration, Instant};

use vionet::QueueIndex;
use vionet::transport::{MmioNic, PciNic};
use vionet_spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use vionet_spec::{mmio, pci};
use vionet_testkit::GuestRam;

use super::front::{capability_or_none, common, get, set_common, switch_on};
use super::{BUFFERS, Board, Front, MODERN, RING_RESET, RINGS, SIZE, SUSPEND, until};

/// No access takes longer: 20 ms for a worker, and what the machine does to us.
const ACCESS_MAX: Duration = Duration::from_secs(1);

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
    /// An access to any register; what reads the same always must read so.
    fn strike(&self, input: &mut Input<'_>);
    /// Switches something on or off that the bus has beside the registers.
    fn switch(&self, input: &mut Input<'_>);
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
            if let Some(known) = known_of_mmio(at, len) {
                assert_eq!(data[..len], known.to_le_bytes()[..len], "{len} at {at:#x}");
            }
        } else {
            self.write(at, &input.value().to_le_bytes()[..len]);
        }
    }
    fn switch(&self, _input: &mut Input<'_>) {}
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
            (true, true) => {
                let bar = input.byte() % 64 / 63;
                self.read_bar(bar, at, &mut data[..len]);
                if bar != 0 || is_nothing(self, at, len) {
                    // Or memory is switched off.
                    let all = [data[0]; 8];
                    assert!(matches!(data[0], 0 | 0xff), "{len} at {at:#x}");
                    assert_eq!(data[..len], all[..len], "{len} at {at:#x}");
                }
            }
            (true, false) => self.write_bar(0, at, &input.value().to_le_bytes()[..len]),
            (false, true) => self.read_config(at as u16, &mut data[..len]),
            (false, false) => {
                self.write_config(at as u16, &input.value().to_le_bytes()[..len]);
            }
        }
    }
    fn switch(&self, input: &mut Input<'_>) {
        let id = |id: u8| capability_or_none(self, id);
        let (what, value) = (input.byte(), input.word());
        let (at, value) = match what % 8 {
            0 => (Some(pci::HEADER_COMMAND), pci::COMMAND_MEMORY | pci::COMMAND_MASTER),
            1 => (Some(pci::HEADER_COMMAND), value & 0x406),
            2 => (id(pci::CAPABILITY_MSIX).map(|at| at + 2), pci::MSIX_ENABLE),
            3 => (id(pci::CAPABILITY_MSIX).map(|at| at + 2), value & 0xc000),
            4 => {
                let control = id(pci::CAPABILITY_EXPRESS).map(|at| at + pci::EXPRESS_CONTROL);
                (control, pci::EXPRESS_RESET)
            }
            5 => (id(pci::CAPABILITY_POWER).map(|at| at + pci::POWER_CONTROL), value & 3),
            6 => (id(pci::CAPABILITY_POWER).map(|at| at + pci::POWER_CONTROL), 0),
            _ => {
                let vector = u64::from(value % 4);
                self.write_bar(0, 0x4000 + vector * 16 + 12, &[what >> 3 & 1, 0, 0, 0]);
                set_common(self, pci::COMMON_QUEUE_VECTOR, vector, 2);
                (None, 0)
            }
        };
        if let Some(at) = at {
            self.write_config(at, &value.to_le_bytes());
        }
    }
    fn power_on(&self) {
        self.reset().unwrap();
        switch_on(self);
    }
}

/// What a read there gives always, if that is known.
fn known_of_mmio(at: u64, len: usize) -> Option<u64> {
    match at {
        mmio::CONFIG.. => (at >= mmio::CONFIG + 28).then_some(0),
        _ if len != 4 => Some(0),
        mmio::MAGIC_VALUE => Some(mmio::MAGIC.into()),
        mmio::VERSION => Some(mmio::VERSION_2.into()),
        mmio::DEVICE_ID => Some(1),
        mmio::VENDOR_ID => Some(u32::from_le_bytes(*b"vion").into()),
        mmio::SHM_LEN_LOW | mmio::SHM_LEN_HIGH | mmio::SHM_BASE_LOW | mmio::SHM_BASE_HIGH => {
            Some(u32::MAX.into())
        }
        mmio::DEVICE_FEATURES
        | mmio::QUEUE_SIZE_MAX
        | mmio::QUEUE_READY
        | mmio::INTERRUPT_STATUS
        | mmio::STATUS
        | mmio::QUEUE_RESET
        | mmio::CONFIG_GENERATION => None,
        _ => Some(0),
    }
}

/// Whether none of these bytes of the region is a register's.
fn is_nothing(nic: &PciNic, at: u64, len: usize) -> bool {
    let table = 0x4000..0x4000 + u64::from(nic.vectors()) * 16;
    let places = [0..0x3c, 0x1000..0x1001, 0x2000..0x201c, table, 0x6000..0x6008];
    let is_register = |at: u64| places.iter().any(|place| place.contains(&at));
    !matches!(len, 1 | 2 | 4 | 8) || !(at..at + len as u64).any(is_register)
}

/// Everything that makes queues 0 and 1 live, on the first two rings.
fn bring_up<F: Stormy>(nic: &F) {
    nic.set_status(0);
    nic.set_status(ACKNOWLEDGE | DRIVER);
    nic.choose(0, 0);
    nic.choose(1, MODERN | RING_RESET | SUSPEND);
    nic.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    for queue in [0, 1] {
        nic.select(queue);
        nic.set_size(u32::from(SIZE));
        let at = RINGS + 0x4000 * u64::from(queue);
        nic.set_areas([at, at + 0x1000, at + 0x2000]);
        nic.enable();
    }
    nic.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

/// Rings that are in order where [`bring_up`] says: frames to send, and room for what comes back.
pub(crate) fn lay_out(ram: &GuestRam) {
    for (ring, flags) in [(0, 2), (1, 0)] {
        let at = RINGS + 0x4000 * ring;
        for index in [0x1000, 0x1002, 0x2000, 0x2002] {
            ram.write_u16(at + index, 0);
        }
        for entry in 0..SIZE {
            let buffer = BUFFERS + 0x800 * u64::from(entry) + 0x400 * ring;
            ram.write_descriptor(at + 16 * u64::from(entry), buffer, 72, flags, 0);
            ram.write_u16(at + 0x1004 + 2 * u64::from(entry), entry);
        }
    }
}

/// A bit more to do in a ring that is in order.
pub(crate) fn feed(ram: &GuestRam, ring: u64, count: u16) {
    let at = RINGS + 0x4000 * ring;
    let used = ram.read_u16(at + 0x2002);
    ram.write_u16(at + 0x1002, used.wrapping_add(count.min(SIZE)));
}

/// One thing that a driver, or whoever embeds the device, does.
pub(crate) fn act<F: Stormy>(nic: &F, ram: &GuestRam, input: &mut Input<'_>) {
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
        17 | 18 => nic.switch(input),
        19 => {
            let at = RINGS + u64::from(input.word() % 0xfffe);
            ram.write_u16(at, input.word());
        }
        20..=22 => feed(ram, u64::from(input.byte() % 2), u16::from(input.byte() % 17)),
        23 => lay_out(ram),
        24 => {
            nic.set_status(0);
            lay_out(ram);
            bring_up(nic);
        }
        _ => nic.strike(input),
    }
    assert!(start.elapsed() < ACCESS_MAX, "an access took {:?}", start.elapsed());
}

/// All that the bytes say; then the device works as ever.
pub(crate) fn storm<F: Stormy>(board: &mut Board<F>, bytes: &[u8]) {
    blow(board, bytes);
    works_again(board);
}

/// All that the bytes say.
pub(crate) fn blow<F: Stormy>(board: &mut Board<F>, bytes: &[u8]) {
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
        act(&*board.nic, &board.ram, &mut input);
    }
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
