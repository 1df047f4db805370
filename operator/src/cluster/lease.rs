//! Which of several operators acts: the one that holds a Lease, as Kubernetes' own components do it.
//!
//! Two properties that a library's election did not give: one that leads and cannot renew ends *before* others may take over,
//! whatever the API server answers, so that two never act at once; and a Lease that was given back is taken within seconds.
//! Clocks are not compared: a Lease has run out when it was seen unchanged for its duration.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;

/// How long a Lease holds without renewal.
const DURATION: Duration = Duration::from_secs(15);
/// Between two renewals.
const RENEW: Duration = Duration::from_secs(5);
/// Between two looks of one that waits, and between two attempts to renew.
const RETRY: Duration = Duration::from_secs(2);
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(3);
/// How long after its last renewal a holder gives up: earlier than others may take over, by the time in which passes end.
const GIVE_UP: Duration = Duration::from_secs(12);

/// A Lease, and who this process is.
pub struct Lease {
    api: Api<Object>,
    name: String,
    identity: String,
}

/// What the holder knows of it.
pub struct Held {
    version: String,
    renewed: Instant,
}

/// Why this process no longer knows that it leads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Another one holds the Lease.
    #[error("the Lease was taken by {0}")]
    Taken(String),
    /// It could not be renewed, and others may take it soon.
    #[error("the Lease could not be renewed in time, so another operator may act soon: {0}")]
    RunOut(String),
}

/// The latest change of somebody else's Lease, and when it was seen.
type Seen = Option<(LeaseSpec, Instant)>;

impl Lease {
    /// The Lease of that name; `identity` is this process, the same for a container that starts again in its pod.
    pub fn new(client: Client, namespace: &str, name: &str, identity: String) -> Self {
        Self { api: Api::namespaced(client, namespace), name: name.to_owned(), identity }
    }

    /// Waits until this process leads. An API server that is away is waited for.
    pub async fn acquire(&self) -> Held {
        let mut seen = None;
        loop {
            match within(self.attempt(&mut seen)).await {
                Ok(Some(held)) => return held,
                Ok(None) => {}
                Err(why) => tracing::warn!("the Lease {} cannot be had, and is tried for again: {why}", self.name),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Renews until that is no longer certain to help.
    pub async fn keep(&self, held: &mut Held) -> Lost {
        loop {
            tokio::time::sleep(RENEW).await;
            loop {
                let left = GIVE_UP.saturating_sub(held.renewed.elapsed());
                let asked = Instant::now();
                let why = match tokio::time::timeout(left.min(ANSWER), self.renew(held)).await {
                    Ok(Ok(Ok(version))) => {
                        *held = Held { version, renewed: asked };
                        break;
                    }
                    Ok(Ok(Err(other))) => return Lost::Taken(other),
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "the API server does not answer".to_owned(),
                };
                if held.renewed.elapsed() + RETRY >= GIVE_UP {
                    return Lost::RunOut(why);
                }
                tracing::warn!("the Lease {} cannot be renewed, and is tried again: {why}", self.name);
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Gives it back, so that another one need not wait for its end.
    pub async fn release(&self, held: Held) {
        let spec = LeaseSpec { holder_identity: Some(String::new()), ..self.spec(None) };
        if let Err(why) = within(self.give_back(&spec, &held.version)).await {
            tracing::warn!("the Lease {} cannot be given back, and runs out: {why}", self.name);
        }
    }

    async fn give_back(&self, spec: &LeaseSpec, version: &str) -> kube::Result<()> {
        match self.write(spec, version).await {
            // A renewal that was broken off may have come through.
            Err(error) if is_conflict(&error) => {
                let lease = self.api.get(&self.name).await?;
                let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
                if holder == Some(self.identity.as_str()) {
                    self.write(spec, &lease.resource_version().unwrap_or_default()).await?;
                }
                Ok(())
            }
            written => written.map(drop),
        }
    }

    /// One look, and the Lease if it may be taken.
    async fn attempt(&self, seen: &mut Seen) -> kube::Result<Option<Held>> {
        let renewed = Instant::now();
        let held = |object: &Object| Some(Held { version: object.resource_version().unwrap_or_default(), renewed });
        let taken = match self.api.get_opt(&self.name).await? {
            None => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                let lease = Object { metadata, spec: Some(self.spec(None)) };
                self.api.create(&PostParams::default(), &lease).await
            }
            Some(lease) => {
                let spec = lease.spec.clone().unwrap_or_default();
                if !may_take(&spec, &self.identity, seen, Instant::now()) {
                    return Ok(None);
                }
                self.write(&self.spec(Some(&spec)), &lease.resource_version().unwrap_or_default()).await
            }
        };
        match taken {
            Ok(lease) => Ok(held(&lease)),
            // Another one was faster.
            Err(error) if is_conflict(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The version after the renewal, or who holds the Lease instead.
    async fn renew(&self, held: &Held) -> kube::Result<Result<String, String>> {
        let patch = json!({
            "metadata": {"resourceVersion": held.version},
            "spec": {"renewTime": MicroTime(Timestamp::now())},
        });
        match self.api.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(lease) => return Ok(Ok(lease.resource_version().unwrap_or_default())),
            Err(error) if is_conflict(&error) => {}
            Err(error) => return Err(error),
        }
        // Written by somebody else, or by a request of ours whose answer was lost.
        let lease = self.api.get(&self.name).await?;
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder != self.identity {
            return Ok(Err(holder));
        }
        let spec = LeaseSpec { renew_time: Some(MicroTime(Timestamp::now())), ..spec };
        let written = self.write(&spec, &lease.resource_version().unwrap_or_default()).await?;
        Ok(Ok(written.resource_version().unwrap_or_default()))
    }

    /// Writes over the version that was seen, and no other.
    async fn write(&self, spec: &LeaseSpec, version: &str) -> kube::Result<Object> {
        let patch = json!({"metadata": {"resourceVersion": version}, "spec": spec});
        self.api.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await
    }

    /// This process as the holder, from now on.
    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let (now, transitions) = (MicroTime(Timestamp::now()), before.and_then(|before| before.lease_transitions));
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(before.map_or(0, |_| transitions.unwrap_or_default().saturating_add(1))),
            ..LeaseSpec::default()
        }
    }
}

/// Whether a Lease may be taken: nobody holds it, or the same process before it started again, or it was not renewed for as long
/// as it says.
fn may_take(spec: &LeaseSpec, identity: &str, seen: &mut Seen, now: Instant) -> bool {
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    if holder.is_empty() || holder == identity {
        return true;
    }
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let duration = seconds.map_or(DURATION, Duration::from_secs);
    match seen {
        Some((known, since)) if known == spec => now.duration_since(*since) >= duration,
        _ => {
            *seen = Some((spec.clone(), now));
            false
        }
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

async fn within<T>(work: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER, work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err("the API server does not answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(holder: &str, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn what_nobody_holds_is_taken_at_once_and_so_is_what_this_process_held_before_it_started_again() {
        let (mut seen, now) = (None, Instant::now());
        assert!(may_take(&LeaseSpec::default(), "a", &mut seen, now));
        assert!(may_take(&spec("", 1), "a", &mut seen, now));
        assert!(may_take(&spec("a", 1), "a", &mut seen, now));
    }

    #[test]
    fn anothers_is_taken_when_it_was_seen_unchanged_for_its_duration_whatever_the_clocks_say() {
        let (mut seen, start) = (None, Instant::now());
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        // Its clock is years behind ours: it may live all the same.
        assert!(!may_take(&spec("b", 1), "a", &mut seen, start));
        assert!(!may_take(&spec("b", 1), "a", &mut seen, after(14)));
        assert!(!may_take(&spec("b", 2), "a", &mut seen, after(15)), "it was renewed");
        assert!(!may_take(&spec("b", 2), "a", &mut seen, after(29)));
        assert!(may_take(&spec("b", 2), "a", &mut seen, after(30)));
    }

    #[test]
    fn a_holder_gives_up_before_another_one_may_take_over() {
        assert!(GIVE_UP < DURATION);
        assert!(RENEW + RETRY + ANSWER < GIVE_UP, "one attempt may fail");
    }
}
