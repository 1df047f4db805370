//! Prompts and chat messages into tokens.

use serde_json::Value;

use super::error::ApiError;
use crate::app::Ready;

/// Tokens of each prompt of a completion: a string, strings, token ids, or arrays of token ids.
pub fn prompts(ready: &Ready, prompt: &Value) -> Result<Vec<Vec<u32>>, ApiError> {
    let wrong = || {
        ApiError::invalid(
            "prompt",
            "prompt must be a string, an array of strings, an array of token ids, or an array of those",
        )
    };
    let encode = |text: &str| encode(ready, text, true, "prompt");
    match prompt {
        Value::String(text) => Ok(vec![encode(text)?]),
        Value::Array(items) if items.is_empty() => Err(wrong()),
        Value::Array(items) if items.iter().all(Value::is_number) => Ok(vec![ids(items).ok_or_else(wrong)?]),
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::String(text) => encode(text),
                Value::Array(items) => ids(items).ok_or_else(wrong),
                _ => Err(wrong()),
            })
            .collect(),
        _ => Err(wrong()),
    }
}

/// Tokens of a text. A text that the vocabulary has no tokens for is the client's to change.
pub fn encode(ready: &Ready, text: &str, add_special: bool, field: &str) -> Result<Vec<u32>, ApiError> {
    ready.tokenizer.encode(text, add_special).map_err(|error| ApiError::invalid(field, error.to_string()))
}

/// Text of tokens. A model's embedding may have more rows than the tokenizer has tokens; these have no text.
pub fn decode(ready: &Ready, tokens: &[u32], field: &str) -> Result<String, ApiError> {
    ready.tokenizer.decode(tokens, false).map_err(|error| ApiError::invalid(field, error.to_string()))
}

fn ids(items: &[Value]) -> Option<Vec<u32>> {
    items.iter().map(|v| v.as_u64().and_then(|v| u32::try_from(v).ok())).collect()
}

/// Tokens of a chat, as the checkpoint's template writes it.
pub fn chat(ready: &Ready, messages: &Value) -> Result<Vec<u32>, ApiError> {
    let template = ready.template.as_ref().ok_or_else(|| {
        ApiError::invalid("messages", "this model has no chat template: use /v1/completions with a prompt")
    })?;
    let text = template.render(&normalize(messages)?, None, true)?;
    encode(ready, &text, false, "messages")
}

/// Checks roles and contents, and joins text parts into one string.
fn normalize(messages: &Value) -> Result<Value, ApiError> {
    let wrong = |at: usize, what: &str| ApiError::invalid("messages", format!("messages[{at}]: {what}"));
    let list = messages.as_array().filter(|m| !m.is_empty());
    let list =
        list.ok_or_else(|| ApiError::invalid("messages", "messages must be an array of at least one message"))?;
    let mut out = Vec::with_capacity(list.len());
    for (at, message) in list.iter().enumerate() {
        let mut message = message.as_object().cloned().ok_or_else(|| wrong(at, "must be an object"))?;
        match message.get("role").and_then(Value::as_str) {
            Some("system" | "user" | "assistant" | "tool") => {}
            Some("developer") => {
                message.insert("role".into(), "system".into());
            }
            _ => return Err(wrong(at, "role must be system, developer, user, assistant or tool")),
        }
        let content = match message.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => {
                let texts = parts.iter().map(|part| {
                    let text = part.get("text").and_then(Value::as_str);
                    text.filter(|_| part.get("type").and_then(Value::as_str) == Some("text"))
                });
                texts.collect::<Option<String>>().ok_or_else(|| wrong(at, "only parts of type text are supported"))?
            }
            _ => return Err(wrong(at, "content must be a string or an array of text parts")),
        };
        message.insert("content".into(), content.into());
        out.push(Value::Object(message));
    }
    Ok(Value::Array(out))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_parts_are_joined_and_developers_are_the_system() {
        let parts =
            json!([{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
        assert_eq!(normalize(&parts).unwrap(), json!([{"role": "system", "content": "ab"}]));
    }

    #[test]
    fn what_is_no_message_is_named_by_its_place() {
        for wrong in [
            json!([{"role": "user", "content": "x"}, {"role": "robot", "content": "x"}]),
            json!([{"role": "user", "content": "x"}, {"role": "user", "content": [{"type": "image_url"}]}]),
            json!([{"role": "user", "content": "x"}, {"role": "user"}]),
        ] {
            let error = normalize(&wrong).unwrap_err();
            assert!(error.body()["error"]["message"].as_str().unwrap().contains("messages[1]"), "{error:?}");
        }
        assert!(normalize(&json!([])).is_err());
    }
}
