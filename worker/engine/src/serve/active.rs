//! A request that the scheduler knows: how its tokens are chosen, what was delivered, where its events go.

use std::time::Instant;

use tokio::sync::mpsc as events;

use super::handle::Submission;
use crate::{
    TokenEvent, TokenLogprob,
    sample::{self, SampleError, Sampler},
};

/// A request that the scheduler knows.
pub(super) struct Active {
    pub(super) sampler: Sampler,
    pub(super) events: events::Sender<TokenEvent>,
    pub(super) submitted: Instant,
    pub(super) last_token: Option<Instant>,
    pub(super) scheduled: bool,
    pub(super) prompt_tokens: usize,
    pub(super) generated: usize,
    pub(super) cached_tokens: usize,
    pub(super) max_tokens: usize,
    pub(super) stop_tokens: Vec<u32>,
    pub(super) ignore_eos: bool,
    logprobs: Option<usize>,
    prompt_logprobs: Option<PromptScores>,
}

/// Log-probabilities of a prompt while its chunks are computed.
struct PromptScores {
    tokens: Vec<u32>,
    top: usize,
    scores: Vec<Option<TokenLogprob>>,
}

impl Active {
    /// Of a submission; `entropy` seeds a request that names no seed.
    pub(super) fn new(submission: Submission, entropy: u64) -> Self {
        let Submission { request, events, submitted } = submission;
        let prompt_tokens = request.prompt.len();
        let sampler = Sampler::new(&request.sampling, &request.prompt, entropy);
        let prompt_logprobs = request.prompt_logprobs.map(|top| PromptScores {
            tokens: request.prompt,
            top,
            scores: vec![None; prompt_tokens],
        });
        Self {
            sampler,
            events,
            submitted,
            last_token: None,
            scheduled: false,
            prompt_tokens,
            generated: 0,
            cached_tokens: 0,
            max_tokens: request.max_tokens,
            stop_tokens: request.stop_tokens,
            ignore_eos: request.ignore_eos,
            logprobs: request.logprobs,
            prompt_logprobs,
        }
    }

    /// Whether the logits at a position are looked at for more than the next token.
    pub(super) fn reads_logits(&self, position: usize) -> bool {
        self.logprobs.is_some()
            || self.prompt_logprobs.as_ref().is_some_and(|prompt| position + 1 < prompt.tokens.len())
    }

    /// Chooses a token, with its log-probability if that was asked for. The logits are changed.
    pub(super) fn sample(&mut self, logits: &mut [f32]) -> Result<(u32, Option<TokenLogprob>), SampleError> {
        let raw = self.logprobs.map(|top| (top, logits.to_vec()));
        let token = self.sampler.sample(logits)?;
        Ok((token, raw.map(|(top, raw)| sample::logprobs(&raw, token, top))))
    }

    /// The logits at `position` score the prompt's next token.
    pub(super) fn score_prompt(&mut self, position: usize, logits: &[f32]) {
        if let Some(prompt) = &mut self.prompt_logprobs
            && let Some(next) = prompt.tokens.get(position + 1)
        {
            prompt.scores[position + 1] = Some(sample::logprobs(logits, *next, prompt.top));
        }
    }

    /// Once, before the first token.
    pub(super) fn send_prompt_scores(&mut self) {
        if let Some(prompt) = self.prompt_logprobs.take() {
            let _ = self.events.try_send(TokenEvent::Prompt(prompt.scores));
        }
    }
}
