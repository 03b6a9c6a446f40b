//! Feature bits (VIRTIO 1.4 §5.1.3, §6) and what each one needs.

use core::fmt;
use core::ops::{BitAnd, BitOr, BitOrAssign, Not};

/// A set of feature bits; 128 wide, since VIRTIO 1.4 has left 64 behind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct FeatureBits(pub u128);

/// One feature, by its bit number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Feature(u8);

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $bit:literal;)*) => {
        impl Feature {
            $($(#[$doc])* pub const $name: Self = Self($bit);)*

            /// The standard's name of the feature, or `None` for a bit without one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($bit => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

features! {
    /// The device takes frames whose checksum is still to be completed.
    CSUM = 0;
    /// The driver takes frames whose checksum is still to be completed.
    GUEST_CSUM = 1;
    /// The driver can switch receive offloads by command.
    CTRL_GUEST_OFFLOADS = 2;
    /// The device reports the MTU.
    MTU = 3;
    /// The device has a MAC address.
    MAC = 5;
    /// The driver takes unsegmented TCP over IPv4.
    GUEST_TSO4 = 7;
    /// The driver takes unsegmented TCP over IPv6.
    GUEST_TSO6 = 8;
    /// The driver takes unsegmented TCP with ECN.
    GUEST_ECN = 9;
    /// The driver takes unfragmented UDP.
    GUEST_UFO = 10;
    /// The device takes unsegmented TCP over IPv4.
    HOST_TSO4 = 11;
    /// The device takes unsegmented TCP over IPv6.
    HOST_TSO6 = 12;
    /// The device takes unsegmented TCP with ECN.
    HOST_ECN = 13;
    /// The device takes unfragmented UDP.
    HOST_UFO = 14;
    /// A received frame may span several buffers.
    MRG_RXBUF = 15;
    /// The device reports link state.
    STATUS = 16;
    /// There is a control queue.
    CTRL_VQ = 17;
    /// Receive modes can be set by command.
    CTRL_RX = 18;
    /// VLANs can be filtered by command.
    CTRL_VLAN = 19;
    /// More receive modes can be set by command.
    CTRL_RX_EXTRA = 20;
    /// The guest can announce itself when asked.
    GUEST_ANNOUNCE = 21;
    /// Several queue pairs with automatic steering.
    MQ = 22;
    /// The MAC address can be set by command.
    CTRL_MAC_ADDR = 23;
    /// A descriptor may point to a table of descriptors.
    INDIRECT_DESC = 28;
    /// Notifications are suppressed by index.
    EVENT_IDX = 29;
    /// The device follows VIRTIO 1.0 or later.
    VERSION_1 = 32;
    /// Memory access is translated or limited by the platform.
    ACCESS_PLATFORM = 33;
    /// Queues have the packed layout.
    RING_PACKED = 34;
    /// Buffers are used in the order made available.
    IN_ORDER = 35;
    /// Memory is ordered by the platform's rules.
    ORDER_PLATFORM = 36;
    /// Kicks carry the driver's position.
    NOTIFICATION_DATA = 38;
    /// A single queue can be reset.
    RING_RESET = 40;
    /// The device can be suspended.
    SUSPEND = 43;
    /// The device serves statistics by command.
    DEVICE_STATS = 50;
    /// Hashes may cover inner headers.
    HASH_TUNNEL = 51;
    /// Notifications of one queue can be coalesced.
    VQ_NOTF_COAL = 52;
    /// Notifications can be coalesced.
    NOTF_COAL = 53;
    /// The driver takes unsegmented UDP over IPv4.
    GUEST_USO4 = 54;
    /// The driver takes unsegmented UDP over IPv6.
    GUEST_USO6 = 55;
    /// The device takes unsegmented UDP.
    HOST_USO = 56;
    /// The device reports a hash with each frame.
    HASH_REPORT = 57;
    /// The driver gives exact header lengths.
    GUEST_HDRLEN = 59;
    /// Receive-side scaling.
    RSS = 60;
    /// Coalesced segments are described.
    RSC_EXT = 61;
    /// The device stands by for a primary of equal MAC.
    STANDBY = 62;
    /// The device reports speed and duplex.
    SPEED_DUPLEX = 63;
    /// Several RSS contexts (1.4).
    RSS_CONTEXT = 64;
    /// The driver takes unsegmented UDP tunnels (1.4).
    GUEST_UDP_TUNNEL_GSO = 65;
    /// The same with outer checksums (1.4).
    GUEST_UDP_TUNNEL_GSO_CSUM = 66;
    /// The device takes unsegmented UDP tunnels (1.4).
    HOST_UDP_TUNNEL_GSO = 67;
    /// The same with outer checksums (1.4).
    HOST_UDP_TUNNEL_GSO_CSUM = 68;
}

impl Feature {
    /// The feature's bit number, 0 to 127.
    #[must_use]
    pub const fn bit(self) -> u8 {
        self.0
    }

    /// The set that holds this feature alone.
    #[must_use]
    pub const fn mask(self) -> FeatureBits {
        let shift = u32::from_le_bytes([self.0, 0, 0, 0]);
        FeatureBits(1_u128.wrapping_shl(shift))
    }
}

/// What a feature needs: one of `any` must be in the set with it.
#[derive(Clone, Copy, Debug)]
pub struct Dependency {
    /// The feature that needs others.
    pub feature: Feature,
    /// Any one of these satisfies it.
    pub any: &'static [Feature],
}

const fn needs(feature: Feature, any: &'static [Feature]) -> Dependency {
    Dependency { feature, any }
}

/// Every dependency of §5.1.3.1; a feature that needs two others has two rows.
pub const DEPENDENCIES: &[Dependency] = &[
    needs(Feature::GUEST_TSO4, &[Feature::GUEST_CSUM]),
    needs(Feature::GUEST_TSO6, &[Feature::GUEST_CSUM]),
    needs(Feature::GUEST_UFO, &[Feature::GUEST_CSUM]),
    needs(Feature::GUEST_USO4, &[Feature::GUEST_CSUM]),
    needs(Feature::GUEST_USO6, &[Feature::GUEST_CSUM]),
    needs(Feature::GUEST_ECN, &[Feature::GUEST_TSO4, Feature::GUEST_TSO6]),
    needs(Feature::GUEST_UDP_TUNNEL_GSO, &[Feature::GUEST_TSO4]),
    needs(Feature::GUEST_UDP_TUNNEL_GSO, &[Feature::GUEST_TSO6]),
    needs(Feature::GUEST_UDP_TUNNEL_GSO, &[Feature::GUEST_USO4]),
    needs(Feature::GUEST_UDP_TUNNEL_GSO, &[Feature::GUEST_USO6]),
    needs(Feature::GUEST_UDP_TUNNEL_GSO_CSUM, &[Feature::GUEST_UDP_TUNNEL_GSO]),
    needs(Feature::HOST_TSO4, &[Feature::CSUM]),
    needs(Feature::HOST_TSO6, &[Feature::CSUM]),
    needs(Feature::HOST_UFO, &[Feature::CSUM]),
    needs(Feature::HOST_USO, &[Feature::CSUM]),
    needs(Feature::HOST_ECN, &[Feature::HOST_TSO4, Feature::HOST_TSO6]),
    needs(Feature::HOST_UDP_TUNNEL_GSO, &[Feature::HOST_TSO4]),
    needs(Feature::HOST_UDP_TUNNEL_GSO, &[Feature::HOST_TSO6]),
    needs(Feature::HOST_UDP_TUNNEL_GSO, &[Feature::HOST_USO]),
    needs(Feature::HOST_UDP_TUNNEL_GSO_CSUM, &[Feature::HOST_UDP_TUNNEL_GSO]),
    needs(Feature::CTRL_RX, &[Feature::CTRL_VQ]),
    needs(Feature::CTRL_VLAN, &[Feature::CTRL_VQ]),
    needs(Feature::GUEST_ANNOUNCE, &[Feature::CTRL_VQ]),
    needs(Feature::MQ, &[Feature::CTRL_VQ]),
    needs(Feature::CTRL_MAC_ADDR, &[Feature::CTRL_VQ]),
    needs(Feature::NOTF_COAL, &[Feature::CTRL_VQ]),
    needs(Feature::VQ_NOTF_COAL, &[Feature::CTRL_VQ]),
    needs(Feature::RSS, &[Feature::CTRL_VQ]),
    needs(Feature::HASH_TUNNEL, &[Feature::CTRL_VQ]),
    needs(Feature::HASH_TUNNEL, &[Feature::RSS, Feature::HASH_REPORT]),
    needs(Feature::RSS_CONTEXT, &[Feature::RSS]),
    needs(Feature::RSC_EXT, &[Feature::HOST_TSO4, Feature::HOST_TSO6]),
];

impl FeatureBits {
    /// No feature at all.
    pub const NONE: Self = Self(0);

    /// The set of the features listed.
    #[must_use]
    pub const fn of(list: &[Feature]) -> Self {
        let mut bits = 0;
        let mut rest = list;
        while let [first, tail @ ..] = rest {
            bits |= first.mask().0;
            rest = tail;
        }
        Self(bits)
    }

    /// Whether the feature is in the set.
    #[must_use]
    pub const fn has(self, feature: Feature) -> bool {
        self.0 & feature.mask().0 != 0
    }

    /// The set with the feature added.
    #[must_use]
    pub const fn with(self, feature: Feature) -> Self {
        Self(self.0 | feature.mask().0)
    }

    /// The set with the feature taken out.
    #[must_use]
    pub const fn without(self, feature: Feature) -> Self {
        Self(self.0 & !feature.mask().0)
    }

    /// The lowest bit of the set as a feature, or `None` when the set is empty.
    #[must_use]
    pub const fn lowest(self) -> Option<Feature> {
        let [bit, ..] = self.0.trailing_zeros().to_le_bytes();
        if bit < 128 { Some(Feature(bit)) } else { None }
    }

    /// The first dependency that the set breaks, or `None` when it is closed.
    #[must_use]
    pub fn broken_dependency(self) -> Option<&'static Dependency> {
        DEPENDENCIES
            .iter()
            .find(|row| self.has(row.feature) && (self & Self::of(row.any)) == Self::NONE)
    }
}

impl BitAnd for FeatureBits {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for FeatureBits {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for FeatureBits {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl Not for FeatureBits {
    type Output = Self;
    fn not(self) -> Self {
        Self(!self.0)
    }
}

impl fmt::Debug for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "bit {}", self.0),
        }
    }
}

impl fmt::Debug for FeatureBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = *self;
        let mut first = true;
        while let Some(feature) = rest.lowest() {
            if !first {
                f.write_str(" ")?;
            }
            first = false;
            write!(f, "{feature:?}")?;
            rest = rest.without(feature);
        }
        if first { f.write_str("none") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::format;

    #[test]
    fn a_set_without_its_prerequisite_is_not_closed() {
        let set = FeatureBits::of(&[Feature::HOST_TSO4]);
        let row = set.broken_dependency().expect("TSO needs CSUM");
        assert_eq!(row.feature, Feature::HOST_TSO4);
        assert!(set.with(Feature::CSUM).broken_dependency().is_none());
    }

    #[test]
    fn either_alternative_satisfies_a_dependency() {
        let base = FeatureBits::of(&[Feature::GUEST_CSUM, Feature::GUEST_ECN]);
        assert!(base.broken_dependency().is_some());
        assert!(base.with(Feature::GUEST_TSO4).broken_dependency().is_none());
        assert!(base.with(Feature::GUEST_TSO6).broken_dependency().is_none());
    }

    /// §5.1.3.1, read once more: each feature of a row needs one of each list.
    #[test]
    fn every_dependency_of_the_standard_is_asked_for() {
        use Feature as F;
        let [tso, guest_tso] = [[F::HOST_TSO4, F::HOST_TSO6], [F::GUEST_TSO4, F::GUEST_TSO6]];
        type Row<'a> = (&'a str, &'a [Feature], &'a [&'a [Feature]]);
        let rows: &[Row<'_>] = &[
            (
                "NET-DEP-01",
                &[F::GUEST_TSO4, F::GUEST_TSO6, F::GUEST_UFO, F::GUEST_USO4, F::GUEST_USO6],
                &[&[F::GUEST_CSUM]],
            ),
            ("NET-DEP-02", &[F::GUEST_ECN], &[&guest_tso]),
            (
                "NET-DEP-03",
                &[F::GUEST_UDP_TUNNEL_GSO],
                &[&[F::GUEST_TSO4], &[F::GUEST_TSO6], &[F::GUEST_USO4], &[F::GUEST_USO6]],
            ),
            ("NET-DEP-04", &[F::GUEST_UDP_TUNNEL_GSO_CSUM], &[&[F::GUEST_UDP_TUNNEL_GSO]]),
            ("NET-DEP-05", &[F::HOST_TSO4, F::HOST_TSO6, F::HOST_UFO, F::HOST_USO], &[&[F::CSUM]]),
            ("NET-DEP-06", &[F::HOST_ECN], &[&tso]),
            (
                "NET-DEP-07",
                &[F::HOST_UDP_TUNNEL_GSO],
                &[&[F::HOST_TSO4], &[F::HOST_TSO6], &[F::HOST_USO]],
            ),
            ("NET-DEP-08", &[F::HOST_UDP_TUNNEL_GSO_CSUM], &[&[F::HOST_UDP_TUNNEL_GSO]]),
            (
                "NET-DEP-09",
                &[
                    F::CTRL_RX,
                    F::CTRL_VLAN,
                    F::CTRL_MAC_ADDR,
                    F::GUEST_ANNOUNCE,
                    F::MQ,
                    F::RSS,
                    F::NOTF_COAL,
                    F::VQ_NOTF_COAL,
                ],
                &[&[F::CTRL_VQ]],
            ),
            ("NET-DEP-10", &[F::RSC_EXT], &[&tso]),
            ("NET-DEP-11", &[F::HASH_TUNNEL], &[&[F::CTRL_VQ], &[F::RSS, F::HASH_REPORT]]),
            ("NET-DEP-12", &[F::RSS_CONTEXT], &[&[F::RSS]]),
        ];
        let mut asked = 0;
        for (row, features, needed) in rows {
            for feature in *features {
                for missing in *needed {
                    // All there are, without what is in question and what stands on it.
                    let mut set = FeatureBits(u128::MAX);
                    missing.iter().for_each(|one| set = set.without(*one));
                    let mut broken = DEPENDENCIES.iter().filter(|row| {
                        set.has(row.feature) && (set & FeatureBits::of(row.any)).0 == 0
                    });
                    assert!(broken.any(|row| row.feature == *feature), "{row}: {feature:?}");
                    for one in *missing {
                        let whole = set.with(*one);
                        let broken = DEPENDENCIES.iter().any(|row| {
                            row.feature == *feature
                                && row.any.contains(one)
                                && (whole & FeatureBits::of(row.any)).0 == 0
                        });
                        assert!(!broken, "{row}: {one:?} is enough");
                    }
                    asked += 1;
                }
            }
        }
        assert_eq!(asked, DEPENDENCIES.len(), "and no other");
    }

    #[test]
    fn bits_past_63_and_unnamed_bits_are_shown() {
        let set = FeatureBits(1 << 65 | 1 << 4);
        assert_eq!(format!("{set:?}"), "bit 4 GUEST_UDP_TUNNEL_GSO");
        assert_eq!(format!("{:?}", FeatureBits::NONE), "none");
    }
}
