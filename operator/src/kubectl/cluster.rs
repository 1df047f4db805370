//! Which cluster, and reading and writing there.

use anyhow::{Context, anyhow, bail};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event as CoreEvent, Pod};
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};
use modelprofile_api::{EngineType, ModelProfile};

use super::Flags;
use super::pin::Change;
use super::view::{View, missing};
use crate::cluster::plan::engine;
use crate::cluster::plan::names::Owner;
use crate::local::events::Event;
use crate::local::notes::Severity;
use crate::scrape::Metrics;

/// Field manager of what is written here.
pub const MANAGER: &str = "kubectl-modelprofile";
/// How often a write is decided anew after somebody else was faster. The operator writes a status seldom.
const ATTEMPTS: u32 = 5;

/// A cluster, with the rights of the person who asks.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    namespace: String,
}

impl Cluster {
    /// The cluster that the flags and the kubeconfig say.
    ///
    /// # Errors
    /// There is no kubeconfig, or no such context in it.
    pub async fn connect(flags: &Flags) -> anyhow::Result<Self> {
        let options = KubeConfigOptions { context: flags.context.clone(), ..KubeConfigOptions::default() };
        let config = match (&flags.kubeconfig, &flags.context) {
            (Some(path), _) => {
                let what = || format!("the kubeconfig {}", path.display());
                let file = Kubeconfig::read_from(path).with_context(what)?;
                Config::from_custom_kubeconfig(file, &options).await.with_context(what)?
            }
            (None, Some(context)) => Config::from_kubeconfig(&options).await.with_context(|| {
                format!("the context {context} cannot be used; `kubectl config get-contexts` lists those there are")
            })?,
            (None, None) => Config::infer().await.context("no cluster: set KUBECONFIG, or give --kubeconfig")?,
        };
        let namespace = flags.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).context("the cluster's configuration cannot be used")?;
        Ok(Self { client, namespace })
    }

    fn profiles(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &ApiResource::erase::<ModelProfile>(&()))
    }

    /// The ModelProfile of that name.
    ///
    /// # Errors
    /// There is none (the message names those there are), or it may not be read.
    pub async fn get(&self, name: &str) -> anyhow::Result<View> {
        match self.find(name).await? {
            Some(view) => Ok(view),
            None => bail!(missing(&self.namespace, name, &self.list(false).await?)),
        }
    }

    /// The same; `None` if there is none.
    ///
    /// # Errors
    /// It may not be read.
    pub async fn find(&self, name: &str) -> anyhow::Result<Option<View>> {
        let object = self.profiles().get_opt(name).await.map_err(|error| told("read ModelProfiles", error))?;
        Ok(object.as_ref().map(View::of))
    }

    /// The ModelProfiles of the namespace, or of all.
    ///
    /// # Errors
    /// They may not be listed, or the cluster does not know them.
    pub async fn list(&self, all: bool) -> anyhow::Result<Vec<View>> {
        let resource = ApiResource::erase::<ModelProfile>(&());
        let api = if all { Api::all_with(self.client.clone(), &resource) } else { self.profiles() };
        let list = api.list(&ListParams::default()).await.map_err(|error| told("list ModelProfiles", error))?;
        Ok(list.iter().map(View::of).collect())
    }

    /// Where there are none.
    pub fn none(&self, all: bool) -> String {
        let place = if all { "the cluster".to_owned() } else { format!("the namespace {}", self.namespace) };
        let hint = if all { "apply one of deploy/examples" } else { "`-A` lists those of all namespaces" };
        format!("{place} has no ModelProfiles; {hint}")
    }

    /// Reads, decides, and writes what was decided over the version that was read; again where somebody else was faster. Returns
    /// what there is afterwards, and the sentence about it.
    ///
    /// # Errors
    /// What `decide` refuses, and what the API server does not take.
    pub async fn change(
        &self,
        name: &str,
        decide: impl Fn(&View) -> anyhow::Result<Change>,
    ) -> anyhow::Result<(View, String)> {
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        for _ in 0..ATTEMPTS {
            let view = self.get(name).await?;
            let (patch, says) = match decide(&view)? {
                Change::Nothing(says) => return Ok((view, says)),
                Change::Write { patch, says } => (patch, says),
            };
            match self.profiles().patch(name, &params, &Patch::Merge(patch)).await {
                Ok(object) => return Ok((View::of(&object), says)),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(told("change ModelProfiles", error)),
            }
        }
        bail!("others change {}/{name} all the time: nothing was written; try again later", self.namespace)
    }

    /// The worker pods of a ModelProfile.
    ///
    /// # Errors
    /// They may not be listed.
    pub async fn pods(&self, view: &View) -> anyhow::Result<Vec<Pod>> {
        let owner = Owner { namespace: view.namespace.clone(), name: view.name.clone(), uid: view.uid.clone() };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &view.namespace);
        let list = api.list(&ListParams::default().labels(&owner.selector())).await;
        let mut pods = list.map_err(|error| told("list pods", error))?.items;
        pods.sort_by_key(ResourceExt::name_any);
        Ok(pods)
    }

    /// The newest `most` Events about a ModelProfile, newest last. Of core/v1, which the cluster's own role `view` has.
    ///
    /// # Errors
    /// They may not be listed.
    pub async fn events(&self, view: &View, most: usize) -> anyhow::Result<Vec<Event>> {
        let api: Api<CoreEvent> = Api::namespaced(self.client.clone(), &view.namespace);
        let about = ListParams::default().fields(&format!("involvedObject.uid={}", view.uid));
        let list = api.list(&about).await.map_err(|error| told("list events", error))?;
        let mut events: Vec<Event> = list.items.iter().filter_map(event).collect();
        events.sort_by_key(|event| event.last_timestamp);
        Ok(events.split_off(events.len().saturating_sub(most)))
    }

    /// The metrics of a pod, through the API server; `None` where it does not answer, or the right `pods/proxy` is missing.
    pub async fn metrics(&self, namespace: &str, pod: &str, kind: EngineType) -> Option<Metrics> {
        let engine::Endpoint { port, path } = engine::metrics(kind);
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{path}");
        let request = http(&path)?;
        self.client.request_text(request).await.ok().map(|text| Metrics::parse(&text))
    }
}

fn http(path: &str) -> Option<axum::http::Request<Vec<u8>>> {
    axum::http::Request::get(path).body(Vec::new()).ok()
}

/// An Event in the shape of both of its APIs: a series, or a count, or neither.
fn event(event: &CoreEvent) -> Option<Event> {
    let series = event.series.as_ref();
    let once = event.event_time.as_ref().map(|time| time.0);
    let first = event.first_timestamp.as_ref().map(|time| time.0).or(once);
    let created = event.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let last = series.and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let last: Timestamp = last.or(event.last_timestamp.as_ref().map(|time| time.0)).or(first).or(created)?;
    Some(Event {
        severity: if event.type_.as_deref() == Some("Warning") { Severity::Warning } else { Severity::Normal },
        reason: event.reason.clone().unwrap_or_default(),
        message: event.message.clone().unwrap_or_default(),
        count: series
            .and_then(|series| series.count)
            .or(event.count)
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or(1)
            .max(1),
        first_timestamp: first.unwrap_or(last),
        last_timestamp: last,
    })
}

/// An error of the API server, with what to do about it.
fn told(what: &str, error: kube::Error) -> anyhow::Error {
    match &error {
        kube::Error::Api(status) if status.code == 403 => {
            let role = if what.starts_with("change") { "modelprofile-edit" } else { "modelprofile-view" };
            anyhow!(
                "you may not {what}: {}; ask for the ClusterRole {role}, or the cluster's own role that includes it",
                status.message
            )
        }
        kube::Error::Api(status) if status.code == 401 => {
            anyhow!("the API server does not know you: log in again, and see that the context is the right one")
        }
        kube::Error::Api(status) if status.code == 404 => {
            anyhow!(
                "this cluster does not know ModelProfiles: install charts/modelprofile-operator, or choose another --context"
            )
        }
        kube::Error::Api(status) => anyhow!("the API server did not {what}: {}", status.message),
        _ => anyhow::Error::new(error)
            .context("the API server cannot be asked; see that the kubeconfig's context is the right one"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: serde_json::Value) -> Event {
        event(&serde_json::from_value(value).unwrap()).unwrap()
    }

    #[test]
    fn an_event_of_either_api_has_its_times_and_its_count() {
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        let series = read(json!({"metadata": {}, "involvedObject": {}, "type": "Warning", "reason": "CrashLoop",
            "message": "it ended", "eventTime": "2026-03-02T10:00:00.000000Z",
            "series": {"count": 3, "lastObservedTime": "2026-03-02T11:00:00.000000Z"}}));
        assert_eq!(
            series,
            Event {
                severity: Severity::Warning,
                reason: "CrashLoop".to_owned(),
                message: "it ended".to_owned(),
                count: 3,
                first_timestamp: time("2026-03-02T10:00:00Z"),
                last_timestamp: time("2026-03-02T11:00:00Z"),
            }
        );
        let old = read(json!({"metadata": {}, "involvedObject": {}, "type": "Normal", "count": 2,
            "firstTimestamp": "2026-03-02T10:00:00Z", "lastTimestamp": "2026-03-02T10:30:00Z"}));
        assert_eq!(
            (old.count, old.first_timestamp, old.last_timestamp),
            (2, time("2026-03-02T10:00:00Z"), time("2026-03-02T10:30:00Z"))
        );
    }

    #[test]
    fn an_error_of_the_api_server_says_what_to_do() {
        let api = |code, message: &str| {
            let status = kube::core::Status { code, message: message.to_owned(), ..kube::core::Status::default() };
            kube::Error::Api(Box::new(status))
        };
        assert_eq!(
            told("change ModelProfiles", api(403, "forbidden")).to_string(),
            "you may not change ModelProfiles: forbidden; ask for the ClusterRole modelprofile-edit, or the cluster's own role that includes it"
        );
        assert_eq!(
            told("list ModelProfiles", api(404, "404 page not found")).to_string(),
            "this cluster does not know ModelProfiles: install charts/modelprofile-operator, or choose another --context"
        );
        assert_eq!(
            told("change ModelProfiles", api(422, "spec.switching: Invalid")).to_string(),
            "the API server did not change ModelProfiles: spec.switching: Invalid"
        );
    }
}
