//! The driver's commands: each is judged, obeyed with every pair at home, and acknowledged.

use super::{Effect, Effects, Job, Nic, PairIndex, QueueIndex, QueueRole};
use crate::control::{Command, Refused, Source, World};
use crate::pair::PairFault;

/// The most commands of one operation: others want to be heard, too.
const COMMANDS_MAX: u16 = 64;

impl Nic {
    pub(super) fn begin_commands(&mut self, effects: &mut Effects) {
        self.commands_left = COMMANDS_MAX;
        self.has_commands = false;
        self.go_on(effects);
    }

    /// Obeys commands until there are none, or enough, or one has to wait for pairs.
    fn go_on(&mut self, effects: &mut Effects) {
        while let Some(left) = self.commands_left.checked_sub(1) {
            self.commands_left = left;
            let Some(control) = &mut self.control else { return self.finish(Ok(()), effects) };
            match control.take() {
                Ok(true) => {}
                Ok(false) => return self.finish(Ok(()), effects),
                Err(fault) => {
                    if let Some(queue) = self.control_index() {
                        self.control_stats.faults.add(1);
                        effects.push(Effect::ControlFault(PairFault { queue, fault }));
                    }
                    return self.finish(Ok(()), effects);
                }
            }
            if self.command().is_ok_and(|command| command.changes_pairs()) {
                return self.recall(|_| true, Job::Command, effects);
            }
            self.obey(effects);
        }
        self.has_commands = true;
        self.finish(Ok(()), effects);
    }

    pub(super) fn obey_and_go_on(&mut self, effects: &mut Effects) {
        self.obey(effects);
        self.send_out(effects);
        self.go_on(effects);
    }

    /// The command in work.
    fn command(&self) -> Result<Command<'_>, Refused> {
        let request = self.control.as_ref().and_then(|control| control.request());
        let agreed = self.negotiated.as_ref().ok_or(Refused::Unknown)?;
        Command::decode(request.ok_or(Refused::Malformed)?, agreed.bits())
    }

    /// Obeys the command in work and acknowledges it. What it changes is in force before its
    /// buffer is used.
    fn obey(&mut self, effects: &mut Effects) {
        let (space, settings) = (self.config_space(), self.settings());
        let changes_pairs = self.command().is_ok_and(|command| command.changes_pairs());
        let done = self.do_command();
        if changes_pairs && done.is_ok() {
            self.configure_pairs();
        }
        if self.settings() != settings {
            self.adapt_endpoint(effects);
        }
        if self.config_space() != space {
            self.generation = self.generation.wrapping_add(1);
        }
        let interrupt = self.control_index().and_then(|index| self.slot(index).ok());
        let interrupt = interrupt.and_then(|slot| slot.interrupt.clone());
        if self.acknowledge(done.is_ok())
            && let Some(interrupt) = interrupt
        {
            effects.push(Effect::Interrupt(interrupt));
        }
        self.control_stats.count(done.is_ok());
    }

    fn do_command(&mut self) -> Result<(), Refused> {
        if let Command::ReadStatistics(entries) = self.command()? {
            return self.source(|source| source.check(entries));
        }
        let control_index = self.control_index();
        let Self { control, negotiated, state, queues, pairs, .. } = self;
        let agreed = negotiated.as_ref().ok_or(Refused::Unknown)?;
        let request = control.as_ref().and_then(|control| control.request());
        let command = Command::decode(request.ok_or(Refused::Malformed)?, agreed.bits())?;
        let enabled = |index: QueueIndex| {
            let on = queues.get(index.slot()).is_some_and(|slot| slot.enabled);
            on && control_index.is_some_and(|control| index < control)
        };
        let count = u16::try_from(pairs.len()).unwrap_or(u16::MAX);
        state.obey(command, &World { agreed, pairs: count, is_live: &enabled })
    }

    fn acknowledge(&mut self, done: bool) -> bool {
        let Some(mut control) = self.control.take() else { return false };
        let wanted = control.answer(done, |request, answer| {
            let bits = self.negotiated.as_ref().map(|agreed| agreed.bits()).unwrap_or_default();
            match Command::decode(request, bits) {
                Ok(Command::ReadCoalescing(queue)) => {
                    answer.write(&self.state.coalescing_of_queue(queue).encode());
                }
                Ok(Command::QueryStatistics) => {
                    answer.write(&self.source(|source| source.supported()).to_le_bytes());
                }
                Ok(Command::ReadStatistics(entries)) => {
                    self.source(|source| source.write_replies(entries, answer));
                }
                Ok(_) | Err(_) => {}
            }
        });
        self.control = Some(control);
        wanted
    }

    /// Where statistics come from.
    fn source<R>(&self, ask: impl FnOnce(&Source<'_>) -> R) -> R {
        let role = |index| self.role(index);
        let stats = |pair: PairIndex| self.pairs.get(pair.slot()).map(|slot| &slot.stats);
        let lane = |role| match role {
            QueueRole::Receive(pair) => stats(pair).map(|stats| stats.rx.snapshot()),
            QueueRole::Transmit(pair) => stats(pair).map(|stats| stats.tx.snapshot()),
            QueueRole::Control => None,
        };
        let agreed = self.negotiated.as_ref().map(|agreed| agreed.bits()).unwrap_or_default();
        let control = self.control_stats.snapshot();
        ask(&Source { agreed, role: &role, lane: &lane, control })
    }

    /// The control queue, where there is one.
    fn control_index(&self) -> Option<QueueIndex> {
        let mut queues = (0..self.queues()).map(QueueIndex);
        queues.find(|index| self.role(*index) == Some(QueueRole::Control))
    }
}
