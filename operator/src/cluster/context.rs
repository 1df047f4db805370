//! What every pass needs, and what it leaves: memories, the status, Events.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use modelprofile_api::{API_VERSION, KIND, ModelProfileStatus};
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use super::apply::Writer;
use super::error::Error;
use super::index::Key;
use super::looks::Looks;
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

/// UID and memory of a ModelProfile.
type Kept = (String, Arc<AsyncMutex<Memory>>);

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
    /// The operator's own metrics.
    pub metrics: Metrics,
    /// When each ModelProfile is looked at again.
    pub looks: Looks,
    /// Tells the controller of a ModelProfile that needs a pass.
    pub changed: mpsc::Sender<Key>,
    /// With the UID of the ModelProfile that each is of.
    pub(super) memories: Mutex<HashMap<Key, Kept>>,
    /// Passes that failed in a row.
    pub(super) failures: Mutex<HashMap<Key, u32>>,
}

impl Context {
    /// What is remembered of a ModelProfile; `new` makes it at its first pass.
    pub fn memory(&self, owner: &Owner, new: impl FnOnce() -> Memory) -> Arc<AsyncMutex<Memory>> {
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (owner.namespace.clone(), owner.name.clone());
        let make = || (owner.uid.clone(), Arc::new(AsyncMutex::new(new())));
        match memories.entry(key) {
            Entry::Occupied(known) if known.get().0 == owner.uid => known.get().1.clone(),
            // One of the same name was there before.
            Entry::Occupied(mut other) => {
                let made = make();
                other.insert(made.clone());
                made.1
            }
            Entry::Vacant(free) => free.insert(make()).1.clone(),
        }
    }

    /// Forgets what is not there any more; `uid` has the UID of a ModelProfile that is.
    pub fn keep(&self, uid: impl Fn(&Key) -> Option<String>) {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, memory| {
            // One of the same name that was made since has another UID, and nothing to remember.
            uid(key).as_deref() == Some(memory.0.as_str())
        });
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| uid(key).is_some());
        self.looks.keep(|key| uid(key).is_some());
        self.metrics.keep(|key| uid(key).is_some());
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
