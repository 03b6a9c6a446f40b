//! Cutting a frame: every segment must read back as a whole frame, and none of the payload is lost.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vionet_frame::checksum::{self, Sum};
use vionet_frame::header::{NetHeader, Offloads, check};
use vionet_frame::parse::parse;
use vionet_frame::segment::{SEGMENT_HEADERS_MAX, SEGMENTS_MAX, Segments};

fuzz_target!(|bytes: &[u8]| {
    let Some((raw, frame)) = bytes.split_first_chunk() else { return };
    let Ok(len) = u32::try_from(frame.len()) else { return };
    let Ok(request) = check(&NetHeader::decode(raw), len, Offloads::ALL) else { return };
    let (Some(csum), Some(gso)) = (request.csum, request.gso) else { return };
    let Ok(mut segments) = Segments::new(frame, frame.len(), csum, gso) else { return };

    let mut room = [0; SEGMENT_HEADERS_MAX];
    let (mut next, mut count) = (None, 0);
    while let Some(segment) = segments.next_into(&mut room) {
        count += 1;
        assert!(count <= SEGMENTS_MAX, "the number of segments is bounded");
        assert!(segment.payload_len <= usize::from(gso.size), "no segment is too long");
        assert_eq!(next.unwrap_or(segment.payload), segment.payload, "no byte is left out");
        next = Some(segment.payload + segment.payload_len);

        let payload = &frame[segment.payload..segment.payload + segment.payload_len];
        let mut cut = [&room[..segment.header_len], payload].concat();
        parse(&cut, cut.len()).expect("a segment is a frame that can be read");

        segment.complete(&mut room, Sum::of(payload));
        let at = segment.request().csum.expect("a segment's checksum is open");
        checksum::complete(&mut cut, at).expect("it lies inside the segment");
        assert_eq!(room[..segment.header_len], cut[..segment.header_len], "two ways, one checksum");
    }
});
