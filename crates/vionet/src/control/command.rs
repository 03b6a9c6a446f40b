//! From the bytes of a command to what it asks for. Total, and nothing changes here.

use core::fmt;

use vionet_spec::control::{
    ANNOUNCE, ANNOUNCE_ACK, GUEST_OFFLOADS, GUEST_OFFLOADS_SET, HASH_TUNNEL, HASH_TUNNEL_SET, MAC,
    MAC_ADDR_SET, MAC_TABLE_SET, MQ, MQ_HASH_CONFIG, MQ_RSS_CONFIG, MQ_VQ_PAIRS_SET, NOTF_COAL,
    NOTF_COAL_RX_SET, NOTF_COAL_TX_SET, NOTF_COAL_VQ_GET, NOTF_COAL_VQ_SET, RX, RX_ALLMULTI,
    RX_ALLUNI, RX_NOBCAST, RX_NOMULTI, RX_NOUNI, RX_PROMISC, STATS, STATS_GET, STATS_QUERY, VLAN,
    VLAN_ADD, VLAN_DEL,
};
use vionet_spec::feature::{Feature, FeatureBits};

use super::state::Coalescing;
use crate::nic::QueueIndex;

/// A receive mode that can be switched (VIRTIO 1.4 §5.1.9.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Promiscuous,
    AllMulticast,
    AllUnicast,
    NoMulticast,
    NoUnicast,
    NoBroadcast,
}

/// What a driver commands. Tables are decoded where they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command<'a> {
    SetMode(Mode, bool),
    SetMacTable(&'a [u8]),
    SetMac([u8; 6]),
    Vlan { id: u16, accept: bool },
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
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "an unknown command, or one whose feature was not negotiated",
            Self::Malformed => "a command whose data does not have the length it must have",
            Self::Value => "a command with a value that is not allowed",
        })
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
            (MAC, MAC_ADDR_SET) => (Feature::CTRL_MAC_ADDR, Self::SetMac(exactly(data)?)),
            (VLAN, code @ (VLAN_ADD | VLAN_DEL)) => {
                let id = u16::from_le_bytes(exactly(data)?);
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
                (Feature::HASH_TUNNEL, Self::SetTunnels(u32::from_le_bytes(exactly(data)?)))
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
        let (feature, mode) = match code {
            RX_PROMISC => (Feature::CTRL_RX, Mode::Promiscuous),
            RX_ALLMULTI => (Feature::CTRL_RX, Mode::AllMulticast),
            RX_ALLUNI => (Feature::CTRL_RX_EXTRA, Mode::AllUnicast),
            RX_NOMULTI => (Feature::CTRL_RX_EXTRA, Mode::NoMulticast),
            RX_NOUNI => (Feature::CTRL_RX_EXTRA, Mode::NoUnicast),
            RX_NOBCAST => (Feature::CTRL_RX_EXTRA, Mode::NoBroadcast),
            _ => return Err(Refused::Unknown),
        };
        match exactly(data)? {
            [on @ (0 | 1)] => Ok((feature, Self::SetMode(mode, on == 1))),
            [_] => Err(Refused::Value),
        }
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
