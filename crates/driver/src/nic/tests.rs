//! The card against a back-end that only nods, and a device that we play ourselves.

use super::*;
use crate::model::{Device, nodding};

const ALL: u64 = 1 | 2 | 1 << 7 | 1 << 8 | 1 << 15 | 1 << 29 | 1 << 32;

struct Bench {
    nic: Nic,
    device: Device,
    room: Vec<u8>,
}

impl Bench {
    fn new(features: u64) -> Self {
        let nic = Nic::over(FrontEnd::over(nodding(features)).unwrap()).unwrap();
        let device = Device::of(&nic.port.memory.space, nic.port.rx.place());
        Self { nic, device, room: vec![0; FRAME_MAX] }
    }

    /// The device writes `bytes` into the next buffer and says that it wrote `len`.
    fn put(&mut self, bytes: &[u8], len: u32) {
        let (id, descriptor) = self.device.take().unwrap();
        assert_eq!((descriptor.len, descriptor.flags), (RX_LEN, 2));
        self.nic.port.memory.write(descriptor.addr, bytes).unwrap();
        self.device.put(id.into(), len);
    }

    /// The device delivers a frame in one buffer.
    fn deliver(&mut self, header: NetHeader, frame: &[u8]) -> Result<Received, GuestError> {
        let bytes = [&header.encode()[..], frame].concat();
        self.put(&bytes, u32::try_from(bytes.len()).unwrap());
        self.device.publish();
        self.nic.receive(&mut self.room)
    }
}

fn header() -> NetHeader {
    NetHeader { num_buffers: 1, ..NetHeader::default() }
}

/// A UDP datagram in IPv4 with the right checksum in its field, at 40.
fn datagram() -> Vec<u8> {
    let mut frame = vec![0; 14];
    frame[12] = 8;
    frame.extend([0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 7, 0, 9, 0, 12, 0, 0, 1, 2, 3, 4]);
    let sum = ipv4_pseudo(12).followed_by(Sum::of(&frame[34..]));
    frame[40..42].copy_from_slice(&sum.checksum().to_be_bytes());
    frame
}

fn ipv4_pseudo(len: u32) -> Sum {
    vionet_frame::checksum::pseudo_header_v4([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 17, len)
}

fn assert_device(outcome: Result<Received, GuestError>) {
    assert!(matches!(outcome, Err(GuestError::Device(_))), "{outcome:?}");
}

#[test]
fn a_frame_over_several_buffers_comes_as_one() {
    let mut bench = Bench::new(ALL);
    let frame: Vec<u8> = (0..40_000_u32).map(|byte| byte as u8).collect();
    let whole = [&NetHeader { num_buffers: 3, ..header() }.encode()[..], &frame].concat();
    for piece in whole.chunks(RX_LEN as usize) {
        bench.put(piece, u32::try_from(piece.len()).unwrap());
    }
    bench.device.publish();
    let received = bench.nic.receive(&mut bench.room).unwrap();
    assert_eq!(received, Received::Frame(40_000));
    assert!(bench.room[..40_000] == frame);
    assert_eq!(bench.nic.receive(&mut bench.room).unwrap(), Received::Nothing);
}

#[test]
fn buffers_go_back_to_the_device_for_as_long_as_it_likes() {
    let mut bench = Bench::new(ALL);
    for _ in 0..3 * usize::from(SIZE) {
        assert_eq!(bench.deliver(header(), &datagram()).unwrap(), Received::Frame(46));
        bench.nic.flush();
    }
}

#[test]
fn a_checksum_is_verified_unless_the_device_vouches_for_it() {
    let vouched = NetHeader { flags: HDR_F_DATA_VALID, ..header() };
    let mut damaged = datagram();
    damaged[45] ^= 1;
    let mut bench = Bench::new(ALL);
    assert_eq!(bench.deliver(header(), &datagram()).unwrap(), Received::Frame(46));
    assert_eq!(bench.deliver(header(), &damaged).unwrap(), Received::Damaged);
    assert_eq!(bench.deliver(vouched, &damaged).unwrap(), Received::Frame(46));
    // Without GUEST_CSUM the device's word counts for nothing.
    let mut strict = Bench::new(ALL & !2);
    assert_eq!(strict.deliver(vouched, &damaged).unwrap(), Received::Damaged);
}

#[test]
fn an_open_checksum_is_completed() {
    let mut bench = Bench::new(ALL);
    let mut open = datagram();
    open[40..42].copy_from_slice(&ipv4_pseudo(12).partial().to_be_bytes());
    let needs = NetHeader { flags: HDR_F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..header() };
    assert_eq!(bench.deliver(needs, &open).unwrap(), Received::Frame(46));
    assert_eq!(bench.room[..46], datagram());
}

#[test]
fn headers_that_were_not_agreed_on_are_errors() {
    let needs = NetHeader { flags: HDR_F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..header() };
    let tso = NetHeader { gso_type: 1, gso_size: 100, ..needs };
    for (features, wrong) in [
        (ALL & !(2 | 1 << 7 | 1 << 8), needs),
        (ALL & !(1 << 7), tso),
        (ALL, NetHeader { gso_size: 0, ..tso }),
        (ALL, NetHeader { gso_type: 9, ..tso }),
        (ALL, NetHeader { csum_start: 45, csum_offset: 0, ..needs }),
        (ALL, NetHeader { csum_start: u16::MAX, csum_offset: u16::MAX, ..needs }),
        (ALL, NetHeader { num_buffers: 0, ..header() }),
        (ALL, NetHeader { num_buffers: 2, ..header() }),
        (ALL, NetHeader { num_buffers: u16::MAX, ..header() }),
    ] {
        assert_device(Bench::new(features).deliver(wrong, &datagram()));
    }
}

#[test]
fn lengths_that_cannot_be_are_errors() {
    for len in [0, 11, RX_LEN + 1, u32::MAX] {
        let mut bench = Bench::new(ALL);
        bench.put(&header().encode(), len);
        bench.device.publish();
        assert_device(bench.nic.receive(&mut bench.room));
    }
    let mut bench = Bench::new(ALL);
    bench.put(&NetHeader { num_buffers: 5, ..header() }.encode(), RX_LEN);
    (0..4).for_each(|_| bench.put(&[], RX_LEN));
    bench.device.publish();
    assert_device(bench.nic.receive(&mut bench.room));
}

#[test]
fn a_frame_leaves_with_its_checksum_open() {
    let mut bench = Bench::new(ALL);
    let mut device = Device::of(&bench.nic.port.memory.space, bench.nic.port.tx.place());
    bench.nic.send(&mut datagram()).unwrap();
    bench.nic.flush();
    let (_, descriptor) = device.take().unwrap();
    assert_eq!((descriptor.len, descriptor.flags), (12 + 46, 0));
    let mut sent = [0; 58];
    bench.nic.port.memory.read(descriptor.addr, &mut sent).unwrap();
    let sent_header = NetHeader::decode(sent.first_chunk().unwrap());
    let needs = NetHeader { flags: HDR_F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..header() };
    assert_eq!(sent_header, NetHeader { num_buffers: 0, ..needs });
    assert_eq!(sent[12 + 40..12 + 42], ipv4_pseudo(12).partial().to_be_bytes());
    assert_eq!(sent[12 + 42..], datagram()[42..]);
    // Without CSUM it leaves as it is.
    let mut plain = Bench::new(ALL & !1);
    let mut device = Device::of(&plain.nic.port.memory.space, plain.nic.port.tx.place());
    plain.nic.send(&mut datagram()).unwrap();
    plain.nic.flush();
    plain.nic.port.memory.read(device.take().unwrap().1.addr, &mut sent).unwrap();
    assert_eq!((&sent[..12], &sent[12..]), (&[0; 12][..], &datagram()[..]));
}

#[test]
fn there_is_room_again_when_the_device_gives_it_back_unwritten() {
    let mut bench = Bench::new(ALL);
    let mut device = Device::of(&bench.nic.port.memory.space, bench.nic.port.tx.place());
    let mut long = vec![0; FRAME_MAX + 1];
    for _ in 0..SIZE {
        assert!(bench.nic.can_send().unwrap());
        assert!(bench.nic.send(&mut long).is_err(), "a refused frame takes no buffer");
        bench.nic.send(&mut datagram()).unwrap();
    }
    assert!(!bench.nic.can_send().unwrap());
    assert!(bench.nic.send(&mut datagram()).is_err());
    bench.nic.flush();
    let (id, _) = device.take().unwrap();
    device.put(id.into(), 0);
    device.publish();
    assert!(bench.nic.can_send().unwrap());
    let (id, _) = device.take().unwrap();
    device.put(id.into(), 1);
    device.publish();
    assert!(matches!(bench.nic.can_send(), Err(GuestError::Device(_))));
}

#[test]
fn what_cannot_be_done_without_is_missed_by_name() {
    for (bit, name) in [(32, "VERSION_1"), (29, "EVENT_IDX"), (15, "MRG_RXBUF")] {
        let end = FrontEnd::over(nodding(ALL & !(1 << bit))).unwrap();
        match Nic::over(end).err() {
            Some(GuestError::Missing(missing)) => assert!(missing.contains(name), "{missing}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_wait_ends_with_the_call_the_time_the_error_or_the_session() {
    let mut bench = Bench::new(ALL);
    bench.nic.wait(Duration::ZERO).unwrap();
    crate::port::ring_bell(&bench.nic.port.call);
    bench.nic.wait(Duration::from_secs(60)).unwrap();
    crate::port::ring_bell(&bench.nic.port.broken);
    let told = bench.nic.wait(Duration::from_secs(60));
    assert!(matches!(told, Err(GuestError::Device(_))), "{told:?}");
    let mut bench = Bench::new(ALL);
    let hung_up = rustix::net::shutdown(&bench.nic.port.end, rustix::net::Shutdown::Both);
    hung_up.unwrap();
    assert!(matches!(bench.nic.wait(Duration::from_secs(60)), Err(GuestError::Closed)));
}
