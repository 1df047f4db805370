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
mod tests;
