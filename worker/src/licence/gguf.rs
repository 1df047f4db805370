//! The `general.*` texts at the head of a GGUF file, read from a stream: a licence must be known before there is a whole file
//! that the engine's reader could map.
//!
//! Values that are not wanted are passed over, never stored; every length is held against a bound before it is used.

use std::{
    collections::BTreeMap,
    io::{Error, ErrorKind, Read, Result},
};

/// Longest key, as the format has it, and longest text that is kept.
const MAX_KEY: u64 = 65_535;
const MAX_TEXT: u64 = 1 << 20;
/// More entries than any file has.
const MAX_ENTRIES: u64 = 1 << 16;
/// The same bound as the engine's reader.
const MAX_DEPTH: u32 = 3;

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Texts under `general.`, by key without that prefix.
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
        let key = text(reader, MAX_KEY)?;
        let kind = u32::from_le_bytes(array(reader)?);
        match key.strip_prefix("general.") {
            Some(name) if kind == 8 => {
                fields.insert(name.to_owned(), text(reader, MAX_TEXT)?);
            }
            _ => skip(reader, kind, 0)?,
        }
    }
    Ok(())
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
    match std::io::copy(&mut reader.by_ref().take(bytes), &mut std::io::sink())? {
        skipped if skipped == bytes => Ok(()),
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

fn text(reader: &mut impl Read, most: u64) -> Result<String> {
    let len = length(reader)?;
    if len > most {
        return Err(invalid("a text is longer than it may be"));
    }
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

    fn file() -> Vec<u8> {
        let text = |text: &str| Value::Text(text.to_owned());
        GgufWriter::default()
            .entry("tokenizer.ggml.tokens", Value::Texts(vec!["a".into(), "bc".into()]))
            .entry("tokenizer.ggml.scores", Value::Floats(vec![0.5; 9]))
            .entry("general.name", text("Gemma 3 270m"))
            .entry("general.file_type", Value::Unsigned(15))
            .entry("general.license", text("gemma"))
            .entry("gemma3.context_length", Value::Unsigned(32_768))
            .build()
    }

    #[test]
    fn general_texts_are_found_among_everything_else() {
        let head = head(&file()[..]).unwrap();
        assert!(head.complete);
        let fields: Vec<_> = head.fields.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(fields, [("license", "gemma"), ("name", "Gemma 3 270m")]);
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
