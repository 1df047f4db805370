//! Model cards, LICENSE files and GGUF fields, read as claims. All of it is foreign text: sizes are bounded, and what cannot
//! be understood counts as not declared.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufReader, Read},
    path::Path,
};

use serde_json::Value;

use super::{
    Claim, Licence, Origin, UNKNOWN,
    bases::{self, MAX_NAMED},
    families::Family,
    gguf, recognise,
};

/// Front matter and the head of a licence lie in it.
const HEAD: u64 = 64 << 10;
/// Enough of a licence's text to recognise it.
const TEXT: usize = 4 << 10;
/// How an address on the public hub begins.
const HUB: &str = "https://huggingface.co/";
/// Beginnings of licence files' names, in upper case.
const FILES: [&str; 3] = ["LICENSE", "LICENCE", "COPYING"];

impl Licence {
    /// From the front matter of a model card, as the hub gives it or a README has it: `license`, or `license_name` where
    /// that says `other`; `license_link`; `base_model`, one or several.
    pub fn from_card(card: &Value) -> Self {
        let texts = |key: &str| match card.get(key) {
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        let text = |key: &str| texts(key).into_iter().next();
        let link = text("license_link");
        let mut claims = Vec::new();
        for declared in texts("license") {
            claims.extend(declared_claim(&declared, text("license_name").as_deref(), link.clone()));
        }
        Self::of(claims, texts("base_model"))
    }

    /// From a model card's text.
    pub fn from_readme(readme: &str) -> Self {
        Self::from_card(&front_matter(readme).unwrap_or_default())
    }

    /// From the `general.*` texts of a GGUF file, by key without that prefix: `license`, `license.name`, `license.link`,
    /// `base_model.N.repo_url` (or `organization` and `name`).
    pub fn from_gguf(fields: &BTreeMap<String, String>) -> Self {
        let field = |key: &str| fields.get(key).map(|text| text.trim()).filter(|text| !text.is_empty());
        let link = field("license.link").map(str::to_owned);
        let declared = field("license").or(field("license.name"));
        let claim = declared.and_then(|declared| declared_claim(declared, field("license.name"), link));
        let base = |at: &str| {
            let part = |name: &str| field(&format!("base_model.{at}.{name}"));
            let url = part("repo_url");
            match (url.filter(|url| url.starts_with(HUB)), part("organization"), part("name")) {
                (Some(url), ..) => url.to_owned(),
                (None, Some(owner), Some(name)) => format!("{owner}/{name}").replace(' ', "-"),
                // Half a name is that of a model that nobody can look up, but there is one.
                (None, owner, name) => name.or(owner).or(url).unwrap_or_default().to_owned(),
            }
        };
        // The numbers of a file may have gaps; what comes first is looked up first.
        let number = |key: &str| Some(key.strip_prefix("base_model.")?.split_once('.')?.0.to_owned());
        let mut numbers: Vec<String> = fields.keys().filter_map(|key| number(key)).collect();
        numbers.sort_by_key(|number| (number.parse().unwrap_or(u64::MAX), number.clone()));
        numbers.dedup();
        Self::of(claim.into_iter().collect(), numbers.iter().map(|number| base(number)))
    }

    /// From a path: the fields of a GGUF file, or the README and LICENSE files of a directory. Its bases count by their
    /// names, since nobody is asked for them.
    ///
    /// # Errors
    /// The file cannot be read, or is no GGUF file. A directory without any of these declares nothing.
    pub fn of_path(path: &Path) -> std::io::Result<Self> {
        Ok(Self::declared_at(path)?.with_bases(&[]))
    }

    /// [`Self::of_path`] without the licences of the bases.
    pub(crate) fn declared_at(path: &Path) -> std::io::Result<Self> {
        if !path.is_dir() {
            return Ok(Self::from_gguf(&gguf::head(BufReader::new(File::open(path)?))?.fields));
        }
        let readme = read_head(&path.join("README.md")).unwrap_or_default();
        Ok(Self::from_readme(&readme).with_files(path))
    }

    /// From what a hub says of a repository and the files that came with it, without the licences of its bases.
    pub(crate) fn declared_in(card: &Value, snapshot: &Path) -> Self {
        let readme = read_head(&snapshot.join("README.md")).unwrap_or_default();
        Self::from_card(card).with(&Self::from_readme(&readme)).with_files(snapshot)
    }

    fn of(mut claims: Vec<Claim>, bases: impl IntoIterator<Item = String>) -> Self {
        if claims.is_empty() {
            claims.push(claim(UNKNOWN, false, None, Origin::Declared));
        }
        let mut named = Vec::new();
        for base in bases.into_iter().filter_map(|base| bases::name(&base)) {
            if named.len() < MAX_NAMED && !named.contains(&base) {
                named.push(base);
            }
        }
        Self { claims, bases: named }
    }

    /// Adds what the heads of LICENSE files say. They speak for a model that declares nothing. A name that is not known
    /// stays what has to be accepted, and a text can only make it stricter; beside a known one, too, only a stricter text
    /// counts, since repositories carry the licence of their code.
    fn with_files(mut self, folder: &Path) -> Self {
        let mut names: Vec<String> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| FILES.iter().any(|start| name.to_ascii_uppercase().starts_with(start)))
            .collect();
        names.sort();
        let silent = self.claims[0].id == UNKNOWN;
        let mut foreign = None;
        for name in names {
            let Some(text) = read_head(&folder.join(&name)) else { continue };
            let head: String = text.chars().take(TEXT).collect();
            let Some((id, family)) = recognise::of_text(&head) else {
                foreign.get_or_insert(name);
                continue;
            };
            let stricter = |than: Family| family.row().strictness > than.row().strictness;
            let strictest = self.strictest().family;
            let own = &mut self.claims[0];
            if own.id == UNKNOWN {
                *own = claim(&id, false, None, Origin::File(name));
            } else if own.family == Family::Unknown {
                if stricter(own.family) {
                    own.family = family;
                }
            } else if stricter(strictest) {
                self.add(claim(&id, false, None, Origin::File(name)));
            }
        }
        // Of two files, one is the code's; nobody says that it is not the one that is known here.
        if let Some(name) = foreign.filter(|_| silent && self.claims[0].id != UNKNOWN) {
            self.add(claim(UNKNOWN, false, None, Origin::File(name)));
        }
        self
    }
}

/// A declaration as a claim; `None` for an empty one.
fn declared_claim(declared: &str, name: Option<&str>, link: Option<String>) -> Option<Claim> {
    let id = canonical(declared)?;
    match name.and_then(canonical) {
        Some(name) if id == "other" => Some(claim(&name, true, link, Origin::Declared)),
        _ => Some(claim(&id, false, link, Origin::Declared)),
    }
}

pub(super) fn claim(id: &str, named: bool, link: Option<String>, origin: Origin) -> Claim {
    // A link is shown in a sentence: what is no plain address is left out.
    let plain = |link: &String| link.len() <= 512 && link.bytes().all(|b| b.is_ascii_graphic());
    Claim { id: id.to_owned(), named, family: Family::of_identifier(id), link: link.filter(plain), origin }
}

/// Trimmed, lower-case, without control characters, and short enough for a manifest's field. `None` for nothing.
pub(super) fn canonical(text: &str) -> Option<String> {
    // A comma separates identifiers in `license.accepted`.
    let kept = |c: &char| !c.is_control() && *c != ',';
    let plain: String = text.trim().to_lowercase().chars().filter(kept).take(128).collect();
    // What was left out or cut off may have stood before or after a space, which nobody could write to accept it.
    Some(plain.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The YAML between two lines of dashes at the head of a README.
fn front_matter(readme: &str) -> Option<Value> {
    let rest = readme.strip_prefix('\u{feff}').unwrap_or(readme);
    let mut lines = rest.lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let yaml: Vec<&str> = lines.take_while(|line| line.trim_end() != "---").collect();
    let yaml = yaml.join("\n");
    // A card with one field that is no YAML still has the others.
    serde_yaml::from_str(&yaml).ok().or_else(|| Some(plain_fields(&yaml)))
}

/// `key: value` lines, for front matter that is not quite YAML.
fn plain_fields(text: &str) -> Value {
    let mut fields = serde_json::Map::new();
    for line in text.lines() {
        if let Some((key, value)) = line.split_once(':').filter(|(key, _)| !key.starts_with([' ', '-', '#'])) {
            let value = value.trim().trim_matches(['"', '\'']);
            if !value.is_empty() {
                fields.entry(key.trim()).or_insert_with(|| Value::String(value.to_owned()));
            }
        }
    }
    Value::Object(fields)
}

fn read_head(path: &Path) -> Option<String> {
    let mut head = Vec::new();
    File::open(path).ok()?.take(HEAD).read_to_end(&mut head).ok()?;
    Some(String::from_utf8_lossy(&head).into_owned())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::licence::check;

    #[rstest]
    #[case("---\nlicense: apache-2.0\n---\n# Model", Some("apache-2.0"))]
    #[case("---\nlanguage: en\nlicense: 'MIT'\n---\n", Some("mit"))]
    #[case("---\nlicense: other\nlicense_name: llama3.3\n---\n", Some("llama3.3"))]
    #[case("---\nlicense: other\n---\n", Some("other"))]
    #[case("---\nlicense:\n- mit\n---\n", Some("mit"))]
    #[case("---\r\nlicense: mit\r\n---\r\n", Some("mit"))]
    #[case("---\ntitle: a: b: c\nlicense: gemma\n---\n", Some("gemma"))]
    #[case("---\nlanguage: en\n---\nlicense: mit\n", None)]
    #[case("license: mit\n", None)]
    #[case("", None)]
    fn the_licence_is_read_from_the_front_matter(#[case] readme: &str, #[case] expected: Option<&str>) {
        assert_eq!(Licence::from_readme(readme).declared(), expected);
    }

    #[test]
    fn a_licence_file_speaks_where_the_card_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let of = |readme: &str, licence: &str| {
            fs::write(folder.path().join("README.md"), readme).unwrap();
            fs::write(folder.path().join("LICENSE.txt"), licence).unwrap();
            Licence::of_path(folder.path()).unwrap()
        };
        let llama = "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT";
        let licence = of("# none", llama);
        assert_eq!((licence.declared(), licence.claims().len()), (Some("llama3.1"), 1));
        assert_eq!(licence.claims()[0].origin, Origin::File("LICENSE.txt".into()));
        // A name that is not known gets the family of its text if that is stricter, and stays what has to be written.
        let licence = of("---\nlicense: other\nlicense_name: acme\n---\n", llama);
        assert_eq!((licence.declared(), licence.strictest().family), (Some("acme"), Family::Llama));
        for lax in ["MIT License", "Modified MIT License", "Attribution-ShareAlike 4.0 International"] {
            let licence = of("---\nlicense: other\nlicense_name: modified-mit\n---\n", lax);
            assert_eq!(
                (licence.declared(), licence.strictest().family),
                (Some("modified-mit"), Family::Unknown),
                "{lax}"
            );
            let error = check(&licence, None).unwrap_err().to_string();
            assert!(error.contains("license: {accepted: modified-mit}"), "{error}");
        }
        // A stricter text beside a lax card counts too.
        let licence = of("---\nlicense: mit\n---\n", llama);
        assert_eq!((licence.declared(), licence.strictest().id.as_str()), (Some("mit"), "llama3.1"));
        // The licence of the code beside a stricter card does not.
        let licence = of("---\nlicense: gemma\n---\n", "MIT License");
        assert_eq!(licence.claims().len(), 1);
        // Without a card, a text that only resembles a permissive one is none.
        assert_eq!(of("# none", "MIT License").required(), [""; 0]);
        assert_eq!(
            of("# none", "Modified MIT License\n\nPermission is hereby granted, free of charge").declared(),
            None
        );
    }

    #[test]
    fn one_of_several_licence_files_that_is_not_known_has_to_be_accepted() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("LICENSE-CODE"), "MIT License").unwrap();
        fs::write(folder.path().join("LICENSE-MODEL"), "ACME MODEL LICENSE").unwrap();
        let licence = Licence::of_path(folder.path()).unwrap();
        let error = check(&licence, None).unwrap_err().to_string();
        assert!(error.contains("the file LICENSE-MODEL") && error.contains("accepted: unknown"), "{error}");
        // A card that says which one it is is believed.
        fs::write(folder.path().join("README.md"), "---\nlicense: mit\n---\n").unwrap();
        assert_eq!(check(&Licence::of_path(folder.path()).unwrap(), None), Ok(()));
    }

    #[test]
    fn gguf_fields_name_licence_and_bases() {
        let fields = [
            ("license", "other"),
            ("license.name", "Acme-1"),
            ("license.link", "https://acme.example/licence"),
            ("base_model.0.name", "Llama 3.1 8B"),
            ("base_model.0.repo_url", "https://huggingface.co/meta-llama/Llama-3.1-8B"),
            ("base_model.10.repo_url", "https://elsewhere.example/x"),
            ("base_model.2.name", "Other Model"),
            ("base_model.2.organization", "Acme"),
            ("base_model.3.organization", "Acme"),
        ];
        let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let licence = Licence::from_gguf(&fields);
        assert_eq!(licence.declared(), Some("acme-1"));
        assert!(licence.claims()[0].named);
        assert_eq!(licence.claims()[0].link.as_deref(), Some("https://acme.example/licence"));
        let bases: Vec<_> = licence.base_models().collect();
        assert_eq!(bases, ["meta-llama/Llama-3.1-8B", "Acme/Other-Model", "Acme", "https://elsewhere.example/x"]);
    }

    /// Found by fuzzing: these ended or began with a space, so that nothing that was accepted was equal to them.
    #[rstest]
    #[case(", acme", "acme")]
    #[case("acme ,", "acme")]
    #[case("\u{7} acme", "acme")]
    fn what_is_left_of_a_declaration_can_be_accepted(#[case] declared: &str, #[case] id: &str) {
        let licence = Licence::from_card(&serde_json::json!({"license": declared}));
        assert_eq!(licence.declared(), Some(id));
        assert_eq!(check(&licence, Some(id)), Ok(()));
        let cut = format!("{} b", "a".repeat(127));
        let licence = Licence::from_card(&serde_json::json!({"license": cut}));
        assert_eq!(check(&licence, licence.declared()), Ok(()));
    }

    #[test]
    fn hostile_declarations_are_cut_to_what_a_field_holds() {
        let long = "x".repeat(10_000);
        let card = serde_json::json!({"license": format!("a,b\u{7}{long}"), "license_link": "no address"});
        let licence = Licence::from_card(&card);
        assert!(licence.declared().unwrap().len() <= 128 && !licence.declared().unwrap().contains(','));
        assert_eq!(licence.claims()[0].link, None);
        assert_eq!(Licence::from_readme(&format!("---\n{}", "- [".repeat(20_000))).declared(), None);
    }
}
