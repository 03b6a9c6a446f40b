//! The entry points of the data path, each exported so that the optimiser must keep it.
//!
//! A new step of the data path gets a line here: take by reference, hand back a number.
#![allow(improper_ctypes_definitions, reason = "nobody calls these; they only have to link")]

use vionet_frame::checksum::{self, Sum};
use vionet_frame::header::{self, NetHeader, Offloads};
use vionet_frame::parse;

/// A transmit header from the guest: decoded, judged, written again for the host.
#[unsafe(no_mangle)]
pub extern "C" fn gate_header(bytes: &[u8; 12], len: u32, allowed: &Offloads) -> u32 {
    let header = NetHeader::decode(bytes);
    match header::check(&header, len, *allowed) {
        Ok(request) => checksum_of(&request.to_header(0).encode()),
        Err(fault) => fault as u32,
    }
}

/// The leading bytes of a frame: what is in it.
#[unsafe(no_mangle)]
pub extern "C" fn gate_parse(head: &[u8], len: usize) -> u32 {
    match parse::parse(head, len) {
        Ok(parsed) => u32::from(parsed.ip().is_some()),
        Err(fault) => fault as u32,
    }
}

/// A checksum over bytes, and one completed in place.
#[unsafe(no_mangle)]
pub extern "C" fn gate_checksum(frame: &mut [u8], at: header::CsumAt) -> u32 {
    let whole = checksum_of(frame);
    match checksum::complete(frame, at) {
        Ok(()) => whole,
        Err(fault) => fault as u32,
    }
}

fn checksum_of(bytes: &[u8]) -> u32 {
    u32::from(Sum::of(bytes).checksum())
}

/// An index nobody checks: the gate must close on it.
#[cfg(feature = "plant-panic")]
#[unsafe(no_mangle)]
pub extern "C" fn gate_planted_panic(bytes: &[u8], at: usize) -> u8 {
    bytes[at]
}

/// A list that grows: the gate must close on it.
#[cfg(feature = "plant-allocation")]
#[unsafe(no_mangle)]
pub extern "C" fn gate_planted_allocation(bytes: &[u8]) -> usize {
    extern crate alloc;
    let copy = alloc::vec::Vec::from(bytes);
    core::hint::black_box(copy.as_slice()).len()
}
