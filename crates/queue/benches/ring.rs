//! What a chain costs: taken, put and published in batches of 64 over a ring of 256.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark may stop"
)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use vionet_queue::{Batch, Cursor, DeviceReads, DeviceWrites, Direction, Queue};
use vionet_raw::{GuestAddr, SharedIndex, copy_out};
use vionet_testkit::{Arrangement, Buffer, GuestRam, SplitDriver};

const SIZE: u16 = 256;
/// A ring that does not stay in the first cache.
const LARGE: u16 = 16_384;
const BATCH: u16 = 64;
const BUFFERS: u64 = 0x100_0000;
const TABLES: u64 = 0x80_0000;

/// A ring whose chains are posted once; moving avail.idx on posts them again.
struct Ring {
    queue: Queue,
    avail_idx: SharedIndex,
    posted: u16,
    ram: GuestRam,
}

impl Ring {
    fn new(size: u16, chain: &[u32], writable: bool, indirect: bool) -> Self {
        let (pages, bytes) = (usize::from(size) * 4096 * 8, SplitDriver::ring_bytes(size));
        let regions = [(0x1000, bytes), (TABLES, 0x1_0000), (BUFFERS, pages)];
        let ram = GuestRam::new(&regions);
        let mut driver = SplitDriver::new(&ram, 0x1000, size, true, 0);
        let mut heads = 0;
        // 4 KiB apart, as buffers of a guest are.
        let mut at = BUFFERS;
        loop {
            let mut buffers = Vec::new();
            for len in chain {
                buffers.push(Buffer { at, len: *len, writable });
                at += 4096;
            }
            let table = TABLES + 256 * heads;
            let arrangement = if indirect {
                Arrangement::Indirect { direct: 0, table, reversed: false }
            } else {
                Arrangement::Direct
            };
            if driver.post(&buffers, arrangement).is_none() {
                break;
            }
            heads += 1;
        }
        // Chains of two fill half of the available ring: the other half names them again.
        let ring = driver.setup().driver.0 + 4;
        for slot in heads..u64::from(size) {
            ram.write_u16(ring + 2 * slot, ram.read_u16(ring + 2 * (slot % heads)));
        }
        let queue =
            driver.setup().activate(ram.space(), driver.features(), Cursor::default()).unwrap();
        let avail_idx = ram.space().index(GuestAddr(driver.setup().driver.0 + 2)).unwrap();
        Self { queue, avail_idx, posted: 0, ram }
    }

    fn turn<D: Direction>(&mut self, batch: &mut Batch<D>) {
        self.posted = self.posted.wrapping_add(BATCH);
        self.avail_idx.store_release(self.posted);
        let taken = self.queue.take(usize::from(BATCH), batch).unwrap();
        self.queue.put(black_box(batch), taken);
        let _told = black_box(self.queue.publish());
    }
}

fn measure<D: Direction>(criterion: &mut Criterion, name: &str, chain: &[u32], indirect: bool) {
    let mut ring = Ring::new(SIZE, chain, D::WRITABLE, indirect);
    let mut batch = Batch::<D>::new(ring.ram.space().clone(), 12);
    let mut group = criterion.benchmark_group("take, put, publish");
    group.throughput(Throughput::Elements(u64::from(BATCH)));
    group.bench_function(name, |bencher| bencher.iter(|| ring.turn(&mut batch)));
    group.finish();
}

/// A receive stock that is filled a chain at a time, and taken again when it is used up.
fn stock(criterion: &mut Criterion) {
    let mut ring = Ring::new(SIZE, &[2048], true, false);
    let mut batch = Batch::<DeviceWrites>::new(ring.ram.space().clone(), 12);
    criterion.bench_function("put one chain of a stock", |bencher| {
        bencher.iter(|| {
            if batch.is_empty() {
                ring.posted = ring.posted.wrapping_add(SIZE);
                ring.avail_idx.store_release(ring.posted);
                ring.queue.take(usize::from(SIZE), &mut batch).unwrap();
            }
            batch.set_written(0, 60);
            ring.queue.put(black_box(&mut batch), 1);
            let _told = black_box(ring.queue.publish());
        });
    });
}

/// Transmit over a ring of 16384, each header copied out as a device does.
fn large(criterion: &mut Criterion) {
    let mut ring = Ring::new(LARGE, &[72], false, false);
    let mut batch = Batch::<DeviceReads>::new(ring.ram.space().clone(), 12);
    let mut group = criterion.benchmark_group("take, put, publish");
    group.throughput(Throughput::Elements(u64::from(BATCH)));
    group.bench_function("transmit, a large ring, headers copied", |bencher| {
        bencher.iter(|| {
            ring.posted = ring.posted.wrapping_add(BATCH);
            ring.avail_idx.store_release(ring.posted);
            let taken = ring.queue.take(usize::from(BATCH), &mut batch).unwrap();
            let mut header = [0; 12];
            for row in (0..taken).filter_map(|index| batch.row(index)) {
                black_box(copy_out(batch.lead(row), 0, &mut header));
            }
            ring.queue.put(&mut batch, taken);
            let _told = black_box(ring.queue.publish());
        });
    });
    group.finish();
}

fn chains(criterion: &mut Criterion) {
    measure::<DeviceReads>(criterion, "transmit, one descriptor", &[72], false);
    measure::<DeviceReads>(criterion, "transmit, header apart", &[12, 60], false);
    measure::<DeviceReads>(criterion, "transmit, table of two", &[12, 60], true);
    measure::<DeviceReads>(criterion, "transmit, table of eight", &[100; 8], true);
    measure::<DeviceWrites>(criterion, "receive, one descriptor", &[2048], false);
}

criterion_group!(benches, chains, stock, large);
criterion_main!(benches);
