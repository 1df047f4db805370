//! The admin port, and the worker while it prepares and drains.

use modelprofile_api::{MeasuredQuality, Quality};
use modelprofile_worker::{app::App, gate::Gate};
use reqwest::{Method, header};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::support::{self, Server, Setup, answer, eventually, finished, token};

async fn state(server: &Server) -> Value {
    let (status, text) = answer(server.admin(Method::GET, "/admin/v1/state")).await;
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn the_admin_api_asks_for_its_token_and_probes_and_metrics_do_not() {
    let server = Server::start().await;
    let get = |path: &str| server.client.get(format!("http://{}{path}", server.admin));
    for (sent, status) in
        [(None, 401), (Some("Bearer wrong"), 401), (Some("Bearer secretx"), 401), (Some("Bearer secret"), 200)]
    {
        let mut request = get("/admin/v1/state");
        if let Some(sent) = sent {
            request = request.header(header::AUTHORIZATION, sent);
        }
        assert_eq!(answer(request).await.0, status, "{sent:?}");
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(answer(get(path)).await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn without_a_token_the_admin_api_is_closed_and_says_how_to_open_it() {
    let server = Server::with(Setup { admin_token: None, ..Setup::default() }).await;
    for request in [
        server.admin(Method::GET, "/admin/v1/state"),
        server.admin(Method::PUT, "/admin/v1/profile").json(&json!({"profile": "density"})),
        server.admin(Method::PUT, "/admin/v1/quality").json(&json!({})),
        server.admin(Method::POST, "/admin/v1/drain"),
    ] {
        let (status, text) = answer(request).await;
        assert_eq!(status, 403);
        assert!(text.contains("MODELPROFILE_ADMIN_TOKEN"), "{text}");
    }
    assert!(!server.app.draining());
}

#[tokio::test]
async fn the_admin_port_has_no_api_and_the_api_port_no_admin() {
    let server = Server::start().await;
    assert_eq!(answer(server.admin(Method::GET, "/v1/models")).await.0, 404);
    assert_eq!(server.get("/admin/v1/state").await.0, 404);
    assert_eq!(answer(server.admin(Method::POST, "/admin/v1/state")).await.0, 405);
}

#[tokio::test]
async fn the_outcome_of_a_switch_is_its_status() {
    let server = Server::start().await;
    for (profile, status, outcome) in
        [("density", 200, "Completed"), ("broken", 409, "Refused"), ("late", 409, "Replaced")]
    {
        let request = server.admin(Method::PUT, "/admin/v1/profile").json(&json!({"profile": profile}));
        let (answered, text) = answer(request).await;
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((answered.as_u16(), &report["outcome"]), (status, &json!(outcome)), "{profile}: {text}");
        assert_eq!((&report["from"], &report["to"]), (&json!("quality"), &json!(profile)));
        assert_eq!((&report["durationMillis"], &report["pauseMillis"]), (&json!(1500), &json!(2.5)));
    }
    let request = server.admin(Method::PUT, "/admin/v1/profile").json(&json!({"profile": "absent"}));
    let (status, text) = answer(request).await;
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status.as_u16(), &body["error"]["message"]), (404, &json!("no profile has that name")));
}

/// Quality and density, whose perplexity rose by 3.1 and 0.2 percent, where 1 percent is allowed.
fn gated(app: &mut App) {
    let limits = Quality { max_perplexity_increase_percent: 1, ..Quality::default() };
    app.gate = Gate::new(limits, &["quality".to_owned(), "density".to_owned()]);
    for (name, perplexity) in [("quality", 20.62), ("density", 20.04)] {
        let measured = MeasuredQuality {
            perplexity,
            reference_perplexity: 20.0,
            mean_kl_divergence: 0.01,
            p99_kl_divergence: 0.1,
            top1_agreement_percent: 95.0,
            rms_probability_change_percent: 2.0,
            tokens: 1536,
            dataset: "built-in".to_owned(),
            measured_at: "2026-03-01T12:00:00Z".to_owned(),
        };
        app.gate.measured(name, measured);
    }
}

#[tokio::test]
async fn a_switch_to_a_profile_beyond_the_quality_limits_is_refused_until_they_are_raised() {
    let server = Server::with(Setup { change: gated, ..Setup::default() }).await;
    let switch = async |profile: &str| {
        let request = server.admin(Method::PUT, "/admin/v1/profile").json(&json!({"profile": profile}));
        let (status, text) = answer(request).await;
        (status.as_u16(), serde_json::from_str::<Value>(&text).unwrap())
    };
    let (status, report) = switch("quality").await;
    assert_eq!((status, &report["outcome"], &report["to"]), (409, &json!("Refused"), &json!("quality")));
    let message = report["message"].as_str().unwrap();
    assert!(message.contains("3.10 % above the original's, the limit is 1 %"), "{message}");
    assert_eq!(switch("density").await.0, 200);
    assert_eq!(switch("absent").await.0, 404);
    let shown = state(&server).await;
    assert_eq!(shown["qualityLimits"]["maxPerplexityIncreasePercent"], 1);
    assert_eq!(shown["profiles"][0]["quality"]["perplexity"], 20.62);
    let limits = json!({"maxPerplexityIncreasePercent": 4});
    let request = server.admin(Method::PUT, "/admin/v1/quality").json(&limits);
    assert_eq!(answer(request).await.0, 204);
    assert_eq!(state(&server).await["qualityLimits"]["maxPerplexityIncreasePercent"], 4);
    assert_eq!(switch("quality").await.0, 200);
}

#[tokio::test]
async fn limits_that_are_none_change_nothing() {
    let server = Server::with(Setup { change: gated, ..Setup::default() }).await;
    for body in [r#"{"maxPerplexityIncreasePercent": "many"}"#, r#"{"maxMeanKLDivergence": "low"}"#, "[]"] {
        let request = server.admin(Method::PUT, "/admin/v1/quality").header("content-type", "application/json");
        assert_eq!(answer(request.body(body)).await.0, 400, "{body}");
    }
    assert_eq!(state(&server).await["qualityLimits"]["maxPerplexityIncreasePercent"], 1);
}

#[tokio::test]
async fn a_switch_that_is_no_request_is_refused_and_one_that_nobody_answers_fails() {
    let server = Server::start().await;
    for body in ["", "[]", "{}", r#"{"profile": 1}"#] {
        let request = server.admin(Method::PUT, "/admin/v1/profile").header("content-type", "application/json");
        let (status, text) = answer(request.body(body)).await;
        assert!((400..500).contains(&status.as_u16()), "{body}: {status} {text}");
    }
    let request = server.admin(Method::PUT, "/admin/v1/profile").json(&json!({"profile": "dead"}));
    assert_eq!(answer(request).await.0, 500);
}

#[tokio::test]
async fn an_engine_that_ended_while_nobody_asked_fails_the_probes() {
    let server = Server::start().await;
    assert_eq!(answer(server.admin(Method::GET, "/livez")).await.0, 200);
    server.engine.ended.store(true, Ordering::Release);
    for (path, status) in [("/livez", 500), ("/readyz", 503)] {
        assert_eq!(answer(server.admin(Method::GET, path)).await.0, status, "{path}");
    }
    assert_eq!(state(&server).await["phase"], "Failed");
    let (status, text) = answer(server.admin(Method::PUT, "/admin/v1/profile").json(&json!({"profile": "dead"}))).await;
    assert_eq!(status, 500, "{text}");
}

#[tokio::test]
async fn a_worker_that_prepares_is_alive_and_not_ready() {
    let server = Server::with(Setup { ready: false, ..Setup::default() }).await;
    server.app.prepare(|state| state.message = "quantizing layer 3 of 30".into());
    assert_eq!(answer(server.admin(Method::GET, "/livez")).await.0, 200);
    let (status, text) = answer(server.admin(Method::GET, "/readyz")).await;
    assert_eq!((status.as_u16(), text.as_str()), (503, "quantizing layer 3 of 30"));
    let (status, text) = server.get("/health").await;
    assert_eq!(status, 503);
    assert!(text.contains("not ready yet: quantizing layer 3 of 30"), "{text}");
    let (status, text) = server.get("/version").await;
    let version: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status.as_u16(), version), (200, json!({"version": env!("CARGO_PKG_VERSION")})));
    let (status, text) = server.get("/v1/models").await;
    let models: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status.as_u16(), &models["data"][0]["id"]), (200, &json!("m")));
    assert_eq!(models["data"][0]["max_model_len"], Value::Null);
    for path in ["/v1/completions", "/tokenize"] {
        let response = server.request(Method::POST, path).json(&json!({"prompt": "a"})).send().await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"2".parse().unwrap()));
    }
    let request = server.admin(Method::PUT, "/admin/v1/profile").json(&json!({"profile": "density"}));
    assert_eq!(answer(request).await.0, 503);
    assert_eq!(state(&server).await["phase"], "Preparing");
    server.set_ready();
    assert_eq!(server.get("/health").await.0, 200);
    assert_eq!(answer(server.admin(Method::GET, "/readyz")).await.0, 200);
    let models: Value = serde_json::from_str(&server.get("/v1/models").await.1).unwrap();
    assert_eq!(models["data"][0]["max_model_len"], support::CONTEXT);
}

#[tokio::test]
async fn the_state_and_the_metrics_are_the_engines() {
    let server = Server::start().await;
    let state = state(&server).await;
    assert_eq!((&state["phase"], &state["activeProfile"]), (&json!("Ready"), &json!("quality")));
    assert_eq!(state["kv"], json!({"blocksTotal": 10, "blocksUsed": 4, "blocksCached": 3, "blockTokens": 16}));
    let memory = json!({"budgetBytes": 4000, "weightBytes": 1000, "kvBytes": 2000, "workspaceBytes": 500});
    assert_eq!(state["memory"], memory);
    let (_, metrics) = answer(server.admin(Method::GET, "/metrics")).await;
    for line in [
        "vllm:num_requests_running{model_name=\"m\"} 1",
        "vllm:num_requests_waiting{model_name=\"m\"} 2",
        "vllm:kv_cache_usage_perc{model_name=\"m\"} 0.4",
        "modelprofile_kv_blocks{state=\"total\",model_name=\"m\"} 10",
        "modelprofile_kv_blocks{state=\"used\",model_name=\"m\"} 4",
        "modelprofile_kv_blocks{state=\"cached\",model_name=\"m\"} 3",
        "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"10\",model_name=\"m\"} 1",
        "modelprofile_memory_bytes{kind=\"weights\",model_name=\"m\"} 1000",
        "modelprofile_active_profile{profile=\"quality\",model_name=\"m\"} 1",
        "modelprofile_active_profile{profile=\"density\",model_name=\"m\"} 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
    assert_eq!(server.get("/metrics").await.1, metrics, "both ports have the same metrics");
}

#[tokio::test]
async fn an_engine_that_is_stuck_shows_by_the_time_since_it_got_on() {
    let server = Server::start().await;
    let stalled = async || {
        let state = state(&server).await["requests"]["stalledSeconds"].as_f64().unwrap();
        let (_, metrics) = answer(server.admin(Method::GET, "/metrics")).await;
        let line =
            metrics.lines().find_map(|l| l.strip_prefix("modelprofile_engine_stalled_seconds{model_name=\"m\"} "));
        (state, line.unwrap().parse::<f64>().unwrap())
    };
    assert_eq!(stalled().await, (0.0, 0.0), "nothing to do is no standstill");
    let ago = Duration::from_secs(90);
    *server.engine.last_progress.lock().unwrap() = Instant::now().checked_sub(ago);
    let (state, metric) = stalled().await;
    assert!((90.0..120.0).contains(&state) && (90.0..120.0).contains(&metric), "{state} {metric}");
}

#[tokio::test]
async fn at_the_end_streams_finish_new_connections_are_refused_and_then_the_servers_close() {
    let mut server = Server::start().await;
    server.engine.busy.store(true, Ordering::Release);
    let hand = server.engine.hand();
    let body = json!({"prompt": "a", "stream": true});
    let running = tokio::spawn(server.request(Method::POST, "/v1/completions").json(&body).send());
    let events = hand.await.unwrap();
    let running = running.await.unwrap().unwrap();
    server.stop();
    eventually("the port's end", async || {
        let refused = server.request(Method::POST, "/v1/completions").json(&json!({"prompt": "a"})).send().await;
        refused.is_err_and(|error| error.is_connect())
    })
    .await;
    assert!(server.app.leaving() && !server.app.draining(), "who is in is served");
    assert_eq!(answer(server.admin(Method::GET, "/readyz")).await.0, 503);
    assert_eq!(answer(server.admin(Method::GET, "/livez")).await.0, 200);
    assert_eq!(state(&server).await["phase"], "Draining");
    events.send(token(104)).await.unwrap();
    events.send(finished(modelprofile_engine::FinishReason::Stop)).await.unwrap();
    server.engine.finish_drain();
    let text = running.text().await.unwrap();
    assert!(text.contains(r#""finish_reason":"stop""#) && text.ends_with("data: [DONE]\n\n"), "{text}");
    server.ended().await;
}
