//! The configuration space of the function: its header, its capabilities, who may write what.

use vionet_spec::pci;

use super::layout;
use super::msix::Gates;
use crate::state::RestoreError;

/// Bytes of the configuration space; behind them is nothing, which reads 0.
const LEN: usize = 256;

const MSIX_AT: u16 = 0x40;
const COMMON_AT: u16 = 0x50;
const NOTIFY_AT: u16 = 0x60;
const ISR_AT: u16 = 0x74;
const DEVICE_AT: u16 = 0x84;
const WINDOW_AT: u16 = 0x94;
const EXPRESS_AT: u16 = 0xa8;
const POWER_AT: u16 = 0xe4;

// 20 bytes of the window, then the two of PCI's own.
const _: () = assert!(WINDOW_AT + 20 == EXPRESS_AT && pci::CAP_LEN_MORE == 20);
const _: () = assert!(EXPRESS_AT + pci::EXPRESS_LEN == POWER_AT);
const _: () = assert!(POWER_AT + pci::POWER_LEN <= 0x100 && LEN == 0x100);

const MSIX_CONTROL: u16 = 0x42;
const EXPRESS_CONTROL: u16 = EXPRESS_AT + pci::EXPRESS_CONTROL;
const POWER_CONTROL: u16 = POWER_AT + pci::POWER_CONTROL;
const D0: u16 = 0;
const D3: u16 = 3;

/// Where `pci_cfg_data` lies.
pub(super) const WINDOW_DATA: u16 = 0xa4;

/// What the window capability is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) bar: u8,
    pub(super) offset: u64,
    pub(super) len: usize,
}

/// The bytes of the space, and which of their bits the driver may write.
pub(super) struct Config {
    bytes: [u8; LEN],
    writable: [u8; LEN],
}

impl Config {
    /// As after power-on.
    pub(super) fn new(vectors: u16, queues: u16) -> Self {
        let mut config = Self { bytes: [0; LEN], writable: [0; LEN] };
        let id = pci::DEVICE_ID_BASE | pci::TYPE_NET;
        let revision = pci::CLASS_ETHERNET << 8 | 1;
        config.set(0, &pci::VENDOR_ID.to_le_bytes());
        config.set(2, &id.to_le_bytes());
        config.set(pci::HEADER_STATUS, &pci::STATUS_CAPABILITIES.to_le_bytes());
        config.set(pci::HEADER_REVISION, &revision.to_le_bytes());
        // The subsystem's device is the device's (PCID-06: 0x40 or more).
        config.set(pci::HEADER_SUBSYSTEM, &pci::VENDOR_ID.to_le_bytes());
        config.set(pci::HEADER_SUBSYSTEM + 2, &id.to_le_bytes());
        config.set(pci::HEADER_CAPABILITIES, &[at_byte(MSIX_AT)]);
        // INTA.
        config.set(pci::HEADER_INTERRUPT + 1, &[1]);
        let command = pci::COMMAND_MEMORY | pci::COMMAND_MASTER | pci::COMMAND_NO_INTX;
        config.allow(pci::HEADER_COMMAND, &command.to_le_bytes());
        config.allow(pci::HEADER_INTERRUPT, &[0xff]);
        // One region of 64-bit memory that is not prefetchable: reading the ISR status clears it.
        config.set(pci::HEADER_BAR0, &[0b0100]);
        config.allow(pci::HEADER_BAR0, &layout::BAR_LEN.wrapping_neg().to_le_bytes());
        config.add_msix(vectors);
        config.add_structures(queues);
        config.add_express();
        config
    }

    /// A reset of this function alone, and its power: what PCI Express asks of every function.
    fn add_express(&mut self) {
        self.head(EXPRESS_AT, pci::CAPABILITY_EXPRESS, POWER_AT);
        let kind = pci::EXPRESS_INTEGRATED.to_le_bytes();
        self.set(of(EXPRESS_AT, pci::EXPRESS_CAPABILITIES), &kind);
        let device = pci::EXPRESS_ROLES | pci::EXPRESS_FLR;
        self.set(of(EXPRESS_AT, pci::EXPRESS_DEVICE), &device.to_le_bytes());
        self.set(EXPRESS_CONTROL, &pci::EXPRESS_READ_512.to_le_bytes());
        let writable = pci::EXPRESS_ERRORS | pci::EXPRESS_READ_MAX | pci::EXPRESS_RESET;
        self.allow(EXPRESS_CONTROL, &writable.to_le_bytes());
        self.head(POWER_AT, pci::CAPABILITY_POWER, 0);
        let version = pci::POWER_VERSION.to_le_bytes();
        self.set(of(POWER_AT, pci::POWER_CAPABILITIES), &version);
        self.set(POWER_CONTROL, &pci::POWER_KEEPS.to_le_bytes());
        self.allow(POWER_CONTROL, &pci::POWER_STATE.to_le_bytes());
    }

    fn add_msix(&mut self, vectors: u16) {
        let control = vectors.saturating_sub(1).to_le_bytes();
        self.head(MSIX_AT, pci::CAPABILITY_MSIX, COMMON_AT);
        self.set(MSIX_CONTROL, &control);
        self.set(of(MSIX_AT, 4), &offset_of(layout::TABLE));
        self.set(of(MSIX_AT, 8), &offset_of(layout::PENDING));
        let writable = pci::MSIX_ENABLE | pci::MSIX_MASK_ALL;
        self.allow(MSIX_CONTROL, &writable.to_le_bytes());
    }

    fn add_structures(&mut self, queues: u16) {
        let doorbells = u64::from(queues).saturating_mul(u64::from(layout::DOORBELL_LEN));
        let structures = [
            (COMMON_AT, NOTIFY_AT, pci::CAP_COMMON, layout::COMMON, pci::COMMON_LEN),
            (NOTIFY_AT, ISR_AT, pci::CAP_NOTIFY, layout::NOTIFY, doorbells),
            (ISR_AT, DEVICE_AT, pci::CAP_ISR, layout::ISR, layout::ISR_LEN),
            (DEVICE_AT, WINDOW_AT, pci::CAP_DEVICE, layout::DEVICE, layout::DEVICE_LEN),
            (WINDOW_AT, EXPRESS_AT, pci::CAP_PCI, 0, 0),
        ];
        for (at, next, kind, offset, len) in structures {
            let has_more = matches!(kind, pci::CAP_NOTIFY | pci::CAP_PCI);
            let cap_len = if has_more { pci::CAP_LEN_MORE } else { pci::CAP_LEN };
            self.head(at, pci::CAPABILITY_VENDOR, next);
            self.set(of(at, 2), &[cap_len, kind]);
            self.set(of(at, pci::CAP_OFFSET), &offset_of(offset));
            self.set(of(at, pci::CAP_LENGTH), &offset_of(len));
        }
        self.set(of(NOTIFY_AT, pci::CAP_MORE), &layout::DOORBELL_LEN.to_le_bytes());
        self.allow(of(WINDOW_AT, pci::CAP_BAR), &[0xff]);
        // Offset, length and data (PCFG-04).
        self.allow(of(WINDOW_AT, pci::CAP_OFFSET), &[0xff; 12]);
    }

    /// The first two bytes of a capability; `next` is 0 for the last one.
    fn head(&mut self, at: u16, id: u8, next: u16) {
        self.set(at, &[id, at_byte(next)]);
    }

    fn set(&mut self, at: u16, bytes: &[u8]) {
        put(&mut self.bytes, at, bytes);
    }

    fn allow(&mut self, at: u16, bits: &[u8]) {
        put(&mut self.writable, at, bits);
    }

    /// Bytes from `offset` on.
    pub(super) fn read(&self, offset: u16, data: &mut [u8]) {
        let bytes = self.bytes.iter().skip(usize::from(offset));
        for (to, from) in data.iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    /// Writes what may be written. D1 and D2 are not there: what asks for them changes nothing.
    pub(super) fn write(&mut self, offset: u16, data: &[u8]) {
        let before = self.word(POWER_CONTROL);
        let places = self.bytes.iter_mut().zip(&self.writable).skip(usize::from(offset));
        for ((place, writable), byte) in places.zip(data) {
            *place = *place & !writable | byte & writable;
        }
        if !matches!(self.word(POWER_CONTROL) & pci::POWER_STATE, D0 | D3) {
            self.set(POWER_CONTROL, &before.to_le_bytes());
        }
    }

    /// The bytes of the space, whatever interrupt was last shown in them.
    pub(super) fn save(&self) -> Vec<u8> {
        let mut bytes = self.bytes;
        put(&mut bytes, pci::HEADER_STATUS, &pci::STATUS_CAPABILITIES.to_le_bytes());
        bytes.to_vec()
    }

    /// Whether a driver can have made these bytes of what it found: all others are as they are
    /// here.
    pub(super) fn check(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let here = self.save();
        let mut places = saved.iter().zip(&here).zip(&self.writable);
        let same = places.all(|((saved, here), writable)| (saved ^ here) & !writable == 0);
        let same = same && saved.len() == LEN;
        RestoreError::unless(same, "a configuration space that is laid out otherwise")
    }

    fn word(&self, offset: u16) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    fn double(&self, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Shows an interrupt in the status register, or none (PISR-04).
    pub(super) fn show_interrupt(&mut self, pending: bool) {
        let shown = if pending { pci::STATUS_INTERRUPT } else { 0 };
        self.set(pci::HEADER_STATUS, &(pci::STATUS_CAPABILITIES | shown).to_le_bytes());
    }

    /// Whether the driver has asked for a reset of the function since this was asked.
    pub(super) fn take_reset(&mut self) -> bool {
        let control = self.word(EXPRESS_CONTROL);
        self.set(EXPRESS_CONTROL, &(control & !pci::EXPRESS_RESET).to_le_bytes());
        control & pci::EXPRESS_RESET != 0
    }

    fn is_awake(&self) -> bool {
        self.word(POWER_CONTROL) & pci::POWER_STATE == D0
    }

    /// A bit of the command register, as far as the function has power.
    fn commands(&self, bit: u16) -> bool {
        self.is_awake() && self.word(pci::HEADER_COMMAND) & bit != 0
    }

    /// Whether the function answers at its memory addresses.
    pub(super) fn decodes(&self) -> bool {
        self.commands(pci::COMMAND_MEMORY)
    }

    /// Whether the function may access memory.
    pub(super) fn is_master(&self) -> bool {
        self.commands(pci::COMMAND_MASTER)
    }

    /// Which interrupts are let through. A message is an access to memory as any other.
    pub(super) fn gates(&self) -> Gates {
        let control = self.word(MSIX_CONTROL);
        let enabled = control & pci::MSIX_ENABLE != 0;
        let open = enabled && control & pci::MSIX_MASK_ALL == 0 && self.is_master();
        let line = self.word(pci::HEADER_COMMAND) & pci::COMMAND_NO_INTX == 0;
        Gates { enabled, open, line: line && !enabled && self.is_awake() }
    }

    /// Where the region of registers lies, if it lies anywhere.
    pub(super) fn bar(&self) -> Option<u64> {
        let [low, high] = [self.double(pci::HEADER_BAR0), self.double(pci::HEADER_BAR0 + 4)];
        let address = (u64::from(high) << 32 | u64::from(low)) & layout::BAR_LEN.wrapping_neg();
        let fits = address.checked_add(layout::BAR_LEN).is_some();
        (self.decodes() && fits && address != 0).then_some(address)
    }

    /// What the window shows, if that can be (PCFG-04, PCFG-05).
    pub(super) fn window(&self) -> Option<Window> {
        let len = self.double(of(WINDOW_AT, pci::CAP_LENGTH));
        let offset = self.double(of(WINDOW_AT, pci::CAP_OFFSET));
        let mut bar = [0];
        self.read(of(WINDOW_AT, pci::CAP_BAR), &mut bar);
        let [bar] = bar;
        let fits = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len);
        let len = usize::try_from(len).ok().filter(|_| fits)?;
        Some(Window { bar, offset: u64::from(offset), len })
    }

    /// Puts what the window shows where the driver reads it.
    pub(super) fn set_window_data(&mut self, data: &[u8]) {
        self.set(WINDOW_DATA, data);
    }

    /// What the driver wants written through the window.
    pub(super) fn window_data(&self) -> [u8; 4] {
        self.double(WINDOW_DATA).to_le_bytes()
    }
}

/// A field of a capability.
fn of(capability: u16, field: u16) -> u16 {
    capability.saturating_add(field)
}

/// Where a capability lies, as another one says it.
fn at_byte(capability: u16) -> u8 {
    let [low, _] = capability.to_le_bytes();
    low
}

fn put(bytes: &mut [u8; LEN], at: u16, new: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(usize::from(at)).zip(new) {
        *to = *from;
    }
}

/// An offset or a length as a capability has it; all structures are in the first region.
fn offset_of(value: u64) -> [u8; 4] {
    u32::try_from(value).unwrap_or(0).to_le_bytes()
}
