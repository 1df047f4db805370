//! Mutations of real files: bytes, integers and ranges of any file, values of JSON, headers of safetensors files.
//!
//! | file | what is changed |
//! |---|---|
//! | `*.json` | mostly values: exchanged, removed, renamed, set to a boundary; else bytes |
//! | `*.safetensors` | half of the time the header's values, with a length that fits again; else bytes, often of the header |
//! | others | bytes, most of them near the beginning, where containers keep their lengths |

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::dice::Dice;

/// Numbers at which arithmetic goes wrong.
const BOUNDARIES: [u64; 16] = [
    0,
    1,
    2,
    3,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 61,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// Changes a file once or several times. `other` is another file of the same kind, `words` are pieces that such files hold.
pub(crate) fn mutate(name: &str, bytes: &[u8], other: &[u8], words: &[&str], dice: &mut Dice) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let times = match dice.below(10) {
        0..6 => 1,
        6..9 => 1 + dice.below(4),
        _ => 1 + dice.below(16),
    };
    let is = |kind: &str| std::path::Path::new(name).extension().is_some_and(|e| e.eq_ignore_ascii_case(kind));
    for _ in 0..times {
        let changed = if is("json") && dice.chance(3, 4) {
            json_text(&out, other, words, dice)
        } else if is("safetensors") && dice.chance(1, 2) {
            safetensors_header(&out, other, words, dice)
        } else {
            None
        };
        match changed {
            Some(changed) => out = changed,
            None => change_bytes(&mut out, other, words, dice),
        }
    }
    out
}

/// A place in a file: half of them in the first 4 KiB.
fn place(len: usize, dice: &mut Dice) -> usize {
    let most = match dice.below(4) {
        0 | 1 => 4 << 10,
        2 => 32 << 10,
        _ => len,
    };
    dice.below(len.min(most))
}

fn change_bytes(bytes: &mut Vec<u8>, other: &[u8], words: &[&str], dice: &mut Dice) {
    let at = place(bytes.len(), dice);
    match dice.below(12) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
        1 if !bytes.is_empty() => bytes[at] = dice.word() as u8,
        2 | 3 => {
            let value = boundary(dice);
            put(bytes, at, value, dice);
        }
        4 | 5 => {
            // The next number that could be a length or a count.
            let plausible = |window: &[u8]| word(window) > 0 && word(window) < 1 << 32;
            let found = bytes[at..].windows(8).take(4096).position(plausible);
            if let Some(at) = found.map(|found| at + found) {
                let value = word(&bytes[at..]);
                let value = match dice.below(6) {
                    0 => value.wrapping_sub(1),
                    1 => value + 1,
                    2 => value * 2,
                    3 => value.wrapping_neg(),
                    4 => value + (1 << 32),
                    _ => boundary(dice),
                };
                put(bytes, at, value, dice);
            }
        }
        6 => bytes.truncate(at),
        7 => {
            let copy = bytes[dice.range(bytes.len())].to_vec();
            bytes.splice(at..at, copy);
        }
        8 => drop(bytes.drain(at..(at + 1 + dice.below(64)).min(bytes.len()))),
        9 => {
            // Spliced with another file: the whole rest, or a piece.
            let from = place(other.len(), dice);
            let piece = if dice.chance(1, 2) { &other[from..] } else { &other[dice.range(other.len())] };
            if dice.chance(1, 2) {
                bytes.truncate(at);
                bytes.extend(piece);
            } else {
                let end = (at + piece.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&piece[..end - at]);
            }
        }
        10 => {
            let end = (at + 1 + dice.below(32)).min(bytes.len());
            let value = [0, 0xff, 0x7f, 0x80][dice.below(4)];
            bytes[at..end].fill(value);
        }
        _ => {
            let word = dice.pick(words).copied().unwrap_or_default();
            let end = if dice.chance(1, 2) { at } else { (at + word.len()).min(bytes.len()) };
            bytes.splice(at..end, word.bytes());
        }
    }
}

/// SHA-256 in hex, for checksums that are to be right again.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// A boundary, or one beside it.
fn boundary(dice: &mut Dice) -> u64 {
    let value = dice.pick(&BOUNDARIES).copied().unwrap_or_default();
    value.wrapping_add([0, 0, 1, u64::MAX][dice.below(4)])
}

/// Overwrites 1, 2, 4 or 8 bytes.
fn put(bytes: &mut [u8], at: usize, value: u64, dice: &mut Dice) {
    let width = [1, 2, 4, 4, 8, 8][dice.below(6)].min(bytes.len() - at);
    bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
}

fn json_text(bytes: &[u8], other: &[u8], words: &[&str], dice: &mut Dice) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(bytes).ok()?;
    let other = serde_json::from_slice(other).unwrap_or(Value::Null);
    change_value(&mut value, &other, words, dice);
    serde_json::to_vec(&value).ok()
}

/// Length and text of the header, changed; the data stay.
fn safetensors_header(bytes: &[u8], other: &[u8], words: &[&str], dice: &mut Dice) -> Option<Vec<u8>> {
    fn header(bytes: &[u8]) -> Option<&[u8]> {
        let len = usize::try_from(word(bytes.get(..8)?)).ok()?;
        bytes.get(8..8usize.checked_add(len)?)
    }
    let text = header(bytes)?;
    let changed = json_text(text, header(other).unwrap_or_default(), words, dice)?;
    let mut out = (changed.len() as u64).to_le_bytes().to_vec();
    out.extend(changed);
    out.extend(&bytes[8 + text.len()..]);
    Some(out)
}

fn change_value(value: &mut Value, other: &Value, words: &[&str], dice: &mut Dice) {
    let replacement = replacement(other, words, dice);
    let node = descend(value, dice);
    match node {
        Value::Object(map) if !map.is_empty() && dice.chance(2, 3) => change_map(map, replacement, dice),
        Value::Array(list) if !list.is_empty() && dice.chance(2, 3) => {
            let (at, with) = (dice.below(list.len()), dice.below(list.len()));
            match dice.below(5) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                2 => list.swap(at, with),
                3 => list.truncate(at),
                _ => list.insert(at, replacement),
            }
        }
        Value::Number(number) if dice.chance(1, 2) => {
            if let Some(n) = number.as_i64() {
                *node = json!(
                    [n.wrapping_add(1), n.wrapping_sub(1), n.wrapping_neg(), n.wrapping_mul(2), n / 2][dice.below(5)]
                );
            } else if let Some(n) = number.as_f64() {
                *node = json!([-n, n * 1e30, n * 1e-30, n + 1.0][dice.below(4)]);
            }
        }
        Value::String(text) if dice.chance(1, 2) => {
            let mut bytes = std::mem::take(text).into_bytes();
            change_bytes(&mut bytes, b"", words, dice);
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
        node => *node = replacement,
    }
}

fn change_map(map: &mut Map<String, Value>, replacement: Value, dice: &mut Dice) {
    let keys: Vec<String> = map.keys().cloned().collect();
    let (Some(a), Some(b)) = (dice.pick(&keys).cloned(), dice.pick(&keys).cloned()) else { return };
    let (at_a, at_b) = (map[&a].clone(), map[&b].clone());
    match dice.below(5) {
        0 => drop(map.remove(&a)),
        1 => {
            map.insert(a, at_b);
            map.insert(b, at_a);
        }
        2 => drop(map.insert(format!("{a}{b}"), at_a)),
        3 => {
            map.remove(&a);
            map.insert(b, at_a);
        }
        _ => drop(map.insert(a, replacement)),
    }
}

/// A value somewhere below, the outer ones more often: a vocabulary would hide everything else.
fn descend<'a>(value: &'a mut Value, dice: &mut Dice) -> &'a mut Value {
    let len = match value {
        Value::Object(map) => map.len(),
        Value::Array(list) => list.len(),
        _ => 0,
    };
    if len == 0 || dice.chance(1, 5) {
        return value;
    }
    let at = dice.below(len);
    match value {
        Value::Object(map) => match map.values_mut().nth(at) {
            Some(child) => descend(child, dice),
            None => unreachable!("{at} of {len}"),
        },
        Value::Array(list) => descend(&mut list[at], dice),
        leaf => leaf,
    }
}

fn replacement(other: &Value, words: &[&str], dice: &mut Dice) -> Value {
    match dice.below(12) {
        0 => Value::Null,
        1 => json!(dice.chance(1, 2)),
        2 => json!([1e308, -1e308, 1e-320, 0.5, -0.0, 1.5e19][dice.below(6)]),
        3 => json!(-(boundary(dice) as i64 >> 1)),
        4 => json!(["", "\u{0}", "../x", "\u{10ffff}\u{301}", "NaN"][dice.below(5)]),
        5 => json!("x".repeat(dice.below(4096))),
        6 => [json!([]), json!({}), json!([[[]]]), json!([0, -1, 1e9])][dice.below(4)].clone(),
        7 => {
            // A part of the other file.
            let mut part = other.clone();
            descend(&mut part, dice).take()
        }
        8 | 9 if !words.is_empty() => {
            let word = dice.pick(words).copied().unwrap_or_default();
            serde_json::from_str(word).unwrap_or_else(|_| json!(word))
        }
        _ => json!(boundary(dice)),
    }
}
