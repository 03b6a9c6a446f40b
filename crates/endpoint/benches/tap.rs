//! A tap behind a queue pair, beside a bare loop of read and write on the same tap and processor:
//! `cargo bench -p vionet-endpoint --bench tap`.
//!
//! ```text
//!   transmit   pair or loop --write--> tap0        frames of nobody: the kernel drops them
//!   receive    tap1 --bridge--> tap0 --read--> pair or loop       filled first, then drained
//! ```
//!
//! Behind `--`, a name asks for some rows only: way, bytes, buffers and buffers together, as in
//! `receive-65014-16-8`, or the start of one. In turn, many short rounds; the ratio is the median
//! of those of each round. It runs in a user and network namespace of its own; where it cannot have
//! one it says so and ends.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench may stop"
)]

use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use vionet::endpoint::Endpoint;
use vionet::{Effect, Effects, Instant, Nic, NicConfig, Op, QueueIndex, QueuePair};
use vionet_endpoint::Tap;
use vionet_queue::Format;
use vionet_raw::host::tun::{self, TunOffloads};
use vionet_raw::host::vector::{readv, writev};
use vionet_raw::{Access, GuestAddr, Pushed, SpanStore};
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_spec::net::HDR_LEN;
use vionet_testkit::Treadmill;

const RX: QueueIndex = QueueIndex(0);
const TX: QueueIndex = QueueIndex(1);
const ROUNDS: usize = 15;
const INSIDE: &str = "VIONET_TAP_BENCH_INSIDE";
/// Bytes of a receive buffer as a Linux guest posts them, and of one that holds any frame.
const PAGE: u32 = 4096;
const WHOLE: u32 = 66_560;
const OFFLOADS: TunOffloads = TunOffloads { csum: true, tso4: true, tso6: true, ecn: false };

fn main() {
    if std::env::var_os(INSIDE).is_some() {
        return run();
    }
    let exe = std::env::current_exe().expect("this program");
    let inside =
        Command::new("unshare").args(["-Urn"]).arg(exe).args(wanted()).env(INSIDE, "1").status();
    match inside {
        Ok(status) if status.success() => {}
        Ok(status) => println!("not measured: no namespace of our own, or no tap in it ({status})"),
        Err(cause) => println!("not measured: unshare (util-linux): {cause}"),
    }
}

/// The name on the command line; cargo has options of its own there.
fn wanted() -> Option<String> {
    std::env::args().skip(1).find(|word| !word.starts_with('-'))
}

fn ip(words: &str) {
    let status = Command::new("ip").args(words.split_whitespace()).status();
    assert!(status.expect("ip (iproute2)").success(), "ip {words}");
}

fn set_up() {
    ip("tuntap add dev tap0 mode tap vnet_hdr");
    ip("tuntap add dev tap1 mode tap vnet_hdr");
    ip("link add bridge0 type bridge mcast_snooping 0");
    for name in ["tap0", "tap1", "bridge0"] {
        // Nobody else is to say anything.
        let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
        std::fs::write(path, "1").expect("a namespace of our own");
        ip(&format!("link set {name} txqueuelen 4096 up"));
    }
}

/// A frame behind its virtio header; a long one is TCP to be cut into segments of 1448 bytes.
fn message(len: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9]);
    let mut header = vec![0; 12];
    if len > 1514 {
        let ip_len = (len - 14) as u16;
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(ip_len.to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
        let sum: u32 =
            frame[14..34].chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend([0x13, 0x88, 0x13, 0x89, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff]);
        frame.extend([0; 4]);
        // Checksum open at 34 + 16; TCP over IPv4, headers of 54 bytes.
        header = [
            &[1, 1][..],
            &54_u16.to_le_bytes(),
            &1448_u16.to_le_bytes(),
            &34_u16.to_le_bytes(),
            &16_u16.to_le_bytes(),
            &[0, 0],
        ]
        .concat();
    } else {
        frame.extend([0x88, 0xb5]);
    }
    frame.resize(len, 0);
    [header, frame].concat()
}

/// A pair at work on one queue of `tap`.
fn pair(driver: &Treadmill, index: QueueIndex, tap: &mut Tap) -> Box<QueuePair> {
    let mut nic = Nic::new(
        NicConfig { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, ..NicConfig::default() },
        tap.capabilities(),
    );
    let bits = FeatureBits::of(&[
        Feature::VERSION_1,
        Feature::MRG_RXBUF,
        Feature::CSUM,
        Feature::HOST_TSO4,
        Feature::GUEST_CSUM,
        Feature::GUEST_TSO4,
    ]);
    let mut out = None;
    for op in [
        Op::Negotiate(bits),
        Op::Memory(Arc::clone(driver.space())),
        Op::EnableQueue(index, true),
        Op::StartQueue { index, setup: driver.setup(), cursor: driver.cursor() },
    ] {
        let mut effects = Effects::default();
        nic.apply(op, &mut effects);
        while let Some(effect) = effects.next_effect() {
            match effect {
                Effect::Open(settings) => nic.opened(tap.open(&settings), &mut effects),
                Effect::Start(pair) => out = Some(pair),
                Effect::Recall(_) => panic!("nothing is out yet"),
                Effect::Adapt(_)
                | Effect::Interrupt(_)
                | Effect::ControlFault(_)
                | Effect::ConfigChanged => {}
                Effect::Done(result) => result.expect("a good setup"),
            }
        }
    }
    out.expect("the pair is out")
}

/// The memory of a driver's buffers in pieces of `len` bytes, as many as there are: guest memory is
/// what all ways read and write.
fn rooms(driver: &Treadmill, buffer: u32, len: u32) -> SpanStore<256> {
    let mut store = SpanStore::new(Arc::clone(driver.space()), Access::Both);
    for room in 0..u64::from(u32::from(driver.size()) * buffer / len) {
        let at = GuestAddr(driver.buffer(0) + u64::from(len) * room);
        assert_eq!(store.push(at, len), Pushed::Added(1));
    }
    store
}

/// The buffers of a driver in the order of its ring.
fn pieces(driver: &Treadmill, buffer: u32) -> SpanStore<256> {
    let mut store = SpanStore::new(Arc::clone(driver.space()), Access::Both);
    for slot in 0..driver.size() {
        assert_eq!(store.push(GuestAddr(driver.buffer(slot)), buffer), Pushed::Added(1));
    }
    store
}

/// Seconds for `count` frames out of a bare loop.
fn write_bare(tap: &tun::Tap, driver: &Treadmill, len: u32, count: usize) -> f64 {
    let buffers = rooms(driver, len, len);
    let start = Clock::now();
    for turn in 0..count {
        let buffer = buffers.readable(turn % 256, 1);
        writev(tap.as_fd(), &[], buffer).expect("a tap takes all");
    }
    start.elapsed().as_secs_f64()
}

/// The same by way of a pair.
fn write_pair(pair: &mut QueuePair, driver: &mut Treadmill, count: usize) -> f64 {
    let start = Clock::now();
    for _ in 0..count / 64 {
        driver.post(64);
        let step = pair.service(Instant::from_nanos(0));
        assert!(step.worked && step.fault.is_none() && step.host.is_none());
    }
    start.elapsed().as_secs_f64()
}

/// Puts `count` frames into the queue of the tap at the bridge's other end.
fn fill(far: &tun::Tap, message: &[u8], count: usize) {
    for _ in 0..count {
        rustix::io::write(far.as_fd(), message).expect("a tap takes all");
    }
}

/// Seconds to drain `count` frames in a bare loop, each into so many `rooms`.
fn read_bare(tap: &tun::Tap, rooms: &SpanStore<256>, each: usize, count: usize) -> f64 {
    let (start, mut seen, frames) = (Clock::now(), 0, rooms.len() / each);
    loop {
        let room = rooms.writable(seen % frames * each, each);
        let Ok(1..) = readv(tap.as_fd(), &mut [], room, &mut []) else { break };
        seen += 1;
    }
    assert_eq!(seen, count, "frames were lost on the way");
    start.elapsed().as_secs_f64()
}

/// The same by way of a pair; a frame takes `buffers`.
fn read_pair(pair: &mut QueuePair, driver: &mut Treadmill, count: usize, buffers: usize) -> f64 {
    let before = driver.used();
    let (start, mut used) = (Clock::now(), before);
    // Until it finds nothing more, as the bare loop does.
    loop {
        let step = pair.service(Instant::from_nanos(0));
        assert!(step.fault.is_none() && step.host.is_none());
        let now = driver.used();
        driver.post(now.wrapping_sub(used));
        if !step.worked && now == used {
            break;
        }
        used = now;
    }
    let time = start.elapsed().as_secs_f64();
    let all = count * buffers % 65_536;
    assert_eq!(usize::from(used.wrapping_sub(before)), all, "frames were lost on the way");
    time
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What a row is about: bytes of a frame, buffers it takes, how many of them lie together.
#[derive(Clone, Copy)]
struct Row {
    way: &'static str,
    len: usize,
    buffers: usize,
    together: u16,
}

impl Row {
    fn is_wanted(&self) -> bool {
        let Self { way, len, buffers, together } = self;
        let name = format!("{way}-{len}-{buffers}-{together}");
        wanted().is_none_or(|wanted| name.starts_with(&wanted))
    }
}

/// One round, in seconds: the bare loops into one piece and into the pair's pieces, and the pair.
#[derive(Clone, Copy)]
struct Round {
    whole: f64,
    pieces: f64,
    pair: f64,
}

fn report(row: &Row, count: usize, rounds: &[Round]) {
    let ratio = |of: fn(&Round) -> f64| {
        let mut ratios: Vec<f64> = rounds.iter().map(|round| of(round) / round.pair).collect();
        let middle = median(&mut ratios);
        format!("{middle:.2} {:.2}..{:.2}", ratios[0], ratios[ratios.len() - 1])
    };
    let rate = |of: fn(&Round) -> f64| {
        median(&mut rounds.iter().map(|round| count as f64 / of(round) / 1e3).collect::<Vec<_>>())
    };
    let Row { way, len, buffers, together } = row;
    println!(
        "  {way:<9} {len:>6} {buffers:>7} {together:>8} {:>6.0} {:>6.0} {:>6.0}   {}   {}",
        rate(|round| round.whole),
        rate(|round| round.pieces),
        rate(|round| round.pair),
        ratio(|round| round.whole),
        ratio(|round| round.pieces),
    );
}

fn run() {
    set_up();
    println!(
        "  thousands of frames a second, medians of {ROUNDS} rounds; ratios with their spread"
    );
    println!(
        "  way        bytes buffers together   loop  readv   pair   pair/loop         pair/readv"
    );
    for (len, count) in [(64, 25_600), (1514, 12_800), (65_014, 1_280)] {
        let row = Row { way: "transmit", len, buffers: 1, together: 256 };
        if !row.is_wanted() {
            continue;
        }
        let rounds: Vec<_> = (0..=ROUNDS).map(|_| transmit_round(&row, count)).collect();
        // The first warms up.
        report(&row, count, &rounds[1..]);
    }
    for name in ["tap0", "tap1"] {
        ip(&format!("link set {name} master bridge0"));
    }
    for (len, count, buffer, together) in [
        (64, 3_000, PAGE, 8),
        (1514, 3_000, PAGE, 8),
        (65_014, 500, WHOLE, 256),
        (65_014, 500, PAGE, 256),
        (65_014, 500, PAGE, 8),
        (65_014, 500, PAGE, 1),
    ] {
        let buffers = (HDR_LEN + len).div_ceil(buffer as usize);
        let row = Row { way: "receive", len, buffers, together };
        if !row.is_wanted() {
            continue;
        }
        let far = tun::Tap::open("tap1").expect("a tap");
        far.set_offloads(OFFLOADS).expect("offloads");
        let rounds: Vec<_> =
            (0..=ROUNDS).map(|_| receive_round(&row, buffer, count, &far)).collect();
        report(&row, count, &rounds[1..]);
    }
}

fn transmit_round(row: &Row, count: usize) -> Round {
    let message = message(row.len);
    let len = message.len() as u32;
    let mut driver = Treadmill::new(Format::Split, false, len);
    driver.fill(&message);
    let whole = write_bare(&tun::Tap::open("tap0").expect("a tap"), &driver, len, count);
    let mut tap = Tap::open("tap0", 1).expect("a tap");
    let mut pair = pair(&driver, TX, &mut tap);
    Round { whole, pieces: whole, pair: write_pair(&mut pair, &mut driver, count) }
}

fn receive_round(row: &Row, buffer: u32, count: usize, far: &tun::Tap) -> Round {
    let message = message(row.len);
    let mut driver = Treadmill::in_runs(Format::Split, true, buffer, row.together);
    // No page of it is new when the clock runs.
    driver.fill(&vec![1; buffer as usize]);
    let bare = |store: &SpanStore<256>, each: usize| {
        let near = tun::Tap::open("tap0").expect("a tap");
        near.set_offloads(OFFLOADS).expect("offloads");
        ready(&near, far);
        fill(far, &message, count);
        read_bare(&near, store, each, count)
    };
    let whole = bare(&rooms(&driver, buffer, buffer * row.buffers as u32), 1);
    let pieces = bare(&pieces(&driver, buffer), row.buffers);
    let mut tap = Tap::open("tap0", 1).expect("a tap");
    let mut pair = pair(&driver, RX, &mut tap);
    driver.post(driver.size());
    // The port forwards a moment after its carrier is there.
    let start = Clock::now();
    while driver.used() == 0 {
        assert!(start.elapsed().as_secs() < 10, "the bridge forwards nothing");
        fill(far, &message, 1);
        assert!(pair.service(Instant::from_nanos(0)).fault.is_none());
    }
    std::thread::sleep(Duration::from_millis(2));
    while pair.service(Instant::from_nanos(0)).worked {}
    driver.post(driver.used());
    fill(far, &message, count);
    Round { whole, pieces, pair: read_pair(&mut pair, &mut driver, count, row.buffers) }
}

/// Waits until what goes into `far` comes out of `near`.
fn ready(near: &tun::Tap, far: &tun::Tap) {
    let (start, mut room) = (Clock::now(), [0; 2000]);
    let probe = message(64);
    loop {
        assert!(start.elapsed().as_secs() < 10, "the bridge forwards nothing");
        fill(far, &probe, 1);
        if rustix::io::read(near.as_fd(), &mut room).is_ok() {
            break;
        }
    }
    std::thread::sleep(Duration::from_millis(2));
    while rustix::io::read(near.as_fd(), &mut room).is_ok() {}
}
