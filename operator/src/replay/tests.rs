//! Replays against a small server in this process.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::local::watch::fixture;
use crate::traces::Arrival;

/// How the server answers completions.
#[derive(Clone, Copy)]
enum Manner {
    /// Three tokens, the last by another profile, after a delay.
    After(Duration),
    /// The same, one request after the other.
    Every(Duration),
    /// A status.
    Status(&'static str),
    /// One token, then an error event.
    ErrorEvent,
    /// One token, then nothing.
    BreakOff,
}

/// Held by the request that [`Manner::Every`] answers.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn serve(manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(answer(stream, manner));
        }
    });
    url
}

async fn read_request(stream: &mut TcpStream) -> (String, Value) {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0usize) {
                let path = head.split(' ').nth(1).unwrap().to_owned();
                return (path, serde_json::from_str(body).unwrap_or_default());
            }
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return (String::new(), Value::Null);
        }
    }
}

async fn answer(mut stream: TcpStream, manner: Manner) {
    let (path, body) = read_request(&mut stream).await;
    let mut say = async |text: String| {
        let _ = stream.write_all(text.as_bytes()).await;
    };
    let whole = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let token = |profile: &str| {
        let print = format!("fp_modelprofile_{profile}");
        let chunk = serde_json::json!({"system_fingerprint": print, "choices": [{"text": "a", "finish_reason": null}]});
        format!("data: {chunk}\n\n")
    };
    match path.as_str() {
        "/v1/models" => say(whole("200 OK", r#"{"data":[{"id":"m","max_model_len":100}]}"#)).await,
        "/metrics" => {
            let metrics = "vllm:kv_cache_usage_perc 0.5\nmodelprofile_active_profile{profile=\"quality\"} 1\n";
            say(whole("200 OK", metrics)).await;
        }
        "/v1/completions" => {
            assert_eq!((body["model"].as_str(), body["stream"].as_bool()), (Some("m"), Some(true)));
            if let Manner::Status(status) = manner {
                return say(whole(status, "no")).await;
            }
            say("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".into()).await;
            match manner {
                Manner::After(delay) | Manner::Every(delay) => {
                    let turn = matches!(manner, Manner::Every(_)).then(|| TURN.lock());
                    let _turn = OptionFuture::from(turn).await;
                    tokio::time::sleep(delay).await;
                    say(token("quality") + &token("quality")).await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    say(token("density")).await;
                    let end = r#"data: {"choices":[{"text":"","finish_reason":"length"}]}"#;
                    let usage = r#"data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}"#;
                    say(format!("{end}\n\n{usage}\n\ndata: [DONE]\n\n")).await;
                }
                Manner::ErrorEvent => say(token("quality") + "data: {\"error\":{\"message\":\"engine\"}}\n\n").await,
                Manner::BreakOff | Manner::Status(_) => say(token("quality")).await,
            }
        }
        _ => say(whole("404 Not Found", "")).await,
    }
}

fn trace(count: u32, gap: f64) -> Trace {
    let arrival = |i| Arrival { at: f64::from(i) * gap, prompt_tokens: 20, output_tokens: 3 };
    Trace { arrivals: (0..count).map(arrival).collect() }
}

#[tokio::test]
async fn answers_are_timed_and_counted_by_profile() {
    let url = serve(Manner::After(Duration::from_millis(50))).await;
    let outcome = run(&Options::new(url), &trace(5, 0.02)).await.unwrap();
    let summary = &outcome.summary;
    assert_eq!((summary.requests, summary.succeeded, summary.failed, summary.clipped), (5, 5, 0, 0));
    assert_eq!((summary.prompt_tokens, summary.output_tokens), (35, 15));
    let by_profile = [("density".to_owned(), 5), ("quality".to_owned(), 10)];
    assert_eq!(summary.tokens_by_profile, BTreeMap::from(by_profile));
    assert!(summary.ttft.unwrap().p50 >= 0.05 && summary.itl.unwrap().max >= 0.015, "{summary:?}");
    let sample = &outcome.samples[0];
    assert_eq!((sample.kv_usage, sample.profile.as_deref()), (Some(0.5), Some("quality")));
    assert_eq!(outcome.pressure[0], (sample.at, 0.5 / 0.85));
}

#[tokio::test]
async fn what_runs_on_when_enough_have_ended_is_cut_off_and_left_out() {
    let url = serve(Manner::Every(Duration::from_millis(200))).await;
    let options = Options { enough: Some(3), ..Options::new(url) };
    let outcome = run(&options, &trace(60, 0.0)).await.unwrap();
    assert_eq!((outcome.summary.requests, outcome.summary.succeeded), (3, 3));
    assert!(outcome.records.is_sorted_by_key(|record| record.index), "{:?}", outcome.records);
    assert!(outcome.summary.seconds < 6.0, "all 60 take 12 s: {}", outcome.summary.seconds);
}

#[tokio::test]
async fn lingering_ends_when_its_time_is_over_or_enough_was_seen() {
    let url = serve(Manner::After(Duration::ZERO)).await;
    let (say, seen) = watch::channel(false);
    let lingering = |linger| {
        let options = Options { linger, seen_enough: Some(seen.clone()), ..Options::new(url.clone()) };
        async move { run(&options, &trace(1, 0.0)).await.unwrap() }
    };
    let begun = Instant::now();
    lingering(Duration::from_millis(300)).await;
    assert!(begun.elapsed() >= Duration::from_millis(300));
    say.send(true).unwrap();
    tokio::time::timeout(Duration::from_secs(60), lingering(Duration::from_secs(600))).await.unwrap();
}

#[tokio::test]
async fn the_pressure_is_measured_by_the_targets_of_a_manifest() {
    let manifest = fixture::valid("{targets: {kvCacheUtilizationPercent: 25}}");
    let rules = Some(Rules::new(manifest.spec(), jiff::SignedDuration::from_secs(1)).unwrap());
    let options = Options { rules, ..Options::new(serve(Manner::After(Duration::from_millis(50))).await) };
    let outcome = run(&options, &trace(1, 0.0)).await.unwrap();
    assert_eq!(outcome.pressure[0], (outcome.samples[0].at, 2.0));
}

#[tokio::test]
async fn an_https_address_is_refused_with_what_to_give_instead() {
    let error = run(&Options::new("https://example.org"), &trace(1, 0.0)).await.unwrap_err().to_string();
    assert!(error.contains("does not speak https; give the http:// address"), "{error}");
}

#[tokio::test]
async fn a_slow_server_does_not_slow_the_sending() {
    let url = serve(Manner::After(Duration::from_millis(1_500))).await;
    let outcome = run(&Options::new(url), &trace(20, 0.02)).await.unwrap();
    let last_sent = outcome.records.iter().map(|record| record.sent).fold(0.0, f64::max);
    let first_answer = outcome.records.iter().map(|record| record.chunks[0]).fold(f64::MAX, f64::min);
    assert!(last_sent < first_answer, "{last_sent} {first_answer}");
    assert_eq!(outcome.summary.succeeded, 20);
}

#[tokio::test]
async fn failures_are_counted_by_kind() {
    for (manner, kind) in [
        (Manner::Status("500 Internal Server Error"), "server"),
        (Manner::Status("429 Too Many Requests"), "overloaded"),
        (Manner::Status("400 Bad Request"), "refused"),
        (Manner::ErrorEvent, "stream"),
        (Manner::BreakOff, "broken_off"),
        (Manner::After(Duration::from_secs(60)), "timeout"),
    ] {
        let options = Options { timeout: Duration::from_millis(500), ..Options::new(serve(manner).await) };
        let summary = run(&options, &trace(3, 0.0)).await.unwrap().summary;
        assert_eq!(summary.errors, BTreeMap::from([(kind, 3)]));
        assert_eq!((summary.succeeded, summary.failed, summary.goodput), (0, 3, 0.0));
    }
}

#[tokio::test]
async fn entries_longer_than_the_servers_context_are_clipped() {
    let url = serve(Manner::After(Duration::ZERO)).await;
    let long = Trace { arrivals: vec![Arrival { at: 0.0, prompt_tokens: 5_000, output_tokens: 3 }] };
    assert_eq!(run(&Options::new(url), &long).await.unwrap().summary.clipped, 1);
}

#[tokio::test]
async fn nothing_is_sent_without_a_server_or_without_requests() {
    let error = run(&Options::new("http://127.0.0.1:9"), &trace(1, 0.0)).await.unwrap_err().to_string();
    assert!(error.contains("is it running?"), "{error}");
    let error = run(&Options::new("http://127.0.0.1:9"), &Trace::default()).await.unwrap_err().to_string();
    assert!(error.contains("no request"), "{error}");
}

#[tokio::test]
async fn a_time_that_never_comes_is_refused_before_anything_is_sent() {
    for speed in [1e-300, f64::MIN_POSITIVE] {
        let error =
            run(&Options::new("http://127.0.0.1:9"), &trace(3, 1.0).speed_up(speed)).await.unwrap_err().to_string();
        assert!(error.contains("raise --speed"), "{error}");
    }
}

#[tokio::test]
async fn the_reports_hold_every_request() {
    let url = serve(Manner::After(Duration::ZERO)).await;
    let mut outcome = run(&Options::new(url), &trace(4, 0.01)).await.unwrap();
    outcome.pressure = vec![(0.0, 0.5), (1.0, 1.2)];
    assert_eq!(report::csv(&outcome).lines().count(), 5);
    let json = report::json(&outcome);
    assert_eq!(json["seconds"][0]["arrivals"], 4);
    assert_eq!(json["summary"]["succeeded"], 4);
    let svg = timeline::svg(&outcome, "a < b", None);
    for part in ["a &lt; b", "arrivals / s", "KV cache, %", "pressure", "first token, s", "quality", "</svg>"] {
        assert!(svg.contains(part), "{part}");
    }
    assert_eq!(svg.matches("<circle").count(), 4);
    assert!(report::table(&outcome.summary).contains("4 answered, 0 failed"));
}
