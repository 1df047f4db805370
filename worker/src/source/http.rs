//! One HTTP client for all remote sources: where a request may go, who gets the token, how an answer is read.
//!
//! It stands on hyper, which the server uses too, with rustls and ring. `reqwest`'s TLS features are avoided on purpose:
//! cargo would switch them on for every program of the workspace, and its variant without a built-in provider panics in a
//! program that installs none. Here the provider is an argument, so that nothing has to be installed anywhere.

use std::{pin::Pin, sync::Arc, time::Duration};

use axum::body::{Body, Bytes};
use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri,
    body::{Body as _, Incoming},
    header::{self, HeaderName},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Pool, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

use super::{Endpoint, Result, SourceError, Timing, retry::Failure};

/// Redirects of one request; the hub needs two.
const MAX_REDIRECTS: usize = 8;
/// Longest answer that is read into memory (model information, an index of shards).
const MAX_TEXT: usize = 64 << 20;

/// A client bound to one endpoint: only that origin gets the token.
pub(super) struct Client {
    pool: Pool<HttpsConnector<HttpConnector>, Body>,
    token: Option<(Uri, String)>,
    plain_http: bool,
    timing: Timing,
}

/// The head of an answer, and its body still to be read.
pub(super) struct Answer {
    /// Status of the last hop.
    pub(super) status: StatusCode,
    /// Headers of the last hop, below those that the hub sets on its redirect.
    pub(super) headers: HeaderMap,
    body: Incoming,
    stall: Duration,
}

impl Client {
    /// A client that trusts the system's certificate authorities (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others).
    pub(super) fn new(endpoint: &Endpoint, timing: Timing) -> Result<Self> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(timing.connect));
        connector.set_nodelay(true);
        let https = HttpsConnectorBuilder::new().with_tls_config(tls()?).https_or_http().enable_http1();
        let mut pool = Pool::builder(TokioExecutor::new());
        pool.pool_timer(TokioTimer::new()).pool_idle_timeout(Duration::from_secs(30));
        let base = endpoint.uri()?;
        Ok(Self {
            pool: pool.build(https.wrap_connector(connector)),
            plain_http: base.scheme_str() == Some("http"),
            token: endpoint.token.clone().map(|token| (base, token)),
            timing,
        })
    }

    /// Sends a GET and follows redirects. The token goes to the endpoint's origin only, whatever a redirect names.
    ///
    /// # Errors
    /// Cut or refused connections and busy servers (408, 429, 5xx) are [`Failure::Passing`]. Every other status is an
    /// [`Answer`] for the caller to judge.
    pub(super) async fn get(
        &self,
        url: &Uri,
        headers: &[(HeaderName, String)],
    ) -> std::result::Result<Answer, Failure> {
        let mut url = url.clone();
        let mut linked = HeaderMap::new();
        for _ in 0..=MAX_REDIRECTS {
            self.check(&url)?;
            let mut request = Request::builder().method(Method::GET).uri(&url);
            request = request.header(header::USER_AGENT, concat!("modelprofile/", env!("CARGO_PKG_VERSION")));
            // A compressed answer has other lengths and ranges than the file.
            request = request.header(header::ACCEPT_ENCODING, "identity");
            for (name, value) in headers {
                request = request.header(name, value);
            }
            if let Some((base, token)) = &self.token
                && same_origin(base, &url)
            {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let request = request.body(Body::empty()).map_err(|error| protocol(&url, error.to_string()))?;
            let sent = tokio::time::timeout(self.timing.answer, self.pool.request(request)).await;
            let host = url.host().unwrap_or_default();
            let response = sent
                .map_err(|_| Failure::passing(format!("{host} did not answer in {} s", self.timing.answer.as_secs())))?
                .map_err(|error| Failure::passing(format!("{host}: {}", chain(&error))))?;
            let (head, body) = response.into_parts();
            for name in ["x-repo-commit", "x-linked-size", "x-linked-etag", "x-error-code"] {
                if let (Some(value), false) = (head.headers.get(name), linked.contains_key(name)) {
                    linked.insert(name, value.clone());
                }
            }
            if let (true, Some(location)) = (head.status.is_redirection(), text(&head.headers, "location")) {
                url = join(&url, location)?;
                continue;
            }
            if matches!(head.status.as_u16(), 408 | 429 | 500..=599) {
                let after = text(&head.headers, "retry-after").and_then(|value| value.trim().parse().ok());
                let reason = format!("{host} answered {}", head.status);
                return Err(Failure::Passing { reason, after: after.map(Duration::from_secs) });
            }
            let mut headers = head.headers;
            for (name, value) in &linked {
                headers.insert(name, value.clone());
            }
            return Ok(Answer { status: head.status, headers, body, stall: self.timing.stall });
        }
        Err(protocol(&url, format!("more than {MAX_REDIRECTS} redirects")).into())
    }

    /// True when a token is at hand.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Refuses what is not HTTP, and HTTP without TLS beyond this machine unless the endpoint itself was given so.
    fn check(&self, url: &Uri) -> Result<()> {
        match url.scheme_str() {
            Some("https") => Ok(()),
            Some("http") if self.plain_http || is_loopback(url) => Ok(()),
            Some("http") => {
                Err(protocol(url, "http:// has no protection against forged weights; it is used for this machine only"))
            }
            _ => Err(protocol(url, "is neither https:// nor http://")),
        }
    }
}

impl Answer {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// [`Failure::Passing`] when the connection was cut, or no byte came in the time for one.
    pub(super) async fn chunk(&mut self) -> std::result::Result<Option<Bytes>, Failure> {
        loop {
            let body = &mut self.body;
            let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context));
            let frame = tokio::time::timeout(self.stall, frame)
                .await
                .map_err(|_| Failure::passing(format!("no byte came for {} s", self.stall.as_secs())))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(Failure::passing(format!("the connection was cut: {}", chain(&error)))),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// The whole body, up to `limit` bytes and [`MAX_TEXT`]; what lies beyond is left unread.
    pub(super) async fn bytes(&mut self, limit: usize) -> std::result::Result<Vec<u8>, Failure> {
        let mut all = Vec::new();
        while all.len() < limit.min(MAX_TEXT)
            && let Some(bytes) = self.chunk().await?
        {
            all.extend_from_slice(&bytes);
        }
        all.truncate(limit);
        Ok(all)
    }

    /// A header as text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        text(&self.headers, name)
    }

    /// The entity tag without quotes; `None` for none, or a weak one, which promises nothing about bytes.
    pub(super) fn etag(&self) -> Option<&str> {
        let tag = self.header("etag").filter(|tag| !tag.starts_with("W/"))?;
        Some(tag.trim_matches('"')).filter(|tag| !tag.is_empty())
    }

    /// First byte and total length of a 206 answer: `Content-Range: bytes FIRST-LAST/TOTAL` (RFC 9110, 14.4).
    pub(super) fn range(&self) -> Option<(u64, u64)> {
        let (span, total) = self.header("content-range")?.trim().strip_prefix("bytes ")?.split_once('/')?;
        Some((span.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
    }
}

/// A TLS configuration with ring's algorithms and the system's roots.
fn tls() -> Result<rustls::ClientConfig> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = rustls::RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        // Not an error yet: an endpoint on this machine needs none, and elsewhere the handshake says what is missing.
        tracing::warn!("no certificate authorities were found: install ca-certificates, or set SSL_CERT_FILE");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| SourceError::Config(format!("TLS cannot be set up: {error}")))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn protocol(url: &Uri, message: impl Into<String>) -> SourceError {
    // The query of a redirect carries a signature, which is as good as a password for a while.
    let what =
        format!("{}://{}{}", url.scheme_str().unwrap_or("?"), url.authority().map_or("", |a| a.as_str()), url.path());
    SourceError::Protocol { what, message: message.into() }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Scheme, host and port are the same.
pub(super) fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
    let host = |uri: &Uri| uri.host().unwrap_or_default().to_ascii_lowercase();
    a.scheme_str() == b.scheme_str() && host(a) == host(b) && port(a) == port(b)
}

fn is_loopback(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The target of a redirect: absolute, or a path on the same host.
fn join(from: &Uri, location: &str) -> Result<Uri> {
    let absolute = if location.starts_with('/') && !location.starts_with("//") {
        let authority = from.authority().map_or("", |authority| authority.as_str());
        format!("{}://{authority}{location}", from.scheme_str().unwrap_or("https"))
    } else {
        location.to_owned()
    };
    // A fragment never travels.
    let absolute = absolute.split('#').next().unwrap_or_default();
    let uri: Uri = absolute.parse().map_err(|_| protocol(from, "redirects to what is no URL"))?;
    if uri.scheme().is_none() || uri.host().is_none() {
        Err(protocol(from, "redirects to what is no absolute URL"))
    } else {
        Ok(uri)
    }
}

/// An error with its causes; the outermost of the client says only that something failed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[rstest]
    #[case("https://hub.example/a", "https://hub.example:443/b", true)]
    #[case("https://hub.example/a", "https://HUB.example/b", true)]
    #[case("https://hub.example/a", "http://hub.example/a", false)]
    #[case("https://hub.example/a", "https://cdn.hub.example/a", false)]
    #[case("http://127.0.0.1:80/", "http://127.0.0.1:81/", false)]
    fn an_origin_is_scheme_host_and_port(#[case] a: &str, #[case] b: &str, #[case] same: bool) {
        assert_eq!(same_origin(&uri(a), &uri(b)), same);
    }

    #[rstest]
    #[case("/b?x=1", Some("https://h.example/b?x=1"))]
    #[case("https://cdn.example/c", Some("https://cdn.example/c"))]
    #[case("//cdn.example/c", None)]
    #[case("c", None)]
    fn redirects_are_absolute_or_paths(#[case] location: &str, #[case] target: Option<&str>) {
        let joined = join(&uri("https://h.example/a"), location);
        assert_eq!(joined.ok().map(|uri| uri.to_string()).as_deref(), target);
    }

    #[rstest]
    #[case("http://127.0.0.1:8/x", true)]
    #[case("http://[::1]/x", true)]
    #[case("http://localhost/x", true)]
    #[case("http://localhost.example/x", false)]
    #[case("http://10.0.0.1/x", false)]
    fn loopback_is_this_machine(#[case] url: &str, #[case] expected: bool) {
        assert_eq!(is_loopback(&uri(url)), expected);
    }
}
