//! An answer as server-sent events, each choice at its own pace.

use std::{convert::Infallible, sync::Arc};

use axum::response::{
    IntoResponse, Response,
    sse::{Event, Sse},
};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    answer::Frame,
    error::ApiError,
    generation::Piece,
    job::{Choice, Counts},
    params::StreamUsage,
};
use crate::app::{App, ENGINE_ENDED};

/// Chunks that may wait for a slow client before its generation waits too.
const CHUNKS: usize = 64;

/// How long a client may leave a full buffer unread before it counts as gone: it holds a connection and a place in the batch.
const STALL: std::time::Duration = std::time::Duration::from_secs(120);

/// Why a choice gave no end of its own: the client has gone, or it was told of an error.
struct BrokenOff;

/// What the choices of a stream have in common.
struct Sink {
    app: Arc<App>,
    frame: Frame,
    /// Tokens of the prompts.
    prompt: usize,
    usage: StreamUsage,
    events: mpsc::Sender<Result<Event, Infallible>>,
}

/// Streams the choices; then the usage, if asked; then `[DONE]`.
pub(super) fn respond(
    app: Arc<App>,
    frame: Frame,
    choices: Vec<Choice>,
    prompt: usize,
    usage: StreamUsage,
) -> Response {
    let (events, receiver) = mpsc::channel(CHUNKS);
    let sink = Sink { app, frame, prompt, usage, events };
    tokio::spawn(async move {
        let work = join_all(choices.into_iter().map(|choice| sink.choice(choice)));
        let counts = tokio::select! {
            counts = work => counts,
            // The client went away while its choices were waiting: dropping them cancels them.
            () = sink.events.closed() => return,
        };
        // The count of a choice that broke off is not known; no usage is better than a wrong one.
        let counts: Option<Vec<Counts>> = counts.into_iter().map(Result::ok).collect();
        if let Some(counts) = counts.filter(|_| usage != StreamUsage::None) {
            let _ = sink.chunk(None, json!([]), Some(Counts::usage(prompt, counts))).await;
        }
        let _ = sink.events.send(Ok(Event::default().data("[DONE]"))).await;
    });
    Sse::new(ReceiverStream::new(receiver)).into_response()
}

impl Sink {
    async fn send(&self, value: &Value) -> Result<(), BrokenOff> {
        let event = Ok(Event::default().data(value.to_string()));
        let sent = tokio::time::timeout(STALL, self.events.send(event)).await;
        sent.ok().and_then(Result::ok).ok_or(BrokenOff)
    }

    /// Sends a chunk under the profile that computed it.
    async fn chunk(&self, profile: Option<Arc<str>>, choices: Value, usage: Option<Value>) -> Result<(), BrokenOff> {
        let active = || self.app.ready().map_or_else(|| "".into(), |r| r.engine.snapshot().active);
        // Where the usage was asked for, every chunk has the field.
        let usage = usage.or_else(|| (self.usage != StreamUsage::None).then_some(Value::Null));
        self.send(&self.frame.wrap(true, &profile.unwrap_or_else(active), choices, usage)).await
    }

    /// Streams one choice to its end.
    async fn choice(&self, mut choice: Choice) -> Result<Counts, BrokenOff> {
        let ready = self.app.ready().ok_or(BrokenOff)?;
        let mut first = true;
        let mut prompt_scores = None;
        while let Some(piece) = choice.generation.next().await {
            let profile = choice.generation.profile.clone();
            let delta = match piece {
                Piece::Prompt(scores) => {
                    prompt_scores = Some(scores);
                    continue;
                }
                Piece::Text { text, tokens } => {
                    let echo = choice.echo.take();
                    if text.is_empty() && tokens.is_empty() && echo.is_none() {
                        continue;
                    }
                    let logprobs = choice.scores(ready, prompt_scores.take().as_deref(), &tokens);
                    self.frame.delta(choice.index, &(echo.unwrap_or_default() + &text), first, None, logprobs)
                }
                Piece::End { reason, cached_tokens } => {
                    let delta = self.frame.delta(choice.index, "", first, Some(reason), Value::Null);
                    self.chunk(profile, json!([delta]), None).await?;
                    return Ok(choice.counts(cached_tokens));
                }
                Piece::Failed(error) => {
                    self.send(&ApiError::internal(error).body()).await?;
                    return Err(BrokenOff);
                }
                Piece::EngineEnded => {
                    self.app.set_engine_ended();
                    self.send(&ApiError::internal(ENGINE_ENDED).body()).await?;
                    return Err(BrokenOff);
                }
            };
            first = false;
            let so_far = || Counts::usage(self.prompt, [choice.counts(None)]);
            self.chunk(profile, json!([delta]), (self.usage == StreamUsage::Every).then(so_far)).await?;
        }
        Err(BrokenOff)
    }
}
