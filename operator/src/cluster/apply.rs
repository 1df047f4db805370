//! Carrying out a plan: the only file beside `status` writes that changes the cluster.

use std::sync::Arc;

use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::core::{ApiResource, GroupVersionKind};
use modelprofile_api::{API_VERSION, KIND, ModelProfile, ModelProfileStatus};
use serde_json::json;
use tokio::sync::Semaphore;

use super::error::Error;
use super::plan::names::{MANAGER, Owner};
use super::plan::object::{Kind, Object};
use super::plan::prepare::taken;

/// Objects that are written at once. Many ModelProfiles that come together would else starve a small API server, and with it the
/// renewal of the Lease.
const WRITES: usize = 8;

/// Writes to the cluster.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    places: Arc<Semaphore>,
}

impl Writer {
    /// Writes by this client.
    pub fn new(client: Client) -> Self {
        Self { client, places: Arc::new(Semaphore::new(WRITES)) }
    }

    /// Server-side apply: what we decide about is ours, whoever changed it; the rest stays.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Taken`] for an object that is not the owner's, which stays as it is. The watches show only
    /// objects with our labels, so it is asked for here, where it would else be taken over.
    pub async fn apply(&self, owner: &Owner, object: &Object) -> Result<(), Error> {
        let resource = resource(object.kind());
        let mut value = object.to_value();
        value["apiVersion"] = json!(resource.api_version);
        value["kind"] = json!(resource.kind);
        let api = self.api(&owner.namespace, &resource);
        let of = |error: kube::Error| Error::of(&format!("{} {}", object.kind(), object.name()), &error);
        let _place = self.places.acquire().await;
        let there = api.get_metadata_opt(object.name()).await.map_err(of)?;
        if there.is_some_and(|there| !owner.owns(&there.metadata)) {
            return Err(Error::Taken(taken(object.kind(), object.name())));
        }
        api.patch(object.name(), &PatchParams::apply(MANAGER).force(), &Patch::Apply(&value))
            .await
            .map(drop)
            .map_err(of)
    }

    /// Sets the replicas of a Deployment and leaves its template as it is.
    ///
    /// # Errors
    /// See [`Error`]; a Deployment that went meanwhile is none.
    pub async fn scale(&self, namespace: &str, deployment: &str, replicas: i32) -> Result<(), Error> {
        let api = self.api(namespace, &resource(Kind::Deployment));
        let patch = json!({"spec": {"replicas": replicas}});
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let scaled = api.patch(deployment, &params, &Patch::Merge(&patch)).await;
        unless_gone(scaled.map(drop)).map_err(|error| Error::of(&format!("Deployment {deployment}"), &error))
    }

    /// Deletes the object that was seen, in the background.
    ///
    /// # Errors
    /// See [`Error`]; one that is gone already, or is another one now, is none.
    pub async fn delete(&self, namespace: &str, kind: Kind, name: &str, uid: Option<String>) -> Result<(), Error> {
        let preconditions = uid.map(|uid| Preconditions { uid: Some(uid), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::background() };
        let deleted = self.api(namespace, &resource(kind)).delete(name, &params).await;
        match deleted {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => unless_gone(other.map(drop)).map_err(|error| Error::of(&format!("{kind} {name}"), &error)),
        }
    }

    /// Writes the status.
    ///
    /// # Errors
    /// See [`Error`]; a ModelProfile that went meanwhile is none.
    pub async fn status(&self, namespace: &str, name: &str, status: &ModelProfileStatus) -> Result<(), Error> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &ApiResource::erase::<ModelProfile>(&()));
        let value = json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "status": status});
        let written = api.patch_status(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&value)).await;
        unless_gone(written.map(drop)).map_err(|error| Error::of(&format!("the status of {KIND} {name}"), &error))
    }

    fn api(&self, namespace: &str, resource: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, resource)
    }
}

fn resource(kind: Kind) -> ApiResource {
    let (group, version, plural) = match kind {
        Kind::ConfigMap => ("", "v1", "configmaps"),
        Kind::Service => ("", "v1", "services"),
        Kind::Deployment => ("apps", "v1", "deployments"),
        Kind::Job => ("batch", "v1", "jobs"),
        Kind::NetworkPolicy => ("networking.k8s.io", "v1", "networkpolicies"),
        Kind::PodDisruptionBudget => ("policy", "v1", "poddisruptionbudgets"),
    };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind.as_str()), plural)
}

fn unless_gone(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other,
    }
}
