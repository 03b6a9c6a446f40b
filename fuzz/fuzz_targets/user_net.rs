//! A guest that the input plays against the user-mode network: frames whole and damaged through
//! real rings, time that passes, a host that answers. Each frame that comes back can be read.
//!
//! Nothing leaves this machine: whatever address a frame names, it is led to one of the network's
//! own, or to one that is refused; the host's loopback is two sockets held here.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use vionet::endpoint::Endpoint;
use vionet::{Effect, Effects, Instant, Nic, NicConfig, Op, QueueIndex, QueuePair};
use vionet_frame::parse::{Addresses, parse};
use vionet_queue::Cursor;
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_testkit::{Arrangement, Buffer, GuestRam, SplitDriver};
use vionet_user::UserNet;
use vionet_user::config::{HostLoopback, UserConfig};

const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const RX: QueueIndex = QueueIndex(0);
const TX: QueueIndex = QueueIndex(1);
const SIZE: u16 = 64;
const HEADER: usize = 12;
const RX_RING: u64 = 0x1_0000;
const TX_RING: u64 = 0x2_0000;
const RX_FRAMES: u64 = 0x10_0000;
const TX_FRAMES: u64 = 0x20_0000;
const ROOM: u32 = 2048;
/// The most things that happen in one life.
const STEPS: usize = 200;

const LOOPBACK4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
const LOOPBACK6: Ipv6Addr = net6(4);

const fn net6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd76, 0x696f, 0x6e65, 0x7400, 0, 0, 0, last)
}

/// Every address that a frame may name: ours, the guest's, nobody's, and some that are refused.
const PLACES4: [Ipv4Addr; 10] = [
    Ipv4Addr::new(10, 0, 2, 2),
    Ipv4Addr::new(10, 0, 2, 3),
    LOOPBACK4,
    LOOPBACK4,
    Ipv4Addr::new(10, 0, 2, 15),
    Ipv4Addr::new(10, 0, 2, 77),
    Ipv4Addr::LOCALHOST,
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(224, 0, 0, 1),
    Ipv4Addr::BROADCAST,
];
const PLACES6: [Ipv6Addr; 10] = [
    net6(2),
    net6(3),
    LOOPBACK6,
    LOOPBACK6,
    net6(0x15),
    Ipv6Addr::LOCALHOST,
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2),
    Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x7f00, 1),
];

/// The host: what the guest can reach.
struct Host {
    tcp: TcpListener,
    udp: UdpSocket,
    config: UserConfig,
}

fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        // One socket for both families, where the machine has both.
        let tcp = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))
            .or_else(|_| TcpListener::bind("0.0.0.0:0"));
        let tcp = tcp.expect("a port for TCP");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port for UDP");
        tcp.set_nonblocking(true).expect("a socket that does not wait");
        udp.set_nonblocking(true).expect("a socket that does not wait");
        let config = UserConfig {
            mtu: 1500,
            hostname: Some("vm0".into()),
            search: vec!["example.org".into()],
            dns_servers: vec![udp.local_addr().expect("its address")],
            map_host_loopback: HostLoopback { v4: Some(LOOPBACK4), v6: Some(LOOPBACK6) },
            ..UserConfig::default()
        };
        Host { tcp, udp, config }
    })
}

/// Reads the input as numbers; past its end there are zeroes.
struct Input<'b>(&'b [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, bound: u8) -> u8 {
        self.byte() % bound
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    fn some(&mut self) -> Vec<u8> {
        let count = usize::from(self.byte());
        (0..count).map(|_| self.byte()).collect()
    }
}

/// Where the buffer of a chain lies.
fn place(frames: u64, head: u16) -> u64 {
    frames + u64::from(head) * u64::from(ROOM)
}

/// The guest: rings, and as much of a TCP connection as it takes to go on with it.
struct Life {
    nic: Nic,
    net: UserNet,
    pair: Option<Box<QueuePair>>,
    ram: GuestRam,
    rx: SplitDriver,
    tx: SplitDriver,
    now: Duration,
    sequence: u32,
    acknowledged: u32,
    peers: Vec<TcpStream>,
}

impl Life {
    fn new(host: &Host) -> Self {
        let [rings, frames] = [0x1_0000, usize::from(SIZE) * ROOM as usize];
        let ram = GuestRam::new(&[
            (RX_RING, rings),
            (TX_RING, rings),
            (RX_FRAMES, frames),
            (TX_FRAMES, frames),
        ]);
        let rx = SplitDriver::new(&ram, RX_RING, SIZE, false, 0);
        let tx = SplitDriver::new(&ram, TX_RING, SIZE, false, 0);
        let net = UserNet::new(host.config.clone()).expect("a good configuration");
        let config = NicConfig { mac: GUEST_MAC, mtu: 1500, ..NicConfig::default() };
        let nic = Nic::new(config, net.capabilities());
        let (now, peers) = (Duration::from_secs(1), Vec::new());
        let (sequence, acknowledged, pair) = (1000, 0, None);
        let mut life = Self { nic, net, pair, ram, rx, tx, now, sequence, acknowledged, peers };
        let features = [Feature::VERSION_1, Feature::CSUM, Feature::HOST_TSO4, Feature::HOST_TSO6];
        life.apply(Op::Negotiate(FeatureBits::of(&features)));
        life.apply(Op::Memory(Arc::clone(life.ram.space())));
        for (index, setup) in [(RX, life.rx.setup()), (TX, life.tx.setup())] {
            life.apply(Op::EnableQueue(index, true));
            life.apply(Op::StartQueue { index, setup, cursor: Cursor::default() });
        }
        life
    }

    fn apply(&mut self, op: Op) {
        let mut effects = Effects::default();
        self.nic.apply(op, &mut effects);
        while let Some(effect) = effects.next_effect() {
            match effect {
                Effect::Open(settings) => {
                    let queues = self.net.open(&settings);
                    self.nic.opened(queues, &mut effects);
                }
                Effect::Recall(index) => self.nic.returned(index, self.pair.take(), &mut effects),
                Effect::Start(pair) => self.pair = Some(pair),
                Effect::Adapt(_)
                | Effect::Interrupt(_)
                | Effect::ControlFault(_)
                | Effect::ConfigChanged => {}
                Effect::Done(outcome) => outcome.expect("nothing is refused here"),
            }
        }
    }

    /// Posts receive buffers.
    fn post(&mut self, count: u8) {
        for _ in 0..count {
            let Some(head) = self.rx.post(&[Buffer::writable(0, ROOM)], Arrangement::Direct) else {
                break;
            };
            // Each head has a place of its own, which is not known before.
            self.ram.write_descriptor(
                RX_RING + 16 * u64::from(head),
                place(RX_FRAMES, head),
                ROOM,
                2,
                0,
            );
        }
        self.rx.expose();
    }

    fn send(&mut self, bytes: &[u8]) {
        let len = bytes.len() as u32;
        if let Some(head) = self.tx.post(&[Buffer::readable(0, len)], Arrangement::Direct) {
            let at = place(TX_FRAMES, head);
            self.ram.write(at, bytes);
            self.ram.write_descriptor(TX_RING + 16 * u64::from(head), at, len, 0, 0);
            self.tx.expose();
        }
        self.service();
    }

    /// Lets the network work, and looks at what it has to say.
    fn service(&mut self) {
        let now = Instant::from_nanos(self.now.as_nanos() as u64);
        let step = self.pair.as_mut().expect("the pair is out").service(now);
        assert!(step.fault.is_none(), "the guest has kept the rules of the ring");
        self.tx.collect();
        for used in self.rx.collect() {
            let bytes = self.ram.read(place(RX_FRAMES, used.head), used.len);
            let frame = bytes.get(HEADER..).expect("a header before each frame");
            let parsed = parse(frame, frame.len()).expect("what comes back can be read");
            let tcp = parsed.ip().and_then(|ip| frame.get(ip.l4..)).filter(|_| is_tcp(frame));
            if let Some([_, _, _, _, s0, s1, s2, s3, _, _, _, _, offset, flags, ..]) = tcp {
                let header = usize::from(offset >> 4) * 4;
                let data = tcp.map_or(0, |tcp| tcp.len().saturating_sub(header));
                let ends = u32::from(flags & 1) + u32::from(flags >> 1 & 1);
                let at = u32::from_be_bytes([*s0, *s1, *s2, *s3]);
                self.acknowledged = at.wrapping_add(data as u32).wrapping_add(ends);
            }
        }
    }
}

/// Whether the engine's frame carries TCP; it puts neither tags nor extensions in.
fn is_tcp(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(23) == Some(&6),
        Some([0x86, 0xdd]) => frame.get(20) == Some(&6),
        _ => false,
    }
}

/// A frame as a guest would send it, but for what the input decides, with its virtio header.
fn frame(input: &mut Input<'_>, life: &mut Life) -> Vec<u8> {
    let kind = input.below(8);
    let mut frame = vec![0x52, 0x55, 0x0a, 0, 2, 2];
    frame.extend(GUEST_MAC);
    let mut header = [0; HEADER];
    match kind {
        0 => frame.extend(input.some()),
        1 => {
            frame.extend([0x08, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend(GUEST_MAC.iter().chain(&[10, 0, 2, 15]).chain(&[0; 6]));
            frame.extend([10, 0, 2, input.below(6)]);
        }
        _ => {
            let v6 = kind % 2 == 1;
            let (protocol, l4) = transport(kind / 2, v6, input, life);
            let start = if v6 { 54 } else { 34 };
            let offset = match protocol {
                6 => Some(16),
                17 => Some(6),
                _ => None,
            };
            if let Some(offset) = offset {
                header = [1, 0, 0, 0, 0, 0, start, 0, offset, 0, 0, 0];
            }
            let place = usize::from(input.byte());
            if v6 {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((l4.len() as u16).to_be_bytes());
                frame.extend([protocol, 255]);
                frame.extend(net6(0x15).octets());
                frame.extend(PLACES6[place % PLACES6.len()].octets());
            } else {
                frame.extend([0x08, 0, 0x45, 0]);
                frame.extend((20 + l4.len() as u16).to_be_bytes());
                frame.extend([0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 2, 15]);
                frame.extend(PLACES4[place % PLACES4.len()].octets());
            }
            frame.extend(l4);
        }
    }
    for _ in 0..input.below(8).saturating_sub(4) {
        let at = usize::from(input.byte()) % frame.len();
        frame[at] = input.byte();
    }
    if input.below(16) == 0 {
        frame.truncate(usize::from(input.byte()));
        header = input.bytes();
    }
    tame(&mut frame);
    header.into_iter().chain(frame).collect()
}

fn transport(kind: u8, v6: bool, input: &mut Input<'_>, life: &mut Life) -> (u8, Vec<u8>) {
    let flow = input.below(4);
    match kind {
        1 => {
            let flags = input.byte();
            let data = if flags & 2 == 0 { input.some() } else { Vec::new() };
            let [jump, ahead] = [input.byte(), input.byte()];
            let near = |value: u32, jump: u8| match jump {
                0..128 => value,
                _ => value.wrapping_add_signed(i32::from(jump as i8) << 8),
            };
            let sequence = near(life.sequence, jump);
            let acknowledged = near(life.acknowledged, ahead);
            let mut bytes = vec![0x40, flow, 0x40, 0];
            bytes.extend(sequence.to_be_bytes().into_iter().chain(acknowledged.to_be_bytes()));
            bytes.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            bytes.extend(&data);
            let ends = u32::from(flags & 1) + u32::from(flags >> 1 & 1);
            life.sequence = sequence.wrapping_add(data.len() as u32).wrapping_add(ends);
            (6, bytes)
        }
        2 => {
            let ports = match input.below(4) {
                0 if v6 => [2, 34, 2, 35],
                0 => [0, 68, 0, 67],
                1 => [0x40, flow, 0, 53],
                _ => [0x40, flow, 0x40, 0],
            };
            let data = input.some();
            let mut bytes = ports.to_vec();
            bytes.extend((8 + data.len() as u16).to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(data);
            (17, bytes)
        }
        _ => {
            let mut bytes = match (input.below(4), v6) {
                (0, _) => vec![input.byte(), input.byte()],
                (_, false) => vec![8, 0],
                (1, true) => vec![135, 0],
                (_, true) => vec![128, 0],
            };
            bytes.extend([0, 0, 0, flow, 0, 1]);
            bytes.extend(input.some());
            (if v6 { 58 } else { 1 }, bytes)
        }
    }
}

/// Leads a frame to a place where it may go, and its checksum with it.
fn tame(frame: &mut [u8]) {
    let Ok(parsed) = parse(frame, frame.len()) else { return };
    let Some(ip) = parsed.ip().copied() else { return };
    let to_host = match ip.addresses {
        Addresses::V4 { destination, .. } => {
            let last = usize::from(destination.octets()[3]);
            let known = PLACES4.contains(&destination);
            let place = if known { destination } else { PLACES4[last % PLACES4.len()] };
            frame[parsed.l3 + 16..parsed.l3 + 20].copy_from_slice(&place.octets());
            let header = &mut frame[parsed.l3..];
            let len = usize::from(header[0] & 15) * 4;
            header[10..12].fill(0);
            let words = header[..len].chunks_exact(2);
            let sum: u32 =
                words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
            let folded = (sum & 0xffff) + (sum >> 16);
            let sum = !((folded & 0xffff) + (folded >> 16)) as u16;
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            IpAddr::from(place)
        }
        Addresses::V6 { destination, .. } => {
            let last = usize::from(destination.octets()[15]);
            let known = PLACES6.contains(&destination);
            let place = if known { destination } else { PLACES6[last % PLACES6.len()] };
            frame[parsed.l3 + 24..parsed.l3 + 40].copy_from_slice(&place.octets());
            IpAddr::from(place)
        }
    };
    let ours = [IpAddr::from(LOOPBACK4), LOOPBACK6.into(), Ipv4Addr::LOCALHOST.into()];
    let port = match frame.get(ip.l4..ip.l4 + 4) {
        Some(_) if is_udp(&ip) => host().udp.local_addr(),
        Some(_) => host().tcp.local_addr(),
        None => return,
    };
    if ours.contains(&to_host) || to_host.is_loopback() {
        let port = port.expect("a bound port").port();
        frame[ip.l4 + 2..ip.l4 + 4].copy_from_slice(&port.to_be_bytes());
    }
}

fn is_udp(ip: &vionet_frame::parse::Ip) -> bool {
    ip.protocol == 17
}

/// What the host does: a program that accepts, answers, closes.
fn host_acts(input: &mut Input<'_>, life: &mut Life) {
    let host = host();
    match input.below(5) {
        0 => {
            if let Ok((stream, _)) = host.tcp.accept() {
                stream.set_nonblocking(true).expect("a socket that does not wait");
                life.peers.push(stream);
            }
        }
        1 => {
            let data = input.some();
            if let Some(peer) = life.peers.last_mut() {
                let (Ok(_) | Err(_)) = std::io::Write::write(peer, &data);
            }
        }
        2 => drop(life.peers.pop()),
        3 => {
            if let Some(peer) = life.peers.last_mut() {
                let (Ok(_) | Err(_)) = std::io::Read::read(peer, &mut [0; 4096]);
            }
        }
        _ => {
            let mut query = [0; 1500];
            if let Ok((len, from)) = host.udp.recv_from(&mut query) {
                let answer: Vec<u8> =
                    query[..len.min(12)].iter().copied().chain(input.some()).collect();
                let (Ok(_) | Err(_)) = host.udp.send_to(&answer, from);
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut life = Life::new(host());
    life.post(8);
    for _ in 0..STEPS {
        if input.0.is_empty() {
            break;
        }
        match input.below(8) {
            0 => life.now += Duration::from_millis(u64::from(input.byte()) * 250),
            1 => {
                let count = input.below(16);
                life.post(count);
            }
            2 => host_acts(&mut input, &mut life),
            _ => {
                let bytes = frame(&mut input, &mut life);
                life.send(&bytes);
            }
        }
        life.service();
    }
    life.apply(Op::Reset);
    // What nobody has accepted is no business of the next life.
    while host().tcp.accept().is_ok() {}
    while host().udp.recv(&mut [0; 1]).is_ok() {}
});
