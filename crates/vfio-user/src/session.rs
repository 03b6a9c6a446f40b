//! A client's session: each message to its effect, each command to its one reply.
//!
//! Messages are handled strictly in order, each one to its end before it is answered: so when the
//! reply to an unmapping is sent, that memory is not touched any more.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use vionet::transport::PciNic;
use vionet_socket::{Patience, descriptor};

use crate::capabilities;
use crate::channel::{Channel, Incoming};
use crate::crier::Crier;
use crate::dma::Table;
use crate::event::{Event, ProtocolError, Refusal};
use crate::function::{Function, no_memory};
use crate::message::{
    Action, Command, DATA_MAX, DmaRegion, FEATURE_LEN, Header, INFO_LEN, IrqSet, Message, Place,
    REGION_INFO_LEN, Request, Selection, Unmap, writes,
};
use crate::migration::Migration;
use crate::reply::{answer, refusal, words};
use crate::server::Limits;

pub(crate) type Events<'e> = &'e mut dyn FnMut(Event);

/// The most messages handled before the server looks around again: a client that never pauses
/// must not keep it from stopping.
const TURN: usize = 64;
/// How long messages are handled before it does so: one of them may have waited for a worker.
const TURN_TIME: Duration = Duration::from_millis(100);
/// How many refusals are told of one client: the others are its own affair.
const TOLD_MAX: u32 = 16;

const VERSION_MAJOR: u16 = 0;
const VERSION_MINOR: u16 = 1;

const DEVICE_RESETS: u32 = 1;
const DEVICE_IS_PCI: u32 = 1 << 1;

/// Regions of a PCI device: six of its own, ROM, configuration, VGA.
const REGIONS: u32 = 9;
const REGION_BAR: u32 = 0;
const REGION_CONFIG: u32 = 7;
const REGION_READABLE: u32 = 1;
const REGION_WRITEABLE: u32 = 1 << 1;
/// Bytes of the configuration space of a function of PCI Express.
const CONFIG_LEN: u64 = 4096;

/// Interrupts of a PCI device: INTx, MSI, MSI-X. There is no AER, and nobody takes it back.
const IRQS: u32 = 3;
const IRQ_INTX: u32 = 0;
const IRQ_MSIX: u32 = 2;
const IRQ_HAS_EVENTFD: u32 = 1;
const IRQ_CAN_MASK: u32 = 1 << 1;
const IRQ_MASKS_ITSELF: u32 = 1 << 2;

/// How a session stands after reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Open,
    Closed,
}

/// One client's connection.
pub(crate) struct Session<'f> {
    function: &'f Function,
    channel: Channel,
    patience: Patience,
    dma: Table,
    migration: Migration,
    /// Watches the eventfd by which the client unmasks INTx; never reads it, for that could wait.
    unmask: Option<OwnedFd>,
    /// Signals the client's eventfds.
    crier: Crier,
    has_version: bool,
    /// Whether it has sent a message yet.
    spoken: bool,
    told: u32,
}

type Handled = Result<Vec<u8>, Refusal>;

impl<'f> Session<'f> {
    /// A session with a device that is as after power-on.
    pub(crate) fn new(socket: OwnedFd, function: &'f Function, limits: Limits) -> io::Result<Self> {
        Ok(Self {
            function,
            channel: Channel::new(socket),
            patience: Patience::new(limits.half_message),
            dma: Table::new(limits.mapped_bytes),
            migration: Migration::new(),
            unmask: None,
            crier: function.irqs().crier()?,
            has_version: false,
            spoken: false,
            told: 0,
        })
    }

    /// Handles messages that have come, up to a bounded number, and none after a long one.
    pub(crate) fn read(&mut self, events: Events<'_>) -> Result<State, ProtocolError> {
        let start = clock();
        for _ in 0..TURN {
            match self.channel.read()? {
                Incoming::Message(message) => self.handle(message, events)?,
                Incoming::Later => break,
                Incoming::Closed => return Ok(State::Closed),
            }
            if start.elapsed() > TURN_TIME {
                break;
            }
        }
        self.patience.watch(self.channel.half_said()).map_err(ProtocolError::Socket)?;
        Ok(State::Open)
    }

    /// Readable when a message has been half said for too long, unless its rest is there, too.
    pub(crate) fn stalled(&self) -> Option<BorrowedFd<'_>> {
        self.patience.fd()
    }

    /// Readable when the client wants INTx unmasked.
    pub(crate) fn unmasking(&self) -> Option<BorrowedFd<'_>> {
        self.unmask.as_ref().map(AsFd::as_fd)
    }

    /// Unmasks INTx, as the client has signalled.
    pub(crate) fn unmask(&self) {
        let Some(watch) = &self.unmask else { return };
        let mut events = Vec::with_capacity(1);
        // Edge by edge: looking at it makes it silent.
        let (Ok(_) | Err(_)) =
            epoll::wait(watch, rustix::buffer::spare_capacity(&mut events), Some(&NOW));
        self.function.irqs().mask_intx(false);
    }

    /// Ends the session: the device is as after power-on, memory and eventfds are let go. Says
    /// whether the other side had sent any message: who only knocks to see whether somebody
    /// listens is no client.
    pub(crate) fn end(self, events: Events<'_>) -> bool {
        let nic = self.function.nic();
        self.function.irqs().let_go();
        // First of all, for a reset may wait for a worker that is with the client's memory.
        drop(self.crier);
        let reset = nic.reset();
        // Also where a worker holds the reset up: the next client gets no memory of this one.
        let emptied = nic.set_memory(no_memory());
        if let Err(error) = reset.and(emptied) {
            events(Event::Restless(error));
        }
        self.spoken
    }

    fn nic(&self) -> &'f PciNic {
        self.function.nic()
    }

    fn handle(&mut self, message: Message, events: Events<'_>) -> Result<(), ProtocolError> {
        self.spoken = true;
        let Message { header, payload, fds } = message;
        events(Event::Message { name: header.name() });
        match self.dispatch(header, &payload, fds)? {
            Ok(reply) => self.reply(header, &answer(header, &reply)),
            Err(why) => {
                let reply = refusal(header, &why);
                let only_asks = header.command().is_some_and(Command::only_asks);
                let is_news = !only_asks && !matches!(why, Refusal::Feature);
                if self.told < TOLD_MAX && is_news {
                    self.told = self.told.saturating_add(1);
                    events(Event::Refused { name: header.name(), why });
                }
                self.reply(header, &reply)
            }
        }
    }

    fn reply(&self, header: Header, bytes: &[u8]) -> Result<(), ProtocolError> {
        if header.no_reply { Ok(()) } else { self.channel.send(bytes) }
    }

    fn dispatch(
        &mut self,
        header: Header,
        payload: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<Handled, ProtocolError> {
        let command = header.command();
        if !self.has_version && command != Some(Command::Version) {
            return Err(ProtocolError::NoVersion(header.name()));
        }
        let Some(command) = command else { return Ok(Err(Refusal::Unknown(header.number))) };
        let request = match Request::decode(command, payload) {
            Ok(request) => request,
            Err(why) => return Ok(Err(why)),
        };
        if let Request::Version { major, minor, data } = request {
            return self.version(major, minor, data);
        }
        Ok(self.serve(request, fds))
    }

    fn version(&mut self, major: u16, minor: u16, data: &[u8]) -> Result<Handled, ProtocolError> {
        if major != VERSION_MAJOR {
            return Err(ProtocolError::Version(major));
        }
        if self.has_version {
            return Ok(Err(Refusal::Version));
        }
        let capabilities = match capabilities::answer(data) {
            Ok(capabilities) => capabilities,
            Err(why) => return Ok(Err(why)),
        };
        self.has_version = true;
        let numbers = [major, minor.min(VERSION_MINOR)].into_iter().flat_map(u16::to_ne_bytes);
        Ok(Ok(numbers.chain(capabilities).collect()))
    }

    fn serve(&mut self, request: Request<'_>, fds: Vec<OwnedFd>) -> Handled {
        match request {
            Request::DmaMap(region) => self.map(region, &fds),
            Request::DmaUnmap(which) => self.unmap(which),
            Request::GetInfo => {
                let flags = DEVICE_RESETS | DEVICE_IS_PCI;
                Ok(words(&[INFO_LEN, flags, REGIONS, IRQS]))
            }
            Request::GetRegionInfo(index) => region_info(index),
            Request::GetIrqInfo(index) => {
                let (flags, count) = self.irq_info(index)?;
                Ok(words(&[INFO_LEN, flags, index, count]))
            }
            Request::SetIrqs(set) => self.set_irqs(set, fds),
            Request::Read(place) => self.read_region(place),
            Request::Write(place, data) => {
                self.write_region(place, data)?;
                Ok(encoded(place))
            }
            Request::WriteMulti(all) => self.write_many(all),
            Request::Reset => self.reset(),
            Request::Feature { flags, data } => self.feature(flags, data),
            Request::MigRead(size) => {
                let data = self.migration.read(size)?;
                Ok(with_size(u32::try_from(data.len()).unwrap_or(u32::MAX), data))
            }
            Request::MigWrite(data) => {
                self.migration.write(data)?;
                Ok(Vec::new())
            }
            Request::Version { .. } | Request::NotServed => Err(Refusal::NotServed),
        }
    }

    fn map(&mut self, region: DmaRegion, fds: &[OwnedFd]) -> Handled {
        let mut table = self.dma.clone();
        let is_other = table.map(region, fds)?;
        self.change_memory(table, is_other)?;
        Ok(Vec::new())
    }

    fn unmap(&mut self, which: Unmap) -> Handled {
        let mut table = self.dma.clone();
        let is_other = table.unmap(which)?;
        self.change_memory(table, is_other)?;
        Ok(which.encoded())
    }

    /// When this succeeds, memory that is not mapped any more is not touched any more; otherwise
    /// everything is mapped as it was.
    fn change_memory(&mut self, table: Table, is_other: bool) -> Result<(), Refusal> {
        if is_other {
            self.nic().try_set_memory(table.space()).map_err(Refusal::Restless)?;
        }
        self.dma = table;
        Ok(())
    }

    fn feature(&mut self, flags: u32, data: &[u8]) -> Handled {
        let data = self.migration.feature(self.function.nic(), flags, data);
        // Another device may have come, which was wired otherwise; or none, after a reset.
        self.restore_vectors();
        Ok(with_size(flags, &data?))
    }

    fn reset(&mut self) -> Handled {
        // Where a worker holds it up it has begun all the same, and is carried out.
        let reset = self.nic().reset();
        self.migration = Migration::new();
        self.restore_vectors();
        reset.map(|()| Vec::new()).map_err(Refusal::Restless)
    }

    /// Masks those of the vectors that have no eventfd, and unmasks the others: what comes
    /// meanwhile for a masked one is pending.
    fn mask_vectors(&self, start: u32, count: u32) {
        for vector in (start..).take(usize::try_from(count).unwrap_or(usize::MAX)) {
            let Ok(number) = u16::try_from(vector) else { return };
            self.nic().mask_vector(number, !self.function.irqs().is_open(vector));
        }
    }

    /// After what may have been a reset of the function, whose eventfds stay where they are, as
    /// over a reset of a device of the host's.
    fn restore_vectors(&self) {
        self.mask_vectors(0, self.nic().vectors().into());
    }

    fn irq_info(&self, index: u32) -> Result<(u32, u32), Refusal> {
        match index {
            IRQ_INTX => Ok((IRQ_HAS_EVENTFD | IRQ_CAN_MASK | IRQ_MASKS_ITSELF, 1)),
            IRQ_MSIX => Ok((IRQ_HAS_EVENTFD, self.nic().vectors().into())),
            _ if index < IRQS => Ok((0, 0)),
            _ => Err(Refusal::Irq),
        }
    }

    fn set_irqs(&mut self, set: IrqSet, fds: Vec<OwnedFd>) -> Handled {
        let (_, count) = self.irq_info(set.index)?;
        let inside = set.start.checked_add(set.count).is_some_and(|end| end <= count);
        let all = set.start == 0 && set.count == 0;
        // None of them at all is all of them, let go (§VFIO_USER_DEVICE_SET_IRQS).
        if all && set.action == Action::Trigger && set.selection == Selection::All {
            self.let_go_of(set.index)?;
            return Ok(Vec::new());
        }
        if !inside || set.count == 0 {
            return Err(Refusal::Irq);
        }
        match set.index {
            IRQ_INTX => self.set_intx(&set, fds)?,
            IRQ_MSIX => self.set_msix(&set, fds)?,
            _ => return Err(Refusal::Irq),
        }
        Ok(Vec::new())
    }

    fn let_go_of(&mut self, index: u32) -> Result<(), Refusal> {
        let irqs = self.function.irqs();
        match index {
            IRQ_INTX => {
                self.unmask = None;
                irqs.set_intx(None);
            }
            IRQ_MSIX => {
                let count = u32::from(self.nic().vectors());
                irqs.set_vectors(0, (0..count).map(|_| None))?;
                self.mask_vectors(0, count);
            }
            _ => {}
        }
        Ok(())
    }

    fn set_intx(&mut self, set: &IrqSet, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        let irqs = self.function.irqs();
        match (set.action, &set.selection) {
            (Action::Trigger, Selection::Eventfds) => {
                irqs.set_intx(one_at_most(fds)?.map(descriptor::to_signal).transpose()?);
            }
            (Action::Unmask, Selection::Eventfds) => {
                self.unmask = one_at_most(fds)?.map(descriptor::watched).transpose()?;
            }
            // Nobody learns of masks but the client, which makes them.
            (Action::Mask, Selection::Eventfds) => return Err(Refusal::Irq),
            (_, Selection::Each(which)) if which.iter().all(|chosen| !chosen) => {}
            (Action::Trigger, Selection::All | Selection::Each(_)) => irqs.trigger_intx(),
            (Action::Mask, Selection::All | Selection::Each(_)) => irqs.mask_intx(true),
            (Action::Unmask, Selection::All | Selection::Each(_)) => irqs.mask_intx(false),
        }
        Ok(())
    }

    fn set_msix(&self, set: &IrqSet, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        let irqs = self.function.irqs();
        let range = (set.start..).take(usize::try_from(set.count).unwrap_or(usize::MAX));
        match (set.action, &set.selection) {
            (Action::Trigger, Selection::Eventfds) => {
                let wanted = usize::try_from(set.count).unwrap_or(usize::MAX);
                if !fds.is_empty() && fds.len() != wanted {
                    return Err(Refusal::Fds { wanted, got: fds.len() });
                }
                let fds: Result<Vec<_>, _> = fds.into_iter().map(descriptor::to_signal).collect();
                let fds = fds?.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
                irqs.set_vectors(set.start, fds.take(wanted))?;
                self.mask_vectors(set.start, set.count);
            }
            (Action::Trigger, Selection::All) => range.for_each(|n| irqs.trigger_vector(n)),
            (Action::Trigger, Selection::Each(which)) => {
                let chosen = range.zip(which).filter(|(_, chosen)| **chosen);
                chosen.for_each(|(vector, _)| irqs.trigger_vector(vector));
            }
            // The client keeps the table that has the masks.
            (Action::Mask | Action::Unmask, _) => return Err(Refusal::Irq),
        }
        Ok(())
    }

    fn read_region(&self, place: Place) -> Handled {
        let count = usize::try_from(place.count).ok().filter(|count| *count <= DATA_MAX);
        let mut data = vec![0; count.ok_or(Refusal::Place)?];
        match inside(place)? {
            Inside::Bar => self.nic().read_bar(PciNic::BAR, place.offset, &mut data),
            Inside::Config(offset) => self.nic().read_config(offset, &mut data),
        }
        let mut reply = encoded(place);
        reply.extend_from_slice(&data);
        Ok(reply)
    }

    fn write_region(&self, place: Place, data: &[u8]) -> Result<(), Refusal> {
        match inside(place)? {
            // What its guest does to the table, the client turns into eventfds.
            Inside::Bar if PciNic::TABLE.contains(&place.offset) => {}
            Inside::Bar => self.nic().write_bar(PciNic::BAR, place.offset, data),
            Inside::Config(offset) => {
                // Where the client's guest has put the region is the client's to know.
                let (Some(_) | None) = self.nic().write_config(offset, data);
                self.restore_vectors();
            }
        }
        Ok(())
    }

    /// As many of the writes as make sense, up to the first that does not.
    fn write_many(&self, all: &[u8]) -> Handled {
        let mut done = 0_u64;
        for one in writes(all) {
            let (place, data) = one?;
            self.write_region(place, data)?;
            done = done.saturating_add(1);
        }
        Ok(done.to_ne_bytes().to_vec())
    }
}

impl AsFd for Session<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

#[allow(clippy::disallowed_methods, reason = "how long the server has not looked around")]
fn clock() -> Instant {
    Instant::now()
}

const NOW: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };

/// Bytes of a region that are there.
enum Inside {
    Bar,
    /// From this offset on.
    Config(u16),
}

fn inside(place: Place) -> Result<Inside, Refusal> {
    let end = place.offset.checked_add(place.count.into()).ok_or(Refusal::Place)?;
    match (place.region, place.count) {
        (REGION_BAR, 1 | 2 | 4 | 8) if end <= PciNic::BAR_LEN => Ok(Inside::Bar),
        (REGION_CONFIG, 1..) if end <= CONFIG_LEN => {
            u16::try_from(place.offset).map(Inside::Config).map_err(|_| Refusal::Place)
        }
        _ => Err(Refusal::Place),
    }
}

fn region_info(index: u32) -> Handled {
    let (flags, size) = match index {
        REGION_BAR => (REGION_READABLE | REGION_WRITEABLE, PciNic::BAR_LEN),
        REGION_CONFIG => (REGION_READABLE | REGION_WRITEABLE, CONFIG_LEN),
        _ if index < REGIONS => (0, 0),
        _ => return Err(Refusal::Place),
    };
    let mut reply = words(&[REGION_INFO_LEN, flags, index, 0]);
    reply.extend([size, 0].into_iter().flat_map(u64::to_ne_bytes));
    Ok(reply)
}

/// Data behind its length with all that is before it, and a word.
fn with_size(word: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap_or(u32::MAX).saturating_add(FEATURE_LEN);
    let mut reply = words(&[len, word]);
    reply.extend_from_slice(data);
    reply
}

fn encoded(place: Place) -> Vec<u8> {
    let words = [place.region, place.count].into_iter().flat_map(u32::to_ne_bytes);
    place.offset.to_ne_bytes().into_iter().chain(words).collect()
}

fn one_at_most(fds: Vec<OwnedFd>) -> Result<Option<OwnedFd>, Refusal> {
    let got = fds.len();
    let mut fds = fds.into_iter();
    match (fds.next(), fds.next()) {
        (fd, None) => Ok(fd),
        (_, Some(_)) => Err(Refusal::Fds { wanted: 1, got }),
    }
}
