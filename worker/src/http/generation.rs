//! One choice: the engine's tokens become text, stop strings end it.

use std::sync::Arc;

use modelprofile_engine::{
    FinishReason, TokenEvent, TokenLogprob,
    serve::TokenStream,
    text::{StopMatcher, StreamDecoder, Tokenizer},
};

/// A generated token and, if asked, its log-probability.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The token.
    pub token: u32,
    /// If asked.
    pub logprob: Option<TokenLogprob>,
}

/// Some text of a choice.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Scores of the prompt, once, if asked.
    Prompt(Vec<Option<TokenLogprob>>),
    /// Text that is final, and the tokens that arrived with it; either may be empty.
    Text {
        /// Text.
        text: String,
        /// Tokens.
        tokens: Vec<Scored>,
    },
    /// The end.
    End {
        /// "stop" or "length".
        reason: &'static str,
        /// Prompt tokens found in the prefix cache; `None` when a stop string ended the text before the engine said.
        cached_tokens: Option<usize>,
    },
    /// The engine failed the request.
    Failed(String),
    /// The engine is no more.
    EngineEnded,
}

/// A running choice. Dropping it cancels it.
pub struct Generation {
    stream: TokenStream,
    decoder: StreamDecoder,
    stops: StopMatcher,
    /// Tokens so far.
    pub tokens: usize,
    /// Profile of the latest token.
    pub profile: Option<Arc<str>>,
    pending: Option<Piece>,
    ended: bool,
}

impl Generation {
    /// Wraps a request's stream.
    pub fn new(stream: TokenStream, tokenizer: Arc<Tokenizer>, stops: Vec<String>) -> Self {
        Self {
            stream,
            decoder: StreamDecoder::new(tokenizer, true),
            stops: StopMatcher::new(stops),
            tokens: 0,
            profile: None,
            pending: None,
            ended: false,
        }
    }

    /// The next piece; `None` after the end.
    pub async fn next(&mut self) -> Option<Piece> {
        if let Some(piece) = self.pending.take() {
            return Some(piece);
        }
        if self.ended {
            return None;
        }
        Some(match self.stream.next().await {
            Some(TokenEvent::Prompt(scores)) => Piece::Prompt(scores),
            Some(TokenEvent::Token { token, logprob, profile }) => {
                self.tokens += 1;
                self.profile = Some(profile);
                let outcome = self.stops.push(&self.decoder.push(token));
                if outcome.stopped {
                    self.finish(Piece::End { reason: "stop", cached_tokens: None });
                }
                Piece::Text { text: outcome.emit, tokens: vec![Scored { token, logprob }] }
            }
            Some(TokenEvent::Finished { reason: FinishReason::Error, error, .. }) => {
                self.ended = true;
                Piece::Failed(error.unwrap_or_else(|| "the engine failed".into()))
            }
            Some(TokenEvent::Finished { reason, cached_tokens, .. }) => {
                let tail = self.stops.push(&self.decoder.finish());
                let rest = if tail.stopped { String::new() } else { self.stops.finish() };
                let stopped = tail.stopped || reason == FinishReason::Stop;
                let reason = if stopped { "stop" } else { "length" };
                let end = Piece::End { reason, cached_tokens: Some(cached_tokens) };
                let text = tail.emit + &rest;
                self.finish(end);
                Piece::Text { text, tokens: Vec::new() }
            }
            None => {
                self.ended = true;
                Piece::EngineEnded
            }
        })
    }

    fn finish(&mut self, end: Piece) {
        self.pending = Some(end);
        self.ended = true;
    }
}
