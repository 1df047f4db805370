//! Where an engine that does not quantize finds the files of a profile.
//!
//! This project's worker makes every profile out of one checkpoint. The other engines load files as they are, so a ladder of
//! formats that no single checkpoint holds needs a checkpoint per profile: `{profile}` and `{format}` in the path of a
//! `pvc://` or `file://` URI stand for the profile's name and for its weight format, as the manifest writes them.
//!
//! What is fetched is fetched by the prepare Job, which reads the licence before, into the layout of the hub's own clients;
//! the engine then reads it without network. So its path must be known: a commit, not a branch.

use modelprofile_api::{Cache, ModelUri, Profile};

use super::super::digest::sha256;
use super::{Refused, Subject};

/// Where the cache is mounted.
pub const CACHE: &str = "/cache";
/// Where the claims of `pvc://` URIs are mounted, each under its name.
pub const VOLUMES: &str = "/volumes";

/// The hub's clients find what the prepare Job has fetched, and ask nobody else.
pub(super) const HUB_ENV: [(&str, &str); 2] = [("HF_HOME", CACHE), ("HF_HUB_OFFLINE", "1")];

/// Address of files in repositories of the hub.
const HUB: &str = "https://huggingface.co/";
const PLACEHOLDERS: [&str; 2] = ["{profile}", "{format}"];

/// Whether every profile has a checkpoint of its own.
pub(super) fn is_per_profile(uri: &str) -> bool {
    PLACEHOLDERS.iter().any(|placeholder| uri.contains(placeholder))
}

/// Whether it is fetched from somewhere, rather than there already.
pub(in super::super) fn is_fetched(uri: &ModelUri) -> bool {
    matches!(uri, ModelUri::HuggingFace { .. } | ModelUri::Https(_))
}

/// Whether what is prepared outlives the pod that prepared it.
pub(in super::super) fn is_kept(cache: &Cache) -> bool {
    cache.persistent_volume_claim.is_some() || cache.host_path.is_some()
}

/// What an engine loads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Loads {
    /// A directory as the hub has it.
    Directory,
    /// One GGUF file.
    File,
}

/// Refuses a ladder that one checkpoint can not serve. `needs` says which kind of checkpoint a profile is loaded from.
pub(super) fn check_ladder(subjects: &[Subject<'_>], needs: impl Fn(&Profile) -> String, refused: &mut Refused) {
    let Some((first, others)) = subjects.split_first() else { return };
    if is_per_profile(&first.spec().model.uri) {
        return;
    }
    let need = needs(first.profile());
    let Some(other) = others.iter().find(|other| needs(other.profile()) != need) else { return };
    refused.add(
        "spec.model.uri",
        format!(
            "{} loads `{}` from {need} and `{}` from {}, which are two checkpoints; write pvc://CLAIM/PATH with {{profile}} or \
             {{format}} in the path, which stands for the profile's name or weight format",
            first.spec().engine.kind.as_str(),
            first.profile().name,
            other.profile().name,
            needs(other.profile()),
        ),
    );
}

/// The path of a profile's checkpoint in the pod. A fault of the model itself is told once, not per profile.
pub(super) fn path(subject: &Subject<'_>, loads: Loads, refused: &mut Refused) -> String {
    let model = &subject.spec().model;
    let engine = subject.spec().engine.kind.as_str();
    let mut refuse = |path: &str, message: String| {
        if subject.index == 0 {
            refused.add(path, message);
        }
        String::new()
    };
    // Validation has read it before.
    let Ok(uri) = ModelUri::parse(&model.uri) else { return String::new() };
    if is_fetched(&uri) && !is_kept(&subject.spec().cache) {
        return refuse(
            "spec.cache",
            format!(
                "{engine} loads what the prepare Job has fetched, which a cache that lives as long as a pod loses; set \
                 persistentVolumeClaim or hostPath"
            ),
        );
    }
    match uri {
        ModelUri::HuggingFace { repository } => {
            if loads == Loads::File {
                let message = format!(
                    "{engine} loads one GGUF file; write {HUB}OWNER/NAME/resolve/COMMIT/FILE.gguf or pvc://CLAIM/FILE.gguf"
                );
                return refuse("spec.model.uri", message);
            }
            match model.revision.as_deref().filter(|revision| is_commit(revision)) {
                Some(commit) => snapshot(&repository, commit),
                None => refuse(
                    "spec.model.revision",
                    format!(
                        "required with {engine}, as a commit of 40 digits: pods that start at different times must load the \
                         same files"
                    ),
                ),
            }
        }
        ModelUri::PersistentVolumeClaim { claim, path } => {
            format!("{VOLUMES}/{claim}/{}", expand(&path.to_string_lossy(), subject.profile()))
        }
        ModelUri::File(path) => expand(&path.to_string_lossy(), subject.profile()),
        ModelUri::Https(url) => match (loads, file_name(&url)) {
            (Loads::Directory, _) => refuse(
                "spec.model.uri",
                format!("{engine} loads a directory, not one file; write hf://OWNER/NAME or pvc://CLAIM/PATH"),
            ),
            (Loads::File, None) => {
                refuse("spec.model.uri", format!("{engine} loads a file that ends with .gguf; write its address"))
            }
            (Loads::File, Some(_)) if is_per_profile(&url) => refuse(
                "spec.model.uri",
                "{profile} and {format} are for files on a volume; write pvc://CLAIM/PATH".to_owned(),
            ),
            (Loads::File, Some(file)) => match url.strip_prefix(HUB).map(|rest| rest.split('/').collect::<Vec<_>>()) {
                Some(parts) => match parts[..] {
                    [owner, name, "resolve", commit, ..] if is_commit(commit) => {
                        format!("{}/{}", snapshot(&format!("{owner}/{name}"), commit), parts[4..].join("/"))
                    }
                    _ => refuse(
                        "spec.model.uri",
                        format!(
                            "write {HUB}OWNER/NAME/resolve/COMMIT/{file} with a commit of 40 digits: pods that start at \
                                 different times must load the same file"
                        ),
                    ),
                },
                None => format!("{CACHE}/https/{}/{file}", sha256(&url)),
            },
        },
    }
}

fn snapshot(repository: &str, commit: &str) -> String {
    format!("{CACHE}/hub/models--{}/snapshots/{commit}", repository.replace('/', "--"))
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn file_name(url: &str) -> Option<&str> {
    let path = url.split(['?', '#']).next()?;
    path.rsplit('/').next().filter(|name| name.to_ascii_lowercase().ends_with(".gguf"))
}

fn expand(path: &str, profile: &Profile) -> String {
    path.replace("{profile}", &profile.name).replace("{format}", profile.weights.format.as_str())
}
