//! The result for people: a table, bars, and where frames came back their latency.

use std::io::{IsTerminal, Write, stderr};

use crate::cli::BenchArgs;

use super::result::{Case, Summary};

/// Characters of the longest bar.
const BAR: usize = 36;

/// A line on the terminal that tells how far the measurement is.
pub(super) struct Progress {
    shown: bool,
    cases: usize,
    rounds: u16,
    done: usize,
    what: String,
}

impl Progress {
    pub(super) fn new(args: &BenchArgs, cases: usize) -> Self {
        let shown = stderr().is_terminal();
        Self { shown, cases, rounds: args.rounds.get(), done: 0, what: String::new() }
    }

    pub(super) fn begin(&mut self, case: &Case, round: u16) {
        let back_end = case.back_end.saturating_add(1);
        let round = round.saturating_add(1);
        let (ring, size) = (case.ring, &case.size);
        self.what =
            format!("round {round} of {}, {ring}, {size} bytes, back-end {back_end}", self.rounds);
        self.tell(0.0);
    }

    #[expect(clippy::as_conversions, reason = "a percentage")]
    pub(super) fn tell(&mut self, share: f64) {
        if self.shown {
            let all = self.cases.saturating_mul(self.rounds.into());
            let percent = (self.done as f64 + share) / all as f64 * 100.0;
            // A line that cannot be shown is no reason to end.
            let (Ok(()) | Err(_)) = write!(stderr(), "\r\x1b[K  {percent:3.0} %  {}", self.what);
        }
    }

    pub(super) fn end(&mut self) {
        self.done = self.done.saturating_add(1);
        if self.shown {
            let (Ok(()) | Err(_)) = write!(stderr(), "\r\x1b[K");
        }
    }
}

/// Everything, for people.
pub(super) fn text(names: &[String], summaries: &[Summary]) -> String {
    let name = |(index, name): (usize, &String)| {
        format!("  back-end {}  {name}\n", index.saturating_add(1))
    };
    let names: String = names.iter().enumerate().map(name).collect();
    let latencies: String = summaries.iter().map(latency).collect();
    format!("{names}\n{}\n{}{latencies}", table(summaries), bars(summaries))
}

fn table(summaries: &[Summary]) -> String {
    let mut rows: Vec<Vec<String>> = vec![
        ["", "ring", "bytes", "frames/s", "spread", "ratio", "bits/s", "idle", "CPUs", "kicks/s"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let comes_back = summaries.iter().any(|summary| summary.lost.is_some());
    if let (true, Some(head)) = (comes_back, rows.first_mut()) {
        let more = ["p50 us", "p99 us", "p99.9 us", "lost", "disorder", "damaged"];
        head.extend(more.map(str::to_owned));
    }
    for summary in summaries {
        let rate = summary.frames_per_second;
        let mut row = vec![
            summary.back_end.saturating_add(1).to_string(),
            summary.ring.to_owned(),
            summary.size.clone(),
            unit(rate.median),
            format!("{}..{}", unit(rate.least), unit(rate.most)),
            summary.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.2}", ratio.median)),
            unit(summary.bits_per_second),
            format!("{:.0} %", summary.driver_idle * 100.0),
            summary.back_end_cpus.map_or_else(|| "-".to_owned(), |cpus| format!("{cpus:.2}")),
            unit(summary.kicks_per_second),
        ];
        if comes_back {
            let latency = summary.latency_us.as_ref();
            let figures = latency.map(|all| [all.p50, all.p99, all.p99_9]);
            let figures = figures.map(|all| all.map(|figure| format!("{figure:.1}")));
            row.extend(figures.unwrap_or_else(|| ["-", "-", "-"].map(str::to_owned)));
            row.push(summary.lost.map_or_else(|| "-".to_owned(), |lost| lost.to_string()));
            row.extend([summary.disorder, summary.damaged].map(|count| count.to_string()));
        }
        rows.push(row);
    }
    aligned(&rows)
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}"));
        format!("  {}\n", cells.collect::<Vec<_>>().join("  "))
    };
    rows.iter().map(line).collect()
}

fn bars(summaries: &[Summary]) -> String {
    let rate = |summary: &Summary| summary.frames_per_second.median;
    let most = summaries.iter().map(rate).fold(0.0, f64::max);
    let line = |summary: &Summary| {
        let who = summary.back_end.saturating_add(1);
        let (ring, size) = (summary.ring, &summary.size);
        let bar = bar(rate(summary) / most);
        format!("  {who} {ring:<14} {size:>9} |{bar:<BAR$}| {}\n", unit(rate(summary)))
    };
    summaries.iter().map(line).collect()
}

fn latency(summary: &Summary) -> String {
    let Some(latency) = &summary.latency_us else { return String::new() };
    let most = latency.octaves.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let who = summary.back_end.saturating_add(1);
    let (least, longest) = (latency.least, latency.most);
    let mut text = format!(
        "\n  latency, back-end {who}, {}, {} bytes: {least:.1} to {longest:.1} us\n",
        summary.ring, summary.size
    );
    for (top, count) in &latency.octaves {
        let bar = bar(ratio(*count, most));
        text += &format!("  up to {:>8} |{bar:<BAR$}| {count}\n", time(*top));
    }
    text
}

#[expect(clippy::as_conversions, reason = "a share for people")]
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// A bar that shows every share above nothing.
fn bar(share: f64) -> String {
    let mut bar: String = (0..BAR).map_while(|at| is_filled(at, share).then_some('#')).collect();
    if bar.is_empty() && share > 0.0 {
        bar.push('.');
    }
    bar
}

#[expect(clippy::as_conversions, reason = "a place among a few dozen")]
fn is_filled(at: usize, share: f64) -> bool {
    at as f64 + 0.5 <= share * BAR as f64
}

/// A number with the prefix that fits, three digits or more.
pub(super) fn unit(number: f64) -> String {
    let (number, prefix) = match number {
        giga if giga >= 1e9 => (giga / 1e9, "G"),
        mega if mega >= 1e6 => (mega / 1e6, "M"),
        kilo if kilo >= 1e4 => (kilo / 1e3, "k"),
        plain => return format!("{plain:.0}"),
    };
    format!("{number:.2}{prefix}")
}

/// Nanoseconds as people say them.
pub(super) fn time(nanoseconds: u64) -> String {
    match nanoseconds {
        0..10_000 => format!("{nanoseconds} ns"),
        10_000..10_000_000 => format!("{} us", nanoseconds / 1_000),
        _ => format!("{} ms", nanoseconds / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_prefix_that_fits() {
        let all = [0.0, 9_999.0, 12_345.0, 45.6e6, 7.8e9].map(unit);
        assert_eq!(all, ["0", "9999", "12.35k", "45.60M", "7.80G"]);
        assert_eq!([1_024, 1 << 20, 1 << 30].map(time), ["1024 ns", "1048 us", "1073 ms"]);
    }

    #[test]
    fn what_was_seen_once_can_be_seen() {
        assert_eq!([bar(0.0), bar(0.000_1)], ["", "."]);
        assert_eq!(bar(1.0).len(), BAR);
    }

    #[test]
    fn columns_stand_under_their_heads() {
        let rows =
            [vec!["a".to_owned(), "long".to_owned()], vec!["bcd".to_owned(), "x".to_owned()]];
        assert_eq!(aligned(&rows), "    a  long\n  bcd     x\n");
    }
}
