//! The original checkpoint of a manifest: opened whole, or as what is left of it, and pruned when nothing needs it any more.

use std::path::Path;

use anyhow::Context;
use modelprofile_engine::{
    EngineError,
    artifact::Store,
    checkpoint::{Checkpoint, Remains},
};

use crate::source::{self, Located};

/// Opens a fetched model, with or without its weights.
pub(super) fn open(model: &Located) -> anyhow::Result<Checkpoint> {
    let opened = match &model.pruned {
        None => Checkpoint::open(&model.path),
        Some(pruned) => Checkpoint::open_pruned(&model.path, &pruned.remains),
    };
    opened.context("the checkpoint cannot be read")
}

/// Opens what describes a model: a directory's small files, with or without weights beside them, or a GGUF file.
pub(super) fn describe(model: &Located) -> anyhow::Result<Checkpoint> {
    match &model.pruned {
        None => Checkpoint::open_description(&model.path).context("the checkpoint cannot be read"),
        Some(_) => open(model),
    }
}

/// Whether something failed only because the weights were pruned.
pub(super) fn is_missing(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(EngineError::Pruned { .. })))
}

/// What to prune, and what has to be remembered of it.
pub(super) struct Original {
    model: Located,
    remains: Option<Remains>,
}

impl Original {
    /// Removes the reference that was only measured with, and takes note of what the checkpoint is. What fails is a warning:
    /// a start does not depend on it.
    pub(super) fn of(model: Located, checkpoint: &Checkpoint, cache: &Path) -> Option<Self> {
        match Store::new(cache).remove_reference(checkpoint) {
            Ok(0) => {}
            Ok(bytes) => tracing::info!(mib = bytes >> 20, "the BF16 reference was pruned"),
            Err(error) => tracing::warn!(%error, "the BF16 reference could not be pruned"),
        }
        if model.pruned.is_some() {
            return Some(Self { model, remains: None });
        }
        match checkpoint.remains() {
            Ok(remains) => Some(Self { model, remains: Some(remains) }),
            Err(error) => {
                tracing::warn!(%error, "the original stays: what to remember of it cannot be read");
                None
            }
        }
    }

    /// Removes its weight files if this program has fetched them, after a record of them was written.
    pub(super) fn prune(self) {
        match source::prune(self.model, self.remains.as_ref()) {
            Ok(0) => {}
            Ok(bytes) => tracing::info!(mib = bytes >> 20, "the original's weights were removed"),
            Err(error) => tracing::warn!(%error, "the original's weights could not be pruned"),
        }
    }
}
