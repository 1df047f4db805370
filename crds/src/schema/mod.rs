//! The CustomResourceDefinition, and the few places where the derived schema is not what Kubernetes wants.

#[cfg(test)]
mod tests;

use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::ModelProfile;

/// The CustomResourceDefinition as the API server takes it.
///
/// # Errors
/// Never in a build that passed its tests: the definition is the same at every call, and a test makes one.
pub fn crd() -> Result<Value, serde_json::Error> {
    let mut crd = serde_json::to_value(ModelProfile::crd())?;
    if let Value::Object(crd) = &mut crd {
        // Written by the API server only.
        crd.remove("status");
    }
    if let Some(schema) = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema").and_then(Value::as_object_mut) {
        schema.insert("x-kubernetes-validations".to_owned(), json!([name_rule()]));
    }
    tidy(&mut crd);
    Ok(crd)
}

/// The operator makes a Service of that name, so it is a label of RFC 1035, shorter than most object names. Of an object's
/// metadata a rule may see the name alone, and only one at the root, which the types have no place for.
fn name_rule() -> Value {
    json!({
        "rule": "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 63",
        "message": "metadata.name is at most 63 lower-case letters, digits and '-', starting with a letter",
    })
}

/// What [`ModelUri::parse`](crate::ModelUri::parse) asks for.
fn uri_rules() -> Vec<Value> {
    vec![
        json!({
            "rule": r"self.matches('^(hf://[A-Za-z0-9._-]{1,96}/[A-Za-z0-9._-]{1,96}|pvc://[a-z0-9]([-a-z0-9]*[a-z0-9])?/[^\\x00]+|file://[.]?/[^\\x00]*|https://[^/\\x00]+/[^\\x00]+)$')",
            "message": "write hf://OWNER/NAME, pvc://CLAIM/PATH, file:///PATH or https://HOST/PATH",
        }),
        json!({
            "rule": r"self.startsWith('https://') || !self.matches('(^|[/\\\\])[.][.]([/\\\\]|$)')",
            "message": "a URI contains no `..`; write the path that it leads to",
        }),
        json!({
            "rule": "!self.matches('^hf://([.]/|[^/]*/[.]$)')",
            "message": "`.` is neither OWNER nor NAME of a Hugging Face repository",
        }),
    ]
}

/// The rules of a URI.
pub(crate) fn uri() -> Value {
    json!(uri_rules())
}

/// The rules of a URI that stays.
pub(crate) fn immutable_uri() -> Value {
    let mut rules = vec![
        json!({"rule": "self == oldSelf", "message": "model.uri is immutable: create another ModelProfile for another model"}),
    ];
    rules.extend(uri_rules());
    json!(rules)
}

/// A rule of texts that become part of a command line or of an address.
pub(crate) fn without_spaces() -> Value {
    json!([{"rule": r"!self.matches('[\\s\\v\\p{Z}\\p{Cc}]')", "message": "it contains no spaces"}])
}

/// A rule of times that are a decimal in quotes or a whole number.
pub(crate) fn seconds() -> Value {
    json!([{
        "rule": "string(self).matches('^[0-9]+([.][0-9]+)?$') && string(self).matches('[1-9]')",
        "message": "write a number of seconds above 0, such as 2 or \"0.5\"",
    }])
}

/// An amount: a whole number, or a text as Kubernetes writes amounts.
pub(crate) fn quantity(schema: &mut Schema) {
    int_or_string(schema);
    let object = schema.ensure_object();
    // The pattern is for texts, the minimum for numbers.
    object.insert("pattern".to_owned(), json!(crate::patterns::QUANTITY));
    object.insert("minimum".to_owned(), json!(0));
}

/// [`crd`] as YAML, with a head that says where it comes from.
///
/// # Errors
/// As [`crd`].
pub fn crd_yaml() -> Result<String, CrdError> {
    let body = serde_yaml::to_string(&crd()?)?;
    Ok(format!("# Generated from the types in crds/src. To regenerate: {REGENERATE}\n{body}"))
}

/// The command that writes the committed definition, at the top of the repository.
pub const REGENERATE: &str = "make crd";

/// Why the definition could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    /// As a value.
    #[error("the CustomResourceDefinition can not be written: {0}")]
    Json(#[from] serde_json::Error),
    /// As YAML.
    #[error("the CustomResourceDefinition can not be written: {0}")]
    Yaml(#[from] serde_yaml::Error),
}

/// Makes of a derived schema what a person would have written:
///
/// - integer formats of Rust that OpenAPI does not know make the API server warn at each apply; the bounds stay;
/// - an optional field is left out, never null, so that `has(self.field)` in a rule means that there is a value;
/// - bounds of whole numbers are whole; the line ends of a doc comment are no line ends of a description.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => {
            let format = match map.get("format").and_then(Value::as_str) {
                Some("uint8" | "uint16" | "uint32") => Some("int32"),
                Some("uint" | "uint64") => Some("int64"),
                _ => None,
            };
            if let Some(format) = format {
                map.insert("format".to_owned(), json!(format));
            }
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text = text.replace("\n\n", " ").replace('\n', " ");
            }
            if map.get("nullable") == Some(&Value::Bool(true)) {
                map.remove("nullable");
            }
            if let Some(Value::Array(values)) = map.get_mut("enum") {
                values.retain(|v| !v.is_null());
            }
            for bound in ["minimum", "maximum"] {
                if let Some(whole) = map.get(bound).and_then(Value::as_f64).filter(|f| f.fract() == 0.0) {
                    map.insert(bound.to_owned(), json!(whole as i64));
                }
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// A string that may be written as a whole number.
pub(crate) fn int_or_string(schema: &mut Schema) {
    let object = schema.ensure_object();
    object.remove("type");
    object.insert("x-kubernetes-int-or-string".to_owned(), json!(true));
}

/// Documented variants come as one schema each; Kubernetes wants one list of values.
pub(crate) fn plain_enum(schema: &mut Schema) {
    let object = schema.ensure_object();
    let mut values = Vec::new();
    if let Some(Value::Array(variants)) = object.remove("oneOf") {
        for variant in &variants {
            match (variant.get("const"), variant.get("enum")) {
                (Some(value), _) => values.push(value.clone()),
                (None, Some(Value::Array(several))) => values.extend(several.iter().cloned()),
                _ => {}
            }
        }
    } else if let Some(Value::Array(plain)) = object.remove("enum") {
        values = plain;
    }
    object.insert("type".to_owned(), json!("string"));
    object.insert("enum".to_owned(), Value::Array(values));
}

/// An object that Kubernetes itself checks elsewhere.
pub(crate) fn any_object(_: &mut SchemaGenerator) -> Schema {
    let mut object = Map::new();
    object.insert("type".to_owned(), json!("object"));
    object.insert("x-kubernetes-preserve-unknown-fields".to_owned(), json!(true));
    Schema::from(object)
}
