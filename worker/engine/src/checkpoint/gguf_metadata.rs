//! The metadata of a GGUF file: values under keys.

use std::{collections::BTreeMap, ops::Range};

/// A metadata value. Integer widths are not kept: readers ask for what they need.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned integer of any width.
    Unsigned(u64),
    /// A signed integer of any width.
    Signed(i64),
    /// A float of either width.
    Float(f64),
    /// A flag.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// An array of integers of any width.
    Integers(Vec<i64>),
    /// An array of FP32 numbers.
    Floats(Vec<f32>),
    /// An array of text.
    Texts(Vec<String>),
    /// Any other array.
    List(Vec<Value>),
}

/// The key-value section of a GGUF file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    pub(super) entries: BTreeMap<String, Value>,
    /// Each key with the place of its value, type included, in the order of the file.
    pub(super) places: Vec<(String, Range<usize>)>,
}

impl Metadata {
    /// The value of `key`, if the file has it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// Text; `None` when absent or of another type.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A non-negative integer of any width; `None` when absent, negative or of another type.
    pub fn unsigned(&self, key: &str) -> Option<u64> {
        match *self.get(key)? {
            Value::Unsigned(v) => Some(v),
            Value::Signed(v) => u64::try_from(v).ok(),
            _ => None,
        }
    }

    /// A float of either width; `None` when absent or of another type.
    pub fn float(&self, key: &str) -> Option<f64> {
        match *self.get(key)? {
            Value::Float(v) => Some(v),
            _ => None,
        }
    }

    /// A flag; `None` when absent or of another type.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match *self.get(key)? {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// An array of text (`tokenizer.ggml.tokens`, `tokenizer.ggml.merges`).
    pub fn texts(&self, key: &str) -> Option<&[String]> {
        match self.get(key)? {
            Value::Texts(v) => Some(v),
            _ => None,
        }
    }

    /// An array of FP32 numbers (`tokenizer.ggml.scores`).
    pub fn floats(&self, key: &str) -> Option<&[f32]> {
        match self.get(key)? {
            Value::Floats(v) => Some(v),
            _ => None,
        }
    }

    /// An array of integers (`tokenizer.ggml.token_type`).
    pub fn integers(&self, key: &str) -> Option<&[i64]> {
        match self.get(key)? {
            Value::Integers(v) => Some(v),
            _ => None,
        }
    }

    /// All entries, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// All keys in the order of the file, with where the value's type and bytes lie in it: [`Value`] forgets widths.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        self.places.iter().map(|(key, place)| (key.as_str(), place.clone()))
    }
}
