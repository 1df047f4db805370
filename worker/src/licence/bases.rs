//! The models that a model was made of: what is known of their licences, and what nobody could learn.
//!
//! A base whose licence is not known may bind like any other, so it counts as [`UNKNOWN`], which has to be accepted. Whether
//! it can be learned depends on the network: on a disk, or behind a hub that does not answer, the base's name has to do.

use serde::{Deserialize, Serialize};

use super::{Licence, Origin, UNKNOWN, declared, recognise};

/// Bases whose licences are looked up. A model that names more has one claim for all further ones.
pub const MAX_BASES: usize = 16;
/// Bases that are kept by name, for an artifact's card: more are named by no honest one.
pub(super) const MAX_NAMED: usize = 64;

/// A model that another one was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// `OWNER/NAME`, or how the card calls it.
    pub model: String,
    /// All licences that its own card declares; empty when it declares none, and when that could not be learned.
    pub licences: Vec<String>,
}

impl Licence {
    /// Adds the licences of the bases, when everything that names bases was read: as their own cards declare them, else as
    /// their names tell, else [`UNKNOWN`].
    #[must_use]
    pub fn with_bases(mut self, known: &[Base]) -> Self {
        for (at, model) in self.bases.clone().into_iter().enumerate() {
            let card = known.iter().find(|base| base.model == model).map_or(&[][..], |base| &base.licences);
            let mut ids: Vec<String> = card.iter().filter_map(|id| declared::canonical(id)).collect();
            ids.retain(|id| id != UNKNOWN);
            if ids.is_empty() {
                ids.extend(recognise::of_model(&model).map(str::to_owned));
            }
            if ids.is_empty() && at < MAX_BASES {
                ids.push(UNKNOWN.to_owned());
            }
            for id in ids {
                self.add(declared::claim(&id, false, None, Origin::Base(model.clone())));
            }
        }
        if self.bases.len() > MAX_BASES {
            self.add(declared::claim(UNKNOWN, false, None, Origin::FurtherBases));
        }
        self
    }
}

/// How a base is called: the name of its repository, where a card or a file has the repository's address. `None` for none.
pub(super) fn name(text: &str) -> Option<String> {
    let text = text.trim();
    let name = text.strip_prefix("https://huggingface.co/").unwrap_or(text).trim_end_matches('/');
    // It is shown in sentences.
    let plain: String = name.chars().filter(|c| !c.is_control()).take(256).collect();
    Some(plain).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::licence::{check, publishing_notes};

    fn base(model: &str, licences: &[&str]) -> Base {
        Base { model: model.to_owned(), licences: licences.iter().map(|id| (*id).to_owned()).collect() }
    }

    #[test]
    fn a_merge_carries_the_strictest_of_its_own_and_its_bases_licences() {
        let card = json!({"license": "apache-2.0", "base_model": ["a/x", "meta-llama/Llama-3.1-8B", "b/y"]});
        let bases = [base("a/x", &["apache-2.0"]), base("b/y", &["cc-by-nc-4.0"])];
        let licence = Licence::from_card(&card).with_bases(&bases);
        assert_eq!(licence.strictest().id, "cc-by-nc-4.0");
        assert_eq!(licence.required(), ["llama3.1", "cc-by-nc-4.0"]);
        let error = check(&licence, None).unwrap_err().to_string();
        assert!(error.contains("by its base b/y") && error.contains("by its base meta-llama/Llama-3.1-8B"), "{error}");
        assert!(error.contains("license: {accepted: \"llama3.1, cc-by-nc-4.0\"}"), "{error}");
        assert!(check(&licence, Some("apache-2.0")).is_err());
        assert!(check(&licence, Some("llama3.1")).is_err());
        assert_eq!(check(&licence, Some("llama3.1, cc-by-nc-4.0")), Ok(()));
        assert_eq!(check(&licence, Some("apache-2.0, llama3.1, cc-by-nc-4.0")), Ok(()));
    }

    #[test]
    fn all_licences_of_a_base_count() {
        let card = json!({"license": "apache-2.0", "base_model": "a/x"});
        let licence = Licence::from_card(&card).with_bases(&[base("a/x", &["mit", "Gemma", "mrl"])]);
        assert_eq!(licence.required(), ["gemma", "mrl"]);
    }

    #[test]
    fn each_base_of_which_nothing_is_known_is_named_and_one_word_accepts_them() {
        let card = json!({"license": "mit", "base_model": ["lab/gone", "lab/silent", "lab/free"]});
        let bases = [base("lab/silent", &[]), base("lab/free", &["mit"])];
        let licence = Licence::from_card(&card).with_bases(&bases);
        assert_eq!((licence.declared(), licence.required()), (Some("mit"), vec![UNKNOWN]));
        assert_eq!(
            check(&licence, None).unwrap_err().to_string(),
            "the checkpoint's licence was not accepted. mit (MIT License): Pass on the copyright notice and the licence. \
             unknown (the licence of its base lab/gone could not be learned): Find out what it asks of you. unknown (the licence \
             of its base lab/silent could not be learned): Find out what it asks of you. Read it and, if you accept it, write \
             license: {accepted: unknown} below spec.model, or --accept-licence unknown; no weights were transferred or quantized"
        );
        assert_eq!(publishing_notes(&licence).len(), 1);
        for accepted in ["unknown", "unknown, mit"] {
            assert_eq!(check(&licence, Some(accepted)), Ok(()), "{accepted}");
        }
        let error = check(&licence, Some("mit")).unwrap_err().to_string();
        assert!(error.contains("base lab/gone could not be learned") && error.contains("write \"unknown\""), "{error}");
    }

    /// Whether a base can be looked up depends on the network; a manifest must not have to change with it.
    #[test]
    fn accepting_the_unknown_holds_when_the_base_turns_out_to_be_permissive_and_no_further() {
        let licence = Licence::from_card(&json!({"license": "mit", "base_model": "lab/x"}));
        let learned = |id: &str| licence.clone().with_bases(&[base("lab/x", &[id])]);
        assert_eq!(check(&learned("apache-2.0"), Some("unknown")), Ok(()));
        assert!(check(&learned("gemma"), Some("unknown")).is_err());
        // A model without bases is what it is everywhere.
        assert!(check(&Licence::from_card(&json!({"license": "mit"})), Some("unknown")).is_err());
    }

    #[rstest]
    #[case(MAX_BASES, &[])]
    #[case(MAX_BASES + 1, &[UNKNOWN])]
    #[case(10 * MAX_NAMED, &[UNKNOWN])]
    fn more_bases_than_are_looked_up_are_unknown(#[case] count: usize, #[case] required: &[&str]) {
        let names: Vec<String> = (0..count).map(|i| format!("lab/m{i}")).collect();
        let known: Vec<Base> = names.iter().map(|name| base(name, &["mit"])).collect();
        let licence =
            Licence::from_card(&json!({"license": "mit", "base_model": names})).with_bases(&known[..MAX_BASES]);
        assert_eq!(licence.required(), required);
        assert!(licence.base_models().count() <= MAX_NAMED);
        assert_eq!(licence.duties().iter().any(|duty| duty.contains("more than 16 bases")), !required.is_empty());
    }

    #[test]
    fn a_base_that_is_named_often_or_by_its_address_is_one() {
        let names = vec!["https://huggingface.co/lab/x/"; MAX_BASES + 1];
        let licence = Licence::from_card(&json!({"license": "mit", "base_model": names}));
        assert_eq!(licence.base_models().collect::<Vec<_>>(), ["lab/x"]);
        assert_eq!(licence.with_bases(&[base("lab/x", &["mit"])]).required(), [""; 0]);
        assert_eq!(Licence::from_card(&json!({"base_model": [" ", "/"]})).base_models().count(), 0);
    }
}
