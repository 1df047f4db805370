//! Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use modelprofile_engine::{EngineError, serve::SubmitError};
use serde_json::{Value, json};

/// An error answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// 400, naming the field.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message) }
    }

    /// 400 for a body that cannot be read as a whole.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        let message = "the API key is missing or wrong: send the header Authorization: Bearer KEY";
        Self { code: Some("invalid_api_key"), ..Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message) }
    }

    /// 404 for a model that is not served here.
    pub fn model_not_found(model: &str, served: &str) -> Self {
        let message = format!("the model {model} is not served here; {served} is");
        Self {
            param: Some("model".into()),
            code: Some("model_not_found"),
            ..Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
        }
    }

    /// 404 for a path.
    pub fn no_such_path(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", format!("there is nothing at {path}"))
    }

    /// 404 for a profile that the ladder does not have.
    pub fn no_such_profile(message: impl Into<String>) -> Self {
        Self { param: Some("profile".into()), ..Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message) }
    }

    /// 405.
    pub fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}: see the header Allow");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    }

    /// 408.
    pub fn too_slow(limit: Duration) -> Self {
        let message = format!("the body did not arrive within {} s: send it again, faster", limit.as_secs_f64());
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message)
    }

    /// 415.
    pub fn not_json() -> Self {
        let message = "send the body as JSON, with the header Content-Type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message)
    }

    /// 413.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }

    /// 503 while the worker prepares or drains.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { retry_after: Some(2), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", message) }
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// What the engine did not take. `field` is the one that holds the prompt.
    pub fn refused(error: SubmitError, field: &str) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::QueueFull { retry_after_seconds, .. } => Self {
                retry_after: Some(retry_after_seconds),
                code: Some("rate_limit_exceeded"),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
            },
            SubmitError::Draining => Self::unavailable(message),
            // Libraries recognise an overlong prompt by the first words.
            SubmitError::TooLong { tokens, limit } => Self {
                code: Some("context_length_exceeded"),
                ..Self::invalid(
                    field,
                    format!(
                        "This model's maximum context length is {limit} tokens; this request asks for {tokens} with its \
                         output: shorten the {field} or lower max_tokens"
                    ),
                )
            },
            SubmitError::Invalid(message) => Self::invalid(field, message),
        }
    }

    /// The body, also sent inside a stream that has begun.
    pub fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Template(_) => Self::invalid("messages", error.to_string()),
            other => Self::internal(other.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
