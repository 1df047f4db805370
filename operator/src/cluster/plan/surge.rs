//! Which set of pods serves, and how another one takes its place.
//!
//! ```text
//! Surge:     new set made ──> all of it ready and answered ──> Service points to it ──> old set drained ──> old set deleted
//! Recreate:  old set deleted ──> its pods gone ──> new set made, and the Service points to it
//! ```
//!
//! There is no state but what exists: which Deployments there are, where the Service points to and since when, which pods are
//! ready. An operator that starts anew, or a decision that is taken back in the middle, finds itself at one of these steps.
//!
//! # Guarantees
//!
//! Of a Surge: as long as any pod is ready, the Service points to a set with a ready pod after every plan, and no plan deletes
//! the set that it points to. A new set that loses all of its pods gives way to the old one while that is there.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use modelprofile_api::{ModelProfileSpec, ScalingMode, Strategy};

use super::action::{Action, Plan, Stage};
use super::diff::{difference, seal};
use super::facts::{Facts, Options, Worker};
use super::names::Set;
use super::object::{Kind, Object};
use super::objects::{self, routed};
use super::prepare::taken;
use super::valid::Valid;

/// How long endpoints may take to forget a set.
const SETTLE: Duration = Duration::from_secs(10);
/// How long a set that nothing points to may finish what it has.
const DRAIN: Duration = Duration::from_secs(120);

/// Workers that should exist: those of the decision, or with `External` those that somebody else asked for.
pub fn replicas(spec: &ModelProfileSpec, decided: u32) -> i32 {
    let scaling = &spec.scaling;
    let asked = match scaling.mode {
        ScalingMode::Auto => decided,
        ScalingMode::External => scaling.replicas.unwrap_or(scaling.min_replicas),
    };
    asked.clamp(scaling.min_replicas, scaling.max_replicas) as i32
}

/// One pass over the sets.
struct Pass<'a> {
    valid: &'a Valid,
    facts: &'a Facts,
    options: &'a Options,
    /// The profile that should serve, and its set.
    profile: String,
    wanted: Set,
    replicas: i32,
    /// There is room for two sets.
    surge: bool,
    /// Pod templates may change and new sets may come: what they need is prepared.
    may_change: bool,
    /// Deployments of this ModelProfile, those that are going left out.
    sets: Vec<Set>,
}

/// What has to be done about Deployments and the Service.
pub(super) fn plan(valid: &Valid, facts: &Facts, options: &Options, may_change: bool, plan: &mut Plan) {
    let strategy = valid.spec().switching.strategy;
    let profile = valid.rung(&facts.desired.profile).0.name.clone();
    let pass = Pass {
        valid,
        facts,
        options,
        wanted: Set::of(strategy, &profile),
        profile,
        replicas: replicas(valid.spec(), facts.desired.replicas),
        surge: strategy == Strategy::Surge,
        may_change,
        sets: deployments(valid, facts).filter_map(set_of).collect(),
    };
    pass.run(plan);
}

/// Deployments that are this ModelProfile's and stay.
pub(super) fn deployments<'a>(valid: &'a Valid, facts: &'a Facts) -> impl Iterator<Item = &'a Deployment> {
    let ours = move |deployment: &&Deployment| {
        valid.owner().owns(&deployment.metadata) && deployment.metadata.deletion_timestamp.is_none()
    };
    facts.existing.deployments.values().filter(ours)
}

/// By the selector, which nobody can change, rather than by labels.
fn set_of(deployment: &Deployment) -> Option<Set> {
    deployment.spec.selector.match_labels.as_ref().and_then(Set::of_labels)
}

impl Pass<'_> {
    fn run(&self, plan: &mut Plan) {
        let owner = self.valid.owner();
        let service = self.facts.existing.service.as_ref();
        let ours = service.filter(|service| owner.owns(&service.metadata));
        let (points_to, since) = ours.map(routed).unwrap_or_default();
        let room = self.surge || self.others().next().is_none();
        let (target, why) = self.target(points_to.as_ref(), room);
        let moved = points_to.as_ref() != Some(&target);
        let since = if moved { Some(self.facts.now) } else { since };

        // A new set before anything points to it.
        if room || self.sets.contains(&self.wanted) {
            self.ensure(plan);
        }
        if target != self.wanted && self.surge && self.sets.contains(&target) {
            self.scale(&target, plan);
            let proven = self.facts.proven(&self.wanted);
            let message = format!(
                "{proven} of {} of {} have answered a request; the Service moves when all have",
                self.replicas, self.wanted
            );
            plan.wait(Stage::Starting, message);
        }

        let wanted = seal(Object::from(objects::service(owner, &target, since)));
        match service {
            Some(_) if ours.is_none() => plan.wait(Stage::NameTaken, taken(Kind::Service, &owner.name)),
            Some(service) if service.metadata.deletion_timestamp.is_some() => {
                plan.wait(Stage::Deleting, format!("Service {} is being deleted, and is made again then", owner.name));
            }
            Some(_) if moved => plan.actions.push(Action::Route { service: wanted, set: target.clone(), why }),
            Some(service) => {
                if let Some(why) = difference(&wanted, &Object::from(service.clone())) {
                    plan.actions.push(Action::Apply { object: wanted, why });
                }
            }
            None => plan.actions.push(Action::Apply { object: wanted, why: "clients need an address".to_owned() }),
        }

        for set in self.sets.iter().filter(|set| **set != self.wanted) {
            if !self.surge && target == self.wanted && self.wanted_may_come() {
                // They finish what they have before they end, as any pod that is asked to go.
                self.delete(set, format!("{} take their place", self.wanted), plan);
            } else if *set != target {
                self.drain(set, &target, since, plan);
            }
        }
        if !room && self.may_change && !self.sets.contains(&self.wanted) {
            let pods = self.others().count();
            plan.wait(
                Stage::Leaving,
                format!("{} start when {pods} pods of the set before them are gone", self.wanted),
            );
        }
    }

    /// The wanted set is there, or nothing keeps it from being made.
    fn wanted_may_come(&self) -> bool {
        self.may_change || self.sets.contains(&self.wanted)
    }

    /// Pods of other sets, going ones included: they hold what the wanted set needs.
    fn others(&self) -> impl Iterator<Item = &Worker> {
        self.facts.workers.iter().filter(|worker| worker.set != self.wanted)
    }

    /// The set that the Service should point to, and why.
    fn target(&self, points_to: Option<&Set>, room: bool) -> (Set, String) {
        let wanted = || self.wanted.clone();
        let Some(current) = points_to else {
            let set = self.most_ready().filter(|_| self.surge || !self.wanted_may_come()).unwrap_or_else(wanted);
            return (set, "clients need an address".to_owned());
        };
        if *current != self.wanted && self.facts.proven(&self.wanted) >= self.replicas as usize {
            return (wanted(), "all of them have answered a request".to_owned());
        }
        // Pods that are told to go while a Service names them get requests to their very end: kube-proxy falls back to those
        // that terminate where there are no others. So the Service leaves them first.
        if !self.surge && self.wanted_may_come() {
            return (wanted(), format!("{current} make room for them"));
        }
        if self.facts.ready(current) > 0 {
            return (current.clone(), String::new());
        }
        if let Some(set) = self.most_ready() {
            let why = format!("none of {current} is ready");
            return (set, why);
        }
        // Nobody is ready. Where the wanted set can start, clients are told where it will be.
        let stays = *current != self.wanted && (!room || !self.may_change && !self.sets.contains(&self.wanted));
        let surge_goes_on = self.surge && self.sets.contains(current);
        if stays || surge_goes_on {
            return (current.clone(), String::new());
        }
        (wanted(), format!("{current} are gone"))
    }

    /// The set with the most ready pods, the wanted one before others.
    fn most_ready(&self) -> Option<Set> {
        let all = self.sets.iter().filter(|set| self.facts.ready(set) > 0);
        all.max_by_key(|set| (**set == self.wanted, self.facts.ready(set))).cloned()
    }

    /// Makes the wanted set what it should be, as far as that may change.
    fn ensure(&self, plan: &mut Plan) {
        let name = self.wanted.deployment(self.valid.owner());
        let deployment =
            objects::deployment(self.valid, self.facts, self.options, &self.wanted, &self.profile, self.replicas);
        let object = seal(Object::from(deployment));
        let Some(existing) = self.facts.existing.deployments.get(&name) else {
            if self.may_change {
                plan.actions.push(Action::Apply { object, why: format!("{} do not exist yet", self.wanted) });
            } else {
                plan.wait(Stage::Held, format!("{} start when what they need is prepared", self.wanted));
            }
            return;
        };
        if !self.valid.owner().owns(&existing.metadata) {
            return plan.wait(Stage::NameTaken, taken(Kind::Deployment, &name));
        }
        if existing.metadata.deletion_timestamp.is_some() {
            let message = format!("Deployment {name} is being deleted, and is made again then");
            return plan.wait(Stage::Deleting, message);
        }
        match difference(&object, &Object::from(existing.clone())) {
            Some(why) if self.may_change => plan.actions.push(Action::Apply { object, why }),
            Some(_) => {
                plan.wait(
                    Stage::Held,
                    format!("{} stay as they are until what an edit needs is prepared", self.wanted),
                );
                self.scale(&self.wanted, plan);
            }
            None => self.scale(&self.wanted, plan),
        }
    }

    fn scale(&self, set: &Set, plan: &mut Plan) {
        let deployment = set.deployment(self.valid.owner());
        let existing = self.facts.existing.deployments.get(&deployment);
        let Some(replicas) = existing.map(|found| found.spec.replicas.unwrap_or(1)) else { return };
        if replicas != self.replicas {
            let why = format!("{} workers are wanted, and there were to be {replicas}", self.replicas);
            plan.actions.push(Action::Scale { deployment, replicas: self.replicas, why });
        }
    }

    /// A set that nothing points to goes when it has finished, or when its time is over.
    fn drain(&self, set: &Set, target: &Set, since: Option<Timestamp>, plan: &mut Plan) {
        // The last ones that could serve stay, whatever else is wrong.
        if self.facts.ready(set) > 0 && self.facts.ready(target) == 0 {
            return plan.wait(Stage::Draining, format!("{set} stay until one of {target} is ready"));
        }
        let mut pods = self.facts.of(set).filter(|worker| !worker.terminating).peekable();
        if pods.peek().is_none() {
            return self.delete(set, "they are wanted no more, and there are none".to_owned(), plan);
        }
        // Without a record, and with a clock that was set back, it is long ago.
        let elapsed = since.map_or(DRAIN, |since| self.facts.now.duration_since(since).unsigned_abs());
        let idle = pods.all(|worker| worker.in_flight == Some(0));
        let left = if idle { SETTLE } else { DRAIN }.saturating_sub(elapsed);
        if left.is_zero() {
            let what = if idle { "they have finished" } else { "their time to finish is over" };
            return self.delete(set, format!("nothing points to them, and {what}"), plan);
        }
        plan.revisit(left);
        plan.wait(
            Stage::Draining,
            format!("{set} finish what they have, for {} s at most", DRAIN.saturating_sub(elapsed).as_secs()),
        );
    }

    fn delete(&self, set: &Set, why: String, plan: &mut Plan) {
        let name = set.deployment(self.valid.owner());
        let uid = self.facts.existing.deployments.get(&name).and_then(|found| found.metadata.uid.clone());
        plan.actions.push(Action::Delete { kind: Kind::Deployment, name, uid, why });
    }
}
