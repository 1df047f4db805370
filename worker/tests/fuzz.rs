//! Every parser of foreign files of this crate on mutated real files, as `worker/engine/tests/fuzz` does it for the engine's: an
//! answer or an error, never a panic, an abort, an endless run or a large allocation.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a failure is the test's result")]

#[path = "../engine/tests/fuzz/dice.rs"]
mod dice;
#[path = "../engine/tests/fuzz/harness.rs"]
mod harness;
#[path = "../engine/tests/fuzz/mutate.rs"]
mod mutate;

use std::{
    fmt::{Display, Write},
    fs,
};

use clap::Parser;
use modelprofile_api::Quality;
use modelprofile_engine::checkpoint::{SourceDtype, Value, testing::tiny_llama};
use modelprofile_worker::{
    commands::Cli,
    licence::{Licence, UNKNOWN, card, check, gguf, publishing_notes},
    quality::{self, Dataset},
};
use serde_json::json;

use self::{
    harness::{Files, Sample, fuzz},
    mutate::sha256_hex,
};

fn text(error: impl Display) -> String {
    error.to_string()
}

fn sample(name: &str, files: &[(&str, &[u8])], words: &'static [&'static str]) -> Sample {
    let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()));
    Sample { words, ..Sample::new(name, files.collect()) }
}

/// Says all that is said of a licence.
fn tell(licence: &Licence) {
    let _ =
        (check(licence, None), check(licence, Some("apache-2.0, unknown")), licence.strictest(), licence.declared());
    let duties = [licence.duties(), publishing_notes(licence)].concat();
    let artwork =
        card::Artwork { base_model: "a/b", revision: "main", format: "int8", method: "GPTQ", requantized: None };
    let written = card(&artwork, licence);
    // The card of an artifact says what its own reader understands, and what that asks for can be accepted.
    let id = &licence.strictest().id;
    let read = Licence::from_readme(&written);
    assert_eq!(read.declared(), Some(id.as_str()).filter(|id| *id != UNKNOWN), "{written}");
    let all: Vec<&str> = licence.claims().iter().map(|claim| claim.id.as_str()).collect();
    assert_eq!(check(licence, Some(&all.join(", "))), Ok(()));
    assert!(duties.len() >= licence.claims().len());
}

#[test]
fn heads_of_gguf_files() {
    let samples = || {
        let text = |text: &str| Value::Text(text.to_owned());
        let bytes = tiny_llama(SourceDtype::Q8_0)
            .entry("general.name", text("A model"))
            .entry("general.license.name", text("Acme-1"))
            .entry("general.license.link", text("https://acme.example/licence"))
            .entry("general.base_model.0.repo_url", text("https://huggingface.co/meta-llama/Llama-3.1-8B"))
            .entry("tokenizer.ggml.tokens", Value::Texts(vec!["a".into(), "bc".into()]))
            .entry("tokenizer.ggml.scores", Value::Floats(vec![0.5; 9]))
            .build();
        let words = &["general.license", "general.base_model.63.name", "other", "GGUF"];
        vec![sample("llama", &[("model.gguf", &bytes)], words)]
    };
    fuzz("heads_of_gguf_files", samples, |folder, _| {
        let bytes = fs::read(folder.join("model.gguf")).unwrap();
        let head = gguf::head(&bytes[..]).map_err(text)?;
        head.wants_more();
        let _ = Licence::from_gguf(&head.fields).declared();
        tell(&Licence::of_path(&folder.join("model.gguf")).map_err(text)?);
        Ok(())
    });
}

const CARD: &[u8] =
    b"---\nlanguage:\n- en\nlicense: other\nlicense_name: acme-1\nlicense_link: https://acme.example/licence\n\
    base_model:\n- a/b\n- meta-llama/Llama-3.1-8B\ntags: [a, 'b', \"c\"]\n---\n# A card\n\ntext\n";
const CARD_WORDS: &[&str] = &[
    "license: ",
    "&a [*a, *a, *a, *a, *a, *a, *a, *a, *a]",
    "b: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\n",
    "<<: *a",
    "!!binary |",
    "? [",
    "{{{{{{{{{{{{{{{{",
    "- - - - - - - - - - - -",
    "\n---\n",
    ".inf",
    "0x7fffffffffffffffffff",
    "apache-2.0",
    "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT",
    "\u{feff}",
];

#[test]
fn model_cards_and_licence_files() {
    let samples = || {
        let plain: &[u8] = b"---\nlicense: apache-2.0\nbase_model: google/gemma-3-270m\n---\n# Card";
        vec![
            sample("card", &[("README.md", CARD)], CARD_WORDS),
            sample(
                "plain",
                &[("README.md", plain), ("LICENSE", b"Apache License\nVersion 2.0, January 2004\n")],
                CARD_WORDS,
            ),
        ]
    };
    fuzz("model_cards_and_licence_files", samples, |folder, _| {
        tell(&Licence::of_path(folder).map_err(text)?);
        Ok(())
    });
}

#[test]
fn measured_qualities() {
    let dataset = Dataset::built_in();
    let samples = || {
        let quality = json!({
            "perplexity": 12.5, "referencePerplexity": 12.0, "meanKLDivergence": 0.01, "p99KLDivergence": 0.2,
            "top1AgreementPercent": 97.5, "rmsProbabilityChangePercent": 1.5, "tokens": 4096,
            "dataset": Dataset::built_in().label(), "measuredAt": "2024-01-01T00:00:00Z",
        });
        let text = quality.to_string();
        vec![sample("quality", &[(quality::FILE, text.as_bytes())], &["1e999", "-1", "NaN", "null"])]
    };
    fuzz("measured_qualities", samples, |folder, _| {
        let found = quality::load(folder, &dataset).ok_or("none")?;
        let limits = Quality::default();
        let verdict = limits.verdict(Some(&found));
        // A figure that is no number, or beyond its limit, is a refusal: what says yes must be within both.
        let within = found.perplexity_increase_percent() <= f64::from(limits.max_perplexity_increase_percent);
        if limits.refusal("p", Some(&found)).is_none() {
            assert!(within && found.mean_kl_divergence.is_finite(), "{verdict:?} of {found:?}");
        }
        Ok(())
    });
}

/// A filled sheet with its key, as `evaluate --sheets` writes them.
fn sheet() -> Sample {
    let rows: Vec<[String; 3]> =
        (0..4).map(|i| [format!("Prompt {i}"), format!("One, {i}"), format!("Two \"{i}\"")]).collect();
    let digest = |row: &[String; 3]| {
        let cells = row.iter().flat_map(|cell| [&(cell.len() as u64).to_le_bytes()[..], cell.as_bytes()].concat());
        sha256_hex(&cells.collect::<Vec<u8>>())
    };
    let key_rows: Vec<_> =
        rows.iter().enumerate().map(|(i, row)| json!({"first": i % 2, "sha256": digest(row)})).collect();
    let key = json!({"version": 1, "profiles": ["bf16", "q4_1"], "seed": 7, "nonce": "00ff", "rows": key_rows});
    let key = serde_json::to_vec(&key).unwrap();
    let mut csv = format!("\"# ModelProfile blind sheet, commitment {}\"\r\n", sha256_hex(&key));
    csv.push_str("row,prompt,answer 1,answer 2,\"better (1, 2 or =)\"\r\n");
    for (i, ([prompt, one, two], choice)) in rows.iter().zip(["1", "2", "=", ""]).enumerate() {
        let two = two.replace('"', "\"\"");
        let _ = write!(csv, "{},{prompt},\"{one}\",\"{two}\",{choice}\r\n", i + 1);
    }
    let words = &["\"", "\"\"", ";", ",", "\r", "\n", "=", "1", "2", "\u{feff}"];
    sample("sheet", &[("sheet.csv", csv.as_bytes()), ("key.json", &key)], words)
}

#[test]
fn blind_sheets() {
    fuzz(
        "blind_sheets",
        || vec![Sample { seal: Some(seal_sheet), ..sheet() }],
        |folder, _| {
            let at = |name: &str| folder.join(name).into_os_string();
            let command = ["modelprofile-worker", "evaluate", "--score"].map(Into::into).into_iter();
            let command = command.chain([at("sheet.csv"), "--key".into(), at("key.json")]);
            Cli::try_parse_from(command).unwrap().run().map_err(text)
        },
    );
}

/// Puts a changed key's commitment into the sheet, so that the rows are compared, too.
fn seal_sheet(all: &Files, changed: &mut Files) {
    let Some(key) = changed.get("key.json") else { return };
    let digest = sha256_hex(key);
    let sheet = changed.get("sheet.csv").or(all.get("sheet.csv")).cloned().unwrap_or_default();
    let sheet = String::from_utf8_lossy(&sheet);
    let Some((title, rest)) = sheet.split_once("\r\n") else { return };
    let Some((before, _)) = title.rsplit_once(' ') else { return };
    changed.insert("sheet.csv".to_owned(), format!("{before} {digest}\"\r\n{rest}").into_bytes());
}
