//! A ModelProfile as the API server has it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use modelprofile_api::{ModelProfile, ModelProfileSpec, ModelProfileStatus};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Annotation of `kubectl apply` with the whole object once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A ModelProfile whose spec and status are read when a pass needs them.
///
/// Not the typed object: one that breaks the schema, because somebody wrote past it or an older version stored it, must not keep
/// the others from being read. And as text it has a tenth of the size that trees of JSON have, of which there are thousands.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = ModelProfile)]
pub struct Stored {
    #[serde(deserialize_with = "ours")]
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "text")]
    spec: Option<Box<str>>,
    #[serde(default, deserialize_with = "text")]
    status: Option<Box<str>>,
}

impl Stored {
    /// The desired state.
    ///
    /// # Errors
    /// It breaks the schema.
    pub fn spec(&self) -> serde_json::Result<ModelProfileSpec> {
        serde_json::from_str(self.spec_text())
    }

    /// The desired state as JSON.
    pub fn spec_text(&self) -> &str {
        self.spec.as_deref().unwrap_or("null")
    }

    /// The status; one that cannot be read is made anew.
    pub fn status(&self) -> ModelProfileStatus {
        let Some(status) = &self.status else { return ModelProfileStatus::default() };
        serde_json::from_str(status).unwrap_or_else(|error| {
            tracing::warn!("{}: the status cannot be read and is made anew: {error}", self.name_any());
            ModelProfileStatus::default()
        })
    }
}

/// Without what no pass reads: who wrote which field is often more than the fields themselves.
fn ours<'de, D: Deserializer<'de>>(from: D) -> Result<ObjectMeta, D::Error> {
    let mut metadata = ObjectMeta::deserialize(from)?;
    metadata.managed_fields = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
    Ok(metadata)
}

fn text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Box<str>>, D::Error> {
    let value = Value::deserialize(from)?;
    Ok((!value.is_null()).then(|| value.to_string().into_boxed_str()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_that_breaks_the_schema_is_read_as_far_as_it_goes() {
        let value = json!({
            "apiVersion": "modelprofile.dev/v1alpha1", "kind": "ModelProfile",
            "metadata": {
                "name": "m", "namespace": "n", "managedFields": [{"manager": "kubectl"}],
                "annotations": {LAST_APPLIED: "{}", "a": "b"},
            },
            "spec": {"profiles": 3}, "status": {"replicas": "many"},
        });
        let stored: Stored = serde_json::from_value(value).unwrap();
        assert!(stored.spec().unwrap_err().to_string().contains("invalid type"));
        assert_eq!(stored.status(), ModelProfileStatus::default());
        assert_eq!(stored.meta().managed_fields, None);
        assert_eq!(stored.annotations().keys().collect::<Vec<_>>(), ["a"]);
    }
}
