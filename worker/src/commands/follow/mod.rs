//! The manifest while the worker serves: profiles that are added to it join the ladder, and those that are taken out leave it.
//!
//! ```text
//! --config, looked at every 2 s, ──> edit: only profiles differ? ──> artifacts of the cache ──> gate ──> engine
//! or when somebody asks for a                                        opened, never made
//! profile that nobody knows
//! ```
//!
//! # Guarantees
//!
//! Nothing is fetched or quantized, and no request notices. A profile whose artifact is not there, or does not fit, is awaited:
//! the state says what it lacks, and the rest of the ladder is followed.

mod edit;

use std::{
    collections::HashMap,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::Duration,
};

use modelprofile_api::{
    Profile, Validated,
    worker::{
        AwaitedProfile,
        AwaitedReason::{self, ArtifactMissing, DoesNotFit, NeedsRestart},
    },
};
use modelprofile_engine::{
    EngineError,
    artifact::{Artifact, Finder, store::MANIFEST},
    serve::{Engine, EngineHandle, ProfileSnapshot},
};
use modelprofile_kernels::{BLOCK_TOKENS, GroupedActivations, KvFormat};
use tokio::sync::oneshot;

use super::preparation::{self, Preparation};
use crate::{
    access::{Stamp, stamp},
    app::App,
    quality,
};

/// Time between two looks. A look reads one small file.
const LOOK: Duration = Duration::from_secs(2);

/// Follows the manifest of a worker that serves.
pub(super) struct Follower<'a> {
    pub(super) preparation: &'a Preparation,
    pub(super) app: &'a App,
    pub(super) engine: EngineHandle,
    pub(super) finder: Finder,
    /// What group-wise weights are multiplied with.
    pub(super) activations: GroupedActivations,
    /// Format of the KV cache that requests are in.
    pub(super) kv: KvFormat,
    /// The manifest that the worker started with.
    pub(super) running: Validated,
    /// The ladder that the engine has.
    pub(super) held: Vec<Held>,
    pub(super) seen: Seen,
}

/// A rung that the engine has.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) profile: Profile,
    pub(super) artifact: Artifact,
}

/// What was seen in earlier looks.
pub(super) struct Seen {
    /// Text of the manifest; `None` before it was read, and after it could not be.
    text: Option<String>,
    /// The ladder to have.
    wanted: Vec<Profile>,
    /// Why profiles have not joined, so that a damaged artifact is not read whole in every look.
    tried: HashMap<String, Tried>,
}

/// An attempt to open an artifact.
struct Tried {
    profile: Profile,
    /// Of the artifact then.
    stamp: Stamp,
    why: Awaited,
}

/// Why a profile has not joined.
type Awaited = (AwaitedReason, String);

impl Seen {
    /// Of a worker that has just started with this ladder.
    pub(super) fn at_start(ladder: &[Profile]) -> Self {
        Self { text: None, wanted: ladder.to_vec(), tried: HashMap::new() }
    }
}

impl Follower<'_> {
    /// Looks again and again, and at once when somebody asks, until nobody can ask any more.
    pub(super) fn follow(mut self, asked: &Receiver<oneshot::Sender<()>>) {
        loop {
            let asked = match asked.recv_timeout(LOOK) {
                Ok(asked) => Some(asked),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if !self.app.leaving() {
                self.look();
            }
            // Whoever asked may have gone away.
            asked.map(|asked| asked.send(()));
        }
    }

    fn look(&mut self) {
        match std::fs::read_to_string(self.preparation.path()) {
            Ok(text) if self.seen.text.as_deref() != Some(text.as_str()) => {
                match self.read(&text) {
                    Ok(ladder) => self.seen.wanted = ladder,
                    Err(why) => tracing::warn!("the manifest was changed, which is not followed: {why}"),
                }
                self.seen.text = Some(text);
            }
            Ok(_) => {}
            Err(error) => {
                // Once, until it can be read again.
                if self.seen.text.take().is_some() {
                    tracing::warn!("{}: {error}; the ladder stays as it is", self.preparation.path().display());
                }
            }
        }
        self.take();
    }

    /// The ladder of another manifest, if a worker that runs can have it.
    fn read(&self, text: &str) -> Result<Vec<Profile>, String> {
        let new = Validated::from_yaml(text).map_err(|errors| errors.to_string())?;
        let lasting = edit::lasting(self.running.spec(), new.spec());
        if !lasting.is_empty() {
            return Err(format!("{} takes another start of the worker", lasting.join(", ")));
        }
        let profiles = &new.spec().profiles;
        let changed = edit::changed(&self.held.iter().map(|held| &held.profile), profiles);
        if !changed.is_empty() {
            let names = changed.join(", ");
            return Err(format!("other weights under the name {names} take another start of the worker"));
        }
        Ok(profiles.clone())
    }

    /// Gives the engine what is there of the wanted ladder, and says what is not.
    fn take(&mut self) {
        let (mut ladder, mut awaited) = (Vec::new(), Vec::new());
        for profile in self.seen.wanted.clone() {
            match self.held.iter().find(|held| held.profile == profile) {
                Some(held) => ladder.push(held.clone()),
                None => match self.open(&profile) {
                    Ok(artifact) => ladder.push(Held { profile, artifact }),
                    Err(why) => awaited.push((profile.name, why)),
                },
            }
        }
        let names = |ladder: &[Held]| ladder.iter().map(|held| held.profile.name.clone()).collect::<Vec<_>>();
        if names(&ladder) != names(&self.held) {
            // Before anybody can ask for them.
            self.app.gate.set_ladder(&names(&ladder));
            self.measure(&ladder);
            let artifacts = ladder.iter().map(|held| (held.profile.name.clone(), held.artifact.clone())).collect();
            let Ok(declined) = self.engine.set_ladder(artifacts).blocking_recv() else { return };
            for declined in declined {
                let at = ladder.iter().position(|held| held.profile.name == declined.name);
                let Some(held) = at.map(|at| ladder.remove(at)) else { continue };
                let why = (DoesNotFit, declined.message);
                self.tried(&held.profile, stamp(&held.artifact.directory().join(MANIFEST)), why.clone());
                awaited.push((declined.name, why));
            }
            self.app.gate.set_ladder(&names(&ladder));
            self.held = ladder;
        }
        self.measure(&self.held);
        self.tell(awaited);
    }

    /// The artifact of a profile that is to join; a sentence if it can not yet.
    fn open(&mut self, profile: &Profile) -> Result<Artifact, Awaited> {
        let name = &profile.name;
        let spec = preparation::profile(profile).map_err(|error| (DoesNotFit, error.to_string()))?;
        if spec.kv != self.kv {
            let message = format!("{name} has another kvCache.format than the cache that requests are in");
            return Err((NeedsRestart, message));
        }
        if self.held.first().is_some_and(|held| held.profile.tensor_parallel != profile.tensor_parallel) {
            let message = format!("{name} has another tensorParallel than the GPUs that share the model are");
            return Err((NeedsRestart, message));
        }
        let found = self.finder.find(&spec).map_err(|error| (DoesNotFit, error.to_string()))?;
        let before = |known: &ProfileSnapshot| *known.name == **name && known.artifact_key != found.key;
        if self.engine.snapshot().profiles.iter().any(before) {
            let message = format!("{name} joins when its predecessor of the same name does not serve any more");
            return Err((NeedsRestart, message));
        }
        let stamp = stamp(&found.directory.join(MANIFEST));
        if let Some(tried) = self.seen.tried.get(name)
            && (&tried.profile, tried.stamp) == (profile, stamp)
        {
            return Err(tried.why.clone());
        }
        let opened = match found.open() {
            Ok(Some(artifact)) => self.fits(name, &artifact).map(|()| artifact),
            Ok(None) => {
                let key = &found.key;
                let message = format!(
                    "the artifact {key} of {name} is not in the cache; a worker that serves makes none, `modelprofile-worker \
                     prepare` does"
                );
                Err((ArtifactMissing, message))
            }
            // It may pass: the next look tries again.
            Err(error @ EngineError::Io { .. }) => return Err((ArtifactMissing, error.to_string())),
            Err(error) => Err((ArtifactMissing, error.to_string())),
        };
        if let Err(why) = &opened {
            self.tried(profile, stamp, why.clone());
        }
        opened
    }

    fn tried(&mut self, profile: &Profile, stamp: Stamp, why: Awaited) {
        self.seen.tried.insert(profile.name.clone(), Tried { profile: profile.clone(), stamp, why });
    }

    /// Whether a profile has room within the budget for whatever request is taken.
    fn fits(&self, name: &str, artifact: &Artifact) -> Result<(), Awaited> {
        let (limits, model) = (self.engine.limits(), &self.running.spec().model);
        let sizes = [(name.to_owned(), artifact.weight_bytes())];
        let wanted = model.max_context_tokens.map(|tokens| tokens as usize);
        let longest = self.finder.config().max_positions;
        let (blocks, _) =
            limits.memory.ladder(&sizes, wanted, longest).map_err(|error| (DoesNotFit, error.to_string()))?;
        let (holds, limit) = (blocks.iter().sum::<usize>() * BLOCK_TOKENS, limits.max_context_tokens);
        if holds >= limit {
            return Ok(());
        }
        let message = format!(
            "{name} holds {holds} tokens beside its weights, and requests may have {limit} since the worker started; set \
             spec.model.maxContextTokens to at most {holds}, or start the worker again"
        );
        Err((NeedsRestart, message))
    }

    /// Tells the gate what was measured of profiles that it knows nothing of.
    fn measure(&self, ladder: &[Held]) {
        let gate = &self.app.gate;
        let unknown: Vec<&Held> = ladder.iter().filter(|held| gate.quality(&held.profile.name).is_none()).collect();
        if unknown.is_empty() {
            return;
        }
        // One that cannot be read was complained of when the worker started.
        let Ok(dataset) = self.preparation.dataset(&self.running.spec().quality, self.activations) else { return };
        for held in unknown {
            if let Some(quality) = quality::load(held.artifact.directory(), &dataset) {
                gate.measured(&held.profile.name, quality);
            }
        }
    }

    /// Says what is awaited, in the state and, where that is news, in the log.
    fn tell(&mut self, awaited: Vec<(String, Awaited)>) {
        self.seen.tried.retain(|name, _| awaited.iter().any(|(awaited, _)| awaited == name));
        let told = self.app.awaited();
        let awaited: Vec<AwaitedProfile> =
            awaited.into_iter().map(|(name, (reason, message))| AwaitedProfile { name, reason, message }).collect();
        for news in awaited.iter().filter(|awaited| !told.contains(awaited)) {
            tracing::warn!(profile = %news.name, "it was added to the manifest and is not served yet: {}", news.message);
        }
        if awaited != told {
            self.app.set_awaited(awaited);
        }
    }
}
