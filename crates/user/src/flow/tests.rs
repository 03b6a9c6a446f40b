//! The engine against a second TCP/IP stack, smoltcp as the guest, over the host's loopback.
//!
//! Frames between the two pass through a [`Wire`] that can lose, repeat and reorder them by a
//! seed, which the way to a real guest never does; byte streams must come out exact all the same.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant as Clock};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint};
use vionet::Instant;
use vionet::endpoint::{Refused, RxHeader};
use vionet::stats::DropReason;
use vionet_frame::header::Offloads;
use vionet_raw::{ReadSpan, WriteSpan};

use super::{Engine, Listeners, Port};
use crate::config::{HostLoopback, Ipv6Guest, UserConfig};
use crate::policy::Protocol;
use crate::ports::parse_ports;

const LOOPBACK: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const PATIENCE: Duration = Duration::from_secs(25);
const MTU: u16 = 1500;

/// A way between engine and stack; each step is drawn from a seed.
struct Wire {
    to_guest: VecDeque<Vec<u8>>,
    to_engine: VecDeque<Vec<u8>>,
    random: u64,
    /// Of 100 frames so many are lost, and as many repeated, and as many delayed.
    damage: u64,
}

impl Wire {
    fn draw(&mut self, most: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % most
    }

    fn carry(&mut self, frame: Vec<u8>, to_guest: bool) {
        let chance = self.draw(100);
        let line = if to_guest { &mut self.to_guest } else { &mut self.to_engine };
        let damage = self.damage;
        if chance < damage {
            return;
        }
        if chance < 2 * damage {
            line.push_back(frame.clone());
        }
        if chance < 3 * damage && !line.is_empty() {
            let last = line.len() - 1;
            line.insert(last, frame);
        } else {
            line.push_back(frame);
        }
    }
}

/// The engine's way to the guest, in private memory. A guest with room for a few frames a step.
struct Road<'w> {
    wire: &'w mut Wire,
    /// Frames that it has carried.
    carried: &'w mut usize,
    room: usize,
    window: Vec<u8>,
}

impl Port for Road<'_> {
    fn window(&mut self, want: u32) -> Option<&[WriteSpan<'_>]> {
        // Only used where checksums may be left open, which this guest has not agreed to.
        assert!(want < 70_000 && self.window.is_empty());
        None
    }

    fn commit(&mut self, _len: u32, _header: &RxHeader) {
        panic!("no window was given");
    }

    fn push(&mut self, header: &RxHeader, frame: &[u8]) -> Result<(), Refused> {
        assert_eq!(header.request.needs(), Offloads::NONE);
        if self.room == 0 {
            return Err(Refused::Full);
        }
        self.room -= 1;
        *self.carried += 1;
        self.wire.carry(frame.to_vec(), true);
        Ok(())
    }

    fn takes(&self) -> Offloads {
        Offloads::NONE
    }

    fn room(&mut self) -> u32 {
        if self.room > 0 { u32::from(MTU) + 18 } else { 0 }
    }

    fn has_room(&mut self, len: u32) -> bool {
        self.room > 0 && len <= u32::from(MTU) + 18
    }

    fn dropped(&mut self, _reason: DropReason) {}
}

struct Nic<'w>(&'w mut Wire);
struct Rx(Vec<u8>);
struct Tx<'w>(&'w mut Wire);

impl Device for Nic<'_> {
    type RxToken<'l>
        = Rx
    where
        Self: 'l;
    type TxToken<'l>
        = Tx<'l>
    where
        Self: 'l;

    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(Rx, Tx<'_>)> {
        let frame = self.0.to_guest.pop_front()?;
        Some((Rx(frame), Tx(self.0)))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Tx<'_>> {
        Some(Tx(self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(MTU) + 14;
        capabilities
    }
}

impl smoltcp::phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl smoltcp::phy::TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.carry(frame, false);
        result
    }
}

/// A guest and its network, turned by hand.
struct World {
    engine: Engine,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    start: Clock,
    /// The pair that the guest sends on; any, if not one.
    sends_on: Option<u16>,
    /// Frames that have come to the guest, by pair.
    arrived: Vec<usize>,
    /// Frames that the guest has sent.
    sent: usize,
}

impl World {
    fn new(damage: u64, seed: u64, publish: &str) -> Self {
        Self::with_pairs(1, damage, seed, publish)
    }

    /// The same with so many queue pairs, all in use.
    fn with_pairs(pairs: u16, damage: u64, seed: u64, publish: &str) -> Self {
        let v6 = Ipv6Guest::default();
        let mut host6 = v6.gateway.segments();
        host6[7] = 4;
        let config = UserConfig {
            map_host_loopback: HostLoopback { v4: Some(LOOPBACK), v6: Some(host6.into()) },
            publish: parse_ports(publish, Protocol::Tcp).unwrap(),
            ra: false,
            ..UserConfig::default()
        };
        let listeners = Arc::new(Listeners::bind(&config).unwrap());
        let mut engine = Engine::new(&config, listeners, pairs).unwrap();
        engine.use_pairs(pairs);
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let (to_guest, to_engine) = (VecDeque::new(), VecDeque::new());
        let mut wire = Wire { to_guest, to_engine, random, damage };
        let mac = HardwareAddress::Ethernet(EthernetAddress([2, 0, 0, 0, 0, 9]));
        let mut interface =
            Interface::new(Config::new(mac), &mut Nic(&mut wire), smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|all| {
            all.push(IpCidr::new(IpAddress::Ipv4(GUEST), 24)).unwrap();
            all.push(IpCidr::new(IpAddress::Ipv6(v6.guest), 64)).unwrap();
        });
        let sockets = SocketSet::new(Vec::new());
        let (start, arrived) = (Clock::now(), vec![0; usize::from(pairs)]);
        Self { engine, wire, interface, sockets, start, sends_on: None, arrived, sent: 0 }
    }

    fn turn(&mut self) {
        let micros = self.start.elapsed().as_micros();
        let now = smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap());
        self.interface.poll(now, &mut Nic(&mut self.wire), &mut self.sockets);
        let now = Instant::from_nanos(u64::try_from(micros * 1000).unwrap());
        let pairs = self.arrived.len() as u16;
        (0..pairs).for_each(|pair| self.output(pair, now));
        while let Some(frame) = self.wire.to_engine.pop_front() {
            let (front, back) = frame.split_at(frame.len() / 3);
            let spans = [ReadSpan::local(front), ReadSpan::local(back)];
            let any = |wire: &mut Wire| wire.draw(u64::from(pairs)) as u16;
            let pair = self.sends_on.unwrap_or_else(|| any(&mut self.wire));
            let _taken = self.engine.input(pair, &spans, frame.len(), now);
            self.sent += 1;
            // A pair's worker receives when it has sent.
            self.output(pair, now);
        }
    }

    fn output(&mut self, pair: u16, now: Instant) {
        let carried = &mut self.arrived[usize::from(pair)];
        let mut road = Road { wire: &mut self.wire, carried, room: 40, window: Vec::new() };
        self.engine.output(pair, &mut road, now);
    }

    fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        loop {
            if let Some(result) = done(self) {
                return result;
            }
            if self.start.elapsed() > PATIENCE {
                let flows: Vec<_> = self.engine.flows().collect();
                panic!("waiting: {what}; {flows:?}");
            }
            self.turn();
            thread::yield_now();
        }
    }

    fn add_tcp(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 << 10]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    fn connect(&mut self, to: SocketAddr) -> SocketHandle {
        let handle = self.add_tcp();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.interface.context(), IpEndpoint::from(to), 50_000).unwrap();
        handle
    }

    /// Sends all of `data` and ends, taking in what comes meanwhile until the far end ends.
    fn exchange(&mut self, handle: SocketHandle, data: &[u8]) -> Vec<u8> {
        let (mut sent, mut got, mut closed) = (0, Vec::new(), false);
        self.until("both streams to end", |world| {
            let socket = world.sockets.get_mut::<tcp::Socket<'_>>(handle);
            if socket.can_send() && sent < data.len() {
                sent += socket.send_slice(&data[sent..]).unwrap();
            } else if sent == data.len() && socket.may_send() && !closed {
                socket.close();
                closed = true;
            }
            while socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
            }
            (closed && !socket.may_recv() && socket.send_queue() == 0).then(|| got.clone())
        })
    }
}

fn data(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|at| (at * 7 % 251) as u8 ^ salt).collect()
}

/// A server that reads to the end while it writes its own, then ends.
fn server(reply: Vec<u8>, v6: bool) -> (SocketAddr, thread::JoinHandle<Vec<u8>>) {
    let local: IpAddr = if v6 { "::1".parse().unwrap() } else { Ipv4Addr::LOCALHOST.into() };
    let listener = TcpListener::bind((local, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    let thread = thread::spawn(move || talk(listener.accept().unwrap().0, reply));
    (at, thread)
}

fn talk(mut stream: TcpStream, reply: Vec<u8>) -> Vec<u8> {
    let mut writer = stream.try_clone().unwrap();
    let sender = thread::spawn(move || {
        writer.write_all(&reply).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    sender.join().unwrap();
    got
}

fn mapped(at: SocketAddr) -> SocketAddr {
    let mut host6 = Ipv6Guest::default().gateway.segments();
    host6[7] = 4;
    let ip: IpAddr = if at.is_ipv4() { LOOPBACK.into() } else { IpAddr::V6(host6.into()) };
    SocketAddr::new(ip, at.port())
}

fn exchange_over(damage: u64, seed: u64, v6: bool, len: usize) {
    exchange_over_pairs(1, damage, seed, v6, len);
}

fn exchange_over_pairs(pairs: u16, damage: u64, seed: u64, v6: bool, len: usize) {
    let (up, down) = (data(len, 1), data(len, 2));
    let (at, server) = server(down.clone(), v6);
    let mut world = World::with_pairs(pairs, damage, seed, "none");
    let handle = world.connect(mapped(at));
    let got = world.exchange(handle, &up);
    assert!(got == down, "seed {seed}: {} of {} bytes down", got.len(), down.len());
    let got = server.join().unwrap();
    assert!(got == up, "seed {seed}: {} of {} bytes up", got.len(), up.len());
}

#[test]
fn a_connection_carries_both_streams_exactly_in_both_families() {
    exchange_over(0, 1, false, 1 << 20);
    exchange_over(0, 2, true, 1 << 20);
}

#[test]
fn lost_repeated_and_reordered_frames_change_nothing_but_the_time() {
    for seed in 1..=4 {
        exchange_over(2, seed, seed % 2 == 0, 64 << 10);
    }
}

#[test]
fn a_connection_whose_segments_are_sent_on_any_pair_is_carried_exactly() {
    exchange_over_pairs(3, 0, 1, false, 1 << 20);
    for seed in 1..=4 {
        exchange_over_pairs(4, 2, seed, seed % 2 == 0, 64 << 10);
    }
}

/// A connection over three pairs, and the far end of it.
fn connected(sends_on: u16) -> (World, SocketHandle, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut world = World::with_pairs(3, 0, 1, "none");
    world.sends_on = Some(sends_on);
    let handle = world.connect(mapped(listener.local_addr().unwrap()));
    world.until("the connection", |world| {
        world.sockets.get_mut::<tcp::Socket<'_>>(handle).may_send().then_some(())
    });
    (world, handle, listener.accept().unwrap().0)
}

impl World {
    /// Waits for the far end's bytes, which are `sent` meanwhile.
    fn hear(&mut self, handle: SocketHandle, far: &mut TcpStream, sent: &[u8]) {
        far.write_all(sent).unwrap();
        let mut left = sent.len();
        self.until("what the far end says", |world| {
            let socket = world.sockets.get_mut::<tcp::Socket<'_>>(handle);
            while socket.can_recv() {
                left -= socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap();
            }
            (left == 0).then_some(())
        });
    }
}

#[test]
fn a_flow_is_received_on_the_pair_it_was_last_sent_on() {
    let (mut world, handle, mut far) = connected(2);
    assert_eq!(world.arrived[..2], [0, 0], "NET-CTRL-MQ-03, from the first answer on");
    for pair in [2, 0, 1, 2] {
        world.sends_on = Some(pair);
        let socket = world.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.send_slice(b"from here on").unwrap();
        let sent = world.sent;
        world.until("it is sent", |world| (world.sent > sent).then_some(()));
        world.arrived.fill(0);
        for _ in 0..3 {
            world.hear(handle, &mut far, &[7; 10_000]);
        }
        let arrived = std::mem::replace(&mut world.arrived, vec![0; 3]);
        let others = arrived.iter().enumerate().filter(|(at, _)| *at != usize::from(pair));
        assert_eq!(others.map(|(_, count)| count).sum::<usize>(), 0, "{arrived:?}, not {pair}");
        assert!(arrived[usize::from(pair)] > 3);
    }
}

#[test]
fn flows_of_pairs_that_are_in_use_no_more_go_on_without_being_asked() {
    let (mut world, handle, mut far) = connected(2);
    world.arrived.fill(0);
    world.engine.use_pairs(2);
    // Before the guest says anything.
    far.write_all(b"still there?").unwrap();
    world.until("a segment", |world| (world.arrived.iter().sum::<usize>() > 0).then_some(()));
    assert_eq!(world.arrived, [1, 0, 0], "NET-CTRL-MQ-06");
    // On a pair that is not in use it is not heard (NET-CTRL-MQ-14).
    let frame = [0; 60];
    let taken = world.engine.input(2, &[ReadSpan::local(&frame)], 60, Instant::from_nanos(1));
    assert_eq!(taken, Err(DropReason::QueueDisabled));
    world.sends_on = Some(1);
    let mut got = Vec::new();
    far.write_all(b" then go on").unwrap();
    world.until("the rest", |world| {
        let socket = world.sockets.get_mut::<tcp::Socket<'_>>(handle);
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
        }
        (got == b"still there? then go on").then_some(())
    });
}

#[test]
fn datagrams_are_received_on_the_pair_they_were_last_sent_on() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut world = World::with_pairs(3, 0, 1, "none");
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let handle = world.sockets.add(udp::Socket::new(buffer(), buffer()));
    world.sockets.get_mut::<udp::Socket<'_>>(handle).bind(5000).unwrap();
    let to = mapped(server.local_addr().unwrap());
    for pair in [1, 1, 0, 2, 1] {
        world.sends_on = Some(pair);
        let socket = world.sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.send_slice(b"to", IpEndpoint::from(to)).unwrap();
        server.set_nonblocking(true).unwrap();
        let from = world.until("a datagram", |_| server.recv_from(&mut [0; 9]).ok());
        world.arrived.fill(0);
        server.send_to(b"fro", from.1).unwrap();
        world.until("its answer", |world| {
            world.sockets.get_mut::<udp::Socket<'_>>(handle).recv().ok().map(|_| ())
        });
        let wanted: Vec<_> = (0..3).map(|at| usize::from(at == pair)).collect();
        assert_eq!(world.arrived, wanted);
    }
}

#[test]
fn a_refused_connection_is_reset() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let mut world = World::new(0, 1, "none");
    let handle = world.connect(mapped(free));
    world.until("the reset", |world| {
        let socket = world.sockets.get_mut::<tcp::Socket<'_>>(handle);
        (socket.state() == tcp::State::Closed).then_some(())
    });
}

#[test]
fn an_aborting_guest_resets_the_far_end() {
    let (at, server) = server(Vec::new(), false);
    let mut world = World::new(0, 1, "none");
    let handle = world.connect(mapped(at));
    world.until("the connection", |world| {
        world.sockets.get_mut::<tcp::Socket<'_>>(handle).may_send().then_some(())
    });
    world.sockets.get_mut::<tcp::Socket<'_>>(handle).abort();
    world.until("the reset", |_| server.is_finished().then_some(()));
    assert!(server.join().is_err(), "the server's read has failed");
}

#[test]
fn a_published_port_carries_both_streams_exactly() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let mut world = World::new(0, 1, &format!("127.0.0.1/{}:80", free.port()));
    let handle = world.add_tcp();
    world.sockets.get_mut::<tcp::Socket<'_>>(handle).listen(80).unwrap();
    // The network knows the guest's MAC address from its first frame.
    let (up, down) = (data(300_000, 3), data(200_000, 4));
    let probe = world.connect(SocketAddr::new(Ipv4Addr::new(10, 0, 2, 2).into(), 9));
    world.until("the guest to be known", |world| {
        let socket = world.sockets.get_mut::<tcp::Socket<'_>>(probe);
        (socket.state() == tcp::State::Closed).then_some(())
    });
    let sent = down.clone();
    let client = thread::spawn(move || talk(TcpStream::connect(free).unwrap(), sent));
    assert!(world.exchange(handle, &up) == down);
    assert!(client.join().unwrap() == up);
}

#[test]
fn datagrams_go_and_come_back_and_a_closed_port_is_told() {
    let echo = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = echo.local_addr().unwrap();
    let echoing = thread::spawn(move || {
        let mut room = [0; 2000];
        let (len, from) = echo.recv_from(&mut room).unwrap();
        echo.send_to(&room[..len], from).unwrap();
    });
    let mut world = World::new(0, 1, "none");
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 8192]);
    let handle = world.sockets.add(udp::Socket::new(buffer(), buffer()));
    let socket = world.sockets.get_mut::<udp::Socket<'_>>(handle);
    socket.bind(5000).unwrap();
    socket.send_slice(&data(1400, 5), IpEndpoint::from(mapped(at))).unwrap();
    let got = world.until("the echo", |world| {
        let socket = world.sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.recv().ok().map(|(bytes, _)| bytes.to_vec())
    });
    assert_eq!(got, data(1400, 5));
    echoing.join().unwrap();
}

/// A segment of the guest's, built by hand.
fn segment(port: u16, to: SocketAddr, header: vionet_frame::build::TcpHeader) -> Vec<u8> {
    let route = vionet_frame::build::Route {
        destination: [0x52, 0x55, 0x0a, 0, 2, 2],
        source: [2, 0, 0, 0, 0, 9],
        addresses: vionet_frame::parse::Addresses::V4 { source: GUEST, destination: LOOPBACK },
        hop_limit: 64,
        traffic_class: 0,
    };
    let header = vionet_frame::build::TcpHeader { source: port, destination: to.port(), ..header };
    let payload = vionet_frame::build::Payload::Bytes(&[]);
    let mut room = [0; 128];
    let len = route.tcp(&mut room, &header, &payload).unwrap().len;
    room[..len].to_vec()
}

#[test]
fn a_flood_of_connections_ends_with_the_engine() {
    let mut world = World::new(0, 1, "none");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let to = mapped(listener.local_addr().unwrap());
    let flags = vionet_frame::parse::TcpFlags::SYN;
    let mut streams = Vec::new();
    for port in 1..=100_u16 {
        let header = vionet_frame::build::TcpHeader { flags, ..Default::default() };
        let frame = segment(port, to, header);
        let spans = [ReadSpan::local(&frame)];
        world.engine.input(0, &spans, frame.len(), Instant::from_nanos(1)).unwrap();
        streams.push(listener.accept().unwrap().0);
    }
    drop(world);
    for mut stream in streams {
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)), "its socket is closed");
    }
}

proptest::proptest! {
    #[test]
    fn no_frame_stops_the_engine(
        frames in proptest::collection::vec(
            proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), 1..20),
        kind in 0..4_u8,
    ) {
        let mut world = World::new(0, 1, "none");
        for (at, mut frame) in frames.into_iter().enumerate() {
            // Half of the frames get past the first checks.
            if at % 2 == 0 && frame.len() > 40 {
                frame[12..14].copy_from_slice(if kind < 2 { &[8, 0] } else { &[0x86, 0xdd] });
                frame[14] = if kind < 2 { 0x45 } else { 0x60 };
                if kind < 2 {
                    let total = u16::try_from(frame.len() - 14).unwrap();
                    frame[16..18].copy_from_slice(&total.to_be_bytes());
                    frame[20..22].copy_from_slice(&[0, 0]);
                    frame[23] = [1, 6, 17, 6][usize::from(kind)];
                    frame[30..34].copy_from_slice(&LOOPBACK.octets());
                }
            }
            let spans = [ReadSpan::local(&frame)];
            let _taken = world.engine.input(0, &spans, frame.len(), Instant::from_nanos(1));
            world.turn();
        }
    }
}
