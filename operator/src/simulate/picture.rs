//! The comparison as one SVG: arrivals, and for each way the pressure, the time to the first token and the profile.

use std::fmt::Write as _;

use super::fleet::{Column, Outcome};

const WIDTH: f64 = 1100.0;
const LEFT: f64 = 170.0;
const HEIGHT: f64 = 90.0;
const GAP: f64 = 26.0;
/// Pressure at the top of a panel.
const TOP_PRESSURE: f64 = 2.0;
/// Time to the first token at bottom and top of a panel, in seconds; the axis is logarithmic.
const TTFT: (f64, f64) = (0.05, 500.0);
/// Colours of the rungs, quality first.
const COLOURS: [&str; 4] = ["#d7ead9", "#fbe3b5", "#f7c6a3", "#efa9a0"];

/// Draws the outcomes, one panel each; `profiles` are the ladder's names.
pub fn svg(outcomes: &[Outcome], profiles: &[String]) -> String {
    let panels = outcomes.len() as f64 + 1.0;
    let total = 40.0 + panels * (HEIGHT + GAP) + 20.0;
    let width = LEFT + WIDTH + 30.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {total}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut x = LEFT;
    for (name, colour) in profiles.iter().zip(COLOURS) {
        let name = escape(name);
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"10\" width=\"14\" height=\"14\" fill=\"{colour}\"/><text x=\"{}\" y=\"22\">{name}</text>",
            x + 20.0
        );
        x += 40.0 + 8.0 * name.len() as f64;
    }
    let _ = writeln!(
        text,
        "<text x=\"{x}\" y=\"22\" fill=\"#1f4e9e\">pressure (line at 1)</text>\
         <text x=\"{}\" y=\"22\" fill=\"#a02020\">longest TTFT, {} to {} s, logarithmic</text>",
        x + 140.0,
        TTFT.0,
        TTFT.1
    );
    let mut top = 40.0;
    if let Some(first) = outcomes.first() {
        let most = first.timeline.iter().map(|column| column.arrivals).max().unwrap_or(0).max(1);
        label(&mut text, top, "arrivals", &format!("up to {:.1}/s", f64::from(most) / first.column_seconds));
        line(&mut text, first, top, "#555", |column| Some(f64::from(column.arrivals) / f64::from(most)));
    }
    for outcome in outcomes {
        top += HEIGHT + GAP;
        bands(&mut text, outcome, top);
        let _ = writeln!(
            text,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\" stroke=\"#1f4e9e\" stroke-dasharray=\"3 4\"/>",
            LEFT + WIDTH,
            y = top + HEIGHT * (1.0 - 1.0 / TOP_PRESSURE)
        );
        line(&mut text, outcome, top, "#1f4e9e", |column| column.rung.map(|_| column.pressure / TOP_PRESSURE));
        line(&mut text, outcome, top, "#a02020", |column| {
            (column.ttft > 0.0).then(|| (column.ttft / TTFT.0).ln() / (TTFT.1 / TTFT.0).ln())
        });
        let figures = format!(
            "p95 TTFT {:.1} s, {:.1} GPU-h",
            outcome.time_to_first_token.quantile(0.95),
            outcome.gpu_seconds / 3600.0
        );
        label(&mut text, top, &outcome.name, &figures);
    }
    let span = outcomes.first().map_or(0.0, |outcome| outcome.column_seconds * outcome.timeline.len() as f64);
    for tick in 0..=4 {
        let share = f64::from(tick) / 4.0;
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{:.0} min</text>",
            LEFT + share * WIDTH,
            top + HEIGHT + 18.0,
            share * span / 60.0
        );
    }
    text.push_str("</svg>\n");
    text
}

fn label(text: &mut String, top: f64, name: &str, figures: &str) {
    let _ = writeln!(
        text,
        "<text x=\"8\" y=\"{}\" font-weight=\"bold\">{}</text><text x=\"8\" y=\"{}\" font-size=\"10\">{}</text>\
         <rect x=\"{LEFT}\" y=\"{top}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#bbb\"/>",
        top + 20.0,
        escape(name),
        top + 38.0,
        escape(figures),
    );
}

/// The active profile as coloured spans.
fn bands(text: &mut String, outcome: &Outcome, top: f64) {
    let width = WIDTH / outcome.timeline.len() as f64;
    let (mut start, mut current, mut known) = (0, None, None);
    for place in 0..=outcome.timeline.len() {
        // A column in which nobody decided shows what was before, up to the last decision.
        let rest = outcome.timeline.get(place..).unwrap_or_default();
        known = match rest.first() {
            Some(column) if column.rung.is_some() => column.rung,
            Some(_) if rest.iter().any(|column| column.rung.is_some()) => known.or(Some(0)),
            _ => None,
        };
        if known != current {
            if let Some(colour) = current.and_then(|rung: usize| COLOURS.get(rung)) {
                let _ = writeln!(
                    text,
                    "<rect x=\"{:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{HEIGHT}\" fill=\"{colour}\"/>",
                    LEFT + start as f64 * width,
                    (place - start) as f64 * width
                );
            }
            (start, current) = (place, known);
        }
    }
}

/// A curve of shares (0 at the bottom, 1 at the top) over the columns that have one.
fn line(text: &mut String, outcome: &Outcome, top: f64, colour: &str, share: impl Fn(&Column) -> Option<f64>) {
    let width = WIDTH / outcome.timeline.len() as f64;
    let mut points = String::new();
    for (place, column) in outcome.timeline.iter().enumerate() {
        if let Some(share) = share(column) {
            let y = top + HEIGHT * (1.0 - share.clamp(0.0, 1.0));
            let _ = write!(points, "{:.1},{y:.1} ", LEFT + (place as f64 + 0.5) * width);
        }
    }
    let _ = writeln!(text, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\"/>", points.trim_end());
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_a_panel_for_each_outcome_and_a_band_for_each_profile() {
        let column = |rung| Column { rung: Some(rung), pressure: 0.5, ..Column::default() };
        let outcome = Outcome {
            name: "a < b".to_owned(),
            column_seconds: 1.0,
            timeline: vec![column(0), column(1), column(1)],
            ..Outcome::default()
        };
        let picture = svg(&[outcome], &["quality".to_owned(), "density".to_owned()]);
        let count = |what: &str| picture.matches(what).count();
        // One in the legend and one in the panel.
        assert_eq!((count(COLOURS[0]), count(COLOURS[1]), count(COLOURS[2])), (2, 2, 0));
        assert_eq!(count("a &lt; b"), 1);
        assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
    }
}
