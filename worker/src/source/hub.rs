//! The hub's protocol: one request says what a repository is at a revision, one address per file serves its bytes.
//!
//! ```text
//! GET BASE/api/models/OWNER/NAME/revision/REV?blobs=true -> commit, card, files with size and digest
//! GET BASE/OWNER/NAME/resolve/COMMIT/PATH                -> the bytes, usually by a redirect to a content network;
//!     X-Repo-Commit, X-Linked-Size, X-Linked-ETag on the redirect describe the file itself
//! 401, 403, 404 carry X-Error-Code: GatedRepo, RepoNotFound, RevisionNotFound, EntryNotFound
//! ```
//!
//! Names and meanings as in the public HTTP API of the Hugging Face hub and its Python client.

use hyper::{StatusCode, Uri};
use serde::Deserialize;

use super::{
    Endpoint, Result, SourceError,
    digest::Digest,
    http::{Answer, Client},
    retry::{Failure, Retry, retrying},
};

/// A repository at one commit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Repository {
    /// `OWNER/NAME`.
    pub(super) id: String,
    /// The commit that the revision means, in hex.
    pub(super) commit: String,
    /// The front matter of the model card, as the hub read it.
    pub(super) card: serde_json::Value,
    /// Every file of the commit.
    pub(super) files: Vec<RemoteFile>,
}

/// A file of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoteFile {
    /// Path in the repository, without `..` and never absolute.
    pub(super) path: String,
    /// Bytes, where the hub says so.
    pub(super) size: Option<u64>,
    /// Checksum, where the hub says so.
    pub(super) digest: Option<Digest>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(rename = "cardData", default)]
    card: serde_json::Value,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Repository {
    /// Reads the hub's description of a repository. File names that could leave a directory are left out: nothing that
    /// this program asks for has such a name.
    pub(super) fn parse(id: &str, text: &[u8]) -> std::result::Result<Self, String> {
        let info: Info = serde_json::from_slice(text).map_err(|error| format!("the model information: {error}"))?;
        if info.sha.len() < 7 || info.sha.len() > 64 || !info.sha.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("the model information names no commit".to_owned());
        }
        let files = info.siblings.into_iter().filter(|file| is_safe_path(&file.rfilename)).map(|file| {
            let digest = match &file.lfs {
                Some(lfs) => Digest::sha256(&lfs.sha256),
                None => file.blob.as_deref().and_then(Digest::git_blob),
            };
            RemoteFile { size: file.lfs.map(|lfs| lfs.size).or(file.size), digest, path: file.rfilename }
        });
        Ok(Self { id: id.to_owned(), commit: info.sha.to_ascii_lowercase(), card: info.card, files: files.collect() })
    }

    /// A file by its path.
    pub(super) fn file(&self, path: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.path == path)
    }
}

/// A relative path of plain parts, that stays below wherever it is put.
pub(super) fn is_safe_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 512
        && !path.contains(['\\', '\0'])
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Asks what `id` is at `revision`.
pub(super) async fn info(
    client: &Client,
    endpoint: &Endpoint,
    retry: &Retry,
    id: &str,
    revision: &str,
) -> Result<Repository> {
    let path = format!("/api/models/{id}/revision/{}?blobs=true", escape(revision, false));
    let url = endpoint.join(&path)?;
    let what = format!("{id} at {revision}");
    retrying(retry, &what, async |_| {
        let mut answer = client.get(&url, &[]).await?;
        judge(&answer, client, endpoint, id, &what)?;
        let text = answer.bytes(usize::MAX).await?;
        let parsed = Repository::parse(id, &text);
        // A body that was cut is no JSON either, but then the connection says so first.
        parsed.map_err(|message| Failure::Final(SourceError::Protocol { what: what.clone(), message }))
    })
    .await
}

/// The address of a file.
pub(super) fn resolve(endpoint: &Endpoint, id: &str, commit: &str, path: &str) -> Result<Uri> {
    endpoint.join(&format!("/{id}/resolve/{}/{}", escape(commit, false), escape(path, true)))
}

/// Turns a status other than 200 and 206 into a sentence.
pub(super) fn judge(answer: &Answer, client: &Client, endpoint: &Endpoint, id: &str, what: &str) -> Result<()> {
    if matches!(answer.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
        return Ok(());
    }
    let code = answer.header("x-error-code").unwrap_or_default();
    let page = format!("{}/{id}", endpoint.url);
    Err(match (answer.status.as_u16(), code) {
        (404, "EntryNotFound") => SourceError::NotFound(format!("{what}: {page} has no such file")),
        (404, "RevisionNotFound") => SourceError::NotFound(format!(
            "{what}: {page} exists, but not that revision; write a commit, tag or branch of it into spec.model.revision"
        )),
        // Without a token the hub says 401 for what does not exist, so as not to tell what is private.
        (404, _) | (401, "RepoNotFound") => SourceError::NotFound(format!(
            "{what}: {page} does not exist, has no such revision, or is private; check spec.model.uri and \
             spec.model.revision, and for a private repository give a token by spec.model.tokenSecretRef (locally: HF_TOKEN)"
        )),
        (401 | 403, _) => SourceError::Gated {
            page,
            token: if client.has_token() { "a token was sent, but has no access yet" } else { "no token was sent" },
        },
        (status, _) => SourceError::Protocol { what: what.to_owned(), message: format!("unexpected status {status}") },
    })
}

/// Percent-encodes everything but unreserved characters, and slashes if they separate parts.
pub(super) fn escape(text: &str, slashes: bool) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut out, byte| {
        let plain =
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') || (slashes && byte == b'/');
        if plain {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = r#"{"id": "o/n", "sha": "ABCDEF0123456789abcdef0123456789abcdef01", "gated": "manual",
        "cardData": {"license": "gemma"}, "siblings": [
        {"rfilename": "config.json", "size": 12, "blobId": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},
        {"rfilename": "../../etc/passwd"}, {"rfilename": "/etc/passwd"}, {"rfilename": "a//b"}, {"rfilename": "a\\b"},
        {"rfilename": "q/model.gguf", "size": 7, "lfs":
         {"sha256": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "size": 7, "pointerSize": 134}}]}"#;

    #[test]
    fn the_description_of_a_repository_is_read_and_paths_that_climb_are_dropped() {
        let repository = Repository::parse("o/n", INFO.as_bytes()).unwrap();
        assert_eq!(repository.commit, "abcdef0123456789abcdef0123456789abcdef01");
        assert_eq!(repository.card["license"], "gemma");
        let paths: Vec<_> = repository.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["config.json", "q/model.gguf"]);
        assert_eq!(repository.files[0].digest, Digest::git_blob(&"a".repeat(40)));
        assert_eq!(repository.file("q/model.gguf").unwrap().digest, Digest::sha256(&"b".repeat(64)));
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in ["", "{}", r#"{"sha": "../.."}"#, r#"{"sha": "abcdefg1234", "siblings": 3}"#] {
            assert!(Repository::parse("o/n", text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn revisions_and_paths_are_escaped() {
        assert_eq!(escape("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(escape("q 4/a#b?.gguf", true), "q%204/a%23b%3F.gguf");
    }
}
