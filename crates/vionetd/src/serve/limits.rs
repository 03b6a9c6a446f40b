//! Rate limits as they stand: a device's own, and those of the groups it is in.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use vionet::Limits;
use vionet::limit::{LIMITS_MAX, Limit, Limiter, Rate};

use crate::cli::{Direction, GroupSpec, NicArgs, RateSpec, limit};
use crate::exit::{Code, Stop};

/// What is limited together, each way.
#[derive(Clone)]
struct Ways {
    transmit: Arc<Limit>,
    receive: Arc<Limit>,
}

/// Devices that share limits.
pub(super) struct Group {
    name: String,
    ways: Ways,
}

/// The groups of this process.
pub(super) struct Groups(Vec<Arc<Group>>);

/// The limits of one device.
#[derive(Clone)]
pub(super) struct NicLimits {
    own: Ways,
    groups: Vec<Arc<Group>>,
}

impl Ways {
    fn new(transmit: &[RateSpec], receive: &[RateSpec]) -> Self {
        Self { transmit: Arc::new(limit(transmit)), receive: Arc::new(limit(receive)) }
    }

    fn json(&self) -> Value {
        json!({ "transmit": rates(&self.transmit), "receive": rates(&self.receive) })
    }
}

impl Groups {
    /// The groups that were asked for.
    ///
    /// # Errors
    /// When two have one name, or one is of no use.
    pub(super) fn new(specs: &[GroupSpec], nics: &[&NicArgs]) -> Result<Self, Stop> {
        let mut groups: Vec<Arc<Group>> = Vec::with_capacity(specs.len());
        for spec in specs {
            let name = &spec.name;
            if groups.iter().any(|group| group.name == *name) {
                let why = format!(
                    "--limit-group {name} is there twice; write all its rates in one, as in \
                     {name},tx=1G,tx=200kpps,rx=1G"
                );
                return Err(Stop::new(Code::Config, why));
            }
            if !nics.iter().any(|nic| nic.groups.contains(name)) {
                let why = format!(
                    "no device is in --limit-group {name}; add limit-group={name} to the --nic \
                     of each that belongs to it"
                );
                return Err(Stop::new(Code::Config, why));
            }
            let ways = Ways::new(&spec.transmit, &spec.receive);
            groups.push(Arc::new(Group { name: name.clone(), ways }));
        }
        Ok(Self(groups))
    }

    /// The limits of a device.
    ///
    /// # Errors
    /// When it is in a group that is not there, or in too many.
    pub(super) fn limits_of(&self, nic: &NicArgs) -> Result<NicLimits, Stop> {
        // One place is for its own.
        let most = LIMITS_MAX.saturating_sub(1);
        if nic.groups.len() > most {
            let why = format!("a device is in {most} limit groups at most");
            return Err(Stop::new(Code::Config, why));
        }
        let find = |name| self.find(name).map_err(|why| Stop::new(Code::Config, why));
        let groups = nic.groups.iter().map(|name| find(name)).collect::<Result<_, _>>()?;
        Ok(NicLimits { own: Ways::new(&nic.limit_tx, &nic.limit_rx), groups })
    }

    fn find(&self, name: &str) -> Result<Arc<Group>, String> {
        let found = self.0.iter().find(|group| group.name == name);
        found.cloned().ok_or_else(|| {
            let names: Vec<_> = self.0.iter().map(|group| group.name.as_str()).collect();
            if names.is_empty() {
                format!("there is no limit group; define it with --limit-group {name},tx=RATE")
            } else {
                let names = names.join(", ");
                format!("there is no limit group `{name}`; there is {names}")
            }
        })
    }

    /// Changes the limit of a group; the devices in it are to be given their limits anew.
    pub(super) fn set(&self, name: &str, way: Direction, rates: &[RateSpec]) -> Result<(), String> {
        let group = self.find(name)?;
        let of = match way {
            Direction::Tx => &group.ways.transmit,
            Direction::Rx => &group.ways.receive,
        };
        let [bytes, frames] = limit(rates).rates();
        of.set_bytes(bytes);
        of.set_frames(frames);
        Ok(())
    }

    /// All groups, with the names of the devices in them.
    pub(super) fn json<'a>(
        &self,
        nics: impl Iterator<Item = (&'a str, &'a NicLimits)> + Clone,
    ) -> Value {
        let all = self.0.iter().map(|group| {
            let members = nics.clone().filter(|(_, limits)| limits.is_in(&group.name));
            let members: Vec<_> = members.map(|(name, _)| name).collect();
            json!({ "name": group.name, "limits": group.ways.json(), "nics": members })
        });
        all.collect()
    }
}

impl NicLimits {
    /// The same with another limit of its own.
    pub(super) fn with(&self, way: Direction, rates: &[RateSpec]) -> Self {
        let (mut new, limit) = (self.clone(), Arc::new(limit(rates)));
        match way {
            Direction::Tx => new.own.transmit = limit,
            Direction::Rx => new.own.receive = limit,
        }
        new
    }

    pub(super) fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|one| one.name == group)
    }

    /// What the device is to hold its guest to; what has no rate costs nothing.
    pub(super) fn limits(&self) -> Option<Limits> {
        let all = || std::iter::once(&self.own).chain(self.groups.iter().map(|group| &group.ways));
        let limiter = |of: fn(&Ways) -> &Arc<Limit>| {
            let limits = all().map(of).filter(|limit| limit.rates() != [None, None]);
            Limiter::new(limits.cloned())
        };
        let limits = Limits {
            transmit: limiter(|ways| &ways.transmit),
            receive: limiter(|ways| &ways.receive),
        };
        (!limits.is_open()).then_some(limits)
    }

    /// Its own limits, and the names of its groups.
    pub(super) fn json(&self) -> (Value, Value) {
        (self.own.json(), self.groups.iter().map(|group| group.name.as_str()).collect())
    }
}

/// The rates of a limit; what it has none of is left out.
fn rates(limit: &Limit) -> Value {
    let [bytes, frames] = limit.rates();
    let mut all = Map::new();
    if let Some(Rate { per_second, burst }) = bytes {
        all.insert("bits_per_second".into(), per_second.saturating_mul(8).into());
        all.insert("burst_bits".into(), burst.saturating_mul(8).into());
    }
    if let Some(Rate { per_second, burst }) = frames {
        all.insert("frames_per_second".into(), per_second.into());
        all.insert("burst_frames".into(), burst.into());
    }
    all.into()
}
