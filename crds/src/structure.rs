//! Checks a manifest against the schema of the committed CustomResourceDefinition, as the API server would with strict
//! field validation, and finds everything at once.
//!
//! ```text
//! text --YAML--> value --structure::check--> (errors, what is usable) --serde--> Manifest --validate--> more errors
//! ```
//!
//! Serde stops at the first error; this walks on. What it can not use it leaves out, so that the rest can still be read
//! and held against the rules that relate fields to each other.

use std::sync::OnceLock;

use serde_json::{Map, Value};

use crate::{FieldError, patterns};

const CRD: &str = include_str!("../modelprofiles.modelprofile.dev.yaml");

/// The schema of a ModelProfile; `None` only if the committed file is broken, which a test excludes.
pub(crate) fn schema() -> Option<&'static Value> {
    static SCHEMA: OnceLock<Option<Value>> = OnceLock::new();
    SCHEMA
        .get_or_init(|| {
            let crd: Value = serde_yaml::from_str(CRD).ok()?;
            crd.pointer("/spec/versions/0/schema/openAPIV3Schema").cloned()
        })
        .as_ref()
}

/// What was found in a value.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Everything that breaks the schema.
    pub(crate) errors: Vec<FieldError>,
    /// List items had to be left out: rules about the list as a whole would speak of a list that nobody wrote.
    pub(crate) incomplete: bool,
}

impl Findings {
    fn add(&mut self, path: &str, message: String) {
        self.errors.push(FieldError::new(path, message));
    }
}

/// Checks `value` and returns the part of it that can be used; `None` if that is nothing.
pub(crate) fn check(schema: &Value, value: Value, path: &str, found: &mut Findings) -> Option<Value> {
    if flag(schema, "x-kubernetes-int-or-string") {
        return int_or_string(value, path, found);
    }
    let expected = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    match (expected, value) {
        ("object", Value::Object(fields)) if flag(schema, "x-kubernetes-preserve-unknown-fields") => {
            Some(Value::Object(fields))
        }
        ("object", Value::Object(fields)) => object(schema, fields, path, found),
        ("array", Value::Array(items)) => Some(array(schema, items, path, found)),
        ("string", Value::String(text)) => string(schema, text, path, found),
        ("integer", Value::Number(number)) if number.is_i64() || number.is_u64() => {
            integer(schema, &number, path, found).then_some(Value::Number(number))
        }
        ("boolean", Value::Bool(b)) => Some(Value::Bool(b)),
        (expected, value) => {
            let hint = match (expected, &value) {
                ("string", Value::Number(_) | Value::Bool(_)) => "; put it in quotes",
                ("integer" | "boolean", Value::String(_)) => "; leave the quotes away",
                ("array", _) => "; start each item with `- `",
                _ => "",
            };
            found.add(path, format!("expected {}, found {}{hint}", article(expected), describe(&value)));
            None
        }
    }
}

fn object(schema: &Value, fields: Map<String, Value>, path: &str, found: &mut Findings) -> Option<Value> {
    let known = schema.get("properties").and_then(Value::as_object);
    let mut usable = Map::new();
    for (name, value) in fields {
        let field_path = join(path, &name);
        match (known.and_then(|k| k.get(&name)), schema.get("additionalProperties")) {
            // The API server puts a default in the place of a null, and drops it where there is none: most likely a value
            // was forgotten, and the server would not say so.
            (Some(field), _) if value.is_null() => {
                if field.get("default").is_none() {
                    found.add(&field_path, "has no value; write one, or remove the field".to_owned());
                }
            }
            (Some(schema), _) | (None, Some(schema @ Value::Object(_))) => {
                if let Some(value) = check(schema, value, &field_path, found) {
                    usable.insert(name, value);
                }
            }
            _ => found.add(&field_path, unknown_field(&name, known)),
        }
    }
    bounds(schema, "Properties", usable.len(), "entries", path, found);
    let mut complete = true;
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if usable.contains_key(name) {
            continue;
        }
        complete = false;
        let missing = FieldError::new(join(path, name), format!("required, but missing; add `{name}:`"));
        // A field that is there and wrong has its own error already.
        if !found.errors.iter().any(|e| e.is_near(&missing) && e.path.len() >= missing.path.len()) {
            found.errors.push(missing);
        }
    }
    complete.then_some(Value::Object(usable))
}

fn array(schema: &Value, items: Vec<Value>, path: &str, found: &mut Findings) -> Value {
    bounds(schema, "Items", items.len(), "items", path, found);
    let count = items.len();
    let item_schema = schema.get("items").unwrap_or(&Value::Null);
    let usable: Vec<Value> = items
        .into_iter()
        .enumerate()
        .filter_map(|(i, item)| check(item_schema, item, &format!("{path}[{i}]"), found))
        .collect();
    found.incomplete |= usable.len() < count;
    Value::Array(usable)
}

fn string(schema: &Value, text: String, path: &str, found: &mut Findings) -> Option<Value> {
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array) {
        let allowed: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
        if !allowed.contains(&text.as_str()) {
            let guess =
                closest(&text, allowed.iter().copied()).map_or(String::new(), |g| format!("; did you mean {g}?"));
            found.add(path, format!("`{text}` is not one of {}{guess}", allowed.join(", ")));
            return None;
        }
    }
    bounds(schema, "Length", text.chars().count(), "characters", path, found);
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str).and_then(patterns::find)
        && !(pattern.matches)(&text)
    {
        found.add(path, format!("`{text}` must be {}", pattern.expected));
    }
    Some(Value::String(text))
}

/// Whether the number fits its Rust type; numbers outside the schema's own bounds do, and are reported all the same.
fn integer(schema: &Value, number: &serde_json::Number, path: &str, found: &mut Findings) -> bool {
    let value = number.as_i64().map_or_else(|| number.as_u64().map_or(0, i128::from), i128::from);
    let limit = |key: &str| schema.get(key).and_then(Value::as_f64).map(|f| f as i128);
    let (low, high) = (limit("minimum"), limit("maximum"));
    if low.is_some_and(|low| value < low) || high.is_some_and(|high| value > high) {
        let wanted = match (low, high) {
            (Some(low), Some(high)) => format!("from {low} to {high}"),
            (Some(low), None) => format!("at least {low}"),
            (None, Some(high)) => format!("at most {high}"),
            (None, None) => String::new(),
        };
        found.add(path, format!("{value} is out of range; write a number {wanted}"));
        return value >= 0 && u32::try_from(value).is_ok();
    }
    let fits = match schema.get("format").and_then(Value::as_str) {
        Some("int32") => i32::try_from(value).is_ok(),
        _ => i64::try_from(value).is_ok(),
    };
    if !fits {
        found.add(path, format!("{value} is too large"));
    }
    fits
}

fn int_or_string(value: Value, path: &str, found: &mut Findings) -> Option<Value> {
    match value {
        Value::String(_) => Some(value),
        Value::Number(ref n) if n.is_i64() => Some(value),
        Value::Number(n) => {
            found.add(path, format!("a number that is not whole goes in quotes: \"{n}\""));
            None
        }
        other => {
            found.add(path, format!("expected a number or a string, found {}", describe(&other)));
            None
        }
    }
}

/// `minX` and `maxX` of the schema.
fn bounds(schema: &Value, what: &str, size: usize, unit: &str, path: &str, found: &mut Findings) {
    let limit = |key: &str| schema.get(format!("{key}{what}")).and_then(Value::as_u64);
    if let Some(min) = limit("min").filter(|min| (size as u64) < *min) {
        let message = if size == 0 { "must not be empty".to_owned() } else { format!("needs at least {min} {unit}") };
        found.add(path, message);
    }
    if let Some(max) = limit("max").filter(|max| (size as u64) > *max) {
        found.add(path, format!("has {size} {unit}; at most {max} are possible"));
    }
}

fn flag(schema: &Value, key: &str) -> bool {
    schema.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn article(expected: &str) -> &'static str {
    match expected {
        "object" => "fields (`name: value`)",
        "array" => "a list",
        "string" => "a string",
        "integer" => "a whole number",
        "boolean" => "true or false",
        _ => "something else",
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(b) => format!("`{b}`"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => format!("the string `{s}`"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "fields".to_owned(),
    }
}

fn unknown_field(name: &str, known: Option<&Map<String, Value>>) -> String {
    let names = || known.into_iter().flat_map(|k| k.keys().map(String::as_str));
    match closest(name, names()) {
        Some(guess) => format!("unknown field; did you mean `{guess}`?"),
        None => format!("unknown field; remove it, known here are {}", names().collect::<Vec<_>>().join(", ")),
    }
}

/// The candidate within two edits of `text`, capital letters not counted.
fn closest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Long garbage is nobody's typing error, and the distance is quadratic.
    if text.len() > 64 {
        return None;
    }
    let lower = text.to_lowercase();
    let (distance, best) = candidates.map(|c| (edits(&lower, &c.to_lowercase()), c)).min_by_key(|(d, _)| *d)?;
    (distance <= 2 && distance < text.chars().count()).then_some(best)
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
