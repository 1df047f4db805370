//! Where models come from: a URI becomes a path on this machine, after its licence was read and before more than that is
//! transferred.
//!
//! ```text
//! hf://OWNER/NAME        -> remote -> cache/hub/models--OWNER--NAME/snapshots/COMMIT
//! https://HUB/O/N/resolve/REV/FILE.gguf -> remote, that one file of the repository
//! https://HOST/FILE.gguf -> web    -> cache/https/NAME/FILE.gguf
//! pvc://CLAIM/PATH       -> volumes: VOLUMES/CLAIM/PATH, nothing outside of it
//! file:///PATH           -> the path itself
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | `hub` | the hub's protocol: model information, addresses, errors |
//! | `select` | which files of a repository are needed |
//! | `remote`, `web` | the order of things for a repository, for a single file |
//! | `transfer`, `partial`, `digest` | one file: ranges, resume, verification |
//! | `http`, `retry` | one client: redirects, token, what is tried again |
//! | `cache`, `volumes` | where files lie |
//! | [`prune`] | removes the weights that were fetched, once artifacts are made of them |
//! | [`Progress`] | bytes, speed, time left |
//!
//! The crate `hf-hub` 1.0 is not used. It resumes no file inside itself, holds no checksum of what came, and brings more
//! crates (its content-addressed transfer, a second TLS stack in C) than all of this program's HTTP. What the hub's protocol
//! asks of a reader is small.

mod cache;
mod digest;
mod error;
mod http;
mod hub;
mod partial;
mod progress;
mod prune;
mod remote;
mod retry;
mod select;
mod transfer;
mod volumes;
mod web;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::Uri;
use modelprofile_api::ModelUri;

use crate::licence::{Licence, Refusal};
use {http::Client, progress::Meter, transfer::Transfer};

pub use error::{Result, SourceError};
pub(crate) use partial::replace;
pub use progress::Progress;
pub use prune::{Entry, Pruned, Removed, prune};
pub use retry::Retry;

/// The public hub.
const HUB: &str = "https://huggingface.co";
/// Connections at once over all files.
const CONNECTIONS: usize = 8;

/// Where the hub is, and who asks.
#[derive(Clone)]
pub struct Endpoint {
    /// `https://huggingface.co`, or a mirror; without a slash at its end.
    pub url: String,
    /// Access token; sent to this endpoint's origin and nowhere else.
    pub token: Option<String>,
    /// Never ask the network.
    pub offline: bool,
}

impl std::fmt::Debug for Endpoint {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = if self.token.is_some() { "set" } else { "none" };
        write!(f, "Endpoint {{ url: {:?}, token: {token}, offline: {} }}", self.url, self.offline)
    }
}

impl Endpoint {
    /// From `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE`, as the hub's Python client reads them. `variable` looks one up.
    pub fn from_env(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let url = set("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned());
        let offline = set("HF_HUB_OFFLINE")
            .is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"));
        Self { url: url.trim_end_matches('/').to_owned(), token: set("HF_TOKEN"), offline }
    }

    fn uri(&self) -> Result<Uri> {
        let wrong = || SourceError::Config(format!("HF_ENDPOINT is {}: write https://HOST", self.url));
        let uri: Uri = self.url.parse().map_err(|_| wrong())?;
        let known = matches!(uri.scheme_str(), Some("https" | "http"));
        if known && uri.host().is_some() { Ok(uri) } else { Err(wrong()) }
    }

    /// A path on the endpoint, escaped by the caller.
    fn join(&self, path: &str) -> Result<Uri> {
        format!("{}{path}", self.url)
            .parse()
            .map_err(|_| SourceError::Config(format!("{}{path} is no URL; check HF_ENDPOINT", self.url)))
    }
}

/// Limits of one request.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Until a connection stands.
    pub connect: Duration,
    /// Until the head of an answer is there.
    pub answer: Duration,
    /// Between two pieces of a body.
    pub stall: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connect: seconds(10), answer: seconds(60), stall: seconds(60) }
    }
}

/// Everything that fetching depends on beside the URI.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cache directory of the worker.
    pub cache: PathBuf,
    /// Volumes are mounted below it, by the names of their claims.
    pub volumes: PathBuf,
    /// The hub.
    pub endpoint: Endpoint,
    /// What is tried again, and when.
    pub retry: Retry,
    /// Limits of a request.
    pub timing: Timing,
    /// Bytes of a range; files beyond it come by several connections.
    pub chunk: u64,
    /// A model whose weights were pruned will do: what is left of it is returned rather than fetched again.
    pub without_weights: bool,
    /// What describes a model will do: of a repository with safetensors, the small files alone are fetched. A GGUF file is
    /// fetched whole, because it describes itself.
    pub description: bool,
}

impl Settings {
    /// The usual limits, and the endpoint of the environment.
    pub fn new(cache: &Path, volumes: &Path) -> Self {
        Self {
            cache: cache.to_owned(),
            volumes: volumes.to_owned(),
            endpoint: Endpoint::from_env(|name| std::env::var(name).ok()),
            retry: Retry::default(),
            timing: Timing::default(),
            // Each range asks the hub for an address, and the hub counts: a model of 140 GB takes about 1,100 requests.
            chunk: 128 << 20,
            without_weights: false,
            description: false,
        }
    }
}

/// A model on this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    /// A directory or a `.gguf` file.
    pub path: PathBuf,
    /// Its licence, as far as it is declared.
    pub licence: Licence,
    /// What it is called where it comes from: `OWNER/NAME`, the URL, or the path.
    pub label: String,
    /// The commit, of a repository.
    pub commit: Option<String>,
    /// Set when only [`Settings::without_weights`] made it found: `path` is then a directory without weight files, or the head
    /// of a `.gguf` file.
    pub pruned: Option<Pruned>,
    /// Where it lies in this program's own cache; `None` for a file of the user, and for small files alone, which
    /// [`Settings::description`] may have brought.
    pub entry: Option<Entry>,
}

/// Asked with the licence before weights are transferred, and once more if the weights declare another one.
pub type Consent<'a> = dyn FnMut(&Licence) -> std::result::Result<(), Refusal> + 'a;

/// What one fetch passes around.
struct Context<'a, 'c> {
    settings: &'a Settings,
    client: &'a Client,
    meter: &'a Meter<'a>,
    consent: &'a mut Consent<'c>,
}

impl<'a> Context<'a, '_> {
    fn transfer(&self) -> Transfer<'a, 'a> {
        Transfer {
            client: self.client,
            retry: self.settings.retry,
            slots: tokio::sync::Semaphore::new(CONNECTIONS),
            chunk: self.settings.chunk,
            meter: self.meter,
        }
    }
}

/// Brings a model to this machine. Blocks; runs its own small runtime, so it must not be called from an async task.
///
/// `revision` is a commit, tag or branch of a hub repository (`None`: `main`) and is ignored by other schemes.
///
/// # Guarantees
/// `consent` sees the licence before a byte of the weights is asked for, except the head of a GGUF file, where its licence
/// stands. A file appears under its name only when it is complete and verified. Two processes never fetch the same model
/// at once: the second waits and finds it.
///
/// # Errors
/// See [`SourceError`]; each is a sentence that says what to do. What came before an error is kept for the next call.
pub fn fetch(
    uri: &ModelUri,
    revision: Option<&str>,
    settings: &Settings,
    consent: &mut Consent<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Located> {
    let path = match uri {
        ModelUri::File(path) => volumes::file(path)?,
        ModelUri::PersistentVolumeClaim { claim, path } => volumes::claim(&settings.volumes, claim, path)?,
        ModelUri::HuggingFace { repository } => {
            let wanted = remote::Wanted { id: repository, revision: revision.unwrap_or("main"), file: None };
            return over_network(settings, consent, progress, async |context| remote::fetch(context, &wanted).await);
        }
        ModelUri::Https(url) => {
            return over_network(settings, consent, progress, async |context| {
                match hub_file(url, &settings.endpoint) {
                    Some((id, revision, file)) => {
                        let wanted = remote::Wanted { id: &id, revision: &revision, file: Some(&file) };
                        remote::fetch(context, &wanted).await
                    }
                    None => web::fetch(context, url).await,
                }
            });
        }
    };
    let licence = Licence::of_path(&path).map_err(SourceError::io(&path))?;
    consent(&licence)?;
    Ok(Located { label: path.display().to_string(), path, licence, commit: None, pruned: None, entry: None })
}

/// The path of what is on this machine already; `None` for what would have to be fetched.
///
/// # Errors
/// There is nothing, or it would lie outside of its volume.
pub(crate) fn local_path(uri: &ModelUri, volumes: &Path) -> Option<Result<PathBuf>> {
    match uri {
        ModelUri::File(path) => Some(volumes::file(path)),
        ModelUri::PersistentVolumeClaim { claim, path } => Some(volumes::claim(volumes, claim, path)),
        ModelUri::HuggingFace { .. } | ModelUri::Https(_) => None,
    }
}

/// Gives `fetch` a client and a runtime of its own.
fn over_network<'c>(
    settings: &Settings,
    consent: &mut Consent<'c>,
    progress: &mut dyn FnMut(Progress),
    fetch: impl for<'a> AsyncFnOnce(&mut Context<'a, 'c>) -> Result<Located>,
) -> Result<Located> {
    let client = Client::new(&settings.endpoint, settings.timing)?;
    let meter = Meter::new(progress);
    let mut context = Context { settings, client: &client, meter: &meter, consent };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| SourceError::Config(format!("no runtime for the network: {error}")))?;
    runtime.block_on(fetch(&mut context))
}

/// Repository, revision and path of a file's address on the hub, `HUB/OWNER/NAME/resolve/REV/PATH` or `blob` for
/// `resolve`. The public hub's address counts whatever the endpoint is, so that a mirror needs no other manifest.
fn hub_file(url: &str, endpoint: &Endpoint) -> Option<(String, String, String)> {
    let url = url.split(['?', '#']).next()?;
    let rest = [HUB, &endpoint.url].into_iter().find_map(|base| url.strip_prefix(base)?.strip_prefix('/'))?;
    let [owner, name, kind, revision, path] = rest.splitn(5, '/').collect::<Vec<_>>()[..] else { return None };
    let id = format!("{owner}/{name}");
    let path = unescape(path)?;
    let plain = ModelUri::parse(&format!("hf://{id}")).is_ok() && hub::is_safe_path(&path);
    (matches!(kind, "resolve" | "blob") && plain).then(|| Some((id, unescape(revision)?, path)))?
}

/// Undoes percent-encoding; `None` for what is none.
fn unescape(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

/// What a command line names a model by: a URI, or a path.
///
/// # Errors
/// A URI that is none; the sentence says what to write.
pub fn parse(model: &str) -> std::result::Result<ModelUri, String> {
    if model.contains("://") { ModelUri::parse(model) } else { Ok(ModelUri::File(PathBuf::from(model))) }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn the_environment_is_read_as_the_python_client_does() {
        let endpoint = Endpoint::from_env(|_| None);
        assert_eq!((endpoint.url.as_str(), endpoint.token, endpoint.offline), (HUB, None, false));
        let endpoint = Endpoint::from_env(|name| {
            Some(match name {
                "HF_ENDPOINT" => "http://mirror:81/hf/".to_owned(),
                "HF_TOKEN" => " hf_x\n".to_owned(),
                _ => "true".to_owned(),
            })
        });
        assert_eq!(endpoint.url, "http://mirror:81/hf");
        assert_eq!((endpoint.token.as_deref(), endpoint.offline), (Some("hf_x"), true));
        assert!(!format!("{endpoint:?}").contains("hf_x"));
    }

    #[rstest]
    #[case("https://huggingface.co/o/n/resolve/main/q/a%20b.gguf?download=true", Some(("o/n", "main", "q/a b.gguf")))]
    #[case("https://huggingface.co/o/n/blob/refs%2Fpr%2F1/a.gguf", Some(("o/n", "refs/pr/1", "a.gguf")))]
    #[case("http://mirror:81/o/n/resolve/main/a.gguf", Some(("o/n", "main", "a.gguf")))]
    #[case("https://huggingface.co/o/n/resolve/main/..%2Fa.gguf", None)]
    #[case("https://huggingface.co/o/n/tree/main/a.gguf", None)]
    #[case("https://example.org/o/n/resolve/main/a.gguf", None)]
    fn addresses_on_the_hub_are_files_of_a_repository(#[case] url: &str, #[case] file: Option<(&str, &str, &str)>) {
        let endpoint = Endpoint { url: "http://mirror:81".into(), token: None, offline: false };
        let found = hub_file(url, &endpoint);
        assert_eq!(found.as_ref().map(|(id, revision, path)| (id.as_str(), revision.as_str(), path.as_str())), file);
    }

    #[rstest]
    #[case("models/a.gguf", ModelUri::File("models/a.gguf".into()))]
    #[case("hf://o/n", ModelUri::HuggingFace { repository: "o/n".into() })]
    fn a_command_line_takes_a_uri_or_a_path(#[case] model: &str, #[case] uri: ModelUri) {
        assert_eq!(parse(model), Ok(uri));
    }
}
