//! Rings that break one rule each: what is done is known, and so what must come of it.
//!
//! ```text
//!   Ground    a ring of either format, written by hand: good lists first
//!   Attack    a list, an index or a lap that no honest driver would write
//!   Verdict   the rule that must be named, or that there must be no harm
//! ```

mod acts;

use vionet_queue::{CHAIN_MAX, Cursor, Fault, Format, QueueSetup};
use vionet_raw::GuestAddr;
use vionet_spec::ring::{DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_USED, DESC_F_WRITE};

use crate::{GuestRam, Random};

/// Where rings may be, four pages each.
pub const RINGS: [u64; 2] = [0x1_0000, 0x1_4000];
/// Memory of a guest under attack: the rings, two regions of buffers that touch, and tables.
pub const REGIONS: &[(u64, usize)] =
    &[(RINGS[0], 0x8000), (BUFFERS, 0x2000), (BORDER, 0x1000), (TABLES, 0x8000)];
const BUFFERS: u64 = 0x4_0000;
/// Here one region ends and the next one begins.
const BORDER: u64 = BUFFERS + 0x2000;
const END: u64 = BORDER + 0x1000;
const TABLES: u64 = 0x5_0000;
/// As many entries as may be, each across the border.
const LONG_TABLE: u64 = TABLES + 0x4000;
/// Bytes of a good list at least: a header and a short frame.
const BYTES: u32 = 12 + 60;

/// What is done to a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Attack {
    /// A packed ring's descriptors with wrong wrap counters.
    WrapCounter,
    /// A head or a next descriptor that the ring or the table does not have; a list longer than
    /// a packed ring.
    PastTheRing,
    /// A chain of a split ring that comes back to itself.
    Loop,
    /// More pieces of memory than are served in one chain.
    TooLong,
    /// An indirect descriptor in an indirect table.
    NestedTable,
    /// A table of a bad length, out of memory, or in the middle of a chain.
    BadTable,
    /// A buffer of no bytes.
    ZeroLength,
    /// Buffers over each other.
    Overlap,
    /// Buffers over the ring itself and over their table.
    OverTheRing,
    /// An index, or a slot, further on than there is anything.
    IndexJump,
    /// More slots of a packed ring than the driver was given back, in two acts.
    Overrun,
    /// Descriptors that change after the device has read them, in two acts.
    Changed,
    /// Buffers that the device is to read where it writes, or the other way round.
    WrongDirection,
    /// Buffers that are not in memory, or not all of them.
    OutsideMemory,
    /// Buffers of more than 2^32 bytes together.
    TooManyBytes,
}

/// What must come of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: what is good is served.
    Harmless,
    /// This rule is named.
    Breaks(Fault),
    /// The device spoils its own ring, as it was told to: whatever comes of that, it ends.
    Anything,
}

impl Attack {
    /// Those that there are for such a ring. The ones of two acts need a device that keeps what it
    /// has taken, as a receive queue does: `kept`.
    #[must_use]
    pub fn all(format: Format, kept: bool) -> Vec<Self> {
        let mut all = vec![
            Self::PastTheRing,
            Self::TooLong,
            Self::NestedTable,
            Self::BadTable,
            Self::ZeroLength,
            Self::Overlap,
            Self::OverTheRing,
            Self::IndexJump,
            Self::WrongDirection,
            Self::OutsideMemory,
            Self::TooManyBytes,
        ];
        match (format, kept) {
            (Format::Split, false) => all.push(Self::Loop),
            (Format::Split, true) => all.extend([Self::Loop, Self::Changed]),
            (Format::Packed, false) => all.push(Self::WrapCounter),
            (Format::Packed, true) => {
                all.extend([Self::WrapCounter, Self::Changed, Self::Overrun]);
            }
        }
        all
    }
}

/// A descriptor to be written; its place adds NEXT and the lap to the flags.
#[derive(Clone, Copy, Debug)]
struct Piece {
    addr: u64,
    len: u32,
    flags: u16,
}

/// What sort of ring it is.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// The layout.
    pub format: Format,
    /// Whether it is the device that writes.
    pub writable: bool,
    /// Tables were agreed.
    pub indirect: bool,
}

/// A ring of either format whose driver keeps to no rule.
pub struct Ground {
    ram: GuestRam,
    setup: QueueSetup,
    manners: Manners,
    /// The position behind what is written, as [`Cursor::avail`].
    at: u16,
    /// Split: the first descriptor that no list has.
    fresh: u16,
    /// Good lists: slot, address, bytes.
    good: Vec<(u16, u64, u32)>,
    lists: usize,
}

impl Ground {
    /// A ring at `ring` of a random size and position, empty but for any wishes for interrupts.
    #[must_use]
    pub fn new(ram: &GuestRam, ring: u64, manners: Manners, random: &mut Random) -> Self {
        let (size, at) = match manners.format {
            Format::Split => (4 << random.below(5), random.one_of(&[0, 1, 0x7ffe, 0xfffe, 0xffff])),
            Format::Packed => {
                let size = 5 + random.below(36) as u16;
                (size, random.below(size.into()) as u16 | (random.below(2) as u16) << 15)
            }
        };
        let [descriptors, driver, device] =
            [0, 0x1000, 0x2000].map(|offset| GuestAddr(ring + offset));
        let setup = QueueSetup { size, descriptors, driver, device };
        let (ram, good) = (ram.clone(), Vec::new());
        let ground = Self { ram, setup, manners, at, fresh: 0, good, lists: 0 };
        ground.clear(random);
        ground
    }

    /// Fills the guest's memory with bytes, and the table of [`Attack::TooLong`]; once is enough.
    pub fn prepare(ram: &GuestRam, manners: Manners, random: &mut Random) {
        let bytes: Vec<u8> = (BUFFERS..END).map(|_| random.next() as u8).collect();
        ram.write(BUFFERS, &bytes);
        let flags = if manners.writable { DESC_F_WRITE } else { 0 };
        let across = [Piece { addr: BORDER - 16, len: 32, flags }; CHAIN_MAX as usize];
        write_table(ram, LONG_TABLE, manners.format, &across);
    }

    fn clear(&self, random: &mut Random) {
        let QueueSetup { size, descriptors, driver, .. } = self.setup;
        self.ram.write_u16(driver.0, random.next() as u16);
        if self.manners.format == Format::Split {
            self.ram.write_u16(driver.0 + 2, self.at);
            self.ram.write_u16(driver.0 + 4 + 2 * u64::from(size), random.next() as u16);
            return;
        }
        self.ram.write_u16(driver.0 + 2, random.below(4) as u16);
        let flags = (0..size).flat_map(|slot| {
            // As it was used last: in this lap before the position, else in the last one.
            let lap = (self.at >> 15 == 1) == (slot < self.at & 0x7fff);
            let flags = if lap { DESC_F_AVAIL | DESC_F_USED } else { 0 };
            [[0; 14].as_slice(), &flags.to_le_bytes()].concat()
        });
        self.ram.write(descriptors.0, &flags.collect::<Vec<u8>>());
    }

    /// Where the ring is.
    #[must_use]
    pub fn setup(&self) -> QueueSetup {
        self.setup
    }

    /// The position behind all lists: where the device begins while there are none, and where it
    /// ends when all are served.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor { avail: self.at, used: self.at }
    }

    /// Lists written so far.
    #[must_use]
    pub fn lists(&self) -> usize {
        self.lists
    }

    /// The good lists: address and bytes.
    pub fn good(&self) -> impl DoubleEndedIterator<Item = (u64, u32)> {
        self.good.iter().map(|(_, at, len)| (*at, *len))
    }

    /// A setup that makes no queue, where it would go on, and the rule it breaks.
    #[must_use]
    pub fn bad_setup(&self, random: &mut Random) -> (QueueSetup, Cursor, Fault) {
        let (good, from) = (self.setup, self.cursor());
        let packed = self.manners.format == Format::Packed;
        let sizes: &[u16] = if packed { &[0, 0x8001, 0xffff] } else { &[0, 3, 0xc000, 0xffff] };
        match random.below(6) {
            0 => (QueueSetup { size: random.one_of(sizes), ..good }, from, Fault::BadSize),
            1 => {
                let descriptors = GuestAddr(good.descriptors.0 + 1 + random.below(15));
                (QueueSetup { descriptors, ..good }, from, Fault::Misaligned)
            }
            2 => {
                let device = GuestAddr(good.device.0 + 1 + random.below(3));
                (QueueSetup { device, ..good }, from, Fault::Misaligned)
            }
            3 if packed => {
                let avail = good.size + random.below(9) as u16;
                (good, Cursor { avail, ..from }, Fault::BadPosition)
            }
            4 => (QueueSetup { device: GuestAddr(END), ..good }, from, Fault::RingUnmapped),
            _ => {
                let far = random.one_of(&[0, TABLES + 0x7ff0, u64::MAX - 15]);
                let descriptors = GuestAddr(far);
                (QueueSetup { descriptors, ..good }, from, Fault::RingUnmapped)
            }
        }
    }

    fn kind(&self) -> u16 {
        if self.manners.writable { DESC_F_WRITE } else { 0 }
    }

    /// A good buffer in either region, or across their border.
    fn buffer(&self, random: &mut Random) -> Piece {
        let len = BYTES + random.below(100) as u32;
        let addr = if random.once_in(4) {
            BORDER - 1 - random.below(u64::from(len) - 1)
        } else {
            BUFFERS + random.below(END - BUFFERS - u64::from(len))
        };
        Piece { addr, len, flags: self.kind() }
    }

    /// Adds a good list of one buffer.
    pub fn add_good(&mut self, random: &mut Random) {
        let piece = self.buffer(random);
        let slot = self.add(&[piece]);
        self.good.push((slot, piece.addr, piece.len));
    }

    fn descriptor(&self, slot: u16) -> u64 {
        self.setup.descriptors.0 + 16 * u64::from(slot)
    }

    /// Writes a packed descriptor in the next slot; `spoilt` turns bits of its lap.
    fn place(&mut self, piece: Piece, next: u16, spoilt: u16) {
        let (slot, wrap) = (self.at & 0x7fff, self.at & 0x8000);
        let lap = if wrap == 0 { DESC_F_USED } else { DESC_F_AVAIL };
        let flags = piece.flags | next | (lap ^ spoilt);
        // The id stands where a split ring has its flags.
        self.ram.write_descriptor(self.descriptor(slot), piece.addr, piece.len, slot, flags);
        self.at = if slot + 1 == self.setup.size { wrap ^ 0x8000 } else { self.at + 1 };
    }

    /// Adds a list of these descriptors; its first slot.
    fn add(&mut self, pieces: &[Piece]) -> u16 {
        self.lists += 1;
        let first = match self.manners.format {
            Format::Split => self.fresh,
            Format::Packed => self.at & 0x7fff,
        };
        for (index, piece) in pieces.iter().enumerate() {
            let next = if index + 1 < pieces.len() { DESC_F_NEXT } else { 0 };
            if self.manners.format == Format::Packed {
                self.place(*piece, next, 0);
                continue;
            }
            let at = self.descriptor(self.fresh);
            self.fresh = (self.fresh + 1) % self.setup.size;
            self.ram.write_descriptor(at, piece.addr, piece.len, piece.flags | next, self.fresh);
        }
        if self.manners.format == Format::Split {
            self.add_head(first);
        }
        first
    }

    fn add_head(&mut self, head: u16) {
        let slot = u64::from(self.at % self.setup.size);
        self.ram.write_u16(self.setup.driver.0 + 4 + 2 * slot, head);
        self.at = self.at.wrapping_add(1);
    }

    /// Shows the device what is written.
    pub fn expose(&self) {
        if self.manners.format == Format::Split {
            self.ram.write_u16(self.setup.driver.0 + 2, self.at);
        }
    }

    /// Writes a table of these entries, at any address, each going on to the next; a descriptor
    /// that points to it.
    fn table(&self, entries: &[Piece], random: &mut Random) -> Piece {
        let addr = TABLES + random.below(0x3f00);
        write_table(&self.ram, addr, self.manners.format, entries);
        Piece { addr, len: 16 * entries.len() as u32, flags: DESC_F_INDIRECT }
    }
}

/// Entries of which each goes on to the next, as split tables say it; packed ones need not.
fn write_table(ram: &GuestRam, at: u64, format: Format, entries: &[Piece]) {
    for (index, Piece { addr, len, flags }) in (0..).zip(entries) {
        let next = if index + 1 < entries.len() as u16 { DESC_F_NEXT } else { 0 };
        let (flags, other) = (flags | next, index + 1);
        // A packed one has its id where a split one has its flags.
        let [first, second] = match format {
            Format::Split => [flags, other],
            Format::Packed => [other, flags],
        };
        ram.write_descriptor(at + 16 * u64::from(index), *addr, *len, first, second);
    }
}
