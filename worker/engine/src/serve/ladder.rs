//! Another ladder while the engine serves: rungs join, leave and move between two steps, and no request notices.
//!
//! ```text
//! artifacts, opened and verified elsewhere -> weights mapped -> rungs in their new order -> tags of cached blocks follow
//! ```
//!
//! A rung that has left while it computes stays until another one does. The address space of the KV pool is reserved for the
//! whole budget, so a rung that joins may have a larger pool than any before it.

use modelprofile_kernels::{BLOCK_TOKENS, Backend};
use tokio::sync::oneshot;

use super::core::{Core, Rung};
use crate::{artifact::Artifact, model::ProfileWeights};

/// A rung that did not join, and why: the ladder is as it would be without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declined {
    /// Name of the profile.
    pub name: String,
    /// A sentence for a person.
    pub message: String,
}

/// A ladder on its way to the engine thread.
pub(super) struct LadderCommand {
    pub(super) ladder: Vec<(String, Artifact)>,
    pub(super) reply: oneshot::Sender<Vec<Declined>>,
}

impl<B: Backend> Core<B> {
    /// Takes a ladder, best quality first. Rungs of the present one that have the same name and artifact stay as they are.
    pub(super) fn take_ladder(&mut self, command: LadderCommand) {
        let LadderCommand { ladder, reply } = command;
        let gone = |name: &str| !ladder.iter().any(|(stays, _)| stays == name);
        if let Some(pending) = &self.pending
            && gone(&self.rungs[pending.to].name)
        {
            let name = self.rungs[pending.to].name.clone();
            self.refuse(format!("{name} has left the ladder"));
        }
        let mut declined = Vec::new();
        let mut taken: Vec<(Rung<B>, Option<usize>)> = Vec::new();
        let mut present: Vec<Option<Rung<B>>> = std::mem::take(&mut self.rungs).into_iter().map(Some).collect();
        let named = |present: &[Option<Rung<B>>], name: &str| {
            present.iter().position(|rung| rung.as_ref().is_some_and(|rung| *rung.name == *name))
        };
        for (name, artifact) in ladder {
            if let Some(at) = named(&present, &name) {
                let same = present[at].as_ref().is_some_and(|rung| rung.artifact_key == artifact.manifest().key);
                if !same {
                    let message = format!("{name} has other weights; it is taken when the worker starts again");
                    declined.push(Declined { name, message });
                }
                taken.extend(present[at].take().map(|rung| (Rung { leaves: rung.leaves && !same, ..rung }, Some(at))));
                continue;
            }
            match self.load(&name, artifact) {
                Ok(rung) => taken.push((rung, None)),
                Err(message) => declined.push(Declined { name, message }),
            }
        }
        for used in self.used() {
            let Some(rung) = present[used].take() else { continue };
            tracing::info!(profile = %rung.name, "it has left the ladder, and serves until another profile does");
            // Before the first that came after it, as far as that tells.
            let behind = |(_, from): &(Rung<B>, Option<usize>)| from.is_some_and(|from| from > used);
            let at = taken.iter().position(behind).unwrap_or(taken.len());
            taken.insert(at, (Rung { leaves: true, ..rung }, Some(used)));
        }
        self.arrange(taken, present.len());
        let names: Vec<&str> = self.rungs.iter().map(|rung| &*rung.name).collect();
        tracing::info!("the ladder is {}", names.join(", "));
        // Who reads the answer looks at the state.
        self.publish();
        let _ = reply.send(declined);
    }

    /// Drops the rungs that have left the ladder and do not compute any more.
    pub(super) fn drop_left(&mut self) {
        if !self.rungs.iter().any(|rung| rung.leaves) {
            return;
        }
        // Its memory goes layer by layer with the next step, if there is one.
        let idle = self.is_idle();
        let used = self.used();
        let stays = |(index, rung): &(usize, Rung<B>)| {
            !rung.leaves || used.contains(index) || (!idle && self.leaving.contains(index))
        };
        let before = self.rungs.len();
        let rungs = std::mem::take(&mut self.rungs).into_iter().enumerate().filter(stays);
        let kept: Vec<_> = rungs.map(|(index, rung)| (rung, Some(index))).collect();
        self.arrange(kept, before);
    }

    fn load(&self, name: &str, artifact: Artifact) -> Result<Rung<B>, String> {
        let bytes = ProfileWeights::bytes(&self.backend, self.model.config(), &artifact);
        let weight_bytes = bytes.map_err(|error| error.to_string())?;
        let blocks = self.memory.blocks(weight_bytes);
        let (holds, limit) = (blocks * BLOCK_TOKENS, self.max_context_tokens);
        if holds < limit {
            return Err(format!("{name} holds {holds} tokens, and a request may have {limit}"));
        }
        let weights = ProfileWeights::load(&self.backend, self.model.config(), &artifact);
        Ok(Rung {
            name: name.into(),
            artifact_key: artifact.manifest().key.clone(),
            weight_bytes,
            blocks,
            weights: weights.map_err(|error| error.to_string())?,
            artifact,
            leaves: false,
        })
    }

    /// Rungs that steps take weights from: the active one, and while a switch goes on layer by layer both of its.
    fn used(&self) -> Vec<usize> {
        self.moving.as_ref().map_or_else(|| vec![self.active], |moving| vec![moving.from, moving.to])
    }

    /// Puts rungs in the place of a ladder that had `before`: each with its index there, if it had one. Those that are used and
    /// that of a pending switch are among them.
    fn arrange(&mut self, ladder: Vec<(Rung<B>, Option<usize>)>, before: usize) {
        let place = |old: usize| ladder.iter().position(|(_, from)| *from == Some(old));
        let places: Vec<Option<usize>> = (0..before).map(place).collect();
        self.scheduler.rearrange(&places);
        self.active = places[self.active].unwrap_or(0);
        if let Some(moving) = &mut self.moving {
            moving.from = places[moving.from].unwrap_or(moving.from);
            moving.to = places[moving.to].unwrap_or(moving.to);
            self.active = moving.less_precise();
        }
        if let Some(pending) = &mut self.pending {
            pending.to = places[pending.to].unwrap_or(self.active);
        }
        self.leaving = self.leaving.iter().filter_map(|old| places[*old]).collect();
        self.rungs = ladder.into_iter().map(|(rung, _)| rung).collect();
    }
}
