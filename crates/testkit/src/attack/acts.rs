//! What is done in an attack, and what must come of it.

use vionet_queue::{CHAIN_MAX, Fault, Format, QueueSetup};
use vionet_spec::ring::{DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_USED, DESC_F_WRITE};

use super::{Attack, BUFFERS, END, Ground, LONG_TABLE, Piece, Verdict};
use crate::Random;

impl Ground {
    /// Adds a list in a table, of which this is to come if tables were agreed.
    fn add_table(&mut self, entries: &[Piece], verdict: Verdict, random: &mut Random) -> Verdict {
        let table = self.table(entries, random);
        self.add(&[table]);
        self.agreed(verdict)
    }

    fn agreed(&self, verdict: Verdict) -> Verdict {
        if self.manners.indirect { verdict } else { Verdict::Breaks(Fault::IndirectNotAgreed) }
    }

    /// Adds a list with `bad` in it: by itself, behind a good buffer, or in a table.
    fn add_with(&mut self, bad: Piece, fault: Fault, random: &mut Random) -> Verdict {
        let (verdict, good) = (Verdict::Breaks(fault), self.buffer(random));
        match random.below(4) {
            0 => self.add(&[good, bad]),
            1 => return self.add_table(&[good, bad], verdict, random),
            _ => self.add(&[bad]),
        };
        verdict
    }

    /// Does it. What has two acts goes on with [`Self::second_act`].
    pub fn attack(&mut self, attack: Attack, random: &mut Random) -> Verdict {
        match attack {
            Attack::WrapCounter => self.wrap_counter(random),
            Attack::PastTheRing => match self.manners.format {
                Format::Split => self.past_the_ring(random),
                Format::Packed => {
                    let good = self.buffer(random);
                    // All slots that are left, and the last one says that there are more.
                    let left = self.setup.size - self.lists as u16;
                    (0..left).for_each(|_| self.place(good, DESC_F_NEXT, 0));
                    Verdict::Breaks(Fault::ListIncomplete)
                }
            },
            Attack::Loop => self.go_round(random),
            Attack::TooLong => {
                let len = 16 * u32::from(CHAIN_MAX);
                self.add(&[Piece { addr: LONG_TABLE, len, flags: DESC_F_INDIRECT }]);
                self.agreed(Verdict::Breaks(Fault::ChainTooLong))
            }
            Attack::NestedTable => self.nested_table(random),
            Attack::BadTable => self.bad_table(random),
            Attack::ZeroLength => {
                let bad = Piece { len: 0, ..self.buffer(random) };
                self.add_with(bad, Fault::BufferEmpty, random)
            }
            Attack::Overlap => self.overlap(random),
            Attack::OverTheRing => self.over_the_ring(random),
            Attack::IndexJump => self.index_jump(random),
            Attack::Overrun | Attack::Changed => {
                self.add_good(random);
                self.add_good(random);
                Verdict::Harmless
            }
            Attack::WrongDirection => self.wrong_direction(random),
            Attack::OutsideMemory => self.outside_memory(random),
            Attack::TooManyBytes => {
                let (good, len) = (self.buffer(random), u32::MAX - random.below(40) as u32);
                self.add(&[good, Piece { len, ..good }]);
                Verdict::Breaks(Fault::TooManyBytes)
            }
        }
    }

    /// The rest of an attack of two acts, once the device has taken all lists and used one.
    pub fn second_act(&mut self, attack: Attack, random: &mut Random) -> Option<Verdict> {
        if attack == Attack::Changed {
            self.change(random);
            return Some(Verdict::Harmless);
        }
        (attack == Attack::Overrun).then(|| {
            let good = self.buffer(random);
            (0..self.setup.size).for_each(|_| self.place(good, 0, 0));
            Verdict::Breaks(Fault::SlotsOverrun)
        })
    }

    /// Makes nonsense of all good lists but the first.
    fn change(&self, random: &mut Random) {
        for (slot, ..) in self.good.iter().skip(1) {
            let at = self.descriptor(*slot);
            match random.below(4) {
                0 => self.ram.write(at, &random.next().to_le_bytes()),
                1 => self.ram.write(at + 8, &random.one_of(&[0, 1, u32::MAX]).to_le_bytes()),
                2 => self.ram.write(at, &[0xff; 12]),
                // The id of a packed one; the flags of a split one.
                _ => self.ram.write_u16(at + 12, random.next() as u16),
            }
        }
    }

    fn wrap_counter(&mut self, random: &mut Random) -> Verdict {
        let good = self.buffer(random);
        let spoilt = random.one_of(&[DESC_F_AVAIL, DESC_F_USED, DESC_F_AVAIL | DESC_F_USED]);
        if random.once_in(2) {
            self.place(good, DESC_F_NEXT, 0);
            self.place(good, 0, spoilt);
            return Verdict::Breaks(Fault::ListIncomplete);
        }
        // Nothing that is available.
        let here = self.at;
        self.place(good, 0, spoilt);
        self.at = here;
        Verdict::Harmless
    }

    fn past_the_ring(&mut self, random: &mut Random) -> Verdict {
        let size = self.setup.size;
        let past = random.one_of(&[size, size + 1, 0x7fff, 0x8000, 0xffff]);
        let good = self.buffer(random);
        match random.below(3) {
            0 => {
                self.add_head(past);
                Verdict::Breaks(Fault::HeadOutOfRange)
            }
            1 => {
                let head = self.add(&[good, good]);
                self.ram.write_u16(self.descriptor(head) + 14, past);
                Verdict::Breaks(Fault::NextOutOfRange)
            }
            _ => {
                let table = self.table(&[good, good], random);
                self.ram.write_u16(table.addr + 14, 2 + random.below(0xfffe) as u16);
                self.add(&[table]);
                self.agreed(Verdict::Breaks(Fault::NextOutOfRange))
            }
        }
    }

    /// Makes the descriptor at `at` go on to `next`.
    fn link(&self, at: u64, next: u16) {
        self.ram.write_u16(at + 12, DESC_F_NEXT | self.kind());
        self.ram.write_u16(at + 14, next);
    }

    fn go_round(&mut self, random: &mut Random) -> Verdict {
        let (good, round) = (self.buffer(random), Verdict::Breaks(Fault::ChainTooLong));
        if random.once_in(2) {
            let table = self.table(&[good; 3], random);
            self.link(table.addr + 16 * random.below(3), 0);
            self.add(&[table]);
            return self.agreed(round);
        }
        let head = self.add(&[good, good]);
        self.link(self.descriptor((head + 1) % self.setup.size), head);
        round
    }

    fn nested_table(&mut self, random: &mut Random) -> Verdict {
        let good = self.buffer(random);
        let inner = self.table(&[good], random);
        let nested = Piece { flags: DESC_F_INDIRECT | self.kind(), len: 160, ..inner };
        let verdict = match self.manners.format {
            Format::Split => Verdict::Breaks(Fault::IndirectNested),
            // Of the flags in a table only WRITE counts (VIRTIO 1.4 §2.8.7): a buffer like any.
            Format::Packed => Verdict::Harmless,
        };
        let entries = [good, nested];
        self.add_table(&entries[random.below(2) as usize..], verdict, random)
    }

    fn bad_table(&mut self, random: &mut Random) -> Verdict {
        let good = self.buffer(random);
        let table = self.table(&[good, good], random);
        let verdict = match random.below(4) {
            0 => {
                let too_long = 16 * (u32::from(CHAIN_MAX) + 1);
                let len = random.one_of(&[0, 1, 15, 17, 33, too_long, u32::MAX, u32::MAX - 15]);
                self.add(&[Piece { len, ..table }]);
                Verdict::Breaks(Fault::IndirectLength)
            }
            1 => {
                let addr = random.one_of(&[0, BUFFERS - 32, END - 16, u64::MAX - 7, 1 << 63]);
                self.add(&[Piece { addr, ..table }]);
                Verdict::Breaks(Fault::IndirectUnmapped)
            }
            2 if self.manners.format == Format::Packed => {
                self.add(&[good, table]);
                return Verdict::Breaks(Fault::IndirectWithNext);
            }
            _ => {
                self.add(&[table, good]);
                Verdict::Breaks(Fault::IndirectWithNext)
            }
        };
        self.agreed(verdict)
    }

    fn overlap(&mut self, random: &mut Random) -> Verdict {
        let good = self.buffer(random);
        let within = Piece { addr: good.addr + random.below(30), len: 40, ..good };
        match random.below(3) {
            0 => {
                self.add(&[good, within]);
            }
            1 => {
                self.add(&[good]);
                self.add(&[good]);
            }
            _ => return self.add_table(&[good, good, within], Verdict::Harmless, random),
        }
        Verdict::Harmless
    }

    fn over_the_ring(&mut self, random: &mut Random) -> Verdict {
        let QueueSetup { descriptors, driver, device, .. } = self.setup;
        let addr = random.one_of(&[descriptors, driver, device]).0 + random.below(64);
        let over = Piece { addr, len: 200, flags: self.kind() };
        let read = if random.once_in(2) {
            self.add(&[over]);
            Verdict::Harmless
        } else {
            // The first buffer of the table is the table.
            let table = self.table(&[over, over], random);
            self.ram.write(table.addr, &table.addr.to_le_bytes());
            self.add(&[table]);
            self.agreed(Verdict::Harmless)
        };
        self.add_good(random);
        if self.manners.writable { Verdict::Anything } else { read }
    }

    fn index_jump(&mut self, random: &mut Random) -> Verdict {
        if self.manners.format == Format::Split {
            // From where the device stands, which is so many lists back.
            let from = self.at.wrapping_sub(self.lists as u16);
            let most = u64::from(u16::MAX - self.setup.size);
            self.at = from.wrapping_add(self.setup.size + 1 + random.below(most) as u16);
            return Verdict::Breaks(Fault::IndexJump);
        }
        // Behind a slot that is not available, or two: the device waits for those.
        let (here, good) = (self.at, self.buffer(random));
        for _ in 0..=random.below(2) {
            self.place(good, 0, DESC_F_AVAIL | DESC_F_USED);
        }
        self.place(good, 0, 0);
        self.at = here;
        Verdict::Harmless
    }

    fn wrong_direction(&mut self, random: &mut Random) -> Verdict {
        let good = self.buffer(random);
        let bad = Piece { flags: good.flags ^ DESC_F_WRITE, ..good };
        if !self.manners.writable {
            return self.add_with(bad, Fault::WritableInTransmit, random);
        }
        let behind = Verdict::Breaks(Fault::ReadableAfterWritable);
        match random.below(3) {
            0 => {
                self.add(&[bad, good]);
                Verdict::Breaks(Fault::ReadableInReceive)
            }
            1 => {
                self.add(&[good, bad]);
                behind
            }
            _ => self.add_table(&[good, bad], behind, random),
        }
    }

    fn outside_memory(&mut self, random: &mut Random) -> Verdict {
        let good = self.buffer(random);
        // At least one byte before the end of something, and one behind it.
        let across = random.below(u64::from(good.len) - 1);
        let (addr, len) = match random.below(5) {
            0 => (END - 1 - across, good.len),
            1 => (BUFFERS - 1 - across, good.len),
            2 => (u64::MAX - across, good.len),
            3 => (good.addr, 0x1000_0000),
            _ => (random.one_of(&[0, 1 << 32, 1 << 47, 1 << 63]), good.len),
        };
        self.add_with(Piece { addr, len, ..good }, Fault::BufferUnmapped, random)
    }
}
