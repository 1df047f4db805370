//! The known families of licences: how an identifier or a text names one, what it asks, what it means for publishing.
//!
//! A closed table. Each duty is one sentence that points people to the clause that matters for weights; it is no legal advice and
//! replaces no licence. A licence that is not in the table is [`Family::Unknown`], which is treated as restricted.

/// A family of licences with the same duties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the table names them")]
pub enum Family {
    Apache,
    Mit,
    Bsd,
    Permissive,
    CcBy,
    CcBySa,
    Unknown,
    OpenRail,
    Qwen,
    Gemma,
    Llama,
    CcNoDerivatives,
    CcNonCommercial,
    QwenResearch,
    MistralNonProduction,
    MistralResearch,
}

/// How far a licence binds; a model made of several carries the strictest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strictness {
    /// Use as you like, keep the notices.
    Permissive,
    /// Derived works come under the same licence.
    ShareAlike,
    /// Nobody knows: it may be anything.
    Unknown,
    /// Some uses are forbidden, some users are excluded.
    UseRestricted,
    /// No commercial use.
    NonCommercial,
    /// Research only.
    Research,
}

/// What publishing a derived artifact takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publishing {
    /// Allowed; notices go along.
    Free,
    /// Allowed under conditions, named here.
    Bound(&'static str),
    /// Not allowed, as named here.
    Forbidden(&'static str),
}

/// One row of the table.
#[derive(Debug)]
pub struct Row {
    /// The family.
    pub family: Family,
    /// What people call it.
    pub name: &'static str,
    /// How far it binds.
    pub strictness: Strictness,
    /// Its duties, as one sentence.
    pub duties: &'static str,
    /// What publishing takes.
    pub publishing: Publishing,
    /// Recognises an identifier (lower case).
    matches: fn(&str) -> bool,
    /// Phrases of its text (lower case, single spaces), any of which suffices: anywhere in the head where the licence binds,
    /// the whole title where it is permissive.
    pub(super) heads: &'static [&'static str],
}

use Publishing::{Bound, Forbidden, Free};
use Strictness::{NonCommercial, Permissive, Research, ShareAlike, UseRestricted};

/// All families. The order decides which one a text or identifier that fits two belongs to.
pub(super) static TABLE: [Row; 15] = [
    Row {
        family: Family::MistralResearch,
        name: "Mistral Research License",
        strictness: Research,
        duties: "Research and personal use only: serving it for any business, even inside a company, needs a commercial licence \
                 from Mistral AI.",
        publishing: Bound(
            "derivatives may be passed on for research only, with the licence and a notice that they were changed",
        ),
        matches: |id| id == "mrl" || id.starts_with("mrl-") || (id.contains("mistral") && id.contains("research")),
        heads: &["mistral ai research license", "mistral research license"],
    },
    Row {
        family: Family::MistralNonProduction,
        name: "Mistral AI Non-Production License",
        strictness: Research,
        duties: "Testing, research and evaluation only: no use in production and none for revenue.",
        publishing: Bound("derivatives may be passed on for non-production use only, with the licence"),
        matches: |id| id.starts_with("mnpl") || (id.contains("mistral") && id.contains("non-production")),
        heads: &["mistral ai non-production license"],
    },
    Row {
        family: Family::QwenResearch,
        name: "Qwen Research License",
        strictness: Research,
        duties: "Non-commercial use only, for research or evaluation: commercial use needs a licence from Alibaba Cloud; what you \
                 publish on top of it says \"Built with Qwen\" or \"Improved using Qwen\".",
        publishing: Bound(
            "derivatives may be passed on for non-commercial use only, with the licence, its notice and \"Built with Qwen\"",
        ),
        matches: |id| (id.contains("qwen") || id.contains("qianwen")) && id.contains("research"),
        heads: &["qwen research license"],
    },
    Row {
        family: Family::CcNoDerivatives,
        name: "Creative Commons without derivatives",
        strictness: NonCommercial,
        duties: "Give credit and pass it on unchanged only; with NC in its name, no commercial use either.",
        publishing: Forbidden("a quantized copy is a changed one, which this licence does not let you share"),
        matches: |id| id.starts_with("cc-by-nd") || id.starts_with("cc-by-nc-nd"),
        heads: &["attribution-noderivatives", "attribution-noncommercial-noderivatives"],
    },
    Row {
        family: Family::CcNonCommercial,
        name: "Creative Commons non-commercial",
        strictness: NonCommercial,
        duties: "Non-commercial use only: not for a product, a service or a business's own work; give credit and say what was \
                 changed.",
        publishing: Bound(
            "allowed for non-commercial purposes only, with credit, the licence and a note of what was changed",
        ),
        matches: |id| id.starts_with("cc-by-nc"),
        heads: &["attribution-noncommercial"],
    },
    Row {
        family: Family::Llama,
        name: "Llama Community License",
        strictness: UseRestricted,
        duties: "Show \"Built with Llama\", keep to its acceptable use policy, start the name of a model made with it with \"Llama\" \
                 (version 3 and later), and get a licence from Meta if your products had more than 700 million monthly users at \
                 its release.",
        publishing: Bound(
            "pass on a copy of the agreement and its notice file, show \"Built with Llama\", and start the artifact's name with \
             \"Llama\" (version 3 and later)",
        ),
        matches: |id| id.starts_with("llama") || id.starts_with("meta-llama"),
        heads: &[
            "llama 2 community license",
            "llama 3 community license",
            "llama 3.1 community license",
            "llama 3.2 community license",
            "llama 3.3 community license",
            "llama 4 community license",
        ],
    },
    Row {
        family: Family::Gemma,
        name: "Gemma Terms of Use",
        strictness: UseRestricted,
        duties: "Keep to its prohibited use policy, and hand the same restrictions on to everyone who gets the model, a derivative \
                 or access to it.",
        publishing: Bound(
            "hand on a copy of the terms with the use restrictions in force, say in the files that they were changed, and keep \
             the notice of the Gemma Terms of Use",
        ),
        matches: |id| id.starts_with("gemma"),
        heads: &["gemma terms of use"],
    },
    Row {
        family: Family::Qwen,
        name: "Qwen or Tongyi Qianwen License",
        strictness: UseRestricted,
        duties: "Keep its notices, do not train other models with its outputs without naming Qwen, and ask Alibaba Cloud for a licence \
                 if your products have more than 100 million monthly users.",
        publishing: Bound("pass on the agreement and its notices, and say in the files that they were changed"),
        matches: |id| id.contains("tongyi") || id == "qwen" || id.starts_with("qwen-"),
        heads: &["tongyi qianwen license", "qwen license agreement"],
    },
    Row {
        family: Family::OpenRail,
        name: "OpenRAIL",
        strictness: UseRestricted,
        duties: "Keep to the use restrictions of its attachment, and put the same ones on everyone who gets the model or a \
                 derivative.",
        publishing: Bound(
            "put at least the same use restrictions on it, pass on the licence, and say what was changed",
        ),
        matches: |id| id.contains("openrail") || id.contains("open-rail") || id.contains("bloom-rail"),
        heads: &["openrail", "open rail", "bigscience rail license"],
    },
    Row {
        family: Family::CcBySa,
        name: "Creative Commons share-alike",
        strictness: ShareAlike,
        duties: "Give credit, say what was changed, and put derivatives that you share under the same licence.",
        publishing: Bound("only under the same licence, with credit and a note of what was changed"),
        matches: |id| id.starts_with("cc-by-sa"),
        heads: &["attribution-sharealike"],
    },
    Row {
        family: Family::CcBy,
        name: "Creative Commons attribution",
        strictness: Permissive,
        duties: "Give credit, name the licence and say what was changed when you share it.",
        publishing: Free,
        matches: |id| id.strip_prefix("cc-by").is_some_and(|rest| rest.is_empty() || is_version(rest)),
        heads: &[
            "attribution 4.0 international",
            "creative commons attribution 4.0 international",
            "creative commons attribution 4.0 international license",
            "creative commons attribution 4.0 international public license",
        ],
    },
    Row {
        family: Family::Apache,
        name: "Apache License 2.0",
        strictness: Permissive,
        duties: "Pass on the licence and its NOTICE file, and say in changed files that they were changed.",
        publishing: Free,
        matches: |id| matches!(id, "apache-2.0" | "apache 2.0" | "apache-2" | "apache license 2.0"),
        heads: &[
            "apache license version 2.0, january 2004",
            "apache license, version 2.0, january 2004",
            "apache license version 2.0",
            "apache license, version 2.0",
            "apache license 2.0",
        ],
    },
    Row {
        family: Family::Bsd,
        name: "BSD License",
        strictness: Permissive,
        duties: "Pass on the copyright notice and the licence.",
        publishing: Free,
        matches: |id| matches!(id, "bsd" | "bsd-2-clause" | "bsd-3-clause" | "bsd-3-clause-clear"),
        heads: &[
            "bsd license",
            "bsd 2-clause license",
            "bsd 3-clause license",
            "the 2-clause bsd license",
            "the 3-clause bsd license",
        ],
    },
    Row {
        family: Family::Mit,
        name: "MIT License",
        strictness: Permissive,
        duties: "Pass on the copyright notice and the licence.",
        publishing: Free,
        matches: |id| id == "mit",
        heads: &["mit license", "the mit license", "mit license (mit)", "the mit license (mit)"],
    },
    Row {
        family: Family::Permissive,
        name: "a permissive licence or the public domain",
        strictness: Permissive,
        duties: "Pass on its notice, if it has one.",
        publishing: Free,
        matches: |id| {
            matches!(id, "isc" | "zlib" | "0bsd" | "bsl-1.0" | "unlicense" | "cc0-1.0" | "cdla-permissive-2.0" | "pddl")
        },
        heads: &[],
    },
];

/// Stands for every licence that is not in the table.
static UNKNOWN: Row = Row {
    family: Family::Unknown,
    name: "a licence that is not known here",
    strictness: Strictness::Unknown,
    duties: "Read it: what it asks of you is not known here.",
    publishing: Bound("read the licence first: whether it allows that is not known here"),
    matches: |_| false,
    heads: &[],
};

impl Family {
    /// The family of an identifier, trimmed and lower-case.
    pub fn of_identifier(id: &str) -> Self {
        TABLE.iter().find(|row| (row.matches)(id)).map_or(Self::Unknown, |row| row.family)
    }

    /// Its row.
    pub fn row(self) -> &'static Row {
        TABLE.iter().find(|row| row.family == self).unwrap_or(&UNKNOWN)
    }
}

/// `-4.0`, `-2.5`.
fn is_version(text: &str) -> bool {
    text.strip_prefix('-').is_some_and(|version| version.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("apache-2.0", Family::Apache)]
    #[case("mit", Family::Mit)]
    #[case("bsd-3-clause", Family::Bsd)]
    #[case("cc0-1.0", Family::Permissive)]
    #[case("cc-by-4.0", Family::CcBy)]
    #[case("cc-by-sa-4.0", Family::CcBySa)]
    #[case("cc-by-nc-4.0", Family::CcNonCommercial)]
    #[case("cc-by-nc-sa-4.0", Family::CcNonCommercial)]
    #[case("cc-by-nc-nd-4.0", Family::CcNoDerivatives)]
    #[case("llama2", Family::Llama)]
    #[case("llama3.3", Family::Llama)]
    #[case("llama4", Family::Llama)]
    #[case("gemma", Family::Gemma)]
    #[case("mrl", Family::MistralResearch)]
    #[case("mistral-ai-research-licence", Family::MistralResearch)]
    #[case("mnpl-0.1", Family::MistralNonProduction)]
    #[case("qwen-research", Family::QwenResearch)]
    #[case("tongyi-qianwen-research", Family::QwenResearch)]
    #[case("tongyi-qianwen", Family::Qwen)]
    #[case("creativeml-openrail-m", Family::OpenRail)]
    #[case("other", Family::Unknown)]
    #[case("gpl-3.0", Family::Unknown)]
    #[case("cc-by-something", Family::Unknown)]
    #[case("", Family::Unknown)]
    fn identifiers_belong_to_families(#[case] id: &str, #[case] family: Family) {
        assert_eq!(Family::of_identifier(id), family);
    }

    #[test]
    fn every_row_says_something() {
        for row in &TABLE {
            assert!(row.duties.ends_with('.') && !row.name.is_empty(), "{row:?}");
        }
    }
}
