//! The figures of a score, with the definitions of llama.cpp's perplexity tool (its `README.md` names them, its
//! `perplexity.cpp` defines them), so that they can be set beside published ones.
//!
//! ```text
//! TokenChange (one per scored token) -> Comparison::of -> Estimate, Distribution
//! ```
//!
//! One difference is meant: llama.cpp keeps the reference's distributions in a file, as 16-bit steps over the 16 nats below
//! the most likely token, and leaves tokens out of the sum that the reference puts below. Here the reference's logits stay
//! in FP32 and every token counts. So a divergence is never below zero beyond rounding, and very small ones differ: the
//! file's steps of 16/65535 nats show in a divergence of about 1e-5 and less.

use serde::{Deserialize, Serialize};

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Standard error, from the scatter of the tokens as if they were independent; 0 for fewer than two.
    pub error: f64,
}

impl Estimate {
    /// Mean of `values`, and `sqrt((mean(x^2) - mean(x)^2) / (n - 1))`.
    pub fn mean(values: impl IntoIterator<Item = f64> + Clone) -> Self {
        let (count, sum) = values.clone().into_iter().fold((0u64, 0.0), |(n, sum), x| (n + 1, sum + x));
        if count == 0 {
            return Self::default();
        }
        let mean = sum / count as f64;
        // Around the mean, so that close values lose no digits to the difference of two large sums.
        let squares: f64 = values.into_iter().map(|x| (x - mean).powi(2)).sum();
        let error = if count > 1 { (squares / count as f64 / (count - 1) as f64).sqrt() } else { 0.0 };
        Self { value: mean, error }
    }

    /// `e^x` of the figure, the error carried through its derivative.
    #[must_use]
    pub fn exp(self) -> Self {
        let value = self.value.exp();
        Self { value, error: value * self.error }
    }

    /// The root of a mean of squares; its derivative is `1 / (2 sqrt(x))`.
    #[must_use]
    pub fn sqrt(self) -> Self {
        let value = self.value.sqrt();
        Self { value, error: if value > 0.0 { self.error / (2.0 * value) } else { 0.0 } }
    }

    #[must_use]
    fn times(self, factor: f64) -> Self {
        Self { value: self.value * factor, error: self.error * factor }
    }
}

/// What a profile made of one token of the text, beside the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenChange {
    /// Negative log-likelihood in nats.
    pub nll: f64,
    /// The reference's.
    pub reference_nll: f64,
    /// KL(reference || profile) of the next-token distributions in nats.
    pub divergence: f64,
    /// Both find the same token most likely.
    pub same_top: bool,
}

impl TokenChange {
    /// Probability of the text's token in the profile less that in the reference.
    fn probability_change(&self) -> f64 {
        (-self.nll).exp() - (-self.reference_nll).exp()
    }
}

/// Smallest to largest, at the points that llama.cpp prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names say which percentile")]
pub struct Distribution {
    pub minimum: f64,
    pub p01: f64,
    pub p05: f64,
    pub p10: f64,
    pub p25: f64,
    pub median: f64,
    pub p75: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub maximum: f64,
}

impl Distribution {
    /// Of values in any order; all zero when there are none.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share| percentile(&values, share);
        Self {
            minimum: at(0.0),
            p01: at(0.01),
            p05: at(0.05),
            p10: at(0.1),
            p25: at(0.25),
            median: at(0.5),
            p75: at(0.75),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            maximum: at(1.0),
        }
    }
}

/// The value below which `share` of the sorted values lie, interpolated between neighbours: the point `share (n - 1)`.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let point = share.clamp(0.0, 1.0) * last as f64;
    let (below, part) = (point as usize, point.fract());
    let (low, high) = (sorted[below], sorted[(below + 1).min(last)]);
    low + part * (high - low)
}

/// Counts of values per bin. Bins are powers of ten in thirds, because divergences span many of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Histogram {
    /// Lower edges, rising; the first bin also has all below it, the last all above.
    pub edges: Vec<f64>,
    /// Values in each bin.
    pub counts: Vec<u64>,
}

/// Bins per power of ten, and the powers that they begin and end with.
const BINS_PER_DECADE: i32 = 3;
const FIRST_DECADE: i32 = -6;
const LAST_DECADE: i32 = 1;

impl Histogram {
    /// Counts `values` in bins from 1e-6 to 10.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let bins = (LAST_DECADE - FIRST_DECADE) * BINS_PER_DECADE;
        let edge = |bin: i32| 10f64.powf(f64::from(FIRST_DECADE) + f64::from(bin) / f64::from(BINS_PER_DECADE));
        let edges: Vec<f64> = (0..bins).map(edge).collect();
        let mut counts = vec![0; edges.len()];
        for value in values {
            let bin = edges.partition_point(|edge| *edge <= value).saturating_sub(1);
            counts[bin] += 1;
        }
        Self { edges, counts }
    }
}

/// A profile beside the reference, on the same tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// Tokens compared.
    pub tokens: usize,
    /// Perplexity of the profile, `PPL(Q)`.
    pub perplexity: Estimate,
    /// Perplexity of the reference, `PPL(base)`.
    pub reference_perplexity: Estimate,
    /// Mean of `ln(PPL(Q) / PPL(base))`, the error from the tokens' differences.
    pub log_ratio: Estimate,
    /// Mean KL divergence in nats.
    pub divergence: Estimate,
    /// Its distribution over the tokens.
    pub divergences: Distribution,
    /// The same as counts.
    pub divergence_histogram: Histogram,
    /// Mean change of the probability of the text's token, in percent.
    pub probability_change_percent: Estimate,
    /// Root mean square of that change, in percent.
    pub rms_probability_change_percent: Estimate,
    /// Distribution of that change over the tokens, in percent.
    pub probability_changes_percent: Distribution,
    /// Tokens whose most likely continuation is the reference's, in percent.
    pub top1_agreement_percent: Estimate,
}

impl Comparison {
    /// The figures of a list of tokens; all zero for none.
    pub fn of(changes: &[TokenChange]) -> Self {
        let each = |f: fn(&TokenChange) -> f64| changes.iter().map(f);
        Self {
            tokens: changes.len(),
            perplexity: Estimate::mean(each(|c| c.nll)).exp(),
            reference_perplexity: Estimate::mean(each(|c| c.reference_nll)).exp(),
            log_ratio: Estimate::mean(each(|c| c.nll - c.reference_nll)),
            divergence: Estimate::mean(each(|c| c.divergence)),
            divergences: Distribution::of(each(|c| c.divergence).collect()),
            divergence_histogram: Histogram::of(each(|c| c.divergence)),
            probability_change_percent: Estimate::mean(each(TokenChange::probability_change)).times(100.0),
            rms_probability_change_percent: Estimate::mean(each(|c| c.probability_change().powi(2)))
                .sqrt()
                .times(100.0),
            probability_changes_percent: Distribution::of(each(|c| c.probability_change() * 100.0).collect()),
            top1_agreement_percent: Estimate::mean(each(|c| f64::from(u8::from(c.same_top)))).times(100.0),
        }
    }

    /// Rise of perplexity over the reference, in percent.
    pub fn perplexity_increase_percent(&self) -> f64 {
        self.log_ratio.value.exp_m1() * 100.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change(p: f64, reference: f64, divergence: f64, same_top: bool) -> TokenChange {
        TokenChange { nll: -p.ln(), reference_nll: -reference.ln(), divergence, same_top }
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{found}, not {expected}");
    }

    #[test]
    fn the_figures_of_two_tokens_are_those_worked_out_by_hand() {
        // Probabilities 1/2 -> 1/4 and 1/8 -> 1/4.
        let found = Comparison::of(&[change(0.25, 0.5, 0.3, true), change(0.25, 0.125, 0.1, false)]);
        let ln2 = std::f64::consts::LN_2;
        assert_eq!(found.tokens, 2);
        near(found.perplexity.value, 4.0);
        near(found.perplexity.error, 0.0);
        // Mean of ln 2 and 3 ln 2, each ln 2 away: the error of two is their distance over two.
        near(found.reference_perplexity.value, 4.0);
        near(found.reference_perplexity.error, 4.0 * ln2);
        near(found.log_ratio.value, 0.0);
        near(found.log_ratio.error, ln2);
        near(found.divergence.value, 0.2);
        near(found.divergence.error, 0.1);
        near(found.divergences.median, 0.2);
        near(found.divergences.p90, 0.28);
        near(found.divergences.maximum, 0.3);
        near(found.probability_change_percent.value, -6.25);
        near(found.rms_probability_change_percent.value, f64::midpoint(625.0, 156.25).sqrt());
        near(found.probability_changes_percent.minimum, -25.0);
        near(found.probability_changes_percent.maximum, 12.5);
        near(found.top1_agreement_percent.value, 50.0);
        near(found.top1_agreement_percent.error, 50.0);
        near(found.perplexity_increase_percent(), 0.0);
    }

    #[test]
    fn nothing_scored_is_zeros_and_one_token_has_no_error() {
        let none = Comparison::of(&[]);
        assert_eq!((none.tokens, none.divergence, none.divergences), (0, Estimate::default(), Distribution::default()));
        let one = Comparison::of(&[change(0.5, 0.5, 0.0, true)]);
        near(one.perplexity.value, 2.0);
        near(one.perplexity.error, 0.0);
    }

    #[test]
    fn percentiles_lie_between_neighbours() {
        let values = [0.0, 1.0, 2.0, 3.0, 10.0];
        for (share, expected) in [(0.0, 0.0), (0.25, 1.0), (0.5, 2.0), (0.6, 2.4), (0.9, 7.2), (1.0, 10.0)] {
            near(percentile(&values, share), expected);
        }
        near(percentile(&[7.0], 0.99), 7.0);
        near(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn a_histogram_counts_everything_and_an_edge_belongs_to_the_bin_above() {
        let histogram = Histogram::of([-1e-9, 0.0, 1e-6, 0.999e-3, 1e-3, 1.0, 50.0]);
        assert_eq!(histogram.counts.iter().sum::<u64>(), 7);
        assert_eq!(histogram.counts.len(), 21);
        assert_eq!((histogram.counts[0], histogram.counts[8], histogram.counts[9]), (3, 1, 1));
        assert_eq!((histogram.counts[18], histogram.counts[20]), (1, 1));
    }

    proptest! {
        #[test]
        fn percentiles_rise_and_stay_within_the_values(values in prop::collection::vec(-1e3..1e3f64, 1..200)) {
            let d = Distribution::of(values.clone());
            let line = [
                d.minimum, d.p01, d.p05, d.p10, d.p25, d.median, d.p75, d.p90, d.p95, d.p99, d.p999, d.maximum,
            ];
            prop_assert!(line.is_sorted());
            prop_assert!(values.contains(&d.minimum) && values.contains(&d.maximum));
        }

        #[test]
        fn an_estimate_is_the_textbook_formula(values in prop::collection::vec(-10.0..10.0f64, 2..100)) {
            let n = values.len() as f64;
            let (sum, squares) = values.iter().fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
            let found = Estimate::mean(values);
            prop_assert!((found.value - sum / n).abs() < 1e-9);
            let error = ((squares / n - (sum / n).powi(2)) / (n - 1.0)).max(0.0).sqrt();
            prop_assert!((found.error - error).abs() < 1e-6);
        }
    }
}
