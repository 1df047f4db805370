//! What the HTTP tests share: a scripted engine behind the real servers, and a client.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use modelprofile_engine::{
    FinishReason, GenerateRequest, TokenEvent, TokenLogprob,
    serve::{Engine, MemorySnapshot, ProfileSnapshot, Snapshot, SubmitError, SwitchEnd, SwitchResult, TokenStream},
    text::{ChatTemplate, GgufVocab, Tokenizer},
};
use modelprofile_worker::{
    app::{self, App, Ready, ServeLimits},
    server::ConnectionLimits,
};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
};

/// How long a test waits for what must come.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Context of the scripted engine.
pub(crate) const CONTEXT: usize = 64;

/// What the scripted engine does with one request.
pub(crate) enum Script {
    /// Does not take it.
    Refuse(SubmitError),
    /// Sends these events and closes the stream, as a thread that ended would after the last.
    Events(Vec<TokenEvent>),
    /// Hands the sending side to the test.
    Hand(oneshot::Sender<mpsc::Sender<TokenEvent>>),
}

/// An engine without a model. Requests without a script get the tokens of `hi` and the reason `length`.
#[derive(Default)]
pub(crate) struct Fake {
    scripts: Mutex<VecDeque<Script>>,
    requests: Mutex<Vec<GenerateRequest>>,
    draining: AtomicBool,
    idle: Arc<Notify>,
    /// Makes a drain wait for `idle`.
    pub(crate) busy: AtomicBool,
    /// The engine's thread is no more.
    pub(crate) ended: AtomicBool,
    /// When it got on last.
    pub(crate) last_progress: Mutex<Option<Instant>>,
}

impl Fake {
    /// Says what the next request without a script gets.
    pub(crate) fn script(&self, script: Script) {
        self.scripts.lock().unwrap().push_back(script);
    }

    /// The next request's events come from the test.
    pub(crate) fn hand(&self) -> oneshot::Receiver<mpsc::Sender<TokenEvent>> {
        let (send, receive) = oneshot::channel();
        self.script(Script::Hand(send));
        receive
    }

    /// All requests so far.
    pub(crate) fn requests(&self) -> Vec<GenerateRequest> {
        self.requests.lock().unwrap().clone()
    }

    /// Lets a drain end.
    pub(crate) fn finish_drain(&self) {
        self.busy.store(false, Ordering::Release);
        self.idle.notify_one();
    }
}

impl Engine for Fake {
    fn submit(&self, request: GenerateRequest) -> Result<TokenStream, SubmitError> {
        if self.draining.load(Ordering::Acquire) {
            return Err(SubmitError::Draining);
        }
        if request.prompt.is_empty() {
            return Err(SubmitError::Invalid("the prompt has no tokens".into()));
        }
        if request.prompt.iter().any(|token| *token as usize >= self.vocab()) {
            return Err(SubmitError::Invalid("a token of the prompt is outside the vocabulary".into()));
        }
        let tokens = request.prompt.len() + request.max_tokens;
        if tokens > CONTEXT {
            return Err(SubmitError::TooLong { tokens, limit: CONTEXT });
        }
        let script = self.scripts.lock().unwrap().pop_front();
        let script = script.unwrap_or_else(|| Script::Events(text("hi", FinishReason::Length)));
        if let Script::Refuse(error) = script {
            return Err(error);
        }
        self.requests.lock().unwrap().push(request);
        let (events, receiver) = mpsc::channel(256);
        match script {
            Script::Refuse(_) => unreachable!(),
            Script::Events(list) => list.into_iter().for_each(|event| events.try_send(event).unwrap()),
            Script::Hand(to) => to.send(events).unwrap(),
        }
        Ok(TokenStream::new(receiver))
    }

    fn switch(&self, profile: &str) -> oneshot::Receiver<SwitchResult> {
        let (reply, receiver) = oneshot::channel();
        let (outcome, message) = match profile {
            "quality" | "density" => (SwitchEnd::Completed, ""),
            "broken" => (SwitchEnd::Refused, "its weights are damaged"),
            "late" => (SwitchEnd::Replaced, "a later request replaced it"),
            // The engine's thread ends without an answer.
            "dead" => return receiver,
            _ => (SwitchEnd::Unknown, "no profile has that name"),
        };
        let _ = reply.send(SwitchResult {
            from: "quality".into(),
            to: profile.into(),
            start: std::time::SystemTime::UNIX_EPOCH,
            duration: Duration::from_millis(1500),
            pause: Duration::from_micros(2500),
            preempted: 1,
            outcome,
            message: message.into(),
        });
        receiver
    }

    fn snapshot(&self) -> Snapshot {
        let profile = |name: &str, kv_tokens| ProfileSnapshot {
            name: name.into(),
            artifact_key: format!("key-{name}"),
            weight_bytes: 1000,
            kv_tokens,
        };
        Snapshot {
            active: "quality".into(),
            target: None,
            profiles: vec![profile("quality", 160), profile("density", 320)],
            running: 1,
            waiting: 2,
            oldest_waiting: None,
            blocks_total: 10,
            blocks_used: 4,
            blocks_cached: 3,
            blocks_waiting: 5,
            memory: MemorySnapshot { budget: 4000, weights: 1000, kv: 2000, workspace: 500 },
            generated_tokens: 0,
            last_switch: None,
            last_progress: *self.last_progress.lock().unwrap(),
            draining: self.draining.load(Ordering::Acquire),
        }
    }

    fn drain(&self) -> oneshot::Receiver<()> {
        self.draining.store(true, Ordering::Release);
        let (done, receiver) = oneshot::channel();
        if self.busy.load(Ordering::Acquire) {
            let idle = self.idle.clone();
            tokio::spawn(async move {
                idle.notified().await;
                let _ = done.send(());
            });
        } else {
            let _ = done.send(());
        }
        receiver
    }

    fn max_context_tokens(&self) -> usize {
        CONTEXT
    }

    fn vocab(&self) -> usize {
        vocabulary().tokens.len()
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

/// A generated token of the profile quality.
pub(crate) fn token(token: u32) -> TokenEvent {
    TokenEvent::Token { token, logprob: None, profile: "quality".into() }
}

/// A generated token with its score and the alternatives'.
pub(crate) fn scored(token: u32, logprob: f32, top: &[(u32, f32)]) -> TokenEvent {
    TokenEvent::Token { token, logprob: Some(score(token, logprob, top)), profile: "quality".into() }
}

/// A score.
pub(crate) fn score(token: u32, logprob: f32, top: &[(u32, f32)]) -> TokenLogprob {
    TokenLogprob { token, logprob, top: top.to_vec() }
}

/// The end of a stream.
pub(crate) fn finished(reason: FinishReason) -> TokenEvent {
    TokenEvent::Finished { reason, cached_tokens: 0, error: None }
}

/// A whole stream: the bytes of a text, a token each.
pub(crate) fn text(text: &str, reason: FinishReason) -> Vec<TokenEvent> {
    text.bytes().map(|byte| token(u32::from(byte))).chain([finished(reason)]).collect()
}

/// The end-of-text token of the vocabulary.
pub(crate) const END: u32 = 256;

/// A token per byte, `<|end|>`, and the one merge that a vocabulary must have.
fn vocabulary() -> GgufVocab {
    // GPT-2's letters for bytes: printable ones stand for themselves, the others follow from U+0100.
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100;
    let mut tokens: Vec<String> = (0..=255)
        .map(|byte: u8| {
            if printable(byte) {
                return char::from(byte).to_string();
            }
            next += 1;
            char::from_u32(next - 1).unwrap().to_string()
        })
        .collect();
    tokens.extend(["<|end|>".into(), "zz".into()]);
    let mut token_types = vec![1; 258];
    token_types[END as usize] = 3;
    let merges = vec!["z z".into()];
    GgufVocab { model: "gpt2".into(), tokens, token_types, merges, eos: Some(END), ..GgufVocab::default() }
}

/// How a test's worker differs from the usual one.
pub(crate) struct Setup {
    pub(crate) api_keys: Vec<String>,
    pub(crate) admin_token: Option<String>,
    pub(crate) ready: bool,
    pub(crate) change: fn(&mut App),
    pub(crate) limits: ServeLimits,
}

impl Default for Setup {
    fn default() -> Self {
        let connections = ConnectionLimits::default();
        let limits = ServeLimits { api: connections, admin: connections, drain: LIMIT };
        Self { api_keys: Vec::new(), admin_token: Some("secret".into()), ready: true, change: |_| {}, limits }
    }
}

/// The real servers on real sockets, with the scripted engine behind.
pub(crate) struct Server {
    pub(crate) app: Arc<App>,
    pub(crate) engine: Arc<Fake>,
    pub(crate) api: std::net::SocketAddr,
    pub(crate) admin: std::net::SocketAddr,
    pub(crate) client: reqwest::Client,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<bool>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    pub(crate) async fn with(setup: Setup) -> Self {
        let profiles = ["quality".to_owned(), "density".to_owned()];
        let mut app = App::new("m", &profiles, setup.api_keys, setup.admin_token);
        (setup.change)(&mut app);
        let app = Arc::new(app);
        let (api, admin) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let (stop, stopped) = oneshot::channel();
        let (api_address, admin_address) = (api.local_addr().unwrap(), admin.local_addr().unwrap());
        let shutdown = async {
            let _ = stopped.await;
        };
        let server = Self {
            app: app.clone(),
            engine: Arc::new(Fake::default()),
            api: api_address,
            admin: admin_address,
            client: reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap(),
            stop: Some(stop),
            serving: tokio::spawn(app::serve(app, api, admin, shutdown, setup.limits)),
        };
        if setup.ready {
            server.set_ready();
        }
        server
    }

    /// Ends the preparation.
    pub(crate) fn set_ready(&self) {
        let template = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}";
        self.app.set_ready(Ready {
            engine: self.engine.clone(),
            tokenizer: Arc::new(Tokenizer::from_gguf(&vocabulary(), "test").unwrap()),
            template: Some(ChatTemplate::new(template, None, None).unwrap()),
        });
    }

    /// A request to the API port.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.api))
    }

    /// A request to the admin port, with the token.
    pub(crate) fn admin(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.admin)).bearer_auth("secret")
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, String) {
        answer(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let (status, text) = answer(self.request(Method::POST, path).json(&body)).await;
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: not JSON: {text}")))
    }

    /// The answer of a completion that must succeed.
    pub(crate) async fn complete(&self, body: Value) -> Value {
        let (status, answer) = self.post("/v1/completions", body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The events of a stream, without `data: `.
    pub(crate) async fn events(&self, path: &str, body: Value) -> Vec<String> {
        let (status, text) = answer(self.request(Method::POST, path).json(&body)).await;
        assert_eq!(status, 200, "{text}");
        let events = text.split_terminator("\n\n");
        events.map(|e| e.strip_prefix("data: ").unwrap_or_else(|| panic!("no event: {e:?}")).to_owned()).collect()
    }

    /// Sends what SIGTERM sends.
    pub(crate) fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    /// Waits for the end of both servers.
    pub(crate) async fn ended(&mut self) {
        tokio::time::timeout(LIMIT, &mut self.serving).await.expect("the servers did not end").unwrap();
    }
}

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = tokio::time::Instant::now() + LIMIT;
    while !holds().await {
        assert!(tokio::time::Instant::now() < end, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn answer(request: RequestBuilder) -> (StatusCode, String) {
    let response = request.send().await.unwrap();
    (response.status(), response.text().await.unwrap())
}
