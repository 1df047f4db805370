//! Which files of a repository are needed: what a checkpoint is made of, its card and its licence, and nothing else.

use std::path::Path;

use super::{
    Result, SourceError,
    error::too_large,
    hub::{RemoteFile, Repository},
};

/// Small files by name. Those of tokenizers other than `tokenizer.json` are kept for tools that read the directory too.
const SMALL: [&str; 17] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "README.md",
    "USE_POLICY.md",
    INDEX,
];
/// Beginnings of licence files' names, in upper case.
const LICENCES: [&str; 4] = ["LICENSE", "LICENCE", "NOTICE", "COPYING"];
/// Which tensor is in which shard.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// The weights of a model in one file.
const SINGLE: &str = "model.safetensors";
/// A "small" file beyond this is not what its name says; the largest vocabularies take a third of it.
pub(super) const MAX_SMALL: u64 = 128 << 20;

/// The files to fetch before the licence is known to be accepted: everything but weights. With `file` given, what describes
/// that file.
///
/// # Errors
/// [`SourceError::Selection`] for one beyond [`MAX_SMALL`]. Where the listing names no sizes, the transfer finds out.
pub(super) fn small(repository: &Repository, file: Option<&str>) -> Result<Vec<RemoteFile>> {
    let wanted = |path: &str| {
        let licence = LICENCES.iter().any(|start| path.to_ascii_uppercase().starts_with(start));
        // Licences as pictures or archives are for people.
        let text = !path.contains('.') || [".md", ".txt", ".MD", ".TXT"].iter().any(|end| path.ends_with(end));
        !path.contains('/')
            && match file {
                None => SMALL.contains(&path) || (licence && text),
                Some(_) => path == "README.md" || path == "USE_POLICY.md" || (licence && text),
            }
    };
    let files: Vec<RemoteFile> = repository.files.iter().filter(|file| wanted(&file.path)).cloned().collect();
    match files.iter().find(|file| file.size.is_some_and(|size| size > MAX_SMALL)) {
        Some(file) => Err(too_large(&format!("{}/{}", repository.id, file.path), MAX_SMALL)),
        None => Ok(files),
    }
}

/// The weights: `file` if given, else the shards that `index` names, else the one safetensors file, else the only GGUF file.
///
/// # Errors
/// [`SourceError::Selection`] lists what there is and says how to name one.
pub(super) fn weights(
    repository: &Repository,
    base: &str,
    file: Option<&str>,
    index: Option<&[u8]>,
) -> Result<Vec<RemoteFile>> {
    let id = &repository.id;
    let find = |path: &str| {
        let missing = || SourceError::Selection(format!("{id} at {} has no file {path}", repository.commit));
        repository.file(path).cloned().ok_or_else(missing)
    };
    if let Some(file) = file {
        return Ok(vec![find(file)?]);
    }
    if let Some(index) = index {
        let shards = shards(index).map_err(|message| SourceError::Selection(format!("{id}: {INDEX}: {message}")))?;
        return shards.iter().map(|shard| find(shard)).collect();
    }
    if let Some(single) = repository.file(SINGLE) {
        return Ok(vec![single.clone()]);
    }
    let ggufs: Vec<&RemoteFile> = repository.files.iter().filter(|file| is_gguf(&file.path)).collect();
    match ggufs[..] {
        [] => Err(SourceError::Selection(format!(
            "{id} has neither {SINGLE} nor {INDEX} nor a .gguf file; other formats are not read: look for a repository of the \
             same model that has safetensors"
        ))),
        [only] => Ok(vec![only.clone()]),
        _ => {
            let names: Vec<&str> = ggufs.iter().take(24).map(|file| file.path.as_str()).collect();
            Err(SourceError::Selection(format!(
                "{id} has {} GGUF files; name one by its address, such as {base}/{id}/resolve/{}/{}; there are: {}{}",
                ggufs.len(),
                repository.commit,
                names[0],
                names.join(", "),
                if ggufs.len() > names.len() { ", ..." } else { "" }
            )))
        }
    }
}

/// Whether a path names a file of weights.
pub(super) fn is_weights(path: &str) -> bool {
    is_gguf(path) || path.ends_with(".safetensors")
}

/// Whether a path names a GGUF file.
pub(super) fn is_gguf(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
}

/// The files that a shard index names, each once, sorted.
fn shards(index: &[u8]) -> std::result::Result<Vec<String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|error| error.to_string())?;
    let files: std::collections::BTreeSet<String> = index.weight_map.into_values().collect();
    match files.iter().find(|file| file.contains('/') || !file.ends_with(".safetensors")) {
        Some(file) => Err(format!("{file} is no name of a shard")),
        None if files.is_empty() => Err("names no shard".to_owned()),
        None => Ok(files.into_iter().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(paths: &[&str]) -> Repository {
        let file = |path: &&str| RemoteFile { path: (*path).to_owned(), size: Some(1), digest: None };
        Repository {
            id: "o/n".into(),
            commit: "c0ffee0".into(),
            card: serde_json::Value::Null,
            files: paths.iter().map(file).collect(),
        }
    }

    fn names(files: Result<Vec<RemoteFile>>) -> std::result::Result<Vec<String>, String> {
        files.map(|files| files.into_iter().map(|file| file.path).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn only_what_a_checkpoint_is_made_of_is_fetched() {
        let repository = repository(&[
            "README.md",
            "LICENSE",
            "LICENSE.txt",
            "LICENSE.pdf",
            "config.json",
            "tokenizer.json",
            "pytorch_model.bin",
            "consolidated.safetensors",
            "original/params.json",
            "model-1.safetensors",
            "model-2.safetensors",
            INDEX,
            "images/a.png",
            "training_args.bin",
            "onnx/config.json",
        ]);
        let small = names(small(&repository, None)).unwrap();
        assert_eq!(small, ["README.md", "LICENSE", "LICENSE.txt", "config.json", "tokenizer.json", INDEX]);
        let index =
            br#"{"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}}"#;
        let weights = names(weights(&repository, "https://h", None, Some(index))).unwrap();
        assert_eq!(weights, ["model-1.safetensors", "model-2.safetensors"]);
    }

    #[test]
    fn a_repository_of_several_gguf_files_asks_for_one_by_its_address() {
        let several = repository(&["README.md", "a-Q4_0.gguf", "a-Q8_0.gguf"]);
        let error = names(weights(&several, "https://h", None, None)).unwrap_err();
        assert!(
            error.contains("https://h/o/n/resolve/c0ffee0/a-Q4_0.gguf") && error.contains("a-Q8_0.gguf"),
            "{error}"
        );
        assert_eq!(names(weights(&several, "https://h", Some("a-Q8_0.gguf"), None)).unwrap(), ["a-Q8_0.gguf"]);
        assert_eq!(names(weights(&repository(&["a.gguf"]), "https://h", None, None)).unwrap(), ["a.gguf"]);
        assert!(names(weights(&repository(&["a.bin"]), "https://h", None, None)).unwrap_err().contains("safetensors"));
    }

    #[test]
    fn an_index_that_names_other_files_is_refused() {
        let repository = repository(&["model-1.safetensors", INDEX]);
        for index in [
            r#"{"weight_map": {"a": "../x.safetensors"}}"#,
            r#"{"weight_map": {}}"#,
            "{",
            r#"{"weight_map": {"a": "b.bin"}}"#,
        ] {
            assert!(weights(&repository, "https://h", None, Some(index.as_bytes())).is_err(), "{index}");
        }
        let missing = br#"{"weight_map": {"a": "model-9.safetensors"}}"#;
        assert!(
            names(weights(&repository, "https://h", None, Some(missing))).unwrap_err().contains("has no file model-9")
        );
    }
}
