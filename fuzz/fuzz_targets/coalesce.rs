//! Joining a batch of frames that resemble each other: each goes once, and what is joined can be
//! cut into what it was made of.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vionet_frame::coalesce::{ARRIVALS_MAX, Arrival, coalesce};
use vionet_frame::header::{CsumAt, Offloads, Request};
use vionet_frame::segment::{SEGMENT_HEADERS_MAX, Segments};

// The first byte says what the guest takes, then come frames: each a length, a mode, and bytes.
fuzz_target!(|bytes: &[u8]| {
    let Some((takes, mut rest)) = bytes.split_first() else { return };
    let can = match takes % 4 {
        0 => Offloads::ALL,
        1 => Offloads::ALL.difference(Offloads::ECN),
        2 => Offloads::CSUM,
        _ => Offloads::CSUM | Offloads::USO,
    };
    let mut arrivals = Vec::new();
    while let [len, mode, tail @ ..] = rest
        && arrivals.len() < ARRIVALS_MAX
    {
        let (bytes, behind) = tail.split_at(tail.len().min(usize::from(*len)));
        rest = behind;
        let csum = (mode & 2 != 0)
            .then_some(CsumAt { start: 34, offset: if mode & 4 == 0 { 16 } else { 6 } });
        let request = Request { csum, ..Request::default() };
        arrivals.push(Arrival { bytes, request, header_len: 0, validated: mode & 1 != 0 });
    }
    let mut seen = 0_u64;
    coalesce(&arrivals, can, |joined| {
        let bytes = joined.pieces().collect::<Vec<_>>().concat();
        assert_eq!(bytes.len(), joined.len() as usize);
        for place in joined.places() {
            assert_eq!(seen >> place & 1, 0, "no frame goes twice");
            seen |= 1 << place;
        }
        if joined.segments() == 1 {
            let place = joined.places().next().expect("one place");
            assert_eq!(bytes, arrivals[place].bytes, "one alone goes as it came");
            return;
        }
        assert!(joined.request().needs().is_subset(can), "only what the guest takes");
        let mut segments = Segments::new(&bytes, &joined.request()).expect("it can be cut");
        let mut room = [0; SEGMENT_HEADERS_MAX];
        for place in joined.places() {
            let segment = segments.next_into(&mut room).expect("into as many as it was made of");
            let came = arrivals[place].bytes;
            assert_eq!(came.get(segment.header_len..), Some(segment.payload));
        }
        assert!(segments.next_into(&mut room).is_none());
    });
    assert_eq!(seen.count_ones() as usize, arrivals.len(), "every frame goes");
});
