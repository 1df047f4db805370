//! What every pass needs, and what it leaves: memories, the status, Events.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use modelprofile_api::{API_VERSION, KIND, ModelProfileStatus};
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use super::apply::Writer;
use super::error::Error;
use super::index::Key;
use super::memory::Memory;
use super::metrics::Metrics;
use super::news::news;
use super::observe::Indexes;
use super::plan::facts::Options;
use super::plan::names::Owner;
use super::recorder::Recorder;
use super::status;
use super::tokens::Signer;
use super::workers::Workers;

/// What every pass needs.
pub struct Context {
    /// Writes objects.
    pub writer: Writer,
    /// Publishes Events.
    pub recorder: Recorder,
    /// What the API server told.
    pub indexes: Indexes,
    /// Talks to workers.
    pub workers: Workers,
    /// Signs tokens for them.
    pub signer: Signer,
    /// Flags.
    pub options: Options,
    /// Time between two looks at the metrics.
    pub interval: Duration,
    /// How far the clock that decisions go by is ahead of the machine's.
    pub ahead: SignedDuration,
    /// The operator's own metrics.
    pub metrics: Metrics,
    /// Tells the controller of a ModelProfile that needs a pass.
    pub changed: mpsc::Sender<Key>,
    /// By UID.
    pub(super) memories: Mutex<HashMap<String, Arc<AsyncMutex<Memory>>>>,
    /// Passes that failed in a row.
    pub(super) failures: Mutex<HashMap<Key, u32>>,
}

impl Context {
    /// The time that decisions go by.
    pub fn now(&self) -> Timestamp {
        Timestamp::now().saturating_add(self.ahead).unwrap_or(Timestamp::MAX)
    }

    /// What is remembered of a ModelProfile; `new` makes it at its first pass.
    pub fn memory(&self, owner: &Owner, new: impl FnOnce() -> Memory) -> Arc<AsyncMutex<Memory>> {
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        memories.entry(owner.uid.clone()).or_insert_with(|| Arc::new(AsyncMutex::new(new()))).clone()
    }

    /// It is gone, or going.
    pub fn forget(&self, owner: &Owner) {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).remove(&owner.uid);
        self.metrics.forget(&owner.namespace, &owner.name);
    }

    /// Writes the status where it says something new, and tells what happened.
    ///
    /// # Errors
    /// The status cannot be written.
    pub async fn write(
        &self,
        version: &str,
        owner: &Owner,
        before: &ModelProfileStatus,
        after: ModelProfileStatus,
        memory: &mut Memory,
    ) -> Result<(), Error> {
        self.metrics.observed(&owner.namespace, &owner.name, &after);
        let waited = memory.wrote.is_none_or(|at| at.elapsed() >= status::pause(&after));
        let after = status::settled(before, after, waited);
        if after == *before {
            return Ok(());
        }
        self.writer.status(&owner.namespace, &owner.name, &after).await?;
        memory.wrote(version.to_owned(), after.clone(), Instant::now());
        let reference = ObjectReference {
            api_version: Some(API_VERSION.to_owned()),
            kind: Some(KIND.to_owned()),
            name: Some(owner.name.clone()),
            namespace: Some(owner.namespace.clone()),
            uid: Some(owner.uid.clone()),
            ..ObjectReference::default()
        };
        for one in news(before, &after) {
            // An Event that is lost is no reason to do the pass again: the status has it all.
            if let Err(error) = self.recorder.publish(&one, &reference).await {
                tracing::warn!(namespace = owner.namespace, name = owner.name, "an Event cannot be published: {error}");
            }
        }
        Ok(())
    }
}
