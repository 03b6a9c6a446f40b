//! Numbers and layouts of VIRTIO 1.4 that a network device needs. No behaviour lives here.
//!
//! One file per chapter: [`feature`] (§5.1.3, §6), [`ring`] (§2.7, §2.8), [`net`] and [`hash`]
//! (§5.1.9), [`control`] (§5.1.9.5), [`status`] (§2.1), [`pci`] (§4.1) and [`mmio`] (§4.2). Frames,
//! rings, messages and tests all take their constants from here.
#![no_std]
#![forbid(unsafe_code)]

pub mod control;
pub mod feature;
pub mod hash;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod ring;
pub mod status;
