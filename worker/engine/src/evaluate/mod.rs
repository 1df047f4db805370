//! Scoring text: perplexity, and what a profile changes against a reference.
//!
//! Windows of a fixed length without overlap, the last partial window dropped. A vocabulary whose texts begin with BOS gets
//! it at each window's first position, in place of the token there. Two perplexities: over all tokens of a window but the
//! first, and over those of its second half, which have at least half a window of context: these llama.cpp's perplexity
//! tool scores, and on these a profile is compared with the reference.
//!
//! | module | what it does |
//! |---|---|
//! | this one | [`Evaluator`]: windows through a model; [`Score`] |
//! | [`score`] | means with errors, percentiles, the comparison with a reference |
//! | [`health`] | what generated answers show: variety, loops, refusals |
//! | [`language`] | the language of an answer, and words of refusal |
//! | [`needle`] | numbers hidden in long text |

pub mod health;
pub mod language;
pub mod needle;
pub mod score;

use std::ops::Range;

use modelprofile_kernels::{BLOCK_TOKENS, Backend, HostTensor, KvFormat, KvLayout, KvScales, SequenceSpan, StepPlan};

use crate::{
    EngineError, ModelConfig, Result,
    model::{Model, ProfileWeights},
    quantize::in_order,
    softmax::{divergence, log_sum_exp, max},
};

pub use score::{Comparison, Estimate, TokenChange};

/// What a text scored in a profile.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Score {
    /// Tokens scored.
    pub tokens: usize,
    /// Sum of their negative log-likelihoods in nats.
    pub nll: f64,
    /// Negative log-likelihood of each token of the windows' second halves, in order.
    pub half: Vec<f64>,
    /// The same tokens beside the reference; empty for the reference itself.
    pub changes: Vec<TokenChange>,
}

impl Score {
    /// Perplexity over all tokens but each window's first.
    pub fn perplexity(&self) -> f64 {
        (self.nll / self.tokens.max(1) as f64).exp()
    }

    /// Perplexity over the windows' second halves, with its standard error.
    pub fn half_perplexity(&self) -> Estimate {
        Estimate::mean(self.half.iter().copied()).exp()
    }

    /// Mean KL divergence from the reference in nats over the second halves; 0 for the reference.
    pub fn mean_divergence(&self) -> f64 {
        Estimate::mean(self.changes.iter().map(|c| c.divergence)).value
    }

    /// All figures against the reference; of the reference, those against itself.
    pub fn comparison(&self) -> Comparison {
        if !self.changes.is_empty() {
            return Comparison::of(&self.changes);
        }
        let same = |nll: &f64| TokenChange { nll: *nll, reference_nll: *nll, divergence: 0.0, same_top: true };
        Comparison::of(&self.half.iter().map(same).collect::<Vec<_>>())
    }
}

/// Runs windows of text through a model, without a scheduler.
pub struct Evaluator<B: Backend> {
    backend: B,
    model: Model<B>,
    kv: B::Kv,
    window: usize,
    vocab: usize,
    bos: Option<u32>,
    /// Threads that read logits, which takes as long as a GPU computes them, or longer, where the vocabulary is large.
    threads: usize,
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
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self { backend, model, kv, window, vocab: config.vocab, bos: None, threads })
    }

    /// Puts this token at each window's first position, as a vocabulary with BOS wants it.
    #[must_use]
    pub fn with_bos(mut self, bos: Option<u32>) -> Self {
        self.bos = bos;
        self
    }

    /// The backend, to load weights with.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Logits of every position of one window, `[window, vocab]`.
    pub fn logits(&mut self, weights: &ProfileWeights<B>, tokens: &[u32]) -> Result<Vec<f32>> {
        self.rows(weights, None, tokens, 0..tokens.len())
    }

    /// Logits of the positions `rows`, `[rows, vocab]`; gives the memory of `leaving` back meanwhile.
    fn rows(
        &mut self,
        weights: &ProfileWeights<B>,
        leaving: Option<&ProfileWeights<B>>,
        tokens: &[u32],
        rows: Range<usize>,
    ) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(rows.len() * self.vocab);
        let plan = StepPlan {
            tokens: tokens.to_vec(),
            sequences: vec![SequenceSpan {
                first_row: 0,
                rows: tokens.len(),
                first_position: 0,
                blocks: (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).collect(),
            }],
            logit_rows: rows.collect(),
        };
        let mut take = |_: Range<usize>, host: &mut HostTensor| {
            all.extend_from_slice(&host.data);
            Ok(())
        };
        self.model.step(&mut self.backend, weights, leaving.as_slice(), &mut self.kv, &plan, &mut take)?;
        Ok(all)
    }

    /// Scores a text with each of `profiles`; the first is the reference of the others. `progress` gets the number of
    /// windows done and in all.
    ///
    /// One profile's weights are resident at a time, and the reference's logits of one window.
    ///
    /// # Errors
    /// Those of the device; logits that are not numbers, which damaged weights give.
    pub fn score(
        &mut self,
        profiles: &[&ProfileWeights<B>],
        tokens: &[u32],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<Score>> {
        // Row i holds what follows token i, so the last row of a window is not needed.
        self.score_rows(profiles, tokens, 0..self.window - 1, progress)
    }

    /// As [`Self::score`], the windows' second halves alone: all that a comparison needs, at half the logits.
    ///
    /// # Errors
    /// As [`Self::score`].
    pub fn compare(
        &mut self,
        profiles: &[&ProfileWeights<B>],
        tokens: &[u32],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<Score>> {
        self.score_rows(profiles, tokens, self.window / 2..self.window - 1, progress)
    }

    fn score_rows(
        &mut self,
        profiles: &[&ProfileWeights<B>],
        tokens: &[u32],
        rows: Range<usize>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<Score>> {
        let mut scores = vec![Score::default(); profiles.len()];
        let windows = tokens.len() / self.window;
        let half = self.window / 2;
        let mut leaving = None;
        for (index, window) in tokens.chunks_exact(self.window).enumerate() {
            let mut window = window.to_vec();
            if let Some(bos) = self.bos {
                window[0] = bos;
            }
            let mut reference: Option<Vec<f32>> = None;
            for (score, weights) in scores.iter_mut().zip(profiles) {
                let logits = self.rows(weights, leaving, &window, rows.clone())?;
                let read = |(): &mut (), (row, at): (usize, usize)| {
                    let row = row * self.vocab..(row + 1) * self.vocab;
                    let reference = reference.as_ref().map(|r| &r[row.clone()]);
                    Scored::read(&logits[row], window[at + 1] as usize, at >= half, reference)
                };
                in_order(self.threads, rows.clone().enumerate(), read, |scored| {
                    score.add(&scored);
                    Ok(())
                })?;
                reference.get_or_insert(logits);
                leaving = (profiles.len() > 1).then_some(*weights);
            }
            progress(index + 1, windows);
        }
        Ok(scores)
    }
}

/// One token that follows a row of logits.
struct Scored {
    nll: f64,
    second_half: bool,
    change: Option<TokenChange>,
}

impl Scored {
    /// Of the token `next`; of one of the second half the change from the reference's row, too.
    fn read(logits: &[f32], next: usize, second_half: bool, reference: Option<&[f32]>) -> Result<Self> {
        let normalizer = log_sum_exp(logits);
        let nll = normalizer - f64::from(logits[next]);
        if !nll.is_finite() {
            return Err(EngineError::Config(
                "a profile computed logits that are not numbers: its artifact is damaged; remove it from the cache"
                    .into(),
            ));
        }
        let change = reference.filter(|_| second_half).map(|reference| {
            let reference_normalizer = log_sum_exp(reference);
            TokenChange {
                nll,
                reference_nll: reference_normalizer - f64::from(reference[next]),
                divergence: divergence(reference, reference_normalizer, logits, normalizer),
                same_top: argmax(reference) == argmax(logits),
            }
        });
        Ok(Self { nll, second_half, change })
    }
}

impl Score {
    /// Counts one token more.
    fn add(&mut self, scored: &Scored) {
        self.tokens += 1;
        self.nll += scored.nll;
        if scored.second_half {
            self.half.push(scored.nll);
        }
        self.changes.extend(scored.change);
    }
}

/// The most likely token, the lowest of equal ones.
fn argmax(logits: &[f32]) -> usize {
    let best = max(logits);
    logits.iter().position(|l| *l >= best).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scored(logits: &[f32], next: usize, second_half: bool, reference: Option<&[f32]>) -> Score {
        let mut score = Score::default();
        score.add(&Scored::read(logits, next, second_half, reference).unwrap());
        score
    }

    #[test]
    fn a_uniform_distribution_has_the_vocabulary_as_perplexity() {
        let score = scored(&[0.5; 8], 3, true, Some(&[0.5; 8]));
        assert!((score.perplexity() - 8.0).abs() < 1e-9);
        assert!((score.half_perplexity().value - 8.0).abs() < 1e-9);
        assert!(score.mean_divergence().abs() < 1e-12);
        assert!(score.changes[0].same_top);
    }

    #[test]
    fn divergence_is_the_textbook_sum() {
        let (p, q) = ([0.75f32, 0.25], [0.5f32, 0.5]);
        let score = scored(&q.map(f32::ln), 0, true, Some(&p.map(f32::ln)));
        let expected = 0.75 * (0.75f64 / 0.5).ln() + 0.25 * (0.25f64 / 0.5).ln();
        assert!((score.mean_divergence() - expected).abs() < 1e-6);
    }

    #[test]
    fn tokens_of_the_first_half_count_for_the_whole_perplexity_alone() {
        let score = scored(&[0.0; 4], 0, false, Some(&[0.0; 4]));
        assert_eq!((score.tokens, score.half.len(), score.comparison().tokens), (1, 0, 0));
    }

    #[test]
    fn the_reference_is_compared_with_itself() {
        let score = scored(&[0.0; 4], 0, true, None);
        let found = score.comparison();
        assert!((found.perplexity.value - 4.0).abs() < 1e-9);
        assert_eq!(found.perplexity, found.reference_perplexity);
        assert_eq!((found.divergence.value, found.top1_agreement_percent.value), (0.0, 100.0));
    }

    #[test]
    fn logits_that_are_not_numbers_are_an_error() {
        assert!(Scored::read(&[f32::NAN, 0.0], 0, true, None).is_err());
        assert!(Scored::read(&[f32::NEG_INFINITY, 0.0], 0, true, None).is_err());
    }

    proptest! {
        /// Against sums in FP64, of random logits.
        #[test]
        fn a_token_is_scored_as_brute_force_scores_it(
            rows in prop::collection::vec((-12.0..12.0f32, -12.0..12.0f32), 2..300),
            next in any::<prop::sample::Index>(),
        ) {
            let (p, q): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
            let next = next.index(p.len());
            let score = scored(&q, next, true, Some(&p));
            let normal = |logits: &[f32]| logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
            let (zp, zq) = (normal(&p), normal(&q));
            let terms = p.iter().zip(&q).map(|(p, q)| (f64::from(*p) - zp, f64::from(*q) - zq));
            let expected: f64 = terms.map(|(p, q)| p.exp() * (p - q)).sum();
            let found = score.changes[0];
            prop_assert!(found.divergence > -1e-6);
            prop_assert!((found.divergence - expected).abs() < 1e-5 * expected.max(1.0));
            prop_assert!((found.nll - (zq - f64::from(q[next]))).abs() < 1e-5);
            prop_assert!((found.reference_nll - (zp - f64::from(p[next]))).abs() < 1e-5);
            let itself = scored(&p, next, true, Some(&p));
            prop_assert!(itself.changes[0].divergence.abs() < 1e-6 && itself.changes[0].same_top);
        }
    }
}
