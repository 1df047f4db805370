//! A ModelProfile as a file: what a user writes, without a cluster.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Errors, FieldError, ModelProfileSpec, Profile, SwitchingMode, structure, validate};

/// `apiVersion` of every manifest.
pub const API_VERSION: &str = "modelprofile.dev/v1alpha1";
/// `kind` of every manifest.
pub const KIND: &str = "ModelProfile";

/// A ModelProfile as a user writes it. Its structure is that of the schema; whether its fields fit together,
/// [`validate`](crate::validate()) says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// [`API_VERSION`].
    pub api_version: String,
    /// [`KIND`].
    pub kind: String,
    /// Name and namespace.
    pub metadata: Metadata,
    /// What the user asks for.
    pub spec: ModelProfileSpec,
}

/// The part of an object's metadata that matters without a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Name of the object. Required.
    pub name: String,
    /// Its namespace. Left out: that of whoever applies it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

impl Manifest {
    /// Reads YAML or JSON and holds its structure against the schema.
    ///
    /// # Errors
    /// Every field that is unknown, missing, of the wrong type or out of its range.
    pub fn from_yaml(text: &str) -> Result<Self, Errors> {
        let (manifest, found) = read(text);
        match manifest {
            Some(manifest) if found.errors.is_empty() => Ok(manifest),
            _ => Err(distinct(found.errors)),
        }
    }

    /// The name that clients put into `model`.
    pub fn served_name(&self) -> &str {
        self.spec.model.served_name.as_deref().unwrap_or(&self.metadata.name)
    }
}

/// A manifest that can be carried out by this build: it passed every check there is without a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Validated(Manifest);

impl Validated {
    /// For [`validate()`](crate::validate()) alone.
    pub(crate) fn new(manifest: Manifest) -> Self {
        Self(manifest)
    }

    /// Reads YAML or JSON and makes every check: structure, rules, and what this build supports.
    ///
    /// # Errors
    /// Everything that is wrong, at once. Rules are checked as far as the structure could be read.
    pub fn from_yaml(text: &str) -> Result<Self, Errors> {
        let (manifest, found) = read(text);
        let mut errors = found.errors;
        if let Some(manifest) = manifest {
            if errors.is_empty() {
                return validate(&manifest).map_err(Errors);
            }
            if !found.incomplete {
                // What was left out of the manifest because it is wrong must not be reported as missing.
                let mut more = validate::violations(&manifest);
                more.extend(validate::unsupported(&manifest));
                more.retain(|m| !errors.iter().any(|e| e.is_near(m)));
                errors.append(&mut more);
            }
        }
        Err(distinct(errors))
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.0
    }

    /// Its spec.
    pub fn spec(&self) -> &ModelProfileSpec {
        &self.0.spec
    }

    /// The profile of that name.
    pub fn profile(&self, name: &str) -> Option<&Profile> {
        self.0.spec.profiles.iter().find(|p| p.name == name)
    }

    /// The profile to start in, and to stay in unless somebody decides otherwise: the pinned one, else the first.
    pub fn resting_profile(&self) -> &Profile {
        let switching = &self.0.spec.switching;
        switching
            .pinned_profile
            .as_deref()
            .filter(|_| switching.mode == SwitchingMode::Pinned)
            .and_then(|name| self.profile(name))
            .unwrap_or(&self.0.spec.profiles[0])
    }

    /// `placement.memoryBudget` in bytes; `None` if it was left out.
    pub fn memory_budget_bytes(&self) -> Option<u64> {
        // Validation has read it already.
        self.0.spec.placement.memory_budget.as_ref().and_then(|q| q.to_u64().ok())
    }
}

/// As much of the manifest as can be used, and what is wrong with the rest.
fn read(text: &str) -> (Option<Manifest>, structure::Findings) {
    let mut found = structure::Findings::default();
    let value = match parse(text) {
        Ok(value) => value,
        Err(error) => {
            found
                .errors
                .push(FieldError::new("", format!("not readable as YAML: {}", advised(&error.to_string(), text))));
            return (None, found);
        }
    };
    let Value::Object(mut fields) = value else {
        let message =
            "not a ModelProfile; it starts with `apiVersion: modelprofile.dev/v1alpha1` and `kind: ModelProfile`";
        found.errors.push(FieldError::new("", message));
        return (None, found);
    };
    // Another kind of object would only give a list of errors that help nobody.
    for (name, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        let message = match fields.get(name).and_then(Value::as_str) {
            Some(actual) if actual == expected => continue,
            Some(actual) => format!("`{actual}` is not known; write {expected}"),
            None => format!("required, but missing; write `{name}: {expected}`"),
        };
        found.errors.push(FieldError::new(name, message));
    }
    if !found.errors.is_empty() {
        return (None, found);
    }
    // Written by the operator; `kubectl get -o yaml` brings it along.
    fields.remove("status");
    let Some(schema) = structure::schema() else {
        found.errors.push(FieldError::new("", "the schema that this program carries is broken; install it again"));
        return (None, found);
    };
    let metadata_usable = metadata(&fields, &mut found);
    // The schema has the spec only: the rest is the same for all objects and no business of a definition.
    let (head, body) = fields.into_iter().partition(|(name, _)| matches!(&**name, "apiVersion" | "kind" | "metadata"));
    let usable = structure::check(schema, Value::Object(body), "", &mut found);
    let manifest = usable.filter(|_| metadata_usable).and_then(|mut usable| {
        if let Value::Object(body) = &mut usable {
            let head: serde_json::Map<String, Value> = head;
            body.extend(head);
        }
        serde_json::from_value(usable)
            .map_err(|error| {
                // The types accept what the schema accepts, so this is not reached unless the schema spoke already.
                if found.errors.is_empty() {
                    found.errors.push(FieldError::new("", error.to_string()));
                }
            })
            .ok()
    });
    (manifest, found)
}

/// YAML as the value that an API server would get. By way of a YAML value, which finds a key that is there twice.
fn parse(text: &str) -> Result<Value, Box<dyn std::error::Error>> {
    let mut documents = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let document = serde_yaml::Value::deserialize(document)?;
        // A `---` at the end, or a head of comments alone, is no document to anybody but YAML.
        if !document.is_null() {
            documents.push(document);
        }
    }
    if documents.len() > 1 {
        let count = documents.len();
        return Err(format!("it holds {count} documents; put each ModelProfile into a file of its own").into());
    }
    let mut yaml = documents.pop().unwrap_or_default();
    yaml.apply_merge()?;
    Ok(serde_json::to_value(yaml)?)
}

/// The parser's error in words for a user, where it speaks of its own insides, and with what to do.
fn advised(error: &str, text: &str) -> String {
    if let Some((place, rest)) = error.split_once("invalid type: integer `")
        && let Some((number, _)) = rest.split_once('`')
    {
        return format!("{place}{number} is too large for a number; write a smaller one");
    }
    let tab = text.lines().any(|line| line.trim_start_matches(' ').starts_with('\t'));
    if tab && error.contains("cannot start any token") {
        return format!("{error}; indent with spaces, YAML takes no tabs");
    }
    error.to_owned()
}

/// The schema leaves metadata to the API server; without one, name and namespace are checked here.
fn metadata(fields: &serde_json::Map<String, Value>, found: &mut structure::Findings) -> bool {
    let before = found.errors.len();
    let metadata = fields.get("metadata").filter(|m| !m.is_null());
    if metadata.is_some_and(|m| !m.is_object()) {
        found.errors.push(FieldError::new("metadata", "expected fields; write `metadata: {name: NAME}`"));
        return false;
    }
    match metadata.and_then(|m| m.get("name")) {
        Some(Value::String(_)) => {}
        None | Some(Value::Null) => {
            found.errors.push(FieldError::new("metadata.name", "required, but missing; add `name:` under `metadata:`"));
        }
        Some(_) => found.errors.push(FieldError::new("metadata.name", "expected a string; put it in quotes")),
    }
    if metadata.and_then(|m| m.get("namespace")).is_some_and(|n| !n.is_string() && !n.is_null()) {
        found.errors.push(FieldError::new("metadata.namespace", "expected a string; put it in quotes"));
    }
    found.errors.len() == before
}

/// Each error once, in the order in which they were found: that of the file, then the rules.
fn distinct(mut errors: Vec<FieldError>) -> Errors {
    let mut seen = std::collections::HashSet::new();
    errors.retain(|e| seen.insert(e.clone()));
    Errors(errors)
}
