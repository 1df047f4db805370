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

/// The BF16 artifact that quality is measured against, and scales are, while a command runs: as large as the original twice,
/// and of no use to whoever asked for another format.
pub(super) struct Reference {
    was_there: bool,
}

impl Reference {
    /// Takes note of whether it is there before the command makes it.
    pub(super) fn before(store: &Store, checkpoint: &Checkpoint) -> Self {
        Self { was_there: store.has_reference(checkpoint) }
    }

    /// Removes one that the command has made for itself; one that a profile serves from stays.
    pub(super) fn remove_if_new(self, store: &Store, checkpoint: &Checkpoint) {
        if !self.was_there {
            remove_reference(store, checkpoint);
        }
    }
}

/// Removes the reference unless it is a profile's artifact. What fails is a warning: it only takes room.
fn remove_reference(store: &Store, checkpoint: &Checkpoint) {
    match store.remove_reference(checkpoint) {
        Ok(0) => {}
        Ok(bytes) => tracing::info!(mib = bytes >> 20, "the BF16 reference was pruned"),
        Err(error) => tracing::warn!(%error, "the BF16 reference could not be pruned"),
    }
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
        remove_reference(&Store::new(cache), checkpoint);
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
