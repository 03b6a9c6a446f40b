//! A load on a back-end: frames as fast as it takes them, or as many as were asked for, and what
//! became of them.
//!
//! ```text
//!   Way::Transmit   driver ---> back-end           buffers that came back are counted
//!   Way::Receive    driver <--- back-end           frames that came are counted
//!   Way::Echo       driver <--> back-end           each frame out and back: order, loss, latency
//!   Way::Through    driver ---> back-end ---> the driver's second device      likewise
//! ```
//!
//! One thread, which never sleeps: like a poll-mode driver, so that what is measured is the
//! back-end. How often it found nothing to do is told, since a driver that is never idle is
//! itself the bound. With a rate each frame's latency counts from the moment it was due, whenever
//! it really went, so that a back-end that stalls cannot hide it.

mod frames;
mod histogram;
mod lane;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use vionet_spec::feature::{Feature, FeatureBits};

use crate::error::GuestError;
use crate::front_end::FrontEnd;
use crate::guest::clock;
use crate::port::{HEAD, Port, PortPlan};
use crate::ring::RingFormat;
use frames::{BROADCAST, FRAME_HEAD, Stamp};
pub use histogram::Histogram;
use lane::{Count, Reading, Receiver, Sender, Writing};

/// Which way frames go, seen from the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Way {
    /// Out; the back-end keeps them.
    #[default]
    Transmit,
    /// In; the back-end makes them.
    Receive,
    /// Out, and back by the same device.
    Echo,
    /// Out, and in by a second device of the same back-end.
    Through,
}

/// What load to put on a back-end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Which way frames go.
    pub way: Way,
    /// The layout of both rings.
    pub format: RingFormat,
    /// Whether buffers are used in order.
    pub in_order: bool,
    /// Whether a received frame may take several buffers.
    pub mergeable: bool,
    /// Whether notifications are suppressed by index.
    pub event_idx: bool,
    /// Entries of each ring; a power of two for split rings.
    pub queue_size: u16,
    /// The most frames that become visible at once.
    pub burst: u16,
    /// Lengths of frames in bytes, taken in turn; 32 to 65 550 each.
    pub sizes: Vec<u32>,
    /// Frames per second to offer; none for as many as the back-end takes.
    pub rate: Option<u64>,
    /// How long to count.
    pub time: Duration,
    /// How long to run before that.
    pub warm_up: Duration,
    /// Whether to write and check every byte of frames that come back.
    pub verify: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            way: Way::Transmit,
            format: RingFormat::Split,
            in_order: false,
            mergeable: true,
            event_idx: true,
            queue_size: 256,
            burst: 32,
            sizes: vec![64],
            rate: None,
            time: Duration::from_secs(2),
            warm_up: Duration::from_millis(300),
            verify: false,
        }
    }
}

/// What became of a load.
#[derive(Clone, Debug)]
pub struct LoadReport {
    /// How long was counted.
    pub time: Duration,
    /// Frames that the back-end took, while counting.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames that came, while counting.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames of the whole run that went and did not come; where they should come.
    pub lost: Option<u64>,
    /// Frames of the whole run that came after a later one, or twice.
    pub disorder: u64,
    /// Frames of the whole run that came changed; only with `verify`.
    pub damaged: u64,
    /// Frames that the back-end added.
    pub foreign: u64,
    /// From when a frame was due until it came back; where it should.
    pub latency: Option<Histogram>,
    /// Kicks that the back-end wanted, while counting.
    pub kicks: u64,
    /// Of all looks at the queues, the share that found nothing to do: near 0 the driver is the
    /// bound.
    pub idle: f64,
    /// Processor time that the back-end's process took while counting, where the system tells.
    pub back_end_time: Option<Duration>,
    /// The features agreed on.
    pub features: FeatureBits,
}

impl LoadReport {
    /// Frames per second that went the asked way: what came back, if it should.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let frames = if self.received > 0 { self.received } else { self.sent };
        per_second(frames, self.time)
    }

    /// Bits per second of these frames, without what the wire adds.
    #[must_use]
    pub fn bits_per_second(&self) -> f64 {
        let bytes = if self.received > 0 { self.received_bytes } else { self.sent_bytes };
        per_second(bytes, self.time) * 8.0
    }
}

#[expect(clippy::as_conversions, reason = "a rate for people; lossy past 2^52")]
fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

const SECOND: u64 = 1_000_000_000;
/// The longest frame.
const SIZE_MAX: u32 = 65_550;
/// Bytes of a receive buffer that need not hold a whole frame.
const MERGED_LEN: u32 = 2048;
/// The most memory for all buffers.
const MEMORY_MAX: u64 = 1 << 30;
/// How often the back-end is looked at, and progress is told.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long frames on their way may take at the end.
const LATE_MAX: Duration = Duration::from_millis(300);
/// The addresses of the first and the second device.
const ADDRESSES: [[u8; 6]; 2] = [[2, 0x76, 0x69, 0x6f, 0, 1], [2, 0x76, 0x69, 0x6f, 0, 2]];

/// Puts a load on the back-end at `socket`; for [`Way::Through`] the frames come in by the device
/// at `second`. `progress` hears now and then how much of the time is over.
///
/// # Errors
/// When the options contradict themselves, the back-end cannot be reached or lacks what they need,
/// goes away, or breaks a rule of the ring.
pub fn load(
    socket: &Path,
    second: Option<&Path>,
    options: &LoadOptions,
    progress: &mut dyn FnMut(f64),
) -> Result<LoadReport, GuestError> {
    check(options, second.is_some())?;
    let mut run = Run::start(socket, second, options)?;
    run.pump(options.warm_up, options, &mut |_| {})?;
    let before = run.counts();
    let process = run.near.end.peer_process();
    let time_before = process.and_then(processor_time);
    if let (Way::Echo | Way::Through, receiver) = (options.way, &mut run.receiver) {
        receiver.latency = Some(Histogram::default());
    }
    let start = clock();
    run.pump(options.time, options, progress)?;
    let time = start.elapsed();
    let time_after = process.and_then(processor_time);
    let after = run.counts();
    let latency = run.receiver.latency.take();
    run.drain(options)?;
    let report = LoadReport {
        time,
        sent: after.sent.frames.wrapping_sub(before.sent.frames),
        sent_bytes: after.sent.bytes.wrapping_sub(before.sent.bytes),
        received: after.got.frames.wrapping_sub(before.got.frames),
        received_bytes: after.got.bytes.wrapping_sub(before.got.bytes),
        lost: comes_back(options.way)
            .then(|| run.sender.sent().saturating_sub(run.receiver.got.frames)),
        disorder: run.receiver.disorder,
        damaged: run.receiver.damaged,
        foreign: run.receiver.foreign,
        latency,
        kicks: after.kicks.wrapping_sub(before.kicks),
        idle: share(after.idle.wrapping_sub(before.idle), after.turns.wrapping_sub(before.turns)),
        back_end_time: time_after
            .zip(time_before)
            .map(|(after, before)| after.saturating_sub(before)),
        features: run.near.features,
    };
    run.stop()?;
    Ok(report)
}

fn comes_back(way: Way) -> bool {
    matches!(way, Way::Echo | Way::Through)
}

#[expect(clippy::as_conversions, reason = "a share for people")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn check(options: &LoadOptions, has_second: bool) -> Result<(), GuestError> {
    let least = u32::try_from(FRAME_HEAD).unwrap_or(u32::MAX);
    let wrong = [
        (options.sizes.is_empty(), "frames of no length"),
        (
            options.sizes.iter().any(|size| !(least..=SIZE_MAX).contains(size)),
            "frames have 32 to 65550 bytes",
        ),
        (options.queue_size == 0 || options.burst == 0, "a queue of nothing, or bursts of nothing"),
        (
            options.format == RingFormat::Split && !options.queue_size.is_power_of_two(),
            "a split queue has a power of two of entries",
        ),
        (options.queue_size > vionet_spec::ring::SIZE_MAX, "a queue has at most 32768 entries"),
        (options.rate == Some(0), "a rate of nothing"),
        (
            options.verify && !comes_back(options.way),
            "only frames that come back can be verified: echo, or a second device",
        ),
        ((options.way == Way::Through) != has_second, "a second device goes with `through`"),
    ];
    match wrong.into_iter().find(|(wrong, _)| *wrong) {
        Some((_, why)) => Err(GuestError::Options(why)),
        None => Ok(()),
    }
}

fn plan(options: &LoadOptions) -> Result<PortPlan, GuestError> {
    let longest = options.sizes.iter().copied().max().unwrap_or(0).saturating_add(HEAD);
    let rx_len = if options.mergeable { MERGED_LEN } else { longest.max(MERGED_LEN) };
    let tx_len = longest.next_multiple_of(64);
    let buffers = u64::from(rx_len).saturating_add(tx_len.into());
    if buffers.saturating_mul(options.queue_size.into()) > MEMORY_MAX {
        return Err(GuestError::Options("buffers of more than 1 GiB: take a smaller queue"));
    }
    let asked = [
        (true, Feature::VERSION_1),
        (options.format == RingFormat::Packed, Feature::RING_PACKED),
        (options.in_order, Feature::IN_ORDER),
        (options.mergeable, Feature::MRG_RXBUF),
    ];
    let asked = asked.into_iter().filter(|(asked, _)| *asked);
    let needed = asked.fold(FeatureBits::NONE, |all, (_, feature)| all.with(feature));
    let events = FeatureBits::of(&[Feature::EVENT_IDX]);
    let wanted = if options.event_idx { events } else { FeatureBits::NONE };
    Ok(PortPlan { size: options.queue_size, rx_len, tx_len, needed, wanted })
}

#[derive(Clone, Copy, Debug)]
struct Counts {
    sent: Count,
    got: Count,
    kicks: u64,
    turns: u64,
    idle: u64,
}

/// A load while it runs.
struct Run {
    near: Port,
    far: Option<Port>,
    sender: Sender,
    receiver: Receiver,
    origin: Instant,
    kicks: u64,
    turns: u64,
    idle: u64,
}

impl Run {
    fn start(
        socket: &Path,
        second: Option<&Path>,
        options: &LoadOptions,
    ) -> Result<Self, GuestError> {
        let plan = plan(options)?;
        let open = |path: &Path| Port::open(FrontEnd::connect(path)?, plan);
        let mut near = open(socket)?;
        let mut far = second.map(open).transpose()?;
        let [first, other] = ADDRESSES;
        let (writing, reading) = match (comes_back(options.way), options.verify) {
            (false, _) => (Writing::Nothing, Reading::Length),
            (true, false) => (Writing::Stamp, Reading::Stamp),
            (true, true) => (Writing::Whole, Reading::Whole),
        };
        if let Some(far) = &mut far {
            announce(far, other)?;
        }
        let to = if far.is_some() { other } else { BROADCAST };
        let entries = options.queue_size;
        let sender = Sender::new(&mut near, entries, &options.sizes, writing, [to, first])?;
        let receiver = Receiver::new(reading, options.mergeable, plan.rx_len, &options.sizes);
        let origin = clock();
        Ok(Self { near, far, sender, receiver, origin, kicks: 0, turns: 0, idle: 0 })
    }

    fn counts(&self) -> Counts {
        let Self { kicks, turns, idle, .. } = *self;
        Counts { sent: self.sender.taken, got: self.receiver.got, kicks, turns, idle }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Keeps both ends busy for `time`.
    fn pump(
        &mut self,
        time: Duration,
        options: &LoadOptions,
        progress: &mut dyn FnMut(f64),
    ) -> Result<(), GuestError> {
        let start = self.now();
        let length = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let every = u64::try_from(LOOK_EVERY.as_nanos()).unwrap_or(u64::MAX);
        let (mut look_at, mut offered) = (start, 0_u64);
        loop {
            let now = self.now();
            let over = now.saturating_sub(start);
            if over >= length {
                return Ok(());
            }
            if now >= look_at {
                look_at = now.saturating_add(every);
                self.look()?;
                progress(share(over, length));
            }
            let burst = u64::from(options.burst);
            let sent = match (options.way, options.rate) {
                (Way::Receive, _) => 0,
                (_, None) => self.send(burst, |_| now)?,
                (_, Some(rate)) => {
                    let due = scale(over, rate, SECOND).saturating_sub(offered);
                    let first = self.sender.sent().wrapping_sub(offered);
                    let sent = self.send(due.min(burst), |number| {
                        start.saturating_add(scale(number.wrapping_sub(first), SECOND, rate))
                    })?;
                    offered = offered.wrapping_add(sent);
                    sent
                }
            };
            self.turn(sent, burst)?;
        }
    }

    fn send(&mut self, limit: u64, at: impl Fn(u64) -> u64) -> Result<u64, GuestError> {
        self.sender.send(&mut self.near, limit, at)
    }

    /// Shows what was lent, and takes what came back.
    fn turn(&mut self, sent: u64, burst: u64) -> Result<(), GuestError> {
        let mut kicks = self.near.flush();
        let reclaimed = self.sender.reclaim(&mut self.near)?;
        // Later than when the frames of this turn went.
        let now = if self.receiver.latency.is_some() { self.now() } else { 0 };
        let far = self.far.as_mut().unwrap_or(&mut self.near);
        let got = self.receiver.receive(far, burst, now)?;
        kicks = kicks.wrapping_add(far.flush());
        self.kicks = self.kicks.wrapping_add(kicks);
        self.turns = self.turns.wrapping_add(1);
        if sent == 0 && got == 0 && !reclaimed {
            self.idle = self.idle.wrapping_add(1);
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn look(&mut self) -> Result<(), GuestError> {
        for port in [Some(&mut self.near), self.far.as_mut()].into_iter().flatten() {
            port.disarm();
            port.look(Duration::ZERO)?;
        }
        Ok(())
    }

    /// Waits for frames that are on their way, and buffers that are out.
    fn drain(&mut self, options: &LoadOptions) -> Result<(), GuestError> {
        let mut since = clock();
        loop {
            let before = (self.receiver.got.frames, self.sender.taken.frames);
            self.turn(0, options.burst.into())?;
            let after = (self.receiver.got.frames, self.sender.taken.frames);
            let back = !comes_back(options.way) || after.0 >= self.sender.sent();
            if back && after.1 >= self.sender.sent() {
                return Ok(());
            }
            if before != after {
                since = clock();
            } else if since.elapsed() > LATE_MAX {
                return Ok(());
            }
        }
    }

    fn stop(self) -> Result<(), GuestError> {
        self.near.close()?;
        self.far.map_or(Ok(()), Port::close)
    }
}

/// `value * by / per`.
fn scale(value: u64, by: u64, per: u64) -> u64 {
    let product = u128::from(value).saturating_mul(by.into());
    u64::try_from(product.checked_div(per.into()).unwrap_or(0)).unwrap_or(u64::MAX)
}

/// Lets a switch learn where `address` is, and waits until the frame is taken.
fn announce(port: &mut Port, address: [u8; 6]) -> Result<(), GuestError> {
    let mut frame = [0; 60];
    frames::write(&mut frame, BROADCAST, address, Stamp { number: 0, at: 0 });
    // A mark that is not ours, so that nobody takes it for the first frame of the load.
    if let Some(mark) = frame.get_mut(14) {
        *mark = 0;
    }
    let at = port.tx_at(0);
    port.memory.write(at, &[0; 12])?;
    port.memory.write(at.saturating_add(HEAD.into()), &frame)?;
    port.tx.lend(0, at, HEAD.saturating_add(60));
    port.flush();
    let start = clock();
    while port.tx.used()?.is_none() {
        if start.elapsed() > LATE_MAX {
            return Err(GuestError::Timeout("announcing the second device", LATE_MAX));
        }
        port.look(Duration::from_millis(1))?;
    }
    Ok(())
}

/// Processor time of all threads of a process.
fn processor_time(process: u32) -> Option<Duration> {
    if process == std::process::id() {
        return None;
    }
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name may hold anything but ends with the last bracket; user and system time follow as
    // the 12th and 13th field behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks = ticks.collect::<Result<Vec<_>, _>>().ok()?.into_iter().fold(0, u64::saturating_add);
    Some(Duration::from_nanos(scale(ticks, SECOND, rustix::param::clock_ticks_per_second())))
}

#[cfg(test)]
mod tests;
