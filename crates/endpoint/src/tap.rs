//! A tap device: frames go to and come from the kernel, with virtio headers where it has them.
//!
//! The tap belongs to the NIC for its whole life, so a guest that reboots finds it as it was, and
//! nobody else can take it in between.

mod held;

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use vionet::endpoint::{
    Capabilities, Endpoint, EndpointFault, EndpointQueue, OpenError, OpenKind, Refused, RxHeader,
    RxSink, Settings, TxBatch, TxFrame, Watch,
};
use vionet::stats::DropReason;
use vionet_frame::header::{NetHeader, Offloads, check};
use vionet_raw::host::tun::{self, TunOffloads};
use vionet_raw::host::vector::{readv, writev};
use vionet_raw::{ReadSpan, copy_out};
use vionet_spec::net::{FRAME_MAX, HDR_F_DATA_VALID, HDR_LEN, LINK_HDR_MAX};

use held::{BATCH, Held};

/// All that a tap with virtio headers does by itself.
const ALL: Offloads =
    Offloads::CSUM.union(Offloads::TSO4).union(Offloads::TSO6).union(Offloads::ECN);

/// TCP that is left to be cut.
const TSO: Offloads = Offloads::TSO4.union(Offloads::TSO6);

/// The longest frame that is copied on its way, in or out.
const SHORT: u32 = 2048;

/// A tap device as host side. One of several queues has a queue pair each; those that the driver
/// does not use are out of the kernel's use, too, which spreads flows over the others and brings
/// each where the driver has last sent it (NET-CTRL-MQ-02, NET-CTRL-MQ-03, NET-CTRL-MQ-06). The
/// kernel asks nobody whether there are buffers, and what waits in a queue without is lost: so one
/// comes into use when its driver has posted the first, or sent a frame.
#[derive(Debug)]
pub struct Tap {
    queues: Vec<Arc<Wire>>,
    label: String,
    mtu: u16,
    offloads: Offloads,
}

/// An open queue of the kernel.
#[derive(Debug)]
struct Wire {
    tap: tun::Tap,
    /// The kernel does not use it. Changes only by the hand that has the pair.
    detached: AtomicBool,
    /// It may, as soon as the driver does. Changes only while no worker has the pair.
    welcome: AtomicBool,
}

impl Wire {
    fn set_attached(&self, attached: bool) -> io::Result<()> {
        if self.is_detached() == attached {
            self.tap.set_attached(attached)?;
            self.detached.store(!attached, Ordering::Relaxed);
        }
        Ok(())
    }

    fn is_detached(&self) -> bool {
        self.detached.load(Ordering::Relaxed)
    }

    fn is_welcome(&self) -> bool {
        self.welcome.load(Ordering::Relaxed)
    }

    /// The driver uses it.
    #[cold]
    fn join(&self) -> Result<(), EndpointFault> {
        let joined = self.set_attached(true);
        joined.map_err(|error| EndpointFault::Io(error.raw_os_error().unwrap_or(0)))
    }
}

fn error(kind: OpenKind, reason: String) -> OpenError {
    OpenError { kind, reason }
}

impl Tap {
    /// Attaches to the existing tap `name`, with a queue for each of `pairs`.
    ///
    /// # Errors
    /// When there is none, when it is taken or has one queue only, or when this user may not.
    pub fn open(name: &str, pairs: u16) -> Result<Self, OpenError> {
        let several = if pairs > 1 { "multi_queue " } else { "" };
        if name.len() > tun::NAME_MAX {
            let reason =
                format!("tap {name}: the name of a tap has {} bytes at most", tun::NAME_MAX);
            return Err(error(OpenKind::Config, reason));
        }
        if let Err(cause) = tun::mtu(name) {
            return Err(error(
                OpenKind::Config,
                format!(
                    "tap {name}: {cause}; make it with: sudo ip tuntap add dev {name} mode tap \
                     {several}vnet_hdr user \"$USER\" && sudo ip link set {name} up"
                ),
            ));
        }
        let taps: Result<_, _> = if pairs > 1 {
            (0..pairs).map(|_| tun::Tap::open_queue(name)).collect()
        } else {
            tun::Tap::open(name).map(|tap| vec![tap])
        };
        let taps = taps.map_err(|cause| match cause.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::INVAL) if pairs > 1 => error(
                OpenKind::Config,
                format!(
                    "tap {name} is not made for {pairs} queues; make it anew with: sudo ip tuntap \
                     add dev {name} mode tap multi_queue vnet_hdr user \"$USER\""
                ),
            ),
            _ => Self::explain(name, &cause),
        })?;
        Self::from_taps(taps, format!("tap:{name}"))
    }

    /// Takes over an open tap queue, given as descriptor `number`.
    ///
    /// # Errors
    /// When it is no tap.
    pub fn adopt(fd: OwnedFd, number: i32) -> Result<Self, OpenError> {
        let tap = tun::Tap::adopt(fd).map_err(|cause| {
            error(OpenKind::Config, format!("descriptor {number} is no usable tap: {cause}"))
        })?;
        Self::from_taps(vec![tap], format!("tap-fd:{number}"))
    }

    fn explain(name: &str, cause: &io::Error) -> OpenError {
        let errno = cause.raw_os_error().map(Errno::from_raw_os_error);
        match (cause.kind(), errno) {
            (ErrorKind::PermissionDenied, _) => error(
                OpenKind::Privilege,
                format!(
                    "tap {name}: {cause}; give it to this user with: sudo ip tuntap add dev \
                     {name} mode tap user \"$USER\" vnet_hdr, or run with CAP_NET_ADMIN"
                ),
            ),
            (ErrorKind::NotFound, _) => error(
                OpenKind::Privilege,
                format!("tap {name}: /dev/net/tun: {cause}; load it with: modprobe tun"),
            ),
            (_, Some(Errno::BUSY)) => error(
                OpenKind::Host,
                format!("tap {name} is taken by another process; end that one, or use another tap"),
            ),
            (_, Some(Errno::INVAL)) => error(
                OpenKind::Config,
                format!(
                    "{name} is no tap device that can be attached to; see: ip -d link show {name}"
                ),
            ),
            _ => error(OpenKind::Host, format!("tap {name}: {cause}")),
        }
    }

    fn from_taps(taps: Vec<tun::Tap>, label: String) -> Result<Self, OpenError> {
        let fail = |cause: io::Error| error(OpenKind::Host, format!("{label}: {cause}"));
        let tap = taps.first().ok_or_else(|| fail(ErrorKind::NotFound.into()))?;
        let name = tap.name().map_err(fail)?;
        let mtu = tun::mtu(&name).map_err(fail)?;
        // The kernel takes unfinished frames from anyone; whether it hands them over is probed.
        let candidates = [ALL, ALL.difference(Offloads::ECN), Offloads::CSUM];
        let offloads = candidates
            .into_iter()
            .filter(|_| tap.has_vnet_header())
            .find(|wish| tap.set_offloads(tun_offloads(*wish)).is_ok())
            .unwrap_or(Offloads::NONE);
        let wire = |tap| {
            let (detached, welcome) = (AtomicBool::new(false), AtomicBool::new(false));
            Arc::new(Wire { tap, detached, welcome })
        };
        Ok(Self { queues: taps.into_iter().map(wire).collect(), label, mtu, offloads })
    }
}

impl Tap {
    fn has_vnet_header(&self) -> bool {
        self.queues.first().is_some_and(|wire| wire.tap.has_vnet_header())
    }

    /// What the guest agreed to, and no more: the driver before may have agreed to more. So with
    /// its queues; the first is always in use, and others stay so unless the driver is another.
    fn set(&self, settings: &Settings, is_new: bool) -> Result<(), OpenError> {
        let fail =
            |what| move |cause| error(OpenKind::Host, format!("{}: {what}: {cause}", self.label));
        let active = usize::from(settings.active.max(1));
        for (index, wire) in self.queues.iter().enumerate() {
            let welcome = index < active;
            wire.welcome.store(welcome, Ordering::Relaxed);
            let attached = index == 0 || welcome && !is_new && !wire.is_detached();
            wire.set_attached(attached).map_err(fail("changing the queues in use"))?;
        }
        let first = self.queues.first().filter(|wire| wire.tap.has_vnet_header());
        first.map_or(Ok(()), |wire| {
            // It is the device's, not the queue's.
            let set = wire.tap.set_offloads(tun_offloads(settings.receive));
            set.map_err(fail("setting offloads"))
        })
    }
}

fn tun_offloads(wish: Offloads) -> TunOffloads {
    TunOffloads {
        csum: wish.contains(Offloads::CSUM),
        tso4: wish.contains(Offloads::TSO4),
        tso6: wish.contains(Offloads::TSO6),
        ecn: wish.contains(Offloads::ECN),
    }
}

impl Endpoint for Tap {
    fn name(&self) -> String {
        self.label.clone()
    }

    fn capabilities(&self) -> Capabilities {
        let transmit = if self.has_vnet_header() { ALL } else { Offloads::NONE };
        let pairs_max = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        Capabilities { transmit, receive: self.offloads, pairs_max, mtu: self.mtu }
    }

    fn open(&mut self, settings: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        self.set(settings, true)?;
        let cuts = self.offloads.intersection(TSO).is_empty();
        let queues = self.queues.iter().map(|wire| {
            let queue = TapQueue::new(Arc::clone(wire), settings, cuts);
            let queue: Box<dyn EndpointQueue> = Box::new(queue);
            queue
        });
        Ok(queues.collect())
    }

    fn adapt(&mut self, settings: &Settings) -> Result<(), OpenError> {
        self.set(settings, false)
    }
}

/// What one look at the tap came to.
enum Read {
    Frame(u32, RxHeader),
    Bad(DropReason),
    Nothing,
}

struct TapQueue {
    wire: Arc<Wire>,
    header_len: usize,
    receive: Offloads,
    /// The longest frame the tap brings.
    longest: u32,
    /// As long as the next one will probably be: the last ones were.
    likely: u32,
    /// Room for one frame and its header, on its way in or out.
    spare: Box<[u8]>,
    /// A frame in the spare room that waits for buffers.
    waiting: Option<(usize, RxHeader)>,
    /// What came in segments and is to be joined; where the kernel cuts all it brings.
    held: Option<Held>,
    /// The tap takes no more until it becomes writable.
    full: bool,
}

impl TapQueue {
    fn new(wire: Arc<Wire>, settings: &Settings, cuts: bool) -> Self {
        let header_len = if wire.tap.has_vnet_header() { HDR_LEN } else { 0 };
        let cut = settings.receive.intersection(TSO).is_empty();
        let longest = if cut {
            u32::from(settings.mtu).saturating_add(LINK_HDR_MAX)
        } else {
            u32::try_from(FRAME_MAX).unwrap_or(u32::MAX)
        };
        let mut queue = Self {
            wire,
            header_len,
            receive: settings.receive,
            longest,
            likely: 0,
            spare: vec![0; FRAME_MAX.saturating_add(HDR_LEN)].into_boxed_slice(),
            waiting: None,
            held: None,
            full: false,
        };
        queue.held = cuts.then(|| Held::new(queue.message_max()));
        queue
    }

    /// The most bytes that a read is to bring: one beyond the longest frame tells a longer one.
    fn message_max(&self) -> usize {
        usize::try_from(self.longest).unwrap_or(0).saturating_add(self.header_len).saturating_add(1)
    }

    /// Writes a frame with its header: a short one in one piece, since copying it costs less than
    /// a call with several.
    #[inline]
    fn write(&mut self, frame: &TxFrame, bytes: &[ReadSpan<'_>]) -> io::Result<usize> {
        let header = frame.request.to_header(0).encode();
        let lead = header.get(..self.header_len).unwrap_or(&[]);
        if frame.len > SHORT || self.waiting.is_some() {
            return writev(self.wire.tap.as_fd(), lead, bytes);
        }
        let (head, room) = self.spare.split_at_mut_checked(lead.len()).unwrap_or_default();
        head.iter_mut().zip(lead).for_each(|(to, byte)| *to = *byte);
        let end = copy_out(bytes, 0, room).saturating_add(lead.len());
        let message = self.spare.get(..end).unwrap_or(&[]);
        Ok(rustix::io::write(self.wire.tap.as_fd(), message)?)
    }

    /// Understands what a read has brought.
    fn judge(
        &mut self,
        head: &[u8; HDR_LEN],
        got: io::Result<usize>,
    ) -> Result<Read, EndpointFault> {
        let len = match got {
            Ok(got) => got.saturating_sub(self.header_len),
            Err(error) => return Self::read_failed(&error),
        };
        let Ok(len) = u32::try_from(len) else { return Ok(Read::Bad(DropReason::TooLong)) };
        if len > self.longest {
            return Ok(Read::Bad(DropReason::TooLong));
        }
        self.likely = len.max(self.likely.saturating_sub(self.likely / 8));
        if self.header_len == 0 {
            return Ok(Read::Frame(len, RxHeader::default()));
        }
        let header = NetHeader::decode(head);
        Ok(match check(&header, len, self.receive) {
            Ok(request) => {
                let validated = header.flags & HDR_F_DATA_VALID != 0;
                let header_len = header.hdr_len;
                let header = RxHeader { request, header_len, validated, ..RxHeader::default() };
                Read::Frame(len, header)
            }
            Err(_) => Read::Bad(DropReason::NotAgreed),
        })
    }

    #[cold]
    fn read_failed(error: &io::Error) -> Result<Read, EndpointFault> {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::AGAIN | Errno::INTR) => Ok(Read::Nothing),
            Some(Errno::BADFD | Errno::NODEV | Errno::NXIO) => Err(EndpointFault::Gone),
            errno => Err(EndpointFault::Io(errno.map_or(0, Errno::raw_os_error))),
        }
    }

    /// Reads a frame: straight into the guest's buffers if it will probably be long and they can
    /// hold any, else by way of the spare room, since copying a short one costs less than a call
    /// with several pieces. False when there is none, or no room for one.
    fn fetch(&mut self, sink: &mut RxSink<'_>) -> Result<bool, EndpointFault> {
        if self.likely > SHORT
            && let Some(window) = sink.window(self.longest)
        {
            let mut head = [0; HDR_LEN];
            let lead = head.get_mut(..self.header_len).unwrap_or(&mut []);
            // One byte beyond the window tells a frame that was too long for it.
            let got = readv(self.wire.tap.as_fd(), lead, window, &mut [0]);
            match self.judge(&head, got)? {
                Read::Frame(len, header) => sink.commit(len, &header),
                Read::Bad(reason) => sink.dropped(reason),
                Read::Nothing => return Ok(false),
            }
            return Ok(true);
        }
        if !sink.has_room(1) {
            return Ok(false);
        }
        let got = rustix::io::read(self.wire.tap.as_fd(), &mut self.spare[..]);
        let head = self.spare.first_chunk().copied().unwrap_or_default();
        match self.judge(&head, got.map_err(io::Error::from))? {
            Read::Frame(len, header) => {
                self.waiting = usize::try_from(len).ok().map(|len| (len, header));
            }
            Read::Bad(reason) => sink.dropped(reason),
            Read::Nothing => return Ok(false),
        }
        Ok(true)
    }

    /// Reads what there is, a batch at a time, and delivers it joined.
    #[cold]
    fn receive_joined(
        &mut self,
        held: &mut Held,
        sink: &mut RxSink<'_>,
    ) -> Result<(), EndpointFault> {
        let mut is_dry = false;
        while held.deliver(sink) && !is_dry && sink.has_room(1) {
            is_dry = self.gather(held, sink)?;
        }
        Ok(())
    }

    /// Reads as many frames as can be held; whether those were all there are.
    fn gather(&mut self, held: &mut Held, sink: &mut RxSink<'_>) -> Result<bool, EndpointFault> {
        for _ in 0..BATCH {
            let Some(room) = held.free(self.message_max()) else { break };
            let got = rustix::io::read(self.wire.tap.as_fd(), &mut *room);
            let head = room.first_chunk().copied().unwrap_or_default();
            match self.judge(&head, got.map_err(io::Error::from))? {
                Read::Frame(len, header) => held.hold(self.header_len, len, header),
                Read::Bad(reason) => sink.dropped(reason),
                Read::Nothing => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Delivers the frame that waits; false when the guest has no room for it yet.
    fn deliver_waiting(&mut self, sink: &mut RxSink<'_>) -> bool {
        let Some((len, header)) = self.waiting else { return true };
        let behind = self.spare.get(self.header_len..).unwrap_or(&[]);
        match sink.push(&header, behind.get(..len).unwrap_or(&[])) {
            Ok(()) | Err(Refused::Dropped) => {
                self.waiting = None;
                true
            }
            Err(Refused::Full) => false,
        }
    }
}

impl EndpointQueue for TapQueue {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        self.full = false;
        if self.wire.is_detached() {
            if !self.wire.is_welcome() {
                frames.dropped(frames.frames().len(), DropReason::QueueDisabled);
                return Ok(());
            }
            self.wire.join()?;
        }
        while let Some(frame) = frames.frames().first() {
            let Err(error) = self.write(frame, frames.bytes(frame)) else {
                frames.sent(1);
                continue;
            };
            match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::AGAIN) => {
                    self.full = true;
                    return Ok(());
                }
                Some(Errno::INTR) => {}
                Some(Errno::BADFD | Errno::NODEV) => return Err(EndpointFault::Gone),
                Some(Errno::NOBUFS | Errno::NOMEM) => frames.dropped(1, DropReason::HostFull),
                _ => frames.dropped(1, DropReason::HostRefused),
            }
        }
        Ok(())
    }

    fn receive(&mut self, sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        if self.wire.is_detached() && self.wire.is_welcome() && sink.has_room(1) {
            self.wire.join()?;
        }
        let joins =
            |held: &mut Held| !held.is_empty() || !sink.takes().intersection(TSO).is_empty();
        if self.waiting.is_none()
            && !self.wire.is_detached()
            && let Some(mut held) = self.held.take_if(joins)
        {
            let received = self.receive_joined(&mut held, sink);
            self.held = Some(held);
            return received;
        }
        while self.deliver_waiting(sink) && !self.wire.is_detached() && self.fetch(sink)? {}
        Ok(())
    }

    fn watch(&self) -> Watch {
        Watch { readable: !self.wire.is_detached(), writable: self.full, deadline: None }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        // One that is detached is always in error.
        (!self.wire.is_detached()).then(|| self.wire.tap.as_fd())
    }
}

#[cfg(test)]
#[path = "../tests/namespace/mod.rs"]
mod namespace;

#[cfg(test)]
mod tests {
    use super::namespace::{in_namespace, ip};
    use super::*;
    use std::collections::BTreeSet;
    use std::net::UdpSocket;

    /// The queues on which datagrams of many flows arrive.
    fn arrived(tap: &Tap, socket: &UdpSocket) -> BTreeSet<usize> {
        for port in 1000..1064 {
            socket.send_to(b"x", ("10.9.9.2", port)).unwrap();
        }
        let (mut found, mut room) = (BTreeSet::new(), [0; 2048]);
        for (index, wire) in tap.queues.iter().enumerate() {
            while let Ok(len) = rustix::io::read(wire.tap.as_fd(), &mut room) {
                // Ethernet, IPv4, UDP and a byte: no other frame is counted.
                if len == HDR_LEN + 14 + 20 + 8 + 1 {
                    found.insert(index);
                }
            }
        }
        found
    }

    #[test]
    fn flows_arrive_on_the_queues_that_are_in_use_and_on_no_other() {
        if !in_namespace("tap::tests::flows_arrive_on_the_queues_that_are_in_use_and_on_no_other") {
            return;
        }
        ip("tuntap add dev several mode tap multi_queue vnet_hdr");
        ip("addr add 10.9.9.1/24 dev several");
        ip("link set several up");
        ip("neigh add 10.9.9.2 lladdr 02:00:00:00:00:02 dev several");
        let mut tap = Tap::open("several", 2).unwrap();
        assert_eq!(tap.capabilities().pairs_max, 2);
        let socket = UdpSocket::bind("10.9.9.1:0").unwrap();
        let mut settings = Settings {
            transmit: Offloads::NONE,
            receive: Offloads::NONE,
            pairs: 2,
            active: 2,
            spreads: false,
            mtu: 1500,
        };
        let queues = tap.open(&settings).unwrap();
        let watched = |index: usize| (queues[index].fd().is_some(), queues[index].watch().readable);
        // The kernel sees a moment after its opening that the tap has a carrier.
        let mut tries = (0..500).map(|_| std::thread::sleep(std::time::Duration::from_millis(10)));
        while arrived(&tap, &socket) != BTreeSet::from([0]) {
            tries.next().expect("flows arrive, on the first queue while the driver uses no other");
        }
        tap.queues[1].join().unwrap();
        assert_eq!(arrived(&tap, &socket), BTreeSet::from([0, 1]));
        for _ in 0..2 {
            settings.active = 1;
            tap.adapt(&settings).unwrap();
            assert_eq!(arrived(&tap, &socket), BTreeSet::from([0]));
            assert_eq!((watched(0), watched(1)), ((true, true), (false, false)));
        }
        settings.active = 2;
        for joined in [false, true] {
            tap.adapt(&settings).unwrap();
            let used = if joined { BTreeSet::from([0, 1]) } else { BTreeSet::from([0]) };
            assert_eq!(arrived(&tap, &socket), used);
            assert_eq!(watched(1), (joined, joined));
            tap.queues[1].join().unwrap();
        }
        drop(queues);
        let queues = tap.open(&settings).unwrap();
        assert_eq!(arrived(&tap, &socket), BTreeSet::from([0]), "for another driver");
        drop(queues);
        ip("tuntap add dev single mode tap vnet_hdr");
        let refused = Tap::open("single", 2).unwrap_err();
        assert_eq!(refused.kind, OpenKind::Config);
        assert!(refused.reason.contains("add dev single mode tap multi_queue"), "{refused}");
        assert_eq!(Tap::open("single", 1).unwrap().capabilities().pairs_max, 1);
    }
}
