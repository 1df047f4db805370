//! The model of a command: fetched from where its URI or path points, held against what was accepted.

use std::path::{Path, PathBuf};

use clap::Args;
use modelprofile_api::{ModelSpec, ModelUri};
use modelprofile_engine::artifact::Artifact;

use crate::{
    licence::{self, Licence, card},
    source::{self, Located, Progress, Settings},
};

/// Where volumes of `pvc://` are mounted.
#[derive(Debug, Clone, Args)]
pub(super) struct Volumes {
    /// Directory below which the volumes of pvc:// models are mounted, by the names of their claims.
    #[arg(long, value_name = "DIR", default_value = "/volumes")]
    volumes: PathBuf,
}

/// What a manifest says of its model, for commands without one.
#[derive(Debug, Clone, Args)]
pub(super) struct Fetch {
    /// Commit, tag or branch of an hf:// model [default: main].
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Identifier of the licence that you have read and accepted, such as llama3.3; several with commas.
    #[arg(long, value_name = "LICENCE", visible_alias = "accept-license")]
    accept_licence: Option<String>,
    #[command(flatten)]
    volumes: Volumes,
}

impl Volumes {
    /// The directory.
    pub(super) fn directory(&self) -> &Path {
        &self.volumes
    }

    /// Brings the model of a manifest; with `without_weights`, what is left of one whose weights were pruned will do.
    ///
    /// # Errors
    /// Its licence was not accepted, or it cannot be fetched; each sentence says what to do.
    pub(super) fn fetch(
        &self,
        model: &ModelSpec,
        cache: &Path,
        without_weights: bool,
        progress: &mut dyn FnMut(Progress),
    ) -> anyhow::Result<Located> {
        let uri = ModelUri::parse(&model.uri).map_err(|message| anyhow::anyhow!("spec.model.uri: {message}"))?;
        let settings = Settings { without_weights, ..Settings::new(cache, &self.volumes) };
        let accepted = model.license.as_ref().map(|licence| licence.accepted.as_str());
        let mut consent = |licence: &Licence| {
            licence::check(licence, accepted)?;
            tracing::info!("licence: {}", licence.duties().join(" "));
            Ok(())
        };
        Ok(source::fetch(&uri, model.revision.as_deref(), &settings, &mut consent, progress)?)
    }
}

impl Fetch {
    /// Brings the model of a command line, with a bar. A path is only told about: whoever types one has the file already.
    ///
    /// # Errors
    /// As [`Volumes::fetch`].
    pub(super) fn fetch(&self, model: &str, cache: &Path) -> anyhow::Result<Located> {
        self.bring(model, &Settings::new(cache, &self.volumes.volumes))
    }

    /// Brings what describes a model: its weights may be missing, see [`super::original::describe`].
    ///
    /// # Errors
    /// As [`Volumes::fetch`].
    pub(super) fn describe(&self, model: &str, cache: &Path) -> anyhow::Result<Located> {
        let settings = Settings::new(cache, &self.volumes.volumes);
        self.bring(model, &Settings { without_weights: true, description: true, ..settings })
    }

    fn bring(&self, model: &str, settings: &Settings) -> anyhow::Result<Located> {
        let uri = source::parse(model).map_err(|message| anyhow::anyhow!(message))?;
        let is_path = !model.contains("://");
        let accepted = self.accept_licence.as_deref();
        let mut consent = |licence: &Licence| {
            if is_path && accepted.is_none() { Ok(()) } else { licence::check(licence, accepted) }
        };
        if matches!(uri, ModelUri::File(_)) {
            return Ok(source::fetch(&uri, None, settings, &mut consent, &mut |_| {})?);
        }
        let bar = super::progress_bar("download");
        let located = source::fetch(&uri, self.revision.as_deref(), settings, &mut consent, &mut |progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
            bar.set_message(progress.activity);
        });
        bar.finish_and_clear();
        Ok(located?)
    }
}

/// Tells what to know before what was made of a model is given to others, a line each.
pub(super) fn print_notes(model: &Located) {
    for note in licence::publishing_notes(&model.licence) {
        println!("note: {note}");
    }
}

/// Writes the card of each artifact that has none of ours. A card that cannot be written costs no start.
pub(super) fn write_cards(cache: &Path, artifacts: &[&Artifact], model: &Located, name: &str) {
    // A path says nothing to others; the checkpoint's own name does.
    let base = if model.commit.is_some() || model.label.contains("://") { &model.label } else { name };
    for artifact in artifacts {
        let directory = cache.join("artifacts").join(&artifact.manifest().key);
        if let Err(error) = card::write(&directory, base, model.commit.as_deref(), &model.licence) {
            tracing::warn!(%error, "the artifact's card could not be written");
        }
    }
}
