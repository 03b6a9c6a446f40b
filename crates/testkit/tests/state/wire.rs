//! The network of a test: a pair of sockets that keep what nobody has read yet, whoever comes and
//! goes at the NIC's end. Frames are numbered, and each end sees them all, once and in order.
#![allow(dead_code, reason = "each test uses its part")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use vionet::endpoint::{
    Capabilities, Endpoint, EndpointFault, EndpointQueue, OpenError, Refused, RxHeader, RxSink,
    Settings, TxBatch, Watch,
};
use vionet_frame::header::Offloads;
use vionet_raw::copy_out;

/// Where a frame's number is, behind its Ethernet header.
const NUMBER: usize = 14;
const LONGEST: usize = 400;

/// The frame of a number: its length and what fills it follow from that.
pub(crate) fn frame(number: u64) -> Vec<u8> {
    let len = 60 + (number.wrapping_mul(0x9e37_79b9) >> 7) as usize % (LONGEST - 60);
    let mut frame = vec![number as u8; len];
    frame[..12].fill(0xff);
    frame[12..NUMBER].copy_from_slice(&[0x88, 0xb5]);
    frame[NUMBER..NUMBER + 8].copy_from_slice(&number.to_le_bytes());
    frame
}

/// Looks at frames as they come.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) count: u64,
}

impl Tally {
    /// The next one, and no other.
    pub(crate) fn see(&mut self, bytes: &[u8]) {
        assert_eq!(bytes, frame(self.count), "number {}", self.count);
        self.count += 1;
    }
}

/// The far end.
pub(crate) struct Network {
    pub(crate) socket: OwnedFd,
    pub(crate) sent: u64,
    pub(crate) got: Tally,
}

impl Network {
    /// A network, and the socket of the NIC's end.
    pub(crate) fn new() -> (Self, OwnedFd) {
        let flags = SocketFlags::NONBLOCK;
        let (far, near) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (Self { socket: far, sent: 0, got: Tally::default() }, near)
    }

    /// Takes what has come, and sends up to `most` frames more.
    pub(crate) fn work(&mut self, most: u64) {
        let mut room = [0; 2048];
        while let Ok((len @ 1.., _)) = recv(&self.socket, &mut room, RecvFlags::DONTWAIT) {
            self.got.see(&room[..len]);
        }
        for _ in 0..most {
            if send(&self.socket, &frame(self.sent), SendFlags::DONTWAIT).is_err() {
                break;
            }
            self.sent += 1;
        }
    }
}

impl Network {
    /// Takes the place of another: it goes on with these numbers.
    pub(crate) fn after(sent: u64, got: u64) -> (Self, OwnedFd) {
        let (network, near) = Self::new();
        (Self { sent, got: Tally { count: got }, ..network }, near)
    }
}

/// The near end.
pub(crate) struct Wire(pub(crate) OwnedFd);

struct WireQueue(OwnedFd, bool);

impl Endpoint for Wire {
    fn name(&self) -> String {
        "wire".into()
    }
    fn capabilities(&self) -> Capabilities {
        let mtu = 1500;
        Capabilities { transmit: Offloads::NONE, receive: Offloads::NONE, pairs_max: 4, mtu }
    }
    fn open(&mut self, settings: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        let queue = |_| -> Box<dyn EndpointQueue> {
            Box::new(WireQueue(self.0.try_clone().unwrap(), false))
        };
        Ok((0..settings.pairs).map(queue).collect())
    }
    fn adapt(&mut self, _: &Settings) -> Result<(), OpenError> {
        Ok(())
    }
}

impl EndpointQueue for WireQueue {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        self.1 = false;
        while let Some(frame) = frames.frames().first() {
            let mut bytes = vec![0; frame.len as usize];
            copy_out(frames.bytes(frame), 0, &mut bytes);
            match send(&self.0, &bytes, SendFlags::DONTWAIT) {
                Ok(_) => frames.sent(1),
                Err(Errno::AGAIN) => {
                    self.1 = true;
                    break;
                }
                Err(errno) => return Err(EndpointFault::Io(errno.raw_os_error())),
            }
        }
        Ok(())
    }
    fn receive(&mut self, sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        let mut room = [0; 2048];
        // Taken from the socket only once the guest has it.
        let peek = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        while let Ok((len @ 1.., _)) = recv(&self.0, &mut room, peek) {
            if sink.push(&RxHeader::PLAIN, &room[..len]) == Err(Refused::Full) {
                break;
            }
            recv(&self.0, &mut room, RecvFlags::DONTWAIT).unwrap();
        }
        Ok(())
    }
    fn watch(&self) -> Watch {
        Watch { readable: true, writable: self.1, deadline: None }
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}
