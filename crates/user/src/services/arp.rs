//! ARP (RFC 826): who has our IPv4 addresses.
//!
//! Every address of ours has the same MAC address. For any other address we are silent: the guest
//! finds its own addresses free (RFC 5227), and reaches the world through the gateway.

use std::net::Ipv4Addr;

use vionet_frame::build::{ARP_FRAME_LEN, arp};
use vionet_frame::parse::{Arp, Mac};

use super::{DropReason, Handled, ReplyBuf, answered};

const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// Answers for our addresses, of which `owns` knows, with our `mac`.
pub(crate) fn answer(
    mac: Mac,
    owns: impl Fn(Ipv4Addr) -> bool,
    from: Mac,
    message: &Arp,
    out: &mut ReplyBuf,
) -> Handled {
    match message.operation {
        REQUEST if owns(message.target_ip) => {}
        REQUEST | REPLY => return Handled::Absorbed,
        _ => return Handled::Dropped(DropReason::Unsupported),
    }
    let reply = Arp {
        operation: REPLY,
        sender_mac: mac,
        sender_ip: message.target_ip,
        target_mac: message.sender_mac,
        target_ip: message.sender_ip,
    };
    answered(out.push(ARP_FRAME_LEN, |room| arp(room, from, mac, &reply).is_ok()))
}
