//! Cutting and joining 64 KiB frames beside a copy of the same bytes.
#![allow(
    missing_docs,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a bench may stop, and its entry point is made by a macro"
)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use vionet_frame::coalesce::{Arrival, coalesce};
use vionet_frame::header::{CsumAt, Gso, GsoRequest, Offloads, Request};
use vionet_frame::segment::{SEGMENT_HEADERS_MAX, Segments};

const FRAME_LEN: u16 = 65_000;

/// A TCP frame over IPv4 to be cut into segments of 1448 bytes.
fn long_frame() -> (Vec<u8>, Request) {
    let [n0, n1] = (FRAME_LEN - 14).to_be_bytes();
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, n0, n1, 0, 1, 0x40, 0];
    frame.extend([64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1]);
    frame.extend([0x80, 0x10, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    frame.extend((0_u8..=255).cycle().take(usize::from(FRAME_LEN) - frame.len()));
    let csum = Some(CsumAt { start: 34, offset: 16 });
    let gso = Some(GsoRequest { kind: Gso::TcpV4, size: 1448, ecn: false });
    (frame, Request { csum, gso, tunnel: None })
}

/// Cuts the frame; returns something that depends on every segment's headers.
fn cut(frame: &[u8], request: &Request, can: Offloads) -> usize {
    let mut room = [0; SEGMENT_HEADERS_MAX];
    let mut sum = 0;
    let mut segments = Segments::new(frame, request).unwrap();
    while let Some(segment) = segments.next_into(&mut room) {
        segment.finish(&mut room, can);
        sum += usize::from(black_box(&room)[51]) + segment.payload.len();
    }
    sum
}

fn cutting_beside_copy(c: &mut Criterion) {
    let mut group = c.benchmark_group("offload");
    let (frame, request) = long_frame();
    let mut to = frame.clone();
    group.throughput(Throughput::Bytes(FRAME_LEN.into()));
    group.bench_function("copy", |b| {
        b.iter(|| black_box(&mut to).copy_from_slice(black_box(&frame)));
    });
    group.bench_function("cut, checksums open", |b| {
        b.iter(|| cut(black_box(&frame), &request, Offloads::CSUM));
    });
    group.bench_function("cut, checksums complete", |b| {
        b.iter(|| cut(black_box(&frame), &request, Offloads::NONE));
    });
    group.bench_function("copy, cut, checksums complete", |b| {
        b.iter(|| {
            black_box(&mut to).copy_from_slice(black_box(&frame));
            cut(black_box(&to), &request, Offloads::NONE)
        });
    });
    group.finish();
}

fn joining_beside_copy(c: &mut Criterion) {
    let mut group = c.benchmark_group("join");
    let (frame, request) = long_frame();
    let mut frames = Vec::new();
    let mut room = [0; SEGMENT_HEADERS_MAX];
    let mut segments = Segments::new(&frame, &request).unwrap();
    while let Some(segment) = segments.next_into(&mut room) {
        segment.finish(&mut room, Offloads::NONE);
        frames.push([&room[..segment.header_len], segment.payload].concat());
    }
    let mut to = frame.clone();
    group.throughput(Throughput::Elements(u64::try_from(frames.len()).unwrap()));
    group.bench_function("copy", |b| {
        b.iter(|| black_box(&mut to).copy_from_slice(black_box(&frame)));
    });
    for (name, validated) in [("checksums taken", false), ("checksums vouched for", true)] {
        let arrived = |bytes| Arrival { bytes, validated, ..Arrival::default() };
        let arrivals: Vec<_> = frames.iter().map(|bytes| arrived(bytes)).collect();
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut count = 0;
                coalesce(black_box(&arrivals), Offloads::ALL, |joined| {
                    count += black_box(joined).pieces().count();
                });
                count
            });
        });
    }
    group.finish();
}

criterion_group!(benches, cutting_beside_copy, joining_beside_copy);
criterion_main!(benches);
