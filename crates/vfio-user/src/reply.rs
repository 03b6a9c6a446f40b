//! Replies: a header that echoes the command's, and what was asked for.

use crate::event::Refusal;
use crate::message::{HEADER_LEN, Header};

const TYPE_REPLY: u32 = 1;
const ERROR: u32 = 1 << 5;

/// A reply of these bytes.
pub(crate) fn answer(to: Header, payload: &[u8]) -> Vec<u8> {
    reply(to, TYPE_REPLY, 0, payload)
}

/// A reply that says why not; it has no payload (§Header).
pub(crate) fn refusal(to: Header, why: &Refusal) -> Vec<u8> {
    reply(to, TYPE_REPLY | ERROR, why.errno(), &[])
}

fn reply(to: Header, flags: u32, error: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(HEADER_LEN.saturating_add(payload.len())).unwrap_or(u32::MAX);
    let ids = [to.id, to.number].into_iter().flat_map(u16::to_ne_bytes);
    let words = [size, flags, error].into_iter().flat_map(u32::to_ne_bytes);
    ids.chain(words).chain(payload.iter().copied()).collect()
}

/// Words of 32 bits as a payload.
pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().copied().flat_map(u32::to_ne_bytes).collect()
}
