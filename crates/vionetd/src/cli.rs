//! The command line: what can be asked of the program, and its help.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use vionet_user::policy::Allow;

mod policy;

pub use policy::{GroupSpec, GuardRule, LeaseSpec, RateSpec, guard, limit};

/// Network devices for virtual machines, over vhost-user or vfio-user, without root.
#[derive(Debug, Parser)]
#[command(name = "vionet", version, about, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  vionet demo                                     see it work, in half a minute
  vionet serve --socket-path vm0.sock             a guest online, nothing else needed
  vionet serve --socket-path vm0.sock -t 2222:22  and ssh -p 2222 localhost into it
  vionet serve --socket-path vm0.sock --endpoint tap:tap0
  vionet serve --vfio-user vm0.sock               the same as a whole PCI function
  vionet bench --socket vm0.sock                  how fast a back-end is
  vionet doctor                                   what works on this machine

Exit codes: 0 ok, 1 failure while running, 2 usage, 3 bad configuration,
4 missing privilege or kernel feature, 5 protocol error with --one-off";

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve network devices over vhost-user or vfio-user
    Serve(Box<ServeArgs>),
    /// Show the whole path working, with a built-in guest or a real one
    Demo(DemoArgs),
    /// Measure a vhost-user network back-end, this one or any other
    Bench(BenchArgs),
    /// Show the devices of a running server, and what they have done so far
    Inspect(InspectArgs),
    /// Change a device of a running server
    Control(ControlArgs),
    /// Say what works on this machine, and what to do about the rest
    Doctor(DoctorArgs),
}

/// Arguments of `vionet serve`.
#[derive(Debug, Args)]
#[command(after_help = SERVE_EXAMPLES)]
pub struct ServeArgs {
    /// The one device that is served, if no `--nic` is given.
    #[command(flatten)]
    pub one: NicArgs,
    /// Serve this device; once for each, with the options above as KEY=VALUE
    #[arg(long = "nic", value_name = "KEY=VALUE,...")]
    pub nics: Vec<NicSpec>,
    /// What the devices of a group may send and get in a second, all together; a device is in it
    /// by limit-group=NAME in its --nic
    #[arg(long = "limit-group", value_name = "NAME,tx=RATE,rx=RATE")]
    pub limit_groups: Vec<GroupSpec>,
    /// Print what this back-end program is, as JSON, and exit
    #[arg(long)]
    pub print_capabilities: bool,
    /// After work, look for more this long before sleeping: latency and rate for CPU time
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0,
          value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub poll_us: u32,
    /// Threads that move frames, for all devices [default: one for each]
    #[arg(long, value_name = "N")]
    pub workers: Option<NonZeroU16>,
    /// Listen here for `vionet inspect` and `vionet control` of this user
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Say more (-v events, -vv every message)
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say nothing but errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
}

/// What one network device is to be.
#[derive(Clone, Debug, Args)]
pub struct NicArgs {
    /// Listen on this Unix socket, for vhost-user
    #[arg(long, value_name = "PATH", conflicts_with_all = ["fd", "vfio_user"])]
    pub socket_path: Option<PathBuf>,
    /// Use this inherited socket, connected or listening, for vhost-user
    #[arg(long, value_name = "N", conflicts_with = "vfio_user")]
    pub fd: Option<i32>,
    /// Listen on this Unix socket, for vfio-user: the VMM gets a whole PCI function
    #[arg(long, value_name = "PATH")]
    pub vfio_user: Option<PathBuf>,
    /// The host side: user, tap:NAME, tap-fd:N, switch:NAME, null, echo, flood:SIZE
    #[arg(long, value_name = "ENDPOINT", default_value = "user")]
    pub endpoint: EndpointSpec,
    /// The guest's MAC address [default: made from the socket's path]
    #[arg(long, value_name = "MAC")]
    pub mac: Option<Mac>,
    /// The largest IP packet [default: as large as the endpoint carries]
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u16>,
    /// Queue pairs, so that the guest can use as many processors; the VMM is told the same number
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(vionet::PAIRS_MAX)))]
    pub queues: u16,
    /// The speed of the link that the guest is told, in Mbit/s [default: not known]
    #[arg(long, value_name = "MBIT",
          value_parser = clap::value_parser!(u32).range(..=i64::from(i32::MAX)))]
    pub speed: Option<u32>,
    /// The guest cannot take another MAC address
    #[arg(long)]
    pub lock_mac: bool,
    /// Refuse what the guest may not send: mac, arp, nd, dhcp, ra, ip=ADDR[/LEN], vlan=ID, others
    #[arg(long, value_name = "RULE", value_delimiter = ',')]
    pub guard: Vec<GuardRule>,
    /// What the guest may send in a second: bits, as 100M, or frames, as 20kpps; and at once after
    /// a rest, as 100M:4M or 20kpps:500, where a tenth of it is not right
    #[arg(long, value_name = "RATE[:BURST]", value_delimiter = ',')]
    pub limit_tx: Vec<RateSpec>,
    /// What the guest gets in a second
    #[arg(long, value_name = "RATE[:BURST]", value_delimiter = ',')]
    pub limit_rx: Vec<RateSpec>,
    /// The groups whose limits hold beside its own.
    #[arg(skip)]
    pub groups: Vec<String>,
    /// On a tap or switch: lease this address to the guest by DHCP
    #[arg(long, value_name = "ADDR/LEN[@ROUTER]")]
    pub lease: Option<LeaseSpec>,
    /// On a switch: exchange frames only with ports that are not isolated
    #[arg(long)]
    pub isolated: bool,
    /// End when the first front-end goes away
    #[arg(long)]
    pub one_off: bool,
    /// Publish TCP ports of the guest on the host
    #[arg(short = 't', long, value_name = "PORTS")]
    pub tcp_ports: Vec<String>,
    /// Publish UDP ports of the guest on the host
    #[arg(short = 'u', long, value_name = "PORTS")]
    pub udp_ports: Vec<String>,
    /// Address by which the guest reaches the host's loopback [default: it cannot]
    #[arg(long, value_name = "ADDR")]
    pub map_host_loopback: Vec<IpAddr>,
    /// Let the guest reach this network although it is refused by default
    #[arg(long, value_name = "NET")]
    pub allow: Vec<Allow>,
    /// Ask this DNS server instead of the host's own; with --lease: name it to the guest
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = dns_server)]
    pub dns: Vec<SocketAddr>,
}

impl NicArgs {
    /// Whether it says where a VMM is to be met.
    #[must_use]
    pub fn has_socket(&self) -> bool {
        self.socket_path.is_some() || self.fd.is_some() || self.vfio_user.is_some()
    }
}

/// One of several devices: `socket-path=a.sock,endpoint=switch:lan`.
#[derive(Clone, Debug)]
pub struct NicSpec(pub NicArgs);

#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct OneNic {
    #[command(flatten)]
    nic: NicArgs,
    #[arg(long)]
    limit_group: Vec<String>,
}

impl FromStr for NicSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = text.split(',').filter(|word| !word.is_empty()).map(|word| format!("--{word}"));
        let mut one = OneNic::try_parse_from(words).map_err(|error| {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            line.trim_start_matches("error: ").replace("--", "")
        })?;
        if !one.nic.has_socket() {
            return Err("give it a socket: socket-path=PATH, fd=N or vfio-user=PATH".to_owned());
        }
        one.limit_group.dedup();
        Ok(Self(NicArgs { groups: one.limit_group, ..one.nic }))
    }
}

const SERVE_EXAMPLES: &str = "\
Examples:
  vionet serve --socket-path vm0.sock
      user-mode network: DHCP, DNS, IPv4 and IPv6 out, nothing in
  vionet serve --socket-path vm0.sock -t 2222:22,8080 -u 5353
      host port 2222 leads to port 22 of the guest, 8080 to 8080
  vionet serve --socket-path vm0.sock --map-host-loopback 10.0.2.2
      services on the host's 127.0.0.1 answer at 10.0.2.2
  vionet serve --socket-path vm0.sock --endpoint tap:tap0
      a tap made for this user: sudo ip tuntap add dev tap0 mode tap user $USER vnet_hdr
  vionet serve --socket-path vm0.sock --endpoint tap:tap0 --queues 4
      four queue pairs, for a tap made with multi_queue; the printed flags tell the VMM
  vionet serve --socket-path vm0.sock --endpoint tap:tap0 \\
               --lease 10.1.0.5/24@10.1.0.1 --guard mac,arp,nd,dhcp,ra,ip=10.1.0.5
      the guest gets this address and cannot speak for another: --guard mac for frames,
      arp and nd for who has an address, dhcp and ra for servers and routers, ip=ADDR[/LEN]
      for packets, vlan=ID (or none) for tags; others lets in protocols that no rule knows
  vionet serve --socket-path vm0.sock --limit-tx 100M,20kpps --limit-rx 1G
      the guest sends at most so many bits and frames a second, and gets so many bits
  vionet serve --nic socket-path=vm0.sock,limit-tx=100M:4M,limit-tx=20kpps:500
      the same with 4 Mbit and 500 frames at once after a rest, instead of a tenth of the rate
  vionet serve --nic socket-path=a.sock,endpoint=switch:lan \\
               --nic socket-path=b.sock,endpoint=switch:lan
      two guests on one switch; a key given twice counts twice, as in
      tcp-ports=2222:22,tcp-ports=8080
  vionet serve --vfio-user vm0.sock --queues 4 --endpoint tap:tap0
      a whole PCI function over vfio-user, for QEMU 10.1 or newer: the guest also has RSS,
      coalescing, filters and statistics, which vhost-user has the VMM answer for;
      one of several: --nic vfio-user=vm0.sock,queues=4
  vionet serve --limit-group tenant,tx=1G,rx=1G,rx=200kpps \\
               --nic socket-path=a.sock,limit-group=tenant \\
               --nic socket-path=b.sock,limit-group=tenant,limit-tx=300M
      two guests that share a gigabit each way; one of them sends 300 Mbit/s at most

By default the guest reaches neither the host's loopback nor link-local and cloud
metadata addresses; --map-host-loopback and --allow open them.";

/// Arguments of `vionet demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Use a real Linux guest in QEMU instead of the built-in one
    #[arg(long)]
    pub vm: bool,
    /// Bytes to download, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    pub size: u32,
    /// Seconds to measure each direction
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    pub seconds: u32,
}

/// Arguments of `vionet bench`.
#[derive(Clone, Debug, Args)]
#[command(after_help = BENCH_EXAMPLES)]
pub struct BenchArgs {
    /// The back-end to measure; several are measured in turn and compared with the first
    #[arg(long, value_name = "PATH", required = true)]
    pub socket: Vec<PathBuf>,
    /// A second device of each back-end, where the frames come out: a switch or a forwarder
    #[arg(long, value_name = "PATH")]
    pub to: Vec<PathBuf>,
    /// Which way frames go [default: transmit, or through the back-end with --to]
    #[arg(long, value_enum, conflicts_with = "to")]
    pub way: Option<WayArg>,
    /// Rings to try
    #[arg(
        long,
        value_name = "RING,...",
        value_enum,
        value_delimiter = ',',
        default_value = "split"
    )]
    pub ring: Vec<RingArg>,
    /// Lengths of frames in bytes to try; A+B+C takes several in turn, imix is 7 of 64, 4 of 594
    /// and 1 of 1518
    #[arg(long, value_name = "BYTES,...", value_delimiter = ',', default_value = "64")]
    pub size: Vec<FrameSizes>,
    /// Entries of each queue
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub queue_size: u16,
    /// The most frames that become visible at once
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub burst: u16,
    /// Frames per second to offer [default: as many as the back-end takes]
    #[arg(long, value_name = "N")]
    pub rate: Option<u64>,
    /// Seconds to measure, each time
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    pub seconds: f64,
    /// How often to measure everything; the median is told, and the spread
    #[arg(long, value_name = "N", default_value_t = NonZeroU16::MIN)]
    pub rounds: NonZeroU16,
    /// Write every byte of each frame and check it when it comes back; exit 1 if frames were lost,
    /// changed, or came in another order
    #[arg(long)]
    pub verify: bool,
    /// A frame takes one receive buffer, however long
    #[arg(long)]
    pub no_mergeable: bool,
    /// Without suppression of notifications by index
    #[arg(long)]
    pub no_event_idx: bool,
    /// Run the driver on this processor
    #[arg(long, value_name = "N")]
    pub cpu: Option<u16>,
    /// Print JSON for machines
    #[arg(long)]
    pub json: bool,
    /// Also draw the result into this file
    #[arg(long, value_name = "FILE.svg")]
    pub chart: Option<PathBuf>,
}

/// Which way frames go, seen from the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum WayArg {
    /// Out; the back-end keeps them.
    Transmit,
    /// In; the back-end makes them.
    Receive,
    /// Out, and back by the same device.
    Echo,
}

/// The layout of rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RingArg {
    /// Split.
    Split,
    /// Split, buffers used in order.
    SplitInorder,
    /// Packed.
    Packed,
    /// Packed, buffers used in order.
    PackedInorder,
}

/// Lengths of frames that are taken in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameSizes {
    /// As it was written.
    pub name: String,
    /// In bytes.
    pub sizes: Vec<u32>,
}

impl FromStr for FrameSizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "take a length in bytes, as 64, several as 64+1518, or imix".to_owned();
        let sizes = if text == "imix" {
            // Seven, four and one, spread out.
            vec![64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 64, 594]
        } else {
            let sizes: Result<_, _> = text.split('+').map(str::parse).collect();
            sizes.map_err(|_| bad())?
        };
        Ok(Self { name: text.to_owned(), sizes })
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.01..=86_400.0).contains(seconds));
    seconds.ok_or_else(|| "take 0.01 to 86400 seconds".to_owned())
}

const BENCH_EXAMPLES: &str = "\
Examples:
  vionet bench --socket vm0.sock --ring split,packed --size 64,1518
      how many frames the back-end takes: its endpoint keeps them (null)
  vionet bench --socket vm0.sock --way echo --rate 100000
      latency at 100 000 frames per second: its endpoint sends them back (echo)
  vionet bench --socket vm0.sock --way echo --verify
      every byte and the order of every frame
  vionet bench --socket a.sock --to b.sock
      through a switch: in by one device, out by the other
  vionet bench --socket ours.sock --socket theirs.sock --rounds 5
      two back-ends in turn, medians, and the ratio to the first

The driver never sleeps and takes a processor of its own; give the back-end another. `idle` tells
how often the driver found nothing to do: near 0 % it is the driver that is measured.";

/// Arguments of `vionet doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON for machines
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `vionet inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The socket that `vionet serve --control` listens on
    #[arg(long, value_name = "PATH")]
    pub control: PathBuf,
    /// Print JSON for machines
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `vionet control`.
#[derive(Debug, Args)]
#[command(after_help = CONTROL_EXAMPLES)]
pub struct ControlArgs {
    /// The socket that `vionet serve --control` listens on
    #[arg(long, value_name = "PATH")]
    pub control: PathBuf,
    /// What to change.
    #[command(subcommand)]
    pub change: Change,
}

const CONTROL_EXAMPLES: &str = "\
Examples:
  vionet control --control c.sock set-link vm0.sock down
  vionet control --control c.sock set-limit vm0.sock tx 100M,20kpps
  vionet control --control c.sock set-limit vm0.sock tx 100M:4M
      with 4 Mbit at once after a rest; without that, a tenth of the rate
  vionet control --control c.sock set-limit vm0.sock tx
      no limit of its own any more
  vionet control --control c.sock set-limit --group tenant rx 2G:8M,200kpps
      what all devices with limit-group=tenant get together
  vionet control --control c.sock announce vm0.sock";

/// What can be changed in a running server.
#[derive(Debug, Subcommand)]
pub enum Change {
    /// Plug the cable of a device in, or out; the guest is told
    SetLink {
        /// The device, by the name that `vionet inspect` shows: its socket
        nic: String,
        /// The link.
        state: LinkState,
    },
    /// Limit what a guest sends (tx) or gets (rx) in a second, from now on
    SetLimit {
        /// The name is that of a group: what all devices in it send or get together
        #[arg(long)]
        group: bool,
        /// The device, by the name that `vionet inspect` shows: its socket
        #[arg(value_name = "NAME")]
        nic: String,
        /// The direction, as the guest sees it.
        direction: Direction,
        /// Bits, as 100M, or frames, as 20kpps, with a burst as 100M:4M or 20kpps:500; of what is
        /// not given there is no limit
        #[arg(value_name = "RATE[:BURST]", value_delimiter = ',')]
        rates: Vec<String>,
    },
    /// Have a guest's address made known to its network, as after moving it
    Announce {
        /// The device, by the name that `vionet inspect` shows: its socket
        nic: String,
    },
}

impl Change {
    /// The request for it.
    #[must_use]
    pub fn line(&self) -> String {
        match self {
            Self::SetLink { nic, state: LinkState::Up } => format!("set-link {nic} up"),
            Self::SetLink { nic, state: LinkState::Down } => format!("set-link {nic} down"),
            Self::SetLimit { group, nic, direction, rates } => {
                let rates = if rates.is_empty() { "none".into() } else { rates.join(",") };
                let verb = if *group { "set-group-limit" } else { "set-limit" };
                format!("{verb} {nic} {} {rates}", direction.word())
            }
            Self::Announce { nic } => format!("announce {nic}"),
        }
    }
}

/// A direction, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Direction {
    /// What the guest sends.
    Tx,
    /// What the guest gets.
    Rx,
}

impl Direction {
    const fn word(self) -> &'static str {
        match self {
            Self::Tx => "tx",
            Self::Rx => "rx",
        }
    }
}

/// Whether a link is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LinkState {
    /// It carries frames.
    Up,
    /// It carries none.
    Down,
}

/// A host side as written on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointSpec {
    /// The built-in user-mode network.
    User,
    /// An existing tap.
    Tap(String),
    /// An inherited tap descriptor.
    TapFd(i32),
    /// A port of the switch of this name.
    Switch(String),
    /// Drops and counts.
    Null,
    /// Sends back.
    Echo,
    /// Generates frames of this length.
    Flood(usize),
}

impl FromStr for EndpointSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let number = || rest.parse().map_err(|_| format!("`{rest}` is no number"));
        match (kind, rest) {
            ("user", "") => Ok(Self::User),
            ("null", "") => Ok(Self::Null),
            ("echo", "") => Ok(Self::Echo),
            ("switch", name) if !name.is_empty() => Ok(Self::Switch(name.to_owned())),
            ("tap", name) if !name.is_empty() => Ok(Self::Tap(name.to_owned())),
            ("tap-fd", _) => {
                rest.parse().map(Self::TapFd).map_err(|_| "tap-fd:N wants a number".into())
            }
            ("flood", _) => number().map(Self::Flood),
            _ => Err("take user, tap:NAME, tap-fd:N, switch:NAME, null, echo or flood:SIZE".into()),
        }
    }
}

/// A MAC address as written on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "take six bytes, for example 52:54:00:12:34:56".to_owned();
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        let [first, ..] = mac;
        if parts.next().is_some() {
            return Err(bad());
        }
        if first & 1 == 1 || mac == [0; 6] {
            return Err("a guest's address is neither zero nor a group address".to_owned());
        }
        Ok(Self(mac))
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

const DNS_PORT: u16 = 53;

fn dns_server(text: &str) -> Result<SocketAddr, String> {
    let bad = |_| "take an address, for example 9.9.9.9 or [2620:fe::fe]:53".to_owned();
    match text.parse::<IpAddr>() {
        Ok(ip) => Ok(SocketAddr::new(ip, DNS_PORT)),
        Err(_) => text.parse().map_err(bad),
    }
}

/// The arguments with `serve` put in where a management program left it out: vhost-user back-ends
/// are started as `PROGRAM --socket-path=PATH`, `PROGRAM --fd=N` or `PROGRAM --print-capabilities`.
pub fn with_command(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut all: Vec<OsString> = arguments.into_iter().collect();
    let first = all.get(1).map(|first| first.to_string_lossy().into_owned()).unwrap_or_default();
    let bare = ["--socket-path", "--fd", "--vfio-user", "--print-capabilities"];
    if bare.iter().any(|option| first.split('=').next() == Some(option)) {
        all.insert(1, "serve".into());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(with_command(words.iter().map(OsString::from)))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_management_program_may_leave_out_the_command() {
        for word in ["--socket-path=x.sock", "--fd=3", "--print-capabilities", "--vfio-user=x"] {
            assert!(matches!(parse(&["vionet", word]).unwrap().command, Command::Serve(_)));
        }
    }

    #[test]
    fn socket_and_descriptor_exclude_each_other_for_each_device() {
        assert!(parse(&["vionet", "serve", "--socket-path", "x", "--fd", "3"]).is_err());
        for two in ["socket-path=x,fd=3", "socket-path=x,vfio-user=y", "vfio-user=x,fd=3"] {
            assert!(two.parse::<NicSpec>().is_err(), "{two}");
        }
        assert!("vfio-user=x".parse::<NicSpec>().is_ok());
        assert!("endpoint=null".parse::<NicSpec>().is_err());
    }

    #[test]
    fn a_device_is_read_with_all_its_options() {
        let text =
            "socket-path=a.sock,endpoint=switch:lan,isolated,mtu=9000,tcp-ports=1,tcp-ports=2";
        let NicSpec(nic) = text.parse().unwrap();
        assert_eq!(nic.socket_path, Some("a.sock".into()));
        assert_eq!(nic.endpoint, EndpointSpec::Switch("lan".into()));
        assert_eq!((nic.isolated, nic.mtu), (true, Some(9000)));
        assert_eq!(nic.tcp_ports, ["1", "2"]);
        let NicSpec(nic) = "fd=3,queues=4,speed=1000,lock-mac,guard=mac,guard=ip=10.1.0.0/24,\
                            lease=10.1.0.5/24@10.1.0.1,limit-tx=8M,limit-tx=9pps:5"
            .parse()
            .unwrap();
        assert_eq!((nic.queues, nic.speed, nic.lock_mac), (4, Some(1000), true));
        assert_eq!(nic.guard, ["mac", "ip=10.1.0.0/24"].map(|rule| rule.parse().unwrap()));
        assert_eq!(nic.limit_tx, ["8M", "9pps:5"].map(|rate| rate.parse().unwrap()));
        assert_eq!(nic.lease, Some("10.1.0.5/24@10.1.0.1".parse().unwrap()));
        let NicSpec(nic) = "fd=3,limit-group=a,limit-group=b,limit-group=b".parse().unwrap();
        assert_eq!(nic.groups, ["a", "b"]);
        for bad in ["queues=0", "queues=129", "speed=2147483648", "guard=all", "lease=x"] {
            assert!(format!("fd=3,{bad}").parse::<NicSpec>().is_err(), "{bad}");
        }
        assert!("socket-path=a,help".parse::<NicSpec>().is_err());
    }

    #[test]
    fn endpoints_are_read_and_nonsense_is_refused() {
        assert_eq!("tap:tap0".parse(), Ok(EndpointSpec::Tap("tap0".into())));
        assert_eq!("tap-fd:7".parse(), Ok(EndpointSpec::TapFd(7)));
        assert_eq!("flood:64".parse(), Ok(EndpointSpec::Flood(64)));
        for bad in ["", "tap", "tap:", "tap-fd:x", "flood:", "user:1", "passt"] {
            assert!(bad.parse::<EndpointSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn frame_lengths_are_read_and_nonsense_is_refused() {
        let sizes = |text: &str| text.parse::<FrameSizes>().map(|sizes| sizes.sizes);
        assert_eq!(sizes("64"), Ok(vec![64]));
        assert_eq!(sizes("64+1518"), Ok(vec![64, 1518]));
        let imix = sizes("imix").unwrap();
        let count = |len| imix.iter().filter(|size| **size == len).count();
        assert_eq!([count(64), count(594), count(1518)], [7, 4, 1]);
        for bad in ["", "64+", "x", "-1"] {
            assert!(sizes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_are_read_and_nonsense_is_refused() {
        assert_eq!("52:54:00:12:34:56".parse(), Ok(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56])));
        for bad in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "53:54:00:12:34:56", "0:0:0:0:0:0"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
        assert_eq!(dns_server("9.9.9.9"), Ok("9.9.9.9:53".parse().unwrap()));
        assert_eq!(dns_server("[::1]:5353"), Ok("[::1]:5353".parse().unwrap()));
        assert!(dns_server("example.org").is_err());
    }
}
