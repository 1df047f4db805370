//! The result of an evaluation: `evaluation.json` beside each artifact, and what reports are made of.

use modelprofile_api::Quality;
use modelprofile_engine::evaluate::Comparison;
use serde::{Deserialize, Serialize};

use super::health::Generation;

/// Name of the file in an artifact's directory.
pub(super) const FILE: &str = "evaluation.json";

/// One evaluation; the first profile is the reference of the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Evaluation {
    /// Version of this file's fields.
    pub(super) version: u32,
    /// Name of the checkpoint.
    pub(super) model: String,
    /// Content identity of the checkpoint.
    pub(super) revision: String,
    /// Text that was scored, with the start of its SHA-256.
    pub(super) dataset: String,
    /// Tokens of a window.
    pub(super) window: usize,
    /// KV cache format.
    pub(super) kv_cache: String,
    /// Seed of the sampled answers and long texts.
    pub(super) seed: u64,
    /// RFC 3339, UTC.
    pub(super) measured_at: String,
    pub(super) profiles: Vec<Profile>,
}

/// One profile of an evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Profile {
    pub(super) name: String,
    /// Key of the artifact; left out where the profile is put together from two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) artifact_key: Option<String>,
    /// Packed weights in bytes.
    pub(super) weight_bytes: u64,
    /// Perplexity over all tokens but each window's first.
    pub(super) whole_perplexity: f64,
    /// Figures against the reference, over the windows' second halves.
    pub(super) comparison: Comparison,
    /// Left out when no answers were generated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) generation: Option<Generation>,
}

/// The limits that a verdict holds profiles against: those of a manifest that names none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limits {
    pub(super) perplexity_increase_percent: f64,
    pub(super) mean_divergence: f64,
}

impl Default for Limits {
    fn default() -> Self {
        let quality = Quality::default();
        Self {
            perplexity_increase_percent: f64::from(quality.max_perplexity_increase_percent),
            mean_divergence: quality.max_mean_kl_divergence.to_f64().unwrap_or(0.0),
        }
    }
}

impl Evaluation {
    /// The reference and one other profile: what is kept beside that profile's artifact.
    pub(super) fn of_one(&self, index: usize) -> Self {
        let profiles = match index {
            0 => self.profiles[..1].to_vec(),
            _ => vec![self.profiles[0].clone(), self.profiles[index].clone()],
        };
        Self { profiles, ..self.clone() }
    }

    /// A sentence for each profile but the reference: within the limits or not, and what its answers show.
    pub(super) fn verdicts(&self, limits: Limits) -> Vec<String> {
        let Some(reference) = self.profiles.first() else { return Vec::new() };
        self.profiles.iter().skip(1).map(|profile| verdict(profile, reference, limits)).collect()
    }
}

fn verdict(profile: &Profile, reference: &Profile, limits: Limits) -> String {
    let comparison = &profile.comparison;
    let (rise, divergence) = (comparison.perplexity_increase_percent(), comparison.divergence.value);
    let mut over = Vec::new();
    // A figure that is no number is over every limit.
    let beyond = |value: f64, limit: f64| value.is_nan() || value > limit;
    if beyond(rise, limits.perplexity_increase_percent) {
        over.push(format!("perplexity rises by {rise:.2} %, more than {} %", limits.perplexity_increase_percent));
    }
    if beyond(divergence, limits.mean_divergence) {
        over.push(format!("mean KL divergence is {divergence:.4}, more than {}", limits.mean_divergence));
    }
    let mut sentence = if over.is_empty() {
        format!(
            "{} is within the limits: perplexity {rise:+.2} % (limit {} %), mean KL divergence {divergence:.4} (limit {}), \
             and {:.1} % of next tokens are the reference's.",
            profile.name,
            limits.perplexity_increase_percent,
            limits.mean_divergence,
            comparison.top1_agreement_percent.value
        )
    } else {
        format!("{} is beyond the limits: {}.", profile.name, over.join("; "))
    };
    if let (Some(found), Some(base)) = (&profile.generation, &reference.generation) {
        use std::fmt::Write;
        let percent = |share: f64| share * 100.0;
        let _ = write!(
            sentence,
            " {:.0} % of its answers end in a loop ({:.0} % of the reference's)",
            percent(found.greedy.loops),
            percent(base.greedy.loops)
        );
        let hits = |generation: &Generation| generation.needles.iter().filter(|n| n.found).count();
        if !found.needles.is_empty() {
            let _ = write!(
                sentence,
                "; it finds {} of {} numbers hidden in long text (the reference {})",
                hits(found),
                found.needles.len(),
                hits(base)
            );
        }
        sentence.push('.');
    }
    sentence
}

#[cfg(test)]
pub(super) mod tests {
    use modelprofile_engine::evaluate::{
        TokenChange,
        health::{Answer, AnswerHealth, Health},
        needle::NeedleResult,
    };

    use super::*;
    use crate::commands::evaluate::health::Penalty;

    /// An evaluation of two profiles with figures that differ everywhere.
    pub(in crate::commands::evaluate) fn example() -> Evaluation {
        let changes = |shift: f64| -> Vec<TokenChange> {
            (0..200)
                .map(|i| TokenChange {
                    nll: 2.0 + f64::from(i % 17) / 10.0 + shift * f64::from(i % 5),
                    reference_nll: 2.0 + f64::from(i % 17) / 10.0,
                    divergence: shift * f64::from(i % 23) / 10.0,
                    same_top: shift == 0.0 || i % 11 != 0,
                })
                .collect()
        };
        let generation = |found: bool, text: &str| {
            let answer = Answer { tokens: (0..30).map(|i| i % 13).collect(), text: text.into(), stopped: found };
            let answers = vec![AnswerHealth::of("science-en", "en", true, &answer)];
            Generation {
                greedy: Health::of(&answers),
                sampled: Health::of(&answers),
                answers,
                repetition_penalty: if found { Penalty::NotNeeded } else { Penalty::Suggested(1.1) },
                needles: [(1024, 10), (1024, 50), (2048, 10), (2048, 50)]
                    .map(|(length, depth_percent)| NeedleResult {
                        tokens: length - 20,
                        length,
                        depth_percent,
                        found: found || length == 1024,
                        answer: "<12345> & \"more\"".into(),
                    })
                    .to_vec(),
            }
        };
        let profile = |name: &str, shift: f64, found: bool| Profile {
            name: name.into(),
            artifact_key: Some(format!("key-{name}")),
            weight_bytes: if found { 270 << 20 } else { 90 << 20 },
            whole_perplexity: 20.0 + shift,
            comparison: Comparison::of(&changes(shift)),
            generation: Some(generation(found, "Yes.")),
        };
        Evaluation {
            version: 1,
            model: "a <model> & more".into(),
            revision: "r1".into(),
            dataset: "built-in 0123456789ab".into(),
            window: 512,
            kv_cache: "BF16".into(),
            seed: 1,
            measured_at: "2024-01-01T00:00:00Z".into(),
            profiles: vec![profile("bf16", 0.0, true), profile("q4_1", 0.01, false)],
        }
    }

    #[test]
    fn a_result_reads_back_as_it_was_written() {
        let evaluation = example();
        let text = serde_json::to_string_pretty(&evaluation).unwrap();
        let read: Evaluation = serde_json::from_str(&text).unwrap();
        // To nine digits: reading JSON may round the last bit of a number in another way.
        assert_eq!(format!("{read:.9?}"), format!("{evaluation:.9?}"));
    }

    #[test]
    fn what_is_kept_beside_an_artifact_is_its_own_part() {
        let evaluation = example();
        let names = |e: &Evaluation| e.profiles.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&evaluation.of_one(0)), ["bf16"]);
        assert_eq!(names(&evaluation.of_one(1)), ["bf16", "q4_1"]);
    }

    #[test]
    fn a_verdict_names_the_figure_and_the_limit() {
        let mut evaluation = example();
        let found = evaluation.verdicts(Limits::default());
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("q4_1 is within the limits: perplexity +2.02 % (limit 10 %)"), "{}", found[0]);
        assert!(found[0].contains("finds 2 of 4 numbers hidden in long text (the reference 4)"), "{}", found[0]);
        evaluation.profiles[1].comparison.divergence.value = f64::NAN;
        evaluation.profiles[1].comparison.log_ratio.value = 0.2;
        let found = &evaluation.verdicts(Limits::default())[0];
        assert!(found.contains("beyond the limits: perplexity rises by 22.14 %, more than 10 %; mean KL"), "{found}");
    }
}
