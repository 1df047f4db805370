//! What a plan says.

use std::fmt;
use std::time::Duration;

use modelprofile_api::Quality;

use super::names::Set;
use super::object::{Kind, Object};

/// What has to be done, in this order, and what is waited for. Applied, it leaves nothing to do until something changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What has to be done.
    pub actions: Vec<Action>,
    /// What is under way or in the way.
    pub progress: Vec<Progress>,
    /// A plan made after this time may differ although nothing else has changed. `None`: time changes nothing.
    pub revisit_after: Option<Duration>,
}

/// One thing to do, with the reason as a sentence.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Apply an object, by server-side apply as [`super::names::MANAGER`].
    Apply {
        /// All of it that the operator decides about.
        object: Object,
        /// Why.
        why: String,
    },
    /// Set the number of replicas of a Deployment, and nothing else of it: its template may have to stay as it is.
    Scale {
        /// Name of the Deployment.
        deployment: String,
        /// How many.
        replicas: i32,
        /// Why.
        why: String,
    },
    /// Point the Service to the pods of a set, by server-side apply of the Service.
    Route {
        /// The Service with its new selector.
        service: Object,
        /// The set.
        set: Set,
        /// Why.
        why: String,
    },
    /// Ask a worker to change its profile.
    Switch {
        /// Name of its pod.
        pod: String,
        /// The profile.
        profile: String,
        /// Why.
        why: String,
    },
    /// Tell a worker the limits to hold its profiles against.
    SetQuality {
        /// Name of its pod.
        pod: String,
        /// The limits.
        limits: Box<Quality>,
        /// Why.
        why: String,
    },
    /// Delete an object in the background: its pods go as any pod does, with the time to finish what they have.
    Delete {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// UID of the one that was seen, so that one of the same name that came since is not hit. `None`: it had none.
        uid: Option<String>,
        /// Why.
        why: String,
    },
}

/// What is waited for, and what a person may have to see to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which of the things that can be waited for.
    pub stage: Stage,
    /// A sentence for a person.
    pub message: String,
}

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// A Job prepares artifacts.
    Preparing,
    /// It failed, and is tried again later.
    PrepareFailed,
    /// Pods keep their template until what it needs is prepared.
    Held,
    /// An edit that can not be carried out.
    Refused,
    /// An object of somebody else has a name that is needed.
    NameTaken,
    /// An object is being deleted that has to be made anew.
    Deleting,
    /// The pods of a set are awaited.
    Starting,
    /// Pods that are no longer routed to finish what they have.
    Draining,
    /// Pods have to be gone before others can start.
    Leaving,
    /// Workers change their profile.
    Switching,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// Whether something of that kind is under way.
    pub fn has(&self, stage: Stage) -> bool {
        self.progress.iter().any(|progress| progress.stage == stage)
    }

    /// Whether it deletes that object.
    pub(super) fn deletes(&self, kind: Kind, name: &str) -> bool {
        let is = |action: &Action| matches!(action, Action::Delete { kind: k, name: n, .. } if *k == kind && n == name);
        self.actions.iter().any(is)
    }

    pub(super) fn wait(&mut self, stage: Stage, message: impl Into<String>) {
        self.progress.push(Progress { stage, message: message.into() });
    }

    pub(super) fn revisit(&mut self, after: Duration) {
        self.revisit_after = Some(self.revisit_after.map_or(after, |earlier| earlier.min(after)));
    }
}

impl Action {
    /// The reason.
    pub fn why(&self) -> &str {
        match self {
            Self::Apply { why, .. }
            | Self::Scale { why, .. }
            | Self::Route { why, .. }
            | Self::Switch { why, .. }
            | Self::SetQuality { why, .. }
            | Self::Delete { why, .. } => why,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Apply { object, .. } => write!(f, "apply {} {}", object.kind(), object.name())?,
            Self::Scale { deployment, replicas, .. } => write!(f, "scale Deployment {deployment} to {replicas}")?,
            Self::Route { service, set, .. } => write!(f, "point Service {} to {set}", service.name())?,
            Self::Switch { pod, profile, .. } => write!(f, "switch {pod} to {profile}")?,
            Self::SetQuality { pod, .. } => write!(f, "tell {pod} the quality limits")?,
            Self::Delete { kind, name, .. } => write!(f, "delete {kind} {name}")?,
        }
        write!(f, ": {}", self.why())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.actions.is_empty() && self.progress.is_empty() {
            return f.write_str("nothing to do");
        }
        let actions = self.actions.iter().map(ToString::to_string);
        let waits = self.progress.iter().map(|progress| format!("wait: {}", progress.message));
        f.write_str(&actions.chain(waits).collect::<Vec<_>>().join("\n"))
    }
}
