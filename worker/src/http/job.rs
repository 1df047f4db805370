//! A generation request on its way: its choices in the engine, and the answer that is made of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use futures_util::future::try_join_all;
use modelprofile_engine::{GenerateRequest, TokenLogprob};
use serde_json::Value;

use super::{
    answer::{Frame, Style, TextLogprobs, chat_logprobs, usage},
    error::ApiError,
    generation::{Generation, Piece, Scored},
    handlers::ready,
    params::{Common, check_sampling},
    prompt, stream,
};
use crate::app::{App, ENGINE_ENDED, Ready};

/// What a request asks for, in tokens.
pub(super) struct Job {
    pub(super) style: Style,
    pub(super) common: Common,
    pub(super) prompts: Vec<Vec<u32>>,
    /// Of each choice.
    pub(super) max_tokens: usize,
    /// The answer begins with the prompt.
    pub(super) echo: bool,
    /// Alternatives of each token; `None` asks for no log-probabilities.
    pub(super) logprobs: Option<usize>,
}

/// A choice under way: its generation and what it has gathered.
pub(super) struct Choice {
    pub(super) index: usize,
    pub(super) generation: Generation,
    /// Text of the prompt, until it was given out.
    pub(super) echo: Option<String>,
    /// True for the first choice of its prompt: the one whose prompt tokens count.
    first: bool,
    prompt: Vec<u32>,
    scores: Scores,
}

/// How the log-probabilities of a choice are written.
enum Scores {
    Unasked,
    Chat,
    Text(TextLogprobs),
}

/// Tokens of choices that have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    completion: usize,
    cached: Option<usize>,
}

impl Counts {
    /// The usage of a request with these choices.
    pub(super) fn usage(prompt: usize, choices: impl IntoIterator<Item = Self>) -> Value {
        let none = Self { completion: 0, cached: Some(0) };
        let sum = choices.into_iter().fold(none, |sum, choice| Self {
            completion: sum.completion + choice.completion,
            cached: sum.cached.zip(choice.cached).map(|(a, b)| a + b),
        });
        usage(prompt, sum.completion, sum.cached)
    }
}

/// Submits the choices and answers with them, at once or as a stream.
pub(super) async fn run(app: &Arc<App>, job: Job) -> Result<Response, ApiError> {
    let ready = ready(app)?;
    check_sampling(&job.common.sampling, ready.engine.vocab())?;
    let choices = submit(app, ready, &job)?;
    let prompt_tokens = job.prompts.iter().map(Vec::len).sum();
    let frame = frame(app, job.style);
    if job.common.stream {
        Ok(stream::respond(app.clone(), frame, choices, prompt_tokens, job.common.usage))
    } else {
        whole(app, ready, &frame, choices, prompt_tokens).await
    }
}

/// Numbers the answers of this process.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

fn frame(app: &App, style: Style) -> Frame {
    let prefix = if style == Style::Chat { "chatcmpl" } else { "cmpl" };
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    Frame {
        style,
        id: format!("{prefix}-{:x}-{:x}", created, NEXT_ID.fetch_add(1, Ordering::Relaxed)),
        created,
        model: app.served_name.clone(),
    }
}

/// Every choice in the engine's queue, or none: an error drops the ones submitted so far, which cancels them.
fn submit(app: &App, ready: &Ready, job: &Job) -> Result<Vec<Choice>, ApiError> {
    let (common, field) = (&job.common, job.style.prompt_field());
    let count = job.prompts.len() * common.n;
    if count > app.limits.choices {
        let message = format!("{count} choices are more than the {} of one request", app.limits.choices);
        return Err(ApiError::invalid("n", message));
    }
    let mut choices = Vec::with_capacity(count);
    for tokens in &job.prompts {
        for repeat in 0..common.n {
            let mut sampling = common.sampling.clone();
            // Equal seeds would give n equal texts.
            sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(repeat as u64));
            let request = GenerateRequest {
                prompt: tokens.clone(),
                sampling,
                max_tokens: job.max_tokens,
                stop_tokens: common.stop_tokens.clone(),
                ignore_eos: common.ignore_eos,
                logprobs: job.logprobs,
                prompt_logprobs: job.logprobs.filter(|_| job.echo),
            };
            let echo = if job.echo { Some(prompt::decode(ready, tokens, field)?) } else { None };
            let stream = ready.engine.submit(request).map_err(|error| ApiError::refused(error, field))?;
            choices.push(Choice {
                index: choices.len(),
                generation: Generation::new(stream, ready.tokenizer.clone(), common.stops.clone()),
                echo,
                first: repeat == 0,
                prompt: tokens.clone(),
                scores: match (job.logprobs, job.style) {
                    (None, _) => Scores::Unasked,
                    (Some(_), Style::Chat) => Scores::Chat,
                    (Some(_), Style::Text) => Scores::Text(TextLogprobs::new(ready.tokenizer.clone(), job.echo)),
                },
            });
        }
    }
    Ok(choices)
}

impl Choice {
    /// Log-probabilities of a piece, in the endpoint's form; null when not asked.
    pub(super) fn scores(
        &mut self,
        ready: &Ready,
        prompt: Option<&[Option<TokenLogprob>]>,
        tokens: &[Scored],
    ) -> Value {
        match &mut self.scores {
            Scores::Unasked => Value::Null,
            Scores::Chat => chat_logprobs(&ready.tokenizer, tokens),
            Scores::Text(text) => {
                if let Some(prompt) = prompt {
                    text.prompt(&self.prompt, prompt);
                }
                for scored in tokens {
                    text.push(scored.token, scored.logprob.as_ref());
                }
                text.take()
            }
        }
    }

    /// Tokens so far. A prompt counts once, however many choices it has.
    pub(super) fn counts(&self, cached: Option<usize>) -> Counts {
        Counts { completion: self.generation.tokens, cached: if self.first { cached } else { Some(0) } }
    }
}

/// The answer in one piece. The first choice that fails fails the request, which cancels the others.
async fn whole(
    app: &App,
    ready: &Ready,
    frame: &Frame,
    choices: Vec<Choice>,
    prompt: usize,
) -> Result<Response, ApiError> {
    let done = try_join_all(choices.into_iter().map(|choice| collect(app, ready, frame, choice))).await?;
    let usage = Counts::usage(prompt, done.iter().map(|choice| choice.counts));
    let profile = done.iter().rev().find_map(|choice| choice.profile.clone());
    let profile = profile.unwrap_or_else(|| ready.engine.snapshot().active);
    let values = done.into_iter().map(|choice| choice.value).collect();
    Ok(Json(frame.wrap(false, &profile, values, Some(usage))).into_response())
}

/// A choice that has ended.
struct Done {
    value: Value,
    counts: Counts,
    profile: Option<Arc<str>>,
}

async fn collect(app: &App, ready: &Ready, frame: &Frame, mut choice: Choice) -> Result<Done, ApiError> {
    let mut text = choice.echo.take().unwrap_or_default();
    let mut tokens = Vec::new();
    let mut prompt_scores = None;
    while let Some(piece) = choice.generation.next().await {
        match piece {
            Piece::Prompt(scores) => prompt_scores = Some(scores),
            Piece::Text { text: more, tokens: scored } => {
                text.push_str(&more);
                tokens.extend(scored);
            }
            Piece::Failed(error) => return Err(ApiError::internal(error)),
            Piece::EngineEnded => {
                app.set_engine_ended();
                break;
            }
            Piece::End { reason, cached_tokens } => {
                let logprobs = choice.scores(ready, prompt_scores.as_deref(), &tokens);
                return Ok(Done {
                    value: frame.choice(choice.index, &text, reason, logprobs),
                    counts: choice.counts(cached_tokens),
                    profile: choice.generation.profile,
                });
            }
        }
    }
    Err(ApiError::internal(ENGINE_ENDED))
}
