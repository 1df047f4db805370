//! Whether an object of the cluster is what it should be.
//!
//! Two questions, for neither is enough: an annotation holds the digest of what was applied last, which tells that something
//! else is wanted now, removed fields included; and every field that is wanted is looked for in the object, which tells that
//! somebody changed it since. What the API server or others added is none of our business.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use modelprofile_api::parse_quantity;
use serde_json::Value;

use super::digest::short;
use super::object::Object;

/// Annotation with the digest of what was applied.
pub const APPLIED: &str = "modelprofile.dev/applied";

/// Writes the digest into the object. The number of replicas is not part of it: it changes without the rest.
pub fn seal(mut object: Object) -> Object {
    let digest = short(&without_replicas(&object).to_string());
    object.metadata_mut().annotations.get_or_insert_default().insert(APPLIED.to_owned(), digest);
    object
}

/// Why the sealed `wanted` has to be applied over `existing`, as the end of a sentence; `None` if it has not. The number of
/// replicas is not looked at.
pub fn difference(wanted: &Object, existing: &Object) -> Option<String> {
    let digest = |metadata: &ObjectMeta| metadata.annotations.as_ref().and_then(|all| all.get(APPLIED)).cloned();
    if digest(wanted.metadata()) != digest(existing.metadata()) {
        return Some("something else is wanted than was applied last".to_owned());
    }
    let field = missing(&without_replicas(wanted), &existing.to_value())?;
    Some(format!("{field} was changed by somebody else"))
}

fn without_replicas(object: &Object) -> Value {
    let mut value = object.to_value();
    if let Some(Value::Object(spec)) = value.get_mut("spec") {
        spec.remove("replicas");
    }
    value
}

/// Path of the first field of `wanted` that `existing` does not have; `None` if all of it is there. Items of lists are found by
/// their name where they have one, else by their place.
pub fn missing(wanted: &Value, existing: &Value) -> Option<String> {
    let mut path = Vec::new();
    (!contains(wanted, existing, &mut path)).then(|| path.join("."))
}

fn contains(wanted: &Value, existing: &Value, path: &mut Vec<String>) -> bool {
    match (wanted, existing) {
        (Value::Object(wanted), _) if wanted.is_empty() => existing.is_object() || existing.is_null(),
        (Value::Object(wanted), Value::Object(existing)) => wanted
            .iter()
            .all(|(key, value)| inside(key.clone(), value, existing.get(key).unwrap_or(&Value::Null), path)),
        (Value::Array(wanted), Value::Array(existing)) => wanted.iter().enumerate().all(|(index, item)| {
            let named = name(item);
            let found = match named {
                Some(_) => existing.iter().find(|other| name(other) == named),
                None => existing.get(index),
            };
            let step = named.map_or_else(|| index.to_string(), str::to_owned);
            inside(step, item, found.unwrap_or(&Value::Null), path)
        }),
        (Value::Array(wanted), Value::Null) => wanted.is_empty(),
        (Value::String(wanted), Value::String(existing)) => {
            wanted == existing || is_amount(path) && same_amount(wanted, existing)
        }
        _ => wanted == existing,
    }
}

/// What tells an item of a list from its neighbours, as server-side apply does: two mounts may be of one volume.
fn name(item: &Value) -> Option<&str> {
    item.get("mountPath").or_else(|| item.get("name"))?.as_str()
}

/// Leaves the step in the path if the value is not there.
fn inside(step: String, wanted: &Value, existing: &Value, path: &mut Vec<String>) -> bool {
    path.push(step);
    let found = contains(wanted, existing, path);
    if found {
        path.pop();
    }
    found
}

/// Whether the path leads to an amount, which the API server writes in its own way: `1024Mi` comes back as `1Gi`.
fn is_amount(path: &[String]) -> bool {
    path.iter().any(|step| matches!(step.as_str(), "requests" | "limits" | "sizeLimit"))
}

fn same_amount(one: &str, other: &str) -> bool {
    matches!((parse_quantity(one), parse_quantity(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::defaults_of_the_server(json!({"a": 1}), json!({"a": 1, "b": 2}), None)]
    #[case::another_value(json!({"a": {"b": 1}}), json!({"a": {"b": 2}}), Some("a.b"))]
    #[case::gone(json!({"a": {"b": 1}}), json!({}), Some("a"))]
    #[case::empty_is_dropped(json!({"a": {}, "b": []}), json!({}), None)]
    #[case::by_name(json!([{"name": "y", "v": 1}]), json!([{"name": "x"}, {"name": "y", "v": 1}]), None)]
    #[case::two_mounts_of_a_volume(
        json!([{"name": "x", "mountPath": "/a"}, {"name": "x", "mountPath": "/b"}]),
        json!([{"name": "x", "mountPath": "/a"}, {"name": "x", "mountPath": "/b"}]),
        None
    )]
    #[case::by_place(json!({"l": [{"v": 1}, {"v": 2}]}), json!({"l": [{"v": 1}, {"v": 3}]}), Some("l.1.v"))]
    #[case::shorter(json!(["a", "b"]), json!(["a"]), Some("1"))]
    #[case::amounts(json!({"limits": {"memory": "1024Mi"}}), json!({"limits": {"memory": "1Gi"}}), None)]
    #[case::other_amounts(json!({"limits": {"memory": "1Gi"}}), json!({"limits": {"memory": "2Gi"}}), Some("limits.memory"))]
    #[case::text_is_no_amount(json!({"env": "1024Mi"}), json!({"env": "1Gi"}), Some("env"))]
    fn what_is_wanted_is_looked_for(#[case] wanted: Value, #[case] existing: Value, #[case] field: Option<&str>) {
        assert_eq!(missing(&wanted, &existing).as_deref(), field);
    }
}
