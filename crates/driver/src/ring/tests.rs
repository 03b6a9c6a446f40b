//! The rings against a device that we play, honest or not, and against the device side of ours.

use proptest::prelude::*;
use vionet_queue::{
    Armed, Batch, Cursor, DeviceWrites, Format, Published, Queue, QueueSetup, RingFeatures,
};
use vionet_raw::{Descriptor, UserAddr};
use vionet_spec::ring::DESC_F_WRITE;

use super::*;
use crate::memory::{GUEST_BASE, Memory};
use crate::model::Device;

const SIZE: u16 = 8;

fn shape(format: RingFormat, writable: bool) -> Shape {
    Shape { format, size: SIZE, event_idx: true, in_order: false, writable }
}

fn pair(writable: bool) -> (Memory, Ring, Device) {
    let memory = Memory::new(ring_bytes(SIZE)).unwrap();
    let shape = shape(RingFormat::Split, writable);
    let ring = Ring::new(&memory.space, GUEST_BASE, shape).unwrap();
    let device = Device::of(&memory.space, ring.place());
    (memory, ring, device)
}

fn place(index: u16) -> u64 {
    GUEST_BASE + u64::from(index) * 100
}

#[test]
fn what_is_lent_reaches_the_device_only_when_published() {
    for (writable, flags) in [(true, DESC_F_WRITE), (false, 0)] {
        let (_memory, mut ring, mut device) = pair(writable);
        ring.lend(3, place(3), 50);
        assert_eq!(device.take(), None);
        assert!(ring.publish(), "the first buffer is kicked for");
        let descriptor = Descriptor { addr: place(3), len: 50, flags, next: 0 };
        assert_eq!(device.take(), Some((3, descriptor)));
        assert_eq!(device.take(), None);
    }
}

#[test]
fn kicks_and_calls_come_when_asked_for_and_only_then() {
    let (_memory, mut ring, mut device) = pair(true);
    (0..4).for_each(|index| ring.lend(index, place(index), 1));
    assert!(ring.publish());
    assert!(!ring.publish(), "nothing new");
    ring.lend(4, place(4), 1);
    assert!(!ring.publish(), "the device still works on the first");
    while device.take().is_some() {}
    device.arm();
    ring.lend(5, place(5), 1);
    assert!(ring.publish(), "the device sleeps");
    ring.lend(6, place(6), 1);
    assert!(!ring.publish(), "it has been kicked");
    assert!(!ring.arm(), "nothing is used yet");
    device.put(0, 1);
    assert!(device.publish(), "the driver sleeps");
    device.put(1, 1);
    assert!(!device.publish(), "the driver has been called");
    assert!(ring.arm(), "it would not sleep now");
}

#[test]
fn an_index_that_jumps_is_an_error() {
    let (_memory, mut ring, device) = pair(true);
    ring.lend(0, place(0), 1);
    ring.publish();
    for jump in [2, SIZE, SIZE + 1, 0x8000, u16::MAX] {
        device.used_idx.store_release(jump);
        assert!(matches!(ring.used(), Err(GuestError::Device("used.idx jumps"))), "{jump}");
    }
}

#[test]
fn a_buffer_that_the_device_does_not_have_is_an_error() {
    for id in [1, u32::from(SIZE), 0x1_0000, u32::MAX] {
        let (_memory, mut ring, mut device) = pair(true);
        ring.lend(0, place(0), 1);
        ring.publish();
        device.put(id, 1);
        device.publish();
        assert!(matches!(ring.used(), Err(GuestError::Device(_))), "id {id}");
    }
}

#[test]
fn a_buffer_that_is_not_published_yet_cannot_be_used() {
    let (_memory, mut ring, mut device) = pair(true);
    ring.lend(0, place(0), 1);
    ring.publish();
    device.put(0, 1);
    device.put(0, 1);
    device.used_idx.store_release(1);
    assert_eq!(ring.used().unwrap(), Some((0, 1)));
    ring.lend(0, place(0), 1);
    device.publish();
    assert!(matches!(ring.used(), Err(GuestError::Device("used.idx jumps"))));
    ring.publish();
    assert_eq!(ring.used().unwrap(), Some((0, 1)));
}

#[test]
fn a_buffer_used_twice_is_an_error() {
    let (_memory, mut ring, mut device) = pair(true);
    ring.lend(0, place(0), 1);
    ring.lend(1, place(1), 1);
    ring.publish();
    device.put(0, 1);
    device.put(0, 1);
    device.publish();
    assert_eq!(ring.used().unwrap(), Some((0, 1)));
    assert!(ring.used().is_err());
}

proptest! {
    /// An honest device, out of order, over the wrap of every index: each buffer comes back
    /// exactly once.
    #[test]
    fn every_buffer_comes_back_once(
        turns in prop::collection::vec((0..=SIZE, any::<u64>()), 1..200),
    ) {
        let (_memory, mut ring, mut device) = pair(true);
        let mut free: Vec<u16> = (0..SIZE).collect();
        let mut held: Vec<u16> = Vec::new();
        for (count, mut order) in turns {
            for _ in 0..count {
                let Some(index) = free.pop() else { break };
                ring.lend(index, place(index), 1);
            }
            ring.publish();
            while let Some((id, _)) = device.take() {
                held.push(id);
            }
            for _ in 0..count {
                if held.is_empty() { break }
                let id = held.swap_remove(order as usize % held.len());
                order /= 8;
                device.put(u32::from(id), u32::from(id) + 7);
            }
            device.publish();
            while let Some((index, len)) = ring.used().unwrap() {
                prop_assert_eq!(len, u32::from(index) + 7);
                prop_assert!(!free.contains(&index));
                free.push(index);
            }
        }
        prop_assert_eq!(free.len() + held.len(), usize::from(SIZE));
    }

    /// Any device at all: nothing panics, and no more comes back than was lent.
    #[test]
    fn whatever_the_device_writes_is_an_answer_or_an_error(
        used in prop::collection::vec((0..12_u32, any::<u32>()), 0..40), jump in any::<u16>(),
    ) {
        let (_memory, mut ring, mut device) = pair(true);
        (0..SIZE).for_each(|index| ring.lend(index, place(index), 1));
        ring.publish();
        for (id, len) in &used {
            device.put(*id, *len);
        }
        device.used_idx.store_release(jump);
        let mut back = 0;
        while let Ok(Some((index, _))) = ring.used() {
            prop_assert!(index < SIZE);
            back += 1;
        }
        prop_assert!(back <= SIZE);
    }
}

/// Our device's side of the same ring.
fn device(memory: &Memory, ring: &Ring, shape: Shape) -> Queue {
    let guest = |user| memory.space.map().guest_of(UserAddr(user)).unwrap();
    let RingPlace { size, base, descriptors, avail, used } = *ring.place();
    let setup = QueueSetup {
        size,
        descriptors: guest(descriptors),
        driver: guest(avail),
        device: guest(used),
    };
    let features = RingFeatures {
        format: match shape.format {
            RingFormat::Split => Format::Split,
            RingFormat::Packed => Format::Packed,
        },
        event_idx: shape.event_idx,
        indirect: false,
        in_order: shape.in_order,
    };
    let from = Cursor { avail: base as u16, used: (base >> 16) as u16 };
    setup.activate(&memory.space, features, from).unwrap()
}

fn shapes() -> impl Strategy<Value = Shape> {
    (any::<bool>(), 0..3_usize, any::<bool>(), any::<bool>()).prop_map(
        |(packed, size, event_idx, in_order)| Shape {
            format: if packed { RingFormat::Packed } else { RingFormat::Split },
            // A packed ring has any size.
            size: if packed { [1, 7, 12][size] } else { [1, 8, 16][size] },
            event_idx,
            in_order,
            writable: true,
        },
    )
}

proptest! {
    /// Over many laps of either format each buffer comes back once with its length, and in order
    /// where that was agreed; who sleeps is woken.
    #[test]
    fn both_sides_of_ours_understand_each_other(
        shape in shapes(), turns in prop::collection::vec((0..=16_usize, 0..=16_usize), 1..120),
    ) {
        let memory = Memory::new(ring_bytes(shape.size) + 4096).unwrap();
        let mut ring = Ring::new(&memory.space, GUEST_BASE, shape).unwrap();
        let mut queue = device(&memory, &ring, shape);
        let mut batch = Batch::<DeviceWrites>::new(memory.space.clone(), 0);
        let mut free: std::collections::VecDeque<u16> = (0..shape.size).collect();
        let at = GUEST_BASE + ring_bytes(shape.size);
        let (mut lent, mut back, mut taken) = (0_u32, 0_u32, 0_u32);
        for (post, take) in turns {
            let slept = queue.arm() == Armed::Sleep;
            for _ in 0..post.min(free.len()) {
                ring.lend(free.pop_front().unwrap(), at + u64::from(lent % 64), 100);
                lent += 1;
            }
            let kick = ring.publish();
            prop_assert!(!slept || kick == (lent > taken), "slept, and was not kicked");
            queue.disarm();
            taken += queue.take(take.min(256), &mut batch).unwrap() as u32;
            for row in 0..batch.len() {
                batch.set_written(row, row as u32 + 1);
            }
            let awaited = !ring.arm();
            let count = batch.len();
            queue.put(&mut batch, count);
            let interrupt = queue.publish() == Published::Interrupt;
            prop_assert!(!awaited || interrupt == (count > 0), "awaited, and not interrupted");
            ring.disarm();
            let mut len = 0;
            while let Some((index, written)) = ring.used().unwrap() {
                len += 1;
                prop_assert_eq!(written, len, "a length went to another buffer");
                if shape.in_order {
                    prop_assert_eq!(index, (back % u32::from(shape.size)) as u16);
                }
                prop_assert!(!free.contains(&index));
                free.push_back(index);
                back += 1;
            }
            prop_assert_eq!(back, taken);
        }
        prop_assert_eq!(lent - back, u32::from(shape.size) - free.len() as u32);
    }

    /// Any device at all on a packed ring: an answer or an error, and no more back than was lent.
    #[test]
    fn whatever_a_packed_device_writes_is_an_answer_or_an_error(
        writes in prop::collection::vec(
            (0..8_u64, any::<u16>(), any::<u32>(), any::<u16>()), 0..40,
        ),
        in_order in any::<bool>(),
    ) {
        let mut memory = Memory::new(ring_bytes(SIZE)).unwrap();
        let shape = Shape { in_order, ..shape(RingFormat::Packed, true) };
        let mut ring = Ring::new(&memory.space, GUEST_BASE, shape).unwrap();
        (0..SIZE).for_each(|index| ring.lend(index, GUEST_BASE, 1));
        ring.publish();
        for (slot, id, len, flags) in writes {
            let id = if id & 1 == 0 { id % 10 } else { id };
            let flags = if flags & 1 == 0 { 0x8080 | flags & 2 } else { flags };
            let words = [&len.to_le_bytes()[..], &id.to_le_bytes(), &flags.to_le_bytes()].concat();
            memory.write(GUEST_BASE + 16 * slot + 8, &words).unwrap();
        }
        let mut back = 0;
        while let Ok(Some((index, _))) = ring.used() {
            prop_assert!(index < SIZE);
            back += 1;
        }
        prop_assert!(back <= SIZE);
    }
}

/// The device may name the last of several buffers only (VIRTIO 1.4 §2.7.9, §2.8.7).
#[test]
fn a_run_in_order_comes_back_whole() {
    for format in [RingFormat::Split, RingFormat::Packed] {
        for (writable, skipped) in [(true, 50), (false, 0)] {
            let mut memory = Memory::new(ring_bytes(SIZE)).unwrap();
            let shape = Shape { in_order: true, ..shape(format, writable) };
            let mut ring = Ring::new(&memory.space, GUEST_BASE, shape).unwrap();
            (0..5).for_each(|index| ring.lend(index, GUEST_BASE, 50));
            ring.publish();
            let len = if writable { 7_u32 } else { 0 };
            match format {
                RingFormat::Split => {
                    let used = memory.space.map().guest_of(UserAddr(ring.place().used)).unwrap().0;
                    let words = [0, 0, 4, 0, 3, 0, 0, 0];
                    memory.write(used, &words).unwrap();
                    memory.write(used + 8, &len.to_le_bytes()).unwrap();
                }
                RingFormat::Packed => {
                    let flags = 0x8080 | if writable { 2_u16 } else { 0 };
                    let words =
                        [&len.to_le_bytes()[..], &3_u16.to_le_bytes(), &flags.to_le_bytes()];
                    memory.write(GUEST_BASE + 8, &words.concat()).unwrap();
                }
            }
            let back: Vec<_> = std::iter::from_fn(|| ring.used().unwrap()).collect();
            let whole = [(0, skipped), (1, skipped), (2, skipped), (3, len)];
            assert_eq!(back, whole, "{format:?}");
        }
    }
}

/// Kicks and interrupts without EVENT_IDX.
#[test]
fn flags_are_heeded_where_there_is_no_event_index() {
    for format in [RingFormat::Split, RingFormat::Packed] {
        let memory = Memory::new(ring_bytes(SIZE)).unwrap();
        let shape = Shape { event_idx: false, ..shape(format, true) };
        let mut ring = Ring::new(&memory.space, GUEST_BASE, shape).unwrap();
        let mut queue = device(&memory, &ring, shape);
        let mut batch = Batch::<DeviceWrites>::new(memory.space.clone(), 0);
        queue.disarm();
        ring.lend(0, GUEST_BASE, 1);
        assert!(!ring.publish(), "kicked for nothing");
        assert_eq!(queue.arm(), Armed::WorkArrived);
        ring.lend(1, GUEST_BASE, 1);
        assert!(ring.publish());
        assert_eq!(queue.take(8, &mut batch).unwrap(), 2);
        ring.disarm();
        queue.put(&mut batch, 1);
        assert_eq!(queue.publish(), Published::Quiet);
        assert!(ring.arm(), "one is there");
        queue.put(&mut batch, 1);
        assert_eq!(queue.publish(), Published::Interrupt);
    }
}
