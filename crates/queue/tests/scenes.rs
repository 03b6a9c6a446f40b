//! Scenes: what is in a ring and what is done with it, and what must come of it, as text.
//!
//! The files of `scenes/` are a readable specification of the queue: no Rust is needed to check
//! one against the standard. `BLESS=1` writes the part behind `---` anew; then read the diff.
//!
//! ```text
//!   memory       FROM..TO                       a region of guest memory, whole pages
//!   ring         size=8 at=0x1000 start=0 features=indirect,event_idx lead=12
//!   areas        DESCRIPTORS DRIVER DEVICE      where the areas are, if not one behind the other
//!   descriptor   INDEX: ADDRESS len=N next=N write indirect
//!   table        ADDRESS: (ADDRESS len=N next=N write) (...)
//!   avail        HEAD HEAD ...                  made available in this order
//!   slot         INDEX: ADDRESS len=N id=N next write indirect lap=0|1|used    of a packed ring
//!   event        SLOT WRAP | always | never     the driver's wish in a packed ring
//!   avail.idx, avail.flags, used_event   N
//!   take transmit|receive [LIMIT]   put COUNT [WRITTEN]   untake   publish   arm   disarm   stop
//! ```
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "tests may stop"
)]

use std::fmt::Write as _;
use std::path::Path;

use vionet_queue::{
    Armed, Batch, Cursor, DeviceReads, DeviceWrites, Format, Published, Queue, QueueSetup,
    RingFeatures,
};
use vionet_raw::GuestAddr;
use vionet_testkit::GuestRam;

fn number(text: &str) -> u64 {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(&hex.replace('_', ""), 16),
        None => text.parse(),
    }
    .unwrap_or_else(|_| panic!("`{text}` is no number"))
}

/// The value of `key=value` among the words.
fn setting<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

enum Taken {
    Reads(Batch<DeviceReads>),
    Writes(Batch<DeviceWrites>),
    Nothing,
}

/// One scene as it is played.
struct Stage {
    ram: GuestRam,
    setup: QueueSetup,
    features: RingFeatures,
    start: u16,
    /// A packed ring goes on in the lap of wrap counter 0.
    second_lap: bool,
    lead: u32,
    queue: Option<Queue>,
    taken: Taken,
    told: String,
}

impl Stage {
    fn new(script: &str) -> Self {
        let lines = script.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let lines: Vec<_> = lines.filter(|words| !words.is_empty()).collect();
        let regions = lines.iter().filter(|words| words[0] == "memory").map(|words| {
            let (from, to) = words[1].split_once("..").expect("FROM..TO");
            (number(from), (number(to) - number(from)) as usize)
        });
        let ram = GuestRam::new(&regions.collect::<Vec<_>>());
        let ring = lines.iter().find(|words| words[0] == "ring").expect("a ring");
        let value = |key, other| setting(ring, key).map_or(other, number);
        let (size, at) = (value("size", 8), value("at", 0x1000));
        let has = |name| setting(ring, "features").is_some_and(|all| all.contains(name));
        let areas = lines.iter().find(|words| words[0] == "areas");
        let area = |position: usize, other| {
            GuestAddr(areas.map_or(other, |words| number(words[position])))
        };
        let setup = QueueSetup {
            size: size as u16,
            descriptors: area(1, at),
            driver: area(2, at + 16 * size),
            device: area(
                3,
                if has("packed") {
                    at + 16 * size + 4
                } else {
                    (at + 18 * size + 6).next_multiple_of(4)
                },
            ),
        };
        let features = RingFeatures {
            format: if has("packed") { Format::Packed } else { Format::Split },
            event_idx: has("event_idx"),
            indirect: has("indirect"),
            in_order: has("in_order"),
        };
        let (start, lead) = (value("start", 0) as u16, value("lead", 12) as u32);
        let (queue, taken, told) = (None, Taken::Nothing, String::new());
        let second_lap = setting(ring, "wrap") == Some("0");
        let mut stage = Self { ram, setup, features, start, second_lap, lead, queue, taken, told };
        for words in &lines {
            stage.play(words);
        }
        stage.end();
        stage
    }

    fn play(&mut self, words: &[&str]) {
        let (driver, size) = (self.setup.driver.0, u64::from(self.setup.size));
        match words {
            ["memory" | "ring" | "areas" | "#", ..] => {}
            ["descriptor", index, rest @ ..] => {
                let at = self.setup.descriptors.0 + 16 * number(index.trim_end_matches(':'));
                self.descriptor(at, rest);
            }
            ["table", at, entries @ ..] => {
                let at = number(at.trim_end_matches(':'));
                let entries = entries.join(" ");
                for (index, entry) in entries.split('(').skip(1).enumerate() {
                    let entry: Vec<_> = entry.trim().trim_end_matches(')').split(' ').collect();
                    self.descriptor(at + 16 * index as u64, &entry);
                }
            }
            ["avail", heads @ ..] => {
                let mut next = self.ram.read_u16(driver + 2).max(self.start);
                for head in heads {
                    let at = driver + 4 + 2 * (u64::from(next) % size);
                    self.ram.write_u16(at, number(head) as u16);
                    next = next.wrapping_add(1);
                }
                self.ram.write_u16(driver + 2, next);
            }
            ["slot", index, rest @ ..] => {
                let at = self.setup.descriptors.0 + 16 * number(index.trim_end_matches(':'));
                self.slot(at, rest);
            }
            ["event", "always"] => self.ram.write_u16(driver + 2, 0),
            ["event", "never"] => self.ram.write_u16(driver + 2, 1),
            ["event", slot, wrap] => {
                self.ram.write_u16(driver, number(slot) as u16 | (number(wrap) as u16) << 15);
                self.ram.write_u16(driver + 2, 2);
            }
            ["avail.idx", idx] => self.ram.write_u16(driver + 2, number(idx) as u16),
            ["avail.flags", flags] => self.ram.write_u16(driver, number(flags) as u16),
            ["used_event", at] => self.ram.write_u16(driver + 4 + 2 * size, number(at) as u16),
            [verb, rest @ ..] => {
                if self.activate() {
                    self.act(verb, rest);
                }
            }
            [] => {}
        }
    }

    fn descriptor(&self, at: u64, words: &[&str]) {
        let value = |key| setting(words, key).map(number);
        let mut flags = u16::from(value("next").is_some());
        flags |= if words.contains(&"write") { 2 } else { 0 };
        flags |= if words.contains(&"indirect") { 4 } else { 0 };
        let (len, next) = (value("len").unwrap_or(0), value("next").unwrap_or(0));
        self.ram.write_descriptor(at, number(words[0]), len as u32, flags, next as u16);
    }

    /// A packed descriptor; its lap is that of wrap counter 1 if nothing is said.
    fn slot(&self, at: u64, words: &[&str]) {
        let value = |key| setting(words, key).map_or(0, number);
        let has = |flag: u16, word| if words.contains(&word) { flag } else { 0 };
        let lap = match setting(words, "lap") {
            None | Some("1") => 0x80,
            Some("0") => 0x8000,
            Some(_) => 0x8080,
        };
        let flags = lap | has(1, "next") | has(2, "write") | has(4, "indirect");
        let (len, id) = (value("len") as u32, value("id") as u16);
        self.ram.write_descriptor(at, number(words[0]), len, id, flags);
    }

    fn say(&mut self, what: &str, of: impl std::fmt::Display) {
        writeln!(self.told, "{what:<12} {of}").expect("a string takes all");
    }

    fn activate(&mut self) -> bool {
        if self.queue.is_none() && self.told.is_empty() {
            let wrap = self.features.format == Format::Packed && !self.second_lap;
            let at = self.start | u16::from(wrap) << 15;
            let from = Cursor { avail: at, used: at };
            match self.setup.activate(self.ram.space(), self.features, from) {
                Ok(queue) => self.queue = Some(queue),
                Err(fault) => self.say("activate", format!("{fault:?}")),
            }
        }
        self.queue.is_some()
    }

    fn act(&mut self, verb: &str, words: &[&str]) {
        let queue = self.queue.as_mut().expect("it is active");
        let count = |at: usize| words.get(at).map_or(usize::MAX, |word| number(word) as usize);
        match (verb, &mut self.taken) {
            ("take", Taken::Nothing) => {
                let space = self.ram.space().clone();
                self.taken = match words[0] {
                    "transmit" => Taken::Reads(Batch::new(space, self.lead)),
                    "receive" => Taken::Writes(Batch::new(space, self.lead)),
                    other => panic!("`{other}` is no direction"),
                };
                self.act(verb, words);
            }
            ("take", taken) => {
                let result = match taken {
                    Taken::Reads(batch) => queue.take(count(1), batch),
                    Taken::Writes(batch) => queue.take(count(1), batch),
                    Taken::Nothing => Ok(0),
                };
                match result {
                    Ok(taken) => self.say("take", taken),
                    Err(fault) => self.say("take", format!("{fault:?}")),
                }
            }
            ("put", Taken::Reads(batch)) => queue.put(batch, count(0)),
            ("put", Taken::Writes(batch)) => {
                for row in 0..count(0).min(batch.len()) {
                    batch.set_written(row, count(1) as u32);
                }
                queue.put(batch, count(0));
            }
            ("untake", Taken::Reads(batch)) => queue.untake(batch),
            ("untake", Taken::Writes(batch)) => queue.untake(batch),
            ("publish", _) => {
                let interrupt = queue.publish() == Published::Interrupt;
                self.say("publish", if interrupt { "interrupt" } else { "quiet" });
            }
            ("arm", _) => {
                let sleep = queue.arm() == Armed::Sleep;
                self.say("arm", if sleep { "sleep" } else { "work arrived" });
                if self.features.format == Format::Packed {
                    self.say("kicks", self.wish());
                }
            }
            ("disarm", _) => {
                queue.disarm();
                match self.features.format {
                    Format::Split => {
                        let flags = self.ram.read_u16(self.setup.device.0);
                        self.say("used.flags", flags);
                    }
                    Format::Packed => self.say("kicks", self.wish()),
                }
            }
            ("stop", _) => match self.queue.take().expect("it is active").stop() {
                Ok(at) if self.features.format == Format::Packed => {
                    let place = |bits: u16| format!("{}/{}", bits & 0x7fff, bits >> 15);
                    self.say("stop", format!("avail={} used={}", place(at.avail), place(at.used)));
                }
                Ok(at) => self.say("stop", format!("avail={} used={}", at.avail, at.used)),
                Err(unfinished) => {
                    self.say("stop", format!("{} chains are owed", unfinished.held));
                    self.queue = Some(unfinished.queue);
                }
            },
            _ => panic!("`{verb}` makes no sense here"),
        }
    }

    /// What is left in the batch, and what the driver sees.
    fn end(&mut self) {
        let chains: Vec<String> = match &self.taken {
            Taken::Reads(batch) => (0..batch.len())
                .map(|index| {
                    let row = batch.row(index).unwrap();
                    let lens = |spans: &[vionet_raw::ReadSpan<'_>]| {
                        spans.iter().map(|span| span.len().to_string()).collect::<Vec<_>>()
                    };
                    let (lead, rest) = (lens(batch.lead(row)), lens(batch.payload(row)));
                    format!("{}|{}", lead.join("+"), rest.join("+"))
                })
                .collect(),
            Taken::Writes(batch) => (0..batch.len())
                .map(|index| {
                    let row = batch.row(index).unwrap();
                    let lens = |spans: &[vionet_raw::WriteSpan<'_>]| {
                        spans.iter().map(|span| span.len().to_string()).collect::<Vec<_>>()
                    };
                    let (lead, rest) = (lens(batch.lead(row)), lens(batch.payload(row, row)));
                    format!("{}|{}", lead.join("+"), rest.join("+"))
                })
                .collect(),
            Taken::Nothing => return,
        };
        self.say("chains", listed(&chains));
        if self.features.format == Format::Packed {
            return self.say_slots();
        }
        let (device, size) = (self.setup.device.0, u64::from(self.setup.size));
        let (mut used, mut next) = (Vec::new(), self.start);
        while next != self.ram.read_u16(device + 2) {
            let at = device + 4 + 8 * (u64::from(next) % size);
            used.push(format!("{}:{}", self.ram.read_u32(at), self.ram.read_u32(at + 4)));
            next = next.wrapping_add(1);
        }
        self.say("used", listed(&used));
    }
}

impl Stage {
    /// What the device says of kicks in a packed ring.
    fn wish(&self) -> String {
        let device = self.setup.device.0;
        let place = self.ram.read_u16(device);
        match self.ram.read_u16(device + 2) {
            0 => "always".into(),
            1 => "never".into(),
            2 => format!("at {}/{}", place & 0x7fff, place >> 15),
            other => format!("reserved {other}"),
        }
    }

    /// The used descriptors of a packed ring: `slot=id:len`, and the lap.
    fn say_slots(&mut self) {
        let mut used = Vec::new();
        for slot in 0..u64::from(self.setup.size) {
            let at = self.setup.descriptors.0 + 16 * slot;
            let (len, id) = (self.ram.read_u32(at + 8), self.ram.read_u16(at + 12));
            let flags = self.ram.read_u16(at + 14);
            let written = if flags & 2 != 0 { "w" } else { "" };
            match flags & 0x8080 {
                0x8080 => used.push(format!("{slot}={id}:{len}{written}/1")),
                0 if id != 0 || len != 0 => used.push(format!("{slot}={id}:{len}{written}/0")),
                _ => {}
            }
        }
        self.say("used", listed(&used));
    }
}

fn listed(items: &[String]) -> String {
    if items.is_empty() { "-".into() } else { items.join(" ") }
}

#[test]
fn every_scene_ends_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenes");
    let bless = std::env::var_os("BLESS").is_some();
    let (mut played, mut wrong) = (0, String::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let (script, expected) = text.split_once("---\n").expect("a line of three dashes");
        let told = Stage::new(script).told;
        if bless {
            std::fs::write(&path, format!("{script}---\n{told}")).unwrap();
        } else if told != expected {
            let name = path.file_name().unwrap().display();
            writeln!(wrong, "{name}\n{script}--- expected\n{expected}--- found\n{told}").unwrap();
        }
        played += 1;
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(played >= 30, "the scenes are there");
}

/// A rule without a scene is a rule nobody has seen broken.
#[test]
fn every_fault_has_its_scene() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let faults = std::fs::read_to_string(here.join("src/fault.rs")).unwrap();
    let names = faults.lines().filter_map(|line| line.trim().split_once(" = \""));
    let scenes: String = std::fs::read_dir(here.join("tests/scenes"))
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    let mut count = 0;
    for (name, _) in names {
        let seen = scenes.lines().any(|line| line.split_whitespace().nth(1) == Some(name));
        assert!(seen, "no scene ends in {name}");
        count += 1;
    }
    assert!(count >= 19, "the faults were found in their file");
}
