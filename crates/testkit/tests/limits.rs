//! Where a batch is full: rows, spans, and the chains that fit by a hair.
#![allow(clippy::arithmetic_side_effects, clippy::unwrap_used, reason = "tests may stop")]

use vionet_queue::{
    CHAIN_MAX, Cursor, DeviceReads, DeviceWrites, Fault, Published, ROWS_MAX, SPANS_MAX,
};
use vionet_testkit::{Arrangement, Buffer, GuestRam, Probe, Reach, SplitDriver};

const RING: u64 = 0x10_0000;
const TABLE: u64 = 0x30_0000;
const DATA: u64 = 0x40_0000;

fn sides<D: Reach>(size: u16, lead: u32) -> (SplitDriver, Probe<D>) {
    let (_, driver, probe) = ram_and_sides(size, lead);
    (driver, probe)
}

fn ram_and_sides<D: Reach>(size: u16, lead: u32) -> (GuestRam, SplitDriver, Probe<D>) {
    let ring = SplitDriver::ring_bytes(size);
    let ram = GuestRam::new(&[(RING, ring), (TABLE, 0x8000), (DATA, 0x1000)]);
    let driver = SplitDriver::new(&ram, RING, size, true, 0);
    let probe =
        Probe::new(&ram, driver.setup(), driver.features(), Cursor::default(), lead).unwrap();
    (ram, driver, probe)
}

fn table() -> Arrangement {
    Arrangement::Indirect { direct: 0, table: TABLE, reversed: true }
}

#[test]
fn a_full_batch_leaves_the_rest_in_the_ring_and_takes_it_when_there_is_room() {
    let (mut driver, mut probe) = sides::<DeviceReads>(1024, 12);
    for _ in 0..600 {
        driver.post(&[Buffer::readable(DATA, 64)], Arrangement::Direct).unwrap();
    }
    driver.expose();
    assert_eq!(probe.take(usize::MAX), Ok(ROWS_MAX));
    assert_eq!(probe.take(usize::MAX), Ok(0));
    probe.put(100);
    assert_eq!(probe.take(usize::MAX), Ok(100));
    probe.put(3);
    assert_eq!(probe.take(1), Ok(1));
    probe.untake();
    assert_eq!(probe.take(usize::MAX), Ok(ROWS_MAX));
}

#[test]
fn chains_whose_spans_do_not_fit_wait_for_the_next_batch() {
    let (mut driver, mut probe) = sides::<DeviceWrites>(1024, 12);
    let buffers = [Buffer::writable(DATA, 100); 100];
    for _ in 0..10 {
        driver.post(&buffers, Arrangement::Direct).unwrap();
    }
    driver.expose();
    // 101 spans each: the header's part of the first buffer is one of its own.
    assert_eq!(probe.take(usize::MAX), Ok(10));
    assert_eq!(probe.take(usize::MAX), Ok(0));
    let (mut driver, mut probe) = sides::<DeviceWrites>(2048, 12);
    for _ in 0..20 {
        driver.post(&buffers, Arrangement::Direct).unwrap();
    }
    driver.expose();
    assert_eq!(probe.take(usize::MAX), Ok(SPANS_MAX / 101));
    probe.put(4);
    assert_eq!(probe.take(usize::MAX), Ok(4), "where chains were there is room again");
    probe.put(10);
    assert_eq!(probe.take(usize::MAX), Ok(6));
}

#[test]
fn a_table_of_1024_buffers_is_a_chain_and_one_more_span_is_too_long() {
    let buffers = vec![Buffer::readable(DATA, 12); usize::from(CHAIN_MAX)];
    let (mut driver, mut probe) = sides::<DeviceReads>(8, 12);
    driver.post(&buffers, table()).unwrap();
    driver.expose();
    assert_eq!(probe.take(8), Ok(1));

    // The header ends inside the first buffer, which so has two spans.
    let (mut driver, mut probe) = sides::<DeviceReads>(8, 11);
    driver.post(&buffers, table()).unwrap();
    driver.expose();
    assert_eq!(probe.take(8), Err(Fault::ChainTooLong));
    assert_eq!(probe.held(), 0);
}

#[test]
fn a_chain_that_does_not_fit_beside_others_is_tried_again_alone() {
    let (mut driver, mut probe) = sides::<DeviceReads>(8, 0);
    driver.post(&[Buffer::readable(DATA, 64)], Arrangement::Direct).unwrap();
    driver.post(&vec![Buffer::readable(DATA, 12); usize::from(CHAIN_MAX)], table()).unwrap();
    driver.expose();
    assert_eq!(probe.take(8), Ok(1), "the long one stays in the ring");
    probe.put(1);
    assert_eq!(probe.take(8), Ok(1));
    probe.put(1);
    let _told = probe.publish();
    assert_eq!(driver.collect().len(), 2);
}

/// Else a driver that moves avail.idx while used entries are not visible yet has them overwritten
/// in a ring that they go round, and after 65536 of them the device would say nothing of them.
#[test]
fn no_more_chains_are_out_than_the_ring_has_until_the_driver_can_see_them_used() {
    for size in [1, 4, 256] {
        let (ram, mut driver, mut probe) = ram_and_sides::<DeviceReads>(size, 12);
        let avail_idx = driver.setup().driver.0 + 2;
        for _ in 0..size {
            driver.post(&[Buffer::readable(DATA, 64)], Arrangement::Direct).unwrap();
        }
        driver.expose();
        assert_eq!(probe.take(usize::MAX), Ok(usize::from(size)));
        probe.put(usize::from(size));
        assert_eq!(probe.take(usize::MAX), Ok(0), "that is no jump");
        ram.write(avail_idx, &(size + 1).to_le_bytes());
        assert_eq!(probe.take(usize::MAX), Err(Fault::IndexJump), "all {size} are still out");
        assert_eq!(probe.publish(), Published::Interrupt);
        assert_eq!(driver.collect().len(), usize::from(size));
    }
}
