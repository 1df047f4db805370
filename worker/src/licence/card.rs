//! The model card of an artifact: `README.md` beside `model.safetensors`, in the form that hubs read.

use std::path::Path;

use modelprofile_engine::quantize::BlockTypes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Claim, Licence, Origin, UNKNOWN, publishing_notes};
use crate::source::{SourceError, replace};

/// How the format in an artifact's manifest ends, by the method that made it; round to nearest adds nothing.
const METHODS: [(&str, &str); 4] =
    [("-awq", "AWQ"), ("-gptq", "GPTQ"), ("-smoothquant", "SmoothQuant"), ("-llm-int8", "LLM.int8")];

/// Stands in every card of ours, and in no other.
const SIGNATURE: &str = "Quantized by ModelProfile.";

/// What the card says beside the licence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artwork<'a> {
    /// What the artifact was made of: `OWNER/NAME`, a URL or a file's name.
    pub base_model: &'a str,
    /// Which content of it: a commit, or the checksum of the files.
    pub revision: &'a str,
    /// Weight format, as the artifact's manifest has it.
    pub format: &'a str,
    /// How the weights were rounded.
    pub method: &'a str,
    /// What of the base model's weights was quantized already and rounded a second time: block types with tensors.
    pub requantized: Option<&'a str>,
}

/// The text of an artifact's card: front matter with the licence of the base model, then format, method, revision and
/// duties for people.
pub fn card(artifact: &Artwork<'_>, licence: &Licence) -> String {
    let mut front = Map::new();
    let strictest = licence.strictest();
    let known = !strictest.named && strictest.id != UNKNOWN;
    front.insert(
        "license".into(),
        json!(if known {
            strictest.id.as_str()
        } else if strictest.named {
            "other"
        } else {
            UNKNOWN
        }),
    );
    if strictest.named {
        front.insert("license_name".into(), json!(strictest.id));
    }
    if let Some(link) = &strictest.link {
        front.insert("license_link".into(), json!(link));
    }
    // Hubs take names of repositories only: that of the source, or those that the source names as its own bases.
    let is_repository = |name: &&str| modelprofile_api::ModelUri::parse(&format!("hf://{name}")).is_ok();
    let source: Vec<&str> = [artifact.base_model].into_iter().filter(is_repository).collect();
    let bases = if source.is_empty() { licence.base_models().filter(is_repository).collect() } else { source };
    match bases[..] {
        [] => {}
        [base] => drop(front.insert("base_model".into(), json!(base))),
        _ => drop(front.insert("base_model".into(), json!(bases))),
    }
    if !bases.is_empty() {
        front.insert("base_model_relation".into(), json!("quantized"));
    }
    let format = artifact.format.split([' ', ':', '-']).next().unwrap_or_default().to_lowercase();
    front.insert("tags".into(), json!(["quantized", format, "modelprofile"]));
    let front = serde_yaml::to_string(&Value::Object(front)).unwrap_or_default();

    let source = artifact.requantized.map_or_else(String::new, |types| {
        format!("| source quantization | {}, rounded a second time |\n", line(types))
    });

    let mut text = format!(
        "---\n{front}---\n\n# {}, {}\n\n{SIGNATURE} The weights are those of the base model, rounded; nothing was \
         trained.\n\n| | |\n|---|---|\n| base model | {} |\n| revision | `{}` |\n| format | {} |\n| method | {} |\n{source}\n## \
         Licence\n\nQuantizing changes nothing of a licence: this artifact comes under the licence of its base model.\n\n",
        line(artifact.base_model),
        artifact.format,
        line(artifact.base_model),
        line(artifact.revision),
        artifact.format,
        artifact.method
    );
    let entry = |claim: &Claim| {
        let by = match &claim.origin {
            Origin::Base(model) => format!(", of its base {}", line(model)),
            Origin::FurtherBases => ", of its further bases".to_owned(),
            Origin::Declared | Origin::File(_) => String::new(),
        };
        let link = claim.link.as_ref().map_or(String::new(), |link| format!(" ({link})"));
        let row = claim.family.row();
        format!("- **{}** ({}{by}){link}: {}\n", line(&claim.id), row.name, row.duties)
    };
    text.extend(licence.claims().iter().map(entry));
    let notes = publishing_notes(licence);
    if !notes.is_empty() {
        text.push_str("\nBefore it is given to others:\n\n");
        text.extend(notes.iter().map(|note| format!("- {note}\n")));
    }
    text
}

/// Writes the card into an artifact's directory unless it has one of ours; format and method are those of its
/// `manifest.json`. A copy of the original's card, which earlier versions made, gives way: it speaks of other weights.
///
/// # Errors
/// [`SourceError::Io`] when the manifest cannot be read or the card not be written.
pub fn write(directory: &Path, base_model: &str, commit: Option<&str>, licence: &Licence) -> Result<(), SourceError> {
    let path = directory.join("README.md");
    if std::fs::read_to_string(&path).is_ok_and(|text| text.contains(SIGNATURE)) {
        return Ok(());
    }
    let manifest = directory.join("manifest.json");
    let text = std::fs::read(&manifest).map_err(SourceError::io(&manifest))?;
    let manifest: Value = serde_json::from_slice(&text).unwrap_or_default();
    let field = |key: &str| manifest.get(key).and_then(Value::as_str);
    let made = field("format").unwrap_or(UNKNOWN);
    let method = METHODS.iter().find_map(|(suffix, name)| Some((made.strip_suffix(suffix)?, *name)));
    let (format, method) = method.unwrap_or((made, "RoundToNearest"));
    let revision = commit.or(field("revision")).unwrap_or(UNKNOWN);
    let types: BlockTypes =
        manifest.get("source_quantization").and_then(|types| BlockTypes::deserialize(types).ok()).unwrap_or_default();
    let types = types.to_string();
    let requantized = (!types.is_empty()).then_some(types.as_str());
    let card = card(&Artwork { base_model, revision, format, method, requantized }, licence);
    replace(&path, card.as_bytes())
}

/// Foreign text on one line of Markdown, without what would end the line or a table's cell.
fn line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() && !matches!(c, '|' | '`' | '<' | '>')).take(256).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARTWORK: Artwork<'static> = Artwork {
        base_model: "google/gemma-3-270m",
        revision: "abc123",
        format: "INT4:g64",
        method: "AWQ",
        requantized: None,
    };

    #[test]
    fn the_card_repeats_licence_base_and_method() {
        let licence =
            Licence::from_card(&json!({"license": "gemma", "license_link": "https://ai.google.dev/gemma/terms"}));
        let text = card(&ARTWORK, &licence);
        let front = text.split("---\n").nth(1).unwrap();
        assert_eq!(
            front,
            "license: gemma\nlicense_link: https://ai.google.dev/gemma/terms\nbase_model: google/gemma-3-270m\n\
             base_model_relation: quantized\ntags:\n- quantized\n- int4\n- modelprofile\n"
        );
        for part in [
            "| method | AWQ |",
            "| revision | `abc123` |",
            "| format | INT4:g64 |",
            "**gemma** (Gemma Terms of Use)",
            "use restrictions",
        ] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        // What it says of its licence is what is read from it again.
        assert_eq!(Licence::from_readme(&text).declared(), Some("gemma"));
    }

    #[test]
    fn a_named_licence_and_a_missing_one_keep_their_form() {
        let named = json!({"license": "other", "license_name": "acme-1"});
        let text = card(&ARTWORK, &Licence::from_card(&named));
        assert!(text.contains("license: other\nlicense_name: acme-1\n"), "{text}");
        let text = card(&Artwork { base_model: "/models/x|y\n", ..ARTWORK }, &Licence::from_card(&json!({})));
        assert!(text.contains("license: unknown\n") && !text.contains("base_model:"), "{text}");
        assert!(text.contains("| base model | /models/xy |"), "{text}");
        let known = json!({"license": "gemma", "base_model": "google/gemma-3-270m"});
        let text = card(&Artwork { base_model: "Gemma 3 270m", ..ARTWORK }, &Licence::from_card(&known));
        assert!(text.contains("\nbase_model: google/gemma-3-270m\n"), "{text}");
    }

    #[test]
    fn a_card_is_written_once_and_in_place_of_the_originals() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("manifest.json"),
            r#"{"format": "int4-g64-symmetric-gptq", "revision": "r", "source_quantization": {"Q4_K": 7, "Q6_K": 1}}"#,
        )
        .unwrap();
        let licence = Licence::from_card(&json!({"license": "mit"}));
        std::fs::write(folder.path().join("README.md"), "---\nlicense: mit\n---\n# The original").unwrap();
        write(folder.path(), "o/n", None, &licence).unwrap();
        let first = std::fs::read_to_string(folder.path().join("README.md")).unwrap();
        assert!(first.contains("| format | int4-g64-symmetric |") && first.contains("| method | GPTQ |"), "{first}");
        assert!(
            first.contains("| source quantization | Q4_K (7 tensors), Q6_K (1), rounded a second time |\n\n"),
            "{first}"
        );
        write(folder.path(), "other/name", None, &licence).unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("README.md")).unwrap(), first);
    }
}
