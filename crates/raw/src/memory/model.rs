//! Shared cells under the model checker loom, which tries every order and every stale value.
//!
//! ```text
//!   cell at ADDRESS --load, store--> CELLS[ADDRESS] = an atomic of loom, anew in each execution
//!        |                                ^
//!        '-- what is in memory there -----'   its first value; memory itself is never stored to
//! ```
//!
//! A cell is made when it is first touched. Let the thread that starts the others touch all of
//! them: loom stops at a cell that came about unseen. Nothing here works outside `loom::model`.
//!
//! A proof that cannot fail proves nothing, so a thread can be given a [`Flaw`].

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::cell::Cell;
use core::sync::atomic::{self, Ordering};
use std::sync::{Mutex, PoisonError};

use loom::sync::atomic as checked;

/// What a thread does wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    None,
    /// It leaves out its fences.
    NoFence,
    /// Its acquire loads are relaxed ones.
    NoAcquire,
    /// Its release stores are relaxed ones.
    NoRelease,
}

loom::thread_local! {
    static FLAW: Cell<Flaw> = Cell::new(Flaw::None);
}

/// Gives the flaw to this thread, for the rest of its life.
pub fn plant(flaw: Flaw) {
    FLAW.with(|planted| planted.set(flaw));
}

fn has(flaw: Flaw) -> bool {
    FLAW.with(|planted| planted.get() == flaw)
}

/// The fence of the code under proof.
pub fn fence(order: Ordering) {
    if !has(Flaw::NoFence) {
        checked::fence(order);
    }
}

/// An atomic of any width, and the width in bytes that all who use it must agree on.
type Checked = (usize, Arc<checked::AtomicU64>);

loom::lazy_static! {
    static ref CELLS: Mutex<BTreeMap<usize, Checked>> = Mutex::new(BTreeMap::new());
}

/// The checked atomic for the cell at `address`; never held locked while loom may switch threads.
fn checked_at(
    address: usize,
    width: usize,
    first: impl FnOnce() -> u64,
) -> Arc<checked::AtomicU64> {
    let mut cells = CELLS.lock().unwrap_or_else(PoisonError::into_inner);
    let make = || (width, Arc::new(checked::AtomicU64::new(first())));
    let (made_for, atom) = cells.entry(address).or_insert_with(make);
    assert!(*made_for == width, "a cell of {made_for} bytes was touched as one of {width}");
    Arc::clone(atom)
}

macro_rules! modelled {
    ($name:ident, $word:ty) => {
        /// A cell in place of the atomic of that name: it lies in memory just so.
        #[repr(transparent)]
        pub struct $name(atomic::$name);

        impl $name {
            fn checked(&self) -> Arc<checked::AtomicU64> {
                let first = || u64::from(self.0.load(Ordering::Relaxed));
                checked_at(core::ptr::from_ref(self).addr(), size_of::<$word>(), first)
            }

            pub(crate) fn load(&self, order: Ordering) -> $word {
                let order = if has(Flaw::NoAcquire) { Ordering::Relaxed } else { order };
                <$word>::try_from(self.checked().load(order)).unwrap_or_default()
            }

            pub(crate) fn store(&self, value: $word, order: Ordering) {
                let order = if has(Flaw::NoRelease) { Ordering::Relaxed } else { order };
                self.checked().store(u64::from(value), order);
            }
        }
    };
}

modelled!(AtomicU16, u16);
modelled!(AtomicU32, u32);
modelled!(AtomicU64, u64);
