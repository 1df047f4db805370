//! Events of `events.k8s.io`: what happened, beside the object that it happened to.
//!
//! The client library's recorder counts an Event under the note of the first one with its reason, so the second switch of a
//! model would be told as the first one was. Here another sentence is another Event, and only what comes again word for word
//! becomes a series, as the API has it: <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/>.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use super::news::News;
use super::plan::names::MANAGER;

/// A series ends when nothing was added to it for as long.
const SERIES: Duration = Duration::from_secs(360);
/// Events remembered before old ones are looked for.
const FEW: usize = 1024;

/// Publishes Events.
pub struct Recorder {
    client: Client,
    instance: String,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    events: HashMap<Key, Latest>,
    /// Number of events at which old ones are dropped.
    limit: usize,
}

/// UID of the object, reason and note.
type Key = (String, String, String);

#[derive(Clone)]
struct Latest {
    name: String,
    count: i32,
    at: Instant,
}

impl Recorder {
    /// Publishes by this client; `instance` is the pod that does.
    pub fn new(client: Client, instance: Option<String>) -> Self {
        Self { client, instance: instance.unwrap_or_else(|| MANAGER.to_owned()), told: Mutex::default() }
    }

    /// Tells that something happened to an object.
    ///
    /// # Errors
    /// The API server does not take it.
    pub async fn publish(&self, news: &News, regarding: &ObjectReference) -> kube::Result<()> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), regarding.namespace.as_deref().unwrap_or("default"));
        let key = (regarding.uid.clone().unwrap_or_default(), news.reason.clone(), news.note.clone());
        let (time, now) = (Timestamp::now(), Instant::now());
        if let Some(latest) = self.again(&key, now) {
            let series = EventSeries { count: latest.count, last_observed_time: MicroTime(time) };
            let patched =
                api.patch(&latest.name, &PatchParams::default(), &Patch::Merge(json!({"series": series}))).await;
            match patched {
                // It was deleted: it is told anew.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => return other.map(drop),
            }
        }
        let event = self.event(news, regarding, time);
        let name = event.metadata.name.clone().unwrap_or_default();
        api.create(&PostParams::default(), &event).await?;
        self.remember(key, Latest { name, count: 1, at: now }, now);
        Ok(())
    }

    /// The one of the same words that is recent, counted once more.
    fn again(&self, key: &Key, now: Instant) -> Option<Latest> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = told.events.get_mut(key).filter(|latest| now.duration_since(latest.at) < SERIES)?;
        (latest.count, latest.at) = (latest.count.saturating_add(1), now);
        Some(latest.clone())
    }

    fn remember(&self, key: Key, latest: Latest, now: Instant) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.events.insert(key, latest);
        if told.events.len() >= told.limit.max(FEW) {
            told.events.retain(|_, latest| now.duration_since(latest.at) < SERIES);
            told.limit = told.events.len() * 2;
        }
    }

    fn event(&self, news: &News, regarding: &ObjectReference, time: Timestamp) -> Event {
        let object = regarding.name.as_deref().unwrap_or(MANAGER);
        Event {
            metadata: ObjectMeta {
                namespace: regarding.namespace.clone(),
                name: Some(format!("{object}.{:x}", time.as_nanosecond())),
                ..ObjectMeta::default()
            },
            action: Some(news.action.to_owned()),
            event_time: Some(MicroTime(time)),
            note: Some(news.note.clone()),
            reason: Some(news.reason.clone()),
            regarding: Some(regarding.clone()),
            reporting_controller: Some(MANAGER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(if news.warning { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(note: &str) -> Key {
        ("uid".to_owned(), "SwitchCompleted".to_owned(), note.to_owned())
    }

    fn recorder() -> Recorder {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        Recorder::new(Client::try_from(config).unwrap(), None)
    }

    #[tokio::test]
    async fn only_the_same_words_are_counted_and_only_for_a_while() {
        let (recorder, now) = (recorder(), Instant::now());
        recorder.remember(key("there"), Latest { name: "e".to_owned(), count: 1, at: now }, now);
        assert_eq!(recorder.again(&key("there"), now).map(|latest| latest.count), Some(2));
        assert_eq!(recorder.again(&key("there"), now).map(|latest| latest.count), Some(3));
        assert!(recorder.again(&key("and back"), now).is_none());
        assert!(recorder.again(&key("there"), now + SERIES).is_none());
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded_by_what_happened_lately() {
        let (recorder, start) = (recorder(), Instant::now());
        for number in 0..5 * FEW {
            let now = start + SERIES * u32::try_from(number / FEW).unwrap();
            recorder.remember(key(&number.to_string()), Latest { name: String::new(), count: 1, at: now }, now);
        }
        assert!(recorder.told.lock().unwrap().events.len() <= 2 * FEW);
    }
}
