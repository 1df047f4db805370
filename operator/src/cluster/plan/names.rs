//! Names and labels of everything that belongs to a ModelProfile, and the sets that its worker pods form.
//!
//! ```text
//! ModelProfile NAME ─┬─ Deployment NAME           (set InPlace)   ─┐
//!                    ├─ Deployment NAME-PROFILE   (set Profile)   ─┴─ pods, selected by the Service NAME, one set at a time
//!                    ├─ Service, PodDisruptionBudget, NetworkPolicy NAME
//!                    ├─ ConfigMap NAME-worker
//!                    └─ Job NAME-prepare-KEY
//! ```

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use modelprofile_api::{API_VERSION, KIND, Strategy};

/// Field manager of everything that the operator writes.
pub const MANAGER: &str = "modelprofile-operator";
/// Value of `app.kubernetes.io/name`.
pub const APP: &str = "modelprofile";
/// Label with the name of the ModelProfile.
pub const NAME: &str = "modelprofile.dev/name";
/// Label with the profile of a pod that serves only this one.
pub const PROFILE: &str = "modelprofile.dev/profile";
/// Label that keeps the pods of the set [`Set::InPlace`] apart from those of the other sets, for a selector cannot say "has no
/// such label".
pub const SET: &str = "modelprofile.dev/set";
/// Value of [`SET`].
const IN_PLACE: &str = "in-place";
/// `app.kubernetes.io/component` of worker pods.
pub const WORKER: &str = "worker";
/// `app.kubernetes.io/component` of pods that prepare artifacts.
pub const PREPARE: &str = "prepare";

/// Longest label value. The name of a Job is one, because its pods carry it.
const LABEL: usize = 63;
/// Hexadecimal digits of the key in the name of a Job.
const KEY: usize = 10;

/// The ModelProfile that objects belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its namespace, where all of its objects are.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: another object of the same name, made after this one was deleted, is not the owner.
    pub uid: String,
}

impl Owner {
    /// Labels of every object.
    pub fn labels(&self) -> BTreeMap<String, String> {
        labels([
            ("app.kubernetes.io/name", APP),
            ("app.kubernetes.io/instance", &self.name),
            ("app.kubernetes.io/managed-by", MANAGER),
            (NAME, &self.name),
        ])
    }

    /// [`Owner::labels`] with the component.
    pub fn component(&self, component: &str) -> BTreeMap<String, String> {
        let mut all = self.labels();
        all.insert("app.kubernetes.io/component".to_owned(), component.to_owned());
        all
    }

    /// What selects all pods: those that prepare, too.
    pub fn any_pod(&self) -> BTreeMap<String, String> {
        labels([("app.kubernetes.io/name", APP), ("app.kubernetes.io/instance", &self.name)])
    }

    /// What selects the worker pods of all sets.
    pub fn workers(&self) -> BTreeMap<String, String> {
        let mut selector = self.any_pod();
        selector.insert("app.kubernetes.io/component".to_owned(), WORKER.to_owned());
        selector
    }

    /// [`Owner::workers`] as text, for `status.selector`.
    pub fn selector(&self) -> String {
        let parts: Vec<String> = self.workers().iter().map(|(key, value)| format!("{key}={value}")).collect();
        parts.join(",")
    }

    /// Metadata of an object that goes when the ModelProfile goes.
    ///
    /// `blockOwnerDeletion` is left out: setting it needs a permission on the owner's finalizers, and nothing here has to
    /// outlive the owner.
    pub fn metadata(&self, name: String, labels: BTreeMap<String, String>) -> ObjectMeta {
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace.clone()),
            labels: Some(labels),
            owner_references: Some(vec![OwnerReference {
                api_version: API_VERSION.to_owned(),
                kind: KIND.to_owned(),
                name: self.name.clone(),
                uid: self.uid.clone(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        }
    }

    /// Whether an object of the cluster is this owner's. One of the same name that is somebody else's is left alone.
    pub fn owns(&self, metadata: &ObjectMeta) -> bool {
        let owners = metadata.owner_references.as_deref().unwrap_or_default();
        owners.iter().any(|owner| owner.controller == Some(true) && owner.uid == self.uid)
    }

    /// Audience of tokens for the admin API of the workers.
    pub fn audience(&self) -> String {
        format!("{}/{}/{}", self.namespace, self.name, self.uid)
    }

    /// The ConfigMap of worker and prepare pods.
    pub fn config_map(&self) -> String {
        format!("{}-worker", self.name)
    }

    /// The Job that prepares what `key` stands for. A long name is cut: the whole of it must fit into a label, and the key, in
    /// which the name takes part, keeps apart what was cut.
    pub fn job(&self, key: &str) -> String {
        let infix = "-prepare-";
        let room = LABEL - KEY - infix.len();
        let name = self.name.get(..room).unwrap_or(&self.name).trim_end_matches('-');
        format!("{name}{infix}{key}")
    }
}

/// Worker pods that come from one Deployment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// Pods that change their profile while they serve.
    InPlace,
    /// Pods that serve one profile for all their life.
    Profile(String),
}

impl Set {
    /// The set that serves `profile` with a strategy.
    pub fn of(strategy: Strategy, profile: &str) -> Self {
        match strategy {
            Strategy::InPlace => Self::InPlace,
            Strategy::Surge | Strategy::Recreate => Self::Profile(profile.to_owned()),
        }
    }

    /// The set that labels, or a selector, speak of; `None` if they are of no set.
    pub fn of_labels(labels: &BTreeMap<String, String>) -> Option<Self> {
        match (labels.get(PROFILE), labels.get(SET)) {
            (Some(profile), _) => Some(Self::Profile(profile.clone())),
            (None, Some(set)) if set == IN_PLACE => Some(Self::InPlace),
            (None, _) => None,
        }
    }

    /// The one profile of its pods.
    pub fn profile(&self) -> Option<&str> {
        match self {
            Self::InPlace => None,
            Self::Profile(profile) => Some(profile),
        }
    }

    /// Name of its Deployment.
    pub fn deployment(&self, owner: &Owner) -> String {
        match self {
            Self::InPlace => owner.name.clone(),
            Self::Profile(profile) => format!("{}-{profile}", owner.name),
        }
    }

    /// What selects its pods, and no others.
    pub fn selector(&self, owner: &Owner) -> BTreeMap<String, String> {
        self.mark(owner.workers())
    }

    /// Labels of its Deployment and pods.
    pub fn labels(&self, owner: &Owner) -> BTreeMap<String, String> {
        self.mark(owner.component(WORKER))
    }

    fn mark(&self, mut labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
        let (key, value) = match self {
            Self::InPlace => (SET, IN_PLACE),
            Self::Profile(profile) => (PROFILE, profile.as_str()),
        };
        labels.insert(key.to_owned(), value.to_owned());
        labels
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InPlace => f.write_str("the workers"),
            Self::Profile(profile) => write!(f, "the workers of {profile}"),
        }
    }
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> Owner {
        Owner { namespace: "team".into(), name: name.into(), uid: "u-1".into() }
    }

    #[test]
    fn the_name_of_a_job_is_a_label() {
        let a = |count: usize| "a".repeat(count);
        for (name, kept) in
            [("llama".to_owned(), "llama".to_owned()), (a(63), a(44)), (format!("{}-{}", a(43), a(19)), a(43))]
        {
            let job = owner(&name).job("0123456789");
            assert_eq!(job, format!("{kept}-prepare-0123456789"));
            assert!(job.len() <= LABEL, "{job}");
        }
    }

    #[test]
    fn the_pods_of_a_set_are_selected_by_it_alone_and_tell_their_set() {
        let owner = owner("llama");
        let sets = [Set::InPlace, Set::Profile("quality".into()), Set::Profile("density".into())];
        for set in &sets {
            let labels = set.labels(&owner);
            assert_eq!(Set::of_labels(&labels).as_ref(), Some(set));
            assert_eq!(Set::of_labels(&set.selector(&owner)).as_ref(), Some(set));
            for other in &sets {
                let selects = other.selector(&owner).iter().all(|(key, value)| labels.get(key) == Some(value));
                assert_eq!(selects, other == set, "{other} {set}");
            }
        }
        assert_eq!(Set::of_labels(&owner.component(PREPARE)), None);
    }

    #[test]
    fn the_selector_is_text_for_the_scale_subresource() {
        assert_eq!(
            owner("llama").selector(),
            "app.kubernetes.io/component=worker,app.kubernetes.io/instance=llama,app.kubernetes.io/name=modelprofile"
        );
    }

    #[test]
    fn an_owner_of_the_same_name_is_another_one() {
        let metadata = owner("llama").metadata("llama".into(), BTreeMap::new());
        assert!(owner("llama").owns(&metadata));
        assert!(!Owner { uid: "u-2".into(), ..owner("llama") }.owns(&metadata));
        assert!(!owner("llama").owns(&ObjectMeta::default()));
    }
}
