//! ARP (RFC 826): who has our IPv4 addresses.
//!
//! Every address of ours has the same MAC address. For any other address we are silent: the guest
//! finds its own addresses free (RFC 5227), and reaches the world through the gateway.

use vionet_frame::build::{ARP_FRAME_LEN, arp};
use vionet_frame::parse::{Arp, Mac};

use super::{DropReason, Handled, Link, ReplyBuf, answered};

const REQUEST: u16 = 1;
const REPLY: u16 = 2;

pub(super) fn answer(link: &Link, from: Mac, message: &Arp, out: &mut ReplyBuf) -> Handled {
    match message.operation {
        REQUEST if link.owns_v4(message.target_ip) => {}
        REQUEST | REPLY => return Handled::Absorbed,
        _ => return Handled::Dropped(DropReason::Unsupported),
    }
    let reply = Arp {
        operation: REPLY,
        sender_mac: link.mac,
        sender_ip: message.target_ip,
        target_mac: message.sender_mac,
        target_ip: message.sender_ip,
    };
    answered(out.push(ARP_FRAME_LEN, |room| arp(room, from, link.mac, &reply).is_ok()))
}
