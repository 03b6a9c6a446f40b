//! A frame's hash and its pair, beside reading the frame whole.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a bench may stop, and its entry point is made by a macro"
)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use vionet_frame::hash::{FlowHash, HASH_HEAD_LEN};
use vionet_frame::parse::parse;
use vionet_frame::steer::AutoSteer;
use vionet_spec::hash::{TUNNELS_ALL, TYPES_ALL};

const TCP: u8 = 6;
const UDP: u8 = 17;

fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [l0, l1] = u16::try_from(payload.len()).unwrap().wrapping_add(20).to_be_bytes();
    let fixed = [8, 0, 0x45, 0, l0, l1, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    [&[2; 12][..], &fixed, &[10, 0, 2, 15, 93, 184, 216, 34], payload].concat()
}

fn v6(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [l0, l1] = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let fixed = [0x86, 0xdd, 0x60, 0, 0, 0, l0, l1, protocol, 64];
    [&[2; 12][..], &fixed, &[0xfd; 32], payload].concat()
}

fn hash_beside_parse(c: &mut Criterion) {
    let mut tcp = [7; 72];
    let [_, _, _, _, _, _, _, _, _, _, _, _, offset, ..] = &mut tcp;
    *offset = 5 << 4;
    let vxlan = [&[0xc0, 1, 0x12, 0xb5, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0][..], &v4(TCP, &tcp)];
    let frames =
        [("v4", v4(TCP, &tcp)), ("v6", v6(TCP, &tcp)), ("vxlan", v4(UDP, &vxlan.concat()))];
    let hash = FlowHash::new(&[0x6d; 40], TYPES_ALL).unwrap().with_tunnels(TUNNELS_ALL);
    let steer = Box::new(AutoSteer::new(0x5eed));

    let mut group = c.benchmark_group("hash");
    for (name, mut frame) in frames {
        frame.resize(HASH_HEAD_LEN, 0);
        group.bench_with_input(BenchmarkId::new("hash", name), &frame, |b, frame| {
            b.iter(|| hash.of(black_box(frame)));
        });
        group.bench_with_input(BenchmarkId::new("sent", name), &frame, |b, frame| {
            b.iter(|| steer.sent(black_box(frame), 3));
        });
        group.bench_with_input(BenchmarkId::new("queue_of", name), &frame, |b, frame| {
            b.iter(|| steer.queue_of(black_box(frame), 8, |_| true));
        });
        group.bench_with_input(BenchmarkId::new("parse", name), &frame, |b, frame| {
            b.iter(|| parse(black_box(frame), frame.len()));
        });
    }
    group.finish();
}

criterion_group!(benches, hash_beside_parse);
criterion_main!(benches);
