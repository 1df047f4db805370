//! What an artifact costs in quality: measured once per artifact and text, kept beside it as `quality.json`, or under a name of
//! its own for another text than the worker's.
//!
//! ```text
//! Dataset -> tokens -> windows -> reference (BF16) and profiles -> Comparison -> MeasuredQuality -> quality.json
//! ```
//!
//! The figure is the artifact's: weights as stored, activations as the backend computes them, a BF16 KV cache. What a
//! narrower cache adds is the same for all profiles of a ladder; `modelprofile-worker evaluate --kv` shows it.

use std::{collections::HashSet, fs, io::Write, path::Path};

use anyhow::Context;
use modelprofile_api::MeasuredQuality;
use modelprofile_engine::{
    ModelConfig, WeightFormat,
    artifact::{Artifact, Progress, Store},
    checkpoint::Checkpoint,
    evaluate::{Comparison, Evaluator},
    model::ProfileWeights,
    text::{Text, Tokenizer},
};
use modelprofile_kernels::{Backend, GroupedActivations, KvFormat};
use sha2::{Digest, Sha256};

use crate::{hex::hex, outcome::Invalid};

/// The text that quality is measured on when the manifest names none.
const BUILT_IN: &str = include_str!("texts/evaluation.txt");
/// Name of the measured quality in an artifact's directory, for the text that comes with the worker.
pub const FILE: &str = "quality.json";
/// Tokens of a window where nobody says otherwise; what llama.cpp's perplexity tool takes too.
pub const WINDOW: usize = 512;

/// A text with the way it is cut and computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    name: String,
    text: String,
    window: usize,
    most_tokens: Option<usize>,
    activations: GroupedActivations,
}

impl Dataset {
    /// The text that comes with the worker.
    pub fn built_in() -> Self {
        Self::new("built-in", BUILT_IN)
    }

    /// A text under the name that users know it by, such as its URI.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
            window: WINDOW,
            most_tokens: None,
            activations: GroupedActivations::default(),
        }
    }

    /// In windows of this many tokens.
    #[must_use]
    pub fn with_window(mut self, tokens: usize) -> Self {
        self.window = tokens;
        self
    }

    /// Its first tokens alone.
    #[must_use]
    pub fn with_most_tokens(mut self, tokens: Option<usize>) -> Self {
        self.most_tokens = tokens;
        self
    }

    /// Scored with these activations of group-wise formats: the figures of others are not theirs.
    #[must_use]
    pub fn with_activations(mut self, activations: GroupedActivations) -> Self {
        self.activations = activations;
        self
    }

    /// Another text under the same name, such as its beginning.
    #[must_use]
    pub fn map_text(mut self, change: impl FnOnce(&str) -> String) -> Self {
        self.text = change(&self.text);
        self
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Tokens of a window for a model: less than asked for where the model takes no more.
    pub fn window(&self, config: &ModelConfig) -> usize {
        self.window.min(config.max_positions)
    }

    /// Name, the first 12 digits of the text's SHA-256, and how it is cut and computed where that is not the usual way: equal
    /// labels are equal measurements.
    pub fn label(&self) -> String {
        use std::fmt::Write;
        let digest = Sha256::digest(self.text.as_bytes());
        let mut label = format!("{} {}", self.name, hex(&digest[..6]));
        if self.window != WINDOW {
            let _ = write!(label, ", windows of {}", self.window);
        }
        if let Some(tokens) = self.most_tokens {
            let _ = write!(label, ", {tokens} tokens at most");
        }
        if self.activations == GroupedActivations::Bf16 {
            label.push_str(", BF16 activations");
        }
        label
    }

    /// Its tokens, with what the vocabulary puts around a text.
    ///
    /// # Errors
    /// A text that is shorter than one window.
    pub fn tokens(&self, tokenizer: &Tokenizer, config: &ModelConfig) -> anyhow::Result<Vec<u32>> {
        let mut tokens = tokenizer.encode(&self.text, true)?;
        tokens.truncate(self.most_tokens.unwrap_or(usize::MAX));
        let window = self.window(config);
        let (name, count) = (&self.name, tokens.len());
        anyhow::ensure!(
            count >= window,
            Invalid(format!(
                "the text {name} has {count} tokens, fewer than one window of {window}: use a longer text or a smaller window"
            ))
        );
        Ok(tokens)
    }
}

/// The token that begins each text in this vocabulary, if one does.
pub fn leading_token(tokenizer: &Tokenizer) -> anyhow::Result<Option<u32>> {
    let around = tokenizer.encode("", true)?;
    Ok(around.first().copied().filter(|first| tokenizer.bos() == Some(*first)))
}

/// Name of the file for what has this label. Manifests that measure in different ways share a cache, and none measures again
/// what another one has overwritten.
fn file(label: &str) -> String {
    if label == Dataset::built_in().label() {
        return FILE.to_owned();
    }
    let digest = Sha256::digest(label.as_bytes());
    format!("quality-{}.json", hex(&digest[..8]))
}

/// The quality of artifacts of one checkpoint on a text: read beside each, or measured and written there. What is measured is
/// measured together, beside one pass of the reference, which takes as long as a pass of theirs. `progress` first counts the
/// bytes of the reference being built, then windows of the text.
///
/// One profile's weights are resident at a time, and the reference's logits of half a window.
///
/// # Errors
/// A text that is shorter than a window; errors of the checkpoint, the device and the disk. None says which artifact's weights
/// are damaged; asked for one alone, it is that one, or the reference.
pub fn measure_or_load<B: Backend>(
    backend: impl FnOnce() -> anyhow::Result<B>,
    cache: &Path,
    checkpoint: &Checkpoint,
    artifacts: &[&Artifact],
    dataset: &Dataset,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<Vec<MeasuredQuality>> {
    let mut missing: Vec<&Artifact> =
        artifacts.iter().copied().filter(|artifact| load(artifact.directory(), dataset).is_none()).collect();
    let mut keys = HashSet::new();
    missing.retain(|artifact| keys.insert(&artifact.manifest().key));
    if !missing.is_empty() {
        measure(backend()?, cache, checkpoint, &missing, dataset, progress)?;
    }
    // As it is read: the first start and all later ones tell the same figures, to the last bit.
    let read = |artifact: &&Artifact| {
        load(artifact.directory(), dataset).context("the measured quality was written but cannot be read")
    };
    artifacts.iter().map(read).collect()
}

/// [`measure_or_load`] of different artifacts that have none.
fn measure<B: Backend>(
    backend: B,
    cache: &Path,
    checkpoint: &Checkpoint,
    artifacts: &[&Artifact],
    dataset: &Dataset,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<()> {
    let config = checkpoint.config();
    let tokenizer = Text::load(checkpoint)?.tokenizer;
    let tokens = dataset.tokens(&tokenizer, config)?;
    let base = Store::new(cache).prepare(checkpoint, WeightFormat::Bf16, progress)?;
    let mut evaluator =
        Evaluator::new(backend, config, KvFormat::Bf16, dataset.window(config))?.with_bos(leading_token(&tokenizer)?);
    // The reference beside itself changes nothing, and costs a pass less.
    let is_base = |artifact: &&Artifact| artifact.manifest().key == base.manifest().key;
    let mut scored: Vec<&Artifact> = vec![&base];
    scored.extend(artifacts.iter().filter(|artifact| !is_base(artifact)));
    let weights = scored
        .iter()
        .map(|artifact| ProfileWeights::load(evaluator.backend(), config, artifact))
        .collect::<Result<Vec<_>, _>>()?;
    let scores = evaluator.compare(&weights.iter().collect::<Vec<_>>(), &tokens, &mut |done, total| {
        let activity = format!("measuring quality, window {done} of {total}");
        progress(Progress { done: done as u64, total: total as u64, activity });
    })?;
    // The artifacts stay mapped by whoever goes on to serve them, and what was read of them would count against its budget.
    for weights in &weights {
        weights.release(evaluator.backend());
    }
    let skipped = usize::from(!artifacts.iter().any(is_base));
    for (artifact, score) in scored.iter().zip(&scores).skip(skipped) {
        store(artifact.directory(), &measured(&score.comparison(), dataset))?;
    }
    Ok(())
}

/// This moment in RFC 3339, to the second.
pub fn now() -> String {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Second).unwrap_or(now).to_string()
}

/// The figures that the gate looks at, as of now.
pub fn measured(comparison: &Comparison, dataset: &Dataset) -> MeasuredQuality {
    MeasuredQuality {
        perplexity: comparison.perplexity.value,
        reference_perplexity: comparison.reference_perplexity.value,
        mean_kl_divergence: comparison.divergence.value,
        p99_kl_divergence: comparison.divergences.p99,
        top1_agreement_percent: comparison.top1_agreement_percent.value,
        rms_probability_change_percent: comparison.rms_probability_change_percent.value,
        tokens: comparison.tokens as u64,
        dataset: dataset.label(),
        measured_at: now(),
    }
}

/// What was measured on this text, if it was. A damaged file counts as none: it is measured again.
pub fn load(directory: &Path, dataset: &Dataset) -> Option<MeasuredQuality> {
    let label = dataset.label();
    let found: MeasuredQuality = serde_json::from_str(&fs::read_to_string(directory.join(file(&label))).ok()?).ok()?;
    (found.dataset == label).then_some(found)
}

/// Keeps a measured quality beside its artifact; a reader sees the old file or the new one, never a part.
///
/// # Errors
/// Those of the disk.
pub fn store(directory: &Path, quality: &MeasuredQuality) -> anyhow::Result<()> {
    write_whole(&directory.join(file(&quality.dataset)), serde_json::to_string_pretty(quality)?.as_bytes())
}

/// Replaces a file as a whole: written beside it, synced, renamed.
///
/// # Errors
/// Those of the disk, with the path.
pub fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".tmp-{}", std::process::id()));
    let written = fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.with_context(|| format!("{} could not be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quality(dataset: &Dataset) -> MeasuredQuality {
        MeasuredQuality { measured_at: "2024-01-01T00:00:00Z".into(), ..measured(&Comparison::default(), dataset) }
    }

    #[test]
    fn a_label_tells_texts_and_cuts_apart() {
        let text = Dataset::new("file:///a.txt", "abc");
        assert_eq!(text.label(), "file:///a.txt ba7816bf8f01");
        let cut = text.clone().with_window(128).with_most_tokens(Some(1000));
        assert_eq!(cut.label(), "file:///a.txt ba7816bf8f01, windows of 128, 1000 tokens at most");
        assert_ne!(Dataset::new("file:///a.txt", "abd").label(), text.label());
        let wide = text.with_activations(GroupedActivations::Bf16);
        assert_eq!(wide.label(), "file:///a.txt ba7816bf8f01, BF16 activations");
    }

    #[test]
    fn a_stored_quality_is_found_for_its_own_text_alone() {
        let directory = tempfile::tempdir().unwrap();
        let dataset = Dataset::built_in();
        assert_eq!(load(directory.path(), &dataset), None);
        store(directory.path(), &quality(&dataset)).unwrap();
        assert_eq!(load(directory.path(), &dataset), Some(quality(&dataset)));
        assert_eq!(load(directory.path(), &dataset.clone().with_window(64)), None);
        fs::write(directory.path().join(FILE), "{\"perplexity\": nul").unwrap();
        assert_eq!(load(directory.path(), &dataset), None);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn each_text_keeps_its_quality_beside_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let datasets = [Dataset::built_in(), Dataset::built_in().with_window(64), Dataset::new("file:///a.txt", "abc")];
        for dataset in &datasets {
            store(directory.path(), &quality(dataset)).unwrap();
        }
        for dataset in &datasets {
            assert_eq!(load(directory.path(), dataset), Some(quality(dataset)));
        }
        let kept: MeasuredQuality =
            serde_json::from_str(&fs::read_to_string(directory.path().join(FILE)).unwrap()).unwrap();
        assert_eq!(kept, quality(&datasets[0]), "tools look for the worker's own text under this name");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = store(&directory.path().join("absent"), &quality(&Dataset::built_in())).unwrap_err();
        assert!(error.to_string().contains("absent/quality.json"), "{error}");
    }
}
