//! The quality gate: what was measured of a profile, held against `spec.quality`.
//!
//! ```text
//! MeasuredQuality ──┐
//!                   ├──> Rule::ALL ──> Verdict ──> Quality::admits ──> nearest
//! Quality         ──┘
//! ```
//!
//! It stands beside the types, below the policy, because both sides of the admin API apply it and must agree: the policy, for
//! which a blocked profile is no rung, and the worker, which takes no request in one, whoever asks for it.

use std::cmp::Ordering;
use std::fmt;

use crate::{MeasuredQuality, OnFailure, Quality};

/// A limit of `spec.quality`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The rise of perplexity over the original, in percent.
    PerplexityIncrease,
    /// The mean KL divergence from the original, in nats.
    MeanDivergence,
}

impl Rule {
    /// Every rule, in the order in which breaches are told.
    pub const ALL: [Self; 2] = [Self::PerplexityIncrease, Self::MeanDivergence];

    /// Path of its limit in the manifest.
    pub const fn field(self) -> &'static str {
        match self {
            Self::PerplexityIncrease => "spec.quality.maxPerplexityIncreasePercent",
            Self::MeanDivergence => "spec.quality.maxMeanKLDivergence",
        }
    }

    fn figure(self, measured: &MeasuredQuality) -> f64 {
        match self {
            Self::PerplexityIncrease => measured.perplexity_increase_percent(),
            Self::MeanDivergence => measured.mean_kl_divergence,
        }
    }

    /// A limit that is no number is one that nothing keeps; validation refuses it before.
    fn limit(self, limits: &Quality) -> f64 {
        match self {
            Self::PerplexityIncrease => f64::from(limits.max_perplexity_increase_percent),
            Self::MeanDivergence => limits.max_mean_kl_divergence.to_f64().unwrap_or(f64::NAN),
        }
    }

    /// The limit itself is within it. A figure that is no number is not.
    fn breach(self, limits: &Quality, measured: &MeasuredQuality) -> Option<Breach> {
        let (figure, limit) = (self.figure(measured), self.limit(limits));
        let beyond = figure.partial_cmp(&limit).is_none_or(Ordering::is_gt);
        beyond.then_some(Breach { rule: self, figure, limit })
    }
}

/// A figure beyond its limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Breach {
    /// Which.
    pub rule: Rule,
    /// What was measured.
    pub figure: f64,
    /// What is allowed at most.
    pub limit: f64,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, figure, limit } = self;
        // As many digits as show that the figure is above the limit: "10.00 %, and 10 % are allowed" explains nothing.
        let shown = |digits: &usize| format!("{figure:.digits$}").parse::<f64>().is_ok_and(|shown| shown > *limit);
        match rule {
            Rule::PerplexityIncrease => {
                let digits = (2..9).find(shown).unwrap_or(2);
                write!(f, "its perplexity is {figure:.digits$} % above the original's, the limit is {limit} %")?;
            }
            Rule::MeanDivergence => {
                let digits = (4..12).find(shown).unwrap_or(4);
                write!(f, "its mean KL divergence from the original is {figure:.digits$}, the limit is {limit}")?;
            }
        }
        write!(f, " ({})", rule.field())
    }
}

/// What the gate says of one profile.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Verdict {
    /// Within all limits. Also what nobody measures for want of a model counts as: a simulation has no gate.
    #[default]
    Passed,
    /// Nothing is known, which is not enough.
    NotMeasured,
    /// Beyond the limits of these rules, in their order.
    Beyond([Option<Breach>; Rule::ALL.len()]),
}

impl Verdict {
    /// The verdict as a sentence about the profile of that name, without what follows from it.
    ///
    /// ```
    /// use modelprofile_api::Verdict;
    /// assert_eq!(Verdict::NotMeasured.sentence("density"), "the quality of density was not measured");
    /// ```
    pub fn sentence(&self, name: &str) -> String {
        match self {
            Self::Passed => format!("{name} is within the quality limits"),
            Self::NotMeasured => format!("the quality of {name} was not measured"),
            Self::Beyond(breaches) => {
                let breaches: Vec<String> = breaches.iter().flatten().map(ToString::to_string).collect();
                format!("{name} is beyond the quality limits: {}", breaches.join(", and "))
            }
        }
    }

    /// What a person can do about it; empty where nothing needs doing.
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Passed => "",
            Self::NotMeasured => "restart its worker, which measures it, or set spec.quality.onFailure: Warn",
            Self::Beyond(_) => "raise the limit, give it another method or format, or set spec.quality.onFailure: Warn",
        }
    }
}

impl Quality {
    /// Holds a measurement against these limits. The original itself passes by its figures: it is its own reference.
    pub fn verdict(&self, measured: Option<&MeasuredQuality>) -> Verdict {
        let Some(measured) = measured else { return Verdict::NotMeasured };
        let breaches = Rule::ALL.map(|rule| rule.breach(self, measured));
        if breaches.iter().all(Option::is_none) { Verdict::Passed } else { Verdict::Beyond(breaches) }
    }

    /// Whether a profile of this verdict may serve: with `onFailure: Warn` any, else one that passed.
    pub fn admits(&self, verdict: &Verdict) -> bool {
        self.on_failure == OnFailure::Warn || *verdict == Verdict::Passed
    }

    /// Why requests must not reach the profile of that name, and what a person can do; `None` if they may.
    pub fn refusal(&self, name: &str, measured: Option<&MeasuredQuality>) -> Option<String> {
        let verdict = self.verdict(measured);
        (!self.admits(&verdict)).then(|| format!("{}; {}", verdict.sentence(name), verdict.remedy()))
    }
}

/// The rung itself, else the nearest toward quality, else the nearest toward density: what takes the place of a profile that
/// may not serve. `None` if no rung may.
pub fn nearest(rung: usize, rungs: usize, mut may_serve: impl FnMut(usize) -> bool) -> Option<usize> {
    (0..rungs.min(rung + 1)).rev().chain(rung + 1..rungs).find(|rung| may_serve(*rung))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Decimal;

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

    fn limits(percent: u32, divergence: &str) -> Quality {
        Quality {
            max_perplexity_increase_percent: percent,
            max_mean_kl_divergence: Decimal(divergence.to_owned()),
            ..Quality::default()
        }
    }

    #[test]
    fn figures_at_their_limits_pass_and_above_them_do_not() {
        let quality = limits(10, "0.1");
        let beyond = |increase, divergence| match quality.verdict(Some(&measured(increase, divergence))) {
            Verdict::Beyond(breaches) => breaches.map(|breach| breach.is_some()),
            Verdict::Passed => [false, false],
            Verdict::NotMeasured => panic!("it was"),
        };
        for (increase, divergence, expected) in [
            (3.1, 0.02, [false, false]),
            (9.999, 0.1, [false, false]),
            (-2.0, 0.0, [false, false]),
            (10.01, 0.02, [true, false]),
            (3.1, 0.1001, [false, true]),
            (50.0, 1.0, [true, true]),
            (f64::NAN, 0.0, [true, false]),
            (f64::INFINITY, 0.0, [true, false]),
            (0.0, f64::NAN, [false, true]),
        ] {
            assert_eq!(beyond(increase, divergence), expected, "{increase} % {divergence}");
        }
    }

    #[test]
    fn a_reference_without_perplexity_and_a_limit_that_is_no_number_pass_nothing() {
        let nothing = MeasuredQuality { reference_perplexity: 0.0, ..measured(0.0, 0.0) };
        assert!(matches!(limits(10, "0.1").verdict(Some(&nothing)), Verdict::Beyond([Some(_), None])));
        assert!(matches!(limits(10, "much").verdict(Some(&measured(0.0, 0.0))), Verdict::Beyond([None, Some(_)])));
    }

    #[test]
    fn the_original_is_its_own_reference_and_passes_limits_of_zero() {
        assert_eq!(limits(0, "0").verdict(Some(&measured(0.0, 0.0))), Verdict::Passed);
    }

    #[test]
    fn block_takes_what_passed_and_warn_takes_anything() {
        let failed = limits(1, "0.1").verdict(Some(&measured(3.1, 0.02)));
        let verdicts = [Verdict::Passed, Verdict::NotMeasured, failed];
        assert_eq!(verdicts.map(|verdict| Quality::default().admits(&verdict)), [true, false, false]);
        let warn = Quality { on_failure: OnFailure::Warn, ..Quality::default() };
        assert_eq!(verdicts.map(|verdict| warn.admits(&verdict)), [true, true, true]);
        assert_eq!(warn.refusal("density", None), None);
    }

    #[test]
    fn a_refusal_names_the_figure_the_limit_its_field_and_the_ways_out() {
        assert_eq!(
            limits(1, "0.01").refusal("fast", Some(&measured(3.1, 0.0213))).unwrap(),
            "fast is beyond the quality limits: its perplexity is 3.10 % above the original's, the limit is 1 % \
             (spec.quality.maxPerplexityIncreasePercent), and its mean KL divergence from the original is 0.0213, the limit is \
             0.01 (spec.quality.maxMeanKLDivergence); raise the limit, give it another method or format, or set \
             spec.quality.onFailure: Warn"
        );
        assert_eq!(
            Quality::default().refusal("fast", None).unwrap(),
            "the quality of fast was not measured; restart its worker, which measures it, or set spec.quality.onFailure: Warn"
        );
        assert_eq!(Quality::default().refusal("fast", Some(&measured(3.1, 0.02))), None);
    }

    #[test]
    fn a_figure_just_above_its_limit_is_not_shown_as_the_limit() {
        let sentence = limits(10, "0.1").verdict(Some(&measured(10.000_04, 0.100_001))).sentence("fast");
        assert!(sentence.contains("10.00004 %") && sentence.contains("0.100001,"), "{sentence}");
    }

    #[test]
    fn the_nearest_rung_is_sought_toward_quality_first() {
        let find = |rung, usable: &[usize]| nearest(rung, 4, |rung| usable.contains(&rung));
        assert_eq!(find(2, &[0, 2, 3]), Some(2));
        assert_eq!(find(2, &[0, 1, 3]), Some(1));
        assert_eq!(find(2, &[0, 3]), Some(0));
        assert_eq!(find(2, &[3]), Some(3));
        assert_eq!(find(0, &[3]), Some(3));
        assert_eq!(find(1, &[]), None);
        assert_eq!(nearest(7, 2, |_| true), Some(1), "a rung that is gone");
    }
}
