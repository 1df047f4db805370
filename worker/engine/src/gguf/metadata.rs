//! The key-value section of a new GGUF file.
//!
//! A GGUF source keeps all it says, in the widths in which it says it, but for what the new file is. For a directory the
//! keys are those that llama.cpp's converter writes for these families.

use std::{fs::File, io::Read, path::Path};

use super::{FileType, Importance, vocabulary, writer::Entry};
use crate::{Architecture, Result, RopeScaling, checkpoint::Checkpoint};

/// Version of the block formats.
const QUANTIZATION_VERSION: u32 = 2;
/// Front matter is at the head of a README; more is not read.
const README_HEAD: u64 = 64 << 10;

/// All entries of the file.
pub(super) fn entries(
    checkpoint: &Checkpoint,
    file_type: FileType,
    importance: Option<&Importance>,
) -> Result<Vec<(String, Entry)>> {
    let mut entries = match checkpoint.gguf_metadata() {
        Some(_) => passed_on(checkpoint),
        None => from_directory(checkpoint)?,
    };
    let mut add = |key: &str, entry| entries.push((key.to_owned(), entry));
    add("general.file_type", Entry::unsigned(file_type.number()));
    add("general.quantization_version", Entry::unsigned(QUANTIZATION_VERSION));
    if let Some(importance) = importance {
        add("quantize.imatrix.entries_count", Entry::unsigned(importance.len() as u32));
    }
    Ok(entries)
}

/// What a GGUF source says, without what is true of that file alone: its type, how it was quantized, how it is laid out.
fn passed_on(checkpoint: &Checkpoint) -> Vec<(String, Entry)> {
    let own = |key: &str| {
        matches!(key, "general.file_type" | "general.quantization_version" | "general.alignment")
            || key.starts_with("quantize.imatrix.")
            || key.starts_with("split.")
    };
    let kept = checkpoint.gguf_entries().filter(|(key, _)| !own(key));
    kept.map(|(key, bytes)| (key.to_owned(), Entry::stored(bytes))).collect()
}

fn from_directory(checkpoint: &Checkpoint) -> Result<Vec<(String, Entry)>> {
    let config = checkpoint.config();
    let architecture = match config.architecture {
        // A Mistral is a Llama with a window to llama.cpp.
        Architecture::Llama | Architecture::Mistral => "llama",
        Architecture::Qwen2 => "qwen2",
        Architecture::Qwen3 => "qwen3",
    };
    let mut entries = vec![
        ("general.architecture".to_owned(), Entry::text(architecture)),
        ("general.type".to_owned(), Entry::text("model")),
        ("general.name".to_owned(), Entry::text(checkpoint.name())),
    ];
    if let Some(licence) = checkpoint.licence() {
        entries.push(("general.license".to_owned(), Entry::text(licence)));
    }
    entries.extend(base_models(&readme_head(checkpoint.directory())));
    let mut add = |key: &str, entry| entries.push((format!("{architecture}.{key}"), entry));
    // `check_config` bounds every one of these far below 2^32.
    let mut count = |key: &str, value: usize| add(key, Entry::unsigned(value as u32));
    count("block_count", config.layers);
    count("context_length", config.max_positions);
    count("embedding_length", config.hidden);
    count("feed_forward_length", config.intermediate);
    count("attention.head_count", config.heads);
    count("attention.head_count_kv", config.kv_heads);
    count("attention.key_length", config.head_dim);
    count("attention.value_length", config.head_dim);
    count("rope.dimension_count", config.head_dim);
    count("vocab_size", config.vocab);
    if let Some(window) = config.sliding_window {
        count("attention.sliding_window", window);
    }
    add("attention.layer_norm_rms_epsilon", Entry::float(config.rms_epsilon));
    add("rope.freq_base", Entry::float(config.rope_theta));
    if let RopeScaling::Linear { factor } = config.rope_scaling {
        add("rope.scaling.type", Entry::text("linear"));
        add("rope.scaling.factor", Entry::float(factor));
    }
    entries.extend(vocabulary::entries(checkpoint)?);
    Ok(entries)
}

fn readme_head(directory: &Path) -> String {
    let mut head = Vec::new();
    // A directory without a README names no base model.
    let read = File::open(directory.join("README.md")).and_then(|file| file.take(README_HEAD).read_to_end(&mut head));
    if read.is_err() { String::new() } else { String::from_utf8_lossy(&head).into_owned() }
}

/// `base_model` of a README's front matter, one or a list, as `general.base_model.*`.
fn base_models(readme: &str) -> Vec<(String, Entry)> {
    let mut lines = readme.lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return Vec::new();
    }
    let front: Vec<&str> = lines.take_while(|line| line.trim_end() != "---").collect();
    let Some(at) = front.iter().position(|line| line.starts_with("base_model:")) else { return Vec::new() };
    let plain = |text: &str| text.trim().trim_matches(['"', '\'']).to_owned();
    let inline = front[at]["base_model:".len()..].trim().trim_start_matches('[').trim_end_matches(']');
    let below = front[at + 1..].iter().map_while(|line| line.trim_start().strip_prefix("- "));
    let models: Vec<String> = inline.split(',').chain(below).map(plain).filter(|model| !model.is_empty()).collect();
    let mut entries = Vec::new();
    if !models.is_empty() {
        entries.push(("general.base_model.count".to_owned(), Entry::unsigned(models.len() as u32)));
    }
    for (i, model) in models.iter().enumerate() {
        let (organization, name) = model.split_once('/').unwrap_or(("", model));
        let mut add = |key: &str, value: &str| {
            entries.push((format!("general.base_model.{i}.{key}"), Entry::text(value)));
        };
        add("name", name);
        if !organization.is_empty() {
            add("organization", organization);
            add("repo_url", &format!("https://huggingface.co/{model}"));
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::none("---\nlicense: mit\n---\n", &[])]
    #[case::no_front_matter("base_model: a/b\n", &[])]
    #[case::one("---\nbase_model: Qwen/Qwen3-8B\nlicense: mit\n---\n", &[("Qwen", "Qwen3-8B")])]
    #[case::quoted("---\nbase_model: \"a/b\"\n---\n", &[("a", "b")])]
    #[case::inline("---\nbase_model: [a/b, 'c/d']\n---\n", &[("a", "b"), ("c", "d")])]
    #[case::list("---\nbase_model:\n- a/b\n  - c/d\ntags:\n- x\n---\n", &[("a", "b"), ("c", "d")])]
    fn base_models_are_carried_over(#[case] readme: &str, #[case] expected: &[(&str, &str)]) {
        let found = base_models(readme);
        let has = |key: String, entry: Entry| found.contains(&(key, entry));
        assert_eq!(found.len(), if expected.is_empty() { 0 } else { 1 + 3 * expected.len() });
        for (i, (organization, name)) in expected.iter().enumerate() {
            assert!(has("general.base_model.count".into(), Entry::unsigned(expected.len() as u32)));
            assert!(has(format!("general.base_model.{i}.organization"), Entry::text(organization)));
            assert!(has(format!("general.base_model.{i}.name"), Entry::text(name)));
        }
    }
}
