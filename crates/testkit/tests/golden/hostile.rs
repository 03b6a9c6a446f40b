//! The body of a state as a stranger makes it: it is refused, or what it has become can be saved
//! and restored again, and the device works on and can be reset.
#![allow(dead_code, reason = "each user has its part")]

use std::sync::Arc;

use vionet::transport::{Lines, Message, MmioNic, PciNic, Wiring};
use vionet::{Device, Hands, Instant, NicConfig, Op, State, Workers};
use vionet_endpoint::Echo;
use vionet_testkit::GuestRam;

struct Nowhere;

impl Lines for Nowhere {
    fn level(&self, _: bool) {}
    fn message(&self, _: u16, _: Message) {}
}

/// A state around a body, by its magic, version, length and sum.
pub(crate) fn enveloped(body: &[u8]) -> Vec<u8> {
    let sum = body.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            sum >> 1 ^ 0xedb8_8320 & (sum & 1).wrapping_neg()
        })
    });
    let head = [&b"VIONET\x1aS"[..], &1_u16.to_le_bytes(), &(body.len() as u32).to_le_bytes()];
    [&head.concat()[..], &(!sum).to_le_bytes(), body].concat()
}

/// The body of a state.
pub(crate) fn body(state: &[u8]) -> &[u8] {
    &state[18..]
}

/// Where the rings of the golden states lie.
pub(crate) fn ram() -> GuestRam {
    GuestRam::new(&[(0x1_0000, 0x1_0000), (0x10_0000, 0x1_0000)])
}

pub(crate) fn device(config: NicConfig, hands: &Hands) -> Device {
    Device::with_workers(config, Box::new(Echo), &Workers::by_hand(hands)).unwrap()
}

pub(crate) fn wiring(ram: &GuestRam, queue_size: Option<u16>) -> Wiring {
    let wiring = Wiring::new(Arc::clone(ram.space()), Arc::new(Nowhere));
    Wiring { queue_size: queue_size.unwrap_or(wiring.queue_size), ..wiring }
}

macro_rules! attempt_on {
    ($nic:ident, $state:expr) => {
        let (state, ram, hands): (&State, GuestRam, Hands) = ($state, ram(), Hands::new().unwrap());
        let device = device(state.config(), &hands);
        let nic = $nic::new(device, &wiring(&ram, state.queue_size())).unwrap();
        if nic.restore(state).is_ok() {
            let saved = nic.save().expect("it is paused");
            assert_eq!(State::decode(&saved.encode()).as_ref(), Ok(&saved));
            nic.resume().unwrap();
            for place in 0..hands.places() {
                (0..4).for_each(|_| _ = hands.service(place, Instant::from_nanos(1)));
            }
            while nic.tend().is_some() {}
            nic.pause().unwrap();
            nic.save().expect("it is paused");
            nic.reset().unwrap();
            nic.restore(&saved).expect("what was saved is a state");
            assert!(nic.save() == Ok(saved), "and the same one");
        }
    };
}

/// Tries a body on every device that may take it.
pub(crate) fn attempt(body: &[u8]) {
    let Ok(state) = State::decode(&enveloped(body)) else { return };
    if state.config().pairs > 4 {
        return;
    }
    attempt_on!(PciNic, &state);
    attempt_on!(MmioNic, &state);
    let hands = Hands::new().unwrap();
    let mut device = device(state.config(), &hands);
    device.apply(Op::Memory(Arc::clone(ram().space()))).unwrap();
    if device.restore(&state).is_ok() {
        let saved = device.save().expect("no queue runs");
        for (index, setup, cursor) in state.queues() {
            let cursor = cursor.unwrap_or_default();
            // One may be there that the features have no use for.
            let (Ok(()) | Err(_)) = device.apply(Op::StartQueue { index, setup, cursor });
        }
        device.apply(Op::Reset).unwrap();
        device.apply(Op::Memory(Arc::clone(ram().space()))).unwrap();
        device.restore(&saved).expect("what was saved is a state");
    }
}
