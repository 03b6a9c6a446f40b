//! `vionet bench`: how fast a vhost-user network back-end is, measured from the driver's side.
//!
//! ```text
//!   for each round, ring, size and back-end in turn:   vionet_driver::load
//!   then                                               medians, spread, ratio to the first
//! ```
//!
//! Nothing in it knows whose back-end it is: what is compared is measured in turn, in one run.

mod chart;
mod result;
mod table;

use std::fs;
use std::io::{Write, stdout};
use std::path::Path;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};
use vionet_driver::{GuestError, LoadOptions, RingFormat, Way, load};

use crate::cli::{BenchArgs, FrameSizes, RingArg, WayArg};
use crate::exit::{Code, Stop};
use result::{Case, Summary};
use table::Progress;

/// Runs `vionet bench` to its end.
///
/// # Errors
/// With the line to print and the code to exit with.
pub fn run(args: &BenchArgs) -> Result<(), Stop> {
    let usage = |line: &str| Err(Stop::new(Code::Usage, line));
    if !args.to.is_empty() && args.to.len() != args.socket.len() {
        return usage("bench: give each --socket its own --to, in the same order");
    }
    if let Some(cpu) = args.cpu {
        settle_on(cpu)?;
    }
    let mut cases: Vec<Case> = cases(args);
    let mut progress = Progress::new(args, cases.len());
    for round in 0..args.rounds.get() {
        for case in &mut cases {
            progress.begin(case, round);
            let to = args.to.get(case.back_end).map(|path| path.as_path());
            let Some(socket) = args.socket.get(case.back_end) else { continue };
            let report = load(socket, to, &case.options, &mut |share| progress.tell(share));
            let report = report.map_err(|cause| {
                let code = match cause {
                    GuestError::Options(_) => Code::Usage,
                    _ => Code::Failure,
                };
                Stop::new(code, format!("bench: {}: {cause}", socket.display()))
            })?;
            progress.end();
            case.reports.push(report);
        }
    }
    let names: Vec<String> = args.socket.iter().map(|path| path.display().to_string()).collect();
    let summaries: Vec<Summary> = cases.iter().map(|case| Summary::of(case, &cases)).collect();
    let text =
        if args.json { result::json(&names, &summaries) } else { table::text(&names, &summaries) };
    // Whoever reads may have seen enough.
    let (Ok(()) | Err(_)) = stdout().write_all(text.as_bytes());
    if let Some(path) = &args.chart {
        draw(path, &names, &summaries)?;
    }
    let unsound = args.verify && summaries.iter().any(|summary| !summary.is_sound());
    if unsound {
        let line = "bench: frames were lost, changed, or came in another order: see the table";
        return Err(Stop::new(Code::Failure, line));
    }
    Ok(())
}

fn draw(path: &Path, names: &[String], summaries: &[Summary]) -> Result<(), Stop> {
    fs::write(path, chart::svg(names, summaries)).map_err(|cause| {
        Stop::new(Code::Failure, format!("bench: --chart {}: {cause}", path.display()))
    })
}

fn settle_on(cpu: u16) -> Result<(), Stop> {
    let mut set = CpuSet::new();
    let bad = |cause: &dyn std::fmt::Display| {
        Stop::new(Code::Config, format!("bench: --cpu {cpu}: {cause}"))
    };
    if usize::from(cpu) >= CpuSet::MAX_CPU {
        return Err(bad(&"there is no such processor"));
    }
    set.set(usize::from(cpu));
    sched_setaffinity(None, &set).map_err(|cause| bad(&cause))
}

/// All that is asked for, back-ends innermost: what is compared lies close in time.
fn cases(args: &BenchArgs) -> Vec<Case> {
    let mut cases = Vec::new();
    for ring in &args.ring {
        for size in &args.size {
            let options = options(args, *ring, size);
            let name = result::ring_name(*ring);
            cases.extend((0..args.socket.len()).map(|back_end| Case {
                back_end,
                ring: name,
                size: size.name.clone(),
                options: options.clone(),
                reports: Vec::new(),
            }));
        }
    }
    cases
}

fn options(args: &BenchArgs, ring: RingArg, size: &FrameSizes) -> LoadOptions {
    let (format, in_order) = match ring {
        RingArg::Split => (RingFormat::Split, false),
        RingArg::SplitInorder => (RingFormat::Split, true),
        RingArg::Packed => (RingFormat::Packed, false),
        RingArg::PackedInorder => (RingFormat::Packed, true),
    };
    let way = match args.way {
        _ if !args.to.is_empty() => Way::Through,
        None | Some(WayArg::Transmit) => Way::Transmit,
        Some(WayArg::Receive) => Way::Receive,
        Some(WayArg::Echo) => Way::Echo,
    };
    let time = Duration::from_secs_f64(args.seconds);
    LoadOptions {
        way,
        format,
        in_order,
        mergeable: !args.no_mergeable,
        event_idx: !args.no_event_idx,
        queue_size: args.queue_size,
        burst: args.burst,
        sizes: size.sizes.clone(),
        rate: args.rate,
        time,
        warm_up: time.min(LoadOptions::default().warm_up),
        verify: args.verify,
    }
}
