//! A guest that the tests play: a whole device with its worker, on an endpoint.
#![allow(dead_code, reason = "each file of tests uses its part")]

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use vionet::endpoint::Endpoint;
use vionet::stats::DropReason;
use vionet::{Device, NicConfig, Op, QueueIndex};
use vionet_endpoint::{PortConfig, Switch};
use vionet_frame::header::{HeaderLayout, NetHeader};
use vionet_queue::Cursor;
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_testkit::{Arrangement, Buffer, GuestRam, SplitDriver};

pub const RX: QueueIndex = QueueIndex(0);
const TX: QueueIndex = QueueIndex(1);
pub const FRAMES: u64 = 0x10_0000;
const SIZE: u16 = 64;
const ROOM: u32 = 2048;

/// A whole device on an endpoint, and the driver of its one pair.
pub struct Guest {
    pub device: Device,
    /// Bytes of the virtio header.
    header_len: usize,
    pub ram: GuestRam,
    pub rx: SplitDriver,
    pub tx: SplitDriver,
    pub kick: OwnedFd,
    /// Receive buffers in the order they were posted.
    posted: VecDeque<u64>,
    next: u64,
}

pub fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

impl Guest {
    /// One at a port of its own.
    pub fn new(switch: &Switch, last: u8, isolated: bool, features: &[Feature]) -> Self {
        let port = switch.port(PortConfig { mac: mac(last), isolated }).unwrap();
        Self::on(Box::new(port), last, features)
    }

    pub fn on(endpoint: Box<dyn Endpoint>, last: u8, features: &[Feature]) -> Self {
        let config = NicConfig { mac: mac(last), mtu: 1500, ..NicConfig::default() };
        let device = Device::new(config, endpoint).unwrap();
        let ram = GuestRam::new(&[(0x1_0000, 0x1_0000), (0x2_0000, 0x1_0000), (FRAMES, 0x80_0000)]);
        let rx = SplitDriver::new(&ram, 0x1_0000, SIZE, false, 0);
        let tx = SplitDriver::new(&ram, 0x2_0000, SIZE, false, 0);
        let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let posted = VecDeque::new();
        let bits = FeatureBits::of(features).with(Feature::VERSION_1).with(Feature::MRG_RXBUF);
        let tunnels = [Feature::HOST_UDP_TUNNEL_GSO, Feature::GUEST_UDP_TUNNEL_GSO];
        let header_len = if tunnels.iter().any(|one| bits.has(*one)) { 24 } else { 12 };
        let next = FRAMES;
        let mut guest = Self { device, header_len, ram, rx, tx, kick, posted, next };
        guest.device.apply(Op::Negotiate(bits)).unwrap();
        guest.device.apply(Op::Memory(Arc::clone(guest.ram.space()))).unwrap();
        for (index, setup) in [(RX, guest.rx.setup()), (TX, guest.tx.setup())] {
            guest.device.set_kick(index, Some(guest.kick.try_clone().unwrap())).unwrap();
            guest.device.apply(Op::EnableQueue(index, true)).unwrap();
            let cursor = Cursor::default();
            guest.device.apply(Op::StartQueue { index, setup, cursor }).unwrap();
        }
        guest
    }

    pub fn post(&mut self, count: usize) {
        for _ in 0..count {
            let at = self.next;
            self.next += u64::from(ROOM);
            self.rx.post(&[Buffer::writable(at, ROOM)], Arrangement::Direct).unwrap();
            self.posted.push_back(at);
        }
        self.rx.expose();
    }

    /// Tells the device that there is something in either queue.
    pub fn kick(&self) {
        rustix::io::write(&self.kick, &1_u64.to_ne_bytes()).unwrap();
    }

    pub fn send(&mut self, header: &NetHeader, frame: &[u8]) {
        self.send_all(header, &[frame]);
    }

    /// Sends frames that become visible together: one batch.
    pub fn send_all(&mut self, header: &NetHeader, frames: &[&[u8]]) {
        for frame in frames {
            let header = &header.encode_long()[..self.header_len];
            let bytes: Vec<u8> = header.iter().chain(*frame).copied().collect();
            let at = self.next;
            self.next += bytes.len() as u64;
            self.ram.write(at, &bytes);
            let buffer = Buffer::readable(at, bytes.len() as u32);
            self.tx.post(&[buffer], Arrangement::Direct).unwrap();
        }
        let before = self.tx.used_idx();
        self.tx.expose();
        self.kick();
        let start = Instant::now();
        // Used means handled: whoever was to get it has it.
        while usize::from(self.tx.used_idx().wrapping_sub(before)) < frames.len() {
            assert!(start.elapsed() < Duration::from_secs(5), "a frame stays");
            std::thread::yield_now();
        }
        self.tx.collect();
    }

    /// What has arrived: the header and the frame, over as many buffers as it took.
    pub fn received(&mut self) -> Vec<(NetHeader, Vec<u8>)> {
        let mut frames: Vec<(NetHeader, Vec<u8>)> = Vec::new();
        let mut left = 0;
        for used in self.rx.collect() {
            let at = self.posted.pop_front().unwrap();
            let part = self.ram.read(at, used.len);
            if left == 0 {
                let (header, frame) = part.split_at(self.header_len);
                let mut long = [0; HeaderLayout::LEN_MAX];
                long[..header.len()].copy_from_slice(header);
                let header = NetHeader::decode_long(&long);
                left = header.num_buffers;
                frames.push((header, frame.to_vec()));
            } else {
                frames.last_mut().unwrap().1.extend(part);
            }
            left -= 1;
        }
        frames
    }

    pub fn frames(&mut self) -> Vec<Vec<u8>> {
        self.received().into_iter().map(|(_, frame)| frame).collect()
    }

    pub fn drops(&self, receive: bool, reason: DropReason) -> u64 {
        let stats = self.device.stats().next().unwrap();
        let lane = if receive { &stats.rx } else { &stats.tx };
        lane.dropped_for(reason)
    }
}

/// An IPv4 TCP frame whose checksum is left open, to be cut at 1000 bytes.
pub fn tcp(payload: usize) -> (NetHeader, Vec<u8>) {
    let ip_len = 40 + payload;
    let mut bytes = mac(2).to_vec();
    bytes.extend(mac(1));
    bytes.extend([8, 0, 0x45, 0]);
    bytes.extend((ip_len as u16).to_be_bytes());
    bytes.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = |bytes: &[u8], start: u32| {
        let words = bytes.chunks(2).map(|word| (u32::from(word[0]) << 8) | u32::from(word[1]));
        let mut sum: u32 = start + words.sum::<u32>();
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    };
    let check = !sum(&bytes[14..34], 0);
    bytes[24..26].copy_from_slice(&check.to_be_bytes());
    let pseudo = sum(&bytes[26..34], 6 + (20 + payload as u32));
    bytes.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x18, 0xff, 0xff]);
    bytes.extend(pseudo.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend((0..payload).map(|at| (at % 251) as u8));
    let header = NetHeader {
        flags: 1,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::PLAIN
    };
    (header, bytes)
}
