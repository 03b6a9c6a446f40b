//! A machine at work: a guest and a network with threads of their own, and a NIC that the test may
//! put in another's place.
#![allow(dead_code, reason = "each test uses its part")]

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vionet::transport::{Lines, MmioNic, PciNic, Wiring};
use vionet::{Device, NicConfig};
use vionet_raw::AddressSpace;

use crate::board::front::switch_on;
use crate::board::{Front, MAC, Panel, until};
use crate::guest::Guest;
use crate::wire::{Network, Wire};

/// What a NIC is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bus {
    Pci,
    Mmio,
}

pub(crate) fn nic(
    bus: Bus,
    config: NicConfig,
    near: OwnedFd,
    memory: &Arc<AddressSpace>,
) -> Arc<dyn Front> {
    let device = Device::new(config, Box::new(Wire(near))).unwrap();
    let lines: Arc<dyn Lines> = Arc::<Panel>::default();
    let wiring = Wiring::new(Arc::clone(memory), lines);
    match bus {
        Bus::Pci => {
            let nic = PciNic::new(device, &wiring).unwrap();
            switch_on(&nic);
            Arc::new(nic)
        }
        Bus::Mmio => Arc::new(MmioNic::new(device, &wiring).unwrap()),
    }
}

pub(crate) const CONFIG: NicConfig =
    NicConfig { mac: MAC, mtu: 1500, pairs: 1, speed: None, mac_may_change: true, standby: false };

/// A guest and a network that are at work all the time, in threads of their own.
pub(crate) struct World {
    pub(crate) guest: Mutex<Guest>,
    pub(crate) network: Mutex<Network>,
    pub(crate) nic: Mutex<Option<Arc<dyn Front>>>,
    /// Where kicks go while the NIC is in another process.
    pub(crate) remote: Mutex<Option<UnixStream>>,
    /// No more frames are sent.
    pub(crate) quiet: AtomicBool,
    /// The network sends nothing for now.
    pub(crate) hushed: AtomicBool,
    pub(crate) over: AtomicBool,
}

impl World {
    pub(crate) fn new(guest: Guest, network: Network, nic: Arc<dyn Front>) -> Self {
        Self {
            guest: Mutex::new(guest),
            network: Mutex::new(network),
            nic: Mutex::new(Some(nic)),
            remote: Mutex::new(None),
            quiet: AtomicBool::new(false),
            hushed: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    /// Does something while guest and network are at work.
    pub(crate) fn during<R>(&self, act: impl FnOnce() -> R) -> R {
        std::thread::scope(|scope| {
            scope.spawn(|| self.work());
            // The others end, too, if it fails.
            let over = Over(&self.over);
            let result = act();
            drop(over);
            result
        })
    }

    pub(crate) fn nic(&self) -> Arc<dyn Front> {
        self.nic.lock().unwrap().clone().unwrap()
    }

    fn work(&self) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !self.over.load(Ordering::SeqCst) {
                    // Held meanwhile: a kick for a NIC that has just been replaced would be lost.
                    let nic = self.nic.lock().unwrap();
                    // What took longer than an access may wait goes on here.
                    nic.iter().for_each(|nic| assert_eq!(nic.tend(), None));
                    let kick = |queue| {
                        nic.iter().for_each(|nic| nic.kick(queue));
                        if let Some(remote) = &mut *self.remote.lock().unwrap() {
                            remote.write_all(&[queue as u8]).unwrap();
                        }
                    };
                    let sends = !self.quiet.load(Ordering::SeqCst);
                    self.guest.lock().unwrap().work(sends, kick);
                    drop(nic);
                    std::thread::yield_now();
                }
            });
            while !self.over.load(Ordering::SeqCst) {
                let silent = [&self.quiet, &self.hushed].map(|flag| flag.load(Ordering::SeqCst));
                let most = if silent == [false; 2] { 16 } else { 0 };
                self.network.lock().unwrap().work(most);
                std::thread::yield_now();
            }
        });
    }

    fn counts(&self) -> (u64, u64) {
        (self.guest.lock().unwrap().got.count, self.network.lock().unwrap().got.count)
    }

    /// Lets frames pass in both directions.
    pub(crate) fn let_pass(&self, frames: u64) {
        let before = self.counts();
        until("frames pass both ways", || {
            let now = self.counts();
            now.0 >= before.0 + frames && now.1 >= before.1 + frames
        });
    }

    /// The network sends nothing for now, and all that it has sent has arrived.
    pub(crate) fn hush(&self) {
        self.hushed.store(true, Ordering::SeqCst);
        until("all frames arrive", || {
            let (guest, network) = (self.guest.lock().unwrap(), self.network.lock().unwrap());
            guest.got.count == network.sent
        });
    }

    /// Sends no more, and sees that everything has arrived.
    pub(crate) fn settle(&self) {
        self.quiet.store(true, Ordering::SeqCst);
        until("all frames arrive", || {
            let (guest, network) = (self.guest.lock().unwrap(), self.network.lock().unwrap());
            guest.is_done() && guest.got.count == network.sent && network.got.count == guest.sent
        });
    }
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
