//! The shapes of answers and chunks, for text and for chat.
#![allow(clippy::needless_pass_by_value, reason = "the values move into the answer")]

use std::sync::Arc;

use modelprofile_engine::{
    TokenLogprob,
    text::{StreamDecoder, Tokenizer},
};
use serde_json::{Value, json};

use super::generation::Scored;

/// Which endpoint answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `/v1/completions`.
    Text,
    /// `/v1/chat/completions`.
    Chat,
}

/// The frame of an answer: identity, model, profile.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Which endpoint.
    pub style: Style,
    /// `cmpl-...` or `chatcmpl-...`.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Served name.
    pub model: String,
}

impl Style {
    /// The field of a request that holds its prompt.
    pub fn prompt_field(self) -> &'static str {
        match self {
            Self::Text => "prompt",
            Self::Chat => "messages",
        }
    }
}

impl Frame {
    /// An answer or a chunk with these choices; `usage` is null in the chunks before the one that carries it.
    pub fn wrap(&self, chunk: bool, profile: &str, choices: Value, usage: Option<Value>) -> Value {
        let object = match (self.style, chunk) {
            (Style::Text, _) => "text_completion",
            (Style::Chat, false) => "chat.completion",
            (Style::Chat, true) => "chat.completion.chunk",
        };
        let mut value = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "system_fingerprint": format!("fp_modelprofile_{profile}"), "choices": choices,
        });
        if let Some(usage) = usage {
            value["usage"] = usage;
        }
        value
    }

    /// A whole choice.
    pub fn choice(&self, index: usize, text: &str, reason: &str, logprobs: Value) -> Value {
        match self.style {
            Style::Text => json!({"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs}),
            Style::Chat => json!({
                "index": index, "message": {"role": "assistant", "content": text, "refusal": null},
                "finish_reason": reason, "logprobs": logprobs,
            }),
        }
    }

    /// A part of a choice. The first of a chat carries the role.
    pub fn delta(&self, index: usize, text: &str, first: bool, reason: Option<&str>, logprobs: Value) -> Value {
        match self.style {
            Style::Text => json!({"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs}),
            Style::Chat => {
                let mut delta = json!({});
                if first {
                    delta["role"] = "assistant".into();
                }
                if first || !text.is_empty() {
                    delta["content"] = text.into();
                }
                json!({"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs})
            }
        }
    }
}

/// Token counts of an answer. `cached` is left out when it is not known.
pub fn usage(prompt: usize, completion: usize, cached: Option<usize>) -> Value {
    let mut usage = json!({
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
    });
    if let Some(cached) = cached {
        usage["prompt_tokens_details"] = json!({"cached_tokens": cached});
    }
    usage
}

/// The text of one token, as far as it is UTF-8.
fn token_text(tokenizer: &Tokenizer, token: u32) -> String {
    String::from_utf8_lossy(&tokenizer.token_bytes(token)).into_owned()
}

/// What is sent for a probability of 0, whose logarithm JSON cannot carry.
const LEAST_LOGPROB: f32 = -9999.0;

/// Log-probabilities in the chat form: a list with the bytes of each token.
pub fn chat_logprobs(tokenizer: &Tokenizer, tokens: &[Scored]) -> Value {
    let entry = |token: u32, logprob: f32| json!({"token": token_text(tokenizer, token), "logprob": logprob.max(LEAST_LOGPROB), "bytes": tokenizer.token_bytes(token)});
    let content: Vec<Value> = tokens
        .iter()
        .filter_map(|scored| {
            let logprob = scored.logprob.as_ref()?;
            let mut value = entry(scored.token, logprob.logprob);
            value["top_logprobs"] = logprob.top.iter().map(|(t, l)| entry(*t, *l)).collect();
            Some(value)
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// Log-probabilities in the older text form: parallel arrays, with each token's place in the text.
#[derive(Debug)]
pub struct TextLogprobs {
    tokenizer: Arc<Tokenizer>,
    tokens: Vec<String>,
    logprobs: Vec<Option<f32>>,
    top: Vec<Value>,
    offsets: Vec<usize>,
    /// Reads the tokens as the text was made of them: a character may take several, a special one may be left out.
    decoder: StreamDecoder,
    /// Complete characters so far.
    offset: usize,
}

impl TextLogprobs {
    /// The scores of a text that begins with the prompt's (`echo`), or with the first generated token.
    pub fn new(tokenizer: Arc<Tokenizer>, echo: bool) -> Self {
        let decoder = if echo {
            StreamDecoder::from_start(tokenizer.clone(), false)
        } else {
            StreamDecoder::new(tokenizer.clone(), true)
        };
        Self {
            tokenizer,
            tokens: Vec::new(),
            logprobs: Vec::new(),
            top: Vec::new(),
            offsets: Vec::new(),
            decoder,
            offset: 0,
        }
    }

    /// All tokens of the prompt and their scores; `None` for the first, which nothing predicts.
    pub fn prompt(&mut self, tokens: &[u32], scores: &[Option<TokenLogprob>]) {
        for (token, score) in tokens.iter().zip(scores) {
            self.push(*token, score.as_ref());
        }
        self.offset += self.decoder.finish().chars().count();
        self.decoder = StreamDecoder::new(self.tokenizer.clone(), true);
    }

    /// One token.
    pub fn push(&mut self, token: u32, logprob: Option<&TokenLogprob>) {
        let text = token_text(&self.tokenizer, token);
        self.offsets.push(self.offset);
        self.offset += self.decoder.push(token).chars().count();
        self.logprobs.push(logprob.map(|l| l.logprob.max(LEAST_LOGPROB)));
        self.top.push(logprob.map_or(Value::Null, |l| {
            let top = l.top.iter().map(|(t, l)| (token_text(&self.tokenizer, *t), json!(l.max(LEAST_LOGPROB))));
            // The token itself belongs to the list even when it is not among the most likely.
            let own = std::iter::once((text.clone(), json!(l.logprob.max(LEAST_LOGPROB))));
            Value::Object(top.chain(own).collect())
        }));
        self.tokens.push(text);
    }

    /// The arrays, which are empty afterwards; places in the text go on.
    pub fn take(&mut self) -> Value {
        json!({
            "tokens": std::mem::take(&mut self.tokens),
            "token_logprobs": std::mem::take(&mut self.logprobs),
            "top_logprobs": std::mem::take(&mut self.top),
            "text_offset": std::mem::take(&mut self.offsets),
        })
    }
}
