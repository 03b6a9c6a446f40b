//! What the rounds of a case come to: medians, spread, and the ratio to the first back-end.

use std::time::Duration;

use serde::Serialize;
use vionet_driver::{LoadOptions, LoadReport};

use crate::cli::RingArg;

/// One thing to measure, as often as there are rounds.
pub(super) struct Case {
    pub(super) back_end: usize,
    pub(super) ring: &'static str,
    pub(super) size: String,
    pub(super) options: LoadOptions,
    pub(super) reports: Vec<LoadReport>,
}

pub(super) fn ring_name(ring: RingArg) -> &'static str {
    match ring {
        RingArg::Split => "split",
        RingArg::SplitInorder => "split-inorder",
        RingArg::Packed => "packed",
        RingArg::PackedInorder => "packed-inorder",
    }
}

/// The middle of all rounds, and the extremes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let high = sorted.get(middle).copied().unwrap_or(0.0);
        let low = sorted.get(middle.saturating_sub(1)).copied().unwrap_or(high);
        let median = if sorted.len().is_multiple_of(2) { f64::midpoint(low, high) } else { high };
        let edge = |value: Option<&f64>| value.copied().unwrap_or(0.0);
        Self { median, least: edge(sorted.first()), most: edge(sorted.last()) }
    }
}

/// How long frames took, in microseconds; the median round of each figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Latency {
    pub(super) least: f64,
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) p99_9: f64,
    pub(super) most: f64,
    /// Frames of all rounds by powers of two: up to so many nanoseconds, so many frames.
    pub(super) octaves: Vec<(u64, u64)>,
}

/// A row of the result.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Summary {
    pub(super) back_end: usize,
    pub(super) ring: &'static str,
    pub(super) size: String,
    pub(super) rounds: usize,
    pub(super) frames_per_second: Spread,
    pub(super) bits_per_second: f64,
    /// To the first back-end: the median of the ratios of each round.
    pub(super) ratio: Option<Spread>,
    pub(super) latency_us: Option<Latency>,
    /// Over all rounds.
    pub(super) lost: Option<u64>,
    pub(super) disorder: u64,
    pub(super) damaged: u64,
    pub(super) foreign: u64,
    pub(super) kicks_per_second: f64,
    /// Share of the driver's looks that found nothing to do.
    pub(super) driver_idle: f64,
    /// Processors that the back-end kept busy.
    pub(super) back_end_cpus: Option<f64>,
    pub(super) features: String,
}

#[expect(clippy::as_conversions, reason = "figures for people")]
fn number(count: u64) -> f64 {
    count as f64
}

fn microseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

impl Summary {
    /// What the rounds of `case` come to; `all` holds the first back-end's of the same kind.
    pub(super) fn of(case: &Case, all: &[Case]) -> Self {
        let reports = &case.reports;
        let median = |figure: &dyn Fn(&LoadReport) -> f64| Spread::of(reports.iter().map(figure));
        let sum = |figure: fn(&LoadReport) -> u64| reports.iter().map(figure).sum();
        let first = all
            .iter()
            .find(|other| (other.back_end, other.ring, &other.size) == (0, case.ring, &case.size));
        let first = first.filter(|_| case.back_end > 0);
        let ratio = first.map(|first| {
            let rounds = reports.iter().zip(&first.reports);
            Spread::of(rounds.map(|(this, first)| this.rate() / first.rate()))
        });
        let per_second = |report: &LoadReport, value: f64| value / report.time.as_secs_f64();
        let cpus = |report: &LoadReport| {
            report.back_end_time.map_or(0.0, |time| per_second(report, time.as_secs_f64()))
        };
        Self {
            back_end: case.back_end,
            ring: case.ring,
            size: case.size.clone(),
            rounds: reports.len(),
            frames_per_second: median(&LoadReport::rate),
            bits_per_second: median(&LoadReport::bits_per_second).median,
            ratio,
            latency_us: latency(reports),
            lost: reports.iter().map(|report| report.lost).sum(),
            disorder: sum(|report| report.disorder),
            damaged: sum(|report| report.damaged),
            foreign: sum(|report| report.foreign),
            kicks_per_second: median(&|report| per_second(report, number(report.kicks))).median,
            driver_idle: median(&|report| report.idle).median,
            back_end_cpus: reports
                .iter()
                .all(|report| report.back_end_time.is_some())
                .then(|| median(&cpus).median),
            features: reports
                .first()
                .map_or_else(String::new, |report| format!("{:?}", report.features)),
        }
    }

    /// Whether every frame came back whole and in its turn.
    pub(super) fn is_sound(&self) -> bool {
        self.lost == Some(0) && self.disorder == 0 && self.damaged == 0
    }
}

fn latency(reports: &[LoadReport]) -> Option<Latency> {
    let histograms: Vec<_> = reports.iter().filter_map(|report| report.latency.as_ref()).collect();
    if histograms.iter().all(|histogram| histogram.count() == 0) {
        return None;
    }
    let quantile = |millionths| {
        Spread::of(histograms.iter().map(|all| microseconds(all.quantile(millionths)))).median
    };
    let mut octaves: Vec<(u64, u64)> = Vec::new();
    for (top, count) in histograms.iter().flat_map(|histogram| histogram.octaves()) {
        match octaves.binary_search_by_key(&top, |(top, _)| *top) {
            Ok(at) => {
                if let Some((_, sum)) = octaves.get_mut(at) {
                    *sum = sum.saturating_add(count);
                }
            }
            Err(at) => octaves.insert(at, (top, count)),
        }
    }
    Some(Latency {
        least: Spread::of(histograms.iter().map(|all| microseconds(all.least()))).least,
        p50: quantile(500_000),
        p99: quantile(990_000),
        p99_9: quantile(999_000),
        most: Spread::of(histograms.iter().map(|all| microseconds(all.most()))).most,
        octaves,
    })
}

/// Everything, for machines.
pub(super) fn json(names: &[String], summaries: &[Summary]) -> String {
    let all = serde_json::json!({ "format": 1, "back_ends": names, "results": summaries });
    serde_json::to_string_pretty(&all).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Spread { median: 2.0, least: 1.0, most: 3.0 });
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(spread(&[]).median, 0.0);
    }
}
