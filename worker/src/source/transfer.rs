//! Fetching one file: in ranges, several at once, resumed after a cut, verified, then named.

use std::path::Path;

use futures_util::{StreamExt, stream};
use hyper::{
    StatusCode, Uri,
    header::{self, HeaderName},
};
use tokio::sync::Semaphore;

use super::{
    Result, SourceError,
    digest::Digest,
    error::too_large,
    http::{Answer, Client},
    partial::Partial,
    progress::Meter,
    retry::{Failure, Retry, entropy, retrying},
};

/// Ranges of one file at once; all files together are bounded by [`Transfer::slots`].
const RANGES: usize = 8;
/// How often a file may change on the server while it is fetched.
const CHANGES: u32 = 3;

/// A file to fetch.
pub(super) struct Target<'a> {
    /// How messages call it.
    pub(super) what: String,
    /// Address.
    pub(super) url: Uri,
    /// Bytes; found by [`Transfer::probe`] when not known.
    pub(super) size: Option<u64>,
    /// A file that turns out to have more bytes is refused.
    pub(super) most: u64,
    /// Checksum; `None` when nobody names one.
    pub(super) digest: Option<Digest>,
    /// Strong entity tag, or the modification date, of a file without a checksum: a range of another version must not be
    /// joined to this one.
    pub(super) validator: Option<String>,
    /// Turns a status into a sentence.
    pub(super) judge: &'a (dyn Fn(&Answer) -> Result<()> + 'a),
}

impl Target<'_> {
    /// What the bytes belong to.
    fn identity(&self) -> String {
        match (&self.digest, &self.validator) {
            (Some(digest), _) => digest.hex().to_owned(),
            (None, Some(validator)) => validator.clone(),
            // Nothing says that two answers are the same file, so no partial file is ever the right one.
            (None, None) => format!("unknown {}", entropy()),
        }
    }
}

/// What transfers share.
pub(super) struct Transfer<'a, 'm> {
    pub(super) client: &'a Client,
    pub(super) retry: Retry,
    /// Connections at once, over all files.
    pub(super) slots: Semaphore,
    /// Bytes of a range.
    pub(super) chunk: u64,
    pub(super) meter: &'a Meter<'m>,
}

/// How a chunk ended, when not by an error.
enum Filled {
    Complete,
    /// The server sends whole files only.
    NoRanges,
    /// The server has another version of the file by now.
    Changed,
}

impl Transfer<'_, '_> {
    /// Finds size, checksum and validator of a file where they are not known, by its first byte.
    pub(super) async fn probe(&self, target: &mut Target<'_>) -> Result<()> {
        let (size, tag) = retrying(&self.retry, &target.what, async |_| {
            let answer = self.client.get(&target.url, &[(header::RANGE, "bytes=0-0".to_owned())]).await?;
            // An empty file has no first byte.
            if answer.status == StatusCode::RANGE_NOT_SATISFIABLE {
                return Ok((Some(0), answer.header("x-linked-etag").map(str::to_owned)));
            }
            (target.judge)(&answer)?;
            let length = |name| answer.header(name).and_then(|text| text.parse().ok());
            let size = match answer.status {
                StatusCode::PARTIAL_CONTENT => answer.range().map(|(_, total)| total),
                _ => length("content-length"),
            };
            let size = length("x-linked-size").or(size);
            let dated = || answer.header("last-modified");
            let tag = answer.header("x-linked-etag").or(answer.etag()).or_else(dated);
            Ok((size, tag.map(str::to_owned)))
        })
        .await?;
        target.size = target.size.or(size);
        if target.digest.is_none() {
            target.digest = tag.as_deref().and_then(Digest::from_etag);
            target.validator = tag;
        }
        match target.size {
            // A listing without sizes, or a file that changed: only now is it known how long it is.
            Some(size) if size > target.most => Err(too_large(&target.what, target.most)),
            Some(_) => Ok(()),
            None => Err(SourceError::Protocol {
                what: target.what.clone(),
                message: "the server does not tell its length, so that a cut could not be noticed".to_owned(),
            }),
        }
    }

    /// Fetches a file to `to`, which must not exist.
    ///
    /// # Guarantees
    /// `to` appears when all bytes are there and have the checksum, if one is known; never before. After an error the
    /// bytes that came are kept for the next start, unless they were wrong.
    pub(super) async fn fetch(&self, target: &mut Target<'_>, to: &Path) -> Result<()> {
        let mut changes = 0;
        loop {
            if target.size.is_none() {
                self.probe(target).await?;
            }
            let size = target.size.unwrap_or_default();
            let partial = Partial::open(to, &target.identity(), size, self.chunk)?;
            self.meter.found(partial.done());
            let filled = match self.fill(target, &partial).await {
                Ok(Filled::NoRanges) => {
                    self.meter.lost(partial.done());
                    partial.restart_whole()?;
                    self.fill(target, &partial).await
                }
                other => other,
            };
            match filled {
                Ok(Filled::Complete) => {}
                Ok(Filled::Changed) if target.digest.is_none() && changes < CHANGES => {
                    changes += 1;
                    tracing::warn!(what = %target.what, "the file changed on the server: starting over");
                    self.meter.lost(partial.done());
                    partial.discard();
                    (target.size, target.validator) = (None, None);
                    continue;
                }
                Ok(Filled::Changed | Filled::NoRanges) => {
                    self.meter.lost(partial.done());
                    partial.discard();
                    return Err(SourceError::Corrupt {
                        file: target.what.clone(),
                        message: "the server sends another file than it announced".to_owned(),
                    });
                }
                Err(error) => {
                    // The error that stopped the transfer matters more than one of keeping its bytes.
                    let _ = partial.save();
                    return Err(error);
                }
            }
            if let Some(digest) = &target.digest
                && let Err(found) = digest.check(&partial.path())?
            {
                self.meter.lost(partial.done());
                // Old bytes may be what is wrong: worth one more try from nothing.
                let again = partial.resumed;
                partial.discard();
                if again {
                    tracing::warn!(what = %target.what, "the checksum is wrong after a resume: starting over");
                    continue;
                }
                return Err(SourceError::Corrupt {
                    file: target.what.clone(),
                    message: format!("its checksum is {found}, but {} was announced", digest.hex()),
                });
            }
            return partial.finish();
        }
    }

    /// Brings all chunks of a file.
    async fn fill(&self, target: &Target<'_>, partial: &Partial) -> Result<Filled> {
        let chunks = stream::iter(0..partial.chunks()).map(|index| self.chunk(target, partial, index));
        let mut chunks = chunks.buffer_unordered(RANGES);
        while let Some(filled) = chunks.next().await {
            match filled? {
                Filled::Complete => {}
                // The other chunks' connections end with the stream.
                other => return Ok(other),
            }
        }
        Ok(Filled::Complete)
    }

    async fn chunk(&self, target: &Target<'_>, partial: &Partial, index: usize) -> Result<Filled> {
        retrying(&self.retry, &target.what, async |progress| self.attempt(target, partial, index, progress).await).await
    }

    /// One request for what a chunk lacks.
    async fn attempt(
        &self,
        target: &Target<'_>,
        partial: &Partial,
        index: usize,
        progress: &mut u64,
    ) -> std::result::Result<Filled, Failure> {
        let (start, end) = partial.missing(index);
        if start == end {
            return Ok(Filled::Complete);
        }
        // Closed never: the semaphore lives as long as the transfer.
        let _slot = self.slots.acquire().await.map_err(|_| Failure::passing("stopped"))?;
        let whole = partial.chunks() == 1;
        let mut headers: Vec<(HeaderName, String)> = Vec::new();
        if !(whole && start == 0) {
            headers.push((header::RANGE, format!("bytes={start}-{}", end - 1)));
            if let (Some(validator), None) = (&target.validator, &target.digest) {
                // A date is sent as it came, a tag in quotes.
                let dated = validator.ends_with("GMT");
                headers.push((header::IF_RANGE, if dated { validator.clone() } else { format!("\"{validator}\"") }));
            }
        }
        let mut answer = self.client.get(&target.url, &headers).await?;
        if answer.status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(Filled::Changed);
        }
        (target.judge)(&answer)?;
        if Self::differs(target, &answer) {
            return Ok(Filled::Changed);
        }
        match (answer.status, answer.range()) {
            (StatusCode::PARTIAL_CONTENT, Some((first, total))) if first == start && Some(total) == target.size => {}
            (StatusCode::PARTIAL_CONTENT, _) => return Ok(Filled::Changed),
            _ if !whole => return Ok(Filled::NoRanges),
            _ => {
                self.meter.lost(start);
                partial.restart(index);
            }
        }
        while let Some(bytes) = answer.chunk().await? {
            let (at, end) = partial.missing(index);
            if bytes.len() as u64 > end - at {
                return Ok(Filled::Changed);
            }
            partial.write(index, &bytes)?;
            *progress += bytes.len() as u64;
            self.meter.got(bytes.len() as u64);
        }
        match partial.missing(index) {
            (at, end) if at == end => Ok(Filled::Complete),
            (at, end) => Err(Failure::passing(format!("the connection ended {} bytes early", end - at))),
        }
    }

    /// Whether an answer says of itself that it is another file than the one that is fetched.
    fn differs(target: &Target<'_>, answer: &Answer) -> bool {
        match &target.digest {
            // The hub's own tag is the checksum; a content network's is something else.
            Some(digest) => {
                answer.header("x-linked-etag").and_then(Digest::from_etag).is_some_and(|tag| tag != *digest)
            }
            None => match (&target.validator, answer.etag().or_else(|| answer.header("last-modified"))) {
                (Some(validator), Some(tag)) => validator != tag,
                _ => false,
            },
        }
    }
}
