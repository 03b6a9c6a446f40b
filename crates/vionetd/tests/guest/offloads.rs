//! `ethtool -K`: whatever the guest does itself or leaves to us, the same octets arrive.
//!
//! Each setting moves TCP and UDP both ways over IPv4 and IPv6. How large the guest's frames are
//! shows that it was in force.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use sha2::{Digest, Sha256};
use vionetd::vm::{Guest, Output};

use crate::checks::SHORT;
use crate::peers::{Blob, Peers, hex};
use crate::place::Place;

/// What must be on for the others to be.
const NEEDED: [&str; 2] = ["tx-checksumming", "scatter-gather"];

/// Those that may be on or off by themselves; a NIC need not have all.
const FREE: [&str; 7] = [
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "generic-segmentation-offload",
    "generic-receive-offload",
    "rx-gro-hw",
    "tx-udp-segmentation",
];

/// Whether switch `index` of [`FREE`] is off in this row of eight. Of any two switches every four
/// settings come up: an orthogonal array of strength two, made of the parities of three bits.
fn is_off(row: usize, index: usize) -> bool {
    (row & (index + 1)).count_ones() % 2 == 1
}

/// What is off in each setting to try.
fn settings() -> Vec<Vec<&'static str>> {
    let row = |row: usize| (0..FREE.len()).filter(move |index| is_off(row, *index));
    let mut list: Vec<Vec<_>> = (0..8).map(|r| row(r).map(|index| FREE[index]).collect()).collect();
    list.push(NEEDED[1..].to_vec());
    list.push(NEEDED.to_vec());
    list.push([&NEEDED[..], &FREE].concat());
    list.push(Vec::new());
    list
}

#[test]
fn any_two_switches_come_up_in_all_four_settings() {
    for (one, name) in FREE.iter().enumerate() {
        for other in (0..FREE.len()).filter(|other| *other != one) {
            let mut seen: Vec<_> =
                (0..8).map(|row| (is_off(row, one), is_off(row, other))).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 4, "{name} with {}", FREE[other]);
        }
    }
}

/// The other end of the traffic.
pub struct Far<'a> {
    pub place: &'a Place,
    pub peers: &'a Peers,
    pub blob: &'a Blob,
    /// Its addresses, as the guest knows them.
    pub addresses: Vec<IpAddr>,
    /// The guest's addresses, where it can be reached from there.
    pub guest: Vec<IpAddr>,
}

impl Far<'_> {
    /// One of its addresses after the other.
    pub fn address(&self, turn: u16) -> IpAddr {
        self.addresses[usize::from(turn) % self.addresses.len()]
    }
}

const TCP: usize = 256 * 1024;
const UDP: usize = 64 * 1024;
const BLOCK: usize = 1400;

/// Tries every setting; returns the switches that this NIC has. `obeyed` tells whether commands
/// about what the guest receives come to vionet at all.
pub fn all_settings(guest: &mut Guest, far: &Far<'_>, obeyed: bool) -> Vec<&'static str> {
    let has = changeable(guest);
    for off in settings() {
        let off: Vec<_> = off.into_iter().filter(|name| has.contains(name)).collect();
        let wanted: Vec<_> = has.iter().map(|name| (*name, !off.contains(name))).collect();
        let is = switch(guest, &wanted);
        let mut means = Vec::new();
        for address in &far.addresses {
            let (rx, tx) = exchange(guest, far, *address, &is);
            let whole = !obeyed || is.contains(&"rx-gro-hw");
            assert_eq!(rx > 1600, whole, "frames of {rx} octets from {address} with {is:?}");
            means.push(format!("{rx} in, {tx} out"));
        }
        println!("  {:<46} off: {}", means.join("; "), off.join(" "));
    }
    has
}

pub fn must(guest: &mut Guest, command: &str) -> Output {
    match guest.check(command, SHORT) {
        Ok(output) => output,
        Err(error) => panic!("{error}\nthe guest's kernel said:\n{}", guest.kernel_log()),
    }
}

pub fn value<'a>(output: &'a Output, key: &str) -> &'a str {
    output.value(key).unwrap_or_else(|| panic!("no {key} in {:?}", output.lines))
}

/// The switches that this NIC lets be changed.
fn changeable(guest: &mut Guest) -> Vec<&'static str> {
    let state = must(guest, "traffic offloads");
    let all = NEEDED.iter().chain(&FREE).copied();
    all.filter(|name| matches!(state.value(name), Some("on" | "off"))).collect()
}

/// What is on in the end: some are off for want of others.
fn switch(guest: &mut Guest, wanted: &[(&'static str, bool)]) -> Vec<&'static str> {
    let word = |on: &bool| if *on { "on" } else { "off" };
    let words: Vec<String> =
        wanted.iter().map(|(name, on)| format!("{name} {}", word(on))).collect();
    let state = must(guest, &format!("traffic offloads {}", words.join(" ")));
    let is_on = |name: &str| value(&state, name) == "on";
    for (name, on) in wanted {
        // the kernel may keep a wish for later: "off [requested on]"
        assert!(*on || !is_on(name), "{name} is on: {:?}", state.lines);
    }
    let on: Vec<&str> = wanted.iter().map(|(name, _)| *name).filter(|name| is_on(name)).collect();
    let unmet = wanted.iter().filter(|(name, wish)| *wish && !on.contains(name));
    for (name, _) in unmet {
        let needs = NEEDED.iter().any(|needed| !on.contains(needed)) || name.contains("ecn");
        assert!(needs, "{name} is off: {:?}", state.lines);
    }
    on
}

/// TCP and UDP both ways with one address of the far end; returns the mean size of TCP's frames.
fn exchange(guest: &mut Guest, far: &Far<'_>, address: IpAddr, on: &[&str]) -> (usize, usize) {
    let tcp = far.blob.start(TCP);
    let url = format!("http://{}/{TCP}", SocketAddr::new(address, far.peers.http));
    let output = must(guest, &format!("traffic mean net download '{url}'"));
    assert_eq!(value(&output, "sha256"), tcp.sha256(), "from {address} with {on:?}");
    let rx_mean = value(&output, "rx_mean").parse().expect("a number");
    let output = must(guest, &format!("traffic mean net send {address} {}", far.peers.sink));
    let got = far.peers.swallowed.recv_timeout(SHORT).expect("the sink saw the end");
    assert_eq!((got.bytes, got.sha256), (TCP, tcp.sha256()), "to {address} with {on:?}");
    let mean: usize = value(&output, "tx_mean").parse().expect("a number");
    let segmentation = if address.is_ipv4() { FREE[0] } else { FREE[1] };
    let whole = [NEEDED[0], NEEDED[1], segmentation].iter().all(|name| on.contains(name));
    assert_eq!(mean > 1600, whole, "frames of {mean} octets to {address} with {on:?}");
    let udp = far.blob.start(UDP);
    let command = format!("traffic udp {address} {} {UDP} {BLOCK}", far.peers.tftp);
    let output = must(guest, &command);
    assert_eq!(value(&output, "sha256"), udp.sha256(), "UDP with {address}, {on:?}");
    burst_out(guest, far, address, on);
    if let Some(inside) = far.guest.iter().find(|inside| inside.is_ipv4() == address.is_ipv4()) {
        burst_in(guest, far, *inside, on);
    }
    (rx_mean, mean)
}

/// Datagrams of 1 200 that the sender leaves to its kernel to cut (`UDP_SEGMENT`, 17:103).
const CUT: &str = "setsockopt=17:103:i1200";
const BURST: usize = 48 * 1200;

fn burst_out(guest: &mut Guest, far: &Far<'_>, address: IpAddr, on: &[&str]) {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = far.place.inside(|| UdpSocket::bind(any).expect("bind"));
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
    let port = socket.local_addr().expect("its address").port();
    let to =
        if address.is_ipv4() { format!("UDP4:{address}") } else { format!("UDP6:[{address}]") };
    // Linux cuts no datagrams whose checksums it must complete itself
    let how = if on.contains(&NEEDED[0]) {
        format!("-b {BURST} - {to}:{port},{CUT}")
    } else {
        format!("-b 1200 - {to}:{port}")
    };
    must(guest, &format!("head -c {BURST} /tmp/blob | socat -u {how}"));
    let mut got = Vec::new();
    let mut datagram = [0; 2048];
    while got.len() < BURST {
        let len = socket.recv(&mut datagram).unwrap_or_else(|error| {
            panic!("{} of {BURST} octets came to {address} with {on:?}: {error}", got.len())
        });
        assert!(len <= 1200, "a datagram of {len} octets to {address} with {on:?}");
        got.extend_from_slice(&datagram[..len]);
    }
    let same = hex(&Sha256::digest(&got)) == far.blob.start(BURST).sha256();
    assert!(same, "UDP cut on its way to {address} with {on:?}");
}

fn burst_in(guest: &mut Guest, far: &Far<'_>, inside: IpAddr, on: &[&str]) {
    let family = if inside.is_ipv4() { 4 } else { 6 };
    must(guest, &format!("traffic burst_listen {family} 7000"));
    let to = if inside.is_ipv4() { format!("UDP4:{inside}") } else { format!("UDP6:[{inside}]") };
    let mut socat = Command::new("socat");
    socat.args(["-u", "-b", &BURST.to_string(), "-", &format!("{to}:7000,{CUT}")]);
    socat.stdin(Stdio::piped());
    let mut child = far.place.inside(|| socat.spawn().expect("start socat"));
    let mut input = child.stdin.take().expect("its input");
    input.write_all(far.blob.start(BURST).bytes()).expect("give it the octets");
    drop(input);
    assert!(child.wait().expect("socat ends").success(), "socat sends to {inside}");
    let output = must(guest, &format!("traffic burst_received {BURST}"));
    let same = value(&output, "sha256") == far.blob.start(BURST).sha256();
    assert!(same, "UDP cut by the host to {inside} with {on:?}: {:?}", output.lines);
}
