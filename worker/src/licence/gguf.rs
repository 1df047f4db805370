//! The fields at the head of a GGUF file that tell its licence, read from a stream: a licence must be known before there is a
//! whole file that the engine's reader could map.
//!
//! Everything else is passed over, never stored; every length is held against a bound before it is used. What is kept of a
//! file, whatever it holds, is about 1 MiB at most.

use std::{
    collections::BTreeMap,
    io::{Error, ErrorKind, Read, Result},
};

use super::bases::MAX_NAMED;

/// Longest key, as the format has it.
const MAX_KEY: u64 = 65_535;
/// How much of a text is kept: identifiers, names and addresses are shorter, and of a whole licence the head is enough.
const MAX_TEXT: u64 = 4 << 10;
/// Longest name, and number, of fields about bases that are kept: more of them than bases count.
const MAX_NAME: usize = 64;
const MAX_FIELDS: usize = 3 * MAX_NAMED;
/// More entries than any file has.
const MAX_ENTRIES: u64 = 1 << 16;
/// The same bound as the engine's reader.
const MAX_DEPTH: u32 = 3;

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Licence and bases, by key without the prefix `general.`: `license`, `license.name`, `license.link`,
    /// `base_model.N.repo_url`, `base_model.N.organization` and `base_model.N.name`.
    pub fields: BTreeMap<String, String>,
    /// All metadata was read; else the stream ended before.
    pub complete: bool,
}

impl Head {
    /// True when more of the file could still tell the licence.
    pub fn wants_more(&self) -> bool {
        // Writers put the general keys first; a licence elsewhere is found when the whole file is there, and asked about then.
        !self.complete && !self.fields.contains_key("license")
    }
}

/// Reads metadata until it ends or the stream does.
///
/// # Errors
/// `InvalidData` for what is no GGUF file; errors of the stream.
pub fn head(mut reader: impl Read) -> Result<Head> {
    let mut head = Head::default();
    match entries(&mut reader, &mut head.fields) {
        Ok(()) => head.complete = true,
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
        Err(error) => return Err(error),
    }
    Ok(head)
}

fn entries(reader: &mut impl Read, fields: &mut BTreeMap<String, String>) -> Result<()> {
    if &array::<4>(reader)? != b"GGUF" {
        return Err(invalid("it does not start with the GGUF magic"));
    }
    if !matches!(u32::from_le_bytes(array(reader)?), 2 | 3) {
        return Err(invalid("its version is not 2 or 3"));
    }
    let _tensors = length(reader)?;
    let count = length(reader)?;
    if count > MAX_ENTRIES {
        return Err(invalid("it declares more metadata than any model has"));
    }
    for _ in 0..count {
        let key = key(reader)?;
        let kind = u32::from_le_bytes(array(reader)?);
        match key.strip_prefix("general.") {
            Some(name) if kind == 8 && tells(name) && (fields.len() < MAX_FIELDS || !is_of_base(name)) => {
                fields.insert(name.to_owned(), beginning(reader)?);
            }
            _ => skip(reader, kind, 0)?,
        }
    }
    Ok(())
}

/// Whether a field under `general.` tells of the licence.
fn tells(name: &str) -> bool {
    let of_base = is_of_base(name)
        && name.len() <= MAX_NAME
        && [".repo_url", ".organization", ".name"].iter().any(|end| name.ends_with(end));
    of_base || matches!(name, "license" | "license.name" | "license.link")
}

fn is_of_base(name: &str) -> bool {
    name.starts_with("base_model.")
}

/// The beginning of a text; passes over the rest.
fn beginning(reader: &mut impl Read) -> Result<String> {
    let len = length(reader)?;
    let text = string(reader, len.min(MAX_TEXT))?;
    pass(reader, len.saturating_sub(MAX_TEXT))?;
    Ok(text)
}

/// Passes over a value.
fn skip(reader: &mut impl Read, kind: u32, depth: u32) -> Result<()> {
    let bytes = match kind {
        8 => length(reader)?,
        9 if depth == MAX_DEPTH => return Err(invalid("its arrays nest too deep")),
        9 => {
            let item = u32::from_le_bytes(array(reader)?);
            let count = length(reader)?;
            match width(item) {
                Some(width) => {
                    count.checked_mul(width).ok_or_else(|| invalid("an array is longer than a file can be"))?
                }
                // Each item takes at least eight bytes of the stream, so a false count ends with it.
                None => return (0..count).try_for_each(|_| skip(reader, item, depth + 1)),
            }
        }
        _ => width(kind).ok_or_else(|| invalid("it has a value of an unknown type"))?,
    };
    pass(reader, bytes)
}

/// Passes over bytes.
fn pass(reader: &mut impl Read, bytes: u64) -> Result<()> {
    match std::io::copy(&mut reader.by_ref().take(bytes), &mut std::io::sink())? {
        passed if passed == bytes => Ok(()),
        _ => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// Bytes of a value of fixed size.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn key(reader: &mut impl Read) -> Result<String> {
    match length(reader)? {
        len if len > MAX_KEY => Err(invalid("a key is longer than it may be")),
        len => string(reader, len),
    }
}

/// A text of as many bytes, which the caller has held against a bound.
fn string(reader: &mut impl Read, len: u64) -> Result<String> {
    let mut bytes = Vec::new();
    if reader.by_ref().take(len).read_to_end(&mut bytes)? as u64 != len {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    // Only looked at: a wrong byte must not hide the licence.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn length(reader: &mut impl Read) -> Result<u64> {
    Ok(u64::from_le_bytes(array(reader)?))
}

fn array<const N: usize>(reader: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use modelprofile_engine::checkpoint::{Value, testing::GgufWriter};
    use proptest::prelude::*;

    use super::*;
    use crate::licence::{Licence, MAX_BASES};

    fn file() -> Vec<u8> {
        let text = |text: &str| Value::Text(text.to_owned());
        GgufWriter::default()
            .entry("tokenizer.ggml.tokens", Value::Texts(vec!["a".into(), "bc".into()]))
            .entry("tokenizer.ggml.scores", Value::Floats(vec![0.5; 9]))
            .entry("general.name", text("Gemma 3 270m"))
            .entry("general.file_type", Value::Unsigned(15))
            .entry("general.license", text("gemma"))
            .entry("general.base_model.0.name", text("Gemma 3 270m"))
            .entry("gemma3.context_length", Value::Unsigned(32_768))
            .build()
    }

    #[test]
    fn the_licence_is_found_among_everything_else_and_nothing_else_is_kept() {
        let head = head(&file()[..]).unwrap();
        assert!(head.complete);
        let fields: Vec<_> = head.fields.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(fields, [("base_model.0.name", "Gemma 3 270m"), ("license", "gemma")]);
    }

    #[test]
    fn what_is_kept_of_a_hostile_file_is_bounded() {
        let long = |text: &str| Value::Text(format!("{text} {}", "x".repeat(64 << 10)));
        let names = ["name", "organization", "repo_url", "version"];
        let mut writer = GgufWriter::default();
        for i in 0..100 {
            let base = |name: &str| format!("base_model.{i}.{name}");
            for key in names.map(base).into_iter().chain([format!("junk{i}")]) {
                writer = writer.entry(&format!("general.{key}"), long(&key));
            }
        }
        let key = format!("general.base_model.{}.name", "0".repeat(1000));
        let file = writer.entry(&key, long("")).entry("general.license", long("acme")).build();
        let head = head(&file[..]).unwrap();
        let kept: usize = head.fields.iter().map(|(key, value)| key.len() + value.len()).sum();
        assert!(kept <= 1 << 20, "{kept}");
        // However many bases stand before it, the licence is seen, and they are more than are looked up.
        let licence = Licence::from_gguf(&head.fields);
        assert!(licence.declared().is_some_and(|id| id.starts_with("acme xxx")));
        assert!(licence.base_models().count() > MAX_BASES);
    }

    #[test]
    fn a_beginning_gives_what_is_in_it() {
        let file = file();
        for len in 0..file.len() {
            let head = head(&file[..len]).unwrap();
            assert!(head.fields.len() <= 2, "{len}");
            assert_eq!(head.wants_more(), !head.complete && !head.fields.contains_key("license"));
        }
    }

    #[test]
    fn what_is_no_gguf_file_is_an_error() {
        assert_eq!(head(&b"<html><body>not found"[..]).unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(head(&b"GGUF\x01\0\0\0"[..]).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_a_panic(at in 0usize..200, byte: u8, cut in 0usize..400) {
            let mut file = file();
            let len = file.len();
            file[at % len] = byte;
            let _ = head(&file[..cut.min(len)]);
        }
    }
}
