//! Interrupts as VFIO has them: the device says when, the client has said which eventfd.
//!
//! ```text
//!   MSI-X   vector n is open while it has an eventfd; the client keeps the table that its guest
//!           sees, so the one in the function is ours, and its masks say who has an eventfd
//!   INTx    asserted --> eventfd, and masked by that; unmasked: again, if it is still asserted
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vionet::transport::{Lines, Message};

use crate::crier::{Crier, Due};
use crate::event::Refusal;

/// The interrupts of one device, for whichever client it has: the lines it is wired to.
pub(crate) struct Irqs {
    intx: Mutex<Intx>,
    vectors: Vec<Mutex<Vector>>,
    /// By vector; behind the last of them, INTx.
    due: Arc<Due>,
}

#[derive(Default)]
struct Vector {
    trigger: Option<Arc<OwnedFd>>,
    /// It fired, and its eventfd was gone before that was told: the next one is told.
    missed: bool,
}

#[derive(Default)]
struct Intx {
    asserted: bool,
    masked: bool,
    trigger: Option<Arc<OwnedFd>>,
}

impl Intx {
    /// Whether it fires now, which masks it until the client unmasks it.
    fn fires(&mut self) -> bool {
        let fires = self.asserted && !self.masked && self.trigger.is_some();
        self.masked |= fires;
        fires
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Irqs {
    /// For a function with so many vectors of MSI-X.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub(crate) fn new(vectors: u16) -> io::Result<Self> {
        Ok(Self {
            intx: Mutex::default(),
            vectors: (0..vectors).map(|_| Mutex::default()).collect(),
            due: Arc::new(Due::new(vectors.into())?),
        })
    }

    /// How many vectors there are.
    pub(crate) fn vectors(&self) -> u32 {
        u32::try_from(self.vectors.len()).unwrap_or(u32::MAX)
    }

    /// The thread that signals a new client; nothing is signalled without it. What was due to the
    /// client before is forgotten.
    pub(crate) fn crier(self: &Arc<Self>) -> io::Result<Crier> {
        self.due.clear();
        self.vectors.iter().for_each(|vector| *held(vector) = Vector::default());
        let irqs = Arc::clone(self);
        Crier::start(&self.due, move |number| irqs.signal(number))
    }

    /// What the client has not taken in time may be lost: its counter is full then anyway.
    fn signal(&self, number: u32) {
        let vector = usize::try_from(number).ok().and_then(|at| self.vectors.get(at));
        let fd = match vector {
            Some(vector) => {
                let mut vector = held(vector);
                vector.missed = vector.trigger.is_none();
                vector.trigger.clone()
            }
            None => held(&self.intx).trigger.clone(),
        };
        if let Some(fd) = fd {
            let (Ok(_) | Err(_)) = rustix::io::write(&*fd, &1_u64.to_ne_bytes());
        }
    }

    /// Vectors from `start` on signal these eventfds from now on, or none.
    pub(crate) fn set_vectors(
        &self,
        start: u32,
        fds: impl Iterator<Item = Option<OwnedFd>>,
    ) -> Result<(), Refusal> {
        let first = usize::try_from(start).map_err(|_| Refusal::Irq)?;
        let vectors = self.vectors.get(first..).ok_or(Refusal::Irq)?;
        for ((vector, fd), number) in vectors.iter().zip(fds).zip(start..) {
            let mut vector = held(vector);
            vector.trigger = fd.map(Arc::new);
            if vector.trigger.is_some() && std::mem::take(&mut vector.missed) {
                self.due.set(number);
            }
        }
        Ok(())
    }

    /// Whether the vector has an eventfd.
    pub(crate) fn is_open(&self, vector: u32) -> bool {
        let vector = usize::try_from(vector).ok().and_then(|at| self.vectors.get(at));
        vector.is_some_and(|vector| held(vector).trigger.is_some())
    }

    /// The client wants this vector to fire, whatever the device has to say.
    pub(crate) fn trigger_vector(&self, vector: u32) {
        if self.is_open(vector) {
            self.due.set(vector);
        }
    }

    /// INTx signals this eventfd from now on, or none. It starts unmasked.
    pub(crate) fn set_intx(&self, fd: Option<OwnedFd>) {
        self.change_intx(|intx| {
            intx.trigger = fd.map(Arc::new);
            intx.masked = false;
        });
    }

    pub(crate) fn mask_intx(&self, masked: bool) {
        self.change_intx(|intx| intx.masked = masked);
    }

    pub(crate) fn trigger_intx(&self) {
        self.due.set(self.vectors());
    }

    fn change_intx(&self, change: impl FnOnce(&mut Intx)) {
        let mut intx = held(&self.intx);
        change(&mut intx);
        if intx.fires() {
            self.trigger_intx();
        }
    }

    /// The client is gone: every eventfd of it is let go.
    pub(crate) fn let_go(&self) {
        self.vectors.iter().for_each(|vector| held(vector).trigger = None);
        self.set_intx(None);
    }
}

impl Lines for Irqs {
    fn level(&self, asserted: bool) {
        self.change_intx(|intx| intx.asserted = asserted);
    }

    fn message(&self, vector: u16, _message: Message) {
        self.due.set(vector.into());
    }
}

impl std::fmt::Debug for Irqs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Irqs").field("vectors", &self.vectors.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

    use super::*;

    fn fires(fd: &OwnedFd) -> bool {
        let wait = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        let fired = poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&wait)).unwrap() > 0;
        if fired {
            rustix::io::read(fd, &mut [0; 8]).unwrap();
        }
        fired
    }

    fn new_eventfd() -> (OwnedFd, OwnedFd) {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        (fd.try_clone().unwrap(), fd)
    }

    #[test]
    fn a_line_masks_itself_and_fires_again_while_it_is_asserted() {
        let irqs = Arc::new(Irqs::new(2).unwrap());
        let _crier = irqs.crier().unwrap();
        let (theirs, ours) = new_eventfd();
        irqs.level(true);
        irqs.set_intx(Some(ours));
        assert!(fires(&theirs), "asserted before there was anybody");
        irqs.level(false);
        irqs.level(true);
        assert!(!fires(&theirs), "masked by what it signalled");
        irqs.mask_intx(false);
        assert!(fires(&theirs), "still asserted");
        irqs.level(false);
        irqs.mask_intx(false);
        assert!(!fires(&theirs), "not asserted");
        irqs.mask_intx(true);
        irqs.level(true);
        assert!(!fires(&theirs), "masked by the client");
        irqs.set_intx(None);
        irqs.mask_intx(false);
        assert!(!fires(&theirs), "there is nobody");
    }

    #[test]
    fn a_vector_signals_the_eventfd_it_has_now() {
        let irqs = Arc::new(Irqs::new(3).unwrap());
        let _crier = irqs.crier().unwrap();
        let ((first, one), (second, two)) = (new_eventfd(), new_eventfd());
        irqs.set_vectors(1, [Some(one), None].into_iter()).unwrap();
        irqs.message(1, Message::default());
        irqs.message(2, Message::default());
        assert!(fires(&first) && !fires(&second));
        irqs.set_vectors(1, [Some(two)].into_iter()).unwrap();
        irqs.trigger_vector(1);
        assert!(!fires(&first) && fires(&second));
        irqs.let_go();
        assert!(!irqs.is_open(1) && !irqs.is_open(3));
        irqs.trigger_vector(1);
        assert!(!fires(&second));
        assert!(irqs.set_vectors(4, std::iter::empty()).is_err());
    }

    /// Between the end of an eventfd and the mask that follows, and on the way to the crier.
    #[test]
    fn what_fires_while_an_eventfd_is_taken_away_is_told_to_the_next() {
        let irqs = Arc::new(Irqs::new(2).unwrap());
        let crier = irqs.crier().unwrap();
        let ((first, one), (second, two), (third, three)) =
            (new_eventfd(), new_eventfd(), new_eventfd());
        irqs.set_vectors(1, [Some(one)].into_iter()).unwrap();
        irqs.set_vectors(1, [None].into_iter()).unwrap();
        irqs.message(1, Message::default());
        assert!(!fires(&first));
        irqs.set_vectors(1, [Some(two)].into_iter()).unwrap();
        assert!(fires(&second) && !fires(&second), "once");
        irqs.let_go();
        irqs.message(1, Message::default());
        drop(crier);
        irqs.message(1, Message::default());
        let _crier = irqs.crier().unwrap();
        irqs.set_vectors(1, [Some(three)].into_iter()).unwrap();
        assert!(!fires(&third), "it was for the client before");
    }
}
