//! What goes into the engine and what comes out: tokens only. Text is handled around it (see [`crate::text`]).

use std::sync::Arc;

/// How the next token is chosen from the logits. Defaults are OpenAI's (temperature 1, nothing else).
///
/// Order of application: logit bias, repetition / presence / frequency penalties, temperature, top-k, top-p, min-p.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of tokens whose probability reaches p (nucleus sampling, Holtzman et al. 2019).
    pub top_p: f32,
    /// Drop tokens less likely than `min_p` times the most likely one.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output (CTRL, Keskar et al. 2019).
    pub repetition_penalty: f32,
    /// Subtracted once from tokens seen in the output.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the output.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of this request's random numbers; `None` draws one.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// One generation.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// Prompt tokens; at least one.
    pub prompt: Vec<u32>,
    /// Choice of tokens.
    pub sampling: SamplingParams,
    /// Most tokens to generate; 0 only scores the prompt.
    pub max_tokens: usize,
    /// Tokens that end the generation, besides the model's own. Not returned.
    pub stop_tokens: Vec<u32>,
    /// Go on past end-of-text tokens.
    pub ignore_eos: bool,
    /// Log-probabilities of each generated token and this many alternatives.
    pub logprobs: Option<usize>,
    /// Log-probabilities of the prompt's tokens and this many alternatives (`echo`).
    pub prompt_logprobs: Option<usize>,
}

/// Log-probability of a token and of the most likely alternatives at its place.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability, before temperature and truncation (the model's own distribution).
    pub logprob: f32,
    /// Alternatives, most likely first: (token, log-probability).
    pub top: Vec<(u32, f32)>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-text or stop token.
    Stop,
    /// `max_tokens` or the context length.
    Length,
    /// The engine failed this request; the event carries the reason.
    Error,
}

/// What a request's stream delivers, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenEvent {
    /// Once, first, if `prompt_logprobs` was asked: an entry per prompt token, `None` for the first.
    Prompt(Vec<Option<TokenLogprob>>),
    /// A generated token.
    Token {
        /// The token.
        token: u32,
        /// If `logprobs` was asked.
        logprob: Option<TokenLogprob>,
        /// Profile that computed it.
        profile: Arc<str>,
    },
    /// Last event.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Prompt tokens found in the prefix cache.
        cached_tokens: usize,
        /// For [`FinishReason::Error`].
        error: Option<String>,
    },
}
