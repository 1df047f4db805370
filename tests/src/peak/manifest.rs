//! A manifest with a few fields changed, for the runs of a scenario.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_yaml::Value;

/// Who decides about the profile in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode<'a> {
    /// Load and schedule.
    Auto,
    /// A profile is held.
    Pinned(&'a str),
    /// Only `modelprofile switch`: what load would do is said, not done.
    ByHand,
}

/// What a worker has for requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Memory budget in MiB.
    pub budget_mib: u64,
    /// Most tokens of a request.
    pub context: u32,
}

/// Writes `manifest` into `folder` as `name`, with another mode and, where given, another room. The rest stays, also paths
/// relative to the current folder.
///
/// # Errors
/// The manifest cannot be read, or the new one cannot be written.
pub fn variant(
    manifest: &Path,
    folder: &Path,
    name: &str,
    mode: Mode<'_>,
    room: Option<Room>,
) -> anyhow::Result<PathBuf> {
    let text = std::fs::read_to_string(manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
    let mut yaml: Value = serde_yaml::from_str(&text).with_context(|| format!("{} is no YAML", manifest.display()))?;
    change(&mut yaml, mode, room);
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let file = folder.join(name);
    std::fs::write(&file, serde_yaml::to_string(&yaml)?).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

fn change(yaml: &mut Value, mode: Mode<'_>, room: Option<Room>) {
    let switching = &mut yaml["spec"]["switching"];
    let word = match mode {
        Mode::Auto => "Auto",
        Mode::Pinned(profile) => {
            switching["pinnedProfile"] = profile.into();
            "Pinned"
        }
        Mode::ByHand => "Recommend",
    };
    switching["mode"] = word.into();
    if let Some(Room { budget_mib, context }) = room {
        yaml["spec"]["placement"]["memoryBudget"] = format!("{budget_mib}Mi").into();
        yaml["spec"]["model"]["maxContextTokens"] = context.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_mode_and_the_room_change() {
        let text =
            "{spec: {model: {uri: a}, switching: {mode: Auto, minDwellSeconds: 10}, placement: {memoryBudget: 1Gi}}}";
        let mut yaml: Value = serde_yaml::from_str(text).unwrap();
        change(&mut yaml, Mode::Pinned("quality"), Some(Room { budget_mib: 264, context: 512 }));
        let changed = "{spec: {model: {uri: a, maxContextTokens: 512}, placement: {memoryBudget: 264Mi},
            switching: {mode: Pinned, minDwellSeconds: 10, pinnedProfile: quality}}}";
        assert_eq!(yaml, serde_yaml::from_str::<Value>(changed).unwrap());
    }

    #[test]
    fn sections_that_were_left_out_are_made() {
        let mut yaml: Value = serde_yaml::from_str("{spec: {model: {uri: a}}}").unwrap();
        change(&mut yaml, Mode::ByHand, None);
        let changed = "{spec: {model: {uri: a}, switching: {mode: Recommend}}}";
        assert_eq!(yaml, serde_yaml::from_str::<Value>(changed).unwrap());
    }
}
