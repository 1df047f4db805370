//! Reading a request's body: bounded in bytes and in time, a JSON object.

use axum::{
    extract::Request,
    http::{HeaderMap, header},
};
use futures_util::StreamExt;
use serde_json::{Map, Value};

use super::error::ApiError;
use crate::app::Limits;

/// Bodies up to this many times the limit are read to their end before they are refused: a client that is still writing
/// when the connection closes sees a broken pipe instead of the answer.
const DISCARD_FACTOR: usize = 4;

/// The body as a JSON object.
///
/// # Errors
/// 415, 408, 413 or 400, each with what to do.
pub(crate) async fn object(limits: &Limits, request: Request) -> Result<Map<String, Value>, ApiError> {
    // A web page may send any other type to any address without the browser asking there first.
    if !is_json(request.headers()) {
        return Err(ApiError::not_json());
    }
    let read = tokio::time::timeout(limits.body_time, bytes(limits.body_bytes, request));
    let bytes = read.await.map_err(|_| ApiError::too_slow(limits.body_time))??;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(ApiError::malformed("the body must be a JSON object")),
        Err(error) => Err(ApiError::malformed(format!("the body is not JSON: {error}"))),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let sent = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    sent.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

async fn bytes(limit: usize, request: Request) -> Result<Vec<u8>, ApiError> {
    let most = limit.saturating_mul(DISCARD_FACTOR);
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|bytes| bytes > most) {
        return Err(ApiError::too_large(limit));
    }
    let mut stream = request.into_body().into_data_stream();
    let (mut bytes, mut read) = (Vec::new(), 0);
    while let Some(part) = stream.next().await {
        let part = part.map_err(|_| ApiError::malformed("the body broke off: send it again"))?;
        read += part.len();
        if read > most {
            break;
        }
        if read <= limit {
            bytes.extend_from_slice(&part);
        }
    }
    if read > limit { Err(ApiError::too_large(limit)) } else { Ok(bytes) }
}
