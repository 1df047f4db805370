//! The picture of a replay: panels over one time axis, as a self-contained SVG.

use std::fmt::Write;

use super::Outcome;
use super::report::seconds;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 20.0;
const PANEL: f64 = 90.0;
const GAP: f64 = 34.0;
const BAND: f64 = 18.0;
/// Height of the band's key.
const KEY: f64 = 14.0;
const TOP: f64 = 54.0;

/// Colours that colour-blind readers can tell apart (Okabe and Ito's), for profiles in the order of their appearance.
const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"];

/// Of what is drawn beside for comparison.
const GREY: &str = "#aaaaaa";

/// Another replay of the same trace, drawn in grey beside the first for comparison.
#[derive(Clone, Copy, Debug)]
pub struct Beside<'a> {
    /// What it is called in the key.
    pub name: &'a str,
    /// What came of it.
    pub outcome: &'a Outcome,
}

/// Draws arrivals, KV use, requests that wait, pressure (where there is any), the profile as a band with a dashed line at
/// each change, and times to the first token.
pub fn svg(outcome: &Outcome, title: &str, beside: Option<Beside<'_>>) -> String {
    let seconds = seconds(outcome);
    let end =
        |outcome: &Outcome, seconds: usize| outcome.samples.last().map_or(0.0, |sample| sample.at).max(seconds as f64);
    let other_end = beside.map_or(0.0, |beside| end(beside.outcome, 0));
    let mut picture = Picture { out: String::new(), y: TOP, end: end(outcome, seconds.len()).max(other_end) };
    let changes = picture.bands(outcome);
    let top = picture.y;

    let arrivals: Vec<(f64, f64)> =
        seconds.iter().enumerate().map(|(at, second)| (at as f64 + 0.5, f64::from(second.arrivals))).collect();
    picture.panel("arrivals / s", highest(1.0, &arrivals), |panel| panel.line(&arrivals, "#333333"));

    let kv = series(outcome, |sample| Some(sample.kv_usage? * 100.0));
    if !kv.is_empty() {
        picture.panel("KV cache, %", 100.0, |panel| panel.line(&kv, "#0072b2"));
    }
    let key = |name: &str| beside.map_or(name.to_owned(), |beside| format!("{name} (grey: {})", beside.name));
    let waiting = series(outcome, |sample| sample.waiting);
    if !waiting.is_empty() {
        let other = beside.map(|beside| series(beside.outcome, |sample| sample.waiting)).unwrap_or_default();
        let most = highest(1.0, waiting.iter().chain(&other));
        picture.panel(&key("waiting"), most, |panel| {
            panel.line(&other, GREY);
            panel.line(&waiting, "#d55e00");
        });
    }
    if !outcome.pressure.is_empty() {
        let most = highest(1.0, &outcome.pressure);
        picture.panel("pressure (1 is the target)", most, |panel| {
            panel.line(&[(0.0, 1.0), (panel.picture.end, 1.0)], "#999999");
            panel.line(&outcome.pressure, "#cc79a7");
        });
    }
    let first_tokens = |outcome: &Outcome| -> Vec<(f64, f64)> {
        outcome.records.iter().filter_map(|record| Some((record.due, record.ttft()?))).collect()
    };
    let ttft = first_tokens(outcome);
    let other = beside.map(|beside| first_tokens(beside.outcome)).unwrap_or_default();
    let failures = outcome.records.iter().filter(|record| record.failure.is_some());
    let failures: Vec<f64> = failures.map(|record| record.due).collect();
    picture.panel(&key("first token, s"), highest(0.001, ttft.iter().chain(&other)), |panel| {
        panel.dots(&other, GREY);
        panel.dots(&ttft, "#009e73");
        panel.crosses(&failures);
    });
    picture.changes(&changes, top);
    let mut lines = subtitle(outcome);
    if let Some(Beside { name, outcome }) = beside {
        lines = format!("{lines}; {name}: {}", subtitle(outcome));
    }
    picture.finish(title, &lines)
}

fn series(outcome: &Outcome, value: fn(&super::Sample) -> Option<f64>) -> Vec<(f64, f64)> {
    outcome.samples.iter().filter_map(|sample| Some((sample.at, value(sample)?))).collect()
}

/// The highest value, `least` at least: the top of an axis.
fn highest<'a>(least: f64, points: impl IntoIterator<Item = &'a (f64, f64)>) -> f64 {
    points.into_iter().fold(least, |most, (_, value)| most.max(*value))
}

fn subtitle(outcome: &Outcome) -> String {
    let s = &outcome.summary;
    let ttft = s.ttft.map_or("-".to_owned(), |ttft| format!("{:.2} s", ttft.p95));
    let kinds: Vec<&str> = s.errors.keys().copied().collect();
    let kinds = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
    format!("{} requests, {} failed{kinds}, p95 time to first token {ttft}", s.requests, s.failed)
}

struct Picture {
    out: String,
    /// Where the next panel begins.
    y: f64,
    /// Seconds at the right edge.
    end: f64,
}

impl Picture {
    fn x(&self, at: f64) -> f64 {
        LEFT + at / self.end * (WIDTH - LEFT - RIGHT)
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let text = escape(text);
        let _ = writeln!(self.out, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#);
    }

    /// The profile over time as a coloured band, with its key. Returns the seconds of its changes.
    fn bands(&mut self, outcome: &Outcome) -> Vec<f64> {
        let mut runs: Vec<(&str, f64, f64)> = Vec::new();
        for sample in &outcome.samples {
            let Some(profile) = sample.profile.as_deref() else { continue };
            // A run lasts until the next sample says otherwise.
            if let Some(run) = runs.last_mut() {
                run.2 = sample.at;
            }
            if runs.last().is_none_or(|run| run.0 != profile) {
                runs.push((profile, sample.at, sample.at));
            }
        }
        if runs.is_empty() {
            return Vec::new();
        }
        let changes = runs.iter().skip(1).map(|run| run.1).collect();
        let mut names: Vec<&str> = Vec::new();
        for (name, from, to) in runs {
            let place = names.iter().position(|known| *known == name).unwrap_or_else(|| {
                names.push(name);
                names.len() - 1
            });
            let (x, width) = (self.x(from), (self.x(to) - self.x(from)).max(1.0));
            let (y, colour) = (self.y, COLOURS[place % COLOURS.len()]);
            let _ = writeln!(
                self.out,
                r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{BAND}" fill="{colour}"/>"#
            );
        }
        self.text(LEFT - 8.0, self.y + 13.0, "end", "profile");
        let mut x = LEFT;
        for (place, name) in names.iter().enumerate() {
            let (y, colour) = (self.y + BAND + 6.0, COLOURS[place % COLOURS.len()]);
            let _ = writeln!(self.out, r#"<rect x="{x:.1}" y="{y:.1}" width="10" height="10" fill="{colour}"/>"#);
            self.text(x + 14.0, y + 9.0, "start", name);
            x += 30.0 + name.chars().count() as f64 * 8.0;
        }
        self.y += BAND + KEY + GAP;
        changes
    }

    /// A dashed line through all panels at each change of the profile, from `top` down.
    fn changes(&mut self, times: &[f64], top: f64) {
        for at in times {
            let (x, bottom) = (self.x(*at), self.y - GAP);
            let _ = writeln!(
                self.out,
                r##"<line x1="{x:.1}" y1="{top:.1}" x2="{x:.1}" y2="{bottom:.1}" stroke="#555555" stroke-dasharray="4 3"/>"##
            );
        }
    }

    fn panel(&mut self, name: &str, most: f64, draw: impl FnOnce(&mut Panel<'_>)) {
        let (top, bottom, right) = (self.y, self.y + PANEL, WIDTH - RIGHT);
        for (share, label) in [(0.0, "0".to_owned()), (0.5, number(most / 2.0)), (1.0, number(most))] {
            let y = bottom - share * PANEL;
            let _ =
                writeln!(self.out, r##"<line x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}" stroke="#dddddd"/>"##);
            self.text(LEFT - 8.0, y + 4.0, "end", &label);
        }
        self.text(LEFT, top - 6.0, "start", name);
        draw(&mut Panel { picture: self, bottom, most });
        self.y = bottom + GAP;
    }

    fn finish(mut self, title: &str, subtitle: &str) -> String {
        let bottom = self.y - GAP + 4.0;
        let step = step(self.end);
        let mut at = 0.0;
        while at <= self.end {
            let x = self.x(at);
            let _ = writeln!(
                self.out,
                r##"<line x1="{x:.1}" y1="{bottom:.1}" x2="{x:.1}" y2="{:.1}" stroke="#333333"/>"##,
                bottom + 5.0
            );
            self.text(x, bottom + 18.0, "middle", &number(at));
            at += step;
        }
        self.text(f64::midpoint(LEFT, WIDTH - RIGHT), bottom + 36.0, "middle", "seconds since the start");
        let height = bottom + 46.0;
        let (title, subtitle) = (escape(title), escape(subtitle));
        format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}" width="{WIDTH}" height="{height:.0}" font-family="sans-serif" font-size="12" fill="#222222">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="{LEFT}" y="20" font-size="16" font-weight="bold">{title}</text>
<text x="{LEFT}" y="38">{subtitle}</text>
{}</svg>
"##,
            self.out
        )
    }
}

struct Panel<'a> {
    picture: &'a mut Picture,
    bottom: f64,
    most: f64,
}

impl Panel<'_> {
    fn point(&self, (at, value): (f64, f64)) -> (f64, f64) {
        (self.picture.x(at), self.bottom - (value / self.most).clamp(0.0, 1.0) * PANEL)
    }

    fn line(&mut self, points: &[(f64, f64)], colour: &str) {
        if points.is_empty() {
            return;
        }
        let mut path = String::new();
        for point in points {
            let (x, y) = self.point(*point);
            let _ = write!(path, "{x:.1},{y:.1} ");
        }
        let path = path.trim_end();
        let _ = writeln!(
            self.picture.out,
            r#"<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>"#
        );
    }

    fn dots(&mut self, points: &[(f64, f64)], colour: &str) {
        for point in points {
            let (x, y) = self.point(*point);
            let _ = writeln!(
                self.picture.out,
                r#"<circle cx="{x:.1}" cy="{y:.1}" r="2" fill="{colour}" fill-opacity="0.6"/>"#
            );
        }
    }

    /// Failed requests, at the top.
    fn crosses(&mut self, times: &[f64]) {
        for at in times {
            let (x, y) = self.point((*at, self.most));
            self.picture.text(x, y + 4.0, "middle", "×");
        }
    }
}

/// A round distance of marks that leaves at most about ten.
fn step(end: f64) -> f64 {
    let rough = (end / 10.0).max(0.1);
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough).unwrap_or(rough)
}

fn number(value: f64) -> String {
    if value >= 100.0 || (value - value.round()).abs() < 1e-9 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_at_round_distances() {
        assert_eq!([3.0, 60.0, 130.0, 3_600.0].map(step).map(number), ["0.50", "10", "20", "500"]);
    }

    #[test]
    fn names_do_not_break_the_picture() {
        assert_eq!(escape("a<b & c"), "a&lt;b &amp; c");
    }
}
