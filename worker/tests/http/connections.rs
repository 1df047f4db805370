//! What a connection may cost, and how the servers end.

use std::{net::SocketAddr, sync::atomic::Ordering, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{self, LIMIT, Server, Setup, answer, eventually, token};

/// A limit that a test waits out.
const SHORT: Duration = Duration::from_millis(200);

/// A connection that has sent the beginning of a request.
async fn begun(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// What comes until the server closes.
async fn rest(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    // A reset is a close too.
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut text)).await.expect("the connection stays open");
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_headers_is_cut() {
    let mut setup = Setup::default();
    setup.limits.api.header_time = SHORT;
    setup.limits.admin.header_time = SHORT;
    let server = Server::with(setup).await;
    for address in [server.api, server.admin] {
        for sent in ["", "GET /version HTTP/1.1\r\nHost: a\r\nX-Slow: "] {
            let answered = rest(begun(address, sent).await).await;
            assert!(!answered.contains("200"), "{answered}");
        }
    }
    assert_eq!(server.get("/version").await.0, 200);
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_gets_408() {
    let change = |app: &mut modelprofile_worker::app::App| app.limits.body_time = SHORT;
    let server = Server::with(Setup { change, ..Setup::default() }).await;
    let head = |path: &str, method: &str| {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nContent-Type: application/json\r\n\
             Content-Length: 100\r\n\r\n{{\"prompt\": "
        )
    };
    for (address, path, method) in [(server.api, "/v1/completions", "POST"), (server.admin, "/admin/v1/profile", "PUT")]
    {
        let text = rest(begun(address, &head(path, method)).await).await;
        assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
        let body: Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
        let message = "the body did not arrive within 0.2 s: send it again, faster";
        assert_eq!(body["error"]["message"], message);
    }
}

#[tokio::test]
async fn a_running_stream_is_not_cut_by_the_limits_on_reading() {
    let mut setup = Setup { change: |app| app.limits.body_time = SHORT, ..Setup::default() };
    setup.limits.api.header_time = SHORT;
    let server = Server::with(setup).await;
    let hand = server.engine.hand();
    let body = json!({"prompt": "a", "stream": true});
    let running = tokio::spawn(server.request(Method::POST, "/v1/completions").json(&body).send());
    let events = hand.await.unwrap();
    // Another connection is cut meanwhile, so that the limit has passed for certain.
    rest(begun(server.api, "GET").await).await;
    rest(begun(server.api, "GET").await).await;
    for event in support::text("hi", modelprofile_engine::FinishReason::Stop) {
        events.send(event).await.unwrap();
    }
    let text = running.await.unwrap().unwrap().text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn a_connection_too_many_waits_for_a_place_and_does_not_take_the_admin_ports() {
    let mut setup = Setup::default();
    setup.limits.api.connections = 2;
    let server = Server::with(setup).await;
    let request = "GET /version HTTP/1.1\r\nHost: a\r\n\r\n";
    let (mut first, mut second) = (begun(server.api, request).await, begun(server.api, request).await);
    let mut byte = [0];
    first.read_exact(&mut byte).await.unwrap();
    second.read_exact(&mut byte).await.unwrap();
    // Both places are taken: the third gets nothing, while the admin port answers.
    let mut third = begun(server.api, request).await;
    assert_eq!(answer(server.admin(Method::GET, "/livez")).await.0, 200);
    assert!(tokio::time::timeout(SHORT, third.read_exact(&mut byte)).await.is_err(), "a third place was given");
    drop(first);
    tokio::time::timeout(LIMIT, third.read_exact(&mut byte)).await.expect("no place was freed").unwrap();
    assert_eq!(&byte, b"H");
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_the_end() {
    let mut server = Server::start().await;
    let mut idle = begun(server.api, "GET /version HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut byte = [0];
    idle.read_exact(&mut byte).await.unwrap();
    let silent = begun(server.api, "").await;
    server.stop();
    server.ended().await;
    rest(idle).await;
    rest(silent).await;
}

#[tokio::test]
async fn what_still_runs_at_the_drain_limit_is_cut() {
    let mut setup = Setup::default();
    setup.limits.drain = SHORT;
    let mut server = Server::with(setup).await;
    server.engine.busy.store(true, Ordering::Release);
    let hand = server.engine.hand();
    let body = json!({"prompt": "a", "stream": true});
    let running = tokio::spawn(server.request(Method::POST, "/v1/completions").json(&body).send());
    let events = hand.await.unwrap();
    let running = running.await.unwrap().unwrap();
    events.send(token(104)).await.unwrap();
    server.stop();
    server.ended().await;
    let text = running.text().await;
    assert!(text.is_err(), "a cut stream must not look complete: {text:?}");
    eventually("the cancellation", async || events.is_closed()).await;
}
