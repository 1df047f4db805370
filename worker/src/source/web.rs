//! `https://HOST/PATH.gguf`: a file from any web server.
//!
//! Nobody names a checksum for it, so what is held is its length and, over a resume, its entity tag or date. Its licence is in
//! its own head, which is read before the rest is asked for. An address is taken to mean the same bytes for ever: what is in the
//! cache is not asked for again.

use std::path::PathBuf;

use hyper::{Uri, header};

use super::{
    Context, Located, Result, SourceError,
    cache::lock,
    digest::name_of,
    http::Answer,
    prune::{self, Entry, Pruned},
    retry::{Failure, retrying},
    transfer::Target,
};
use crate::licence::{Licence, gguf};

/// Name of the record of a pruned file; its folder has one file.
const RECORD: &str = "file";
/// First bytes that are read to find the licence, quadrupled until the metadata that matters is inside.
const HEAD: usize = 64 << 10;
/// Metadata is never longer: the largest vocabularies take a quarter of it.
const MAX_HEAD: usize = 64 << 20;

/// Fetches the file, or finds it in the cache.
pub(super) async fn fetch(context: &mut Context<'_, '_>, url: &str) -> Result<Located> {
    let uri: Uri = url.parse().map_err(|_| SourceError::Config(format!("{url} is no URL")))?;
    let name = uri.path().rsplit('/').next().unwrap_or_default();
    if !super::select::is_gguf(name) || !super::hub::is_safe_path(name) {
        return Err(SourceError::Config(format!(
            "{url} does not name a .gguf file; a checkpoint of several files comes by hf://OWNER/NAME, or from a disk by \
             file:///PATH"
        )));
    }
    let folder = context.settings.cache.join("https").join(&name_of(url)[..32]);
    let path = folder.join(name);
    let _lock = lock(&folder, context.meter)?;
    let entry = || Entry::new(&folder, &folder, RECORD, vec![name.to_owned()]);
    if path.is_file() {
        return confirm(context, path, None, None, url, entry()?);
    }
    if context.settings.without_weights
        && let Some(pruned) = prune::load(&folder, RECORD)
    {
        let head = prune::head_of(&folder, RECORD, name);
        if head.is_file() {
            return confirm(context, head, None, Some(pruned), url, entry()?);
        }
    }
    if context.settings.endpoint.offline {
        return Err(SourceError::Config(format!("{url} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it")));
    }
    let judge = |answer: &Answer| judge(answer, url);
    let licence = head(context, &uri, url, &judge).await?.with_bases(&[]);
    (context.consent)(&licence)?;
    let mut target = Target {
        what: url.to_owned(),
        url: uri.clone(),
        size: None,
        most: u64::MAX,
        digest: None,
        validator: None,
        judge: &judge,
    };
    let transfer = context.transfer();
    transfer.probe(&mut target).await?;
    context.meter.expect(target.size.unwrap_or_default());
    transfer.fetch(&mut target, &path).await?;
    confirm(context, path, Some(licence), None, url, entry()?)
}

/// The licence that was agreed to `before`, if one was, must be the one of the file that is there.
fn confirm(
    context: &mut Context<'_, '_>,
    path: PathBuf,
    before: Option<Licence>,
    pruned: Option<Pruned>,
    url: &str,
    entry: Entry,
) -> Result<Located> {
    let licence = Licence::of_path(&path).map_err(SourceError::io(&path))?;
    if before.is_none_or(|before| before != licence) {
        (context.consent)(&licence)?;
    }
    Ok(Located { path, licence, label: url.to_owned(), commit: None, pruned, entry: Some(entry) })
}

/// Reads as much of the file's beginning as its licence needs; that of its bases is not in it.
pub(super) async fn head(
    context: &Context<'_, '_>,
    uri: &Uri,
    what: &str,
    judge: &(dyn Fn(&Answer) -> Result<()> + '_),
) -> Result<Licence> {
    let mut len = HEAD;
    loop {
        let range = [(header::RANGE, format!("bytes=0-{}", len - 1))];
        let bytes = retrying(&context.settings.retry, what, async |_| {
            let mut answer = context.client.get(uri, &range).await?;
            judge(&answer).map_err(Failure::Final)?;
            // A server without ranges sends everything; the rest is left unread.
            answer.bytes(len).await
        })
        .await?;
        match gguf::head(&bytes[..]) {
            Ok(head) if head.wants_more() && bytes.len() == len && len < MAX_HEAD => len *= 4,
            Ok(head) => return Ok(Licence::from_gguf(&head.fields)),
            Err(error) => {
                return Err(SourceError::Corrupt { file: what.to_owned(), message: format!("no GGUF file: {error}") });
            }
        }
    }
}

fn judge(answer: &Answer, url: &str) -> Result<()> {
    match answer.status.as_u16() {
        200 | 206 => Ok(()),
        401 | 403 => Err(SourceError::Config(format!(
            "{url}: the server wants a login ({}); download the file yourself and write file:///PATH",
            answer.status
        ))),
        404 | 410 => Err(SourceError::NotFound(format!("{url} does not exist; check spec.model.uri"))),
        status => Err(SourceError::Protocol { what: url.to_owned(), message: format!("unexpected status {status}") }),
    }
}
