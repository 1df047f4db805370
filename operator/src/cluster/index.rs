//! What the API server told of the objects that belong to ModelProfiles, by the ModelProfile that they belong to.
//!
//! A watch keeps it current, so that a pass reads memory and asks the API server nothing. Only objects with our labels are
//! watched, and what no pass reads of them is dropped on arrival.
//!
//! There are thousands of objects while few passes go on at a time, so they are kept small: a Deployment is 25 KB of structs,
//! 4 KB of JSON, and of that a few hundred bytes are its own. What all have in common is kept once: the first object of a kind is
//! the dictionary that the others are compressed with (LZ4: reading is a copy, and takes no time beside that of reading JSON).

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
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

/// The objects of each ModelProfile.
type Objects = HashMap<Key, Vec<Kept>>;

/// What is kept of an object.
struct Kept {
    name: Box<str>,
    /// Stands for its name and its `resourceVersion`.
    version: u64,
    /// Its JSON, compressed.
    json: Box<[u8]>,
}

/// Compresses what is like the first of its kind.
#[derive(Default)]
struct Packer {
    dictionary: Box<[u8]>,
}

impl Packer {
    fn pack(&mut self, json: &[u8]) -> Box<[u8]> {
        if self.dictionary.is_empty() {
            self.dictionary = json.into();
        }
        lz4_flex::block::compress_prepend_size_with_dict(json, &self.dictionary).into_boxed_slice()
    }

    fn unpack(&self, packed: &[u8]) -> Option<Vec<u8>> {
        // What was packed by this one is unpacked by it, too.
        lz4_flex::block::decompress_size_prepended_with_dict(packed, &self.dictionary).ok()
    }
}

/// Objects of one kind.
pub struct Index<K> {
    held: Mutex<Held>,
    complete: watch::Sender<bool>,
    kind: PhantomData<fn() -> K>,
}

#[derive(Default)]
struct Held {
    packer: Packer,
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
        let read = |kept: &Kept| serde_json::from_slice(&held.packer.unpack(&kept.json)?).ok();
        objects.filter_map(|kept| Some((kept.name.to_string(), read(kept)?))).collect()
    }

    /// Stands for the objects of a ModelProfile as they are now: it stays the same until one comes, changes or goes.
    pub fn version(&self, key: &Key) -> u64 {
        // A sum, for their order says nothing.
        self.held().objects.get(key).into_iter().flatten().fold(0, |sum, kept| sum.wrapping_add(kept.version))
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
        let held = &mut *held;
        let mut insert = |objects: &mut Objects, mut object: K| {
            let key = key(&object)?;
            object.managed_fields_mut().clear();
            trim(&mut object);
            let json = held.packer.pack(&serde_json::to_vec(&object).ok()?);
            let (name, version) = (object.name_any().into_boxed_str(), version(&object));
            let known = objects.entry(key.clone()).or_default();
            known.retain(|other| other.name != name);
            known.push(Kept { name, version, json });
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
                    objects.retain(|other| *other.name != *name);
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

fn version<K: ResourceExt>(object: &K) -> u64 {
    let mut hash = DefaultHasher::new();
    (object.name_any(), object.uid(), object.resource_version()).hash(&mut hash);
    hash.finish()
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
    fn the_version_follows_every_change_of_any_object() {
        let index = Index::default();
        let take = |event| index.take(event, &|_: &mut ConfigMap| {});
        let of = |name: &str, version: &str| {
            let mut map = map(name, "one");
            map.metadata.resource_version = Some(version.to_owned());
            map
        };
        let none = index.version(&owner("one"));
        take(Event::Apply(of("a", "1")));
        let a = index.version(&owner("one"));
        take(Event::Apply(of("b", "1")));
        let both = index.version(&owner("one"));
        assert!(none != a && a != both && none != both);
        take(Event::Apply(of("a", "2")));
        let edited = index.version(&owner("one"));
        assert_ne!(edited, both);
        // The same once more, as a watch that begins again brings it, in another order.
        take(Event::Apply(of("b", "1")));
        take(Event::Apply(of("a", "2")));
        assert_eq!(index.version(&owner("one")), edited);
        take(Event::Delete(of("b", "1")));
        take(Event::Apply(of("a", "1")));
        assert_eq!(index.version(&owner("one")), a);
        assert_eq!(index.version(&owner("two")), none);
    }

    #[test]
    fn what_objects_have_in_common_is_kept_once_and_each_is_read_as_it_was() {
        let index = Index::default();
        let text = |number: usize| format!("{}, and {number} of its own", "what all have ".repeat(100));
        for number in 0..100 {
            let mut map = map(&format!("map-{number}"), "one");
            map.data = Some([("text".to_owned(), text(number))].into());
            index.take(Event::Apply(map), &|_: &mut ConfigMap| {});
        }
        let found = index.of(&owner("one"));
        assert_eq!(found.len(), 100);
        for number in 0..100 {
            assert_eq!(found[&format!("map-{number}")].data.as_ref().unwrap()["text"], text(number));
        }
        let kept: usize = index.held().objects[&owner("one")].iter().map(|kept| kept.json.len()).sum();
        assert!(kept < 100 * 150, "{kept} bytes for objects of {} each", text(0).len());
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
