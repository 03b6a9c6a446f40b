//! Sets of what a driver or a host side may leave for the other side to finish.

use core::fmt;
use core::ops::BitOr;

/// What headers of one direction may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Offloads(u16);

impl Offloads {
    /// Nothing: every frame is complete.
    pub const NONE: Self = Self(0);
    /// Checksums left to be completed.
    pub const CSUM: Self = Self(1);
    /// TCP over IPv4 left to be cut.
    pub const TSO4: Self = Self(1 << 1);
    /// TCP over IPv6 left to be cut.
    pub const TSO6: Self = Self(1 << 2);
    /// TCP with ECN left to be cut.
    pub const ECN: Self = Self(1 << 3);
    /// UDP left to be fragmented.
    pub const UFO: Self = Self(1 << 4);
    /// UDP over IPv4 left to be cut into datagrams.
    pub const USO4: Self = Self(1 << 5);
    /// UDP over IPv6 left to be cut into datagrams.
    pub const USO6: Self = Self(1 << 6);
    /// UDP left to be cut into datagrams. A header does not say over which IP version, and a
    /// transmitting driver has one feature for both (HOST_USO).
    pub const USO: Self = Self::USO4.union(Self::USO6);
    /// What may be left to be cut, also in a UDP tunnel.
    pub const TUNNEL: Self = Self(1 << 7);
    /// The checksum of a tunnel's UDP header left to be completed in each segment.
    pub const TUNNEL_CSUM: Self = Self(1 << 8);
    /// All of them.
    pub const ALL: Self = Self((1 << 9) - 1);

    /// Whether every offload of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        other.is_subset(self)
    }

    /// Whether every offload of this set is in `other`.
    #[must_use]
    pub const fn is_subset(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// The offloads in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The offloads in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The offloads of this set that are not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether nothing is allowed.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Offloads {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl fmt::Debug for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(Offloads, &str); 9] = [
            (Offloads::CSUM, "csum"),
            (Offloads::TSO4, "tso4"),
            (Offloads::TSO6, "tso6"),
            (Offloads::ECN, "ecn"),
            (Offloads::UFO, "ufo"),
            (Offloads::USO4, "uso4"),
            (Offloads::USO6, "uso6"),
            (Offloads::TUNNEL, "tunnel"),
            (Offloads::TUNNEL_CSUM, "tunnel-csum"),
        ];
        let present = NAMES.iter().filter(|(one, _)| self.contains(*one)).map(|(_, name)| name);
        f.debug_set().entries(present).finish()
    }
}
