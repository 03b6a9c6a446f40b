//! A driver that makes the same buffers available again and again, at next to no cost: for
//! measuring a device, not for judging it.

use std::sync::Arc;

use vionet_queue::{Cursor, Format, QueueSetup, RingFeatures};
use vionet_raw::{AddressSpace, GuestAddr};

use crate::GuestRam;

const RING: u64 = 0x1_0000;
const BUFFERS: u64 = 0x100_0000;
const SIZE: u16 = 256;

/// A ring of 256 entries, entry `i` always buffer `i`, event index off. It does not look at what
/// the device gives back: the caller posts no more than that.
pub struct Treadmill {
    ram: GuestRam,
    format: Format,
    writable: bool,
    len: u32,
    /// So many buffers lie one behind the other: a power of two.
    together: u16,
    next: u32,
}

impl Treadmill {
    /// A driver of buffers of `len` bytes, one behind the other.
    #[must_use]
    pub fn new(format: Format, writable: bool, len: u32) -> Self {
        Self::in_runs(format, writable, len, SIZE)
    }

    /// The same, but only `together` buffers lie one behind the other: the next ones are elsewhere.
    ///
    /// # Panics
    /// When `together` is no power of two up to the ring's size.
    #[must_use]
    pub fn in_runs(format: Format, writable: bool, len: u32, together: u16) -> Self {
        assert!(together.is_power_of_two() && together <= SIZE, "runs of {together}");
        let bytes = usize::from(SIZE) * len as usize;
        let ram = GuestRam::new(&[(RING, 0x1_0000), (BUFFERS, bytes.next_multiple_of(4096))]);
        let driver = Self { ram, format, writable, len, together, next: 0 };
        for slot in 0..SIZE {
            let at = driver.buffer(slot);
            match format {
                Format::Split => {
                    let flags = u16::from(writable) << 1;
                    driver.ram.write_descriptor(driver.slot(slot), at, len, flags, 0);
                    driver.ram.write_u16(RING + 0x2004 + 2 * u64::from(slot), slot);
                }
                Format::Packed => driver.ram.write(driver.slot(slot), &at.to_le_bytes()),
            }
        }
        driver
    }

    /// The memory that both sides see.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        self.ram.space()
    }

    /// Writes `bytes` to the start of every buffer.
    pub fn fill(&self, bytes: &[u8]) {
        (0..SIZE).for_each(|slot| self.ram.write(self.buffer(slot), bytes));
    }

    /// How many entries the ring has.
    #[must_use]
    pub fn size(&self) -> u16 {
        SIZE
    }

    /// Where the ring is.
    #[must_use]
    pub fn setup(&self) -> QueueSetup {
        let [descriptors, driver, device] = [0, 0x2000, 0x4000].map(|at| GuestAddr(RING + at));
        QueueSetup { size: SIZE, descriptors, driver, device }
    }

    /// Where it begins.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor::start(self.format)
    }

    /// What this driver has negotiated.
    #[must_use]
    pub fn features(&self) -> RingFeatures {
        let format = self.format;
        RingFeatures { format, event_idx: false, indirect: true, in_order: false }
    }

    /// Makes the next `count` buffers available.
    pub fn post(&mut self, count: u16) {
        for _ in 0..count {
            if self.format == Format::Packed {
                let slot = (self.next % u32::from(SIZE)) as u16;
                let lap = (self.next / u32::from(SIZE)).is_multiple_of(2);
                let flags = if lap { 0x80 } else { 0x8000 } | (u16::from(self.writable) << 1);
                self.ram.write(self.slot(slot) + 8, &self.len.to_le_bytes());
                self.ram.write_u16(self.slot(slot) + 12, slot);
                self.ram.write_u16(self.slot(slot) + 14, flags);
            }
            self.next = self.next.wrapping_add(1);
        }
        if self.format == Format::Split {
            self.ram.write_u16(RING + 0x2002, self.next as u16);
        }
    }

    /// Buffers that the device has used so far, modulo 65536; of a split ring.
    #[must_use]
    pub fn used(&self) -> u16 {
        self.ram.read_u16(RING + 0x4002)
    }

    /// Where buffer `slot` is; the first is the lowest.
    #[must_use]
    pub fn buffer(&self, slot: u16) -> u64 {
        // Every run has a place, seven runs behind that of the one before.
        let (run, within) = (slot / self.together, slot % self.together);
        let run = run.wrapping_mul(7) % (SIZE / self.together);
        BUFFERS + u64::from(self.len) * u64::from(run * self.together + within)
    }

    fn slot(&self, slot: u16) -> u64 {
        RING + 16 * u64::from(slot)
    }
}
