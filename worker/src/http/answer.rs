//! The shapes of answers and chunks, for text and for chat.
#![allow(clippy::needless_pass_by_value, reason = "the values move into the answer")]

use modelprofile_engine::{TokenLogprob, text::Tokenizer};
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

impl Frame {
    /// An answer or a chunk with these choices.
    pub fn wrap(&self, chunk: bool, profile: &str, choices: Value, usage: Value) -> Value {
        let object = match (self.style, chunk) {
            (Style::Text, _) => "text_completion",
            (Style::Chat, false) => "chat.completion",
            (Style::Chat, true) => "chat.completion.chunk",
        };
        let mut value = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "system_fingerprint": format!("fp_modelprofile_{profile}"), "choices": choices,
        });
        if !usage.is_null() {
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

/// Token counts of an answer.
pub fn usage(prompt: usize, completion: usize, cached: usize) -> Value {
    json!({
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    })
}

/// The text of one token, as far as it is UTF-8.
fn token_text(tokenizer: &Tokenizer, token: u32) -> String {
    String::from_utf8_lossy(&tokenizer.token_bytes(token)).into_owned()
}

/// Log-probabilities in the chat form: a list with the bytes of each token.
pub fn chat_logprobs(tokenizer: &Tokenizer, tokens: &[Scored]) -> Value {
    let entry = |token: u32, logprob: f32| json!({"token": token_text(tokenizer, token), "logprob": logprob, "bytes": tokenizer.token_bytes(token)});
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
#[derive(Debug, Default)]
pub struct TextLogprobs {
    tokens: Vec<String>,
    logprobs: Vec<Option<f32>>,
    top: Vec<Value>,
    offsets: Vec<usize>,
    /// Characters so far.
    offset: usize,
}

impl TextLogprobs {
    /// One token; `None` for the first of a prompt, which nothing predicts.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32, logprob: Option<&TokenLogprob>) {
        let text = token_text(tokenizer, token);
        self.offsets.push(self.offset);
        self.offset += text.chars().count();
        self.logprobs.push(logprob.map(|l| l.logprob));
        self.top.push(logprob.map_or(Value::Null, |l| {
            let top = l.top.iter().map(|(t, l)| (token_text(tokenizer, *t), json!(l)));
            // The token itself belongs to the list even when it is not among the most likely.
            let own = std::iter::once((text.clone(), json!(l.logprob)));
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
