//! Which licence a text or a well-known model's name stands for.
//!
//! A wrong guess in favour of the user would be the guard's only expensive one. A licence that binds is recognised by a phrase
//! anywhere in the head of its text; a permissive one by its title alone, since many a restricted licence quotes, amends or
//! repeats a permissive one.

use super::families::{Family, Strictness, TABLE};

/// Lines at the beginning of a text that may belong to its title.
const TITLE: usize = 3;

/// Base models whose licence follows from their name, for cards that can not be looked up: the beginning of
/// `OWNER/NAME` in lower case, and the identifier. The first that fits counts.
const MODELS: [(&str, &str); 28] = [
    ("meta-llama/llama-2", "llama2"),
    ("meta-llama/meta-llama-3.1", "llama3.1"),
    ("meta-llama/meta-llama-3", "llama3"),
    ("meta-llama/llama-3.1", "llama3.1"),
    ("meta-llama/llama-3.2", "llama3.2"),
    ("meta-llama/llama-3.3", "llama3.3"),
    ("meta-llama/llama-4", "llama4"),
    ("google/gemma", "gemma"),
    ("mistralai/mistral-large-instruct-24", "mrl"),
    ("mistralai/ministral-8b-instruct-2410", "mrl"),
    ("mistralai/codestral-22b", "mnpl"),
    ("qwen/qwen2.5-3b", "qwen-research"),
    ("qwen/qwen2.5-72b", "qwen"),
    // Permissive: so that a fine-tune on a disk asks for nothing that everybody knows.
    ("qwen/qwen2.5-0.5b", "apache-2.0"),
    ("qwen/qwen2.5-1.5b", "apache-2.0"),
    ("qwen/qwen2.5-7b", "apache-2.0"),
    ("qwen/qwen2.5-14b", "apache-2.0"),
    ("qwen/qwen2.5-32b", "apache-2.0"),
    ("qwen/qwen3-0.6b", "apache-2.0"),
    ("qwen/qwen3-1.7b", "apache-2.0"),
    ("qwen/qwen3-4b", "apache-2.0"),
    ("qwen/qwen3-8b", "apache-2.0"),
    ("qwen/qwen3-14b", "apache-2.0"),
    ("qwen/qwen3-32b", "apache-2.0"),
    ("qwen/qwen3-30b-a3b", "apache-2.0"),
    ("qwen/qwen3-235b-a22b", "apache-2.0"),
    ("huggingfacetb/smollm2", "apache-2.0"),
    ("mistralai/mistral-7b", "apache-2.0"),
];

/// The identifier and family of a licence text by its head; `None` for a text that is not in the table.
pub(super) fn of_text(head: &str) -> Option<(String, Family)> {
    let text = plain(head);
    let titles = titles(head);
    let (row, phrase) = TABLE.iter().find_map(|row| {
        let found = |phrase: &&&str| match row.strictness {
            Strictness::Permissive => titles.iter().any(|title| title == **phrase),
            _ => text.contains(**phrase),
        };
        row.heads.iter().find(found).map(|phrase| (row, *phrase))
    })?;
    let id = match row.family {
        // "llama 3.1 community license" -> "llama3.1".
        Family::Llama => phrase.split(' ').take(2).collect(),
        Family::Gemma => "gemma".into(),
        Family::MistralResearch => "mrl".into(),
        Family::MistralNonProduction => "mnpl".into(),
        Family::QwenResearch => "qwen-research".into(),
        Family::Qwen if phrase.starts_with("tongyi") => "tongyi-qianwen".into(),
        Family::Qwen => "qwen".into(),
        Family::OpenRail => "openrail".into(),
        Family::Apache => "apache-2.0".into(),
        Family::Mit => "mit".into(),
        Family::Bsd => if text.contains("neither the name") { "bsd-3-clause" } else { "bsd-2-clause" }.into(),
        Family::CcBy => "cc-by-4.0".into(),
        Family::CcBySa => "cc-by-sa-4.0".into(),
        Family::CcNonCommercial => if text.contains("sharealike") { "cc-by-nc-sa-4.0" } else { "cc-by-nc-4.0" }.into(),
        Family::CcNoDerivatives => {
            if text.contains("noncommercial") { "cc-by-nc-nd-4.0" } else { "cc-by-nd-4.0" }.into()
        }
        Family::Permissive | Family::Unknown => return None,
    };
    Some((id, row.family))
}

/// The identifier of a well-known model's licence.
pub(super) fn of_model(name: &str) -> Option<&'static str> {
    let name = name.trim().to_lowercase();
    MODELS.iter().find(|(start, _)| name.starts_with(start)).map(|(_, id)| *id)
}

/// What may be the title of a text: its first line, and its first two as one, as Apache's is printed; copyright lines do not
/// count. Empty where the beginning says that the text was modified.
fn titles(head: &str) -> Vec<String> {
    let counts = |line: &String| !(line.is_empty() || line.starts_with("copyright") || line == "all rights reserved");
    let lines: Vec<String> = head.lines().map(plain).filter(counts).take(TITLE).collect();
    if lines.iter().any(|line| line.contains("modified")) {
        return Vec::new();
    }
    (1..=lines.len().min(2)).map(|count| lines[..count].join(" ")).collect()
}

/// Lower-case, with single spaces, and without the marks that underline or emphasise a title.
fn plain(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    words.trim_matches(|c: char| !c.is_alphanumeric() && !matches!(c, '(' | ')')).to_owned()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(
        "                                 Apache License\n                           Version 2.0, January 2004",
        "apache-2.0"
    )]
    #[case("Copyright 2024 Acme. All rights reserved.\n\nApache License\nVersion 2.0, January 2004\n", "apache-2.0")]
    #[case("MIT License\n\nCopyright (c) 2024", "mit")]
    #[case("\u{feff}# The MIT License (MIT)\n\nCopyright (c) 2024", "mit")]
    #[case("BSD 3-Clause License\n\n... * Neither the name of the copyright holder", "bsd-3-clause")]
    #[case("Attribution 4.0 International\n\n=======\n\nCreative Commons Corporation is not a law firm", "cc-by-4.0")]
    #[case("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1 Version Release Date: July 23, 2024", "llama3.1")]
    #[case("META LLAMA 3 COMMUNITY LICENSE AGREEMENT", "llama3")]
    #[case("LLAMA 2 COMMUNITY LICENSE AGREEMENT", "llama2")]
    #[case("Gemma Terms of Use\nLast modified: April 1, 2024", "gemma")]
    #[case("# Mistral AI Research License\n", "mrl")]
    #[case("Qwen RESEARCH LICENSE AGREEMENT", "qwen-research")]
    #[case("Tongyi Qianwen LICENSE AGREEMENT", "tongyi-qianwen")]
    #[case("Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International", "cc-by-nc-sa-4.0")]
    #[case("Creative Commons Attribution-NonCommercial-NoDerivatives 4.0 International", "cc-by-nc-nd-4.0")]
    fn texts_are_recognised_by_their_heads(#[case] head: &str, #[case] id: &str) {
        let (found, family) = of_text(head).unwrap();
        assert_eq!((found.as_str(), family), (id, Family::of_identifier(id)));
    }

    #[rstest]
    #[case("GNU GENERAL PUBLIC LICENSE Version 3, 29 June 2007")]
    #[case("")]
    #[case::modified("Modified MIT License\n\nPermission is hereby granted, free of charge, to any person")]
    #[case::modified_below("MIT License\n(modified by Acme)\n\nPermission is hereby granted, free of charge")]
    #[case::continued("MIT License for research only\n\nPermission is hereby granted, free of charge")]
    #[case::quoted("ACME MODEL LICENSE\n\nThe code is under the\nMIT License\nthe weights are not.")]
    #[case::untitled("Permission is hereby granted, free of charge, to any person; commercial use excepted")]
    #[case::built_upon("Acme License, based on the Apache License, Version 2.0")]
    #[case::with_conditions("Acme License\n\nRedistribution and use in source and binary forms for research only")]
    fn other_texts_are_not(#[case] head: &str) {
        assert_eq!(of_text(head), None);
    }

    #[test]
    fn every_model_has_a_known_licence() {
        for (_, id) in MODELS {
            assert_ne!(Family::of_identifier(id), Family::Unknown, "{id}");
        }
        assert_eq!(of_model("meta-llama/Llama-3.1-8B-Instruct"), Some("llama3.1"));
        assert_eq!(of_model("somebody/Llama-3.1-8B"), None);
        assert_eq!(of_model("Qwen/Qwen2.5-3B-Instruct"), Some("qwen-research"));
        assert_eq!(of_model("Qwen/Qwen2.5-0.5B"), Some("apache-2.0"));
    }
}
