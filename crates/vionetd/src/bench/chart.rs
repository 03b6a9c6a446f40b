//! The result as a drawing: rates as bars with their spread, latencies as histograms (SVG).

use super::result::Summary;
use super::table::{ratio, time, unit};

const WIDTH: f64 = 860.0;
/// Where bars begin, and how long the longest is.
const LEFT: f64 = 250.0;
const LONGEST: f64 = 470.0;
const ROW: f64 = 24.0;
const COLOURS: [&str; 4] = ["#2b6cb0", "#dd6b20", "#2f855a", "#805ad5"];

fn colour(back_end: usize) -> &'static str {
    // Their number is small: one for each socket on a command line.
    COLOURS.iter().cycle().nth(back_end).copied().unwrap_or("#2b6cb0")
}

/// Text that cannot end its element.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

struct Drawing {
    body: String,
    y: f64,
}

impl Drawing {
    fn text(&mut self, x: f64, anchor: &str, weight: &str, text: &str) {
        let (y, text) = (self.y, escaped(text));
        self.body += &format!(
            "<text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"{anchor}\" font-weight=\"{weight}\">\
             {text}</text>\n"
        );
    }

    fn heading(&mut self, text: &str) {
        self.y += ROW * 1.5;
        self.text(16.0, "start", "bold", text);
        self.y += ROW * 0.3;
    }

    /// A bar, its name before it and its number behind; the thin line is the spread.
    fn row(&mut self, name: &str, share: f64, spread: Option<(f64, f64)>, fill: &str, text: &str) {
        self.y += ROW;
        self.text(LEFT - 10.0, "end", "normal", name);
        let (top, length) = (self.y - 13.0, (share * LONGEST).max(1.0));
        self.body += &format!(
            "<rect x=\"{LEFT}\" y=\"{top:.0}\" width=\"{length:.1}\" height=\"16\" \
             fill=\"{fill}\"/>\n"
        );
        if let Some((least, most)) = spread.filter(|(least, most)| most > least) {
            let (from, to) = (LEFT + least * LONGEST, LEFT + most * LONGEST);
            let middle = top + 8.0;
            self.body += &format!(
                "<line x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{middle:.0}\" y2=\"{middle:.0}\" \
                 stroke=\"#1a202c\" stroke-width=\"2\"/>\n"
            );
        }
        let end = spread.map_or(share, |(_, most)| share.max(most)) * LONGEST;
        self.text(LEFT + end + 8.0, "start", "normal", text);
    }
}

/// The whole drawing.
pub(super) fn svg(names: &[String], summaries: &[Summary]) -> String {
    let mut drawing = Drawing { body: String::new(), y: 0.0 };
    drawing.heading("frames per second: the median, and from the least to the most");
    for (index, name) in names.iter().enumerate() {
        drawing.y += ROW * 0.9;
        let (y, fill) = (drawing.y - 11.0, colour(index));
        drawing.body +=
            &format!("<rect x=\"16\" y=\"{y:.0}\" width=\"12\" height=\"12\" fill=\"{fill}\"/>\n");
        drawing.text(34.0, "start", "normal", name);
    }
    let most = summaries.iter().map(|summary| summary.frames_per_second.most).fold(1.0, f64::max);
    for summary in summaries {
        let rate = summary.frames_per_second;
        let name = format!("{}, {} bytes", summary.ring, summary.size);
        let ratio = summary.ratio.map(|ratio| format!("  x {:.2}", ratio.median));
        let text = format!("{}{}", unit(rate.median), ratio.unwrap_or_default());
        let spread = Some((rate.least / most, rate.most / most));
        drawing.row(&name, rate.median / most, spread, colour(summary.back_end), &text);
    }
    for summary in summaries {
        let Some(latency) = &summary.latency_us else { continue };
        let (ring, size) = (summary.ring, &summary.size);
        drawing.heading(&format!(
            "latency, {ring}, {size} bytes: p50 {:.1}, p99 {:.1}, p99.9 {:.1} us",
            latency.p50, latency.p99, latency.p99_9
        ));
        let most = latency.octaves.iter().map(|(_, count)| *count).max().unwrap_or(1);
        for (top, count) in &latency.octaves {
            let name = format!("up to {}", time(*top));
            let fill = colour(summary.back_end);
            drawing.row(&name, ratio(*count, most), None, fill, &count.to_string());
        }
    }
    let (height, body) = (drawing.y + ROW, drawing.body);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#1a202c\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out_of_the_drawing() {
        let names = ["</svg><script>".to_owned()];
        let drawing = svg(&names, &[]);
        assert!(drawing.contains("&lt;/svg&gt;&lt;script&gt;"));
        assert_eq!(drawing.matches("</svg>").count(), 1);
    }
}
