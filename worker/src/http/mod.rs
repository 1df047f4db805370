//! The OpenAI API.
//!
//! | module | what it does |
//! |---|---|
//! | `body` | reads a request's body within its bounds |
//! | [`params`] | reads and checks a request's fields |
//! | [`prompt`] | prompts and chat messages into tokens |
//! | [`generation`] | tokens into text, stop strings |
//! | [`answer`] | the shapes of answers and chunks |
//! | [`handlers`] | the endpoints |
//! | `job` | a generation request on its way: its choices, and the answer in one piece |
//! | `stream` | the answer as server-sent events |
//! | [`error`] | OpenAI's error bodies |

pub mod answer;
pub(crate) mod body;
pub mod error;
pub mod generation;
pub mod handlers;
mod job;
pub mod params;
pub mod prompt;
mod stream;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use subtle::ConstantTimeEq;

use crate::{admin, app::App};
use error::ApiError;

/// Routes of the API port.
pub fn router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/v1/models", get(handlers::models))
        .route("/v1/models/{*id}", get(handlers::model))
        .route("/v1/completions", post(handlers::completions))
        .route("/v1/chat/completions", post(handlers::chat))
        .route("/tokenize", post(handlers::tokenize))
        .route("/detokenize", post(handlers::detokenize))
        .layer(middleware::from_fn_with_state(app.clone(), authorize));
    Router::new()
        .route("/health", get(handlers::health))
        .route("/version", get(handlers::version))
        .route("/metrics", get(admin::metrics))
        .merge(guarded)
        .fallback(|request: Request| async move { ApiError::no_such_path(request.uri().path()) })
        .method_not_allowed_fallback(|request: Request| async move {
            ApiError::wrong_method(request.method().as_str(), request.uri().path())
        })
        .layer(middleware::from_fn_with_state(app.clone(), name_profile))
        .with_state(app)
}

async fn authorize(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if lets_in(&app, bearer(&request)) { next.run(request).await } else { ApiError::unauthorized().into_response() }
}

fn lets_in(app: &App, sent: &str) -> bool {
    let open = app.api_keys.is_empty() && app.api_key_files.is_none();
    open || is_one_of(sent, &app.api_keys)
        || app.api_key_files.as_ref().is_some_and(|keys| is_one_of(sent, &keys.get()))
}

/// What the request bears, to be held against keys; empty if it bears nothing.
pub(crate) fn bearer(request: &Request) -> &str {
    let sent = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let (scheme, sent) = sent.and_then(|v| v.split_once(' ')).unwrap_or_default();
    if scheme.eq_ignore_ascii_case("bearer") { sent.trim_start() } else { "" }
}

/// True when what was sent is one of the keys, in time that does not depend on which.
pub(crate) fn is_one_of(sent: &str, keys: &[String]) -> bool {
    let found = keys.iter().fold(subtle::Choice::from(0), |found, key| found | key.as_bytes().ct_eq(sent.as_bytes()));
    found.into()
}

/// Adds the header that says which profile is active.
async fn name_profile(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Some(ready) = app.ready()
        && let Ok(value) = HeaderValue::from_str(&ready.engine.snapshot().active)
    {
        response.headers_mut().insert("x-modelprofile-active", value);
    }
    response
}
