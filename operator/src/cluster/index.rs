//! What the API server told of the objects that belong to ModelProfiles, by the ModelProfile that they belong to.
//!
//! A watch keeps it current, so that a pass reads memory and asks the API server nothing. Only objects with our labels are
//! watched, and what no pass reads of them is dropped on arrival. They are kept as JSON, for a Deployment is 5 KB of text and 25 KB
//! of structs, and there are thousands while few passes go on at a time.

use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::{Stream, StreamExt};
use kube::ResourceExt;
use kube::runtime::watcher::{Error, Event};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{mpsc, watch};

use super::plan::names::NAME;

/// A ModelProfile: namespace and name.
pub type Key = (String, String);

/// Name and JSON of the objects of each ModelProfile.
type Objects = HashMap<Key, Vec<(Box<str>, Box<[u8]>)>>;

/// Objects of one kind.
pub struct Index<K> {
    held: Mutex<Held>,
    complete: watch::Sender<bool>,
    kind: PhantomData<fn() -> K>,
}

#[derive(Default)]
struct Held {
    objects: Objects,
    /// What a list that is under way has brought so far.
    listed: Objects,
}

impl<K> Default for Index<K> {
    fn default() -> Self {
        Self { held: Mutex::default(), complete: watch::Sender::new(false), kind: PhantomData }
    }
}

impl<K: ResourceExt + Serialize + DeserializeOwned> Index<K> {
    /// The objects of a ModelProfile, by name.
    pub fn of(&self, key: &Key) -> BTreeMap<String, K> {
        let held = self.held();
        let objects = held.objects.get(key).into_iter().flatten();
        // What was written by these types is read by them, too.
        objects.filter_map(|(name, json)| Some((name.to_string(), serde_json::from_slice(json).ok()?))).collect()
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
        let insert = |objects: &mut Objects, mut object: K| {
            let key = key(&object)?;
            object.managed_fields_mut().clear();
            trim(&mut object);
            let json = serde_json::to_vec(&object).ok()?.into_boxed_slice();
            let (name, known) = (object.name_any(), objects.entry(key.clone()).or_default());
            known.retain(|(other, _)| **other != *name);
            known.push((name.into(), json));
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
                    let name = object.name_any();
                    objects.retain(|(other, _)| **other != *name);
                    if objects.is_empty() {
                        held.objects.remove(&key);
                    }
                }
                vec![key]
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
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
