//! Models that are on a disk already: `file://`, and `pvc://CLAIM/PATH` below the folder of mounted volumes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Result, SourceError};

/// The path of `pvc://CLAIM/PATH`: `VOLUMES/CLAIM/PATH`, with symbolic links followed.
///
/// Whoever may write a manifest must not read beside the volume, so neither the path nor a file right below it may lead out of
/// the claim's folder. Links that stay inside are fine: caches of models are made of them.
///
/// # Errors
/// [`SourceError::Config`] when the claim is not mounted, the path does not exist, or something leads out.
pub(super) fn claim(volumes: &Path, claim: &str, path: &Path) -> Result<PathBuf> {
    let mount = volumes.join(claim);
    let root = mount.canonicalize().map_err(|_| {
        SourceError::Config(format!(
            "pvc://{claim}: no volume is mounted at {}; mount the claim there, or name the folder of all volumes with \
             --volumes DIR; on this machine file:///PATH needs no volume",
            mount.display()
        ))
    })?;
    let wanted = root.join(path);
    let found = wanted.canonicalize().map_err(|error| {
        SourceError::Config(format!("pvc://{claim}/{}: {}: {error}", path.display(), wanted.display()))
    })?;
    let leaves = |path: &Path| {
        SourceError::Config(format!(
            "pvc://{claim}: {} is a link that leads out of the volume; put the files themselves there",
            path.display()
        ))
    };
    if !found.starts_with(&root) {
        return Err(leaves(&wanted));
    }
    if found.is_dir() {
        for entry in fs::read_dir(&found).map_err(SourceError::io(&found))? {
            let entry = entry.map_err(SourceError::io(&found))?.path();
            // A dangling link is no file; whoever needs it says that it is missing.
            if entry.canonicalize().is_ok_and(|target| !target.starts_with(&root)) {
                return Err(leaves(&entry));
            }
        }
    }
    Ok(found)
}

/// A local path that must be there.
pub(super) fn file(path: &Path) -> Result<PathBuf> {
    match fs::metadata(path) {
        Ok(_) => Ok(path.to_owned()),
        Err(error) => Err(SourceError::io(path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_claim_is_a_folder_that_nothing_leads_out_of() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = folder.path().join("volumes");
        fs::create_dir_all(volumes.join("models/llama")).unwrap();
        fs::write(folder.path().join("secret"), "x").unwrap();
        fs::write(volumes.join("models/blob"), "x").unwrap();
        symlink("../blob", volumes.join("models/llama/config.json")).unwrap();
        let real = volumes.join("models/llama").canonicalize().unwrap();
        assert_eq!(claim(&volumes, "models", Path::new("llama")).unwrap(), real);

        symlink("../../../secret", volumes.join("models/llama/tokenizer.json")).unwrap();
        let error = claim(&volumes, "models", Path::new("llama")).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json is a link that leads out"), "{error}");
        symlink("../../secret", volumes.join("models/out")).unwrap();
        let error = claim(&volumes, "models", Path::new("out")).unwrap_err().to_string();
        assert!(error.contains("leads out of the volume"), "{error}");
    }

    #[test]
    fn a_claim_that_is_not_mounted_says_how_to_mount_it() {
        let folder = tempfile::tempdir().unwrap();
        let error = claim(folder.path(), "models", Path::new("llama")).unwrap_err().to_string();
        assert!(error.contains("no volume is mounted at") && error.contains("--volumes DIR"), "{error}");
    }
}
