//! The switch of profile, between steps of the engine.
//!
//! ```text
//! requested -> [shrink: target's weights are larger, so the pool gives blocks back first] -> swap -> [grow] -> report
//! ```
//!
//! Nothing is copied at the swap on the CPU: the target's packed weights are a mapped file, read as its layers are first
//! used, while the old profile's pages are released layer by layer. On a device with a memory of its own the swap takes several
//! steps (`layers`). Requests in flight keep their blocks.

use std::time::{Duration, Instant, SystemTime};

use modelprofile_kernels::Backend;
use tokio::sync::oneshot;

use super::{
    Observation, SwitchEnd, SwitchResult,
    core::{Core, Rung},
    handle::SwitchCommand,
};

/// How long a shrinking pool waits for running requests to end before it preempts the newest.
pub const SHRINK_PATIENCE: Duration = Duration::from_secs(2);

/// A switch that has not swapped yet.
pub(super) struct PendingSwitch {
    pub(super) to: usize,
    pub(super) requested: Instant,
    pub(super) preempted: usize,
    pub(super) replies: Vec<oneshot::Sender<SwitchResult>>,
}

impl<B: Backend> Core<B> {
    /// Takes a request for a profile. The latest request wins: one that has not begun to swap is replaced, one that has comes to
    /// its end first.
    pub(super) fn request_switch(&mut self, command: SwitchCommand) {
        let SwitchCommand { profile, requested, reply } = command;
        let known = |(index, rung): (usize, &Rung<B>)| *rung.name == *profile && (!rung.leaves || index == self.active);
        let Some(to) = self.rungs.iter().enumerate().position(known) else {
            let names: Vec<&str> = self.rungs.iter().filter(|r| !r.leaves).map(|r| &*r.name).collect();
            let message = format!("no profile is named {profile}; there are {}", names.join(", "));
            let result = self.result(&profile, requested, 0, Duration::ZERO, SwitchEnd::Unknown, message);
            let _ = reply.send(result);
            return;
        };
        if let Some(pending) = &mut self.pending
            && pending.to == to
        {
            pending.replies.push(reply);
            return;
        }
        if let Some(replaced) = self.pending.take() {
            self.scheduler.hold_admissions(false);
            let name = self.rungs[replaced.to].name.clone();
            let message = format!("replaced by a later request for {profile}");
            let result = self.result(
                &name,
                replaced.requested,
                replaced.preempted,
                Duration::ZERO,
                SwitchEnd::Replaced,
                message,
            );
            self.report(replaced.replies, &result);
        }
        if let Some(moving) = &mut self.moving
            && moving.to == to
        {
            moving.replies.push(reply);
            return;
        }
        if to == self.active && self.moving.is_none() {
            let message = format!("{profile} is active already");
            let result = self.result(&profile, requested, 0, Duration::ZERO, SwitchEnd::Completed, message);
            let _ = reply.send(result);
            return;
        }
        if let Err(error) = self.rungs[to].artifact.check_intact() {
            let result = self.result(&profile, requested, 0, Duration::ZERO, SwitchEnd::Refused, error.to_string());
            self.report(vec![reply], &result);
            return;
        }
        if self.backend.host_bandwidth().is_none() {
            self.rungs[to].weights.prefetch(&self.backend);
        }
        self.pending = Some(PendingSwitch { to, requested, preempted: 0, replies: vec![reply] });
    }

    /// Moves a pending switch on, if there is one: shrinks as far as it can, and swaps when the target fits.
    pub(super) fn progress_switch(&mut self) {
        self.progress_moving();
        if self.moving.is_some() {
            return;
        }
        let Some(pending) = &self.pending else { return };
        let (to, requested) = (pending.to, pending.requested);
        let began = Instant::now();
        if self.rungs[to].blocks < self.scheduler.stats().blocks_total {
            match self.shrink(self.rungs[to].blocks, requested) {
                Ok(true) => {}
                Ok(false) => return,
                Err(message) => {
                    self.refuse(message);
                    return;
                }
            }
        }
        self.scheduler.hold_admissions(false);
        let Some(pending) = self.pending.take() else { return };
        if self.backend.host_bandwidth().is_some() {
            self.begin_moving(pending, began.elapsed());
            self.progress_moving();
            return;
        }
        let from = self.rungs[self.active].name.clone();
        self.leaving.push(self.active);
        self.active = to;
        // The larger pool's pages are touched only as blocks are handed out, after the old weights have left.
        self.grow(to);
        let name = self.rungs[to].name.clone();
        let mut result = self.result(
            &name,
            requested,
            pending.preempted,
            began.elapsed(),
            SwitchEnd::Completed,
            format!("switched from {from} to {name}"),
        );
        result.from = from;
        self.report(pending.replies, &result);
    }

    /// Gives the pool what a rung has room for, if that is more.
    pub(super) fn grow(&mut self, rung: usize) {
        let blocks = self.rungs[rung].blocks;
        if blocks <= self.scheduler.stats().blocks_total {
            return;
        }
        match self.backend.kv_resize(&mut self.kv, blocks) {
            Ok(()) => self.scheduler.grow(blocks),
            Err(error) => tracing::warn!(%error, "the KV pool could not grow; it keeps its size"),
        }
    }

    /// Brings the pool down to `blocks`. True when done; false while running requests still hold too much.
    fn shrink(&mut self, blocks: usize, requested: Instant) -> Result<bool, String> {
        self.scheduler.hold_admissions(true);
        loop {
            match self.scheduler.shrink(blocks) {
                Ok(moves) => {
                    let moved = self.backend.kv_move(&mut self.kv, &moves);
                    let resized = moved.and_then(|()| self.backend.kv_resize(&mut self.kv, blocks));
                    if let Err(error) = resized {
                        // The block tables name places that may not hold their content: no request may go on from it.
                        self.fail_all(&format!("the KV pool could not shrink: {error}"));
                        return Err(error.to_string());
                    }
                    return Ok(true);
                }
                Err(_short) if requested.elapsed() < SHRINK_PATIENCE => return Ok(false),
                Err(_short) => {
                    if !self.scheduler.preempt_newest() {
                        return Err("the KV pool cannot shrink: its blocks are held, but by no request".into());
                    }
                    if let Some(pending) = &mut self.pending {
                        pending.preempted += 1;
                    }
                }
            }
        }
    }

    /// Ends a pending switch without the target.
    pub(super) fn refuse(&mut self, message: String) {
        self.scheduler.hold_admissions(false);
        if let Some(pending) = self.pending.take() {
            let name = self.rungs[pending.to].name.clone();
            let result =
                self.result(&name, pending.requested, pending.preempted, Duration::ZERO, SwitchEnd::Refused, message);
            self.report(pending.replies, &result);
        }
    }

    pub(super) fn report(&mut self, replies: Vec<oneshot::Sender<SwitchResult>>, result: &SwitchResult) {
        tracing::info!(from = %result.from, to = %result.to, outcome = ?result.outcome, "{}", result.message);
        self.observer.observe(Observation::Switched(result.clone()));
        self.last_switch = Some(result.clone());
        // The state that a client reads after the answer must show the switch.
        self.publish();
        for reply in replies {
            let _ = reply.send(result.clone());
        }
    }

    pub(super) fn result(
        &self,
        to: &str,
        requested: Instant,
        preempted: usize,
        pause: Duration,
        outcome: SwitchEnd,
        message: String,
    ) -> SwitchResult {
        SwitchResult {
            from: self.rungs[self.active].name.clone(),
            to: to.into(),
            start: SystemTime::now().checked_sub(requested.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH),
            duration: requested.elapsed(),
            pause,
            preempted,
            outcome,
            message,
        }
    }
}
