//! Objects of the cluster as values of one type, so that a plan can hold any of them.

use std::fmt;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

/// Kind of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1`
    ConfigMap,
    /// `v1`
    Service,
    /// `apps/v1`
    Deployment,
    /// `batch/v1`
    Job,
    /// `networking.k8s.io/v1`
    NetworkPolicy,
    /// `policy/v1`
    PodDisruptionBudget,
}

impl Kind {
    /// The kind's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Service => "Service",
            Self::Deployment => "Deployment",
            Self::Job => "Job",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An object that is made, or was found.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A ConfigMap.
    ConfigMap(Box<ConfigMap>),
    /// A Service.
    Service(Box<Service>),
    /// A Deployment.
    Deployment(Box<Deployment>),
    /// A Job.
    Job(Box<Job>),
    /// A NetworkPolicy.
    NetworkPolicy(Box<NetworkPolicy>),
    /// A PodDisruptionBudget.
    PodDisruptionBudget(Box<PodDisruptionBudget>),
}

/// The same expression for whatever object it is.
macro_rules! each {
    ($object:expr, $inner:ident => $body:expr) => {
        match $object {
            Object::ConfigMap($inner) => $body,
            Object::Service($inner) => $body,
            Object::Deployment($inner) => $body,
            Object::Job($inner) => $body,
            Object::NetworkPolicy($inner) => $body,
            Object::PodDisruptionBudget($inner) => $body,
        }
    };
}

impl Object {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::ConfigMap(_) => Kind::ConfigMap,
            Self::Service(_) => Kind::Service,
            Self::Deployment(_) => Kind::Deployment,
            Self::Job(_) => Kind::Job,
            Self::NetworkPolicy(_) => Kind::NetworkPolicy,
            Self::PodDisruptionBudget(_) => Kind::PodDisruptionBudget,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        each!(self, object => &object.metadata)
    }

    /// Its metadata, to change.
    pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
        each!(self, object => &mut object.metadata)
    }

    /// The object as the API server gets it. Types of Kubernetes can always be written.
    pub fn to_value(&self) -> Value {
        each!(self, object => serde_json::to_value(object).unwrap_or_default())
    }
}

macro_rules! from {
    ($($kind:ident),*) => {$(
        impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Box::new(object))
            }
        }
    )*};
}

from!(ConfigMap, Service, Deployment, Job, NetworkPolicy, PodDisruptionBudget);
