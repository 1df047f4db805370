//! What a plan is made of, in eight bytes: as long as that stays the same, a plan that had nothing to do has nothing to do.
//!
//! Most passes change nothing, and to find that out every object is made and compared, which is half of what a pass costs. Only
//! [`Plan::default`](super::Plan) may be kept: one that waits for something goes by the clock, or by requests that finish.

use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Write};

use modelprofile_api::worker::WorkerState;
use serde::Serialize;

use super::facts::{Facts, Worker};

/// Stands for all that a plan with nothing to do depends on: `generation` for the manifest, `objects` for
/// [`Facts::existing`], which need not be there yet.
pub fn fingerprint(generation: i64, objects: u64, facts: &Facts) -> u64 {
    let Facts { now: _, desired, existing: _, workers, weight_bytes } = facts;
    let mut hash = Hash(DefaultHasher::new());
    hash.take(&(generation, objects, &desired.profile, desired.replicas, weight_bytes));
    for worker in workers {
        // Every field by name, so that none that comes later is forgotten. Requests only matter to pods that leave, for which a
        // plan waits.
        let Worker { pod, set, ready, answered, terminating, in_flight: _, state, serves, may_ask } = worker;
        hash.take(&(pod, set.profile(), ready, answered, terminating, serves, may_ask));
        hash.take(&state.as_deref().map(of_state));
    }
    hash.0.finish()
}

/// What a worker says of itself, without the numbers that change in every look and that no plan reads.
fn of_state(state: &WorkerState) -> impl Serialize + use<'_> {
    let WorkerState {
        version,
        served_name,
        phase,
        message,
        active_profile,
        target_profile,
        profiles,
        awaited_profiles,
        kv: _,
        requests: _,
        memory: _,
        last_switch: _,
        quality_limits,
    } = state;
    let ladder = (profiles, awaited_profiles);
    (version, served_name, phase, message, active_profile, target_profile, ladder, quality_limits)
}

/// Hashes JSON as it is written.
struct Hash(DefaultHasher);

impl Hash {
    fn take(&mut self, value: &impl Serialize) {
        // Neither these values nor this writer can fail.
        let _ = serde_json::to_writer(self, value);
    }
}

impl Write for &mut Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::World;
    use super::*;

    #[test]
    fn it_follows_what_a_plan_reads_and_not_what_changes_in_every_look() {
        let mut world = World::serving("");
        let of = |world: &World| fingerprint(1, 7, &world.facts);
        let before = of(&world);
        world.wait(5);
        world.facts.workers[0].in_flight = Some(3);
        let mut state = WorkerState { served_name: "llama".to_owned(), ..WorkerState::default() };
        world.facts.workers[0].state = Some(Box::new(state.clone()));
        let heard = of(&world);
        assert_ne!(heard, before, "it told its state");
        state.requests.running = 5;
        state.kv.blocks_used = 100;
        world.facts.workers[0].state = Some(Box::new(state.clone()));
        assert_eq!(of(&world), heard);
        state.active_profile = Some("quality".to_owned());
        world.facts.workers[0].state = Some(Box::new(state));
        assert_ne!(of(&world), heard);
        assert_ne!(fingerprint(2, 7, &world.facts), of(&world), "an edit");
        assert_ne!(fingerprint(1, 8, &world.facts), of(&world), "an object changed");
        world.want("density");
        assert_ne!(of(&world), heard);
    }
}
