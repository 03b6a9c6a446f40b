//! The real server and the built-in guest: one after another, and never a thing left behind.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests may stop"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use vionet_driver::{
    ADDRESSES, Content, Direction, Guest, GuestError, GuestOptions, NAME, Nic, Peer,
};
use vionet_user::config::{Ipv4Guest, Ipv6Guest};

const LOOPBACK: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
const FILE: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

struct Server {
    child: Child,
    folder: PathBuf,
}

impl Server {
    fn start(name: &str, more: &[String]) -> Self {
        let folder = std::env::temp_dir().join(format!("vionet-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_vionet"))
            .args(["serve", "--quiet", "--socket-path"])
            .arg(folder.join("vm.sock"))
            .args(more)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, folder };
        wait_for("the server to listen", || server.socket().exists().then_some(()));
        server
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("vm.sock")
    }

    /// Threads, descriptors and mappings of guest memory.
    fn holdings(&self) -> [usize; 3] {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let count = |what: &str| fs::read_dir(process.join(what)).unwrap().count();
        let maps = fs::read_to_string(process.join("maps")).unwrap();
        let memory = maps.lines().filter(|line| line.contains("vionet-guest")).count();
        [count("task"), count("fd"), memory]
    }

    /// What it holds once a guest has gone.
    fn settled(&self) -> [usize; 3] {
        wait_for("guest memory to be let go", || {
            let holdings = self.holdings();
            (holdings[2] == 0).then_some(holdings)
        })
    }

    fn end(mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let status = wait_for("the server to end", || self.child.try_wait().unwrap());
        assert!(!self.socket().exists(), "the socket is gone with the server");
        (status, start.elapsed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _ended = self.child.wait();
        let _removed = fs::remove_dir_all(&self.folder);
    }
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waiting for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn with_peer(name: &str, more: &[&str]) -> (Server, Peer) {
    let peer = Peer::start(FILE).unwrap();
    let mut options = vec!["--map-host-loopback".into(), LOOPBACK.to_string()];
    options.extend(["--dns".into(), peer.dns().to_string()]);
    options.extend(more.iter().map(ToString::to_string));
    (Server::start(name, &options), peer)
}

fn seen(server: SocketAddr) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(LOOPBACK), server.port())
}

/// Downloads the file and holds its checksum against the right one.
fn download(guest: &mut Guest, from: SocketAddr) {
    static EXPECTED: LazyLock<[u8; 32]> = LazyLock::new(|| {
        let mut sum = Sha256::new();
        Content::new(FILE).for_each(|piece| sum.update(piece));
        sum.finalize().into()
    });
    let mut sum = Sha256::new();
    let (len, _) = guest.download(from, "/file", &mut |piece| sum.update(piece)).unwrap();
    assert_eq!((len, <[u8; 32]>::from(sum.finalize())), (FILE, *EXPECTED));
}

/// Everything that a guest does with its network.
fn tour(server: &Server, peer: &Peer) {
    let mut guest = Guest::start(&server.socket(), &GuestOptions::default()).unwrap();
    let lease = guest.lease().unwrap();
    let net = Ipv4Guest::default();
    assert_eq!((lease.address, lease.router), (net.guest, Some(net.gateway)));
    assert_eq!((lease.dns, lease.mtu), (vec![net.dns], Some(65_520)));
    let net6 = Ipv6Guest::default();
    let own = guest.autoconfigure().unwrap();
    assert_eq!((own.router, own.mtu), (net6.link_local, Some(65_520)));
    assert!(net6.net.contains(own.address), "{}", own.address);
    for gateway in [IpAddr::V4(net.gateway), net6.gateway.into(), net6.link_local.into()] {
        guest.ping(gateway).unwrap_or_else(|cause| panic!("{gateway}: {cause}"));
    }
    assert_eq!(guest.resolve(NAME).unwrap(), ADDRESSES);
    assert!(guest.resolve("other.vionet.test").is_err());
    for len in [0, 1, 1472, 9000, 60_000] {
        guest.udp_echo(seen(peer.echo()), len).unwrap_or_else(|cause| panic!("{len}: {cause}"));
    }
    download(&mut guest, seen(peer.http()));
    guest.upload(seen(peer.streams()), FILE + 1).unwrap();
    for direction in [Direction::Receive, Direction::Transmit] {
        let time = Duration::from_millis(300);
        let rate = guest.measure(seen(peer.streams()), direction, time).unwrap();
        assert!(rate > 1e6, "{direction:?}: {rate} bytes/s");
    }
    guest.stop().unwrap();
}

#[test]
fn guests_one_after_another_find_the_server_as_it_was() {
    let (server, peer) = with_peer("one-after-another", &[]);
    tour(&server, &peer);
    let first = server.settled();
    for _ in 0..2 {
        tour(&server, &peer);
        assert_eq!(server.settled(), first, "threads, descriptors, memory");
    }
    let (status, time) = server.end();
    assert!(status.success(), "SIGTERM ends it well: {status}");
    assert!(time < Duration::from_secs(2), "and soon: {time:?}");
}

#[test]
fn a_guest_that_vanishes_in_mid_traffic_leaves_nothing_behind() {
    let (server, peer) = with_peer("vanishing", &[]);
    tour(&server, &peer);
    let first = server.settled();
    for _ in 0..5 {
        let mut guest = Guest::start(&server.socket(), &GuestOptions::default()).unwrap();
        guest.lease().unwrap();
        let from = seen(peer.http());
        // Without a word: the socket and the memory just end, data on its way.
        let ended = catch_unwind(AssertUnwindSafe(move || {
            let mut pieces = 0;
            guest.download(from, "/file", &mut |_| {
                pieces += 1;
                if pieces == 10 {
                    resume_unwind(Box::new("vanished"));
                }
            })
        }));
        assert_eq!(*ended.unwrap_err().downcast::<&str>().unwrap(), "vanished");
    }
    assert_eq!(server.settled(), first);
    tour(&server, &peer);
    assert_eq!(server.settled(), first);
}

#[test]
fn a_network_that_asks_for_small_packets_gets_them() {
    let (server, peer) = with_peer("small", &["--mtu", "1400"]);
    let mut guest = Guest::start(&server.socket(), &GuestOptions::default()).unwrap();
    assert_eq!(guest.lease().unwrap().mtu, Some(1400));
    assert_eq!(guest.autoconfigure().unwrap().mtu, Some(1400));
    assert_eq!(guest.mtu(), 1400);
    download(&mut guest, seen(peer.http()));
    guest.upload(seen(peer.streams()), FILE).unwrap();
    guest.udp_echo(seen(peer.echo()), 1372).unwrap();
    guest.stop().unwrap();
}

#[test]
fn a_guest_does_the_same_over_ipv6() {
    const MAPPED: Ipv6Addr = Ipv6Addr::new(0xfd76, 0x696f, 0x6e65, 0x7400, 0, 0, 0, 4);
    let Ok(peer) = Peer::start_on(Ipv6Addr::LOCALHOST.into(), FILE) else {
        eprintln!("this machine has no ::1");
        return;
    };
    let more = ["--map-host-loopback".into(), MAPPED.to_string()];
    let server = Server::start("ipv6", &more);
    let mut guest = Guest::start(&server.socket(), &GuestOptions::default()).unwrap();
    guest.autoconfigure().unwrap();
    let seen = |server: SocketAddr| SocketAddr::new(MAPPED.into(), server.port());
    download(&mut guest, seen(peer.http()));
    guest.upload(seen(peer.streams()), FILE).unwrap();
    guest.udp_echo(seen(peer.echo()), 60_000).unwrap();
    guest.stop().unwrap();
}

#[test]
fn the_hosts_loopback_is_closed_unless_it_is_mapped() {
    let peer = Peer::start(1).unwrap();
    let server = Server::start("closed", &["--dns".into(), peer.dns().to_string()]);
    let options = GuestOptions { patience: Duration::from_secs(2), ..GuestOptions::default() };
    let mut guest = Guest::start(&server.socket(), &options).unwrap();
    guest.lease().unwrap();
    for closed in [LOOPBACK, Ipv4Addr::LOCALHOST, Ipv4Addr::new(169, 254, 169, 254)] {
        let at = SocketAddr::new(IpAddr::V4(closed), peer.http().port());
        let outcome = guest.download(at, "/file", &mut |_| {});
        assert!(matches!(outcome, Err(GuestError::Network(_) | GuestError::Timeout(..))), "{at}");
    }
}

#[test]
fn a_published_port_leads_into_the_guest() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let publish = format!("127.0.0.1/{}:7", free.port());
    let (server, _peer) = with_peer("published", &["-t", &publish]);
    let mut guest = Guest::start(&server.socket(), &GuestOptions::default()).unwrap();
    guest.lease().unwrap();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(free).unwrap();
        let sent: Vec<u8> = Content::new(200_000).flatten().collect();
        let mut writer = stream.try_clone().unwrap();
        let copy = sent.clone();
        let sender = thread::spawn(move || {
            writer.write_all(&copy).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        sender.join().unwrap();
        assert_eq!(back.len(), sent.len());
        assert!(back == sent, "what came back is what was sent");
    });
    assert_eq!(guest.echo_once(7).unwrap(), 200_000);
    client.join().unwrap();
}

#[test]
fn a_front_end_that_dies_between_messages_makes_room_for_the_next() {
    let (server, peer) = with_peer("dying", &[]);
    for _ in 0..20 {
        drop(Nic::attach(&server.socket()).unwrap());
    }
    tour(&server, &peer);
}

#[test]
fn a_taken_socket_and_a_missing_tap_end_with_a_line_and_their_code() {
    let (server, _peer) = with_peer("taken", &[]);
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_vionet")).args(arguments).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text.lines().filter(|line| line.starts_with("vionet:")).count())
    };
    let taken = server.socket();
    let taken = taken.to_str().unwrap();
    assert_eq!(run(&["serve", "--socket-path", taken]), (Some(3), 1));
    let free = server.folder.join("other.sock");
    let other = free.to_str().unwrap();
    assert_eq!(run(&["serve", "--socket-path", other, "--endpoint", "tap:none0"]), (Some(3), 1));
    for kind in ["--socket-path", "--vfio-user"] {
        assert_eq!(run(&["serve", kind, "/nowhere/x.sock"]), (Some(3), 1), "{kind}");
    }
    assert!(!free.exists(), "nothing is left behind");
    let output = Command::new(env!("CARGO_BIN_EXE_vionet")).arg("--print-capabilities").output();
    let output = output.unwrap();
    assert_eq!(
        (output.status.code(), &output.stdout[..]),
        (Some(0), &b"{\"type\": \"net\"}\n"[..])
    );
}
