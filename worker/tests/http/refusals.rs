//! What the API refuses, and how it says so.

use modelprofile_engine::serve::SubmitError;
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::support::{CONTEXT, END, Script, Server, Setup, answer};

/// An error body in OpenAI's form.
fn error(kind: &str, message: &str, param: Option<&str>, code: Option<&str>) -> Value {
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
}

#[tokio::test]
async fn a_full_queue_answers_429_with_retry_after() {
    let server = Server::start().await;
    let full = SubmitError::QueueFull { waiting: 32, retry_after_seconds: 3 };
    for (path, body) in [
        ("/v1/completions", json!({"prompt": "a"})),
        ("/v1/completions", json!({"prompt": "a", "stream": true})),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1})),
    ] {
        server.engine.script(Script::Refuse(full.clone()));
        let response = server.request(Method::POST, path).json(&body).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "3");
        let message = "the queue is full (32 requests are waiting); try again in 3 s";
        let body: Value = response.json().await.unwrap();
        assert_eq!(body, error("rate_limit_error", message, None, Some("rate_limit_exceeded")));
    }
}

#[tokio::test]
async fn one_choice_too_many_for_the_queue_cancels_the_others() {
    let server = Server::start().await;
    let first = server.engine.hand();
    server.engine.script(Script::Refuse(SubmitError::QueueFull { waiting: 1, retry_after_seconds: 1 }));
    let (status, _) = server.post("/v1/completions", json!({"prompt": "a", "n": 2})).await;
    assert_eq!(status, 429);
    first.await.unwrap().closed().await;
}

#[tokio::test]
async fn a_draining_worker_answers_503() {
    let server = Server::start().await;
    server.app.drain().await;
    let response = server.request(Method::POST, "/v1/completions").json(&json!({"prompt": "a"})).send().await.unwrap();
    assert_eq!(
        (response.status(), &response.headers()[header::RETRY_AFTER]),
        (StatusCode::SERVICE_UNAVAILABLE, &"2".parse().unwrap())
    );
    let body: Value = response.json().await.unwrap();
    assert_eq!(body, error("service_unavailable", "the worker is draining and takes no new requests", None, None));
    assert_eq!(server.get("/health").await.0, 503);
}

#[tokio::test]
async fn a_request_longer_than_the_context_is_refused_with_the_limit_under_the_field_that_holds_its_prompt() {
    let server = Server::start().await;
    let long = "a".repeat(CONTEXT);
    let message = |tokens: usize, field: &str| {
        format!(
            "This model's maximum context length is {CONTEXT} tokens; this request asks for {tokens} with its output: \
             shorten the {field} or lower max_tokens"
        )
    };
    let (status, body) = server.post("/v1/completions", json!({"prompt": long})).await;
    let code = Some("context_length_exceeded");
    let expected = error("invalid_request_error", &message(CONTEXT + 16, "prompt"), Some("prompt"), code);
    assert_eq!((status.as_u16(), body), (400, expected));
    let messages = json!([{"role": "user", "content": long}]);
    let (status, body) = server.post("/v1/chat/completions", json!({"messages": messages})).await;
    // The template's `user:` and `;` come on top, and at least one token of output.
    let expected = error("invalid_request_error", &message(CONTEXT + 7, "messages"), Some("messages"), code);
    assert_eq!((status.as_u16(), body), (400, expected));
}

#[tokio::test]
async fn paths_and_methods_that_do_not_exist_get_openais_error_body() {
    let server = Server::start().await;
    let (status, body) = server.post("/v1/embeddings", json!({})).await;
    let expected = error("invalid_request_error", "there is nothing at /v1/embeddings", None, None);
    assert_eq!((status.as_u16(), body), (404, expected));
    let response = server.request(Method::GET, "/v1/completions").send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()[header::ALLOW].to_str().unwrap()), (405, "POST"));
    let body: Value = response.json().await.unwrap();
    let message = "/v1/completions does not take GET: see the header Allow";
    assert_eq!(body, error("invalid_request_error", message, None, None));
}

#[tokio::test]
async fn a_body_that_is_not_a_json_object_is_refused() {
    let server = Server::start().await;
    for (body, words) in [
        (&b"{\"prompt\": "[..], "the body is not JSON"),
        (&b"[1]"[..], "must be a JSON object"),
        (&b""[..], "the body is not JSON"),
        (&b"{\"prompt\": \"\xff\xfe\"}"[..], "the body is not JSON"),
    ] {
        let request = server.request(Method::POST, "/v1/completions").header("content-type", "application/json");
        let (status, text) = answer(request.body(body)).await;
        assert_eq!(status, 400);
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert!(answer["error"]["message"].as_str().unwrap().contains(words), "{text}");
        assert_eq!(
            (&answer["error"]["type"], &answer["error"]["param"]),
            (&json!("invalid_request_error"), &Value::Null)
        );
    }
}

#[tokio::test]
async fn only_json_is_read() {
    let server = Server::start().await;
    for (kind, expected) in [
        (Some("text/plain"), 415),
        (None, 415),
        (Some("application/json; charset=utf-8"), 200),
        (Some("Application/JSON"), 200),
    ] {
        let mut request = server.request(Method::POST, "/v1/completions").body(r#"{"prompt": "a"}"#);
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let (status, text) = answer(request).await;
        assert_eq!(status, expected, "{kind:?}: {text}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_whether_or_not_it_says_its_length() {
    let change = |app: &mut modelprofile_worker::app::App| app.limits.body_bytes = 1000;
    let server = Server::with(Setup { change, ..Setup::default() }).await;
    let body = json!({"prompt": "a".repeat(2000)}).to_string();
    let request = || server.request(Method::POST, "/v1/completions").header("content-type", "application/json");
    let parts = body.as_bytes().chunks(100).map(|part| Ok::<_, std::io::Error>(part.to_vec())).collect::<Vec<_>>();
    let chunked = reqwest::Body::wrap_stream(futures_util::stream::iter(parts));
    for sent in [request().body(body.clone()), request().body(chunked)] {
        let (status, text) = answer(sent).await;
        let body: Value = serde_json::from_str(&text).unwrap();
        let expected = error("invalid_request_error", "the body is larger than 1000 bytes", None, None);
        assert_eq!((status.as_u16(), body), (413, expected));
    }
}

#[tokio::test]
async fn what_is_not_supported_or_out_of_range_is_refused_under_its_name() {
    let server = Server::start().await;
    let many: serde_json::Map<String, Value> = (0..1025).map(|t| (t.to_string(), json!(1))).collect();
    let both = [
        ("tools", json!([{"type": "function"}])),
        ("tool_choice", json!("auto")),
        ("audio", json!({"voice": "alloy"})),
        ("modalities", json!(["audio"])),
        ("guided_json", json!({})),
        ("suffix", json!("x")),
        ("logit_bias", json!(many)),
        ("logit_bias", json!({"a": 1})),
        ("logit_bias", json!({"5": 200})),
        ("logit_bias", json!({"258": 1})),
        ("temperature", json!(2.5)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("top_p", json!(1.5)),
        ("top_k", json!(-2)),
        ("min_p", json!(2)),
        ("presence_penalty", json!(-3)),
        ("frequency_penalty", json!(3)),
        ("repetition_penalty", json!(-1)),
        ("n", json!(0)),
        ("n", json!(129)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(1.5)),
        ("stop", json!(vec!["a"; 17])),
        ("stop", json!("a".repeat(257))),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("seed", json!(1.5)),
    ];
    let text = [
        ("best_of", json!(3)),
        ("logprobs", json!(21)),
        ("logprobs", json!(true)),
        ("prompt", json!({})),
        ("prompt", json!([])),
        ("prompt", json!([1, "a"])),
        ("prompt", json!([300])),
        ("prompt", json!("")),
    ];
    let chat = [
        ("response_format", json!({"type": "json_schema", "json_schema": {}})),
        ("top_logprobs", json!(3)),
        ("logprobs", json!(2)),
        ("max_completion_tokens", json!(0)),
        ("messages", json!([])),
        ("messages", json!([{"role": "robot", "content": "x"}])),
    ];
    let mut cases: Vec<(&str, &str, Value)> = Vec::new();
    for (param, value) in both {
        cases.push(("/v1/completions", param, value.clone()));
        cases.push(("/v1/chat/completions", param, value));
    }
    cases.extend(text.map(|(param, value)| ("/v1/completions", param, value)));
    cases.extend(chat.map(|(param, value)| ("/v1/chat/completions", param, value)));
    for (path, param, value) in cases {
        let mut body = if path == "/v1/completions" {
            json!({"prompt": "a"})
        } else {
            json!({"messages": [{"role": "user", "content": "a"}]})
        };
        body[param] = value.clone();
        let (status, answer) = server.post(path, body).await;
        assert_eq!(status, 400, "{path} {param}: {value}: {answer}");
        assert_eq!(answer["error"]["param"], param, "{path} {value}: {answer}");
        assert_eq!(answer["error"]["type"], "invalid_request_error");
        assert!(answer["error"]["message"].as_str().unwrap().contains(param), "{answer}");
    }
    assert_eq!(server.engine.requests(), [], "the engine saw a request that was refused");
}

#[tokio::test]
async fn a_stream_option_that_asks_for_something_is_refused_by_name() {
    let server = Server::start().await;
    let body = |options: Value| json!({"prompt": "a", "stream": true, "stream_options": options});
    let (status, answer) = server.post("/v1/completions", body(json!({"continuous_usage_stats": true}))).await;
    assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &json!("stream_options")));
    assert!(answer["error"]["message"].as_str().unwrap().contains("continuous_usage_stats"));
    let (status, answer) = server.post("/v1/completions", body(json!({"include_obfuscation": true}))).await;
    assert!(status == 400 && answer["error"]["message"].as_str().unwrap().contains("include_obfuscation"), "{answer}");
    let events = server.events("/v1/completions", body(json!({"include_obfuscation": false}))).await;
    assert_eq!(events.last().unwrap(), "[DONE]");
}

#[tokio::test]
async fn another_model_is_404_and_names_the_one_that_is_served() {
    let server = Server::start().await;
    let (status, body) = server.post("/v1/completions", json!({"model": "gpt", "prompt": "a"})).await;
    let expected = error(
        "invalid_request_error",
        "the model gpt is not served here; m is",
        Some("model"),
        Some("model_not_found"),
    );
    assert_eq!((status.as_u16(), body), (404, expected));
    assert_eq!(server.get("/v1/models/gpt").await.0, 404);
}

#[tokio::test]
async fn a_token_without_text_is_the_clients_mistake() {
    let server = Server::start().await;
    let (status, answer) = server.post("/detokenize", json!({"tokens": [104, 999]})).await;
    assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &json!("tokens")));
    let (status, answer) = server.post("/detokenize", json!({"tokens": [104, 105, END]})).await;
    assert_eq!((status.as_u16(), answer), (200, json!({"prompt": "hi<|end|>"})));
}

#[tokio::test]
async fn any_of_the_api_keys_opens_the_api_and_nothing_else_does() {
    let keys = vec!["alpha".to_owned(), "beta".to_owned()];
    let server = Server::with(Setup { api_keys: keys, ..Setup::default() }).await;
    for (sent, status) in [
        (None, 401),
        (Some("Bearer gamma"), 401),
        (Some("Bearer alph"), 401),
        (Some("Bearer "), 401),
        (Some("alpha"), 401),
        (Some("Basic alpha"), 401),
        (Some("Bearer alpha"), 200),
        (Some("bearer beta"), 200),
    ] {
        let mut request = server.request(Method::POST, "/v1/completions").json(&json!({"prompt": "a"}));
        if let Some(sent) = sent {
            request = request.header(header::AUTHORIZATION, sent);
        }
        let (answered, text) = answer(request).await;
        assert_eq!(answered, status, "{sent:?}: {text}");
        if status == 401 {
            let body: Value = serde_json::from_str(&text).unwrap();
            let message = "the API key is missing or wrong: send the header Authorization: Bearer KEY";
            assert_eq!(body, error("invalid_request_error", message, None, Some("invalid_api_key")));
        }
    }
    for (path, status) in [("/v1/models", 401), ("/health", 200), ("/version", 200), ("/metrics", 200)] {
        assert_eq!(server.get(path).await.0, status, "{path}");
    }
    let (status, _) = server.post("/tokenize", json!({"prompt": "a"})).await;
    assert_eq!(status, 401);
}
