//! `hf://OWNER/NAME`: what the repository is, its small files, the licence, and only then the weights.
//!
//! ```text
//! commit pinned and complete in the cache ---------------------------> done, without network
//! model information -> small files -> licence, of its bases too -> consent -> weights -> record -> done
//!                                        a description is all that is wanted -> done
//! hub out of reach: the commit that the branch meant last, if complete -> done, with a warning
//! ```

use std::{collections::BTreeMap, fs, path::Path};

use futures_util::{StreamExt, stream};

use super::{
    Context, Located, Result, SourceError,
    cache::{Found, Place, Record, is_commit},
    digest::Digest,
    http::Answer,
    hub::{self, RemoteFile, Repository},
    prune::Pruned,
    retry::Retry,
    select,
    transfer::{Target, Transfer},
};
use crate::licence::{Base, Licence, MAX_BASES};

/// Files at once.
const FILES: usize = 4;

/// Which repository, at which revision, and which file of it when not the whole checkpoint.
pub(super) struct Wanted<'a> {
    pub(super) id: &'a str,
    pub(super) revision: &'a str,
    pub(super) file: Option<&'a str>,
}

/// Fetches a model, or finds it in the cache.
pub(super) async fn fetch(context: &mut Context<'_, '_>, wanted: &Wanted<'_>) -> Result<Located> {
    let place = Place::new(&context.settings.cache, wanted.id);
    let _lock = place.lock(context.meter)?;
    let pruned = context.settings.without_weights;
    if is_commit(wanted.revision)
        && let Some(found) = place.found(wanted.revision, wanted.file, pruned)
    {
        return from_cache(context, &place, found);
    }
    let known = place.commit_of(wanted.revision).and_then(|commit| place.found(&commit, wanted.file, pruned));
    let repository = match (info(context, wanted, known.is_some()).await, known) {
        (Ok(repository), _) => repository,
        (Err(error @ SourceError::Unreachable { .. }), Some(found)) => {
            tracing::warn!(%error, "the hub cannot be reached: {} is taken as it was when it was fetched last, commit {}",
                wanted.id, found.record.commit);
            return from_cache(context, &place, found);
        }
        (Err(error), _) => return Err(error),
    };
    let commit = repository.commit.clone();
    if let Some(found) = place.found(&commit, wanted.file, pruned) {
        place.remember(wanted.revision, &commit)?;
        return from_cache(context, &place, found);
    }

    let base = &context.settings.endpoint.url;
    let small = select::small(&repository, wanted.file)?;
    let mut files = fetch_all(context, &place, &repository, small, select::MAX_SMALL).await?;
    let snapshot = place.snapshot(&commit);
    let index = fs::read(snapshot.join(select::INDEX)).ok().filter(|_| repository.file(select::INDEX).is_some());
    let weights = select::weights(&repository, base, wanted.file, index.as_deref())?;

    let mut declared = Licence::declared_in(&repository.card, &snapshot);
    let only = (weights.len() == 1).then(|| weights[0].path.clone()).filter(|path| select::is_gguf(path));
    if let Some(file) = &only {
        declared = declared.with(&gguf_licence(context, &repository, file).await?);
    }
    let bases = bases(context, &declared).await;
    let licence = declared.with_bases(&bases);
    (context.consent)(&licence)?;
    if context.settings.description && only.is_none() {
        let (label, commit) = (wanted.id.to_owned(), Some(commit));
        return Ok(Located { path: snapshot, licence, label, commit, pruned: None, entry: None });
    }

    files.extend(fetch_all(context, &place, &repository, weights, u64::MAX).await?);
    let record = Record {
        repository: wanted.id.to_owned(),
        commit: commit.clone(),
        file: wanted.file.map(str::to_owned),
        files,
        card: repository.card,
        bases,
    };
    let located = locate(&place, &record, only.as_deref(), None)?;
    // What came must come under what was agreed to.
    if located.licence != licence {
        (context.consent)(&located.licence)?;
    }
    place.complete(&record)?;
    place.remember(wanted.revision, &commit)?;
    Ok(located)
}

/// Asks the hub; briefly when the cache has an answer as well.
async fn info(context: &Context<'_, '_>, wanted: &Wanted<'_>, cached: bool) -> Result<Repository> {
    let what = format!("{} at {}", wanted.id, wanted.revision);
    if context.settings.endpoint.offline {
        let reason = "HF_HUB_OFFLINE is set, and the cache does not have it".to_owned();
        return Err(SourceError::Unreachable { what, reason, attempts: 0 });
    }
    context.meter.say(&format!("asking for {what}"));
    let mut retry = context.settings.retry;
    if cached {
        retry = Retry { attempts: 2, longest_wait: retry.most, ..retry };
    }
    hub::info(context.client, &context.settings.endpoint, &retry, wanted.id, wanted.revision).await
}

fn from_cache(context: &mut Context<'_, '_>, place: &Place, found: Found) -> Result<Located> {
    let ggufs = found.record.files.iter().find(|(path, _)| select::is_gguf(path));
    let located = locate(place, &found.record, ggufs.map(|(path, _)| path.as_str()), found.pruned)?;
    (context.consent)(&located.licence)?;
    Ok(located)
}

/// The path of a complete snapshot and the licence of all that is in it.
fn locate(place: &Place, record: &Record, gguf: Option<&str>, pruned: Option<Pruned>) -> Result<Located> {
    let snapshot = place.snapshot(&record.commit);
    let mut declared = Licence::declared_in(&record.card, &snapshot);
    let path = match gguf {
        None => snapshot.clone(),
        Some(file) if pruned.is_some() => place.head(record, file),
        Some(file) => snapshot.join(file),
    };
    if gguf.is_some() {
        declared = declared.with(&Licence::declared_at(&path).map_err(SourceError::io(&path))?);
    }
    let licence = declared.with_bases(&record.bases);
    let entry = Some(place.entry(record)?);
    let (label, commit) = (record.repository.clone(), Some(record.commit.clone()));
    Ok(Located { path, licence, label, commit, pruned, entry })
}

/// The licences of the models that this one was made of, as their own cards declare them; none for what cannot be learned.
async fn bases(context: &Context<'_, '_>, declared: &Licence) -> Vec<Base> {
    let mut found = Vec::new();
    for name in declared.base_models().take(MAX_BASES) {
        let settings = context.settings;
        // Not worth waiting for long: there is another way to go on.
        let retry = Retry { attempts: 2, longest_wait: settings.retry.most, ..settings.retry };
        let card = if modelprofile_api::ModelUri::parse(&format!("hf://{name}")).is_ok() {
            hub::info(context.client, &settings.endpoint, &retry, name, "main").await.map(|base| base.card)
        } else {
            Err(SourceError::Config("no name of a repository".to_owned()))
        };
        let licences = match card {
            Ok(card) => Licence::from_card(&card).claims().iter().map(|claim| claim.id.clone()).collect(),
            Err(error) => {
                tracing::warn!(base = name, %error, "the licence of a base model could not be looked up: it counts by its name, or as unknown");
                Vec::new()
            }
        };
        found.push(Base { model: name.to_owned(), licences });
    }
    found
}

/// The licence that a GGUF file of the repository names in its head, which may be another one than its card's.
async fn gguf_licence(context: &Context<'_, '_>, repository: &Repository, file: &str) -> Result<Licence> {
    let endpoint = &context.settings.endpoint;
    let what = format!("{}/{file}", repository.id);
    let url = hub::resolve(endpoint, &repository.id, &repository.commit, file)?;
    let judge = |answer: &Answer| hub::judge(answer, context.client, endpoint, &repository.id, &what);
    super::web::head(context, &url, &what, &judge).await
}

/// Fetches files that are not there yet, none longer than `most` bytes, and links them into the snapshot; their names and sizes.
async fn fetch_all(
    context: &Context<'_, '_>,
    place: &Place,
    repository: &Repository,
    files: Vec<RemoteFile>,
    most: u64,
) -> Result<Vec<(String, u64)>> {
    let transfer = context.transfer();
    files.iter().filter_map(|file| file.size).for_each(|size| context.meter.expect(size));
    let transfer = &transfer;
    // Equal files share a blob, which only one connection may fill: they go one after the other. So do files whose checksum
    // nobody names, since any two of them may be equal.
    let mut groups: BTreeMap<String, Vec<RemoteFile>> = BTreeMap::new();
    for file in files {
        let key = file.digest.as_ref().map_or("", Digest::hex).to_owned();
        groups.entry(key).or_default().push(file);
    }
    let group = |files: Vec<RemoteFile>| async move {
        let mut done = Vec::with_capacity(files.len());
        for file in files {
            done.push(fetch_one(context, transfer, place, repository, file, most).await?);
        }
        Ok::<_, SourceError>(done)
    };
    let mut fetched = stream::iter(groups.into_values()).map(group).buffer_unordered(FILES);
    let mut done = Vec::new();
    while let Some(files) = fetched.next().await {
        done.extend(files?);
    }
    done.sort();
    Ok(done)
}

async fn fetch_one(
    context: &Context<'_, '_>,
    transfer: &Transfer<'_, '_>,
    place: &Place,
    repository: &Repository,
    file: RemoteFile,
    most: u64,
) -> Result<(String, u64)> {
    let endpoint = &context.settings.endpoint;
    let what = format!("{}/{}", repository.id, file.path);
    let judge = |answer: &Answer| hub::judge(answer, context.client, endpoint, &repository.id, &what);
    let mut target = Target {
        what: what.clone(),
        url: hub::resolve(endpoint, &repository.id, &repository.commit, &file.path)?,
        size: file.size,
        most,
        digest: file.digest.clone(),
        validator: None,
        judge: &judge,
    };
    if target.size.is_none() || target.digest.is_none() {
        transfer.probe(&mut target).await?;
        context.meter.expect(if file.size.is_none() { target.size.unwrap_or_default() } else { 0 });
    }
    let size = target.size.unwrap_or_default();
    let name = match (&target.digest, &target.validator) {
        (Some(digest), _) => digest.hex().to_owned(),
        // A mirror that names no checksum: the tag, the commit and the path tell versions apart.
        (None, tag) => {
            let tag = tag.as_deref().unwrap_or_default();
            super::digest::name_of(&format!("{}\n{}\n{tag}", repository.commit, file.path))
        }
    };
    let blob = place.blob(&name)?;
    if is_there(&blob, size) {
        context.meter.found(size);
    } else {
        transfer.fetch(&mut target, &blob).await?;
    }
    place.link(&repository.commit, &file.path, &name)?;
    Ok((file.path, size))
}

/// Blobs get their name after they were verified, so the length is enough to trust one.
fn is_there(blob: &Path, size: u64) -> bool {
    match fs::metadata(blob) {
        Ok(found) if found.len() == size => true,
        // Cut by something else than this program: of no use.
        Ok(_) => {
            let _ = fs::remove_file(blob);
            false
        }
        Err(_) => false,
    }
}
