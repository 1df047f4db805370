//! Small pictures as inline SVG. Text takes the page's colour; series have colours that differ for all kinds of sight
//! (Okabe and Ito 2008).

use std::fmt::Write;

use super::{
    super::{
        needles::DEPTHS,
        result::{Evaluation, Profile},
    },
    Plot,
    html::escape,
};

const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"];
const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 220.0;
/// Room for the labels: left, right, above, below.
const LEFT: f64 = 56.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 36.0;

/// One or more pictures of a kind; nothing where there is nothing to show.
pub(super) fn render(kind: Plot, evaluation: &Evaluation) -> String {
    match kind {
        Plot::Perplexity => perplexity(evaluation),
        Plot::Divergences => divergences(evaluation),
        Plot::Distinct => distinct(evaluation),
        Plot::Needles => evaluation.profiles.iter().map(needles).collect(),
    }
}

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

/// A drawing surface with a title.
struct Canvas {
    body: String,
    height: f64,
    title: String,
}

impl Canvas {
    fn new(title: &str, height: f64) -> Self {
        let mut canvas = Self { body: String::new(), height, title: title.to_owned() };
        canvas.text(LEFT, 16.0, "start", title);
        canvas
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let _ = writeln!(self.body, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escape(text));
    }

    fn bar(&mut self, x: f64, y: f64, width: f64, height: f64, colour: &str, title: &str) {
        let _ = writeln!(
            self.body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"><title>{}</title></rect>",
            escape(title)
        );
    }

    fn line(&mut self, x1: f64, y1: f64, x2: f64, y2: f64) {
        let _ =
            writeln!(self.body, "<line class=\"axis\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>");
    }

    fn polyline(&mut self, points: &[(f64, f64)], colour: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            self.body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
    }

    /// Names of the series in their colours, in a row below the title.
    fn legend<'a>(&mut self, names: impl Iterator<Item = (usize, &'a str)>) {
        let mut x = LEFT;
        for (index, name) in names {
            self.bar(x, 21.0, 9.0, 9.0, colour(index), name);
            self.text(x + 13.0, 30.0, "start", name);
            x += 26.0 + 7.0 * name.chars().count() as f64;
        }
    }

    fn finish(self) -> String {
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {h}\" width=\"{WIDTH}\" height=\"{h}\" role=\"img\" aria-label=\"{}\">\n{}</svg>\n",
            escape(&self.title),
            self.body,
            h = self.height
        )
    }
}

/// Points of a series within the axes, `x` and `y` as shares of them.
fn place(x: f64, y: f64) -> (f64, f64) {
    (LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM))
}

fn axes(canvas: &mut Canvas, top: &str) {
    let ((x0, y0), (x1, y1)) = (place(0.0, 0.0), place(1.0, 1.0));
    canvas.line(x0, y0, x1, y0);
    canvas.line(x0, y0, x0, y1);
    canvas.text(x0 - 6.0, y1 + 4.0, "end", top);
    canvas.text(x0 - 6.0, y0 + 4.0, "end", "0");
}

/// A bar for each profile, from zero, so that lengths compare as the figures do.
fn perplexity(evaluation: &Evaluation) -> String {
    const ROW: f64 = 22.0;
    let label = 130.0;
    let values: Vec<f64> = evaluation.profiles.iter().map(|p| p.comparison.perplexity.value).collect();
    let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let mut canvas = Canvas::new("Perplexity", 30.0 + ROW * values.len() as f64);
    for (index, (profile, value)) in evaluation.profiles.iter().zip(&values).enumerate() {
        let y = 24.0 + ROW * index as f64;
        let width = (WIDTH - label - 70.0) * value / most;
        canvas.text(label - 6.0, y + 13.0, "end", &profile.name);
        canvas.bar(label, y, width, ROW - 6.0, colour(index), &format!("{value:.4}"));
        canvas.text(label + width + 6.0, y + 13.0, "start", &format!("{value:.3}"));
    }
    canvas.finish()
}

/// Share of tokens by divergence, on a logarithmic axis.
fn divergences(evaluation: &Evaluation) -> String {
    let profiles: Vec<(usize, &Profile)> = evaluation.profiles.iter().enumerate().skip(1).collect();
    let share = |profile: &Profile, count: u64| count as f64 / profile.comparison.tokens.max(1) as f64;
    let most = profiles
        .iter()
        .flat_map(|(_, p)| p.comparison.divergence_histogram.counts.iter().map(|c| share(p, *c)))
        .fold(0.0, f64::max);
    if most <= 0.0 {
        return String::new();
    }
    let mut canvas = Canvas::new("Tokens by KL divergence (nats, logarithmic)", HEIGHT);
    axes(&mut canvas, &format!("{:.0} %", most * 100.0));
    for (index, profile) in &profiles {
        let histogram = &profile.comparison.divergence_histogram;
        let bins = histogram.counts.len() as f64;
        let middle = |bin: usize| (bin as f64 + 0.5) / bins;
        let points: Vec<_> =
            histogram.counts.iter().enumerate().map(|(b, c)| place(middle(b), share(profile, *c) / most)).collect();
        canvas.polyline(&points, colour(*index));
        if index == &1 {
            for (bin, edge) in histogram.edges.iter().enumerate().step_by(3) {
                let (x, y) = place(bin as f64 / bins, 0.0);
                canvas.line(x, y, x, y + 4.0);
                canvas.text(x, y + 18.0, "middle", &format!("{edge:.0e}"));
            }
        }
    }
    canvas.legend(profiles.iter().map(|(index, p)| (*index, p.name.as_str())));
    canvas.finish()
}

/// distinct-1 to distinct-5 of the greedy answers, one line for each profile.
fn distinct(evaluation: &Evaluation) -> String {
    let mut canvas = Canvas::new("distinct-n of the greedy answers", HEIGHT);
    axes(&mut canvas, "1");
    for (index, profile) in evaluation.profiles.iter().enumerate() {
        let Some(generation) = &profile.generation else { continue };
        let values = generation.greedy.distinct;
        let at = |n: usize| (n as f64 + 0.5) / values.len() as f64;
        let points: Vec<_> = values.iter().enumerate().map(|(n, v)| place(at(n), *v)).collect();
        canvas.polyline(&points, colour(index));
        if index == 0 {
            for n in 0..values.len() {
                let (x, y) = place(at(n), 0.0);
                canvas.text(x, y + 18.0, "middle", &format!("distinct-{}", n + 1));
            }
        }
    }
    canvas.legend(evaluation.profiles.iter().enumerate().map(|(index, p)| (index, p.name.as_str())));
    canvas.finish()
}

/// One field for each length and depth: full when the number was found.
fn needles(profile: &Profile) -> String {
    const FIELD: (f64, f64) = (70.0, 22.0);
    let results = profile.generation.as_ref().map(|g| g.needles.as_slice()).unwrap_or_default();
    let mut lengths: Vec<usize> = results.iter().map(|n| n.length).collect();
    lengths.dedup();
    if lengths.is_empty() {
        return String::new();
    }
    let left = 90.0;
    let title = format!("{}: numbers found in long text", profile.name);
    let mut canvas = Canvas::new(&title, 54.0 + FIELD.1 * DEPTHS.len() as f64);
    for (row, depth) in DEPTHS.iter().enumerate() {
        let y = 26.0 + FIELD.1 * row as f64;
        canvas.text(left - 6.0, y + 15.0, "end", &format!("depth {depth} %"));
        for (column, length) in lengths.iter().enumerate() {
            let Some(result) = results.iter().find(|n| n.length == *length && n.depth_percent == *depth) else {
                continue;
            };
            let (colour, mark) = if result.found { (COLOURS[2], "found") } else { ("#8884", "missed") };
            let x = left + FIELD.0 * column as f64;
            canvas.bar(x, y, FIELD.0 - 3.0, FIELD.1 - 3.0, colour, &format!("{length} tokens: {mark}"));
            canvas.text(x + FIELD.0 / 2.0, y + 14.0, "middle", mark);
        }
    }
    for (column, length) in lengths.iter().enumerate() {
        let x = left + FIELD.0 * (column as f64 + 0.5);
        canvas.text(x, 44.0 + FIELD.1 * DEPTHS.len() as f64, "middle", &format!("{length}"));
    }
    canvas.finish()
}
