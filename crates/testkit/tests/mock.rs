//! rust-vmm's mock driver and its device queue, over the same memory: an independent reading of
//! the standard on both sides.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "tests may stop"
)]

use std::sync::Arc;

use vionet_queue::{Batch, Cursor, DeviceReads, Format, Queue, QueueSetup, RingFeatures};
use vionet_raw::{AddressSpace, GuestAddr, MemoryMap, copy_out};
use vionet_testkit::Random;
use virtio_queue::desc::{RawDescriptor, split};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue as TheirQueue, QueueOwnedT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const LEN: usize = 0x20_0000;
const SIZE: u16 = 64;

/// Theirs, and the same as a map of ours.
fn memory() -> (Arc<GuestMemoryMmap>, Arc<AddressSpace>) {
    let theirs = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), LEN)]).unwrap());
    let ours = MemoryMap::from_vm_memory(&theirs).unwrap();
    (theirs, Arc::new(AddressSpace::new(Arc::new(ours))))
}

/// Chains of the mock's, from descriptor 0 on, as `(address, bytes)` lists.
fn chains(random: &mut Random) -> Vec<RawDescriptor> {
    let mut descriptors = Vec::new();
    while descriptors.len() + 4 < usize::from(SIZE) {
        let count = 1 + random.below(4);
        for left in (0..count).rev() {
            let (addr, len) = (0x10_0000 + random.below(0x8_0000), 1 + random.below(2000));
            let next = descriptors.len() as u16 + 1;
            let flags = u16::from(left > 0);
            let descriptor = split::Descriptor::new(addr, len as u32, flags, next);
            descriptors.push(RawDescriptor::from(descriptor));
        }
    }
    descriptors
}

fn activate(mock: &MockSplitQueue<'_, GuestMemoryMmap>, space: &Arc<AddressSpace>) -> Queue {
    let setup = QueueSetup {
        size: SIZE,
        descriptors: GuestAddr(mock.desc_table_addr().0),
        driver: GuestAddr(mock.avail_addr().0),
        device: GuestAddr(mock.used_addr().0),
    };
    let features =
        RingFeatures { format: Format::Split, event_idx: false, indirect: true, in_order: false };
    setup.activate(space, features, Cursor::default()).unwrap()
}

#[test]
fn both_devices_see_the_same_chains_and_bytes() {
    for seed in 0..50 {
        let mut random = Random::new(seed);
        let (theirs, space) = memory();
        let noise: Vec<u8> = (0..0x9_0000).map(|_| random.next() as u8).collect();
        theirs.write_slice(&noise, GuestAddress(0x10_0000)).unwrap();
        let mock = MockSplitQueue::create(&*theirs, GuestAddress(0x1000), SIZE);
        mock.add_desc_chains(&chains(&mut random), 0).unwrap();

        let mut queue = activate(&mock, &space);
        let mut batch = Batch::<DeviceReads>::new(Arc::clone(&space), 12);
        let taken = queue.take(usize::MAX, &mut batch).unwrap();

        let mut other: TheirQueue = mock.create_queue().unwrap();
        let mut expected = Vec::new();
        for chain in other.iter(&*theirs).unwrap() {
            let mut bytes = Vec::new();
            for descriptor in chain {
                let mut part = vec![0; descriptor.len() as usize];
                theirs.read_slice(&mut part, descriptor.addr()).unwrap();
                bytes.extend(part);
            }
            expected.push(bytes);
        }
        assert_eq!(taken, expected.len());
        for (index, bytes) in expected.iter().enumerate() {
            let row = batch.row(index).unwrap();
            assert_eq!(row.bytes() as usize, bytes.len());
            let mut seen = vec![0; bytes.len()];
            let lead = copy_out(batch.lead(row), 0, &mut seen);
            assert_eq!(lead, bytes.len().min(12));
            copy_out(batch.payload(row), 0, seen.get_mut(lead..).unwrap());
            assert_eq!(&seen, bytes);
        }
    }
}

#[test]
fn the_mock_driver_finds_its_chains_used_in_order() {
    let (theirs, space) = memory();
    let mock = MockSplitQueue::create(&*theirs, GuestAddress(0x1000), SIZE);
    let descriptors = chains(&mut Random::new(9));
    mock.add_desc_chains(&descriptors, 0).unwrap();
    let mut queue = activate(&mock, &space);
    let mut batch = Batch::<DeviceReads>::new(Arc::clone(&space), 12);
    let taken = queue.take(usize::MAX, &mut batch).unwrap();
    queue.put(&mut batch, 3);
    queue.put(&mut batch, taken);
    assert_eq!(mock.used().idx().load(), 0, "not visible yet");
    let _told = queue.publish();
    assert_eq!(usize::from(mock.used().idx().load()), taken);
    let heads = (0..descriptors.len()).filter(|at| {
        let before = at.checked_sub(1).and_then(|at| descriptors.get(at));
        before.is_none_or(|before| split::Descriptor::from(*before).flags() & 1 == 0)
    });
    for (index, head) in heads.enumerate() {
        let entry = mock.used().ring().ref_at(index).unwrap().load();
        assert_eq!((entry.id() as usize, entry.len()), (head, 0));
    }
}
