//! A small server that speaks the hub's protocol, with a content network on another port, and with faults on demand.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use serde_json::{Value, json};

/// What a request gets instead of the file, once.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// A status, with `Retry-After` if given.
    Status(u16, Option<u64>),
    /// The connection ends after as many bytes of the body.
    Cut(usize),
    /// The body stops after as many bytes, and the connection stays open.
    Stall(usize),
    /// A redirect to elsewhere.
    Redirect(String),
    /// The whole file, whatever range was asked for.
    NoRange,
    /// Waits before it answers.
    Slow(Duration),
    /// The range is said to be one of a file of as many bytes.
    Total(usize),
}

/// A file of the repository.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) bytes: Vec<u8>,
    /// Served by the content network, with a SHA-256.
    pub(crate) large: bool,
    /// What the listing says instead of the true checksum.
    pub(crate) announced: Option<String>,
}

/// One request, as it came.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub(crate) cdn: bool,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) sent: usize,
}

#[derive(Default)]
struct Inner {
    commit: Mutex<String>,
    card: Mutex<Value>,
    cards: Mutex<HashMap<String, Value>>,
    files: Mutex<BTreeMap<String, Stored>>,
    /// Files of the plain web server, with entity tags.
    web: Mutex<HashMap<String, (Vec<u8>, String)>>,
    /// Token that the gate asks for; `None` is no gate. An empty one lets nobody in.
    gate: Mutex<Option<String>>,
    faults: Mutex<HashMap<String, VecDeque<Fault>>>,
    /// The listing has neither sizes nor checksums, as those of some mirrors.
    names_only: AtomicBool,
    hits: Mutex<Vec<Hit>>,
    cdn: Mutex<String>,
    active: AtomicUsize,
    most_active: AtomicUsize,
}

/// The running servers; they end with it.
pub(crate) struct Hub {
    pub(crate) url: String,
    inner: Arc<Inner>,
    _runtime: tokio::runtime::Runtime,
}

/// The repository.
pub(crate) const ID: &str = "acme/tiny";
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl Hub {
    /// A hub with the repository [`ID`] at [`COMMIT`], which has no file yet and declares Apache-2.0.
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let inner = Arc::new(Inner {
            commit: Mutex::new(COMMIT.to_owned()),
            card: Mutex::new(json!({"license": "apache-2.0"})),
            ..Inner::default()
        });
        let serve = |cdn: bool| {
            let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let router = Router::new().fallback(answer).with_state((inner.clone(), cdn));
            runtime.spawn(async move { axum::serve(listener, router).await });
            url
        };
        let (url, cdn) = (serve(false), serve(true));
        *inner.cdn.lock().unwrap() = cdn;
        Self { url, inner, _runtime: runtime }
    }

    /// Adds a file; `large` ones lie on the content network.
    pub(crate) fn file(&self, path: &str, bytes: &[u8], large: bool) {
        let stored = Stored { bytes: bytes.to_vec(), large, announced: None };
        self.inner.files.lock().unwrap().insert(path.to_owned(), stored);
    }

    /// Makes the listing announce another checksum.
    pub(crate) fn announce(&self, path: &str, checksum: &str) {
        self.inner.files.lock().unwrap().get_mut(path).unwrap().announced = Some(checksum.to_owned());
    }

    /// Makes the listing leave out sizes and checksums.
    pub(crate) fn list_names_only(&self) {
        self.inner.names_only.store(true, Ordering::SeqCst);
    }

    pub(crate) fn card(&self, card: Value) {
        *self.inner.card.lock().unwrap() = card;
    }

    /// The card of another repository, which has nothing else.
    pub(crate) fn card_of(&self, id: &str, card: Value) {
        self.inner.cards.lock().unwrap().insert(id.to_owned(), card);
    }

    pub(crate) fn move_to(&self, commit: &str) {
        commit.clone_into(&mut self.inner.commit.lock().unwrap());
    }

    pub(crate) fn gate(&self, token: &str) {
        *self.inner.gate.lock().unwrap() = Some(token.to_owned());
    }

    /// A file that is on no hub.
    pub(crate) fn web(&self, path: &str, bytes: &[u8], etag: &str) {
        self.inner.web.lock().unwrap().insert(path.to_owned(), (bytes.to_vec(), etag.to_owned()));
    }

    /// The next request for a file (on whichever port serves its bytes) meets this; several are met one after the other.
    pub(crate) fn fault(&self, path: &str, fault: Fault) {
        self.inner.faults.lock().unwrap().entry(path.to_owned()).or_default().push_back(fault);
    }

    /// The requests so far, whose path ends as given.
    pub(crate) fn hits(&self, end: &str) -> Vec<Hit> {
        self.inner.hits.lock().unwrap().iter().filter(|hit| hit.path.ends_with(end)).cloned().collect()
    }

    pub(crate) fn forget_hits(&self) {
        self.inner.hits.lock().unwrap().clear();
    }

    /// Most bodies that were sent at once.
    pub(crate) fn most_active(&self) -> usize {
        self.inner.most_active.load(Ordering::SeqCst)
    }
}

async fn answer(State((inner, cdn)): State<(Arc<Inner>, bool)>, request: Request) -> Response {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let sent = request.headers().clone();
    drop(request);
    let header = |name: &str| sent.get(name).map(|value| value.to_str().unwrap().to_owned());
    let (range, token) = (header("range"), header("authorization"));
    let at = {
        let mut hits = inner.hits.lock().unwrap();
        hits.push(Hit { cdn, path: path.clone(), range: range.clone(), token: token.clone(), sent: 0 });
        hits.len() - 1
    };
    if let Some(id) = path.strip_prefix("api/models/").and_then(|rest| rest.split_once("/revision/")) {
        return information(&inner, id.0, id.1);
    }
    if let Some(name) = path.strip_prefix("web/") {
        let (bytes, etag) = inner.web.lock().unwrap().get(name).cloned().unwrap();
        let changed = header("if-range").is_some_and(|tag| tag != format!("\"{etag}\""));
        let range = range.filter(|_| !changed);
        return serve(&inner, name, bytes, range.as_deref(), &[("etag", format!("\"{etag}\""))], at).await;
    }
    let parts: Vec<&str> = path.splitn(5, '/').collect();
    let [owner, name, "resolve", commit, file] = parts[..] else { return status(404, &[]) };
    let stored = inner.files.lock().unwrap().get(file).cloned();
    let Some(stored) = stored.filter(|_| format!("{owner}/{name}") == ID) else {
        return status(404, &[("x-error-code", "EntryNotFound".into())]);
    };
    if cdn {
        return serve(&inner, file, stored.bytes, range.as_deref(), &[("etag", "\"of-the-network\"".into())], at).await;
    }
    if let Some(gate) = inner.gate.lock().unwrap().clone()
        && token != Some(format!("Bearer {gate}"))
    {
        return status(if token.is_some() { 403 } else { 401 }, &[("x-error-code", "GatedRepo".into())]);
    }
    let checksum = stored.announced.clone().unwrap_or_else(|| checksum(&stored));
    let commit = ("x-repo-commit", commit.to_owned());
    if !stored.large {
        return serve(&inner, file, stored.bytes, range.as_deref(), &[commit, ("etag", format!("\"{checksum}\""))], at)
            .await;
    }
    let target = format!("{}/{path}?signature=secret", inner.cdn.lock().unwrap());
    let size = stored.bytes.len().to_string();
    let tag = format!("\"{checksum}\"");
    status(302, &[commit, ("location", target), ("x-linked-size", size), ("x-linked-etag", tag)])
}

fn information(inner: &Inner, id: &str, revision: &str) -> Response {
    if id != ID {
        return match inner.cards.lock().unwrap().get(id) {
            Some(card) => text(&json!({"sha": COMMIT, "cardData": card, "siblings": []})),
            None => status(401, &[("x-error-code", "RepoNotFound".into())]),
        };
    }
    let commit = inner.commit.lock().unwrap().clone();
    if revision != "main" && revision != commit {
        return status(404, &[("x-error-code", "RevisionNotFound".into())]);
    }
    let files = inner.files.lock().unwrap();
    let siblings: Vec<Value> = files
        .iter()
        .map(|(path, stored)| {
            let checksum = stored.announced.clone().unwrap_or_else(|| checksum(stored));
            let size = stored.bytes.len();
            if inner.names_only.load(Ordering::SeqCst) {
                json!({"rfilename": path})
            } else if stored.large {
                json!({"rfilename": path, "size": size, "blobId": "0".repeat(40),
                       "lfs": {"sha256": checksum, "size": size, "pointerSize": 134}})
            } else {
                json!({"rfilename": path, "size": size, "blobId": checksum})
            }
        })
        .collect();
    text(&json!({"sha": commit, "cardData": *inner.card.lock().unwrap(), "siblings": siblings}))
}

/// Sends bytes or a range of them, through the next fault of the file.
async fn serve(
    inner: &Arc<Inner>,
    file: &str,
    bytes: Vec<u8>,
    range: Option<&str>,
    headers: &[(&str, String)],
    hit: usize,
) -> Response {
    let fault = inner.faults.lock().unwrap().get_mut(file).and_then(VecDeque::pop_front);
    match &fault {
        Some(Fault::Status(code, after)) => {
            let after: Vec<_> = after.iter().map(|seconds| ("retry-after", seconds.to_string())).collect();
            return status(*code, &after);
        }
        Some(Fault::Redirect(to)) => return status(302, &[("location", to.clone())]),
        Some(Fault::Slow(time)) => tokio::time::sleep(*time).await,
        _ => {}
    }
    let total = bytes.len();
    let span = range.filter(|_| !matches!(fault, Some(Fault::NoRange))).map(|range| {
        let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        (first.parse::<usize>().unwrap(), last.parse::<usize>().unwrap().min(total.saturating_sub(1)))
    });
    if span.is_some_and(|(first, _)| first >= total) {
        return status(416, &[("content-range", format!("bytes */{total}"))]);
    }
    let (first, last) = span.unwrap_or((0, total.saturating_sub(1)));
    let body = Bytes::from(bytes).slice(first..(last + 1).min(total));
    let mut builder = Response::builder().header("content-length", body.len());
    for (name, value) in headers {
        builder = builder.header(*name, value);
    }
    if span.is_some() {
        let total = if let Some(Fault::Total(claimed)) = fault { claimed } else { total };
        builder = builder.status(StatusCode::PARTIAL_CONTENT);
        builder = builder.header("content-range", format!("bytes {first}-{last}/{total}"));
    }
    let limit = match fault {
        Some(Fault::Cut(after) | Fault::Stall(after)) => after.min(body.len()),
        _ => body.len(),
    };
    inner.hits.lock().unwrap()[hit].sent = limit;
    let stall = matches!(fault, Some(Fault::Stall(_)));
    let active = Active::new(inner.clone());
    let stream = futures_util::stream::unfold((active, 0), move |(active, at)| {
        let body = body.clone();
        async move {
            if at < limit {
                // In pieces, so that several bodies are under way at once.
                let end = (at + (16 << 10)).min(limit);
                tokio::task::yield_now().await;
                return Some((Ok(body.slice(at..end)), (active, end)));
            }
            if limit == body.len() {
                return None;
            }
            if stall {
                std::future::pending::<()>().await;
            }
            // What was sent before must be on its way, else the cut takes it along.
            tokio::time::sleep(Duration::from_millis(50)).await;
            Some((Err(std::io::Error::other("cut")), (active, at)))
        }
    });
    builder.body(Body::from_stream(stream)).unwrap()
}

/// Counts a body from its first byte to its end, however it ends.
struct Active(Arc<Inner>);

impl Active {
    fn new(inner: Arc<Inner>) -> Self {
        let active = inner.active.fetch_add(1, Ordering::SeqCst) + 1;
        inner.most_active.fetch_max(active, Ordering::SeqCst);
        Self(inner)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::SeqCst);
    }
}

fn status(code: u16, headers: &[(&str, String)]) -> Response {
    let mut builder = Response::builder().status(code);
    for (name, value) in headers {
        builder = builder.header(*name, value);
    }
    builder.body(Body::empty()).unwrap()
}

fn text(value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.headers_mut() = HeaderMap::new();
    response
}

/// SHA-256 of a large file, the git blob's SHA-1 of a small one.
fn checksum(stored: &Stored) -> String {
    use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
    let mut context = Context::new(if stored.large { &SHA256 } else { &SHA1_FOR_LEGACY_USE_ONLY });
    if !stored.large {
        context.update(format!("blob {}\0", stored.bytes.len()).as_bytes());
    }
    context.update(&stored.bytes);
    context.finish().as_ref().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
