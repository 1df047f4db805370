//! The manifest file: when it changed, and what an edit means for a running worker.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use modelprofile_api::{Errors, Manifest, Quality, Validated, needs_cluster, validate};
use serde_json::Value;

/// A file that is looked at now and then. It is polled because editors replace files in many ways, and because a look at the
/// file's times costs nothing.
#[derive(Debug)]
pub struct Watched {
    path: PathBuf,
    stamp: Option<Stamp>,
    settling: bool,
    text: String,
}

/// What changes when a file is written or replaced.
type Stamp = (SystemTime, u64);

impl Watched {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let stamp = stamp(path);
        Ok(Self { path: path.to_owned(), stamp, settling: false, text: std::fs::read_to_string(path)? })
    }

    /// The text as it was last read.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The new text, once, after a change. A file that is being written is left alone until it looked the same in two
    /// calls; one that is absent for a moment, as some editors leave it, counts as unchanged.
    pub fn changed(&mut self) -> Option<&str> {
        let now = stamp(&self.path);
        if now != self.stamp {
            (self.stamp, self.settling) = (now, true);
            return None;
        }
        if !std::mem::take(&mut self.settling) {
            return None;
        }
        let text = std::fs::read_to_string(&self.path).ok()?;
        (text != self.text).then(|| {
            self.text = text;
            self.text.as_str()
        })
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Sections of the spec that a running worker follows at once; every other one shapes the worker itself. But for the text that
/// quality is measured with: a worker measures when it starts.
const LIVE: [&str; 3] = ["spec.switching", "spec.scaling", "spec.quality"];

/// See [`LIVE`].
const DATASET: &str = "spec.quality.dataset";

/// What an edit means for the worker that runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// The manifest to follow from now on: the running one with the live sections of the new one. `None` if the new ones
    /// need something else of the new manifest too, such as a pin to a profile that was added with it.
    pub live: Option<Validated>,
    /// Fields that take effect at the next start only.
    pub restart: Vec<String>,
}

/// Reads a manifest that one worker on one machine can carry out.
///
/// # Errors
/// Everything that is wrong with it, or that needs a cluster.
pub fn read(text: &str) -> Result<Validated, Errors> {
    let manifest = Validated::from_yaml(text)?;
    let refused = needs_cluster(manifest.manifest());
    if refused.is_empty() { Ok(manifest) } else { Err(Errors(refused)) }
}

/// Compares the manifest that runs with the one that the file holds now.
pub fn edit(running: &Validated, new: &Validated) -> Edit {
    let (running, new) = (running.manifest(), new.manifest());
    let mut restart = changes(running, new);
    restart.retain(|path| path.starts_with(DATASET) || !LIVE.iter().any(|live| path.starts_with(live)));
    let mut merged = running.clone();
    merged.spec.switching = new.spec.switching.clone();
    merged.spec.scaling = new.spec.scaling.clone();
    merged.spec.quality = Quality { dataset: running.spec.quality.dataset.clone(), ..new.spec.quality.clone() };
    Edit { live: validate(&merged).ok(), restart }
}

/// Paths of the fields that differ, as they stand in the manifest.
fn changes(old: &Manifest, new: &Manifest) -> Vec<String> {
    let mut paths = Vec::new();
    // Both were read from YAML, so both can be written again; if not, nothing is said rather than something wrong.
    if let (Ok(old), Ok(new)) = (serde_json::to_value(old), serde_json::to_value(new)) {
        compare(&old, &new, "", &mut paths);
    }
    paths
}

fn compare(old: &Value, new: &Value, path: &str, paths: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            for key in old.keys().chain(added) {
                let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let value = |side: &serde_json::Map<String, Value>| side.get(key).cloned().unwrap_or(Value::Null);
                compare(&value(old), &value(new), &inner, paths);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                compare(old, new, &format!("{path}[{index}]"), paths);
            }
        }
        _ if old != new => paths.push(path.to_owned()),
        _ => {}
    }
}

/// Manifests for tests.
#[cfg(test)]
pub(crate) mod fixture {
    use modelprofile_api::Validated;

    /// A manifest with the given `spec.switching`.
    pub(crate) fn text(switching: &str) -> String {
        format!(
            "apiVersion: modelprofile.dev/v1alpha1
kind: ModelProfile
metadata: {{name: demo}}
spec:
  model: {{uri: \"file:///models/demo.gguf\"}}
  profiles:
  - {{name: quality, weights: {{format: FP8}}}}
  - {{name: density, weights: {{format: Q4_1}}}}
  switching: {switching}
"
        )
    }

    /// The same, read and checked.
    pub(crate) fn valid(switching: &str) -> Validated {
        Validated::from_yaml(&text(switching)).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PINNED: &str = "{mode: Pinned, pinnedProfile: density}";

    #[test]
    fn a_pin_is_followed_at_once() {
        let (running, new) = (fixture::valid("{mode: Recommend}"), fixture::valid(PINNED));
        assert_eq!(edit(&running, &new), Edit { live: Some(new), restart: vec![] });
    }

    #[test]
    fn another_format_or_model_waits_for_the_next_start() {
        let running = fixture::valid("{mode: Recommend}");
        let text = fixture::text(PINNED).replace("FP8", "BF16").replace("demo.gguf", "other.gguf");
        let new = Validated::from_yaml(&text).unwrap();
        let edit = edit(&running, &new);
        assert_eq!(edit.restart, ["spec.model.uri", "spec.profiles[0].weights.format"]);
        assert_eq!(edit.live, Some(fixture::valid(PINNED)));
    }

    #[test]
    fn quality_limits_are_followed_at_once_and_another_text_to_measure_with_waits() {
        let running = fixture::valid("{mode: Recommend}");
        let text = |quality: &str| format!("{}  quality: {quality}\n", fixture::text("{mode: Recommend}"));
        let new = "{maxPerplexityIncreasePercent: 1, dataset: {uri: 'file:///text'}}";
        let edit = edit(&running, &Validated::from_yaml(&text(new)).unwrap());
        assert_eq!(edit.restart, ["spec.quality.dataset"]);
        let limits = Validated::from_yaml(&text("{maxPerplexityIncreasePercent: 1}")).unwrap();
        assert_eq!(edit.live, Some(limits));
    }

    #[test]
    fn a_pin_to_a_profile_that_the_worker_lacks_cannot_be_followed() {
        let running = fixture::valid("{mode: Recommend}");
        let new = Validated::from_yaml(&fixture::text(PINNED).replace("density", "dense")).unwrap();
        let edit = edit(&running, &new);
        assert_eq!((edit.live, edit.restart), (None, vec!["spec.profiles[1].name".to_owned()]));
    }

    #[test]
    fn a_change_is_seen_once_and_only_when_the_file_has_settled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.yaml");
        std::fs::write(&path, "one").unwrap();
        let mut file = Watched::open(&path).unwrap();
        assert_eq!(file.changed(), None);
        std::fs::write(&path, "second").unwrap();
        assert_eq!(file.changed(), None, "may still be in the middle of a write");
        assert_eq!(file.changed(), Some("second"));
        assert_eq!(file.changed(), None);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.changed(), None);
        assert_eq!(file.changed(), None);
        assert_eq!(file.text(), "second");
    }
}
