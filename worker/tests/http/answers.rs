//! What the API answers: shapes, texts, scores, streams.

use modelprofile_engine::{FinishReason, SamplingParams, TokenEvent};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{self, END, Script, Server, eventually, finished, score, scored, text, token};

/// A stream's events as JSON, and `[DONE]` checked away.
fn parsed(mut events: Vec<String>) -> Vec<Value> {
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

/// An answer without what differs from one request to the next.
fn settled(mut answer: Value) -> Value {
    let fields = answer.as_object_mut().unwrap();
    assert!(fields.remove("created").unwrap().is_u64());
    fields.remove("id").unwrap();
    answer
}

#[tokio::test]
async fn a_completion_has_openais_shape() {
    let server = Server::start().await;
    let answer = server.complete(json!({"prompt": "abc"})).await;
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(
        settled(answer),
        json!({
            "object": "text_completion", "model": "m", "system_fingerprint": "fp_modelprofile_quality",
            "choices": [{"index": 0, "text": "hi", "finish_reason": "length", "logprobs": null}],
            "usage": {
                "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        })
    );
    let request = server.engine.requests().remove(0);
    assert_eq!((request.prompt, request.max_tokens), (vec![97, 98, 99], 16));
    assert_eq!(request.sampling, SamplingParams::default());
}

#[tokio::test]
async fn a_chat_has_openais_shape_and_may_fill_the_context() {
    let server = Server::start().await;
    server.engine.script(Script::Events(text("yes", FinishReason::Stop)));
    let body = json!({"messages": [{"role": "user", "content": "a"}]});
    let (status, answer) = server.post("/v1/chat/completions", body).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let message = json!({"role": "assistant", "content": "yes", "refusal": null});
    assert_eq!(
        settled(answer),
        json!({
            "object": "chat.completion", "model": "m", "system_fingerprint": "fp_modelprofile_quality",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": null}],
            "usage": {
                "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        })
    );
    let request = server.engine.requests().remove(0);
    assert_eq!((request.prompt, request.max_tokens), (b"user:a;".map(u32::from).to_vec(), support::CONTEXT - 7));
}

#[tokio::test]
async fn every_answer_names_the_active_profile() {
    let server = Server::start().await;
    let response = server.request(Method::GET, "/v1/models").send().await.unwrap();
    assert_eq!(response.headers()["x-modelprofile-active"], "quality");
    let body = json!({"prompt": "a", "stream": true});
    let response = server.request(Method::POST, "/v1/completions").json(&body).send().await.unwrap();
    assert_eq!(response.headers()["x-modelprofile-active"], "quality");
    assert_eq!(response.headers()["content-type"], "text/event-stream");
}

#[tokio::test]
async fn a_chat_streams_a_role_then_content_then_the_reason() {
    let server = Server::start().await;
    let body = json!({"messages": [{"role": "user", "content": "a"}], "stream": true});
    let chunks = parsed(server.events("/v1/chat/completions", body).await);
    let id = chunks[0]["id"].clone();
    let choices: Vec<Value> = chunks
        .into_iter()
        .map(|chunk| {
            assert_eq!((&chunk["object"], &chunk["id"]), (&json!("chat.completion.chunk"), &id));
            assert!(chunk.get("usage").is_none(), "usage was not asked for: {chunk}");
            chunk["choices"][0].clone()
        })
        .collect();
    let choice =
        |delta: Value, reason: Value| json!({"index": 0, "delta": delta, "finish_reason": reason, "logprobs": null});
    assert_eq!(
        choices,
        [
            choice(json!({"role": "assistant", "content": "h"}), Value::Null),
            choice(json!({"content": "i"}), Value::Null),
            choice(json!({}), json!("length")),
        ]
    );
}

#[tokio::test]
async fn an_empty_chat_still_streams_its_role() {
    let server = Server::start().await;
    server.engine.script(Script::Events(vec![finished(FinishReason::Stop)]));
    let body = json!({"messages": [{"role": "user", "content": "a"}], "stream": true});
    let chunks = parsed(server.events("/v1/chat/completions", body).await);
    assert_eq!(chunks.len(), 1);
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(chunks[0]["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn the_usage_comes_last_and_the_chunks_before_have_it_null() {
    let server = Server::start().await;
    let end = TokenEvent::Finished { reason: FinishReason::Length, cached_tokens: 2, error: None };
    server.engine.script(Script::Events(vec![token(104), end]));
    let body = json!({"prompt": "abc", "stream": true, "stream_options": {"include_usage": true}});
    let mut chunks = parsed(server.events("/v1/completions", body).await);
    let last = chunks.pop().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(
        last["usage"],
        json!({
            "prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 2},
        })
    );
    assert_eq!(chunks.len(), 2);
    assert!(chunks.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)), "{chunks:?}");
}

#[tokio::test]
async fn a_chunk_tells_the_tokens_so_far_where_that_is_asked_for() {
    let server = Server::start().await;
    let end = TokenEvent::Finished { reason: FinishReason::Length, cached_tokens: 2, error: None };
    // The two bytes of one character: the first alone gives no text.
    server.engine.script(Script::Events(vec![token(104), token(0xc3), token(0xa9), end]));
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = json!({"prompt": "abc", "stream": true, "stream_options": options});
    let chunks = parsed(server.events("/v1/completions", body).await);
    let told: Vec<_> = chunks.iter().map(|c| (&c["choices"][0]["text"], &c["usage"]["completion_tokens"])).collect();
    let (h, e, none, nothing) = (json!("h"), json!("\u{e9}"), json!(""), Value::Null);
    let [one, two, three] = [1, 2, 3].map(|count| json!(count));
    assert_eq!(told, [(&h, &one), (&none, &two), (&e, &three), (&none, &nothing), (&nothing, &three)]);
}

#[tokio::test]
async fn choices_of_one_prompt_have_seeds_of_their_own_and_their_prompt_counts_once() {
    let server = Server::start().await;
    for letter in [97, 98, 99] {
        let end = TokenEvent::Finished { reason: FinishReason::Length, cached_tokens: 2, error: None };
        server.engine.script(Script::Events(vec![token(letter), end]));
    }
    let answer = server.complete(json!({"prompt": "xyz", "n": 3, "seed": 7})).await;
    let choice =
        |index: usize, text: &str| json!({"index": index, "text": text, "finish_reason": "length", "logprobs": null});
    assert_eq!(answer["choices"], json!([choice(0, "a"), choice(1, "b"), choice(2, "c")]));
    let seeds: Vec<_> = server.engine.requests().into_iter().map(|r| r.sampling.seed).collect();
    assert_eq!(seeds, [Some(7), Some(8), Some(9)]);
    let details = json!({"cached_tokens": 2});
    let usage =
        json!({"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6, "prompt_tokens_details": details});
    assert_eq!(answer["usage"], usage);
}

#[tokio::test]
async fn a_prompt_may_be_texts_or_token_ids() {
    let server = Server::start().await;
    for (prompt, expected) in [
        (json!("ab"), vec![vec![97, 98]]),
        (json!(["a", "b"]), vec![vec![97], vec![98]]),
        (json!([97, 98]), vec![vec![97, 98]]),
        (json!([[97], [98, 99]]), vec![vec![97], vec![98, 99]]),
        (json!(["a", [98]]), vec![vec![97], vec![98]]),
    ] {
        let before = server.engine.requests().len();
        let answer = server.complete(json!({"prompt": prompt, "max_tokens": 2})).await;
        let sent: Vec<_> = server.engine.requests().into_iter().skip(before).map(|r| r.prompt).collect();
        assert_eq!(sent, expected, "{prompt}");
        assert_eq!(answer["choices"].as_array().unwrap().len(), expected.len());
    }
}

#[tokio::test]
async fn a_stop_string_across_tokens_ends_the_text_and_cancels_the_rest() {
    let server = Server::start().await;
    for stream in [false, true] {
        let hand = server.engine.hand();
        let body = json!({"prompt": "a", "stop": ["lo w"], "stream": stream});
        let request = server.request(Method::POST, "/v1/completions").json(&body);
        let answer = tokio::spawn(async move { request.send().await.unwrap().text().await.unwrap() });
        let events = hand.await.unwrap();
        for byte in b"hello world" {
            // The text has ended somewhere in here: the stream may be gone.
            let _ = events.send(token(u32::from(*byte))).await;
        }
        events.closed().await;
        let answer = answer.await.unwrap();
        // How much of the prompt was cached is said at the end of the engine's stream, which was not waited for.
        assert!(!answer.contains("cached_tokens"), "{answer}");
        let choices: Vec<Value> = if stream {
            let events = answer.split_terminator("\n\n").map(|e| e.strip_prefix("data: ").unwrap().to_owned());
            parsed(events.collect()).into_iter().map(|chunk| chunk["choices"][0].clone()).collect()
        } else {
            vec![serde_json::from_str::<Value>(&answer).unwrap()["choices"][0].clone()]
        };
        let text: String = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(text, "hel");
        assert_eq!(choices.last().unwrap()["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn what_looked_like_a_stop_string_and_was_none_comes_out_at_the_end() {
    let server = Server::start().await;
    server.engine.script(Script::Events(text("hello", FinishReason::Length)));
    let answer = server.complete(json!({"prompt": "a", "stop": "lower"})).await;
    assert_eq!(answer["choices"][0]["text"], "hello");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn echo_scores_the_prompt_and_offsets_point_into_the_text() {
    let server = Server::start().await;
    // The two bytes of an é are a token each; a special token has text in a prompt and none in an output.
    let prompt = json!([104, 0xC3, 0xA9, END, 105]);
    let prompt_scores = vec![
        None,
        Some(score(0xC3, -1.0, &[(0xC3, -1.0)])),
        Some(score(0xA9, -2.0, &[(33, -0.5)])),
        Some(score(END, -3.0, &[])),
        Some(score(105, f32::NEG_INFINITY, &[])),
    ];
    for stream in [false, true] {
        let end = finished(FinishReason::Length);
        let script = vec![
            TokenEvent::Prompt(prompt_scores.clone()),
            scored(END, -0.25, &[]),
            scored(106, -0.5, &[(106, -0.5)]),
            end,
        ];
        server.engine.script(Script::Events(script));
        let body = json!({"prompt": prompt, "echo": true, "logprobs": 1, "max_tokens": 2, "stream": stream});
        let (mut text, mut gathered) =
            (String::new(), json!({"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}));
        let answers = if stream {
            parsed(server.events("/v1/completions", body).await)
        } else {
            vec![server.complete(body).await]
        };
        for answer in answers {
            let choice = &answer["choices"][0];
            text.push_str(choice["text"].as_str().unwrap());
            for (name, all) in gathered.as_object_mut().unwrap() {
                let part = choice["logprobs"][name.as_str()].as_array().cloned().unwrap_or_default();
                all.as_array_mut().unwrap().extend(part);
            }
        }
        assert_eq!(text, "hé<|end|>ij");
        assert_eq!(
            gathered,
            json!({
                "tokens": ["h", "\u{fffd}", "\u{fffd}", "<|end|>", "i", "<|end|>", "j"],
                "token_logprobs": [null, -1.0, -2.0, -3.0, -9999.0, -0.25, -0.5],
                "top_logprobs": [
                    null, {"\u{fffd}": -1.0}, {"!": -0.5, "\u{fffd}": -2.0}, {"<|end|>": -3.0}, {"i": -9999.0},
                    {"<|end|>": -0.25}, {"j": -0.5},
                ],
                "text_offset": [0, 1, 1, 2, 9, 10, 10],
            }),
            "stream: {stream}"
        );
    }
}

#[tokio::test]
async fn echo_with_no_output_gives_the_prompt_and_its_scores_alone() {
    let server = Server::start().await;
    for stream in [false, true] {
        let scores = vec![None, Some(score(98, -1.5, &[]))];
        server.engine.script(Script::Events(vec![TokenEvent::Prompt(scores), finished(FinishReason::Length)]));
        let body = json!({"prompt": "ab", "echo": true, "logprobs": 0, "max_tokens": 0, "stream": stream});
        let choice = if stream {
            parsed(server.events("/v1/completions", body).await).remove(0)["choices"][0].clone()
        } else {
            server.complete(body).await["choices"][0].clone()
        };
        assert_eq!(choice["text"], "ab");
        assert_eq!(choice["logprobs"]["token_logprobs"], json!([null, -1.5]));
    }
    assert!(server.engine.requests().iter().all(|r| r.max_tokens == 0 && r.prompt_logprobs == Some(0)));
}

#[tokio::test]
async fn chat_scores_carry_the_bytes_of_each_token() {
    let server = Server::start().await;
    server.engine.script(Script::Events(vec![scored(0xC3, -0.5, &[(97, -1.0)]), finished(FinishReason::Length)]));
    let body = json!({"messages": [{"role": "user", "content": "a"}], "logprobs": true, "top_logprobs": 1});
    let (_, answer) = server.post("/v1/chat/completions", body).await;
    assert_eq!(
        answer["choices"][0]["logprobs"],
        json!({"refusal": null, "content": [{
            "token": "\u{fffd}", "logprob": -0.5, "bytes": [0xC3],
            "top_logprobs": [{"token": "a", "logprob": -1.0, "bytes": [97]}],
        }]})
    );
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_all_its_choices() {
    let server = Server::start().await;
    for stream in [true, false] {
        let (first, second) = (server.engine.hand(), server.engine.hand());
        let body = json!({"prompt": "a", "n": 2, "stream": stream});
        let request = server.request(Method::POST, "/v1/completions").json(&body);
        let client = tokio::spawn(async move { request.send().await.unwrap().text().await });
        let (first, second) = (first.await.unwrap(), second.await.unwrap());
        first.send(token(104)).await.unwrap();
        client.abort();
        // Neither sends another token: the server notices the closed connection by itself.
        tokio::join!(first.closed(), second.closed());
    }
}

#[tokio::test]
async fn a_request_that_fails_in_the_engine_says_so_and_the_stream_closes() {
    let server = Server::start().await;
    let failed = || {
        let reason = "the logits are not numbers".to_owned();
        let end = TokenEvent::Finished { reason: FinishReason::Error, cached_tokens: 0, error: Some(reason) };
        Script::Events(vec![token(104), end])
    };
    let error = json!({"error": {
        "message": "the logits are not numbers", "type": "server_error", "param": null, "code": null,
    }});
    server.engine.script(failed());
    let (status, body) = server.post("/v1/completions", json!({"prompt": "a"})).await;
    assert_eq!((status.as_u16(), body), (500, error.clone()));
    server.engine.script(failed());
    let body = json!({"prompt": "a", "stream": true, "stream_options": {"include_usage": true}});
    let events = parsed(server.events("/v1/completions", body).await);
    assert_eq!(events.len(), 2, "a chunk and the error, and no usage that nobody knows: {events:?}");
    assert_eq!(events[1], error);
    assert_eq!(server.get("/health").await.0, 200, "one request's failure is not the worker's");
}

#[tokio::test]
async fn one_choice_that_fails_ends_the_whole_answer_and_cancels_the_others() {
    let server = Server::start().await;
    let waiting = server.engine.hand();
    let end = TokenEvent::Finished { reason: FinishReason::Error, cached_tokens: 0, error: Some("x".into()) };
    server.engine.script(Script::Events(vec![end]));
    let (status, _) = server.post("/v1/completions", json!({"prompt": "a", "n": 2})).await;
    assert_eq!(status, 500);
    waiting.await.unwrap().closed().await;
}

#[tokio::test]
async fn an_engine_that_dies_ends_its_streams_with_an_error_and_fails_the_probes() {
    let server = Server::start().await;
    server.engine.script(Script::Events(vec![token(104)]));
    let events = parsed(server.events("/v1/completions", json!({"prompt": "a", "stream": true})).await);
    assert_eq!(events[0]["choices"][0]["text"], "h");
    assert_eq!(events[1]["error"]["message"], "the engine has stopped: restart the worker");
    assert_eq!(events.len(), 2);
    let (status, body) = server.post("/v1/completions", json!({"prompt": "a"})).await;
    assert_eq!((status.as_u16(), &body["error"]["message"]), (503, &events[1]["error"]["message"]));
    assert_eq!(server.get("/health").await.0, 503);
    for (path, status) in [("/livez", 500), ("/readyz", 503)] {
        assert_eq!(support::answer(server.admin(Method::GET, path)).await.0, status, "{path}");
    }
    let (_, state) = support::answer(server.admin(Method::GET, "/admin/v1/state")).await;
    let state: Value = serde_json::from_str(&state).unwrap();
    assert_eq!((&state["phase"], &state["message"]), (&json!("Failed"), &events[1]["error"]["message"]));
}

#[tokio::test]
async fn a_slow_reader_loses_nothing() {
    let server = Server::start().await;
    let hand = server.engine.hand();
    let body = json!({"prompt": "a", "stream": true, "max_tokens": 32});
    let request = server.request(Method::POST, "/v1/completions").json(&body);
    let response = tokio::spawn(request.send());
    let events = hand.await.unwrap();
    // More than the server holds for a client, sent before the client reads anything.
    for _ in 0..200 {
        events.send(token(122)).await.unwrap();
    }
    events.send(finished(FinishReason::Length)).await.unwrap();
    let text = response.await.unwrap().unwrap().text().await.unwrap();
    let chunks = parsed(text.split_terminator("\n\n").map(|e| e.strip_prefix("data: ").unwrap().to_owned()).collect());
    let text: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, "z".repeat(200));
    eventually("the end of the stream", async || events.is_closed()).await;
}
