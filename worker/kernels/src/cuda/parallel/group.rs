//! The devices of one model as a group that computes together or not at all.

use std::sync::{Arc, OnceLock};

use super::agreement::{Agreement, Course, Vote};
use crate::{
    KernelError, Result,
    cuda::{
        driver::{Address, Stream},
        nccl::Communicators,
    },
};

/// The devices' communicators and votes.
pub(in crate::cuda) struct Group {
    communicators: Communicators,
    agreement: Agreement,
    /// Why the devices are parted, once they are.
    parted: OnceLock<String>,
}

impl Group {
    /// Joins devices, by their numbers.
    pub(super) fn new(ordinals: &[usize]) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            communicators: Communicators::new(ordinals)?,
            agreement: Agreement::new(ordinals.len()),
            parted: OnceLock::new(),
        }))
    }

    /// Parts the devices for good: no operation waits for another device any more, and what is on its way has no result. Called
    /// where a device cannot take its part in a sum that others wait in.
    pub(super) fn part(&self, reason: String) {
        if self.parted.set(reason).is_ok() {
            self.agreement.end();
            self.communicators.abort();
        }
    }

    /// # Errors
    /// [`KernelError::Device`] once the devices are parted.
    pub(super) fn check(&self) -> Result<()> {
        self.parted.get().map_or(Ok(()), |reason| {
            Err(KernelError::Device(format!(
                "the GPUs of this model no longer compute together: {reason}; restart the worker"
            )))
        })
    }

    /// Ends the communicators. Nothing of them is running or recorded.
    pub(super) fn disband(&self) {
        if self.parted.set("the model was closed".into()).is_ok() {
            self.communicators.destroy();
        }
    }
}

/// A device's place in its group; of its thread.
pub(in crate::cuda) struct Member {
    group: Arc<Group>,
    rank: usize,
    step: u64,
    voted: bool,
}

impl Member {
    pub(super) fn new(group: &Arc<Group>, rank: usize) -> Self {
        Self { group: group.clone(), rank, step: 0, voted: true }
    }

    /// A step begins, for all devices with the same number. The one before is at its end.
    pub(in crate::cuda) fn begin(&mut self, step: u64) {
        self.group.agreement.begin(self.rank, step);
        self.step = step;
        self.voted = false;
    }

    /// The step's number.
    pub(in crate::cuda) fn step(&self) -> u64 {
        self.step
    }

    /// Casts this device's vote in the step unless it was cast, and gives what all devices do.
    pub(in crate::cuda) fn vote(&mut self, vote: Vote) -> Course {
        if std::mem::replace(&mut self.voted, true) {
            return Course::Plain;
        }
        self.group.agreement.vote(self.rank, self.step, vote)
    }

    /// Tells whether this device could capture the step, and gives whether all could.
    pub(in crate::cuda) fn captured(&self, done: bool) -> bool {
        self.group.agreement.captured(self.rank, self.step, done)
    }

    /// Hands this device's part of a sum over, which is replaced by the sum.
    pub(in crate::cuda) fn all_reduce(&self, stream: &Stream, at: Address, count: usize) -> Result<()> {
        let done = self.group.communicators.all_reduce(self.rank, stream, at, count);
        if let Err(error) = &done {
            self.part(error);
        }
        done
    }

    /// Parts the devices: this one could not take its part.
    pub(in crate::cuda) fn part(&self, error: &KernelError) {
        self.group.part(format!("GPU {} of the model: {error}", self.rank));
    }
}
