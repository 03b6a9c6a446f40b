//! The device on PCI (VIRTIO 1.4 §4.1): a function with one region of registers, MSI-X and a line.

mod config;
mod layout;
mod msix;

use std::fmt;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vionet_raw::AddressSpace;
use vionet_spec::pci::{COMMON_LEN, NO_VECTOR, NOTHING, VECTORS_MAX};

use super::doorbell::Doorbells;
use super::plane::Plane;
use super::turns::{Turns, Unsettled};
use super::{Wiring, WiringError};
use crate::device::Device;
use crate::endpoint::{Endpoint, OpenError};
use crate::nic::{Op, OpError, QueueIndex};
use crate::pair::Limits;
use crate::run::{Report, held};
use crate::snapshot::Snapshot;
use crate::state::{Body, Bus, Pci, RestoreError, SaveError, State};
use config::{Config, WINDOW_DATA};
use layout::{COMMON_ROWS, DOORBELL_LEN, Register, Row, Structure, structure};
use msix::Vectors;

/// The driver has moved the region of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarMove {
    /// Where it was, if the function answered anywhere.
    pub from: Option<u64>,
    /// Where it is now, if the function answers anywhere.
    pub to: Option<u64>,
}

/// A NIC on PCI. All methods may be called from any thread.
///
/// Dropping it takes every pair back from its worker, ends the workers, and drops the endpoint.
pub struct PciNic {
    plane: Turns<Vectors>,
    /// Locked after the plane, where both are.
    config: Mutex<Config>,
    /// The function answers at its memory addresses, as the configuration space says.
    decodes: AtomicBool,
    vectors: Arc<Vectors>,
    doorbells: Arc<Doorbells>,
    queues: u16,
}

impl PciNic {
    /// The region that all registers lie in; it is 64 bits wide, so region 1 is its upper half.
    pub const BAR: u8 = 0;
    /// Bytes of that region.
    pub const BAR_LEN: u64 = layout::BAR_LEN;
    /// Where the MSI-X table lies in it: for a VMM that keeps the table itself.
    pub const TABLE: Range<u64> = layout::TABLE..layout::PENDING;

    /// Makes a device a function of PCI.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new(device: Device, wiring: &Wiring) -> Result<Self, WiringError> {
        let queues = device.queues();
        let count = vector_count(queues);
        let config = Config::new(count, queues);
        let lines = Arc::clone(&wiring.lines);
        let vectors = Arc::new(Vectors::new(count, queues, lines, config.gates()));
        let mut plane = Plane::new(device, wiring, Arc::clone(&vectors))?;
        plane.let_master(config.is_master());
        let doorbells = Arc::clone(plane.doorbells());
        let (plane, config) = (Turns::new(plane), Mutex::new(config));
        Ok(Self { plane, config, decodes: AtomicBool::new(false), vectors, doorbells, queues })
    }

    /// How many MSI-X vectors there are: one for each queue, one for the configuration.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        vector_count(self.queues)
    }

    /// The offset in the region at which a queue is kicked: for an ioeventfd on
    /// [`Self::doorbell`], of any length, without a value to match.
    #[must_use]
    pub fn doorbell_offset(&self, index: QueueIndex) -> Option<u64> {
        let offset = u64::from(index.0).checked_mul(u64::from(DOORBELL_LEN))?;
        (index.0 < self.queues).then_some(layout::NOTIFY.saturating_add(offset))
    }

    /// Masks a vector or unmasks it, whatever the driver has switched: for a VMM that keeps the
    /// MSI-X table itself, and passes no write to [`Self::TABLE`] on. A vector is masked after
    /// power-on, and after any reset of the function.
    pub fn mask_vector(&self, vector: u16, masked: bool) {
        self.vectors.mask(vector, masked);
    }

    /// Where the region of registers lies, while the function answers at it.
    #[must_use]
    pub fn bar_address(&self) -> Option<u64> {
        held(&self.config).bar()
    }

    /// A read of the configuration space. Behind its 256 bytes it reads 0. While a reset of the
    /// function goes on nobody answers: it reads all ones.
    pub fn read_config(&self, offset: u16, data: &mut [u8]) {
        data.fill(NOTHING);
        if self.is_away() {
            return;
        }
        data.fill(0);
        if touches(offset, data.len(), WINDOW_DATA) {
            self.read_window();
        }
        let reasons = self.vectors.reasons();
        let mut config = held(&self.config);
        let uses_line = !config.gates().enabled;
        config.show_interrupt(reasons != 0 && uses_line);
        config.read(offset, data);
    }

    /// A write to the configuration space; says if it has moved the region of registers.
    pub fn write_config(&self, offset: u16, data: &[u8]) -> Option<BarMove> {
        if self.is_away() {
            return None;
        }
        let mut config = held(&self.config);
        let (from, gates, master) = (config.bar(), config.gates(), config.is_master());
        config.write(offset, data);
        let is_reset = config.take_reset();
        if is_reset {
            drop(config);
            let from = self.plane.write(|plane| self.power_on(plane));
            return from.map(|from| BarMove { from: Some(from), to: None });
        }
        let to = config.bar();
        self.decodes.store(config.decodes(), Ordering::Release);
        if gates != config.gates() {
            self.vectors.let_through(config.gates());
        }
        let is_changed = master != config.is_master();
        drop(config);
        if is_changed {
            // As it is now: of two vCPUs that change it the last one counts.
            self.plane.write(|plane| plane.let_master(held(&self.config).is_master()));
        }
        if touches(offset, data.len(), WINDOW_DATA) {
            self.write_window();
        }
        (from != to).then_some(BarMove { from, to })
    }

    /// Whether a reset of the function goes on: workers have not let go of everything yet.
    fn is_away(&self) -> bool {
        self.plane.read(Plane::is_away)
    }

    /// Everything is as after power-on, as soon as the workers have let go (PCI Express Base 4.0
    /// §6.6.2). Where the region was.
    fn power_on(&self, plane: &mut Plane<Vectors>) -> Option<u64> {
        let mut config = held(&self.config);
        let from = config.bar();
        *config = Config::new(self.vectors(), self.queues);
        self.decodes.store(false, Ordering::Release);
        self.vectors.power_on(config.gates());
        plane.let_master(config.is_master());
        plane.reset_function();
        from
    }

    /// Reads the structure that the window is set to (PCFG-03).
    fn read_window(&self) {
        let Some(window) = held(&self.config).window() else { return };
        let mut data = [0; 4];
        if let Some(data) = data.get_mut(..window.len)
            && self.has_structure(window.offset, window.len)
        {
            self.read_structure(window.bar, window.offset, data);
        }
        held(&self.config).set_window_data(&data);
    }

    /// Writes to the structure that the window is set to (PCFG-02).
    fn write_window(&self) {
        let (window, data) = {
            let config = held(&self.config);
            (config.window(), config.window_data())
        };
        if let Some(window) = window
            && let Some(data) = data.get(..window.len)
            && self.has_structure(window.offset, window.len)
        {
            self.write_structure(window.bar, window.offset, data);
        }
    }

    /// Whether a structure of the capabilities has all of these bytes (PCFG-06).
    fn has_structure(&self, offset: u64, len: usize) -> bool {
        let Some((structure, at)) = structure(offset) else { return false };
        let doorbells = u64::from(self.queues).saturating_mul(u64::from(DOORBELL_LEN));
        let room = match structure {
            Structure::Common => COMMON_LEN,
            Structure::Isr => layout::ISR_LEN,
            Structure::Device => layout::DEVICE_LEN,
            Structure::Notify => doorbells,
            Structure::Table | Structure::Pending => 0,
        };
        at.checked_add(u64::try_from(len).unwrap_or(u64::MAX)).is_some_and(|end| end <= room)
    }

    /// A read of 1, 2, 4 or 8 bytes in a region. What is nothing reads 0; where the driver has not
    /// switched the region on, or has put the function to sleep, it reads all ones.
    pub fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if !self.decodes.load(Ordering::Acquire) {
            return data.fill(NOTHING);
        }
        self.read_structure(bar, offset, data);
    }

    fn read_structure(&self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((structure, at)) = accessed(bar, offset, data.len()) else { return };
        match structure {
            Structure::Common => self.plane.read(|plane| self.read_common(plane, at, data)),
            Structure::Isr if at == 0 => {
                if let Some(first) = data.first_mut() {
                    *first = self.vectors.take_reasons();
                }
            }
            Structure::Device => self.plane.read(|plane| plane.read_config(at, data)),
            Structure::Isr | Structure::Notify => {}
            Structure::Table => read_words(at, data, |word| self.vectors.read_table(word)),
            Structure::Pending => read_words(at, data, |word| self.vectors.read_pending(word)),
        }
    }

    /// A write of 1, 2, 4 or 8 bytes in a region. What cannot be written so is ignored.
    pub fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) {
        if self.decodes.load(Ordering::Acquire) {
            self.write_structure(bar, offset, data);
        }
    }

    fn write_structure(&self, bar: u8, offset: u64, data: &[u8]) {
        let Some((structure, at)) = accessed(bar, offset, data.len()) else { return };
        match structure {
            Structure::Common => self.plane.write(|plane| self.write_common(plane, at, data)),
            Structure::Notify => self.kick(at, data),
            Structure::Table => {
                for (word, value) in words(at, data) {
                    self.vectors.write_table(word, value);
                }
            }
            // No field of the device configuration can be written.
            Structure::Isr | Structure::Device | Structure::Pending => {}
        }
    }

    fn read_common(&self, plane: &Plane<Vectors>, at: u64, data: &mut [u8]) {
        for (start, len, register) in rows(at, data.len(), overlaps) {
            let value = match register {
                Register::Common(field) => plane.read(field),
                Register::ConfigVector => u32::from(self.vectors.of_config()),
                Register::QueueVector => u32::from(
                    plane
                        .registers
                        .selected()
                        .map_or(NO_VECTOR, |queue| self.vectors.of_queue(queue)),
                ),
                Register::NotifyOff => {
                    plane.registers.selected().map_or(0, |queue| u32::from(queue.0))
                }
            };
            for (place, byte) in (start..start.saturating_add(len)).zip(value.to_le_bytes()) {
                let index = place.checked_sub(at).and_then(|index| usize::try_from(index).ok());
                if let Some(to) = index.and_then(|index| data.get_mut(index)) {
                    *to = byte;
                }
            }
        }
    }

    /// Registers of which every byte is written; part of one is ignored (PCIL-03).
    fn write_common(&self, plane: &mut Plane<Vectors>, at: u64, data: &[u8]) {
        for (start, len, register) in rows(at, data.len(), covers) {
            let skip = start.checked_sub(at).and_then(|skip| usize::try_from(skip).ok());
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            let mut value = [0; 4];
            let bytes = data.iter().skip(skip.unwrap_or(usize::MAX)).take(len);
            value.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            let value = u32::from_le_bytes(value);
            match register {
                Register::Common(field) => plane.write(field, value),
                Register::ConfigVector => self.vectors.map_config(value),
                Register::QueueVector => {
                    if let Some(queue) = plane.registers.selected() {
                        self.vectors.map_queue(queue, value);
                    }
                }
                Register::NotifyOff => {}
            }
        }
    }

    /// A kick names its queue by its place and by its value, which agree.
    fn kick(&self, at: u64, data: &[u8]) {
        let mut value = [0; 4];
        value.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let value = u32::from_le_bytes(value);
        let [b0, b1, ..] = value.to_le_bytes();
        let queue = u16::from_le_bytes([b0, b1]);
        let place = u64::from(queue).checked_mul(u64::from(DOORBELL_LEN));
        if place == Some(at) && data.len() == self.doorbells.width() {
            let (Some(()) | None) = self.doorbells.kick(value);
        }
    }

    /// A reset of the machine: the driver's part as if it had written 0 to the status and waited,
    /// and the function as after power-on.
    ///
    /// # Errors
    /// When a worker does not give its pair back within 11 seconds.
    pub fn reset(&self) -> Result<(), Unsettled> {
        self.plane.settle(|plane| {
            self.power_on(plane);
            plane.reset();
        })
    }

    /// The NIC at rest, to go on elsewhere; it stays paused.
    ///
    /// # Errors
    /// When it is not paused, or a worker does not come to rest within 11 seconds.
    pub fn save(&self) -> Result<State, SaveError> {
        let save = |plane: &mut Plane<Vectors>| {
            let mut body = plane.save()?;
            let mut pci = Pci { config: held(&self.config).save(), ..Pci::default() };
            self.vectors.save(&mut pci);
            body.bus = Bus::Pci(pci);
            Ok(State(body))
        };
        self.plane.at_rest(save).unwrap_or(Err(SaveError::Unsettled))
    }

    /// Takes a saved state, from whatever bus: into a NIC that no driver has used since it was
    /// made or reset. It is paused then; [`Self::resume`] lets it go on. Its region lies at
    /// [`Self::bar_address`] then, and [`Lines`] are told of the routes and the line. One that
    /// comes from another bus leaves the configuration space and MSI-X as they are here.
    ///
    /// # Errors
    /// See [`RestoreError`]; nothing has changed then.
    ///
    /// [`Lines`]: super::Lines
    pub fn restore(&self, state: &State) -> Result<(), RestoreError> {
        let restore = |plane: &mut Plane<Vectors>| self.restore_at_rest(plane, &state.0);
        self.plane.at_rest(restore).unwrap_or(Err(RestoreError::Unsettled))
    }

    fn restore_at_rest(&self, plane: &mut Plane<Vectors>, body: &Body) -> Result<(), RestoreError> {
        let reasons = body.bus.checked_reasons()?;
        let mut config = held(&self.config);
        let Bus::Pci(pci) = &body.bus else {
            plane.restore(body)?;
            self.vectors.restore_reasons(reasons);
            return Ok(());
        };
        self.vectors.check(pci)?;
        config.check(&pci.config)?;
        plane.restore(body)?;
        config.write(0, &pci.config);
        // No reset is asked for by a state.
        let (true | false) = config.take_reset();
        self.decodes.store(config.decodes(), Ordering::Release);
        self.vectors.restore(pci, config.gates());
        plane.let_master(config.is_master());
        Ok(())
    }
}

impl fmt::Debug for PciNic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciNic").field("bar", &self.bar_address()).finish_non_exhaustive()
    }
}

super::plane::verbs!(PciNic);

fn vector_count(queues: u16) -> u16 {
    queues.saturating_add(1).clamp(2, VECTORS_MAX)
}

/// The structure that an access of a width that there is begins in.
fn accessed(bar: u8, offset: u64, len: usize) -> Option<(Structure, u64)> {
    structure(offset).filter(|_| bar == PciNic::BAR && matches!(len, 1 | 2 | 4 | 8))
}

/// Whether `len` bytes from `offset` on have a byte of the word at `word`.
fn touches(offset: u16, len: usize, word: u16) -> bool {
    let end = usize::from(offset).saturating_add(len);
    offset < word.saturating_add(4) && end > usize::from(word)
}

fn overlaps(row: &Row, at: u64, end: u64) -> bool {
    let (start, len, _) = *row;
    start < end && start.saturating_add(len) > at
}

fn covers(row: &Row, at: u64, end: u64) -> bool {
    let (start, len, _) = *row;
    start >= at && start.saturating_add(len) <= end
}

fn rows(at: u64, len: usize, of: fn(&Row, u64, u64) -> bool) -> impl Iterator<Item = Row> {
    let end = at.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
    COMMON_ROWS.into_iter().filter(move |row| of(row, at, end))
}

/// Bytes of a structure that is made of words.
fn read_words(at: u64, data: &mut [u8], word: impl Fn(u64) -> u32) {
    for (place, to) in (at..).zip(data) {
        let bytes = word(place & !3).to_le_bytes();
        let byte = bytes.iter().zip(place & !3..).find(|(_, at)| *at == place);
        *to = byte.map_or(0, |(byte, _)| *byte);
    }
}

/// The whole, aligned words that an access writes: one, or two.
fn words(at: u64, data: &[u8]) -> impl Iterator<Item = (u64, u32)> {
    let (whole, _) = data.as_chunks::<4>();
    let whole = if at.is_multiple_of(4) { whole } else { &[] };
    (at..).step_by(4).zip(whole.iter().map(|bytes| u32::from_le_bytes(*bytes)))
}
