//! From logits to a token. Order: logit bias, penalties, temperature, top-k, top-p, min-p, one random number.
//!
//! The random number of the n-th generated token depends on the seed and on n alone: not on the batch, not on a
//! preemption.
//!
//! A device that draws itself ([`Backend::sample`](modelprofile_kernels::Backend::sample)) is told how by
//! [`Sampler::draw`]; the definition is the one here.

use std::{cmp::Ordering, collections::HashMap};

use modelprofile_kernels::Draw;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    SamplingParams, TokenLogprob,
    softmax::{exp, log_sum_exp, max},
};

/// Why no token could be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The model computed something that is not a number.
    #[error("the logits hold NaN: the profile's weights or its KV cache are damaged")]
    NotANumber,
}

impl SamplingParams {
    /// Checks the ranges for a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// A sentence that names the parameter and its range.
    pub fn validate(&self, vocab: usize) -> Result<(), String> {
        let range = |name: &str, value: f32, low: f32, high: f32| {
            if value.is_finite() && (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(format!("{name} must be between {low} and {high}, not {value}"))
            }
        };
        range("temperature", self.temperature, 0.0, 2.0)?;
        range("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)
            .map_err(|_| format!("top_p must be above 0 and at most 1, not {}", self.top_p))?;
        range("min_p", self.min_p, 0.0, 1.0)?;
        range("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        range("repetition_penalty", self.repetition_penalty, 0.01, 10.0)?;
        for (token, bias) in &self.logit_bias {
            range("logit_bias", *bias, -100.0, 100.0)?;
            if *token as usize >= vocab {
                return Err(format!("logit_bias names token {token}, outside the vocabulary of {vocab}"));
            }
        }
        Ok(())
    }
}

/// Chooses the tokens of one request.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    seed: u64,
    generated: u64,
    /// Occurrences in the output, and whether the token was seen at all (prompt or output).
    seen: HashMap<u32, u32>,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler for a request; `entropy` seeds it when the request names none.
    pub fn new(params: &SamplingParams, prompt: &[u32], entropy: u64) -> Self {
        let mut params = params.clone();
        // One bias a token, so that their order says nothing.
        params.logit_bias.sort_by_key(|(token, _)| *token);
        params.logit_bias.dedup_by(|(token, more), (kept, bias)| {
            let same = token == kept;
            *bias += if same { *more } else { 0.0 };
            same
        });
        // Only penalties look at what was seen.
        let seen = if is_penalized(&params) { prompt.iter().map(|t| (*t, 0)).collect() } else { HashMap::new() };
        let seed = params.seed.unwrap_or(entropy);
        Self { params, seed, generated: 0, seen, candidates: Vec::new() }
    }

    /// Chooses a token and remembers it. The logits are changed.
    ///
    /// # Errors
    /// [`SampleError::NotANumber`].
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<u32, SampleError> {
        self.adjust(logits);
        let greedy = self.params.temperature < Draw::GREEDY_BELOW;
        let token = if greedy { argmax(logits)? } else { self.choose(logits)? };
        self.remember(token);
        Ok(token)
    }

    /// How the present token is drawn, for a device that does it. What it drew goes to [`Self::take`].
    pub fn draw(&self) -> Draw {
        let params = &self.params;
        let seen = if is_penalized(params) { self.seen.iter().map(|(t, n)| (*t, *n)).collect() } else { Vec::new() };
        Draw {
            random: self.random(),
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            repetition: params.repetition_penalty,
            presence: params.presence_penalty,
            frequency: params.frequency_penalty,
            bias: params.logit_bias.clone(),
            seen,
        }
    }

    /// Remembers the token that a device drew as [`Self::draw`] says.
    ///
    /// # Errors
    /// [`SampleError::NotANumber`] where it found none.
    pub fn take(&mut self, token: Option<u32>) -> Result<u32, SampleError> {
        let token = token.ok_or(SampleError::NotANumber)?;
        self.remember(token);
        Ok(token)
    }

    fn remember(&mut self, token: u32) {
        self.generated += 1;
        *self.seen.entry(token).or_insert(0) += 1;
    }

    fn adjust(&self, logits: &mut [f32]) {
        for (token, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        if !is_penalized(&self.params) {
            return;
        }
        let SamplingParams { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.params;
        for (token, count) in &self.seen {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
            if *count > 0 {
                *logit -= presence_penalty + frequency_penalty * *count as f32;
            }
        }
    }

    fn choose(&mut self, logits: &[f32]) -> Result<u32, SampleError> {
        let best = logits[argmax(logits)? as usize];
        let inverse = 1.0 / self.params.temperature;
        let random = self.random();
        let candidates = &mut self.candidates;
        candidates.clear();
        // Unnormalized probabilities relative to the best; below 2^-40 of it a token cannot be drawn in FP32 sums.
        let mut probabilities = [0.0f32; 256];
        for (block, logits) in logits.chunks(probabilities.len()).enumerate() {
            for (p, logit) in probabilities.iter_mut().zip(logits) {
                *p = exp((logit - best) * inverse);
            }
            let tokens = (block * probabilities.len()) as u32..;
            let block = probabilities[..logits.len()].iter().copied().zip(tokens);
            candidates.extend(block.filter(|(p, _)| *p > 1e-12));
        }
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        let top_k = self.params.top_k as usize;
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, order);
            candidates.truncate(top_k);
        }
        if self.params.top_p < 1.0 {
            keep_nucleus(candidates, f64::from(self.params.top_p), order);
        }
        let min_p = self.params.min_p;
        candidates.retain(|c| c.0 >= min_p);
        // Independent of how the selection left the order.
        candidates.sort_unstable_by_key(|c| c.1);
        let total: f64 = candidates.iter().map(|c| f64::from(c.0)).sum();
        let mut target = random * total;
        for (p, token) in candidates.iter() {
            target -= f64::from(*p);
            if target < 0.0 {
                return Ok(*token);
            }
        }
        // Rounding left nothing over: the last candidate.
        candidates.last().map(|c| c.1).ok_or(SampleError::NotANumber)
    }

    /// A number in [0, 1) for the present token.
    fn random(&self) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(self.generated);
        (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Whether penalties move any logit.
fn is_penalized(params: &SamplingParams) -> bool {
    params.repetition_penalty.to_bits() != 1.0f32.to_bits()
        || params.presence_penalty != 0.0
        || params.frequency_penalty != 0.0
}

/// Keeps the most likely candidates whose probabilities reach the share `p` of all. Looks at the top 256, then at four times
/// as many: a nucleus is small against a vocabulary, whose sorting would cost more than the rest of the choice.
fn keep_nucleus(candidates: &mut Vec<(f32, u32)>, p: f64, order: impl Fn(&(f32, u32), &(f32, u32)) -> Ordering + Copy) {
    let wanted = p * candidates.iter().map(|c| f64::from(c.0)).sum::<f64>();
    let (mut sorted, mut sum) = (0, 0.0);
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let more = (sorted * 3).max(256).min(rest.len());
        if more < rest.len() {
            rest.select_nth_unstable_by(more - 1, order);
        }
        rest[..more].sort_unstable_by(order);
        for (index, candidate) in rest[..more].iter().enumerate() {
            sum += f64::from(candidate.0);
            if sum >= wanted {
                candidates.truncate(sorted + index + 1);
                return;
            }
        }
        sorted += more;
    }
}

/// The largest logit's token, the lowest of equal ones.
fn argmax(logits: &[f32]) -> Result<u32, SampleError> {
    // The maximum first, then its place: loops that vectorize. NaN or infinity anywhere makes the sum NaN.
    let best = max(logits);
    let mut sum = [0.0f32; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (sum, logit) in sum.iter_mut().zip(chunk) {
            *sum += *logit * 0.0;
        }
    }
    let sum = sum.iter().sum::<f32>() + rest.iter().map(|l| l * 0.0).sum::<f32>();
    if sum.is_nan() && logits.iter().any(|l| l.is_nan()) {
        return Err(SampleError::NotANumber);
    }
    let place = logits.iter().position(|l| *l >= best);
    place.map(|p| p as u32).ok_or(SampleError::NotANumber)
}

/// Log-probability of `token` and of the `top` most likely ones under the softmax of `logits`.
pub fn logprobs(logits: &[f32], token: u32, top: usize) -> TokenLogprob {
    let normalizer = log_sum_exp(logits);
    let of = |logit: f32| (f64::from(logit) - normalizer) as f32;
    let mut order: Vec<(u32, f32)> = Vec::new();
    if top > 0 {
        order = logits.iter().enumerate().map(|(t, l)| (t as u32, *l)).collect();
        let by = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if top < order.len() {
            order.select_nth_unstable_by(top - 1, by);
            order.truncate(top);
        }
        order.sort_unstable_by(by);
    }
    TokenLogprob {
        token,
        logprob: logits.get(token as usize).map_or(f32::NEG_INFINITY, |l| of(*l)),
        top: order.into_iter().map(|(t, l)| (t, of(l))).collect(),
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "the expected values are exact")]
mod tests {
    use super::*;

    fn params() -> SamplingParams {
        SamplingParams { seed: Some(1), ..SamplingParams::default() }
    }

    #[test]
    fn the_nucleus_is_the_shortest_prefix_of_the_sorted_candidates() {
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        let all: Vec<(f32, u32)> = (0..5000u32).map(|t| (((t * 7919) % 997 + 1) as f32 / 997.0, t)).collect();
        for p in [0.001, 0.3, 0.9, 0.999] {
            let mut sorted = all.clone();
            sorted.sort_unstable_by(order);
            let (total, mut sum) = (sorted.iter().map(|c| f64::from(c.0)).sum::<f64>(), 0.0);
            let kept = sorted.iter().take_while(|c| {
                let before = sum;
                sum += f64::from(c.0);
                before < p * total
            });
            let kept: Vec<_> = kept.copied().collect();
            let mut found = all.clone();
            keep_nucleus(&mut found, p, order);
            assert_eq!(found, kept, "{p}");
        }
    }

    /// Frequencies of 4,000 draws from the same logits.
    fn frequencies(params: &SamplingParams, logits: &[f32]) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        let mut sampler = Sampler::new(params, &[], 0);
        for _ in 0..4000 {
            let mut logits = logits.to_vec();
            counts[sampler.sample(&mut logits).unwrap() as usize] += 1.0 / 4000.0;
        }
        counts
    }

    const LOGITS: [f32; 4] = [2.0, 1.0, 0.0, -1.0];

    #[test]
    fn draws_follow_the_softmax() {
        let total: f64 = LOGITS.iter().map(|l| f64::from(*l).exp()).sum();
        for (found, logit) in frequencies(&params(), &LOGITS).iter().zip(LOGITS) {
            assert!((found - f64::from(logit).exp() / total).abs() < 0.03, "{found}");
        }
    }

    #[test]
    fn truncations_keep_exactly_their_sets() {
        let kept = |params: SamplingParams| frequencies(&params, &LOGITS).iter().filter(|f| **f > 0.0).count();
        assert_eq!(kept(SamplingParams { top_k: 2, ..params() }), 2);
        // 0.644, 0.881, 0.968, 1
        assert_eq!(kept(SamplingParams { top_p: 0.6, ..params() }), 1);
        assert_eq!(kept(SamplingParams { top_p: 0.9, ..params() }), 3);
        // Relative to the best: 1, 0.368, 0.135, 0.050
        assert_eq!(kept(SamplingParams { min_p: 0.2, ..params() }), 2);
    }

    #[test]
    fn greedy_takes_the_lowest_of_equal_tokens() {
        let mut sampler = Sampler::new(&SamplingParams { temperature: 0.0, ..params() }, &[], 0);
        assert_eq!(sampler.sample(&mut [1.0, 3.0, 3.0]), Ok(1));
    }

    #[test]
    fn nan_is_an_error() {
        for temperature in [0.0, 1.0] {
            let mut sampler = Sampler::new(&SamplingParams { temperature, ..params() }, &[], 0);
            assert_eq!(sampler.sample(&mut [1.0, f32::NAN, 3.0]), Err(SampleError::NotANumber));
        }
    }

    #[test]
    fn penalties_and_bias_move_logits_as_defined() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            logit_bias: vec![(3, 10.0)],
            temperature: 0.0,
            ..params()
        };
        let mut sampler = Sampler::new(&params, &[0, 1], 0);
        let mut logits = [4.0, -4.0, 1.0, 0.0];
        assert_eq!(sampler.sample(&mut logits), Ok(3));
        assert_eq!(logits, [2.0, -8.0, 1.0, 10.0]);
        let mut logits = [4.0, -4.0, 1.0, 0.0];
        sampler.sample(&mut logits).unwrap();
        assert_eq!(logits, [2.0, -8.0, 1.0, 10.0 / 2.0 - 0.75]);
    }

    #[test]
    fn a_draw_says_what_the_sampler_would_do_next() {
        let plain = Sampler::new(&params(), &[4], 0).draw();
        assert_eq!((plain.temperature, plain.bias, plain.seen), (1.0, vec![], vec![]), "what was seen is no matter");
        let logit_bias = vec![(3, 1.0), (2, 5.0), (3, 0.5)];
        let params = SamplingParams { frequency_penalty: 0.25, top_k: 9, logit_bias, ..params() };
        let mut sampler = Sampler::new(&params, &[4], 0);
        let first = sampler.draw();
        assert_eq!((first.frequency, first.top_k), (0.25, 9));
        assert_eq!((&first.bias, &first.seen), (&vec![(2, 5.0), (3, 1.5)], &vec![(4, 0)]));
        assert_eq!(first, sampler.draw(), "nothing is chosen by it");
        assert_eq!(sampler.take(None), Err(SampleError::NotANumber));
        assert_eq!(sampler.take(Some(4)), Ok(4));
        let second = sampler.draw();
        assert_eq!(second.seen, [(4, 1)]);
        assert_ne!(second.random, first.random);
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens() {
        let draw = || {
            let mut sampler = Sampler::new(&params(), &[], 99);
            (0..20).map(|_| sampler.sample(&mut LOGITS.clone()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
    }

    #[test]
    fn logprobs_are_the_log_softmax_and_sorted() {
        let scored = logprobs(&LOGITS, 2, 2);
        let total: f32 = LOGITS.iter().map(|l| l.exp()).sum();
        assert!((scored.logprob - (1.0 / total).ln()).abs() < 1e-5);
        assert_eq!(scored.top.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn ranges_are_named() {
        let wrong = SamplingParams { top_p: 0.0, ..params() };
        assert!(wrong.validate(10).unwrap_err().contains("top_p"));
        let wrong = SamplingParams { logit_bias: vec![(11, 1.0)], ..params() };
        assert!(wrong.validate(10).unwrap_err().contains("token 11"));
        assert_eq!(params().validate(10), Ok(()));
    }
}
