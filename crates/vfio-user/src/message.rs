//! Messages: numbers and layouts, decoded from a private copy by total functions.

use std::os::fd::OwnedFd;

use crate::event::{ProtocolError, Refusal};

/// Bytes of the message header.
pub(crate) const HEADER_LEN: usize = 16;
/// The most bytes that one message reads or writes, as told in VERSION; a whole configuration
/// space of PCI Express.
pub(crate) const DATA_MAX: usize = 4096;
/// The most bytes behind a header: the data, and what says where it goes.
pub(crate) const PAYLOAD_MAX: usize = DATA_MAX + 64;

const TYPE_MASK: u32 = 0xf;
const TYPE_COMMAND: u32 = 0;
const NO_REPLY: u32 = 1 << 4;

macro_rules! commands {
    ($($name:ident = $id:literal, $text:literal;)*) => {
        /// What a client can ask for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Command { $($name,)* }

        impl Command {
            const fn of(id: u16) -> Option<Self> {
                match id { $($id => Some(Self::$name),)* _ => None }
            }

            /// The name that the specification gives it.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

commands! {
    Version = 1, "VERSION";
    DmaMap = 2, "DMA_MAP";
    DmaUnmap = 3, "DMA_UNMAP";
    DeviceGetInfo = 4, "DEVICE_GET_INFO";
    DeviceGetRegionInfo = 5, "DEVICE_GET_REGION_INFO";
    DeviceGetRegionIoFds = 6, "DEVICE_GET_REGION_IO_FDS";
    DeviceGetIrqInfo = 7, "DEVICE_GET_IRQ_INFO";
    DeviceSetIrqs = 8, "DEVICE_SET_IRQS";
    RegionRead = 9, "REGION_READ";
    RegionWrite = 10, "REGION_WRITE";
    DmaRead = 11, "DMA_READ";
    DmaWrite = 12, "DMA_WRITE";
    DeviceReset = 13, "DEVICE_RESET";
    RegionWriteMulti = 15, "REGION_WRITE_MULTI";
    DeviceFeature = 16, "DEVICE_FEATURE";
    MigDataRead = 17, "MIG_DATA_READ";
    MigDataWrite = 18, "MIG_DATA_WRITE";
}

impl Command {
    /// It asks what there is: to be told that there is not is no trouble.
    pub(crate) const fn only_asks(self) -> bool {
        matches!(
            self,
            Self::DeviceGetRegionInfo | Self::DeviceGetRegionIoFds | Self::DeviceGetIrqInfo
        )
    }
}

/// A message header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Echoed in the reply; means nothing to us.
    pub(crate) id: u16,
    /// As it came; not every number is a command.
    pub(crate) number: u16,
    pub(crate) no_reply: bool,
    /// Bytes behind the header.
    pub(crate) size: usize,
}

impl Header {
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, ProtocolError> {
        let [i0, i1, c0, c1, s0, s1, s2, s3, f0, f1, f2, f3, ..] = *bytes;
        let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
        if flags & TYPE_MASK != TYPE_COMMAND {
            return Err(ProtocolError::NoCommand);
        }
        let whole = usize::try_from(u32::from_ne_bytes([s0, s1, s2, s3])).unwrap_or(usize::MAX);
        let size = whole.checked_sub(HEADER_LEN).ok_or(ProtocolError::TooShort)?;
        if size > PAYLOAD_MAX {
            return Err(ProtocolError::TooLong);
        }
        Ok(Self {
            id: u16::from_ne_bytes([i0, i1]),
            number: u16::from_ne_bytes([c0, c1]),
            no_reply: flags & NO_REPLY != 0,
            size,
        })
    }

    pub(crate) fn command(&self) -> Option<Command> {
        Command::of(self.number)
    }

    pub(crate) fn name(&self) -> &'static str {
        self.command().map_or("unknown command", Command::name)
    }
}

/// A whole message with its descriptors.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// A run of DMA addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) address: u64,
    pub(crate) size: u64,
}

/// A DMA region as the client describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DmaRegion {
    pub(crate) range: Range,
    /// Where it begins in its file.
    pub(crate) offset: u64,
    /// The device may read and write it.
    pub(crate) usable: bool,
}

/// Which regions to unmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unmap {
    One(Range),
    All,
}

impl Unmap {
    /// The reply: what was asked for.
    pub(crate) fn encoded(self) -> Vec<u8> {
        let (flags, range) = match self {
            Self::One(range) => (0, range),
            Self::All => (UNMAP_ALL, Range { address: 0, size: 0 }),
        };
        let head = [UNMAP_LEN, flags].into_iter().flat_map(u32::to_ne_bytes);
        head.chain([range.address, range.size].into_iter().flat_map(u64::to_ne_bytes)).collect()
    }
}

/// Bytes of a region of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) region: u32,
    pub(crate) count: u32,
}

/// What is to happen to interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Mask,
    Unmask,
    Trigger,
}

/// To which of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// To all of the range.
    All,
    /// To those of the range that say so.
    Each(Vec<bool>),
    /// To none now: when it happens to one of the range, its eventfd is signalled.
    Eventfds,
}

/// Interrupts to set up or to act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IrqSet {
    pub(crate) index: u32,
    pub(crate) start: u32,
    pub(crate) count: u32,
    pub(crate) action: Action,
    pub(crate) selection: Selection,
}

/// What a message asks for, without its descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request<'p> {
    Version {
        major: u16,
        minor: u16,
        data: &'p [u8],
    },
    DmaMap(DmaRegion),
    DmaUnmap(Unmap),
    GetInfo,
    /// By index of the region.
    GetRegionInfo(u32),
    /// By index of the kind of interrupt.
    GetIrqInfo(u32),
    SetIrqs(IrqSet),
    Read(Place),
    Write(Place, &'p [u8]),
    WriteMulti(&'p [u8]),
    Reset,
    Feature {
        flags: u32,
        data: &'p [u8],
    },
    /// So many bytes.
    MigRead(u32),
    MigWrite(&'p [u8]),
    /// A command that this server has no use for.
    NotServed,
}

const DMA_READABLE: u32 = 1;
const DMA_WRITEABLE: u32 = 1 << 1;
const UNMAP_ALL: u32 = 1 << 1;
/// Bytes of an unmapping and of its reply.
const UNMAP_LEN: u32 = 24;

const DATA_NONE: u32 = 1;
const DATA_BOOL: u32 = 1 << 1;
const DATA_EVENTFD: u32 = 1 << 2;
const ACTION_MASK: u32 = 1 << 3;
const ACTION_UNMASK: u32 = 1 << 4;
const ACTION_TRIGGER: u32 = 1 << 5;

/// Bytes of `struct vfio_region_info`.
pub(crate) const REGION_INFO_LEN: u32 = 32;
/// Bytes of the answers to GET_INFO and GET_IRQ_INFO.
pub(crate) const INFO_LEN: u32 = 16;
/// Bytes of DEVICE_FEATURE before the feature's data, and of MIG_DATA_READ's answer before its.
pub(crate) const FEATURE_LEN: u32 = 8;
/// Bytes of one write in REGION_WRITE_MULTI: place and 8 bytes of data.
const ONE_WRITE_LEN: usize = 24;

impl<'p> Request<'p> {
    /// Decodes a payload; it has to have the command's length to the byte.
    pub(crate) fn decode(command: Command, payload: &'p [u8]) -> Result<Self, Refusal> {
        let mut fields = Fields(payload);
        let request = match command {
            Command::Version => {
                let (major, minor) = (fields.u16()?, fields.u16()?);
                Self::Version { major, minor, data: fields.rest() }
            }
            Command::DmaMap => Self::DmaMap(fields.dma_region()?),
            Command::DmaUnmap => Self::DmaUnmap(fields.unmap()?),
            Command::DeviceGetInfo => {
                fields.room_for(INFO_LEN)?;
                fields.skip(12)?;
                Self::GetInfo
            }
            Command::DeviceGetRegionInfo => {
                fields.room_for(REGION_INFO_LEN)?;
                fields.skip(4)?;
                let index = fields.u32()?;
                fields.skip(20)?;
                Self::GetRegionInfo(index)
            }
            Command::DeviceGetIrqInfo => {
                fields.room_for(INFO_LEN)?;
                fields.skip(4)?;
                let index = fields.u32()?;
                fields.skip(4)?;
                Self::GetIrqInfo(index)
            }
            Command::DeviceSetIrqs => Self::SetIrqs(fields.irq_set()?),
            Command::RegionRead => Self::Read(fields.place()?),
            Command::RegionWrite => {
                let place = fields.place()?;
                let data = fields.rest();
                if usize::try_from(place.count) != Ok(data.len()) {
                    return Err(Refusal::Payload);
                }
                Self::Write(place, data)
            }
            Command::RegionWriteMulti => Self::WriteMulti(fields.writes()?),
            Command::DeviceReset => Self::Reset,
            Command::DeviceFeature => {
                fields.room_for(FEATURE_LEN)?;
                Self::Feature { flags: fields.u32()?, data: fields.rest() }
            }
            Command::MigDataRead => {
                fields.skip(4)?;
                Self::MigRead(fields.u32()?)
            }
            Command::MigDataWrite => {
                fields.skip(4)?;
                let size = fields.u32()?;
                let data = fields.rest();
                if usize::try_from(size) != Ok(data.len()) {
                    return Err(Refusal::Payload);
                }
                Self::MigWrite(data)
            }
            Command::DeviceGetRegionIoFds | Command::DmaRead | Command::DmaWrite => {
                fields.rest();
                Self::NotServed
            }
        };
        if fields.0.is_empty() { Ok(request) } else { Err(Refusal::Payload) }
    }
}

/// The writes of a REGION_WRITE_MULTI; one that says it has more than 8 bytes is none.
pub(crate) fn writes(bytes: &[u8]) -> impl Iterator<Item = Result<(Place, &[u8]), Refusal>> {
    let (all, _) = bytes.as_chunks::<ONE_WRITE_LEN>();
    all.iter().map(|one| {
        let mut fields = Fields(one);
        let place = fields.place()?;
        let count = usize::try_from(place.count).unwrap_or(usize::MAX);
        fields.rest().get(..count).map(|data| (place, data)).ok_or(Refusal::Payload)
    })
}

/// Reads the fields of a payload one after the other.
struct Fields<'p>(&'p [u8]);

impl<'p> Fields<'p> {
    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (chunk, rest) = self.0.split_first_chunk().ok_or(Refusal::Payload)?;
        self.0 = rest;
        Ok(*chunk)
    }

    fn u16(&mut self) -> Result<u16, Refusal> {
        self.chunk().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        self.chunk().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, Refusal> {
        self.chunk().map(u64::from_ne_bytes)
    }

    fn skip(&mut self, count: usize) -> Result<(), Refusal> {
        self.0 = self.0.get(count..).ok_or(Refusal::Payload)?;
        Ok(())
    }

    fn rest(&mut self) -> &'p [u8] {
        std::mem::take(&mut self.0)
    }

    /// The field `argsz`, where it says how long an answer may be.
    fn room_for(&mut self, len: u32) -> Result<(), Refusal> {
        if self.u32()? >= len { Ok(()) } else { Err(Refusal::NoRoom) }
    }

    fn dma_region(&mut self) -> Result<DmaRegion, Refusal> {
        self.skip(4)?;
        let flags = self.u32()?;
        if flags & !(DMA_READABLE | DMA_WRITEABLE) != 0 {
            return Err(Refusal::Flags(flags));
        }
        let offset = self.u64()?;
        let range = Range { address: self.u64()?, size: self.u64()? };
        let usable = flags == DMA_READABLE | DMA_WRITEABLE;
        Ok(DmaRegion { range, offset, usable })
    }

    fn unmap(&mut self) -> Result<Unmap, Refusal> {
        self.skip(4)?;
        let flags = self.u32()?;
        let range = Range { address: self.u64()?, size: self.u64()? };
        match flags {
            0 => Ok(Unmap::One(range)),
            UNMAP_ALL if range == (Range { address: 0, size: 0 }) => Ok(Unmap::All),
            _ => Err(Refusal::Flags(flags)),
        }
    }

    fn place(&mut self) -> Result<Place, Refusal> {
        Ok(Place { offset: self.u64()?, region: self.u32()?, count: self.u32()? })
    }

    fn writes(&mut self) -> Result<&'p [u8], Refusal> {
        let count = usize::try_from(self.u64()?).ok();
        let writes = self.rest();
        let len = count.and_then(|count| count.checked_mul(ONE_WRITE_LEN));
        if len == Some(writes.len()) { Ok(writes) } else { Err(Refusal::Payload) }
    }

    fn irq_set(&mut self) -> Result<IrqSet, Refusal> {
        self.skip(4)?;
        let flags = self.u32()?;
        let (index, start, count) = (self.u32()?, self.u32()?, self.u32()?);
        let data = self.rest();
        let selection = match flags & (DATA_NONE | DATA_BOOL | DATA_EVENTFD) {
            DATA_NONE if data.is_empty() => Selection::All,
            DATA_EVENTFD if data.is_empty() => Selection::Eventfds,
            DATA_BOOL if usize::try_from(count) == Ok(data.len()) => {
                Selection::Each(data.iter().map(|byte| *byte != 0).collect())
            }
            DATA_NONE | DATA_BOOL | DATA_EVENTFD => return Err(Refusal::Payload),
            _ => return Err(Refusal::Flags(flags)),
        };
        let action = match flags & !(DATA_NONE | DATA_BOOL | DATA_EVENTFD) {
            ACTION_MASK => Action::Mask,
            ACTION_UNMASK => Action::Unmask,
            ACTION_TRIGGER => Action::Trigger,
            _ => return Err(Refusal::Flags(flags)),
        };
        Ok(IrqSet { index, start, count, action, selection })
    }
}
