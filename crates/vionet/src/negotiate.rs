//! Features: what is offered, what was agreed, and what that decides for the data path.
//!
//! The offer does not depend on what the endpoint of the day can finish by itself: what the guest
//! leaves open and the endpoint cannot take is finished in software (`pair/lower.rs`), and what the
//! guest would take unfinished may always come finished. So endpoints can be swapped, NICs moved.

use alloc::sync::Arc;
use core::fmt;

use vionet_frame::header::{HeaderLayout, Offloads};
use vionet_queue::{Format, RingFeatures};
use vionet_raw::AddressSpace;
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_spec::net::{FRAME_MAX, HDR_LEN, LINK_HDR_MAX};

use crate::config::NicConfig;

const SHORT: u8 = 12;
const _: () = assert!(HDR_LEN == 12, "as a length in a plan");

/// Each feature a driver may leave frames open with, and the offload it stands for.
const TRANSMIT: [(Feature, Offloads); 8] = [
    (Feature::CSUM, Offloads::CSUM),
    (Feature::HOST_TSO4, Offloads::TSO4),
    (Feature::HOST_TSO6, Offloads::TSO6),
    (Feature::HOST_ECN, Offloads::ECN),
    (Feature::HOST_UFO, Offloads::UFO),
    (Feature::HOST_USO, Offloads::USO),
    (Feature::HOST_UDP_TUNNEL_GSO, Offloads::TUNNEL),
    (Feature::HOST_UDP_TUNNEL_GSO_CSUM, Offloads::TUNNEL_CSUM),
];

/// Each feature a driver may take open frames with, and the offload it stands for.
const RECEIVE: [(Feature, Offloads); 9] = [
    (Feature::GUEST_CSUM, Offloads::CSUM),
    (Feature::GUEST_TSO4, Offloads::TSO4),
    (Feature::GUEST_TSO6, Offloads::TSO6),
    (Feature::GUEST_ECN, Offloads::ECN),
    (Feature::GUEST_UFO, Offloads::UFO),
    (Feature::GUEST_USO4, Offloads::USO4),
    (Feature::GUEST_USO6, Offloads::USO6),
    (Feature::GUEST_UDP_TUNNEL_GSO, Offloads::TUNNEL),
    (Feature::GUEST_UDP_TUNNEL_GSO_CSUM, Offloads::TUNNEL_CSUM),
];

/// What the device offers to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    bits: FeatureBits,
    mtu: u16,
}

impl Offer {
    /// The offer of such a device; its MTU is what the link carries.
    #[must_use]
    pub fn new(config: &NicConfig) -> Self {
        let mut bits = FeatureBits::of(&[
            Feature::VERSION_1,
            Feature::INDIRECT_DESC,
            Feature::EVENT_IDX,
            Feature::RING_PACKED,
            Feature::IN_ORDER,
            Feature::ORDER_PLATFORM,
            Feature::RING_RESET,
            Feature::MAC,
            Feature::STATUS,
            Feature::MTU,
            Feature::MRG_RXBUF,
            Feature::CSUM,
            Feature::HOST_TSO4,
            Feature::HOST_TSO6,
            Feature::HOST_ECN,
            Feature::GUEST_CSUM,
            Feature::GUEST_TSO4,
            Feature::GUEST_TSO6,
            Feature::GUEST_ECN,
            Feature::GUEST_UFO,
            Feature::GUEST_USO4,
            Feature::GUEST_USO6,
            Feature::GUEST_UDP_TUNNEL_GSO,
            Feature::GUEST_UDP_TUNNEL_GSO_CSUM,
            Feature::GUEST_HDRLEN,
            Feature::RSC_EXT,
            Feature::HOST_UFO,
            Feature::HOST_USO,
            Feature::HOST_UDP_TUNNEL_GSO,
            Feature::HOST_UDP_TUNNEL_GSO_CSUM,
            Feature::CTRL_VQ,
            Feature::CTRL_RX,
            Feature::CTRL_RX_EXTRA,
            Feature::CTRL_VLAN,
            Feature::RSS,
            Feature::HASH_REPORT,
            Feature::HASH_TUNNEL,
            Feature::CTRL_GUEST_OFFLOADS,
            Feature::GUEST_ANNOUNCE,
            Feature::NOTF_COAL,
            Feature::VQ_NOTF_COAL,
            Feature::DEVICE_STATS,
            Feature::SPEED_DUPLEX,
        ]);
        let by_choice = [
            (config.pairs > 1, Feature::MQ),
            (config.mac_may_change, Feature::CTRL_MAC_ADDR),
            (config.standby, Feature::STANDBY),
        ];
        for (_, feature) in by_choice.into_iter().filter(|(chosen, _)| *chosen) {
            bits = bits.with(feature);
        }
        Self { bits, mtu: config.mtu }
    }

    /// The same from a device whose memory access is translated by the platform.
    #[must_use]
    pub const fn with_platform(self) -> Self {
        Self { bits: self.bits.with(Feature::ACCESS_PLATFORM), ..self }
    }

    /// The same with more features.
    #[cfg(feature = "std")]
    pub(crate) fn with(self, more: FeatureBits) -> Self {
        Self { bits: self.bits | more, ..self }
    }

    /// The same without a feature.
    pub(crate) const fn without(self, feature: Feature) -> Self {
        Self { bits: self.bits.without(feature), ..self }
    }

    /// The feature bits to show.
    #[must_use]
    pub const fn bits(&self) -> FeatureBits {
        self.bits
    }

    /// Takes the driver's choice, if it is one (FEAT-02, FEAT-03).
    ///
    /// # Errors
    /// When a bit was not offered, misses what it needs, or VERSION_1 is missing.
    pub fn accept(&self, driver: FeatureBits) -> Result<Negotiated, Refusal> {
        if let Some(feature) = (driver & !self.bits).lowest() {
            return Err(Refusal::NotOffered(feature));
        }
        if !driver.has(Feature::VERSION_1) {
            return Err(Refusal::NotModern);
        }
        if let Some(row) = driver.broken_dependency() {
            return Err(Refusal::Needs { feature: row.feature, any: row.any });
        }
        Ok(Negotiated { bits: driver, plan: Plan::of(driver, self.mtu) })
    }

    /// The same from a front-end that may serve the control queue itself: what needs CTRL_VQ may
    /// come without it.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub fn accept_by_front_end(&self, driver: FeatureBits) -> Result<Negotiated, Refusal> {
        let agreed = self.accept(driver.with(Feature::CTRL_VQ))?;
        Ok(Negotiated { bits: driver, ..agreed })
    }
}

/// Why a choice of features is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// FEAT-06: the bit was not offered.
    NotOffered(Feature),
    /// FEAT-07: none of the features it needs was chosen with it.
    Needs {
        /// The feature in question.
        feature: Feature,
        /// One of these is needed.
        any: &'static [Feature],
    },
    /// RSV-11: a driver without VERSION_1 is a legacy driver.
    NotModern,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOffered(feature) => write!(f, "{feature:?} was not offered"),
            Self::Needs { feature, any } => write!(f, "{feature:?} needs one of {any:?}"),
            Self::NotModern => f.write_str("a legacy driver (without VERSION_1) is not served"),
        }
    }
}

impl core::error::Error for Refusal {}

/// What device and driver have agreed on; only [`Offer::accept`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    bits: FeatureBits,
    plan: Plan,
}

impl Negotiated {
    /// The features agreed on.
    #[must_use]
    pub const fn bits(&self) -> FeatureBits {
        self.bits
    }

    /// What they decide for the data path.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What they decide for addresses: without ACCESS_PLATFORM a driver's are guest addresses,
    /// whatever the platform would make of them (RSV-05).
    pub(crate) fn space(&self, space: &Arc<AddressSpace>) -> Arc<AddressSpace> {
        if self.bits.has(Feature::ACCESS_PLATFORM) || !space.is_translated() {
            return Arc::clone(space);
        }
        Arc::new(AddressSpace::new(Arc::clone(space.map())))
    }

    /// What they decide for the rings.
    #[must_use]
    pub const fn ring(&self) -> RingFeatures {
        RingFeatures {
            format: if self.bits.has(Feature::RING_PACKED) {
                Format::Packed
            } else {
                Format::Split
            },
            event_idx: self.bits.has(Feature::EVENT_IDX),
            indirect: self.bits.has(Feature::INDIRECT_DESC),
            in_order: self.bits.has(Feature::IN_ORDER),
        }
    }
}

/// What the data path needs to know, decided. No feature bit is tested past this point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Bytes of the virtio header in front of every frame.
    pub header_len: u8,
    /// The driver is told of how many segments a frame was joined (RSC_EXT).
    pub coalesced_info: bool,
    /// A received frame may span several buffers.
    pub mergeable: bool,
    /// What the driver may leave open.
    pub transmit: Offloads,
    /// What the driver takes open.
    pub receive: Offloads,
    /// The largest IP packet that is not to be cut, in bytes.
    pub mtu: u16,
    /// The longest frame either way, without its virtio header.
    pub frame_max: u32,
    /// The longest received frame whose header has 12 bytes and nothing to say; 0 if all headers
    /// are longer. Such frames are most, and this is all that is asked of them.
    pub(crate) plain_max: u32,
}

impl Plan {
    /// Whether the header has 12 bytes, as it mostly does.
    #[inline]
    pub(crate) const fn has_short_header(&self) -> bool {
        self.header_len == SHORT
    }

    fn of(bits: FeatureBits, mtu: u16) -> Self {
        let chosen = |table: &[(Feature, Offloads)]| {
            let chosen = table.iter().filter(|(feature, _)| bits.has(*feature));
            chosen.fold(Offloads::NONE, |sum, (_, one)| sum.union(*one))
        };
        let tunnels = [
            Feature::HOST_UDP_TUNNEL_GSO,
            Feature::HOST_UDP_TUNNEL_GSO_CSUM,
            Feature::GUEST_UDP_TUNNEL_GSO,
            Feature::GUEST_UDP_TUNNEL_GSO_CSUM,
        ];
        let tunnel = tunnels.into_iter().any(|feature| bits.has(feature));
        let layout = HeaderLayout::of(bits.has(Feature::HASH_REPORT), tunnel);
        let header_len = u8::try_from(layout.len()).unwrap_or(u8::MAX);
        let uncut_max = u32::from(mtu).saturating_add(LINK_HDR_MAX); // NET-CFG-05
        Self {
            header_len,
            coalesced_info: bits.has(Feature::RSC_EXT),
            mergeable: bits.has(Feature::MRG_RXBUF),
            transmit: chosen(&TRANSMIT),
            receive: chosen(&RECEIVE),
            mtu,
            frame_max: u32::try_from(FRAME_MAX).unwrap_or(u32::MAX),
            plain_max: if header_len == SHORT { uncut_max } else { 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(mtu: u16) -> Offer {
        Offer::new(&NicConfig { mtu, pairs: 4, ..NicConfig::default() })
    }

    const MODERN: FeatureBits = FeatureBits::of(&[Feature::VERSION_1]);

    #[test]
    fn the_offer_is_closed_under_dependencies() {
        assert!(offer(1500).bits().broken_dependency().is_none());
    }

    #[test]
    fn any_closed_subset_with_version_1_is_accepted() {
        let offer = offer(1500);
        assert!(offer.accept(MODERN).is_ok());
        assert!(offer.accept(offer.bits()).is_ok());
        assert!(offer.accept(offer.bits().without(Feature::HOST_ECN)).is_ok());
    }

    /// FEAT-04, FEAT-09: bits of other device types, of other transports and those that nobody
    /// has given a meaning are not offered.
    #[test]
    fn what_is_offered_is_ours_to_offer() {
        let every = NicConfig { pairs: 4, standby: true, ..NicConfig::default() };
        for bits in [offer(1500).bits(), Offer::new(&every).with_platform().bits()] {
            assert!(bits.has(Feature::VERSION_1), "RSV-01");
            assert!(bits.has(Feature::CTRL_VQ), "NET-CFG-13, -14");
            let mut rest = bits;
            while let Some(feature) = rest.lowest() {
                assert!(feature.name().is_some(), "{feature:?}");
                rest = rest.without(feature);
            }
            // ADMIN_VQ, SR_IOV (RSV-10), NOTIF_CONFIG_DATA, and what is left of legacy devices.
            for bit in [41, 37, 39, 24, 27, 30, 6] {
                assert_eq!(bits.0 >> bit & 1, 0, "bit {bit}");
                let with = FeatureBits(MODERN.0 | 1 << bit);
                let refused = offer(1500).accept(with);
                assert!(matches!(refused, Err(Refusal::NotOffered(_))), "RSV-12");
            }
        }
        assert!(Offer::new(&every).bits().has(Feature::STANDBY), "NET-CFG-09");
    }

    /// NET-CFG-21: the standard makes these two depend on nothing.
    #[test]
    fn features_without_a_way_to_be_commanded_are_accepted() {
        for feature in [Feature::HASH_REPORT, Feature::CTRL_RX_EXTRA] {
            assert!(offer(1500).accept(MODERN.with(feature)).is_ok(), "{feature:?}");
        }
    }

    proptest::proptest! {
        /// FEAT-02, FEAT-03, FEAT-06, FEAT-07.
        #[test]
        fn a_choice_is_accepted_exactly_if_it_is_offered_whole_and_closed(
            chosen: u128, sparse: u128, surplus in 0_u32..512,
        ) {
            let offer = offer(1500);
            let mut choice = FeatureBits(offer.bits().0 & chosen & sparse) | MODERN;
            let closed = choice.broken_dependency().is_none();
            proptest::prop_assert_eq!(offer.accept(choice).is_ok(), closed);
            // What stands on something missing is taken out, until nothing does.
            while let Some(row) = choice.broken_dependency() {
                choice = choice.without(row.feature);
            }
            let agreed = offer.accept(choice);
            proptest::prop_assert_eq!(agreed.map(|agreed| agreed.bits()), Ok(choice));
            if surplus < 128 && offer.bits().0 >> surplus & 1 == 0 {
                let more = FeatureBits(choice.0 | 1 << surplus);
                let refused = offer.accept(more);
                proptest::prop_assert!(matches!(refused, Err(Refusal::NotOffered(_))));
            }
        }
    }

    #[test]
    fn a_refusal_names_the_rule() {
        let offer = offer(1500);
        assert_eq!(
            offer.accept(MODERN.with(Feature::SUSPEND)),
            Err(Refusal::NotOffered(Feature::SUSPEND))
        );
        assert_eq!(offer.accept(FeatureBits::NONE), Err(Refusal::NotModern));
        let refusal = offer.accept(MODERN.with(Feature::HOST_TSO4)).unwrap_err();
        assert!(matches!(refusal, Refusal::Needs { feature: Feature::HOST_TSO4, .. }));
    }

    #[test]
    fn the_plan_follows_the_choice_and_not_the_offer() {
        let choice = MODERN.with(Feature::CSUM).with(Feature::HOST_TSO6).with(Feature::GUEST_CSUM);
        let agreed = offer(9000).accept(choice).unwrap();
        let plan = agreed.plan();
        assert_eq!(plan.transmit, Offloads::CSUM | Offloads::TSO6);
        assert_eq!(plan.receive, Offloads::CSUM);
        assert!(!plan.mergeable);
        assert_eq!((plan.header_len, plan.mtu), (12, 9000));
    }
}
