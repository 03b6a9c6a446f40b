//! The Internet checksum beside a copy of the same bytes.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a bench may stop, and its entry point is made by a macro"
)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vionet_frame::checksum::Sum;

fn checksum_beside_copy(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for len in [64_usize, 1500, 65_536] {
        let from: Vec<u8> = (0_u8..=255).cycle().take(len).collect();
        let mut to = from.clone();
        group.throughput(Throughput::Bytes(u64::try_from(len).unwrap()));
        group.bench_with_input(BenchmarkId::new("sum", len), &from, |b, from| {
            b.iter(|| Sum::of(black_box(from)));
        });
        group.bench_with_input(BenchmarkId::new("copy", len), &from, |b, from| {
            b.iter(|| black_box(&mut to).copy_from_slice(black_box(from)));
        });
    }
    group.finish();
}

criterion_group!(benches, checksum_beside_copy);
criterion_main!(benches);
