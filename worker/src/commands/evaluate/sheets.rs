//! Blind sheets: pairs of answers of two profiles, for people who must not know which is which.
//!
//! ```text
//! answers of A and B -> Sheet (1 and 2 by chance) -> sheet.md, sheet.csv   to the raters
//!                    -> Key (which is which, sealed) -> key.json            to who counts
//! sheet.csv filled + key.json -> Tally: wins, ties, sign test
//! ```
//!
//! The sheet carries the SHA-256 of the key, and the key the SHA-256 of each row. So neither can be changed after the sheet
//! was handed out without the count noticing: not the order, not the names, not an answer.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{hex::hex, quality::write_whole};

/// First words of a sheet; the commitment follows.
const TITLE: &str = "# ModelProfile blind sheet, commitment ";
const HEADER: [&str; 5] = ["row", "prompt", "answer 1", "answer 2", "better (1, 2 or =)"];

/// A prompt with the answers of both profiles.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pair {
    pub(super) prompt: String,
    pub(super) answers: [String; 2],
}

/// What the raters must not see.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Key {
    version: u32,
    /// The two profiles.
    profiles: [String; 2],
    seed: u64,
    /// Random, so that the commitment cannot be tried out.
    nonce: String,
    rows: Vec<KeyRow>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct KeyRow {
    /// Index of the profile that is answer 1.
    first: usize,
    /// Of the row's prompt and answers as they stand on the sheet.
    sha256: String,
}

/// A sheet with its key.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sheet {
    pub(super) key: Key,
    rows: Vec<[String; 3]>,
}

impl Sheet {
    /// Puts each pair in an order that `seed` and `nonce` decide.
    pub(super) fn new(profiles: [String; 2], pairs: &[Pair], seed: u64, nonce: &str) -> Self {
        let mut rows = Vec::with_capacity(pairs.len());
        let mut key_rows = Vec::with_capacity(pairs.len());
        for (index, pair) in pairs.iter().enumerate() {
            let first = usize::from(Sha256::digest(format!("{seed}\n{nonce}\n{index}"))[0] & 1);
            let row = [&pair.prompt, &pair.answers[first], &pair.answers[1 - first]].map(|cell| clean(cell));
            key_rows.push(KeyRow { first, sha256: row_sha256(&row) });
            rows.push(row);
        }
        Self { key: Key { version: 1, profiles, seed, nonce: nonce.to_owned(), rows: key_rows }, rows }
    }

    /// The sheet for a spreadsheet.
    pub(super) fn csv(&self) -> String {
        let mut text = format!("{}\r\n", quote(&format!("{TITLE}{}", self.key.commitment())));
        let mut line = |cells: &[&str]| {
            text.push_str(&cells.iter().map(|c| quote(c)).collect::<Vec<_>>().join(","));
            text.push_str("\r\n");
        };
        line(&HEADER);
        for (index, [prompt, one, two]) in self.rows.iter().enumerate() {
            line(&[&(index + 1).to_string(), prompt, one, two, ""]);
        }
        text
    }

    /// The sheet for reading.
    pub(super) fn markdown(&self) -> String {
        use std::fmt::Write;
        let mut text = format!(
            "{TITLE}{}\n\nFor each prompt, say which answer is better: write 1, 2 or = into the last column of sheet.csv. \
             Change nothing else there.\n",
            self.key.commitment()
        );
        for (index, [prompt, one, two]) in self.rows.iter().enumerate() {
            let _ = write!(text, "\n## {}\n\n{}\n", index + 1, fenced(prompt));
            let _ = write!(text, "\n**Answer 1**\n\n{}\n\n**Answer 2**\n\n{}\n", fenced(one), fenced(two));
        }
        text
    }

    /// Writes sheet.md, sheet.csv and key.json.
    pub(super) fn write(&self, directory: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        write_whole(&directory.join("sheet.md"), self.markdown().as_bytes())?;
        write_whole(&directory.join("sheet.csv"), self.csv().as_bytes())?;
        write_whole(&directory.join("key.json"), serde_json::to_string_pretty(&self.key)?.as_bytes())
    }
}

impl Key {
    /// SHA-256 of everything in the key.
    pub(super) fn commitment(&self) -> String {
        // Serde writes the fields of a struct in their order, so equal keys are equal bytes.
        hex(&Sha256::digest(serde_json::to_vec(self).unwrap_or_default()))
    }
}

/// How often each profile was found better.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tally {
    pub(super) profiles: [String; 2],
    pub(super) wins: [u64; 2],
    pub(super) ties: u64,
    /// Rows without a judgement.
    pub(super) open: u64,
}

impl Tally {
    /// Probability of a split at least as uneven if neither were better: the two-sided sign test, ties left out.
    pub(super) fn p_value(&self) -> f64 {
        sign_test(self.wins[0], self.wins[1])
    }

    /// What came out, for the terminal.
    pub(super) fn summary(&self) -> String {
        let [a, b] = &self.profiles;
        let p = self.p_value();
        let verdict = if p < 0.05 {
            format!("{} is better", if self.wins[0] > self.wins[1] { a } else { b })
        } else {
            "the sheet does not tell them apart".into()
        };
        format!(
            "{a}: {} wins\n{b}: {} wins\nties: {}\nnot judged: {}\ntwo-sided sign test: p = {p:.4}; {verdict} (at 0.05)",
            self.wins[0], self.wins[1], self.ties, self.open
        )
    }
}

/// Counts a filled sheet.
///
/// # Errors
/// A sheet that does not belong to the key, rows that were changed, left out or added, a judgement that is none.
pub(super) fn tally(sheet: &str, key: &str) -> anyhow::Result<Tally> {
    let key: Key = serde_json::from_str(key).context("the key cannot be read")?;
    ensure!(key.version == 1, "the key has version {}, not 1: use the worker that wrote it", key.version);
    ensure!(key.rows.iter().all(|row| row.first < 2), "the key is damaged: a row names a profile that is not there");
    let records = parse_csv(sheet);
    let title = records.first().and_then(|r| r.first()).map(String::as_str).unwrap_or_default();
    let Some(commitment) = title.strip_prefix(TITLE) else {
        bail!("this is not a blind sheet: its first cell must be \"{TITLE}…\", as it was written");
    };
    ensure!(
        commitment.trim() == key.commitment(),
        "the sheet and the key do not belong together, or one of them was changed after the sheet was written"
    );
    let rows = &records.get(2..).unwrap_or_default();
    ensure!(rows.len() == key.rows.len(), "the sheet has {} rows, the key {}", rows.len(), key.rows.len());
    let mut tally = Tally { profiles: key.profiles.clone(), wins: [0; 2], ties: 0, open: 0 };
    for (index, (row, key)) in rows.iter().zip(&key.rows).enumerate() {
        let number = index + 1;
        let [label, prompt, one, two, rest @ ..] = row.as_slice() else { bail!("row {number} has too few columns") };
        ensure!(label.trim() == number.to_string(), "row {number} is missing or out of order: it says {label}");
        let found = row_sha256(&[prompt, one, two].map(|cell| clean(cell)));
        ensure!(found == key.sha256, "row {number} was changed: its prompt or an answer is not what was written");
        match rest.first().map_or("", |choice| choice.trim()) {
            "1" => tally.wins[key.first] += 1,
            "2" => tally.wins[1 - key.first] += 1,
            "=" => tally.ties += 1,
            "" => tally.open += 1,
            other => bail!("row {number} is judged {other:?}: use 1, 2 or ="),
        }
    }
    Ok(tally)
}

/// Two-sided exact binomial probability of a split as uneven as `a` to `b` at even odds; 1 without any.
fn sign_test(a: u64, b: u64) -> f64 {
    let n = a + b;
    // ln of n! by its sum: exact enough, and free of overflow for any sheet that people can fill.
    let ln_factorial = |n: u64| (2..=n).map(|k| (k as f64).ln()).sum::<f64>();
    let whole = ln_factorial(n) - n as f64 * std::f64::consts::LN_2;
    let tail: f64 = (0..=a.min(b)).map(|k| (whole - ln_factorial(k) - ln_factorial(n - k)).exp()).sum();
    (2.0 * tail).min(1.0)
}

/// A cell as it survives a spreadsheet: Unix line ends, no spaces at the ends, and not taken for a formula.
fn clean(cell: &str) -> String {
    let text = cell.replace("\r\n", "\n").replace('\r', "\n");
    let text = text.trim();
    if text.starts_with(['=', '+', '-', '@']) { format!("· {text}") } else { text.to_owned() }
}

fn row_sha256(row: &[String; 3]) -> String {
    let mut hash = Sha256::new();
    for cell in row {
        hash.update((cell.len() as u64).to_le_bytes());
        hash.update(cell);
    }
    hex(&hash.finalize())
}

/// A block that shows text as it is: its fence is longer than any in the text.
fn fenced(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}text\n{text}\n{fence}")
}

fn quote(cell: &str) -> String {
    if cell.contains(['"', ',', ';', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

/// Records of a CSV text (RFC 4180); with semicolons where a spreadsheet wrote those. Empty lines are passed over.
fn parse_csv(text: &str) -> Vec<Vec<String>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let records = records(text, ',');
    // The header has five columns with the right separator.
    if records.get(1).is_some_and(|header| header.len() < HEADER.len()) {
        let other = self::records(text, ';');
        if other.get(1).is_some_and(|header| header.len() >= HEADER.len()) {
            return other;
        }
    }
    records
}

fn records(text: &str, separator: char) -> Vec<Vec<String>> {
    let (mut records, mut record, mut cell) = (Vec::new(), Vec::new(), String::new());
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                cell.push('"');
            }
            '"' if quoted || cell.is_empty() => quoted = !quoted,
            _ if quoted => cell.push(c),
            _ if c == separator => record.push(std::mem::take(&mut cell)),
            '\r' if chars.peek() == Some(&'\n') => {}
            '\n' => {
                record.push(std::mem::take(&mut cell));
                records.push(std::mem::take(&mut record));
            }
            _ => cell.push(c),
        }
    }
    if !cell.is_empty() || !record.is_empty() {
        record.push(cell);
        records.push(record);
    }
    records.retain(|record| record.iter().any(|cell| !cell.trim().is_empty()));
    records
}

#[cfg(test)]
#[path = "sheets_tests.rs"]
mod tests;
