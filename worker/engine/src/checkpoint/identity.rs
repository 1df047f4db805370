//! What a checkpoint is called, which licence it declares, and the identity of its content.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::Checkpoint;

impl Checkpoint {
    /// The name that the checkpoint gives itself, else that of its file or directory.
    pub fn name(&self) -> &str {
        let declared = self.gguf_metadata().and_then(|m| m.text("general.name"));
        declared.or_else(|| self.path().file_stem().and_then(|s| s.to_str())).unwrap_or("checkpoint")
    }

    /// The licence that the checkpoint declares, lower-case: GGUF's `general.license`, or the `license` of the model
    /// card's front matter.
    pub fn licence(&self) -> Option<&str> {
        self.identity().licence.as_deref()
    }

    /// SHA-256 over the content of all files, in hexadecimal: the same bytes are the same revision, wherever they are.
    pub fn revision(&self) -> &str {
        &self.identity().revision
    }
}

/// Computed once, at first use: it reads every byte.
#[derive(Debug)]
pub(super) struct Identity {
    revision: String,
    licence: Option<String>,
}

impl Identity {
    pub(super) fn of(checkpoint: &Checkpoint) -> Self {
        let mut hash = Sha256::new();
        for (name, bytes) in checkpoint.contents() {
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        let declared = checkpoint.gguf_metadata().and_then(|m| m.text("general.license")).map(str::to_owned);
        let licence = declared
            .or_else(|| if checkpoint.gguf_metadata().is_some() { None } else { card_licence(checkpoint.directory()) });
        Self {
            revision: crate::artifact::hex(&hash.finalize()),
            licence: licence.map(|l| l.trim().to_lowercase()).filter(|l| !l.is_empty()),
        }
    }
}

/// `license:` of a model card's front matter.
fn card_licence(directory: &Path) -> Option<String> {
    // A card is prose of a few pages; what is larger is none.
    const LARGEST: u64 = 1 << 20;
    let path = directory.join("README.md");
    if std::fs::metadata(&path).ok()?.len() > LARGEST {
        return None;
    }
    let card = std::fs::read_to_string(path).ok()?;
    let mut lines = card.lines();
    if lines.next()?.trim() != "---" {
        return None;
    }
    lines
        .take_while(|line| line.trim() != "---")
        .find_map(|line| line.strip_prefix("license:"))
        .map(|value| value.trim().trim_matches(['"', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_licence_is_read_from_the_cards_front_matter_only() {
        let directory = tempfile::tempdir().unwrap();
        let card = |text: &str| {
            std::fs::write(directory.path().join("README.md"), text).unwrap();
            card_licence(directory.path())
        };
        assert_eq!(card("---\ntags: x\nlicense: \"apache-2.0\"\n---\n# A"), Some("apache-2.0".into()));
        assert_eq!(card("---\ntags: x\n---\nlicense: mit"), None);
        assert_eq!(card("license: mit"), None);
    }
}
