//! Messages: ids, sizes and payloads, decoded from a private copy by total functions.

use std::os::fd::OwnedFd;

use crate::event::ProtocolError;

/// Bytes of the message header.
pub(crate) const HEADER_LEN: usize = 12;
/// The only version of the protocol, in the flags.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const FLAG_REPLY: u32 = 4;
const FLAG_NEED_REPLY: u32 = 8;
/// The most regions of a memory table.
const TABLE_MAX: usize = 8;
/// The most bytes of a config message's data.
const CONFIG_MAX: usize = 256;

macro_rules! requests {
    ($($name:ident = $id:literal, $text:literal, $most:expr, $answer:ident;)*) => {
        /// What a front-end asks for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Request { $($name,)* }

        impl Request {
            pub(crate) const fn of(id: u32) -> Option<Self> {
                match id { $($id => Some(Self::$name),)* _ => None }
            }

            /// The name that the protocol gives it.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The most payload bytes it can have.
            pub(crate) const fn payload_max(self) -> usize {
                match self { $(Self::$name => $most,)* }
            }

            /// Whether it is answered in a form of its own, asked for or not (VU-RPL-01).
            pub(crate) const fn has_own_reply(self) -> bool {
                matches!(match self { $(Self::$name => Kind::$answer,)* }, Kind::Reply)
            }
        }
    };
}

/// How a request is answered.
enum Kind {
    /// With 0 or 1 if that was asked for and agreed on.
    Ack,
    /// In a form of its own, always.
    Reply,
}

requests! {
    GetFeatures = 1, "GET_FEATURES", 0, Reply;
    SetFeatures = 2, "SET_FEATURES", 8, Ack;
    SetOwner = 3, "SET_OWNER", 0, Ack;
    ResetOwner = 4, "RESET_OWNER", 0, Ack;
    SetMemTable = 5, "SET_MEM_TABLE", 8 + 32 * TABLE_MAX, Ack;
    SetLogBase = 6, "SET_LOG_BASE", 16, Ack;
    SetLogFd = 7, "SET_LOG_FD", 8, Ack;
    SetVringNum = 8, "SET_VRING_NUM", 8, Ack;
    SetVringAddr = 9, "SET_VRING_ADDR", 40, Ack;
    SetVringBase = 10, "SET_VRING_BASE", 8, Ack;
    GetVringBase = 11, "GET_VRING_BASE", 8, Reply;
    SetVringKick = 12, "SET_VRING_KICK", 8, Ack;
    SetVringCall = 13, "SET_VRING_CALL", 8, Ack;
    SetVringErr = 14, "SET_VRING_ERR", 8, Ack;
    GetProtocolFeatures = 15, "GET_PROTOCOL_FEATURES", 0, Reply;
    SetProtocolFeatures = 16, "SET_PROTOCOL_FEATURES", 8, Ack;
    GetQueueNum = 17, "GET_QUEUE_NUM", 0, Reply;
    SetVringEnable = 18, "SET_VRING_ENABLE", 8, Ack;
    SendRarp = 19, "SEND_RARP", 8, Ack;
    NetSetMtu = 20, "NET_SET_MTU", 8, Ack;
    SetBackendReqFd = 21, "SET_BACKEND_REQ_FD", 8, Ack;
    IotlbMsg = 22, "IOTLB_MSG", 32, Reply;
    SetVringEndian = 23, "SET_VRING_ENDIAN", 8, Ack;
    GetConfig = 24, "GET_CONFIG", 12 + CONFIG_MAX, Reply;
    SetConfig = 25, "SET_CONFIG", 12 + CONFIG_MAX, Ack;
    PostcopyAdvise = 28, "POSTCOPY_ADVISE", 0, Reply;
    PostcopyListen = 29, "POSTCOPY_LISTEN", 0, Ack;
    PostcopyEnd = 30, "POSTCOPY_END", 0, Reply;
    GetInflightFd = 31, "GET_INFLIGHT_FD", 24, Reply;
    SetInflightFd = 32, "SET_INFLIGHT_FD", 24, Ack;
    ResetDevice = 34, "RESET_DEVICE", 0, Ack;
    VringKick = 35, "VRING_KICK", 8, Ack;
    GetMaxMemSlots = 36, "GET_MAX_MEM_SLOTS", 0, Reply;
    AddMemReg = 37, "ADD_MEM_REG", 40, Ack;
    RemMemReg = 38, "REM_MEM_REG", 40, Ack;
    SetStatus = 39, "SET_STATUS", 8, Ack;
    GetStatus = 40, "GET_STATUS", 0, Reply;
    GetSharedObject = 41, "GET_SHARED_OBJECT", 16, Reply;
    SetDeviceStateFd = 42, "SET_DEVICE_STATE_FD", 8, Reply;
    CheckDeviceState = 43, "CHECK_DEVICE_STATE", 0, Reply;
}

/// The largest payload of any message; nothing longer is ever read.
pub(crate) const PAYLOAD_MAX: usize = 1024;

/// A message header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id: u32,
    pub(crate) need_reply: bool,
    pub(crate) size: usize,
}

impl Header {
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, ProtocolError> {
        let [i0, i1, i2, i3, f0, f1, f2, f3, s0, s1, s2, s3] = *bytes;
        let id = u32::from_ne_bytes([i0, i1, i2, i3]);
        let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
        let size = u32::from_ne_bytes([s0, s1, s2, s3]);
        let request = Request::of(id);
        let name = request.map_or("unknown message", Request::name);
        let bad = |error| ProtocolError::In(name, Box::new(error));
        if flags & VERSION_MASK != VERSION {
            return Err(bad(ProtocolError::Version));
        }
        if flags & FLAG_REPLY != 0 {
            return Err(bad(ProtocolError::UnexpectedReply));
        }
        let most = request.map_or(PAYLOAD_MAX, Request::payload_max);
        let size = usize::try_from(size).ok().filter(|size| *size <= most);
        let size = size.ok_or_else(|| bad(ProtocolError::TooLong))?;
        Ok(Self { id, need_reply: flags & FLAG_NEED_REPLY != 0, size })
    }
}

/// A whole message with its descriptors.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// A reply to request `id`: the header has exactly version and reply set (VU-FRM-03).
pub(crate) fn reply(id: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let words = [id, VERSION | FLAG_REPLY, size];
    words.into_iter().flat_map(u32::to_ne_bytes).chain(payload.iter().copied()).collect()
}

/// A message of ours that nothing comes with and no answer is wanted to.
pub(crate) fn bare(id: u32) -> [u8; HEADER_LEN] {
    let [[a, b, c, d], [e, f, g, h]] = [id, VERSION].map(u32::to_ne_bytes);
    [a, b, c, d, e, f, g, h, 0, 0, 0, 0]
}

/// Reads the fields of a payload one after the other.
pub(crate) struct Fields<'p>(&'p [u8]);

impl<'p> Fields<'p> {
    pub(crate) fn of(payload: &'p [u8]) -> Self {
        Self(payload)
    }

    fn chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*chunk)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.chunk().map(u32::from_ne_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.chunk().map(u64::from_ne_bytes)
    }

    pub(crate) fn rest(&self) -> &'p [u8] {
        self.0
    }
}

/// A number for one ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingNumber {
    pub(crate) index: u32,
    pub(crate) number: u32,
}

impl RingNumber {
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let mut fields = Fields::of(payload);
        let state = Self { index: fields.u32()?, number: fields.u32()? };
        fields.rest().is_empty().then_some(state)
    }

    pub(crate) fn encode(self) -> [u8; 8] {
        let [i0, i1, i2, i3] = self.index.to_ne_bytes();
        let [n0, n1, n2, n3] = self.number.to_ne_bytes();
        [i0, i1, i2, i3, n0, n1, n2, n3]
    }
}

/// The addresses of one ring, in the front-end's own address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingAddresses {
    pub(crate) index: u32,
    pub(crate) descriptors: u64,
    pub(crate) used: u64,
    pub(crate) avail: u64,
}

impl RingAddresses {
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let mut fields = Fields::of(payload);
        let (index, _flags) = (fields.u32()?, fields.u32()?);
        let (descriptors, used, avail) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let _log = fields.u64()?;
        fields.rest().is_empty().then_some(Self { index, descriptors, used, avail })
    }
}

/// One region of guest memory as the front-end describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegionSpec {
    pub(crate) guest: u64,
    pub(crate) size: u64,
    pub(crate) user: u64,
    pub(crate) offset: u64,
}

impl RegionSpec {
    fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        let (guest, size) = (fields.u64()?, fields.u64()?);
        let (user, offset) = (fields.u64()?, fields.u64()?);
        Some(Self { guest, size, user, offset })
    }

    /// The single region of ADD_MEM_REG and REM_MEM_REG.
    pub(crate) fn single(payload: &[u8]) -> Option<Self> {
        let mut fields = Fields::of(payload);
        let _padding = fields.u64()?;
        let region = Self::decode(&mut fields)?;
        fields.rest().is_empty().then_some(region)
    }

    /// The regions of SET_MEM_TABLE.
    pub(crate) fn table(payload: &[u8]) -> Option<Vec<Self>> {
        let mut fields = Fields::of(payload);
        let (count, _padding) = (fields.u32()?, fields.u32()?);
        let count = usize::try_from(count).ok().filter(|count| *count <= TABLE_MAX)?;
        let regions = (0..count).map(|_| Self::decode(&mut fields)).collect::<Option<_>>()?;
        fields.rest().is_empty().then_some(regions)
    }
}

/// A part of the configuration space, as GET_CONFIG and SET_CONFIG name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConfigRange {
    /// The fields as they came: a reply repeats them.
    pub(crate) header: [u8; 12],
    pub(crate) offset: usize,
    pub(crate) size: usize,
}

impl ConfigRange {
    /// Decodes a payload that has its data with it, as the protocol wants both ways.
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let (header, data) = payload.split_first_chunk::<12>()?;
        let mut fields = Fields::of(header);
        let (offset, size) = (fields.u32()?, fields.u32()?);
        let (offset, size) = (usize::try_from(offset).ok()?, usize::try_from(size).ok()?);
        (data.len() == size).then_some(Self { header: *header, offset, size })
    }

    pub(crate) fn is_inside(self) -> bool {
        self.offset.saturating_add(self.size) <= CONFIG_MAX
    }
}

/// A single 64-bit number.
pub(crate) fn number(payload: &[u8]) -> Option<u64> {
    let mut fields = Fields::of(payload);
    let number = fields.u64()?;
    fields.rest().is_empty().then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(id: u32, flags: u32, size: u32) -> [u8; HEADER_LEN] {
        let bytes: Vec<u8> = [id, flags, size].into_iter().flat_map(u32::to_ne_bytes).collect();
        bytes.try_into().unwrap()
    }

    #[test]
    fn a_header_is_read_and_a_bad_one_is_named() {
        let good = Header::decode(&header(2, 9, 8)).unwrap();
        assert_eq!(good, Header { id: 2, need_reply: true, size: 8 });
        let said =
            |id, flags, size| Header::decode(&header(id, flags, size)).unwrap_err().to_string();
        assert!(said(2, 2, 8).starts_with("SET_FEATURES: the message header has another version"));
        assert!(said(2, 5, 8).starts_with("SET_FEATURES: a reply came"));
        assert!(said(2, 1, 9).starts_with("SET_FEATURES: the payload is longer"));
        assert!(said(99, 1, 4096).starts_with("unknown message: the payload is longer"));
        assert!(Header::decode(&header(99, 1, 8)).is_ok());
    }

    #[test]
    fn a_reply_has_version_and_reply_set_and_nothing_else() {
        let bytes = reply(1, &7_u64.to_ne_bytes());
        assert_eq!(bytes[4..8], 5_u32.to_ne_bytes());
        assert_eq!((bytes.len(), &bytes[12..]), (20, &7_u64.to_ne_bytes()[..]));
    }

    #[test]
    fn every_payload_of_another_length_is_refused() {
        for len in (0..300).filter(|len| *len != 8) {
            assert!(number(&vec![0; len]).is_none());
            assert!(RingNumber::decode(&vec![0; len]).is_none());
        }
        assert!(RingAddresses::decode(&[0; 39]).is_none());
        assert!(RingAddresses::decode(&[0; 40]).is_some());
        assert!(RegionSpec::single(&[0; 41]).is_none());
        let mut table = vec![0; 8 + 32];
        table[0] = 1;
        assert_eq!(RegionSpec::table(&table).unwrap().len(), 1);
        table[0] = 2;
        assert!(RegionSpec::table(&table).is_none());
    }
}
