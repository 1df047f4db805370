//! Printing as Python does: chat templates are written for Jinja on Python, and models were trained on its output.

use std::io;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, Output, State};
use serde::Serialize as _;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

/// The `tojson` filter of transformers: `json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)`. Unlike Jinja's
/// own it does not escape HTML.
#[allow(clippy::needless_pass_by_value, reason = "the signature that makes it a filter")]
pub(super) fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut out, PythonJson(CompactFormatter))),
        Some(indent) => {
            let spaces = " ".repeat(indent.min(16));
            let pretty = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, PythonJson(pretty)))
        }
    };
    let failed = |message: String| Error::new(ErrorKind::BadSerialization, message);
    written.map_err(|e| failed(e.to_string()))?;
    let mut text = String::from_utf8(out).map_err(|e| failed(e.to_string()))?;
    if ensure_ascii == Some(true) {
        text = escape_non_ascii(&text);
    }
    Ok(Value::from_safe_string(text))
}

/// The `iterable` test. For Python `None` is not, which templates rely on to tell an absent list of tools.
pub(super) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// JSON keeps its meaning: outside ASCII there are only characters of strings.
fn escape_non_ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    out
}

/// Writes an expression's value: `True`, `False` and `None` as Python spells them.
pub(super) fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.write_str("None").map_err(Error::from),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Error::from),
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// JSON with Python's spaces (`", "` and `": "`) and Python's numbers.
struct PythonJson<F>(F);

impl Formatter for PythonJson<CompactFormatter> {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(python_float(value).as_bytes())
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

impl Formatter for PythonJson<PrettyFormatter<'_>> {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(python_float(value).as_bytes())
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}

/// `repr(float)`: the shortest digits that round-trip; an exponent has a sign and at least two digits.
fn python_float(value: f64) -> String {
    let text = format!("{value:?}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let digits = digits.strip_suffix(".0").unwrap_or(digits);
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dumps(value: &serde_json::Value, indent: Option<usize>) -> String {
        let kwargs: Kwargs = indent.map(|indent| ("indent", Value::from(indent))).into_iter().collect();
        tojson(&Value::from(minijinja::value::Serde(value)), kwargs).unwrap().to_string()
    }

    #[test]
    fn json_looks_like_pythons() {
        let value = json!({"a": [1, 2.5, true, null], "b": {}, "c": "<é \"x\">\n"});
        assert_eq!(dumps(&value, None), r#"{"a": [1, 2.5, true, null], "b": {}, "c": "<é \"x\">\n"}"#);
        assert_eq!(dumps(&json!({"a": [1], "b": []}), Some(2)), "{\n  \"a\": [\n    1\n  ],\n  \"b\": []\n}");
    }

    #[test]
    fn json_may_be_ascii() {
        let kwargs: Kwargs = [("ensure_ascii", Value::from(true))].into_iter().collect();
        let text = tojson(&Value::from("é\u{1F600}"), kwargs).unwrap().to_string();
        assert_eq!(text, r#""\u00e9\ud83d\ude00""#);
    }

    #[test]
    fn floats_look_like_pythons() {
        let cases =
            [(1e16, "1e+16"), (1e-5, "1e-05"), (1e22, "1e+22"), (1.5e300, "1.5e+300"), (0.1, "0.1"), (3.0, "3.0")];
        for (value, expected) in cases {
            assert_eq!(python_float(value), expected);
        }
    }
}
