//! The virtio header and the frame behind it: decoded, judged, parsed, its checksum completed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vionet_frame::checksum;
use vionet_frame::header::{NetHeader, Offloads, check};
use vionet_frame::parse::parse;

fuzz_target!(|bytes: &[u8]| {
    let Some((raw, frame)) = bytes.split_first_chunk() else { return };
    let header = NetHeader::decode_long(raw);
    let again = NetHeader::decode_long(&header.encode_long());
    assert_eq!(again, header, "decode and encode are inverse");

    let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    if let Ok(request) = check(&header, len, Offloads::ALL) {
        if let Some(at) = request.csum {
            assert!(at.end() <= len, "the checksum lies inside the frame");
            let mut copy = frame.to_vec();
            assert!(checksum::complete(&mut copy, at).is_ok(), "judged good, so it completes");
        }
    }
    if let Ok(parsed) = parse(frame, frame.len()) {
        assert!(parsed.l3 <= frame.len(), "the network layer begins inside the frame");
    }
});
