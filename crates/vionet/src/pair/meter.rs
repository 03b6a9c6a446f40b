//! What frames cost on their way to the guest, where that is limited.
//!
//! ```text
//!   the pair asks its host side    credit used up: no more windows, the rest waits with the host
//!   others deliver (a switch)      credit used up: dropped and counted, nobody waits for anybody
//! ```
//!
//! A switch cannot hold frames for one slow guest without holding up those for others, so there a
//! limit is a policer, as at the ports of hardware switches.

use vionet_frame::header::{CsumAt, GsoRequest, Request};
use vionet_raw::{ReadSpan, copy_out};

use crate::endpoint::RxHeader;
use crate::limit::{Wire, wire};

/// The least bytes of a UDP and of a TCP header, and the most of the latter.
const UDP: u16 = 8;
const TCP: u16 = 20;
const TCP_MAX: u16 = 60;
/// Where a TCP header says how long it is.
const TCP_LEN_AT: usize = 12;

/// What a frame in `bytes` is on a wire.
pub(super) fn on_wire(len: u32, request: &Request, bytes: &[ReadSpan<'_>]) -> Wire {
    costs(len, request, |at, gso| {
        let mut field = [0];
        let start = usize::from(at.start).saturating_add(TCP_LEN_AT);
        // A guest that changes its frame later is charged for what it said now.
        let known = gso.kind.is_tcp() && copy_out(bytes, start, &mut field) == 1;
        let [field] = field;
        known.then(|| u16::from(field >> 4).saturating_mul(4))
    })
}

/// The same, if the bytes of the frame are out of sight: by what its header tells.
fn told_on_wire(len: u32, header: &RxHeader) -> Wire {
    costs(len, &header.request, |at, gso| {
        let transport = header.header_len.checked_sub(at.start);
        transport.filter(|transport| gso.kind.is_tcp() && *transport <= TCP_MAX)
    })
}

fn costs(
    len: u32,
    request: &Request,
    transport: impl FnOnce(CsumAt, GsoRequest) -> Option<u16>,
) -> Wire {
    let (Some(at), Some(gso)) = (request.csum, request.gso) else { return wire(len, 0, 0) };
    let least = if gso.kind.is_tcp() { TCP } else { UDP };
    let transport = transport(at, gso).unwrap_or(least).max(least);
    wire(len, at.start.saturating_add(transport).into(), gso.size)
}

/// What may pass, and has.
pub(super) struct Meter {
    credit: Wire,
    passed: Wire,
    /// What is above is dropped, not held.
    polices: bool,
}

impl Meter {
    /// What is above `credit` waits.
    pub(super) fn holding(credit: Wire) -> Self {
        Self { credit, passed: Wire::NONE, polices: false }
    }

    /// What is above `credit` is dropped.
    #[cfg(feature = "std")]
    pub(super) fn policing(credit: Wire) -> Self {
        Self { polices: true, ..Self::holding(credit) }
    }

    fn is_used_up(&self) -> bool {
        self.passed.bytes >= self.credit.bytes || self.passed.frames >= self.credit.frames
    }

    /// Whether no frame is to be fetched any more.
    pub(super) fn holds(&self) -> bool {
        !self.polices && self.is_used_up()
    }

    /// Whether a frame that is here is to be dropped.
    pub(super) fn drops(&self) -> bool {
        self.polices && self.is_used_up()
    }

    /// Counts a frame that was delivered from `bytes`.
    pub(super) fn pass(&mut self, len: u32, header: &RxHeader, bytes: &[ReadSpan<'_>]) {
        self.passed = self.passed.plus(on_wire(len, &header.request, bytes));
    }

    /// Counts a frame that was delivered, and is out of sight.
    pub(super) fn pass_told(&mut self, len: u32, header: &RxHeader) {
        self.passed = self.passed.plus(told_on_wire(len, header));
    }

    pub(super) fn passed(&self) -> Wire {
        self.passed
    }
}
