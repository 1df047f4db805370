//! The quality of artifacts at the time when they are made: what `serve` and `quantize` share.

use std::path::Path;

use anyhow::{Context, bail};
use modelprofile_api::{MeasuredQuality, ModelUri, OnFailure, Quality};
use modelprofile_engine::{
    ProfileSpec,
    artifact::{Artifact, Progress},
    checkpoint::Checkpoint,
};

use super::Devices;
use crate::{
    app::App,
    outcome::Invalid,
    quality::{Dataset, measure_or_load},
    source,
};

/// What measuring needs, whatever the artifact.
pub(super) struct Measure<'a, D> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) cache: &'a Path,
    pub(super) devices: &'a D,
}

impl<D: Devices> Measure<'_, D> {
    /// Tells the gate the quality of each artifact of the ladder, which is measured first where it was not.
    ///
    /// # Errors
    /// What went wrong, with the profile's name; but with `onFailure: Warn` it is logged, and the profile goes without.
    pub(super) fn ladder(
        &self,
        app: &App,
        (quality, volumes): (&Quality, &Path),
        profiles: &[ProfileSpec],
        artifacts: &[Artifact],
    ) -> anyhow::Result<()> {
        // All at once: they share the reference's pass. What goes wrong shows again below, where it has a profile's name.
        if artifacts.len() > 1
            && let Ok(dataset) = dataset(quality, volumes)
        {
            let all: Vec<&Artifact> = artifacts.iter().collect();
            let tell = &mut |progress: Progress| {
                (0..artifacts.len()).for_each(|index| app.progress(index, progress.clone()));
            };
            if let Err(error) = self.artifacts(&all, &dataset, tell) {
                tracing::info!("the profiles' quality cannot be measured at once: {error:#}; measuring one by one");
            }
        }
        for (index, (profile, artifact)) in profiles.iter().zip(artifacts).enumerate() {
            let measured = dataset(quality, volumes)
                .and_then(|dataset| self.artifact(artifact, &dataset, &mut |progress| app.progress(index, progress)))
                .with_context(|| format!("the quality of profile {} cannot be measured", profile.name));
            match measured {
                Ok(measured) => app.gate.measured(&profile.name, measured),
                // Not a failure to measure: with the weights fetched again it can be.
                Err(error) if super::original::is_missing(&error) => return Err(error),
                Err(error) if quality.on_failure == OnFailure::Warn => {
                    tracing::warn!("{error:#}; it is used all the same, because spec.quality.onFailure is Warn");
                }
                Err(error) => return Err(error),
            }
            app.progress(index, Progress { done: 1, total: 1, activity: String::new() });
        }
        Ok(())
    }

    /// The quality of one artifact.
    pub(super) fn artifact(
        &self,
        artifact: &Artifact,
        dataset: &Dataset,
        progress: &mut dyn FnMut(Progress),
    ) -> anyhow::Result<MeasuredQuality> {
        let found = self.artifacts(&[artifact], dataset, progress)?;
        found.into_iter().next().context("no artifact was measured")
    }

    /// The quality of artifacts, in their order. A device is taken only where something is to be measured.
    fn artifacts(
        &self,
        artifacts: &[&Artifact],
        dataset: &Dataset,
        progress: &mut dyn FnMut(Progress),
    ) -> anyhow::Result<Vec<MeasuredQuality>> {
        let dataset = dataset.clone().with_activations(self.devices.activations());
        measure_or_load(|| self.devices.open(), self.cache, self.checkpoint, artifacts, &dataset, progress)
    }
}

/// The text that a manifest measures with.
///
/// # Errors
/// A URI of another kind than `file://` and `pvc://`, or a file that is no text.
pub(super) fn dataset(quality: &Quality, volumes: &Path) -> anyhow::Result<Dataset> {
    let Some(dataset) = &quality.dataset else { return Ok(Dataset::built_in()) };
    let uri = &dataset.uri;
    let parsed = ModelUri::parse(uri).map_err(|message| Invalid(format!("spec.quality.dataset.uri: {message}")))?;
    let Some(path) = source::local_path(&parsed, volumes) else {
        bail!(Invalid(format!(
            "spec.quality.dataset.uri: {uri} cannot be read here: use file://PATH or pvc://CLAIM/PATH"
        )));
    };
    let path = path.with_context(|| Invalid(format!("spec.quality.dataset.uri: {uri}")))?;
    let text = std::fs::read_to_string(path).with_context(|| Invalid(format!("spec.quality.dataset.uri: {uri}")))?;
    let most_tokens = dataset.max_tokens.map(|tokens| tokens as usize);
    Ok(Dataset::new(uri, text).with_window(dataset.context_tokens as usize).with_most_tokens(most_tokens))
}

/// The figures as one line.
pub(super) fn figures(quality: &MeasuredQuality) -> String {
    format!(
        "perplexity {:.3} ({:+.2} %), mean KL divergence {:.5} (99 %: {:.4}), same top token {:.1} %, {} tokens of {}",
        quality.perplexity,
        quality.perplexity_increase_percent(),
        quality.mean_kl_divergence,
        quality.p99_kl_divergence,
        quality.top1_agreement_percent,
        quality.tokens,
        quality.dataset
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

    use super::*;

    fn quality(dataset: &str) -> Quality {
        serde_json::from_str(&format!(r#"{{"dataset": {dataset}}}"#)).unwrap()
    }

    #[test]
    fn a_text_is_read_and_cut_as_the_manifest_says() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "some text").unwrap();
        let uri = format!("file://{}", file.path().display());
        let read = dataset(
            &quality(&format!(r#"{{"uri": "{uri}", "contextTokens": 64, "maxTokens": 1000}}"#)),
            Path::new("/"),
        )
        .unwrap();
        assert_eq!(read, Dataset::new(&uri, "some text").with_window(64).with_most_tokens(Some(1000)));
        assert_eq!(dataset(&Quality::default(), Path::new("/")).unwrap(), Dataset::built_in());
        let volumes = tempfile::tempdir().unwrap();
        std::fs::create_dir(volumes.path().join("texts")).unwrap();
        std::fs::write(volumes.path().join("texts/a.txt"), "a volume's").unwrap();
        let read = dataset(&quality(r#"{"uri": "pvc://texts/a.txt"}"#), volumes.path()).unwrap();
        assert_eq!(read, Dataset::new("pvc://texts/a.txt", "a volume's").with_window(512));
    }

    #[test]
    fn a_text_that_cannot_be_read_is_named_with_its_field() {
        for (uri, expected) in [
            ("file:///absent/text", "spec.quality.dataset.uri: file:///absent/text: "),
            ("https://example.com/text", "use file://PATH"),
        ] {
            let error =
                format!("{:#}", dataset(&quality(&format!(r#"{{"uri": "{uri}"}}"#)), Path::new("/")).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }
}
