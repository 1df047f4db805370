//! Reports for people: a verdict first, then tables, in HTML with plots or in Markdown.
//!
//! ```text
//! Evaluation -> Section (tables, the same for both forms) -> html (with plot) | markdown
//! ```

mod html;
mod markdown;
mod plot;

use std::path::Path;

use anyhow::bail;
use modelprofile_engine::evaluate::{Estimate, health::Health};

use super::{
    health::Penalty,
    needles::DEPTHS,
    result::{Evaluation, Limits, Profile},
};
use crate::quality::write_whole;

/// A part of a report.
struct Section {
    title: &'static str,
    /// What the figures mean, for who reads them for the first time.
    note: String,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    plots: Vec<Plot>,
}

/// Pictures of a section; only HTML shows them.
#[derive(Clone, Copy)]
enum Plot {
    Perplexity,
    Divergences,
    Distinct,
    Needles,
}

/// Writes a report in the form that the file's ending names.
///
/// # Errors
/// Another ending than `.html` or `.md`; errors of the disk.
pub(super) fn write(path: &Path, evaluation: &Evaluation) -> anyhow::Result<()> {
    let text = match path.extension().and_then(|e| e.to_str()) {
        Some("html" | "htm") => html::render(evaluation),
        Some("md" | "markdown") => markdown::render(evaluation),
        _ => bail!("{}: a report ends in .html or .md", path.display()),
    };
    write_whole(path, text.as_bytes())
}

/// Refuses an ending that no report has, before anything is computed.
pub(super) fn check(path: &Path) -> anyhow::Result<()> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("html" | "htm" | "md" | "markdown") => Ok(()),
        _ => bail!("{}: a report ends in .html or .md", path.display()),
    }
}

fn title(evaluation: &Evaluation) -> String {
    format!("Quality of {}", evaluation.model)
}

/// One paragraph that says what came out.
fn verdict(evaluation: &Evaluation) -> String {
    let verdicts = evaluation.verdicts(Limits::default());
    if verdicts.is_empty() { "Only the reference was evaluated.".into() } else { verdicts.join(" ") }
}

/// Where the figures come from.
fn provenance(evaluation: &Evaluation) -> String {
    format!(
        "Measured {} on the text {}, windows of {} tokens, KV cache {}, seed {}; checkpoint revision {}.",
        evaluation.measured_at,
        evaluation.dataset,
        evaluation.window,
        evaluation.kv_cache,
        evaluation.seed,
        evaluation.revision
    )
}

fn sections(evaluation: &Evaluation) -> Vec<Section> {
    let mut sections = vec![perplexity(evaluation), divergence(evaluation), probability(evaluation)];
    if evaluation.profiles.iter().any(|p| p.generation.is_some()) {
        sections.push(answers(evaluation));
    }
    if evaluation.profiles.iter().any(|p| p.generation.as_ref().is_some_and(|g| !g.needles.is_empty())) {
        sections.push(needles(evaluation));
    }
    sections
}

fn header(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn rows(evaluation: &Evaluation, cells: impl Fn(&Profile) -> Vec<String>) -> Vec<Vec<String>> {
    let row = |profile: &Profile| [vec![profile.name.clone()], cells(profile)].concat();
    evaluation.profiles.iter().map(row).collect()
}

fn estimate(value: Estimate, digits: usize) -> String {
    format!("{:.digits$} ± {:.digits$}", value.value, value.error)
}

fn perplexity(evaluation: &Evaluation) -> Section {
    Section {
        title: "Perplexity",
        note:
            "How surprised a profile is by the text: the lower, the better. It is counted over the second half of each \
               window, as llama.cpp's perplexity tool does. The change is against the first profile; ± is one standard \
               error."
                .into(),
        header: header(&["profile", "weights (MiB)", "perplexity", "change (%)", "ln ratio", "all tokens"]),
        rows: rows(evaluation, |p| {
            vec![
                (p.weight_bytes >> 20).to_string(),
                estimate(p.comparison.perplexity, 4),
                format!("{:+.2}", p.comparison.perplexity_increase_percent()),
                estimate(p.comparison.log_ratio, 5),
                format!("{:.4}", p.whole_perplexity),
            ]
        }),
        plots: vec![Plot::Perplexity],
    }
}

fn divergence(evaluation: &Evaluation) -> Section {
    Section {
        title: "KL divergence",
        note:
            "How far a profile's predictions of the next token are from the reference's, in nats: 0 is no change. The \
               mean says what to expect, the high percentiles how bad the worst tokens are."
                .into(),
        header: header(&["profile", "mean", "median", "90 %", "99 %", "99.9 %", "maximum", "same top token (%)"]),
        rows: rows(evaluation, |p| {
            let d = &p.comparison.divergences;
            let mut cells = vec![estimate(p.comparison.divergence, 6)];
            cells.extend([d.median, d.p90, d.p99, d.p999, d.maximum].map(|v| format!("{v:.6}")));
            cells.push(estimate(p.comparison.top1_agreement_percent, 2));
            cells
        }),
        plots: vec![Plot::Divergences],
    }
}

fn probability(evaluation: &Evaluation) -> Section {
    Section {
        title: "Change of the text's own token",
        note: "By how many percentage points the probability of the token that the text really has goes up or down."
            .into(),
        header: header(&["profile", "mean", "root mean square", "1 %", "10 %", "median", "90 %", "99 %"]),
        rows: rows(evaluation, |p| {
            let d = &p.comparison.probability_changes_percent;
            let mut cells = vec![
                estimate(p.comparison.probability_change_percent, 3),
                estimate(p.comparison.rms_probability_change_percent, 3),
            ];
            cells.extend([d.p01, d.p10, d.median, d.p90, d.p99].map(|v| format!("{v:+.3}")));
            cells
        }),
        plots: Vec::new(),
    }
}

fn answers(evaluation: &Evaluation) -> Section {
    let percent = |share: f64| format!("{:.1}", share * 100.0);
    let health = |kind: &str, h: &Health| {
        let mut cells = vec![kind.to_owned()];
        cells.extend(h.distinct.map(|d| format!("{d:.3}")));
        cells.extend([percent(h.repeated), percent(h.loops), estimate(h.tokens, 1)]);
        cells.extend([h.refused, h.not_stopped, h.other_language, h.multi_turn_troubled].map(percent));
        cells
    };
    let mut rows = Vec::new();
    let mut penalties = Vec::new();
    for profile in &evaluation.profiles {
        let Some(generation) = &profile.generation else { continue };
        for (kind, h) in [("greedy", &generation.greedy), ("sampled", &generation.sampled)] {
            rows.push([vec![profile.name.clone()], health(kind, h)].concat());
        }
        penalties.push(match generation.repetition_penalty {
            Penalty::NotNeeded => format!("{} needs no repetition penalty", profile.name),
            Penalty::Suggested(p) => format!("{} stops looping with a repetition penalty of {p}", profile.name),
            Penalty::NotEnough(p) => format!("{} still loops with a repetition penalty of {p}", profile.name),
        });
    }
    Section {
        title: "Answers",
        note: format!(
            "Answers to the prompts, the most likely one (greedy) and one drawn (sampled). distinct-n is the share of \
             different runs of n tokens: low values are repetition. A loop is the same piece three times at the end. {}.",
            penalties.join("; ")
        ),
        header: header(&[
            "profile",
            "answers",
            "distinct-1",
            "distinct-2",
            "distinct-3",
            "distinct-4",
            "distinct-5",
            "repeated 4-grams (%)",
            "loops (%)",
            "tokens",
            "refusals (%)",
            "hit the limit (%)",
            "other language (%)",
            "troubled in several turns (%)",
        ]),
        rows,
        plots: vec![Plot::Distinct],
    }
}

fn needles(evaluation: &Evaluation) -> Section {
    let mut rows = Vec::new();
    for profile in &evaluation.profiles {
        let needles = profile.generation.as_ref().map(|g| g.needles.as_slice()).unwrap_or_default();
        let mut lengths: Vec<usize> = needles.iter().map(|n| n.length).collect();
        lengths.dedup();
        for length in lengths {
            let cell = |depth: &u32| {
                let result = needles.iter().find(|n| n.length == length && n.depth_percent == *depth);
                result.map_or("", |n| if n.found { "found" } else { "missed" }).to_owned()
            };
            rows.push([vec![profile.name.clone(), length.to_string()], DEPTHS.iter().map(cell).collect()].concat());
        }
    }
    Section {
        title: "Long context",
        note: "A five-digit number is hidden in long text at some depth and asked for at the end. Small models miss it at \
               lengths that larger ones manage; what matters is whether a profile misses what the reference finds."
            .into(),
        header: [header(&["profile", "tokens"]), DEPTHS.map(|d| format!("depth {d} %")).to_vec()].concat(),
        rows,
        plots: vec![Plot::Needles],
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_ending_decides_the_form() {
        let directory = tempfile::tempdir().unwrap();
        let evaluation = super::super::result::tests::example();
        for (name, start) in [("a.html", "<!doctype html>"), ("a.md", "# Quality of")] {
            let path = directory.path().join(name);
            check(&path).unwrap();
            write(&path, &evaluation).unwrap();
            assert!(std::fs::read_to_string(path).unwrap().starts_with(start));
        }
        assert!(check(Path::new("report.pdf")).unwrap_err().to_string().contains("ends in .html or .md"));
        assert!(write(Path::new("report"), &evaluation).is_err());
    }
}
