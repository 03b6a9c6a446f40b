//! VLAN identifiers and sets of them (IEEE 802.1Q §9.6).

use core::fmt;

/// A VLAN identifier, 0 to 4095. In a tag 0 names no VLAN: such a tag carries a priority only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct VlanId(u16);

impl VlanId {
    /// The largest identifier.
    pub const MAX: Self = Self(0x0fff);
    /// No VLAN.
    pub const NONE: Self = Self(0);

    /// The identifier `id`; `None` above 4095.
    #[must_use]
    pub const fn new(id: u16) -> Option<Self> {
        if id <= Self::MAX.0 { Some(Self(id)) } else { None }
    }

    /// The identifier in a tag's control information.
    #[must_use]
    pub const fn of_tag(control: u16) -> Self {
        Self(control & Self::MAX.0)
    }

    /// The identifier as a number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of VLANs: one bit for each of the 4096.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet([u64; 64]);

impl VlanSet {
    /// No VLAN at all.
    pub const EMPTY: Self = Self([0; 64]);

    /// Adds a VLAN; adding it twice is adding it once.
    pub fn insert(&mut self, id: VlanId) {
        if let Some(word) = self.0.get_mut(Self::word_of(id)) {
            *word |= Self::bit_of(id);
        }
    }

    /// Takes a VLAN out, if it is in.
    pub fn remove(&mut self, id: VlanId) {
        if let Some(word) = self.0.get_mut(Self::word_of(id)) {
            *word &= !Self::bit_of(id);
        }
    }

    /// Whether a VLAN is in the set.
    #[inline]
    #[must_use]
    pub fn contains(&self, id: VlanId) -> bool {
        self.0.get(Self::word_of(id)).is_some_and(|word| word & Self::bit_of(id) != 0)
    }

    /// The VLANs in the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = VlanId> + '_ {
        (0..=VlanId::MAX.0).map(VlanId).filter(|id| self.contains(*id))
    }

    fn word_of(id: VlanId) -> usize {
        usize::from(id.0 >> 6)
    }

    fn bit_of(id: VlanId) -> u64 {
        1_u64.wrapping_shl(u32::from(id.0))
    }
}

impl Default for VlanSet {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl FromIterator<VlanId> for VlanSet {
    fn from_iter<I: IntoIterator<Item = VlanId>>(ids: I) -> Self {
        let mut set = Self::EMPTY;
        ids.into_iter().for_each(|id| set.insert(id));
        set
    }
}

impl fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(VlanId::number)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn identifiers_end_at_4095() {
        assert_eq!(VlanId::new(4095), Some(VlanId::MAX));
        assert_eq!(VlanId::new(4096), None);
        assert_eq!(VlanId::of_tag(0xe00a).number(), 10);
    }

    proptest! {
        #[test]
        fn the_set_behaves_as_a_set(
            steps in prop::collection::vec((any::<bool>(), 0_u16..4096), 0..200),
        ) {
            let (mut set, mut model) = (VlanSet::EMPTY, BTreeSet::new());
            for (add, number) in steps {
                let id = VlanId::new(number).unwrap();
                if add {
                    set.insert(id);
                    model.insert(number);
                } else {
                    set.remove(id);
                    model.remove(&number);
                }
                prop_assert_eq!(set.contains(id), add);
            }
            prop_assert!(set.iter().map(VlanId::number).eq(model));
        }
    }
}
