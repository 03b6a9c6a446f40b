//! What a Linux driver commands over the control queue, and whether vionet then does so.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use vionetd::vm::{Guest, Stopwatch};

use crate::checks::SHORT;
use crate::offloads::{Far, must, value};
use crate::pairs::{PAIRS, Seen, arrivals, carry};
use crate::place::Place;

/// A device of a running server, as its control socket shows it.
#[derive(Clone, Copy)]
pub struct ServedNic<'a> {
    pub socket: &'a Path,
    pub control: &'a str,
    pub place: &'a Place,
}

impl ServedNic<'_> {
    fn vionet(&self, words: &[&str]) -> String {
        let mut vionet = Command::new(env!("CARGO_BIN_EXE_vionet"));
        vionet.args([words[0], "--control", self.control]).args(&words[1..]);
        let output = vionet.output().expect("run vionet");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "vionet {}: {error}", words.join(" "));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn inspect(&self) -> Value {
        let text = self.vionet(&["inspect", "--json"]);
        let shown: Value = serde_json::from_str(&text).expect("JSON");
        shown["nics"][0].clone()
    }

    fn control(&self, verb: &str, more: &[&str]) {
        let name = self.socket.display().to_string();
        self.vionet(&[&["control", verb, &name], more].concat());
    }

    /// How many frames for the guest were dropped on all pairs for this reason.
    fn dropped(&self, reason: &str) -> u64 {
        let nic = self.inspect();
        let pairs = nic["pairs"].as_array().expect("pairs");
        let drops = |pair: &Value| pair["receive"]["drops"][reason].as_u64().unwrap_or(0);
        pairs.iter().map(drops).sum()
    }

    fn commands(&self) -> u64 {
        self.inspect()["control"]["commands"].as_u64().expect("a number")
    }
}

/// The commands of one guest.
pub struct Commands<'a> {
    pub guest: &'a mut Guest,
    pub far: &'a Far<'a>,
    pub nic: ServedNic<'a>,
}

/// Frames sent to learn whether they come through; a guest's network has a few others.
const FRAMES: usize = 20;
const STRANGER: [u8; 6] = [0x02, 0, 0, 0, 0x12, 0x34];
const GROUP: [u8; 6] = [0x01, 0, 0x5e, 1, 2, 3];

impl Commands<'_> {
    fn run(&mut self, command: &str) {
        must(self.guest, command);
    }

    fn received(&mut self) -> u64 {
        let output = must(self.guest, "net frames");
        value(&output, "rx_packets").parse().expect("a number")
    }

    /// Sends frames from the host to this address, and looks whether they come through or are
    /// dropped for this reason.
    fn passes(&mut self, to: [u8; 6], vlan: Option<u16>, reason: &str) -> bool {
        let before = (self.received(), self.nic.dropped(reason));
        let tag = vlan.map(|id| [&[0x81, 0][..], &id.to_be_bytes()].concat());
        let mut frame = [&to[..], &[2, 0, 0, 0, 0, 1], &tag.unwrap_or_default()].concat();
        frame.extend_from_slice(&[0x88, 0xb5]);
        frame.resize(60, 0);
        send(self.nic.place, &frame.repeat(FRAMES));
        let watch = Stopwatch::new(SHORT);
        let (passed, dropped) = loop {
            let passed = self.received() - before.0;
            let dropped = self.nic.dropped(reason) - before.1;
            if passed.max(dropped) >= FRAMES as u64 {
                break (passed, dropped);
            }
            assert!(watch.left().is_some(), "{passed} passed, {dropped} dropped");
        };
        let few = (passed.min(dropped) as usize) < FRAMES / 2;
        assert!(few, "{reason}: {passed} passed, {dropped} dropped");
        passed > dropped
    }

    pub fn filters(&mut self) {
        let [unicast, multicast] = ["filter-unicast", "filter-multicast"];
        let nic = "dev $(net nic)";
        assert!(!self.passes(STRANGER, None, unicast), "a stranger's frames");
        self.run(&format!("/usr/bin/ip link set {nic} promisc on"));
        assert!(self.passes(STRANGER, None, unicast), "promiscuous");
        assert!(self.passes(GROUP, None, multicast), "promiscuous");
        self.run(&format!("/usr/bin/ip link set {nic} promisc off"));
        assert!(!self.passes(STRANGER, None, unicast), "no longer promiscuous");
        assert!(!self.passes(GROUP, None, multicast), "a group that nobody joined");
        self.run(&format!("/usr/bin/ip link set {nic} allmulticast on"));
        assert!(self.passes(GROUP, None, multicast), "all groups");
        self.run(&format!("/usr/bin/ip link set {nic} allmulticast off"));
        assert!(!self.passes(GROUP, None, multicast), "no longer all groups");
        self.run(&format!("/usr/bin/ip maddr add 01:00:5e:01:02:03 {nic}"));
        assert!(self.passes(GROUP, None, multicast), "a group that was joined");
        self.run(&format!("/usr/bin/ip maddr del 01:00:5e:01:02:03 {nic}"));
        assert!(!self.passes(GROUP, None, multicast), "a group that was left");
        println!("  RX modes and the table of addresses");
    }

    pub fn vlans(&mut self) {
        let broadcast = [0xff; 6];
        self.run("modprobe 8021q");
        assert!(!self.passes(broadcast, Some(5), "filter-vlan"), "a VLAN that is not the guest's");
        self.run("ip link add link $(net nic) name five type vlan id 5");
        self.run("ip link set five up");
        assert!(self.passes(broadcast, Some(5), "filter-vlan"), "its VLAN");
        assert!(!self.passes(broadcast, Some(6), "filter-vlan"), "another one");
        self.run("ip link del five");
        assert!(!self.passes(broadcast, Some(5), "filter-vlan"), "a VLAN that it left");
        println!("  VLANs");
    }

    pub fn address(&mut self) {
        let old = self.nic.inspect()["mac"].as_str().expect("an address").to_owned();
        assert!(!self.passes(STRANGER, None, "filter-unicast"));
        self.run("ip link set $(net nic) address 02:00:00:00:12:34");
        assert_eq!(self.nic.inspect()["mac"], "02:00:00:00:12:34");
        assert!(self.passes(STRANGER, None, "filter-unicast"), "it is the guest's now");
        self.run(&format!("ip link set $(net nic) address {old}"));
        self.run(&format!("ping -c 1 -W 3 {}", self.far.addresses[0]));
        println!("  the MAC address");
    }

    /// Frames go where the table says; hashes are of what the driver wants them to be.
    pub fn steering(&mut self) {
        let key: Vec<String> = (1..=40).map(|byte| format!("{byte:02x}")).collect();
        self.run(&format!("ethtool -X $(net nic) hkey {}", key.join(":")));
        for (table, queues) in
            [("weight 0 0 0 1", 3..4), ("weight 0 1 1 0", 1..3), ("default", 0..4)]
        {
            self.run(&format!("ethtool -X $(net nic) {table}"));
            let got = arrivals(self.guest, self.far);
            let outside = got.iter().enumerate().filter(|(queue, _)| !queues.contains(queue));
            // what has no hash goes to the first
            let few = outside.fold(0, |sum, (_, frames)| sum + frames) < 5;
            assert!(few && got[queues].iter().any(|frames| *frames > 20), "{table}: {got:?}");
            println!("  ethtool -X {table}: {got:?}");
        }
        // the driver says what is hashed only while it wants to be told the hashes
        for (command, spread) in [
            ("ethtool -K $(net nic) rxhash on", true),
            // without the ports, all flows with one host are one
            ("ethtool -N $(net nic) rx-flow-hash tcp4 sd", false),
            ("ethtool -N $(net nic) rx-flow-hash tcp4 sdfn", true),
            ("ethtool -K $(net nic) rxhash off", false),
            ("ethtool -K $(net nic) rxhash on", true),
        ] {
            self.run(command);
            let got = arrivals(self.guest, self.far);
            let busy = got.iter().filter(|frames| **frames >= 5).count();
            assert_eq!(busy > 1, spread, "{command}: {got:?}");
            println!("  {command}: {got:?}");
        }
    }

    /// The shortest of three round trips, in milliseconds.
    fn round_trip(&mut self) -> f64 {
        let ping = format!("ping -c 3 -i 0.2 -W 3 {}", self.far.addresses[0]);
        let output = must(self.guest, &ping);
        let line = output.lines.iter().find_map(|line| line.split_once("min/avg/max = "));
        let (_, times) = line.expect("the times");
        times.split('/').next().and_then(|time| time.parse().ok()).expect("a number")
    }

    /// An answer waits as long as interrupts are delayed: those for what was sent as well, for all
    /// queues share one line here.
    pub fn delays(&mut self) {
        let late = "rx-usecs 60000 rx-frames 100 tx-usecs 60000 tx-frames 100";
        let at_once = "rx-usecs 0 rx-frames 0 tx-usecs 0 tx-frames 1";
        let all = "ethtool -C $(net nic)";
        let each = "ethtool --per-queue $(net nic) queue_mask 0xf --coalesce";
        let mut told = String::new();
        for (command, at_least) in [
            (format!("{all} {late}"), 50.0),
            (format!("{all} {at_once}"), 0.0),
            (format!("{each} {late}"), 50.0),
            (format!("{each} {at_once}"), 0.0),
            (format!("{all} adaptive-rx on"), 0.0),
            (format!("{all} adaptive-rx off"), 0.0),
        ] {
            self.run(&command);
            let time = self.round_trip();
            told.push_str(&format!(" {time}"));
            assert!(time >= at_least && time < at_least + 50.0, "{told} ms, {command}");
        }
        println!("  delayed interrupts: round trips of{told} ms");
    }

    pub fn announcement(&mut self) {
        let before = self.nic.commands();
        self.nic.control("announce", &[]);
        let watch = Stopwatch::new(SHORT);
        while self.nic.commands() == before {
            assert!(watch.left().is_some(), "the guest does not acknowledge the announcement");
        }
        println!("  an announcement, acknowledged");
    }

    pub fn link(&mut self) {
        for (state, carrier) in [("down", 0), ("up", 1)] {
            self.nic.control("set-link", &[state]);
            self.run(&format!("traffic carrier {carrier}"));
        }
        println!("  the link, down and up");
    }

    pub fn pairs(&mut self) {
        for number in [1, 2, PAIRS] {
            self.run(&format!("ethtool -L $(net nic) combined {number}"));
            assert_eq!(self.nic.inspect()["active_pairs"], number);
            carry(self.guest, self.far, number, Seen::Hashed);
        }
    }

    /// Of at least so many commands none was refused, as both sides count.
    pub fn all_obeyed(&mut self, at_least: u64) {
        let control = self.nic.inspect()["control"].clone();
        let counts = must(self.guest, "ethtool -S $(net nic) | sed -n 's/^ *\\(cq_.*\\): /\\1=/p'");
        let count = |name: &str| value(&counts, name).parse::<u64>().expect("a number");
        let commands = control["commands"].as_u64().expect("a number");
        assert!(commands >= at_least, "only {commands} commands");
        assert_eq!((&control["obeyed"], &control["faults"]), (&commands.into(), &0.into()));
        assert_eq!(count("cq_hw_command_num"), count("cq_hw_ok_num"));
        println!("  {commands} commands, all obeyed");
    }
}

/// Sends frames of 60 octets on the tap as they are.
fn send(place: &Place, frames: &[u8]) {
    let mut socat = Command::new("socat");
    socat.args(["-u", "-b", "60", "-", "INTERFACE:vt0"]).stdin(Stdio::piped());
    let mut child = place.inside(|| socat.spawn().expect("start socat"));
    let mut input = child.stdin.take().expect("its input");
    input.write_all(frames).expect("give it the frames");
    drop(input);
    assert!(child.wait().expect("socat ends").success(), "socat sends frames");
}
