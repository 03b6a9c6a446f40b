//! A machine with a NIC behind registers: guest memory, two queues with honest drivers, a host side
//! that sends frames back and can be held up, and a panel that shows the interrupts.
#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod front;
pub(crate) mod storm;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

pub(crate) use front::Front;
use vionet::endpoint::{
    Capabilities, Endpoint, EndpointFault, EndpointQueue, OpenError, OpenKind, Refused, RxHeader,
    RxSink, Settings, TxBatch, Watch,
};
use vionet::transport::{Lines, Message, MmioNic, PciNic, Wiring};
use vionet::{Device, NicConfig, State, Workers};
use vionet_frame::header::Offloads;
use vionet_raw::copy_out;
use vionet_spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use vionet_testkit::{Arrangement, Buffer, GuestRam, SplitDriver};

pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const SIZE: u16 = 16;
/// Where rings and buffers lie.
pub(crate) const RINGS: u64 = 0x1_0000;
pub(crate) const BUFFERS: u64 = 0x10_0000;
/// VERSION_1, in its word.
pub(crate) const MODERN: u32 = 1;
/// RING_RESET and SUSPEND, in the same word.
pub(crate) const RING_RESET: u32 = 1 << 8;
pub(crate) const SUSPEND: u32 = 1 << 11;
const HEADER: u32 = 12;

/// What interrupts have done.
#[derive(Default)]
pub(crate) struct Panel {
    pub(crate) asserted: AtomicBool,
    pub(crate) rises: AtomicU64,
    pub(crate) messages: Mutex<Vec<(u16, Message)>>,
    pub(crate) routes: Mutex<Vec<(u16, Option<Message>)>>,
}

impl Lines for Panel {
    fn level(&self, asserted: bool) {
        assert_ne!(self.asserted.swap(asserted, Ordering::SeqCst), asserted, "told twice");
        self.rises.fetch_add(u64::from(asserted), Ordering::SeqCst);
    }
    fn message(&self, vector: u16, message: Message) {
        self.messages.lock().unwrap().push((vector, message));
    }
    fn route(&self, vector: u16, message: Option<Message>) {
        self.routes.lock().unwrap().push((vector, message));
    }
}

impl Panel {
    pub(crate) fn is_asserted(&self) -> bool {
        self.asserted.load(Ordering::SeqCst)
    }
    pub(crate) fn take_messages(&self) -> Vec<(u16, Message)> {
        std::mem::take(&mut *self.messages.lock().unwrap())
    }
}

/// What the test and the host side share.
#[derive(Default)]
pub(crate) struct Shared {
    held: Mutex<bool>,
    let_go: Condvar,
    /// Workers that wait while held.
    pub(crate) waiting: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) dropped: AtomicBool,
    /// The host side cannot be opened.
    pub(crate) broken: AtomicBool,
}

impl Shared {
    pub(crate) fn hold(&self, held: bool) {
        *self.held.lock().unwrap() = held;
        self.let_go.notify_all();
    }
}

/// A host side that sends back what it gets, and can be held up in the middle of it.
struct Mirror(Arc<Shared>);

struct MirrorQueue(Arc<Shared>, VecDeque<Vec<u8>>);

impl Endpoint for Mirror {
    fn name(&self) -> String {
        "mirror".into()
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { transmit: Offloads::NONE, receive: Offloads::NONE, pairs_max: 4, mtu: 1500 }
    }
    fn open(&mut self, settings: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        if self.0.broken.load(Ordering::SeqCst) {
            let reason = "broken".into();
            return Err(OpenError { kind: OpenKind::Host, reason });
        }
        let queue = |_| -> Box<dyn EndpointQueue> {
            Box::new(MirrorQueue(Arc::clone(&self.0), VecDeque::new()))
        };
        Ok((0..settings.pairs).map(queue).collect())
    }
    fn adapt(&mut self, _: &Settings) -> Result<(), OpenError> {
        Ok(())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.0.dropped.store(true, Ordering::SeqCst);
    }
}

impl EndpointQueue for MirrorQueue {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        let mut held = self.0.held.lock().unwrap();
        self.0.waiting.fetch_add(u64::from(*held), Ordering::SeqCst);
        // Not for ever: a test that fails meanwhile must come to its end.
        let most = Duration::from_secs(20);
        held = self.0.let_go.wait_timeout_while(held, most, |held| *held).unwrap().0;
        drop(held);
        while let Some(frame) = frames.frames().first() {
            let mut bytes = vec![0; frame.len as usize];
            copy_out(frames.bytes(frame), 0, &mut bytes);
            if self.1.len() < 64 {
                self.1.push_back(bytes);
            }
            frames.sent(1);
            self.0.sent.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
    fn receive(&mut self, sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        while let Some(frame) = self.1.front() {
            if sink.push(&RxHeader::PLAIN, frame) == Err(Refused::Full) {
                break;
            }
            self.1.pop_front();
        }
        Ok(())
    }
    fn watch(&self) -> Watch {
        Watch::default()
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// The machine.
pub(crate) struct Board<F: ?Sized = dyn Front> {
    pub(crate) ram: GuestRam,
    pub(crate) panel: Arc<Panel>,
    pub(crate) host: Arc<Shared>,
    pub(crate) rx: SplitDriver,
    pub(crate) tx: SplitDriver,
    pub(crate) nic: Arc<F>,
}

impl<F: Front> Board<F> {
    fn with(pairs: u16, workers: &Workers, make: impl FnOnce(Device, &Wiring) -> F) -> Self {
        let ram = GuestRam::new(&[(RINGS, 0x1_0000), (BUFFERS, 0x1_0000)]);
        let (panel, host) = (Arc::<Panel>::default(), Arc::<Shared>::default());
        let config = NicConfig { mac: MAC, mtu: 1500, pairs, ..NicConfig::default() };
        let nic = Self::nic(config, &ram, (&panel, &host), workers, make);
        let [rx, tx] = rings(&ram, 0);
        Self { ram, panel, host, rx, tx, nic }
    }

    fn nic(
        config: NicConfig,
        ram: &GuestRam,
        (panel, host): (&Arc<Panel>, &Arc<Shared>),
        workers: &Workers,
        make: impl FnOnce(Device, &Wiring) -> F,
    ) -> Arc<F> {
        let endpoint = Box::new(Mirror(Arc::clone(host)));
        let device = Device::with_workers(config, endpoint, workers).unwrap();
        let lines: Arc<dyn Lines> = Arc::<Panel>::clone(panel);
        Arc::new(make(device, &Wiring::new(Arc::clone(ram.space()), lines)))
    }

    /// The same machine with a new NIC in the place of the one there is, which goes on from its
    /// state.
    pub(crate) fn move_nic(&mut self, make: impl FnOnce(Device, &Wiring) -> F) {
        self.nic.pause().unwrap();
        let state = self.nic.save().unwrap();
        let state = State::decode(&state.encode()).expect("what was saved is a state");
        self.panel = Arc::default();
        let wired = (&self.panel, &self.host);
        let nic = Self::nic(state.config(), &self.ram, wired, &Workers::default(), make);
        nic.restore(&state).expect("what a driver has done can be restored");
        assert_eq!(nic.save(), Ok(state), "and saved again");
        self.nic = nic;
    }
}

impl Board<PciNic> {
    pub(crate) fn pci(pairs: u16) -> Self {
        Self::pci_with(pairs, &Workers::default())
    }

    pub(crate) fn pci_with(pairs: u16, workers: &Workers) -> Self {
        let board =
            Self::with(pairs, workers, |device, wiring| PciNic::new(device, wiring).unwrap());
        front::switch_on(&board.nic);
        board
    }
}

impl Board<MmioNic> {
    pub(crate) fn mmio(pairs: u16) -> Self {
        Self::mmio_with(pairs, &Workers::default())
    }

    pub(crate) fn mmio_with(pairs: u16, workers: &Workers) -> Self {
        Self::with(pairs, workers, |device, wiring| MmioNic::new(device, wiring).unwrap())
    }
}

/// The same machine on either bus.
pub(crate) fn on_each_bus(test: impl Fn(&mut Board)) {
    test(&mut Board::pci(1).on_some_bus());
    test(&mut Board::mmio(1).on_some_bus());
}

impl<F: Front + 'static> Board<F> {
    /// Without saying which bus it is.
    pub(crate) fn on_some_bus(self) -> Board {
        let Self { ram, panel, host, rx, tx, nic } = self;
        Board { ram, panel, host, rx, tx, nic: nic as Arc<dyn Front> }
    }
}

/// Rings of the size, at either of two places.
pub(crate) fn rings(ram: &GuestRam, place: u64) -> [SplitDriver; 2] {
    let at = RINGS + place * 0x8000;
    ram.write(at, &[0; 0x8000]);
    [at, at + 0x4000].map(|at| SplitDriver::new(ram, at, SIZE, false, 0))
}

impl<F: Front + ?Sized> Board<F> {
    /// Up to FEATURES_OK, with these bits of the word that VERSION_1 is in.
    pub(crate) fn negotiate(&mut self, word: u32) {
        self.negotiate_all([0, word | MODERN]);
    }

    /// The same with these two words.
    pub(crate) fn negotiate_all(&mut self, [low, high]: [u32; 2]) {
        self.nic.set_status(0);
        self.shows(0); // ST-01
        self.nic.set_status(ACKNOWLEDGE);
        self.nic.set_status(ACKNOWLEDGE | DRIVER);
        self.nic.choose(0, low);
        self.nic.choose(1, high);
        self.nic.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(self.nic.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    /// New rings, told to the device.
    pub(crate) fn set_up(&mut self, place: u64) {
        [self.rx, self.tx] = rings(&self.ram, place);
        for (queue, ring) in [(0, &self.rx), (1, &self.tx)] {
            let setup = ring.setup();
            self.nic.select(queue);
            self.nic.set_size(setup.size.into());
            self.nic.set_areas([setup.descriptors.0, setup.driver.0, setup.device.0]);
            self.nic.enable();
            assert!(self.nic.is_enabled());
        }
    }

    /// The same, whatever another vCPU does to the registers meanwhile.
    pub(crate) fn set_up_anyhow(&mut self) {
        [self.rx, self.tx] = rings(&self.ram, 0);
        for (queue, ring) in [(0, &self.rx), (1, &self.tx)] {
            let setup = ring.setup();
            self.nic.select(queue);
            self.nic.set_size(setup.size.into());
            self.nic.set_areas([setup.descriptors.0, setup.driver.0, setup.device.0]);
            self.nic.enable();
        }
    }

    pub(crate) fn go(&self) {
        self.nic.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    pub(crate) fn bring_up(&mut self, word: u32) {
        self.negotiate(word);
        self.set_up(0);
        self.go();
        assert_eq!(self.nic.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Posts a buffer for a frame, and a frame; neither is kicked for.
    pub(crate) fn post(&mut self, fill: u8) {
        let room = Buffer::writable(BUFFERS + 0x8000, 2048);
        self.rx.post(&[room], Arrangement::Direct).expect("a free descriptor");
        self.rx.expose();
        self.ram.write(BUFFERS, &[0; HEADER as usize]);
        self.ram.write(BUFFERS + u64::from(HEADER), &[fill; 60]);
        let frame = Buffer::readable(BUFFERS, HEADER + 60);
        self.tx.post(&[frame], Arrangement::Direct).expect("a free descriptor");
        self.tx.expose();
    }

    /// A frame goes out and comes back.
    pub(crate) fn round_trip(&mut self, fill: u8) {
        self.post(fill);
        self.nic.kick(0);
        self.nic.kick(1);
        self.comes_back(fill);
    }

    /// What was posted is sent and comes back.
    pub(crate) fn comes_back(&mut self, fill: u8) {
        until("the frame comes back", || {
            self.tend();
            !self.rx.collect().is_empty()
        });
        let frame = self.ram.read(BUFFERS + 0x8000 + u64::from(HEADER), 60);
        assert_eq!(frame, [fill; 60]);
        until("the frame is used", || !self.tx.collect().is_empty());
    }

    /// Up, and every worker asleep: what is posted waits for a kick.
    pub(crate) fn bring_to_sleep(&mut self, word: u32) {
        self.bring_up(word);
        self.round_trip(0);
        std::thread::sleep(Duration::from_millis(30));
    }

    /// What is posted is left alone.
    pub(crate) fn is_left_alone(&mut self) {
        let before = (self.rx.used_idx(), self.tx.used_idx(), self.sent());
        self.nic.kick(0);
        self.nic.kick(1);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!((self.rx.used_idx(), self.tx.used_idx(), self.sent()), before);
    }

    pub(crate) fn sent(&self) -> u64 {
        self.host.sent.load(Ordering::SeqCst)
    }

    /// A worker is held up in the host side.
    pub(crate) fn hold_worker(&mut self) {
        self.host.hold(true);
        let before = self.host.waiting.load(Ordering::SeqCst);
        self.post(0x77);
        self.nic.kick(1);
        until("the worker waits", || {
            self.tend();
            self.host.waiting.load(Ordering::SeqCst) > before
        });
    }

    /// The status comes to this.
    pub(crate) fn shows(&self, status: u8) {
        until(&format!("status {status:#x}"), || self.nic.status() == status);
    }

    /// What whoever embeds the device does all the time.
    pub(crate) fn tend(&self) {
        assert_eq!(self.nic.tend(), None);
    }
}

/// Waits for something that comes soon.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(10), "not in time: {what}");
        std::thread::yield_now();
    }
}

/// Does it, in less than a second.
pub(crate) fn quickly<R>(act: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = act();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    result
}
