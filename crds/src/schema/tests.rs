//! The committed definition is the one that the types give, and the API server's rules hold in it.

use serde_json::Value;

use super::{REGENERATE, crd, crd_yaml};

#[test]
fn the_committed_definition_is_current() {
    let committed = include_str!("../../modelprofiles.modelprofile.dev.yaml");
    assert!(
        committed == crd_yaml().unwrap(),
        "the types have changed; to regenerate the definition:\n\n    {REGENERATE}\n"
    );
}

/// Calls `visit` with every schema object and its path.
fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &serde_json::Map<String, Value>)) {
    let Some(object) = schema.as_object() else { return };
    visit(path, object);
    for (name, field) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
        walk(field, &format!("{path}.{name}"), visit);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get(key) {
            walk(inner, &format!("{path}[]"), visit);
        }
    }
}

fn schema() -> Value {
    crd().unwrap().pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap().clone()
}

#[test]
fn the_schema_is_structural_and_bounded() {
    walk(&schema(), "", &mut |path, object| {
        for keyword in ["anyOf", "oneOf", "allOf", "not", "$ref", "nullable"] {
            assert!(!object.contains_key(keyword), "{path} has {keyword}");
        }
        let kind = object.get("type").and_then(Value::as_str);
        assert!(kind.is_some() || object.contains_key("x-kubernetes-int-or-string"), "{path} has no type");
        if kind == Some("array") {
            assert!(object.contains_key("maxItems"), "{path} is a list without a limit");
            assert!(object.contains_key("x-kubernetes-list-type"), "{path} does not say how it merges");
        }
        if object.contains_key("additionalProperties") {
            assert!(object.contains_key("maxProperties"), "{path} is a map without a limit");
        }
        let format = object.get("format").and_then(Value::as_str);
        assert!(matches!(format, None | Some("int32" | "int64" | "date-time")), "{path} has the format {format:?}");
    });
}

#[test]
fn every_field_says_what_leaving_it_out_means() {
    walk(&schema(), "", &mut |path, object| {
        // Items and the two halves of an object are described by their fields.
        if path.ends_with("[]") || matches!(path, "" | ".spec" | ".status") {
            return;
        }
        let text = object.get("description").and_then(Value::as_str).unwrap_or_default();
        assert!(text.contains("Left out") || text.contains("Required"), "{path}: {text}");
        assert!(!text.contains("[`"), "{path} has a link that only rustdoc understands: {text}");
    });
}

#[test]
fn lists_with_names_refuse_duplicates() {
    let schema = schema();
    for (path, key) in [
        ("/properties/spec/properties/profiles", "name"),
        ("/properties/spec/properties/switching/properties/schedule/properties/windows", "name"),
        ("/properties/status/properties/conditions", "type"),
    ] {
        let list = schema.pointer(path).unwrap();
        assert_eq!(list["x-kubernetes-list-type"], "map", "{path}");
        assert_eq!(list["x-kubernetes-list-map-keys"], serde_json::json!([key]), "{path}");
    }
}

#[test]
fn the_definition_offers_what_kubectl_shows() {
    let crd = crd().unwrap();
    assert_eq!(crd["metadata"]["name"], "modelprofiles.modelprofile.dev");
    assert_eq!(crd["spec"]["names"]["shortNames"], serde_json::json!(["mp"]));
    let version = &crd["spec"]["versions"][0];
    let columns: Vec<_> =
        version["additionalPrinterColumns"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(columns, ["Active", "Desired", "Ready", "Pressure", "Available", "Degraded", "Age"]);
    assert_eq!(
        version["subresources"],
        serde_json::json!({
            "scale": {
                "specReplicasPath": ".spec.scaling.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
            "status": {},
        })
    );
}

#[test]
fn the_rules_between_fields_are_in_the_schema() {
    let schema = schema();
    let rules = |path: &str| -> Vec<String> {
        let list = schema.pointer(path).and_then(|s| s.get("x-kubernetes-validations")).and_then(Value::as_array);
        list.into_iter().flatten().map(|r| r["rule"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(rules("/properties/spec").len(), 5);
    assert_eq!(rules("/properties/spec/properties/scaling"), ["self.minReplicas <= self.maxReplicas"]);
    assert_eq!(rules("/properties/spec/properties/model/properties/uri")[0], "self == oldSelf");
}

#[test]
fn every_pattern_has_its_test_in_rust() {
    walk(&schema(), "", &mut |path, object| {
        if let Some(regex) = object.get("pattern").and_then(Value::as_str) {
            assert!(crate::patterns::find(regex).is_some(), "{path}: {regex} is not in patterns.rs");
        }
    });
}

#[test]
fn the_schema_that_manifests_are_held_against_is_this_one() {
    assert_eq!(crate::structure::schema(), Some(&schema()));
}
