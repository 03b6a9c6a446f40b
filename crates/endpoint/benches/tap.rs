//! A tap behind a queue pair, beside a bare loop of read and write on the same tap and processor:
//! `cargo bench -p vionet-endpoint --bench tap`.
//!
//! ```text
//!   transmit   pair or loop --write--> tap0        frames of nobody: the kernel drops them
//!   receive    tap1 --bridge--> tap0 --read--> pair or loop       filled first, then drained
//! ```
//!
//! In turn, many short rounds; the ratio is the median of those of each round. It runs in a user
//! and network namespace of its own; where it cannot have one it says so and ends.
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
use vionet_testkit::Treadmill;

const RX: QueueIndex = QueueIndex(0);
const TX: QueueIndex = QueueIndex(1);
const ROUNDS: usize = 15;
const INSIDE: &str = "VIONET_TAP_BENCH_INSIDE";
/// Bytes of a receive buffer as a Linux guest posts them, and of one that holds any frame.
const PAGE: u32 = 4096;
const WHOLE: u32 = 66_560;

fn main() {
    if std::env::var_os(INSIDE).is_some() {
        return run();
    }
    let exe = std::env::current_exe().expect("this program");
    let inside = Command::new("unshare").args(["-Urn"]).arg(exe).env(INSIDE, "1").status();
    match inside {
        Ok(status) if status.success() => {}
        Ok(status) => println!("not measured: no namespace of our own, or no tap in it ({status})"),
        Err(cause) => println!("not measured: unshare (util-linux): {cause}"),
    }
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
    let mut nic = Nic::new(NicConfig { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 }, tap.capabilities());
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
                Effect::Done(result) => result.expect("a good setup"),
            }
        }
    }
    out.expect("the pair is out")
}

/// The buffers of a driver, in runs of so many: guest memory is what both ways read and write.
fn runs(driver: &Treadmill, len: u32, together: u16) -> SpanStore<256> {
    let mut store = SpanStore::new(Arc::clone(driver.space()), Access::Both);
    for first in (0..=driver.size() - together).step_by(together.into()) {
        let bytes = len * u32::from(together);
        assert_eq!(store.push(GuestAddr(driver.buffer(first)), bytes), Pushed::Added(1));
    }
    store
}

/// Seconds for `count` frames out of a bare loop.
fn write_bare(tap: &tun::Tap, driver: &Treadmill, len: u32, count: usize) -> f64 {
    let buffers = runs(driver, len, 1);
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

/// Seconds to drain `count` frames in a bare loop, each into one of `rooms`.
fn read_bare(tap: &tun::Tap, rooms: &SpanStore<256>, count: usize) -> f64 {
    let (start, mut seen) = (Clock::now(), 0);
    while let Ok(len) = readv(tap.as_fd(), &mut [], rooms.writable(seen % rooms.len(), 1), &mut [])
    {
        seen += usize::from(len > 0);
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

fn report(way: &str, (len, buffers): (usize, usize), count: usize, mut rounds: Vec<(f64, f64)>) {
    let mut ratios: Vec<f64> = rounds.iter().map(|(bare, pair)| bare / pair).collect();
    let middle = median(&mut ratios);
    let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
    let mut rate = |of: fn(&(f64, f64)) -> f64| {
        median(
            &mut rounds.iter_mut().map(|round| count as f64 / of(round) / 1e3).collect::<Vec<_>>(),
        )
    };
    let [bare, pair] = [rate(|round| round.0), rate(|round| round.1)];
    println!(
        "  {way:<9} {len:>6} {buffers:>7} {bare:>9.0} {pair:>10.0}      {middle:.2}  \
         {least:.2}..{most:.2}"
    );
}

fn run() {
    set_up();
    println!(
        "  way        bytes buffers  loop k/s   pair k/s     ratio  spread of {ROUNDS} rounds"
    );
    for (len, count) in [(64, 25_600), (1514, 12_800), (65_014, 1_280)] {
        let message = message(len);
        let rounds = (0..=ROUNDS).map(|_| {
            let len = message.len() as u32;
            let mut driver = Treadmill::new(Format::Split, false, len);
            driver.fill(&message);
            let bare = write_bare(&tun::Tap::open("tap0").expect("a tap"), &driver, len, count);
            let mut tap = Tap::open("tap0").expect("a tap");
            let mut pair = pair(&driver, TX, &mut tap);
            (bare, write_pair(&mut pair, &mut driver, count))
        });
        // The first warms up.
        report("transmit", (len, 1), count, rounds.skip(1).collect());
    }
    for name in ["tap0", "tap1"] {
        ip(&format!("link set {name} master bridge0"));
    }
    for (len, count, buffer) in
        [(64, 3_000, PAGE), (1514, 3_000, PAGE), (65_014, 500, PAGE), (65_014, 500, WHOLE)]
    {
        let message = message(len);
        let buffers = message.len().div_ceil(buffer as usize);
        let far = tun::Tap::open("tap1").expect("a tap");
        far.set_offloads(TunOffloads { csum: true, tso4: true, tso6: true, ecn: false })
            .expect("offloads");
        let rounds = (0..=ROUNDS).map(|_| {
            let mut driver = Treadmill::new(Format::Split, true, buffer);
            // No page of it is new when the clock runs.
            driver.fill(&vec![1; buffer as usize]);
            let bare = {
                let near = tun::Tap::open("tap0").expect("a tap");
                near.set_offloads(TunOffloads { csum: true, tso4: true, tso6: true, ecn: false })
                    .expect("offloads");
                ready(&near, &far);
                fill(&far, &message, count);
                read_bare(&near, &runs(&driver, buffer, buffers as u16), count)
            };
            let mut tap = Tap::open("tap0").expect("a tap");
            let mut pair = pair(&driver, RX, &mut tap);
            driver.post(driver.size());
            let probe = message.clone();
            // The port forwards a moment after its carrier is there.
            let start = Clock::now();
            while driver.used() == 0 {
                assert!(start.elapsed().as_secs() < 10, "the bridge forwards nothing");
                fill(&far, &probe, 1);
                assert!(pair.service(Instant::from_nanos(0)).fault.is_none());
            }
            std::thread::sleep(Duration::from_millis(2));
            while pair.service(Instant::from_nanos(0)).worked {}
            driver.post(driver.used());
            fill(&far, &message, count);
            (bare, read_pair(&mut pair, &mut driver, count, buffers))
        });
        report("receive", (len, buffers), count, rounds.skip(1).collect());
    }
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
