//! Spans and their store against plain slices of bytes; the memory lies between pages that fault.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "tests may stop"
)]

use std::sync::Arc;

use proptest::prelude::*;
use vionet_raw::host::mmap::Mapping;
use vionet_raw::{
    Access, AddressSpace, GuestAddr, MemoryMap, Pushed, ReadSpan, SpanStore, UserAddr, WriteSpan,
    copy_behind, copy_in, copy_out,
};

const PAGE: u64 = 4096;
/// Three regions of a page that touch, from here on; behind them a hole and one more.
const BASE: u64 = 0x10_000;
const LEN: u64 = 3 * PAGE;
const FAR: u64 = 0x100_000;

/// Memory whose byte at `BASE + i` is a function of `i`.
fn memory() -> Arc<AddressSpace> {
    let starts = [BASE, BASE + PAGE, BASE + 2 * PAGE, FAR];
    let regions = starts.map(|at| {
        Mapping::guarded(PAGE as usize).unwrap().into_region(GuestAddr(at), UserAddr(at))
    });
    let space = Arc::new(AddressSpace::new(Arc::new(MemoryMap::new(regions.into()).unwrap())));
    let mut store = SpanStore::<4>::new(Arc::clone(&space), Access::Both);
    assert_eq!(store.push(GuestAddr(BASE), LEN as u32), Pushed::Added(3));
    let bytes: Vec<u8> = (0..LEN).map(byte_at).collect();
    assert_eq!(copy_in(store.writable(0, 3), 0, &bytes), bytes.len());
    space
}

fn byte_at(offset: u64) -> u8 {
    (offset % 251) as u8
}

fn bytes_at(at: u64, len: u64) -> Vec<u8> {
    (at - BASE..at - BASE + len).map(byte_at).collect()
}

fn all(spans: &[ReadSpan<'_>]) -> Vec<u8> {
    let mut out = vec![0; spans.iter().map(ReadSpan::len).sum()];
    assert_eq!(copy_out(spans, 0, &mut out), out.len());
    out
}

/// How many spans `len` bytes (1 at least) at `at` make, or `None` when they are not all mapped.
fn spans_of(at: u64, len: u64) -> Option<usize> {
    (at >= BASE && at + len <= BASE + LEN)
        .then(|| ((at + len - 1 - BASE) / PAGE - (at - BASE) / PAGE + 1) as usize)
}

proptest! {
    #[test]
    fn a_store_holds_what_was_pushed_and_nothing_of_what_was_refused(
        pushes in prop::collection::vec((BASE - 20..BASE + LEN + 20, 1..2 * PAGE), 1..12),
    ) {
        let mut store = SpanStore::<8>::new(memory(), Access::Both);
        let mut expected = Vec::new();
        for (at, len) in pushes {
            let (before, bytes) = (store.len(), expected.len());
            match store.push(GuestAddr(at), len as u32) {
                Pushed::Added(spans) => {
                    prop_assert_eq!(Some(spans), spans_of(at, len));
                    prop_assert_eq!(store.len(), before + spans);
                    expected.extend(bytes_at(at, len));
                    prop_assert_eq!(all(store.readable(before, spans)), &expected[bytes..]);
                }
                Pushed::Full => {
                    // Whether the rest is mapped is not asked any more.
                    let spans = spans_of(at, len).unwrap_or(usize::MAX);
                    prop_assert!(before.saturating_add(spans) > 8);
                    prop_assert_eq!(store.len(), before);
                }
                Pushed::Unmapped | Pushed::Missing => {
                    prop_assert_eq!((spans_of(at, len), store.len()), (None, before));
                }
            }
            prop_assert_eq!(all(store.readable(0, store.len())), &expected[..]);
        }
    }

    #[test]
    fn dropping_trimming_and_truncating_leave_the_right_bytes(
        lens in prop::collection::vec(1..600_u64, 1..8),
        drop in 0..10_usize,
        (position, cut) in (0..10_usize, 0..700_usize),
        keep in 0..10_usize,
    ) {
        let mut store = SpanStore::<8>::new(memory(), Access::Both);
        let mut model: Vec<Vec<u8>> = Vec::new();
        for (index, len) in lens.iter().enumerate() {
            let at = BASE + 400 * index as u64;
            prop_assert_eq!(store.push(GuestAddr(at), *len as u32), Pushed::Added(1));
            model.push(bytes_at(at, *len));
        }
        store.trim(position, cut);
        if let Some(span) = model.get_mut(position) {
            span.drain(..cut.min(span.len()));
        }
        store.drop_front(drop);
        model.drain(..drop.min(model.len()));
        store.truncate(keep);
        model.truncate(keep);
        prop_assert_eq!((store.len(), store.is_empty()), (model.len(), model.is_empty()));
        for (index, bytes) in model.iter().enumerate() {
            prop_assert_eq!(&all(store.readable(index, 1)), bytes);
            prop_assert_eq!(store.writable(index, 1)[0].len(), bytes.len());
        }
        prop_assert!(store.readable(0, model.len() + 1).is_empty(), "no range but a whole one");
        prop_assert!(store.readable(usize::MAX, 2).is_empty());
    }

    #[test]
    fn copies_move_a_run_of_bytes_whatever_the_spans(
        cuts in prop::collection::vec(1..300_u64, 1..8),
        offset in 0..2500_usize,
        len in 0..2500_usize,
    ) {
        let total = cuts.iter().sum::<u64>() as usize;
        let mut from = SpanStore::<8>::new(memory(), Access::Both);
        let mut at = BASE + 17;
        for cut in &cuts {
            prop_assert_eq!(from.push(GuestAddr(at), *cut as u32), Pushed::Added(1));
            at += cut;
        }
        let source = from.readable(0, cuts.len());
        let expected = bytes_at(BASE + 17, total as u64);
        let moved = total.saturating_sub(offset).min(len);
        let mut out = vec![0xee; len];
        prop_assert_eq!(copy_out(source, offset, &mut out), moved);
        prop_assert_eq!(&out[..moved], &expected[offset.min(total)..][..moved]);
        prop_assert!(out[moved..].iter().all(|byte| *byte == 0xee), "nothing behind it");

        let target = from.writable(0, cuts.len());
        let fresh: Vec<u8> = (0..len).map(|index| !(index as u8)).collect();
        prop_assert_eq!(copy_in(target, offset, &fresh), moved);
        let mut after = expected;
        after.splice(offset.min(total)..offset.min(total) + moved, fresh[..moved].iter().copied());
        prop_assert_eq!(all(source), after);
    }

    #[test]
    fn bytes_go_through_from_any_spans_to_any_others(
        from in prop::collection::vec(0..200_usize, 0..6),
        to in prop::collection::vec(0..200_usize, 0..6),
        skip in prop_oneof![Just(0), 0..300_usize],
    ) {
        let bytes: Vec<u8> = (0..from.iter().sum::<usize>()).map(|at| byte_at(at as u64)).collect();
        let mut rest = &bytes[..];
        let source: Vec<_> = from.iter().map(|len| {
            let (part, behind) = rest.split_at_checked(*len).unwrap();
            rest = behind;
            ReadSpan::local(part)
        }).collect();
        let mut rooms: Vec<Vec<u8>> = to.iter().map(|len| vec![0xee; *len]).collect();
        let targets: Vec<_> = rooms.iter_mut().map(|room| WriteSpan::local(room)).collect();
        let moved = copy_behind(&source, &targets, skip);
        let room = rooms.concat();
        let end = skip + moved;
        prop_assert_eq!(moved, bytes.len().min(room.len()).saturating_sub(skip));
        if moved > 0 {
            prop_assert_eq!(&room[skip..end], &bytes[skip..end]);
        }
        let untouched = |at: usize| at < skip || at >= end;
        prop_assert!((0..room.len()).all(|at| !untouched(at) || room[at] == 0xee));
    }

    #[test]
    fn a_split_span_is_its_two_parts(len in 0..100_usize, at in 0..200_usize) {
        let bytes: Vec<u8> = (0..len as u64).map(byte_at).collect();
        let (head, tail) = ReadSpan::local(&bytes).split(at);
        prop_assert_eq!((head.len(), tail.len()), (at.min(len), len.saturating_sub(at)));
        prop_assert_eq!(&all(&[head, tail]), &bytes);
        prop_assert_eq!((head.is_empty(), tail.is_empty()), (at.min(len) == 0, at >= len));
    }

    #[test]
    fn reading_by_address_is_all_or_nothing(at in BASE - 20..BASE + LEN + 20, len in 1..2 * PAGE) {
        let mut out = vec![0; len as usize];
        let read = memory().read(GuestAddr(at), &mut out);
        prop_assert_eq!(read, spans_of(at, len).is_some());
        if read {
            prop_assert_eq!(out, bytes_at(at, len));
        }
    }
}

#[test]
fn addresses_at_the_ends_of_the_address_space_are_not_mapped() {
    let mut store = SpanStore::<8>::new(memory(), Access::Both);
    for (at, len) in [(0, 1), (u64::MAX, 1), (u64::MAX, u32::MAX), (u64::MAX - 1, 2)] {
        assert_eq!(store.push(GuestAddr(at), len), Pushed::Unmapped);
    }
    assert_eq!(store.push(GuestAddr(BASE), u32::MAX), Pushed::Unmapped);
    assert_eq!(store.push(GuestAddr(BASE + LEN - 1), 2), Pushed::Unmapped);
    assert_eq!(store.push(GuestAddr(FAR + PAGE - 1), 1), Pushed::Added(1));
    assert_eq!(store.push(GuestAddr(FAR - 1), 0), Pushed::Added(0), "nothing is nowhere");
}

#[test]
fn one_page_posted_as_source_and_target_may_overlap() {
    let mut store = SpanStore::<2>::new(memory(), Access::Both);
    assert_eq!(store.push(GuestAddr(BASE), 100), Pushed::Added(1));
    assert_eq!(store.push(GuestAddr(BASE + 10), 100), Pushed::Added(1));
    assert_eq!(copy_behind(store.readable(0, 1), store.writable(1, 1), 0), 100);
    assert_eq!(all(store.readable(1, 1)), bytes_at(BASE, 100));
}

#[test]
fn a_store_keeps_its_memory_after_everyone_else_has_let_go() {
    let mut store = SpanStore::<2>::new(memory(), Access::Both);
    assert_eq!(store.push(GuestAddr(BASE), 5), Pushed::Added(1));
    // The only other handle was the one `memory` gave out.
    assert_eq!(Arc::strong_count(store.space()), 1);
    assert_eq!(all(store.readable(0, 1)), bytes_at(BASE, 5));
}

#[test]
fn a_frame_is_written_behind_the_head_that_was_seen_or_not_at_all() {
    let (mut from, mut to) = ([1; 20], [0xee; 24]);
    let (frame, room) = (ReadSpan::local(&from), WriteSpan::local(&mut to));
    assert!(room.write_frame(&[9; 12], &frame));
    assert!(!room.write_frame(&[8; 21], &frame), "the head is longer than the frame");
    assert!(room.write_frame(&[], &frame.split(3).0));
    from[0] = 2;
    assert_eq!(to, [&[1; 3][..], &[9; 9], &[1; 8], &[0xee; 4]].concat()[..]);
    let mut short = [0xee; 19];
    assert!(!WriteSpan::local(&mut short).write_frame(&[9; 12], &ReadSpan::local(&from)));
    assert_eq!(short, [0xee; 19]);
}

#[test]
fn what_is_read_whole_is_there_whole() {
    let bytes: [u8; 23] = core::array::from_fn(|at| at as u8 * 11);
    let span = ReadSpan::local(&bytes);
    assert_eq!(span.read::<23>(), Some(bytes));
    assert_eq!(span.read::<12>().as_ref(), bytes.first_chunk());
    assert_eq!(span.split(5).1.read::<8>().as_ref(), bytes[5..].first_chunk());
    assert_eq!((span.read::<0>(), span.read::<24>()), (Some([]), None));
}

#[test]
fn what_is_there_already_is_as_good_as_written() {
    let mut room = [7, 7, 7, 7, 7];
    let span = WriteSpan::local(&mut room);
    assert!(span.write_if_new(&[7, 7, 7, 7]));
    assert!(span.write_if_new(&[1, 7, 7, 2]), "one byte is enough to differ");
    assert!(!span.write_if_new(&[9; 6]), "it does not fit");
    assert_eq!(room, [1, 7, 7, 2, 7]);
}

/// Whichever way this processor prefers: both are the same copy, of nothing that does not fit.
#[test]
fn a_string_move_is_a_copy_and_stays_inside() {
    let from: Vec<u8> = (0..=250_u8).cycle().take(600).collect();
    for len in (0..=300).chain([511, 512, 513]) {
        let mut room = vec![0xee_u8; len + 16];
        let (there, behind) = room.split_at_mut_checked(len).unwrap();
        let span = WriteSpan::local(there);
        assert!(span.move_all(&from[..len]));
        assert!(!span.move_all(&from[..len + 1]), "{len} and one more do not fit");
        assert_eq!(there, &from[..len]);
        assert_eq!(behind, [0xee; 16]);
    }
}
