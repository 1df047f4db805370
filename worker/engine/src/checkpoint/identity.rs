//! What a checkpoint is called, under which licence it comes, and which content it has.

use std::{fs::File, io::Read, path::Path};

use sha2::{Digest, Sha256};

use super::store::SourceFile;
use crate::artifact::hex;

/// Files beside the weights that change what a model answers.
pub(super) const SIDE_FILES: [&str; 7] = [
    super::hugging_face::CONFIG,
    super::hugging_face::GENERATION_CONFIG,
    super::quantized::HF_QUANT_CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// Front matter is at the head of a README; more is not read.
const README_HEAD: u64 = 64 << 10;
/// Hashed between two releases of the pages that were read for it; a multiple of every page size.
const CHUNK: usize = 8 << 20;

/// SHA-256 over the name, size and content of every file, in the order of the names.
///
/// The disk reads ahead of the hash, and pages are given back behind it: hashing a checkpoint larger than memory leaves
/// nothing resident.
pub(super) fn revision<'a>(files: impl Iterator<Item = &'a SourceFile>) -> String {
    let mut files: Vec<&SourceFile> = files.collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hash = Sha256::new();
    for file in files {
        hash.update((file.name.len() as u64).to_le_bytes());
        hash.update(&file.name);
        hash.update((file.map.len() as u64).to_le_bytes());
        for (i, chunk) in file.map.chunks(CHUNK).enumerate() {
            // The disk reads on while this chunk is hashed.
            let next = (i + 1) * CHUNK;
            file.map.prefetch(next, CHUNK.min(file.map.len().saturating_sub(next)));
            hash.update(chunk);
            file.map.release(i * CHUNK, chunk.len());
        }
    }
    hex(&hash.finalize())
}

/// A directory's name. In the cache of Hugging Face's own client that is a commit; the model is named two levels up.
pub(super) fn directory_name(directory: &Path) -> String {
    let full = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let parent = full.parent().filter(|parent| name(parent) == "snapshots").and_then(Path::parent);
    match parent.map(name).as_deref().and_then(|cached| cached.strip_prefix("models--")) {
        Some(model) => model.replacen("--", "/", 1),
        None => name(&full),
    }
}

/// A declared licence in the spelling that comparisons use: trimmed, lower-case. `None` when nothing is left.
pub(super) fn canonical_licence(declared: &str) -> Option<String> {
    Some(declared.trim().to_lowercase()).filter(|licence| !licence.is_empty())
}

/// The licence in the front matter of a directory's README, if it declares one.
pub(super) fn readme_licence(directory: &Path) -> Option<String> {
    let mut head = Vec::new();
    File::open(directory.join("README.md")).ok()?.take(README_HEAD).read_to_end(&mut head).ok()?;
    licence(&String::from_utf8_lossy(&head))
}

/// `license` of the front matter, or `license_name` where that says `other`.
fn licence(readme: &str) -> Option<String> {
    let mut lines = readme.lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let front: Vec<&str> = lines.take_while(|line| line.trim_end() != "---").collect();
    let field = |key: &str| {
        let value = front.iter().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        let value = value.trim().trim_matches(['"', '\'']);
        canonical_licence(value)
    };
    match field("license") {
        Some(licence) if licence == "other" => field("license_name").or(Some(licence)),
        licence => licence,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::licence;

    #[rstest]
    #[case("---\nlicense: apache-2.0\n---\n# Model", Some("apache-2.0"))]
    #[case("---\nlanguage: en\nlicense: 'MIT'\n---\n", Some("mit"))]
    #[case("---\nlicense: other\nlicense_name: llama3.3\n---\n", Some("llama3.3"))]
    #[case("---\nlicense: other\n---\n", Some("other"))]
    #[case("---\nlanguage: en\n---\nlicense: mit\n", None)]
    #[case("license: mit\n", None)]
    #[case("", None)]
    fn the_licence_is_read_from_the_front_matter(#[case] readme: &str, #[case] expected: Option<&str>) {
        assert_eq!(licence(readme).as_deref(), expected);
    }
}
