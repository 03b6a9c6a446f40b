//! A histogram of durations: exact below 32 ns, then within a thirty-second of the value.

use std::time::Duration;

/// Buckets of a power of two.
const STEPS: u64 = 32;
const STEPS_LOG: u32 = 5;
/// All that a number of 64 bits can be.
const BUCKETS: usize = 60 * 32;

/// How often which duration was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: Box<[u64]>,
    count: u64,
    least: u64,
    most: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        let counts = vec![0; BUCKETS].into_boxed_slice();
        Self { counts, count: 0, least: u64::MAX, most: 0 }
    }
}

/// The bucket of a value: the exponent's block, and the five bits behind the leading one.
fn bucket_of(value: u64) -> usize {
    let log = value.checked_ilog2().unwrap_or(0);
    let bucket = match log.checked_sub(STEPS_LOG) {
        None => value,
        Some(shift) => {
            let step = value.wrapping_shr(shift) & (STEPS - 1);
            u64::from(shift).saturating_add(1).saturating_mul(STEPS).saturating_add(step)
        }
    };
    usize::try_from(bucket).unwrap_or(usize::MAX)
}

/// The largest value of a bucket.
fn top_of(bucket: usize) -> u64 {
    let bucket = u64::try_from(bucket).unwrap_or(u64::MAX);
    let Some(shift) = (bucket / STEPS).checked_sub(1) else { return bucket };
    let shift = u32::try_from(shift).unwrap_or(u32::MAX);
    let next = STEPS.saturating_add(bucket % STEPS).saturating_add(1);
    // The last bucket ends with the numbers.
    next.checked_mul(1_u64.checked_shl(shift).unwrap_or(0))
        .map_or(u64::MAX, |top| top.wrapping_sub(1))
}

impl Histogram {
    /// Adds a duration in nanoseconds.
    pub fn add(&mut self, nanoseconds: u64) {
        if let Some(count) = self.counts.get_mut(bucket_of(nanoseconds)) {
            *count = count.saturating_add(1);
        }
        self.count = self.count.saturating_add(1);
        self.least = self.least.min(nanoseconds);
        self.most = self.most.max(nanoseconds);
    }

    /// How many durations were added.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The shortest.
    #[must_use]
    pub fn least(&self) -> Duration {
        Duration::from_nanos(self.least.min(self.most))
    }

    /// The longest.
    #[must_use]
    pub fn most(&self) -> Duration {
        Duration::from_nanos(self.most)
    }

    /// What `millionths` of all are not longer than: 999 000 for p99.9.
    #[must_use]
    pub fn quantile(&self, millionths: u32) -> Duration {
        let wanted = u128::from(self.count).saturating_mul(millionths.into()).div_ceil(1_000_000);
        let mut seen = 0_u128;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen = seen.saturating_add((*count).into());
            if seen >= wanted && *count > 0 {
                return Duration::from_nanos(top_of(bucket).min(self.most));
            }
        }
        self.most()
    }

    /// The counts by powers of two: the upper end of each in nanoseconds, and how many lie in it.
    #[must_use]
    pub fn octaves(&self) -> Vec<(u64, u64)> {
        let mut octaves: Vec<(u64, u64)> = Vec::new();
        for (bucket, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let top = top_of(bucket).max(1).checked_next_power_of_two().unwrap_or(u64::MAX);
            match octaves.last_mut() {
                Some((last, sum)) if *last == top => *sum = sum.saturating_add(*count),
                _ => octaves.push((top, *count)),
            }
        }
        octaves
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_number_has_a_bucket_that_holds_it() {
        let mut last = 0;
        for shift in 0..64 {
            for value in [1_u64 << shift, (1 << shift) + (1 << shift) / 3, u64::MAX >> (63 - shift)]
            {
                let bucket = bucket_of(value);
                assert!(bucket < BUCKETS, "{value}");
                assert!(bucket >= last && top_of(bucket) >= value, "{value}");
                assert!(bucket == 0 || top_of(bucket - 1) < value, "{value}");
                last = bucket;
            }
        }
        assert_eq!((bucket_of(0), top_of(0)), (0, 0));
        assert_eq!(top_of(bucket_of(u64::MAX)), u64::MAX);
    }

    #[test]
    fn nothing_added_is_nothing_seen() {
        let none = Histogram::default();
        assert_eq!((none.count(), none.least(), none.most()), (0, Duration::ZERO, Duration::ZERO));
        assert_eq!(none.quantile(500_000), Duration::ZERO);
    }

    proptest! {
        /// Against a sorted list.
        #[test]
        fn quantiles_are_those_of_the_list_within_a_thirty_second(
            values in prop::collection::vec(0..1_u64 << 40, 1..300),
            millionths in 1..=1_000_000_u32,
        ) {
            let (mut histogram, mut sorted) = (Histogram::default(), values.clone());
            values.iter().for_each(|value| histogram.add(*value));
            sorted.sort_unstable();
            let at = (sorted.len() as u64 * u64::from(millionths)).div_ceil(1_000_000) as usize;
            let exact = sorted[at - 1];
            let got = histogram.quantile(millionths).as_nanos() as u64;
            prop_assert!(got >= exact && got <= exact + exact / 32 + 1, "{got} for {exact}");
            let all: u64 = histogram.octaves().iter().map(|(_, count)| count).sum();
            prop_assert_eq!(all, histogram.count());
        }
    }
}
