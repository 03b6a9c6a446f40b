//! From the bytes of a command to what it asks for. Total, and nothing changes here.

use core::fmt;

use vionet_frame::filter::{CommandFault, RxMode, decode_address, decode_switch, decode_vlan};
use vionet_frame::steer::{ConfigFault, decode_tunnel_types};
use vionet_frame::vlan::VlanId;
use vionet_spec::control::{
    ANNOUNCE, ANNOUNCE_ACK, GUEST_OFFLOADS, GUEST_OFFLOADS_SET, HASH_TUNNEL, HASH_TUNNEL_SET, MAC,
    MAC_ADDR_SET, MAC_TABLE_SET, MQ, MQ_HASH_CONFIG, MQ_RSS_CONFIG, MQ_VQ_PAIRS_SET, NOTF_COAL,
    NOTF_COAL_RX_SET, NOTF_COAL_TX_SET, NOTF_COAL_VQ_GET, NOTF_COAL_VQ_SET, RX, STATS, STATS_GET,
    STATS_QUERY, VLAN, VLAN_ADD, VLAN_DEL,
};
use vionet_spec::feature::{Feature, FeatureBits};

use super::state::Coalescing;
use crate::nic::QueueIndex;

/// What a driver commands. Tables are decoded where they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command<'a> {
    SetMode(RxMode, bool),
    SetMacTable(&'a [u8]),
    SetMac([u8; 6]),
    Vlan { id: VlanId, accept: bool },
    AcknowledgeAnnounce,
    SetPairs(u16),
    SetRss(&'a [u8]),
    SetHash(&'a [u8]),
    SetOffloads(u64),
    CoalesceTransmit(Coalescing),
    CoalesceReceive(Coalescing),
    CoalesceQueue(QueueIndex, Coalescing),
    ReadCoalescing(QueueIndex),
    SetTunnels(u32),
    QueryStatistics,
    ReadStatistics(&'a [u8]),
}

/// Why a command is answered with ERR. Nothing has changed then (NET-CTRL-03).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// NET-CTRL-02: no such class or command, or its feature was not negotiated.
    Unknown,
    /// NET-CTRL-03: its data is too short, too long, or breaks its own counts.
    Malformed,
    /// A value that is not allowed, or not possible now.
    Value,
    /// The data of a filter's command.
    Filter(CommandFault),
    /// The data of a command about hashes or steering.
    Steering(ConfigFault),
}

impl From<CommandFault> for Refused {
    fn from(fault: CommandFault) -> Self {
        Self::Filter(fault)
    }
}

impl From<ConfigFault> for Refused {
    fn from(fault: ConfigFault) -> Self {
        Self::Steering(fault)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => {
                f.write_str("an unknown command, or one whose feature was not negotiated")
            }
            Self::Malformed => {
                f.write_str("a command whose data does not have the length it must have")
            }
            Self::Value => f.write_str("a command with a value that is not allowed"),
            Self::Filter(fault) => write!(f, "a command about filters: {fault}"),
            Self::Steering(fault) => write!(f, "a command about steering: {fault}"),
        }
    }
}

impl<'a> Command<'a> {
    /// What the bytes ask for, under the features agreed.
    pub(crate) fn decode(request: &'a [u8], agreed: FeatureBits) -> Result<Self, Refused> {
        let [class, command, data @ ..] = request else { return Err(Refused::Malformed) };
        let (feature, command) = match (*class, *command) {
            (RX, code) => Self::mode(code, data)?,
            (MAC, MAC_TABLE_SET) => (Feature::CTRL_RX, Self::SetMacTable(data)),
            // The class asks for CTRL_RX, the command has a feature of its own, which counts.
            (MAC, MAC_ADDR_SET) => (Feature::CTRL_MAC_ADDR, Self::SetMac(decode_address(data)?)),
            (VLAN, code @ (VLAN_ADD | VLAN_DEL)) => {
                let id = decode_vlan(data)?;
                (Feature::CTRL_VLAN, Self::Vlan { id, accept: code == VLAN_ADD })
            }
            (ANNOUNCE, ANNOUNCE_ACK) => {
                let [] = exactly(data)?;
                (Feature::GUEST_ANNOUNCE, Self::AcknowledgeAnnounce)
            }
            (MQ, MQ_VQ_PAIRS_SET) => {
                (Feature::MQ, Self::SetPairs(u16::from_le_bytes(exactly(data)?)))
            }
            (MQ, MQ_RSS_CONFIG) => (Feature::RSS, Self::SetRss(data)),
            (MQ, MQ_HASH_CONFIG) => (Feature::HASH_REPORT, Self::SetHash(data)),
            (GUEST_OFFLOADS, GUEST_OFFLOADS_SET) => {
                let bits = u64::from_le_bytes(exactly(data)?);
                (Feature::CTRL_GUEST_OFFLOADS, Self::SetOffloads(bits))
            }
            (NOTF_COAL, code) => Self::coalescing(code, data)?,
            (HASH_TUNNEL, HASH_TUNNEL_SET) => {
                let [_, _, _, _] = exactly(data)?;
                (Feature::HASH_TUNNEL, Self::SetTunnels(decode_tunnel_types(data)?))
            }
            (STATS, STATS_QUERY) => {
                let [] = exactly(data)?;
                (Feature::DEVICE_STATS, Self::QueryStatistics)
            }
            (STATS, STATS_GET) => (Feature::DEVICE_STATS, Self::ReadStatistics(data)),
            (_, _) => return Err(Refused::Unknown),
        };
        if agreed.has(feature) { Ok(command) } else { Err(Refused::Unknown) }
    }

    fn mode(code: u8, data: &[u8]) -> Result<(Feature, Self), Refused> {
        let mode = RxMode::of_command(code).ok_or(Refused::Unknown)?;
        let feature = if mode.is_extra() { Feature::CTRL_RX_EXTRA } else { Feature::CTRL_RX };
        Ok((feature, Self::SetMode(mode, decode_switch(data)?)))
    }

    fn coalescing(code: u8, data: &[u8]) -> Result<(Feature, Self), Refused> {
        Ok(match code {
            NOTF_COAL_TX_SET => {
                let wish = Coalescing::decode(&exactly(data)?);
                (Feature::NOTF_COAL, Self::CoalesceTransmit(wish))
            }
            NOTF_COAL_RX_SET => {
                let wish = Coalescing::decode(&exactly(data)?);
                (Feature::NOTF_COAL, Self::CoalesceReceive(wish))
            }
            NOTF_COAL_VQ_SET => {
                // The reserved bytes are ignored (NET-COAL-01).
                let (head, rest) = data.split_first_chunk::<4>().ok_or(Refused::Malformed)?;
                let [i0, i1, _, _] = *head;
                let queue = QueueIndex(u16::from_le_bytes([i0, i1]));
                let wish = Coalescing::decode(&exactly(rest)?);
                (Feature::VQ_NOTF_COAL, Self::CoalesceQueue(queue, wish))
            }
            NOTF_COAL_VQ_GET => {
                // Some drivers send the index without the reserved bytes behind it.
                let ([i0, i1], [] | [_, _]) = data.split_first_chunk().ok_or(Refused::Malformed)?
                else {
                    return Err(Refused::Malformed);
                };
                let queue = QueueIndex(u16::from_le_bytes([*i0, *i1]));
                (Feature::VQ_NOTF_COAL, Self::ReadCoalescing(queue))
            }
            _ => return Err(Refused::Unknown),
        })
    }

    /// Whether every pair has to be at home for it.
    pub(crate) const fn changes_pairs(&self) -> bool {
        match self {
            Self::SetMode(..)
            | Self::SetMacTable(_)
            | Self::SetMac(_)
            | Self::Vlan { .. }
            | Self::SetPairs(_)
            | Self::SetRss(_)
            | Self::SetHash(_)
            | Self::SetOffloads(_)
            | Self::CoalesceTransmit(_)
            | Self::CoalesceReceive(_)
            | Self::CoalesceQueue(..)
            | Self::SetTunnels(_) => true,
            Self::AcknowledgeAnnounce
            | Self::ReadCoalescing(_)
            | Self::QueryStatistics
            | Self::ReadStatistics(_) => false,
        }
    }
}

/// Data of a fixed length.
fn exactly<const N: usize>(data: &[u8]) -> Result<[u8; N], Refused> {
    <[u8; N]>::try_from(data).map_err(|_| Refused::Malformed)
}
