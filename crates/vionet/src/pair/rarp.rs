//! A frame of our own: the RARP that tells switches where an address is now (VU-MSG-06).

use vionet_frame::header::Request;
use vionet_raw::ReadSpan;

use super::tx::{TxBatch, TxFrame};
use super::{Lane, QueuePair};
use crate::time::Instant;

const ETHERTYPE: [u8; 2] = [0x80, 0x35];
/// The shortest frame on a wire, without its check sum.
const LEN: usize = 60;

/// A broadcast by which `mac` asks for its own protocol address, which nobody will answer
/// (RFC 903).
fn frame(mac: [u8; 6]) -> [u8; LEN] {
    let mut frame = [0; LEN];
    let parts: [&[u8]; 9] = [
        &[0xff; 6],
        &mac,
        &ETHERTYPE,
        &[0, 1, 8, 0, 6, 4], // Ethernet and IPv4, lengths of their addresses
        &[0, 3],             // request reverse
        &mac,
        &[0; 4],
        &mac,
        &[0; 4],
    ];
    for (to, from) in frame.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
    }
    frame
}

impl QueuePair {
    /// Sends it out of the host side; at home only. A host side without room loses it: such
    /// frames are sent several times anyway.
    pub(crate) fn send_rarp(&mut self, mac: [u8; 6]) {
        let bytes = frame(mac);
        let frames = [TxFrame::private(0, LEN, Request::default())];
        let spans = [[ReadSpan::local(&bytes), ReadSpan::local(&[])]];
        let Some(Lane { batch, .. }) = &self.tx else { return };
        let guest = TxBatch::new(batch, &[], false, &self.stats.tx, Instant::default());
        let mut own = guest.private(&frames, &spans);
        let (Ok(()) | Err(_)) = self.endpoint.transmit(&mut own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announcement_is_a_broadcast_that_names_the_address_three_times() {
        let mac = [2, 3, 4, 5, 6, 7];
        let frame = frame(mac);
        assert_eq!(frame[..14], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 3, 4, 5, 6, 7, 0x80, 0x35]);
        assert_eq!(frame[14..22], [0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!((&frame[22..28], &frame[32..38]), (&mac[..], &mac[..]));
        assert!(frame[42..].iter().all(|byte| *byte == 0));
    }
}
