//! A switch on a device with a memory of its own: layer by layer, while steps run.
//!
//! ```text
//! requested -> [shrink] -> for each part: copy the target's -> use it, release the other's -> [grow] -> report
//! ```
//!
//! A *part* is a layer, the embedding or the output layer. Copies run beside the computation, in order, as many as there is room
//! for. A part whose copy has come is used from the next step on, and what it replaces leaves: such a step waits for nothing. Where
//! there is room for no further copy, one part changes places at once, and the next step waits for it when it gets there: it is
//! delayed by one part's copy at most.
//!
//! Parts change places in the order of their addresses, so that chunks of memory that two of them share are few: forward to
//! smaller weights, when room grows, backward to larger ones, when it shrinks. The embedding and the output layer, which are
//! larger than a layer, are so at the end that has room.
//!
//! Tokens of a step with parts of both profiles are told, and tagged in the prefix cache, as the less precise one's.

use std::time::{Duration, Instant};

use modelprofile_kernels::{Backend, Presence};
use tokio::sync::oneshot;

use super::{
    SwitchEnd, SwitchResult,
    core::{Core, Rung},
    switch::PendingSwitch,
};
use crate::model::{ProfileWeights, StepWeights};

/// A switch of which some parts have changed places.
pub(super) struct Moving {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) replies: Vec<oneshot::Sender<SwitchResult>>,
    requested: Instant,
    preempted: usize,
    began: Instant,
    /// Time between steps that it took.
    pause: Duration,
    parts: Parts,
}

impl Moving {
    /// The rung that a mixed step counts as.
    pub(super) fn less_precise(&self) -> usize {
        // Best quality first.
        self.from.max(self.to)
    }

    /// What the next step takes its weights from.
    pub(super) fn weights<'a, B: Backend>(&self, rungs: &'a [Rung<B>]) -> StepWeights<'a, B> {
        let taken = |part| self.parts.is_taken(part);
        StepWeights::mixed(&rungs[self.to].weights, &taken, &rungs[self.from].weights)
    }
}

/// Which parts have changed places.
#[derive(Debug)]
struct Parts {
    count: usize,
    /// From the last one to the first.
    backward: bool,
    /// The target's, from now on.
    taken: usize,
    /// Those whose copies have begun, the taken ones included.
    begun: usize,
}

/// Where the weights of two profiles are. Parts that come are the target's, those that leave the other's.
trait Places {
    /// Where a part of the target is.
    fn presence(&self, part: usize) -> Presence;
    /// Begins to copy a part of the target, if there is room.
    fn copy(&mut self, part: usize);
    /// Takes the memory of a part of the other.
    fn release(&mut self, part: usize);
}

impl Parts {
    fn new(count: usize, backward: bool) -> Self {
        Self { count, backward, taken: 0, begun: 0 }
    }

    /// The part whose turn it is after `turn` others.
    fn at(&self, turn: usize) -> usize {
        if self.backward { self.count - 1 - turn } else { turn }
    }

    fn is_taken(&self, part: usize) -> bool {
        let turn = if self.backward { self.count - 1 - part } else { part };
        turn < self.taken
    }

    /// Moves on between two steps; true when all parts are there.
    fn advance(&mut self, places: &mut impl Places) -> bool {
        while self.taken < self.begun && places.presence(self.at(self.taken)) == Presence::Here {
            places.release(self.at(self.taken));
            self.taken += 1;
        }
        self.copy_ahead(places);
        let waits = self.taken > 0 && places.presence(self.at(self.taken - 1)) == Presence::Coming;
        if self.taken < self.count && self.begun == self.taken && !waits {
            let part = self.at(self.taken);
            places.release(part);
            places.copy(part);
            self.taken += 1;
            self.begun = self.taken;
            self.copy_ahead(places);
            return false;
        }
        self.taken == self.count && !waits
    }

    fn copy_ahead(&mut self, places: &mut impl Places) {
        while self.begun < self.count {
            let part = self.at(self.begun);
            places.copy(part);
            if places.presence(part) == Presence::Absent {
                break;
            }
            self.begun += 1;
        }
    }
}

struct Exchange<'a, B: Backend> {
    device: &'a B,
    from: &'a ProfileWeights<B>,
    to: &'a ProfileWeights<B>,
}

impl<B: Backend> Places for Exchange<'_, B> {
    fn presence(&self, part: usize) -> Presence {
        self.to.presence_of_part(self.device, part)
    }

    fn copy(&mut self, part: usize) {
        self.to.prefetch_part(self.device, part);
    }

    fn release(&mut self, part: usize) {
        self.from.release_part(self.device, part);
    }
}

impl<B: Backend> Core<B> {
    /// Begins to change places with a target for which there is room when the active rung has left.
    pub(super) fn begin_moving(&mut self, pending: PendingSwitch, pause: Duration) {
        let PendingSwitch { to, requested, preempted, replies } = pending;
        let (from, now) = (self.active, Instant::now());
        let backward = self.rungs[to].weight_bytes > self.rungs[from].weight_bytes;
        let parts = Parts::new(self.rungs[to].weights.parts(), backward);
        let moving = Moving { from, to, replies, requested, preempted, began: now, pause, parts };
        self.active = moving.less_precise();
        self.moving = Some(moving);
    }

    /// Moves a switch on that goes layer by layer; at its end the pool takes what the weights left.
    pub(super) fn progress_moving(&mut self) {
        let now = Instant::now();
        let Self { moving: Some(moving), rungs, backend, shared, .. } = self else { return };
        shared.heartbeat.beat();
        let (from, to) = (&rungs[moving.from], &rungs[moving.to]);
        let done = moving.parts.advance(&mut Exchange { device: &*backend, from: &from.weights, to: &to.weights });
        moving.pause += now.elapsed();
        if !done {
            return;
        }
        let Some(moving) = self.moving.take() else { return };
        self.active = moving.to;
        self.grow(moving.to);
        let (from, to) = (&self.rungs[moving.from], &self.rungs[moving.to]);
        let modelled = to.weight_bytes as f64 / self.backend.host_bandwidth().unwrap_or(f64::INFINITY);
        let message = format!(
            "switched from {} to {}: {:.1} MiB of weights in {:.1} ms beside the steps, {:.1} ms modelled for the copies",
            from.name,
            to.name,
            to.weight_bytes as f64 / f64::from(1 << 20),
            moving.began.elapsed().as_secs_f64() * 1e3,
            modelled * 1e3,
        );
        let (from, to) = (from.name.clone(), to.name.clone());
        let result = self.result(&to, moving.requested, moving.preempted, moving.pause, SwitchEnd::Completed, message);
        self.report(moving.replies, &SwitchResult { from, ..result });
    }

    /// Where the latest switch leads.
    pub(super) fn target(&self) -> Option<usize> {
        self.pending.as_ref().map(|pending| pending.to).or(self.moving.as_ref().map(|moving| moving.to))
    }

    /// Bytes of weights in memory, at most: a switch that goes layer by layer never has more than the larger profile's.
    pub(super) fn resident_bytes(&self) -> u64 {
        let bytes = |rung: usize| self.rungs[rung].weight_bytes;
        self.moving.as_ref().map_or(bytes(self.active), |moving| bytes(moving.from).max(bytes(moving.to)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failure is the test's result")]

    use proptest::prelude::*;

    use super::*;

    /// A device with this much memory free, on which a copy of a byte takes one unit of time.
    struct Device {
        free: isize,
        old: Vec<isize>,
        new: Vec<isize>,
        /// Time until a part has come; none while it is absent.
        coming: Vec<Option<isize>>,
        /// Parts in the order in which their copies began.
        order: Vec<usize>,
        released: Vec<bool>,
    }

    impl Device {
        fn pass(&mut self, mut time: isize) {
            // One link: copies come one after the other.
            for part in &self.order {
                let left = self.coming[*part].as_mut().unwrap();
                let now = (*left).min(time);
                *left -= now;
                time -= now;
            }
        }
    }

    impl Places for Device {
        fn presence(&self, part: usize) -> Presence {
            match self.coming[part] {
                None => Presence::Absent,
                Some(0) => Presence::Here,
                Some(_) => Presence::Coming,
            }
        }

        fn copy(&mut self, part: usize) {
            if self.coming[part].is_none() && self.new[part] <= self.free {
                self.free -= self.new[part];
                self.coming[part] = Some(self.new[part]);
                self.order.push(part);
            }
        }

        fn release(&mut self, part: usize) {
            assert!(!self.released[part], "part {part} leaves twice");
            self.released[part] = true;
            self.free += self.old[part];
        }
    }

    /// Runs a switch with steps of this length to its end; the numbers of parts that a step waited for, and the steps.
    fn run(mut device: Device, backward: bool, step: isize) -> (Vec<usize>, usize) {
        let count = device.old.len();
        let mut parts = Parts::new(count, backward);
        let (mut waits, mut steps) = (Vec::new(), 0);
        while !parts.advance(&mut device) {
            steps += 1;
            assert!(steps < 10_000, "it never ends: {parts:?}");
            let late = |part: &usize| parts.is_taken(*part) && device.presence(*part) != Presence::Here;
            let late: Vec<usize> = (0..count).filter(late).collect();
            for part in (0..count).filter(|part| !parts.is_taken(*part)) {
                assert!(!device.released[part], "part {part} is used and gone");
            }
            waits.push(late.len());
            let longest = late.iter().map(|part| device.new[*part]).sum::<isize>();
            device.pass(step.max(longest));
            for part in late {
                assert_eq!(device.presence(part), Presence::Here, "what a step uses has come when it ends");
            }
        }
        assert!(device.released.iter().all(|released| *released));
        assert!((0..count).all(|part| device.presence(part) == Presence::Here));
        (waits, steps)
    }

    fn device(free: isize, old: &[isize], new: &[isize]) -> Device {
        let parts = old.len();
        let (coming, released) = (vec![None; parts], vec![false; parts]);
        Device { free, old: old.into(), new: new.into(), coming, order: Vec::new(), released }
    }

    #[test]
    fn to_half_the_bytes_one_step_waits_and_no_other() {
        let (waits, _) = run(device(0, &[8; 16], &[4; 16]), false, 10);
        assert_eq!(waits.iter().sum::<usize>(), 1, "{waits:?}");
        assert_eq!(waits[0], 1);
    }

    #[test]
    fn back_to_twice_the_bytes_copies_go_ahead_into_what_the_pool_gave() {
        let (waits, steps) = run(device(16 * 4, &[4; 16], &[8; 16]), true, 10);
        assert!(waits.iter().sum::<usize>() <= 1, "{waits:?}");
        assert!(steps <= 16, "the link is never idle for long: {steps}");
    }

    #[test]
    fn large_ends_wait_for_room_and_no_step_for_them() {
        // The last part is as large as ten layers, in both profiles.
        let (mut large, mut small) = (vec![8; 16], vec![4; 16]);
        large.push(60);
        small.push(60);
        for (free, old, new, backward) in [(0, &large, &small, false), (64, &small, &large, true)] {
            let mut device = device(free, old, new);
            let mut parts = Parts::new(17, backward);
            while !parts.advance(&mut device) {
                assert!(!parts.is_taken(16) || device.presence(16) == Presence::Here);
                device.pass(8);
            }
        }
    }

    proptest! {
        #[test]
        fn no_step_waits_for_more_than_one_part_and_room_is_never_exceeded(
            sizes in proptest::collection::vec((1isize..40, 0isize..40), 1..20),
            to_larger: bool, spare in 0isize..50, step in 1isize..100,
        ) {
            let (small, large): (Vec<isize>, Vec<isize>) = sizes.into_iter().map(|(small, more)| (small, small + more)).unzip();
            let (old, new) = if to_larger { (small, large) } else { (large, small) };
            // What the target has more, a pool that shrank has given.
            let growth = new.iter().sum::<isize>() - old.iter().sum::<isize>();
            let (waits, _) = run(device(growth.max(0) + spare, &old, &new), to_larger, step);
            prop_assert!(waits.iter().all(|waits| *waits <= 1), "{:?}", waits);
        }
    }
}
