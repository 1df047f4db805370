//! The admin port: probes, metrics, state, switch, drain.

use std::{sync::Arc, time::SystemTime};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use modelprofile_api::{
    Quality,
    worker::{
        SwitchOutcome, SwitchReport, SwitchRequest, WorkerKv, WorkerMemory, WorkerPhase, WorkerProfile, WorkerRequests,
        WorkerState,
    },
};
use modelprofile_engine::serve::{Snapshot, SwitchEnd, SwitchResult};
use modelprofile_kernels::BLOCK_TOKENS;

use crate::{
    app::{App, ENGINE_ENDED},
    http::{bearer, body, error::ApiError, is_one_of},
};

/// Routes of the admin port. Probes and metrics are open, the rest needs the token.
pub fn router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/admin/v1/state", get(state))
        .route("/admin/v1/profile", put(switch))
        .route("/admin/v1/quality", put(quality))
        .route("/admin/v1/drain", post(drain))
        .layer(middleware::from_fn_with_state(app.clone(), authorize));
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .merge(guarded)
        .with_state(app)
}

async fn authorize(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match refusal(&app, bearer(&request)) {
        None => next.run(request).await,
        Some(refusal) => refusal.into_response(),
    }
}

/// Why the bearer of `sent` is not let in.
fn refusal(app: &App, sent: &str) -> Option<(StatusCode, String)> {
    if app.admin_token.is_none() && app.admin_keys.is_none() {
        let text = "the admin API has no token: set MODELPROFILE_ADMIN_TOKEN, or --admin-keys, and restart the worker";
        return Some((StatusCode::FORBIDDEN, text.to_owned()));
    }
    if app.admin_token.as_ref().is_some_and(|token| is_one_of(sent, std::slice::from_ref(token))) {
        return None;
    }
    let sentence = match &app.admin_keys {
        Some(keys) if !sent.is_empty() => keys.verify(sent, SystemTime::now()).err()?.to_string(),
        _ => "send the header Authorization: Bearer TOKEN".to_owned(),
    };
    Some((StatusCode::UNAUTHORIZED, sentence))
}

async fn livez(State(app): State<Arc<App>>) -> Response {
    if app.engine_ended() {
        return (StatusCode::INTERNAL_SERVER_ERROR, ENGINE_ENDED).into_response();
    }
    "ok".into_response()
}

async fn readyz(State(app): State<Arc<App>>) -> Response {
    if app.engine_ended() {
        return (StatusCode::SERVICE_UNAVAILABLE, ENGINE_ENDED).into_response();
    }
    if app.leaving() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining").into_response();
    }
    if app.ready().is_some() {
        return "ok".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, app.preparation().message).into_response()
}

/// Metrics in the Prometheus text format.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let snapshot = app.ready().map(|ready| ready.engine.snapshot());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render(snapshot.as_ref()))
}

async fn state(State(app): State<Arc<App>>) -> Json<WorkerState> {
    Json(match app.ready() {
        None => app.preparation(),
        Some(ready) => describe(&app, &ready.engine.snapshot()),
    })
}

fn describe(app: &App, snapshot: &Snapshot) -> WorkerState {
    let (phase, message) = match (app.engine_ended(), app.leaving() || snapshot.draining) {
        (true, _) => (WorkerPhase::Failed, ENGINE_ENDED.to_owned()),
        (false, true) => (WorkerPhase::Draining, String::new()),
        (false, false) => (WorkerPhase::Ready, String::new()),
    };
    WorkerState {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        served_name: app.served_name.clone(),
        phase,
        message,
        active_profile: Some(snapshot.active.to_string()),
        target_profile: snapshot.target.as_ref().map(ToString::to_string),
        profiles: snapshot
            .profiles
            .iter()
            .map(|p| WorkerProfile {
                name: p.name.to_string(),
                artifact_key: p.artifact_key.clone(),
                weight_bytes: p.weight_bytes,
                kv_tokens: p.kv_tokens,
                prepared_percent: 100.0,
                activity: String::new(),
                quality: app.gate.quality(&p.name),
            })
            .collect(),
        awaited_profiles: app.awaited(),
        kv: WorkerKv {
            blocks_total: snapshot.blocks_total as u64,
            blocks_used: snapshot.blocks_used as u64,
            blocks_cached: snapshot.blocks_cached as u64,
            block_tokens: BLOCK_TOKENS as u64,
        },
        requests: WorkerRequests {
            running: snapshot.running as u64,
            waiting: snapshot.waiting as u64,
            oldest_waiting_seconds: snapshot.oldest_waiting.map_or(0.0, |t| t.elapsed().as_secs_f64()),
            tokens_per_second: app.metrics.tokens_per_second(),
            stalled_seconds: snapshot.last_progress.map_or(0.0, |t| t.elapsed().as_secs_f64()),
        },
        memory: WorkerMemory {
            budget_bytes: snapshot.memory.budget,
            weight_bytes: snapshot.memory.weights,
            kv_bytes: snapshot.memory.kv,
            workspace_bytes: snapshot.memory.workspace,
        },
        last_switch: snapshot.last_switch.as_ref().map(report),
        quality_limits: app.gate.limits(),
    }
}

fn report(result: &SwitchResult) -> SwitchReport {
    let start = jiff::Timestamp::try_from(result.start).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    SwitchReport {
        from: result.from.to_string(),
        to: result.to.to_string(),
        start_time: start.to_string(),
        duration_millis: result.duration.as_millis() as u64,
        pause_millis: result.pause.as_secs_f64() * 1e3,
        preempted: result.preempted as u64,
        outcome: match result.outcome {
            SwitchEnd::Completed => SwitchOutcome::Completed,
            SwitchEnd::Replaced => SwitchOutcome::Replaced,
            SwitchEnd::Refused | SwitchEnd::Unknown => SwitchOutcome::Refused,
        },
        message: result.message.clone(),
    }
}

async fn switch(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let body = body::object(&app.limits, request).await?;
    let request: SwitchRequest = serde_json::from_value(body.into())
        .map_err(|error| ApiError::malformed(format!(r#"send {{"profile": NAME}}: {error}"#)))?;
    let Some(ready) = app.ready() else {
        return Ok((StatusCode::SERVICE_UNAVAILABLE, app.preparation().message).into_response());
    };
    if !ready.engine.snapshot().profiles.iter().any(|known| *known.name == *request.profile) {
        // It may have been added just now.
        app.look().await;
    }
    if let Some(message) = app.gate.refusal(&request.profile) {
        let report = refused(&ready.engine.snapshot().active, request.profile, message);
        return Ok((StatusCode::CONFLICT, Json(report)).into_response());
    }
    let Ok(result) = ready.engine.switch(&request.profile).await else {
        app.set_engine_ended();
        return Ok((StatusCode::INTERNAL_SERVER_ERROR, ENGINE_ENDED).into_response());
    };
    let status = match result.outcome {
        SwitchEnd::Completed => StatusCode::OK,
        SwitchEnd::Refused | SwitchEnd::Replaced => StatusCode::CONFLICT,
        SwitchEnd::Unknown => {
            let awaited = app.awaited().into_iter().find(|awaited| awaited.name == request.profile);
            let why = awaited.map(|awaited| format!(". {}", awaited.message)).unwrap_or_default();
            return Err(ApiError::no_such_profile(format!("{}{why}", result.message)));
        }
    };
    Ok((status, Json(report(&result))).into_response())
}

/// A switch that the gate refuses: the engine never hears of it.
fn refused(active: &str, profile: String, message: String) -> SwitchReport {
    SwitchReport {
        from: active.to_owned(),
        to: profile,
        start_time: jiff::Timestamp::now().to_string(),
        duration_millis: 0,
        pause_millis: 0.0,
        preempted: 0,
        outcome: SwitchOutcome::Refused,
        message,
    }
}

/// Changes the limits of the quality gate, also while no profile is within them and the worker waits for others.
async fn quality(State(app): State<Arc<App>>, request: Request) -> Result<StatusCode, ApiError> {
    let body = body::object(&app.limits, request).await?;
    let limits: Quality = serde_json::from_value(body.into())
        .map_err(|error| ApiError::malformed(format!("send a spec.quality as JSON: {error}")))?;
    if limits.max_mean_kl_divergence.to_f64().is_none() {
        let text = &limits.max_mean_kl_divergence;
        return Err(ApiError::malformed(format!(
            "maxMeanKLDivergence: {text} is not a number of nats such as \"0.1\""
        )));
    }
    app.gate.set_limits(limits);
    Ok(StatusCode::NO_CONTENT)
}

async fn drain(State(app): State<Arc<App>>) -> &'static str {
    app.drain().await;
    "drained"
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_report_that_is_shown_again_keeps_its_start() {
        let result = SwitchResult {
            from: "quality".into(),
            to: "density".into(),
            start: SystemTime::UNIX_EPOCH + Duration::from_millis(1500),
            duration: Duration::from_millis(83),
            pause: Duration::from_millis(12),
            preempted: 0,
            outcome: SwitchEnd::Completed,
            message: String::new(),
        };
        assert_eq!(report(&result).start_time, "1970-01-01T00:00:01.5Z");
        assert_eq!(report(&result), report(&result));
    }
}
