//! A real Linux guest on the real program: user-mode network, and a tap in a network namespace.
//!
//! Runs under KVM or TCG with Debian's own kernel and busybox. As root each test makes a network
//! namespace with the peers in it and runs `vionet` as `nobody`; without root the user-mode test
//! runs with peers on this machine's loopback. What cannot run here says SKIPPED and why; in CI
//! (the variable `CI` is set) that is a failure. With `VIONET_GUEST_REFERENCE` set, the same
//! checks run on QEMU's own network device instead, which tells the rig's faults from ours.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    clippy::string_slice,
    reason = "tests may stop"
)]

#[path = "guest/checks.rs"]
mod checks;
#[path = "guest/commands.rs"]
mod commands;
#[path = "guest/newer.rs"]
mod newer;
#[path = "guest/offloads.rs"]
mod offloads;
#[path = "guest/pairs.rs"]
mod pairs;
#[path = "guest/peers.rs"]
mod peers;
#[path = "guest/place.rs"]
mod place;
#[path = "guest/programs.rs"]
mod programs;
#[path = "guest/server.rs"]
mod server;

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use checks::{Expected, Inbound, LISTENS, Visit, no_complaints};
use commands::{Commands, ServedNic};
use offloads::{Far, all_settings};
use pairs::{PAIRS, Seen, all_numbers, carry};
use peers::{Blob, Peers, name_server};
use place::{NOBODY_NAME, Place, installed, is_root};
use programs::programs;
use server::Server;
use vionetd::vm::initramfs::GuestFile;
use vionetd::vm::{Backend, DemoPlan, Guest, Machine, Parts, Step, VmError, run_demo};

const BOOT: Duration = Duration::from_secs(60);

/// The port of the host that leads to [`LISTENS`] of the guest.
const PUBLISHED: u16 = 2222;

/// Always: MAC, MRG_RXBUF, STATUS, INDIRECT_DESC, EVENT_IDX, VERSION_1.
const ALWAYS: [u8; 6] = [5, 15, 16, 28, 29, 32];
/// With checksums and segmentation: CSUM, GUEST_CSUM, GUEST_TSO4/6, HOST_TSO4/6 as well.
const OFFLOADS: [u8; 12] = [0, 1, 5, 7, 8, 11, 12, 15, 16, 28, 29, 32];

/// The same with packed rings: RING_PACKED as well.
const PACKED: [u8; 13] = [0, 1, 5, 7, 8, 11, 12, 15, 16, 28, 29, 32, 34];

/// Only one guest at a time: two of them would starve each other on a small machine.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says why a test does not run; the capture of test output does not hold it back.
fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "cannot be skipped in CI: {why}");
    writeln!(std::io::stderr(), "SKIPPED: {why}").ok();
}

fn reference() -> bool {
    std::env::var_os("VIONET_GUEST_REFERENCE").is_some()
}

/// What a guest is built of, or why there is none.
fn parts() -> Option<Parts> {
    match Parts::find() {
        Ok(parts) => Some(parts),
        Err(error @ VmError::Missing(_)) => {
            skip(&error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn machine(parts: &Parts, backend: Backend, files: &[GuestFile]) -> Machine {
    let script = GuestFile::script("usr/bin/traffic", include_str!("guest/traffic.sh"));
    let files = [&[script], files].concat();
    let mut machine = Machine::of_parts(parts, backend, &files).expect("build the guest");
    machine.reboots = true;
    machine
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn a_linux_guest_has_all_its_network_from_an_unprivileged_vionet() {
    let _alone = alone();
    let Some(parts) = parts() else { return };
    user_network(&parts, "--socket-path", Backend::VhostUser);
}

/// All that a guest has of the built-in network, on a device that is attached so.
fn user_network(parts: &Parts, option: &str, backend: fn(PathBuf) -> Backend) {
    let own_namespace = is_root() && installed("ip");
    let place = if own_namespace { Place::namespace() } else { Place::here() };
    let blob = Blob::new(64 * 1024 * 1024);
    let peers = Peers::start(&place, &blob);
    let loopback = [address("10.0.2.4"), address("fd76:696f:6e65:7400::4")];
    let mut expected = Expected {
        router: address("10.0.2.2"),
        static6: None,
        peers: loopback.to_vec(),
        pings: Vec::new(),
        resolved: Vec::new(),
        features: &ALWAYS,
        big_frames: false,
        inbound: None,
        closed: vec![(address("10.0.2.2"), peers.http), (address("169.254.169.254"), 80)],
    };
    if own_namespace {
        let world = [address("198.51.100.1"), address("2001:db8:77::1")];
        make_world(&place);
        name_server(&place, world[0], world[1]);
        expected.resolved = world.to_vec();
        expected.pings = world.to_vec();
        expected.peers = [&world[..], &loopback].concat();
    } else {
        skip("DNS and pings beyond the gateway, which need root for a network namespace");
    }
    if reference() {
        // its gateway is the host's loopback
        let gateway = vec![expected.router];
        expected.peers = if own_namespace { expected.resolved.clone() } else { gateway };
        expected.closed.clear();
        // it does not carry ICMPv6 to the world
        expected.pings.retain(IpAddr::is_ipv4);
        let machine = machine(parts, Backend::QemuUser, &[]);
        return visit(&place, &machine, None, &expected, &peers, &blob);
    }
    let mut options =
        vec!["--map-host-loopback", "10.0.2.4", "--map-host-loopback", "fd76:696f:6e65:7400::4"];
    let published = format!("127.0.0.1/{PUBLISHED}:{LISTENS}");
    if own_namespace {
        // elsewhere the port could be taken
        options.extend(["-t", &published]);
        expected.inbound = Some(Inbound::Published(PUBLISHED));
    }
    let server = Server::start_at(option, &place, &options);
    let machine = machine(parts, backend(server.socket.clone()), &[]);
    expected.features = &OFFLOADS;
    expected.big_frames = true;
    visit(&place, &machine, Some(server), &expected, &peers, &blob);
}

#[test]
fn a_linux_guest_has_all_its_network_over_a_tap_and_packed_rings() {
    let _alone = alone();
    let Some(parts) = parts() else { return };
    if !can_tap() {
        return;
    }
    let place = Place::namespace();
    // a persistent tap must be attached the way it was made
    make_tap(&place, if reference() { &[] } else { &["vnet_hdr", "user", NOBODY_NAME] });
    let host = HOST.map(address);
    let blob = Blob::new(64 * 1024 * 1024);
    let peers = Peers::start(&place, &blob);
    name_server(&place, host[0], host[1]);
    let _dhcp = DhcpServer::start(&place, &parts.busybox);
    let expected = Expected {
        router: host[0],
        static6: Some("fd77::2/64"),
        peers: host.to_vec(),
        pings: host.to_vec(),
        resolved: host.to_vec(),
        features: &PACKED,
        big_frames: true,
        inbound: Some(Inbound::Direct),
        closed: Vec::new(),
    };
    if reference() {
        let mut machine = machine(&parts, Backend::QemuTap("vt0".to_owned()), &[]);
        machine.packed = true;
        return visit(&place, &machine, None, &expected, &peers, &blob);
    }
    let server = Server::start(&place, &["--endpoint", "tap:vt0"]);
    let mut machine = machine(&parts, Backend::VhostUser(server.socket.clone()), &[]);
    machine.packed = true;
    visit(&place, &machine, Some(server), &expected, &peers, &blob);
}

#[test]
fn the_demos_tour_tells_each_step_and_reports_both_speeds() {
    let _alone = alone();
    if parts().is_none() {
        return;
    }
    if reference() {
        return skip("the demo's guest is always on vionet");
    }
    let own_namespace = is_root() && installed("ip");
    let place = if own_namespace { Place::namespace() } else { Place::here() };
    let blob = Blob::new(16 * 1024 * 1024);
    let peers = Peers::start(&place, &blob);
    let server = Server::start(&place, &["--map-host-loopback", "10.0.2.4"]);
    let plan = DemoPlan {
        name: "name.vionet.test".to_owned(),
        url: format!("http://10.0.2.4:{}/{}", peers.http, blob.len()),
        size: blob.len() as u64,
        sha256: blob.sha256(),
        sink: SocketAddr::new(address("10.0.2.4"), peers.sink),
    };
    let mut steps = Vec::new();
    let told = &mut steps;
    let report = place.inside(|| run_demo(&server.socket, &plan, &mut |step| told.push(step)));
    let report = report.unwrap_or_else(|error| panic!("{error}"));
    println!("{report:#?}");
    assert!(matches!(steps.first(), Some(Step::Preparing { .. })), "{steps:?}");
    assert!(matches!(steps.last(), Some(Step::Uploaded { .. })), "{steps:?}");
    assert_eq!(steps.len(), 7, "{steps:?}");
    assert_eq!(report.lease.address.to_string(), "10.0.2.15");
    assert!(report.resolved.is_empty(), "nobody knows the name");
    assert!(report.download_rate() > 1e6 && report.upload_rate() > 1e6);
    let swallowed = peers.swallowed.recv_timeout(BOOT).expect("the sink saw the end");
    assert_eq!(swallowed.sha256, blob.sha256());
    server.terminate();
}

/// What a guest is built of, with these programs of this machine in it.
fn furnished(names: &[&'static str]) -> Option<(Parts, Vec<GuestFile>)> {
    let parts = parts()?;
    match programs(names) {
        Ok(files) => Some((parts, files)),
        Err(name) => {
            skip(&format!("there is no program {name}; `cargo xtask setup` brings it"));
            None
        }
    }
}

#[test]
fn a_guest_on_a_tap_may_switch_its_offloads_in_any_way() {
    let _alone = alone();
    let Some((parts, files)) = furnished(&["ethtool", "socat"]) else { return };
    if !can_tap() {
        return;
    }
    let place = Place::namespace();
    make_tap(&place, &["vnet_hdr", "user", NOBODY_NAME]);
    let server = Server::start(&place, &["--endpoint", "tap:vt0"]);
    let machine = machine(&parts, Backend::VhostUser(server.socket.clone()), &files);
    let blob = Blob::new(1024 * 1024);
    let peers = Peers::start(&place, &blob);
    let mut guest = place.inside(|| Guest::boot(&machine, BOOT)).expect("boot the guest");
    let inside = settle(&mut guest);
    let addresses = HOST.map(address).to_vec();
    let far = Far { place: &place, peers: &peers, blob: &blob, addresses, guest: inside };
    let has = all_settings(&mut guest, &far, false);
    assert!(has.len() >= 8, "only {has:?} can be switched");
    no_complaints(&mut guest);
    guest.end();
    server.terminate();
}

#[test]
fn a_guest_on_the_built_in_network_may_switch_its_offloads_in_any_way() {
    let _alone = alone();
    let Some((parts, files)) = furnished(&["ethtool", "socat"]) else { return };
    let place = if is_root() && installed("ip") { Place::namespace() } else { Place::here() };
    let mapped = ["10.0.2.4", "fd76:696f:6e65:7400::4"];
    let options = ["--map-host-loopback", mapped[0], "--map-host-loopback", mapped[1]];
    let server = Server::start(&place, &options);
    let machine = machine(&parts, Backend::VhostUser(server.socket.clone()), &files);
    let blob = Blob::new(1024 * 1024);
    let peers = Peers::start(&place, &blob);
    let mut guest = place.inside(|| Guest::boot(&machine, BOOT)).expect("boot the guest");
    for command in ["net lease", "net address6", "ip link set $(net nic) mtu 1500"] {
        guest.check(command, BOOT).unwrap_or_else(|error| panic!("{error}"));
    }
    let addresses = mapped.map(address).to_vec();
    let far = Far { place: &place, peers: &peers, blob: &blob, addresses, guest: Vec::new() };
    all_settings(&mut guest, &far, false);
    no_complaints(&mut guest);
    guest.end();
    server.terminate();
}

#[test]
fn a_guest_with_several_pairs_uses_as_many_as_it_likes() {
    let _alone = alone();
    let Some((parts, files)) = furnished(&["ethtool"]) else { return };
    // without vectors of their own; see `newer` for those
    let shared = parts.qemu.needs_intx_under_tcg();
    several_pairs(&parts, &files, if shared { Seen::Frames } else { Seen::Interrupts });
}

fn several_pairs(parts: &Parts, files: &[GuestFile], by: Seen) {
    if !can_tap() {
        return;
    }
    let place = Place::namespace();
    make_tap(&place, &["vnet_hdr", "multi_queue", "user", NOBODY_NAME]);
    let pairs = PAIRS.to_string();
    let server = Server::start(&place, &["--endpoint", "tap:vt0", "--queues", &pairs]);
    let mut machine = machine(parts, Backend::VhostUser(server.socket.clone()), files);
    (machine.cpus, machine.pairs) = (PAIRS, PAIRS);
    let blob = Blob::new(1024 * 1024);
    let peers = Peers::start(&place, &blob);
    let mut guest = place.inside(|| Guest::boot(&machine, BOOT)).expect("boot the guest");
    let inside = settle(&mut guest);
    let addresses = HOST.map(address).to_vec();
    let far = Far { place: &place, peers: &peers, blob: &blob, addresses, guest: inside };
    all_numbers(&mut guest, &far, by);
    guest.reboot(BOOT).expect("reboot");
    settle(&mut guest);
    carry(&mut guest, &far, PAIRS, by);
    no_complaints(&mut guest);
    guest.end();
    assert!(!server.log().contains("WARN"), "{}", server.log());
    server.terminate();
}

/// One guest does everything once, then reboots three times; a second guest follows it on the
/// same server; then the server is told to go. It must never hold more than with the first boot.
fn visit(
    place: &Place,
    machine: &Machine,
    server: Option<Server>,
    expected: &Expected,
    peers: &Peers,
    blob: &Blob,
) {
    let mut guest = place.inside(|| Guest::boot(machine, BOOT)).expect("boot the guest");
    let boot = guest.boot_time().as_secs_f64();
    println!("Linux {} under {}, up in {boot:.1} s", guest.release(), machine.accel.name());
    let mut first = None;
    let mut count = |when: &str| {
        let Some(server) = &server else { return };
        let now = server.holdings();
        println!("  {when:<28} {now}");
        match &first {
            None => first = Some(now),
            Some(first) => now.assert_no_more_than(first, when),
        }
    };
    let mut new_visit = Visit { guest: &mut guest, expected, peers, blob };
    new_visit.features();
    new_visit.lease();
    new_visit.ping(expected.router, 56);
    count("the first boot");
    for boot in 1..=3 {
        match boot {
            // the kernel goes down properly, or does not hear of it
            1 | 3 => guest.reboot(BOOT).expect("reboot"),
            _ => {
                guest.qmp().and_then(|mut qmp| qmp.system_reset()).expect("reset");
                guest.await_ready(BOOT).expect("the guest after a reset");
            }
        }
        let mut visit = Visit { guest: &mut guest, expected, peers, blob };
        visit.lease();
        visit.ping(expected.router, 56);
        count(&format!("reboot {boot}"));
    }
    let mut visit = Visit { guest: &mut guest, expected, peers, blob };
    everything(&mut visit, place);
    // QEMU has no link of what it does not know to be a NIC
    if !matches!(machine.backend, Backend::VfioUser(_)) {
        visit.link();
    }
    visit.no_complaints();
    guest.end();
    if server.is_some() {
        let mut guest = place.inside(|| Guest::boot(machine, BOOT)).expect("boot another guest");
        let mut visit = Visit { guest: &mut guest, expected, peers, blob };
        visit.lease();
        visit.ping(expected.router, 56);
        visit.tcp(expected.peers[0], 1);
        guest.end();
    }
    if let Some(server) = server {
        server.terminate();
    }
}

fn everything(visit: &mut Visit<'_>, place: &Place) {
    let lease = visit.lease();
    visit.address6();
    visit.pings();
    visit.resolve();
    visit.closed();
    for (index, peer) in visit.expected.peers.iter().enumerate() {
        visit.tcp(*peer, if index == 0 { 64 } else { 8 });
    }
    visit.inbound(place, &lease);
    for peer in &visit.expected.peers {
        visit.udp(*peer, 1428);
    }
    visit.udp(visit.expected.peers[0], 8192);
    for peer in visit.expected.peers.iter().take(2) {
        visit.frames(*peer);
    }
    visit.reload(&lease, 10);
}

/// The host's addresses on the tap.
const HOST: [&str; 2] = ["10.77.0.1", "fd77::1"];

fn can_tap() -> bool {
    let can = is_root() && installed("ip") && Path::new("/dev/net/tun").exists();
    if !can {
        skip("a tap needs root, the program ip (iproute2) and /dev/net/tun");
    }
    can
}

/// A tap `vt0` with the host's addresses.
fn make_tap(place: &Place, more: &[&str]) {
    place.ip(&[&["tuntap", "add", "dev", "vt0", "mode", "tap"], more].concat());
    place.ip(&["addr", "add", "10.77.0.1/24", "dev", "vt0"]);
    place.ip(&["addr", "add", "fd77::1/64", "dev", "vt0", "nodad"]);
    place.ip(&["link", "set", "vt0", "up"]);
}

/// Gives the guest addresses on the tap by hand.
fn settle(guest: &mut Guest) -> Vec<IpAddr> {
    let command = "ip link set $(net nic) up mtu 1500 && \
                   ip addr add 10.77.0.2/24 dev $(net nic) && traffic address6 fd77::2/64";
    guest.check(command, BOOT).unwrap_or_else(|error| panic!("{error}"));
    ["10.77.0.2", "fd77::2"].map(address).to_vec()
}

/// Gives a namespace addresses that are not loopback, a default route, pings for everybody, and
/// the address that this machine's resolver is asked at.
fn make_world(place: &Place) {
    place.ip(&["link", "add", "up0", "type", "veth", "peer", "name", "up1"]);
    place.ip(&["addr", "add", "198.51.100.1/24", "dev", "up0"]);
    place.ip(&["addr", "add", "2001:db8:77::1/64", "dev", "up0", "nodad"]);
    place.ip(&["link", "set", "up0", "up"]);
    place.ip(&["link", "set", "up1", "up"]);
    place.ip(&["route", "add", "default", "dev", "up0"]);
    place.ip(&["-6", "route", "add", "default", "dev", "up0"]);
    place.inside(|| std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")).ok();
    let servers = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    for server in servers.lines().filter_map(|line| line.strip_prefix("nameserver")) {
        match server.trim().parse::<IpAddr>() {
            Ok(IpAddr::V4(v4)) if !v4.is_loopback() => {
                place.ip(&["addr", "add", &format!("{v4}/32"), "dev", "lo"]);
            }
            Ok(IpAddr::V6(v6)) if !v6.is_loopback() => {
                place.ip(&["addr", "add", &format!("{v6}/128"), "dev", "lo", "nodad"]);
            }
            Ok(_) | Err(_) => {}
        }
    }
}

/// busybox's DHCP server on the tap.
struct DhcpServer(Child);

impl DhcpServer {
    fn start(place: &Place, busybox: &Path) -> Self {
        let (config, leases) = (place.path("udhcpd.conf"), place.path("leases"));
        std::fs::write(&leases, "").expect("a file for leases");
        let text = format!(
            "start 10.77.0.100\nend 10.77.0.120\ninterface vt0\nlease_file {}\npidfile {}\n\
             option subnet 255.255.255.0\noption router 10.77.0.1\noption dns 10.77.0.1\n",
            leases.display(),
            place.path("udhcpd.pid").display(),
        );
        std::fs::write(&config, text).expect("udhcpd's configuration");
        let mut command = Command::new(busybox);
        command.arg("udhcpd").arg("-f").arg(&config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(place.inside(|| command.spawn().expect("start udhcpd")))
    }
}

impl Drop for DhcpServer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
