//! A device that moves: its states, and the bytes that go from one server to another.
//!
//! ```text
//!   RUNNING <--> STOP <--> STOP_COPY   the device's bytes are read
//!                 ^------> RESUMING    bytes are written, and become the device on the way back
//! ```
//!
//! Every way from one state to another leads over STOP (§Complex State Transitions). Nothing is
//! copied while the device runs: what it is takes some kilobytes. Which memory it has written to is
//! the client's to know. What the link is, and what has been counted, are this host's to say: bytes
//! that a client writes change neither.

use vionet::State as Saved;
use vionet::transport::{PciNic, Unsettled};

use crate::event::Refusal;
use crate::message::DATA_MAX;

const FEATURE_MIGRATION: u32 = 1;
const FEATURE_STATE: u32 = 2;
const FEATURE_MASK: u32 = 0xffff;
const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const PROBE: u32 = 1 << 18;

/// What can be done beside running: to be stopped and copied.
const STOP_COPY: u64 = 1;
/// In place of a descriptor: data goes over the socket.
const NO_FD: u32 = u32::MAX;

/// The states that a device can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Error,
    Stop,
    Running,
    StopCopy,
    Resuming,
}

impl State {
    /// One that can be asked for.
    fn of(number: u32) -> Option<Self> {
        [Self::Stop, Self::Running, Self::StopCopy, Self::Resuming]
            .into_iter()
            .find(|state| state.number() == number)
    }

    fn number(self) -> u32 {
        match self {
            Self::Error => 0,
            Self::Stop => 1,
            Self::Running => 2,
            Self::StopCopy => 3,
            Self::Resuming => 4,
        }
    }
}

/// Where a device stands.
pub(crate) struct Migration {
    state: State,
    /// What is read of it, or was written for it.
    data: Vec<u8>,
    /// How much of it was read.
    read: usize,
}

impl Migration {
    /// Of a device that runs, as after a reset.
    pub(crate) const fn new() -> Self {
        Self { state: State::Running, data: Vec::new(), read: 0 }
    }

    /// DEVICE_FEATURE: what the flags say, with the feature's data; returns the data of the reply.
    pub(crate) fn feature(
        &mut self,
        nic: &PciNic,
        flags: u32,
        data: &[u8],
    ) -> Result<Vec<u8>, Refusal> {
        let can = match flags & FEATURE_MASK {
            FEATURE_MIGRATION => GET,
            FEATURE_STATE => GET | SET,
            _ => return Err(Refusal::Feature),
        };
        let what = flags & !FEATURE_MASK;
        if what & (GET | SET) & !can != 0 {
            return Err(Refusal::Feature);
        }
        match (what, flags & FEATURE_MASK) {
            (GET, FEATURE_MIGRATION) if data.is_empty() => Ok(STOP_COPY.to_ne_bytes().to_vec()),
            // Some clients send the room for the answer along.
            (GET, FEATURE_STATE) if matches!(data.len(), 0 | 8) => Ok(self.encoded()),
            (SET, FEATURE_STATE) => {
                let (wanted, _fd) = data.split_first_chunk().ok_or(Refusal::Payload)?;
                if data.len() != 8 {
                    return Err(Refusal::Payload);
                }
                let wanted = State::of(u32::from_ne_bytes(*wanted)).ok_or(Refusal::State)?;
                self.go_to(nic, wanted)?;
                Ok(self.encoded())
            }
            _ if what & PROBE != 0 && what & !(GET | SET | PROBE) == 0 => Ok(data.to_vec()),
            (GET, _) => Err(Refusal::Payload),
            _ => Err(Refusal::Flags(flags)),
        }
    }

    fn encoded(&self) -> Vec<u8> {
        [self.state.number(), NO_FD].into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    /// On an error it stays where it was, or stands at STOP; or only a reset leads on (ERROR).
    fn go_to(&mut self, nic: &PciNic, wanted: State) -> Result<(), Refusal> {
        if self.state == wanted {
            return Ok(());
        }
        self.stop(nic)?;
        match wanted {
            State::Stop => {}
            State::Running => {
                self.state = State::Error;
                nic.resume().map_err(Refusal::Restless)?;
            }
            State::StopCopy => {
                self.data = nic.save().map_err(Refusal::Save)?.encode();
                self.read = 0;
            }
            State::Resuming => {
                // What it was is over; nothing runs while the other comes.
                self.state = State::Error;
                nic.reset().and_then(|()| nic.pause()).map_err(Refusal::Restless)?;
            }
            State::Error => return Err(Refusal::State),
        }
        self.state = wanted;
        Ok(())
    }

    /// The half of the way that leads to STOP; a device that does not come to rest runs on.
    fn stop(&mut self, nic: &PciNic) -> Result<(), Refusal> {
        match self.state {
            State::Error => return Err(Refusal::State),
            State::Stop => {}
            State::Running => nic.try_pause().map_err(Refusal::Restless)?,
            State::StopCopy => self.data = Vec::new(),
            State::Resuming => {
                // Only a reset leads out of it, if they are no state of this device.
                self.state = State::Error;
                let data = std::mem::take(&mut self.data);
                let saved = Saved::decode(&data).map_err(Refusal::Saved)?;
                let here = nic.save().map_err(Refusal::Save)?;
                let link = nic.snapshot().link_up;
                nic.restore(&saved.with_counters_of(&here)).map_err(Refusal::Restore)?;
                // That is for whoever runs this host to say, and not for a client.
                if nic.snapshot().link_up != link {
                    nic.set_link(link).map_err(|_| Refusal::Restless(Unsettled))?;
                }
            }
        }
        self.state = State::Stop;
        Ok(())
    }

    /// MIG_DATA_READ: the next bytes; fewer than asked for are the last.
    pub(crate) fn read(&mut self, size: u32) -> Result<&[u8], Refusal> {
        let size = usize::try_from(size).ok().filter(|size| *size <= DATA_MAX);
        let size = size.ok_or(Refusal::Payload)?;
        if self.state != State::StopCopy {
            return Err(Refusal::State);
        }
        let rest = self.data.get(self.read..).unwrap_or(&[]);
        let next = rest.get(..size).unwrap_or(rest);
        self.read = self.read.saturating_add(next.len());
        Ok(next)
    }

    /// MIG_DATA_WRITE: more bytes of the device that comes.
    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), Refusal> {
        if self.state != State::Resuming {
            return Err(Refusal::State);
        }
        if self.data.len().saturating_add(data.len()) > Saved::MAX {
            return Err(Refusal::TooLong);
        }
        self.data.extend_from_slice(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vionet::{Device, NicConfig};
    use vionet_endpoint::Echo;

    use super::*;
    use crate::Function;

    #[test]
    fn the_link_is_as_this_host_has_it_whatever_the_bytes_say() {
        let new = |link| {
            let device = Device::new(NicConfig::default(), Box::new(Echo)).unwrap();
            let function = Function::new(device).unwrap();
            function.nic().set_link(link).unwrap();
            function
        };
        for (there, here) in [(true, false), (false, true), (false, false)] {
            let saved = new(there);
            saved.nic().pause().unwrap();
            let bytes = saved.nic().save().unwrap().encode();
            let function = new(here);
            let mut migration = Migration::new();
            migration.go_to(function.nic(), State::Resuming).unwrap();
            migration.write(&bytes).unwrap();
            migration.go_to(function.nic(), State::Running).unwrap();
            assert_eq!(function.nic().snapshot().link_up, here, "it was {there}");
        }
    }
}
