//! What the API server told of the objects that belong to ModelProfiles, by the ModelProfile that they belong to.
//!
//! A watch keeps it current, so that a pass reads memory and asks the API server nothing. Only objects with our labels are
//! watched, and what no pass reads of them is dropped on arrival.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{Stream, StreamExt};
use kube::ResourceExt;
use kube::runtime::watcher::{Error, Event};
use tokio::sync::{mpsc, watch};

use super::plan::names::NAME;

/// A ModelProfile: namespace and name.
pub type Key = (String, String);

type Objects<K> = HashMap<Key, BTreeMap<String, Arc<K>>>;

/// Objects of one kind.
pub struct Index<K> {
    held: Mutex<Held<K>>,
    complete: watch::Sender<bool>,
}

struct Held<K> {
    objects: Objects<K>,
    /// What a list that is under way has brought so far.
    listed: Objects<K>,
}

impl<K> Default for Index<K> {
    fn default() -> Self {
        let held = Held { objects: HashMap::new(), listed: HashMap::new() };
        Self { held: Mutex::new(held), complete: watch::Sender::new(false) }
    }
}

impl<K: ResourceExt> Index<K> {
    /// The objects of a ModelProfile, by name.
    pub fn of(&self, key: &Key) -> BTreeMap<String, Arc<K>> {
        self.held().objects.get(key).cloned().unwrap_or_default()
    }

    /// Waits until everything that existed at the start is known.
    pub async fn complete(&self) {
        // The sender lives as long as this index.
        let _ = self.complete.subscribe().wait_for(|complete| *complete).await;
    }

    /// Follows a watch until it ends; `trim` drops what no pass reads, and `changed` hears of each ModelProfile that a change
    /// belongs to.
    pub async fn follow(
        &self,
        events: impl Stream<Item = Result<Event<K>, Error>>,
        trim: impl Fn(&mut K),
        changed: mpsc::Sender<Key>,
    ) {
        let mut events = pin!(events);
        while let Some(event) = events.next().await {
            let keys = match event {
                Ok(event) => self.take(event, &trim),
                // The watch begins again by itself, after a pause.
                Err(error) => {
                    tracing::warn!("watching {}: {error}", std::any::type_name::<K>());
                    continue;
                }
            };
            for key in keys {
                if changed.send(key).await.is_err() {
                    return;
                }
            }
        }
    }

    /// The ModelProfiles that an event is about.
    fn take(&self, event: Event<K>, trim: &impl Fn(&mut K)) -> Vec<Key> {
        let mut held = self.held();
        let insert = |objects: &mut Objects<K>, mut object: K| {
            let key = key(&object)?;
            object.managed_fields_mut().clear();
            trim(&mut object);
            objects.entry(key.clone()).or_default().insert(object.name_any(), Arc::new(object));
            Some(key)
        };
        match event {
            Event::Init => {
                held.listed = HashMap::new();
                Vec::new()
            }
            Event::InitApply(object) => {
                insert(&mut held.listed, object);
                Vec::new()
            }
            Event::InitDone => {
                let before = std::mem::take(&mut held.objects);
                held.objects = std::mem::take(&mut held.listed);
                let mut keys: Vec<Key> = before.into_keys().chain(held.objects.keys().cloned()).collect();
                keys.sort();
                keys.dedup();
                self.complete.send_replace(true);
                keys
            }
            Event::Apply(object) => insert(&mut held.objects, object).into_iter().collect(),
            Event::Delete(object) => {
                let Some(key) = key(&object) else { return Vec::new() };
                if let Some(objects) = held.objects.get_mut(&key) {
                    objects.remove(&object.name_any());
                    if objects.is_empty() {
                        held.objects.remove(&key);
                    }
                }
                vec![key]
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Held<K>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ModelProfile that an object names in its label. Whether it is the owner is for the plan to see.
fn key<K: ResourceExt>(object: &K) -> Option<Key> {
    let name = object.labels().get(NAME)?;
    Some((object.namespace()?, name.clone()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn map(name: &str, owner: &str) -> ConfigMap {
        let labels = json!({"modelprofile.dev/name": owner});
        serde_json::from_value(
            json!({"metadata": {"namespace": "n", "name": name, "labels": labels}, "data": {"a": "b"}}),
        )
        .unwrap()
    }

    fn owner(name: &str) -> Key {
        ("n".to_owned(), name.to_owned())
    }

    fn names(index: &Index<ConfigMap>, name: &str) -> Vec<String> {
        index.of(&owner(name)).into_keys().collect()
    }

    #[test]
    fn a_list_replaces_what_was_known_as_a_whole_and_tells_of_both() {
        let index = Index::default();
        let take = |event| index.take(event, &|map: &mut ConfigMap| map.data = None);
        assert_eq!(take(Event::Apply(map("a", "one"))), [owner("one")]);
        take(Event::Init);
        take(Event::InitApply(map("b", "two")));
        assert_eq!(names(&index, "one"), ["a"], "until the list is whole");
        assert_eq!(take(Event::InitDone), [owner("one"), owner("two")]);
        assert_eq!((names(&index, "one"), names(&index, "two")), (vec![], vec!["b".to_owned()]));
        assert_eq!(index.of(&owner("two"))["b"].data, None, "what no pass reads is dropped");
    }

    #[test]
    fn a_deleted_object_is_gone_and_its_owner_hears_of_it() {
        let index = Index::default();
        let take = |event| index.take(event, &|_: &mut ConfigMap| {});
        take(Event::Apply(map("a", "one")));
        take(Event::Apply(map("b", "one")));
        assert_eq!(take(Event::Delete(map("a", "one"))), [owner("one")]);
        assert_eq!(names(&index, "one"), ["b"]);
        take(Event::Delete(map("b", "one")));
        assert!(index.held().objects.is_empty());
    }
}
