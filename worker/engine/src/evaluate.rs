//! Scoring text: perplexity, and the divergence of a profile from a reference.
//!
//! Windows of a fixed length without overlap, no BOS, the last partial window dropped. Two figures: over all tokens of a
//! window but the first, and over its second half only (what `llama-perplexity` scores).

use std::ops::Range;

use modelprofile_kernels::{BLOCK_TOKENS, Backend, HostTensor, KvFormat, KvLayout, KvScales, SequenceSpan, StepPlan};

use crate::{
    EngineError, ModelConfig, Result,
    model::{Model, ProfileWeights},
    softmax::{divergence, log_sum_exp, max},
};

/// Sums of negative log-likelihoods and divergences.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Tokens scored.
    pub tokens: usize,
    /// Sum of negative log-likelihoods in nats.
    pub nll: f64,
    /// Tokens scored in the windows' second halves.
    pub half_tokens: usize,
    /// Sum over the second halves.
    pub half_nll: f64,
    /// Sum of KL(reference || profile) in nats; 0 without a reference.
    pub divergence: f64,
    /// Tokens whose most likely continuation is the reference's.
    pub same_top: usize,
}

impl Score {
    /// Perplexity over all tokens but each window's first.
    pub fn perplexity(&self) -> f64 {
        (self.nll / self.tokens.max(1) as f64).exp()
    }

    /// Perplexity over the windows' second halves.
    pub fn half_perplexity(&self) -> f64 {
        (self.half_nll / self.half_tokens.max(1) as f64).exp()
    }

    /// Mean KL divergence from the reference in nats.
    pub fn mean_divergence(&self) -> f64 {
        self.divergence / self.tokens.max(1) as f64
    }

    /// Share of tokens whose most likely continuation is the reference's.
    pub fn top_agreement(&self) -> f64 {
        self.same_top as f64 / self.tokens.max(1) as f64
    }
}

/// Runs windows of text through a model, without a scheduler.
pub struct Evaluator<B: Backend> {
    backend: B,
    model: Model<B>,
    kv: B::Kv,
    window: usize,
    vocab: usize,
}

impl<B: Backend> Evaluator<B> {
    /// An evaluator for windows of `window` tokens, with a cache without scales.
    pub fn new(backend: B, config: &ModelConfig, kv: KvFormat, window: usize) -> Result<Self> {
        let layout = config.kv_layout(kv);
        Self::with_scales(backend, config, layout, &KvScales::unit(&layout), window)
    }

    /// An evaluator whose cache has these scales (see [`crate::calibrate`]).
    pub fn with_scales(
        backend: B,
        config: &ModelConfig,
        layout: KvLayout,
        scales: &KvScales,
        window: usize,
    ) -> Result<Self> {
        if window < 2 || window > config.max_positions {
            let limit = config.max_positions;
            return Err(EngineError::Config(format!("the window must have 2 to {limit} tokens, not {window}")));
        }
        let blocks = window.div_ceil(BLOCK_TOKENS);
        let kv = backend.kv(layout, scales, blocks, blocks)?;
        let model = Model::new(&backend, config, window)?;
        Ok(Self { backend, model, kv, window, vocab: config.vocab })
    }

    /// The backend, to load weights with.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Logits of every position of one window, `[window, vocab]`.
    pub fn logits(&mut self, weights: &ProfileWeights<B>, tokens: &[u32]) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(tokens.len() * self.vocab);
        let plan = StepPlan {
            tokens: tokens.to_vec(),
            sequences: vec![SequenceSpan {
                first_row: 0,
                rows: tokens.len(),
                first_position: 0,
                blocks: (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).collect(),
            }],
            logit_rows: (0..tokens.len()).collect(),
        };
        let mut take = |_: Range<usize>, host: &mut HostTensor| {
            all.extend_from_slice(&host.data);
            Ok(())
        };
        self.model.step(&mut self.backend, weights, &[], &mut self.kv, &plan, &mut take)?;
        Ok(all)
    }

    /// Scores a text with each of `profiles`; the first is the reference of the others' divergence. `progress` gets the
    /// number of windows done and in all.
    pub fn score(
        &mut self,
        profiles: &[&ProfileWeights<B>],
        tokens: &[u32],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<Score>> {
        let mut scores = vec![Score::default(); profiles.len()];
        let windows = tokens.len() / self.window;
        for (index, window) in tokens.chunks_exact(self.window).enumerate() {
            let mut reference: Option<Vec<f32>> = None;
            for (score, weights) in scores.iter_mut().zip(profiles) {
                let logits = self.logits(weights, window)?;
                for (at, next) in window.iter().enumerate().skip(1) {
                    let row = (at - 1) * self.vocab..at * self.vocab;
                    let reference = reference.as_ref().map(|r| &r[row.clone()]);
                    score.add(&logits[row], *next as usize, at > self.window / 2, reference);
                }
                reference.get_or_insert(logits);
            }
            progress(index + 1, windows);
        }
        Ok(scores)
    }
}

impl Score {
    fn add(&mut self, logits: &[f32], next: usize, second_half: bool, reference: Option<&[f32]>) {
        let normalizer = log_sum_exp(logits);
        let nll = normalizer - f64::from(logits[next]);
        self.tokens += 1;
        self.nll += nll;
        if second_half {
            self.half_tokens += 1;
            self.half_nll += nll;
        }
        if let Some(reference) = reference {
            self.divergence += divergence(reference, log_sum_exp(reference), logits, normalizer);
            self.same_top += usize::from(argmax(reference) == argmax(logits));
        }
    }
}

/// The most likely token, the lowest of equal ones.
fn argmax(logits: &[f32]) -> usize {
    let best = max(logits);
    logits.iter().position(|l| *l >= best).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uniform_distribution_has_the_vocabulary_as_perplexity() {
        let mut score = Score::default();
        score.add(&[0.5; 8], 3, true, Some(&[0.5; 8]));
        assert!((score.perplexity() - 8.0).abs() < 1e-9);
        assert!((score.half_perplexity() - 8.0).abs() < 1e-9);
        assert!(score.mean_divergence().abs() < 1e-12);
        assert_eq!(score.same_top, 1);
    }

    #[test]
    fn divergence_is_the_textbook_sum() {
        let (p, q) = ([0.75f32, 0.25], [0.5f32, 0.5]);
        let mut score = Score::default();
        score.add(&q.map(f32::ln), 0, false, Some(&p.map(f32::ln)));
        let expected = 0.75 * (0.75f64 / 0.5).ln() + 0.25 * (0.25f64 / 0.5).ln();
        assert!((score.mean_divergence() - expected).abs() < 1e-6);
        assert_eq!(score.half_tokens, 0);
    }
}
