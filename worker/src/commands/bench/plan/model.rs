//! The shape of a model: from its name, from a description like those of `deploy/models`, or from a checkpoint.

use std::path::Path;

use anyhow::{Context, bail};
use modelprofile_api::ModelUri;
use modelprofile_engine::{ModelConfig, checkpoint::Checkpoint};

use crate::plan::config;

/// The model of a name, of a description, of a `config.json`, or of a checkpoint with or without its weights.
///
/// # Errors
/// There is neither; the names that are known are listed.
pub(super) fn read(model: &Path) -> anyhow::Result<(String, ModelConfig)> {
    let extension = model.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let is_json = model.is_file() && extension == "json";
    if model.is_dir() || is_json || extension == "gguf" {
        let folder = if is_json { model.parent().unwrap_or(Path::new(".")) } else { model };
        let checkpoint = Checkpoint::open_description(folder).context("the checkpoint cannot be read")?;
        return Ok((checkpoint.name().to_owned(), checkpoint.config().clone()));
    }
    let shape = modelprofile_roofline::model(&model.to_string_lossy())?;
    let config = config(&shape);
    Ok((shape.name, config))
}

/// The model that a manifest's URI names: a path, or one of the known models by the last part of its address.
///
/// # Errors
/// The address is of no known model: its shape has to be given.
pub(super) fn of_manifest(uri: &str) -> anyhow::Result<(String, ModelConfig)> {
    if let Ok(ModelUri::File(path)) = ModelUri::parse(uri) {
        return read(Path::new(&path));
    }
    let last = uri.rsplit('/').next().unwrap_or_default().to_lowercase();
    // The same shape under another name: Llama-3.3-70B-Instruct.
    match modelprofile_roofline::model_names().find(|known| last.starts_with(known)) {
        Some(known) => read(Path::new(known)),
        None => bail!(
            "the shape of {uri} is not known here; name it with --model: a checkpoint, its config.json, or one of {}",
            modelprofile_roofline::model_names().collect::<Vec<_>>().join(", ")
        ),
    }
}
