//! A hundred thousand hostile rings, each in a whole queue pair on a switch: the rule it breaks is
//! named, its queue stops, and nothing else does.
//!
//! ```text
//!   besieged guest   one queue attacked, life after life; the other one honest
//!   switch
//!   peer             both queues honest
//! ```
//!
//! After each life a frame goes between the peer and the other queue of the besieged guest.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests may stop"
)]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use vionet::{Effect, Effects, Endpoint, Instant, Next, Nic, NicConfig, Op, OpError};
use vionet::{QueueIndex, QueuePair};
use vionet_endpoint::{PortConfig, Switch};
use vionet_queue::{Cursor, Fault, Format, QueueSetup, RingFeatures};
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_testkit::attack::{Attack, Ground, Manners, REGIONS, RINGS, Verdict};
use vionet_testkit::{
    Arrangement, Buffer, GuestRam, PackedDriver, Random, SplitDriver, Used, each_seed,
};

const RX: usize = 0;
const TX: usize = 1;
/// Where honest rings and buffers are.
const HONEST: [u64; 2] = [0x10_0000, 0x10_1000];
const ROOM: [u64; 2] = [0x10_2000, 0x10_3000];
const SIZE: u16 = 16;
/// A header and a frame.
const BYTES: u32 = 12 + 60;
/// Sieges, rings in each, and steps in which a pair must come to rest.
const SIEGES: u64 = 200;
const LIVES: u32 = 500;
const REST_MAX: usize = 64;

/// A NIC without threads: its pair is served here.
struct Device {
    port: Box<dyn Endpoint>,
    nic: Nic,
    pair: Option<Box<QueuePair>>,
    faults: [Option<Fault>; 2],
}

impl Device {
    fn new(switch: &Switch, last: u8, bits: FeatureBits, ram: &GuestRam) -> Self {
        let mac = [2, 0, 0, 0, 0, last];
        let port = Box::new(switch.port(PortConfig { mac, isolated: false }).unwrap());
        let nic =
            Nic::new(NicConfig { mac, mtu: 1500, ..NicConfig::default() }, port.capabilities());
        let mut device = Self { port, nic, pair: None, faults: [None; 2] };
        device.apply(Op::Negotiate(bits)).unwrap();
        device.apply(Op::Memory(Arc::clone(ram.space()))).unwrap();
        device
    }

    fn apply(&mut self, op: Op) -> Result<(), OpError> {
        let mut effects = Effects::default();
        self.nic.apply(op, &mut effects);
        let mut result = Ok(());
        while let Some(effect) = effects.next_effect() {
            match effect {
                Effect::Open(settings) => self.nic.opened(self.port.open(&settings), &mut effects),
                Effect::Start(pair) => self.pair = Some(pair),
                Effect::Recall(index) => {
                    self.nic.returned(index, self.pair.take(), &mut effects);
                }
                Effect::Adapt(_)
                | Effect::Interrupt(_)
                | Effect::ControlFault(_)
                | Effect::ConfigChanged => {}
                Effect::Done(outcome) => result = outcome,
            }
        }
        result
    }

    fn start(&mut self, queue: usize, setup: QueueSetup, cursor: Cursor) -> Result<(), OpError> {
        let index = QueueIndex(queue as u16);
        self.apply(Op::EnableQueue(index, true))?;
        self.apply(Op::StartQueue { index, setup, cursor })
    }

    /// Ends a queue's life: what was said of it, and where it stands.
    fn stop(&mut self, queue: usize) -> (Option<Fault>, Option<Cursor>) {
        let index = QueueIndex(queue as u16);
        self.apply(Op::StopQueue(index)).unwrap();
        (self.faults[queue].take(), self.nic.cursor(index))
    }

    /// Steps until there is nothing to do.
    fn rest(&mut self) {
        for _ in 0..REST_MAX {
            let step = self.pair.as_mut().unwrap().service(Instant::from_nanos(0));
            assert_eq!(step.host, None, "nothing on the host can fail here");
            if let Some(told) = step.fault {
                let fault = self.faults[usize::from(told.queue.0)].replace(told.fault);
                assert_eq!(fault, None, "said once in the life of a queue");
            }
            if step.next != Next::Again {
                return;
            }
        }
        panic!("it never comes to rest");
    }
}

enum Driver {
    Split(SplitDriver),
    Packed(PackedDriver),
}

impl Driver {
    fn new(ram: &GuestRam, at: u64, features: RingFeatures) -> Self {
        match features.format {
            Format::Split => Self::Split(SplitDriver::new(ram, at, SIZE, features.event_idx, 0)),
            Format::Packed => {
                let start = Cursor::start(Format::Packed);
                Self::Packed(PackedDriver::new(ram, at, features, SIZE, start))
            }
        }
    }

    fn setup(&self) -> QueueSetup {
        match self {
            Self::Split(driver) => driver.setup(),
            Self::Packed(driver) => driver.setup(),
        }
    }

    fn post(&mut self, buffer: Buffer) -> u16 {
        match self {
            Self::Split(driver) => driver.post(&[buffer], Arrangement::Direct),
            Self::Packed(driver) => driver.post(&[buffer], None),
        }
        .expect("room")
    }

    /// Whether the device wants a kick does not matter: it is served at once.
    fn expose(&mut self) {
        let _kick = match self {
            Self::Split(driver) => driver.expose(),
            Self::Packed(driver) => driver.expose(),
        };
    }

    fn collect(&mut self) -> Vec<Used> {
        match self {
            Self::Split(driver) => driver.collect(),
            Self::Packed(driver) => driver.collect(),
        }
    }
}

/// A guest with at least one honest queue.
struct Guest {
    device: Device,
    ram: GuestRam,
    last: u8,
    drivers: [Option<Driver>; 2],
    /// Receive buffers by their chain's id.
    places: [u64; SIZE as usize],
    sent: u64,
}

impl Guest {
    /// `honest` says which of its queues are.
    fn new(
        switch: &Switch,
        last: u8,
        features: RingFeatures,
        mergeable: bool,
        honest: [bool; 2],
    ) -> Self {
        let ram = GuestRam::new(&[REGIONS, &[(HONEST[RX], 0x4000)]].concat());
        let chosen = [
            (features.format == Format::Packed, Feature::RING_PACKED),
            (features.event_idx, Feature::EVENT_IDX),
            (features.indirect, Feature::INDIRECT_DESC),
            (features.in_order, Feature::IN_ORDER),
            (mergeable, Feature::MRG_RXBUF),
        ];
        let chosen = chosen.into_iter().filter(|(chosen, _)| *chosen);
        let bits =
            chosen.fold(FeatureBits::of(&[Feature::VERSION_1]), |all, (_, one)| all.with(one));
        let device = Device::new(switch, last, bits, &ram);
        let drivers =
            [RX, TX].map(|queue| honest[queue].then(|| Driver::new(&ram, HONEST[queue], features)));
        let places = [0; SIZE as usize];
        let mut guest = Self { device, ram, last, drivers, places, sent: 0 };
        for queue in [RX, TX] {
            let cursor = Cursor::start(features.format);
            let setup = guest.drivers[queue].as_ref().map(Driver::setup);
            if let Some(setup) = setup {
                guest.device.start(queue, setup, cursor).unwrap();
            }
        }
        if honest[RX] {
            (0..u64::from(SIZE)).for_each(|buffer| guest.post(ROOM[RX] + 256 * buffer));
        }
        guest
    }

    fn post(&mut self, at: u64) {
        let driver = self.drivers[RX].as_mut().unwrap();
        let id = driver.post(Buffer::writable(at, 256));
        self.places[usize::from(id)] = at;
        driver.expose();
    }

    /// The frame of that number from this guest to all.
    fn frame(&self, number: u64) -> Vec<u8> {
        let mut frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, self.last, 0x88, 0xb5]].concat();
        frame.extend(number.to_le_bytes());
        frame.resize(60, self.last);
        frame
    }

    /// Sends so many frames in one go: they leave, whatever the others do.
    fn send(&mut self, count: usize) {
        for index in 0..count as u64 {
            let at = ROOM[TX] + 128 * index;
            self.ram.write(at, &[&[0; 12][..], &self.frame(self.sent + index)].concat());
            self.drivers[TX].as_mut().unwrap().post(Buffer::readable(at, BYTES));
        }
        self.sent += count as u64;
        self.drivers[TX].as_mut().unwrap().expose();
        self.device.rest();
        let used = self.drivers[TX].as_mut().unwrap().collect().len();
        assert_eq!(used, count, "honest frames were held up");
    }

    /// What has come since the last time, without headers.
    fn received(&mut self) -> Vec<Vec<u8>> {
        self.device.rest();
        let used = self.drivers[RX].as_mut().unwrap().collect();
        let frames = used.into_iter().map(|Used { head, len }| {
            let at = self.places[usize::from(head)];
            let frame = self.ram.read(at, len).split_off(12);
            self.post(at);
            frame
        });
        frames.collect()
    }
}

/// What was done and what came of it, for one ring format.
#[derive(Default)]
struct Tally {
    rings: u32,
    attacks: BTreeMap<Attack, u32>,
    faults: HashMap<Fault, u32>,
}

impl Tally {
    fn fault(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }
}

fn features(format: Format, random: &mut Random) -> RingFeatures {
    RingFeatures {
        format,
        event_idx: random.once_in(2),
        indirect: true,
        // The honest driver of a split ring does not know it.
        in_order: format == Format::Packed && random.once_in(2),
    }
}

struct Siege {
    guest: Guest,
    peer: Guest,
    /// The queue that is attacked.
    under: usize,
    manners: Manners,
    attacks: Vec<Attack>,
}

impl Siege {
    fn new(format: Format, random: &mut Random) -> Self {
        let switch = Switch::new("siege");
        let own = RingFeatures { indirect: !random.once_in(4), ..features(format, random) };
        let other = features(random.one_of(&[Format::Split, Format::Packed]), random);
        let under = random.one_of(&[RX, TX]);
        let peer = Guest::new(&switch, 2, other, random.once_in(2), [true; 2]);
        let honest = [under == TX, under == RX];
        let guest = Guest::new(&switch, 1, own, random.once_in(2), honest);
        let manners = Manners { format, writable: under == RX, indirect: own.indirect };
        Ground::prepare(&guest.ram, manners, random);
        Self { guest, peer, under, manners, attacks: Attack::all(format, under == RX) }
    }

    /// Frames come for a receive queue; a transmit queue is looked at.
    fn prompt(&mut self, frames: usize) {
        if self.under == RX {
            self.peer.send(frames);
        }
        self.guest.device.rest();
    }

    fn life(&mut self, random: &mut Random, tally: &mut Tally) {
        let attack = random.one_of(&self.attacks);
        let mut ground = Ground::new(&self.guest.ram, RINGS[self.under], self.manners, random);
        if random.once_in(16) {
            let (setup, cursor, fault) = ground.bad_setup(random);
            let refused = OpError::Queue(QueueIndex(self.under as u16), fault);
            let result = self.guest.device.start(self.under, setup, cursor);
            assert_eq!(result, Err(refused), "{setup:?}");
            tally.fault(fault);
        }
        self.guest.device.start(self.under, ground.setup(), ground.cursor()).unwrap();
        (0..random.below(3)).for_each(|_| ground.add_good(random));
        let first = self.peer.sent;
        let mut verdict = ground.attack(attack, random);
        ground.expose();
        let lists = ground.lists();
        if matches!(attack, Attack::Changed | Attack::Overrun) {
            self.prompt(1);
            verdict = ground.second_act(attack, random).expect("it has two");
        }
        self.prompt(lists + 2);
        if attack == Attack::Changed {
            let found =
                self.guest.ram.read(ground.good().next_back().unwrap().0, BYTES).split_off(12);
            assert_eq!(found, self.peer.frame(first + lists as u64 - 1), "as it was when read");
        }
        self.others_go_on();
        let (fault, cursor) = self.guest.device.stop(self.under);
        let judged = (self.manners, attack);
        match verdict {
            Verdict::Harmless => {
                assert_eq!(fault, None, "{judged:?}");
                assert_eq!(cursor, Some(ground.cursor()), "all that is good is served: {judged:?}");
            }
            Verdict::Breaks(rule) => assert_eq!(fault, Some(rule), "{judged:?}"),
            Verdict::Anything => {}
        }
        tally.rings += 1;
        *tally.attacks.entry(attack).or_default() += 1;
        fault.into_iter().for_each(|fault| tally.fault(fault));
    }

    /// The other queue of the guest, and the peer, are as well as ever.
    fn others_go_on(&mut self) {
        let Self { guest, peer, under, .. } = self;
        let (from, to) = if *under == RX { (guest, peer) } else { (peer, guest) };
        let before = to.received();
        assert!(before.len() < SIZE.into(), "buffers are left");
        from.send(1);
        let frame = from.frame(from.sent - 1);
        assert_eq!(to.received(), [frame], "the other queue goes on");
        // Whatever an attacked transmit queue has sent.
        let at_peer = if *under == TX { self.peer.received() } else { Vec::new() };
        assert!(at_peer.len() < SIZE.into());
        assert_eq!(self.guest.device.faults[1 - self.under], None);
        assert_eq!(self.peer.device.faults, [None; 2]);
    }
}

/// Rules that a ring of this format cannot break.
fn foreign(format: Format) -> &'static [Fault] {
    match format {
        Format::Split => &[Fault::SlotsOverrun, Fault::ListIncomplete, Fault::BadPosition],
        // No index, no head, no next; and of the flags in a table only WRITE counts.
        Format::Packed => {
            &[Fault::IndexJump, Fault::HeadOutOfRange, Fault::NextOutOfRange, Fault::IndirectNested]
        }
    }
}

#[test]
fn a_hundred_thousand_hostile_rings_stop_their_own_queue_by_name_and_nothing_else() {
    let formats = [Format::Split, Format::Packed];
    let tallies = Mutex::new([Tally::default(), Tally::default()]);
    each_seed(SIEGES, |seed| {
        let (mut random, which) = (Random::new(seed), (seed % 2) as usize);
        let mut siege = Siege::new(formats[which], &mut random);
        for _ in 0..LIVES {
            siege.life(&mut random, &mut tallies.lock().unwrap()[which]);
        }
    });
    let tallies = tallies.into_inner().unwrap();
    assert!(tallies.iter().map(|tally| tally.rings).sum::<u32>() >= 100_000);
    for (format, tally) in formats.into_iter().zip(&tallies) {
        for attack in Attack::all(format, true) {
            let count = tally.attacks.get(&attack).copied().unwrap_or(0);
            assert!(count >= 1000, "{format:?}: {attack:?} {count} times only");
        }
        for fault in Fault::ALL {
            let (seen, can) = (tally.faults.contains_key(fault), !foreign(format).contains(fault));
            assert_eq!(seen, can, "{format:?}: {fault:?}");
        }
    }
}
