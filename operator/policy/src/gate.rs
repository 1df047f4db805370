//! The quality gate over a whole ladder, as the condition that a status shows.
//!
//! What one profile's figures are worth is [`Quality::verdict`], in the crate of the types: the worker holds its own profiles
//! against the same rule. What a verdict does to decisions is in [`crate::decide()`]: with `onFailure: Block` a profile that did
//! not pass is no rung, with `Warn` every profile is one.

use modelprofile_api::conditions::reason;
use modelprofile_api::{ConditionStatus, MeasuredQuality, Quality, Verdict};

/// What is known about the quality of one profile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gated<'a> {
    /// Name in the ladder.
    pub name: &'a str,
    /// What was measured; `None` if nothing was.
    pub quality: Option<&'a MeasuredQuality>,
}

/// The condition `QualityGatePassed` without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Whether it holds.
    pub status: ConditionStatus,
    /// One of [`modelprofile_api::conditions::reason`].
    pub reason: &'static str,
    /// Figures, limits and what a person can do.
    pub message: String,
}

/// Holds the ladder against its limits. While workers still prepare (`prepared` is false) a profile without a figure is one
/// that is waited for, not one that failed.
pub fn condition(limits: &Quality, ladder: &[Gated<'_>], prepared: bool) -> Condition {
    let told = |wanted: fn(&Verdict) -> bool| -> Vec<String> {
        let verdicts = ladder.iter().map(|rung| (rung.name, limits.verdict(rung.quality)));
        verdicts.filter(|(_, verdict)| wanted(verdict)).map(|(name, verdict)| verdict.sentence(name)).collect()
    };
    let beyond = told(|verdict| matches!(verdict, Verdict::Beyond(_)));
    let unknown = told(|verdict| *verdict == Verdict::NotMeasured);
    let (status, reason, message) = if !beyond.is_empty() {
        let next = consequence(limits, beyond.len(), &Verdict::Beyond([None; 2]));
        (ConditionStatus::False, reason::BEYOND_LIMITS, format!("{}; {next}", beyond.join("; ")))
    } else if ladder.is_empty() || !prepared && !unknown.is_empty() {
        (ConditionStatus::Unknown, reason::PENDING, "the profiles are being prepared and measured".to_owned())
    } else if !unknown.is_empty() {
        let next = consequence(limits, unknown.len(), &Verdict::NotMeasured);
        (ConditionStatus::Unknown, reason::NOT_MEASURED, format!("{}; {next}", unknown.join("; ")))
    } else {
        let figures = ladder.iter().filter_map(|rung| Some(figures(rung.name, rung.quality?)));
        (ConditionStatus::True, reason::WITHIN_LIMITS, figures.collect::<Vec<_>>().join("; "))
    };
    Condition { status, reason, message }
}

/// What becomes of so many profiles of this verdict, and what a person can do.
pub fn consequence(limits: &Quality, profiles: usize, verdict: &Verdict) -> String {
    let [it, is] = if profiles == 1 { ["it", "is"] } else { ["they", "are"] };
    if limits.admits(verdict) {
        return format!("{it} {is} used all the same, because spec.quality.onFailure is Warn");
    }
    format!("{it} {is} kept out of the ladder, because spec.quality.onFailure is Block: {}", verdict.remedy())
}

/// `density: perplexity +0.42 %, mean KL divergence 0.0031`.
fn figures(name: &str, quality: &MeasuredQuality) -> String {
    let increase = quality.perplexity_increase_percent();
    format!("{name}: perplexity {increase:+.2} %, mean KL divergence {:.4}", quality.mean_kl_divergence)
}

#[cfg(test)]
mod tests {
    use modelprofile_api::OnFailure;

    use super::*;

    fn measured(increase_percent: f64, divergence: f64) -> MeasuredQuality {
        MeasuredQuality {
            perplexity: 20.0 * (1.0 + increase_percent / 100.0),
            reference_perplexity: 20.0,
            mean_kl_divergence: divergence,
            p99_kl_divergence: 0.5,
            top1_agreement_percent: 95.0,
            rms_probability_change_percent: 2.0,
            tokens: 2048,
            dataset: "built-in".to_owned(),
            measured_at: "2026-03-01T12:00:00Z".to_owned(),
        }
    }

    fn condition_of(
        on_failure: OnFailure,
        ladder: [Option<(f64, f64)>; 2],
        prepared: bool,
    ) -> (ConditionStatus, String) {
        let limits = Quality { max_perplexity_increase_percent: 1, on_failure, ..Quality::default() };
        let [first, second] =
            ladder.map(|figures| figures.map(|(increase, divergence)| measured(increase, divergence)));
        let rungs =
            [Gated { name: "quality", quality: first.as_ref() }, Gated { name: "density", quality: second.as_ref() }];
        let Condition { status, reason, message } = condition(&limits, &rungs, prepared);
        (status, format!("{reason}: {message}"))
    }

    #[test]
    fn a_ladder_within_its_limits_shows_its_figures() {
        assert_eq!(
            condition_of(OnFailure::Block, [Some((0.5, 0.02)), Some((-0.25, 0.004))], true),
            (
                ConditionStatus::True,
                "WithinLimits: quality: perplexity +0.50 %, mean KL divergence 0.0200; density: perplexity -0.25 %, mean KL \
                 divergence 0.0040"
                    .to_owned()
            )
        );
    }

    #[test]
    fn a_profile_beyond_a_limit_is_named_with_figure_and_limit_and_what_becomes_of_it() {
        let beyond = "BeyondLimits: quality is beyond the quality limits: its perplexity is 3.10 % above the original's, the \
                      limit is 1 % (spec.quality.maxPerplexityIncreasePercent); it is ";
        let ladder = [Some((3.1, 0.02)), Some((0.3, 0.004))];
        assert_eq!(
            condition_of(OnFailure::Block, ladder, true),
            (
                ConditionStatus::False,
                format!(
                    "{beyond}kept out of the ladder, because spec.quality.onFailure is Block: raise the limit, give it another method or format, \
                     or set spec.quality.onFailure: Warn"
                )
            )
        );
        assert_eq!(
            condition_of(OnFailure::Warn, ladder, true),
            (ConditionStatus::False, format!("{beyond}used all the same, because spec.quality.onFailure is Warn"))
        );
        // Known before the rest is prepared.
        assert_eq!(condition_of(OnFailure::Block, [Some((3.1, 0.02)), None], false).0, ConditionStatus::False);
    }

    #[test]
    fn what_is_not_measured_is_waited_for_while_it_is_prepared_and_told_afterwards() {
        let ladder = [Some((0.5, 0.02)), None];
        assert_eq!(
            condition_of(OnFailure::Block, ladder, false),
            (ConditionStatus::Unknown, "Pending: the profiles are being prepared and measured".to_owned())
        );
        assert_eq!(
            condition_of(OnFailure::Block, ladder, true),
            (
                ConditionStatus::Unknown,
                "NotMeasured: the quality of density was not measured; it is kept out of the ladder, because spec.quality.onFailure is Block: \
                 restart its worker, which measures it, or set spec.quality.onFailure: Warn"
                    .to_owned()
            )
        );
        assert!(condition_of(OnFailure::Warn, ladder, true).1.ends_with("because spec.quality.onFailure is Warn"));
        let nothing = condition(&Quality::default(), &[], false);
        assert_eq!((nothing.status, nothing.reason), (ConditionStatus::Unknown, "Pending"));
    }
}
