//! The endpoints: what a request means, and who answers it.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    answer::Style,
    body,
    error::ApiError,
    job::{self, Job},
    params::{Common, Fields},
    prompt,
};
use crate::app::{App, ENGINE_ENDED, Ready};

/// `GET /health`.
pub async fn health(State(app): State<Arc<App>>) -> Response {
    match ready(&app) {
        Ok(_) => ().into_response(),
        Err(error) => error.into_response(),
    }
}

/// `GET /version`.
pub async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

fn card(app: &App) -> Value {
    let context = app.ready().map(|r| r.engine.max_context_tokens());
    json!({
        "id": app.served_name, "object": "model", "created": app.created, "owned_by": "modelprofile",
        "max_model_len": context,
    })
}

/// `GET /v1/models`.
pub async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [card(&app)]}))
}

/// `GET /v1/models/{id}`.
pub async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    if id == app.served_name { Ok(Json(card(&app))) } else { Err(ApiError::model_not_found(&id, &app.served_name)) }
}

/// The loaded model, if it takes requests.
pub(super) fn ready(app: &App) -> Result<&Ready, ApiError> {
    if app.engine_ended() {
        return Err(ApiError::unavailable(ENGINE_ENDED));
    }
    if app.draining() {
        return Err(ApiError::unavailable("the worker is draining and takes no new requests"));
    }
    app.ready().ok_or_else(|| ApiError::unavailable(format!("not ready yet: {}", app.preparation().message)))
}

/// Tokenizes away from the threads that serve: a long text takes its time, and streams and probes go on meanwhile.
async fn tokenized<T: Send + 'static>(
    app: &Arc<App>,
    work: impl FnOnce(&Ready) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let app = app.clone();
    let done = tokio::task::spawn_blocking(move || work(ready(&app)?)).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("the tokenizer failed on this request")))
}

fn check_model(app: &App, fields: &Fields<'_>) -> Result<(), ApiError> {
    match fields.text("model")? {
        Some(model) if model != app.served_name => Err(ApiError::model_not_found(model, &app.served_name)),
        _ => Ok(()),
    }
}

/// `POST /tokenize`.
pub async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Json<Value>, ApiError> {
    let mut body = body::object(&app.limits, request).await?;
    let fields = Fields(&body);
    let context = ready(&app)?.engine.max_context_tokens();
    check_model(&app, &fields)?;
    let add_special = fields.flag("add_special_tokens")?.unwrap_or(true);
    let (text, messages) = (fields.text("prompt")?.map(str::to_owned), body.remove("messages"));
    let tokens = match (text, messages) {
        (Some(text), None) => tokenized(&app, move |ready| prompt::encode(ready, &text, add_special, "prompt")).await?,
        (None, Some(messages)) => tokenized(&app, move |ready| prompt::chat(ready, &messages)).await?,
        _ => return Err(ApiError::invalid("prompt", "send either prompt or messages")),
    };
    Ok(Json(json!({"count": tokens.len(), "max_model_len": context, "tokens": tokens})))
}

/// `POST /detokenize`.
pub async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Result<Json<Value>, ApiError> {
    let body = body::object(&app.limits, request).await?;
    let fields = Fields(&body);
    ready(&app)?;
    check_model(&app, &fields)?;
    let wrong = || ApiError::invalid("tokens", "tokens must be an array of token ids");
    let tokens = fields.get("tokens").and_then(Value::as_array).ok_or_else(wrong)?;
    let tokens: Option<Vec<u32>> = tokens.iter().map(|t| t.as_u64().and_then(|t| u32::try_from(t).ok())).collect();
    let tokens = tokens.ok_or_else(wrong)?;
    let text = tokenized(&app, move |ready| prompt::decode(ready, &tokens, "tokens")).await?;
    Ok(Json(json!({"prompt": text})))
}

/// `POST /v1/completions`.
pub async fn completions(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let mut body = body::object(&app.limits, request).await?;
    let fields = Fields(&body);
    fields.check_known(&["prompt", "echo", "best_of"])?;
    check_model(&app, &fields)?;
    let common = Common::read(&fields, &app.limits)?;
    if fields.count("best_of")?.is_some_and(|best| best != common.n) {
        return Err(ApiError::invalid("best_of", "best_of is supported only equal to n: leave it out"));
    }
    let logprobs = fields.count("logprobs")?;
    check_top(&app, "logprobs", logprobs)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let max_tokens = common.max_tokens.unwrap_or(16);
    if max_tokens == 0 && !echo {
        return Err(ApiError::invalid(
            "max_tokens",
            "max_tokens must be at least 1 (0 only scores a prompt, with echo)",
        ));
    }
    let prompt = body.remove("prompt").filter(|p| !p.is_null());
    let prompt = prompt.ok_or_else(|| ApiError::invalid("prompt", "prompt is missing"))?;
    let prompts = tokenized(&app, move |ready| prompt::prompts(ready, &prompt)).await?;
    job::run(&app, Job { style: Style::Text, common, prompts, max_tokens, echo, logprobs }).await
}

/// `POST /v1/chat/completions`.
pub async fn chat(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let mut body = body::object(&app.limits, request).await?;
    let fields = Fields(&body);
    fields.check_known(&["messages", "top_logprobs", "max_completion_tokens", "response_format"])?;
    check_model(&app, &fields)?;
    if fields.get("response_format").is_some_and(|f| f.get("type").and_then(Value::as_str) != Some("text")) {
        return Err(ApiError::invalid("response_format", "only a response_format of type text is supported"));
    }
    let common = Common::read(&fields, &app.limits)?;
    let top = fields.count("top_logprobs")?;
    let logprobs = match (fields.flag("logprobs")?.unwrap_or(false), top) {
        (false, Some(top)) if top > 0 => {
            return Err(ApiError::invalid("top_logprobs", "top_logprobs needs logprobs to be true"));
        }
        (false, _) => None,
        (true, top) => Some(top.unwrap_or(0)),
    };
    check_top(&app, "top_logprobs", logprobs)?;
    let newer = fields.count("max_completion_tokens")?;
    let name = if newer.is_some() { "max_completion_tokens" } else { "max_tokens" };
    let asked = newer.or(common.max_tokens);
    if asked == Some(0) {
        return Err(ApiError::invalid(name, format!("{name} must be at least 1")));
    }
    let messages = body.remove("messages").filter(|m| !m.is_null());
    let messages = messages.ok_or_else(|| ApiError::invalid("messages", "messages is missing"))?;
    let tokens = tokenized(&app, move |ready| prompt::chat(ready, &messages)).await?;
    // Without a limit of its own an answer may fill the context.
    let rest = || Ok::<_, ApiError>(ready(&app)?.engine.max_context_tokens().saturating_sub(tokens.len()).max(1));
    let max_tokens = asked.map_or_else(rest, Ok)?;
    job::run(&app, Job { style: Style::Chat, common, prompts: vec![tokens], max_tokens, echo: false, logprobs }).await
}

fn check_top(app: &App, name: &str, top: Option<usize>) -> Result<(), ApiError> {
    let limit = app.limits.top_logprobs;
    if top.is_some_and(|top| top > limit) {
        return Err(ApiError::invalid(name, format!("{name} must be at most {limit}")));
    }
    Ok(())
}
