//! Cutting a frame: every segment must read back as a whole frame, and none of the payload is lost.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vionet_frame::checksum::{self, Sum};
use vionet_frame::header::{Gso, NetHeader, Offloads, check};
use vionet_frame::parse::parse;
use vionet_frame::segment::{SEGMENT_HEADERS_MAX, SEGMENTS_MAX, Segments};

fuzz_target!(|bytes: &[u8]| {
    let Some((raw, frame)) = bytes.split_first_chunk() else { return };
    let Ok(len) = u32::try_from(frame.len()) else { return };
    let Ok(request) = check(&NetHeader::decode_long(raw), len, Offloads::ALL) else { return };
    let Some(gso) = request.gso else { return };
    let Ok(mut segments) = Segments::new(frame, &request) else { return };

    let mut room = [0; SEGMENT_HEADERS_MAX];
    let (mut payload, mut count, mut is_over) = (Vec::new(), 0, false);
    while let Some(segment) = segments.next_into(&mut room) {
        assert!(!is_over, "nothing follows the last one");
        is_over = segment.is_last;
        count += 1;
        assert!(count <= SEGMENTS_MAX, "the number of segments is bounded");
        assert!(segment.payload.len() <= usize::from(gso.size), "no segment is too long");
        payload.extend_from_slice(segment.payload);

        let mut cut = [&room[..segment.header_len], segment.payload].concat();
        let parsed = parse(&cut, cut.len()).expect("a segment is a frame that can be read");
        let ip = parsed.ip().expect("with an ip packet");
        assert_eq!(ip.end, cut.len(), "that fills it");
        assert!(ip.fragment.is_none() || gso.kind == Gso::Udp, "whole, but for fragments");

        segment.complete(&mut room, Sum::of(segment.payload));
        if let Some(at) = segment.request().csum {
            checksum::complete(&mut cut, at).expect("it lies inside the segment");
        }
        assert_eq!(room[..segment.header_len], cut[..segment.header_len], "two ways, one checksum");
    }
    assert!(is_over, "what can be cut is cut to its end");
    let at = frame.windows(payload.len().max(1)).any(|window| window == payload);
    assert!(at || payload.is_empty(), "no byte is left out");
});
