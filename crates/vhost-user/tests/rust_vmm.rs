//! The front-end of rust-vmm, which Cloud Hypervisor uses, against this back-end.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "tests may stop"
)]

mod bench;

use std::os::fd::{AsRawFd, IntoRawFd};

use bench::guest::{GUEST, Guest, LEN, SIZE, USER};
use bench::{Back, MAC, UNKNOWN_TO_THE_GUEST};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vionet_raw::host::fd::adopt;
use vmm_sys_util::eventfd::EventFd;

const NONBLOCK: i32 = 0o4000;

/// An eventfd for the front-end, and the guest's handle of it.
fn pair() -> (EventFd, std::os::fd::OwnedFd) {
    // The clone is close-on-exec, and so could not have been inherited.
    let inherited = EventFd::new(NONBLOCK).unwrap();
    let event = inherited.try_clone().unwrap();
    (event, adopt(inherited.into_raw_fd()).unwrap())
}

fn region(guest: &Guest) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: GUEST,
        memory_size: LEN,
        userspace_addr: USER,
        mmap_offset: 0,
        mmap_handle: guest.file.as_raw_fd(),
    }
}

fn addresses(ring: usize) -> VringConfigData {
    let at = USER + ring as u64 * 0x4_0000;
    VringConfigData {
        queue_max_size: SIZE,
        queue_size: SIZE,
        flags: 0,
        desc_table_addr: at,
        avail_ring_addr: at + 0x1000,
        used_ring_addr: at + 0x2000,
        log_addr: None,
    }
}

#[test]
fn a_session_of_rust_vmms_front_end_works_from_end_to_end() {
    let (_back, front) = Back::pair();
    let mut front = Frontend::from_stream(front.socket, 2);
    let mut guest = Guest::new();
    let features = front.get_features().unwrap();
    let wanted = Protocol::MQ
        | Protocol::REPLY_ACK
        | Protocol::CONFIG
        | Protocol::CONFIGURE_MEM_SLOTS
        | Protocol::RESET_DEVICE;
    let offered = front.get_protocol_features().unwrap();
    assert!(offered.contains(wanted));
    assert!(!offered.intersects(Protocol::INFLIGHT_SHMFD));
    front.set_protocol_features(wanted).unwrap();
    front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(front.get_queue_num().unwrap(), 3);
    assert_eq!(front.get_max_mem_slots().unwrap(), 512);
    front.set_owner().unwrap();
    front.set_features(features & !UNKNOWN_TO_THE_GUEST).unwrap();
    let (_, config) = front.get_config(0, 6, VhostUserConfigFlags::empty(), &[0; 6]).unwrap();
    assert_eq!(config, MAC);
    for slots in [false, true] {
        if slots {
            front.add_mem_region(&region(&guest)).unwrap();
        } else {
            front.set_mem_table(&[region(&guest)]).unwrap();
        }
        for ring in 0..2 {
            let ((kick, kick_twin), (call, call_twin)) = (pair(), pair());
            (guest.rings[ring].kick, guest.rings[ring].call) = (kick_twin, call_twin);
            front.set_vring_num(ring, SIZE).unwrap();
            front.set_vring_addr(ring, &addresses(ring)).unwrap();
            front.set_vring_base(ring, 0).unwrap();
            front.set_vring_call(ring, &call).unwrap();
            front.set_vring_err(ring, &call).unwrap();
            front.set_vring_kick(ring, &kick).unwrap();
            front.set_vring_enable(ring, true).unwrap();
        }
        guest.echo("through the other's front-end");
        assert_eq!(front.get_vring_base(0).unwrap(), 1);
        assert_eq!(front.get_vring_base(1).unwrap(), 1);
        front.remove_mem_region(&region(&guest)).unwrap();
        guest.reboot();
    }
    assert!(front.set_vring_num(1, 0).is_err());
    front.reset_device().unwrap();
    front.reset_owner().unwrap();
}
