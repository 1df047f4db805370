//! The model that a command is about: one that local mode serves.

use std::path::PathBuf;

use crate::local::serve::default_cache;
use crate::local::session::Sessions;

/// Which model, and where local mode notes that it runs.
#[derive(Debug, clap::Args)]
pub struct Served {
    /// `metadata.name` of the model that `modelprofile local` serves.
    pub name: String,
    /// The folder that `modelprofile local` was given with --cache, if it was.
    #[arg(long, value_name = "DIR", env = "MODELPROFILE_CACHE")]
    cache: Option<PathBuf>,
}

impl Served {
    /// The sessions among which the model is.
    ///
    /// # Errors
    /// There is no folder for them: neither `XDG_CACHE_HOME` nor `HOME` is set, and none was given.
    pub fn sessions(&self) -> anyhow::Result<Sessions> {
        Ok(Sessions::new(&self.cache.clone().map_or_else(default_cache, Ok)?))
    }
}
