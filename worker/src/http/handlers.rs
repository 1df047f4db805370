//! The endpoints.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Request, State},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
};
use futures_util::future::join_all;
use modelprofile_engine::GenerateRequest;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    answer::{Frame, Style, TextLogprobs, chat_logprobs, usage},
    error::ApiError,
    generation::{Generation, Piece, Scored},
    params::{Common, Fields},
    prompt,
};
use crate::app::{App, Ready};

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

fn ready(app: &App) -> Result<&Ready, ApiError> {
    if app.draining() {
        return Err(ApiError::unavailable("the worker is draining and takes no new requests"));
    }
    app.ready().ok_or_else(|| ApiError::unavailable(format!("not ready yet: {}", app.preparation().message)))
}

/// The body as a JSON object, its size bounded.
async fn body(app: &App, request: Request) -> Result<Map<String, Value>, ApiError> {
    let limit = app.limits.body_bytes;
    let bytes: Bytes =
        axum::body::to_bytes(request.into_body(), limit).await.map_err(|_| ApiError::too_large(limit))?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(ApiError::invalid("body", "the body must be a JSON object")),
        Err(error) => Err(ApiError::invalid("body", format!("the body is not JSON: {error}"))),
    }
}

fn check_model(app: &App, fields: &Fields<'_>) -> Result<(), ApiError> {
    match fields.text("model")? {
        Some(model) if model != app.served_name => Err(ApiError::model_not_found(model, &app.served_name)),
        _ => Ok(()),
    }
}

/// `POST /tokenize`.
pub async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Json<Value>, ApiError> {
    let fields = body(&app, request).await?;
    let fields = Fields(&fields);
    let ready = ready(&app)?;
    check_model(&app, &fields)?;
    let tokens = match (fields.text("prompt")?, fields.get("messages")) {
        (Some(text), None) => ready.tokenizer.encode(text, fields.flag("add_special_tokens")?.unwrap_or(true))?,
        (None, Some(messages)) => prompt::chat(ready, messages)?,
        _ => return Err(ApiError::invalid("prompt", "send either prompt or messages")),
    };
    let context = ready.engine.max_context_tokens();
    Ok(Json(json!({"count": tokens.len(), "max_model_len": context, "tokens": tokens})))
}

/// `POST /detokenize`.
pub async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Result<Json<Value>, ApiError> {
    let fields = body(&app, request).await?;
    let fields = Fields(&fields);
    let ready = ready(&app)?;
    check_model(&app, &fields)?;
    let wrong = || ApiError::invalid("tokens", "tokens must be an array of token ids");
    let tokens = fields.get("tokens").and_then(Value::as_array).ok_or_else(wrong)?;
    let vocab = ready.engine.vocab() as u64;
    let tokens: Option<Vec<u32>> = tokens.iter().map(|t| t.as_u64().filter(|t| *t < vocab).map(|t| t as u32)).collect();
    let text = ready.tokenizer.decode(&tokens.ok_or_else(wrong)?, false)?;
    Ok(Json(json!({"prompt": text})))
}

/// What a request asks for, in tokens.
struct Job {
    frame: Frame,
    common: Common,
    prompts: Vec<Vec<u32>>,
    max_tokens: Vec<usize>,
    echo: bool,
    logprobs: Option<usize>,
}

/// `POST /v1/completions`.
pub async fn completions(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let fields = body(&app, request).await?;
    let fields = Fields(&fields);
    fields.check_known(&["prompt", "echo", "best_of"])?;
    check_model(&app, &fields)?;
    let common = Common::read(&fields, &app.limits)?;
    if fields.count("best_of")?.is_some_and(|best| best != common.n) {
        return Err(ApiError::invalid("best_of", "best_of is supported only equal to n: leave it out"));
    }
    let logprobs = fields.count("logprobs")?;
    check_top(&app, "logprobs", logprobs)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let ready = ready(&app)?;
    let missing = || ApiError::invalid("prompt", "prompt is missing");
    let prompts = prompt::prompts(ready, fields.get("prompt").ok_or_else(missing)?)?;
    let max_tokens = common.max_tokens.unwrap_or(16);
    if max_tokens == 0 && !echo {
        return Err(ApiError::invalid(
            "max_tokens",
            "max_tokens must be at least 1 (0 only scores a prompt, with echo)",
        ));
    }
    let max_tokens = vec![max_tokens; prompts.len()];
    let frame = frame(&app, Style::Text);
    run(&app, Job { frame, common, prompts, max_tokens, echo, logprobs }).await
}

/// `POST /v1/chat/completions`.
pub async fn chat(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let fields = body(&app, request).await?;
    let fields = Fields(&fields);
    fields.check_known(&["messages", "top_logprobs", "max_completion_tokens", "response_format"])?;
    check_model(&app, &fields)?;
    if fields.get("response_format").is_some_and(|f| f.get("type").and_then(Value::as_str) != Some("text")) {
        return Err(ApiError::invalid("response_format", "only a response_format of type text is supported"));
    }
    let common = Common::read(&fields, &app.limits)?;
    let top = fields.count("top_logprobs")?;
    let logprobs = match (fields.flag("logprobs")?.unwrap_or(false), top) {
        (false, Some(_)) => return Err(ApiError::invalid("top_logprobs", "top_logprobs needs logprobs to be true")),
        (false, None) => None,
        (true, top) => Some(top.unwrap_or(0)),
    };
    check_top(&app, "top_logprobs", logprobs)?;
    let ready = ready(&app)?;
    let missing = || ApiError::invalid("messages", "messages is missing");
    let tokens = prompt::chat(ready, fields.get("messages").ok_or_else(missing)?)?;
    let rest = ready.engine.max_context_tokens().saturating_sub(tokens.len()).max(1);
    let max_tokens = fields.count("max_completion_tokens")?.or(common.max_tokens).unwrap_or(rest);
    if max_tokens == 0 {
        return Err(ApiError::invalid("max_tokens", "max_tokens must be at least 1"));
    }
    let frame = frame(&app, Style::Chat);
    let job = Job { frame, common, prompts: vec![tokens], max_tokens: vec![max_tokens], echo: false, logprobs };
    run(&app, job).await
}

fn check_top(app: &App, name: &str, top: Option<usize>) -> Result<(), ApiError> {
    let limit = app.limits.top_logprobs;
    if top.is_some_and(|top| top > limit) {
        return Err(ApiError::invalid(name, format!("{name} must be at most {limit}")));
    }
    Ok(())
}

/// Numbers the answers of this process.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

fn frame(app: &App, style: Style) -> Frame {
    let prefix = if style == Style::Chat { "chatcmpl" } else { "cmpl" };
    let created = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    Frame {
        style,
        id: format!("{prefix}-{:x}-{:x}", created, NEXT_ID.fetch_add(1, Ordering::Relaxed)),
        created,
        model: app.served_name.clone(),
    }
}

/// A choice under way: its generation and what it has gathered.
struct Choice {
    index: usize,
    prompt: Vec<u32>,
    generation: Generation,
    echo: bool,
    echo_text: Option<String>,
    logprobs: Option<usize>,
    text_logprobs: TextLogprobs,
    style: Style,
}

async fn run(app: &Arc<App>, job: Job) -> Result<Response, ApiError> {
    let ready = ready(app)?;
    let count = job.prompts.len() * job.common.n;
    if count > app.limits.choices {
        let message = format!("{count} choices are more than the {} of one request", app.limits.choices);
        return Err(ApiError::invalid("n", message));
    }
    let mut choices = Vec::with_capacity(count);
    for (tokens, max_tokens) in job.prompts.iter().zip(&job.max_tokens) {
        for repeat in 0..job.common.n {
            let mut sampling = job.common.sampling.clone();
            sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(repeat as u64));
            let request = GenerateRequest {
                prompt: tokens.clone(),
                sampling,
                max_tokens: *max_tokens,
                stop_tokens: job.common.stop_tokens.clone(),
                ignore_eos: job.common.ignore_eos,
                logprobs: job.logprobs,
                prompt_logprobs: job.logprobs.filter(|_| job.echo),
            };
            // A failure drops the choices submitted so far, which cancels them.
            let stream = ready.engine.submit(request)?;
            let echo_text = if job.echo { Some(ready.tokenizer.decode(tokens, false)?) } else { None };
            choices.push(Choice {
                index: choices.len(),
                prompt: tokens.clone(),
                generation: Generation::new(stream, ready.tokenizer.clone(), job.common.stops.clone()),
                echo: job.echo,
                echo_text,
                logprobs: job.logprobs,
                text_logprobs: TextLogprobs::default(),
                style: job.frame.style,
            });
        }
    }
    let prompt_tokens: usize = job.prompts.iter().map(Vec::len).sum();
    if job.common.stream {
        Ok(stream(app.clone(), job.frame, choices, prompt_tokens, job.common.include_usage))
    } else {
        whole(ready, &job.frame, choices, prompt_tokens).await
    }
}

impl Choice {
    /// Log-probabilities of a piece, in the endpoint's form; null when not asked.
    fn scores(
        &mut self,
        ready: &Ready,
        prompt: Option<&[Option<modelprofile_engine::TokenLogprob>]>,
        tokens: &[Scored],
    ) -> Value {
        if self.logprobs.is_none() {
            return Value::Null;
        }
        if self.style == Style::Chat {
            return chat_logprobs(&ready.tokenizer, tokens);
        }
        for (token, score) in self.prompt.iter().zip(prompt.unwrap_or_default()) {
            self.text_logprobs.push(&ready.tokenizer, *token, score.as_ref());
        }
        for scored in tokens {
            self.text_logprobs.push(&ready.tokenizer, scored.token, scored.logprob.as_ref());
        }
        self.text_logprobs.take()
    }
}

async fn whole(ready: &Ready, frame: &Frame, choices: Vec<Choice>, prompt: usize) -> Result<Response, ApiError> {
    let finished = join_all(choices.into_iter().map(|choice| collect(ready, frame, choice))).await;
    let mut values = Vec::new();
    let (mut completion, mut cached, mut profile) = (0, 0, None);
    for choice in finished {
        let done = choice?;
        completion += done.tokens;
        cached += done.cached;
        profile = done.profile.or(profile);
        values.push(done.value);
    }
    let profile = profile.unwrap_or_else(|| ready.engine.snapshot().active);
    Ok(Json(frame.wrap(false, &profile, values.into(), usage(prompt, completion, cached))).into_response())
}

struct Done {
    value: Value,
    tokens: usize,
    cached: usize,
    profile: Option<Arc<str>>,
}

async fn collect(ready: &Ready, frame: &Frame, mut choice: Choice) -> Result<Done, ApiError> {
    let mut text = choice.echo_text.take().unwrap_or_default();
    let mut scores = Vec::new();
    let mut prompt_scores = None;
    while let Some(piece) = choice.generation.next().await {
        match piece {
            Piece::Prompt(scores) => prompt_scores = Some(scores),
            Piece::Text { text: more, tokens } => {
                text.push_str(&more);
                scores.extend(tokens);
            }
            Piece::Failed(error) => return Err(ApiError::internal(error)),
            Piece::End { reason, cached_tokens } => {
                let logprobs = choice.scores(ready, prompt_scores.as_deref(), &scores);
                return Ok(Done {
                    value: frame.choice(choice.index, &text, reason, logprobs),
                    tokens: choice.generation.tokens,
                    cached: cached_tokens,
                    profile: choice.generation.profile,
                });
            }
        }
    }
    Err(ApiError::internal("the request ended without a result"))
}

/// What the choices of a stream have in common.
struct Sink {
    app: Arc<App>,
    frame: Frame,
    events: mpsc::Sender<Result<Event, Infallible>>,
}

impl Sink {
    /// Sends a chunk; false when the client has gone.
    async fn send(&self, value: &Value) -> bool {
        self.events.send(Ok(Event::default().data(value.to_string()))).await.is_ok()
    }

    /// Streams one choice to its end; its tokens and cached prompt tokens.
    async fn choice(&self, mut choice: Choice) -> (usize, usize) {
        let Some(ready) = self.app.ready() else { return (0, 0) };
        let mut first = true;
        let mut prompt_scores = None;
        while let Some(piece) = choice.generation.next().await {
            let profile = choice.generation.profile.clone().unwrap_or_else(|| ready.engine.snapshot().active);
            let (text, reason, logprobs) = match piece {
                Piece::Prompt(scores) => {
                    prompt_scores = Some(scores);
                    continue;
                }
                Piece::Text { text, tokens } => {
                    if text.is_empty() && tokens.is_empty() && !(first && choice.echo) {
                        continue;
                    }
                    let logprobs = choice.scores(ready, prompt_scores.take().as_deref(), &tokens);
                    (choice.echo_text.take().unwrap_or_default() + &text, None, logprobs)
                }
                Piece::End { reason, cached_tokens } => {
                    let delta = self.frame.delta(choice.index, "", first, Some(reason), Value::Null);
                    self.send(&self.frame.wrap(true, &profile, json!([delta]), Value::Null)).await;
                    return (choice.generation.tokens, cached_tokens);
                }
                Piece::Failed(error) => {
                    self.send(&ApiError::internal(error).body()).await;
                    return (choice.generation.tokens, 0);
                }
            };
            let delta = self.frame.delta(choice.index, &text, first, reason, logprobs);
            first = false;
            if !self.send(&self.frame.wrap(true, &profile, json!([delta]), Value::Null)).await {
                return (choice.generation.tokens, 0);
            }
        }
        (choice.generation.tokens, 0)
    }
}

/// Chunks that may wait for a slow client before its generation waits too.
const CHUNKS: usize = 64;

fn stream(app: Arc<App>, frame: Frame, choices: Vec<Choice>, prompt: usize, include_usage: bool) -> Response {
    let (events, receiver) = mpsc::channel(CHUNKS);
    let sink = Sink { app, frame, events };
    tokio::spawn(async move {
        let work = join_all(choices.into_iter().map(|choice| sink.choice(choice)));
        let counts = tokio::select! {
            counts = work => counts,
            // The client went away while its choices were waiting: dropping them cancels them.
            () = sink.events.closed() => return,
        };
        if include_usage {
            let completion = counts.iter().map(|c| c.0).sum();
            let cached = counts.iter().map(|c| c.1).sum();
            let profile = sink.app.ready().map_or_else(|| "".into(), |r| r.engine.snapshot().active);
            sink.send(&sink.frame.wrap(true, &profile, json!([]), usage(prompt, completion, cached))).await;
        }
        let _ = sink.events.send(Ok(Event::default().data("[DONE]"))).await;
    });
    Sse::new(ReceiverStream::new(receiver)).into_response()
}
