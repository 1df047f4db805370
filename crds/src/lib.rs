//! The ModelProfile API: one language model at several precisions, as a value.
//!
//! ```text
//! file -> Manifest -> validate -> Validated      (local mode, worker, `modelprofile validate`)
//! API server -> ModelProfile (feature `kube`)    (operator): the same spec, with metadata and status
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `spec` | the desired state: [`ModelProfileSpec`], the engine |
//! | `model` | the checkpoint: [`ModelSpec`], [`ModelUri`], licence |
//! | `profile` | one rung: [`Profile`], weight and KV formats, methods |
//! | `switching` | when the profile changes: [`Switching`], targets, schedule |
//! | `gate` | [`Verdict`]: what was measured, held against the limits of [`Quality`] |
//! | `measured` | [`MeasuredQuality`]: what quantizing cost, as it was measured |
//! | `scaling` | how many workers: [`Scaling`]; how good: [`Quality`] |
//! | `placement` | where: [`Placement`], [`Cache`] |
//! | `status` | the observed state: [`ModelProfileStatus`] |
//! | [`conditions`] | condition types and reasons, and what each says |
//! | `quantity` | [`Quantity`], [`Decimal`], [`parse_quantity`] |
//! | `manifest` | [`Manifest`] from a file, and [`Validated`] |
//! | `locate` | in which line of a YAML file a field stands, for errors |
//! | `structure` | a manifest held against the schema, all errors at once |
//! | `validate` | the rules between fields, and what this build supports |
//! | `schema` | the CustomResourceDefinition (feature `kube`) |
//! | [`worker`] | the worker's admin API |

pub mod conditions;
mod errors;
mod gate;
mod locate;
mod manifest;
mod measured;
mod model;
mod patterns;
mod placement;
mod profile;
mod quantity;
mod scaling;
#[cfg(feature = "kube")]
mod schema;
mod spec;
mod status;
mod structure;
mod switching;
mod validate;
pub mod worker;

pub use errors::{Errors, FieldError};
pub use gate::{Breach, Rule, Verdict, nearest};
pub use locate::with_line;
pub use manifest::{API_VERSION, KIND, Manifest, Metadata, Validated};
pub use measured::MeasuredQuality;
pub use model::{License, ModelSpec, ModelUri, SecretKeyRef, SecretRef};
pub use patterns::time_of_day;
pub use placement::{Cache, EmptyDir, Placement, Resources, TaintEffect, Toleration, TolerationOperator};
pub use profile::{KvCache, KvCacheFormat, Method, Profile, WeightFormat, Weights, ZeroPoint};
pub use quantity::{Decimal, Quantity, QuantityError, parse_quantity};
pub use scaling::{Dataset, OnFailure, Quality, ScaleDown, Scaling, ScalingMode};
#[cfg(feature = "kube")]
pub use schema::{CrdError, REGENERATE, crd, crd_yaml};
#[cfg(feature = "kube")]
pub use spec::ModelProfile;
pub use spec::{Engine, EngineType, EnvVar, ModelProfileSpec};
pub use status::{
    Condition, ConditionStatus, DecisionAction, GateOutcome, LastDecision, ModelProfileStatus, ProfileStatus,
    SWITCH_HISTORY_LIMIT, SwitchRecord,
};
pub use switching::{
    Day, Preference, Schedule, Strategy, Switching, SwitchingMode, Targets, ToDensity, ToQuality, Window,
};
pub use validate::{needs_cluster, notices, unsupported, validate, violations};
