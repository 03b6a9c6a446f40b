//! The receive filter: which frames the driver has asked for (VIRTIO 1.4 §5.1.9.5.1 to §5.1.9.5.3).
//!
//! ```text
//!              off -----------------------------------------> accepted
//!              promiscuous ---------------------------------> accepted
//!   frame ---> tag with a VLAN that is not in the table ----> Vlan
//!              broadcast    no-broadcast? ------------------> Broadcast
//!              multicast    no-multicast? all? in table? ---> Multicast
//!              unicast      no-unicast? all? own? in table? > Unicast
//! ```
//!
//! The control queue changes a filter, the receive path asks it. A filter of which nothing was
//! negotiated accepts everything and costs one branch.
//!
//! The second half decodes the data of the commands: all of it is good, or nothing changes.

use core::fmt;

use crate::parse::{ETHER_TYPE_VLAN, ETHERNET_LEN, Mac};
use crate::vlan::{VlanId, VlanSet};

/// What of a frame a filter looks at, in bytes: both addresses, one tag.
pub const FILTER_HEAD: usize = ETHERNET_LEN + 2;
/// The most addresses of a kind that are kept; with more, all of that kind are accepted
/// (NET-CTRL-MAC-06).
pub const ADDRESSES_MAX: usize = 64;

const BROADCAST: Mac = [0xff; 6];

/// A mode of the filter: the commands of class 0 (VIRTIO 1.4 §5.1.9.5.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum RxMode {
    /// Everything is accepted, whatever the other modes and tables say (NET-CTRL-RX-02, -03).
    Promiscuous,
    /// Every multicast is accepted (NET-CTRL-RX-05).
    AllMulticast,
    /// Every unicast is accepted (NET-CTRL-RX-07).
    AllUnicast,
    /// No multicast is accepted, but broadcasts are (NET-CTRL-RX-09, -10, -11).
    NoMulticast,
    /// No unicast is accepted (NET-CTRL-RX-13, -14).
    NoUnicast,
    /// No broadcast is accepted (NET-CTRL-RX-16, -17).
    NoBroadcast,
}

impl RxMode {
    /// Every mode, in the order of the command codes.
    pub const ALL: [Self; 6] = [
        Self::Promiscuous,
        Self::AllMulticast,
        Self::AllUnicast,
        Self::NoMulticast,
        Self::NoUnicast,
        Self::NoBroadcast,
    ];

    /// The mode that a command of class 0 switches, if there is such a command.
    #[must_use]
    pub fn of_command(command: u8) -> Option<Self> {
        Self::ALL.get(usize::from(command)).copied()
    }

    /// Whether the mode needs CTRL_RX_EXTRA; the others need CTRL_RX (NET-CTRL-RX-18, -19).
    #[must_use]
    pub const fn is_extra(self) -> bool {
        match self {
            Self::Promiscuous | Self::AllMulticast => false,
            Self::AllUnicast | Self::NoMulticast | Self::NoUnicast | Self::NoBroadcast => true,
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Promiscuous => 1,
            Self::AllMulticast => 1 << 1,
            Self::AllUnicast => 1 << 2,
            Self::NoMulticast => 1 << 3,
            Self::NoUnicast => 1 << 4,
            Self::NoBroadcast => 1 << 5,
        }
    }
}

/// Why the driver does not want a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Unwanted {
    /// It has no whole Ethernet header, or not its tag.
    TooShort,
    /// It is for another station.
    Unicast,
    /// It is for a group that the guest is not in.
    Multicast,
    /// Broadcasts are switched off.
    Broadcast,
    /// It belongs to a VLAN that the guest is not in.
    Vlan,
}

impl Unwanted {
    /// Every reason.
    pub const ALL: [Self; 5] =
        [Self::TooShort, Self::Unicast, Self::Multicast, Self::Broadcast, Self::Vlan];

    /// The reason as a word for counters and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooShort => "filter-too-short",
            Self::Unicast => "filter-unicast",
            Self::Multicast => "filter-multicast",
            Self::Broadcast => "filter-broadcast",
            Self::Vlan => "filter-vlan",
        }
    }
}

impl fmt::Display for Unwanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The receive filter of a device. The default is off: it accepts everything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    by_address: bool,
    by_vlan: bool,
    modes: u8,
    mac: Option<u64>,
    table: MacTable,
    vlans: VlanSet,
}

impl Filter {
    /// A filter as it is after reset, with empty tables and all modes off (NET-CTRL-MAC-01,
    /// NET-CTRL-VLAN-04): by address if CTRL_RX was negotiated, by VLAN if CTRL_VLAN was.
    ///
    /// `mac` is the guest's own address; without one (no MAC feature) it is not known which
    /// unicasts are for the guest, and all are accepted.
    #[must_use]
    pub fn new(mac: Option<Mac>, by_address: bool, by_vlan: bool) -> Self {
        Self { by_address, by_vlan, mac: mac.map(number_of), ..Self::default() }
    }

    /// Whether some frame may be unwanted.
    #[inline]
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.by_address || self.by_vlan
    }

    /// Switches a mode.
    pub fn set_mode(&mut self, mode: RxMode, on: bool) {
        self.modes = if on { self.modes | mode.bit() } else { self.modes & !mode.bit() };
    }

    /// Whether a mode is on.
    #[inline]
    #[must_use]
    pub const fn has_mode(&self, mode: RxMode) -> bool {
        self.modes & mode.bit() != 0
    }

    /// Gives the guest another address of its own (NET-CTRL-MAC-03).
    pub fn set_mac(&mut self, mac: Mac) {
        self.mac = Some(number_of(mac));
    }

    /// Puts another table in place of the one before (NET-CTRL-MAC-02).
    pub fn set_table(&mut self, table: MacTable) {
        self.table = table;
    }

    /// The table of addresses.
    #[must_use]
    pub const fn table(&self) -> &MacTable {
        &self.table
    }

    /// The guest's own address, as far as it is known.
    #[must_use]
    pub fn mac(&self) -> Option<Mac> {
        self.mac.map(mac_of)
    }

    /// The VLANs that the guest is in.
    #[must_use]
    pub const fn vlans(&self) -> &VlanSet {
        &self.vlans
    }

    /// The same, to be changed (VIRTIO 1.4 §5.1.9.5.3).
    pub const fn vlans_mut(&mut self) -> &mut VlanSet {
        &mut self.vlans
    }

    /// Whether the driver wants the frame that begins with `head`: at least [`FILTER_HEAD`] bytes,
    /// or all of a shorter frame.
    ///
    /// # Errors
    /// Why it does not.
    #[inline]
    pub fn accepts(&self, head: &[u8]) -> Result<(), Unwanted> {
        if self.is_on() { self.judge(head) } else { Ok(()) }
    }

    fn judge(&self, head: &[u8]) -> Result<(), Unwanted> {
        if self.has_mode(RxMode::Promiscuous) {
            return Ok(());
        }
        let header = head.first_chunk::<ETHERNET_LEN>().ok_or(Unwanted::TooShort)?;
        let [d0, d1, d2, d3, d4, d5, .., t0, t1] = *header;
        // Tags of providers (802.1ad) are no business of this table, as in Linux' offload.
        if self.by_vlan && u16::from_be_bytes([t0, t1]) == ETHER_TYPE_VLAN {
            let [.., c0, c1] = *head.first_chunk::<FILTER_HEAD>().ok_or(Unwanted::TooShort)?;
            self.judge_vlan(VlanId::of_tag(u16::from_be_bytes([c0, c1])))?;
        }
        if self.by_address { self.judge_address([d0, d1, d2, d3, d4, d5]) } else { Ok(()) }
    }

    /// NET-CTRL-VLAN-02, NET-CTRL-VLAN-03. A tag that names no VLAN is none.
    fn judge_vlan(&self, id: VlanId) -> Result<(), Unwanted> {
        if id == VlanId::NONE || self.vlans.contains(id) { Ok(()) } else { Err(Unwanted::Vlan) }
    }

    /// NET-CTRL-RX-05 to NET-CTRL-RX-17, NET-CTRL-MAC-04. Each `No` wins over its `All`, and a
    /// broadcast is no multicast here.
    fn judge_address(&self, to: Mac) -> Result<(), Unwanted> {
        let [first, ..] = to;
        let (no, all, kept, reason) = if to == BROADCAST {
            let no = self.has_mode(RxMode::NoBroadcast);
            return if no { Err(Unwanted::Broadcast) } else { Ok(()) };
        } else if first & 1 == 1 {
            let kept = &self.table.multicast;
            (RxMode::NoMulticast, RxMode::AllMulticast, kept, Unwanted::Multicast)
        } else {
            (RxMode::NoUnicast, RxMode::AllUnicast, &self.table.unicast, Unwanted::Unicast)
        };
        if self.has_mode(no) {
            return Err(reason);
        }
        let number = number_of(to);
        let is_own = first & 1 == 0 && self.mac.is_none_or(|own| own == number);
        if is_own || self.has_mode(all) || kept.contains(number) { Ok(()) } else { Err(reason) }
    }
}

/// An address as one number, for one comparison.
#[inline]
const fn number_of(mac: Mac) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

const fn mac_of(number: u64) -> Mac {
    let [_, _, a, b, c, d, e, f] = number.to_be_bytes();
    [a, b, c, d, e, f]
}

/// Addresses of one kind; all there are, if they were too many.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Addresses {
    kept: [u64; ADDRESSES_MAX],
    count: usize,
    overflown: bool,
}

impl Default for Addresses {
    fn default() -> Self {
        Self { kept: [0; ADDRESSES_MAX], count: 0, overflown: false }
    }
}

impl Addresses {
    fn of(list: &[Mac]) -> Self {
        let mut addresses = Self::default();
        for (slot, mac) in addresses.kept.iter_mut().zip(list) {
            *slot = number_of(*mac);
        }
        addresses.count = list.len().min(ADDRESSES_MAX);
        addresses.overflown = list.len() > ADDRESSES_MAX;
        addresses
    }

    fn iter(&self) -> impl Iterator<Item = Mac> + '_ {
        let surplus = self.kept.last().filter(|_| self.overflown);
        self.kept.iter().take(self.count).chain(surplus).map(|number| mac_of(*number))
    }

    #[inline]
    fn contains(&self, number: u64) -> bool {
        self.overflown || self.kept.iter().take(self.count).any(|one| *one == number)
    }
}

/// The table of addresses that a driver has set, besides its own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MacTable {
    unicast: Addresses,
    multicast: Addresses,
}

impl MacTable {
    /// The data of MAC_TABLE_SET (NET-CTRL-MAC-05): for unicast and multicast each, a 32-bit
    /// count and so many addresses.
    ///
    /// # Errors
    /// When the data is not exactly as long as its counts say (NET-CTRL-MAC-08).
    pub fn decode(data: &[u8]) -> Result<Self, CommandFault> {
        let (unicast, rest) = take_list(data, CommandFault::UnicastTooShort)?;
        let (multicast, rest) = take_list(rest, CommandFault::MulticastTooShort)?;
        if !rest.is_empty() {
            return Err(CommandFault::Trailing);
        }
        Ok(Self { unicast: Addresses::of(unicast), multicast: Addresses::of(multicast) })
    }

    /// The unicast addresses that make this table: with one too many, if there were more.
    pub fn unicast(&self) -> impl Iterator<Item = Mac> + '_ {
        self.unicast.iter()
    }

    /// The same of the multicast addresses.
    pub fn multicast(&self) -> impl Iterator<Item = Mac> + '_ {
        self.multicast.iter()
    }
}

/// A counted list of addresses, and what is behind it.
fn take_list(data: &[u8], too_short: CommandFault) -> Result<(&[Mac], &[u8]), CommandFault> {
    let (count, rest) = data.split_first_chunk().ok_or(CommandFault::NoCount)?;
    let count = usize::try_from(u32::from_le_bytes(*count)).map_err(|_| too_short)?;
    // Held against the bytes there are, so that no multiplication can overflow.
    let (macs, _) = rest.as_chunks::<6>();
    let list = macs.get(..count).ok_or(too_short)?;
    let behind = rest.get(list.as_flattened().len()..).unwrap_or_default();
    Ok((list, behind))
}

/// Why the data of a command was refused; nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum CommandFault {
    /// The data is not as long as the command wants it.
    Length,
    /// A mode is to be neither on (1) nor off (0).
    Switch(u8),
    /// A count of addresses is missing, or cut.
    NoCount,
    /// There are fewer unicast addresses than counted.
    UnicastTooShort,
    /// There are fewer multicast addresses than counted.
    MulticastTooShort,
    /// There is something behind the last address.
    Trailing,
    /// An address for the guest itself that is zero or a group's.
    NoStation(Mac),
    /// A VLAN identifier above 4095 (NET-CTRL-VLAN-05).
    VlanId(u16),
}

impl fmt::Display for CommandFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Length => "data of the wrong length",
            Self::Switch(value) => return write!(f, "mode switched to {value}, not 0 or 1"),
            Self::NoCount => "count of addresses missing",
            Self::UnicastTooShort => "fewer unicast addresses than counted",
            Self::MulticastTooShort => "fewer multicast addresses than counted",
            Self::Trailing => "data behind the last address",
            Self::NoStation(_) => "own address is zero or a group's",
            Self::VlanId(id) => return write!(f, "vlan {id} is above 4095"),
        })
    }
}

impl core::error::Error for CommandFault {}

/// The data of a command of class 0: whether the mode is to be on (NET-CTRL-RX-01).
///
/// # Errors
/// When it is not one byte of 0 or 1.
pub fn decode_switch(data: &[u8]) -> Result<bool, CommandFault> {
    match data {
        [0] => Ok(false),
        [1] => Ok(true),
        [value] => Err(CommandFault::Switch(*value)),
        _ => Err(CommandFault::Length),
    }
}

/// The data of MAC_ADDR_SET: the guest's new address (NET-CTRL-MAC-07).
///
/// # Errors
/// When it is not 6 bytes, or no station's address.
pub fn decode_address(data: &[u8]) -> Result<Mac, CommandFault> {
    let mac = Mac::try_from(data).map_err(|_| CommandFault::Length)?;
    let [first, ..] = mac;
    let is_station = first & 1 == 0 && mac != [0; 6];
    if is_station { Ok(mac) } else { Err(CommandFault::NoStation(mac)) }
}

/// The data of VLAN_ADD and VLAN_DEL (NET-CTRL-VLAN-05).
///
/// # Errors
/// When it is not 2 bytes, or above 4095.
pub fn decode_vlan(data: &[u8]) -> Result<VlanId, CommandFault> {
    let number = <[u8; 2]>::try_from(data).map_err(|_| CommandFault::Length)?;
    let number = u16::from_le_bytes(number);
    VlanId::new(number).ok_or(CommandFault::VlanId(number))
}

#[cfg(test)]
mod tests;
