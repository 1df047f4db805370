//! Who may ask: keys of the OpenAI API and of the admin API, read from files that change while the worker serves.
//!
//! ```text
//! --api-keys-dir DIR  -> a key per file     -> ApiKeys
//! --admin-keys FILE   -> a key per line     -> AdminKeys -> admin_token::verify
//!                        Watched: looked at again whenever they are asked for
//! ```

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::Context;

use crate::{
    admin_token::{self, PublicKeys, TokenError},
    outcome::Invalid,
};

/// Two changes within this time may bear the same time of modification, so that a younger one is not relied on.
const SETTLED: Duration = Duration::from_secs(1);

/// Keys of the OpenAI API, a file each.
pub type ApiKeys = Watched<Vec<String>>;

/// What a file or directory looks like from outside; `None` for one that cannot be looked at.
pub(crate) type Stamp = Option<(SystemTime, u64, u64)>;

pub(crate) fn stamp(path: &Path) -> Stamp {
    // Links are followed: a mounted ConfigMap replaces the file behind one.
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.ino(), metadata.len()))
}

/// A stamp that no later change can bear.
fn settled(stamp: Stamp) -> Stamp {
    stamp.filter(|(modified, ..)| modified.elapsed().is_ok_and(|age| age > SETTLED))
}

/// A value that is read from a file or directory, and read anew when that changes.
///
/// There is no thread that watches: whoever wants the value looks, which costs one system call.
#[derive(Debug)]
pub struct Watched<T> {
    path: PathBuf,
    read: fn(&Path) -> anyhow::Result<T>,
    held: Mutex<Held<T>>,
}

#[derive(Debug)]
struct Held<T> {
    value: Arc<T>,
    /// Of what was read, once it can be relied on.
    read: Stamp,
    /// Of what could not be read, so that it is complained of once.
    refused: Option<Stamp>,
}

impl<T: PartialEq> Watched<T> {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// What is wrong with it, with the path.
    pub fn open(path: PathBuf, read: fn(&Path) -> anyhow::Result<T>) -> anyhow::Result<Self> {
        let before = stamp(&path);
        let value = read(&path).with_context(|| Invalid(path.display().to_string()))?;
        let held = Held { value: Arc::new(value), read: settled(before), refused: None };
        Ok(Self { path, read, held: Mutex::new(held) })
    }

    /// The value as of now. While it cannot be read the former one stays, and the log says so.
    pub fn get(&self) -> Arc<T> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        // Before it is read: a change meanwhile shows at the next look.
        let now = stamp(&self.path);
        if now.is_some() && now == held.read {
            return held.value.clone();
        }
        match (self.read)(&self.path) {
            Ok(value) => {
                if *held.value != value {
                    tracing::info!(path = %self.path.display(), "the keys were read anew");
                    held.value = Arc::new(value);
                }
                held.read = settled(now);
                held.refused = None;
            }
            Err(error) if held.refused != Some(now) => {
                tracing::warn!("{}: {error:#}; the former keys stay in force", self.path.display());
                held.refused = Some(now);
            }
            Err(_) => {}
        }
        held.value.clone()
    }
}

impl ApiKeys {
    /// The keys in a directory: each file's content without the space around it.
    ///
    /// # Errors
    /// A directory that cannot be read or has no key: without one, requests would be open to all.
    pub fn of_directory(path: PathBuf) -> anyhow::Result<Self> {
        Self::open(path, read_directory)
    }
}

fn read_directory(directory: &Path) -> anyhow::Result<Vec<String>> {
    let mut keys = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // A mounted Secret has `..data` and directories of its versions beside the links into them.
        if entry.file_name().as_encoded_bytes().starts_with(b"..") {
            continue;
        }
        let path = entry.path();
        let text =
            match fs::metadata(&path).and_then(|data| data.is_file().then(|| fs::read_to_string(&path)).transpose()) {
                Ok(Some(text)) => text,
                // A directory; or a link whose file was just taken out of the Secret.
                Ok(None) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).context(path.display().to_string()),
            };
        let key = text.trim();
        // An empty key would be that of whoever sends none.
        anyhow::ensure!(!key.is_empty(), "{}: it is empty: write a key into it or remove it", path.display());
        keys.push(key.to_owned());
    }
    anyhow::ensure!(
        !keys.is_empty(),
        "it has no key, and without one the API would be open: put a file with a key into it, or leave out --api-keys-dir"
    );
    keys.sort_unstable();
    Ok(keys)
}

fn read_public_keys(path: &Path) -> anyhow::Result<PublicKeys> {
    Ok(PublicKeys::parse(&fs::read_to_string(path)?)?)
}

/// Whoever signs tokens for this worker's admin API.
#[derive(Debug)]
pub struct AdminKeys {
    audience: String,
    keys: Watched<PublicKeys>,
}

impl AdminKeys {
    /// Tokens for `audience`, signed by a key of this file.
    ///
    /// # Errors
    /// A file that cannot be read, or is no file of keys.
    pub fn of_file(path: PathBuf, audience: String) -> anyhow::Result<Self> {
        Ok(Self { audience, keys: Watched::open(path, read_public_keys)? })
    }

    /// Whether a token lets its bearer in at `now`.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<(), TokenError> {
        // A clock before 1970 finds every token to be of the future.
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        admin_token::verify(token, &self.keys.get(), &self.audience, seconds)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory as a kubelet mounts a Secret.
    fn mounted(directory: &Path, version: &str, keys: &[(&str, &str)]) {
        fs::create_dir(directory.join(version)).unwrap();
        for (name, key) in keys {
            fs::write(directory.join(version).join(name), key).unwrap();
            let link = directory.join(name);
            if fs::symlink_metadata(&link).is_err() {
                symlink(Path::new("..data").join(name), link).unwrap();
            }
        }
        symlink(version, directory.join("..data_tmp")).unwrap();
        fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    }

    #[test]
    fn the_keys_of_a_mounted_secret_are_followed() {
        let directory = tempfile::tempdir().unwrap();
        mounted(directory.path(), "..1", &[("alice", "one\n"), ("bob", " two")]);
        fs::create_dir(directory.path().join("folder")).unwrap();
        let keys = ApiKeys::of_directory(directory.path().to_owned()).unwrap();
        assert_eq!(*keys.get(), ["one", "two"]);
        // Alice's key changes, and Bob's is taken out before his link is.
        mounted(directory.path(), "..2", &[("alice", "three")]);
        assert_eq!(*keys.get(), ["three"]);
        // None is left: whoever had one keeps it rather than all get in.
        mounted(directory.path(), "..3", &[]);
        assert_eq!(*keys.get(), ["three"]);
        mounted(directory.path(), "..4", &[("bob", "four")]);
        assert_eq!(*keys.get(), ["four"]);
    }

    #[test]
    fn a_directory_without_keys_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let refused = |path: &Path| format!("{:#}", ApiKeys::of_directory(path.to_owned()).unwrap_err());
        assert!(refused(directory.path()).contains("put a file with a key into it"));
        fs::write(directory.path().join("alice"), " \n").unwrap();
        assert!(refused(directory.path()).contains("alice: it is empty: write a key"));
        let absent = directory.path().join("absent");
        assert!(refused(&absent).contains("absent: No such file"), "{}", refused(&absent));
    }

    #[test]
    fn what_did_not_change_is_not_read_again() {
        static READS: Mutex<usize> = Mutex::new(0);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let write = |text: &str, age: u64| {
            let temporary = directory.path().join("new");
            fs::write(&temporary, text).unwrap();
            let time = SystemTime::now() - Duration::from_secs(age);
            fs::File::options().write(true).open(&temporary).unwrap().set_modified(time).unwrap();
            fs::rename(&temporary, &path).unwrap();
        };
        fn counted(path: &Path) -> anyhow::Result<String> {
            *READS.lock().unwrap() += 1;
            let text = fs::read_to_string(path)?;
            anyhow::ensure!(text != "bad", "it is bad");
            Ok(text)
        }
        write("one", 60);
        let watched = Watched::open(path.clone(), counted).unwrap();
        let reads = |watched: &Watched<String>, expected: &str| {
            let before = *READS.lock().unwrap();
            assert_eq!(*watched.get(), expected);
            *READS.lock().unwrap() - before
        };
        assert_eq!((reads(&watched, "one"), reads(&watched, "one")), (0, 0));
        write("two", 0);
        assert_eq!((reads(&watched, "two"), reads(&watched, "two")), (1, 1), "too young to be relied on");
        write("bad", 60);
        assert_eq!((reads(&watched, "two"), reads(&watched, "two")), (1, 1));
        fs::remove_file(&path).unwrap();
        assert_eq!(reads(&watched, "two"), 1);
        write("three", 50);
        assert_eq!((reads(&watched, "three"), reads(&watched, "three")), (1, 0));
    }
}
