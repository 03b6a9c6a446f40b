//! Endpoints to measure with: a sink, a mirror, a generator.

use std::os::fd::BorrowedFd;

use vionet::endpoint::{
    Capabilities, Endpoint, EndpointFault, EndpointQueue, OpenError, RxHeader, RxSink, Settings,
    TxBatch, Watch,
};
use vionet_frame::header::Offloads;
use vionet_raw::copy_out;
use vionet_spec::net::{ETH_HDR_LEN, FRAME_MAX};

const MTU: u16 = 65_535;

fn all() -> Capabilities {
    let all = Offloads::ALL.difference(Offloads::UFO | Offloads::USO);
    Capabilities { transmit: all, receive: all, pairs_max: vionet::PAIRS_MAX, mtu: MTU }
}

/// A queue of this kind for each pair.
fn each<Q: EndpointQueue + 'static>(
    settings: &Settings,
    queue: impl Fn() -> Q,
) -> Vec<Box<dyn EndpointQueue>> {
    (0..settings.pairs).map(|_| -> Box<dyn EndpointQueue> { Box::new(queue()) }).collect()
}

/// Takes every frame and brings none.
#[derive(Debug, Default)]
pub struct Null;

impl Endpoint for Null {
    fn name(&self) -> String {
        "null".into()
    }

    fn capabilities(&self) -> Capabilities {
        all()
    }

    fn open(&mut self, settings: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        Ok(each(settings, || NullQueue))
    }

    fn adapt(&mut self, _settings: &Settings) -> Result<(), OpenError> {
        Ok(())
    }
}

struct NullQueue;

impl EndpointQueue for NullQueue {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        frames.sent(frames.frames().len());
        Ok(())
    }

    fn receive(&mut self, _sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        Ok(())
    }

    fn watch(&self) -> Watch {
        Watch::default()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Sends every frame back to the guest, as far as it has room.
#[derive(Debug, Default)]
pub struct Echo;

impl Endpoint for Echo {
    fn name(&self) -> String {
        "echo".into()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { transmit: Offloads::NONE, receive: Offloads::NONE, ..all() }
    }

    fn open(&mut self, settings: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        Ok(each(settings, || EchoQueue {
            frames: vec![0; FRAME_MAX.saturating_mul(4)].into_boxed_slice(),
            lengths: Vec::with_capacity(ECHOES),
            used: 0,
            full: false,
        }))
    }

    fn adapt(&mut self, _settings: &Settings) -> Result<(), OpenError> {
        Ok(())
    }
}

/// The most frames on their way back.
const ECHOES: usize = 256;

struct EchoQueue {
    /// The frames on their way back, one behind the other.
    frames: Box<[u8]>,
    lengths: Vec<usize>,
    used: usize,
    /// No room for the next frame until the guest takes some.
    full: bool,
}

impl EndpointQueue for EchoQueue {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        let mut room = self.frames.get_mut(self.used..).unwrap_or_default();
        let (mut done, mut used) = (0_usize, self.used);
        let most = ECHOES.saturating_sub(self.lengths.len());
        for frame in frames.frames().iter().take(most) {
            let len = usize::try_from(frame.len).unwrap_or(usize::MAX);
            let Some(place) = room.split_off_mut(..len) else { break };
            copy_out(frames.bytes(frame), 0, place);
            self.lengths.push(len);
            used = used.wrapping_add(len);
            done = done.wrapping_add(1);
        }
        self.used = used;
        self.full = done < frames.frames().len();
        frames.sent(done);
        Ok(())
    }

    fn receive(&mut self, sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        let mut rest = self.frames.get(..self.used).unwrap_or(&[]);
        let frames = self.lengths.iter().map_while(|len| rest.split_off(..*len));
        let done = sink.push_all(&RxHeader::PLAIN, frames);
        let sent: usize = self.lengths.iter().take(done).sum();
        self.lengths.drain(..done);
        self.frames.copy_within(sent..self.used, 0);
        self.used = self.used.saturating_sub(sent);
        self.full &= done == 0;
        Ok(())
    }

    fn watch(&self) -> Watch {
        Watch { writable: self.full, ..Watch::default() }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Fills the guest's buffers with frames of one length as fast as it posts them.
#[derive(Debug)]
pub struct Flood {
    frame: Box<[u8]>,
}

/// EtherType of frames for experiments (IEEE 802 local experimental 1).
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

impl Flood {
    /// A generator of broadcast frames of `len` bytes; `None` for less than an Ethernet header or
    /// more than the longest frame.
    #[must_use]
    pub fn new(len: usize) -> Option<Self> {
        if !(ETH_HDR_LEN..=FRAME_MAX).contains(&len) {
            return None;
        }
        let addresses = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1];
        let header = addresses.into_iter().chain(EXPERIMENT);
        let frame: Vec<u8> = header.chain(std::iter::repeat(0)).take(len).collect();
        Some(Self { frame: frame.into_boxed_slice() })
    }
}

impl Endpoint for Flood {
    fn name(&self) -> String {
        format!("flood:{}", self.frame.len())
    }

    fn capabilities(&self) -> Capabilities {
        all()
    }

    fn open(&mut self, settings: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        Ok(each(settings, || FloodQueue { frame: self.frame.clone() }))
    }

    fn adapt(&mut self, _settings: &Settings) -> Result<(), OpenError> {
        Ok(())
    }
}

struct FloodQueue {
    frame: Box<[u8]>,
}

impl EndpointQueue for FloodQueue {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        frames.sent(frames.frames().len());
        Ok(())
    }

    fn receive(&mut self, sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        // Not together: what never runs out stops at the first that the guest cannot take.
        while sink.push(&RxHeader::PLAIN, &self.frame) == Ok(()) {}
        Ok(())
    }

    fn watch(&self) -> Watch {
        Watch::default()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
