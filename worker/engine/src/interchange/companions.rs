//! What lies beside the weights: tokenizer, chat template, defaults of generation, the licence, the model card.

use std::{fs, path::Path};

use crate::{EngineError, Result, checkpoint::Checkpoint, text};

/// Files that belong to the model and not to how its weights are stored.
const FILES: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
];
/// The model card.
pub(crate) const CARD: &str = "README.md";

/// Puts the checkpoint's other files beside weights in `directory`: copies those of a directory; of a GGUF file, writes
/// `tokenizer.json` and `tokenizer_config.json` with the chat template from its metadata.
///
/// The card stays where it is: an artifact is another model than its original, with a card of its own.
///
/// A vocabulary that this build cannot describe leaves those two out, with a warning: the weights are sound without.
///
/// # Errors
/// A file that cannot be read or written.
pub fn companions(checkpoint: &Checkpoint, directory: &Path) -> Result<()> {
    if checkpoint.gguf_metadata().is_some() {
        match text::tokenizer_files(checkpoint) {
            Ok(files) => {
                for (name, value) in files {
                    let path = directory.join(name);
                    fs::write(&path, value.to_string()).map_err(|e| EngineError::io(&path, e))?;
                }
            }
            Err(error) => tracing::warn!(%error, "the tokenizer is not written beside the weights"),
        }
        return Ok(());
    }
    FILES.into_iter().try_for_each(|name| copy(checkpoint, name, directory))
}

/// Copies the card of a directory, if it has one: the same model in another layout keeps it.
///
/// # Errors
/// A file that cannot be read or written.
pub(super) fn card(checkpoint: &Checkpoint, directory: &Path) -> Result<()> {
    if checkpoint.gguf_metadata().is_some() { Ok(()) } else { copy(checkpoint, CARD, directory) }
}

fn copy(checkpoint: &Checkpoint, name: &str, directory: &Path) -> Result<()> {
    let (from, to) = (checkpoint.directory().join(name), directory.join(name));
    if from.is_file() {
        fs::copy(&from, &to).map_err(|e| EngineError::io(&from, e))?;
    }
    Ok(())
}
