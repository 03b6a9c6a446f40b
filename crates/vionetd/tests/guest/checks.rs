//! What every guest must be able to do, whatever is behind its NIC.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::time::Duration;

use vionetd::vm::{Guest, Output, Stopwatch};

use crate::peers::{Blob, NAME, Peers};
use crate::place::Place;

/// Long enough for what takes a guest under TCG a second.
pub const SHORT: Duration = Duration::from_secs(30);
/// Long enough for 64 MiB.
const TRANSFER: Duration = Duration::from_secs(90);

const MIB: usize = 1024 * 1024;

/// The network a guest should find itself in.
pub struct Expected {
    /// The router of its lease; answers pings.
    pub router: IpAddr,
    /// An address and prefix to give the NIC when router advertisements give none.
    pub static6: Option<&'static str>,
    /// The peers' addresses, one per way to them.
    pub peers: Vec<IpAddr>,
    /// Those of the peers that answer pings.
    pub pings: Vec<IpAddr>,
    /// What the name server says, when there is one of ours.
    pub resolved: Vec<IpAddr>,
    /// Feature bits that must be in use.
    pub features: &'static [u8],
    /// Whether frames beyond the MTU must pass, both ways.
    pub big_frames: bool,
    /// How the host reaches port [`LISTENS`] of the guest.
    pub inbound: Option<Inbound>,
    /// Destinations and ports that must stay closed.
    pub closed: Vec<(IpAddr, u16)>,
}

/// A way into the guest.
#[derive(Clone, Copy)]
pub enum Inbound {
    /// A port of the host's loopback.
    Published(u16),
    /// The guest's own address.
    Direct,
}

/// The port on which the guest listens.
pub const LISTENS: u16 = 7777;

/// A guest with its expectations and its peers; prints what it sees.
pub struct Visit<'a> {
    pub guest: &'a mut Guest,
    pub expected: &'a Expected,
    pub peers: &'a Peers,
    pub blob: &'a Blob,
}

fn in_url(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

/// Prints what was seen, with the time it took.
fn report<T>(name: &str, work: impl FnOnce() -> (T, String)) -> T {
    let watch = Stopwatch::new(Duration::MAX);
    let (value, seen) = work();
    println!("  {name:<28} {seen} ({:.1} s)", watch.elapsed().as_secs_f64());
    value
}

impl Visit<'_> {
    fn must(&mut self, command: &str, limit: Duration) -> Output {
        match self.guest.check(command, limit) {
            Ok(output) => output,
            Err(error) => panic!("{error}\nthe guest's kernel said:\n{}", self.guest.kernel_log()),
        }
    }

    fn value(output: &Output, key: &str) -> String {
        output.value(key).unwrap_or_else(|| panic!("no {key} in {:?}", output.lines)).to_owned()
    }

    /// A lease over DHCP; returns the address with its prefix.
    pub fn lease(&mut self) -> String {
        report("DHCP lease", || {
            let output = self.must("net lease", SHORT);
            let [address, prefix, router, dns] =
                ["address", "prefix", "router", "dns"].map(|key| Self::value(&output, key));
            assert_eq!(router, self.expected.router.to_string());
            let lease = format!("{address}/{prefix}");
            let seen = format!("{lease}, router {router}, DNS {dns}");
            (lease, seen)
        })
    }

    pub fn features(&mut self) {
        report("features", || {
            let output = self.must("traffic features", SHORT);
            let text = Self::value(&output, "features");
            let bits: Vec<u8> = text.split(' ').filter_map(|bit| bit.parse().ok()).collect();
            for bit in self.expected.features {
                assert!(bits.contains(bit), "feature {bit} is not in use, only {text}");
            }
            ((), text)
        });
    }

    pub fn address6(&mut self) {
        report("IPv6 address", || match self.expected.static6 {
            Some(address) => {
                let command = format!("traffic address6 {address}");
                self.must(&command, SHORT);
                ((), format!("{address}, by hand"))
            }
            None => {
                let output = self.must("net address6", SHORT);
                let [address, router] =
                    ["address6", "router6"].map(|key| Self::value(&output, key));
                self.must(&format!("ping6 -c 2 -i 0.2 -W 3 -I $(net nic) {router}"), SHORT);
                ((), format!("{address}, router {router} answers"))
            }
        });
    }

    pub fn ping(&mut self, address: IpAddr, octets: usize) {
        report(&format!("ping {address}, {octets} octets"), || {
            let output = self.must(&format!("ping -c 3 -i 0.2 -W 3 -s {octets} {address}"), SHORT);
            let all = output.lines.iter().any(|line| line.contains(" 0% packet loss"));
            assert!(all, "{:?}", output.lines);
            let last = output.lines.iter().rev().find(|line| line.starts_with("round-trip"));
            ((), last.cloned().unwrap_or_default())
        });
    }

    pub fn pings(&mut self) {
        self.ping(self.expected.router, 56);
        for address in self.expected.pings.clone() {
            self.ping(address, 56);
            // with the headers of ICMP and IP a frame of 1 500
            self.ping(address, if address.is_ipv4() { 1472 } else { 1452 });
        }
    }

    pub fn resolve(&mut self) {
        if self.expected.resolved.is_empty() {
            println!("  DNS                          not checked: the name server is not ours");
            return;
        }
        report("DNS", || {
            let output = self.must(&format!("net resolve {NAME}"), SHORT);
            let found = Self::value(&output, "resolved");
            let mut found: Vec<IpAddr> =
                found.split_whitespace().map(|text| text.parse().expect("an address")).collect();
            found.sort();
            assert_eq!(found, self.expected.resolved);
            let unknown = self.guest.run("net resolve nobody.vionet.test", SHORT).unwrap();
            assert_ne!(unknown.status, 0, "a name that is not there: {:?}", unknown.lines);
            ((), format!("{NAME} is {found:?}"))
        });
    }

    /// Both ways through one address, checksums compared.
    pub fn tcp(&mut self, peer: IpAddr, mib: usize) {
        let blob = self.blob.start(mib * MIB);
        report(&format!("TCP {mib} MiB from {peer}"), || {
            let url = format!("http://{}:{}/{}", in_url(peer), self.peers.http, blob.len());
            let output = self.must(&format!("net download '{url}'"), TRANSFER);
            assert_eq!(Self::value(&output, "bytes"), blob.len().to_string());
            assert_eq!(Self::value(&output, "sha256"), blob.sha256());
            ((), speed(&output, blob.len()))
        });
        report(&format!("TCP {mib} MiB to {peer}"), || {
            let output = self.must(&format!("net upload {peer} {}", self.peers.sink), TRANSFER);
            self.swallowed(&blob);
            ((), speed(&output, blob.len()))
        });
    }

    fn swallowed(&self, blob: &Blob) {
        let got = self.peers.swallowed.recv_timeout(SHORT).expect("the sink saw the end");
        assert_eq!(got.bytes, blob.len(), "octets that the sink got");
        assert_eq!(got.sha256, blob.sha256(), "checksum of what the sink got");
    }

    /// A connection from the host into the guest.
    pub fn inbound(&mut self, place: &Place, lease: &str) {
        let target = match self.expected.inbound {
            Some(Inbound::Published(port)) => format!("127.0.0.1:{port}"),
            Some(Inbound::Direct) => {
                format!("{}:{LISTENS}", lease.split('/').next().unwrap_or_default())
            }
            None => return,
        };
        let blob = self.blob.start(4 * MIB);
        report(&format!("TCP in through {target}"), || {
            self.must(&format!("traffic listen {LISTENS}"), SHORT);
            let mut stream = place.inside(|| TcpStream::connect(&target)).expect("connect");
            stream.set_read_timeout(Some(SHORT)).unwrap();
            stream.write_all(blob.bytes()).expect("send to the guest");
            stream.shutdown(Shutdown::Write).expect("say that this is all");
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).expect("the guest closes");
            assert!(rest.is_empty(), "the guest sends nothing");
            let output = self.must("traffic received", SHORT);
            assert_eq!(Self::value(&output, "sha256"), blob.sha256());
            ((), "4 MiB, and both ends closed".to_owned())
        });
    }

    pub fn udp(&mut self, peer: IpAddr, block: usize) {
        let blob = self.blob.start(MIB / 2);
        report(&format!("UDP of {block} with {peer}"), || {
            let (port, size) = (self.peers.tftp, blob.len());
            let command = format!("traffic udp {peer} {port} {size} {block}");
            let output = self.must(&command, TRANSFER);
            assert_eq!(Self::value(&output, "sha256"), blob.sha256());
            ((), format!("{size} octets there and back"))
        });
    }

    /// With an MTU of 1 500 on the NIC, a mean frame beyond it carries what is left to cut.
    pub fn frames(&mut self, peer: IpAddr) {
        let blob = self.blob.start(16 * MIB);
        self.must("ip link set $(net nic) mtu 1500", SHORT);
        let url = format!("http://{}:{}/{}", in_url(peer), self.peers.http, blob.len());
        let expected = self.expected.big_frames;
        report("frames from the host", || {
            let command = format!("traffic mean net download '{url}'");
            let output = self.must(&command, TRANSFER);
            assert_eq!(Self::value(&output, "sha256"), blob.sha256());
            let mean: usize = Self::value(&output, "rx_mean").parse().unwrap();
            assert!(!expected || mean > 1600, "the mean frame has {mean} octets");
            assert_eq!(Self::value(&output, "errors"), "0");
            ((), format!("{mean} octets in the mean, {}", speed(&output, blob.len())))
        });
        report("frames from the guest", || {
            let command = format!("traffic mean net send {peer} {}", self.peers.sink);
            let output = self.must(&command, TRANSFER);
            self.swallowed(&blob);
            let mean: usize = Self::value(&output, "tx_mean").parse().unwrap();
            assert!(!expected || mean > 1600, "the mean frame has {mean} octets");
            assert_eq!(Self::value(&output, "errors"), "0");
            ((), format!("{mean} octets in the mean, {}", speed(&output, blob.len())))
        });
    }

    pub fn closed(&mut self) {
        for (address, port) in self.expected.closed.clone() {
            report(&format!("{address} port {port}"), || {
                let command = format!("timeout 5 nc -w 3 {address} {port} </dev/null");
                let output = self.guest.run(&command, SHORT).unwrap();
                assert_ne!(output.status, 0, "it is open to the guest");
                ((), "refused".to_owned())
            });
        }
    }

    /// A link that goes down makes the front-end stop the rings; when it is up they go on.
    pub fn link(&mut self) {
        report("link down, link up", || {
            for up in [false, true] {
                self.guest.qmp().and_then(|mut qmp| qmp.link(up)).expect("set the link");
                self.must(&format!("traffic carrier {}", u8::from(up)), SHORT);
            }
            self.must(&format!("ping -c 3 -i 0.2 -W 3 -q {}", self.expected.router), SHORT);
            ((), "seen by the guest, and a ping after".to_owned())
        });
    }

    pub fn reload(&mut self, lease: &str, times: u32) {
        report(&format!("rmmod, modprobe {times} times"), || {
            let command = format!("traffic reload {times} {lease} {}", self.expected.router);
            self.must(&command, TRANSFER);
            ((), "a ping each time".to_owned())
        });
    }

    pub fn no_complaints(&mut self) {
        no_complaints(self.guest);
    }
}

/// The guest's kernel has said nothing about its NIC that should worry us.
pub fn no_complaints(guest: &mut Guest) {
    let output = guest.check("traffic complaints", SHORT).expect("its log");
    assert!(output.lines.is_empty(), "the guest's kernel complains: {:#?}", output.lines);
}

fn speed(output: &Output, octets: usize) -> String {
    let seconds: f64 = output.value("seconds").and_then(|text| text.parse().ok()).unwrap_or(0.0);
    format!("{:.0} Mbit/s", octets as f64 * 8.0 / 1e6 / seconds.max(0.01))
}
