//! The control socket: one line asks, one line of JSON answers, one visitor after the other.
//!
//! ```text
//!   inspect                   every device, its counters
//!   set-link NIC up|down      the cable of a device
//!   set-limit NIC tx|rx RATE,...|none      what the guest sends or gets in a second
//!   set-group-limit NAME tx|rx RATE,...|none      the same for all devices of a group together
//!   announce NIC              have the guest's address made known
//! ```
//!
//! It belongs to this user alone, and is served by a thread of its own: what the devices' threads
//! see of it is a visit between two messages.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde_json::{Map, Value, json};
use vionet::{LaneSnapshot, PairSnapshot, Snapshot};
use vionet_socket::{Made, listen_at};

use super::front::{Change, Reach, no_socket};
use super::limits::{Groups, NicLimits};
use crate::cli::{Direction, Mac, RateSpec};
use crate::exit::{Code, Stop};

/// The longest request, in bytes.
const LINE_MAX: usize = 4096;
/// A visitor says what it wants in so many pieces, each of them in time.
const PIECES_MAX: usize = 16;
const PIECE_PATIENCE: Duration = Duration::from_secs(1);
/// How long an answer may take: others may be before us.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// A device that can be visited.
pub(super) struct Nic {
    pub(super) name: String,
    pub(super) endpoint: String,
    pub(super) reach: Reach,
    pub(super) limits: NicLimits,
}

/// The socket, and what can be asked about.
pub(super) struct Control {
    listener: UnixListener,
    _made: Made,
    nics: Vec<Nic>,
    groups: Groups,
}

impl Control {
    pub(super) fn listen(path: &Path, nics: Vec<Nic>, groups: Groups) -> Result<Self, Stop> {
        let (socket, made) = listen_at(path).map_err(no_socket)?;
        Ok(Self { listener: UnixListener::from(socket), _made: made, nics, groups })
    }

    /// Serves until the other end of `done` is closed.
    pub(super) fn run(&mut self, done: &UnixStream) {
        loop {
            let mut fds = [done.as_fd(), self.listener.as_fd()]
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return tracing::warn!("the control socket is lost: {errno}"),
            }
            let [done, knocked] = fds.map(|fd| !fd.revents().is_empty());
            if done {
                return;
            }
            if knocked {
                match self.listener.accept() {
                    Ok((socket, _)) => self.serve(socket),
                    // No descriptor is left, perhaps: others may let go of some.
                    Err(_) => std::thread::sleep(Duration::from_millis(10)),
                }
            }
        }
    }

    fn serve(&mut self, mut socket: UnixStream) {
        let Some(line) = request(&mut socket) else { return };
        let answer = self.answer(&line).unwrap_or_else(|why| json!({ "error": why }));
        // One that does not read its answer does not get it.
        let (Ok(()) | Err(_)) = socket.write_all(format!("{answer}\n").as_bytes());
    }

    fn answer(&mut self, line: &str) -> Result<Value, String> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (verb, rest) {
            ("inspect", "") => {
                // One's silence does not hide the others.
                let all = self.nics.iter().map(|nic| {
                    inspect(nic).unwrap_or_else(|why| json!({ "name": nic.name, "error": why }))
                });
                let nics = all.collect::<Vec<_>>();
                let limits = self.nics.iter().map(|nic| (nic.name.as_str(), &nic.limits));
                Ok(json!({ "nics": nics, "limit_groups": self.groups.json(limits) }))
            }
            ("set-link", rest) => {
                let (name, up) = match rest.rsplit_once(' ') {
                    Some((name, "up")) => (name, true),
                    Some((name, "down")) => (name, false),
                    Some(_) | None => return Err("write: set-link NIC up|down".into()),
                };
                self.apply(name, Change::Link(up))
            }
            ("set-limit", rest) => self.set_limit(rest),
            ("set-group-limit", rest) => self.set_group_limit(rest),
            ("announce", name) => self.apply(name, Change::Announcement),
            _ => Err("ask for: inspect, set-link NIC up|down, set-limit NIC tx|rx \
                      RATE[:BURST],...|none, set-group-limit NAME tx|rx RATE[:BURST],...|none, \
                      announce NIC"
                .into()),
        }
    }

    fn set_limit(&mut self, rest: &str) -> Result<Value, String> {
        let (name, way, rates) = words_of_limit("set-limit NIC", rest)?;
        let limits = self.nic(name)?.limits.with(way, &rates);
        let done = self.apply(name, Change::Limits(limits.limits()))?;
        self.nics.iter_mut().filter(|nic| nic.name == name).for_each(|nic| {
            nic.limits = limits.clone();
        });
        Ok(done)
    }

    fn set_group_limit(&self, rest: &str) -> Result<Value, String> {
        let (name, way, rates) = words_of_limit("set-group-limit NAME", rest)?;
        self.groups.set(name, way, &rates)?;
        // What waits by the old rate looks again.
        let members = self.nics.iter().filter(|nic| nic.limits.is_in(name));
        let not_told: Vec<_> = members
            .filter(|nic| {
                let change = Change::Limits(nic.limits.limits());
                self.apply(&nic.name, change).is_err()
            })
            .map(|nic| nic.name.as_str())
            .collect();
        Ok(json!({ "ok": true, "not_told": not_told }))
    }

    fn nic(&self, name: &str) -> Result<&Nic, String> {
        self.nics.iter().find(|nic| nic.name == name).ok_or_else(|| {
            let names: Vec<_> = self.nics.iter().map(|nic| nic.name.as_str()).collect();
            format!("there is no `{name}` here; there is {}", names.join(", "))
        })
    }

    /// Changes the device of this name.
    fn apply(&self, name: &str, change: Change) -> Result<Value, String> {
        let done = self.nic(name)?.reach.change(change).ok_or_else(|| busy(name))?;
        done.map(|()| json!({ "ok": true })).map_err(|why| why.to_string())
    }
}

/// `NAME tx|rx RATE,...|none` behind a verb, as words.
fn words_of_limit<'a>(
    verb: &str,
    text: &'a str,
) -> Result<(&'a str, Direction, Vec<RateSpec>), String> {
    let words = text.rsplit_once(' ').and_then(|(text, rates)| {
        let (name, direction) = text.rsplit_once(' ')?;
        Some((name, direction, rates))
    });
    let (name, way, rates) = match words {
        Some((name, "tx", rates)) => (name, Direction::Tx, rates),
        Some((name, "rx", rates)) => (name, Direction::Rx, rates),
        Some(_) | None => return Err(format!("write: {verb} tx|rx RATE[:BURST],...|none")),
    };
    let parse = |rate: &str| rate.parse().map_err(|why| format!("`{rate}`: {why}"));
    let rates = rates.split(',').filter(|rate| *rate != "none").map(parse);
    Ok((name, way, rates.collect::<Result<_, _>>()?))
}

fn busy(name: &str) -> String {
    format!("{name} has ended, or is busy; try again")
}

/// The line that a visitor writes; `None` for one that is too long or too slow.
fn request(socket: &mut UnixStream) -> Option<String> {
    socket.set_nonblocking(false).ok()?;
    socket.set_read_timeout(Some(PIECE_PATIENCE)).ok()?;
    socket.set_write_timeout(Some(PIECE_PATIENCE)).ok()?;
    let mut line = Vec::new();
    let mut room = [0; 512];
    for _ in 0..PIECES_MAX {
        let len = socket.read(&mut room).ok()?;
        line.extend_from_slice(room.get(..len)?);
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            line.truncate(end);
            return String::from_utf8(line).ok();
        }
        if len == 0 || line.len() > LINE_MAX {
            return None;
        }
    }
    None
}

fn inspect(nic: &Nic) -> Result<Value, String> {
    let snapshot = nic.reach.snapshot();
    let Snapshot { mac, mtu, link_up, features, active_pairs, pairs, total, control } =
        snapshot.ok_or_else(|| busy(&nic.name))?;
    let features = features.map(|bits| {
        let names = format!("{bits:?}");
        names.split(' ').map(str::to_owned).collect::<Vec<_>>()
    });
    let (limits, groups) = nic.limits.json();
    Ok(json!({
        "name": nic.name,
        "endpoint": nic.endpoint,
        "mac": Mac(mac).to_string(),
        "mtu": mtu,
        "link": if link_up { "up" } else { "down" },
        "features": features,
        "active_pairs": active_pairs,
        "limits": limits,
        "limit_groups": groups,
        "pairs": pairs.iter().map(pair).collect::<Vec<_>>(),
        "total": pair(&total),
        "control": named(control.counters()),
    }))
}

fn pair(pair: &PairSnapshot) -> Value {
    json!({ "transmit": lane(&pair.transmit), "receive": lane(&pair.receive) })
}

fn lane(lane: &LaneSnapshot) -> Value {
    let mut all = named(lane.counters());
    all.insert("batch_sizes".into(), lane.batch_sizes.to_vec().into());
    all.insert("wake_sizes".into(), lane.wake_sizes.to_vec().into());
    let drops = lane.drops().filter(|(_, count)| *count > 0);
    let drops = drops.map(|(reason, count)| (reason.name(), count));
    all.insert("drops".into(), named(drops).into());
    all.into()
}

fn named(counters: impl IntoIterator<Item = (&'static str, u64)>) -> Map<String, Value> {
    counters.into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect()
}

/// Asks the server at `path`, and returns its answer.
///
/// # Errors
/// When nobody answers there, or the server refuses.
pub(crate) fn ask(path: &Path, line: &str) -> Result<Value, Stop> {
    let fail = |cause: std::io::Error| {
        let path = path.display();
        Stop::new(
            Code::Failure,
            format!("{path}: {cause}; is that what serve --control was given?"),
        )
    };
    let mut socket = UnixStream::connect(path).map_err(fail)?;
    socket.set_read_timeout(Some(ANSWER_PATIENCE)).map_err(fail)?;
    socket.write_all(format!("{line}\n").as_bytes()).map_err(fail)?;
    let mut text = String::new();
    socket.read_to_string(&mut text).map_err(fail)?;
    let answer: Value = serde_json::from_str(&text).map_err(|cause| fail(cause.into()))?;
    match answer.get("error").and_then(Value::as_str) {
        Some(why) => Err(Stop::new(Code::Failure, why)),
        None => Ok(answer),
    }
}

/// An answer as a tree for people: what is zero or empty is left out.
pub(crate) fn tree(value: &Value, indent: usize, text: &mut String) {
    let fields: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, one)| (name.clone(), one)).collect(),
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, one)| (index.to_string(), one)).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return,
    };
    for (name, one) in fields {
        let flat = match one {
            Value::Null => continue,
            Value::Number(number) if number.as_u64() == Some(0) => continue,
            Value::String(word) => Some(word.clone()),
            Value::Array(items) if items.iter().all(|item| item.as_u64() == Some(0)) => continue,
            Value::Array(items) if !items.iter().any(Value::is_object) => {
                let words = items.iter().map(|item| item.to_string().replace('"', ""));
                Some(words.collect::<Vec<_>>().join(" "))
            }
            Value::Object(_) | Value::Array(_) => None,
            Value::Number(_) | Value::Bool(_) => Some(one.to_string()),
        };
        let mut below = String::new();
        tree(one_below(one), indent.saturating_add(2), &mut below);
        let line = match flat {
            Some(flat) => format!("{name} {flat}"),
            None if below.is_empty() => continue,
            None => name,
        };
        // Writing to a string cannot fail.
        let (Ok(()) | Err(_)) = write!(text, "{:indent$}{line}\n{below}", "");
    }
}

/// What is shown below its name: lists of plain values are shown behind it.
fn one_below(value: &Value) -> &Value {
    match value {
        Value::Array(items) if !items.iter().any(Value::is_object) => &Value::Null,
        _ => value,
    }
}

/// The two ends by which the control thread learns that it is over.
pub(super) fn lifeline() -> Result<(UnixStream, UnixStream), Stop> {
    UnixStream::pair().map_err(|cause| Stop::new(Code::Failure, format!("no socket: {cause}")))
}
